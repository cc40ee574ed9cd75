"""What it is worth to send what belongs to the user once: `python benchmarks/query_inputs.py`.

Capacity of one model, in this process, in three forms of the same workload, in turns:

- one row: a query's candidates share one row of their user's inputs;
- repeated: the same queries with that row once a candidate, as a client without query-scoped
  inputs would send them (copied here while a query is submitted, 0.1 ms for 270 candidates of
  `din`); the scores are the same;
- own: each candidate has a user of its own, as in the paper and everywhere else in this project.

All under one batch size: each form's capacity is searched, then the three take turns near it.
`--requests` times single requests of the three forms instead, on one core, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

import deeprecsys as drs
from deeprecsys.core import Inputs, Schedule, repeat_inputs, replace
from deeprecsys.engine import calibrate, topology
from deeprecsys.models import Model, load_model
from deeprecsys.runtimes import make_runtime
from turns import compare, said

SIZES, TURNS = (64, 256, 1024), 15


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


def time_requests(model: Model) -> None:
    """Median time of a request by candidates and form, over that of one row."""
    runtime = make_runtime("torchscript", model)

    def measure(_: int) -> dict[int, dict[str, float]]:
        return {size: _turns(_executions(model, runtime, size)) for size in SIZES}

    [found] = calibrate.on_cores(topology.usable_cores()[:1], runtime.enter_thread, measure)
    for size, seconds in found.items():
        shared_s = seconds.pop("one row")
        ratios = ", ".join(f"{form} {s / shared_s:.2f}x" for form, s in seconds.items())
        print(f"{model.name}, {size} candidates: one row {shared_s * 1e3:.3g} ms, {ratios}")


def _executions(model: Model, runtime: Any, size: int) -> dict[str, Callable[[], None]]:
    """The request of each form, prepared."""
    shared = model.example(size, np.random.default_rng(0))
    inputs = {
        "one row": shared,
        "repeated": repeat_inputs(model.inputs, shared, size),
        "own": replace(model, query_inputs=False).example(size, np.random.default_rng(0)),
    }
    scores = np.empty((size, model.tasks), np.float32)
    ready = {form: runtime.prepare(given, scores) for form, given in inputs.items()}
    return {form: lambda p=given: runtime.execute(p, 0, size) for form, given in ready.items()}


def _turns(executions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each, by turns; the first turn warms up."""
    found: dict[str, list[float]] = {form: [] for form in executions}
    for _ in range(TURNS + 1):
        for form, execute in executions.items():
            began = time.perf_counter()
            execute()
            found[form].append(time.perf_counter() - began)
    return {form: float(np.median(seconds[1:])) for form, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["din"])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--search-s", type=float, default=60.0, help="of each form")
    parser.add_argument("--round-s", type=float, default=5.0, help="of each form in each round")
    parser.add_argument("--most-s", type=float, default=240.0, help="of all rounds together")
    parser.add_argument("--requests", action="store_true", help="time single requests instead")
    given = parser.parse_args()
    for name in given.models:
        model = load_model(name, scale=given.scale, query_inputs=True)
        if given.requests:
            time_requests(model)
            continue
        measure(
            model,
            given.batch_size,
            search_s=given.search_s,
            round_s=given.round_s,
            most_s=given.most_s,
        )


if __name__ == "__main__":
    main()
