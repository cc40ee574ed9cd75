"""The threads of the cores: each pulls a request, executes it and says what finished.

What they execute, and what a query's answer is, say the books; one that dies or hangs is replaced
by another, and the queries in its request fail alone.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deeprecsys.core import Status
from deeprecsys.engine.answers import WorkerLost, answer, answer_expired
from deeprecsys.engine.books import Books
from deeprecsys.engine.ledger import Query, clock
from deeprecsys.engine.process import enter_worker
from deeprecsys.engine.sleepers import STALL_S, Sleepers
from deeprecsys.rules.dispatch import Slice
from deeprecsys.runtimes import Runtime

# What a worker did before it asks for more.
_BUSY, _HOT, _WOKEN = 0, 1, 2

Pieces = list[tuple[Query, int, int]]


class _Lost(BaseException):
    """Ends a worker's thread: what it executed asked for that, a `SystemExit` for example."""


@dataclass(slots=True, eq=False)  # not frozen, which costs a microsecond each
class Request:
    """What a worker executes, and since when."""

    began_s: float
    slices: list[Slice]


class Worker:
    """A thread in a place, which it may have lost to another while it hung.

    executing: written by its own thread alone, and taken back under the lock, so that who looks
    can say under the lock whether it still is what was seen.
    """

    __slots__ = ("executing", "number", "thread")

    def __init__(self, number: int, work: Callable[[Worker], None]) -> None:
        self.number = number
        self.executing: Request | None = None
        self.thread = threading.Thread(
            target=work, args=(self,), name=f"worker-{number}", daemon=True
        )


