"""What is open, under one lock: the rules, the queries they speak of, and what admission learns.

The lock is a group's only one. Methods take it themselves where they say so; the others are
called with it held, by `workers` and `lanes`, which do several things under it at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from deeprecsys.core import Policy, Status
from deeprecsys.engine.answers import EngineClosed, TooLate, answer
from deeprecsys.engine.ledger import Promise, Query, clock
from deeprecsys.rules.admission import Admission
from deeprecsys.rules.dispatch import Dispatcher, Slice


class Books:
    """closing: no more is taken. is_quiet: whoever executes says whether it has nothing to do.

    admission: of the cores, and of each accelerator; None: nothing is predicted.
    """

    def __init__(
        self,
        rules: Dispatcher,
        admission: Admission | None,
        of_devices: Sequence[Admission] = (),
    ) -> None:
        self.rules, self.admission, self._of_devices = rules, admission, of_devices
        self.lock = threading.Lock()
        self.queries: dict[int, Query] = {}
        self.closing = False
        self.is_quiet: Callable[[], bool] = lambda: True
        self._next_id = 0
        self._quiet = threading.Condition(self.lock)  # notified when no query is open
        self._waiting_for_quiet = 0

    def admission_of(self, lane: int | None) -> Admission | None:
        """That of an accelerator; None: of the cores."""
        if lane is None:
            return self.admission
        return self._of_devices[lane] if self._of_devices else None

    def work_s(self, size: int, policy: Policy, lane: int | None = None) -> float:
        """What such a query adds to what is ahead of others there."""
        admission = self.admission_of(lane)
        return admission.work_s(size, policy) if admission else 0.0

    def take(
        self,
        query: Query,
        size: int,
        policy: Policy,
        deadline_s: float,
        priority: int,
        client: str,
    ) -> tuple[int, int | None]:
        """Its id, and for which accelerator. Raises QueueFull or EngineClosed."""
        if self.closing:
            raise EngineClosed("the engine is closed; open a new one")
        id = self._next_id
        query.policy = policy
        cost = self.work_s(size, policy, self.rules.choice(size, policy))
        lane = self.rules.add(id, size, policy, deadline_s, priority, cost, client)
        self._next_id = id + 1
        self.queries[id] = query
        return id, lane

    def promise(
        self, size: int, policy: Policy, deadline_s: float, priority: int, client: str
    ) -> Promise | None:
        """What can be promised to such a query; TooLate if that is not enough. Takes the lock."""
        with self.lock:
            now, lane = clock(), self.rules.choice(size, policy)
            admission = self.admission_of(lane)
            if admission is None:
                return None
            if lane is None:
                ahead_s = self.rules.ahead(priority, client, size)
            else:
                ahead_s = self.rules.ahead_offloaded(lane, priority, client, size)
            predicted_s = admission.predict_s(ahead_s, size, policy, priority)
        # With nothing before it, it is taken whatever is predicted: how else would a wrong
        # prediction ever be mended?
        if ahead_s > 0 and predicted_s > deadline_s - now:
            raise TooLate(predicted_s, deadline_s - now)
        return Promise(now, predicted_s, deadline_s - now, priority, lane)

    def kept(self, pull: Callable[[], list[Slice]]) -> list[Slice]:
        """The next slices; a query that its owner cancelled before it began is forgotten.

        Under the lock, so that a future which runs is one that nobody has answered.
        """
        while slices := pull():
            kept = [piece for piece in slices if self._begins(*piece)]
            if kept:
                return kept
        return []

    def _begins(self, id: int, lo: int, hi: int) -> bool:
        query = self.queries[id]
        begun = lo or query.future.running()  # which an accelerator may have lost
        if begun or query.future.set_running_or_notify_cancel():
            return True
        self.rules.drop(id)
        del self.queries[id]
        query.ledger.status[query.row] = Status.CANCELLED
        return False

    def finish(self, slices: Sequence[Slice]) -> list[Query]:
        """The queries of which that was the last."""
        done = self.rules.finish
        return [self.queries.pop(id) for id, lo, hi in slices if done(id, hi - lo)]

    def learn(self, queries: Sequence[Query], now: float) -> None:
        """What became of those that were admitted by prediction."""
        for query in queries:
            made = query.promise
            if made is not None and (admission := self.admission_of(made.place)) is not None:
                took_s = now - made.at_s
                admission.finished(made.predicted_s, took_s, made.deadline_s, made.priority)

    def retire(self, lane: int) -> None:
        """An accelerator is lost; what was promised for it teaches nothing."""
        for id in self.rules.retire(lane, self.work_s):
            self.queries[id].promise = None

    def expire(self, now: float) -> list[Query]:
        """Forgets those whose deadline has passed; their answer is the caller's."""
        if not self.rules.has_deadlines:
            return []
        expired = [self.queries.pop(id) for id in self.rules.expire(now)]
        if expired:
            self.learn(expired, now)
            self.notify_quiet()
        return expired

    def drop(self, ids: Sequence[int], status: Status, error: BaseException | None = None) -> None:
        """Forgets what is left of these queries and answers them; the finished stay finished.
        Takes the lock."""
        with self.lock:
            dropped = [self.queries.pop(id) for id in ids if self.rules.drop(id)]
            self.notify_quiet()
        for query in dropped:
            answer(query, status, error)

    def drop_all(self, status: Status, error: BaseException | None = None) -> None:
        self.drop(list(self.queries), status, error)

    def fail(self, error: BaseException) -> None:
        """A fault of ours: nobody waits in vain, and no more is taken. Takes the lock."""
        with self.lock:
            self.closing = True
        self.drop_all(Status.FAILED, error)

    def wait_quiet(self, timeout_s: float | None) -> bool:
        """Until no query is open and no request executes; False on time-out. Takes the lock."""
        with self.lock:
            self._waiting_for_quiet += 1
            try:
                return self._quiet.wait_for(self._nothing, timeout_s)
            finally:
                self._waiting_for_quiet -= 1

    def notify_quiet(self) -> None:
        if self._waiting_for_quiet and self._nothing():
            self._quiet.notify_all()

    def _nothing(self) -> bool:
        return not self.queries and self.is_quiet()
