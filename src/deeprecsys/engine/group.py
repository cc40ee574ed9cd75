"""Workers: the threads of one process that execute requests under one dispatcher.

The rules (what to execute next, when a query is done, what expires) are `dispatch.Dispatcher`'s;
here are the threads, the lock around the rules, and the futures. Whatever happens to a query,
exactly one place answers its future: `_answer`.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from deeprecsys.core import Policy, Records, Requests, Schedule, Status
from deeprecsys.dispatch import Dispatcher, Slice
from deeprecsys.engine.process import pin_thread
from deeprecsys.engine.topology import usable_cores
from deeprecsys.runtimes import Runtime, Scores

clock = time.perf_counter

# What a worker did before it asks for more.
_BUSY, _HOT, _WOKEN = 0, 1, 2
# Waking a thread costs about this much, two context switches and a wait for the GIL.
_WAKE_S = 30e-6


class DeadlineExceeded(TimeoutError):
    """The deadline passed before the query was finished; its remaining items were dropped."""


class EngineClosed(RuntimeError):
    """The engine no longer takes queries, or was closed without draining."""


class Ledger:
    """Columns that the workers of one run fill in, row by row; times on the engine's clock.

    Plain C arrays: a store costs 40 ns under the GIL, and a snapshot is one copy. traced: also
    keeps every request.
    """

    def __init__(self, n: int, traced: bool = False) -> None:
        nan = array("d", [math.nan])
        self.submit_s, self.start_s, self.finish_s = nan * n, nan * n, nan * n
        self.worker = array("i", [-1]) * n
        self.status = array("b", [Status.PENDING]) * n
        # (row, lo, hi, worker, start, finish); an append is atomic.
        self.trace: list[tuple[int, int, int, int, float, float]] | None = [] if traced else None

    def requests(self, began_s: float) -> Requests:
        """Every request executed until now, times counted from `began_s`; needs `traced`."""
        rows = np.array(self.trace or np.zeros((0, 6)), dtype=np.float64)
        query, lo, hi, worker, start_s, finish_s = rows.T
        columns = {"query": query, "lo": lo, "hi": hi, "worker": worker}
        times = {"start_s": start_s - began_s, "finish_s": finish_s - began_s}
        return Requests.from_columns(columns | times)

    def records(self, schedule: Schedule, began_s: float, rows: int) -> Records:
        """The first `rows` queries as they stand now, times counted from `began_s`."""

        def times(column: array[float]) -> Any:
            return np.frombuffer(column, dtype=np.float64)[:rows] - began_s

        return Records(
            arrival_s=schedule.arrival_s[:rows],
            start_s=times(self.start_s),
            finish_s=times(self.finish_s),
            size=schedule.size[:rows],
            device=np.zeros(rows, dtype=np.int16),
            worker=np.frombuffer(self.worker, dtype=np.int32)[:rows].copy(),
            status=np.frombuffer(self.status, dtype=np.int8)[:rows].copy(),
            submit_s=times(self.submit_s),
        )


class Query:
    """One query on its way: its future, its prepared inputs, its row in a ledger."""

    __slots__ = ("future", "ledger", "prepared", "row", "scores")

    def __init__(self, prepared: Any, scores: Scores, ledger: Ledger, row: int) -> None:
        self.prepared = prepared
        self.scores = scores
        self.ledger = ledger
        self.row = row
        self.future: Future[Scores] = Future()


class Group:
    """`len(cores)` worker threads; `None` instead of a core leaves a worker unpinned."""

    def __init__(
        self, runtime: Runtime, cores: Sequence[int | None], max_queued_items: int | None
    ) -> None:
        self.runtime = runtime
        self.executed = array("q", [0]) * len(cores)  # requests, by worker
        self._rules = Dispatcher(max_queued_items)
        self._lock = threading.Lock()
        self._queries: dict[int, Query] = {}
        self._next_id = 0
        self._closing = False
        # An idle worker sleeps on its own lock: waking one is one release, and no worker is
        # woken that has nothing to do (a condition variable costs several microseconds more).
        self._gates = [threading.Lock() for _ in cores]
        self._idle: list[int] = []
        # Workers woken that have not pulled yet. Each that pulls wakes the next while items wait,
        # so a few at a time suffice, and short requests do not wake workers that find nothing.
        self._waking = 0
        self._most_waking = max(2, len(usable_cores()) // 4)
        # Workers that found nothing and look once more before they sleep: they will take what
        # comes next without being woken, which costs two context switches.
        self._hot = 0
        self._typical_s = math.inf  # how long requests took lately
        self._quiet = threading.Condition(self._lock)  # notified when no query is open
        self._waiting_for_quiet = 0
        self._reaper = _Reaper(self.expire)
        for gate in self._gates:
            gate.acquire()
        self._threads = [
            threading.Thread(target=self._work, args=(i, core), name=f"worker-{i}", daemon=True)
            for i, core in enumerate(cores)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def workers(self) -> int:
        return len(self._threads)

    @property
    def queued_items(self) -> int:
        return self._rules.queued_items

    def submit(self, query: Query, size: int, policy: Policy, deadline_s: float) -> int:
        """Queues it and wakes an idle worker; its id.

        `deadline_s` is on the engine's clock. Raises QueueFull or EngineClosed.
        """
        with self._lock:
            if self._closing:
                raise EngineClosed("the engine is closed; open a new one")
            id = self._next_id
            self._rules.add(id, size, policy, deadline_s)
            self._next_id = id + 1
            self._queries[id] = query
            woken = self._wake()
        if woken is not None:
            self._gates[woken].release()
        if deadline_s < math.inf:
            self._reaper.watch(deadline_s)
        return id

    def answer_empty(self, query: Query) -> int:
        """A query of no candidates needs no worker: scores [0, K] at once."""
        query.ledger.start_s[query.row] = query.ledger.finish_s[query.row] = clock()
        _answer(query, Status.OK)
        return -1

    def drop(self, ids: Sequence[int], status: Status, error: BaseException | None = None) -> None:
        """Forgets what is left of these queries and answers them; the finished stay finished."""
        with self._lock:
            dropped = [self._queries.pop(id) for id in ids if self._rules.drop(id)]
            self._notify_quiet()
        for query in dropped:
            _answer(query, status, error)

    def drop_all(self, status: Status, error: BaseException | None = None) -> None:
        self.drop(list(self._queries), status, error)

    def expire(self, now: float) -> float:
        """Answers the queries whose deadline has passed; when the next one is due."""
        with self._lock:
            expired = self._expire(now)
            following = self._rules.next_deadline_s()
        _answer_expired(expired)
        return following

    def wait_quiet(self, timeout_s: float | None = None) -> bool:
        """Waits until no query is open and no request executes; False on time-out."""
        with self._lock:
            self._waiting_for_quiet += 1
            try:
                return self._quiet.wait_for(self._is_quiet, timeout_s)
            finally:
                self._waiting_for_quiet -= 1

    def close(self, drain: bool) -> None:
        """Takes no more; finishes what it has, or fails it with EngineClosed; ends the threads."""
        with self._lock:
            self._closing = True
            idle, self._idle = self._idle, []
        if not drain:
            self.drop_all(Status.CANCELLED, EngineClosed("the engine was closed"))
        for worker in idle:
            self._gates[worker].release()
        for thread in self._threads:
            thread.join()
        self._reaper.stop()

    def _wake(self) -> int | None:
        """Whose gate to open once the lock is released.

        Nobody's while a worker is about to look again; nor, where requests are shorter than
        waking someone takes, while anybody is awake at all.
        """
        awake = len(self._threads) - len(self._idle)
        brief = awake > 0 and self._typical_s < _WAKE_S
        enough = brief or self._hot or self._waking >= self._most_waking
        if self._idle and not enough and self._rules.queued_items:
            self._waking += 1
            return self._idle.pop()
        return None

    def _is_quiet(self) -> bool:
        return not self._queries and (self._closing or len(self._idle) == len(self._threads))

    def _notify_quiet(self) -> None:
        if self._waiting_for_quiet and self._is_quiet():
            self._quiet.notify_all()

    def _work(self, worker: int, core: int | None) -> None:
        """A worker's life; should it end by a fault of ours, nobody waits for it in vain."""
        try:
            pin_thread(core)
            self.runtime.enter_thread()
            self._serve(worker)
        except BaseException as error:
            with self._lock:
                self._closing = True
            self.drop_all(Status.FAILED, error)

    def _serve(self, worker: int) -> None:
        """Pull, execute, finish, until the engine closes with nothing left."""
        gate, state = self._gates[worker], _BUSY
        while (slices := self._next(worker, state)) is not None:
            if slices:
                state = _BUSY
                self._execute(worker, slices)
            elif state == _BUSY:
                state = _HOT
                time.sleep(0)  # lets whoever waits for the GIL run: most likely the generator
            else:
                state = _WOKEN
                gate.acquire()

    def _next(self, worker: int, state: int) -> list[Slice] | None:
        """What to execute; empty: look again (was busy), or sleep until woken; None: go home."""
        expired: list[Query] = []
        other: int | None = None
        slices: list[Slice] | None
        with self._lock:
            now = clock()
            if state == _HOT:
                self._hot -= 1
            elif state == _WOKEN:
                self._waking -= 1
            if self._rules.has_deadlines:
                expired = self._expire(now)
            slices = self._pull(worker, now, 1 + len(self._idle) + self._hot + self._waking)
            if slices:
                other = self._wake()
            elif self._closing:
                slices = None
            elif state == _BUSY:
                self._hot += 1
            else:
                self._idle.append(worker)
                self._notify_quiet()
        if other is not None:
            self._gates[other].release()
        if expired:
            _answer_expired(expired)
        return slices

    def _pull(self, worker: int, now: float, idle: int) -> list[Slice]:
        """The next slices; a query that its owner cancelled before it began is forgotten.

        Under the lock, so that a future which runs is one that nobody has answered.
        """
        while slices := self._rules.pull(worker, now, idle):
            kept = [piece for piece in slices if self._begins(*piece)]
            if kept:
                return kept
        return []

    def _begins(self, id: int, lo: int, hi: int) -> bool:
        query = self._queries[id]
        if lo or query.future.set_running_or_notify_cancel():
            return True
        self._rules.drop(id)
        del self._queries[id]
        query.ledger.status[query.row] = Status.CANCELLED
        return False

    def _execute(self, worker: int, slices: list[Slice]) -> None:
        """One request. What a model raises concerns the queries in it, and no others."""
        get = self._queries.get  # None: dropped between pull and here
        work = [(query, lo, hi) for id, lo, hi in slices if (query := get(id)) is not None]
        if not work:
            return
        began = clock()
        for query, lo, _ in work:
            if lo == 0:
                query.ledger.start_s[query.row] = began
        try:
            if len(work) == 1:
                query, lo, hi = work[0]
                self.runtime.execute(query.prepared, lo, hi)
            else:
                self.runtime.execute_together([(q.prepared, lo, hi) for q, lo, hi in work])
        except BaseException as error:
            self.drop([id for id, _, _ in slices], Status.FAILED, error)
            return
        now = clock()
        self.executed[worker] += 1
        self._typical_s = 0.8 * min(self._typical_s, 1.0) + 0.2 * (now - began)
        for query, lo, hi in work:
            if query.ledger.trace is not None:
                query.ledger.trace.append((query.row, lo, hi, worker, began, now))
        with self._lock:
            done = self._rules.finish
            finished = [self._queries.pop(id) for id, lo, hi in slices if done(id, hi - lo)]
        for query in finished:
            query.ledger.finish_s[query.row] = now
            query.ledger.worker[query.row] = worker
            _answer(query, Status.OK)

    def _expire(self, now: float) -> list[Query]:
        expired = [self._queries.pop(id) for id in self._rules.expire(now)]
        if expired:
            self._notify_quiet()
        return expired


