"""The vocabulary: plain values that every layer above passes along, and the `System` protocol.

Knows nothing of models, threads, clocks or files other than its own. Every package imports it;
it imports none of them.

Data flows one way: workload -> `Schedule` -> `System` (under a `Policy`) -> `Records` -> summary
-> capacity -> study -> report. Times are seconds as floats; sizes are counts of candidate items.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Inputs = Mapping[str, NDArray[Any]]


# Meta's published reuse of embedding rows, crudely (see `workload/indices.py`).
DEFAULT_INDICES = "zipf:0.92"


class UserError(ValueError):
    """The request was wrong: one line that says what, and how to mend it (exit code 2)."""


class Status(IntEnum):
    """What became of a query. Only `OK` has a finish; all others count as over the target."""

    OK = 0
    FAILED = 1
    EXPIRED = 2
    REJECTED = 3
    CANCELLED = 4
    PENDING = 5  # only in the partial records that a `Watch` sees


@dataclass(frozen=True, slots=True)
class SLA:
    """A percentile and a latency: `SLA(0.100, 95)` reads p95 <= 100 ms."""

    latency_s: float
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if not (self.latency_s > 0 and math.isfinite(self.latency_s)):
            raise UserError(f"SLA latency must be positive, not {self.latency_s * 1e3:g} ms")
        if not 0 < self.percentile < 100:
            raise UserError(f"percentile must lie between 0 and 100, not {self.percentile:g}")

    def __str__(self) -> str:
        return f"p{self.percentile:g} ≤ {self.latency_s * 1e3:g} ms"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is tuned. Every field has a default; unknown fields are rejected by `from_dict`.

    batch_size: static, the most items a request may hold; adaptive, what it reaches for at least.
    offload_threshold: queries of at least this many items go whole to the accelerator
        (None: none does).
    adaptive: a free worker takes max(batch_size, queued items / idle workers), of several
        queries if need be.
    most_items: of a request that joins queries, of an adaptive policy or on an accelerator.
    offload_backlog: a query stays on the cores while every accelerator has more items than this
        to do already (None: however many).
    workers: only so many of the workers take requests (None: all).
    """

    batch_size: int = 128
    offload_threshold: int | None = None
    adaptive: bool = False
    most_items: int = 1024
    offload_backlog: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "most_items", "offload_threshold", "offload_backlog", "workers"):
            value = getattr(self, name)
            if value is None and name not in ("batch_size", "most_items"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.adaptive, bool):
            raise UserError(f"adaptive must be true or false, not {self.adaptive!r}")
        if self.adaptive and self.most_items < self.batch_size:
            raise UserError(
                f"an adaptive policy takes at least {self.batch_size} items, and at most "
                f"{self.most_items}: raise most_items"
            )

    def to_dict(self) -> dict[str, Any]:
        """Batch size and threshold always; of the others, what is not as usual."""
        said, usual = asdict(self), Policy()
        return {
            name: value
            for name, value in said.items()
            if name in ("batch_size", "offload_threshold") or value != getattr(usual, name)
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise UserError(
                f"unknown policy field {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(**raw)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.from_dict(json.loads(text))

    def uncut(self, size: int) -> Policy:
        """The same for a query that must not be cut."""
        if size <= self.batch_size and not self.adaptive:
            return self
        return replace(self, batch_size=max(size, self.batch_size), adaptive=False)

    def __str__(self) -> str:
        more = f", offload ≥ {self.offload_threshold}" if self.offload_threshold else ""
        if self.offload_backlog:
            more += f" unless {self.offload_backlog} wait"
        if self.workers:
            more += f", {self.workers} workers"
        if self.adaptive:
            return f"adaptive, {self.batch_size} to {self.most_items} items{more}"
        return f"batch size {self.batch_size}{more}"


# Names of the Open Inference Protocol, and numpy's types. BYTES are objects.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{u}INT{bits}": np.dtype(f"<{u.lower() or 'i'}{bits // 8}")
       for u in ("U", "") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}  # fmt: skip
BYTES = "BYTES"
Bounds = Literal["starts", "offsets", "ends", "lengths"]
_OBJECT = np.dtype(object)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One named input of a model, without its leading dimension.

    datatype: Open Inference Protocol name, such as "FP32" or "INT64".
    shape: per row; `()` would be a scalar a row, `(512,)` a dense vector, `(80,)` 80 look-ups.
    scope: "candidate" (leading dimension N) or "query" (leading dimension 1, or N).
    rows: for an index input, the rows of its table: valid ids are low .. rows - 1, and `padding`,
        an id that stands for none.
    ragged: a candidate has any number of values, one after another: the leading dimension is that
        of all values, and the input of this name says where each candidate's are.
    bounds: how such an input says it: the "starts" [N], the "offsets" [N + 1] (starts, and the end
        of the last), the "ends" [N], or the "lengths" [N].
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    scope: Literal["candidate", "query"] = "candidate"
    ragged: str | None = None
    rows: int | None = None
    low: int = 0
    padding: int | None = None
    bounds: Bounds | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return DTYPES.get(self.datatype, _OBJECT)

    @property
    def bytes_per_row(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One named output, without its leading dimension, which is the candidates'.

    shape: per candidate; `()` is an answer [N], `(1,)` one [N, 1].
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        return math.prod(self.shape)


class Answer:
    """How a query's outputs lie in one array: side by side, [N, columns].

    Of float32, which holds FP32, FP16 and integers of 16 bits exactly; else of float64, which
    holds FP64 and integers up to 2^53.
    """

    def __init__(self, outputs: Sequence[OutputSpec]) -> None:
        self.outputs = tuple(outputs)
        self.columns = sum(output.columns for output in outputs)
        self.dtype: Any = np.result_type(
            np.float32, *(DTYPES[output.datatype] for output in outputs)
        ).type

    def empty(self, n: int) -> NDArray[Any]:
        return np.empty((n, self.columns), self.dtype)

    def split(self, scores: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each output by its name, in its own type and shape; views wherever that is possible."""
        found, at = {}, 0
        for output in self.outputs:
            part = scores[:, at : at + output.columns].reshape(len(scores), *output.shape)
            found[output.name] = part.astype(DTYPES[output.datatype], copy=False)
            at += output.columns
        return found


class Servable(Protocol):
    """What runtimes, engine, server and verbs need of a model: one of the zoo, or a user's own."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...
    @property
    def outputs(self) -> tuple[OutputSpec, ...]: ...
    @property
    def tasks(self) -> int:
        """K: columns of the score."""
        ...

    @property
    def target(self) -> SLA | None: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def work(self) -> Work | None:
        """What one candidate asks for; None where nobody can tell."""
        ...

    @property
    def tables(self) -> Sequence[tuple[int, int]] | None:
        """Rows of each table, and the bytes of a row; None where nobody can tell."""
        ...

    @property
    def whole(self) -> bool:
        """Cutting a query would change its scores, so none is cut."""
        ...

    @property
    def most_items(self) -> int | None:
        """Of one request; None: any."""
        ...

    def check(self, inputs: Inputs) -> int:
        """The number of candidates N; UserError if these are not the model's inputs."""
        ...

    def example(
        self, n: int, rng: np.random.Generator, index_law: Any = None, users: int = 1
    ) -> Mapping[str, NDArray[Any]]:
        """Inputs of n candidates, and of `users` rows where a query has one."""
        ...

    def reference(self, inputs: Inputs) -> NDArray[Any]:
        """What every runtime must answer, in one array (`Answer`)."""
        ...


def slice_inputs(specs: Sequence[InputSpec], inputs: Inputs, lo: int, hi: int) -> Inputs:
    """Views of candidates lo .. hi - 1; what all of them share, in one row, stays whole."""
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, NDArray[Any]] = {}
    for spec in specs:
        array = inputs[spec.name]
        counted = by_name[spec.ragged] if spec.ragged else spec
        if is_shared(counted, inputs):
            found[spec.name] = array
        elif spec.ragged:
            at = offsets(counted, inputs[counted.name], len(array))
            found[spec.name] = array[at[lo] : at[hi]]
        elif spec.bounds in (None, "lengths"):
            found[spec.name] = array[lo:hi]
        else:
            part = array[lo : hi + (spec.bounds == "offsets")]
            before = array[lo - 1] if spec.bounds == "ends" and lo else array[lo]
            found[spec.name] = part - before if lo else part
    return found


def repeat_inputs(specs: Sequence[InputSpec], inputs: Inputs, n: int) -> Inputs:
    """The same n candidates with a row each of every input; copies of what they shared."""
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, NDArray[Any]] = {}
    for spec in specs:
        array = inputs[spec.name]
        counted = by_name[spec.ragged] if spec.ragged else spec
        if n == 1 or not is_shared(counted, inputs):
            found[spec.name] = array
        elif spec.ragged:
            found[spec.name] = np.tile(array, (n, *[1] * (array.ndim - 1)))
        elif spec.bounds:
            values = next(inputs[s.name] for s in specs if s.ragged == spec.name)
            found[spec.name] = bounds_of(spec, np.full(n, len(values)))
        else:
            found[spec.name] = np.repeat(array, n, axis=0)
    return found


def join_inputs(
    specs: Sequence[InputSpec], queries: Sequence[Inputs], sizes: Sequence[int]
) -> Inputs:
    """The candidates of several queries as those of one, with a row each of every input."""
    parts = [repeat_inputs(specs, *pair) for pair in zip(queries, sizes, strict=True)]
    found = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in specs}
    for spec in specs:
        if spec.ragged:
            how = next(s for s in specs if s.name == spec.ragged)
            lengths = [np.diff(offsets(how, p[how.name], len(p[spec.name]))) for p in parts]
            found[how.name] = bounds_of(how, np.concatenate(lengths))
    return found


