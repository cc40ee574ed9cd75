"""The sentence that a study comes to does not contradict what was measured."""

import math

import pytest

from deeprecsys.core import SLA, Execution, Policy
from deeprecsys.experiments import verdicts
from deeprecsys.tuning import Capacity, Comparison, Study, Trial
from deeprecsys.tuning.interleave import Ratio

SLA_25 = SLA(0.025, 95)


def trial(batch_size, rate_qps, *, decided=True, idle_s=None):
    capacity = Capacity(rate_qps, (rate_qps, math.inf), decided, idle_p95_s=idle_s)
    return Trial(Policy(batch_size), capacity)


def study(*trials, best=None, comparisons=()):
    return Study("static", SLA_25, trials[0], best, list(trials), list(comparisons))


@pytest.mark.parametrize(
    ("idle_s", "begins"),
    [(0.0027, "undecided: no rate was found"), (0.031, "no rate meets"), (None, "undecided")],
)
def test_no_rate_is_the_answer_only_where_the_idle_machine_misses(idle_s, begins):
    found = study(trial(1, 0.0, idle_s=0.29), trial(1024, 0.0, decided=False, idle_s=idle_s))
    if idle_s is None:
        found = study(trial(1024, 0.0, decided=False))
    assert verdicts.tuned(found).startswith(begins)


@pytest.mark.parametrize(
    ("decided", "said"), [(True, "holds it at no rate"), (False, "not measured")]
)
def test_a_baseline_that_holds_at_no_rate_is_not_called_unmeasured(decided, said):
    best, baseline = trial(512, 900.0), trial(25, 0.0, decided=decided)
    against = Comparison("the paper's literal", baseline.policy, None)
    assert said in verdicts.tuned(study(baseline, best, best=best, comparisons=[against]))


def test_another_execution_is_named_beside_its_batch_size():
    best, other = trial(1024, 250.0), Policy(512, execution=Execution(rows="fp16"))
    against = Comparison("the fastest within the guard", other, Ratio(0.96, (0.79, 1.17), 9))
    said = verdicts.tuned(study(best, best=best, comparisons=[against]))
    assert "0.96× [0.79, 1.17] the fastest within the guard (rows=fp16) of 512, not signif" in said
