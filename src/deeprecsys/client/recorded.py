"""Queries as they were recorded, sent again in their order and with their own sizes.

Opens no socket. Whatever lies beside the inputs in a file (`protocol/recorded.py`) is passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.client.messages import Layout
from deeprecsys.client.server import Tensor
from deeprecsys.core import IntArray, UserError
from deeprecsys.protocol import tensors
from deeprecsys.protocol.recorded import Query, dense, read_rows


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """inputs: as they are sent. size: [n] candidates of each query. An offset is a query here."""

    inputs: tuple[Tensor, ...]
    size: IntArray
    layouts: tuple[Layout, ...]
    views: tuple[list[memoryview], ...]

    def __len__(self) -> int:
        return len(self.size)

    def layout(self, offset: int, size: int) -> Layout:
        return self.layouts[offset]

    def window(self, offset: int, size: int) -> list[memoryview]:
        return self.views[offset]

    def describe(self, path: str) -> str:
        return (
            f"{len(self)} recorded queries of {path}, {self.size.min()} to {self.size.max()} "
            "candidates each, in their order, again and again"
        )


def read_queries(
    path: str,
    inputs: Sequence[Tensor] = (),
    ragged: Collection[str] = (),
    offsets: Collection[str] = (),
) -> Recorded:
    """inputs: as the server knows them; none: those of the first query, as it has them.
    ragged: inputs whose rows are no candidates. offsets: those that have one row more than there
    are. UserError, naming the row."""
    queries = read_rows(path)
    first = next(queries, None)
    if first is None:
        raise UserError(f"{path} is empty: --queries-file needs at least one query")
    known = tuple(inputs) or tuple(_inferred(path, name, first[name]) for name in first)
    sizes, layouts, views = list[int](), list[Layout](), list[list[memoryview]]()
    for row, query in enumerate([first, *queries], 1):
        arrays = [_array(f"{path} row {row}", tensor, query) for tensor in known]
        data = [
            memoryview(tensors.to_bytes(array, tensor.datatype)).cast("B")
            for array, tensor in zip(arrays, known, strict=True)
        ]
        sizes.append(max((len(array) - (tensor.name in offsets)
                          for array, tensor in zip(arrays, known, strict=True)
                          if tensor.name not in ragged), default=0))  # fmt: skip
        layouts.append(Layout(tuple(array.shape for array in arrays), tuple(map(len, data))))
        views.append([view for view in data if len(view)])
    return Recorded(known, np.array(sizes, dtype=np.int64), tuple(layouts), tuple(views))


def _inferred(path: str, name: str, cell: Any) -> Tensor:
    """A list's numbers are INT64 or FP32; arrays say it themselves."""
    array = dense(f"{path} row 1", name, cell)
    try:
        kind = {"i": "INT64", "f": "FP32"}.get(array.dtype.kind) if isinstance(cell, list) else None
        datatype = kind or tensors.datatype_of(array)
    except KeyError:
        raise UserError(f"{path}: {name} is no input of a model, {array.dtype}") from None
    return Tensor(name, datatype, (-1, *array.shape[1:]) if array.ndim else (-1,))


def _array(where: str, tensor: Tensor, query: Query) -> NDArray[Any]:
    if query.get(tensor.name) is None:
        raise UserError(f"{where} has no input {tensor.name}; it has {', '.join(query) or 'none'}")
    array = dense(where, tensor.name, query[tensor.name])
    return _shaped(where, tensor, _typed(where, tensor, array))


def _typed(where: str, tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    """UserError where a value would become another one."""
    dtype = tensors.DTYPES.get(tensor.datatype)
    texts = array.dtype.kind == "O"
    if (tensor.datatype == tensors.BYTES) != texts and array.size:
        raise UserError(f"{where}: {tensor.name} is {tensor.datatype}, not {array.dtype}")
    if dtype is None or texts:  # BF16 is rounded as it is written
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        wrong = array.reshape(-1)[np.flatnonzero(cast.reshape(-1) != array.reshape(-1))[0]]
        raise UserError(f"{where}: {wrong!s} does not fit input {tensor.name}, {tensor.datatype}")
    return cast


def _shaped(where: str, tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    """As the input is, of which a flat list, or one row alone, says all but the shape."""
    said = tensor.shape or ()
    row = said[1:]
    if array.ndim == len(said) and all(
        want in (-1, got) for want, got in zip(row, array.shape[1:], strict=True)
    ):
        return array
    try:
        if row.count(-1) > 0 and array.size:  # which dimension is which?
            raise ValueError
        return (
            array.reshape(-1, *row) if array.size else array.reshape(0, *(max(n, 0) for n in row))
        )
    except ValueError:
        raise UserError(
            f"{where}: {tensor.name} has shape {list(array.shape)}, and the model's is {list(said)}"
        ) from None
