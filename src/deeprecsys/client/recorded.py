"""Queries as they were recorded, sent again in their order and with their own sizes.

Reads files, opens no socket. One query a row, or a line: of `.npz` (an array an input), `.parquet`
(a column an input) or `.jsonl` (`.gz`, too): an object of inputs, or a body of the Open Inference
Protocol as a server logs it. Whatever else lies beside the inputs is passed over.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys.client.messages import Layout
from deeprecsys.client.server import Tensor
from deeprecsys.core import IntArray, UserError, load_columns
from deeprecsys.protocol import tensors

Query = Mapping[str, Any]  # input -> array, or lists, flat or nested


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
    path: str, inputs: Sequence[Tensor] = (), ragged: Collection[str] = ()
) -> Recorded:
    """inputs: as the server knows them; none: those of the first query, as it has them.
    ragged: inputs whose rows are no candidates. UserError, naming the row."""
    queries = _read(path)
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
        sizes.append(max((len(array) for array, tensor in zip(arrays, known, strict=True)
                          if tensor.name not in ragged), default=0))  # fmt: skip
        layouts.append(Layout(tuple(array.shape for array in arrays), tuple(map(len, data))))
        views.append([view for view in data if len(view)])
    return Recorded(known, np.array(sizes, dtype=np.int64), tuple(layouts), tuple(views))


def _read(path: str) -> Iterator[Query]:
    name = Path(path).name.lower().removesuffix(".gz")
    reader = _READERS.get(name.rpartition(".")[2])
    if reader is None:
        raise UserError(f"cannot read {path}: recorded queries are .npz, .parquet or .jsonl")
    if not Path(path).is_file():
        raise UserError(f"no file {path}")
    return reader(path)


def _npz(path: str) -> Iterator[Query]:
    """An array an input, whose rows are queries; or, with an array `size`, whose rows are all the
    queries' candidates one after another (or queries, for what belongs to the user)."""
    arrays = load_columns(path)
    size = arrays.pop("size", None)
    if size is None:
        yield from _by_row(path, arrays)
        return
    ends = np.cumsum(np.asarray(size, dtype=np.int64))
    starts = ends - size
    for name, array in arrays.items():
        if len(array) not in (ends[-1:].sum(), len(size)):
            raise UserError(
                f"{path}: {name} has {len(array)} rows, but size says {len(size)} queries of "
                f"{ends[-1:].sum()} candidates"
            )
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        whole = {name: len(array) == ends[-1] for name, array in arrays.items()}
        yield {name: array[start:end] if whole[name] else array[i : i + 1]
               for name, array in arrays.items()}  # fmt: skip


def _parquet(path: str) -> Iterator[Query]:
    yield from _by_row(path, load_columns(path))


def _by_row(path: str, columns: Mapping[str, NDArray[Any]]) -> Iterator[Query]:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(
            f"{path}: a row is a query, but the inputs have different numbers of them ({lengths}); "
            "where a row is a candidate, add an array size, of each query's candidates"
        )
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _json_lines(path: str) -> Iterator[Query]:
    opened: Any = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as lines:
            for row, line in enumerate(lines, 1):
                if line.strip():
                    yield _of_json(f"{path} row {row}", line)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from error


def _of_json(where: str, line: bytes) -> Query:
    try:
        found = msgspec.json.decode(line)
        if not isinstance(found, dict):
            raise UserError(f"{where}: write an object of inputs a line")
        if not isinstance(found.get("inputs"), list):
            return found
        return {
            str(said["name"]): tensors.from_json(
                said["name"], said["datatype"], said["shape"], msgspec.json.encode(said["data"])
            )
            for said in found["inputs"]
        }
    except UserError:
        raise
    except Exception as error:  # the decoder's, the protocol's
        raise UserError(f"{where}: {error!s}") from error


_READERS: Mapping[str, Callable[[str], Iterator[Query]]] = {
    "npz": _npz, "parquet": _parquet, "jsonl": _json_lines, "ndjson": _json_lines,
}  # fmt: skip


def _inferred(path: str, name: str, cell: Any) -> Tensor:
    """A list's numbers are INT64 or FP32; arrays say it themselves."""
    array = _dense(f"{path} row 1", name, cell)
    try:
        kind = {"i": "INT64", "f": "FP32"}.get(array.dtype.kind) if isinstance(cell, list) else None
        datatype = kind or tensors.datatype_of(array)
    except KeyError:
        raise UserError(f"{path}: {name} is no input of a model, {array.dtype}") from None
    return Tensor(name, datatype, (-1, *array.shape[1:]) if array.ndim else (-1,))


def _array(where: str, tensor: Tensor, query: Query) -> NDArray[Any]:
    if query.get(tensor.name) is None:
        raise UserError(f"{where} has no input {tensor.name}; it has {', '.join(query) or 'none'}")
    array = _dense(where, tensor.name, query[tensor.name])
    return _shaped(where, tensor, _typed(where, tensor, array))


def _dense(where: str, name: str, cell: Any) -> NDArray[Any]:
    """Of nested lists, or of arrays of arrays, as Parquet has them."""
    if isinstance(cell, np.ndarray) and cell.dtype != object:
        return cell
    try:
        array = np.array(_lists(cell))
    except ValueError:
        raise UserError(f"{where}: the rows of {name} are of different lengths") from None
    return array.astype(object) if array.dtype.kind in "US" else array


def _lists(cell: Any) -> Any:
    if isinstance(cell, np.ndarray | list | tuple):
        return [_lists(one) for one in cell]
    return cell


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
