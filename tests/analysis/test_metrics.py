"""From records to a summary: order statistics, verdicts, and what must not change them."""

import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deeprecsys.analysis.metrics import (
    is_significant,
    percentile,
    ratio_interval,
    summarize,
    verdict_so_far,
    warm_up,
)
from deeprecsys.analysis.statistics import backlog_grows, backlog_growth, estimate_percentile
from deeprecsys.core import SLA, Policy, Records, Status
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.simulation import Simulator
from deeprecsys.workload import Workload

DESIGNED_KEYS = {
    *("rate_qps", "queries", "duration_s", "throughput_qps", "items_per_s", "p50_s", "p95_s"),
    *("p99_s", "p95_interval_s", "by_size", "meets_sla", "errors", "generator_lag_p99_s"),
}

latencies = arrays(
    np.float64, st.integers(1, 300), elements=st.floats(1e-6, 10) | st.just(math.nan)
)
percentiles = st.sampled_from([0.1, 50.0, 90.0, 95.0, 99.0, 99.9])


def records_of(latency_s, *, gap_s=0.01, status=None, lag_s=0.0, size=None):
    """Records with evenly spaced arrivals; NaN latencies failed unless `status` says otherwise."""
    latency_s = np.asarray(latency_s, dtype=float)
    arrival_s = np.arange(len(latency_s)) * gap_s
    columns = {
        "arrival_s": arrival_s,
        "finish_s": arrival_s + latency_s,
        "size": np.full(len(latency_s), 100) if size is None else size,
        "submit_s": arrival_s + lag_s,
    }
    if status is not None:
        columns["status"] = status
    return Records.from_columns(columns)


def in_progress(records, now_s):
    """What a run shows at `now_s`: those that arrived, pending unless they finished."""
    seen = records[records.arrival_s <= now_s]
    done = seen.finish_s <= now_s
    return Records.from_columns(
        {
            "arrival_s": seen.arrival_s,
            "finish_s": np.where(done, seen.finish_s, np.nan),
            "size": seen.size,
            "status": np.where(done, Status.OK, Status.PENDING),
        }
    )


def exponential(n, mean_s=0.01, seed=0):
    return np.random.default_rng(seed).exponential(mean_s, n)


# Percentiles.


