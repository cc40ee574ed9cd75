"""The native dispatcher takes each step as `rules.dispatch` does, which is its specification."""

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprecsys import _native
from deeprecsys.core import Execution, Policy
from deeprecsys.rules.dispatch import Dispatcher, QueueFull

POLICIES = [
    Policy(8),
    Policy(1),
    Policy(40, offload_threshold=10, most_items=120),
    Policy(16, offload_threshold=5, offload_backlog=60, most_items=70),
    Policy(8, adaptive=True, most_items=64),
    Policy(8, adaptive=True, most_items=64, execution=Execution(packed=True)),
    Policy(8, workers=1),
]


class Pair:
    """Both, and what was executed; each step is taken by both and said the same by both."""

    def __init__(self, bound=None, accelerators=0, most_items=(), models=1):
        self.python = Dispatcher(bound, accelerators, most_items)
        self.native = _native.Dispatcher(bound, accelerators, most_items).rules
        self.begun, self.seen, self.added = [], Counter(), 0
        self.policy, self.inflow = POLICIES[0], 0.3
        self.accelerators, self.lost = accelerators, set()
        self.models = [0]
        while len(self.models) < models:
            self.models.append(self.both("add_model", 0.5 * len(self.models)))

    def both(self, kind, *arguments, **more):
        said = []
        for rules in (self.python, self.native):
            try:
                said.append(getattr(rules, kind)(*arguments, **more))
            except QueueFull as full:
                said.append(f"full: {full}")
        assert said[0] == said[1], (kind, arguments, more)
        self.seen[kind] += 1
        self.seen["full"] += isinstance(said[0], str)
        self.alike()
        return said[0]

    def alike(self):
        python, native = self.python, self.native
        assert len(python) == len(native)
        assert python.queued_items == native.queued_items
        assert python.offloaded_items == native.offloaded_items
        assert python.has_deadlines == native.has_deadlines

    def near(self, kind, *arguments):
        python, native = (getattr(r, kind)(*arguments) for r in (self.python, self.native))
        assert math.isclose(python, native, rel_tol=1e-9, abs_tol=1e-6), (kind, arguments)
        self.seen[kind] += 1

    def step(self, random, now, clients, levels):
        turn, size = random.random(), 1 + int(random.expovariate(1 / 40))
        client = f"c{random.randrange(clients)}" if random.random() < 0.6 else ""
        priority = random.randrange(levels)
        if random.random() < 0.06:  # often two alike in a row, that can be joined
            self.policy = random.choice(POLICIES)
        policy, model = self.policy, random.choice(self.models)
        if turn < self.inflow:
            deadline_s = now + random.expovariate(1.0) if random.random() < 0.3 else math.inf
            more = {"priority": priority, "client": client, "cost": random.random() * size}
            more["model"] = model
            said = self.both("add", self.added, size, policy, deadline_s, **more)
            self.seen["offloaded"] += isinstance(said, int)
            self.added += 1
        elif turn < 0.6:
            slices = self.both("pull", 0, now, random.randint(1, 4))
            self.begun += slices
            self.seen["joined"] += len(slices) > 1
            self.seen["slices"] += len(slices)
        elif turn < 0.8 and self.begun:
            query, lo, hi = self.begun.pop(random.randrange(len(self.begun)))
            self.seen["finished"] += self.both("finish", query, hi - lo)
        elif turn < 0.86 and self.added:
            self.seen["dropped"] += self.both(
                "drop", self.added - 1 - random.randrange(min(self.added, 99))
            )
        elif turn < 0.88:
            self.seen["expired"] += len(self.both("expire", now))
        else:
            self.rarer(random, now, client, priority, size, policy, model)

    def rarer(self, random, now, client, priority, size, policy, model):
        turn, lane = random.random(), random.randrange(max(1, self.accelerators))
        if turn < 0.3 or not self.accelerators:
            self.near("ahead", priority, client, size, model, random.random() * size)
            if random.random() < 0.2:
                self.both("weigh", model, random.choice([0.5, 1.0, 3.0]))
            if model and not self.native.open_of(model):
                self.both("remove_model", model)
                assert self.both("add_model", 2.0) == model
                self.seen["removed"] += 1
            assert self.both("open_queries") is not None
            self.both("next_deadline_s")
        elif turn < 0.4:
            self.near("ahead_offloaded", lane, priority, client, size)
            self.both("choice", size, policy)
        elif turn < 0.95:
            slices = self.both("pull_offloaded", lane, now)
            self.begun += slices
            self.seen["merged"] += len(slices) > 1
        elif lane not in self.lost:
            self.lost.add(lane)
            ids = self.python.retire(lane, lambda items, policy: 0.5 * items)
            had = self.native.offloaded(lane)
            assert [query for query, _ in had] == ids
            self.native.retire(lane, [0.5 * items for _, items in had])
            # What it had begun is begun anew, by the cores.
            self.begun = [piece for piece in self.begun if piece[0] not in set(ids)]
            self.seen["retired"] += 1
            self.alike()
        else:
            self.lost.discard(lane)
            self.both("restore", lane)

    def drain(self):
        while slices := self.both("pull", 0, 0.0):
            for query, lo, hi in slices:
                self.both("finish", query, hi - lo)


def play(seed, steps, *, clients=3, levels=2, **of):
    random, pair, now = Random(seed), Pair(**of), 0.0
    for step in range(steps):
        pair.inflow = 0.45 if step // 400 % 2 == 0 else 0.1  # lines grow long, and short again
        now += random.expovariate(10.0)
        pair.step(random, now, clients, levels)
    for lane in range(pair.accelerators):
        while pair.both("pull_offloaded", lane, now):
            pass
    pair.drain()
    return pair.seen


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 150),
    clients=st.integers(1, 5),
    levels=st.integers(1, 9),
    bound=st.none() | st.integers(1, 2000),
    most_items=st.lists(st.none() | st.integers(20, 150), max_size=3),
    models=st.integers(1, 3),
)
def test_each_step_is_the_specification_s(seed, steps, clients, levels, bound, most_items, models):
    of = {"bound": bound, "accelerators": len(most_items), "most_items": most_items}
    of["models"] = models
    seen = play(seed, steps, clients=clients, levels=levels, **of)
    assert seen["pull"] > 0, "nothing was held against the specification"


@pytest.mark.parametrize(
    ("clients", "levels"),
    [(2, 2), (300, 3), (5, 200)],  # many of each, so that what is remembered is swept
)
def test_long_storms_meet_every_rule_and_both_forget_alike(clients, levels):
    of = {"bound": 9000, "accelerators": 2, "most_items": [None, 90], "models": 3}
    seen = play(clients, 12_000, clients=clients, levels=levels, **of)
    for kind in ("slices", "joined", "merged", "offloaded", "finished", "dropped", "expired",
                 "retired", "restore", "ahead", "ahead_offloaded", "choice"):  # fmt: skip
        assert seen[kind] >= 15, f"{kind}: {seen[kind]}"


def test_the_bound_is_met_in_the_same_words():
    seen = play(3, 3000, bound=500)
    assert seen["full"] > 100


def test_a_refusal_is_python_s_own():
    rules = _native.Dispatcher(10).rules
    rules.add(0, 8, POLICIES[0])
    with pytest.raises(QueueFull, match="8 items wait already, the bound is 10"):
        rules.add(1, 3, POLICIES[0])
