"""`deeprecsys tune`: files, exit codes, what is said."""

import json

import pytest
from small import SMALL

from deeprecsys.cli.main import call
from deeprecsys.core import Records


@pytest.mark.measures
def test_tune_writes_what_the_design_promises(tmp_path):
    # A lax target: what is asserted holds on a machine that others use.
    arguments = ["tune", "ncf", "--budget-s", "10", "--sla-ms", "200", "--method", "static"]
    assert call([*arguments, *SMALL, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
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
    policy = json.loads((tmp_path / "policy.json").read_text())
    assert set(policy) == {"policy", "model", "sla", "machine", "runtime"}
    assert "queries/s" in summary["verdict"]
    assert (tmp_path / "report.html").is_file()


@pytest.mark.engine
def test_tune_answers_no_when_no_rate_meets_the_target(tmp_path, capsys):
    folder = tmp_path / "x"
    arguments = ["tune", "ncf", "--sla-ms", "0.01", "--budget-s", "4", "--method", "static"]
    assert call([*arguments, *SMALL, "--out", str(folder)]) == 1
    assert (
        "no rate meets p95 ≤ 0.01 ms; the idle machine already gives p95 "
        in capsys.readouterr().out
    )
    assert json.loads((folder / "summary.json").read_text())["best"] is None
    assert not (folder / "policy.json").exists()


@pytest.mark.engine
@pytest.mark.usefixtures("short_simulations")
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
    tuned = ["tune", "ncf", "--method", "simulated", "--budget-s", "3", "--sla-ms", "200"]
    assert call([*tuned, *SMALL, *device, "--out", "t"]) in (0, 1)  # found in that time, or not
    summary = json.loads((tmp_path / "t" / "summary.json").read_text())
    assert summary["accelerator"]["emulated"] is True
    assert summary["verdict"].startswith("with an emulated gtx-1080ti: ")


@pytest.mark.engine
@pytest.mark.usefixtures("short_simulations")
def test_tune_by_simulation_ends_with_a_live_capacity(tmp_path, capsys):
    arguments = ["tune", "ncf", "--method", "simulated", "--budget-s", "4", "--sla-ms", "200"]
    assert call([*arguments, *SMALL, "--out", "run"]) in (0, 1)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["simulated"]["trials"]
    if found["best"]:
        assert found["simulated"]["predicted_over_measured"] > 0
        assert "simulation had predicted" in found["verdict"]
    assert (tmp_path / "run" / "profile.json").is_file()
