"""However short the time, a verb ends with a result or one clear line: set-up costs no budget."""

import json

import pytest

from deeprecsys.cli.main import call
from stub_server import HttpStub

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("short_simulations")]

MODEL = ["ncf", "--scale", "0.001", "--runtime", "eager"]
LIVE = [*MODEL, "--workers", "2", "--sla-ms", "50"]
GPU = ["--accelerator", "gtx-1080ti"]
EXACT = ["--execution", "exact"]
SHORT = ["--budget-s", "0.01"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", *LIVE, "--method", "hill-climb"],
        *(["tune", *LIVE, *EXACT, "--method", m] for m in ("static", "exhaustive", "simulated")),
        ["tune", *LIVE, "--method", "joint", *GPU],
    ],
    ids=lambda a: a[a.index("--method") + 1],
)
def test_a_search_that_had_no_time_says_so(arguments, capsys):
    assert call([*arguments, *SHORT, "--out", "run"]) in (0, 1)
    said = capsys.readouterr()
    assert said.err == ""
    assert "more --budget-s" in said.out or "queries/s at" in said.out


def test_a_profile_visits_every_point_once(capsys):
    assert call(["profile", *LIVE[:-2], *SHORT, "--batch-sizes", "1,64", "--out", "run"]) == 0
    with open("run/summary.json") as file:
        points = json.load(file)["points"]
    assert {(row["batch_size"], row["busy"]) for row in points} == {
        (1, 1), (64, 1), (1, 2), (64, 2),
    }  # fmt: skip
    assert "25% of the visits were made" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        ["--qps", "1000", "--queries", "2000"],
        ["--tune", "--method", "static", "--sla-ms", "500", *GPU],
    ],
    ids=["one rate", "tune"],
)
def test_a_simulation_of_a_model_that_had_no_time_to_be_profiled(more, capsys):
    arguments = ["simulate", *MODEL, "--workers", "4", "--profile-s", "0.001", *more]
    assert call([*arguments, "--out", "run"]) == 0
    assert capsys.readouterr().err == ""


def test_a_search_over_the_network_that_had_no_time_says_so(capsys):
    with HttpStub() as server:
        find = ["load", server.url, "--model", "m", "--find-capacity", "--sla-ms", "50"]
        assert call([*find, *SHORT, "--out", "run"]) in (0, 1)
    said = capsys.readouterr()
    assert said.err == ""
    assert "Traceback" not in said.out
