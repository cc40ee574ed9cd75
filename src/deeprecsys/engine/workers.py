"""The threads of the cores: each pulls a request, executes it and says what finished.

What they execute, and what a query's answer is, say the books; one that dies or hangs is replaced
by another, and the queries in its request fail alone.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence
from typing import Any

from deeprecsys.core import Status
from deeprecsys.engine.answers import WorkerLost, answer, answer_expired
from deeprecsys.engine.books import Books
from deeprecsys.engine.ledger import Query, clock
from deeprecsys.engine.process import pin_thread
from deeprecsys.engine.sleepers import Sleepers
from deeprecsys.rules.dispatch import Slice
from deeprecsys.runtimes import Runtime

# What a worker did before it asks for more.
_BUSY, _HOT, _WOKEN = 0, 1, 2

Pieces = list[tuple[Query, int, int]]


class _Lost(BaseException):
    """Ends a worker's thread: what it executed asked for that, a `SystemExit` for example."""


class Workers:
    """`len(cores)` threads; `None` instead of a core leaves a worker unpinned.

    executed, busy_s [workers]: requests, and seconds in them. executing [workers]: since when,
    and of which queries. lost: why each that was replaced was.
    """

    def __init__(self, books: Books, runtime: Runtime, cores: Sequence[int | None]) -> None:
        self._books, self._runtime, self._cores = books, runtime, cores
        self.sleepers = Sleepers(len(cores))
        self.executed = array("q", [0]) * len(cores)
        self.busy_s = array("d", [0.0]) * len(cores)
        self.executing: list[tuple[float, list[Slice]] | None] = [None] * len(cores)
        self.lost: list[str] = []
        self.ending = False
        self._threads = [self._thread(i) for i in range(len(cores))]

    def __len__(self) -> int:
        return len(self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def wake(self) -> threading.Lock | None:
        """Whose gate to open, if anybody's. Under the lock."""
        return self.sleepers.wake() if self._books.rules.queued_items else None

    def end(self) -> None:
        """Lets them finish what waits, and go home."""
        with self._books.lock:
            self.ending = True
            gates = self.sleepers.everybody_up()
        for gate in gates:
            gate.release()
        for thread in self._threads:
            thread.join()

    def replace_hung(self, longest_s: float) -> int:
        """Replaces those that have been executing one request for longer; how many."""
        now = clock()
        hung = [
            worker
            for worker, executing in enumerate(list(self.executing))
            if executing is not None and now - executing[0] > longest_s
        ]
        for worker in hung:
            error = WorkerLost(f"a worker hung for more than {longest_s:g} s")
            self._replace(worker, self._threads[worker], error)
        return len(hung)

    def _replace(self, worker: int, thread: threading.Thread, error: BaseException) -> None:
        """Another thread in the place of one that died or hung while it executed a request."""
        with self._books.lock:
            executing = self.executing[worker]
            if self._threads[worker] is not thread or executing is None:
                return  # replaced already, or it came back meanwhile
            self.executing[worker] = None
            self.lost.append(str(error))
            self._threads[worker] = self._thread(worker)
            self._threads[worker].start()
        self._books.drop([id for id, _, _ in executing[1]], Status.FAILED, error)

    def _thread(self, worker: int) -> threading.Thread:
        return threading.Thread(
            target=self._work, args=(worker,), name=f"worker-{worker}", daemon=True
        )

    def _work(self, worker: int) -> None:
        """A worker's life; should it end by a fault of ours, nobody waits for it in vain."""
        try:
            pin_thread(self._cores[worker])
            self._runtime.enter_thread()
            self._serve(worker)
        except _Lost as lost:
            error = WorkerLost(f"a worker died: {type(lost.__cause__).__name__}")
            self._replace(worker, threading.current_thread(), error)
        except BaseException as error:
            self._books.fail(error)

    def _serve(self, worker: int) -> None:
        """Pull, execute, finish, until the engine closes with nothing left."""
        gate, state, me = self.sleepers.gates[worker], _BUSY, threading.current_thread()
        while (slices := self._next(worker, state)) is not None:
            if slices:
                state = _BUSY
                self._execute(worker, slices)
                if self._threads[worker] is not me:
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
            if slices:
                other = self.wake()
            elif self.ending:
                slices = None
            elif state == _BUSY:
                sleepers.hot += 1
            else:
                sleepers.lie_down(worker)
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

    def _execute(self, worker: int, slices: list[Slice]) -> None:
        """One request. What a model raises concerns the queries in it, and no others."""
        get = self._books.queries.get  # None: dropped between pull and here
        work = [(query, lo, hi) for id, lo, hi in slices if (query := get(id)) is not None]
        if not work:
            return
        began = clock()
        self.executing[worker] = began, slices
        for query, lo, _ in work:
            if lo == 0:
                query.ledger.start_s[query.row] = began
        try:
            self._run(work)
        except Exception as error:
            self.executing[worker] = None
            self._books.drop([id for id, _, _ in slices], Status.FAILED, error)
            return
        except BaseException as error:
            raise _Lost from error
        self._done(worker, slices, work, began)

    def _run(self, work: Pieces) -> Any:
        for query, _, _ in work:
            if query.prepared is None:
                query.prepared = self._runtime.prepare(query.inputs, query.scores)
        if len(work) == 1:
            query, lo, hi = work[0]
            return self._runtime.execute(query.prepared, lo, hi)
        return self._runtime.execute_together([(q.prepared, lo, hi) for q, lo, hi in work])

    def _done(self, worker: int, slices: list[Slice], work: Pieces, began: float) -> None:
        now = clock()
        self.executing[worker] = None
        self.executed[worker] += 1
        self.busy_s[worker] += now - began
        sleepers = self.sleepers
        sleepers.typical_s = 0.8 * min(sleepers.typical_s, 1.0) + 0.2 * (now - began)
        for query, lo, hi in work:
            if query.ledger.trace is not None:
                query.ledger.trace.append((query.row, lo, hi, worker, began, now))
        with self._books.lock:
            finished = self._books.finish(slices)
            self._learn(work, finished, began, now)
        for query in finished:
            query.ledger.finish_s[query.row] = now
            query.ledger.worker[query.row] = worker
            answer(query, Status.OK)

    def _learn(self, work: Pieces, finished: list[Query], began: float, now: float) -> None:
        """How long a request took, and what became of promises. Under the lock."""
        admission = self._books.admission
        if admission is not None:
            policy = work[0][0].policy
            most = policy.most_items if policy.adaptive else policy.batch_size
            items = sum(hi - lo for _, lo, hi in work)
            admission.executed(admission.request_s(items, most), now - began)
            self._books.learn(finished, now)
