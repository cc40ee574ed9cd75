"""Searches and the study, on machines in virtual time with a known best batch size."""

import dataclasses

import numpy as np
import pytest

import deeprecsys as drs
from deeprecsys.core import EXACT, SLA, Execution, Policy, UserError
from deeprecsys.experiments import guided
from deeprecsys.machines.service_time import Profile, ServiceTime
from deeprecsys.simulation import Simulator
from deeprecsys.tuning import SEARCHES, Capacity, Clock, Observer, tune
from deeprecsys.tuning.binds import what_binds
from deeprecsys.tuning.capacity import Probe
from deeprecsys.tuning.interleave import Contestant, interleave
from deeprecsys.tuning.searches import Space, contenders, exhaustive, hill_climb
from deeprecsys.tuning.together import Together
from deeprecsys.workload import Workload
from toy import ToyMachine

SPACE = Space(workers=2, largest=700)


def measured(curve, width=0.05):
    """A `measure` that answers from a curve {batch size: rate}, and the sizes it was asked."""
    asked = []

    def measure(policy):
        asked.append(policy.batch_size)
        rate = curve(policy.batch_size)
        return Capacity(rate, (rate * (1 - width), rate * (1 + width)), True)

    return measure, asked


def toy_tune(machine, sla, method="hill-climb", **options):
    """On a machine whose time is virtual, and which counts as a live one."""
    return tune(machine, Workload(), sla, method, clock=machine.clock(), **options)


def overhead(n):
    """A high fixed cost: small batches lose."""
    return 1e-3 + 1e-5 * n


def cache_cliff(n):
    """Beyond 64 items an item costs three times as much: large batches lose."""
    return 1e-4 + (1e-5 * n if n <= 64 else 3e-5 * n)


def test_the_space_reaches_the_batch_that_leaves_the_largest_query_whole():
    assert SPACE.batch_sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert SPACE.static == Policy(batch_size=500)
    assert Space(40, 700).static == Policy(batch_size=25)
    assert Space(3, 700).static == Policy(batch_size=334)


def test_the_climb_stops_after_two_sizes_that_are_surely_worse():
    measure, asked = measured(lambda b: 100 - abs(b - 16))
    hill_climb(measure, SPACE)
    assert asked == [1, 2, 4, 8, 16, 32, 64]


def test_a_plateau_does_not_stop_the_climb():
    measure, asked = measured(lambda b: 100.0)
    hill_climb(measure, SPACE)
    assert asked == SPACE.batch_sizes


def test_a_dip_within_the_noise_does_not_stop_the_climb():
    rates = {1: 50, 2: 80, 4: 78, 8: 77, 16: 79, 32: 120, 64: 119, 128: 60, 256: 50}
    measure, asked = measured(lambda b: rates[b])
    hill_climb(measure, SPACE)
    assert asked == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_the_exhaustive_search_looks_at_both_baselines_and_between():
    measure, asked = measured(lambda b: 1.0)
    exhaustive(measure, SPACE)
    assert {25, 500, 96, 192}.issubset(asked)
    assert asked == sorted(set(asked))


def test_contenders_are_those_that_can_still_be_best():
    def trial(b, rate, lo, hi):
        return Policy(batch_size=b), Capacity(rate, (lo, hi), True)

    trials = [trial(1, 10, 9, 11), trial(2, 95, 90, 101), trial(4, 100, 98, 104)]
    assert [p.batch_size for p in contenders(trials)] == [4, 2]
    assert contenders([trial(1, 0, 0, 5)]) == []


@pytest.mark.parametrize("method", ["hill-climb", "exhaustive"])
@pytest.mark.parametrize(("service", "best"), [(overhead, range(256, 1025)), (cache_cliff, (64,))])
def test_the_best_batch_size_is_found(method, service, best):
    found = toy_tune(ToyMachine(service), SLA(0.1), method, budget_s=120)
    assert found.best.policy.batch_size in best
    assert found.speedup is not None
    assert {t.policy.batch_size for t in found.trials} >= {500}


def test_the_ratio_to_the_baseline_is_right_and_significant_when_it_is():
    found = toy_tune(ToyMachine(cache_cliff, noise=0.1), SLA(0.2), budget_s=200)
    # 270 items in requests of 64 against one or two requests of up to 500
    per_item = {b: cache_cliff(b) / b for b in (64, 500)}
    lo, hi = found.speedup.interval
    assert found.speedup.significant
    assert lo > 1.1
    assert found.speedup.ratio == pytest.approx(per_item[500] / per_item[64], rel=0.2)
    assert lo < per_item[500] / per_item[64] < hi


