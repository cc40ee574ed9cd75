"""Plans: what is answered was simulated as it is stated, and is no more than can be had."""

import json

import pytest

from deeprecsys.core import SLA, Policy, UserError
from deeprecsys.experiments import plan as plans
from deeprecsys.experiments.plan import Answer, Demand, Offer, Plan, choose, plan
from deeprecsys.experiments.stated import SAMPLE, sample_of
from deeprecsys.fleet.fleet import Kind
from deeprecsys.machines.accelerators import Accelerator
from deeprecsys.machines.service_time import ServiceTime

pytestmark = pytest.mark.usefixtures("short_simulations")

LAW = ServiceTime.constant(0.01)
POLICY = Policy(1024)
KEYS = {
    "verb", "command", "date", "machine", "versions", "model", "seed", "sla", "peak_qps",
    "planned_qps", "spare", "file", "answers", "chosen", "elapsed_s", "verdict", "assumptions",
}  # fmt: skip
ANSWER_KEYS = {
    "kind", "balancer", "policy", "single_qps", "fleet_qps", "machines", "busy", "cost", "watts",
    "binds", "idle_s",
}  # fmt: skip


def offer(name, workers, most=None, cost=None, devices=(), watts=(100.0, 200.0)):
    given = {"m": devices} if devices else {}
    kind = Kind(name, 1, workers, {"m": LAW}, {"m": POLICY}, given)
    return Offer(kind, cost, watts, most, POLICY)


def demand(qps, spare=0):
    return Demand("m", qps, SLA(0.05), "fixed:10", spare=spare)


def bearing(offer, balancer, share=0.9):
    """A kind that was found to bear so much of what its cores can do."""
    rate = share * 100 * offer.kind.workers
    return Answer(offer, balancer, POLICY, rate, rate, None, None, "compute")


def test_spares_are_never_less_than_none_nor_taken_as_capacity():
    offers = [offer("large", 16, most=4, cost=1.0), offer("small", 2, cost=0.2)]
    found = plan(demand(2000, spare=4), offers, ["two-choices"])
    assert all(a.machines > 0 for a in found.chosen)
    assert sum(a.machines for a in found.chosen) > 4
    rest = sorted((a.fleet_qps for a in found.chosen for _ in range(a.machines)), reverse=True)
    assert sum(rest[4:]) >= 2000
    assert "4 of them to spare" in found.verdict


def test_spares_must_be_had_too():
    found = plan(demand(1000, spare=4), [offer("a", 2, most=8)], ["two-choices"])
    assert found.chosen == []
    assert "more machines than can be had: raise `most`" in found.verdict
    assert found.answers[0].machines > 8  # what would be needed is said all the same


def test_a_mix_is_as_busy_as_it_was_when_it_was_simulated():
    """2,000 queries/s of 10 ms on 4 machines of 4 workers and the others of 2."""
    offers = [offer("four", 4, most=4, cost=0.5), offer("two", 2, cost=0.6)]
    chosen = choose(demand(2000, spare=3), [bearing(o, "least-queries") for o in offers])
    assert [a.offer.kind.name for a in chosen] == ["four", "two"]
    cores = sum(a.machines * a.offer.kind.workers for a in chosen)
    at_work = sum(a.busy * a.machines * a.offer.kind.workers for a in chosen)
    assert at_work == pytest.approx(20.0, rel=0.03)
    for a in chosen:
        assert a.busy == pytest.approx(20.0 / cores, abs=0.09)  # alone they would be near 0.9
        assert a.watts == pytest.approx(a.machines * (100 + 100 * a.busy))
    assert chosen[0].check is chosen[1].check
    assert chosen[0].to_dict()["simulated"]["machines"] == sum(a.machines for a in chosen)


