"""`deeprecsys simulate` of one machine: files, exit codes, what is said."""

import json

import numpy as np
import pytest

from deeprecsys.cli.main import call
from deeprecsys.core import Records
from deeprecsys.experiments import paper
from deeprecsys.machines.service_time import Profile

pytestmark = pytest.mark.usefixtures("short_simulations")

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


@pytest.mark.engine
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


def test_an_overload_is_simulated_to_its_end_and_called_one(capsys):
    assert call([*ERLANG, "--qps", "5000", "--queries", "50000", "--sla-ms", "10000"]) == 1
    assert "overloaded" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quarter", "handful", "nosuch"])
def test_a_result_of_the_paper(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(paper, "_HANDFUL_QUERIES", 20_000)
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
