"""A schedule played by the native core: generator, workers and records without Python, which looks
ten times a second.

For runtimes that have an executor (`runtimes.Runtime`), of the pools that are windows of columns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from deeprecsys._native import Core, Executor, Run
from deeprecsys.core import FloatArray, Policy, Schedule
from deeprecsys.engine.ledger import Ledger
from deeprecsys.engine.pool import InputPool
from deeprecsys.engine.process import generator_priority

# Between two looks of the watch: often enough to stop early, rarely enough to cost nothing.
LOOK_EVERY_S = 0.1


def prepare(
    core: Core,
    executor: Executor,
    pool: InputPool,
    schedule: Schedule,
    ledger: Ledger,
    policy: Policy,
    work_s: FloatArray,
    whole: bool,
) -> Run:
    """work_s: of each query, what it adds to what is ahead of others. whole: queries are not cut.
    The inputs were checked when they were drawn."""
    columns = {
        "arrival_s": schedule.arrival_s,
        "size": schedule.size,
        "offset": np.ascontiguousarray(pool.offsets(schedule.size), np.int64),
        "cost": work_s,
        "submit_s": ledger.submit_s,
        "start_s": ledger.start_s,
        "finish_s": ledger.finish_s,
        "worker": ledger.worker,
        "status": ledger.status,
    }
    traced = ledger.trace is not None
    return Run(core, executor, inputs(pool), pool.users, columns, policy, whole, traced, kept=pool)


def inputs(pool: InputPool) -> list[tuple[int, int, int, int, bool]]:
    """The pool as the core reads it: it must be kept meanwhile."""
    return [
        (c.rows.ctypes.data, c.rows.strides[0], c.period, c.start, c.shared) for c in pool.columns
    ]


@contextmanager
def playing(run: Run, began_s: float) -> Iterator[Callable[[], bool]]:
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
