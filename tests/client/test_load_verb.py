"""`deeprecsys load` as a user meets it: exit codes, one-line errors, files, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeprecsys.cli.main import call
from deeprecsys.client import client as client_module
from deeprecsys.client import pools
from deeprecsys.client.access import Access, masked
from deeprecsys.client.client import Client
from deeprecsys.client.server import Address
from deeprecsys.core import SLA, Records
from deeprecsys.experiments.loading import load, load_capacity
from deeprecsys.workload import Workload
from stub_server import Act, HttpStub

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pools, "_POOL_BYTES", 1 << 18)  # a large one takes a while


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--qps", "1"], "--model"),
        (["--model", "m"], "give --qps, or --find-capacity"),
        (["--model", "m", "--find-capacity"], "give --sla-ms"),
        (["--model", "m", "--find-capacity", "--sla-ms", "9", "--qps", "1"], "leave out --qps"),
        (["--model", "m", "--qps", "1", "--percentile", "9"], "give --sla-ms with it"),
        (["--model", "m", "--qps", "0"], "must be a positive"),
        (["--model", "m", "--qps", "1", "--processes", "0"], "processes must"),
        (["--model", "m", "--qps", "1", "--timeout-ms", "-1"], "timeout_s must"),
        (["--model", "m", "--qps", "1", "--values", "none.json"], "cannot read none.json"),
        (["--model", "m", "--qps", "1", "--json", "no/dir.json"], "no such folder"),
        (["--model", "m", "--qps", "1"], "start the server"),
        (["--model", "m", "--qps", "1", "--header", "token"], "write NAME:VALUE"),
        (["--model", "m", "--qps", "1", "--header", "a b: c"], "no name of a header"),
        (["--model", "m", "--qps", "1", "--ca-file", "ca.pem"], "for https:// and grpcs://"),
        (
            ["--model", "m", "--qps", "1", "--queries-file", "q.npz", "--sizes", "fixed:3"],
            "leave out --sizes",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert call(["load", "http://127.0.0.1:1", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_one_rate_is_measured_shown_and_kept(tmp_path, capsys):
    folder = tmp_path / "run"
    with HttpStub(act=lambda n: Act(429 if n % 10 == 0 else 200)) as stub:
        code = call(["load", stub.url, "--model", "m", "--qps", "100", "--queries", "50",
                     "--sizes", "fixed:3", "--out", str(folder), "--json", "o.json"])  # fmt: skip
    assert code == 0
    text = capsys.readouterr().out
    assert "5 answered 429: because of 429" in text
    assert "assumed: dense: standard normal" in text
    assert "of a core" in text
    found = json.loads((tmp_path / "o.json").read_text())
    assert {"rate_qps", "policy", "queries", "duration_s", "throughput_qps", "items_per_s"} < {
        *found
    }
    assert {"p50_s", "p95_s", "p99_s", "p95_interval_s", "by_size", "generator_lag_p99_s"} < {
        *found
    }
    assert found["verb"] == "load"
    assert found["meets_sla"] is None
    assert found["errors"] == {"rejected": 5}
    assert found["client"]["by_status"] == {"200": 45, "429": 5}
    assert found["client"]["unanswered"] == 0
    assert found["client"]["cpu_s"] > 0
    assert len(Records.load(folder / "records.parquet")) == 50
    assert "the server&#x27;s own policy" in (folder / "report.html").read_text()
    assert call(["report", str(folder)]) == 0


def test_a_missed_target_is_exit_code_1(capsys):
    with HttpStub(act=lambda n: Act(500)) as stub:
        arguments = ["--model", "m", "--qps", "400", "--duration-s", "0.5", "--sla-ms", "50"]
        assert call(["load", stub.url, *arguments]) == 1
    assert "misses p95" in capsys.readouterr().out


KEYS = json.loads((Path(__file__).parents[1] / "experiments" / "keys.json").read_text())


def has(found, path):
    """Is there a value at `a.b[].c`? An empty list, or null, has everything."""
    for name in path.split("."):
        if not found:
            return True
        found = found[0] if isinstance(found, list) else found
        if name.removesuffix("[]") not in found:
            return False
        found = found[name.removesuffix("[]")]
    return True


@pytest.mark.parametrize("verb", ["load", "load --find-capacity"])
def test_no_key_of_the_json_has_gone(verb):
    asked = ["--qps", "100", "--queries", "50"]
    if verb != "load":
        asked = ["--find-capacity", "--budget-s", "3"]
    with HttpStub() as stub:
        call(["load", stub.url, "--model", "m", "--sla-ms", "50", "--json", "o.json", *asked])
    found = json.loads(Path("o.json").read_text())
    assert len(KEYS[verb]) > 50
    assert [path for path in KEYS[verb] if not has(found, path)] == []


@pytest.mark.parametrize("search", [False, True])
def test_not_one_answer_is_exit_code_1_and_says_why(search, capsys):
    asked = ["--find-capacity", "--sla-ms", "20", "--budget-s", "2"] if search else [
        "--qps", "100", "--queries", "20"]  # fmt: skip
    with HttpStub(act=lambda n: Act(500)) as stub:
        code = call(["load", stub.url, "--model", "m", "--json", "o.json", "--out", "run", *asked])
    assert code == 1
    assert "not one query was answered" in Path("run/report.html").read_text()
    out = capsys.readouterr().out
    assert "not one query was answered with scores (" in out
    assert "answered 500: because of 500" in out
    assert json.loads(Path("o.json").read_text())["answered"] == 0


@pytest.mark.parametrize("search", [False, True])
def test_a_server_that_went_away_is_exit_code_2_in_one_line(search, capsys, monkeypatch):
    asked = ["--find-capacity", "--sla-ms", "20", "--budget-s", "2"] if search else [
        "--qps", "100", "--queries", "20"]  # fmt: skip
    described = client_module.describe
    with HttpStub() as stub:
        said = described(Address.parse(stub.url), "m", Access())
    monkeypatch.setattr(client_module, "describe", lambda *_: said)
    assert call(["load", stub.url, "--model", "m", "--out", "run", *asked]) == 2
    error = capsys.readouterr().err
    assert "could not be reached" in error
    assert "refused" in error
    assert error.count("\n") == 1
    assert Path("run/summary.json").is_file()


def test_one_answer_is_an_answer():
    with HttpStub(act=lambda n: Act(500 if n else 200)) as stub:
        assert call(["load", stub.url, "--model", "m", "--qps", "100", "--queries", "9"]) == 0


def test_headers_are_sent():
    with HttpStub() as stub:
        code = call(["load", stub.url, "--model", "m", "--qps", "50", "--queries", "3",
                     "--header", "X-Token: s3cret", "--header", "x-b:2"])  # fmt: skip
    assert code == 0
    assert {asked.fields["x-token"] for asked in stub.asked} == {"s3cret"}
    assert {asked.fields["x-b"] for asked in stub.asked} == {"2"}


def test_secrets_are_masked_in_a_command_that_is_kept():
    typed = ["load", "u", "--key", "abc", "--header", "A: b=c", "--header=D:e", "--key=f", "-v"]
    assert masked(typed) == [
        "load", "u", "--key", "…", "--header", "A:…", "--header=D:…", "--key=…", "-v"
    ]  # fmt: skip


def test_tls_and_an_authority_of_ones_own_are_options(authority):
    with HttpStub(signed=authority.signed("good")) as stub:
        asked = ["load", stub.url, "--model", "m", "--qps", "50", "--queries", "5"]
        assert call([*asked, "--ca-file", authority.ca]) == 0
        assert call(asked) == 2


def test_recorded_queries_are_an_option(capsys):
    Path("q.jsonl").write_text('{"ids": [[1, 2, 3], [4, 5, 6]], "dense": [0, 0, 0, 0]}\n')
    with HttpStub() as stub:
        code = call(["load", stub.url, "--model", "m", "--qps", "50", "--queries", "5",
                     "--queries-file", "q.jsonl", "--json", "o.json"])  # fmt: skip
    assert code == 0
    assert "1 recorded queries of q.jsonl, 2 to 2 candidates each" in capsys.readouterr().out
    assert [asked.inputs["ids"].tolist() for asked in stub.asked] == [[[1, 2, 3], [4, 5, 6]]] * 5
    workload = json.loads(Path("o.json").read_text())["workload"]
    assert workload["sizes"] == "recorded:q.jsonl"
    assert "recorded queries" in workload["notes"]["sizes"]


def test_what_is_found_is_a_value_that_saves_itself(tmp_path):
    with HttpStub() as stub, Client(stub.url, "m") as client:
        found = load(client, Workload(sizes="fixed:3"), rate_qps=200, queries=40)
        best = load_capacity(client, Workload(sizes="fixed:3"), SLA(0.05), budget_s=3)
    for one in (found, best):
        report = one.save(tmp_path / "run")
        assert report.read_text() == one.report()
        assert json.loads((tmp_path / "run" / "summary.json").read_text()) == one.to_dict()
        assert one.verdict == one.to_dict()["verdict"]
        assert "<iframe" in one._repr_html_()
    assert found.answered == 40
    assert found.reached


@pytest.mark.measures
def test_a_capacity_is_found_and_reported(tmp_path, capsys):
    folder = tmp_path / "run"
    with HttpStub() as stub:
        code = call(["load", stub.url, "--model", "m", "--find-capacity", "--sla-ms", "50",
                     "--budget-s", "4", "--out", str(folder), "--sizes", "fixed:2"])  # fmt: skip
    assert code == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["capacity"]["rate_qps"] > 0
    assert summary["trials"][0]["runs"]
    assert summary["verdict"] in capsys.readouterr().out
    assert "Latency by rate" in (folder / "report.html").read_text()


def test_no_capacity_is_exit_code_1(capsys):
    with HttpStub(act=lambda n: Act(500)) as stub:
        code = call(["load", stub.url, "--model", "m", "--find-capacity", "--sla-ms", "20",
                     "--budget-s", "2"])  # fmt: skip
    assert code == 1
    assert "no rate" in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    with HttpStub() as stub:
        command = [sys.executable, "-m", "deeprecsys", "load", stub.url, "--model", "m"]
        process = subprocess.Popen(
            [*command, "--qps", "100", "--duration-s", "60", "--out", "run"],
            stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
        while len(stub.asked) < 20 and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # a terminal interrupts the whole group
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in out
    records = Records.load(tmp_path / "run" / "records.parquet")
    assert 20 <= len(records) < 6000
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"]