@given(latencies, percentiles)
def test_a_percentile_is_the_order_statistic_of_its_rank(values, p):
    ordered = sorted(math.inf if math.isnan(v) else v for v in values)
    # In thousandths, so that the rank is exact: ceil(p n / 100).
    wanted = -(-round(p * 10) * len(values) // 1000)
    assert percentile(values, p) == ordered[wanted - 1]


@pytest.mark.parametrize(("p", "n", "rank"), [(95, 100, 95), (95, 20, 19), (99.9, 1000, 999)])
def test_rounding_does_not_move_a_whole_rank(p, n, rank):
    assert percentile(np.arange(1.0, n + 1), p) == rank


def test_every_whole_percentile_of_many_lengths_has_the_exact_rank():
    for n in (7, 100, 300, 1000):
        for p in range(1, 100):
            assert percentile(np.arange(1.0, n + 1), p) == -(-p * n // 100)


@given(latencies, percentiles, st.randoms(use_true_random=False))
def test_the_order_of_the_queries_does_not_change_a_percentile(values, p, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert percentile(np.array(shuffled), p) == percentile(values, p)


@given(latencies, percentiles)
def test_the_interval_holds_the_point_estimate(values, p):
    found = estimate_percentile(values, p)
    assert found.value == percentile(values, p)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert 0 < found.effective_n <= len(values)


@given(latencies, percentiles)
def test_a_stricter_interval_is_no_narrower(values, p):
    usual, strict = (estimate_percentile(values, p, level).interval for level in (0.95, 0.995))
    assert strict[0] <= usual[0]
    assert usual[1] <= strict[1]


def test_correlated_latencies_are_worth_fewer_queries_than_independent_ones():
    values = exponential(5000)
    clumped = np.repeat(values[:250], 20)
    assert estimate_percentile(values, 95).effective_n > 2000
    assert estimate_percentile(clumped, 95).effective_n < 1000


def test_too_few_queries_leave_the_upper_end_open():
    assert estimate_percentile(exponential(30), 95).interval[1] == math.inf
    assert math.isfinite(estimate_percentile(exponential(2000), 95).interval[1])


# Warm-up.


def test_a_cold_start_is_left_out():
    latency = exponential(2000)
    latency[:100] += 0.5
    assert 95 <= warm_up(latency) <= 150


@given(arrays(np.float64, st.integers(0, 400), elements=st.floats(1e-6, 1e3)))
def test_never_more_than_half_of_the_queries_are_warm_up(values):
    assert 0 <= warm_up(values) <= len(values) / 2


def test_an_early_busy_period_is_not_taken_for_warm_up():
    latency = exponential(2000)
    latency[100:140] += 0.2
    latency[1200:1240] += 0.2
    assert warm_up(latency) == 0


def test_the_warm_up_can_be_given():
    records = records_of(exponential(500))
    assert summarize(records, warm_up=120).warm_up_queries == 120
    assert summarize(records, warm_up=9999).warm_up_queries == 500


# Backlog.


def test_a_growing_backlog_is_overload_however_lax_the_target():
    growing = records_of(np.arange(3000) * 0.0005 + exponential(3000))
    summary = summarize(growing, SLA(100.0))
    assert summary.p99_s < 100.0
    assert summary.overloaded
    assert summary.meets_sla is False


def test_a_steady_system_is_not_overloaded():
    assert not summarize(records_of(exponential(3000)), SLA(1.0)).overloaded


def test_filling_the_workers_is_no_overload():
    arrival = np.arange(200) * 0.01
    assert not backlog_grows(arrival, np.full(200, math.nan), workers=200)
    assert backlog_grows(arrival, np.full(200, math.nan), workers=2)


def test_queries_turned_away_are_in_no_queue():
    latency = exponential(1000)
    latency[500:] = math.nan
    status = np.where(np.isnan(latency), Status.REJECTED, Status.OK)
    summary = summarize(records_of(latency, status=status), SLA(1.0))
    assert not summary.overloaded
    assert summary.meets_sla is False
    assert summary.errors == {"rejected": 500}


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2])
def test_the_growth_of_a_backlog_is_estimated(share):
    """A fluid queue: of 1,000 arrivals a second all but `share` are served."""
    arrival = np.linspace(0, 10, 10_001)
    finish = arrival / (1 - share) + 0.001
    assert backlog_growth(arrival, finish) == pytest.approx(share, abs=0.002)


def test_queries_still_under_way_when_a_run_stops_are_a_backlog():
    latency = exponential(1000)
    latency[200:] = math.nan
    status = np.where(np.isnan(latency), Status.CANCELLED, Status.OK)
    assert summarize(records_of(latency, status=status)).overloaded


# Summary.


@settings(max_examples=50)
@given(latencies, st.floats(1e-4, 10), st.sampled_from([50.0, 95.0, 99.0, 97.5]))
def test_the_verdict_agrees_with_the_interval(values, target_s, p):
    summary = summarize(records_of(values), SLA(target_s, p))
    low, high = summary.sla_interval_s
    if summary.overloaded or low > target_s:
        assert summary.meets_sla is False
    elif high <= target_s:
        assert summary.meets_sla is True
    else:
        assert summary.meets_sla is None


@settings(max_examples=50)
@given(latencies)
def test_what_failed_counts_as_over_the_target_and_not_as_throughput(values):
    summary = summarize(records_of(values), warm_up=0)
    failed = int(np.isnan(values).sum())
    assert summary.errors.get("failed", 0) == failed
    assert math.isinf(summary.p95_s) == (failed > len(values) - -(-95 * len(values) // 100))
    assert summary.throughput_qps * summary.duration_s == pytest.approx(len(values) - failed)


@settings(max_examples=50)
@given(latencies)
def test_a_summary_is_plain_json_with_the_designed_keys(values):
    raw = summarize(records_of(values), SLA(0.1)).to_dict()
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw
    assert set(raw) >= DESIGNED_KEYS


@pytest.mark.parametrize("latency", [[], [0.02], [math.nan], [math.nan] * 500])
def test_empty_single_and_failed_runs_are_summarised(latency):
    summary = summarize(records_of(latency), SLA(0.1))
    assert summary.queries == len(latency)
    assert summary.meets_sla is (False if len(latency) == 500 else None)
    json.dumps(summary.to_dict(), allow_nan=False)


def test_no_target_no_verdict():
    assert summarize(records_of(exponential(2000))).meets_sla is None


def test_rates_are_counted_from_the_first_arrival_to_the_last_finish():
    records = records_of(np.full(101, 0.5), size=np.full(101, 30))
    late = Records.from_columns(
        {
            "arrival_s": records.arrival_s + 7,
            "finish_s": records.finish_s + 7,
            "size": records.size,
        }
    )
    for summary in (summarize(records), summarize(late)):
        assert summary.duration_s == pytest.approx(1.5)
        assert summary.rate_qps == pytest.approx(100)
        assert summary.throughput_qps == pytest.approx(101 / 1.5)
        assert summary.items_per_s == pytest.approx(101 * 30 / 1.5)


def test_a_target_missed_only_by_the_generators_lateness_is_limited_by_the_generator():
    lag_s = np.full(3000, 0.2)
    late = records_of(exponential(3000) + lag_s, lag_s=lag_s)
    summary = summarize(late, SLA(0.1))
    assert summary.meets_sla is False
    assert summary.limited_by == "generator"
    assert summary.generator_lag_p99_s == pytest.approx(0.2)


def test_a_system_that_is_too_slow_is_not_limited_by_the_generator():
    lag_s = np.full(3000, 0.001)
    assert summarize(records_of(exponential(3000) + 0.2, lag_s=lag_s), SLA(0.1)).limited_by is None


def test_overload_is_not_blamed_on_a_punctual_generator():
    growing = records_of(np.arange(3000) * 0.0005 + exponential(3000))
    assert summarize(growing, SLA(100.0)).limited_by is None


def test_size_classes_share_out_all_queries_in_order_of_size():
    size = np.random.default_rng(0).choice([100, 200, 300, 400, 500, 700], 2000)
    classes = summarize(records_of(size * 1e-4, size=size), warm_up=0).by_size
    assert sum(c["queries"] for c in classes) == 2000
    assert 2 <= len(classes) <= 4
    assert all(a["hi"] < b["lo"] for a, b in pairwise(classes))
    assert all(c["lo"] * 1e-4 <= c["p50_s"] * (1 + 1e-9) for c in classes)


def test_one_size_is_one_class():
    assert [c["queries"] for c in summarize(records_of(exponential(50))).by_size] == [50]


# Runs in progress.


def test_a_run_that_meets_its_target_easily_is_established_early():
    run = records_of(exponential(4000))
    assert verdict_so_far(in_progress(run, 20.0), 20.0, SLA(0.2), 4000) is True


def test_a_run_that_cannot_meet_its_target_is_stopped_early():
    run = records_of(exponential(4000) + 0.2)
    assert verdict_so_far(in_progress(run, 2.0), 2.0, SLA(0.1), 4000) is False


def test_queries_that_have_had_less_than_the_target_are_not_judged():
    run = records_of(np.full(1000, math.inf))
    assert verdict_so_far(in_progress(run, 0.09), 0.09, SLA(0.1), 1000) is None
    assert verdict_so_far(in_progress(run, 3.0), 3.0, SLA(0.1), 1000) is False


def test_twice_as_many_queries_over_as_the_planned_run_can_bear_decide_it():
    latency = np.full(200, 0.01)
    latency[50:150:5] = 0.5
    so_far = in_progress(records_of(latency), 2.5)
    assert verdict_so_far(so_far, 2.5, SLA(0.1), 200) is None
    latency[156] = 0.5
    so_far = in_progress(records_of(latency), 2.5)
    assert verdict_so_far(so_far, 2.5, SLA(0.1), 200) is False
    assert verdict_so_far(so_far, 2.5, SLA(0.1), 2000) is None


def test_a_growing_backlog_is_never_established_to_meet_a_target():
    growing = records_of(np.arange(3000) * 0.0005 + exponential(3000))
    assert verdict_so_far(in_progress(growing, 29.0), 29.0, SLA(5.0), 6000) is None


def test_nothing_is_decided_of_no_queries():
    assert verdict_so_far(records_of([]), 5.0, SLA(0.1), 1000) is None


# Ratios.


def test_a_ratio_is_the_mean_of_the_logs_with_students_interval():
    ratio, low, high = ratio_interval(np.log([1.1, 1.2, 1.3]))
    assert ratio == pytest.approx((1.1 * 1.2 * 1.3) ** (1 / 3))
    # t(0.975, 2) = 4.3027 times the standard error of the logs, 0.04825.
    assert high / ratio == pytest.approx(math.exp(4.3027 * 0.048247), rel=1e-3)
    assert low * high == pytest.approx(ratio**2)


def test_a_ratio_is_significant_when_its_interval_excludes_one():
    assert is_significant(ratio_interval(np.log([1.20, 1.25, 1.22]))[1:])
    assert not is_significant(ratio_interval(np.log([0.8, 1.3, 1.1]))[1:])
    assert not is_significant(ratio_interval(np.log([1.5]))[1:])


def test_the_import_leaves_scipy_stats_alone():
    code = "import sys, deeprecsys.analysis.metrics; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_too_short_for_an_upper_end_says_how_long_a_run_would_have_one():
    rng = np.random.default_rng(3)
    latency_s = np.repeat(rng.exponential(1.0, 50), 40)  # 2,000 queries worth about 50
    columns = {"arrival_s": np.arange(2000.0), "finish_s": np.arange(2000.0) + latency_s}
    short = summarize(Records.from_columns({**columns, "size": np.ones(2000)}), SLA(3.0))
    assert short.p95_interval_s[1] == np.inf
    assert 3_000 < short.enough_queries < 30_000
    plenty = rng.exponential(1.0, 2000)
    columns["finish_s"] = np.arange(2000.0) + plenty
    long = summarize(Records.from_columns({**columns, "size": np.ones(2000)}), SLA(3.0))
    assert long.enough_queries is None


def test_bursts_that_outlast_a_stretch_are_no_overload():
    """At 80 % of what the machine can do 13 % of such runs were called overloaded."""
    machine = Simulator(ServiceTime.linear(2e-4, 16e-6), 2)
    called = 0
    for seed in range(40):
        work = Workload(arrivals="bursty:4,0.2,1000", seed=1000 + seed)
        schedule = work.schedule(rate_qps=358, queries=2000)
        called += summarize(machine.run(schedule, Policy(512)), SLA(0.1)).overloaded
    assert called <= 3