def test_rounds_of_a_machine_with_a_twin_know_a_ratio_in_minutes():
    """The twin, a tenth too fast, knows nothing of the noise."""
    law = ServiceTime(np.vectorize(cache_cliff, otypes=[float]))
    fast = ServiceTime(lambda items: 0.9 * law.mean_s(items))
    machine = ToyMachine(cache_cliff, noise=0.1, twin=Simulator(fast, 2))
    probe = Probe(machine, Workload(seed=7), SLA(0.2), clock=machine.clock())
    pair = [Contestant.at(Policy(b), qps, probe) for b, qps in ((64, 600.0), (500, 225.0))]
    (ratio,) = interleave(probe, pair, lambda _: 4.0, until=100.0)
    # 618 and 234 queries/s, of runs of 3,000,000.
    assert ratio.ratio == pytest.approx(2.64, rel=0.04)
    assert ratio.interval[1] / ratio.interval[0] < 1.2


def test_a_flat_curve_is_reported_as_no_significant_gain():
    flat = ToyMachine(lambda n: 1e-5 * n, noise=0.05)
    found = toy_tune(flat, SLA(0.2), "static", budget_s=120)
    (other,) = (c for c in found.comparisons if c.policy != found.best.policy)
    lo, hi = other.ratio.interval
    assert other.ratio.rounds >= 4
    assert lo < 1.03
    assert hi > 0.97


@pytest.mark.parametrize("seed", [0, 1])
def test_no_policy_that_did_less_than_the_static_baseline_is_called_the_best(seed):
    """Of a flat curve any size may be chosen; the rounds after that have the last word."""
    flat = ToyMachine(lambda n: 1e-5 * n, noise=0.3)
    found = tune(flat, Workload(seed=seed), SLA(0.2), clock=flat.clock(), budget_s=150.0)
    over = {c.name: c for c in found.comparisons}
    assert over["the static baseline"].ratio.ratio >= 1
    assert found.best.policy == found.baseline.policy


def test_no_run_is_spent_on_sizes_that_their_service_time_rules_out():
    """A third of the climb's time went to sizes 1 to 16, which could do a tenth of the best."""
    machine = ToyMachine(overhead)
    found = toy_tune(machine, SLA(0.1), budget_s=60)
    hopeless = [t for t in found.trials if t.policy.batch_size <= 16]
    assert len(hopeless) == 5
    assert all(t.capacity.kind == "estimate" and not t.capacity.runs for t in hopeless)
    assert all(0 < t.capacity.rate_qps < 0.7 * found.best.capacity.rate_qps for t in hopeless)
    assert sum(policy.batch_size <= 16 for _, policy in machine.runs) == 0


def test_the_final_figure_comes_from_runs_that_chose_nothing():
    machine = ToyMachine(overhead, noise=0.1)
    found = toy_tune(machine, SLA(0.1), budget_s=60)
    capacity = found.best.capacity
    assert capacity.kind == "interval"
    fresh = [run for run in capacity.runs if 100 <= run.seed < 300]
    assert len(fresh) >= 6
    assert all(run.summary.queries > 0 and not run.stopped_early for run in fresh)


def test_the_static_method_searches_nothing():
    found = toy_tune(ToyMachine(overhead), SLA(0.1), "static", budget_s=120)
    assert {t.policy.batch_size for t in found.trials} == {25, 500}


def test_a_target_out_of_reach_gives_no_best_and_the_idle_latency():
    found = toy_tune(ToyMachine(overhead), SLA(0.001), budget_s=100)
    assert found.best is None
    # a request of 512 and one of 88 side by side: 1 + 5.12 ms is what an idle machine needs
    assert 0.001 < found.idle_p95_s < 0.02


def test_a_small_budget_is_kept_and_what_is_left_is_undecided():
    machine = ToyMachine(overhead)
    found = toy_tune(machine, SLA(0.1), budget_s=5)
    assert machine.now_s < 10
    assert found.trials


def test_stopping_keeps_what_was_measured():
    done = []
    machine = ToyMachine(overhead)
    observer = Observer(stop=lambda: len(done) >= 3, on_trial=done.append)
    found = toy_tune(machine, SLA(0.1), budget_s=120, observer=observer)
    assert found.interrupted
    assert len(found.trials) >= 3
    assert found.best is not None


