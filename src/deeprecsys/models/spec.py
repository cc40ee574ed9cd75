"""What a model is made of, as plain data: tables, inputs, layer widths, and the work they imply.

Knows no torch and allocates nothing; the numbers themselves are in `zoo.py`. The modules are
built from these values, the memory check and the `models` listing only read them.

Symbols: N candidates, D dense width, L look-ups, E embedding width, T behaviours, K tasks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from deeprecsys.core import SLA, InputSpec, UserError, Work

FLOAT_BYTES = 4
INT32_MAX = 2**31 - 1
# Types that embedding rows are kept in (see `row_types.py`).
Rows = Literal["fp32", "fp16", "int8"]
# Of a row of int8, after its numbers: its scale and its offset.
ROW_TAIL_BYTES = 8


def row_bytes(width: int, rows: Rows) -> int:
    """Of one row of `width` numbers."""
    return {"fp32": 4 * width, "fp16": 2 * width, "int8": width + ROW_TAIL_BYTES}[rows]


@dataclass(frozen=True, slots=True)
class Table:
    """One embedding table, [rows, E]; the width E belongs to the whole model."""

    name: str
    rows: int

    def scaled_rows(self, scale: float) -> int:
        return max(1, round(self.rows * scale))


@dataclass(frozen=True, slots=True)
class Feature:
    """One index input, [N, L]: its ids address every one of `tables` (all of equal rows)."""

    name: str
    tables: tuple[str, ...]
    lookups: int = 1


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map with bias, applied `times` per candidate."""

    fan_in: int
    fan_out: int
    times: int = 1

    @property
    def parameters(self) -> int:
        return (self.fan_in + 1) * self.fan_out

    @property
    def flops(self) -> int:
        """A multiplication and an addition a weight; the bias is the accumulator's start."""
        return 2 * self.fan_in * self.fan_out * self.times


def chain(*widths: int) -> tuple[Linear, ...]:
    """The linear maps of an MLP: `chain(512, 1024, 1)` is 512 -> 1024 -> 1."""
    return tuple(Linear(a, b) for a, b in pairwise(widths))


