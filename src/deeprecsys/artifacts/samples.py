"""Recorded queries beside a model: its inputs as they really come.

Knows files and arrays; `derived.py` reads types and shapes off them, the engine's pool plays them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Inputs, InputSpec, UserError
from deeprecsys.protocol.recorded import Query, dense, read_rows

NAMES = ("samples.npz", "samples.parquet", "samples.jsonl", "samples.jsonl.gz")
# Queries that are kept: enough for their look-ups not to come from the cache, few enough to hold.
MOST, MOST_BYTES = 20_000, 256 << 20
_EXACT = float(1 << 53)  # up to which doubles hold whole numbers


@dataclass(frozen=True, slots=True)
class Samples:
    """rows: a recorded query each, as the file has them; labels and scores among them."""

    path: Path
    rows: tuple[Query, ...]

    def has(self, name: str) -> bool:
        return self.rows[0].get(name) is not None

    def names(self) -> list[str]:
        return list(self.rows[0])

    def first(self, name: str) -> NDArray[Any]:
        return dense(f"{self.path} row 1", name, self.rows[0][name])

    def queries(self, specs: Sequence[InputSpec]) -> list[Inputs]:
        """Each as a client would send it: in the model's own types."""
        found: list[Inputs] = []
        held = 0
        for number, row in enumerate(self.rows, 1):
            where = f"{self.path} row {number}"
            query = {spec.name: _typed(where, spec, row) for spec in specs}
            held += sum(array.nbytes for array in query.values())
            found.append(query)
            if held > MOST_BYTES:
                break
        return found


def find_samples(folder: Path) -> Path | None:
    """UserError where there are several."""
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder} has {', '.join(p.name for p in found)}: keep one of them")
    return found[0] if found else None


def read_samples(path: Path) -> Samples:
    rows = tuple(islice(read_rows(str(path)), MOST))
    if not rows:
        raise UserError(f"{path} is empty: it needs at least one recorded query")
    return Samples(path, rows)


def _typed(where: str, spec: InputSpec, row: Mapping[str, Any]) -> NDArray[Any]:
    if row.get(spec.name) is None:
        raise UserError(f"{where} has no input {spec.name}; it has {', '.join(row) or 'none'}")
    array = dense(where, spec.name, row[spec.name])
    typed = _fitting(f"{where}: input {spec.name}", spec, array)
    try:
        return typed.reshape(-1, *spec.shape) if typed.ndim != 1 + len(spec.shape) else typed
    except ValueError:
        raise UserError(
            f"{where}: {spec.name} has shape {list(array.shape)}, a row of it {list(spec.shape)}"
        ) from None


def _fitting(where: str, spec: InputSpec, array: NDArray[Any]) -> NDArray[Any]:
    """In the input's own type; UserError, with the value, where that is another number."""
    if spec.dtype.kind in "iu" and array.dtype.kind == "f":
        rounded = array[np.abs(array) >= _EXACT]
        if rounded.size:
            raise UserError(
                f"{where}: {rounded[0]:.17g} was recorded as a floating number, which does not "
                "hold every whole one from 2^53 on: record whole numbers"
            )
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            typed = array.astype(spec.dtype)
    except (TypeError, ValueError, OverflowError):
        wrong = next((value for value in array.flat if not _is_of(spec, value)), array.flat[0])
        raise UserError(f"{where}: {wrong!r} is no {spec.datatype}") from None
    if spec.dtype.kind in "iub" and not np.array_equal(typed, array):
        value = array[typed != array].flat[0]
        raise UserError(f"{where}: {value} does not fit {spec.datatype}")
    return typed


def _is_of(spec: InputSpec, value: Any) -> bool:
    try:
        np.array([value], object).astype(spec.dtype)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


__all__ = ["Samples", "find_samples", "read_samples"]
