"""What a query looks like on the wire, but for its tensors: HTTP heads, JSON, gRPC messages.

Pure: no sockets, no clock. A layout says what a query's tensors look like; most queries of a run
share theirs with others, so what is said of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec

from deeprecsys.protocol import tensors

_RAW_TAG = b"\x3a"  # field 7, length-delimited
_KEPT = 4096  # heads


class Layout(NamedTuple):
    """Of a query's tensors, in the order of the inputs: shapes, and bytes."""

    shapes: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]


class Input(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...


class Queries(Protocol):
    """Where queries' tensors come from: drawn, or recorded."""

    def layout(self, offset: int, size: int) -> Layout: ...

    def window(self, offset: int, size: int) -> list[memoryview]:
        """The tensors as they travel, without those that are empty."""
        ...


def binary_head(
    start: str, inputs: Sequence[Input], timeout_us: int | None
) -> Callable[[Layout], tuple[bytes, int]]:
    """By layout: everything before the tensors, and the bytes of the whole message.

    start: the request line and the headers that are always the same.
    """

    @lru_cache(_KEPT)
    def head(layout: Layout) -> tuple[bytes, int]:
        said = [
            one | {"parameters": {"binary_data_size": length}}
            for one, length in zip(_said(inputs, layout), layout.lengths, strict=True)
        ]
        parameters = {"binary_data_output": True, **_timeout(timeout_us)}
        told = msgspec.json.encode({"inputs": said, "parameters": parameters})
        tensors_bytes = sum(layout.lengths)
        http = (
            f"{start}Content-Type: application/octet-stream\r\n"
            f"Inference-Header-Content-Length: {len(told)}\r\n"
            f"Content-Length: {len(told) + tensors_bytes}\r\n\r\n"
        ).encode() + told
        return http, len(http) + tensors_bytes

    return head


def json_message(
    start: str,
    inputs: Sequence[Input],
    timeout_us: int | None,
    views: Sequence[Any],
    layout: Layout,
) -> bytes:
    """The whole message with its tensors as JSON. Nothing here is cheap."""
    left, told = list(views), []
    for said, length in zip(_said(inputs, layout), layout.lengths, strict=True):
        data = left.pop(0) if length else b""
        array = tensors.from_bytes(said["name"], said["datatype"], said["shape"], data)
        told.append(said | {"data": tensors.to_json(array)})
    body = msgspec.json.encode({"inputs": told, "parameters": _timeout(timeout_us)})
    http = f"{start}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return http.encode() + body


def grpc_head(
    model: str, inputs: Sequence[Input], timeout_us: int | None
) -> Callable[[Layout], list[bytes]]:
    """By layout: what goes before each tensor that is not empty, and after the last.

    Field 7, `raw_input_contents`, is written by hand after the rest, which is a valid encoding
    and spares the library's two copies of every tensor.
    """

    from deeprecsys.protocol.grpc_schema import message  # only here is protobuf needed

    message("ModelInferRequest")  # the first use makes the classes, for which a query would wait

    @lru_cache(_KEPT)
    def head(layout: Layout) -> list[bytes]:
        request = message("ModelInferRequest")(model_name=model)
        for name, value in _timeout(timeout_us).items():
            request.parameters[name].int64_param = value
        for said in _said(inputs, layout):
            request.inputs.add(**said)
        before = [bytearray(request.SerializeToString())]
        for length in layout.lengths:
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


def _said(inputs: Sequence[Input], layout: Layout) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "datatype": one.datatype, "shape": list(shape)}
        for one, shape in zip(inputs, layout.shapes, strict=True)
    ]


def _timeout(timeout_us: int | None) -> dict[str, int]:
    return {} if timeout_us is None else {"timeout": timeout_us}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