def test_a_mix_that_misses_the_target_when_it_is_simulated_is_not_called_served():
    """Random choice hands small machines as much as large ones: what each bears is no help."""
    offers = [offer("large", 8, most=2, cost=1.0), offer("small", 1, most=4, cost=0.1)]
    assert choose(demand(1700), [bearing(o, "random") for o in offers]) == []
    assert choose(demand(1700), [bearing(o, "least-queries") for o in offers])


def test_what_is_answered_was_simulated_under_seeds_that_chose_nothing():
    found = plan(demand(2000), [offer("a", 4)], ["two-choices", "random"], seed=5)
    for answer in found.answers:
        assert answer.check.holds
        assert answer.check.reached_s <= 0.05
        assert 5 not in answer.check.seeds
        assert answer.check.seconds >= 120 * 0.05
    assert found.chosen[0].check is not None
    assert "under other seeds p95 was at most" in found.verdict


def test_where_the_fresh_seeds_miss_more_machines_are_answered(monkeypatch):
    real, refused = plans.judged, []

    def judged(stated, *rest):
        found = real(stated, *rest)
        refused.append(stated[0].machines)
        return found if len(refused) > 2 else plans.replace(found, holds=False)

    monkeypatch.setattr(plans, "judged", judged)
    found = plan(demand(2000), [offer("a", 4)], ["two-choices"])
    assert found.chosen[0].machines == refused[2] >= refused[0]
    assert found.chosen[0].fleet_qps * found.chosen[0].machines >= 2000


def test_a_machine_with_a_busy_accelerator_draws_more():
    device = Accelerator("d", LAW, "a law")
    machine = Answer(
        offer("a", 16, devices=[device]), "random", POLICY, 1.0, 1.0, 2, 0.5, "compute"
    )
    watts = [plans.replace(machine, devices_busy=busy).watts for busy in (0.0, 0.5, 1.0)]
    assert watts[0] < 2 * 150 < watts[2]
    assert watts[1] == pytest.approx(2 * 150)


def test_accelerators_at_work_are_told_from_cores():
    device = Accelerator("d", ServiceTime.linear(0.0, 2e-4), "a law")
    with_device = plans.replace(offer("a", 4, devices=[device]), policy=Policy(1024, 1))
    (found,) = plan(demand(2000), [with_device], ["two-choices"]).chosen
    assert found.busy == 0
    assert found.devices_busy == pytest.approx(2000 * 0.002 / found.machines, rel=0.05)
    assert found.watts > found.machines * 100


@pytest.mark.parametrize("counts", [[3, 1], [500, 1], [300, 300, 2], [24], [25]])
def test_a_sample_has_something_of_everything(counts):
    sample = sample_of(counts)
    assert all(1 <= n <= m for n, m in zip(sample, counts, strict=True))
    assert sum(sample) <= SAMPLE + len(counts)
    assert sum(counts) > SAMPLE or sample == counts


def test_a_plan_saves_what_the_verb_leaves(tmp_path):
    found = plan(demand(500), [offer("a", 4)], ["two-choices"], file={"day": 1})
    assert isinstance(found, Plan)
    report = found.save(tmp_path / "p")
    assert report.read_text() == found.report()
    summary = json.loads((tmp_path / "p" / "summary.json").read_text())
    assert summary == found.to_dict()
    assert set(summary) == KEYS
    assert set(summary["chosen"][0]) >= ANSWER_KEYS
    policy = json.loads((tmp_path / "p" / "policy-a.json").read_text())
    assert policy["policy"] == POLICY.to_dict()
    assert "Machines needed" in found._repr_html_()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: plan(demand(1), []), "at least one kind"),
        (lambda: plan(demand(1), [offer("a", 1), offer("a", 2)]), "two kinds have one name"),
        (lambda: offer("a", 1, most=-1), "most must not be negative"),
        (lambda: plan(demand(1), [offer("a", 1), offer("b", 1, cost=1.0)]), "of every kind"),
        (lambda: demand(-1), "must be a positive rate"),
        (lambda: demand(1, spare=-1), "must not be negative"),
    ],
)
def test_what_is_no_plan_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
