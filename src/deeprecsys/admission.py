"""Would a query finish within its deadline? The pure rule by which a server turns queries away.

Knows no clock, no threads and no queue: it is told how many items are ahead, how long requests
took, and what became of its predictions. A query that would be late costs as much as one that is
in time; turned away at once, it costs nothing, and its client can ask elsewhere.
"""

from __future__ import annotations

from deeprecsys.core import Policy, UserError

# Of the measured seconds an item, how much the latest request counts.
_NEW = 0.05
# The share of admitted queries that shall be in time: above any target's usual percentile.
IN_TIME = 0.97
_STEP = 0.02
_LEAST_FACTOR, _MOST_FACTOR = 0.5, 4.0
# Predictions below this share of a deadline decide nothing, and teach nothing.
_MATTERS = 0.3


class Admission:
    """Predicts when a query would finish; learns the pace of requests and its own errors.

    item_s: seconds of an item in a request of a usual size, one worker, to begin with.
    Not thread-safe; its owner holds a lock.
    """

    def __init__(self, workers: int, item_s: float) -> None:
        if workers < 1 or not item_s > 0:
            raise UserError("admission needs workers and a positive time an item")
        self.workers, self.item_s = workers, item_s
        # Of the latencies as shares of their predictions, the quantile `IN_TIME`.
        self.factor = 1.2

    def predict_s(self, ahead_items: int, size: int, policy: Policy) -> float:
        """Seconds until a query of `size` would finish, `ahead_items` being before it."""
        batch = policy.batch_size
        rounds = -(-size // (batch * self.workers))  # of requests side by side
        own = min(size, rounds * batch)
        return self.factor * self.item_s * (ahead_items / self.workers + own)

    def executed(self, items: int, seconds: float) -> None:
        """A request of so many items took so long. Weighed by items: large requests are most of
        what a query waits for."""
        weight = _NEW * min(1.0, items / 64)
        self.item_s += weight * (seconds / items - self.item_s)

    def finished(self, predicted_s: float, took_s: float, deadline_s: float) -> None:
        """An admitted query's prediction, and what it took (or how long until it expired).

        The factor goes up by what a late one says and down by what an early one says, so that it
        rests where `IN_TIME` of them are in time (Robbins and Monro, 1951).
        """
        if predicted_s < _MATTERS * deadline_s:
            return
        late = took_s > predicted_s
        step = _STEP * (IN_TIME if late else IN_TIME - 1)
        self.factor = min(max(self.factor * (1 + step), _LEAST_FACTOR), _MOST_FACTOR)


__all__ = ["Admission"]
