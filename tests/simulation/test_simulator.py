"""The simulator: the dispatcher's rules to the last digit, and what queueing theory says."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprecsys.analysis.metrics import summarize
from deeprecsys.core import SLA, Policy, Schedule, Status, UserError, replace
from deeprecsys.machines.service_time import Overhead, Profile, ServiceTime
from deeprecsys.simulation import Simulator
from deeprecsys.simulation.simulator import _Machine
from deeprecsys.simulation.theory import erlang_c, mg1_mean_s, mmc_mean_s, mmc_percentile_s
from deeprecsys.workload import Workload
from machines_drawn import DEVICES, LAWS, devices, offloads, policies, profiled, schedules


@settings(max_examples=400, deadline=None)
@given(schedules(), policies, st.integers(1, 7), st.sampled_from(sorted(LAWS)), st.integers(0, 9))
def test_the_kernel_obeys_the_dispatcher_query_by_query(schedule, policy, workers, law, seed):
    simulator = Simulator(LAWS[law], workers, seed=seed)
    fast, (slow, _) = simulator.run(schedule, policy), simulator.traced_run(schedule, policy)
    for column in ("start_s", "finish_s", "worker", "status"):
        np.testing.assert_array_equal(getattr(fast, column), getattr(slow, column), column)


@settings(max_examples=300, deadline=None)
@given(schedules(), policies, offloads, devices, st.integers(1, 4), st.integers(0, 9))
def test_the_kernels_obey_the_dispatcher_with_accelerators(
    schedule, policy, offload, names, workers, seed
):
    if names:
        policy = replace(policy, **offload)
    accelerators = [DEVICES[name] for name in names]
    simulator = Simulator(LAWS["measured"], workers, accelerators=accelerators, seed=seed)
    fast, (slow, requests) = simulator.run(schedule, policy), simulator.traced_run(schedule, policy)
    for column in ("start_s", "finish_s", "worker", "device"):
        np.testing.assert_array_equal(getattr(fast, column), getattr(slow, column), column)
    if names and policy.offload_backlog is None:
        assert ((fast.device > 0) == (schedule.size >= policy.offload_threshold)).all()
    items = np.bincount(requests.query, requests.hi - requests.lo, minlength=len(schedule))
    np.testing.assert_array_equal(items, schedule.size)


@settings(max_examples=200, deadline=None)
@given(schedules(), policies, offloads, devices, st.integers(1, 5),
       st.lists(st.integers(0, 40), max_size=4))  # fmt: skip
def test_a_schedule_in_pieces_is_served_as_the_whole(
    schedule, policy, offload, names, workers, cuts
):
    if names:
        policy = replace(policy, **offload)
    accelerators = [DEVICES[name] for name in names]
    simulator = Simulator(LAWS["measured"], workers, accelerators=accelerators)
    whole = simulator.run(schedule, policy)
    machine = _Machine(simulator, policy, schedule)
    ends = [0, *sorted(min(c, len(schedule)) for c in cuts), len(schedule)]
    pieces = [
        machine.serve(Schedule(schedule.arrival_s[a:b], schedule.size[a:b]), final=False)
        for a, b in itertools.pairwise(ends)
    ]
    pieces.append(machine.serve(Schedule(np.zeros(0), np.zeros(0)), final=True))
    for column in ("arrival_s", "start_s", "finish_s", "worker", "size", "device"):
        joined = np.concatenate([getattr(piece, column) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(whole, column), column)


@settings(max_examples=100, deadline=None)
@given(schedules(), policies, st.integers(1, 5))
def test_a_trace_conserves_items_and_no_worker_does_two_things_at_once(schedule, policy, workers):
    records, requests = Simulator(LAWS["measured"], workers).traced_run(schedule, policy)
    items = np.bincount(requests.query, requests.hi - requests.lo, minlength=len(schedule))
    np.testing.assert_array_equal(items, schedule.size)
    assert (records.finish_s >= records.arrival_s).all()
    together = {}  # slices of one request share worker and times
    for w, a, b, n in zip(
        requests.worker, requests.start_s, requests.finish_s, requests.hi - requests.lo, strict=True
    ):
        together[w, a, b] = together.get((w, a, b), 0) + n
    most = policy.most_items if policy.adaptive else policy.batch_size
    assert all(n <= most for n in together.values())
    for worker in range(workers):
        mine = sorted((a, b) for w, a, b in together if w == worker)
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(mine))


def replications(service, workers, rate_qps, runs=16, queries=400_000):
    """Mean latency of independent runs, and the standard error of its mean."""
    means = []
    for seed in range(runs):
        load = Workload(sizes="fixed:1", seed=seed).pieces(rate_qps=rate_qps, queries=queries)
        means.append(Simulator(service, workers, seed=seed).stream(load, Policy(1)).mean_s)
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(runs))


# Theory within three and a half standard errors, which are under 0.5 % of the mean.
@pytest.mark.parametrize(
    ("service", "workers", "load", "theory_s"),
    [
        (ServiceTime.exponential(1.0), 1, 0.5, mmc_mean_s(0.5, 1.0, 1)),
        (ServiceTime.exponential(1.0), 1, 0.7, mmc_mean_s(0.7, 1.0, 1)),
        (ServiceTime.exponential(1.0), 4, 0.8, mmc_mean_s(3.2, 1.0, 4)),
        (ServiceTime.exponential(1.0), 40, 0.9, mmc_mean_s(36.0, 1.0, 40)),
        (ServiceTime.constant(1.0), 1, 0.7, mg1_mean_s(0.7, 1.0, 1.0)),
    ],
    ids=["M/M/1 0.5", "M/M/1 0.7", "M/M/4 0.8", "M/M/40 0.9", "M/D/1 0.7"],
)
def test_means_are_those_of_theory(service, workers, load, theory_s):
    mean_s, error_s = replications(service, workers, load * workers)
    assert error_s < 0.005 * mean_s
    assert mean_s == pytest.approx(theory_s, abs=3.5 * error_s)


def test_the_noise_of_a_profile_makes_the_queue_of_pollaczek_and_khinchine():
    seconds = np.random.default_rng(1).gamma(0.5, 2.0, 4000)  # variance twice the mean squared
    profile = Profile({"workers": 1}, {}).with_visit((1, 1), seconds)
    service = ServiceTime.from_profile(profile)
    spread = profile.points[1, 1].spread() * seconds.mean()  # what is drawn
    theory_s = mg1_mean_s(0.5 / seconds.mean(), seconds.mean(), float((spread**2).mean()))
    mean_s, error_s = replications(service, 1, 0.5 / seconds.mean())
    assert error_s < 0.005 * mean_s
    assert mean_s == pytest.approx(theory_s, abs=3.5 * error_s)


def test_theory_says_what_the_books_print():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert mmc_mean_s(3200, 1e-3, 4) == pytest.approx(1.7455e-3, rel=1e-4)
    assert mmc_percentile_s(95, 0.5, 1.0, 1) == pytest.approx(-2 * math.log(0.05))
    assert mmc_mean_s(4.0, 1.0, 4) == math.inf


def test_a_split_query_lies_between_the_bounds_of_fork_and_join():
    """At least the longest of its two requests alone; at most two queues of their own (Nelson and
    Tantawi, IEEE Trans. Computers 37(6), 1988): one queue for both workers wastes less."""
    load = 0.6
    schedule = Workload(sizes="fixed:2", seed=3).schedule(rate_qps=load, queries=500_000)
    mean_s = Simulator(ServiceTime.exponential(1.0), 2).run(schedule, Policy(1)).latency_s.mean()
    assert 1.5 < mean_s < (12 - load) / 8 / (1 - load)
    idle = Schedule(np.arange(100_000) * 1000.0, np.full(100_000, 2))
    alone_s = Simulator(ServiceTime.exponential(1.0), 2).run(idle, Policy(1)).latency_s.mean()
    assert alone_s == pytest.approx(1.5, rel=0.02)


def test_no_query_one_query_and_a_million_items():
    simulator = Simulator(ServiceTime.linear(0.5, 0.25), 3)
    empty = Schedule(np.zeros(0), np.zeros(0))
    assert len(simulator.run(empty, Policy(4))) == 0
    assert simulator.stream([], Policy(4)).queries == 0
    one = simulator.run(Schedule(np.array([2.0]), np.array([4])), Policy(4))
    assert one.finish_s.tolist() == [3.5]
    large = Schedule(np.zeros(1), np.array([1_000_000]))
    whole = simulator.run(large, Policy(2_000_000))
    assert whole.finish_s.tolist() == [0.5 + 250_000]
    cut = simulator.run(large, Policy(1))
    assert cut.finish_s[0] == pytest.approx(0.75 * math.ceil(1_000_000 / 3))
    adaptive = simulator.run(large, Policy(1, adaptive=True, most_items=1024))
    assert adaptive.finish_s[0] > 250_000 / 3


def test_queries_that_arrive_at_once_are_served_in_order():
    together = Schedule(np.zeros(5), np.array([1, 1, 0, 1, 1]))
    records = Simulator(ServiceTime.constant(1.0), 2).run(together, Policy(1))
    assert records.finish_s.tolist() == [1.0, 1.0, 0.0, 2.0, 2.0]
    assert records.worker.tolist() == [0, 1, -1, 0, 1]


def test_the_adaptive_policy_coalesces_only_what_has_arrived():
    at = Schedule(np.array([0.0, 0.1, 0.2, 5.0]), np.array([4, 2, 2, 1]))
    records = Simulator(ServiceTime.constant(1.0), 1).run(at, Policy(1, adaptive=True))
    assert records.start_s.tolist() == [0.0, 1.0, 1.0, 5.0]
    assert records.finish_s.tolist() == [1.0, 2.0, 2.0, 6.0]


def test_the_same_seed_replays_and_another_does_not():
    schedule = Workload(seed=5).schedule(rate_qps=20, queries=300)
    one, other, again = (
        Simulator(LAWS["exponential"], 4, seed=s).run(schedule, Policy(64)) for s in (1, 2, 1)
    )
    assert (one.finish_s == again.finish_s).all()
    assert not (one.finish_s == other.finish_s).all()
    beginning = Schedule(schedule.arrival_s[:100], schedule.size[:100])
    start = Simulator(LAWS["exponential"], 4, seed=1).run(beginning, Policy(64))
    assert (start.finish_s == one.finish_s[:100]).all()


def test_a_stream_says_what_the_whole_says():
    load, policy, sla = Workload(seed=2), Policy(128), SLA(0.1)
    simulator = Simulator(ServiceTime.linear(1e-4, 1.5e-5), 4)
    rate = 0.8 * 4 / 4.2e-3
    streamed = simulator.stream(load.pieces(rate_qps=rate, queries=200_000), policy, sla)
    whole = summarize(
        simulator.run(load.schedule(rate_qps=rate, queries=200_000), policy), sla, warm_up=0
    )
    assert streamed.queries == whole.queries == 200_000
    for name in ("mean_s", "throughput_qps", "items_per_s", "duration_s", "rate_qps"):
        assert getattr(streamed, name) == pytest.approx(getattr(whole, name))
    for name in ("p50_s", "p95_s", "p99_s"):
        assert getattr(streamed, name) == pytest.approx(getattr(whole, name), rel=1e-3)
        lo, hi = getattr(streamed, name.replace("_s", "_interval_s"))
        assert lo * 0.999 <= getattr(whole, name) <= hi * 1.001  # bins of 0.1 %
    assert streamed.meets_sla is whole.meets_sla is True
    assert [c["queries"] for c in streamed.by_size] == [c["queries"] for c in whole.by_size]


@pytest.mark.parametrize("policy", [Policy(64), Policy(16, adaptive=True)], ids=str)
def test_an_unstable_load_is_recognised_and_ends(policy):
    simulator = Simulator(ServiceTime.constant(0.01), 2)
    endless = Workload(sizes="fixed:64").pieces(rate_qps=1e9, queries=10**15)
    found = simulator.stream(endless, Policy(64), SLA(1e9))
    assert found.overloaded
    assert found.meets_sla is False
    finite = Workload(sizes="fixed:1024").pieces(rate_qps=1000, queries=100_000)
    assert simulator.stream(finite, policy, SLA(1e9)).overloaded


def test_a_watch_may_stop_a_run():
    schedule = Workload().schedule(rate_qps=100, queries=1000)
    seen = []

    def watch(so_far, now_s):
        assert (so_far.arrival_s <= now_s).all()
        assert ((so_far.status == Status.PENDING) == np.isnan(so_far.finish_s)).all()
        seen.append(now_s)
        return len(seen) == 3

    records = Simulator(LAWS["linear"], 2).run(schedule, Policy(64), watch=watch)
    assert len(seen) == 3
    assert records.arrival_s[-1] <= seen[-1] < schedule.duration_s
    assert set(records.status.tolist()) <= {Status.OK, Status.CANCELLED}


def test_a_request_beyond_the_profile_needs_leave():
    schedule = Schedule(np.zeros(1), np.array([100]))
    with pytest.raises(UserError, match=r"profile ends at requests of 64 items, this asks for 100"):
        Simulator(LAWS["measured"], 2).run(schedule, Policy(100))
    free = ServiceTime.from_profile(profiled(), extrapolate=True)
    assert Simulator(free, 2).run(schedule, Policy(100)).finish_s[0] > 1e-3


def test_a_worker_that_was_idle_pays_for_it():
    profile = Profile({"workers": 1}).with_visit((1, 1), np.full(4, 1.0))
    overhead = Overhead(((0.0, 0.1), (1e-6, 0.2), (5.0, 0.3)))
    law = ServiceTime.from_profile(profile.with_overhead(overhead))
    at = Schedule(np.array([0.5, 1.0, 4.0, 20.0]), np.ones(4))
    records = Simulator(law, 1).run(at, Policy(1))
    np.testing.assert_allclose(records.finish_s, [1.7, 2.8, 5.2, 21.3])


def test_more_workers_than_were_measured_is_an_assumption_that_is_said():
    said = "; ".join(Simulator(LAWS["measured"], 40).facts().detail["assumptions"])
    assert "40 workers are assumed" in said
    assert "40 workers" not in "; ".join(
        Simulator(LAWS["measured"], 2).facts().detail["assumptions"]
    )


def test_contention_is_carried_over_by_the_share_of_busy_workers():
    law = ServiceTime.from_profile(profiled())
    tables = law.tables(16, 40)
    assert tables.level[20] == 0  # half of them busy: as one of two
    assert tables.level[40] == 1
    assert tables.level[30] == pytest.approx(0.5)
    np.testing.assert_allclose(tables.spread.mean(axis=2), 1.0)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, None])
def test_a_machine_needs_workers(workers):
    with pytest.raises(UserError, match="workers must be"):
        Simulator(LAWS["linear"], workers)


def test_a_machine_without_accelerator_offloads_nothing():
    with pytest.raises(UserError, match="no accelerator"):
        Simulator(LAWS["linear"], 1).run(
            Schedule(np.zeros(1), np.ones(1)), Policy(1, offload_threshold=5)
        )


@pytest.mark.parametrize(
    "text", ["linear:1", "linear:a,b", "constant:-1", "constant:0", "gamma:1", "", "linear:nan,1",
             "exponential:inf"],
)  # fmt: skip
def test_a_law_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="service time"):
        ServiceTime.parse(text)
