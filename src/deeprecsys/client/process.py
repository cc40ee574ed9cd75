"""A process of the load client: draws its pool, then sends its rows of one run after another.

Speaks lines of JSON with its parent: a `Setup` first, answered by "started"; then, for each run, a
`Plan`, answered by "ready", and when the run began, answered by a `Tally`. Ends when its parent
does. Must start quickly and import little: neither torch nor, for HTTP, grpc.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from deeprecsys.client.access import Access
from deeprecsys.client.messages import (
    Input,
    Queries,
    binary_head,
    grpc_head,
    grpc_message,
    json_message,
)
from deeprecsys.client.pools import Column, draw_pool
from deeprecsys.client.server import Address, Tensor
from deeprecsys.client.shared import SharedPool, shared_head
from deeprecsys.client.sheet import Rows, Sheet, Tally
from deeprecsys.engine.process import generator_priority


@dataclass(frozen=True, slots=True)
class Setup:
    """What stays the same for all runs. recorded: a file of queries, with its inputs and which of
    them are ragged, or offsets; then there are no columns."""

    address: Address
    model: str
    columns: tuple[Column, ...]
    number: int
    processes: int
    sheet_fd: int
    connections: int
    access: Access
    seed: int
    binary: bool
    bare: bool
    shared: bool
    timeout_us: int | None
    patience_s: float
    peer: str | None
    recorded: str | None
    inputs: tuple[Tensor, ...]
    ragged: tuple[str, ...]
    offsets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What differs from run to run: how many rows the sheet has, and the pool they are cut from."""

    rows: int
    items: int
    indices: str


def main() -> None:
    # What else this process prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    leaving = list[Callable[[], None]]()
    threading.Thread(target=_read, args=(lines, leaving), daemon=True).start()
    _many_files()
    process = _Process(msgspec.json.decode(lines.get(), type=Setup))
    leaving.append(process.close)
    print('"started"', file=answers, flush=True)
    while True:
        plan = msgspec.json.decode(lines.get(), type=Plan)
        process.prepare(plan)
        print('"ready"', file=answers, flush=True)
        began_s = float(lines.get())
        tally = process.run(plan, began_s)
        print(msgspec.json.encode(tally).decode(), file=answers, flush=True)


class _Process:
    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._load = _load(setup)
        self._pool: tuple[Plan, Queries] | None = None
        self._shared: SharedPool | None = None
        self._recorded: Queries | None = None
        inputs: Sequence[Input] = setup.columns
        if setup.recorded is not None:
            from deeprecsys.client.recorded import read_queries

            found = read_queries(setup.recorded, setup.inputs, setup.ragged, setup.offsets)
            self._recorded, inputs = found, found.inputs
        self._message = _messages(setup, inputs)

    def prepare(self, plan: Plan) -> None:
        kept = self._pool and (self._pool[0].items, self._pool[0].indices)
        if self._recorded is None and kept != (plan.items, plan.indices):
            self._pool = None  # before there are two
            self.close()
            setup = self._setup
            drawn = draw_pool(setup.columns, plan.items, plan.indices, setup.seed)
            self._pool = plan, drawn
            if setup.shared:
                self._shared = SharedPool(drawn, setup.address, setup.access)
        self._load.connect()

    def close(self) -> None:
        """Leaves nothing with the server."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()

    def run(self, plan: Plan, began_s: float) -> Tally:
        queries = self._recorded or (self._pool and self._pool[1])
        assert queries is not None
        setup = self._setup
        sheet = Sheet(setup.sheet_fd, plan.rows)
        rows = Rows(sheet, setup.number, setup.processes, began_s)
        before_s = time.process_time()
        with generator_priority():
            tally: Tally = self._load.run(rows, self._message(self._shared or queries))
        tally.cpu_s = time.process_time() - before_s
        return tally


def _load(setup: Setup) -> Any:
    given = setup.address, setup.connections, setup.patience_s, setup.access
    if setup.address.http:
        from deeprecsys.client.http import HttpLoad

        return HttpLoad(*given, setup.peer)
    from deeprecsys.client.grpc import GrpcLoad

    return GrpcLoad(*given)


def _messages(setup: Setup, inputs: Sequence[Input]) -> Callable[[Any], Callable[[int, int], Any]]:
    """Of queries: what is sent of one, by its offset there and its size."""
    if not setup.address.http:
        before = grpc_head(setup.model, inputs, setup.timeout_us)
        return lambda queries: (
            lambda offset, size: grpc_message(
                before(queries.layout(offset, size)), queries.window(offset, size)
            )
        )
    path = f"{setup.address.path(setup.model)}/infer"
    if setup.bare:
        path = setup.address.prefix or "/"
    fields = [("Host", setup.access.host or setup.address.host_field), *setup.access.fields]
    start = f"POST {path} HTTP/1.1\r\n"
    start += "".join(f"{name}: {value}\r\n" for name, value in fields)
    head = binary_head(start, inputs, setup.timeout_us)

    def binary(queries: Queries) -> Callable[[int, int], Any]:
        def message(offset: int, size: int) -> tuple[list[Any], int]:
            first, total = head(queries.layout(offset, size))
            return [first, *queries.window(offset, size)], total

        return message

    def plain(queries: Queries) -> Callable[[int, int], Any]:
        def message(offset: int, size: int) -> tuple[list[Any], int]:
            layout, views = queries.layout(offset, size), queries.window(offset, size)
            whole = json_message(start, inputs, setup.timeout_us, views, layout)
            return [whole], len(whole)

        return message

    def bare(queries: Queries) -> Callable[[int, int], Any]:
        def message(offset: int, size: int) -> tuple[list[Any], int]:
            views = queries.window(offset, size)
            length = sum(map(len, views))
            first = f"{start}Content-Length: {length}\r\n\r\n".encode()
            return [first, *views], len(first) + length

        return message

    if setup.shared:
        return shared_head(start, setup.timeout_us)
    if setup.bare:
        return bare
    return binary if setup.binary else plain


def _read(lines: queue.SimpleQueue[bytes], leaving: Sequence[Callable[[], None]]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    for leave in leaving:
        with suppress(Exception):  # the server may have gone before
            leave()
    os._exit(0)  # the parent is gone, and nobody waits for what is under way


def _many_files() -> None:
    """A connection is a file, and the usual limit of 1,024 is a soft one."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