def is_shared(spec: InputSpec, inputs: Inputs) -> bool:
    """Do the candidates share one row of it? (Of one alone it is its own.)"""
    rows = len(inputs[spec.name]) - (spec.bounds == "offsets")
    return spec.scope == "query" and rows == 1


def offsets(spec: InputSpec, bounds: NDArray[Any], values: int) -> NDArray[np.int64]:
    """[N + 1] where each candidate's values begin, and where the last one's end."""
    if spec.bounds == "offsets":
        return bounds.astype(np.int64, copy=False)
    found = np.zeros(len(bounds) + 1, np.int64)
    if spec.bounds == "lengths":
        np.cumsum(bounds, out=found[1:])
    elif spec.bounds == "ends":
        found[1:] = bounds
    else:
        found[:-1], found[-1] = bounds, values
    return found


def bounds_of(spec: InputSpec, lengths: NDArray[Any]) -> NDArray[Any]:
    """The other way round: as this input says it."""
    ends = np.cumsum(lengths)
    said: NDArray[Any] = {
        "lengths": lengths,
        "ends": ends,
        "starts": ends - lengths,
        "offsets": np.concatenate([[0], ends]),
    }[spec.bounds or "lengths"]
    return said.astype(spec.dtype)


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine can do per second with all workers busy, one thread each, measured."""

    flops_per_s: float
    lookups_per_s: float
    lookup_bytes: int
    stream_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one candidate item asks of a machine: arithmetic, table look-ups, bytes."""

    flops: float
    lookups: float
    table_bytes: float
    input_bytes: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a system says of itself.

    service_s: estimated seconds of one request of n items on one worker, or None if unknown.
    virtual: its time is computed, not waited for, and no neighbour can disturb it.
    accelerators: seconds of one request of n items on each, or empty where there is none.
    whole, most_items: of its model (`Servable`).
    twin: a simulation of it, from what it measured of itself, or None.
    """

    workers: int
    machine: Mapping[str, Any] = field(default_factory=dict)
    service_s: Callable[[FloatArray], FloatArray] | None = None
    limits: Limits | None = None
    work: Work | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    virtual: bool = False
    accelerators: tuple[Callable[[FloatArray], FloatArray], ...] = ()
    whole: bool = False
    most_items: int | None = None
    twin: System | None = None


def for_json(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become null, at any depth; tuples become lists."""
    if isinstance(value, Mapping):
        return {name: for_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Sees the records so far and the time since the run began; answers True to stop the run.
Watch = Callable[[Records, float], bool]


class System(Protocol):
    """Anything that runs a schedule under a policy: engine, simulator, remote server."""

    def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
        """Runs it all, or until `watch` says stop; then what did not finish is CANCELLED."""
        ...

    def facts(self) -> Facts: ...

    def disturbance(self) -> float:
        """The share of the cores that others used during the last run; 0 where nobody can."""
        ...


def save_columns(path: str | Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes equally long columns as .parquet, .npz or .csv."""
    target = Path(path)
    match target.suffix:
        case ".npz":
            np.savez(target, **{name: column for name, column in columns.items()})  # type: ignore[arg-type]
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table(dict(columns)), target)
        case ".csv":
            import pyarrow as pa
            import pyarrow.csv

            pyarrow.csv.write_csv(pa.table(dict(columns)), target)
        case other:
            raise UserError(
                f"cannot write {other or 'a file without suffix'}: use .parquet or .npz"
            )


def load_columns(path: str | Path) -> dict[str, NDArray[Any]]:
    """Reads what `save_columns` wrote; UserError in one line if it cannot."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"no file {source}")
    try:
        match source.suffix:
            case ".npz":
                with np.load(source, allow_pickle=False) as archive:
                    return {name: archive[name] for name in archive.files}
            case ".parquet":
                import pyarrow.parquet as pq

                table = pq.read_table(source)
            case ".csv":
                import pyarrow.csv

                table = pyarrow.csv.read_csv(source)
            case other:
                raise UserError(f"cannot read {other or 'a file without suffix'}: {source}")
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {source}: {reason}") from error
    return {name: table[name].to_numpy() for name in table.column_names}


__all__ = [
    "DTYPES",
    "SLA",
    "Answer",
    "Facts",
    "InputSpec",
    "Inputs",
    "Limits",
    "OutputSpec",
    "Policy",
    "Records",
    "Requests",
    "Schedule",
    "Servable",
    "Status",
    "System",
    "UserError",
    "Watch",
    "Work",
    "bounds_of",
    "for_json",
    "is_shared",
    "join_inputs",
    "load_columns",
    "offsets",
    "repeat_inputs",
    "replace",
    "save_columns",
    "slice_inputs",
]
