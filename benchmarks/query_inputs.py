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
from contextlib import ExitStack
from typing import Any

import deeprecsys as drs
from deeprecsys.core import Inputs, Schedule, repeat_inputs, replace
from deeprecsys.models import Model, load_model
from turns import compare, said


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


def forms(model: Model) -> dict[str, drs.Engine]:
    """The same weights in all three."""
    own = replace(model, query_inputs=False)
    return {"one row": drs.Engine(model), "repeated": Repeating(model), "own": drs.Engine(own)}


def measure(model: Model, batch_size: int, **seconds: float) -> None:
    with ExitStack() as stack:
        engines = {form: stack.enter_context(engine) for form, engine in forms(model).items()}
        _, ratios = compare(engines, model.target, batch_size, **seconds)
    for form, ratio in ratios.items():
        print(f"{model.name}, one row / {form}: {said(ratio)}")


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
        measure(
            model,
            given.batch_size,
            search_s=given.search_s,
            round_s=given.round_s,
            most_s=given.most_s,
        )


if __name__ == "__main__":
    main()
