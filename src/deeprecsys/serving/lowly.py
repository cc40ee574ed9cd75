"""What is done beside serving, of which nobody who is served should notice: a thread of the lowest
priority, a share of a core, and memory that is given back a little at a time.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from deeprecsys._native import Pacer

_NICE = 19
_CHUNK, _PAUSE_S = 8 << 20, 1e-3  # of memory that is given back


def be_lowly() -> None:
    """This thread has the processor when nobody else wants it, and computes alone. It may not be
    able to go back, so it should do nothing else."""
    thread = threading.get_native_id()
    try:  # whoever wakes takes the processor from it at once, as not from one that is only nice
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@contextmanager
def paced(share: float) -> Iterator[None]:
    """Takes that share of a core. For what takes long and holds no lock that others need: computing
    and reading; memory and caches are everybody's, whatever the priority."""
    pacer = Pacer(share)
    try:
        yield
    finally:
        del pacer


def areas(model: object) -> set[tuple[int, int]]:
    """Where a model's long tensors lie: their addresses and lengths."""
    module = getattr(model, "module", None) or getattr(getattr(model, "form", None), "module", None)
    if module is None:
        return set()
    tensors = [*module.parameters(), *module.buffers()]
    return {(t.data_ptr(), t.nbytes) for t in tensors if t.nbytes >= _CHUNK}


def give_back_slowly(where: Sequence[tuple[int, int]]) -> None:
    """Empties memory that nobody reads any more: freed at once, gigabytes of pages stop whoever
    needs one meanwhile."""
    libc, page = ctypes.CDLL(None), mmap.PAGESIZE
    for address, size in where:
        at, end = -(-address // page) * page, (address + size) // page * page
        while at < end:
            count = min(_CHUNK, end - at)
            libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(count), mmap.MADV_DONTNEED)
            at += count
            time.sleep(_PAUSE_S)


__all__ = ["areas", "be_lowly", "give_back_slowly", "paced"]
