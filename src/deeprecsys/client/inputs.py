"""What the load client sends: which values each input has, a pool of them, and messages' heads.

Pure but for reading a description file: no sockets, no clock. Values come from what the server
says (`rows.NAME`, `scope.NAME` in its configuration), from a description for other servers, or
are assumed, and then it says so. A query is a window of consecutive candidates of the pool, so
that its body is views of what is there already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys.client.server import Description, Tensor
from deeprecsys.core import IntArray, UserError
from deeprecsys.protocol import tensors
from deeprecsys.workload import parse_indices

# A pool is as large as this if that gives some thousand candidates, and at most four times as
# large; ids of 64 MiB look up gigabytes of table rows, far more than a cache holds.
_POOL_BYTES, _MOST_BYTES, _FIRST_ITEMS = 64 << 20, 256 << 20, 4096
_LARGEST_QUERY_BYTES = 1 << 30
_STREAM = 0x9001
_RAW_TAG = b"\x3a"  # field 7, length-delimited
_FIELDS = ("rows", "low", "high", "normal", "scope", "shape", "datatype")
_HINT = 'describe it in --values FILE, as {"%s": {"rows": 40000}}'


@dataclass(frozen=True, slots=True)
class Column:
    """One input as it is sent.

    shape: of one row. rows: sent with every query; None: one a candidate.
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

    @property
    def row_bytes(self) -> int:
        size = tensors.item_bytes(self.datatype)
        return math.prod(self.shape) * (4 + self._digits if size is None else size)

    @property
    def _digits(self) -> int:
        return len(str(int(self.b) - 1))

    def rows_of(self, size: int) -> int:
        return size if self.rows is None else self.rows

    def draw(self, rng: np.random.Generator, items: int, index_law: Any) -> NDArray[np.uint8]:
        """[items * row_bytes] bytes, as they travel."""
        shape = (items, *self.shape)
        if self.datatype == tensors.BYTES:
            return _texts(index_law(rng, int(self.b), shape), self._digits)
        drawn = np.asarray(self._values(rng, shape, index_law))
        if drawn.dtype.kind == "f" and not _is_float(self.datatype):
            drawn = np.rint(drawn)
        return np.frombuffer(tensors.to_bytes(drawn, self.datatype), np.uint8)

    def _values(self, rng: np.random.Generator, shape: tuple[int, ...], index_law: Any) -> Any:
        if self.law == "ids":
            return index_law(rng, int(self.b), shape)
        if self.law == "normal":
            return rng.normal(self.a, self.b, shape)
        if _is_float(self.datatype):
            return rng.uniform(self.a, self.b, shape)
        return rng.integers(int(self.a), int(self.b), shape, endpoint=True)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """`items` candidates' values of each column: bytes, and how many a row has."""

    data: tuple[memoryview, ...]
    columns: tuple[Column, ...]
    row_bytes: tuple[int, ...]
    items: int

    def window(self, offset: int, size: int) -> list[memoryview]:
        """The tensors of `size` candidates from `offset`, without those that are empty."""
        views = []
        for data, column, width in zip(self.data, self.columns, self.row_bytes, strict=True):
            rows = size if column.rows is None else column.rows
            if length := rows * width:
                start = offset * width
                views.append(data[start : start + length])
        return views


def plan(
    described: Description, values: Mapping[str, Any] | None
) -> tuple[tuple[Column, ...], list[str]]:
    """The columns of the model's inputs, and what had to be assumed, one sentence each."""
    given = {name: _checked(name, said) for name, said in (values or {}).items()}
    assumed = list[str]()
    inputs = described.inputs or tuple(Tensor(name, "", None) for name in given)
    names = [tensor.name for tensor in inputs]
    if not names:
        raise UserError(
            "the server names no inputs of this model: describe each in --values FILE: "
            '{"ids": {"datatype": "INT64", "shape": [3], "rows": 40000}}, with a candidate\'s shape'
        )
    if unknown := sorted(set(given) - set(names)):
        raise UserError(
            f"--values describes {', '.join(unknown)}; the model's inputs: {', '.join(names)}"
        )
    columns = [
        _column(_complete(tensor, given.get(tensor.name, {})), given.get(tensor.name, {}),
                described, assumed)
        for tensor in inputs
    ]  # fmt: skip
    if all(column.rows is not None for column in columns):
        assumed.append("no input has a variable first dimension: queries of all sizes are alike")
    return tuple(columns), assumed


