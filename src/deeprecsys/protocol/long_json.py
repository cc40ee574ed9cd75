"""Long JSON in small steps: each takes well under a millisecond, so other threads work in between.

A decoder in C holds the interpreter until it is done: 0.7 s for 57 MB. So the long arrays of
numbers are taken out of the text first, by the quotes around them, and read piece by piece; what
is left is short, and read as usual. Pure: text to arrays. Refuses what disagrees with itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from deeprecsys.protocol import tensors
from deeprecsys.protocol.reasons import invalid
from deeprecsys.protocol.tensors import Array

_LONG_BYTES = 4 << 10  # an array of fewer stays where it is
_PIECE_BYTES, _LONGEST_PIECE_BYTES = 16 << 10, 1 << 20
_LOOK_BYTES = 256 << 10
_AROUND_BYTES = 256  # blanks and commas around an array
_SKELETON_BYTES = 256 << 10  # most that may be left
_MOST_STRINGS = 20_000


def take_out(view: memoryview) -> tuple[bytes, dict[bytes, memoryview]]:
    """The text with a short string for each long array, and the arrays' own text by that string.

    400 where what is left is still long: names, parameters and strings in data are.
    """
    kept, arrays = list[memoryview](), dict[bytes, memoryview]()
    at = 0
    for first, last in _long_arrays(view):
        kept.append(view[at:first])
        arrays[b"%d" % len(arrays)] = view[first:last]
        at = last
    kept.append(view[at:])
    if sum(map(len, kept)) > _SKELETON_BYTES:
        raise invalid("the JSON beside its arrays of numbers is too long: send data as binary")
    mark = _unused_mark(b"".join(kept))
    names = [b'"%b%b"' % (mark, number) for number in arrays] + [b""]
    skeleton = b"".join(part for pair in zip(kept, names, strict=True) for part in pair)
    return skeleton, dict(zip(names, arrays.values(), strict=False))


def values(name: str, datatype: str, shape: Sequence[int], text: memoryview) -> Array:
    """As `tensors.from_json`: the array that the text says, flat, or of rows where it has two
    dimensions. (Deeper ones must be flat, or binary, where they are long.)"""
    items = tensors.count(name, shape)
    if datatype not in tensors.DTYPES:
        raise invalid(f"input {name}: so much of {datatype[:20]} travels as binary data only")
    wrong = f"input {name}: its data are not {datatype} of shape {list(shape)}"
    inner = text[1:-1]
    nested = bytes(inner[:_LONG_BYTES]).lstrip()[:1] == b"["
    if nested and len(shape) != 2:
        raise invalid(f"input {name}: so many data of {len(shape)} dimensions must come flat")
    if items > len(inner):
        raise invalid(wrong)
    row = tuple(shape[1:]) if nested else ()
    whole, size = np.empty(items, tensors.DTYPES[datatype]), 0
    for piece in _pieces(inner, nested):
        try:
            part = tensors.numbers(datatype, _decoder(datatype, nested).decode(piece))
        except tensors.NOT_NUMBERS:
            raise invalid(wrong) from None
        tensors.check_finite(name, datatype, part)
        if size + part.size > items or (part.size and part.shape[1:] != row):
            raise invalid(wrong)
        whole[size : size + part.size] = part.reshape(-1)
        size += part.size
    if size != items:
        raise invalid(f"input {name}: its data hold {size} values of shape {list(shape)}")
    return whole.reshape(shape)


def _long_arrays(view: memoryview) -> Iterator[tuple[int, int]]:
    """Where the long arrays of numbers lie: between a string and the next string or brace."""
    quotes, braces = _places(view, b'"'), _places(view, b"}")
    for lo, hi in _gaps(view, quotes):
        if hi - lo <= _LONG_BYTES:
            continue
        brace = bisect_left(braces, lo)
        if brace < len(braces):
            hi = min(hi, braces[brace])
        first = lo + bytes(view[lo : lo + _AROUND_BYTES]).find(b"[")
        from_ = max(lo, hi - _AROUND_BYTES)
        last = from_ + bytes(view[from_:hi]).rfind(b"]") + 1
        if first >= lo and last - first > _LONG_BYTES // 2:
            yield first, last


def _gaps(view: memoryview, quotes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """What lies between strings."""
    at, inside = 0, False
    for quote in quotes:
        if not inside:
            yield at, quote
            inside, begun = True, quote
        elif not _is_escaped(view, begun, quote):
            at, inside = quote + 1, False
    if not inside:
        yield at, len(view)


def _is_escaped(view: memoryview, begun: int, quote: int) -> bool:
    slashes = quote - 1
    while slashes > begun and view[slashes] == 0x5C:
        slashes -= 1
    return (quote - 1 - slashes) % 2 == 1


def _places(view: memoryview, byte: bytes) -> list[int]:
    text, found = np.frombuffer(view, np.uint8), list[int]()
    for at in range(0, len(view), _LOOK_BYTES):
        found += (np.flatnonzero(text[at : at + _LOOK_BYTES] == byte[0]) + at).tolist()
        if len(found) > _MOST_STRINGS:
            raise invalid("the JSON has too many strings or objects: send data as binary")
    return found


def _unused_mark(text: bytes) -> bytes:
    """What no string in the text begins with."""
    mark = b"@"
    while b'"' + mark in text:
        mark += b"@"
    return mark


def _pieces(inner: memoryview, nested: bool) -> Iterator[bytes]:
    """The inside of an array as several arrays, cut at commas; of rows, at those behind a row."""
    at = 0
    while at < len(inner):
        end = _find(inner, b"]", at + _PIECE_BYTES) if nested else at + _PIECE_BYTES
        end = _find(inner, b",", end) if end >= 0 else -1
        if end < 0:
            end = len(inner)
        elif end + 1 == len(inner):
            raise invalid("an array ends in a comma")
        if end - at > _LONGEST_PIECE_BYTES:
            raise invalid("rows of data are too long, or have blanks behind them: send them flat")
        yield b"[%b]" % bytes(inner[at:end])
        at = end + 1


def _find(inner: memoryview, what: bytes, at: int) -> int:
    for lo in range(at, min(len(inner), at + _LONGEST_PIECE_BYTES), _AROUND_BYTES):
        place = bytes(inner[lo : lo + _AROUND_BYTES + len(what) - 1]).find(what)
        if place >= 0:
            return lo + place
    return -1


@cache
def _decoder(datatype: str, nested: bool) -> msgspec.json.Decoder[Any]:
    element: Any = {"B": bool, "F": float}.get(datatype[0], int)
    return msgspec.json.Decoder(list[list[element]] if nested else list[element])


__all__ = ["take_out", "values"]
