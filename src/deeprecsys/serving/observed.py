"""What a server saw: counts, histograms and the last minutes, for metrics, statistics and page.

All from one thread, the event loop's, so plain integers do. Told what happened; knows no engine,
no clock (times are handed in, on `dataplane.clock`) and no protocol.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.protocol.call import Call
from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.tensors import Array
from deeprecsys.serving.window import Percentiles, Window, percentiles

if TYPE_CHECKING:
    from deeprecsys.engine import Ticket

# Seconds: dense from 1 to 500 ms, where targets lie.
EDGES_S = tuple(
    ms / 1e3
    for ms in (
        0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, 125, 150,
        200, 250, 300, 400, 500, 750, 1000, 2000, 5000,
    )
)  # fmt: skip
# First sizes of the classes of queries; production queries have a median near 130.
SIZE_CLASSES = (0, 64, 128, 256, 512)
STAGES = ("receive", "queue", "compute", "send")
_SHED = (Reason.OVERLOADED, Reason.UNAVAILABLE)
HISTORY_S, RECENT_S, SIZES_S = 300, 10, 60


class Histogram:
    """Counts by `edges_s` (and beyond), and their sum."""

    __slots__ = ("counts", "edges_s", "sum_s")

    def __init__(self, edges_s: Sequence[float] = EDGES_S) -> None:
        self.edges_s = edges_s
        self.counts, self.sum_s = [0] * (len(edges_s) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.edges_s, seconds)] += 1
        self.sum_s += seconds

    def add_all(self, seconds: NDArray[Any]) -> None:
        more = np.bincount(np.searchsorted(self.edges_s, seconds), minlength=len(self.counts))
        self.counts = (self.counts + more).tolist()
        self.sum_s += float(seconds.sum())

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile_s(self, q: float) -> float | None:
        """Upper edge of the bucket with the quantile; None without values."""
        wanted, seen = q * self.count, 0
        for count, edge in zip(self.counts, (*self.edges_s, self.edges_s[-1]), strict=True):
            seen += count
            if seen and seen >= wanted:
                return edge
        return None


class Observed:
    """Since the server began. `tick` once a second keeps the last minutes."""

    def __init__(self, target_s: float | None = None) -> None:
        """target_s: is among the edges of the histograms, so that what was late can be counted."""
        edges_s = EDGES_S if target_s is None else tuple(sorted({*EDGES_S, target_s}))
        self.workers = 0
        self.started_s = time.perf_counter()
        self.answered = self.items = 0
        self.last_inference_ms = 0
        self.failures: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self.others: dict[Reason, int] = dict.fromkeys(Reason, 0)  # of requests for other things
        self.bounds: dict[str, int] = {}  # by option
        self.loop_lag_s = 0.0  # of the last second, the longest that what came was not looked at
        self.stages = {name: Histogram(edges_s) for name in STAGES}
        self.by_size = [Histogram(edges_s) for _ in SIZE_CLASSES]
        self.fail_s = 0.0
        self._recent = Window(len(SIZE_CLASSES), SIZES_S)
        self._ticks: deque[_Tick] = deque(maxlen=HISTORY_S + RECENT_S)

    def finished(self, call: Call, ticket: Ticket, outcome: Array | Refusal, now_s: float) -> None:
        if isinstance(outcome, Refusal):
            self.failures[outcome.reason] += 1
            self.fail_s += now_s - call.arrived_s
            return
        size, took_s = len(outcome), now_s - call.arrived_s
        self.answered += 1
        self.items += size
        self.last_inference_ms = int(time.time() * 1e3)
        stages = self.stages
        stages["receive"].add(call.parsed_s - call.arrived_s)
        stages["queue"].add(ticket.start_s - call.parsed_s)
        stages["compute"].add(ticket.finish_s - ticket.start_s)
        stages["send"].add(now_s - ticket.finish_s)
        number = size_class(size)
        self.by_size[number].add(took_s)
        self._recent.add(took_s, number)

    def finished_natively(self, rows: NDArray[Any], reasons: Mapping[int, Reason]) -> None:
        """The same of many: `native.ANSWERED`, and what their statuses other than 200 stand for."""
        good, bad = rows[rows["status"] == 200], rows[rows["status"] != 200]
        for status in bad["status"].tolist():
            self.failures[reasons[status]] += 1
        self.fail_s += float((bad["answered_s"] - bad["arrived_s"]).sum())
        if not len(good):
            return
        self.answered += len(good)
        self.items += int(good["items"].sum())
        self.last_inference_ms = int(time.time() * 1e3)
        times = ("arrived_s", "parsed_s", "start_s", "finish_s", "answered_s")
        for name, (since, until) in zip(STAGES, pairwise(times), strict=True):
            self.stages[name].add_all(good[until] - good[since])
        took_s = good["answered_s"] - good["arrived_s"]
        numbers = np.searchsorted(SIZE_CLASSES, good["items"], side="right") - 1
        for number in np.unique(numbers).tolist():
            self.by_size[number].add_all(took_s[numbers == number])
        for seconds, number in zip(took_s.tolist(), numbers.tolist(), strict=True):
            self._recent.add(seconds, number)

    def refused(self, refusal: Refusal, *, query: bool) -> None:
        """query: it asked for inference; others are counted apart."""
        (self.failures if query else self.others)[refusal.reason] += 1
        if refusal.bound:
            self.bounded(refusal.bound)

    def bounded(self, option: str) -> None:
        """A request or connection was refused by this bound."""
        self.bounds[option] = self.bounds.get(option, 0) + 1

    @property
    def queries(self) -> int:
        """Inference requests of any outcome."""
        return self.answered + sum(self.failures.values())

    @property
    def shed(self) -> int:
        return sum(self.failures[reason] for reason in _SHED)

    def tick(self, now_s: float, queued_items: int, busy_s: Sequence[float]) -> None:
        """Once a second: what the page shows over time."""
        latency_s = percentiles(self._recent.last(0).sum(axis=0))
        self._recent.tick()
        self._ticks.append(
            _Tick(
                at_s=now_s,
                queries=self.queries,
                answered=self.answered,
                items=self.items,
                shed=self.shed,
                expired=self.failures[Reason.DEADLINE],
                failed=self.failures[Reason.INTERNAL],
                queued_items=queued_items,
                busy_s=tuple(busy_s),
                latency_s=latency_s,
            )
        )

    def statistics(self, executed: int) -> dict[str, Any]:
        """The protocol's; `executed` requests ran on the workers."""

        def durations(histogram: Histogram) -> dict[str, int]:
            return {"count": histogram.count, "ns": int(histogram.sum_s * 1e9)}

        stages = {name: durations(histogram) for name, histogram in self.stages.items()}
        success_s = sum(histogram.sum_s for histogram in self.by_size)
        failed = sum(self.failures.values())
        nothing = {"count": 0, "ns": 0}
        return {
            "last_inference": self.last_inference_ms,
            "inference_count": self.items,
            "execution_count": executed,
            "inference_stats": {
                "success": {"count": self.answered, "ns": int(success_s * 1e9)},
                "fail": {"count": failed, "ns": int(self.fail_s * 1e9)},
                "queue": stages["queue"],
                "compute_input": stages["receive"],
                "compute_infer": stages["compute"],
                "compute_output": stages["send"],
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
        }

    def live(self, now_s: float) -> dict[str, Any]:
        """The part of the live page's data that comes from here."""
        ticks = list(self._ticks)
        seconds = list(pairwise(ticks))[-HISTORY_S:]
        first, last = ticks[-RECENT_S - 1 :][:1], ticks[-1:]
        rates = _rates(first[0], last[0]) if seconds else dict.fromkeys(_RATES, 0.0)
        busy = _busy(first[0], last[0]) if seconds else [0.0] * self.workers
        each = [_rates(a, b) for a, b in seconds]
        p50, p95, p99 = percentiles(self._recent.last(RECENT_S).sum(axis=0))
        return {
            "now": {
                **rates,
                "p50_s": p50,
                "p95_s": p95,
                "p99_s": p99,
                "busy_share": _mean(busy),
            },
            "totals": {
                "queries": self.queries,
                "answered": self.answered,
                "shed": self.shed,
                "expired": self.failures[Reason.DEADLINE],
                "failed": self.failures[Reason.INTERNAL],
                "cancelled": self.failures[Reason.CANCELLED],
                "invalid": self.failures[Reason.INVALID] + self.failures[Reason.TOO_LARGE],
            },
            "history": {
                "time_s": [round(b.at_s - self.started_s, 1) for _, b in seconds],
                **{
                    name: [rate[name] for rate in each]
                    for name in ("rate_qps", "answered_qps", "shed_per_s")
                },
                **{
                    name: [b.latency_s[i] for _, b in seconds]
                    for i, name in enumerate(("p50_s", "p95_s", "p99_s"))
                },
                "queued_items": [b.queued_items for _, b in seconds],
                "busy_share": [_mean(_busy(a, b)) for a, b in seconds],
            },
            "workers_busy": busy,
            "sizes": self._sizes(),
            "stages": {
                name: {"p50_s": histogram.quantile_s(0.5), "p95_s": histogram.quantile_s(0.95)}
                for name, histogram in self.stages.items()
            },
        }

    def _sizes(self) -> list[dict[str, Any]]:
        rows = []
        for number, counts in enumerate(self._recent.last(SIZES_S)):
            if counts.any():
                p50, p95, _ = percentiles(counts)
                last = number + 1 == len(SIZE_CLASSES)
                hi = None if last else SIZE_CLASSES[number + 1] - 1
                rows.append(
                    {"lo": SIZE_CLASSES[number], "hi": hi, "queries": int(counts.sum()),
                     "p50_s": p50, "p95_s": p95}
                )  # fmt: skip
        return rows


_RATES = ("rate_qps", "answered_qps", "items_per_s", "shed_per_s", "expired_per_s", "failed_per_s")


class _Tick:
    """The counts at the end of one second."""

    __slots__ = (
        "answered", "at_s", "busy_s", "expired", "failed", "items", "latency_s", "queries",
        "queued_items", "shed",
    )  # fmt: skip
    answered: int
    at_s: float
    busy_s: tuple[float, ...]
    expired: int
    failed: int
    items: int
    latency_s: Percentiles
    queries: int
    queued_items: int
    shed: int

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)


def size_class(size: int) -> int:
    return bisect_left(SIZE_CLASSES, size + 1) - 1


def size_label(number: int) -> str:
    """ "64-127", "512+": the name of a class of query sizes."""
    lo = SIZE_CLASSES[number]
    return f"{lo}-{SIZE_CLASSES[number + 1] - 1}" if number + 1 < len(SIZE_CLASSES) else f"{lo}+"


def _rates(a: _Tick, b: _Tick) -> dict[str, float]:
    seconds = max(b.at_s - a.at_s, 1e-9)
    fields = ("queries", "answered", "items", "shed", "expired", "failed")
    return {
        name: (getattr(b, f) - getattr(a, f)) / seconds
        for name, f in zip(_RATES, fields, strict=True)
    }


def _busy(a: _Tick, b: _Tick) -> list[float]:
    """Share of the time, by worker; a request counts when it ends, so it is cut at 1."""
    seconds = max(b.at_s - a.at_s, 1e-9)
    return [min(1.0, (y - x) / seconds) for x, y in zip(a.busy_s, b.busy_s, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


__all__ = ["EDGES_S", "SIZE_CLASSES", "Histogram", "Observed", "size_label"]
