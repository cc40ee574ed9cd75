"""What is open, under one lock: the rules, the queries they speak of, and what admission learns.

Rules and lock are the native core's (`_native.Core`), which knows queries as numbers; those that
Python answers are here. Methods take the lock themselves where they say so; the others are called
with it held, by `workers` and `lanes`, which do several things under it at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from deeprecsys._native import Core
from deeprecsys.core import Policy, Status
from deeprecsys.engine.answers import EngineClosed, TooLate, answer, answer_expired
from deeprecsys.engine.ledger import Promise, Query, clock
from deeprecsys.rules.admission import Admission
from deeprecsys.rules.dispatch import Slice

if TYPE_CHECKING:
    from deeprecsys.engine.part import Part


class Books:
    """lock: the core's. parts: the models', by their numbers in the rules.

    of_devices: admission of each accelerator.
    """

    def __init__(self, core: Core, of_devices: Sequence[Admission] = ()) -> None:
        self.core, self.rules, self.lock = core, core.rules, core
        self._of_devices = of_devices
        self.parts: dict[int, Part] = {}
        self.queries: dict[int, Query] = {}

    @property
    def closing(self) -> bool:
        """No more is taken."""
        return self.core.closing

    def admission_of(self, part: Part, lane: int | None) -> Admission | None:
        """That of an accelerator; None: a model's of the cores."""
        if lane is None:
            return part.admission
        return self.of_device(lane)

    def of_device(self, lane: int) -> Admission | None:
        return self._of_devices[lane] if self._of_devices else None

    def work_s(self, part: Part, size: int, policy: Policy, lane: int | None = None) -> float:
        """What such a query adds to what is ahead of others there."""
        admission = self.admission_of(part, lane)
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
        part = query.part
        if self.closing or part.closing:
            raise EngineClosed("the engine is closed; open a new one")
        query.policy = policy
        cost = self.work_s(part, size, policy, self.rules.choice(size, policy))
        id, lane = self.core.add(size, policy, deadline_s, priority, cost, client, part.number)
        self.queries[id] = query
        return id, lane

    def promise(
        self, part: Part, size: int, policy: Policy, deadline_s: float, priority: int, client: str
    ) -> Promise | None:
        """What can be promised to such a query; TooLate if that is not enough. Takes the lock."""
        with self.lock:
            now, lane = clock(), self.rules.choice(size, policy)
            admission = self.admission_of(part, lane)
            if admission is None:
                return None
            self.learn_paces()
            if lane is None:
                cost = admission.work_s(size, policy)
                ahead_s = self.rules.ahead(priority, client, size, part.number, cost)
            else:
                ahead_s = self.rules.ahead_offloaded(lane, priority, client, size)
            predicted_s = admission.predict_s(ahead_s, size, policy, priority)
        # With nothing before it, it is taken whatever is predicted: how else would a wrong
        # prediction ever be mended?
        if ahead_s > 0 and predicted_s > deadline_s - now:
            raise TooLate(predicted_s, deadline_s - now)
        return Promise(now, predicted_s, deadline_s - now, priority, lane)

    def begin(self, slices: Sequence[Slice]) -> list[tuple[Query, int, int]]:
        """Those of which somebody still waits for an answer: a query that its owner cancelled
        before it began is forgotten.

        Under the lock, so that a future which runs is one that nobody has answered.
        """
        return [
            (query, lo, hi)
            for id, lo, hi in slices
            if (query := self.queries.get(id)) is not None and self._begins(id, query)
        ]

    def _begins(self, id: int, query: Query) -> bool:
        # It runs already where another slice began, or an accelerator lost it.
        if query.future.running() or query.future.set_running_or_notify_cancel():
            return True
        self.rules.drop(id)
        del self.queries[id]
        query.ledger.status[query.row] = Status.CANCELLED
        return False

    def kept(self, pull: Callable[[], list[Slice]]) -> list[tuple[int, Query]]:
        """Of the next slices, the queries that begin."""
        while slices := pull():
            kept = [
                (id, query) for id, _, _ in slices if self._begins(id, query := self.queries[id])
            ]
            if kept:
                return kept
        return []

    def finish(self, slices: Sequence[Slice]) -> list[Query]:
        """The queries of which that was the last."""
        done = self.rules.finish
        return [self.queries.pop(id) for id, lo, hi in slices if done(id, hi - lo)]

    def learn(self, queries: Sequence[Query], now: float) -> None:
        """What became of those that were admitted by prediction."""
        for query in queries:
            made = query.promise
            if made is None:
                continue
            if (admission := self.admission_of(query.part, made.place)) is not None:
                took_s = now - made.at_s
                admission.finished(made.predicted_s, took_s, made.deadline_s, made.priority)

    def learn_natively(
        self, part: Part, promises: Iterable[tuple[float, float, float, int]]
    ) -> Admission | None:
        """How long requests took, and what became of promises, of which Python saw nothing. Takes
        the lock."""
        with self.lock:
            self.learn_paces()
            if part.admission is not None:
                for predicted_s, took_s, deadline_s, priority in promises:
                    part.admission.finished(predicted_s, took_s, deadline_s, priority)
        return part.admission

    def learn_paces(self) -> None:
        """How long requests took of which Python saw nothing. Under the lock."""
        for model, most, items, took_s in self.core.take_paces():
            part = self.parts.get(model)
            if part is not None and (admission := part.admission) is not None:
                admission.executed(admission.request_s(items, most), took_s)

    def retire(self, lane: int) -> None:
        """An accelerator is lost; what was promised for it teaches nothing."""
        had = self.rules.offloaded(lane)
        queries = [(self.queries[id], size) for id, size in had]
        costs = [self.work_s(query.part, size, query.policy) for query, size in queries]
        self.rules.retire(lane, costs)
        for id, _ in had:
            self.queries[id].promise = None

    def expire(self, now: float) -> list[Query]:
        """Forgets those whose deadline has passed; their answer is the caller's."""
        return self._expired(self.core.expire(now), now) if self.rules.has_deadlines else []

    def expired(self, ids: Sequence[int]) -> None:
        """Of those that the core has dropped because their deadline has passed. Takes the lock."""
        with self.lock:
            expired = self._expired(ids, clock())
        answer_expired(expired)

    def _expired(self, ids: Sequence[int], now: float) -> list[Query]:
        expired = [self.queries.pop(id) for id in ids]
        if expired:
            self.learn(expired, now)
            self.core.notify_quiet()
        return expired

    def drop(self, ids: Sequence[int], status: Status, error: BaseException | None = None) -> None:
        """Forgets what is left of these queries and answers them; the finished stay finished.
        Takes the lock."""
        with self.lock:
            dropped = [self.queries.pop(id) for id in ids if self.rules.drop(id)]
            self.core.notify_quiet()
        for query in dropped:
            answer(query, status, error)

    def drop_all(
        self, status: Status, error: BaseException | None = None, of: Part | None = None
    ) -> None:
        """of: a part's; None: of all. Takes the lock."""
        with self.lock:
            self.core.drop_owned(status, None if of is None else of.number)
            ids = [id for id, query in self.queries.items() if of in (None, query.part)]
        self.drop(ids, status, error)

    def fail(self, error: BaseException) -> None:
        """A fault of ours: nobody waits in vain, and no more is taken. Takes the lock."""
        self.close()
        self.drop_all(Status.FAILED, error)

    def close(self) -> None:
        """Takes no more. Takes the lock."""
        with self.lock:
            self.core.closing = True
