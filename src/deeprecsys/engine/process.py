"""Process-wide settings that an engine needs, set on entering it and restored on leaving it.

Knows nothing of queries. Each setting says what it was measured to be worth.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil

# Python hands the GIL over after this long. With the default of 5 ms a worker that comes back
# from a 50-100 us request can wait milliseconds for its next one (see `benchmarks/choices.py`).
SWITCH_INTERVAL_S = 1e-4

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


@contextmanager
def engine_settings() -> Iterator[None]:
    """Switch interval and allocator; the switch interval is restored on leaving."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_memory()
    try:
        yield
    finally:
        sys.setswitchinterval(before + 1e-9)  # whole microseconds are kept, rounded down


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what it frees; False where there is no such malloc.

    A request's intermediate tensors of tens of megabytes are otherwise mapped, faulted in page by
    page and unmapped at every operator (`benchmarks/choices.py` measures it on DIN). It cannot be
    read back, so it is not restored; what a process pays is that freed memory stays its own.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    done = mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    return bool(done and mallopt(_M_TOP_PAD, 16 << 20))


def pin_thread(core: int | None) -> None:
    """Binds the calling thread to a core; does nothing without one, or where it may not."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a core taken away since we looked: run unpinned
            os.sched_setaffinity(0, {core})


def enter_worker(core: int | None) -> None:
    """What every thread that executes requests does first: its core, and its arithmetic."""
    pin_thread(core)
    flush_denormals()


@contextmanager
def as_worker() -> Iterator[None]:
    """Lets a thread that is somebody else's execute requests as workers do; what it had set for
    itself is as before afterwards."""
    try:
        import torch
    except ModuleNotFoundError:
        yield
        return
    flushes = not bool(np.float32(1e-40) * np.float32(1.0))
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushes)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)


def flush_denormals() -> None:
    """Makes the calling thread take numbers below 1e-38 for 0, as accelerators do.

    The processor handles them in microcode: 512 candidates whose dense values are all 1e-40 took
    `dlrm-rmc1` 42 ms instead of 2 and `wnd` 617 instead of 14, so that values decided what a
    request costs, and one client could take the cores. Scores change by less than 1e-30.
    """
    try:
        import torch
    except ModuleNotFoundError:  # then nothing here computes
        return
    torch.set_flush_denormal(True)


@contextmanager
def generator_priority() -> Iterator[bool]:
    """Lets the calling thread run before the workers, where the system permits it.

    The generator sleeps nearly always, and shares its core with a worker that never does: at
    1,000 queries/s on two busy cores its lateness had a p99 of 1.6 to 2.2 ms with the ordinary
    scheduler and 0.12 ms with the round-robin real-time class (`benchmarks/choices.py`). That needs
    root or CAP_SYS_NICE; answers False without, and lateness is measured either way.
    """
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        # Threads that are started meanwhile are ordinary ones.
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)


class Neighbours:
    """How much of the machine other processes used, between `start` and `share`.

    A run that misses its target while others held the cores says little of the system; the
    capacity search repeats it. Time stolen by a hypervisor counts as others'.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._process = psutil.Process()
        self.start()

    def start(self) -> None:
        self._before = self._reading()

    def share(self) -> float:
        """Of `cores` cores' time since `start`, from 0 to 1; 0 within a tick of the counters."""
        wall, everyone, own = (b - a for a, b in zip(self._before, self._reading(), strict=True))
        if wall < 0.05:
            return 0.0
        return min(1.0, max(0.0, everyone - own) / (wall * self._cores))

    def _reading(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        fields = ("user", "nice", "system", "irq", "softirq", "steal")
        everyone = sum(getattr(times, name, 0.0) for name in fields)
        own = self._process.cpu_times()
        return time.perf_counter(), everyone, own.user + own.system
