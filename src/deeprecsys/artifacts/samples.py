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
    with np.errstate(invalid="ignore", over="ignore"):
        typed = array.astype(spec.dtype)
    if spec.dtype.kind in "iub" and not np.array_equal(typed, array):
        raise UserError(f"{where}: a value of {spec.name} does not fit {spec.datatype}")
    try:
        return typed.reshape(-1, *spec.shape) if typed.ndim != 1 + len(spec.shape) else typed
    except ValueError:
        raise UserError(
            f"{where}: {spec.name} has shape {list(array.shape)}, a row of it {list(spec.shape)}"
        ) from None


__all__ = ["Samples", "find_samples", "read_samples"]
