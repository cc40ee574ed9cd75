"""`Client`: any KServe v2 server as a system, under open-loop load over HTTP or gRPC.

The sending is done by child processes (`process.py`), so that neither the caller's work nor
the watching of a run makes a query late; here they are started, told when a run begins, and
listened to. A latency counts from the scheduled arrival to the last byte of the answer,
whatever the client itself had to wait for; `records.lag_s` says how much of it that was.
"""

from __future__ import annotations

import math
import os
import select
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from deeprecsys.client.access import Access
from deeprecsys.client.pools import Column, offsets, pool_items
from deeprecsys.client.process import Plan, Setup
from deeprecsys.client.recorded import Recorded, read_queries
from deeprecsys.client.server import Address, Description, Tensor, describe
from deeprecsys.client.shared import check_shared
from deeprecsys.client.sheet import Sheet, Tally, new_file
from deeprecsys.client.values import known_inputs, offset_inputs, plan, ragged_inputs
from deeprecsys.core import (
    DEFAULT_INDICES,
    Facts,
    Policy,
    Records,
    Schedule,
    Status,
    UserError,
    Watch,
)
from deeprecsys.workload import parse_indices

clock = time.perf_counter

_LOOK_EVERY_S = 0.1
# From the word to begin until the first arrival: until it has reached every process.
_LEAD_S = 0.02
# A process that has not drawn its pool, or not ended a run after the last answer, by then is
# taken for dead.
_PREPARED_S, _ENDED_S = 300.0, 10.0
_PATIENCE_S = 60.0


