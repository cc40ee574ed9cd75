"""Everything that executes for one engine under one dispatcher: workers, accelerators, deadlines.

Composes them and decides nothing: the rules and what is open are the `books`', the threads of the
cores are `workers`, those of accelerators `lanes`. Whatever happens to a query, exactly one place
answers its future: `answers.answer`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

from deeprecsys._native import Core
from deeprecsys.core import Policy, Status
from deeprecsys.engine.answers import EngineClosed, answer, answer_expired
from deeprecsys.engine.books import Books
from deeprecsys.engine.lanes import HANG_S, Lanes
from deeprecsys.engine.ledger import Promise, Query, clock
from deeprecsys.engine.reaper import Reaper
from deeprecsys.engine.topology import usable_cores
from deeprecsys.engine.workers import Gate, Workers
from deeprecsys.rules.admission import Admission
from deeprecsys.runtimes import Device, Runtime

# Threads that have nothing left to do need no longer than this to end.
_LEAVE_S = 0.3


class Group:
    """`len(cores)` worker threads, and those of each device."""

    def __init__(
        self,
        runtime: Runtime,
        cores: Sequence[int | None],
        max_queued_items: int | None,
        devices: Sequence[Device] = (),
        admission: Admission | None = None,
        of_devices: Sequence[Admission] = (),
        probe: Callable[[Device], None] = lambda device: None,
        hang_s: float = HANG_S,
    ) -> None:
        """of_devices: their admission. probe: executes a small request on a device. hang_s: of
        theirs, the least that counts as hanging."""
        most_items = [device.most_items for device in devices]
        most_waking = max(2, len(usable_cores()) // 4)
        core = Core(max_queued_items, most_items, len(cores), most_waking)
        self.books = Books(core, admission, of_devices)
        self._reaper = Reaper(self._due)
        self._asked: int | None = None  # workers, by the latest policy
        self.workers = Workers(self.books, runtime, cores, self._reaper.watch)
        self.lanes = Lanes(
            self.books, devices, len(cores), self.workers.wake, self._reaper.watch, probe, hang_s
        )
        self.workers.start()
        self.lanes.start()

    @property
    def admission(self) -> Admission | None:
        return self.books.admission

    @property
    def queued_items(self) -> int:
        return self.books.rules.queued_items

    @property
    def open_queries(self) -> int:
        return len(self.books.rules)

    def submit(
        self,
        query: Query,
        size: int,
        policy: Policy,
        deadline_s: float,
        priority: int = 0,
        client: str = "",
    ) -> int:
        """Queues it and wakes an idle worker; its id.

        `deadline_s` is on the engine's clock. Raises QueueFull or EngineClosed.
        """
        woken: Gate | threading.Semaphore | None
        with self.books.lock:
            if policy.workers != self._asked:
                self._use(policy.workers)
            id, lane = self.books.take(query, size, policy, deadline_s, priority, client)
            woken = self.workers.wake() if lane is None else self.lanes.wake(lane)
        if woken is not None:
            woken.release()
        self.workers.watch_doubts()
        if deadline_s < math.inf:
            self._reaper.watch(deadline_s)
        return id

    def admit(
        self, size: int, policy: Policy, deadline_s: float, priority: int, client: str = ""
    ) -> Promise | None:
        """Raises TooLate if such a query would most likely be. None: nothing is predicted, since
        there is no deadline."""
        if self.admission is None or deadline_s == math.inf or not size:
            return None
        return self.books.promise(size, policy, deadline_s, priority, client)

    def offloads(self, policy: Policy, size: int) -> bool:
        """May a query of so many items go to an accelerator?"""
        return self.lanes.take(policy, size)

    def answer_empty(self, query: Query) -> int:
        """A query of no candidates needs no worker: scores [0, K] at once."""
        query.ledger.start_s[query.row] = query.ledger.finish_s[query.row] = clock()
        answer(query, Status.OK)
        return -1

    def drop(self, ids: Sequence[int], status: Status, error: BaseException | None = None) -> None:
        self.books.drop(ids, status, error)

    def is_alive(self) -> bool:
        """Can it still answer queries?"""
        with self.books.lock:
            return not self.books.closing and self.workers.is_alive()

    def replace_hung(self, longest_s: float) -> int:
        return self.workers.replace_hung(longest_s)

    def _due(self, now: float) -> float:
        """Answers the queries whose deadline has passed, gives up devices that hang, wakes workers
        that sleep beside work; when there will be something to do again."""
        following = min(self.lanes.overdue(now), self.workers.unstick(now))
        with self.books.lock:
            expired = self.books.expire(now)
            following = min(following, self.books.rules.next_deadline_s())
        answer_expired(expired)
        return following

    def wait_quiet(self, timeout_s: float | None = None) -> bool:
        """Waits until no query is open and no request executes; False on time-out."""
        return self.books.core.wait_quiet(timeout_s)

    def use(self, workers: int | None) -> None:
        """Only so many of the workers take requests from now on (None: all), until a query comes
        whose policy says otherwise."""
        with self.books.lock:
            self._use(workers)

    def _use(self, workers: int | None) -> None:
        self._asked = workers
        self.workers.use(workers)

    def close(self, drain: bool, within_s: float) -> bool:
        """Takes no more; finishes what it has, or fails it with EngineClosed, as it does with what
        is left after `within_s`; ends the threads. False: some hang, and were left."""
        until_s = clock() + within_s
        self.books.close()
        if drain:
            self.books.core.wait_quiet(within_s)
        self.books.drop_all(Status.CANCELLED, EngineClosed("the engine was closed"))
        until_s = max(until_s, clock() + _LEAVE_S)
        ended = self.lanes.end(until_s)
        ended &= self.workers.end(until_s)
        self._reaper.stop(until_s - clock())
        return ended
