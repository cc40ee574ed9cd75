"""What an engine keeps of its queries: a query on its way, and the columns a run fills in.

Knows no threads and no rules; times are on the engine's `clock`.
"""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeprecsys.core import Inputs, Policy, Records, Requests, Schedule, Status
from deeprecsys.runtimes import Scores

if TYPE_CHECKING:
    from deeprecsys.engine.part import Part

# A request: of which row, lo, hi, by which worker, start, finish.
Executed = tuple[int, int, int, int, float, float]
clock = time.perf_counter
_log = logging.getLogger(__name__)
_ANY = Policy()


class Ledger:
    """Columns that the workers of one run fill in, row by row; times on the engine's clock.

    Plain C arrays: a store costs 40 ns under the GIL, and a snapshot is one copy. traced: also
    keeps every request.
    """

    def __init__(self, n: int, traced: bool = False) -> None:
        nan = array("d", [math.nan])
        self.submit_s, self.start_s, self.finish_s = nan * n, nan * n, nan * n
        self.worker = array("i", [-1]) * n
        self.device = array("h", [0]) * n
        self.status = array("b", [Status.PENDING]) * n
        self.trace: list[Executed] | None = [] if traced else None  # an append is atomic

    def keep(self, requests: Sequence[Executed]) -> None:
        """More of what `trace` holds."""
        if self.trace is not None:
            self.trace.extend(requests)

    def requests(self, began_s: float) -> Requests:
        """Every request executed until now, times counted from `began_s`; needs `traced`."""
        rows = np.array(self.trace or np.zeros((0, 6)), dtype=np.float64)
        query, lo, hi, worker, start_s, finish_s = rows.T
        columns = {"query": query, "lo": lo, "hi": hi, "worker": worker}
        times = {"start_s": start_s - began_s, "finish_s": finish_s - began_s}
        return Requests.from_columns(columns | times)

    def records(self, schedule: Schedule, began_s: float, rows: int) -> Records:
        """The first `rows` queries as they stand now, times counted from `began_s`."""

        def times(column: array[float]) -> Any:
            return np.frombuffer(column, dtype=np.float64)[:rows] - began_s

        # First: a query that it calls finished has its times by now.
        status = np.frombuffer(self.status, dtype=np.int8)[:rows].copy()
        return Records(
            arrival_s=schedule.arrival_s[:rows],
            start_s=times(self.start_s),
            finish_s=times(self.finish_s),
            size=schedule.size[:rows],
            device=np.frombuffer(self.device, dtype=np.int16)[:rows].copy(),
            worker=np.frombuffer(self.worker, dtype=np.int32)[:rows].copy(),
            status=status,
            submit_s=times(self.submit_s),
        )


class Row:
    """A ledger of one row, for a query that belongs to no run: a tenth of a `Ledger`'s cost."""

    __slots__ = ("device", "finish_s", "start_s", "status", "submit_s", "trace", "worker")

    def __init__(self, traced: bool = False) -> None:
        self.submit_s, self.start_s, self.finish_s = [math.nan], [math.nan], [math.nan]
        self.worker, self.device = [-1], [0]
        self.status: list[int] = [Status.PENDING]
        self.trace: list[Executed] | None = [] if traced else None


class Reply:
    """Stands in for a Future where one callback, known beforehand, wants the answer.

    A quarter of a Future's cost: nobody waits on it, so it needs no lock. `done` is called once,
    with the scores or the exception, from whichever thread answers.
    """

    __slots__ = ("_cancelled", "_done", "_running")

    def __init__(self, done: Callable[[Any], None]) -> None:
        self._done = done
        self._running = self._cancelled = False

    def set_running_or_notify_cancel(self) -> bool:
        self._running = not self._cancelled
        return self._running

    def running(self) -> bool:
        return self._running

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        if self._running:
            return False
        self._cancelled = True
        self._tell(CancelledError())
        return True

    def set_result(self, result: Any) -> None:
        self._running = False
        self._tell(result)

    def set_exception(self, error: BaseException) -> None:
        self._running = False
        self._tell(error)

    def _tell(self, answer: Any) -> None:
        try:
            self._done(answer)
        except Exception:  # its owner's fault: the thread that answers has others to serve
            _log.exception("a query's callback failed")


@dataclass(frozen=True, slots=True)
class Promise:
    """A query was admitted at a time, to finish in so many seconds, its deadline in so many.

    place: of the accelerator that it was predicted for; None: the cores.
    """

    at_s: float
    predicted_s: float
    deadline_s: float
    priority: int = 0
    place: int | None = None


class Query:
    """One query on its way: whose it is, its future, its inputs, its row in a ledger.

    prepared: by the runtime of the cores; None for a query that is meant for an accelerator.
    """

    __slots__ = (
        "future", "inputs", "ledger", "part", "policy", "prepared", "promise", "row", "scores",
    )  # fmt: skip

    def __init__(
        self,
        part: Part,
        inputs: Inputs,
        prepared: Any,
        scores: Scores,
        ledger: Ledger | Row,
        row: int,
        reply: Reply | None = None,
    ) -> None:
        self.part = part
        self.inputs = inputs
        self.prepared = prepared
        self.scores = scores
        self.ledger = ledger
        self.row = row
        self.future: Future[Scores] | Reply = reply or Future()
        self.policy = _ANY
        self.promise: Promise | None = None
