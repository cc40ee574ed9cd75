"""How an engine plays a schedule: every query handed over in time, and the watch told of them.

By the native core where the runtime has an executor for it (`runtimes.Native`): generator, workers
and records without Python, which looks ten times a second. Else by Python's generator, `driver`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from deeprecsys._native import Executor, Run
from deeprecsys.core import FloatArray, Inputs, Policy, Schedule, Status, Watch
from deeprecsys.engine.answers import EngineClosed
from deeprecsys.engine.driver import drive, watching
from deeprecsys.engine.ledger import Ledger, clock
from deeprecsys.engine.part import Part
from deeprecsys.engine.pool import InputPool, Pool
from deeprecsys.engine.process import generator_priority
from deeprecsys.rules.dispatch import QueueFull

_log = logging.getLogger(__name__)
# Between two looks of the watch: often enough to stop early, rarely enough to cost nothing.
LOOK_EVERY_S = 0.1
_QUIET_S = 0.05
# An engine that is closed leaves workers behind that execute for longer.
_LEAVE_S = 0.3
# A run begins a moment ahead, so that its first arrivals are not late.
_LEAD_S = 0.002
# Characters, of the last line of why a request failed: a library's last word stands there.
_WHY = 300
# In place of the number of a query that was rejected.
_NOT_TAKEN = -1


@dataclass(frozen=True, slots=True)
class Play:
    """What is played, on whose workers. begins, ended: called when all is prepared, and when it is
    over, before what is left of it is cancelled."""

    part: Part
    pool: Pool
    schedule: Schedule
    policy: Policy
    watch: Watch | None
    ledger: Ledger
    begins: Callable[[], None]
    ended: Callable[[], None]

    def begin(self) -> float:
        """When, on the engine's clock."""
        self.begins()
        return clock() + _LEAD_S

    def stops(self, rows: int, began_s: float) -> bool:
        """Does the watch, shown so many rows, end the run?"""
        return self.watch is not None and self.watch(
            self.ledger.records(self.schedule, began_s, rows), clock() - began_s
        )


def natively(play: Play, executor: Executor, whole: bool) -> tuple[int, float]:
    """How many queries were handed over, and when it began. The inputs were checked when they were
    drawn.

    whole: queries are not cut. EngineClosed if it was closed meanwhile.
    """
    part = play.part
    run = _prepared(play, executor, whole)
    began_s = play.begin()
    try:
        with _playing(run, began_s) as handed_over:
            while not (handed_over() or play.stops(run.handed, began_s)):
                pass
        while not (part.wait_quiet(LOOK_EVERY_S) or play.stops(run.handed, began_s)):
            pass
    finally:
        play.ended()
        run.cancel()
        part.wait_quiet()
        play.ledger.keep(run.trace)
        if not run.wait_over(_LEAVE_S):
            part.left.append(run)
    if run.why:
        _log.warning("a request failed: %s", run.why.strip().rpartition("\n")[2][:_WHY])
    if run.closed:
        raise EngineClosed("the engine was closed during the run")
    return run.handed, began_s


def by_python(play: Play, submit: Callable[[Inputs, int], int]) -> tuple[int, float]:
    """The same. submit: a query's inputs, and its row in the ledger; answers its number or raises
    QueueFull."""
    part, ledger = play.part, play.ledger
    offsets = play.pool.offsets(play.schedule.size).tolist()
    sizes = play.schedule.size.tolist()
    ids: list[int] = []  # by row

    def hand_over(row: int, now: float) -> None:
        ledger.submit_s[row] = now
        try:
            ids.append(submit(play.pool.window(offsets[row], sizes[row]), row))
        except QueueFull:
            ledger.status[row] = Status.REJECTED
            ids.append(_NOT_TAKEN)

    began_s = play.begin()
    with watching(lambda: play.stops(len(ids), began_s)) as stop:
        try:
            with generator_priority():
                drive(play.schedule.arrival_s, began_s, hand_over, stop.is_set)
            while not stop.is_set() and not part.wait_quiet(_QUIET_S):
                pass
        finally:
            play.ended()
            part.drop(ids, Status.CANCELLED)
    return len(ids), began_s


def _prepared(play: Play, executor: Executor, whole: bool) -> Run:
    pool, ledger, schedule = play.pool, play.ledger, play.schedule
    assert isinstance(pool, InputPool)
    columns = {
        "arrival_s": schedule.arrival_s,
        "size": schedule.size,
        "offset": np.ascontiguousarray(pool.offsets(schedule.size), np.int64),
        "cost": _work_s(play, whole),
        "submit_s": ledger.submit_s,
        "start_s": ledger.start_s,
        "finish_s": ledger.finish_s,
        "worker": ledger.worker,
        "status": ledger.status,
    }
    traced = ledger.trace is not None
    return Run(
        play.part.books.core, executor, inputs(pool), pool.users, columns, play.policy, whole,
        traced, play.part.number, kept=pool,
    )  # fmt: skip


def inputs(pool: InputPool) -> list[tuple[int, int, int, int, bool]]:
    """The pool as the core reads it: it must be kept meanwhile."""
    return [
        (c.rows.ctypes.data, c.rows.strides[0], c.period, c.start, c.shared) for c in pool.columns
    ]


def _work_s(play: Play, whole: bool) -> FloatArray:
    """What each query adds to what is ahead of others, where anything is predicted."""
    policy, part = play.policy, play.part
    sizes, rows = np.unique(play.schedule.size, return_inverse=True)
    of_sizes = [
        part.books.work_s(part, n, policy.uncut(n) if whole else policy) if n else 0.0
        for n in sizes.tolist()
    ]
    return np.asarray(of_sizes, np.float64)[rows]


@contextmanager
def _playing(run: Run, began_s: float) -> Iterator[Callable[[], bool]]:
    """Hands queries over, in a thread of its own; asked, waits a moment and says if all are."""
    done = threading.Event()
    failure: list[BaseException] = []

    def generate() -> None:
        try:
            with generator_priority():
                run.play(began_s)
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    def handed_over() -> bool:
        over = done.wait(LOOK_EVERY_S)
        if failure:
            raise failure[0]
        return over

    thread = threading.Thread(target=generate, name="generator", daemon=True)
    thread.start()
    try:
        yield handed_over
    finally:
        run.stop()
        thread.join()
