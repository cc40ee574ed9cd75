"""Are these the inputs of this model? As `models/check.py` asks of the published ones, for what
users' models have beside: any type, bags, rows of one number, values that may be missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Inputs, InputSpec, UserError, offsets


class OwnCheck:
    """`check(inputs)` answers the number of candidates N, or raises UserError in one line.

    most: candidates of a query (None: any). nan: a value may be missing. empty: a bag may be empty.
    """

    def __init__(
        self,
        model: str,
        specs: Sequence[InputSpec],
        *,
        least: int = 1,
        most: int | None = None,
        nan: bool = False,
        empty: bool = True,
    ) -> None:
        self._model, self._specs = model, specs
        self._names = {spec.name for spec in specs}
        self._by_name = {spec.name: spec for spec in specs}
        plain = [spec for spec in specs if spec.ragged is None]
        self._counted = next((s for s in plain if s.scope == "candidate"), plain[0])
        self._least, self._most, self._nan, self._empty = least, most, nan, empty

    def __call__(self, inputs: Inputs) -> int:
        if inputs.keys() != self._names:
            raise UserError(self._wrong_names(inputs))
        array = inputs[self._counted.name]
        n = max(0, len(array) - (self._counted.bounds == "offsets")) if array.ndim else 0
        if self._most is not None and n > self._most:
            raise UserError(
                f"a query of {self._model} has at most {self._most} candidates, not {n}"
            )
        if 0 < n < self._least:
            raise UserError(f"a query of {self._model} has at least {self._least} candidates")
        for spec in self._specs:
            array = inputs[spec.name]
            if array.dtype != spec.dtype or not _is_shape(spec, array, n):
                raise UserError(_wrong_shape(spec, array, n))
            if spec.dtype.kind == "f":
                if not self._nan and not np.isfinite(array).all():
                    at = tuple(np.argwhere(~np.isfinite(array))[0])
                    raise UserError(
                        f"input {spec.name} has {array[at]} in row {at[0] + 1}: its numbers must "
                        "be finite (values that are missing, nan, only rankers of trees take)"
                    )
            elif spec.dtype.kind == "O":
                _check_text(spec, array)
            elif spec.rows is not None and array.size:
                _check_ids(spec, array)
        for spec in self._specs:
            if spec.ragged:
                self._check_bag(spec, inputs)
        return n

    def _check_bag(self, spec: InputSpec, inputs: Inputs) -> None:
        assert spec.ragged is not None
        counting, values = self._by_name[spec.ragged], len(inputs[spec.name])
        at = offsets(counting, inputs[counting.name], values)
        if len(at) < 2 and values == 0:
            return
        lengths = np.diff(at)
        if at[0] != 0 or at[-1] != values or (lengths < 0).any():
            raise UserError(
                f"input {counting.name} does not say where the {values} values of {spec.name} are: "
                f"as {counting.bounds} they begin at 0, never go back, and end at {values}"
            )
        if not self._empty and (lengths == 0).any():
            raise UserError(f"input {spec.name} has an empty bag, which {self._model} cannot take")

    def _wrong_names(self, inputs: Inputs) -> str:
        if missing := sorted(self._names - inputs.keys()):
            return f"{self._model} lacks input {', '.join(missing)}"
        return f"{self._model} has no input {', '.join(sorted(inputs.keys() - self._names))}"


def _is_shape(spec: InputSpec, array: NDArray[Any], n: int) -> bool:
    if spec.ragged:
        return array.ndim == 1 + len(spec.shape) and array.shape[1:] == spec.shape
    rows = n + (spec.bounds == "offsets")
    shapes = [(rows, *spec.shape)]
    if spec.scope == "query":
        shapes.append((1 + (spec.bounds == "offsets"), *spec.shape))
    if array.shape in shapes:
        return True
    # A number a candidate, [N] or [N, 1]: models differ, and clients cannot know.
    single = spec.shape in ((), (1,)) and array.ndim in (1, 2) and array.shape[1:] in ((), (1,))
    return single and any(array.shape[0] == shape[0] for shape in shapes)


def _check_ids(spec: InputSpec, array: NDArray[Any]) -> None:
    assert spec.rows is not None
    if array.min() >= spec.low and array.max() < spec.rows:
        return
    wrong = (array < spec.low) | (array >= spec.rows)
    if spec.padding is not None:
        wrong &= array != spec.padding
    if wrong.any():
        raise UserError(
            f"input {spec.name} has id {array[wrong].flat[0]}; its ids are {spec.low} to "
            f"{spec.rows - 1}{'' if spec.padding is None else f', and {spec.padding} for none'}"
        )


def _check_text(spec: InputSpec, array: NDArray[Any]) -> None:
    """Which words are known the artifact's own vocabulary knows."""
    try:
        for item in array.flat:
            if isinstance(item, bytes):
                item.decode()
    except UnicodeDecodeError:
        raise UserError(f"input {spec.name} has text that is not UTF-8") from None


def _wrong_shape(spec: InputSpec, array: NDArray[Any], n: int) -> str:
    rows: Any = "any" if spec.ragged else n + (spec.bounds == "offsets")
    one = f" or {[1, *spec.shape]}" if spec.scope == "query" and n != 1 and not spec.ragged else ""
    return (
        f"input {spec.name} must be {spec.datatype} [{', '.join(map(str, (rows, *spec.shape)))}]"
        f"{one}, not {array.dtype} {list(array.shape)}"
    )


__all__ = ["OwnCheck"]
