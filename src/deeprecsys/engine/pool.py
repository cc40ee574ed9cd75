"""Inputs for a run: drawn once, from a pool too large to flatter the cache.

A run that looked the same few rows up again and again would measure the cache. What matters is how
many table rows the pool touches, and drawing that many ids for every table would take longer than
many a run. So tables of equally many rows share one strip of ids, each from another place on: each
table sees ids by the law, and none sees what its neighbour does at the same time. What the strips
touch is counted, not assumed.

Bounds: `MOST_IDS` ids (100 MB) and `DENSE_FLOATS` dense values (17 MB), beside what one window
takes; a second or two, on any machine. Dense values are few because a server's are new: they
come from the cache, where whoever received the query has just put them.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Answer, Inputs, IntArray, OutputSpec, Servable
from deeprecsys.engine.topology import usable_cores
from deeprecsys.runtimes import Runtime
from deeprecsys.workload import IndexLaw, parse_indices

CACHES = 10  # what the rows touched should exceed the last-level cache by
MOST_IDS = 24 << 20
DENSE_FLOATS = 4 << 20
# More draws than this for a row, and what is still untouched hardly ever will be.
_MOST_A_ROW = 16
_LEAST_SPAN = 2048
# Drawn as one, with a generator of its own.
_CHUNK = 1 << 16
_KEY = 0x9001
# Of what a runtime may copy on preparing the pool.
_PREPARED_BYTES = 1 << 27
_MOST_PREPARED = 4096
_KEPT = 2  # pools that a process keeps

Values = NDArray[Any]


class Column(NamedTuple):
    """An input's part of a pool: `rows` [period + span, ..] of its strip, begun at `start`."""

    name: str
    rows: NDArray[Any]
    period: int
    start: int
    shared: bool


