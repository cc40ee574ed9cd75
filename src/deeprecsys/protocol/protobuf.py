"""Long messages of protocol buffers without reading them whole: their fields, and packed numbers.

A decoder in C holds the interpreter until it is done, and hands numbers over one by one: 1.6 s for
15 MB. Here fields are found by their lengths, and packed numbers become arrays in steps of well
under a millisecond; floats are views. Pure. Refuses what is not a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeprecsys.protocol.reasons import invalid
from deeprecsys.protocol.tensors import Array

LENGTH = 2  # the wire type of what has a length: messages, bytes, packed numbers
_FIXED = {1: 8, 5: 4}  # bytes, by wire type
_MOST_FIELDS = 10_000
_STEP_BYTES = 32 << 10
_LONGEST = 10  # bytes of a varint


class Field(NamedTuple):
    """number, wire type; from its tag to its end, and its value."""

    number: int
    kind: int
    whole: memoryview
    value: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Of one message, in their order; those within a field are not looked at."""
    at, found = 0, 0
    while at < len(message):
        tag, begin = _varint(message, at)
        kind, length = tag & 7, 0
        if kind == 0:
            _, end = _varint(message, begin)
        elif kind == LENGTH:
            length, begin = _varint(message, begin)
            end = begin + length
        elif kind in _FIXED:
            end = begin + _FIXED[kind]
        else:
            raise invalid("the message is not the protocol's")
        found += 1
        if end > len(message) or found > _MOST_FIELDS:
            raise invalid("the message is not the protocol's: it is cut off, or has too many parts")
        yield Field(tag >> 3, kind, message[at:end], message[begin:end])
        at = end


def delimited(number: int, value: bytes) -> bytes:
    """A field that holds these bytes."""
    return _as_varint(number << 3 | LENGTH) + _as_varint(len(value)) + value


def varints(packed: memoryview) -> NDArray[np.uint64]:
    """Packed numbers, of any integer type: negative ones as their two's complement."""
    raw, parts, at = np.frombuffer(packed, np.uint8), list[NDArray[np.uint64]](), 0
    while at < len(raw):
        step = raw[at : at + _STEP_BYTES]
        ends = np.flatnonzero(step < 0x80)
        if not len(ends):
            raise invalid("the message is not the protocol's: a number in it has no end")
        parts.append(_step(step, ends))
        at += int(ends[-1]) + 1
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def fitting(name: str, values: Array, dtype: np.dtype[np.generic]) -> Array:
    """The values as that type; Refusal where one of them is beyond it."""
    cast = values.astype(dtype)
    if (cast != values).any():
        raise invalid(f"input {name}: a value does not fit {dtype}")
    return cast


def _step(step: NDArray[np.uint8], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _LONGEST:
        raise invalid("the message is not the protocol's: a number in it is too long")
    values = np.zeros(len(ends), np.uint64)
    for place in range(longest):
        has = slice(None) if place == 0 else lengths > place
        digits = (step[starts[has] + place] & 0x7F).astype(np.uint64)
        values[has] |= digits << np.uint64(7 * place)
    return values


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    for byte in message[at : at + _LONGEST]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise invalid("the message is not the protocol's: a number in it has no end")


def _as_varint(value: int) -> bytes:
    said = bytearray()
    while value > 0x7F:
        said.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*said, value])


__all__ = ["LENGTH", "Field", "delimited", "fields", "fitting", "varints"]
