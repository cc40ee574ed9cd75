"""What embedding tables hold: the one place that fills them.

Knows rows, widths and seeds; nothing of models or look-ups. `load_model` calls it. All tables of
a model are one array, [sum of rows, E], so that one operation can read from many tables, and so
that processes that are to share the tables later have one array to share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deeprecsys.core import UserError
from deeprecsys.models.row_types import empty, kind_of, put
from deeprecsys.models.spec import Rows

# Work is dealt out in blocks; each has a generator keyed by (seed, table, block), so who fills
# it, and when, does not show in the values. 1 Mi floats take about 2 ms.
BLOCK = 1 << 20
# Within a block, numbers are drawn and scaled in pieces that stay in the second-level cache.
PIECE = 1 << 16


def new_tables(
    rows: Sequence[int],
    width: int,
    bound: float,
    seed: int,
    threads: int | None = None,
    kind: Rows = "fp32",
) -> Tensor:
    """[sum(rows), width] as `row_types.py` keeps them, uniform in [-bound, bound): the same for any
    `threads`, and narrow ones the same as if they had been fp32 first.

    UserError where the width lets rows lie across what is drawn at a time.
    """
    if kind != "fp32" and PIECE % width:
        raise UserError(f"rows of {width} numbers are fp32 only: {PIECE} is no multiple of it")
    weight = empty(sum(rows), width, kind)
    fill(weight, [r * width for r in rows], width, bound, seed, threads)
    return weight


def fill(
    weight: Tensor,
    sizes: Sequence[int],
    width: int,
    bound: float,
    seed: int,
    threads: int | None = None,
) -> None:
    """Fills `weight`, the tables of `sizes` numbers one after the other, in place."""
    flat = weight.view(-1).numpy() if kind_of(weight) == "fp32" else None
    with ThreadPoolExecutor(threads or _cores()) as pool:
        jobs = [
            pool.submit(_fill_block, flat[lo:hi], bound, (seed, table, block))
            if flat is not None
            else pool.submit(_fill_narrow, weight, lo, hi, width, bound, (seed, table, block))
            for table, block, lo, hi in _blocks(sizes)
        ]
        for job in jobs:
            job.result()


def _blocks(sizes: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(table, block within it, first number, last + 1)."""
    start = 0
    for table, size in enumerate(sizes):
        for block, lo in enumerate(range(0, size, BLOCK)):
            yield table, block, start + lo, start + min(lo + BLOCK, size)
        start += size


def _fill_block(block: NDArray[np.float32], bound: float, key: tuple[int, int, int]) -> None:
    rng = _generator(key)
    for lo in range(0, block.size, PIECE):
        _draw(rng, block[lo : lo + PIECE], bound)


def _fill_narrow(
    weight: Tensor, lo: int, hi: int, width: int, bound: float, key: tuple[int, int, int]
) -> None:
    rng, scratch = _generator(key), np.empty(PIECE, np.float32)
    for first in range(lo, hi, PIECE):
        piece = scratch[: min(PIECE, hi - first)]
        _draw(rng, piece, bound)
        put(weight, first // width, piece.reshape(-1, width))


def _generator(key: tuple[int, int, int]) -> np.random.Generator:
    # SFC64 is the fastest of numpy's generators here.
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def _draw(rng: np.random.Generator, piece: NDArray[np.float32], bound: float) -> None:
    # `random(out=)` and the two in-place operations release the GIL, so threads scale.
    rng.random(dtype=np.float32, out=piece)
    piece *= np.float32(2 * bound)
    piece -= np.float32(bound)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
