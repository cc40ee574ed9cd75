"""`deeprecsys bench`: files, exit codes, what is said."""

import json

import numpy as np
import pytest
from small import SMALL

from deeprecsys.cli.main import call
from deeprecsys.core import Records

pytestmark = pytest.mark.engine


def test_bench_of_queries_that_hold_their_users_inputs_once(tmp_path):
    arguments = ["bench", "din", "--qps", "20", "--duration-s", "0.5", *SMALL]
    assert call([*arguments, "--query-inputs", "--out", str(tmp_path)]) == 0
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


@pytest.mark.measures
def test_bench_answers_no_when_the_target_asked_for_is_missed(tmp_path):
    arguments = ["bench", "ncf", "--qps", "300", "--duration-s", "0.5", "--sla-ms", "0.001", *SMALL]
    assert call([*arguments, "--out", str(tmp_path / "x")]) == 1


def test_a_trace_is_replayed_at_its_own_times(tmp_path):
    (tmp_path / "trace.csv").write_text("arrival_s,size\n0.1,5\n0.2,7\n0.2,9\n")
    folder = tmp_path / "x"
    trace = f"replay:{tmp_path}/trace.csv"
    assert call(["bench", "ncf", "--arrivals", trace, *SMALL, "--out", str(folder)]) == 0
    records = Records.load(folder / "records.parquet")
    assert records.arrival_s.tolist() == [0.1, 0.2, 0.2]
    assert records.size.tolist() == [5, 7, 9]


def test_bench_writes_a_timeline(tmp_path, capsys):
    target = tmp_path / "t.json"
    arguments = ["bench", "ncf", *SMALL, "--qps", "50", "--duration-s", "0.5"]
    assert call([*arguments, "--timeline", str(target)]) == 0
    assert {"X", "C", "M"} == {e["ph"] for e in json.loads(target.read_text())["traceEvents"]}
    assert "opens in https://ui.perfetto.dev" in capsys.readouterr().out
    assert call([*arguments, "--timeline", str(tmp_path)]) == 2
    assert "it is a folder; choose another --timeline" in capsys.readouterr().err