@dataclass(frozen=True, kw_only=True)
class ModelSpec(ABC):
    """A model without its weights. One subclass an architecture adds what is particular to it.

    width: E. dense: D, 0 where there is no dense input. target: the published tail target.
    of_user: the inputs that say something of the user and nothing of a candidate.
    sources: (what, where the number is from) for every number, assumptions marked as such.
    """

    name: str
    variant: str
    target: SLA
    width: int
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    dense: int = 0
    of_user: tuple[str, ...] = ()
    operators: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]

    def inputs(self, scale: float = 1.0, query_inputs: bool = False) -> tuple[InputSpec, ...]:
        """Dense first, then the features in order; `query_inputs`: the user's query-scoped."""
        dense = (InputSpec("dense", "FP32", (self.dense,)),) if self.dense else ()
        every = dense + tuple(
            InputSpec(f.name, "INT32", (f.lookups,), rows=self.rows_of(f, scale))
            for f in self.features
        )
        shared = self.of_user if query_inputs else ()
        return tuple(replace(s, scope="query") if s.name in shared else s for s in every)

    @property
    def joined(self) -> tuple[str, ...]:
        """Inputs of one id each, last in the order, that the module also takes as one [N, A]."""
        return ()

    def rows_of(self, feature: Feature, scale: float) -> int:
        """Valid ids of this feature are 0 .. rows - 1."""
        return self.table(feature.tables[0]).scaled_rows(scale)

    def table(self, name: str) -> Table:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Table]:
        return {table.name: table for table in self.tables}

    def feature(self, name: str) -> Feature:
        return next(f for f in self.features if f.name == name)

    @property
    def tasks(self) -> int:
        """K, the scores a candidate gets."""
        return 1

    @property
    def pooled(self) -> int:
        """How many rows are summed into one feature vector."""
        return 1

    @property
    def lookups(self) -> int:
        """Rows read per candidate."""
        return sum(f.lookups * len(f.tables) for f in self.features)

    @property
    @abstractmethod
    def linears(self) -> tuple[Linear, ...]:
        """Every linear map of the model."""

    @property
    def user_linears(self) -> tuple[Linear, ...]:
        """Those of them that read nothing but the user's inputs."""
        return ()

    @property
    def other_flops(self) -> int:
        """Arithmetic per candidate outside the linear maps, the element-wise functions left out."""
        return 0

    @property
    def other_parameters(self) -> int:
        """Parameters outside tables and linear maps."""
        return 0

    def weights(self) -> int:
        """Parameters outside the tables."""
        return sum(layer.parameters for layer in self.linears) + self.other_parameters

    def parameters(self, scale: float = 1.0) -> int:
        return self.weights() + self.table_bytes(scale) // FLOAT_BYTES

    def table_bytes(self, scale: float = 1.0, rows: Rows = "fp32") -> int:
        return sum(t.scaled_rows(scale) for t in self.tables) * row_bytes(self.width, rows)

    def memory_bytes(self, scale: float = 1.0, rows: Rows = "fp32") -> int:
        """Tables and weights."""
        return self.table_bytes(scale, rows) + self.weights() * FLOAT_BYTES

    def work(self, query_inputs: bool = False, rows: Rows = "fp32") -> Work:
        """What one candidate asks for; it does not depend on how many rows the tables have.

        query_inputs: less what is done once for all candidates of a request.
        """
        shared = self.of_user if query_inputs else ()
        flops = sum(layer.flops for layer in self.linears) + self.other_flops
        if query_inputs:
            flops -= sum(layer.flops for layer in self.user_linears)
        lookups = self.lookups - sum(
            f.lookups * len(f.tables) for f in self.features if f.name in shared
        )
        return Work(
            flops=float(flops),
            lookups=float(lookups),
            table_bytes=float(lookups * row_bytes(self.width, rows)),
            input_bytes=float(sum(s.bytes_per_row for s in self.inputs() if s.name not in shared)),
        )

    def bytes_per_query(self, size: int, query_inputs: bool = False) -> float:
        """Table rows and inputs that a query of `size` candidates reads, as one request."""
        each, every = self.work(query_inputs), self.work()
        once = every.table_bytes + every.input_bytes - each.table_bytes - each.input_bytes
        return size * (each.table_bytes + each.input_bytes) + once

    def check_scale(self, scale: float) -> None:
        """UserError unless the scale is positive, finite and leaves rows that INT32 ids reach."""
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
            raise UserError(f"scale must be a positive number, not {scale!r}")
        largest = max(t.rows for t in self.tables)
        if largest * scale > INT32_MAX:
            raise UserError(
                f"scale {scale:g} gives {self.name} a table of more than {INT32_MAX} rows, which "
                f"INT32 ids cannot address; the largest scale is {INT32_MAX / largest:.3g}"
            )

    def check_of_user(self) -> None:
        """UserError unless some inputs belong to the user."""
        if not self.of_user:
            raise UserError(
                f"{self.name} has no inputs that belong to the user alone: leave query inputs out"
            )

    def _lookups_of(self, names: Iterable[str]) -> int:
        return sum(len(self.feature(name).tables) for name in names)


@dataclass(frozen=True, kw_only=True)
class NCFSpec(ModelSpec):
    """NeuMF: a factorisation branch and an MLP branch over embeddings of user and item.

    mlp: widths of the MLP branch after its input. predict: widths after both are concatenated.
    """

    mlp: tuple[int, ...]
    predict: tuple[int, ...] = (1,)

    @property
    def linears(self) -> tuple[Linear, ...]:
        fused = self.width + self.mlp[-1]
        return chain(2 * self.width, *self.mlp) + chain(fused, *self.predict)

    @property
    def other_flops(self) -> int:
        return self.width  # the element-wise product


