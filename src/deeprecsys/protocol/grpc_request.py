"""The gRPC form of an inference request: message bytes to a `Call`.

Short messages are read by the protocol-buffer library. Of long ones the tensors are taken out
first (`protobuf`): raw contents stay where they are, as views, and typed contents become arrays in
small steps. Pure. Refuses whatever disagrees with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from deeprecsys.protocol import shared, tensors
from deeprecsys.protocol.call import Call, refuse_unsupported
from deeprecsys.protocol.grpc_schema import message
from deeprecsys.protocol.protobuf import LENGTH, Field, delimited, fields, fitting, varints
from deeprecsys.protocol.reasons import invalid
from deeprecsys.protocol.tensors import Array, Buffer

SHORT_BYTES = 32 << 10
_SKELETON_BYTES = 256 << 10  # most of a long message beside its tensors
_LONG_INPUT_BYTES = 4 << 10  # without contents it is a name, a datatype and a shape
_INPUTS, _RAW, _CONTENTS = 5, 7, 5  # numbers: of ModelInferRequest, and of InferTensor
_FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_NUMBERS = {
    "bool_contents": 1, "int_contents": 2, "int64_contents": 3, "uint_contents": 4,
    "uint64_contents": 5, "fp32_contents": 6, "fp64_contents": 7,
}  # fmt: skip
_FLOATS: dict[int, np.dtype[Any]] = {6: np.dtype("<f4"), 7: np.dtype("<f8")}
_INTEGERS = {1: np.uint64, 2: np.int32, 3: np.int64, 4: np.uint32, 5: np.uint64}

Contents = Mapping[int, list[memoryview]]  # packed numbers, by the number of their field


def parsed(kind: str, asked: Buffer) -> Any:
    """A short message of any method's."""
    if len(asked) > _SKELETON_BYTES:
        raise invalid("the message is too long for what it asks")
    try:
        return message(kind).FromString(bytes(asked))
    except DecodeError:
        raise invalid("the message is not the protocol's") from None


def is_quick(asked: Buffer) -> bool:
    """Is it read within a millisecond: short, or nearly all raw contents?"""
    if len(asked) <= SHORT_BYTES:
        return True
    typed = sum(len(field.value) for field in fields(memoryview(asked)) if field.number == _INPUTS)
    return typed <= SHORT_BYTES


def call_of(asked: Buffer, memory: shared.Memory | None = None) -> Call:
    """The call that a ModelInferRequest makes; of a long one the tensors are views of `asked`.
    memory: for what lies in shared memory (None: it is refused)."""
    if len(asked) <= SHORT_BYTES:
        request = parsed("ModelInferRequest", asked)
        return _call(request, request.raw_input_contents, [None] * len(request.inputs), memory)
    skeleton, raw, contents = bytearray(), list[Buffer](), list[Contents | None]()
    for field in fields(memoryview(asked)):
        if field.number == _RAW and field.kind == LENGTH:
            raw.append(field.value)
        elif field.number == _INPUTS and field.kind == LENGTH:
            rest, found = _without_contents(field)
            skeleton += rest
            contents.append(found)
        else:
            skeleton += field.whole
    return _call(parsed("ModelInferRequest", skeleton), raw, contents, memory)


def _without_contents(field: Field) -> tuple[Buffer, Contents | None]:
    if len(field.value) <= _LONG_INPUT_BYTES:
        return field.whole, None
    kept, packed = bytearray(), dict[int, list[memoryview]]()
    for part in fields(field.value):
        if part.number != _CONTENTS or part.kind != LENGTH:
            kept += part.whole
            continue
        for values in fields(part.value):
            if values.kind != LENGTH or values.number not in _NUMBERS.values():
                raise invalid("so many typed contents must be packed numbers: send them raw")
            packed.setdefault(values.number, []).append(values.value)
    return delimited(_INPUTS, bytes(kept)), packed or None


def _call(
    request: Any,
    raw: Sequence[Buffer],
    contents: Sequence[Contents | None],
    memory: shared.Memory | None,
) -> Call:
    places = {item.name: place for item in request.inputs if (place := _place("input", item))}
    if raw and len(raw) != len(request.inputs) - len(places):
        beside = f", {len(places)} of them in shared memory" if places else ""
        raise invalid(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs{beside}")
    left = iter(raw)
    inputs: dict[str, Array] = {}
    datatypes: dict[str, str] = {}
    for number, item in enumerate(request.inputs):
        name, datatype, shape = item.name, item.datatype, tuple(item.shape)
        if name in inputs:
            raise invalid(f"input {name} is given twice")
        refuse_unsupported(item.parameters)
        datatypes[name] = datatype
        if (place := places.get(name)) is not None:
            if item.HasField("contents") or contents[number]:
                raise invalid(f"input {name} has contents beside {shared.REGION}")
            inputs[name] = shared.read(memory, name, datatype, shape, place)
            continue
        if not raw:
            inputs[name] = _typed(item, contents[number])
            continue
        if item.HasField("contents") or contents[number]:
            raise invalid(f"input {name} has contents beside raw_input_contents")
        inputs[name] = tensors.from_bytes(name, datatype, shape, next(left))
    for output in request.outputs:
        refuse_unsupported(output.parameters)
    put = {item.name: place for item in request.outputs if (place := _place("output", item))}
    return Call(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        inputs=inputs,
        datatypes=datatypes,
        outputs={output.name: True for output in request.outputs} or None,
        targets=shared.targets(memory, put),
        parameters=_parameters(request.parameters),
    )


def _typed(item: Any, contents: Contents | None) -> Array:
    name, datatype, shape = item.name, item.datatype, tuple(item.shape)
    field = _FIELDS.get(datatype, "bytes_contents")
    if contents is None:
        return tensors.from_values(name, datatype, shape, getattr(item.contents, field))
    if datatype not in tensors.DTYPES or field not in _NUMBERS:
        raise invalid(f"input {name}: so much of {datatype[:20]} travels as raw contents only")
    number = _NUMBERS[field]
    parts = [_numbers(number, packed) for packed in contents.get(number, [])]
    dtype = tensors.DTYPES[datatype]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, dtype)])
    return tensors.from_array(name, datatype, shape, fitting(name, values, dtype))


def _numbers(number: int, packed: memoryview) -> Array:
    if number in _FLOATS:
        dtype = _FLOATS[number]
        if len(packed) % dtype.itemsize:
            raise invalid("the message is not the protocol's: a number in it is cut off")
        return np.frombuffer(packed, dtype)
    return varints(packed).astype(_INTEGERS[number])


def _place(what: str, item: Any) -> shared.Place | None:
    if shared.REGION not in item.parameters:
        return None
    return shared.place_of(f"{what} {item.name}", _parameters(item.parameters))


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(value, kind)
        for name, value in given.items()
        if (kind := value.WhichOneof("parameter_choice"))
    }


__all__ = ["call_of", "is_quick", "parsed"]