class Workers:
    """`len(cores)` threads; `None` instead of a core leaves a worker unpinned.

    executed, busy_s [workers]: requests, and seconds in them. lost: why each that was replaced
    was.
    """

    def __init__(
        self,
        books: Books,
        runtime: Runtime,
        cores: Sequence[int | None],
        watch: Callable[[float], None] = lambda due_s: None,
    ) -> None:
        """watch: asks for `unstick` at a time."""
        self._books, self._runtime, self._cores, self._watch = books, runtime, cores, watch
        self.sleepers = Sleepers(len(cores))
        self.executed = array("q", [0]) * len(cores)
        self.busy_s = array("d", [0.0]) * len(cores)
        self.lost: list[str] = []
        self._doubted, self._look_s = False, math.inf  # see `unstick`
        self.ending = False
        self._at = [Worker(number, self._work) for number in range(len(cores))]

    def __len__(self) -> int:
        return len(self._at)

    def start(self) -> None:
        for worker in self._at:
            worker.thread.start()

    def is_alive(self) -> bool:
        return all(worker.thread.is_alive() for worker in self._at)

    def executing(self) -> int:
        """How many execute a request now."""
        return sum(worker.executing is not None for worker in self._at)

    def wake(self) -> threading.Lock | None:
        """Whose gate to open, if anybody's. Under the lock."""
        if not self._books.rules.queued_items or not self.sleepers.idle:
            return None
        gate = self.sleepers.wake()
        if gate is None:  # somebody who is awake is expected to look soon
            self._doubted = True
            if self._look_s == math.inf:
                self._look_s = clock() + STALL_S
                self._watch(self._look_s)
        return gate

    def unstick(self, now: float) -> float:
        """Wakes somebody where items wait beside an idle worker; when to look again: as long as
        there is doubt, for to ask for it each time costs a wake-up."""
        if now < self._look_s:
            return self._look_s
        sleepers, gate = self.sleepers, None
        with self._books.lock:
            waits = bool(self._books.rules.queued_items and sleepers.idle)
            if waits:
                gate = sleepers.wake(stuck=now - sleepers.looked_s > STALL_S / 2)
            self._look_s = now + STALL_S if waits or self._doubted else math.inf
            self._doubted = False
        if gate is not None:
            gate.release()
        return self._look_s

    def use(self, workers: int | None) -> None:
        """Only so many of them take requests from now on (None: all). Under the lock."""
        self.sleepers.use(workers)
        if self._books.admission is not None:
            self._books.admission.workers = self.sleepers.wanted

    def end(self, until_s: float) -> bool:
        """Lets them finish what waits, and go home; False: some hang."""
        with self._books.lock:
            self.ending = True
            gates = self.sleepers.everybody_up()
        for gate in gates:
            gate.release()
        for worker in self._at:
            worker.thread.join(max(0.0, until_s - clock()))
        return not any(worker.thread.is_alive() for worker in self._at)

    def replace_hung(self, longest_s: float) -> int:
        """Replaces those that have been executing one request for longer; how many."""
        seen = [(worker, worker.executing) for worker in self._at]
        since_s = clock() - longest_s
        error = WorkerLost(f"a worker hung for more than {longest_s:g} s")
        return sum(
            self._replace(worker, request, error)
            for worker, request in seen
            if request is not None and request.began_s < since_s
        )

    def _replace(self, worker: Worker, request: Request, error: BaseException) -> bool:
        """Another in the place of one that died or hung while it executed that request; False: it
        was replaced already, or has finished it meanwhile."""
        with self._books.lock:
            if not self._holds(worker) or worker.executing is not request:
                return False
            self.lost.append(str(error))
            other = self._at[worker.number] = Worker(worker.number, self._work)
            other.thread.start()
        self._books.drop([id for id, _, _ in request.slices], Status.FAILED, error)
        return True

    def _holds(self, worker: Worker) -> bool:
        """Is it still the one in its place? Under the lock."""
        return self._at[worker.number] is worker

    def _work(self, worker: Worker) -> None:
        """A worker's life; should it end by a fault of ours, nobody waits for it in vain."""
        try:
            enter_worker(self._cores[worker.number])
            self._runtime.enter_thread()
            self._serve(worker)
        except _Lost as lost:
            if worker.executing is not None:
                error = WorkerLost(f"a worker died: {type(lost.__cause__).__name__}")
                self._replace(worker, worker.executing, error)
        except BaseException as error:
            self._books.fail(error)

    def _serve(self, worker: Worker) -> None:
        """Pull, execute, finish, until the engine closes with nothing left."""
        gate, state = self.sleepers.gates[worker.number], _BUSY
        while (slices := self._next(worker.number, state)) is not None:
            if slices:
                state = _BUSY
                if not self._execute(worker, slices):
                    return  # it was taken for lost, and another works in its place
            elif state == _BUSY:
                state = _HOT
                time.sleep(0)  # lets whoever waits for the GIL run: most likely the generator
            else:
                state = _WOKEN
                gate.acquire()

    def _next(self, worker: int, state: int) -> list[Slice] | None:
        """What to execute; empty: look again (was busy), or sleep until woken; None: go home."""
        books, sleepers = self._books, self.sleepers
        other: threading.Lock | None = None
        slices: list[Slice] | None
        with books.lock:
            now = clock()
            if state == _HOT:
                sleepers.hot -= 1
            elif state == _WOKEN:
                sleepers.waking -= 1
            expired = books.expire(now)
            slices = self._pull(worker, now)
            sleepers.looked_s = now
            if slices:
                other = self.wake()
            elif self.ending:
                slices = None
            elif state == _BUSY:
                sleepers.hot += 1
            else:
                sleepers.lie_down(worker)
                other = self.wake()  # where it is parked, and was woken as one of the others
                books.notify_quiet()
        if other is not None:
            other.release()
        if expired:
            answer_expired(expired)
        return slices

    def _pull(self, worker: int, now: float) -> list[Slice]:
        """The next slices for the cores."""
        if worker >= self.sleepers.wanted:
            return []
        books, idle = self._books, 1 + self.sleepers.free
        return books.kept(lambda: books.rules.pull(worker, now, idle))

    def _execute(self, worker: Worker, slices: list[Slice]) -> bool:
        """One request; False: another has its place by now. What a model raises concerns the
        queries in it, and no others."""
        get = self._books.queries.get  # None: dropped between pull and here
        work = [(query, lo, hi) for id, lo, hi in slices if (query := get(id)) is not None]
        if not work:
            return True
        request = worker.executing = Request(clock(), slices)
        for query, lo, _ in work:
            if lo == 0:
                query.ledger.start_s[query.row] = request.began_s
        try:
            self._run(work)
        except Exception as error:
            return self._failed(worker, request, error)
        except BaseException as error:
            raise _Lost from error
        return self._done(worker, request, work)

    def _failed(self, worker: Worker, request: Request, error: Exception) -> bool:
        with self._books.lock:
            if not self._holds(worker):
                return False
            worker.executing = None
        self._books.drop([id for id, _, _ in request.slices], Status.FAILED, error)
        return True

    def _run(self, work: Pieces) -> Any:
        for query, _, _ in work:
            if query.prepared is None:
                query.prepared = self._runtime.prepare(query.inputs, query.scores)
        if len(work) == 1:
            query, lo, hi = work[0]
            return self._runtime.execute(query.prepared, lo, hi)
        return self._runtime.execute_together([(q.prepared, lo, hi) for q, lo, hi in work])

    def _done(self, worker: Worker, request: Request, work: Pieces) -> bool:
        now, number, sleepers = clock(), worker.number, self.sleepers
        took_s = now - request.began_s
        with self._books.lock:
            if not self._holds(worker):
                return False
            worker.executing = None
            self.executed[number] += 1
            self.busy_s[number] += took_s
            sleepers.typical_s = 0.8 * min(sleepers.typical_s, 1.0) + 0.2 * took_s
            finished = self._books.finish(request.slices)
            self._learn(work, finished, took_s, now)
        for query, lo, hi in work:
            if query.ledger.trace is not None:
                query.ledger.trace.append((query.row, lo, hi, number, request.began_s, now))
        for query in finished:
            query.ledger.finish_s[query.row] = now
            query.ledger.worker[query.row] = number
            answer(query, Status.OK)
        return True

    def _learn(self, work: Pieces, finished: list[Query], took_s: float, now: float) -> None:
        """How long a request took, and what became of promises. Under the lock."""
        admission = self._books.admission
        if admission is not None:
            policy = work[0][0].policy
            most = policy.most_items if policy.adaptive else policy.batch_size
            items = sum(hi - lo for _, lo, hi in work)
            admission.executed(admission.request_s(items, most), took_s)
            self._books.learn(finished, now)