@dataclass(frozen=True, kw_only=True)
class WideAndDeepSpec(ModelSpec):
    """Dense inputs and embeddings, concatenated, into an MLP; several tasks share its beginning.

    shared: widths all tasks share. tower: widths each task has for itself, its output last.
    wide: whether a linear map of the dense inputs joins the deep part's output.
    """

    shared: tuple[int, ...]
    tower: tuple[int, ...]
    towers: int = 1
    wide: bool = False

    @property
    def joined(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @property
    def tasks(self) -> int:
        return self.towers

    @property
    def deep_in(self) -> int:
        """Width of the concatenation, D + tables * E."""
        return self.dense + len(self.tables) * self.width

    @property
    def linears(self) -> tuple[Linear, ...]:
        shared = (self.deep_in, *self.shared)
        wide = (Linear(self.dense, 1),) if self.wide else ()
        return wide + chain(*shared) + chain(shared[-1], *self.tower) * self.towers


@dataclass(frozen=True, kw_only=True)
class DLRMSpec(ModelSpec):
    """Bottom MLP, sum-pooled bags, an interaction of all these vectors, top MLP.

    bottom: widths after the dense input. interaction: "dot" (pairwise, then concatenated with
    the bottom's output) or "cat".
    """

    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: str = "dot"

    @property
    def pooled(self) -> int:
        return self.features[0].lookups

    @property
    def vectors(self) -> int:
        """F: the bottom's output and one vector a table."""
        return 1 + len(self.tables)

    @property
    def pairs(self) -> int:
        """Entries strictly below the diagonal of the F x F matrix of dot products."""
        return self.vectors * (self.vectors - 1) // 2

    @property
    def top_in(self) -> int:
        if self.interaction == "cat":
            return self.bottom[-1] + len(self.tables) * self.width
        return self.bottom[-1] + self.pairs

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.user_linears + chain(self.top_in, *self.top)

    @property
    def user_linears(self) -> tuple[Linear, ...]:
        return chain(self.dense, *self.bottom)

    @property
    def other_flops(self) -> int:
        """Additions of the pooling; the dot products, computed as the full F x F matrix."""
        pooling = (self.lookups - len(self.tables)) * self.width
        dots = 2 * self.vectors**2 * self.width if self.interaction == "dot" else 0
        return pooling + dots


@dataclass(frozen=True, kw_only=True)
class InterestSpec(ModelSpec):
    """What DIN and DIEN share: behaviours, a candidate, other features, and an MLP to 2 classes.

    behaviours: features of one event, side by side, [N, T] each; or, with `table_a_step`, one
        feature a step, [N, 1] each.
    candidate: the candidate's features, embedded as wide as one event.
    others: user and context features, those of the user first.
    """

    behaviours: tuple[str, ...]
    candidate: tuple[str, ...]
    others: tuple[str, ...]
    top: tuple[int, ...]
    table_a_step: bool = False

    @property
    def steps(self) -> int:
        """T."""
        return (
            len(self.behaviours) if self.table_a_step else self.feature(self.behaviours[0]).lookups
        )

    @property
    def event_width(self) -> int:
        """Width of one behaviour, and of the candidate: E times its features."""
        return len(self.candidate) * self.width

    @property
    def single_width(self) -> int:
        """Width of candidate and other features together."""
        return (len(self.candidate) + len(self.others)) * self.width


@dataclass(frozen=True, kw_only=True)
class DINSpec(InterestSpec):
    """attention: hidden width of the local activation unit."""

    attention: int

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (
            Linear(self.attention, 1, times=self.steps),
            *chain(self.event_width + self.single_width, *self.top),
        )

    @property
    def other_flops(self) -> int:
        """Activation unit's first layer as it is computed (see `din.py`), then the pooling."""
        once = 2 * self.event_width * self.attention  # of the candidate; and folding it in
        return 2 * once + self.steps * once + 2 * self.steps * self.event_width

    @property
    def other_parameters(self) -> int:
        slopes = len(self.top)  # one PReLU in the unit, one after each hidden layer of the top
        return (4 * self.event_width + 1) * self.attention + slopes


@dataclass(frozen=True, kw_only=True)
class DIENSpec(InterestSpec):
    """hidden: state width of both recurrent layers."""

    hidden: int

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.user_linears + chain(self.hidden + self.single_width, *self.top)

    @property
    def user_linears(self) -> tuple[Linear, ...]:
        gates, steps = 3 * self.hidden, self.steps
        return (
            Linear(self.event_width, gates, steps),  # GRU, input and state
            Linear(self.hidden, gates, steps),
            Linear(self.hidden, gates, steps),  # AUGRU, input
        )

    @property
    def other_flops(self) -> int:
        """AUGRU's state (no bias of its own), W e_a once, h_t . (W e_a) a step."""
        state = 2 * self.hidden * 3 * self.hidden * self.steps
        return state + 2 * self.event_width * self.hidden + 2 * self.hidden * self.steps

    @property
    def other_parameters(self) -> int:
        slopes = len(self.top) - 1
        return 3 * self.hidden**2 + self.event_width * self.hidden + slopes
