"""Shares of several models in one dispatcher, by weight and by what their requests cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import Policy, UserError
from deeprecsys.rules.dispatch import Dispatcher, QueueFull
from deeprecsys.rules.shares import CREDIT_S

PLAIN = Policy(10)
SIZE = 50


class Machine:
    """A dispatcher of several models, whose queries are of one size and have a cost each."""

    def __init__(self, weights, costs):
        self.rules, self.costs, self.added = Dispatcher(), costs, 0
        self.rules.weigh(0, weights[0])
        for weight in weights[1:]:
            self.rules.add_model(weight)
        self.model_of, self.spent = {}, [0.0] * len(costs)

    def ask(self, model, queries):
        for _ in range(queries):
            self.rules.add(self.added, SIZE, PLAIN, cost=self.costs[model], model=model)
            self.model_of[self.added] = model
            self.added += 1

    def execute(self, cost):
        """So much of it; the models whose requests that was, in order."""
        until, begun = sum(self.spent) + cost, []
        while sum(self.spent) < until and (slices := self.rules.pull(0, 0.0)):
            for query, lo, hi in slices:
                self.rules.finish(query, hi - lo)
                model = self.model_of[query]
                self.spent[model] += (hi - lo) / SIZE * self.costs[model]
                begun.append(model)
        return begun


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    data=st.data(),
)
def test_while_all_wait_each_has_its_share_of_the_cost(weights, data):
    costs = [data.draw(st.sampled_from([0.01, 0.02, 0.1])) for _ in weights]
    machine = Machine(weights, costs)
    for model, cost in enumerate(costs):
        machine.ask(model, int(2 / cost))
    machine.execute(1.0)
    for share, weight in zip(machine.spent, weights, strict=True):
        # Each is at most one request behind or ahead, which is a fifth of a query.
        assert share == pytest.approx(sum(machine.spent) * weight / sum(weights), abs=0.05)


def test_one_that_takes_less_than_its_share_goes_first():
    machine = Machine([1.0, 1.0], [0.01, 0.01])
    machine.ask(0, 300)
    machine.execute(1.0)
    machine.ask(1, 1)
    assert machine.execute(0.01) == [1] * 5


def test_what_one_has_not_used_is_not_kept_for_ever():
    machine = Machine([1.0, 1.0], [0.05, 0.05])
    machine.ask(0, 400)
    machine.execute(5.0)
    machine.ask(1, 400)
    before = list(machine.spent)
    machine.execute(2.0)
    ours, theirs = (now - then for now, then in zip(machine.spent, before, strict=True))
    assert theirs - ours == pytest.approx(CREDIT_S, abs=0.05)


def test_another_s_backlog_is_not_ahead_of_one_that_takes_less_than_its_share():
    machine = Machine([1.0, 1.0], [0.01, 0.01])
    machine.ask(0, 600)
    machine.execute(3.0)
    waits = machine.rules.ahead(size=10, model=0, cost=0.005)
    assert waits == pytest.approx(3.0, abs=0.02)
    assert machine.rules.ahead(size=10, model=1, cost=0.005) <= 0.01


def test_the_bound_on_what_waits_is_each_model_s_own():
    rules = Dispatcher(100)
    rules.add_model(1.0)
    rules.add(0, 100, PLAIN, model=0)
    with pytest.raises(QueueFull):
        rules.add(1, 50, PLAIN, model=0)
    rules.add(2, 50, PLAIN, model=1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(UserError, match="weight must be positive"):
        Dispatcher().add_model(weight)
