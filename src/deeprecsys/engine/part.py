"""One model's part of a group: it has its own runtime, its own admission and its own share of the
workers, which it has in common with the others.

An engine works through its part, whether it has the workers for itself or not. Composes; decides
nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deeprecsys.core import Policy, Status
from deeprecsys.engine.answers import EngineClosed, answer
from deeprecsys.engine.ledger import Promise, Query, clock
from deeprecsys.rules.admission import Admission
from deeprecsys.runtimes import Runtime

if TYPE_CHECKING:
    from deeprecsys.engine.books import Books
    from deeprecsys.engine.group import Group
    from deeprecsys.engine.lanes import Lanes
    from deeprecsys.engine.workers import Gate, Workers


class Part:
    """number: in the rules. admission: of the cores; None: nothing is predicted. left: objects that
    a worker which hangs may still come back to."""

    def __init__(
        self, group: Group, number: int, runtime: Runtime, admission: Admission | None
    ) -> None:
        self.group, self.number = group, number
        self.runtime, self.admission = runtime, admission
        self.closing = False
        self.left: list[object] = []

    @property
    def books(self) -> Books:
        return self.group.books

    @property
    def workers(self) -> Workers:
        return self.group.workers

    @property
    def lanes(self) -> Lanes:
        return self.group.lanes

    @property
    def queued_items(self) -> int:
        """That wait for the cores."""
        return self.books.rules.items_of(self.number)

    @property
    def open_queries(self) -> int:
        return self.books.rules.open_of(self.number)

    @property
    def alone(self) -> bool:
        """Has it the workers for itself?"""
        return len(self.group.parts) == 1

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
        group, books = self.group, self.books
        woken: Gate | threading.Semaphore | None
        with books.lock:
            if policy.workers != group.asked:
                self.use_locked(policy.workers)
            id, lane = books.take(query, size, policy, deadline_s, priority, client)
            woken = group.workers.wake() if lane is None else group.lanes.wake(lane)
        if woken is not None:
            woken.release()
        group.watch(deadline_s)
        return id

    def admit(
        self, size: int, policy: Policy, deadline_s: float, priority: int, client: str = ""
    ) -> Promise | None:
        """Raises TooLate if such a query would most likely be. None: nothing is predicted, since
        there is no deadline."""
        if self.admission is None or deadline_s == math.inf or not size:
            return None
        return self.books.promise(self, size, policy, deadline_s, priority, client)

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

    def wait_quiet(self, timeout_s: float | None = None) -> bool:
        """Waits until no query of it is open and no request executes; False on time-out."""
        return self.books.core.wait_quiet(timeout_s, None if self.alone else self.number)

    def use(self, workers: int | None) -> None:
        """Only so many of the workers take requests from now on (None: all), until a query comes
        whose policy says otherwise: where no other model has them too."""
        with self.books.lock:
            self.use_locked(workers)

    def use_locked(self, workers: int | None) -> None:
        """The same, under the lock."""
        self.group.use(workers if self.alone else None)

    def weigh(self, weight: float) -> None:
        """Its share of the workers, beside the others'."""
        with self.books.lock:
            self.books.rules.weigh(self.number, weight)

    def close(self, drain: bool, within_s: float) -> bool:
        """Takes no more; finishes what it has, or fails it with EngineClosed, as it does with what
        is left after `within_s`. The last part ends the threads. False: some hang, and were
        left."""
        until_s = clock() + within_s
        self.closing = True
        if self.alone:
            self.books.close()
        if drain:
            self.wait_quiet(within_s)
        error = EngineClosed("the engine was closed")
        self.books.drop_all(Status.CANCELLED, error, None if self.alone else self)
        if self.alone:
            return self.group.close(until_s)
        return self.group.leave(self, until_s)


__all__ = ["Part"]
