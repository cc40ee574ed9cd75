"""The accuracy guard: executions of a model held against its exact scores, on real queries.

Knows how to score; what the scores' distance means is `analysis/drift.py`'s, and how much is
allowed `analysis/accuracy.py`'s. A query is drawn once, scored in every execution by the runtime
that serves it, and forgotten: only scores are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.analysis import accuracy
from deeprecsys.analysis.drift import LEAST, Drift, drift
from deeprecsys.core import (
    EXACT,
    Answer,
    Execution,
    Inputs,
    UserError,
    repeat_inputs,
    slice_inputs,
)
from deeprecsys.engine.executions import made
from deeprecsys.engine.topology import usable_cores
from deeprecsys.runtimes import Runtime, make_runtime, runtimes_of
from deeprecsys.workload import Workload

_AT_A_TIME = 256  # candidates of a request
_IN_DOUBLE = 512  # candidates of which float64 scores are computed
_MOST = 10  # times the candidates that were asked for are taken of recorded queries
LABELS = "labels"  # in recorded queries

Scores = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Guarded:
    """An execution, and how far its scores are from the exact ones.

    seconds: spent on scoring it. why: why it could not be made or run; then there is no drift.
    """

    execution: Execution
    drift: Drift | None
    seconds: float
    why: str = ""

    def why_not(self, level: str) -> str:
        """Why it is not within this level of accuracy, in one line; "" where it is."""
        accuracy.check_accuracy(level)
        if self.drift is None:
            return self.why
        return accuracy.why_not(self.drift, level)

    def to_dict(self) -> dict[str, Any]:
        return {
            "execution": str(self.execution),
            "drift": self.drift.to_dict() if self.drift else None,
            "seconds": self.seconds,
            "why": self.why,
            "not_within": {level: self.why_not(level) for level in accuracy.LEVELS},
        }


def guard(
    model: Any, execution: Execution, workload: Workload, *, candidates: int = LEAST
) -> Guarded:
    """One execution of an exact model: see `guarded`. UserError where it cannot be made."""
    (found,) = guarded(model, [execution], workload, candidates=candidates)
    if found.drift is None:
        raise UserError(found.why)
    return found


def guarded(
    model: Any,
    executions: Sequence[Execution],
    workload: Workload,
    *,
    candidates: int = LEAST,
    models: Mapping[Execution, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Guarded]:
    """Each in their order, all of the same queries: recorded ones with labels where the model has
    them, else of the workload's sizes and indices, at least so many candidates in all.

    models: those executions that have been made already. What cannot be made or run is there with
    the reason. Raises UserError for a model that is not exact fp32, fewer than 10,000 candidates,
    and labels of one class only.
    """
    if not executions:
        return []
    if getattr(model, "execution", EXACT) != EXACT:
        raise UserError(
            f"the guard holds executions against exact fp32, and {model.name} was loaded as "
            f"{model.execution}"
        )
    ready = dict(models or {})
    more, refused = made(model, [e for e in executions if e not in ready])
    ready |= more
    runtimes, failed = _runtimes({EXACT: model, **{e: ready[e] for e in executions if e in ready}})
    if EXACT not in runtimes:
        raise UserError(f"{model.name} cannot be executed exactly: {failed[EXACT]}")
    refused |= failed
    queries = _queries(model, workload, candidates)
    scored = _Scored(model, runtimes, queries, stop)
    refused |= scored.failed
    own_error = _own_error(model, queries, scored.scores[EXACT])
    return [
        Guarded(e, None, 0.0, refused[e]) if e in refused else _held(e, scored, queries, own_error)
        for e in executions
    ]


def _held(execution: Execution, scored: _Scored, queries: _Queries, own_error: Any) -> Guarded:
    began = time.perf_counter()
    found = drift(scored.scores[EXACT], scored.scores[execution], queries.labels, own_error)
    seconds = scored.seconds[execution] + time.perf_counter() - began
    return Guarded(execution, found, seconds)


@dataclass(frozen=True, slots=True)
class _Queries:
    """`draw(i)`: the inputs of the i-th, the same every time."""

    draw: Callable[[int], Inputs]
    sizes: Sequence[int]
    labels: Sequence[NDArray[Any]] | None = None


def _queries(model: Any, workload: Workload, candidates: int) -> _Queries:
    if getattr(model, "recorded", None):
        return _recorded(model, candidates)
    sizes = workload.sample_sizes(candidates)  # of at least one candidate each
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), candidates)) + 1]

    def draw(number: int) -> Inputs:
        seed = np.random.SeedSequence(workload.seed, spawn_key=(_KEY, number))
        rng = np.random.Generator(np.random.SFC64(seed))
        return model.example(int(sizes[number]), rng, workload.index_law)  # type: ignore[no-any-return]

    return _Queries(draw, sizes.tolist())


_KEY = 0x9003


def _recorded(model: Any, candidates: int) -> _Queries:
    """Whole queries from the first on."""
    sizes = [model.check(query) for query in model.recorded]
    count = sum(before < _MOST * candidates for before in accumulate(sizes[:-1], initial=0))
    rows = model.samples.rows[:count]
    labels = None
    if all(row.get(LABELS) is not None for row in rows):
        labels = [np.asarray(row[LABELS]) for row in rows]
        for number, (label, size) in enumerate(zip(labels, sizes, strict=False), 1):
            if len(label) != size:
                raise UserError(
                    f"{model.samples.path} row {number} has {len(label)} labels of {size} "
                    "candidates"
                )
    return _Queries(lambda i: model.recorded[i], sizes[:count], labels)


def _runtimes(models: Mapping[Execution, Any]) -> tuple[dict[Execution, Runtime], dict[Any, str]]:
    able, failed = dict[Execution, Runtime](), dict[Execution, str]()
    for execution, model in models.items():
        try:
            able[execution] = make_runtime(next(iter(runtimes_of(model))), model)
        except Exception as error:  # of the model's library, any
            failed[execution] = _line(error)
    return able, failed


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Scored:
    """scores: of each query [n, K], by execution; seconds: that it took of all cores; failed: why
    an execution could not run."""

    def __init__(
        self,
        model: Any,
        runtimes: Mapping[Execution, Runtime],
        queries: _Queries,
        stop: Callable[[], bool],
    ) -> None:
        self.failed: dict[Execution, str] = {}
        self.seconds = dict.fromkeys(runtimes, 0.0)
        self._model, self._runtimes = model, runtimes
        self._answer, self._columns = Answer(model.outputs), _columns(model)
        self._threads = 1 if model.whole else len(usable_cores())

        def enter() -> None:
            for runtime in runtimes.values():
                runtime.enter_thread()

        def score(number: int) -> dict[Execution, Scores]:
            return {} if stop() else self._score(queries.draw(number))

        with ThreadPoolExecutor(self._threads, initializer=enter) as threads:
            found = list(threads.map(score, range(len(queries.sizes))))
        if not all(found):
            raise KeyboardInterrupt
        self.scores = {
            execution: [query[execution] for query in found]
            for execution in runtimes
            if execution not in self.failed
        }

    def _score(self, inputs: Inputs) -> dict[Execution, Scores]:
        """The query in every execution that has not failed yet; the exact one may not."""
        n, found = self._model.check(inputs), dict[Execution, Scores]()
        for execution, runtime in self._runtimes.items():
            if execution in self.failed:
                continue
            began = time.perf_counter()
            try:
                found[execution] = self._run(runtime, inputs, n)
                if not np.isfinite(found[execution]).all():
                    raise ArithmeticError("a score is infinite or not a number")
            except Exception as error:  # of the model's library, any
                if execution == EXACT:
                    raise
                self.failed[execution] = _line(error)
            self.seconds[execution] += (time.perf_counter() - began) / self._threads
        return found

    def _run(self, runtime: Runtime, inputs: Inputs, n: int) -> Scores:
        scores = self._answer.empty(n)
        prepared = runtime.prepare(inputs, scores)
        step = n if self._model.whole else _AT_A_TIME
        for lo in range(0, n, step):
            runtime.execute(prepared, lo, min(lo + step, n))
        return scores[:, self._columns]


def _columns(model: Any) -> slice:
    """Those of the score among all outputs."""
    at = 0
    for output in model.outputs:
        if output.name == getattr(model, "score", output.name):
            return slice(at, at + output.columns)
        at += output.columns
    raise ValueError(f"{model.name} has no score")


def _own_error(model: Any, queries: _Queries, exact: Sequence[Scores]) -> float | None:
    """Of the first candidates; None for models without a module that float64 can be told of."""
    module = getattr(model, "module", None)
    if module is None:
        return None
    import torch

    from deeprecsys.executions.double import Double

    double, left, largest = Double(module), _IN_DOUBLE, 0.0
    for number, size in enumerate(queries.sizes):
        if not left:
            break
        n = min(size, left)
        some = slice_inputs(model.inputs, queries.draw(number), 0, n)
        rows = repeat_inputs(model.inputs, some, n)
        for lo in range(0, n, _AT_A_TIME):
            hi = min(lo + _AT_A_TIME, n)
            part = slice_inputs(model.inputs, rows, lo, hi)
            true = double([torch.from_numpy(part[spec.name]) for spec in model.inputs])
            off = np.abs(exact[number][lo:hi] - true.numpy())
            largest = max(largest, float(off.max()))
        left -= n
    return largest


__all__ = ["Guarded", "guard", "guarded"]