def read_values(path: str) -> dict[str, Any]:
    """A description file: JSON, `{"input": {"rows": 40000}}`."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} as JSON: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f'{path}: write an object, {{"input": {{"rows": 40000}}}}')
    return found


def pool_items(columns: Sequence[Column], largest: int) -> int:
    """How many candidates a pool holds for queries of up to `largest`."""
    width = max(1, sum(column.row_bytes for column in columns))
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
    data: list[Any] = [
        column.draw(np.random.default_rng([seed, _STREAM, i]), items, index_law)
        for i, column in enumerate(columns)
    ]
    return Pool(
        tuple(memoryview(column) for column in data),
        columns,
        tuple(column.row_bytes for column in columns),
        items,
    )


def binary_head(
    start: str, columns: Sequence[Column], timeout_us: int | None
) -> Callable[[int], tuple[bytes, int]]:
    """By size of query: everything before the tensors, and the bytes of the whole message.

    start: the request line and the headers that are always the same.
    """

    @cache
    def head(size: int) -> tuple[bytes, int]:
        inputs = [
            _input(column, size)
            | {"parameters": {"binary_data_size": column.rows_of(size) * column.row_bytes}}
            for column in columns
        ]
        parameters = {"binary_data_output": True, **_timeout(timeout_us)}
        told = msgspec.json.encode({"inputs": inputs, "parameters": parameters})
        tensors_bytes = sum(column.rows_of(size) * column.row_bytes for column in columns)
        http = (
            f"{start}Content-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(told)}\r\n"
            f"Content-Length: {len(told) + tensors_bytes}\r\n\r\n"
        ).encode() + told
        return http, len(http) + tensors_bytes

    return head


def json_message(
    start: str, columns: Sequence[Column], timeout_us: int | None, views: Sequence[Any], size: int
) -> bytes:
    """The whole message with its tensors as JSON. Nothing here is cheap."""
    left = list(views)
    inputs = []
    for column in columns:
        said = _input(column, size)
        data = left.pop(0) if column.rows_of(size) * column.row_bytes else b""
        array = tensors.from_bytes(column.name, column.datatype, said["shape"], data)
        inputs.append(said | {"data": tensors.to_json(array)})
    body = msgspec.json.encode({"inputs": inputs, "parameters": _timeout(timeout_us)})
    http = f"{start}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return http.encode() + body


def grpc_head(
    model: str, columns: Sequence[Column], timeout_us: int | None
) -> Callable[[int], list[bytes]]:
    """By size of query: what goes before each tensor that is not empty, and after the last.

    Field 7, `raw_input_contents`, is written by hand after the rest, which is a valid encoding
    and spares the library's two copies of every tensor.
    """

    from deeprecsys.protocol.grpc_schema import message  # only here is protobuf needed

    @cache
    def head(size: int) -> list[bytes]:
        request = message("ModelInferRequest")(model_name=model)
        for name, value in _timeout(timeout_us).items():
            request.parameters[name].int64_param = value
        for column in columns:
            request.inputs.add(**_input(column, size))
        before = [bytearray(request.SerializeToString())]
        for column in columns:
            length = column.rows_of(size) * column.row_bytes
            before[-1] += _RAW_TAG + _varint(length)
            if length:
                before.append(bytearray())
        return [bytes(part) for part in before]

    return head


def grpc_message(before: Sequence[bytes], views: Sequence[memoryview]) -> bytes:
    """The whole message: one copy of each tensor."""
    parts: list[Any] = []
    for head, view in zip(before, views, strict=False):
        parts += (head, view)
    return b"".join([*parts, before[-1]])


def _input(column: Column, size: int) -> dict[str, Any]:
    shape = [column.rows_of(size), *column.shape]
    return {"name": column.name, "datatype": column.datatype, "shape": shape}


def _timeout(timeout_us: int | None) -> dict[str, int]:
    return {} if timeout_us is None else {"timeout": timeout_us}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _complete(tensor: Tensor, given: Mapping[str, Any]) -> Tensor:
    """With what the description says where the server says nothing."""
    said = given.get("datatype", tensor.datatype)
    if tensor.datatype and said != tensor.datatype:
        raise UserError(f"--values: input {tensor.name} is {tensor.datatype}, not {said}")
    shape = tensor.shape
    if shape is None and "shape" in given:
        shape = (-1, *given["shape"])
    if not said or shape is None:
        missing = "datatype" if not said else "shape of a candidate"
        raise UserError(
            f"the server does not say the {missing} of input {tensor.name}: add it in --values, as "
            f'{{"{tensor.name}": {{"datatype": "INT64", "shape": [3], "rows": 40000}}}}'
        )
    return Tensor(tensor.name, said, shape)


def _column(
    tensor: Tensor, given: Mapping[str, Any], described: Description, assumed: list[str]
) -> Column:
    name, datatype = tensor.name, tensor.datatype
    if datatype not in tensors.NAMES:
        known = ", ".join(tensors.NAMES)
        raise UserError(f"input {name} is of unknown datatype {datatype!r}; known: {known}")
    if not given and (rows := described.parameters.get(f"rows.{name}", "")).isdecimal():
        given = {"rows": int(rows)}
    scope = given.get("scope", described.parameters.get(f"scope.{name}", "candidate"))
    law, a, b = _law(tensor, given, assumed)
    first = tensor.shape[0] if tensor.shape else 1
    rows_sent = 1 if scope == "query" else None if first == -1 else first
    return Column(name, datatype, _row_shape(tensor, given, assumed), rows_sent, law, a, b)


def _law(tensor: Tensor, given: Mapping[str, Any], assumed: list[str]) -> tuple[str, float, float]:
    name, datatype = tensor.name, tensor.datatype
    if "rows" in given:
        _check_fits(name, datatype, 0, given["rows"] - 1)
        return "ids", 0, given["rows"]
    if datatype == tensors.BYTES:
        raise UserError(f"input {name} is of BYTES: {_HINT % name} to send ids as text")
    if "low" in given:
        _check_fits(name, datatype, given["low"], given["high"])
        return "uniform", given["low"], given["high"]
    if "normal" in given:
        mean, deviation = given["normal"]
        _check_fits(name, datatype, mean - 6 * deviation, mean + 6 * deviation)
        return "normal", mean, deviation
    if _is_float(datatype):
        assumed.append(f"{name}: standard normal")
        return "normal", 0.0, 1.0
    assumed.append(f"{name}: 0 or 1 ({_HINT % name} if it holds ids)")
    return "uniform", 0, 1


def _row_shape(tensor: Tensor, given: Mapping[str, Any], assumed: list[str]) -> tuple[int, ...]:
    """Of one row; a variable dimension is what the description says, or 1."""
    said = (tensor.shape or ())[1:]
    if "shape" in given:
        wanted = tuple(given["shape"])
        if len(wanted) != len(said) or any(
            s not in (-1, w) for s, w in zip(said, wanted, strict=True)
        ):
            raise UserError(
                f"--values: a row of {tensor.name} has shape {list(said)}, not {list(wanted)}"
            )
        return wanted
    if -1 in said:
        assumed.append(f"{tensor.name}: 1 for each variable dimension of a row, {list(said)}")
    return tuple(1 if length == -1 else length for length in said)


def _checked(name: str, given: Any) -> Mapping[str, Any]:
    """A description of one input; UserError for what cannot be meant."""
    if not isinstance(given, Mapping) or set(given) - set(_FIELDS):
        raise UserError(f"--values: {name} takes {', '.join(_FIELDS)}, not {given!r}")
    laws = [law for law in (("rows",), ("low", "high"), ("normal",)) if set(law) & set(given)]
    if len(laws) > 1 or any(set(law) - set(given) for law in laws):
        raise UserError(f"--values: {name} takes rows, or low and high, or normal, not {given!r}")
    numbers = [given[law] for law in ("rows", "low", "high") if law in given]
    pair = given.get("normal", (0, 1))
    counts = [*given.get("shape", ()), *([given["rows"]] if "rows" in given else [])]
    sound = (
        all(_is_number(value) for value in numbers)
        and isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(_is_number(value) for value in pair)
        and pair[1] >= 0
        and all(isinstance(n, int) and n >= 1 for n in counts)
        and given.get("low", 0) <= given.get("high", math.inf)
        and given.get("scope", "query") in ("query", "candidate")
    )
    if not sound:
        raise UserError(f"--values: {name} cannot be {given!r}: a number is wrong")
    return given


def _check_fits(name: str, datatype: str, low: float, high: float) -> None:
    dtype = tensors.DTYPES.get(datatype)
    if dtype is None or dtype.kind == "f":
        return
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if low < least or high > most:
        raise UserError(f"--values: {low:g} to {high:g} do not fit input {name}, {datatype}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_float(datatype: str) -> bool:
    return datatype.startswith("FP") or datatype == tensors.BF16


def _texts(ids: NDArray[Any], digits: int) -> NDArray[np.uint8]:
    """BYTES elements of equal length, so that a window of them is contiguous: `00001234`."""
    powers = 10 ** np.arange(digits - 1, -1, -1)
    out = np.empty((ids.size, 4 + digits), np.uint8)
    out[:, :4] = np.frombuffer(np.array([digits], "<u4").tobytes(), np.uint8)
    out[:, 4:] = (ids.reshape(-1, 1) // powers) % 10 + ord("0")
    return out.reshape(-1)
