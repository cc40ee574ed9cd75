"""Would a query finish within its deadline? The pure rule by which a server turns queries away.

Knows no clock, no threads and no queue: it is told how much work is ahead, how long requests took,
and what became of its predictions. A query that would be late costs as much as one that is in
time; turned away at once, it costs nothing, and its client can ask elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deeprecsys.core import FloatArray, Policy, UserError

# Of the pace, how much the latest request counts.
_NEW = 0.05
_STEP = 0.02
_FIRST_FACTOR, _LEAST_FACTOR, _MOST_FACTOR = 1.2, 0.5, 4.0
# Predictions below this share of a deadline decide nothing, and teach nothing.
_MATTERS = 0.3
# Of the queries that a target lets be late, how many those admitted may be.
_LATE = 0.6
# Priorities beyond these are one class with the last.
_CLASSES = 16


def in_time(percentile: float) -> float:
    """The share of admitted queries that shall be in time: a little above the target's own."""
    return min(1 - _LATE * (1 - percentile / 100), 0.9995)


class Admission:
    """Predicts when a query would finish in one place, the cores or an accelerator; learns the
    pace of requests there and, for each priority, its own errors.

    workers: that execute requests side by side. service_s: seconds of a request by its items, one
    worker, as measured beforehand. whole: queries are not cut.
    Not thread-safe; its owner holds a lock.
    """

    def __init__(
        self,
        workers: int,
        service_s: Callable[[FloatArray], FloatArray],
        percentile: float = 95.0,
        *,
        whole: bool = False,
    ) -> None:
        if workers < 1:
            raise UserError("admission needs workers")
        self.workers, self._service_s, self._whole = workers, service_s, whole
        self.in_time = in_time(percentile)
        self._tables: dict[int, list[float]] = {}
        self.pace = 1.0  # how long requests take, over what was measured beforehand
        # By priority: those that wait long are off by more than those that go first.
        self._factors: dict[int, float] = {}

    def factor(self, priority: int = 0) -> float:
        """Of the latencies over their predictions, the quantile `in_time`."""
        return self._factors.get(_class(priority), _FIRST_FACTOR)

    def request_s(self, items: int, most: int) -> float:
        """As measured, of a request of so many items, by a policy whose requests hold `most`."""
        table = self._tables.get(most)
        if table is None:
            seconds: Any = self._service_s(np.arange(1.0, most + 1))
            table = self._tables[most] = [0.0, *np.maximum(seconds, 1e-9).tolist()]
        if items <= most:
            return table[items]
        return table[most] * items / most

    def work_s(self, size: int, policy: Policy) -> float:
        """Worker seconds of a query, as measured."""
        batch = policy.most_items if policy.adaptive or self._whole else policy.batch_size
        if self._whole:
            return self.request_s(size, batch)
        full, rest = divmod(size, batch)
        return full * self.request_s(batch, batch) + self.request_s(rest, batch)

    def predict_s(self, ahead_s: float, size: int, policy: Policy, priority: int = 0) -> float:
        """Seconds until a query of `size` would finish, so much work being before it."""
        own_s = self.own_s(size, policy)
        return self.factor(priority) * self.pace * (ahead_s / self.workers + own_s)

    def own_s(self, size: int, policy: Policy) -> float:
        """The least that a query takes, as measured, with nothing before it."""
        own_s = self.work_s(size, policy)
        if self._whole:
            return own_s
        batch = policy.most_items if policy.adaptive else policy.batch_size
        return max(self.request_s(min(size, batch), batch), own_s / self.workers)

    def executed(self, expected_s: float, seconds: float) -> None:
        """A request that was expected to take so long took `seconds`."""
        self.pace += _NEW * (min(seconds / expected_s, 20.0) - self.pace)

    def finished(
        self, predicted_s: float, took_s: float, deadline_s: float, priority: int = 0
    ) -> None:
        """An admitted query's prediction, and what it took (or how long until it expired).

        The factor goes up by what a late one says and down by what an early one says, so that it
        rests where `in_time` of them are in time (Robbins and Monro, 1951).
        """
        if predicted_s < _MATTERS * deadline_s:
            return
        late = took_s > predicted_s
        step = _STEP * (self.in_time if late else self.in_time - 1)
        factor = self.factor(priority) * (1 + step)
        self._factors[_class(priority)] = min(max(factor, _LEAST_FACTOR), _MOST_FACTOR)


def _class(priority: int) -> int:
    return min(max(priority, -_CLASSES), _CLASSES)


__all__ = ["Admission", "in_time"]