@pytest.mark.parametrize("runs", [1, 12, 60, 100])
def test_stopping_in_the_middle_of_a_run_keeps_that_run(runs):
    """In the search or in the comparison: every run told is in the study's trials."""
    told = []
    machine = ToyMachine(overhead)
    observer = Observer(
        stop=lambda: len(machine.runs) >= runs, on_run=lambda policy, run: told.append(run)
    )
    found = toy_tune(machine, SLA(0.1), budget_s=120, observer=observer)
    kept = [id(run) for trial in found.trials for run in trial.capacity.runs]
    assert {id(run) for run in told} == set(kept)
    assert len(kept) == len(told)
    assert found.interrupted == (len(machine.runs) >= runs)
    assert told[-1].cut or not found.interrupted


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(UserError, match=r"unknown method 'nope'; known: hill-climb"):
        tune(ToyMachine(overhead), Workload(), SLA(0.1), "nope")
    assert set(SEARCHES) == {"hill-climb", "exhaustive", "joint", "static"}


def test_what_binds_is_the_tail_when_cores_are_idle_at_capacity():
    machine = ToyMachine(overhead)
    sizes = Workload().sample_sizes(1000)
    facts = machine.facts()
    idle = what_binds(facts, Policy(512), 50.0, sizes, SLA(0.01), [])
    assert idle.kind == "tail"
    busy = what_binds(facts, Policy(512), 560.0, sizes, SLA(0.01), [])
    assert busy.kind == "compute"
    assert "100% busy" in busy.sentence
    unknown = what_binds(dataclasses.replace(facts, service_s=None), Policy(), 1, sizes, SLA(1), [])
    assert unknown.kind == "unknown"


def simulated(base_s, per_item_s, workers=2):
    return Simulator(ServiceTime.linear(base_s, per_item_s), workers)


def test_simulation_names_the_policies_and_the_system_confirms_them():
    machine = ToyMachine(overhead, noise=0.05)
    surrogate = simulated(1e-3, 1e-5)
    found = toy_tune(machine, SLA(0.1), "simulated", surrogate=surrogate, budget_s=60)
    assert found.simulated is not None
    predicted = {t.policy: t.capacity.rate_qps for t in found.simulated.trials}
    asked = {policy for _, policy in machine.runs}
    assert len(asked) <= 3 < len(predicted)
    assert found.best.policy in asked
    assert found.best.capacity.rate_qps == pytest.approx(predicted[found.best.policy], rel=0.05)
    assert found.speedup.ratio >= 0.97


def test_a_simulation_that_is_too_hopeful_is_put_right_by_the_system():
    machine = ToyMachine(lambda n: 3 * overhead(n))
    found = toy_tune(machine, SLA(0.1), "simulated", surrogate=simulated(1e-3, 1e-5), budget_s=120)
    alone = toy_tune(machine, SLA(0.1), "exhaustive", budget_s=120)
    assert found.best.capacity.rate_qps == pytest.approx(alone.best.capacity.rate_qps, rel=0.05)


def test_no_policy_is_best_where_simulation_and_system_meet_nothing():
    machine = ToyMachine(lambda n: 1.0)
    found = toy_tune(machine, SLA(0.1), "simulated", surrogate=simulated(1.0, 0.0))
    assert found.best is None
    assert found.idle_p95_s >= 1.0


def test_method_and_surrogate_belong_together():
    for method, surrogate in (("simulated", None), ("static", simulated(1e-3, 0.0))):
        with pytest.raises(UserError, match="surrogate"):
            tune(ToyMachine(overhead), Workload(), SLA(0.1), method, surrogate=surrogate)
    with pytest.raises(UserError, match="needs an engine"):
        drs.tune(ToyMachine(overhead), Workload(), SLA(0.1), "simulated")


def test_a_simulator_is_tuned_to_a_percent_of_an_exact_answer():
    """One worker and whole queries of one size: M/D/1, whose saturation bounds its capacity."""
    system = simulated(1e-3, 1e-4, workers=1)
    found = tune(system, Workload(sizes="fixed:100"), SLA(1.0), "exhaustive")
    assert found.best.capacity.rate_qps == pytest.approx(1 / 0.011, rel=0.02)
    assert found.best.policy.batch_size >= 100


def test_the_adaptive_policy_of_a_profile_leaves_a_quarter_of_the_target():
    profile = Profile({"workers": 1})
    for batch in (1, 16, 64, 256, 1024):
        profile = profile.with_visit((batch, 1), np.full(3, 1e-3 + 1e-4 * batch))
    found = {ms: guided.adaptive_policy(profile, SLA(ms / 1e3)) for ms in (1, 40, 110, 1000)}
    assert all(policy.adaptive for policy in found.values())
    assert {ms: policy.most_items for ms, policy in found.items()} == {
        1: 16, 40: 64, 110: 256, 1000: 1024,
    }  # fmt: skip


