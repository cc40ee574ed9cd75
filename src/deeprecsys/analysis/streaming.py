"""The summary of a run too long to keep: records come in pieces and are forgotten.

Latencies are counted in logarithmic bins of 0.1 %, by stretch of equally many queries, and
neighbouring stretches are merged when there are many: memory does not grow with the run. Same
meaning and rules as `metrics.summarize`, but for the warm-up: nothing is left out. Called by
simulations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.analysis.metrics import Summary, enough_queries, meets
from deeprecsys.analysis.statistics import (
    BACKLOG_BLOCKS,
    PercentileEstimate,
    ends,
    grows,
    growth,
    inflation,
    judged_at,
    rank,
)
from deeprecsys.core import SLA, FloatArray, IntArray, Records, Status

_LEAST_S, _STEP = 1e-7, 1e-3  # the first bin, and the relative width of each
_BINS = math.ceil(math.log(1e14) / _STEP)
_SHORTEST, _MOST_STRETCHES = 8, 64  # queries of a stretch at first
_SIZE_CLASSES = 4
_PERCENTILES = (50.0, 95.0, 99.0)


class RunningSummary:
    """`add` pieces in order of arrival; then `summary`."""

    def __init__(self, sla: SLA | None, workers: int) -> None:
        self.sla, self.workers = sla, workers
        self.queries = self.ok = self.items = 0
        self.first_s, self.last_s, self.end_s = math.nan, 0.0, 0.0
        self._sum_s = 0.0
        self._status = np.zeros(len(Status), np.int64)
        self._stretches: list[IntArray] = []  # [bins] of each
        # At the first arrival, and at the last of each: time, queries so far and in the system.
        self._seen: list[tuple[float, int, int]] = []
        self._length = _SHORTEST
        self._unfinished = np.zeros(0)  # finishes after the last arrival
        self._edges: IntArray | None = None
        self._classes: list[dict[str, Any]] = []

    def add(self, records: Records) -> None:
        """One more piece; its queries arrived no earlier than those before."""
        if not len(records):
            return
        if not self.queries:
            self.first_s = float(records.arrival_s[0])
            self._seen.append((self.first_s, 0, 0))
        bins = _bins(records.latency_s)
        self._by_size(records.size, bins)
        first = 0
        while first < len(records):
            rows = slice(first, first + self._length - self.queries % self._length)
            self._add(records[rows], bins[rows])
            first = rows.stop

    def _add(self, records: Records, bins: IntArray) -> None:
        """What belongs to one stretch."""
        fresh = self.queries % self._length == 0
        latency_s = records.latency_s
        ok = np.isfinite(latency_s)
        self.last_s = float(records.arrival_s[-1])
        self.queries += len(records)
        self.ok += int(ok.sum())
        self.items += int(records.size[ok].sum())
        self._sum_s += float(latency_s[ok].sum())
        self._status += np.bincount(records.status, minlength=len(Status))
        finish_s = records.finish_s[ok]
        self.end_s = max(self.end_s, self.last_s, float(finish_s.max(initial=0.0)))
        unfinished = np.concatenate([self._unfinished, finish_s])
        self._unfinished = unfinished[unfinished > self.last_s]
        self._count(np.bincount(bins, minlength=_BINS + 1), fresh)

    @property
    def inside(self) -> int:
        """Queries in the system at the last arrival."""
        return len(self._unfinished)

    def summary(self) -> Summary:
        found = {p: self._estimate(p) for p in {*_PERCENTILES, self._p}}
        asked = found[self._p]
        inside, arrived = self._backlog()
        overloaded = grows(inside, self.queries, self.workers, arrived)
        span_s = self.end_s - self.first_s if self.queries else 0.0
        offered_s = self.last_s - self.first_s if self.queries else 0.0

        def per_second(count: float, seconds: float) -> float:
            return count / seconds if seconds > 0 else 0.0

        return Summary(
            queries=self.queries,
            warm_up_queries=0,
            duration_s=span_s,
            rate_qps=per_second(self.queries - 1, offered_s),
            throughput_qps=per_second(self.ok, span_s),
            items_per_s=per_second(self.items, span_s),
            mean_s=self._sum_s / self.ok if self.ok else math.nan,
            p50_s=found[50.0].value,
            p95_s=found[95.0].value,
            p99_s=found[99.0].value,
            p50_interval_s=found[50.0].interval,
            p95_interval_s=found[95.0].interval,
            p99_interval_s=found[99.0].interval,
            percentile_s=asked.value,
            sla_interval_s=asked.interval,
            target_s=self.sla.latency_s if self.sla else math.nan,
            meets_sla=meets(asked.interval, overloaded, self.sla),
            overloaded=overloaded,
            backlog_growth=growth(inside, self.queries, self.workers),
            limited_by=None,
            effective_queries=asked.effective_n,
            enough_queries=enough_queries(asked, self.queries, self._p),
            errors={s.name.lower(): int(self._status[s]) for s in Status if s and self._status[s]},
            generator_lag_p99_s=0.0,
            by_size=[
                {"lo": c["lo"], "hi": c["hi"], "queries": int(c["counts"].sum()),
                 "p50_s": _value(c["counts"], 50), "p95_s": _value(c["counts"], 95)}
                for c in self._classes if c["counts"].any()
            ],
        )  # fmt: skip

    @property
    def _p(self) -> float:
        return self.sla.percentile if self.sla else 95.0

    def _count(self, counts: IntArray, fresh: bool) -> None:
        """Into a fresh stretch or the current one; pairs are merged when they are too many."""
        seen = (self.last_s, self.queries, self.inside)
        if fresh:
            self._stretches.append(counts)
            self._seen.append(seen)
        else:
            self._stretches[-1] += counts
            self._seen[-1] = seen
        if self.queries == _MOST_STRETCHES * self._length:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            self._stretches = [one + other for one, other in pairs]
            self._seen = self._seen[::2]
            self._length *= 2

    def _backlog(self) -> tuple[FloatArray, FloatArray]:
        """Queries in the system at the edges of blocks of equal time, and arrivals in each."""
        time_s, arrived, inside = np.array(self._seen or [(0.0, 0, 0)], np.float64).T
        edges = np.linspace(time_s[0], time_s[-1], BACKLOG_BLOCKS + 1)
        return np.interp(edges, time_s, inside), np.diff(np.interp(edges, time_s, arrived))

    def _by_size(self, size: IntArray, bins: IntArray) -> None:
        """Classes with about equally many queries each, by the first piece."""
        if self._edges is None:
            shares = np.arange(1, _SIZE_CLASSES) / _SIZE_CLASSES
            self._edges = np.unique(np.quantile(size, shares, method="inverted_cdf"))
            empty = {"lo": math.inf, "hi": 0}
            self._classes = [
                {**empty, "counts": np.zeros(_BINS + 1, np.int64)}
                for _ in range(len(self._edges) + 1)
            ]
        of = np.searchsorted(self._edges, size)
        for number, entry in enumerate(self._classes):
            rows = of == number
            if rows.any():
                entry["lo"] = min(entry["lo"], int(size[rows].min()))
                entry["hi"] = max(entry["hi"], int(size[rows].max()))
                entry["counts"] += np.bincount(bins[rows], minlength=_BINS + 1)

    def _estimate(self, p: float) -> PercentileEstimate:
        """As `statistics.estimate_percentile`, to a bin."""
        if not self.queries:
            return PercentileEstimate(math.nan, (math.nan, math.inf), 0.0)
        stretches = np.array(self._stretches)
        counts = stretches.sum(axis=0)
        effective = self.queries / max(self._inflation(stretches, q) for q in judged_at(p))
        first, last = ends(self.queries, effective, p)
        upper = math.inf if last is None else _ranked(counts, last)
        lower = _ranked(counts, first) if first > 0 else 0.0
        return PercentileEstimate(_value(counts, p), (lower, upper), effective)

    def _inflation(self, stretches: IntArray, p: float) -> float:
        """Of the variance of the share of queries over a percentile, by their correlation."""
        counts = stretches.sum(axis=0)
        above = _bin(counts, rank(p, self.queries)) + 1
        # The last stretch may be cut short: it says less of the variance than the others.
        whole = stretches[:-1] if len(stretches) > 4 else stretches
        sizes = whole.sum(axis=1)
        shares = whole[:, above:].sum(axis=1) / sizes
        return inflation(shares, float(sizes.mean()), float(counts[above:].sum()) / self.queries)


def _bins(latency_s: FloatArray) -> NDArray[np.int64]:
    """The last bin is for queries without an answer."""
    with np.errstate(divide="ignore", invalid="ignore"):
        position = np.log(latency_s / _LEAST_S) / _STEP
    position = np.where(np.isnan(latency_s), _BINS, np.clip(position, 0, _BINS - 1))
    return np.asarray(position.astype(np.int64))


def _bin(counts: IntArray, at: int) -> int:
    return int(np.searchsorted(counts.cumsum(), at))


def _value(counts: IntArray, p: float) -> float:
    return _ranked(counts, rank(p, int(counts.sum())))


def _ranked(counts: IntArray, at: int) -> float:
    """Middle of the bin that holds the latency of a rank."""
    found = _bin(counts, at)
    if found == _BINS:
        return math.inf
    return 0.0 if found == 0 else _LEAST_S * math.exp((found + 0.5) * _STEP)
