"""What becomes of a query: the one place that answers its future, and the errors it may bring.

Knows no rules, no threads and no locks: callers hold none, for an answer runs its owner's code.
"""

from __future__ import annotations

from collections.abc import Iterable

from deeprecsys.core import Status
from deeprecsys.engine.ledger import Query


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


def answer(query: Query, status: Status, error: BaseException | None = None) -> None:
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


def answer_expired(queries: Iterable[Query]) -> None:
    for query in queries:
        answer(query, Status.EXPIRED, DeadlineExceeded("the deadline passed"))
