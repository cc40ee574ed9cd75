"""Regions of shared memory that clients registered: where queries' inputs lie, and answers go.

POSIX shared memory (files of /dev/shm), by the protocol's extension `system_shared_memory`. Inputs
are copied out by the kernel (`preadv`), outputs in (`pwrite`); nothing is mapped. A mapping would
save the copy, and would let whoever else has the memory open end this process by making it shorter
(SIGBUS), or have a model read beyond its tables by changing ids that were checked already. So
whatever a client does to its memory meanwhile, its own query alone is spoilt. The cost:
`docs/decisions/0023-shared-memory.md`.

A region is kept open until the last query that uses it is answered, whatever is unregistered.
Knows neither HTTP nor gRPC.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Protocol

import numpy as np

from deeprecsys.protocol import tensors
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.shared import Place
from deeprecsys.protocol.tensors import Array, Buffer
from deeprecsys.serving.bounds import Bounds, Hold, over

FOLDER = "/dev/shm"  # where Linux's C libraries have it
MOST_REGIONS = 256  # each is one or two open files
_NAME_CHARACTERS, _KEY_CHARACTERS = 256, 255
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_AGAIN = "unregister it, and register it as it is now"


class Region:
    """Bytes [offset, offset + size) of the shared memory `key`. Raises Refusal.

    Opened for reading; for writing once an output is to go there.
    """

    __slots__ = ("_file", "_lock", "_writable", "key", "name", "offset", "size")

    def __init__(self, name: str, key: str, offset: int, size: int) -> None:
        self._file = self._writable = -1
        self.name, self.key, self.offset, self.size = name, key, offset, size
        self._lock = threading.Lock()
        self._file = file = _opened(name, key)
        try:
            self._check()
        except Refusal:
            self._file = -1
            os.close(file)  # at once: a refusal keeps this for a while
            raise

    def __del__(self) -> None:
        for file in (self._file, self._writable):
            if file >= 0:
                os.close(file)

    def check(self, what: str, place: Place) -> None:
        """what: whose place it is, for the message."""
        if place.offset + place.size > self.size:
            raise invalid(
                f"{what}: {place.size} bytes at offset {place.offset} are beyond region "
                f"{self.name[:80]!r}, which was registered with {self.size}"
            )

    def read(self, place: Place) -> memoryview:
        """A copy of these bytes, aligned as arrays are."""
        data = np.empty(place.size, np.uint8).data
        at, got = self.offset + place.offset, 0
        while got < place.size:
            count = os.preadv(self._file, [data[got:]], at + got)
            if not count:
                raise self._shrunk()
            got += count
        return data

    def share_with(self, sharer: Sharer) -> None:
        sharer.share(self.name, self._file, self.offset, self.size)

    def open_for_writing(self) -> None:
        """The same memory, though its key may be another's by now."""
        with self._lock:
            if self._writable < 0:
                try:
                    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
                    self._writable = os.open(f"/proc/self/fd/{self._file}", flags)
                except OSError as error:
                    raise invalid(
                        f"region {self.name[:80]!r} cannot be written ({error.strerror}): let the "
                        "server's user write it, or take the output with the answer"
                    ) from None

    def write(self, place: Place, data: Buffer) -> None:
        """Of memory that is shortened in this very moment, it makes the client's own longer."""
        at, view = self.offset + place.offset, memoryview(data)
        if os.fstat(self._writable).st_size < at + len(view):
            raise self._shrunk()
        try:
            while view:
                done = os.pwrite(self._writable, view, at)
                at, view = at + done, view[done:]
        except OSError as error:
            raise invalid(
                f"region {self.name[:80]!r} cannot be written: {error.strerror}"
            ) from None

    def _check(self) -> None:
        found, region, key = os.fstat(self._file), f"region {self.name[:80]!r}", self.key[:80]
        if not stat.S_ISREG(found.st_mode):
            raise invalid(f"{region}: {key!r} is no shared memory")
        if found.st_size < self.offset + self.size:
            raise invalid(
                f"{region}: {self.size} bytes at offset {self.offset} are beyond shared memory "
                f"{key!r}, which has {found.st_size}: make it larger, or say less"
            )

    def _shrunk(self) -> Refusal:
        return invalid(
            f"region {self.name[:80]!r}: its shared memory is shorter than when it was registered: "
            + _AGAIN
        )


class Sharer(Protocol):
    """Who else reads regions: the native door."""

    def share(self, name: str, file: int, offset: int, size: int) -> None: ...

    def unshare(self, name: str) -> None: ...


class Regions:
    """By name. From any thread."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}
        self._lock = threading.Lock()
        self._sharer: Sharer | None = None

    def share_with(self, sharer: Sharer) -> None:
        """It is told of those that there are, and of what becomes of them."""
        with self._lock:
            self._sharer = sharer
            for region in self._regions.values():
                region.share_with(sharer)

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Refusal (400) that says what is wrong."""
        _check(name, key, offset, size)
        with self._lock:
            if name in self._regions:
                raise invalid(f"region {name[:80]!r} is registered already: unregister it first")
            if len(self._regions) >= MOST_REGIONS:
                raise invalid(
                    f"{MOST_REGIONS} regions are registered, and there can be no more: unregister "
                    "what is not used, or register larger ones"
                )
            region = self._regions[name] = Region(name, key, offset, size)
            if self._sharer is not None:
                region.share_with(self._sharer)

    def unregister(self, name: str = "") -> None:
        """All, where none is named. One that is not there counts as gone, as with other servers."""
        with self._lock:
            for one in [name] if name else list(self._regions):
                if self._regions.pop(one, None) is not None and self._sharer is not None:
                    self._sharer.unshare(one)

    def status(self, name: str = "") -> list[Region]:
        """All, where none is named, in the order in which they came."""
        with self._lock:
            return [self.find(name)] if name else list(self._regions.values())

    def find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise Refusal(Reason.NOT_FOUND, f"no region {name[:80]!r} is registered")
        return region

    def __len__(self) -> int:
        return len(self._regions)


