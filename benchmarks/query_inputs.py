"""What it is worth to send what belongs to the user once: `python benchmarks/query_inputs.py`.

Capacity of one model, in this process, in three forms of the same workload, in turns:

- one row: a query's candidates share one row of their user's inputs;
- repeated: the same queries with that row once a candidate, as a client without query-scoped
  inputs would send them (copied here while a query is submitted, 0.1 ms for 270 candidates of
  `din`); the scores are the same;
- own: each candidate has a user of its own, as in the paper and everywhere else in this project.

All under one batch size: each form's capacity is searched, then the three take turns near it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import deeprecsys as drs
from deeprecsys.core import Inputs, Policy, Schedule, UserError, repeat_inputs, replace
from deeprecsys.models import Model, load_model
from deeprecsys.tuning import find_capacity
from deeprecsys.tuning.capacity import Probe
from deeprecsys.tuning.interleave import Contestant, Ratio, interleave

WORKLOAD = drs.Workload()
_ELASTICITY = 20.0  # of a percentile by the rate, near saturation (`tuning.interleave`)


class Repeating(drs.Engine):
    """An engine whose runs submit a row of every input a candidate."""

    def _pool(self, schedule: Schedule) -> Any:
        return Repeated(super()._pool(schedule), self.model)


class Repeated:
    """A pool's windows with their user's row repeated."""

    def __init__(self, pool: Any, model: Model) -> None:
        self.pool, self.specs, self.offsets = pool, model.inputs, pool.offsets

    def window(self, offset: int, size: int) -> Inputs:
        return repeat_inputs(self.specs, self.pool.window(offset, size), size)


class ByPolicy:
    """Several engines as one system for `interleave`, which tells contestants by their policies."""

    def __init__(self, engines: Mapping[Policy, drs.Engine]) -> None:
        self._engines = engines
        self._last = next(iter(engines.values()))

    def run(self, schedule: Schedule, policy: Policy, **kw: Any) -> drs.Records:
        self._last = self._engines[policy]
        return self._last.run(schedule, policy, **kw)

    def facts(self) -> Any:
        return self._last.facts()

    def disturbance(self) -> float:
        return self._last.disturbance()


def forms(model: Model) -> dict[str, drs.Engine]:
    """The same weights in all three."""
    own = replace(model, query_inputs=False)
    return {"one row": drs.Engine(model), "repeated": Repeating(model), "own": drs.Engine(own)}


def compare(model: Model, batch_size: int, search_s: float, round_s: float, most_s: float) -> None:
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        engines: dict[Policy, drs.Engine] = {}
        for form, closed in forms(model).items():
            engine = stack.enter_context(closed)
            # A static policy reads no `most_items`: here it tells the forms apart.
            policy = Policy(batch_size, most_items=1024 + len(engines))
            found = find_capacity(engine, WORKLOAD, model.target, policy, budget_s=search_s)
            # Rounds far below the capacity would say nothing of it (see `_ELASTICITY`).
            if (rate := found.rate_qps) == 0:
                raise UserError(f"{form}: no rate met {model.target} in time: more --search-s")
            engines[policy] = engine
            contestants[form] = Contestant(policy, rate, _ELASTICITY)
            print(f"{model.name}, {form}: {rate:.1f} queries/s, batch size {batch_size}")
        probe = Probe(ByPolicy(engines), WORKLOAD, model.target)
        until = probe.clock() + most_s
        ratios = interleave(probe, list(contestants.values()), lambda _: round_s, until=until)
    for form, ratio in zip(list(contestants)[1:], ratios, strict=True):
        print(f"{model.name}, one row / {form}: {said(ratio)}")


def said(ratio: Ratio | None) -> str:
    if ratio is None:
        return "undecided: too few rounds"
    lo, hi = ratio.interval
    return f"{ratio.ratio:.2f} [{lo:.2f}, {hi:.2f}], {ratio.rounds} rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["din"])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--search-s", type=float, default=60.0, help="of each form")
    parser.add_argument("--round-s", type=float, default=5.0, help="of each form in each round")
    parser.add_argument("--most-s", type=float, default=240.0, help="of all rounds together")
    given = parser.parse_args()
    for name in given.models:
        model = load_model(name, scale=given.scale, query_inputs=True)
        compare(model, given.batch_size, given.search_s, given.round_s, given.most_s)


if __name__ == "__main__":
    main()
