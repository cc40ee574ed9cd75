"""Compressed bodies, inflated step by step: little must not become too much, nor take too long.

Pure; the caller says how much may come of it, and is told as it grows. Called in threads: zlib
lets others work meanwhile.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from deeprecsys.protocol.reasons import invalid
from deeprecsys.protocol.tensors import Buffer

ENCODINGS = ("gzip", "x-gzip", "deflate")
_STEP_BYTES, _GROWTH_BYTES = 64 << 10, 1 << 20  # of what is fed, and of what comes, at a time
_MOST_MEMBERS = 1000
_DEFLATE, _RAW, _GZIP = 15, -15, 31  # zlib's word for the header: its own, none, gzip's


def inflate(body: Buffer, encoding: str, grown: Callable[[int], None]) -> bytearray:
    """The body as it was. `grown` is told of bytes before they are kept, and may refuse. A gzip
    body may have several members, which follow each other. Refusal (400) where it is not what it
    says, or cut off."""
    if encoding not in ENCODINGS:
        raise invalid(f"content encoding {encoding[:20]!r}: identity, gzip or deflate")
    view = memoryview(body)
    try:
        if encoding == "deflate":
            return _inflate(view, _DEFLATE if _has_header(view) else _RAW, grown)
        return _inflate(view, _GZIP, grown)
    except zlib.error:
        raise invalid(f"the body is not {encoding}") from None


def _inflate(view: memoryview, kind: int, grown: Callable[[int], None]) -> bytearray:
    plain, members, stream = bytearray(), 1, zlib.decompressobj(kind)
    for at in range(0, len(view), _STEP_BYTES):
        piece: bytes = bytes(view[at : at + _STEP_BYTES])
        while piece or stream.unconsumed_tail:
            if stream.eof:
                members += 1
                if kind != _GZIP or members > _MOST_MEMBERS:
                    raise invalid("the compressed body goes on behind its end")
                stream = zlib.decompressobj(kind)
            more = stream.decompress(piece, _GROWTH_BYTES)
            grown(len(more))
            plain += more
            piece = stream.unused_data if stream.eof else stream.unconsumed_tail
    if not stream.eof:
        raise invalid("the compressed body is cut off")
    return plain


def _has_header(view: memoryview) -> bool:
    """RFC 1950: the method is 8, and the two bytes a multiple of 31."""
    return len(view) > 1 and view[0] & 15 == 8 and (view[0] << 8 | view[1]) % 31 == 0


__all__ = ["ENCODINGS", "inflate"]