class Pool(ABC):
    """Inputs of `items` candidates; a query is a window of at most `span` consecutive ones, of one
    of `users`. Two kinds: `InputPool`, and of users' own models `windows.RowPool`."""

    __slots__ = ()
    items: int
    span: int
    users: int

    @abstractmethod
    def window(self, offset: int, size: int) -> Inputs:
        """Views of `size` candidates from `offset`, of a user that the offset chooses."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """What a runtime may copy of a candidate."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What summaries say of it."""

    def user(self, offset: int) -> int:
        """By Fibonacci hashing: by the remainder, queries of equal size would share few users."""
        return (offset * 0x9E3779B1 & 0xFFFFFFFF) * self.users >> 32

    def prepared(self, runtime: Runtime, outputs: Sequence[OutputSpec]) -> list[Any]:
        """Queries of `span` candidates each, from all over the pool: to execute slices of."""
        scores = Answer(outputs).empty(self.span)
        room = _PREPARED_BYTES // max(1, self.span * self.row_bytes)
        wanted = max(self.items // self.span, self.users)
        count = max(2, min(wanted, room, _MOST_PREPARED))
        offsets = (k * self.items // count for k in range(count))
        return [runtime.prepare(self.window(at, self.span), scores) for at in offsets]

    def offsets(self, sizes: IntArray) -> IntArray:
        """Where each query of a schedule starts: consecutive windows, around and around."""
        return np.asarray((np.cumsum(sizes) - sizes) % self.items)


@dataclass(frozen=True, slots=True, eq=False)
class InputPool(Pool):
    """`items` candidates' inputs; a query is a window of at most `span` consecutive ones.

    users: rows of the query-scoped inputs, one of which goes with a window; 1 where there are no
    such inputs. touched_bytes: of distinct table rows, in one round of the pool; cache_bytes: of
    the cache that it should exceed. held_bytes: its own memory.
    """

    columns: tuple[Column, ...]
    items: int
    span: int
    users: int
    touched_bytes: int
    cache_bytes: int
    held_bytes: int
    every_row: bool

    def window(self, offset: int, size: int) -> Inputs:
        user = self.user(offset)
        found: dict[str, NDArray[Any]] = {}
        for name, rows, period, start, shared in self.columns:
            if shared:
                lo = (start + user) % period
                found[name] = rows[lo : lo + 1]
            else:
                lo = (start + offset) % period
                found[name] = rows[lo : lo + size]
        return found

    @property
    def row_bytes(self) -> int:
        """Inputs of one id each are joined into one (`runtimes/eager.py`)."""
        return sum(column.rows[0].nbytes for column in self.columns if column.rows[0].size == 1)

    def facts(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "users": self.users,
            "touched_bytes": self.touched_bytes,
            "cache_bytes": self.cache_bytes,
            "held_bytes": self.held_bytes,
            "every_row": self.every_row,
        }


def draw_pool(model: Servable, law: str, largest: int, cache_bytes: int) -> Pool:
    """Touches `CACHES * cache_bytes` of rows, or every row, or what the bounds above allow.

    `largest` is the largest query to be served. The same inputs, model seed and law give the same
    pool: the very same to all engines of a process.
    """
    span = max(_LEAST_SPAN, 1 << (2 * largest - 1).bit_length())
    said = tuple(getattr(model, name, None) for name in ("path", "variant", "scale", "seed"))
    key = (model.name, *said, model.inputs, law, span, cache_bytes)
    with _lock:
        if key not in _pools:
            while len(_pools) >= _KEPT:
                del _pools[next(iter(_pools))]
            _pools[key] = draw(model, span, law, cache_bytes)
        return _pools[key]


_pools: dict[Any, Pool] = {}
_lock = threading.Lock()


def draw(model: Any, span: int, law: str, cache_bytes: int = 0) -> Pool:
    """The same, not kept; without a cache as little as two windows need."""
    if model.tables is None:
        from deeprecsys.engine.windows import draw_rows

        return draw_rows(model, span, law)
    strips = {rows: _Strip(rows, span, model) for rows in {spec.rows for spec in model.inputs}}
    every = list(strips.values())

    def touched_bytes() -> int:
        return sum(strips[rows].distinct * size for rows, size in model.tables if rows in strips)

    for draws_a_row in _steps(every):
        for strip in every:
            strip.lengthen(draws_a_row)
        _draw(every, model.seed, parse_indices(law))
        if touched_bytes() >= CACHES * cache_bytes:
            break
    columns = tuple(column for strip in every for column in strip.columns())
    return InputPool(
        columns,
        items=max((column.period for column in columns if not column.shared), default=1),
        span=span,
        users=max((column.period for column in columns if column.shared), default=1),
        touched_bytes=touched_bytes(),
        cache_bytes=cache_bytes,
        held_bytes=sum(strip.values.nbytes for strip in every),
        every_row=all(strip.distinct == strip.rows for strip in every if strip.rows),
    )


class _Strip:
    """Ids of tables of so many rows, or dense values (rows 0), which their inputs share."""

    def __init__(self, rows: int | None, span: int, model: Any) -> None:
        self.rows, self._span = rows or 0, span
        self._inputs = [spec for spec in model.inputs if spec.rows == rows]
        self._window = span * max(math.prod(spec.shape) for spec in self._inputs)
        self._wanted = 2 * self._window if rows else max(self._window, DENSE_FLOATS)
        self._chunks: list[Values] = []
        self._seen = np.zeros(self.rows, bool)

    @property
    def distinct(self) -> int:
        return int(np.count_nonzero(self._seen))

    def lengthen(self, draws_a_row: float) -> None:
        self._wanted = max(self._wanted, int(draws_a_row * self.rows))

    def missing(self) -> range:
        """Chunks that are to be drawn."""
        return range(len(self._chunks), -(-self._wanted // _CHUNK))

    def draw(self, key: tuple[int, ...], law: IndexLaw) -> Values:
        """A chunk, in any thread."""
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
        if not self.rows:
            return rng.standard_normal(_CHUNK, np.float32)
        return np.asarray(law(rng, self.rows, (_CHUNK,)), np.int32)

    def add(self, chunk: Values) -> None:
        self._chunks.append(chunk)
        if self.rows:
            self._seen[chunk] = True

    @cached_property
    def values(self) -> Values:
        """All of them, and the beginning once more, so that every window is one view."""
        return np.concatenate([*self._chunks, *self._chunks[: -(-self._window // _CHUNK)]])

    def columns(self) -> Iterator[Column]:
        """Of its inputs: each begins where the others do not."""
        drawn = _CHUNK * len(self._chunks)
        for number, spec in enumerate(self._inputs):
            row = math.prod(spec.shape)
            period = drawn // row
            rows = self.values[: (period + self._span) * row].reshape(-1, *spec.shape)
            start = number * period // len(self._inputs)
            yield Column(spec.name, rows, period, start, spec.scope == "query")


def _steps(strips: Sequence[_Strip]) -> list[float]:
    """Ids drawn for each row of a table: doubled, to `_MOST_A_ROW` or `MOST_IDS` in all."""
    most = min(_MOST_A_ROW, MOST_IDS / max(1, sum(strip.rows for strip in strips)))
    return [0.0, *(most / 2**halved for halved in range(5, -1, -1))]


def _draw(strips: Sequence[_Strip], seed: int, law: IndexLaw) -> None:
    """What they lack. A chunk's values are by its key, so it does not matter who draws it."""
    with ThreadPoolExecutor(len(usable_cores())) as threads:
        jobs = [
            (strip, threads.submit(strip.draw, (seed, _KEY, strip.rows, chunk), law))
            for strip in strips
            for chunk in strip.missing()
        ]
        for strip, job in jobs:
            strip.add(job.result())
