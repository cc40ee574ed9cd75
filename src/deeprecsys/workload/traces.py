"""Recorded traces, in the forms in which people have them, as one: seconds, sizes, models.

Knows files and columns, and no law. Columns are `arrival_s` and `size`, and `model` where there
are several; instead of seconds a trace may hold date-times, as `arrival_s`, `timestamp`, `time`
or `date`. A number under another name than `arrival_s` could be milliseconds as well, and is
refused. Called by `arrivals.replay`.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, IntArray, UserError, load_columns
from deeprecsys.workload.options import aggregated
from deeprecsys.workload.sizes import MAX_SIZE

# Seconds since 1970 rather than since the start of the trace: nobody replays three idle years.
_LOOKS_LIKE_A_DATE_S = 1e8
_DATES = ("timestamp", "time", "date", "datetime")
_NUMBER = re.compile(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", re.IGNORECASE)
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """arrival_s: [n] sorted, from 0 or later; None where the file says only the order.
    size: [n]. model: [n] names, or None."""

    arrival_s: FloatArray | None
    size: IntArray
    model: NDArray[Any] | None = None


def read_trace(path: str) -> Trace:
    """Of CSV, JSON lines (either also `.gz`), Parquet or NPZ; or of the three columns `from, to,
    size` that MLPerf's reference writes for its queries, which say no times.

    Raises UserError, naming the row, for times that are no numbers, negative or unsorted, and for
    sizes that are not whole or not positive.
    """
    columns = _columns(path)
    if "from,to,size" in columns:
        size = columns["from,to,size"].astype(np.float64)
        _check_sizes(path, size)
        return Trace(None, size.astype(np.int64))
    arrival, size = _seconds(path, columns), _numeric(path, "size", _named(path, columns, "size"))
    if not len(arrival):
        raise UserError(f"{path} is empty: a trace needs at least one query")
    _check_times(path, arrival)
    _check_sizes(path, size)
    return Trace(arrival, size.astype(np.int64), columns.get("model"))


def _columns(path: str) -> Columns:
    """By name, in small letters and without blanks around."""
    source = Path(path)
    reader = _READERS.get(source.name.lower().removesuffix(".gz").rpartition(".")[2])
    if not source.is_file():
        raise UserError(f"no file {path or '(a path is needed after the colon)'}")
    if reader is None:
        kinds = ", ".join(f".{kind}" for kind in (*_READERS, "parquet", "npz"))
        found = load_columns(path) if source.suffix in (".parquet", ".npz") else None
        if found is None:
            raise UserError(f"cannot read {path} as a trace: name it by its kind, {kinds}")
        return {name.strip().lower(): column for name, column in found.items()}
    try:
        raw = source.read_bytes()
        text = gzip.decompress(raw) if source.suffix.lower() == ".gz" else raw
        return {name.strip().lower(): column for name, column in reader(path, text).items()}
    except UserError:
        raise
    except Exception as error:  # the reader's own words, of which the first line says it
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _csv(path: str, text: bytes) -> Columns:
    import pyarrow.csv

    first = text.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode()
    parted_by = next((mark for mark in ",;\t" if mark in first), ",")
    if first.strip() and all(map(_NUMBER.fullmatch, first.split(parted_by))):
        return _without_header(path, text, parted_by)
    options = pyarrow.csv.ParseOptions(delimiter=parted_by)
    table = pyarrow.csv.read_csv(io.BytesIO(text), parse_options=options)
    return {name: table[name].to_numpy() for name in table.column_names}


def _without_header(path: str, text: bytes, parted_by: str) -> Columns:
    table = np.loadtxt(io.BytesIO(text), delimiter=parted_by, ndmin=2)
    size = aggregated(table)
    if size is None:
        raise UserError(f"{path} has no header: write arrival_s,size as its first line")
    return {"from,to,size": size}


def _json_lines(path: str, text: bytes) -> Columns:
    import pyarrow.json

    if text.lstrip().startswith(b"["):
        raise UserError(f"{path} is one JSON array: write an object a line, as `jq -c '.[]'` does")
    table = pyarrow.json.read_json(io.BytesIO(text))
    return {name: table[name].to_numpy() for name in table.column_names}


_READERS: dict[str, Callable[[str, bytes], Columns]] = {
    "csv": _csv, "tsv": _csv, "txt": _csv,
    "jsonl": _json_lines, "ndjson": _json_lines, "json": _json_lines,
}  # fmt: skip


def _seconds(path: str, columns: Columns) -> FloatArray:
    """From the start of the trace."""
    if "arrival_s" in columns:
        found = _dates(columns["arrival_s"])
        return _numeric(path, "arrival_s", columns["arrival_s"]) if found is None else found
    for name in _DATES:
        if name in columns:
            if (found := _dates(columns[name])) is not None:
                return found
            if columns[name].dtype.kind in "iuf":
                raise UserError(
                    f"{path} has no column arrival_s, and {name} holds numbers: "
                    "if they are seconds from the start of the trace, call it arrival_s"
                )
            _numeric(path, name, columns[name])  # says what is there instead
    return _named(path, columns, "arrival_s")


def _named(path: str, columns: Columns, name: str) -> NDArray[Any]:
    if name in columns:
        return columns[name]
    missing = [name for name in ("arrival_s", "size") if name not in columns]
    raise UserError(
        f"{path} has no column {' and no '.join(missing)}: "
        f"a trace needs arrival_s,size, this has {','.join(columns)}"
    )


def _dates(column: NDArray[Any]) -> FloatArray | None:
    """Seconds from the first one; NaN where there is none; None for what is no date-time."""
    if column.dtype.kind == "O":
        try:
            dates = [datetime.fromisoformat(str(value).strip()) for value in column]
            return np.array([(date - dates[0]).total_seconds() for date in dates])
        except (ValueError, TypeError):
            return None
    if column.dtype.kind != "M" or not len(column):
        return None
    since = (column - column[0]).astype("timedelta64[ns]")
    return np.where(np.isnat(since), np.nan, since.astype(np.int64) / 1e9)


def _numeric(path: str, name: str, column: NDArray[Any]) -> FloatArray:
    if column.dtype.kind in "iuf":
        return column.astype(np.float64)
    wanted = "numbers or date-times (2026-11-26T13:00:00.5Z)" if name != "size" else "numbers"
    example = f" such as {column[0]!r}" if len(column) else ""
    raise UserError(f"{path}: column {name} must hold {wanted}, not {column.dtype}{example}")


def _check_times(path: str, arrival: FloatArray) -> None:
    _refuse(path, ~np.isfinite(arrival), arrival, "arrival_s must be 0 s or later")
    _refuse(path, arrival[:1] < 0, arrival, "arrival_s must be 0 s or later")
    falls = np.diff(arrival, prepend=0.0) < 0
    _refuse(path, falls, arrival, "arrival_s must not precede the row before (sort by time)")
    dated = arrival[:1] > _LOOKS_LIKE_A_DATE_S
    _refuse(path, dated, arrival,
            "arrival_s counts from the start of the trace (subtract the first time)")  # fmt: skip


def _check_sizes(path: str, size: FloatArray) -> None:
    wrong = ~((size >= 1) & (size <= MAX_SIZE) & (size == np.floor(size)))
    _refuse(path, wrong, size, f"size must be a whole number of 1 to {MAX_SIZE}")


def _refuse(path: str, wrong: NDArray[np.bool_], values: FloatArray, rule: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{path} row {row + 1}: {rule}, not {values[row]:.10g}")