@pytest.mark.usefixtures("short_simulations")
def test_a_joint_search_is_as_good_as_the_climb_and_repeats_itself():
    pytest.importorskip("optuna", reason="optuna is not installed")
    system = Simulator(ServiceTime.linear(2e-4, 4e-5), 3)
    climbed = tune(system, Workload(), SLA(0.05)).best
    found = [tune(system, Workload(), SLA(0.05), "joint").best for _ in range(2)]
    assert found[0].policy == found[1].policy
    assert found[0].capacity.rate_qps > 0.95 * climbed.capacity.rate_qps


@pytest.mark.usefixtures("short_simulations")
def test_guided_tuning_where_the_static_baseline_meets_the_target_at_no_rate():
    """Five workers: the baseline's requests of 200 items are over the target by themselves."""
    law = ServiceTime.linear(1e-4, 1e-4)
    system = Simulator(law, 5)
    surrogate = Simulator(law, 5)
    study_ = tune(system, Workload(), SLA(0.019), "simulated", surrogate=surrogate)
    assert study_.best is not None
    assert study_.best.policy.batch_size < 200
    assert study_.baseline.capacity.rate_qps == 0


NARROW, PACKED = Execution(rows="fp16", layers="bf16"), Execution(packed=True)


def three_ways(speed=2.0, packed=1.0):
    """The same machine, `speed` times as fast in a narrow execution."""
    toys = {
        how: ToyMachine(lambda n, f=factor: (0.2e-3 + 16e-6 * n) / f)
        for how, factor in ((EXACT, 1.0), (PACKED, packed), (NARROW, speed))
    }
    together = Together(toys)
    clock = Clock(lambda: sum(toy.now_s for toy in toys.values()), next(iter(toys.values()))._pause)
    return toys, together, clock


def test_a_faster_execution_is_found_and_both_factors_are_told():
    toys, together, clock = three_ways()
    study = tune(together, Workload(), SLA(0.1), clock=clock, budget_s=1500.0)
    assert study.best.policy.execution == NARROW
    over = {c.name: c for c in study.comparisons}
    assert over["the static baseline"].policy.execution == EXACT
    lo, hi = over["the best in exact fp32"].ratio.interval
    assert over["the best in exact fp32"].policy.execution.exact
    assert lo > 1.5
    assert hi < 2.7
    assert study.exact.name == "the static baseline"
    assert study.exact.policy == over["the best in exact fp32"].policy
    assert study.exact.ratio is not None
    # Each system has run what is its own, and nothing else.
    for how, toy in toys.items():
        assert {policy.execution for _, policy in toy.runs} == {how}


def test_an_execution_that_gains_nothing_is_not_chosen():
    _, together, clock = three_ways(speed=0.5, packed=0.5)
    study = tune(together, Workload(), SLA(0.1), clock=clock, budget_s=600.0)
    assert study.best.policy.execution == EXACT
    assert study.exact is None


def test_an_execution_that_is_not_exact_has_to_show_that_it_is_worth_it():
    """Exact fp32 is the answer where rounds cannot tell the two apart, and the other's is told."""
    toys, together, clock = three_ways(speed=1.04)
    for toy in toys.values():
        toy.noise = 0.5
    study = tune(together, Workload(), SLA(0.1), clock=clock, budget_s=300.0)
    assert study.best.policy.execution.exact
    over = {c.name: c for c in study.comparisons}
    assert "the best in exact fp32" not in over
    assert over["the fastest within the guard"].policy.execution == NARROW
    assert not over["the fastest within the guard"].ratio.significant


@pytest.mark.usefixtures("short_simulations")
def test_a_simulated_search_covers_executions():
    laws = {how: ServiceTime.linear(0.2e-3 / f, 16e-6 / f) for how, f in ((EXACT, 1), (NARROW, 2))}
    surrogate = Together({how: Simulator(law, 2) for how, law in laws.items()})
    _, together, clock = three_ways()
    del together.systems[PACKED]
    study = tune(
        together, Workload(), SLA(0.1), "simulated", surrogate=surrogate, clock=clock,
        budget_s=600.0,
    )  # fmt: skip
    assert study.best.policy.execution == NARROW
    assert study.exact is not None


def test_an_execution_that_nothing_has_is_refused():
    _, together, _ = three_ways()
    with pytest.raises(UserError, match="nothing here executes layers=int8; known: exact; packed;"):
        together.run(Workload().schedule(10, 1), Policy(execution=Execution(layers="int8")))
