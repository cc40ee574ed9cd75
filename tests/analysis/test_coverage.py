"""Do the intervals hold what they promise? Simulated queues with a known percentile.

M/M/2 (Poisson arrivals, exponential service, first come first served): the latency has a closed
form, and consecutive latencies are as correlated as those of a server under load.
"""

import numpy as np
import pytest

import queueing
from deeprecsys.analysis.metrics import summarize
from deeprecsys.analysis.statistics import backlog_grows, estimate_percentile
from deeprecsys.core import SLA, Policy, Records
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.simulation import Simulator
from deeprecsys.workload import Workload

RUNS = 1000
# Mean service 6.7 ms, from 2.5 to 17 ms: the default law of query sizes at 25 µs an item.
SERVICE_S = 24.7e-6 * np.array(
    [100] * 2 + [200] * 12 + [300] * 2 + [400, 500, 600, 700], dtype=float
)


@pytest.fixture(scope="module", params=[0.5, 0.8], ids=lambda load: f"load {load}")
def stationary(request):
    """(latencies [runs, 20000] without their warm-up, load)."""
    rng = np.random.default_rng(2024)
    latency_s = queueing.latencies_of_mm2(
        rng, load=request.param, queries=20_000, runs=RUNS, leave_out=2_000
    )
    return latency_s, request.param


def coverage(intervals, truth_s):
    """Of those that end: how many hold the truth."""
    low, high = np.array([ends for ends in intervals if np.isfinite(ends[1])]).T
    return float(((low <= truth_s) & (truth_s <= high)).mean())


def intervals(latency_s, p):
    return [estimate_percentile(run, p).interval for run in latency_s]


def test_the_simulated_queue_agrees_with_theory(stationary):
    latency_s, load = stationary
    for p in (50, 95):
        over = (latency_s > queueing.mm2_percentile(p, load)).mean()
        assert over == pytest.approx(1 - p / 100, rel=0.03)


@pytest.mark.parametrize("queries", [5_000, 20_000])
def test_95_percent_intervals_of_p95_hold_the_true_p95_in_93_to_97_percent_of_runs(
    stationary, queries
):
    latency_s, load = stationary
    truth_s = queueing.mm2_percentile(95, load)
    assert 0.93 <= coverage(intervals(latency_s[:, :queries], 95), truth_s) <= 0.97


def test_short_runs_err_on_the_wide_side(stationary):
    latency_s, load = stationary
    truth_s = queueing.mm2_percentile(95, load)
    found = intervals(latency_s[:, :300], 95)
    assert np.mean([low <= truth_s <= high for low, high in found]) >= 0.95


def test_intervals_of_the_median_and_p99_do_not_undercover(stationary):
    latency_s, load = stationary
    for p in (50, 99):
        truth_s = queueing.mm2_percentile(p, load)
        assert coverage(intervals(latency_s[:500], p), truth_s) >= 0.93


def test_a_run_from_an_empty_start_is_covered_with_the_warm_up_that_is_found():
    rng = np.random.default_rng(5)
    load, runs = 0.8, 500
    arrival_s = queueing.poisson_arrivals(rng, rate_qps=2 * load, queries=20_000, runs=runs)
    finish_s = queueing.first_come_first_served(arrival_s, rng.exponential(1.0, arrival_s.shape))
    truth_s, held = queueing.mm2_percentile(95, load), 0
    for a, f in zip(arrival_s.T, finish_s.T, strict=True):
        columns = {"arrival_s": a, "finish_s": f, "size": np.ones(len(a))}
        low, high = summarize(Records.from_columns(columns), SLA(truth_s)).p95_interval_s
        held += low <= truth_s <= high
    assert held / runs >= 0.93


# Of bursty runs at 80 % of what two workers can do, from 3,000,000 queries (benchmarks/truth.py).
BURSTY_QPS, BURSTY_P50_S, BURSTY_P95_S = 352.5, 0.0522, 0.319


@pytest.fixture(scope="module")
def bursty():
    """Summaries of 200 runs of 2,000 queries, by `summarize` and, of half of them, by a stream."""
    machine, whole, streamed = Simulator(ServiceTime.linear(2e-4, 16e-6), 2), [], []
    for seed in range(200):
        work = Workload(arrivals="bursty", seed=50_000 + seed)
        schedule = work.schedule(rate_qps=BURSTY_QPS, queries=2000)
        whole.append(summarize(machine.run(schedule, Policy(512))))
        if seed % 2:
            streamed.append(machine.stream([schedule], Policy(512)))
    return {"summarize": whole, "stream": streamed}


@pytest.mark.parametrize("how", ["summarize", "stream"])
def test_bursts_leave_intervals_that_hold_the_truth_or_say_how_long_a_run_would_end_them(
    bursty, how
):
    found = bursty[how]
    ended = [s for s in found if np.isfinite(s.p50_interval_s[1])]
    assert len(ended) > len(found) / 4
    assert coverage([s.p50_interval_s for s in ended], BURSTY_P50_S) >= 0.93
    for s in found:
        low, high = s.p95_interval_s
        assert low <= BURSTY_P95_S <= high
        assert (s.enough_queries is None) == np.isfinite(high)
    # Half of the runs of 45,000 queries have an upper end.
    assert 20_000 < np.median([s.enough_queries for s in found]) < 90_000
    assert sum(s.overloaded for s in found) < 0.05 * len(found)


def overload_rate(load, seconds=30, runs=500):
    """How often the backlog is said to grow, on two workers."""
    rng = np.random.default_rng(7)
    rate_qps = 2 * load / SERVICE_S.mean()
    shape = (int(rate_qps * seconds), runs)
    arrival_s = queueing.poisson_arrivals(rng, rate_qps=rate_qps, queries=shape[0], runs=runs)
    finish_s = queueing.first_come_first_served(arrival_s, rng.choice(SERVICE_S, shape))
    return np.mean(
        [backlog_grows(a, f, workers=2) for a, f in zip(arrival_s.T, finish_s.T, strict=True)]
    )


@pytest.mark.parametrize("load", [0.8, 0.9, 0.95])
def test_a_stable_queue_is_hardly_ever_called_overloaded(load):
    assert overload_rate(load) < 0.01


@pytest.mark.parametrize("load", [1.05, 1.1])
def test_five_percent_too_much_for_30_seconds_is_recognised_as_overload(load):
    assert overload_rate(load) >= 0.9
