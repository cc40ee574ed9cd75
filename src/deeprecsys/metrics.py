"""What records mean: percentiles with intervals, throughput, and whether a target was met.

Pure functions of records; cannot tell which system made them. The capacity search, the command
line and the reports read nothing else. Estimators are in `statistics.py`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from deeprecsys.core import SLA, FloatArray, Records, Status
from deeprecsys.statistics import (
    backlog_grows,
    estimate_percentile,
    percentile,
    ratio_interval,
    warm_up,
)

Interval = tuple[float, float]

# A run in progress is looked at many times: each look must be surer than the last word.
_SURE = 0.995
# MLPerf LoadGen's rule for a target that nobody missed: 130 independent queries at 99 %.
_LEAST_EFFECTIVE = 130
_SIZE_CLASSES = 4


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's summary. Percentiles and intervals leave the warm-up out; counts do not.

    meets_sla: True (the upper end of the percentile's interval is within the target), False
    (the lower end is over it, or the backlog grew), None (undecided, or no target).
    limited_by: "generator" when a missed target would have been met with each query's lateness
    taken off. effective_queries: independent queries worth the same.
    """

    queries: int
    warm_up_queries: int
    duration_s: float
    rate_qps: float
    throughput_qps: float
    items_per_s: float
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    p50_interval_s: Interval
    p95_interval_s: Interval
    p99_interval_s: Interval
    percentile_s: float
    percentile_interval_s: Interval
    target_s: float
    meets_sla: bool | None
    overloaded: bool
    limited_by: Literal["generator"] | None
    effective_queries: float
    errors: dict[str, int]
    generator_lag_p99_s: float
    by_size: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN and infinity become None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def summarize(records: Records, sla: SLA | None = None, *, skip: int | None = None) -> Summary:
    """Summary of finished records; `skip` leading queries are left out (None: found)."""
    latency = records.latency_s
    skip = warm_up(_finite(latency)) if skip is None else skip
    steady = latency[skip:]
    ask = {50.0, 95.0, 99.0, sla.percentile if sla else 95.0}
    found = {p: estimate_percentile(steady, p) for p in ask}
    target = found[sla.percentile if sla else 95.0]
    overloaded = backlog_grows(records.arrival_s, records.finish_s)
    meets = _meets(target.interval, overloaded, sla)
    span = _span_s(records)
    ok = records.status == Status.OK
    return Summary(
        queries=len(records),
        warm_up_queries=skip,
        duration_s=span,
        rate_qps=_rate(len(records), float(records.arrival_s[-1]) if len(records) else 0.0),
        throughput_qps=_rate(int(ok.sum()), span),
        items_per_s=_rate(int(records.size[ok].sum()), span),
        mean_s=float(steady[~np.isnan(steady)].mean()) if (~np.isnan(steady)).any() else math.nan,
        p50_s=found[50.0].value,
        p95_s=found[95.0].value,
        p99_s=found[99.0].value,
        p50_interval_s=found[50.0].interval,
        p95_interval_s=found[95.0].interval,
        p99_interval_s=found[99.0].interval,
        percentile_s=target.value,
        percentile_interval_s=target.interval,
        target_s=sla.latency_s if sla else math.nan,
        meets_sla=meets,
        overloaded=overloaded,
        limited_by=_limited_by(records[skip:], sla, meets),
        effective_queries=target.effective_n,
        errors=_errors(records),
        generator_lag_p99_s=percentile(records.lag_s, 99),
        by_size=_by_size(records[skip:]),
    )


def verdict_so_far(records: Records, now_s: float, sla: SLA, planned_queries: int) -> bool | None:
    """Is a run in progress decided? True: it meets the target; False: it cannot; None: go on.

    Of the queries handed over so far only those count that arrived a target ago or earlier:
    each of them has finished within the target or is over it, so they are a fair sample.
    """
    due = int(np.searchsorted(records.arrival_s, now_s - sla.latency_s, side="right"))
    if due < 20:
        return None
    latency = records.latency_s[:due]
    over = ~(latency <= sla.latency_s)
    bearable = (1 - sla.percentile / 100) * planned_queries
    # Warm-up only lowers latencies (a run starts empty), so it cannot excuse a query over.
    if int(over.sum()) > bearable:
        return False
    if due < _LEAST_EFFECTIVE:
        return None
    # Those still under way count as long as they have been: over, or never sorted above one.
    aged = np.where(np.isnan(latency), np.inf, latency)
    estimate = estimate_percentile(aged[warm_up(_finite(aged)) :], sla.percentile, _SURE)
    if estimate.interval[0] > sla.latency_s:
        return False
    sure = estimate.effective_n >= _LEAST_EFFECTIVE and estimate.interval[1] <= sla.latency_s
    if sure and not backlog_grows(records.arrival_s[:due], records.finish_s[:due]):
        return True
    return None


def _meets(interval: Interval, overloaded: bool, sla: SLA | None) -> bool | None:
    if sla is None:
        return None
    if overloaded or interval[0] > sla.latency_s:
        return False
    return True if interval[1] <= sla.latency_s else None


def _limited_by(
    records: Records, sla: SLA | None, meets: bool | None
) -> Literal["generator"] | None:
    if sla is None or meets is not False:
        return None
    on_time = percentile(records.latency_s - records.lag_s, sla.percentile)
    return "generator" if on_time <= sla.latency_s else None


def _span_s(records: Records) -> float:
    """From time zero to the last arrival or finish."""
    times = np.concatenate([records.arrival_s, records.finish_s[~np.isnan(records.finish_s)]])
    return float(times.max(initial=0.0))


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _errors(records: Records) -> dict[str, int]:
    counts = np.bincount(records.status, minlength=len(Status))
    return {s.name.lower(): int(counts[s]) for s in Status if s is not Status.OK and counts[s]}


def _by_size(records: Records) -> list[dict[str, Any]]:
    """Percentiles of up to four classes of query size, about equally many queries in each."""
    if not len(records):
        return []
    shares = np.arange(1, _SIZE_CLASSES) / _SIZE_CLASSES
    edges = np.unique(np.quantile(records.size, shares, method="inverted_cdf"))
    classes = np.searchsorted(edges, records.size)
    return [_size_class(records[classes == c]) for c in np.unique(classes)]


def _size_class(records: Records) -> dict[str, Any]:
    return {
        "lo": int(records.size.min()),
        "hi": int(records.size.max()),
        "queries": len(records),
        "p50_s": _plain(percentile(records.latency_s, 50)),
        "p95_s": _plain(percentile(records.latency_s, 95)),
    }


def _finite(latency: FloatArray) -> FloatArray:
    """Queries without an answer stand at the worst latency seen, for finding the warm-up."""
    known = ~np.isnan(latency) & np.isfinite(latency)
    worst = float(latency[known].max()) if known.any() else 0.0
    return np.where(known, latency, worst)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


__all__ = ["Summary", "percentile", "ratio_interval", "summarize", "verdict_so_far"]
