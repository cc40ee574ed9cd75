"""What is asked of a system, and what became of it: `Schedule`, `Records`, `Requests`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core.columns import load_columns, save_columns
from deeprecsys.core.values import FloatArray, IntArray, UserError

# Meta's published reuse of embedding rows, crudely (see `workload/indices.py`).
DEFAULT_INDICES = "zipf:0.92"


class Status(IntEnum):
    """What became of a query. Only `OK` has a finish; all others count as over the target."""

    OK = 0
    FAILED = 1
    EXPIRED = 2
    REJECTED = 3
    CANCELLED = 4
    PENDING = 5  # only in the partial records that a `Watch` sees


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """When queries arrive and how large they are: `arrival_s` [n] sorted, `size` [n].

    indices: the law of the table look-ups, for systems that execute a model.
    """

    arrival_s: FloatArray
    size: IntArray
    indices: str = DEFAULT_INDICES

    def __post_init__(self) -> None:
        arrival = np.ascontiguousarray(self.arrival_s, dtype=np.float64)
        size = np.ascontiguousarray(self.size, dtype=np.int64)
        object.__setattr__(self, "arrival_s", arrival)
        object.__setattr__(self, "size", size)
        if arrival.shape != size.shape or arrival.ndim != 1:
            raise UserError("a schedule needs as many arrivals as sizes")
        if arrival.size and not (arrival[0] >= 0 and np.isfinite(arrival).all()):
            raise UserError("arrival times must be finite and not negative")
        if (np.diff(arrival) < 0).any():
            raise UserError("arrival times must be sorted")
        if (size < 0).any():
            raise UserError("query sizes must not be negative")

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def duration_s(self) -> float:
        """Time of the last arrival; 0 for an empty schedule."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    def save(self, path: str | Path) -> None:
        """CSV or Parquet, by suffix, with columns `arrival_s,size` (what `replay:` reads)."""
        save_columns(path, {"arrival_s": self.arrival_s, "size": self.size})


RECORD_COLUMNS: dict[str, Any] = {
    "arrival_s": np.float64,
    "start_s": np.float64,
    "finish_s": np.float64,
    "size": np.int64,
    "device": np.int16,
    "worker": np.int32,
    "status": np.int8,
    "submit_s": np.float64,
}


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """One row a query, in order of arrival; every column is [n].

    arrival_s: scheduled arrival. start_s: when its first request began (NaN if none did).
    finish_s: end of its last request (NaN unless the status is OK).
    device: 0 the CPU cores, 1.. accelerators. worker: who finished it (-1: nobody).
    submit_s: when the generator handed it over; its lateness is `submit_s - arrival_s`.
    """

    arrival_s: FloatArray
    start_s: FloatArray
    finish_s: FloatArray
    size: IntArray
    device: NDArray[np.int16]
    worker: NDArray[np.int32]
    status: NDArray[np.int8]
    submit_s: FloatArray

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Any missing column but `arrival_s`, `finish_s` and `size` gets its neutral value."""
        n = len(columns["arrival_s"])
        neutral = {
            "start_s": columns["arrival_s"],
            "device": np.zeros(n),
            "worker": np.full(n, -1),
            "status": np.where(np.isnan(columns["finish_s"]), Status.FAILED, Status.OK),
            "submit_s": columns["arrival_s"],
        }
        merged = {**neutral, **columns}
        return cls(**{k: np.asarray(merged[k], dtype=t) for k, t in RECORD_COLUMNS.items()})

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Records:
        return Records(**{name: getattr(self, name)[rows] for name in RECORD_COLUMNS})

    @property
    def latency_s(self) -> FloatArray:
        """Finish minus *scheduled* arrival; NaN where there is no answer."""
        return self.finish_s - self.arrival_s

    @property
    def lag_s(self) -> FloatArray:
        """How late the generator handed each query over."""
        return self.submit_s - self.arrival_s

    def save(self, path: str | Path) -> None:
        """Parquet, NPZ or CSV, by suffix."""
        save_columns(path, {name: getattr(self, name) for name in RECORD_COLUMNS})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls.from_columns(load_columns(path))


REQUEST_COLUMNS: dict[str, Any] = {
    "query": np.int64,
    "lo": np.int64,
    "hi": np.int64,
    "worker": np.int32,
    "start_s": np.float64,
    "finish_s": np.float64,
}


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """One row a request that was executed, in order of finish; every column is [m].

    query: its row in the run's `Records`. lo, hi: items lo .. hi - 1 of it. Times as there.
    """

    query: IntArray
    lo: IntArray
    hi: IntArray
    worker: NDArray[np.int32]
    start_s: FloatArray
    finish_s: FloatArray

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        return cls(**{k: np.asarray(columns[k], dtype=t) for k, t in REQUEST_COLUMNS.items()})

    def __len__(self) -> int:
        return int(self.query.size)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Requests:
        return Requests(**{name: getattr(self, name)[rows] for name in REQUEST_COLUMNS})

    def of(self, kept: NDArray[np.bool_]) -> Requests:
        """Those of the queries that `kept` [n] keeps, numbered as in `records[kept]`."""
        mine = self[kept[self.query]]
        return replace(mine, query=(np.cumsum(kept) - 1)[mine.query])

    def save(self, path: str | Path) -> None:
        """Parquet, NPZ or CSV, by suffix."""
        save_columns(path, {name: getattr(self, name) for name in REQUEST_COLUMNS})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        return cls.from_columns(load_columns(path))
