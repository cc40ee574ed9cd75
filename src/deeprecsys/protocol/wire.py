"""The HTTP form of an inference request and of its answer: a JSON head, then binary tensors.

Pure: bytes to values and back. Binary tensors are views of the body, which is read to where they
are aligned (`http_adapter`). Refuses, with one line, whatever disagrees with itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from deeprecsys.protocol import long_json, shared, tensors
from deeprecsys.protocol.call import Call, refuse_unsupported
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.tensors import Array, Buffer

HEAD_LENGTH = b"inference-header-content-length"
_REMEMBERED_BYTES = 4096
_NO_JSON = re.compile(rb"NaN|-?Infinity")  # which Python's own encoder writes all the same
_LEAST_COMPRESSED = 1024  # below, it costs more than it saves


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[_Output] | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    """What a head says; nothing changes it. outputs: see `Call`. places: of the inputs in shared
    memory; targets: of the outputs there."""

    request: _Request
    datatypes: dict[str, str]
    outputs: dict[str, bool] | None
    places: dict[str, shared.Place]
    targets: dict[str, shared.Place]


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


def parse(
    model: str,
    version: str,
    body: Buffer,
    head_bytes: int | None,
    *,
    long: bool = False,
    memory: shared.Memory | None = None,
) -> Call:
    """The call that a body makes; `head_bytes` of it are JSON (None: all).

    long: in many small steps, so that a thread that does it lets others work in between.
    memory: for what lies in shared memory (None: it is refused).
    """
    view = memoryview(body)
    if head_bytes is not None and not 0 <= head_bytes <= len(view):
        raise invalid(
            f"Inference-Header-Content-Length is {head_bytes}, the body has {len(view)} bytes"
        )
    if head_bytes is not None and head_bytes <= _REMEMBERED_BYTES:
        head = _remembered(bytes(view[:head_bytes]))
    elif long:
        text = len(view) if head_bytes is None else head_bytes
        return _parse_long(model, version, view, text, memory)
    else:
        head = _read(view[:head_bytes])
    return _call(model, version, head, view, head_bytes, tensors.from_json, memory)


def _parse_long(
    model: str, version: str, view: memoryview, head_bytes: int, memory: shared.Memory | None
) -> Call:
    skeleton, arrays = long_json.take_out(view[:head_bytes])

    def values(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> Array:
        taken = arrays.get(bytes(data))
        if taken is None:
            return tensors.from_json(name, datatype, shape, data)
        return long_json.values(name, datatype, shape, taken)

    return _call(model, version, _read(skeleton), view, head_bytes, values, memory)


def _call(
    model: str,
    version: str,
    head: _Head,
    view: memoryview,
    head_bytes: int | None,
    values: Callable[[str, str, Sequence[int], Buffer], Array],
    memory: shared.Memory | None,
) -> Call:
    request, at = head.request, len(view) if head_bytes is None else head_bytes
    inputs: dict[str, Array] = {}
    for item in request.inputs:
        name, size = item.name, item.parameters.get("binary_data_size")
        if (place := head.places.get(name)) is not None:
            inputs[name] = shared.read(memory, name, item.datatype, item.shape, place)
            continue
        if size is None:
            inputs[name] = values(name, item.datatype, item.shape, item.data)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(view) - at:
            raise invalid(f"input {name}: binary_data_size {size}, {len(view) - at} bytes are left")
        inputs[name] = tensors.from_bytes(name, item.datatype, item.shape, view[at : at + size])
        at += size
    if at != len(view):
        raise invalid(f"the body has {len(view) - at} bytes that belong to no input")
    return Call(
        model=model,
        version=version,
        id=request.id,
        inputs=inputs,
        datatypes=head.datatypes,
        outputs=head.outputs,
        targets=shared.targets(memory, head.targets),
        parameters=request.parameters,
    )


def _read(head: Buffer) -> _Head:
    try:
        request = _decode(head)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        said = _said(error, bytes(head))
        raise invalid(f"the request is not what the protocol asks for: {said}") from None
    datatypes: dict[str, str] = {}
    places: dict[str, shared.Place] = {}
    for item in request.inputs:
        refuse_unsupported(item.parameters)
        if item.name in datatypes:
            raise invalid(f"input {item.name} is given twice")
        brings = "binary_data_size" in item.parameters or bool(item.data)
        if (place := shared.place_of(f"input {item.name}", item.parameters)) is not None:
            if brings:
                raise invalid(f"input {item.name} has data beside {shared.REGION}")
            places[item.name] = place
        elif not brings:
            raise invalid(f"input {item.name} has neither data nor parameters.binary_data_size")
        datatypes[item.name] = item.datatype
    targets = _targets(request)
    outputs = _outputs(request)
    if outputs is not None:  # those in shared memory are bytes as well
        outputs |= dict.fromkeys(targets, True)
    return _Head(request, datatypes, outputs, places, targets)


# Clients send the same few heads again and again: one for each size, unless they give ids.
_remembered = lru_cache(maxsize=1024)(_read)


def _outputs(request: _Request) -> dict[str, bool] | None:
    """Each output that was asked for, and whether as binary data; None: all."""
    usual = _flag(request.parameters, "binary_data_output", False)
    if not request.outputs:
        return {"": True} if usual else None
    for output in request.outputs:
        refuse_unsupported(output.parameters)
    return {o.name: _flag(o.parameters, "binary_data", usual) for o in request.outputs}


def _targets(request: _Request) -> dict[str, shared.Place]:
    """Of the outputs that go to shared memory."""
    places = {
        o.name: shared.place_of(f"output {o.name}", o.parameters) for o in request.outputs or ()
    }
    return {name: place for name, place in places.items() if place is not None}


def is_binary(call: Call, output: str) -> bool:
    """Did it ask for this output as binary data?"""
    wanted = call.outputs or {}
    return wanted.get(output, wanted.get("", False))


def unsayable(call: Call, outputs: Mapping[str, Array]) -> Refusal | None:
    """JSON has no infinity: of outputs that were not asked for as binary data."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not is_binary(call, name) and not np.isfinite(array).all():
            return Refusal(Reason.INTERNAL, unsayable_line(name))
    return None


