"""Tensors of the Open Inference Protocol: datatypes, shapes, binary and JSON contents.

Pure functions between numpy arrays and what travels. Bytes are little-endian and row-major; an
array made from bytes is a view of them. BF16, which numpy lacks, is FP32 here; BYTES are objects.
Raises `Refusal` (400) for whatever disagrees with itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import BYTES as BYTES
from deeprecsys.core import DTYPES as DTYPES
from deeprecsys.protocol.reasons import invalid

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

BF16 = "BF16"
NAMES = (*DTYPES, BF16, BYTES)
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_MOST_DIMENSIONS = 16  # far more than any model has, few enough for a nested JSON type
_MOST_ITEMS = 1 << 40
_COUNT = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's type; KeyError where it has none."""
    if array.dtype.kind in "OSU":
        return BYTES
    return _NAME_OF[array.dtype.newbyteorder("<")]


def item_bytes(datatype: str) -> int | None:
    """Bytes of one element; None where they vary."""
    if datatype in DTYPES:
        return DTYPES[datatype].itemsize
    return 2 if datatype == BF16 else None


def count(name: str, shape: Sequence[int]) -> int:
    """How many elements a shape has."""
    if len(shape) > _MOST_DIMENSIONS:
        raise invalid(f"input {name}: {len(shape)} dimensions, of at most {_MOST_DIMENSIONS}")
    for length in shape:
        if length < 0:
            raise invalid(f"input {name}: shape {list(shape)} has a negative dimension")
    # Also where another dimension is 0: numpy cannot say what no memory could hold.
    if math.prod(max(1, length) for length in shape) > _MOST_ITEMS:
        raise invalid(f"input {name}: its shape is too large")
    return math.prod(shape)


def check_length(name: str, datatype: str, shape: Sequence[int], length: int) -> None:
    """Refusal where so many bytes are not what this is."""
    items, size = count(name, shape), item_bytes(_known(name, datatype))
    if size is not None and items * size != length:
        raise invalid(
            f"input {name}: {datatype} {list(shape)} is {items * size} bytes, not {length}"
        )


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """An array of `shape` that is a view of `data`, wherever its type allows."""
    check_length(name, datatype, shape, len(data))
    items = math.prod(shape)
    if datatype == BYTES:
        return _bytes_elements(name, data, items).reshape(shape)
    if datatype == BF16:
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        if items and flags.max() > 1:
            raise invalid(f"input {name}: BOOL elements are bytes of 0 or 1")
        return flags.view(np.bool_).reshape(shape)
    array = np.frombuffer(data, DTYPES[datatype]).reshape(shape)
    return array if array.flags.aligned else array.copy()


def from_json(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """The same of JSON `data`: flat, or nested as the shape is."""
    items = count(name, shape)
    if _known(name, datatype) == BF16:
        raise invalid(f"input {name}: BF16 travels as binary data only")
    try:
        values, flat = _decoded(datatype, len(shape), data)
        array = numbers(datatype, values)
    except NOT_NUMBERS:
        raise invalid(f"input {name}: its data are not {datatype} of shape {list(shape)}") from None
    check_finite(name, datatype, array)
    nested = array.shape == tuple(shape) or array.size == 0  # whose last dimensions do not show
    if array.size != items or not (flat or nested):
        raise invalid(f"input {name}: its data hold {array.size} values of shape {list(shape)}")
    return array.reshape(shape)


def numbers(datatype: str, values: Any) -> Array:
    """An array of decoded JSON values; raises one of `NOT_NUMBERS`."""
    with np.errstate(over="ignore"):  # `check_finite` tells
        return np.array(values, dtype=object if datatype == BYTES else DTYPES[datatype])


def check_finite(name: str, datatype: str, array: Array) -> None:
    if datatype.startswith("FP") and not np.isfinite(array).all():
        raise invalid(f"input {name}: a number in its data is too large for {datatype}")


NOT_NUMBERS = (msgspec.MsgspecError, RecursionError, OverflowError, ValueError, TypeError)


def from_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> Array:
    """The same of a flat sequence of Python or protocol-buffer values."""
    count(name, shape)
    if _known(name, datatype) == BYTES:
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
    elif datatype in (BF16, "FP16"):
        raise invalid(f"input {name}: {datatype} travels as raw contents only")
    else:
        try:
            array = np.array(values, dtype=DTYPES[datatype])
        except (OverflowError, ValueError, TypeError):
            raise invalid(f"input {name}: a value does not fit {datatype}") from None
    return from_array(name, datatype, shape, array)


def from_array(name: str, datatype: str, shape: Sequence[int], array: Array) -> Array:
    """The values in that shape."""
    if array.size != (items := count(name, shape)):
        raise invalid(f"input {name}: {array.size} values, and shape {list(shape)} needs {items}")
    return array.reshape(shape)


def to_bytes(array: Array, datatype: str) -> Buffer:
    """The bytes of an array; those of a contiguous one are not copied."""
    if datatype == BYTES:
        return b"".join(_COUNT.pack(len(item)) + item for item in map(_as_bytes, array.flat))
    if datatype == BF16:
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
        return (rounded >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1).view(np.uint8).data


def to_json(array: Array) -> list[Any]:
    """Flat, row-major, for a JSON encoder."""
    if array.dtype == object:
        return [_as_bytes(item).decode(errors="replace") for item in array.flat]
    return list(array.reshape(-1).tolist())


def _known(name: str, datatype: str) -> str:
    if datatype not in NAMES:
        raise invalid(
            f"input {name}: unknown datatype {datatype[:20]!r}; one of {', '.join(NAMES)}"
        )
    return datatype


@cache
def _decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    nested: Any = element
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested)


def _decoded(datatype: str, dimensions: int, data: Buffer) -> tuple[Any, bool]:
    """The values, and whether they are flat."""
    kind = {"B": bool, "F": float}.get(datatype[0], int)
    element = str if datatype == BYTES else kind
    try:
        values = _decoder(element, 1).decode(data)
    except msgspec.ValidationError:
        if dimensions < 2:
            raise
        return _decoder(element, dimensions).decode(data), False
    return values, True


def _bytes_elements(name: str, data: Buffer, items: int) -> Array:
    elements: list[bytes] = []
    view, at = memoryview(data), 0
    while at < len(view):
        if at + 4 > len(view):
            raise invalid(f"input {name}: a BYTES length is cut off")
        (length,) = _COUNT.unpack_from(view, at)
        at += 4 + length
        if at > len(view):
            raise invalid(f"input {name}: a BYTES element reaches beyond the data")
        elements.append(bytes(view[at - length : at]))
    if len(elements) != items:
        raise invalid(f"input {name}: {len(elements)} BYTES elements, its shape needs {items}")
    array = np.empty(items, dtype=object)
    array[:] = elements
    return array


def _as_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()
