"""`report`, `compare`, `models`, `doctor`: what reads and measures nothing."""

import json

import pytest

from deeprecsys.cli.main import call
from deeprecsys.engine import doctor


@pytest.mark.engine
def test_report_rebuilds_the_report(bench_folder, capsys):
    target = bench_folder / "report.html"
    before = target.read_bytes()
    target.unlink()
    assert call(["report", str(bench_folder)]) == 0
    assert target.read_bytes() == before


@pytest.mark.engine
def test_a_run_compared_with_itself_is_not_significant(bench_folder, tune_folder, capsys):
    assert call(["compare", str(bench_folder), str(bench_folder)]) == 0
    assert "1.00×" in capsys.readouterr().out
    assert call(["compare", str(tune_folder), str(tune_folder)]) == 0
    assert "not significant" in capsys.readouterr().out
    assert call(["compare", str(bench_folder), str(tune_folder)]) == 2


def test_what_cannot_be_compared_is_one_line(tmp_path, tune_folder, capsys):
    latency = {"verb": "simulate", "p95_s": 1.0, "p95_interval_s": [0.9, 1.1]}
    for name, summary in (("p", {"verb": "profile"}), ("s", latency)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    assert call(["compare", "p", "p"]) == 2
    assert "neither a capacity nor latencies" in capsys.readouterr().err
    assert call(["compare", "s", str(tune_folder)]) == 2
    assert "one run has a p95 latency, the other a capacity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "says", "queries"),
    [
        # As far apart as their errors: four times as long a run has half the error.
        ([1.0, 0.8, 1.25], [1.2, 0.96, 1.5], "two runs of about 3,000 queries (30 s)", 3000),
        ([1.0, 0.8, None], [1.2, 0.9, 1.5], "two runs of about 20,000 queries (200 s)", 20_000),
        ([1.0, 0.8, 1.25], [1.0, 0.8, 1.25], "not significant", None),
    ],
    ids=["wide", "without an end", "alike"],
)
def test_what_is_undecided_says_how_long_a_run_would_decide(
    tmp_path, capsys, first, second, says, queries
):
    for name, (p95, low, high) in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        found = {"verb": "bench", "p95_s": p95, "p95_interval_s": [low, high], "queries": 1000,
                 "rate_qps": 100.0, "enough_queries": 20_000 if high is None else None}  # fmt: skip
        (tmp_path / name / "summary.json").write_text(json.dumps(found))
    assert call(["compare", "a", "b", "--json", "r.json"]) == 0
    assert says in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())["enough_queries"]
    assert found == (queries and pytest.approx(queries, rel=0.05))


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


def test_doctor_ends_with_1_when_something_would_spoil_a_measurement(monkeypatch, capsys):
    fine = doctor.Finding("cores", "2 usable")
    bad = doctor.Finding("noise", "9 % lost", "spoils", "tails", "use a machine alone")
    for findings, code in (([fine], 0), ([fine, bad], 1)):
        monkeypatch.setattr(doctor, "examine", lambda findings=findings: findings)
        assert call(["doctor", "--json", "-"]) == code
        said = json.loads(capsys.readouterr().out)
        assert said["spoiled"] == [f.name for f in findings if f.level == "spoils"]