class _Reaper:
    """Expires deadlines on time while every worker is busy; a thread only once it is needed."""

    def __init__(self, expire: Callable[[float], float]) -> None:
        self._expire = expire
        self._wake = threading.Event()
        self._due_s = math.inf
        self._stopped = False
        self._thread: threading.Thread | None = None

    def watch(self, deadline_s: float) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
            self._thread.start()
        if deadline_s < self._due_s:
            self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        # Group and reaper know each other; a closed engine's model should be freed at once.
        self._expire = lambda now: math.inf

    def _run(self) -> None:
        while not self._stopped:
            self._wake.clear()
            self._due_s = self._expire(clock())
            wait_s = min(self._due_s - clock(), 60.0)
            if wait_s > 0:
                self._wake.wait(wait_s)


def _answer_expired(queries: Sequence[Query]) -> None:
    for query in queries:
        _answer(query, Status.EXPIRED, DeadlineExceeded("the deadline passed"))


def _answer(query: Query, status: Status, error: BaseException | None = None) -> None:
    """The one place where a future gets its answer."""
    query.ledger.status[query.row] = status
    future = query.future
    if status is Status.OK:
        future.set_result(query.scores)
    elif error is not None:
        if not future.running() and not future.set_running_or_notify_cancel():
            return  # its owner cancelled it first
        future.set_exception(error)
    elif not future.cancelled():
        future.cancel()
        if future.running():  # it had begun: a running future cannot be cancelled, only failed
            future.set_exception(EngineClosed("the query was cancelled"))
