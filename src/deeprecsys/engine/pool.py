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
from deeprecsys.runtimes import Runtime
from deeprecsys.workload import parse_indices

CACHES = 10
_FIRST_ITEMS = 4096
_MOST_BYTES = 1 << 30
# Where candidates share their user's inputs: about a production query's median.
_ITEMS_A_USER = 64


@dataclass(frozen=True, slots=True, eq=False)
class InputPool:
    """`items` candidates' inputs; a query is a window of consecutive ones.

    shared: names of the query-scoped inputs. users: their rows, one of which goes with a window; 1
    where there are no such inputs. touched_bytes: distinct table rows plus the inputs themselves.
    """

    inputs: dict[str, NDArray[Any]]
    items: int
    shared: tuple[str, ...] = ()
    users: int = 1
    touched_bytes: int = 0
    every_row: bool = False

    def of_user(self, user: int) -> Inputs:
        """Views of every candidate, with this user's row of what they share."""
        return self.inputs | {name: self.inputs[name][user : user + 1] for name in self.shared}

    def window(self, offset: int, size: int) -> Inputs:
        """Views of `size` candidates from `offset`, of a user that the offset chooses.

        By Fibonacci hashing: by the remainder, queries of equal size would share few users.
        """
        end = offset + size
        rows = {name: column[offset:end] for name, column in self.inputs.items()}
        user = (offset * 0x9E3779B1 & 0xFFFFFFFF) * self.users >> 32
        for name in self.shared:
            rows[name] = self.inputs[name][user : user + 1]
        return rows

    def prepared(self, runtime: Runtime, tasks: int) -> list[Any]:
        """Every candidate as one query, of each user: to execute slices of."""
        scores = np.empty((self.items, tasks), np.float32)
        return [runtime.prepare(self.of_user(user), scores) for user in range(self.users)]

    def offsets(self, sizes: IntArray) -> IntArray:
        """Where each query of a schedule starts: consecutive windows, around and around."""
        starts = np.cumsum(sizes) - sizes
        return np.asarray(starts % max(1, self.items - int(sizes.max(initial=0))))

    def facts(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "users": self.users,
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
    chunks: list[InputPool] = []
    items = 0
    while True:
        chunks.append(draw(model, max(items, _FIRST_ITEMS, 2 * largest - items), rng, index_law))
        items += chunks[-1].items
        touched.add(chunks[-1].inputs)
        held = sum(column.nbytes for chunk in chunks for column in chunk.inputs.values())
        total = touched.bytes + held
        enough = total >= CACHES * cache_bytes or touched.every_row
        if enough or 2 * held > _MOST_BYTES:
            names = chunks[0].inputs
            columns = {name: np.concatenate([c.inputs[name] for c in chunks]) for name in names}
            shared = chunks[0].shared
            users = sum(chunk.users for chunk in chunks) if shared else 1
            return InputPool(columns, items, shared, users, total, touched.every_row)


def draw(model: Any, items: int, rng: np.random.Generator, index_law: Any = None) -> InputPool:
    """So many candidates, and users for them where they share theirs; what it touches, uncounted.

    At least two users: of one, there would be nobody else to be cold for.
    """
    shared = tuple(spec.name for spec in model.inputs if spec.scope == "query")
    if not shared:
        return InputPool(model.example(items, rng, index_law), items)
    users = max(2, items // _ITEMS_A_USER)
    inputs = model.example(items, rng, index_law, users=users)
    return InputPool(inputs, items, shared, users)
