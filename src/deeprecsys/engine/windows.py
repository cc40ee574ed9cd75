"""Inputs for runs of a user's own model: recorded queries, else rows by the declared laws.

Nobody knows what such a model looks up, so the pool is simply large: as many rows as fit its
bounds, of which a query is a window. Recorded queries lie one after another; a window of them is as
large as the schedule says, whatever theirs were, and has one of their users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Inputs, InputSpec, join_inputs, slice_inputs
from deeprecsys.engine.pool import Pool
from deeprecsys.workload import parse_indices

MOST_BYTES, MOST_ITEMS, MOST_USERS = 96 << 20, 1 << 19, 4096
_KEY = 0x9002


@dataclass(frozen=True, slots=True, eq=False)
class RowPool(Pool):
    """`rows`: of items + span candidates; `shared`: what each user has once."""

    specs: tuple[InputSpec, ...]
    rows: Mapping[str, NDArray[Any]]
    shared: tuple[Inputs, ...]
    items: int
    span: int
    users: int
    source: str

    def window(self, offset: int, size: int) -> Inputs:
        """`size` candidates from `offset`, of a user that the offset chooses."""
        if not self.shared:
            return slice_inputs(self.specs, self.rows, offset, offset + size)
        user = self.shared[self.user(offset)]
        return slice_inputs(self.specs, {**self.rows, **user}, offset, offset + size)

    @property
    def row_bytes(self) -> int:
        return sum(array.nbytes for array in self.rows.values()) // (self.items + self.span)

    def facts(self) -> dict[str, Any]:
        held = sum(array.nbytes for array in self.rows.values())
        return {"items": self.items, "users": self.users, "source": self.source, "held_bytes": held}


def draw_rows(model: Any, span: int, law: str) -> RowPool:
    """The same model, seed and law give the same pool."""
    if model.recorded:
        return _recorded(model, span)
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence((model.seed, _KEY))))
    index_law = parse_indices(law)
    probe = model.example(64, rng, index_law)
    row_bytes = max(1, sum(array.nbytes for array in probe.values()) // 64)
    items = max(span, min(MOST_ITEMS, MOST_BYTES // row_bytes) - span)
    of_user = {spec.name for spec in model.inputs if spec.scope == "query"}
    users = min(MOST_USERS, items) if of_user else 0
    every = [model.example(1, rng, index_law) for _ in range(users)]
    shared = tuple({name: one[name] for name in of_user} for one in every)
    drawn = model.example(items + span, rng, index_law)
    rows = {name: array for name, array in drawn.items() if name not in of_user}
    source = "drawn by the laws of model.toml, or as assumed"
    return RowPool(model.inputs, rows, shared, items, span, max(1, users), source)


def _recorded(model: Any, span: int) -> RowPool:
    """Their candidates one after another, and from the beginning again up to two windows."""
    specs, queries = model.inputs, model.recorded
    counted = model.check
    sizes = [counted(query) for query in queries]
    of_user = {spec.name for spec in specs if spec.scope == "query"}
    shared = tuple(
        {name: slice_inputs(specs, query, 0, 1)[name] for name in of_user}
        for query, n in zip(queries, sizes, strict=True) if n
    ) if of_user else ()  # fmt: skip
    own = [spec for spec in specs if spec.name not in of_user]
    chosen, lengths, total = list[Inputs](), list[int](), 0
    while total < sum(sizes) + span:
        for query, n in zip(queries, sizes, strict=True):
            if n:
                chosen.append({spec.name: query[spec.name] for spec in own})
                lengths.append(n)
                total += n
    rows = dict(join_inputs(own, chosen, lengths))
    source = f"{len(queries)} recorded queries of {model.samples.path}"
    return RowPool(specs, rows, shared, total - span, span, max(1, len(shared)), source)


__all__ = ["RowPool", "draw_rows"]
