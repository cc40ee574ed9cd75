"""Fleets: one machine is the simulator; balancers against theory; failures lose nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprecsys.core import Policy, Schedule, Status, UserError, replace
from deeprecsys.fleet.fleet import BALANCERS, Event, Fleet, Kind
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.simulation import Simulator
from deeprecsys.simulation.theory import mmc_mean_s, two_choices_mean_s
from deeprecsys.workload import Workload
from machines_drawn import DEVICES, LAWS, devices, offloads, schedules


def kind(law, count=1, workers=2, policy=None, accelerators=(), name="a"):
    given = {"m": accelerators} if accelerators else {}
    return Kind(name, count, workers, {"m": law}, {"m": policy or Policy(64)}, given)


@settings(max_examples=150, deadline=None)
@given(schedules(), st.integers(1, 70), offloads, devices, st.integers(1, 4), st.integers(0, 9),
       st.sampled_from(BALANCERS[:-1]))  # fmt: skip
def test_a_fleet_of_one_machine_is_that_machine(
    schedule, batch, offload, names, workers, seed, balancer
):
    policy = Policy(batch)
    if names:
        policy = replace(policy, **offload, most_items=100) if offload else policy
        policy = replace(policy, workers=None)
    accelerators = [DEVICES[name] for name in names]
    alone = Simulator(LAWS["measured"], workers, accelerators=accelerators, seed=seed)
    one = Fleet([kind(LAWS["measured"], 1, workers, policy, accelerators)], balancer, seed=seed)
    found, wanted = one.run(schedule).records, alone.run(schedule, policy)
    for column in ("start_s", "finish_s", "worker", "device", "status"):
        np.testing.assert_array_equal(getattr(found, column), getattr(wanted, column), column)


def test_machines_behind_round_robin_are_machines_of_their_own():
    law, policy = ServiceTime.linear(1e-3, 1e-5), Policy(64)
    schedule = Workload(seed=4).schedule(rate_qps=600, queries=3000)
    found = Fleet([kind(law, 3, 2, policy)], "round-robin").run(schedule)
    assert found.machine.tolist()[:5] == [0, 1, 2, 0, 1]
    for machine in range(3):
        mine = slice(machine, None, 3)
        part = Schedule(schedule.arrival_s[mine], schedule.size[mine])
        alone = Simulator(law, 2).run(part, policy)
        np.testing.assert_array_equal(found.records.finish_s[mine], alone.finish_s)


def mean_latency_s(fleet, rate_qps, queries=1_000_000):
    schedule = Workload(sizes="fixed:1", seed=5).schedule(rate_qps=rate_qps, queries=queries)
    return float(fleet.run(schedule).records.latency_s[queries // 5 :].mean())


@pytest.mark.parametrize(("workers", "load"), [(1, 0.5), (1, 0.9), (4, 0.8)])
def test_two_choices_among_many_machines_is_the_mean_field(workers, load):
    machines, mean_s = 500, 0.01
    fleet = Fleet([kind(ServiceTime.exponential(mean_s), machines, workers)], "two-choices")
    rate = load * workers / mean_s
    found = mean_latency_s(fleet, machines * rate)
    assert found == pytest.approx(two_choices_mean_s(rate, mean_s, workers), rel=0.02)


def test_random_choice_is_machines_alone():
    fleet = Fleet([kind(ServiceTime.exponential(0.01), 50, 2)], "random")
    assert mean_latency_s(fleet, 50 * 140) == pytest.approx(mmc_mean_s(140, 0.01, 2), rel=0.03)


def test_the_mean_field_of_one_choice_s_formula():
    """One worker: s_k = λ^(2^k - 1), known in closed form."""
    s = [0.9 ** (2**k - 1) for k in range(1, 30)]
    assert two_choices_mean_s(0.9, 1.0, 1) == pytest.approx(sum(s) / 0.9, rel=1e-6)


def test_better_balancers_are_better():
    law = ServiceTime.linear(1e-3, 1e-4)
    schedule = Workload(seed=6).schedule(rate_qps=20 * 2 / 0.03, queries=60_000)
    p99 = {}
    for name in BALANCERS[:-1]:
        records = Fleet([kind(law, 20, 2, Policy(1024))], name).run(schedule).records
        p99[name] = np.percentile(records.latency_s, 99)
    assert max(p99["least-items"], p99["least-queries"]) < p99["two-choices"]
    assert p99["two-choices"] < p99["round-robin"] < p99["random"]


def test_large_queries_go_to_the_kind_with_accelerators():
    law, policy = ServiceTime.linear(1e-3, 1e-5), Policy(64)
    fast = kind(law, 2, 2, replace(policy, offload_threshold=300), [DEVICES["fast"]], "gpu")
    fleet = Fleet([kind(law, 3, 2, policy), fast], "size-aware:300")
    schedule = Workload(seed=7).schedule(rate_qps=500, queries=2000)
    found = fleet.run(schedule)
    assert ((found.machine >= 3) == (schedule.size >= 300)).all()
    assert ((found.records.device > 0) == (schedule.size >= 300)).all()


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(1, 4), st.sampled_from(BALANCERS[:-1]), devices, st.data())
def test_no_query_is_lost_when_machines_fail_and_come_back(schedule, count, balancer, names, data):
    events, end = [], schedule.duration_s + 0.1
    for machine in range(data.draw(st.integers(0, count))):
        times = sorted(data.draw(st.lists(st.floats(0, end), min_size=2, max_size=4, unique=True)))
        events += [Event(t, machine, ("down", "up")[i % 2]) for i, t in enumerate(times)]
    policy = Policy(16, offload_threshold=20) if names else Policy(16)
    accelerators = [DEVICES[name] for name in names]
    fleet = Fleet([kind(LAWS["linear"], count, 2, policy, accelerators)], balancer, events=events)
    found = fleet.run(schedule)
    records = found.records
    down = [(e.time_s, next((u.time_s for u in sorted(events, key=lambda u: u.time_s)
                             if u.machine == e.machine and u.time_s > e.time_s), math.inf),
             e.machine) for e in events if e.what == "down"]  # fmt: skip
    always_up = count - len({m for _, _, m in down})
    ok = records.status == Status.OK
    if always_up:
        assert ok.all()
    assert (np.isnan(records.finish_s) == ~ok).all()
    assert (records.start_s[ok] >= records.arrival_s[ok]).all()
    for begin, back, machine in down:
        mine = ok & (found.machine == machine) & (records.size > 0)
        crossed = (records.start_s[mine] < begin) & (records.finish_s[mine] > begin)
        inside = (records.start_s[mine] >= begin) & (records.start_s[mine] < back)
        assert not crossed.any()
        assert not inside.any()
    if not events:
        assert found.retried == 0


def test_a_straggler_is_slow_and_two_choices_avoid_it():
    law = ServiceTime.linear(1e-3, 1e-4)
    events = [Event(0.0, 0, "slow", 5.0)]
    schedule = Workload(seed=8).schedule(rate_qps=300, queries=20_000)
    shares = {}
    for balancer in ("round-robin", "two-choices"):
        found = Fleet([kind(law, 10, 2, Policy(256))], balancer, events=events).run(schedule)
        shares[balancer] = float((found.machine == 0).mean())
        mine = found.machine == 0
        latency = found.records.latency_s
        assert np.median(latency[mine]) > 3 * np.median(latency[~mine])
    assert shares["two-choices"] < 0.8 * shares["round-robin"]


def test_a_stream_counts_what_a_run_keeps():
    kinds = [kind(LAWS["linear"], 3, 2, Policy(64)), kind(LAWS["constant"], 2, 4, name="b")]
    workload = Workload(seed=9)
    fleet = Fleet(kinds, "least-items", events=[Event(1.0, 0, "down"), Event(2.0, 0, "up")])
    whole = fleet.run(workload.schedule(rate_qps=1000, queries=10_000))
    pieces = ((piece, None) for piece in workload.pieces(rate_qps=1000, queries=10_000))
    day = fleet.stream(pieces, whole.records.arrival_s[-1] + 1e-9, stretches=10)
    assert day.queries == 10_000
    assert day.retried == whole.retried > 0
    for p in (50, 95, 99):
        ordered = np.sort(whole.records.latency_s)
        exact = ordered[math.ceil(p * 100) - 1]
        assert day.percentile_s(p) == pytest.approx(exact, rel=0.011)
    assert sum(day.rates_qps()) * day.counts.stretch_s == pytest.approx(10_000)
    assert all((share >= 0).all() for share in day.busy().values())


def test_two_models_on_one_fleet_keep_their_own_times():
    quick, slow = ServiceTime.constant(1e-3), ServiceTime.constant(1e-1)
    both = Kind("a", 2, 4, {"q": quick, "s": slow}, {"q": Policy(1024), "s": Policy(1024)})
    fleet = Fleet([both], "least-queries")
    assert fleet.models == ["q", "s"]
    schedule = Schedule(np.arange(200) * 0.1, np.full(200, 10))
    found = fleet.run(schedule, np.arange(200) % 2)
    np.testing.assert_allclose(found.records.latency_s, np.tile([1e-3, 1e-1], 100))


def test_an_overload_ends_early_and_says_so():
    fleet = Fleet([kind(ServiceTime.constant(1.0), 2, 1)], "two-choices")
    pieces = ((p, None) for p in Workload().pieces(rate_qps=1e6, queries=10_000_000))
    day = fleet.stream(pieces, 10.0)
    assert day.overloaded
    assert day.last_s < 1.0


LAW = ServiceTime.constant(1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fleet([]), "at least one kind"),
        (lambda: Fleet([kind(LAW, 0)]), "count must be at least 1, not 0"),
        (lambda: Fleet([kind(LAW)], "best"), "unknown balancer 'best'; known: random"),
        (lambda: Fleet([kind(LAW)], "size-aware"), "unknown balancer"),
        (lambda: Fleet([kind(LAW)], "size-aware:5"), "needs two kinds"),
        (lambda: Kind("a", 1, 1, {}, {}), "no profile and no law"),
        (lambda: Kind("a", 1, 1, {"m": LAW}, {}), "no policy for m"),
        (lambda: kind(LAW, policy=Policy(1, adaptive=True)), "takes static policies"),
        (lambda: kind(LAW, policy=Policy(1, offload_threshold=1)), "has no accelerator"),
        (
            lambda: Fleet([kind(LAW), Kind("b", 1, 1, {"n": LAW}, {"n": Policy()})]),
            "kind a has no profile of n",
        ),
        (lambda: Fleet([kind(LAW)], events=[Event(0, 1, "down")]), "no machine 1"),
        (lambda: Fleet([kind(LAW)], events=[Event(-1, 0, "down")]), "time from 0 on"),
        (lambda: Fleet([kind(LAW)], events=[Event(0, 0, "up")]), "is up already"),
        (lambda: Fleet([kind(LAW)], events=[Event(0, 0, "burns")]), "unknown event"),
        (lambda: Fleet([kind(LAW)], events=[Event(0, 0, "slow", 0.0)]), "positive factor"),
    ],
)
def test_what_is_no_fleet_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
