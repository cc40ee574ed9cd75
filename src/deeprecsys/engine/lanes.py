"""Accelerators beside the cores: what each lane's device executes next, and what became of it.

A device that fails leaves its queries, begun or not, to the cores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from deeprecsys.core import Policy, Status
from deeprecsys.engine.answers import answer, answer_expired
from deeprecsys.engine.books import Books
from deeprecsys.engine.lane import Lane
from deeprecsys.engine.ledger import Query, clock
from deeprecsys.rules.dispatch import offloads
from deeprecsys.runtimes import Device

Work = list[tuple[int, Query]]  # by id: what an accelerator executes as one request


class Lanes:
    """Of `devices`, in their order. lost: devices that failed, and why. wake_core: opens the gate
    of a worker of the cores, if need be; under the lock."""

    def __init__(
        self,
        books: Books,
        devices: Sequence[Device],
        first_number: int,
        wake_core: Callable[[], threading.Lock | None],
    ) -> None:
        self._books, self._first_number, self._wake_core = books, first_number, wake_core
        self._lanes = [Lane(self, number, device) for number, device in enumerate(devices)]
        self._sleeps = [False] * len(devices)
        self._done_s = [0.0] * len(devices)  # when each finished its last request
        self._begun = [0] * len(devices)  # requests with each
        self.lost: dict[int, BaseException] = {}

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def end(self) -> None:
        """Lets them finish what waits, and closes the devices that are left."""
        for number, lane in enumerate(self._lanes):
            lane.gate.release()
            lane.join()
            if number not in self.lost:
                lane.device.close()

    @property
    def are_quiet(self) -> bool:
        return not any(self._begun)

    def take(self, policy: Policy, size: int) -> bool:
        """May a query of so many items go to one of them?"""
        return len(self.lost) < len(self._lanes) and offloads(policy, size)

    def wake(self, lane: int) -> threading.Semaphore | None:
        """The gate to open, if it sleeps. Under the lock."""
        if not self._sleeps[lane]:
            return None
        self._sleeps[lane] = False
        return self._lanes[lane].gate

    def next_offloaded(self, lane: int) -> Work | None:
        now, books = clock(), self._books
        with books.lock:
            if lane in self.lost:
                return None
            expired = books.expire(now)
            slices = books.kept(lambda: books.rules.pull_offloaded(lane, now))
            self._begun[lane] += bool(slices)
            self._sleeps[lane] = not slices
            ends = books.closing and not slices
            work = [(id, books.queries[id]) for id, _, _ in slices]
        answer_expired(expired)
        return None if ends else work

    def begin_offloaded(self, lane: int, work: Work) -> Any:
        began = clock()
        for _, query in work:
            query.ledger.start_s[query.row] = began
        return self._lanes[lane].device.begin([(q.inputs, q.scores) for _, q in work])

    def done_offloaded(self, lane: int, work: Work) -> None:
        now, books = clock(), self._books
        with books.lock:
            if lane in self.lost:  # the cores have these queries now
                return
            self._learn(lane, work, now)
            finished = books.finish([(id, 0, len(query.scores)) for id, query in work])
            books.learn(finished, now)
            self._begun[lane] -= 1
            books.notify_quiet()
        for _, query in work:
            if query.ledger.trace is not None:
                self._trace(lane, query, now)
        for query in finished:
            query.ledger.device[query.row] = lane + 1
            query.ledger.finish_s[query.row] = now
            answer(query, Status.OK)

    def lose(self, lane: int, error: BaseException) -> None:
        with self._books.lock:
            if lane in self.lost:
                return
            self.lost[lane] = error
            self._books.rules.retire(lane, self._books.work_s)
            self._begun[lane] = 0
            woken = self._wake_core()
        if woken is not None:
            woken.release()

    def _learn(self, lane: int, work: Work, now: float) -> None:
        """How long a request took, from when the one before it was done. Under the lock."""
        if (admission := self._books.admission_of(lane)) is not None:
            began = max(work[0][1].ledger.start_s[work[0][1].row], self._done_s[lane])
            expected_s = sum(admission.work_s(len(q.scores), q.policy) for _, q in work)
            admission.executed(expected_s, now - began)
        self._done_s[lane] = now

    def _trace(self, lane: int, query: Query, now: float) -> None:
        number, began = self._first_number + lane, query.ledger.start_s[query.row]
        assert query.ledger.trace is not None
        query.ledger.trace.append((query.row, 0, len(query.scores), number, began, now))
