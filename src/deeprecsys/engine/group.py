"""Workers: the threads of one process that execute requests under one dispatcher.

The rules (what to execute next, when a query is done, what expires) are those of
`rules.dispatch.Dispatcher`; here are the threads, the lock around the rules, and the futures.
Whatever happens to a query, exactly one place answers its future: `_answer`. Accelerators have
threads of their own (`lane`).
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from deeprecsys.core import Policy, Status
from deeprecsys.engine.lane import Lane
from deeprecsys.engine.ledger import Promise, Query, clock
from deeprecsys.engine.process import pin_thread
from deeprecsys.engine.reaper import Reaper
from deeprecsys.engine.topology import usable_cores
from deeprecsys.rules.admission import Admission
from deeprecsys.rules.dispatch import Dispatcher, Slice, offloads
from deeprecsys.runtimes import Device, Runtime

# What a worker did before it asks for more.
_BUSY, _HOT, _WOKEN = 0, 1, 2
# Waking a thread costs about this much, two context switches and a wait for the GIL.
_WAKE_S = 30e-6


class DeadlineExceeded(TimeoutError):
    """The deadline passed before the query was finished; its remaining items were dropped."""


class WorkerLost(RuntimeError):
    """The worker that executed the query died or hung; another has taken its place."""


class TooLate(RuntimeError):
    """The query would most likely finish after its deadline, so it was not taken."""

    def __init__(self, predicted_s: float, deadline_s: float) -> None:
        super().__init__(
            f"it would finish in about {predicted_s * 1e3:.0f} ms, "
            f"its deadline is in {deadline_s * 1e3:.0f} ms"
        )
        self.predicted_s = predicted_s


class EngineClosed(RuntimeError):
    """The engine no longer takes queries, or was closed without draining."""


Work = list[tuple[int, Query]]  # by id: what an accelerator executes as one request


class _Lost(BaseException):
    """Ends a worker's thread: what it executed asked for that, a `SystemExit` for example."""


