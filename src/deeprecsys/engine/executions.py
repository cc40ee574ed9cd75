"""How long a request takes in each execution, all side by side: what `profile --executions` shows,
and what `tune` begins with.

Which executions a machine can make is found by trying. They take turns, over the same inputs, with
all workers busy, so that a ratio is of one run and a machine that drifts favours none of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deeprecsys.analysis.statistics import LEVEL, ratio_interval
from deeprecsys.core import DEFAULT_INDICES, EXACT, Answer, Execution, FloatArray, UserError
from deeprecsys.engine import topology
from deeprecsys.engine.calibrate import Cores, on_cores
from deeprecsys.engine.pool import draw_pool
from deeprecsys.executions import LAYERS, executed
from deeprecsys.models import Model
from deeprecsys.models.spec import Rows
from deeprecsys.runtimes import Runtime, make_runtime, runtimes_of

BATCH_SIZES = (16, 64, 256, 1024)
BUDGET_S = 20.0
# Of a query of the paper's sizes, in the mean. What an execution keeps of the user it computes once
# a query, so a request is timed as one of those that such a query is cut into.
QUERY_ITEMS = 270
_ROUNDS, _LEAST_ROUNDS, _SHORTEST_S = 9, 2, 0.01
_HOPELESS = 0.6  # of the exact one's speed, each at its best batch size

_ROWS = tuple(Execution(rows=rows) for rows in ("fp16", "int8"))
_USER = Execution(user="query")
Ratio = tuple[float, float, float]  # and the ends of its 95 % interval


@dataclass(frozen=True, slots=True)
class Measured:
    """seconds: medians of a request by execution and batch size, [rounds], of the same rounds, of
    which a hopeless one has only the first; the first execution is what the others are held
    against. failed: why one could not run."""

    seconds: Mapping[Execution, Mapping[int, FloatArray]]
    failed: Mapping[Execution, str]

    @property
    def first(self) -> Execution:
        return next(iter(self.seconds))

    def median_s(self, execution: Execution, batch_size: int) -> float:
        return float(np.median(self.seconds[execution][batch_size]))

    def best_batch(self, execution: Execution) -> int:
        """The most items a second."""
        sizes = self.seconds[execution]
        return min(sizes, key=lambda size: self.median_s(execution, size) / size)

    def ratio(self, execution: Execution, batch_size: int | None = None) -> Ratio:
        """How much faster than the first one: at that batch size; without, each at its best."""
        one = batch_size or self.best_batch(self.first)
        other = batch_size or self.best_batch(execution)
        first_s = self.seconds[self.first][one] / one
        seconds = self.seconds[execution][other] / other
        if execution == self.first:
            return 1.0, 1.0, 1.0
        return _typical(first_s[: len(seconds)] / seconds)

    def best(self, among: Iterable[Execution]) -> Execution:
        """Of those that were measured, the fastest at its best batch size; the first, where none
        is faster."""
        able = [self.first, *(e for e in among if e in self.seconds)]
        return max(able, key=lambda execution: self.ratio(execution)[0])

    def to_dict(self) -> list[dict[str, Any]]:
        """A row an execution: times and ratios by batch size, its best, or why it was not made."""
        return [self._row(execution) for execution in self.seconds] + [
            {"execution": str(execution), "why": why} for execution, why in self.failed.items()
        ]

    def _row(self, execution: Execution) -> dict[str, Any]:
        ratio, *interval = self.ratio(execution)
        sizes = self.seconds[execution]
        return {
            "execution": str(execution),
            "seconds": {str(size): self.median_s(execution, size) for size in sizes},
            "ratios": {str(size): self.ratio(execution, size)[0] for size in sizes},
            "best_batch": self.best_batch(execution),
            "ratio": ratio,
            "interval": interval,
            "rounds": len(next(iter(sizes.values()))),
            "why": "",
        }


def _typical(ratios: FloatArray) -> Ratio:
    """The median of paired ratios and the order statistics around it, which a disturbed round does
    not move; of too few for that, their mean and Student's interval."""
    n, beyond = len(ratios), 0.0
    for out in range(n // 2):
        # Binomial: so likely is it that at most so many of n lie on one side of their median.
        beyond += 2 * math.comb(n, out) / 2**n
        if beyond > 1 - LEVEL:
            break
    else:
        out = n // 2
    if not out:
        return ratio_interval(np.log(ratios))
    ordered = np.sort(ratios)
    return float(np.median(ratios)), float(ordered[out - 1]), float(ordered[-out])


def singles(model: Model) -> list[Execution]:
    """Exact, and what differs from it in one thing."""
    return [EXACT, *_ROWS, *LAYERS, *([_USER] if getattr(model, "query_inputs", False) else [])]


def combined(seen: Measured) -> list[Execution]:
    """The best rows with the best layers, both with the user's part if there is one; those that
    have not been measured."""
    rows, layers = seen.best(_ROWS), seen.best(LAYERS)
    both = replace(layers, rows=rows.rows)
    found = [
        both,
        *(replace(e, user="query") for e in (rows, layers, both) if _USER in seen.seconds),
    ]
    return [e for e in dict.fromkeys(found) if e not in seen.seconds]


def made(
    model: Model, executions: Iterable[Execution], tables: dict[Rows, Model] | None = None
) -> tuple[dict[Execution, Model], dict[Execution, str]]:
    """An exact model in each of them, with one copy of the tables a type of rows; and why not, of
    those that this machine or the model cannot. tables: models by their rows' type, which are
    there already, and to which others are added."""
    able: dict[Execution, Model] = {}
    refused: dict[Execution, str] = {}
    tables = {"fp32": model} if tables is None else tables
    for execution in executions:
        try:
            if execution.rows not in tables:
                tables[execution.rows] = executed(model, Execution(rows=execution.rows))
            able[execution] = executed(tables[execution.rows], execution)
        except UserError as error:
            refused[execution] = str(error)
    return able, refused


def measure(
    models: Mapping[Execution, Model],
    cores: Cores,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    budget_s: float = BUDGET_S,
    runtime: str = "torchscript",
    indices: str = DEFAULT_INDICES,
    stop: Callable[[], bool] = lambda: False,
    on_round: Callable[[float], None] = lambda _: None,
) -> Measured:
    """Seconds of a request in each of `models`, of one and the same model, by batch size.

    budget_s: of the turns, exceeded where requests are slow: every execution has at least two, and
    one that is far behind by then no more. on_round: told the share that is done. What cannot be
    traced or run is in `failed`; UserError if that is the first.
    """
    (reference, first), *_ = models.items()
    pool = draw_pool(first, indices, max(batch_sizes), topology.last_level_cache_bytes())
    able, failed = _able(models, runtime)
    if reference not in able:
        raise UserError(f"{first.name} cannot be executed as {reference}: {failed[reference]}")
    # Runtimes of one kind prepare alike: all have the very same queries.
    prepared = pool.prepared(able[reference], first.outputs)
    seconds: dict[Execution, dict[int, list[float]]] = {
        execution: {size: [] for size in batch_sizes} for execution in able
    }
    visit_s = max(_SHORTEST_S, budget_s / (_ROUNDS * len(able) * len(batch_sizes)))
    began = time.monotonic()
    for turn in range(_ROUNDS):
        if turn >= _LEAST_ROUNDS and (stop() or time.monotonic() - began > budget_s):
            break
        if turn == _LEAST_ROUNDS:
            so_far = _measured(seconds, failed)
            able = {e: r for e, r in able.items() if so_far.ratio(e)[0] > _HOPELESS}
        # There and back: a steady drift cancels.
        order = list(able)[:: 1 if turn % 2 == 0 else -1]
        for size in batch_sizes:
            for execution in order:
                seen = visit(able[execution], prepared, pool.span, cores, size, visit_s)
                seconds[execution][size].append(seen)
        on_round((turn + 1) / _ROUNDS)
    return _measured(seconds, failed)


def _measured(
    seconds: Mapping[Execution, Mapping[int, list[float]]], failed: Mapping[Execution, str]
) -> Measured:
    arrays = {e: {size: np.array(s) for size, s in by.items()} for e, by in seconds.items()}
    return Measured(arrays, failed)


@dataclass(frozen=True, slots=True)
class Survey:
    """models: an exact one otherwise executed; refused: why not, of those that cannot be made or
    run. seen: the turns, exact first in each."""

    models: Mapping[Execution, Model]
    refused: Mapping[Execution, str]
    seen: Sequence[Measured]

    def rows(self) -> list[dict[str, Any]]:
        """As of `Measured.to_dict`; the fastest first, and last what cannot be made."""
        rows = [row for n, one in enumerate(self.seen) for row in one.to_dict()[1 if n else 0 :]]
        known = {row["execution"] for row in rows}
        rows += [
            {"execution": str(e), "why": why}
            for e, why in self.refused.items()
            if str(e) not in known
        ]
        return sorted(rows, key=lambda row: -row.get("ratio", 0.0))


def survey(
    model: Model,
    cores: Cores,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    wanted: Sequence[Execution] | None = None,
    budget_s: float = BUDGET_S,
    runtime: str = "torchscript",
    indices: str = DEFAULT_INDICES,
    stop: Callable[[], bool] = lambda: False,
    on_round: Callable[[float], None] = lambda _: None,
) -> Survey:
    """Of an exact model: `wanted` (default: `singles`), then what is `combined` of the best."""
    models: dict[Execution, Model] = {}
    refused: dict[Execution, str] = {}
    seen: list[Measured] = []
    tables: dict[Rows, Model] = {"fp32": model}
    now, share, done = list(wanted or singles(model)), 0.7, 0.0
    while now and not (seen and stop()):
        able, why = made(model, now, tables)
        models, refused = models | able, refused | why
        one = measure(
            {EXACT: model, **able}, cores, batch_sizes, budget_s=share * budget_s, runtime=runtime,
            indices=indices, stop=stop,
            on_round=lambda part, done=done, share=share: on_round(done + share * part),  # type: ignore[misc]
        )  # fmt: skip
        seen.append(one)
        refused |= one.failed
        now = [] if done else [how for how in combined(one) if how not in refused]
        done, share = share, 1 - share
    return Survey(models, refused, seen)


def _able(
    models: Mapping[Execution, Model], runtime: str
) -> tuple[dict[Execution, Runtime], dict[Execution, str]]:
    """A runtime of each that could execute a request; why not, of the others."""
    able: dict[Execution, Runtime] = {}
    failed: dict[Execution, str] = {}
    for execution, model in models.items():
        known = runtimes_of(model)
        try:
            running = make_runtime(runtime if runtime in known else next(iter(known)), model)
            _try(running, model)
            able[execution] = running
        except Exception as error:  # of PyTorch's, any
            failed[execution] = (str(error).strip() or type(error).__name__).splitlines()[0]
    return able, failed


def _try(runtime: Runtime, model: Model) -> None:
    """In a thread of its own, as workers do: what runtimes set is the thread's."""

    def run(_: int) -> None:
        inputs = model.example(8, np.random.default_rng(0))
        runtime.execute(runtime.prepare(inputs, Answer(model.outputs).empty(8)), 0, 8)

    on_cores([None], runtime.enter_thread, run)


def visit(
    runtime: Runtime,
    prepared: Sequence[Any],
    span: int,
    cores: Cores,
    batch_size: int,
    seconds: float,
) -> float:
    """Median seconds of a request on all `cores` side by side, of queries cut into as many as the
    mean one is; each worker has queries of its own."""
    slices = max(1, math.ceil(QUERY_ITEMS / batch_size))
    items = slices * batch_size

    def work(worker: int) -> list[float]:
        queries = prepared[worker :: len(cores)] or prepared
        times: list[float] = []
        until, turn = math.inf, 0
        while True:
            query = queries[turn % len(queries)]
            lo = (worker * span // len(cores) + turn * items) % (span - items + 1)
            began = time.perf_counter()
            if turn == 1:  # the first warms up
                until = began + seconds
            elif began >= until:
                return times
            runtime.forget(query)
            for at in range(lo, lo + items, batch_size):
                runtime.execute(query, at, at + batch_size)
            turn += 1
            if turn > 1:
                times.append((time.perf_counter() - began) / slices)

    return float(np.median(np.concatenate(on_cores(cores, runtime.enter_thread, work))))