class Client:
    """`with Client("http://host:8000", "dlrm-rmc1") as client: client.run(schedule, policy)`.

    processes: that send; one is one core at most. connections: at most, of each process (HTTP).
    values: what the server does not say of its inputs: {"input": {"rows": 40000}}, or "low" and
    "high", or "normal": [mean, deviation]; with "scope": "query", "shape" and "datatype" where
    needed; {"ids": {"rows": 40000, "ragged": "lengths"}, "lengths": {"low": 0, "high": 20}}.
    queries: a file of recorded ones, sent in their order instead of drawn ones; a schedule's
    sizes give way to theirs.
    key: for a bearer token. headers: sent with every request, of gRPC as metadata. ca_file: PEM
    certificates to trust over https:// and grpcs:// instead of the system's.
    binary: tensors as bytes; False: as JSON, which is slow.
    shared_memory: tensors lie in shared memory, of which the server is told where; it must be on
    this machine, and drawn queries are of inputs that are not jagged.
    bare: for a server of no protocol, over HTTP: it is asked nothing, and a query is its tensors
    alone, one after another, for the path of the URL; `values` must describe every input.
    timeout_s: the server's own deadline, sent with every request (None: none). patience_s: a
    query without an answer by then has failed.
    The policy of a run is the server's business. Entering asks the server and starts the
    processes; UserError, in one line, where it is not there, or not ready.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        processes: int = 1,
        connections: int = 256,
        values: Mapping[str, Any] | None = None,
        queries: str | None = None,
        seed: int = 0,
        key: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        ca_file: str | None = None,
        binary: bool = True,
        bare: bool = False,
        shared_memory: bool = False,
        timeout_s: float | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self.address, self.model = Address.parse(url), model
        for name, count in (("processes", processes), ("connections", connections)):
            if not isinstance(count, int) or count < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {count!r}")
        for name, seconds in (("timeout_s", timeout_s), ("patience_s", patience_s)):
            if seconds is not None and not 0 < seconds < math.inf:
                raise UserError(f"{name} must be positive, not {seconds:g}")
        if bare and not self.address.http:
            raise UserError(f"bare queries are sent over http:// or https://, not {url}")
        if shared_memory and (bare or queries is not None or not self.address.http):
            raise UserError(
                "--shared-memory is for drawn queries over http:// or unix:; leave it out, or "
                "--queries-file"
            )
        self._access = Access.of(self.address.scheme, headers, key, ca_file)
        self._processes, self._connections = processes, connections
        self._values, self.queries, self._seed = values, queries, seed
        self.recorded: Recorded | None = None
        self.columns: tuple[Column, ...] = ()
        # What had to be assumed of the inputs' values, one sentence each.
        self.assumptions: list[str] = []
        self._binary, self._bare, self._shared = binary, bare, shared_memory
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._fd: int | None = None
        self._children: list[_Child] = []
        self._tally, self._wall_s = Tally(), 0.0
        self._recorded_as: tuple[tuple[Tensor, ...], tuple[str, ...], tuple[str, ...]]
        self._recorded_as = ((), (), ())
        self._items: dict[str, int] = {}  # of the pool drawn last, by index law

    def __enter__(self) -> Self:
        if self._fd is not None:
            raise RuntimeError("the client is open already")
        self.described: Description = (
            Description("", "", "", (), {})
            if self._bare
            else describe(self.address, self.model, self._access)
        )
        self._choose_inputs()
        if self._shared:
            if any(column.ragged or column.counts for column in self.columns):
                raise UserError("jagged inputs are made anew for each query: no --shared-memory")
            check_shared(self.address, self._access)
        self._fd = new_file()
        try:
            self._start_missing(self._fd)
        except BaseException:  # Ctrl-C, too
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes. Idempotent."""
        for child in self._children:
            child.end()
        self._children = []
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def run(
        self, schedule: Schedule, policy: Policy | None = None, *, watch: Watch | None = None
    ) -> Records:
        """Plays the schedule, open loop; see `core.System`. `worker` is the process that sent."""
        fd = self._open_fd()
        parse_indices(schedule.indices)
        sheet = Sheet(fd, len(schedule))
        items, where = 0, np.arange(len(schedule))
        if self.recorded:
            where %= len(self.recorded)
            schedule = replace(schedule, size=self.recorded.size[where])
        else:
            items = self._pool_items(schedule)
            where = offsets(schedule.size, self.columns, items)
        sheet.fill(schedule, where)
        self._start_missing(fd)
        self._tally = Tally()
        before_s = time.thread_time()
        run = _Run(schedule, sheet, self._children, watch, self._tally, self._patience_s)
        try:
            return run.play(Plan(len(schedule), items, schedule.indices))
        finally:
            # The watching is the client's work, too.
            self._tally.cpu_s += time.thread_time() - before_s
            self._wall_s = run.wall_s

    def prepare(self, largest: int, indices: str = DEFAULT_INDICES) -> None:
        """Draws what queries of up to `largest` candidates are cut from: what a run would do
        before it begins, and a budget should not pay for."""
        if not self.recorded:
            self._items[indices] = pool_items(self.columns, largest)
        self.run(Schedule(np.zeros(0), np.zeros(0, np.int64), indices))

    def facts(self) -> Facts:
        """Workers as the server's configuration says, or 1."""
        said = self.described
        detail = {"server": said.server, "version": said.version, "platform": said.platform}
        return Facts(workers=said.workers, detail=detail | {"url": str(self.address)})

    def disturbance(self) -> float:
        """Nothing is known of the server's machine."""
        return 0.0

    def last_run(self) -> dict[str, Any]:
        """Of the last run: `by_status` (answers, by the protocol's own status), `unanswered`,
        `unreached` (of those, for lack of a connection), `resent`, `bytes_sent`, `cpu_s` (of all
        the client's processes), `core_share` (of one core), `examples` (an error's text by
        status), `processes`."""
        share = self._tally.cpu_s / self._wall_s if self._wall_s else 0.0
        told: dict[str, Any] = msgspec.to_builtins(self._tally)
        return told | {"core_share": share, "processes": self._processes}

    def _choose_inputs(self) -> None:
        if self.queries is None:
            self.columns, self.assumptions = plan(self.described, self._values)
            return
        inputs = known_inputs(self.described, self._values)
        given = self._values or {}
        ragged = ragged_inputs(inputs, self.described, given, self.assumptions)
        offsets = offset_inputs(ragged, self.described, given)
        self._recorded_as = (inputs, tuple(ragged), tuple(offsets))
        self.recorded = read_queries(self.queries, *self._recorded_as)

    def _pool_items(self, schedule: Schedule) -> int:
        """As large as before if that will do: drawing another takes a second."""
        largest = int(schedule.size.max(initial=1))
        if self._items.get(schedule.indices, 0) < largest:
            self._items[schedule.indices] = pool_items(self.columns, largest)
        return self._items[schedule.indices]

    def _start_missing(self, fd: int) -> None:
        """All of them at first; later those that died."""
        alive = {child.number: child for child in self._children if child.alive()}
        for child in self._children:
            if child.number not in alive:
                child.end()
        self._children = [
            alive.get(number) or _Child(self._setup(number, fd))
            for number in range(self._processes)
        ]
        for child in self._children:  # at the same time
            if child.number not in alive:
                child.wait_started()

    def _setup(self, number: int, fd: int) -> Setup:
        timeout_us = None if self._timeout_s is None else max(1, round(self._timeout_s * 1e6))
        return Setup(
            self.address, self.model, self.columns, number, self._processes, fd,
            self._connections, self._access, self._seed, self._binary, self._bare, self._shared,
            timeout_us, self._patience_s, self.described.peer, self.queries, *self._recorded_as,
        )  # fmt: skip

    def _open_fd(self) -> int:
        if self._fd is None:
            raise RuntimeError("the client is not open: use it in a with statement")
        return self._fd


