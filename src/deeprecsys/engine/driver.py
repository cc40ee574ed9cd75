"""The open-loop generator: hands over each query at its scheduled time, whatever became of
the others, and never waits for an answer.

Knows times and two callables; it measures its own lateness by handing over the time it did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deeprecsys.core import FloatArray

clock = time.perf_counter

# Long gaps are slept in pieces, so that a stop is noticed.
_NAP_S = 0.05
# Between two looks of the watch: often enough to stop early, rarely enough to cost nothing.
_WATCH_EVERY_S = 0.1


def drive(
    arrival_s: FloatArray,
    began_s: float,
    submit: Callable[[int, float], None],
    stopped: Callable[[], bool],
) -> int:
    """Calls `submit(row, now)` for each arrival, on time or late; how many it handed over."""
    for row, at in enumerate((arrival_s + began_s).tolist()):
        while (wait_s := at - clock()) > 0:
            time.sleep(min(wait_s, _NAP_S))
            if stopped():
                return row
        if stopped():
            return row
        submit(row, clock())
    return len(arrival_s)


@contextmanager
def watching(look: Callable[[], bool]) -> Iterator[threading.Event]:
    """Calls `look` every now and then in a thread of its own; the event is set once it is True.

    In a thread of its own, because a look may take milliseconds and the generator is late for
    every query due meanwhile. An exception in `look` stops the run and is raised on leaving.
    """
    stop, done = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            while not done.wait(_WATCH_EVERY_S):
                if look():
                    stop.set()
                    return
        except BaseException as error:
            failure.append(error)
            stop.set()

    thread = threading.Thread(target=run, name="watch", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        done.set()
        thread.join()
    if failure:
        raise failure[0]