def unsayable_line(output: str) -> str:
    return f"output {output} is infinite, which JSON cannot say: ask for it as binary data"


def answer(
    call: Call, version: str, outputs: Mapping[str, Array]
) -> tuple[bytes, Sequence[Buffer]]:
    """The JSON head of the answer, and the binary outputs behind it (the others are in it)."""
    said = b'{"model_name":%b,"model_version":%b,' % (_encode(call.model), _encode(version))
    if call.id:
        said += b'"id":%b,' % _encode(call.id)
    items: list[bytes] = []
    data: list[Buffer] = []
    for name, array in outputs.items():
        datatype = tensors.datatype_of(array)
        about = _encode(name), datatype.encode(), _encode(array.shape)
        item = b'{"name":%b,"datatype":"%b","shape":%b,' % about
        if (target := call.targets.get(name)) is not None:
            item += b'"parameters":%b}' % _encode(target.place.said(array.nbytes))
        elif is_binary(call, name):
            data.append(tensors.to_bytes(array, datatype))
            item += b'"parameters":{"binary_data_size":%d}}' % len(data[-1])
        else:
            item += b'"data":%b}' % _encode(tensors.to_json(array))
        items.append(item)
    return said + b'"outputs":[%b]}' % b",".join(items), data


def request(
    inputs: dict[str, Array], *, binary: bool = True, **more: Any
) -> tuple[bytes, list[Buffer]]:
    """The other direction, for clients: the JSON head, and the binary tensors behind it."""
    listed: list[dict[str, Any]] = []
    data: list[Buffer] = []
    for name, array in inputs.items():
        datatype = tensors.datatype_of(array)
        item: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype}
        if binary:
            data.append(tensors.to_bytes(array, datatype))
            item["parameters"] = {"binary_data_size": len(data[-1])}
        else:
            item["data"] = tensors.to_json(array)
        listed.append(item)
    return _encode({**more, "inputs": listed}), data


def compress(parts: Sequence[Buffer], accepted: str) -> tuple[Sequence[Buffer], str]:
    """The parts of a body as one, in an encoding that is accepted; "" where left as it is."""
    if not accepted or sum(map(len, parts)) < _LEAST_COMPRESSED:
        return parts, ""
    offered = {}
    for text in accepted.lower().split(","):
        name, _, quality = text.partition(";")
        offered[name.strip()] = quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.000")
    for name, bits in (("gzip", 31), ("deflate", 15)):
        if offered.get(name):
            stream = zlib.compressobj(1, wbits=bits)
            return [b"".join([*map(stream.compress, parts), stream.flush()])], name
    return parts, ""


def _flag(parameters: dict[str, Any], name: str, usual: bool) -> bool:
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise invalid(f"parameter {name} must be true or false")
    return value


def _said(error: Exception, text: bytes) -> str:
    if isinstance(error, RecursionError):
        return "too deeply nested"
    if named := _NO_JSON.search(text):
        return f"JSON has no {named[0].decode()}, and inputs must be finite"
    return str(error)[:200]


__all__ = ["HEAD_LENGTH", "answer", "compress", "is_binary", "parse", "request"]
