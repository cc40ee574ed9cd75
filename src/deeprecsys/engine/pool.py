"""Inputs for a run: drawn once, from a pool too large to flatter the cache.

A run that looked the same few rows up again and again would measure the cache. The pool touches
at least ten times the last-level cache, or every row of every table; what it touches is
counted, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Inputs, IntArray
from deeprecsys.models.check import TouchedRows
from deeprecsys.workload import parse_indices

CACHES = 10
_FIRST_ITEMS = 4096
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class InputPool:
    """`items` candidates' inputs; a query is a window of consecutive ones.

    touched_bytes: distinct table rows plus the inputs themselves.
    """

    inputs: dict[str, NDArray[Any]]
    items: int
    touched_bytes: int
    every_row: bool

    def window(self, offset: int, size: int) -> Inputs:
        """Views of `size` candidates from `offset`."""
        end = offset + size
        return {name: column[offset:end] for name, column in self.inputs.items()}

    def offsets(self, sizes: IntArray) -> IntArray:
        """Where each query of a schedule starts: consecutive windows, around and around."""
        starts = np.cumsum(sizes) - sizes
        return np.asarray(starts % max(1, self.items - int(sizes.max(initial=0))))

    def facts(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "touched_bytes": self.touched_bytes,
            "every_row": self.every_row,
        }


def draw_pool(model: Any, law: str, largest: int, cache_bytes: int) -> InputPool:
    """Grows until it touches `CACHES * cache_bytes`, or every row, or holds 1 GiB of inputs.

    The same model seed and law give the same pool. `largest` is the largest query to be served.
    """
    index_law = parse_indices(law)
    rng = np.random.default_rng([model.seed, 0x9001])
    touched = TouchedRows(model.spec, model.scale)
    item_bytes = sum(spec.bytes_per_row for spec in model.inputs)
    chunks: list[Inputs] = []
    items = 0
    while True:
        chunks.append(model.example(max(items, _FIRST_ITEMS, 2 * largest - items), rng, index_law))
        items += len(chunks[-1][model.inputs[0].name])
        touched.add(chunks[-1])
        total = touched.bytes + items * item_bytes
        enough = total >= CACHES * cache_bytes or touched.every_row
        if enough or 2 * items * item_bytes > _MOST_BYTES:
            columns = {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
            return InputPool(columns, items, total, touched.every_row)
