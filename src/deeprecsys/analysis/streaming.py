"""The summary of a run too long to keep: records come in pieces and are forgotten.

Latencies are counted in logarithmic bins of 0.1 %, by stretch of the run, and neighbouring
stretches are merged when there are many: memory does not grow with the run. Same meaning as
`metrics.summarize`, but for the warm-up: nothing is left out. Called by simulations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.analysis.metrics import Interval, Summary, meets
from deeprecsys.analysis.statistics import grows, growth, inflation, rank, share_interval
from deeprecsys.core import SLA, FloatArray, IntArray, Records, Status

_LEAST_S, _STEP = 1e-7, 1e-3  # the first bin, and the relative width of each
_BINS = math.ceil(math.log(1e14) / _STEP)
_MOST_STRETCHES = 64
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
        self._inside: list[float] = [0.0]  # queries in the system at the end of each
        self._per_stretch = 1  # pieces
        self._pieces = 0
        self._unfinished = np.zeros(0)  # finishes after the last arrival
        self._edges: IntArray | None = None
        self._classes: list[dict[str, Any]] = []

    def add(self, records: Records) -> None:
        """One more piece; its queries arrived no earlier than those before."""
        if not len(records):
            return
        latency_s = records.latency_s
        ok = np.isfinite(latency_s)
        if not self.queries:
            self.first_s = float(records.arrival_s[0])
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
        bins = _bins(latency_s)
        self._count(np.bincount(bins, minlength=_BINS + 1))
        self._by_size(records.size, bins)

    @property
    def inside(self) -> int:
        """Queries in the system at the last arrival."""
        return len(self._unfinished)

    def summary(self) -> Summary:
        found = {p: self._estimate(p) for p in {*_PERCENTILES, self._p}}
        value_s, interval_s, effective = found[self._p]
        inside = np.array(self._inside)
        overloaded = grows(inside, self.queries, self.workers)
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
            p50_s=found[50.0][0],
            p95_s=found[95.0][0],
            p99_s=found[99.0][0],
            p50_interval_s=found[50.0][1],
            p95_interval_s=found[95.0][1],
            p99_interval_s=found[99.0][1],
            percentile_s=value_s,
            sla_interval_s=interval_s,
            target_s=self.sla.latency_s if self.sla else math.nan,
            meets_sla=meets(interval_s, overloaded, self.sla),
            overloaded=overloaded,
            backlog_growth=growth(inside, self.queries, self.workers),
            limited_by=None,
            effective_queries=effective,
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

    def _count(self, counts: IntArray) -> None:
        """Into the current stretch, or a new one; pairs are merged when they are too many."""
        if self._pieces % self._per_stretch == 0:
            self._stretches.append(counts)
            self._inside.append(float(self.inside))
        else:
            self._stretches[-1] += counts
            self._inside[-1] = float(self.inside)
        self._pieces += 1
        if len(self._stretches) == _MOST_STRETCHES and self._pieces % self._per_stretch == 0:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            self._stretches = [one + other for one, other in pairs]
            self._inside = self._inside[::2]
            self._per_stretch *= 2

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

    def _estimate(self, p: float) -> tuple[float, Interval, float]:
        """A percentile, its 95 % interval, and how many independent queries these are worth."""
        if not self.queries:
            return math.nan, (math.nan, math.inf), 0.0
        stretches = np.array(self._stretches)
        counts = stretches.sum(axis=0)
        at = _bin(counts, p)
        share = float(counts[at + 1 :].sum()) / self.queries
        # The last stretch may be cut short: it says less of the variance than the others.
        whole = stretches[:-1] if len(stretches) > 4 else stretches
        sizes = whole.sum(axis=1)
        shares = whole[:, at + 1 :].sum(axis=1) / sizes
        effective = self.queries / inflation(shares, float(sizes.mean()), share)
        low, high = share_interval(1 - p / 100, effective, min(p, 100 - p) / 100)
        return _value(counts, p), (
            _value(counts, 100 * (1 - high)),
            _value(counts, 100 * (1 - low)) if low > 0 else math.inf,
        ), effective  # fmt: skip


def _bins(latency_s: FloatArray) -> NDArray[np.int64]:
    """The last bin is for queries without an answer."""
    with np.errstate(divide="ignore", invalid="ignore"):
        position = np.log(latency_s / _LEAST_S) / _STEP
    position = np.where(np.isnan(latency_s), _BINS, np.clip(position, 0, _BINS - 1))
    return np.asarray(position.astype(np.int64))


def _bin(counts: IntArray, p: float) -> int:
    return int(np.searchsorted(counts.cumsum(), rank(p, int(counts.sum()))))


def _value(counts: IntArray, p: float) -> float:
    """Middle of the bin that holds a percentile."""
    at = _bin(counts, p)
    if at == _BINS:
        return math.inf
    return 0.0 if at == 0 else _LEAST_S * math.exp((at + 0.5) * _STEP)
