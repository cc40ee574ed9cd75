"""Tensors that lie in shared memory: what a request says of them, and who fetches and puts them.

The protocol's extension `system_shared_memory`. Values only; the memory itself is the server's
business (`serving/shared_memory.py`), which the readers of requests are handed as a `Memory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deeprecsys.protocol import tensors
from deeprecsys.protocol.reasons import invalid
from deeprecsys.protocol.tensors import Array, Buffer

REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a region, which is called so."""

    region: str
    offset: int
    size: int

    def said(self, size: int) -> dict[str, Any]:
        """The parameters of an output of so many bytes that was put here."""
        return {REGION: self.region, SIZE: size} | ({OFFSET: self.offset} if self.offset else {})


class Target(Protocol):
    """Where an output goes."""

    @property
    def place(self) -> Place: ...

    def put(self, data: Buffer) -> None:
        """Refusal where it has no room for so much, or none any more."""

    def release(self) -> None:
        """Nothing will be put there any more."""


class Memory(Protocol):
    """What a request may use. Both raise Refusal."""

    def read(self, name: str, place: Place) -> Buffer: ...

    def target(self, name: str, place: Place) -> Target: ...


def place_of(name: str, parameters: Mapping[str, Any]) -> Place | None:
    """Of the input or output of that name; None: it is not in shared memory."""
    region = parameters.get(REGION)
    if region is None:
        return None
    if not isinstance(region, str) or not region:
        raise invalid(f"{name}: parameter {REGION} is the name of a region")
    size, offset = parameters.get(SIZE), parameters.get(OFFSET, 0)
    for parameter, number in ((SIZE, size), (OFFSET, offset)):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
            raise invalid(f"{name}: parameter {parameter} must be a whole number of bytes")
    assert isinstance(size, int)
    return Place(region, offset, size)


def read(
    memory: Memory | None, name: str, datatype: str, shape: Sequence[int], place: Place
) -> Array:
    """The input that lies there."""
    if memory is None:
        raise invalid(f"input {name}: this server has no shared memory: send the data")
    tensors.check_length(name, datatype, shape, place.size)  # before anything is read
    return tensors.from_bytes(name, datatype, shape, memory.read(name, place))


def targets(memory: Memory | None, places: Mapping[str, Place]) -> dict[str, Target]:
    """Of outputs, by name."""
    if places and memory is None:
        raise invalid(f"output {min(places)}: this server has no shared memory: take the data")
    return {name: memory.target(name, place) for name, place in places.items()} if memory else {}


__all__ = ["REGION", "Memory", "Place", "Target", "place_of", "read", "targets"]
