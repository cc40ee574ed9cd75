"""The command line as a user meets it: exit codes, one-line errors, files, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deeprecsys.cli.main import call
from deeprecsys.core import Records
from deeprecsys.engine import doctor
from deeprecsys.machines.service_time import Profile, ServiceTime

SMALL = ["--scale", "0.001", "--workers", "2"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bench_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "bench"
    arguments = ["bench", "ncf", "--qps", "200", "--duration-s", "1", *SMALL]
    assert call([*arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def tune_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tune"
    arguments = ["tune", "ncf", "--budget-s", "10", "--sla-ms", "50", "--method", "static"]
    assert call([*arguments, *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulate", "--qps", "1"], "give a MODEL, --service LAW or --profile FILE"),
        (["simulate", "ncf", "--service", "constant:1", "--qps", "1"], "law of its own"),
        (["simulate", "--service", "linear:1", "--qps", "1"], "cannot read the service time"),
        (["simulate", "--service", "constant:1", "--qps", "-1"], "--qps must be positive"),
        (["simulate", "--service", "constant:1"], "give --qps, or --tune"),
        (["simulate", "--service", "constant:1", "--tune"], "--tune needs a target"),
        (["simulate", "--service", "constant:1", "--tune", "--qps", "1"], "leave out --qps"),
        (["simulate", "--service", "constant:1", "--qps", "1", "--workers", "0"], "--workers must"),
        (["simulate", "--profile", "nosuch.json", "--qps", "1"], "no file nosuch.json"),
        (["simulate", "--service", "constant:1", "--profile", "x", "--qps", "1"], "not both"),
        (["simulate", "nosuch", "--qps", "1"], "unknown model 'nosuch'"),
        (["bench", "nosuch", "--qps", "1"], "unknown model 'nosuch'; known: ncf"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "tpu"], "unknown accelerator 'tpu'"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "cuda:x"], "unknown accelerator 'cuda:x'"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "cuda:7"], "no GPU cuda:7"),
        (["bench", "ncf", "--qps", "1", "--accelerator", "emulated:no.json"], "no file no.json"),
        (["bench", "ncf", "--qps", "1", "--offload-threshold", "9"], "needs an --accelerator"),
        (["bench", "ncf", "--qps", "1", "--offload-backlog", "9"], "needs an --offload-threshold"),
        (["bench", "ncf", "--qps", "1", "--watts", "core=9:1"], "idle not above busy"),
        (["simulate", "ncf", "--qps", "1", "--accelerator", "cuda:7"], "no GPU cuda:7"),
        (["bench", "ncf"], "give --qps"),
        (["bench", "ncf", "--qps", "0"], "must be a positive"),
        (["bench", "ncf", "--qps", "-3"], "must be a positive"),
        (["bench", "ncf", "--qps", "nan"], "must be a positive"),
        (["bench", "ncf", "--qps", "many"], "--qps"),
        (["bench", "ncf", "--qps", "1", "--duration-s", "0"], "duration_s must be"),
        (["bench", "ncf", "--qps", "1", "--queries", "0"], "queries must be"),
        (["bench", "ncf", "--qps", "1", "--batch-size", "0"], "batch_size must be"),
        (["bench", "ncf", "--qps", "1", "--scale", "0"], "scale must be"),
        (["bench", "ncf", "--qps", "1", "--scale", "-1"], "scale must be"),
        (["bench", "ncf", "--qps", "1", "--workers", "0"], "--workers must be positive"),
        (["bench", "ncf", "--qps", "1", "--sla-ms", "-5"], "SLA latency must be positive"),
        (["bench", "ncf", "--qps", "1", "--percentile", "100"], "percentile must lie"),
        (["bench", "ncf", "--qps", "1", "--sizes", "nosuch"], "sizes"),
        (["bench", "ncf", "--qps", "1", "--sizes", "fixed:-4"], "-4"),
        (["bench", "ncf", "--qps", "1", "--arrivals", "sometimes"], "arrivals"),
        (["bench", "ncf", "--qps", "1", "--arrivals", "replay:none.csv"], "none.csv"),
        (["bench", "ncf", "--qps", "1", "--indices", "zipf:x"], "zipf"),
        (["bench", "ncf", "--qps", "1", "--variant", "mine"], "variant"),
        (["bench", "ncf", "--qps", "1", "--query-inputs"], "ncf has no inputs that belong to the"),
        (["bench", "ncf", "--qps", "1", "--runtime", "abacus"], "unknown runtime 'abacus'"),
        (["bench", "ncf", "--qps", "1", "--json", "no/such/dir.json"], "no such folder"),
        (["bench", "ncf", "--qps", "1", "--out", "/proc/nowhere"], "choose another --out"),
        (["tune", "ncf", "--method", "guess"], "unknown method 'guess'; known: hill-climb"),
        (["tune", "ncf", "--budget-s", "0"], "--budget-s must be positive"),
        (["tune", "ncf", "--duration-s", "-1"], "--duration-s must be positive"),
        (["tune", "ncf", "--nonsense"], "--nonsense"),
        (["report", "nowhere"], "nowhere is no run folder"),
        (["compare", "nowhere", "nowhere"], "nowhere is no run folder"),
        (["nosuchverb"], "nosuchverb"),
    ],
)
def test_a_wrong_request_gets_one_line_and_exit_code_2(arguments, says, capsys):
    assert call(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("deeprecsys: ")
    assert says in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s\n0.1\n", "size"),
        ("arrival_s,size\n0.2,5\n0.1,5\n", "row 2: arrival_s must not precede"),
        ("arrival_s,size\n-1,5\n", "row 1: arrival_s must be 0 s or later"),
    ],
)
def test_a_damaged_trace_is_refused_saying_where(tmp_path, text, says, capsys):
    (tmp_path / "trace.csv").write_text(text)
    assert call(["bench", "ncf", "--arrivals", f"replay:{tmp_path}/trace.csv", *SMALL]) == 2
    assert says in capsys.readouterr().err


def test_too_little_memory_is_said_before_loading_with_the_scale_that_fits(monkeypatch, capsys):
    from deeprecsys.models import model

    monkeypatch.setattr(model, "available_bytes", lambda: 2_000_000_000)
    assert call(["bench", "dlrm-rmc1", "--qps", "1"]) == 2
    said = capsys.readouterr().err
    assert "needs 5.1 GB" in said
    assert "2.0 GB are free" in said
    assert "largest scale that fits is 0.24" in said


def test_bench_of_queries_that_hold_their_users_inputs_once(tmp_path):
    arguments = ["bench", "din", "--qps", "20", "--duration-s", "0.5", *SMALL]
    assert call([*arguments, "--query-inputs", "--runtime", "eager", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["query_inputs"] is True
    assert summary["throughput_qps"] > 0
    assert "once a query" in (tmp_path / "report.html").read_text()


def test_bench_writes_summary_records_and_report(bench_folder):
    summary = json.loads((bench_folder / "summary.json").read_text())
    promised = {
        "rate_qps", "policy", "queries", "duration_s", "throughput_qps", "items_per_s", "p50_s",
        "p95_s", "p99_s", "p95_interval_s", "by_size", "meets_sla", "errors",
        "generator_lag_p99_s", "machine", "versions", "seed", "workload", "command",
    }  # fmt: skip
    assert promised <= set(summary)
    records = Records.load(bench_folder / "records.parquet")
    assert len(records) == summary["queries"]
    assert np.nanmax(records.latency_s) < 10
    assert (bench_folder / "report.html").stat().st_size > 1e6


def test_json_on_standard_output_is_all_that_is_there(capsys, tmp_path):
    arguments = ["bench", "ncf", "--qps", "100", "--duration-s", "0.5", *SMALL, "--json", "-"]
    assert call([*arguments, "--out", str(tmp_path / "x")]) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == {
        "batch_size": 128,
        "offload_threshold": None,
    }


def test_bench_answers_no_when_the_target_asked_for_is_missed(tmp_path):
    arguments = ["bench", "ncf", "--qps", "300", "--duration-s", "2", "--sla-ms", "0.001", *SMALL]
    assert call([*arguments, "--out", str(tmp_path / "x")]) == 1


def test_a_trace_is_replayed_at_its_own_times(tmp_path):
    (tmp_path / "trace.csv").write_text("arrival_s,size\n0.1,5\n0.2,7\n0.2,9\n")
    folder = tmp_path / "x"
    trace = f"replay:{tmp_path}/trace.csv"
    assert call(["bench", "ncf", "--arrivals", trace, *SMALL, "--out", str(folder)]) == 0
    records = Records.load(folder / "records.parquet")
    assert records.arrival_s.tolist() == [0.1, 0.2, 0.2]
    assert records.size.tolist() == [5, 7, 9]


def test_tune_writes_what_the_design_promises(tune_folder):
    summary = json.loads((tune_folder / "summary.json").read_text())
    promised = {
        "model", "sla", "workload", "machine", "versions", "seed", "accelerator", "baseline",
        "best", "speedup", "binds", "trials", "elapsed_s",
    }  # fmt: skip
    assert promised <= set(summary)
    assert summary["baseline"]["policy"]["batch_size"] == 500
    run = summary["trials"][0]["runs"][0]
    assert {
        "rate_qps",
        "p95_s",
        "meets_sla",
        "queries",
        "duration_s",
        "generator_lag_p99_s",
    } <= set(run)
    policy = json.loads((tune_folder / "policy.json").read_text())
    assert set(policy) == {"policy", "model", "sla", "machine", "runtime"}
    assert "queries/s" in summary["verdict"]
    assert (tune_folder / "report.html").is_file()


def test_tune_answers_no_when_no_rate_meets_the_target(tmp_path, capsys):
    folder = tmp_path / "x"
    arguments = ["tune", "ncf", "--sla-ms", "0.01", "--budget-s", "10", "--method", "static"]
    assert call([*arguments, *SMALL, "--out", str(folder)]) == 1
    assert (
        "no rate meets p95 ≤ 0.01 ms; the idle machine already gives p95 "
        in capsys.readouterr().out
    )
    assert json.loads((folder / "summary.json").read_text())["best"] is None
    assert not (folder / "policy.json").exists()


ERLANG = ["simulate", "--service", "exponential:0.001", "--workers", "4", "--qps", "3200",
          "--batch-size", "1", "--sizes", "fixed:1"]  # fmt: skip


def test_simulate_agrees_with_erlang_c(tmp_path, capsys):
    assert call([*ERLANG, "--json", "e.json", "--out", "run"]) == 0
    assert "M/M/4, Erlang C" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["queries"] == 1_000_000
    assert found["mean_s"] == pytest.approx(1.7455e-3, rel=0.02)
    for p in (50, 95, 99):
        assert found[f"p{p}_s"] == pytest.approx(found["theory"][f"p{p}_s"], rel=0.02)
    assert found["meets_sla"] is None
    assert len(Records.load(tmp_path / "run" / "records.parquet")) == 1_000_000
    report = (tmp_path / "run" / "report.html").read_text()
    assert "no model was measured" in report


def test_simulate_tunes_a_law(tmp_path, capsys):
    arguments = ["simulate", "--service", "linear:1e-3,1e-5", "--workers", "40", "--tune"]
    assert call([*arguments, "--sla-ms", "50", "--method", "static", "--json", "t.json"]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["baseline"]["policy"]["batch_size"] == 25
    assert found["best"]["capacity"]["rate_qps"] > 1000
    assert found["trials"]
    assert "simulated, 40 workers" in capsys.readouterr().out
    assert call([*arguments, "--sla-ms", "0.5", "--method", "static"]) == 1
    assert "no rate meets" in capsys.readouterr().out


def test_simulate_profiles_a_model_and_takes_the_profile_again(tmp_path, capsys):
    arguments = ["simulate", "ncf", "--scale", "0.001", "--qps", "100", "--queries", "2000"]
    assert call([*arguments, "--profile-s", "2", "--out", "first"]) == 0
    capsys.readouterr()
    profile = ["--profile", "first/profile.json"]
    assert call([*arguments, *profile, "--workers", "40", "--json", "again.json"]) == 0
    assert "40 workers are assumed" in capsys.readouterr().out
    found = json.loads((tmp_path / "again.json").read_text())
    assert found["workers"] == 40
    assert found["p95_s"] < 0.1
    assert call(["simulate", "wnd", "--qps", "1", *profile]) == 2
    assert "is of model ncf, not wnd" in capsys.readouterr().err
    assert call([*arguments, *profile, "--sizes", "fixed:4000", "--batch-size", "4000"]) == 2
    assert "profile ends at requests of" in capsys.readouterr().err


def test_simulate_with_an_accelerator_says_that_it_is_emulated(tmp_path, capsys):
    profile = Profile({"model": "dlrm-rmc3", "variant": "paper", "scale": 1.0, "workers": 2})
    for batch in (1, 32, 1024):
        for busy in (1, 2):
            profile = profile.with_visit((batch, busy), np.full(3, 2e-4 + 4e-5 * batch))
    profile.save(tmp_path / "p.json")
    arguments = ["simulate", "dlrm-rmc3", "--profile", "p.json", "--workers", "4"]
    device = ["--accelerator", "gtx-1080ti"]
    assert call([*arguments, *device, "--tune", "--out", "t", "--json", "t.json"]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["accelerator"]["name"] == "gtx-1080ti"
    assert found["accelerator"]["emulated"] is True
    assert found["baseline"]["policy"]["offload_threshold"] is None
    assert found["best"]["policy"]["offload_threshold"] > 100
    assert found["speedup"]["ratio"] > 1.3
    assert "gtx-1080ti is emulated" in capsys.readouterr().out
    report = (tmp_path / "t" / "report.html").read_text()
    assert "Capacity by offload threshold" in report
    assert "is emulated" in report
    assert call([*arguments, *device, "--qps", "50", "--queries", "3000",
                 "--offload-threshold", "300", "--out", "b"]) == 0  # fmt: skip
    records = Records.load(tmp_path / "b" / "records.parquet")
    assert ((records.device == 1) == (records.size >= 300)).all()
    assert call([*arguments, "--qps", "50", "--offload-threshold", "300"]) == 2
    assert "needs an --accelerator" in capsys.readouterr().err
    assert call([*arguments, "--qps", "50", "--accelerator", "tpu"]) == 2
    assert "unknown accelerator 'tpu'" in capsys.readouterr().err


def test_bench_and_tune_live_with_an_emulated_accelerator(tmp_path, capsys):
    device = ["--accelerator", "gtx-1080ti"]
    arguments = ["bench", "ncf", "--qps", "150", "--duration-s", "1", *SMALL, *device]
    assert call([*arguments, "--offload-threshold", "300", "--out", "b"]) == 0
    said = capsys.readouterr().out
    assert "with an emulated gtx-1080ti: " in said
    assert "queries/s per watt" in said
    records = Records.load(tmp_path / "b" / "records.parquet")
    assert ((records.device == 1) == (records.size >= 300)).all()
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert summary["usage"]["accelerators"][0]["emulated"] is True
    assert 0.1 < summary["usage"]["accelerators"][0]["share_of_items"] < 0.9
    assert "gtx-1080ti, emulated" in (tmp_path / "b" / "report.html").read_text()
    tuned = ["tune", "ncf", "--method", "simulated", "--budget-s", "9", "--sla-ms", "20"]
    assert call([*tuned, *SMALL, *device, "--out", "t"]) == 0
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["accelerator"]["emulated"] is True
    assert summary["verdict"].startswith("with an emulated gtx-1080ti: ")


def test_an_overload_is_simulated_to_its_end_and_called_one(capsys):
    assert call([*ERLANG, "--qps", "5000", "--queries", "50000", "--sla-ms", "10000"]) == 1
    assert "overloaded" in capsys.readouterr().out


def test_tune_by_simulation_ends_with_a_live_capacity(tmp_path, capsys):
    arguments = ["tune", "ncf", "--method", "simulated", "--budget-s", "16", "--sla-ms", "50"]
    assert call([*arguments, *SMALL, "--out", "run"]) in (0, 1)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["simulated"]["trials"]
    if found["best"]:
        assert found["simulated"]["predicted_over_measured"] > 0
        assert "simulation had predicted" in found["verdict"]
    assert (tmp_path / "run" / "profile.json").is_file()


def test_report_rebuilds_the_report(bench_folder, capsys):
    target = bench_folder / "report.html"
    before = target.read_bytes()
    target.unlink()
    assert call(["report", str(bench_folder)]) == 0
    assert target.read_bytes() == before


def test_a_damaged_summary_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "summary.json").write_text("{")
    assert call(["report", str(tmp_path)]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_run_compared_with_itself_is_not_significant(bench_folder, tune_folder, capsys):
    assert call(["compare", str(bench_folder), str(bench_folder)]) == 0
    assert "1.00×" in capsys.readouterr().out
    assert call(["compare", str(tune_folder), str(tune_folder)]) == 0
    assert "not significant" in capsys.readouterr().out
    assert call(["compare", str(bench_folder), str(tune_folder)]) == 2


@pytest.mark.parametrize(("factor", "code"), [(0.5, 1), (2.0, 0)])
def test_a_clear_difference_is_significant_and_a_worse_second_fails(
    tmp_path, tune_folder, factor, code
):
    summary = json.loads((tune_folder / "summary.json").read_text())
    capacity = summary["best"]["capacity"]
    rate = capacity["rate_qps"]
    capacity["interval_qps"] = [0.99 * rate, 1.01 * rate]
    for name, scale in (("a", 1.0), ("b", factor)):
        (tmp_path / name).mkdir()
        capacity["rate_qps"] = scale * rate
        capacity["interval_qps"] = [0.99 * scale * rate, 1.01 * scale * rate]
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    result = tmp_path / "result.json"
    assert (
        call(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(result)]) == code
    )
    found = json.loads(result.read_text())
    assert found["significant"]
    assert found["ratio"] == pytest.approx(factor)


def test_models_lists_the_zoo_with_sources(capsys, tmp_path):
    assert call(["models", "--sources", "--json", str(tmp_path / "m.json")]) == 0
    said = capsys.readouterr().out
    models = json.loads((tmp_path / "m.json").read_text())
    assert len(models) == 8
    for model in models:
        assert model["model"] in said
        assert model["sources"]
        assert model["can_meet"] in (True, False)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to a process is POSIX")
@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "ncf", "--qps", "100", "--duration-s", "60"],
        ["tune", "ncf", "--budget-s", "60"],
    ],
)
def test_ctrl_c_keeps_what_was_measured(tmp_path, arguments):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "deeprecsys", *arguments, *SMALL, "--out", str(folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    lines = []
    while "workers" not in (line := process.stdout.readline()):
        lines.append(line)
        assert line, process.stderr.read()
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: what was measured until then is kept" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["interrupted"] is True
    measured = summary.get("queries") or summary["trials"][0]["runs"][0]["queries"]
    assert measured > 0
    assert (folder / "report.html").is_file()


def test_profile_goes_on_refuses_another_model_and_is_what_a_service_time_reads(tmp_path, capsys):
    folder = tmp_path / "p"
    arguments = ["profile", "ncf", *SMALL, "--batch-sizes", "1,16", "--out", str(folder)]
    assert call([*arguments, "--budget-s", "0.05"]) == 0
    first = Profile.load(folder / "profile.json")
    assert call([*arguments, "--budget-s", "2", "--operators"]) == 0
    assert "going on with the profile" in capsys.readouterr().out
    second = Profile.load(folder / "profile.json")
    assert all(len(second.points[p].seconds) >= len(s.seconds) for p, s in first.points.items())
    assert {batch for batch, _ in second.points} == {1, 16}
    assert ServiceTime.from_profile(folder / "profile.json")(np.array([8.0]))[0] > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert {e["batch_size"] for e in summary["operators"]} == {1, 16}
    assert (folder / "report.html").is_file()
    assert call(["profile", "wnd", *SMALL, "--out", str(folder)]) == 2
    assert "the profile is of model ncf, not wnd" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "1,x", "-3", ""])
def test_profile_refuses_batch_sizes_that_are_none(sizes, capsys):
    assert call(["profile", "ncf", "--batch-sizes", sizes]) == 2
    assert "--batch-sizes must be whole numbers" in capsys.readouterr().err


def test_bench_writes_a_timeline(tmp_path, capsys):
    target = tmp_path / "t.json"
    arguments = ["bench", "ncf", *SMALL, "--qps", "50", "--duration-s", "0.5"]
    assert call([*arguments, "--timeline", str(target)]) == 0
    assert {"X", "C", "M"} == {e["ph"] for e in json.loads(target.read_text())["traceEvents"]}
    assert "opens in https://ui.perfetto.dev" in capsys.readouterr().out
    assert call([*arguments, "--timeline", str(tmp_path)]) == 2
    assert "it is a folder; choose another --timeline" in capsys.readouterr().err


def test_doctor_ends_with_1_when_something_would_spoil_a_measurement(monkeypatch, capsys):
    fine = doctor.Finding("cores", "2 usable")
    bad = doctor.Finding("noise", "9 % lost", "spoils", "tails", "use a machine alone")
    for findings, code in (([fine], 0), ([fine, bad], 1)):
        monkeypatch.setattr(doctor, "examine", lambda findings=findings: findings)
        assert call(["doctor", "--json", "-"]) == code
        said = json.loads(capsys.readouterr().out)
        assert said["spoiled"] == [f.name for f in findings if f.level == "spoils"]


ROOT = Path(__file__).parent.parent.parent


def test_a_fleet_s_day_from_the_example(tmp_path, capsys):
    text = (ROOT / "examples" / "fleet.toml").read_text().replace("seconds = 300", "seconds = 10")
    (tmp_path / "f.toml").write_text(text.replace("down_s = 20", "down_s = 2"))
    assert call(["simulate", "--fleet", "f.toml", "--out", "day", "--json", "d.json"]) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["fleet"]["machines"] == 16
    assert found["queries"] == pytest.approx(300_000, rel=0.02)
    assert found["retried"] > 0
    assert found["unserved"] == 0
    assert set(found["busy"]) == {"small", "large", "with-gpu"}
    assert max(found["rate_qps"]) > 1.5 * min(found["rate_qps"])
    assert len(found["models"][0]["over_time"]["p95_s"]) == len(found["time_s"])
    said = capsys.readouterr().out
    assert "meets p95 ≤ 100 ms" in said
    report = (tmp_path / "day" / "report.html").read_text()
    assert "Utilisation by kind" in report
    assert "is emulated" in report


def test_a_plan_from_the_example(tmp_path, capsys):
    text = (ROOT / "examples" / "plan.toml").read_text()
    kinds = text.split("[[kind]]")
    assert len(kinds) == 4
    (tmp_path / "plan.toml").write_text("[[kind]]".join(kinds[:3]).replace("16", "2"))
    plan = ["plan", "plan.toml", "--balancer", "two-choices"]
    assert call([*plan, "--qps", "1e6", "--spare", "2", "--out", "p", "--json", "p.json"]) == 0
    found = json.loads((tmp_path / "p.json").read_text())
    (chosen,) = found["chosen"]
    assert chosen["machines"] == -(-1_000_000 // chosen["fleet_qps"]) + 2
    assert 0.5 * chosen["single_qps"] <= chosen["fleet_qps"] <= 1.1 * chosen["single_qps"]
    cheapest = min(found["answers"], key=lambda a: a["cost"])
    assert chosen["kind"] == cheapest["kind"]
    policy = json.loads((tmp_path / "p" / f"policy-{chosen['kind']}.json").read_text())
    assert policy["policy"] == chosen["policy"]
    assert "kW at the peak" in capsys.readouterr().out
    assert "Machines needed" in (tmp_path / "p" / "report.html").read_text()


def test_a_target_that_no_number_of_machines_meets(tmp_path, capsys):
    (tmp_path / "p.toml").write_text(
        '[[model]]\nname = "m"\nqps = 100\nsla_ms = 1\n'
        '[[kind]]\nname = "slow"\nworkers = 2\nservice = "constant:0.01"\n'
    )
    assert call(["plan", "p.toml"]) == 1
    assert "an idle machine gives 10 ms" in capsys.readouterr().out


KIND = '[[kind]]\nname = "k"\nworkers = 2\nservice = "constant:0.01"\n'
TRAFFIC = '[[model]]\nname = "m"\nqps = 10\nsla_ms = 50\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no kind of machine"),
        (KIND, "has no traffic"),
        (TRAFFIC + KIND.replace("service", "servce"), "unknown field `servce`"),
        (TRAFFIC + KIND.replace('service = "constant:0.01"\n', ""), "needs a profile or a service"),
        (TRAFFIC + KIND + "count = 0\n", "count must be at least 1"),
        (TRAFFIC + KIND + KIND, "two kinds have one name"),
        (TRAFFIC + KIND + "cost = -1\n", "a cost must not be negative"),
        (TRAFFIC + KIND + "watts = [200, 100]\n", "idle not above"),
        (TRAFFIC + KIND + "[failures]\nfraction = 1.0\n", "lies between 0 and 1, not 1"),
        (TRAFFIC + KIND + '[[event]]\nat_s = 1\nmachine = 7\nwhat = "down"\n', "no machine 7"),
        (TRAFFIC.replace("10", "-1") + KIND, "qps of m must be positive"),
        (TRAFFIC.replace("qps = 10", "") + KIND, "has no qps"),
        ('balancer = "best"\n' + TRAFFIC + KIND, "unknown balancer 'best'"),
        ("x = = 1", "cannot read f.toml"),
    ],
)
def test_a_wrong_fleet_file_is_one_line(tmp_path, capsys, text, says):
    (tmp_path / "f.toml").write_text(text)
    assert call(["simulate", "--fleet", "f.toml"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_contradictory_costs_are_refused(tmp_path, capsys):
    other = KIND.replace('"k"', '"l"') + "cost = 1\n"
    (tmp_path / "f.toml").write_text(TRAFFIC + KIND + other)
    assert call(["plan", "f.toml"]) == 2
    assert "cost of every kind, or of none" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quarter", "handful", "nosuch"])
def test_a_result_of_the_paper(tmp_path, capsys, name):
    profile = Profile({"model": "ncf", "variant": "paper", "scale": 1.0, "workers": 2})
    for batch in (1, 32, 1024):
        for busy in (1, 2):
            profile = profile.with_visit((batch, busy), np.full(3, 2e-5 + 1e-6 * batch))
    profile.save(tmp_path / "p.json")
    arguments = ["simulate", "ncf", "--profile", "p.json", "--paper", name, "--workers", "4"]
    assert call([*arguments, "--out", "o"]) == (2 if name == "nosuch" else 0)
    said = capsys.readouterr()
    if name == "nosuch":
        assert "known: optimum, lognormal, handful, tail, quarter, retune" in said.err
    else:
        assert "the paper: " in said.out
        assert "Beside the paper" in (tmp_path / "o" / "report.html").read_text()
