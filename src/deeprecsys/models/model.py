"""A loaded model, and how to load one.

Knows no queries, no policies and no runtimes: it holds the tensors, says what inputs look like,
and answers what the right scores are. torch is imported when a model is loaded, not before.
Runtimes, the engine and the command line call it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import (
    EXACT,
    SLA,
    Execution,
    Inputs,
    InputSpec,
    OutputSpec,
    UserError,
    Work,
    repeat_inputs,
    slice_inputs,
)
from deeprecsys.models.check import InputCheck
from deeprecsys.models.memory import available_bytes
from deeprecsys.models.spec import (
    DIENSpec,
    DINSpec,
    DLRMSpec,
    ModelSpec,
    NCFSpec,
    Rows,
    WideAndDeepSpec,
    row_bytes,
)
from deeprecsys.models.zoo import PAPER, get_spec

if TYPE_CHECKING:
    from torch import nn

    from deeprecsys.models.layers import Tables

# Beside tables and weights: activations, a run's inputs, the interpreter, and the table of 512 MB
# on which the random-row rate is measured.
HEADROOM_BYTES = 1_000_000_000
# Items the reference scores at a time: bounds its memory (DIN needs about 0.2 MB an item).
REFERENCE_CHUNK = 256

# (generator, rows, shape) -> ids: how popular rows are.
IndexLaw = Callable[[np.random.Generator, int, tuple[int, ...]], NDArray[Any]]


def load_model(
    name: str,
    *,
    scale: float = 1.0,
    seed: int = 0,
    variant: str = PAPER,
    check_memory: bool = True,
    query_inputs: bool = False,
    rows: Rows = "fp32",
) -> Model:
    """Builds a published model with weights from `seed`.

    scale: rows of every table become max(1, round(rows * scale)).
    query_inputs: what belongs to the user may come in one row for all candidates of a query;
        without, as in the paper, each candidate has a row of every input.
    rows: type of the tables' rows, which are never in memory as another.
    Raises UserError, before anything is allocated, for an unknown name or variant, a scale or
    seed out of range, `query_inputs` of a model without a user's, torch missing, or (with
    `check_memory`) too little free memory.
    """
    spec = get_spec(name, variant)
    spec.check_scale(scale)
    if query_inputs:
        spec.check_of_user()
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number of at least 0, not {seed!r}")
    if check_memory:
        _check_memory(spec, scale, rows)
    try:
        module = _build(spec, scale, seed, rows)
        return Model(spec, scale, seed, module, query_inputs, Execution(rows=rows))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError("models need torch: pip install 'deeprecsys[torch]'") from error


@dataclass(frozen=True, eq=False)
class Model:
    """A model with its weights. `module` maps the inputs, in the order of `inputs`, to scores.

    query_inputs: what belongs to the user is query-scoped. Such a model's module also has two
    parts: `user` maps those inputs, of one row each, to what all candidates share, and
    `candidates` maps that and the other inputs to scores, best `block` candidates at a time.
    execution: how `module` computes (`executions.executed` makes others of an exact one).
    """

    spec: ModelSpec
    scale: float
    seed: int
    module: nn.Module
    query_inputs: bool = False
    execution: Execution = EXACT

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def variant(self) -> str:
        return self.spec.variant

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        return self.spec.inputs(self.scale, self.query_inputs)

    @property
    def joined(self) -> tuple[str, ...]:
        """See `ModelSpec.joined`."""
        return self.spec.joined

    @property
    def tasks(self) -> int:
        """K."""
        return self.spec.tasks

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec("scores", "FP32", (self.tasks,)),)

    @property
    def whole(self) -> bool:
        """Candidates do not depend on each other."""
        return False

    @property
    def most_items(self) -> None:
        return None

    @property
    def target(self) -> SLA:
        """The published target."""
        return self.spec.target

    @property
    def table_bytes(self) -> int:
        return self.spec.table_bytes(self.scale, self.execution.rows)

    @property
    def memory_bytes(self) -> int:
        return self.spec.memory_bytes(self.scale, self.execution.rows)

    @property
    def tables(self) -> list[tuple[int, int]]:
        """Rows, and bytes of a row, of each."""
        size = row_bytes(self.spec.width, self.execution.rows)
        return [(t.scaled_rows(self.scale), size) for t in self.spec.tables]

    @property
    def parameters(self) -> int:
        return self.spec.parameters(self.scale)

    @cached_property
    def work(self) -> Work:
        """What one candidate asks for."""
        return self.spec.work(self.query_inputs, self.execution.rows)

    def example(
        self,
        n: int,
        rng: np.random.Generator,
        index_law: IndexLaw | None = None,
        users: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """Random inputs of n candidates: dense standard normal, ids uniform or by `index_law`.

        users: rows of the query-scoped inputs; several are a pool's, not a query's.
        """
        law = index_law or _uniform_ids
        return {
            spec.name: _example(spec, users if spec.scope == "query" else n, rng, law)
            for spec in self.inputs
        }

    def check(self, inputs: Inputs) -> int:
        """The number of candidates N; UserError if names, types, shapes or ids are wrong.

        An id beyond its table would silently read another table's row (see `layers.py`), so
        inputs from outside must pass here first.
        """
        return self._check(inputs)

    @cached_property
    def _check(self) -> InputCheck:
        return InputCheck(self.name, self.inputs)

    def reference(self, inputs: Inputs) -> NDArray[np.float32]:
        """Scores float32 [N, K] by the plain eager module: what every runtime must match.

        Of a row of every input a candidate, repeated where they share one.
        """
        import torch

        n = self.check(inputs)
        scores = np.empty((n, self.tasks), dtype=np.float32)
        with torch.inference_mode():
            for lo in range(0, n, REFERENCE_CHUNK):
                hi = min(lo + REFERENCE_CHUNK, n)
                rows = repeat_inputs(
                    self.inputs, slice_inputs(self.inputs, inputs, lo, hi), hi - lo
                )
                # torch warns of memory it may not write; a read-only slice is copied.
                arrays = [np.require(array, None, ["C", "W"]) for array in rows.values()]
                scores[lo:hi] = self.module([torch.from_numpy(a) for a in arrays]).numpy()
        return scores


def _uniform_ids(rng: np.random.Generator, rows: int, shape: tuple[int, ...]) -> NDArray[Any]:
    return rng.integers(0, rows, shape, dtype=np.int32)


def _example(spec: InputSpec, n: int, rng: np.random.Generator, law: IndexLaw) -> NDArray[Any]:
    shape = (n, *spec.shape)
    if spec.rows is None:
        return rng.standard_normal(shape, dtype=np.float32)
    return np.ascontiguousarray(law(rng, spec.rows, shape), dtype=np.int32)


def _check_memory(spec: ModelSpec, scale: float, rows: Rows) -> None:
    """UserError saying the need, what is free, and the largest scale that would fit."""
    need, free = spec.memory_bytes(scale, rows) + HEADROOM_BYTES, available_bytes()
    if need > free:
        gc.collect()  # a scripted model that nobody uses any more lies in a cycle
        free = available_bytes()
    if need <= free:
        return
    room = free - HEADROOM_BYTES - spec.weights() * 4
    fits = _floor_to_2_digits(room / spec.table_bytes(rows=rows))
    advice = f"the largest scale that fits is {fits:g}" if fits > 0 else "no scale fits"
    raise UserError(
        f"{spec.name} at scale {scale:g} needs {need / 1e9:.1f} GB of memory and "
        f"{free / 1e9:.1f} GB are free; {advice}"
    )


def _floor_to_2_digits(value: float) -> float:
    if value <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(value))
    return float(round(math.floor(value * 10.0**digits) * 10.0**-digits, max(digits, 0)))


def _build(spec: ModelSpec, scale: float, seed: int, kind: Rows) -> nn.Module:
    from deeprecsys.models.layers import Tables
    from deeprecsys.models.tables import new_tables

    rows = [table.scaled_rows(scale) for table in spec.tables]
    # Summed over the pooled rows, a uniform of this bound has unit variance.
    bound = math.sqrt(3 / spec.pooled)
    tables = Tables(spec, scale, new_tables(rows, spec.width, bound, seed, kind=kind))
    # The tables' generators are keyed by three numbers, this one by one: they never coincide.
    module = _architecture(spec, tables, np.random.default_rng(np.random.SeedSequence((seed,))))
    return module.eval().requires_grad_(False)


def _architecture(spec: ModelSpec, tables: Tables, rng: np.random.Generator) -> nn.Module:
    match spec:
        case NCFSpec():
            from deeprecsys.models.ncf import NCF

            return NCF(spec, tables, rng)
        case WideAndDeepSpec():
            from deeprecsys.models.wide_and_deep import WideAndDeep

            return WideAndDeep(spec, tables, rng)
        case DLRMSpec():
            from deeprecsys.models.dlrm import DLRM

            return DLRM(spec, tables, rng)
        case DINSpec():
            from deeprecsys.models.din import DIN

            return DIN(spec, tables, rng)
        case DIENSpec():
            from deeprecsys.models.dien import DIEN

            return DIEN(spec, tables, rng)
    raise TypeError(f"no architecture for {type(spec).__name__}")
