"""The threads of the cores, which live in the native core: it pulls, sleeps and wakes, and executes
what needs no Python. Requests of queries that Python answers are executed here.

What they execute, and what a query's answer is, say the books; one that dies or hangs is replaced
by another, and the queries in its request fail alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from deeprecsys._native import Seat, Sleepers
from deeprecsys.core import Status
from deeprecsys.engine.answers import WorkerLost, answer
from deeprecsys.engine.books import Books
from deeprecsys.engine.ledger import Query, clock
from deeprecsys.engine.process import enter_worker
from deeprecsys.rules.dispatch import Slice
from deeprecsys.runtimes import Runtime

Pieces = list[tuple[Query, int, int]]


class _Lost(BaseException):
    """Ends a worker's thread: what it executed asked for that, a `SystemExit` for example."""


@dataclass(slots=True, eq=False)  # not frozen, which costs a microsecond each
class Request:
    """What a worker executes, and since when; None: what the core executes."""

    began_s: float
    slices: list[Slice] | None


@dataclass(frozen=True, slots=True)
class Gate:
    """What an idle worker sleeps at."""

    release: Callable[[], None]


class Worker:
    """A thread in a place, which it may have lost to another while it hung.

    request: for Python; written by its own thread alone, and taken back under the lock, so that
    who looks can say under the lock whether it still is what was seen.
    """

    __slots__ = ("number", "request", "seat", "thread")

    def __init__(self, number: int, work: Callable[[Worker], None]) -> None:
        self.number, self.seat = number, Seat(number)
        self.request: Request | None = None
        self.thread = threading.Thread(
            target=work, args=(self,), name=f"worker-{number}", daemon=True
        )

    @property
    def executing(self) -> Request | None:
        """What it does now."""
        if self.request is None and (began_s := self.seat.began_s):
            return Request(began_s, None)
        return self.request


class Workers:
    """`len(cores)` threads; `None` instead of a core leaves a worker unpinned.

    executed, busy_s [workers]: requests, and seconds in them. lost: why each that was replaced
    was.
    """

    def __init__(
        self,
        books: Books,
        cores: Sequence[int | None],
        watch: Callable[[float], None] = lambda due_s: None,
    ) -> None:
        """watch: asks for `unstick` at a time."""
        self._books, self._cores, self._watch = books, cores, watch
        self._core = books.core
        self._gates = [Gate(partial(books.core.open, number)) for number in range(len(cores))]
        self.lost: list[str] = []
        self._entered = threading.local()  # by runtimes
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

    @property
    def sleepers(self) -> Sleepers:
        return self._core.sleepers

    @property
    def executed(self) -> list[int]:
        return self._core.executed

    @property
    def busy_s(self) -> list[float]:
        return self._core.busy_s

    def wake(self) -> Gate | None:
        """Whose gate to open, if anybody's. Under the lock."""
        number = self._core.wake()
        return None if number is None else self._gates[number]

    def watch_doubts(self) -> None:
        """Where nobody was woken, for somebody who is awake is expected to look soon: has that
        looked at again."""
        due_s = self._core.take_watch()
        if due_s < math.inf:
            self._watch(due_s)

    def unstick(self, now: float) -> float:
        """Wakes somebody where items wait beside an idle worker; when to look again: as long as
        there is doubt, for to ask for it each time costs a wake-up."""
        return self._core.unstick(now)

    def use(self, workers: int | None) -> None:
        """Only so many of them take requests from now on (None: all). Under the lock."""
        self._core.use(workers or len(self))
        for part in self._books.parts.values():
            if part.admission is not None:
                part.admission.workers = self.sleepers.wanted

    def end(self, until_s: float) -> bool:
        """Lets them finish what waits, and go home; False: some hang."""
        self._core.end()
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
        if request.slices is None:
            if not self._core.give_up(worker.seat, request.began_s):
                return False
            self._succeed(worker, error)
            return True
        with self._books.lock:
            if not self._holds(worker) or worker.request is not request:
                return False
            self._succeed(worker, error)
        self._books.drop([id for id, _, _ in request.slices], Status.FAILED, error)
        return True

    def _succeed(self, worker: Worker, error: BaseException) -> None:
        self.lost.append(str(error))
        other = self._at[worker.number] = Worker(worker.number, self._work)
        other.thread.start()

    def _holds(self, worker: Worker) -> bool:
        """Is it still the one in its place? Under the lock."""
        return self._at[worker.number] is worker

    def _work(self, worker: Worker) -> None:
        """A worker's life; should it end by a fault of ours, nobody waits for it in vain."""
        try:
            enter_worker(self._cores[worker.number])
            self._entered.runtimes = set[int]()
            execute = partial(self._execute, worker)
            self._core.serve(worker.seat, execute, self._books.expired, self._watch)
        except _Lost as lost:
            if worker.request is not None:
                error = WorkerLost(f"a worker died: {type(lost.__cause__).__name__}")
                self._replace(worker, worker.request, error)
        except BaseException as error:
            self._books.fail(error)

    def _execute(self, worker: Worker, slices: list[Slice]) -> bool:
        """One request; False: another has its place by now. What a model raises concerns the
        queries in it, and no others."""
        with self._books.lock:
            work = self._books.begin(slices)
        if not work:
            return True
        request = worker.request = Request(clock(), slices)
        for query, lo, _ in work:
            if lo == 0:
                query.ledger.start_s[query.row] = request.began_s
        self._enter(work[0][0].part.runtime)
        try:
            self._run(work)
        except Exception as error:
            return self._failed(worker, slices, error)
        except BaseException as error:
            raise _Lost from error
        return self._done(worker, request, slices, work)

    def _enter(self, runtime: Runtime) -> None:
        """What it has to do once in every thread; if it cannot, that is not the query's fault."""
        if id(runtime) not in self._entered.runtimes:
            runtime.enter_thread()
            self._entered.runtimes.add(id(runtime))

    def _failed(self, worker: Worker, slices: list[Slice], error: Exception) -> bool:
        with self._books.lock:
            if not self._holds(worker):
                return False
            worker.request = None
        self._books.drop([id for id, _, _ in slices], Status.FAILED, error)
        return True

    def _run(self, work: Pieces) -> Any:
        """All of one model: a request never holds slices of several."""
        runtime = work[0][0].part.runtime
        for query, _, _ in work:
            if query.prepared is None:
                query.prepared = runtime.prepare(query.inputs, query.scores)
        if len(work) == 1:
            query, lo, hi = work[0]
            return runtime.execute(query.prepared, lo, hi)
        return runtime.execute_together([(q.prepared, lo, hi) for q, lo, hi in work])

    def _done(self, worker: Worker, request: Request, slices: list[Slice], work: Pieces) -> bool:
        number = worker.number
        with self._books.lock:
            # Under the lock, so that of a query's requests none is over after the last.
            now = clock()
            took_s = now - request.began_s
            if not self._holds(worker):
                return False
            worker.request = None
            self._core.count(number, took_s)
            finished = self._books.finish(slices)
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
        admission = work[0][0].part.admission
        if admission is not None:
            policy = work[0][0].policy
            most = policy.most_items if policy.adaptive else policy.batch_size
            items = sum(hi - lo for _, lo, hi in work)
            admission.executed(admission.request_s(items, most), took_s)
            self._books.learn(finished, now)
