"""Where embedding tables live: the one place that allocates and fills them.

Knows rows, widths and seeds; nothing of models or look-ups. `load_model` calls it. All tables of
a model are one array, [sum of rows, E], so that one operation can read from many tables, and so
that processes that are to share the tables later have one array to share.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Work is dealt out in blocks; each has a generator keyed by (seed, table, block), so who fills
# it, and when, does not show in the values. 1 Mi floats take about 2 ms.
BLOCK = 1 << 20
# Within a block, numbers are drawn and scaled in pieces that stay in the second-level cache.
PIECE = 1 << 16


def new_tables(
    rows: Sequence[int], width: int, bound: float, seed: int, threads: int | None = None
) -> Tensor:
    """float32 [sum(rows), width], uniform in [-bound, bound): the same for any `threads`."""
    array = allocate(sum(rows) * width)
    fill(array, [r * width for r in rows], bound, seed, threads)
    return torch.from_numpy(array.reshape(-1, width))


def allocate(floats: int) -> NDArray[np.float32]:
    """Zeroed private memory, in huge pages where the platform has them.

    Random rows of 128 bytes touch a page each, and 4 KiB pages of a 4 GB array do not fit any
    TLB: without, pooled look-ups take 1.7 and row gathers 1.5 times as long (Zen 4,
    `benchmarks/choices.py`).
    """
    size = max(floats * 4, 1)
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return np.zeros(floats, dtype=np.float32)
    # Private, not shared: shared anonymous memory obeys another, usually disabled, switch.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without them refuses: ordinary pages serve as well, only slower.
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=np.float32, count=floats)


def fill(
    array: NDArray[np.float32],
    sizes: Sequence[int],
    bound: float,
    seed: int,
    threads: int | None = None,
) -> None:
    """Fills `array`, the tables of `sizes` floats one after the other, in place."""
    with ThreadPoolExecutor(threads or _cores()) as pool:
        jobs = [
            pool.submit(_fill_block, array[lo:hi], bound, (seed, table, block))
            for table, block, lo, hi in _blocks(sizes)
        ]
        for job in jobs:
            job.result()


def _blocks(sizes: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(table, block within it, first float, last + 1)."""
    start = 0
    for table, size in enumerate(sizes):
        for block, lo in enumerate(range(0, size, BLOCK)):
            yield table, block, start + lo, start + min(lo + BLOCK, size)
        start += size


def _fill_block(block: NDArray[np.float32], bound: float, key: tuple[int, int, int]) -> None:
    # SFC64 is the fastest of numpy's generators here; `random(out=)` and the two in-place
    # operations release the GIL, so threads scale.
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))
    for lo in range(0, block.size, PIECE):
        piece = block[lo : lo + PIECE]
        rng.random(dtype=np.float32, out=piece)
        piece *= np.float32(2 * bound)
        piece -= np.float32(bound)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
