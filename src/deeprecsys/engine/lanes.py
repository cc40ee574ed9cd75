"""Accelerators beside the cores: what each lane's device executes next, and what became of it.

A device that fails, or takes far longer than it should, leaves its queries, begun or not, to the
cores; it comes back once it has answered a request of ours.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeprecsys.core import Policy, Status
from deeprecsys.engine.answers import answer, answer_expired
from deeprecsys.engine.books import Books
from deeprecsys.engine.lane import Lane
from deeprecsys.engine.ledger import Query, clock
from deeprecsys.engine.workers import Gate
from deeprecsys.rules.dispatch import offloads
from deeprecsys.runtimes import Device, Scores

# A request hangs once it takes so many times as long as such requests do, and at least so long.
HANG_TIMES, HANG_S = 10.0, 0.5


class DeviceHung(RuntimeError):
    """An accelerator's request took far longer than it should; the cores have its queries."""


@dataclass(slots=True, eq=False)
class Flight:
    """What an accelerator executes as one request. work: by id. scores: its own, of each query,
    for a device that is given up may still write them."""

    work: list[tuple[int, Query]]
    scores: list[Scores]
    began_s: float = math.inf
    limit_s: float = math.inf


@dataclass(slots=True)
class Record:
    """lost: why the device is, now. requests: that it executed. failures: how often it was lost;
    why: the last time."""

    lost: BaseException | None = None
    requests: int = 0
    failures: int = 0
    why: str = ""


class Lanes:
    """Of `devices`, in their order. wake_core: opens the gate of a worker of the cores, if need
    be; under the lock. watch: asks for `overdue` at a time. hang_s: see HANG_S."""

    def __init__(
        self,
        books: Books,
        devices: Sequence[Device],
        first_number: int,
        wake_core: Callable[[], Gate | None],
        watch: Callable[[float], None],
        probe: Callable[[Device], None],
        hang_s: float = HANG_S,
    ) -> None:
        self._books, self._first_number = books, first_number
        self._wake_core, self._watch, self._hang_s = wake_core, watch, hang_s
        self._lanes = [Lane(self, k, device, probe) for k, device in enumerate(devices)]
        self._sleeps = [False] * len(devices)
        self._flying: list[deque[Flight]] = [deque() for _ in devices]
        self._done_s = [0.0] * len(devices)  # when each finished its last request
        self.records = [Record() for _ in devices]

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def end(self, until_s: float) -> bool:
        """Lets them go home, and close their devices; False: some hang."""
        for lane in self._lanes:
            lane.end()
        return all([lane.join(until_s - clock()) for lane in self._lanes])

    def take(self, policy: Policy, size: int) -> bool:
        """May a query of so many items go to one of them?"""
        return offloads(policy, size) and any(record.lost is None for record in self.records)

    def wake(self, lane: int) -> threading.Semaphore | None:
        """The gate to open, if it sleeps. Under the lock."""
        if not self._sleeps[lane]:
            return None
        self._sleeps[lane] = False
        return self._lanes[lane].gate

    def next_offloaded(self, lane: int) -> Flight | tuple[()] | None:
        now, books = clock(), self._books
        with books.lock:
            if self.records[lane].lost is not None:
                return None
            expired = books.expire(now)
            work = books.kept(lambda: books.rules.pull_offloaded(lane, now))
            flight = Flight(work, [np.empty_like(query.scores) for _, query in work])
            if work:
                self._flying[lane].append(flight)
                books.core.flying += 1
            self._sleeps[lane] = not work
            ends = books.closing and not work
        answer_expired(expired)
        return None if ends else flight if work else ()

    def begin_offloaded(self, lane: int, flight: Flight) -> Any:
        began = clock()
        for _, query in flight.work:
            query.ledger.start_s[query.row] = began
        expected_s = self._expected_s(lane, flight)
        flight.began_s, flight.limit_s = began, max(self._hang_s, HANG_TIMES * expected_s)
        self._watch(began + flight.limit_s)
        pieces = zip((query.inputs for _, query in flight.work), flight.scores, strict=True)
        return self._lanes[lane].device.begin(list(pieces))

    def done_offloaded(self, lane: int, flight: Flight) -> None:
        now, books, work = clock(), self._books, flight.work
        with books.lock:
            if not self._flying[lane] or self._flying[lane][0] is not flight:
                return  # the cores have these queries now
            self._flying[lane].popleft()
            books.core.flying -= 1
            for (_, query), scores in zip(work, flight.scores, strict=True):
                query.scores[:] = scores
            self.records[lane].requests += 1
            self._learn(lane, flight, now)
            finished = books.finish([(id, 0, len(query.scores)) for id, query in work])
            books.learn(finished, now)
            books.core.notify_quiet()
        for _, query in work:
            if query.ledger.trace is not None:
                self._trace(lane, query, now)
        for query in finished:
            query.ledger.device[query.row] = lane + 1
            query.ledger.finish_s[query.row] = now
            answer(query, Status.OK)

    def lose(self, lane: int, error: BaseException) -> None:
        """It failed: what it had is the cores'. Or it was lost already, and failed again."""
        record, woken = self.records[lane], None
        with self._books.lock:
            record.why = f"{type(error).__name__}: {error}".splitlines()[0]
            record.failures += 1
            if record.lost is None:
                record.lost = error
                self._books.core.flying -= len(self._flying[lane])
                self._flying[lane].clear()
                self._books.retire(lane)
                woken = self._wake_core()
                self._books.core.notify_quiet()
        if woken is not None:
            woken.release()

    def is_lost(self, lane: int) -> bool:
        return self.records[lane].lost is not None

    def found(self, lane: int) -> None:
        with self._books.lock:
            self.records[lane].lost = None
            self._books.rules.restore(lane)
            self._sleeps[lane] = False

    def overdue(self, now: float) -> float:
        """Gives up the devices whose request hangs; when the next one will."""
        following = math.inf
        for lane, flying in enumerate(self._flying):
            due_s = self._due_s(lane, flying)
            if due_s <= now:
                self._give_up(lane)
            else:
                following = min(following, due_s)
        return following

    def _give_up(self, lane: int) -> None:
        self.lose(lane, DeviceHung(f"a request took more than {self._hang_s:g} s"))
        self._lanes[lane].interrupt()

    def _due_s(self, lane: int, flying: deque[Flight]) -> float:
        """When the oldest request counts as hung: those before it held it up."""
        with self._books.lock:
            if not flying:
                return math.inf
            return max(flying[0].began_s, self._done_s[lane]) + flying[0].limit_s

    def _expected_s(self, lane: int, flight: Flight) -> float:
        admission = self._books.of_device(lane)
        if admission is None:
            return 0.0
        sizes = ((len(query.scores), query.policy) for _, query in flight.work)
        return admission.pace * sum(admission.work_s(size, policy) for size, policy in sizes)

    def _learn(self, lane: int, flight: Flight, now: float) -> None:
        """How long a request took, from when the one before it was done. Under the lock."""
        if (admission := self._books.of_device(lane)) is not None:
            took_s = now - max(flight.began_s, self._done_s[lane])
            admission.executed(self._expected_s(lane, flight) / admission.pace, took_s)
        self._done_s[lane] = now

    def _trace(self, lane: int, query: Query, now: float) -> None:
        number, began = self._first_number + lane, query.ledger.start_s[query.row]
        assert query.ledger.trace is not None
        query.ledger.trace.append((query.row, 0, len(query.scores), number, began, now))
