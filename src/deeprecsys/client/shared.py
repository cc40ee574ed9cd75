"""Queries whose tensors lie in shared memory: a pool that the server was told of, and heads.

For a server on this machine that knows the protocol's extension `system_shared_memory`. The memory
loses its name as soon as the server has it open, so that nothing is left behind whatever ends this
process. HTTP only.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import msgspec

from deeprecsys.client.access import Access
from deeprecsys.client.pools import Pool
from deeprecsys.client.server import Address, Answered, Http
from deeprecsys.core import UserError

_FOLDER = "/dev/shm"
_ALIGNMENT = 64


class SharedPool:
    """The pool's bytes, registered under a name of this process. UserError where that is refused.

    begins: of each column, where in the region it does.
    """

    def __init__(self, pool: Pool, address: Address, access: Access) -> None:
        self.pool = pool
        self.begins, end = list[int](), 0
        for data in pool.data:
            self.begins.append(end)
            end += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        self._registered = _Registered(address, access, end, self._fill)
        self.region = self._registered.name

    def close(self) -> None:
        self._registered.close()

    def _fill(self, memory: mmap.mmap) -> None:
        for begin, data in zip(self.begins, self.pool.data, strict=True):
            memory[begin : begin + len(data)] = data


def check_shared(address: Address, access: Access) -> None:
    """UserError unless the server takes shared memory of this process."""
    _Registered(address, access, mmap.PAGESIZE, lambda _: None).close()


class _Registered:
    """A region of so many bytes, filled before the server is told of it."""

    def __init__(
        self, address: Address, access: Access, size: int, fill: Callable[[mmap.mmap], None]
    ) -> None:
        self.name = f"deeprecsys-load-{os.getpid()}"
        self._address, self._access = address, access
        path = f"{_FOLDER}/{self.name}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size)
            with mmap.mmap(file, size) as memory:
                fill(memory)
            self._tell("register", {"key": f"/{self.name}", "byte_size": size, "offset": 0})
        finally:
            os.close(file)
            os.unlink(path)

    def close(self) -> None:
        self._tell("unregister", None)

    def _tell(self, act: str, said: Any) -> None:
        path = f"{self._address.prefix}/v2/systemsharedmemory/region/{self.name}/{act}"
        asker = Http(self._address, self._access)
        try:
            asker.post(path, b"" if said is None else msgspec.json.encode(said))
        except Answered as error:
            raise UserError(
                f"{self._address} does not take shared memory ({error.status}: {error}): "
                "leave out --shared-memory"
            ) from error
        finally:
            asker.close()


def shared_head(
    start: str, timeout_us: int | None
) -> Callable[[SharedPool], Callable[[int, int], Any]]:
    """Of a pool: what is sent of a query, by its offset there and its size, and its bytes.

    start: the request line and the headers that are always the same.
    """
    timeout = {} if timeout_us is None else {"timeout": timeout_us}
    parameters = msgspec.json.encode({"binary_data_output": True, **timeout}).decode()

    def of(shared: SharedPool) -> Callable[[int, int], Any]:
        columns = [
            (msgspec.json.encode({"name": c.name, "datatype": c.datatype}).decode()[:-1],
             "".join(f",{length}" for length in c.shape), c.rows, c.row_bytes, begin)
            for c, begin in zip(shared.pool.columns, shared.begins, strict=True)
        ]  # fmt: skip

        def message(offset: int, size: int) -> tuple[list[Any], int]:
            inputs = []
            for named, shape, rows, width, begin in columns:
                count = size if rows is None else rows
                inputs.append(
                    f'{named},"shape":[{count}{shape}],"parameters":{{'
                    f'"shared_memory_region":"{shared.region}",'
                    f'"shared_memory_byte_size":{count * width},'
                    f'"shared_memory_offset":{begin + offset * width}}}}}'
                )
            body = f'{{"inputs":[{",".join(inputs)}],"parameters":{parameters}}}'.encode()
            whole = f"{start}Content-Length: {len(body)}\r\n\r\n".encode() + body
            return [whole], len(whole)

        return message

    return of


__all__ = ["SharedPool", "check_shared", "shared_head"]
