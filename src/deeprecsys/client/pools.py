"""A pool of drawn candidates that queries are cut from.

Pure: no sockets, no clock. A query is a window of consecutive candidates of the pool, so that its
body is views of what is there already; only where values end (`Column.counts`) is counted anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.client.messages import Layout
from deeprecsys.core import IntArray, UserError
from deeprecsys.protocol import tensors
from deeprecsys.workload import parse_indices

# A pool is as large as this if that gives some thousand candidates, and at most four times as
# large; ids of 64 MiB look up gigabytes of table rows, far more than a cache holds.
_POOL_BYTES, _MOST_BYTES, _FIRST_ITEMS = 64 << 20, 256 << 20, 4096
_LARGEST_QUERY_BYTES = 1 << 30
_STREAM = 0x9001


@dataclass(frozen=True, slots=True)
class Column:
    """One input as it is sent.

    shape: of one row. rows: sent with every query; None: one a candidate.
    ragged: the input that says how many rows each candidate has; None: one.
    counts: how it says so for others ("lengths", "ends", "starts", or "offsets": these and the
    end); None: it does not.
    law: "ids" (0 .. b - 1, by the schedule's index law), "uniform" (a to b) or "normal" (mean a,
    deviation b).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    rows: int | None
    law: str
    a: float
    b: float
    ragged: str | None = None
    counts: str | None = None

    @property
    def row_bytes(self) -> int:
        size = tensors.item_bytes(self.datatype)
        return math.prod(self.shape) * (4 + self._digits if size is None else size)

    @property
    def _digits(self) -> int:
        return len(str(int(self.b) - 1))

    def rows_of(self, size: int) -> int:
        candidates = size if self.rows is None else self.rows
        return candidates + (self.counts == "offsets")

    @property
    def mean(self) -> float:
        """Of its values, about."""
        return {"ids": self.b / 2, "uniform": (self.a + self.b) / 2}.get(self.law, self.a)

    def draw(self, rng: np.random.Generator, items: int, index_law: Any) -> NDArray[np.uint8]:
        """[items * row_bytes] bytes, as they travel."""
        shape = (items, *self.shape)
        if self.datatype == tensors.BYTES:
            return _texts(index_law(rng, int(self.b), shape), self._digits)
        return self.travelling(self.values(rng, shape, index_law))

    def travelling(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if values.dtype.kind == "f" and not is_float(self.datatype):
            values = np.rint(values)
        return np.frombuffer(tensors.to_bytes(values, self.datatype), np.uint8)

    def values(
        self, rng: np.random.Generator, shape: tuple[int, ...], index_law: Any
    ) -> NDArray[Any]:
        return np.asarray(self._values(rng, shape, index_law))

    def _values(self, rng: np.random.Generator, shape: tuple[int, ...], index_law: Any) -> Any:
        if self.law == "ids":
            return index_law(rng, int(self.b), shape)
        if self.law == "normal":
            return rng.normal(self.a, self.b, shape)
        if is_float(self.datatype):
            return rng.uniform(self.a, self.b, shape)
        return rng.integers(int(self.a), int(self.b), shape, endpoint=True)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """`items` candidates' values of each column, as bytes.

    bounds: of each input that counts for others, [items + 1]: where each candidate's values begin,
    and the last one's end.
    """

    data: tuple[memoryview, ...]
    columns: tuple[Column, ...]
    items: int
    bounds: Mapping[str, IntArray]
    _layouts: dict[int, Layout] = field(default_factory=dict)  # by size, where nothing is ragged
    _plain: list[tuple[memoryview, int, int | None]] = field(init=False)

    def __post_init__(self) -> None:
        plain = [
            (data, c.row_bytes, c.rows) for data, c in zip(self.data, self.columns, strict=True)
        ]
        object.__setattr__(self, "_plain", plain)

    def window(self, offset: int, size: int) -> list[memoryview]:
        """The tensors of `size` candidates from `offset`, without those that are empty."""
        if self.bounds:
            views = [self._tensor(i, offset, size) for i in range(len(self.columns))]
            return [view for view in views if len(view)]
        views = []
        for data, width, rows in self._plain:  # every query passes here: no calls in it
            if length := (size if rows is None else rows) * width:
                start = offset * width
                views.append(data[start : start + length])
        return views

    def layout(self, offset: int, size: int) -> Layout:
        if self.bounds:
            return self._laid_out(offset, size)
        found = self._layouts.get(size)
        if found is None:
            found = self._layouts[size] = self._laid_out(offset, size)
        return found

    def _laid_out(self, offset: int, size: int) -> Layout:
        spans = [self._span(column, offset, column.rows_of(size)) for column in self.columns]
        rows = [until - start for start, until in spans]
        shapes = ((n, *column.shape) for n, column in zip(rows, self.columns, strict=True))
        lengths = (n * column.row_bytes for n, column in zip(rows, self.columns, strict=True))
        return Layout(tuple(shapes), tuple(lengths))

    def _span(self, column: Column, offset: int, rows: int) -> tuple[int, int]:
        """Which rows of the column's data are those of `rows` candidates from `offset`."""
        if column.ragged is None:
            return offset, offset + rows
        bounds = self.bounds[column.ragged]
        return int(bounds[offset]), int(bounds[offset + rows])

    def _tensor(self, i: int, offset: int, size: int) -> memoryview:
        column = self.columns[i]
        rows = column.rows_of(size)
        if column.counts in ("ends", "starts", "offsets"):
            bounds = self.bounds[column.name]
            first = offset + (column.counts == "ends")
            return column.travelling(bounds[first : first + rows] - bounds[offset]).data
        start, until = self._span(column, offset, rows)
        return self.data[i][start * column.row_bytes : until * column.row_bytes]


def pool_items(columns: Sequence[Column], largest: int) -> int:
    """How many candidates a pool holds for queries of up to `largest`."""
    width = max(1, _candidate_bytes(columns))
    if largest * width > _LARGEST_QUERY_BYTES:
        raise UserError(
            f"a query of {largest} candidates is {largest * width / 1e9:.1f} GB of inputs: "
            "ask for smaller --sizes"
        )
    wanted = max(_FIRST_ITEMS, 2 * largest, _POOL_BYTES // width)
    fixed = max((column.rows or 0 for column in columns), default=0)
    return max(largest, fixed, min(wanted, _MOST_BYTES // width))


def offsets(sizes: IntArray, columns: Sequence[Column], items: int) -> IntArray:
    """Where each query starts in a pool: consecutive windows, around and around."""
    starts = np.cumsum(sizes) - sizes
    fixed = max((column.rows or 0 for column in columns), default=0)
    return np.asarray(starts % max(1, items - max(int(sizes.max(initial=0)), fixed)))


def draw_pool(columns: tuple[Column, ...], items: int, law: str, seed: int) -> Pool:
    """The same seed, law and number of items give the same pool, in any process."""
    index_law = parse_indices(law)

    def generator(i: int) -> np.random.Generator:
        return np.random.default_rng([seed, _STREAM, i])

    bounds: dict[str, IntArray] = {}
    for i, column in enumerate(columns):
        if column.counts:  # the same numbers as below
            drawn = column.values(generator(i), (items,), index_law)
            bounds[column.name] = np.append(0, np.cumsum(np.rint(drawn).astype(np.int64)))
    data = [
        column.draw(generator(i), items if column.ragged is None
                    else int(bounds[column.ragged][-1]), index_law)
        for i, column in enumerate(columns)
    ]  # fmt: skip
    return Pool(tuple(one.data for one in data), columns, items, bounds)


def is_float(datatype: str) -> bool:
    return datatype.startswith("FP") or datatype == tensors.BF16


def _candidate_bytes(columns: Sequence[Column]) -> int:
    """About."""
    counts = {column.name: column.mean for column in columns}
    return math.ceil(sum(c.row_bytes * (counts[c.ragged] if c.ragged else 1.0) for c in columns))


def _texts(ids: NDArray[Any], digits: int) -> NDArray[np.uint8]:
    """BYTES elements of equal length, so that a window of them is contiguous: `00001234`."""
    powers = 10 ** np.arange(digits - 1, -1, -1)
    out = np.empty((ids.size, 4 + digits), np.uint8)
    out[:, :4] = np.frombuffer(np.array([digits], "<u4").tobytes(), np.uint8)
    out[:, 4:] = (ids.reshape(-1, 1) // powers) % 10 + ord("0")
    return out.reshape(-1)
