"""What records mean: percentiles with intervals, throughput, and whether a target was met.

Pure functions of records: no clock, no threads, no files. Refuses to know which system made the
records, and under which policy. The capacity search, the command line and the reports call it
and read nothing else; the estimators under it are in `statistics.py`. Times are seconds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deeprecsys.analysis.statistics import (
    PercentileEstimate,
    backlog_grows,
    backlog_growth,
    enough,
    estimate_percentile,
    is_significant,
    percentile,
    rank,
    ratio_interval,
    share_over,
    warm_up,
)
from deeprecsys.core import SLA, FloatArray, Records, Status, for_json

Interval = tuple[float, float]

# A run in progress is looked at many times, so each look must be surer than the last word.
_LEVEL_SO_FAR = 0.995
# MLPerf LoadGen's early stopping: p95 at 99 % confidence needs 130 independent queries if one
# of them is over the target (90 if none is).
_LEAST_EFFECTIVE = 130
_LEAST_SO_FAR = 20
_SIZE_CLASSES = 4
_STILL_INSIDE = (Status.PENDING, Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run's summary. Latencies leave the warm-up out; counts, rates and errors do not.

    duration_s: from the first arrival to the last arrival or finish. rate_qps: offered.
    throughput_qps, items_per_s: of the queries that are ok.
    pXX_s, percentile_s (the target's percentile, 95 without a target): order statistics;
        infinity where a query without an answer has that rank.
    pXX_interval_s, sla_interval_s: 95 %; an upper end of infinity means too few queries.
    mean_s: of the queries that are ok.
    target_s: the target's latency, NaN without one.
    meets_sla: True (the upper end of the interval is within the target), False (its lower end
        is over it, or the system was overloaded), None (undecided, or no target).
    overloaded: the backlog surely grew through the run, however lax the target.
    backlog_growth: the share of the queries by which it grew, by the best guess.
    limited_by: "generator" if the target was missed but would have been met with each query's
        own lateness taken off.
    effective_queries: how many independent queries are worth the same, at `percentile_s`.
    enough_queries: where the interval at `percentile_s` has no upper end, of about how many queries
        a run would have one, if they are as correlated as these seem to be.
    by_size: up to four classes of query size: lo, hi, queries, p50_s, p95_s.
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
    sla_interval_s: Interval
    target_s: float
    meets_sla: bool | None
    overloaded: bool
    backlog_growth: float
    limited_by: Literal["generator"] | None
    effective_queries: float
    errors: dict[str, int]
    generator_lag_p99_s: float
    by_size: list[dict[str, Any]]
    enough_queries: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN and infinity become None."""
        return dict(for_json(asdict(self)))


def summarize(records: Records, sla: SLA | None = None, *, warm_up: int | None = None) -> Summary:
    """Summary of a run's records; `warm_up` leading queries are left out (None: found)."""
    skip = _warm_up(records.latency_s) if warm_up is None else min(max(warm_up, 0), len(records))
    steady = records[skip:]
    latency = steady.latency_s
    p = sla.percentile if sla else 95.0
    found = {q: estimate_percentile(latency, q) for q in (50.0, 95.0, 99.0, p)}
    overloaded = _overloaded(records)
    met = meets(found[p].interval, overloaded, sla)
    ok = records.status == Status.OK
    answered = latency[np.isfinite(latency)]
    span_s = _span_s(records)
    return Summary(
        queries=len(records),
        warm_up_queries=skip,
        duration_s=span_s,
        rate_qps=_offered_qps(records),
        throughput_qps=_per_second(int(ok.sum()), span_s),
        items_per_s=_per_second(int(records.size[ok].sum()), span_s),
        mean_s=float(answered.mean()) if len(answered) else math.nan,
        p50_s=found[50.0].value,
        p95_s=found[95.0].value,
        p99_s=found[99.0].value,
        p50_interval_s=found[50.0].interval,
        p95_interval_s=found[95.0].interval,
        p99_interval_s=found[99.0].interval,
        percentile_s=found[p].value,
        sla_interval_s=found[p].interval,
        target_s=sla.latency_s if sla else math.nan,
        meets_sla=met,
        overloaded=overloaded,
        backlog_growth=backlog_growth(*_in_queue(records), _workers(records)),
        limited_by=_limited_by(records, skip, sla) if met is False else None,
        effective_queries=found[p].effective_n,
        errors=_errors(records),
        generator_lag_p99_s=percentile(records.lag_s, 99),
        by_size=_by_size(steady),
        enough_queries=enough_queries(found[p], len(steady), p),
    )


def enough_queries(found: PercentileEstimate, n: int, p: float) -> int | None:
    """`Summary.enough_queries`; None too where queries without an answer are the reason."""
    if math.isfinite(found.interval[1]) or not math.isfinite(found.value) or found.effective_n == 0:
        return None
    return max(n + 1, math.ceil(enough(found.effective_n / n, p)))


