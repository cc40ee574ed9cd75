"""Files of recorded queries: one a row, or a line, as arrays or lists by input.

`.npz` (an array an input), `.parquet` (a column an input) or `.jsonl` (`.gz`, too): an object of
inputs, or a body of the Open Inference Protocol as a server logs it. Whatever else lies beside the
inputs is passed on with them.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import UserError, load_columns
from deeprecsys.protocol import tensors

_LARGEST = float(1 << 63)
Query = Mapping[str, Any]  # input -> array, or lists, flat or nested


def read_rows(path: str) -> Iterator[Query]:
    """UserError, naming the row."""
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
    if single := [name for name, array in arrays.items() if array.ndim == 0]:
        raise UserError(f"{path}: {', '.join(single)} is one number, not an array of rows")
    size = arrays.pop("size", None)
    if size is None:
        yield from _by_row(path, arrays)
        return
    if size.dtype.kind not in "iu" or size.ndim != 1 or (size < 0).any():
        raise UserError(f"{path}: size is one whole number a query, of its candidates")
    ends = np.cumsum(size.astype(np.int64))
    starts = ends - size.astype(np.int64)
    for name, array in arrays.items():
        if len(array) not in (ends[-1:].sum(), len(size)):
            raise UserError(
                f"{path}: {name} has {len(array)} rows, but size says {len(size)} queries of "
                f"{ends[-1:].sum()} candidates; bags, of several values a candidate, are recorded "
                "as .jsonl or .parquet, a query a row"
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
    except KeyError as error:
        raise UserError(f"{where}: an input lacks its {error.args[0]}") from error
    except Exception as error:  # the decoder's, the protocol's
        raise UserError(f"{where}: {error!s}") from error


_READERS: Mapping[str, Callable[[str], Iterator[Query]]] = {
    "npz": _npz, "parquet": _parquet, "jsonl": _json_lines, "ndjson": _json_lines,
}  # fmt: skip


def dense(where: str, name: str, cell: Any) -> NDArray[Any]:
    """Of nested lists, or of arrays of arrays, as Parquet has them."""
    if isinstance(cell, np.ndarray) and cell.dtype != object:
        return cell
    try:
        array = np.array(_lists(cell))
    except ValueError:
        raise UserError(f"{where}: the rows of {name} are of different lengths") from None
    if array.dtype.kind == "f" and array.size and (np.abs(array) >= _LARGEST).any():
        return np.array(_lists(cell), object)  # of whole numbers of 64 bits numpy makes doubles
    return array.astype(object) if array.dtype.kind in "US" else array


def _lists(cell: Any) -> Any:
    if isinstance(cell, np.ndarray | list | tuple):
        return [_lists(one) for one in cell]
    return cell


__all__ = ["Query", "dense", "read_rows"]