class _Run:
    """One run, from the processes' pools to their tallies; `play` is called once."""

    def __init__(
        self,
        schedule: Schedule,
        sheet: Sheet,
        children: Sequence[_Child],
        watch: Watch | None,
        tally: Tally,
        patience_s: float,
    ) -> None:
        self._schedule, self._sheet, self._children = schedule, sheet, children
        self._watch, self._tally, self._patience_s = watch, tally, patience_s
        self._owing: set[int] = set()  # processes that have not answered yet
        self._stopped_s = math.inf
        self.wall_s = 0.0

    def play(self, plan: Plan) -> Records:
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                selector.register(child.stdout, selectors.EVENT_READ, child)
            self._prepare(selector, plan)
            self._began_s = clock() + _LEAD_S
            self._tell(repr(self._began_s).encode())
            try:
                latest_s = self._began_s + self._schedule.duration_s + self._patience_s + _ENDED_S
                self._hear(selector, latest_s, self._look)
            finally:
                self._sheet.stop[0] = 1
                self._hear(selector, clock() + _ENDED_S)
                self.wall_s = clock() - self._began_s
        return self._ended()

    def _prepare(self, selector: Any, plan: Plan) -> None:
        self._tell(msgspec.json.encode(plan))
        try:
            self._hear(selector, clock() + _PREPARED_S)
        except BaseException:  # Ctrl-C: they would wait for a run that does not come
            for child in self._children:
                child.kill()
            raise

    def _tell(self, line: bytes) -> None:
        for child in self._children:
            if child.listening:
                self._owing.add(child.number)
                child.tell(line)

    def _hear(
        self, selector: Any, until_s: float, stop: Callable[[float], bool] = lambda now: False
    ) -> None:
        """Of every process an answer to what it was told, a tally or that it is ready; or that
        it died. Those that have not answered by `until_s` are killed; `stop(now)` ends it."""
        while self._owing:
            for key, _ in selector.select(_LOOK_EVERY_S):
                if (line := key.data.line()) is None:
                    continue
                self._owing.discard(key.data.number)
                if not line:
                    selector.unregister(key.data.stdout)
                    self._died(key.data)
                elif line.startswith(b"{"):
                    self._tally.add(msgspec.json.decode(line, type=Tally))
            now = clock()
            if self._owing and stop(now):
                return
            if now > until_s:
                for child in self._children:
                    if child.number in self._owing:
                        child.kill()  # its pipe ends, which the next turn hears
                until_s = math.inf

    def _died(self, child: _Child) -> None:
        """Its rows have failed, as far as they had no answer."""
        child.listening = False
        mine = slice(child.number, None, len(self._children))
        status = self._sheet["status"][mine]
        open_rows = status == Status.PENDING
        status[open_rows] = Status.FAILED
        self._tally.not_answered(
            f"a process of the client ended ({child.why()})", int(open_rows.sum())
        )

    def _look(self, now: float) -> bool:
        now_s = now - self._began_s
        if self._watch is None or now_s < 0:
            return False
        if self._watch(self._records(now_s), now_s):
            self._stopped_s = now_s
            return True
        return False

    def _ended(self) -> Records:
        records = self._records(min(self._stopped_s, clock() - self._began_s))
        left = Status.CANCELLED if self._stopped_s < math.inf else Status.FAILED
        records.status[records.status == Status.PENDING] = left
        return records

    def _records(self, now_s: float) -> Records:
        """The queries that were due until now, those under way as PENDING."""
        sheet = self._sheet
        n = int(np.searchsorted(self._schedule.arrival_s, now_s, side="right"))
        status = sheet["status"][:n].copy()  # first: it is written last
        finish_s = np.where(status == Status.OK, sheet["finish_s"][:n] - self._began_s, np.nan)
        submit_s = sheet["submit_s"][:n] - self._began_s
        # What has not been sent is at least as late as now.
        submit_s = np.where(np.isnan(submit_s), now_s, submit_s)
        sent_by = np.arange(n, dtype=np.int32) % len(self._children)
        return Records(
            arrival_s=self._schedule.arrival_s[:n],
            start_s=submit_s,
            finish_s=finish_s,
            size=self._schedule.size[:n],
            device=np.zeros(n, np.int16),
            worker=np.where(status == Status.PENDING, -1, sent_by).astype(np.int32),
            status=status,
            submit_s=submit_s,
        )


class _Child:
    """A sending process and the two pipes to it.

    A plain interpreter with one module: multiprocessing would import the caller's program again.
    """

    def __init__(self, setup: Setup) -> None:
        self.number, self.listening = setup.number, True
        here = str(Path(__file__).parents[2])
        code = (
            f"import sys; sys.path.insert(0, {here!r}); "
            "from deeprecsys.client.process import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(setup.sheet_fd,),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout
        self._heard = b""
        self.tell(msgspec.json.encode(setup))

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self.listening and self._process.poll() is None

    def tell(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # its death is heard on the other pipe
            self._stdin.write(line + b"\n")

    def line(self) -> bytes | None:
        """The next line; None if there is none yet; empty at the end. Waits only if not ready."""
        found = os.read(self.stdout.fileno(), 1 << 16)
        if not found:
            return b""
        line, end, rest = (self._heard + found).partition(b"\n")
        self._heard = rest if end else line
        return line if end else None

    def wait_started(self) -> None:
        """RuntimeError if it does not."""
        line: bytes | None = None
        while line is None and select.select([self.stdout], [], [], _PREPARED_S)[0]:
            line = self.line()
        if not line:
            self.kill()
            raise RuntimeError(f"a process of the client did not start ({self.why()})")

    def why(self) -> str:
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """It ends when its input does."""
        for pipe in (self._stdin, self.stdout):
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
