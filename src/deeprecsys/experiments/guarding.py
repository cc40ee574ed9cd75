"""The guard: executions held against exact fp32 on real queries of the workload.

Scores by the plain modules, chunk by chunk; what a runtime makes of them differs in the last place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.analysis.drift import LEAST_CANDIDATES, Drift, drift
from deeprecsys.core import Execution, Inputs, UserError
from deeprecsys.workload import Workload

# Of float64, which only says how large fp32's own error is.
_IN_FLOAT64 = 2_000
_SEED = 1_000_003  # beside the workload's: other queries than those that calibrate and time


@dataclass(frozen=True, slots=True)
class Guarded:
    """drift: None where the execution cannot be made; why says so then."""

    execution: Execution
    drift: Drift | None
    why: str = ""


def guard(
    model: Any, execution: Execution, workload: Workload, candidates: int = LEAST_CANDIDATES
) -> Guarded:
    """One execution; see `guarded`."""
    return guarded(model, [execution], workload, candidates)[0]


def guarded(
    model: Any,
    executions: Sequence[Execution],
    workload: Workload,
    candidates: int = LEAST_CANDIDATES,
) -> list[Guarded]:
    """Each against the model as it is, exact, on queries of at least so many candidates.

    Queries of the workload's sizes and look-ups; where the model has recorded ones, those, with
    their labels.
    """
    from deeprecsys.executions import executed, in_float64

    if not executions:
        return []
    queries, labels = _queries(model, workload, candidates)
    exact = [model.reference(query) for query in queries]
    own_error = _own_error(in_float64(model), queries, exact)
    found = []
    for execution in executions:
        try:
            other = executed(model, execution)
        except UserError as error:
            found.append(Guarded(execution, None, str(error)))
            continue
        scores = [other.reference(query) for query in queries]
        found.append(Guarded(execution, drift(exact, scores, labels, own_error)))
    return found


def _queries(
    model: Any, workload: Workload, candidates: int
) -> tuple[list[Inputs], list[NDArray[Any]] | None]:
    """And the labels of each candidate, where there are any."""
    rng = np.random.default_rng([workload.seed, _SEED])
    sizes = _sizes(workload, candidates)
    return [model.example(size, rng, workload.index_law) for size in sizes], None


def _sizes(workload: Workload, candidates: int) -> Iterator[int]:
    """Of queries, until there are so many candidates."""
    total = 0
    for size in workload.reseed(workload.seed + _SEED).sample_sizes(candidates).tolist():
        if total >= candidates:
            return
        if size:
            total += size
            yield int(size)


def _own_error(
    precise: Any, queries: Sequence[Inputs], exact: Sequence[NDArray[Any]]
) -> float | None:
    """Largest error of the exact scores, of the first queries."""
    if precise is None:
        return None
    worst, seen = 0.0, 0
    for query, scores in zip(queries, exact, strict=True):
        if seen >= _IN_FLOAT64:
            break
        worst = max(worst, float(np.abs(precise.reference(query) - scores).max()))
        seen += len(scores)
    return worst