class LongCopy(Exception):
    """So much is copied elsewhere than in the event loop."""


@dataclass(slots=True)
class Output:
    """A target: see `protocol.shared`. Once it is put, or will not be, it lets go of the region."""

    name: str
    region: Region | None
    place: Place

    def put(self, data: Buffer) -> None:
        assert self.region is not None
        if len(data) > self.place.size:
            raise invalid(
                f"output {self.name} has {len(data)} bytes, and shared_memory_byte_size says "
                f"{self.place.size}: give it more room"
            )
        self.region.write(self.place, data)

    def release(self) -> None:
        self.region = None


class Reader:
    """What one query takes out of regions: counted as the bytes of a body are, and bounded as one.

    at_once: most bytes that may be copied in the thread that asks; beyond, `LongCopy` is raised,
    and the query is read `again`, elsewhere.
    """

    __slots__ = ("_at_once", "_bounds", "_held", "_hold", "_read", "_regions")

    def __init__(self, regions: Regions, hold: Hold, bounds: Bounds, at_once: int | None) -> None:
        self._regions, self._hold, self._bounds = regions, hold, bounds
        self._at_once = at_once
        self._read = self._held = 0  # bytes of this reading; that are counted

    def again(self) -> Reader:
        self._at_once, self._read = None, 0
        return self

    def read(self, name: str, place: Place) -> Buffer:
        region = self._found(f"input {name}", place)
        self._read += place.size
        if self._read > self._bounds.body_bytes:
            message = f"the inputs are over {self._bounds.body_bytes} bytes"
            raise over(Reason.TOO_LARGE, message, "max-body-mb")
        if self._at_once is not None and self._read > self._at_once:
            raise LongCopy
        if self._read > self._held:
            self._hold.add(self._read - self._held)
            self._held = self._read
        return region.read(place)

    def target(self, name: str, place: Place) -> Output:
        region = self._found(f"output {name}", place)
        region.open_for_writing()
        return Output(name, region, place)

    def _found(self, what: str, place: Place) -> Region:
        try:
            region = self._regions.find(place.region)
        except Refusal as refusal:  # of the query, which there is
            raise invalid(f"{what}: {refusal.message}: register it first") from None
        region.check(what, place)
        return region


def put(call: Call, outputs: Mapping[str, Array] | None) -> Refusal | None:
    """Outputs to where they are wanted (None: there are none), after which the call holds no region
    any more; why one of them could not go there."""
    try:
        for name, target in call.targets.items():
            if outputs is not None:
                array = outputs[name]
                target.put(tensors.to_bytes(array, tensors.datatype_of(array)))
    except Refusal as refusal:
        return refusal.with_traceback(None)
    finally:
        for target in call.targets.values():
            target.release()
    return None


def check_local(client: str) -> None:
    """Refusal unless this client, by its address, is on this machine: to others its memory is of no
    use, and what they registered would be somebody else's. One without an address came by a Unix
    socket."""
    try:
        address = ip_address(client)
    except ValueError:
        return
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    if not (mapped or address).is_loopback:
        raise Refusal(
            Reason.FORBIDDEN,
            "shared memory is for clients on the server's machine: connect to 127.0.0.1 or to its "
            "Unix socket (--uds)",
        )


def _check(name: str, key: str, offset: int, size: int) -> None:
    if not name or len(name) > _NAME_CHARACTERS:
        raise invalid(f"a region's name has 1 to {_NAME_CHARACTERS} characters")
    plain = key.removeprefix("/")
    if not plain or len(plain) > _KEY_CHARACTERS or plain in (".", ".."):
        raise invalid(f"region {name[:80]!r}: its key must be a name, such as /queries")
    if "/" in plain or "\0" in plain:
        raise invalid(
            f"region {name[:80]!r}: its key {key[:80]!r} must be one name, with a slash at most "
            "before it"
        )
    if size < 1 or offset < 0 or offset + size >= 1 << 63:
        raise invalid(f"region {name[:80]!r}: byte_size is at least 1, offset at least 0")


def _opened(name: str, key: str) -> int:
    region = f"region {name[:80]!r}"
    try:
        return os.open(f"{FOLDER}/{key.removeprefix('/')}", _READING)
    except FileNotFoundError:
        raise invalid(f"{region}: no shared memory {key[:80]!r}: create it first") from None
    except PermissionError:
        raise invalid(
            f"{region}: shared memory {key[:80]!r} is another user's: let the server's user read it"
        ) from None
    except (OSError, ValueError) as error:  # a link; a folder; no such name
        why = getattr(error, "strerror", None) or "no name of a file"
        raise invalid(f"{region}: {key[:80]!r} is no shared memory ({why})") from None


__all__ = ["LongCopy", "Output", "Reader", "Region", "Regions", "check_local", "put"]
