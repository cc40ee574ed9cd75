"""What an engine measures on entering: the fastest runtime, and the time of one request.

Both with every worker busy, since cores share memory and, for some runtimes, the GIL. The same
requests warm up every size the engine will execute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deeprecsys.core import DEFAULT_INDICES, FloatArray, UserError
from deeprecsys.engine.pool import draw
from deeprecsys.engine.process import as_worker, enter_worker
from deeprecsys.machines.service_time import Profile, ServiceTime
from deeprecsys.runtimes import Runtime, make_runtime, runtimes_of

# Candidates to draw windows from: enough rows that repeats do not come from the cache.
_EXAMPLE_ITEMS = 4096
_CHOICE_SIZES = (16, 128)
# Each size in turns: what disturbs the one seldom disturbs the other.
_TURNS, _SECONDS_A_SIZE = 2, 0.03
_NOISE = 0.05  # of a log
_LEAST_REPEATS, _WARM_REPEATS = 3, 3

Enter = Callable[[], None]
Cores = Sequence[int | None]


def choose(wanted: str | Runtime, model: Any, cores: Cores) -> tuple[Runtime, dict[str, Any]]:
    """The runtime, and for "auto" the seconds a request that decided, by name and size.

    A runtime that cannot take the model is left out, with its reason; raises UserError if the
    one asked for cannot, or none can.
    """
    if not isinstance(wanted, str):
        return wanted, {}
    if wanted == "auto" and len(runtimes_of(model)) == 1:
        wanted = next(iter(runtimes_of(model)))
    if wanted != "auto":
        try:
            return make_runtime(wanted, model), {}
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"runtime {wanted} cannot take {model.name}: {error}") from error
    able: dict[str, Runtime] = {}
    choice: dict[str, Any] = {}
    for name in runtimes_of(model):
        try:
            able[name] = make_runtime(name, model)
            seconds = _request_seconds(able[name], model, cores, _CHOICE_SIZES)
            choice[name] = {size: float(np.median(seen)) for size, seen in seconds.items()}
        except Exception as error:
            choice[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not able:
        raise UserError(f"no runtime can execute {model.name}: {choice}")
    return able[_fastest({name: choice[name] for name in able})], choice


def _fastest(seconds: dict[str, dict[int, float]]) -> str:
    """By the geometric mean; an earlier one of `RUNTIMES` wins what is within the noise, since
    the order is of the time for which each holds the GIL."""
    means = {name: float(np.mean(np.log(list(s.values())))) for name, s in seconds.items()}
    best = min(means.values())
    return next(name for name, mean in means.items() if mean <= best + _NOISE)


def profile(
    runtime: Runtime, model: Any, cores: Cores, largest: int, *, beside: bool = False
) -> Profile:
    """A glance at requests of 1, 2, 4 .. `largest` items, all workers busy.

    beside: those workers serve others; measured in one thread's processor time, which they do not
    disturb, nor it them if it is of a low priority.
    """
    sizes = [1 << k for k in range(largest.bit_length())]
    if sizes[-1] < largest:
        sizes.append(largest)
    found = Profile({"model": model.name, "workers": len(cores)})
    measured = _request_seconds(runtime, model, None if beside else cores, sizes)
    for size, seconds in measured.items():
        found = found.with_visit((size, len(cores)), seconds)
    return found


def service_time(seen: Profile) -> ServiceTime:
    """Median seconds of requests, which a stall during the glance does not move."""
    sizes, busy = seen.batch_sizes, max(seen.busy_levels)
    medians = [seen.points[size, busy].median_s for size in sizes]
    return ServiceTime.table(np.array(sizes), np.array(medians))


def on_cores(cores: Cores, enter: Enter, task: Callable[[int], Any]) -> list[Any]:
    """`task(worker)` on every core at once, after a common start; the answers, by worker."""
    start = threading.Barrier(len(cores))
    answers: list[Any] = [None] * len(cores)
    failures: list[BaseException] = []

    def run(worker: int) -> None:
        try:
            enter_worker(cores[worker])
            enter()
            start.wait()
            answers[worker] = task(worker)
        except BaseException as error:
            start.abort()
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(cores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next(f for f in failures if not isinstance(f, threading.BrokenBarrierError))
    return answers


def _request_seconds(
    runtime: Runtime,
    model: Any,
    cores: Cores | None,
    sizes: Sequence[int],
) -> dict[int, FloatArray]:
    """Seconds of requests on all cores by their items, in windows of one large example: of the
    turn in which their median is lower. cores None: in this thread, in its processor time."""
    pool = draw(model, max(_EXAMPLE_ITEMS, 2 * max(sizes)), DEFAULT_INDICES)
    prepared, items = pool.prepared(runtime, model.outputs), pool.span

    clock = time.perf_counter if cores is not None else time.thread_time

    def measure(worker: int) -> list[list[list[float]]]:
        offset = 0 if cores is None else worker * items // len(cores)
        return [
            [_timed(runtime, prepared, size, items, offset, clock) for size in sizes]
            for _ in range(_TURNS)
        ]

    if cores is None:
        with as_worker():
            runtime.enter_thread()
            by_worker = [measure(0)]
    else:
        by_worker = on_cores(cores, runtime.enter_thread, measure)
    by_turn = [[np.concatenate(seen) for seen in zip(*turn, strict=True)]
               for turn in zip(*by_worker, strict=True)]  # fmt: skip
    return {
        size: min(seen, key=lambda seconds: float(np.median(seconds)))
        for size, *seen in zip(sizes, *by_turn, strict=True)
    }


def _timed(
    runtime: Runtime,
    prepared: Sequence[Any],
    size: int,
    items: int,
    offset: int,
    clock: Callable[[], float],
) -> list[float]:
    """Seconds of requests of the next `size` of `items` candidates, and the next user's."""
    seconds: list[float] = []
    began = time.perf_counter()
    while (
        len(seconds) < _WARM_REPEATS + _LEAST_REPEATS
        or time.perf_counter() - began < _SECONDS_A_SIZE
    ):
        lo = offset % (items - size + 1)
        offset += size
        query = prepared[(offset // size) % len(prepared)]
        runtime.forget(query)
        at = clock()
        runtime.execute(query, lo, lo + size)
        seconds.append(clock() - at)
    return seconds[_WARM_REPEATS:]
