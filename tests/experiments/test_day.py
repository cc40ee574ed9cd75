"""A fleet's day as a value: the verb's keys, its folder, its verdict."""

import json

import pytest

from deeprecsys.core import UserError
from deeprecsys.experiments.day import DayTask

FILE = """
[day]
seconds = 2
[[model]]
name = "m"
qps = 500
sla_ms = 100
sizes = "fixed:10"
[[kind]]
name = "k"
workers = 2
count = 4
service = "constant:{service_s}"
"""
KEYS = {
    "verb", "command", "date", "machine", "versions", "model", "seed", "sla", "fleet", "workload",
    "simulated", "queries", "retried", "unserved", "overloaded", "models", "time_s", "rate_qps",
    "busy", "devices_busy", "elapsed_s", "verdict",
}  # fmt: skip
MODEL_KEYS = {
    "name", "queries", "sla", "p50_s", "p95_s", "p99_s", "meets_sla", "over_time",
}  # fmt: skip


def day(tmp_path, service_s=0.01, more=""):
    path = tmp_path / "f.toml"
    path.write_text(FILE.format(service_s=service_s) + more)
    return DayTask.read(path)


def test_a_day_saves_what_the_verb_leaves(tmp_path):
    task = day(tmp_path)
    assert "4 machines, 8 cores, two-choices; 500 queries/s on average for 2 s" in str(task)
    found = task.run()
    assert found.holds
    report = found.save(tmp_path / "d")
    assert report.read_text() == found.report()
    summary = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert summary == found.to_dict()
    assert set(summary) == KEYS
    assert set(summary["models"][0]) == MODEL_KEYS
    assert "meets p95 ≤ 100 ms" in found.verdict
    assert "Load over the day" in found._repr_html_()


def test_a_day_that_misses_says_so(tmp_path):
    late = day(tmp_path, 0.2).run()
    assert not late.holds
    assert "misses p95 ≤ 100 ms" in late.verdict


def test_queries_that_find_no_machine_up_are_a_miss(tmp_path):
    down = "".join(f'[[event]]\nat_s = 1\nmachine = {m}\nwhat = "down"\n' for m in range(4))
    found = day(tmp_path, more=down).run()
    assert not found.holds
    assert "queries found no machine up" in found.verdict


def test_a_wrong_file_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="down_s must lie between"):
        day(tmp_path, more="[failures]\nfraction = 0.5\ndown_s = 9\n")
