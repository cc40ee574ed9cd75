"""Which of two versions answers a query: a share of them by a stable hash of their ids. Pure.

The same id gets the same version as long as the share is the same, on every server, and who had the
other one keeps it when the share grows. The native core chooses likewise (`http/reading.cpp`).
"""

from __future__ import annotations

import struct

_OFFSET, _PRIME, _GOLDEN = 0xCBF29CE484222325, 0x100000001B3, 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def place(id: bytes) -> float:
    """From 0 to 1, evenly: FNV-1a (Fowler, Noll and Vo), its bits mixed by a product."""
    value = _OFFSET
    for byte in id:
        value = ((value ^ byte) * _PRIME) & _WORD
    value ^= value >> 32
    return (((value * _GOLDEN) & _WORD) >> 11) * 2.0**-53


def key(id: str, arrived_s: float) -> bytes:
    """What a query is placed by: its id, or when it came, where it has none."""
    return id.encode() if id else struct.pack("<d", arrived_s)


def takes_other(id: bytes, share: float) -> bool:
    """Is it one of the `share` of queries that the other version answers?"""
    return place(id) < share


__all__ = ["key", "place", "takes_other"]
