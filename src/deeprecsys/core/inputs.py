"""What goes into a model and comes out of it, and how both are cut and joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core.values import Inputs

# Names of the Open Inference Protocol, and numpy's types. BYTES are objects.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{u}INT{bits}": np.dtype(f"<{u.lower() or 'i'}{bits // 8}")
       for u in ("U", "") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}  # fmt: skip
BYTES = "BYTES"
Bounds = Literal["starts", "offsets", "ends", "lengths"]
_OBJECT = np.dtype(object)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One named input of a model, without its leading dimension.

    datatype: Open Inference Protocol name, such as "FP32" or "INT64".
    shape: per row; `()` would be a scalar a row, `(512,)` a dense vector, `(80,)` 80 look-ups.
    scope: "candidate" (leading dimension N) or "query" (leading dimension 1, or N).
    rows: for an index input, the rows of its table: valid ids are low .. rows - 1, and `padding`,
        an id that stands for none.
    ragged: a candidate has any number of values, one after another: the leading dimension is that
        of all values, and the input of this name says where each candidate's are.
    bounds: how such an input says it: the "starts" [N], the "offsets" [N + 1] (starts, and the end
        of the last), the "ends" [N], or the "lengths" [N].
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    scope: Literal["candidate", "query"] = "candidate"
    ragged: str | None = None
    rows: int | None = None
    low: int = 0
    padding: int | None = None
    bounds: Bounds | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES.get(self.datatype, _OBJECT)

    @property
    def bytes_per_row(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One named output, without its leading dimension, which is the candidates'.

    shape: per candidate; `()` is an answer [N], `(1,)` one [N, 1].
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        return math.prod(self.shape)


class Answer:
    """How a query's outputs lie in one array: side by side, [N, columns].

    Of float32, which holds FP32, FP16 and integers of 16 bits exactly; else of float64, which
    holds FP64 and integers up to 2^53.
    """

    def __init__(self, outputs: Sequence[OutputSpec]) -> None:
        self.outputs = tuple(outputs)
        self.columns = sum(output.columns for output in outputs)
        self.dtype: Any = np.result_type(
            np.float32, *(DTYPES[output.datatype] for output in outputs)
        ).type

    def empty(self, n: int) -> NDArray[Any]:
        return np.empty((n, self.columns), self.dtype)

    def split(self, scores: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each output by its name, in its own type and shape; views wherever that is possible."""
        found, at = {}, 0
        for output in self.outputs:
            part = scores[:, at : at + output.columns].reshape(len(scores), *output.shape)
            found[output.name] = part.astype(DTYPES[output.datatype], copy=False)
            at += output.columns
        return found


def slice_inputs(specs: Sequence[InputSpec], inputs: Inputs, lo: int, hi: int) -> Inputs:
    """Views of candidates lo .. hi - 1; what all of them share, in one row, stays whole."""
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, NDArray[Any]] = {}
    for spec in specs:
        array = inputs[spec.name]
        counted = by_name[spec.ragged] if spec.ragged else spec
        if is_shared(counted, inputs):
            found[spec.name] = array
        elif spec.ragged:
            at = offsets(counted, inputs[counted.name], len(array))
            found[spec.name] = array[at[lo] : at[hi]]
        elif spec.bounds in (None, "lengths"):
            found[spec.name] = array[lo:hi]
        else:
            part = array[lo : hi + (spec.bounds == "offsets")]
            before = array[lo - 1] if spec.bounds == "ends" and lo else array[lo]
            found[spec.name] = part - before if lo else part
    return found


def repeat_inputs(specs: Sequence[InputSpec], inputs: Inputs, n: int) -> Inputs:
    """The same n candidates with a row each of every input; copies of what they shared."""
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, NDArray[Any]] = {}
    for spec in specs:
        array = inputs[spec.name]
        counted = by_name[spec.ragged] if spec.ragged else spec
        if n == 1 or not is_shared(counted, inputs):
            found[spec.name] = array
        elif spec.ragged:
            found[spec.name] = np.tile(array, (n, *[1] * (array.ndim - 1)))
        elif spec.bounds:
            values = next(inputs[s.name] for s in specs if s.ragged == spec.name)
            found[spec.name] = bounds_of(spec, np.full(n, len(values)))
        else:
            found[spec.name] = np.repeat(array, n, axis=0)
    return found


def join_inputs(
    specs: Sequence[InputSpec], queries: Sequence[Inputs], sizes: Sequence[int]
) -> Inputs:
    """The candidates of several queries as those of one, with a row each of every input."""
    parts = [repeat_inputs(specs, *pair) for pair in zip(queries, sizes, strict=True)]
    found = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in specs}
    for spec in specs:
        if spec.ragged:
            how = next(s for s in specs if s.name == spec.ragged)
            lengths = [np.diff(offsets(how, p[how.name], len(p[spec.name]))) for p in parts]
            found[how.name] = bounds_of(how, np.concatenate(lengths))
    return found


def is_shared(spec: InputSpec, inputs: Inputs) -> bool:
    """Do the candidates share one row of it? (Of one alone it is its own.)"""
    rows = len(inputs[spec.name]) - (spec.bounds == "offsets")
    return spec.scope == "query" and rows == 1


def offsets(spec: InputSpec, bounds: NDArray[Any], values: int) -> NDArray[np.int64]:
    """[N + 1] where each candidate's values begin, and where the last one's end."""
    if spec.bounds == "offsets":
        return bounds.astype(np.int64, copy=False)
    found = np.zeros(len(bounds) + 1, np.int64)
    if spec.bounds == "lengths":
        np.cumsum(bounds, out=found[1:])
    elif spec.bounds == "ends":
        found[1:] = bounds
    else:
        found[:-1], found[-1] = bounds, values
    return found


def bounds_of(spec: InputSpec, lengths: NDArray[Any]) -> NDArray[Any]:
    """The other way round: as this input says it."""
    ends = np.cumsum(lengths)
    said: NDArray[Any] = {
        "lengths": lengths,
        "ends": ends,
        "starts": ends - lengths,
        "offsets": np.concatenate([[0], ends]),
    }[spec.bounds or "lengths"]
    return said.astype(spec.dtype)