class Group:
    """`len(cores)` worker threads; `None` instead of a core leaves a worker unpinned."""

    def __init__(
        self,
        runtime: Runtime,
        cores: Sequence[int | None],
        max_queued_items: int | None,
        devices: Sequence[Device] = (),
        admission: Admission | None = None,
    ) -> None:
        self.runtime = runtime
        self.admission = admission
        self._cores = cores
        self.executed = array("q", [0]) * len(cores)  # requests, by worker
        self.busy_s = array("d", [0.0]) * len(cores)  # in them
        self._rules = Dispatcher(max_queued_items, len(devices))
        self._lock = threading.Lock()
        self._queries: dict[int, Query] = {}
        self._next_id = 0
        self._closing = self._ending = False
        # An idle worker sleeps on its own lock: waking one is one release, and no worker is
        # woken that has nothing to do (a condition variable costs several microseconds more).
        self._gates = [threading.Lock() for _ in cores]
        self._idle: list[int] = []
        # Workers that sleep because the run's policy has no use for them.
        self._parked: list[int] = []
        self._wanted = len(cores)
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
        self._reaper = Reaper(self.expire)
        for gate in self._gates:
            gate.acquire()
        # What each worker executes: since when, and of which queries.
        self._executing: list[tuple[float, list[Slice]] | None] = [None] * len(cores)
        self.lost_workers: list[str] = []  # why each was replaced
        self._threads = [self._thread(i) for i in range(len(cores))]
        self._lanes = [Lane(self, number, device) for number, device in enumerate(devices)]
        self._lane_sleeps = [False] * len(devices)
        self._offloading = [0] * len(devices)  # requests with each
        self.lost: dict[int, BaseException] = {}  # devices that failed, and why
        starting: list[Any] = [*self._threads, *self._lanes]
        for thread in starting:
            thread.start()

    @property
    def workers(self) -> int:
        return len(self._threads)

    @property
    def queued_items(self) -> int:
        return self._rules.queued_items

    @property
    def open_queries(self) -> int:
        return len(self._queries)

    def submit(
        self,
        query: Query,
        size: int,
        policy: Policy,
        deadline_s: float,
        priority: int = 0,
    ) -> int:
        """Queues it and wakes an idle worker; its id.

        `deadline_s` is on the engine's clock. Raises QueueFull or EngineClosed.
        """
        with self._lock:
            if self._closing:
                raise EngineClosed("the engine is closed; open a new one")
            id = self._next_id
            query.policy = policy
            cost = self.admission.work_s(size, policy) if self.admission else 0.0
            lane = self._rules.add(id, size, policy, deadline_s, priority, cost)
            self._next_id = id + 1
            self._queries[id] = query
            woken = self._wake() if lane is None else self._wake_lane(lane)
        if woken is not None:
            woken.release()
        if deadline_s < math.inf:
            self._reaper.watch(deadline_s)
        return id

    def admit(self, size: int, policy: Policy, deadline_s: float, priority: int) -> Promise | None:
        """Raises TooLate if such a query would most likely be. None: nothing is predicted, since
        there is no deadline, or it goes to an accelerator, whose queue is not looked at."""
        if self.admission is None or deadline_s == math.inf or self.offloads(policy, size):
            return None
        with self._lock:
            now, ahead_s = clock(), self._rules.ahead(priority)
            predicted_s = self.admission.predict_s(ahead_s, size, policy)
        # With nothing before it, it is taken whatever is predicted: how else would a wrong
        # prediction ever be mended?
        if ahead_s > 0 and predicted_s > deadline_s - now:
            raise TooLate(predicted_s, deadline_s - now)
        return Promise(now, predicted_s, deadline_s - now)

    def _learn(self, queries: Sequence[Query], now: float) -> None:
        """What became of those that were admitted by prediction. Under the lock."""
        for query in queries:
            if (made := query.promise) is not None and self.admission is not None:
                self.admission.finished(made.predicted_s, now - made.at_s, made.deadline_s)

    def replace_hung(self, longest_s: float) -> int:
        """Replaces workers that have been executing one request for longer; how many."""
        now = clock()
        hung = [
            worker
            for worker, executing in enumerate(list(self._executing))
            if executing is not None and now - executing[0] > longest_s
        ]
        for worker in hung:
            error = WorkerLost(f"a worker hung for more than {longest_s:g} s")
            self._replace(worker, self._threads[worker], error)
        return len(hung)

    def _replace(self, worker: int, thread: threading.Thread, error: BaseException) -> None:
        """Another thread in the place of one that died or hung while it executed a request."""
        with self._lock:
            executing = self._executing[worker]
            if self._threads[worker] is not thread or executing is None:
                return  # replaced already, or it came back meanwhile
            self._executing[worker] = None
            self.lost_workers.append(str(error))
            self._threads[worker] = self._thread(worker)
            self._threads[worker].start()
        self.drop([id for id, _, _ in executing[1]], Status.FAILED, error)

    def _thread(self, worker: int) -> threading.Thread:
        return threading.Thread(
            target=self._work, args=(worker,), name=f"worker-{worker}", daemon=True
        )

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

    def is_alive(self) -> bool:
        """Can it still answer queries?"""
        with self._lock:
            return not self._closing and all(thread.is_alive() for thread in self._threads)

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
        if not drain:
            self.drop_all(Status.CANCELLED, EngineClosed("the engine was closed"))
        # The cores last: a device that fails until its end leaves them its queries.
        for number, lane in enumerate(self._lanes):
            lane.gate.release()
            lane.join()
            if number not in self.lost:
                lane.device.close()
        with self._lock:
            self._ending = True
            sleeping = [*self._idle, *self._parked]
            self._idle, self._parked = [], []
        for worker in sleeping:
            self._gates[worker].release()
        for thread in self._threads:
            thread.join()
        self._reaper.stop()

    def use(self, workers: int | None) -> None:
        """Only so many of the workers take requests from now on (None: all); when quiet."""
        with self._lock:
            self._wanted = min(workers or len(self._threads), len(self._threads))
            sleeping = [*self._parked, *self._idle]
            self._idle = [worker for worker in sleeping if worker < self._wanted]
            self._parked = [worker for worker in sleeping if worker >= self._wanted]

    def offloads(self, policy: Policy, size: int) -> bool:
        """May a query of so many items go to an accelerator?"""
        return len(self.lost) < len(self._lanes) and offloads(policy, size)

    def next_offloaded(self, lane: int) -> Work | None:
        now = clock()
        with self._lock:
            if lane in self.lost:
                return None
            pull = self._rules.pull_offloaded
            expired = self._expire(now) if self._rules.has_deadlines else []
            slices = self._kept(lambda: pull(lane, now))
            self._offloading[lane] += bool(slices)
            self._lane_sleeps[lane] = not slices
            ends = self._closing and not slices
            work = [(id, self._queries[id]) for id, _, _ in slices]
        _answer_expired(expired)
        return None if ends else work

    def begin_offloaded(self, lane: int, work: Work) -> Any:
        began = clock()
        for _, query in work:
            query.ledger.start_s[query.row] = began
        return self._lanes[lane].device.begin([(q.inputs, q.scores) for _, q in work])

    def done_offloaded(self, lane: int, work: Work) -> None:
        now = clock()
        with self._lock:
            if lane in self.lost:  # the cores have these queries now
                return
            finished = self._finish([(id, 0, len(query.scores)) for id, query in work])
            self._offloading[lane] -= 1
            self._notify_quiet()
        number = len(self._threads) + lane
        for _, query in work:
            if query.ledger.trace is not None:
                began = query.ledger.start_s[query.row]
                query.ledger.trace.append((query.row, 0, len(query.scores), number, began, now))
        for query in finished:
            query.ledger.device[query.row] = lane + 1
            query.ledger.finish_s[query.row] = now
            _answer(query, Status.OK)

    def lose(self, lane: int, error: BaseException) -> None:
        with self._lock:
            if lane in self.lost:
                return
            self.lost[lane] = error
            self._rules.retire(lane)
            self._offloading[lane] = 0
            woken = self._wake()
        if woken is not None:
            woken.release()

    def _wake_lane(self, lane: int) -> threading.Semaphore | None:
        if not self._lane_sleeps[lane]:
            return None
        self._lane_sleeps[lane] = False
        return self._lanes[lane].gate

    def _wake(self) -> threading.Lock | None:
        """Which gate to open once the lock is released.

        Nobody's while a worker is about to look again; nor, where requests are shorter than
        waking someone takes, while anybody is awake at all.
        """
        awake = self._wanted - len(self._idle)
        brief = awake > 0 and self._typical_s < _WAKE_S
        enough = brief or self._hot or self._waking >= self._most_waking
        if self._idle and not enough and self._rules.queued_items:
            self._waking += 1
            return self._gates[self._idle.pop()]
        return None

    def _is_quiet(self) -> bool:
        if self._queries or any(self._offloading):
            return False
        return self._closing or len(self._idle) + len(self._parked) == len(self._threads)

    def _notify_quiet(self) -> None:
        if self._waiting_for_quiet and self._is_quiet():
            self._quiet.notify_all()

    def _work(self, worker: int) -> None:
        """A worker's life; should it end by a fault of ours, nobody waits for it in vain."""
        try:
            pin_thread(self._cores[worker])
            self.runtime.enter_thread()
            self._serve(worker)
        except _Lost as lost:
            error = WorkerLost(f"a worker died: {type(lost.__cause__).__name__}")
            self._replace(worker, threading.current_thread(), error)
        except BaseException as error:
            with self._lock:
                self._closing = True
            self.drop_all(Status.FAILED, error)

    def _serve(self, worker: int) -> None:
        """Pull, execute, finish, until the engine closes with nothing left."""
        gate, state, me = self._gates[worker], _BUSY, threading.current_thread()
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
        expired: list[Query] = []
        other: threading.Lock | None = None
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
            elif self._ending:
                slices = None
            elif state == _BUSY:
                self._hot += 1
            else:
                (self._idle if worker < self._wanted else self._parked).append(worker)
                self._notify_quiet()
        if other is not None:
            other.release()
        if expired:
            _answer_expired(expired)
        return slices

    def _pull(self, worker: int, now: float, idle: int) -> list[Slice]:
        """The next slices for the cores."""
        if worker >= self._wanted:
            return []
        return self._kept(lambda: self._rules.pull(worker, now, idle))

    def _kept(self, pull: Callable[[], list[Slice]]) -> list[Slice]:
        """The next slices; a query that its owner cancelled before it began is forgotten.

        Under the lock, so that a future which runs is one that nobody has answered.
        """
        while slices := pull():
            kept = [piece for piece in slices if self._begins(*piece)]
            if kept:
                return kept
        return []

    def _begins(self, id: int, lo: int, hi: int) -> bool:
        query = self._queries[id]
        begun = lo or query.future.running()  # which an accelerator may have lost
        if begun or query.future.set_running_or_notify_cancel():
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
        self._executing[worker] = began, slices
        for query, lo, _ in work:
            if lo == 0:
                query.ledger.start_s[query.row] = began
        try:
            for query, _, _ in work:
                if query.prepared is None:
                    query.prepared = self.runtime.prepare(query.inputs, query.scores)
            if len(work) == 1:
                query, lo, hi = work[0]
                self.runtime.execute(query.prepared, lo, hi)
            else:
                self.runtime.execute_together([(q.prepared, lo, hi) for q, lo, hi in work])
        except Exception as error:
            self._executing[worker] = None
            self.drop([id for id, _, _ in slices], Status.FAILED, error)
            return
        except BaseException as error:
            raise _Lost from error
        now = clock()
        self._executing[worker] = None
        self.executed[worker] += 1
        self.busy_s[worker] += now - began
        self._typical_s = 0.8 * min(self._typical_s, 1.0) + 0.2 * (now - began)
        for query, lo, hi in work:
            if query.ledger.trace is not None:
                query.ledger.trace.append((query.row, lo, hi, worker, began, now))
        with self._lock:
            finished = self._finish(slices)
            if self.admission is not None:
                policy = work[0][0].policy
                most = policy.most_items if policy.adaptive else policy.batch_size
                items = sum(hi - lo for _, lo, hi in work)
                self.admission.executed(self.admission.request_s(items, most), now - began)
                self._learn(finished, now)
        for query in finished:
            query.ledger.finish_s[query.row] = now
            query.ledger.worker[query.row] = worker
            _answer(query, Status.OK)

    def _finish(self, slices: list[Slice]) -> list[Query]:
        """The queries of which that was the last."""
        done = self._rules.finish
        return [self._queries.pop(id) for id, lo, hi in slices if done(id, hi - lo)]

    def _expire(self, now: float) -> list[Query]:
        expired = [self._queries.pop(id) for id in self._rules.expire(now)]
        if expired:
            self._learn(expired, now)
            self._notify_quiet()
        return expired


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
