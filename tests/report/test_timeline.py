"""The Chrome trace and the figures over time, from a run known by hand."""

import json

import numpy as np
import pytest

from deeprecsys.core import Records, Requests, Status, UserError
from deeprecsys.report.figures import run
from deeprecsys.report.timeline import (
    busy_over_time,
    chrome_trace,
    queue_over_time,
    slice_means,
    write_timeline,
)

# Query 0 (5 items, batch 3) runs on both workers; query 1 (2 items) waits for one of them.
RECORDS = Records.from_columns(
    {
        "arrival_s": [0.0, 1.0], "start_s": [0.0, 2.0], "finish_s": [3.0, 4.0], "size": [5, 2],
        "submit_s": [0.0, 1.0], "worker": [0, 1], "status": [Status.OK, Status.OK],
    }
)  # fmt: skip
REQUESTS = Requests.from_columns(
    {
        "query": [0, 0, 1], "lo": [3, 0, 0], "hi": [5, 3, 2], "worker": [1, 0, 1],
        "start_s": [0.0, 0.0, 2.0], "finish_s": [2.0, 3.0, 4.0],
    }
)  # fmt: skip


def test_the_queue_and_the_busy_workers_over_time():
    times, items = queue_over_time(RECORDS, REQUESTS)
    assert dict(zip(times.tolist(), items.tolist(), strict=True)) == {0.0: 0, 1.0: 2, 2.0: 0}
    times, busy = busy_over_time(REQUESTS)
    assert dict(zip(times.tolist(), busy.tolist(), strict=True)) == {0: 2, 2: 2, 3: 1, 4: 0}


def test_means_of_a_step_function_keep_its_area():
    times, values = np.array([1.0, 2.0, 4.0]), np.array([3.0, 1.0, 0.0])
    np.testing.assert_allclose(slice_means(times, values, np.array([0.0, 1.5, 3.0, 6.0])),
                               [1.0, 5 / 3, 1 / 3])  # fmt: skip
    nothing = slice_means(np.zeros(0), np.zeros(0), np.array([0.0, 1.0]))
    assert nothing.tolist() == [0.0]


def test_the_trace_has_a_slice_a_request_and_the_counters(tmp_path):
    trace = chrome_trace(RECORDS, REQUESTS, "wnd")
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    told = [(s["tid"], *(s["args"][name] for name in ("query", "size", "batch"))) for s in slices]
    assert told == [(1, 0, 5, 2), (0, 0, 5, 3), (1, 1, 2, 2)]
    assert slices[2]["ts"] == 2e6
    assert slices[2]["dur"] == 2e6
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "C"} == {
        "queued items", "busy workers",
    }  # fmt: skip
    write_timeline(tmp_path / "t.json", RECORDS, REQUESTS, "wnd")
    assert json.loads((tmp_path / "t.json").read_text()) == trace
    with pytest.raises(UserError, match="cannot write"):
        write_timeline(tmp_path / "none" / "t.json", RECORDS, REQUESTS, "wnd")


def test_requests_follow_the_queries_that_are_kept():
    kept = REQUESTS.of(np.array([False, True]))
    assert kept.query.tolist() == [0]
    assert kept.start_s.tolist() == [2.0]


def test_the_parts_of_a_latency_add_up_to_it():
    n = 100
    arrival = np.arange(n, dtype=float)
    records = Records.from_columns(
        {
            "arrival_s": arrival,
            "start_s": arrival + 1,
            "finish_s": arrival + 6,
            "size": np.full(n, 9),
        }
    )
    requests = Requests.from_columns(
        {
            "query": np.repeat(np.arange(n), 2), "lo": np.tile([0, 5], n), "hi": np.tile([5, 9], n),
            "worker": np.zeros(2 * n), "start_s": np.repeat(arrival, 2) + np.tile([1, 4], n),
            "finish_s": np.repeat(arrival, 2) + np.tile([4, 6], n),
        }
    )  # fmt: skip
    figure = run.parts({}, records, requests)
    parts = {trace["name"]: trace["x"][0] for trace in figure["data"]}
    assert parts == {"waiting": 1000.0, "executing": 3000.0, "last request": 2000.0}
