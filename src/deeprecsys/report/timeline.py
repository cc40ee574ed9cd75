"""A run as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Pure: records and requests in, events out. Workers are rows, requests are slices with their
query, size and batch; the queue and the busy workers are counters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.core import FloatArray, Records, Requests, UserError

_PID = 1


def queue_over_time(records: Records, requests: Requests) -> tuple[FloatArray, FloatArray]:
    """(times [m], items that wait from then on [m]): handed over, and not yet begun."""
    return _steps(
        (records.submit_s, records.size),
        (requests.start_s, requests.lo - requests.hi),
        # what was dropped leaves the queue when its query ends, which no request tells
    )


def busy_over_time(requests: Requests) -> tuple[FloatArray, FloatArray]:
    """(times [m], workers that execute a request from then on [m])."""
    ones = np.ones(len(requests))
    return _steps((requests.start_s, ones), (requests.finish_s, -ones))


def chrome_trace(records: Records, requests: Requests, name: str) -> dict[str, Any]:
    """The trace as Chrome's JSON object format; times in microseconds from the run's beginning."""
    events = [_named("process_name", 0, name)]
    events += [_named("thread_name", w, f"worker {w}") for w in np.unique(requests.worker).tolist()]
    columns = (getattr(requests, c).tolist() for c in requests.__slots__)
    for query, lo, hi, worker, start_s, finish_s in zip(*columns, strict=True):
        events.append(
            {
                "ph": "X", "pid": _PID, "tid": worker, "name": f"query {query}",
                "ts": start_s * 1e6, "dur": (finish_s - start_s) * 1e6,
                "args": {
                    "query": query, "size": int(records.size[query]), "batch": hi - lo,
                    "items": f"{lo}-{hi - 1}",
                    "arrived_ms": float(records.arrival_s[query]) * 1e3,
                },
            }
        )  # fmt: skip
    for label, (times, values) in (
        ("queued items", queue_over_time(records, requests)),
        ("busy workers", busy_over_time(requests)),
    ):
        for at, value in zip(times.tolist(), values.tolist(), strict=True):
            events.append({
                "ph": "C", "pid": _PID, "name": label, "ts": at * 1e6, "args": {label: value},
            })  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_timeline(path: str | Path, records: Records, requests: Requests, name: str) -> None:
    """UserError in one line where the file cannot be written."""
    try:
        Path(path).write_text(json.dumps(chrome_trace(records, requests, name)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def slice_means(times: FloatArray, values: FloatArray, edges: FloatArray) -> FloatArray:
    """Time averages [k] of a step function (0 before its first step) between `edges` [k + 1]."""
    if not len(times):
        return np.zeros(len(edges) - 1)
    area = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(times))])

    def until(at: FloatArray) -> FloatArray:
        row = np.searchsorted(times, at, side="right") - 1
        inside = row >= 0
        row = np.maximum(row, 0)
        return np.where(inside, area[row] + values[row] * (at - times[row]), 0.0)

    return np.diff(until(edges)) / np.diff(edges)


def _steps(*changes: tuple[Any, Any]) -> tuple[FloatArray, FloatArray]:
    """Running sum of changes at times; of changes at one time the last sum."""
    at = np.concatenate([np.asarray(times, float) for times, _ in changes])
    by = np.concatenate([np.asarray(values, float) for _, values in changes])
    order = np.argsort(at, kind="stable")
    at, total = at[order], np.cumsum(by[order])
    last = np.append(np.diff(at) > 0, True) if len(at) else np.zeros(0, bool)
    return at[last], total[last]


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PID, "tid": thread, "name": what, "args": {"name": name}}