def verdict_so_far(
    records: Records,
    now_s: float,
    sla: SLA,
    planned_queries: int,
    *,
    level: float = _LEVEL_SO_FAR,
) -> bool | None:
    """Is a run in progress decided? True: it meets the target; False: it cannot; None: go on.

    records: all queries handed over so far, those under way as PENDING. now_s: on the clock of
    `arrival_s`. Only queries that arrived a target ago or earlier are judged: each has finished
    within the target or is over it, so that they are a fair sample of the run.

    False when twice as many are over as the percentile of the whole planned run could bear, or
    when established at `level`. (At once as many, what follows could not make it pass, but
    that is the point estimate's word and no evidence: with 4 % truly over a target of 5 %, one
    run in four would say so.) True when established, on the worth of at least 130
    independent queries, and no backlog grows.
    """
    due = int(np.searchsorted(records.arrival_s, now_s - sla.latency_s, side="right"))
    latency = records.latency_s[:due]
    skip = _warm_up(latency, at_least_s=sla.latency_s)
    steady = latency[skip:]
    over, planned = ~(steady <= sla.latency_s), max(planned_queries - skip, 1)
    if np.count_nonzero(over) > 2 * (planned - rank(sla.percentile, planned)):
        return False
    if len(steady) < _LEAST_SO_FAR:
        return None
    low, high, effective = share_over(steady, sla.latency_s, sla.percentile, level)
    bearable = 1 - sla.percentile / 100
    if low > bearable:
        return False
    established = high <= bearable and effective >= _LEAST_EFFECTIVE
    return True if established and not _overloaded(records[:due]) else None


def meets(interval_s: Interval, overloaded: bool, sla: SLA | None) -> bool | None:
    """Is a target met, by the interval of its percentile? None: undecided, or no target."""
    if sla is None:
        return None
    if overloaded or interval_s[0] > sla.latency_s:
        return False
    return True if interval_s[1] <= sla.latency_s else None


def _limited_by(records: Records, skip: int, sla: SLA | None) -> Literal["generator"] | None:
    """What a missed target would have been, counted from when each query was handed over."""
    since_submit_s = records.finish_s - records.submit_s
    if sla is None or not percentile(since_submit_s[skip:], sla.percentile) <= sla.latency_s:
        return None
    # Handed over out of order, the queries would not be sorted.
    order = np.argsort(records.submit_s, kind="stable")
    late = records[order]
    return None if _overloaded(late, late.submit_s) else "generator"


def _overloaded(records: Records, arrival_s: FloatArray | None = None) -> bool:
    """Does the backlog grow? Queries that failed or were turned away are in no queue."""
    return backlog_grows(*_in_queue(records, arrival_s), _workers(records))


def _in_queue(
    records: Records, arrival_s: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Arrivals and finishes of the queries that finished, or are still inside."""
    inside = np.isin(records.status, (Status.OK, *_STILL_INSIDE))
    since_s = records.arrival_s if arrival_s is None else arrival_s
    return since_s[inside], records.finish_s[inside]


def _workers(records: Records) -> int:
    """How many workers finished a query, at least 1."""
    used = records.worker[records.worker >= 0]
    return max(1, int(np.count_nonzero(np.bincount(used))))


def _warm_up(latency_s: FloatArray, at_least_s: float = 0.0) -> int:
    """Queries without an answer stand at the worst latency seen, and `at_least_s`."""
    known = np.isfinite(latency_s)
    worst_s = max(float(latency_s[known].max(initial=0.0)), at_least_s)
    return warm_up(np.where(known, latency_s, worst_s))


def _span_s(records: Records) -> float:
    if not len(records):
        return 0.0
    finished = records.finish_s[np.isfinite(records.finish_s)]
    end_s = finished.max(initial=records.arrival_s[-1])
    return float(end_s - records.arrival_s[0])


def _offered_qps(records: Records) -> float:
    """Gaps between arrivals, not arrivals, over the time from the first to the last."""
    n = len(records)
    return _per_second(n - 1, float(records.arrival_s[-1] - records.arrival_s[0])) if n > 1 else 0.0


def _per_second(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _errors(records: Records) -> dict[str, int]:
    """How many queries of each status but ok, by its name; statuses that did not occur left out."""
    counts = np.bincount(records.status, minlength=len(Status))
    return {s.name.lower(): int(counts[s]) for s in Status if s is not Status.OK and counts[s]}


def _by_size(records: Records) -> list[dict[str, Any]]:
    """Latency by class of query size, with about equally many queries in each."""
    if not len(records):
        return []
    shares = np.arange(1, _SIZE_CLASSES) / _SIZE_CLASSES
    edges = np.unique(np.quantile(records.size, shares, method="inverted_cdf"))
    classes = np.searchsorted(edges, records.size)
    return [_size_class(records, classes == c) for c in np.unique(classes)]


def _size_class(records: Records, rows: NDArray[np.bool_]) -> dict[str, Any]:
    size, latency = records.size[rows], records.latency_s[rows]
    return {
        "lo": int(size.min()),
        "hi": int(size.max()),
        "queries": len(size),
        "p50_s": percentile(latency, 50),
        "p95_s": percentile(latency, 95),
    }


__all__ = [
    "Summary",
    "is_significant",
    "percentile",
    "ratio_interval",
    "summarize",
    "verdict_so_far",
    "warm_up",
]
