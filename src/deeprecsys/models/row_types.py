"""Embedding rows in fp32, fp16 or int8: how they are kept, narrowed and looked up.

Knows one array of rows and ids into it. A row of int8 is E bytes and then its scale and its
offset, two floats: value = byte * scale + offset, the layout that PyTorch's look-ups read. What a
look-up gives is fp32 always; a pooled one sums in fp32.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deeprecsys.models.spec import ROW_TAIL_BYTES, Rows, row_bytes

_AT_A_TIME = 1 << 16  # floats: what is narrowed stays in the second-level cache


def kind_of(weight: Tensor) -> Rows:
    """By the type of its elements."""
    kinds: dict[torch.dtype, Rows] = {torch.float32: "fp32", torch.float16: "fp16"}
    return kinds.get(weight.dtype, "int8")


def width_of(weight: Tensor) -> int:
    """E: numbers a row."""
    return weight.shape[1] - (ROW_TAIL_BYTES if kind_of(weight) == "int8" else 0)


def empty(count: int, width: int, rows: Rows) -> Tensor:
    """[count, ..] zeroed, in huge pages where there are."""
    array = allocate(count * row_bytes(width, rows)).reshape(count, -1)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.uint8}[rows]
    return torch.from_numpy(array).view(dtype)


def allocate(size: int) -> NDArray[np.uint8]:
    """So many bytes of zeroed private memory, in huge pages where the platform has them.

    Random rows of 128 bytes touch a page each, and 4 KiB pages of a 4 GB array do not fit any
    TLB: without, pooled look-ups take 1.7 and row gathers 1.5 times as long (Zen 4,
    `benchmarks/choices.py`).
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return np.zeros(size, dtype=np.uint8)
    # Private, not shared: shared anonymous memory obeys another, usually disabled, switch.
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel built without them refuses: ordinary pages serve as well, only slower.
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=np.uint8, count=size)


def put(target: Tensor, first: int, values: NDArray[np.float32]) -> None:
    """Narrows `values` [k, E] into the rows from `first`. Releases the GIL for most of it."""
    rows = torch.from_numpy(values)
    part = target[first : first + len(rows)]
    part.copy_(_bytes_of(rows) if kind_of(target) == "int8" else rows)


def narrowed(weight: Tensor, rows: Rows) -> Tensor:
    """The same rows in another type; itself where it is of that type. Takes the memory of the
    result and a little more."""
    if kind_of(weight) == rows:
        return weight
    if kind_of(weight) != "fp32":
        raise ValueError(f"rows of {kind_of(weight)} cannot become {rows}")
    count, width = weight.shape
    target = empty(count, width, rows)
    step = max(1, _AT_A_TIME // width)
    array = weight.detach().numpy()
    for lo in range(0, count, step):
        put(target, lo, array[lo : lo + step])
    return target


def _bytes_of(rows: Tensor) -> Tensor:
    """[k, E] fp32 -> [k, E + 8] bytes."""
    packed: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(rows)
    return packed


def gather(weight: Tensor, ids: Tensor) -> Tensor:
    """A row of each id: ids [..] -> fp32 [.., E]."""
    kind = kind_of(weight)
    if kind == "int8":
        flat = pooled(weight, ids.reshape(-1, 1))
        return flat.view(*ids.shape, width_of(weight))
    found = F.embedding(ids, weight)
    return found if kind == "fp32" else found.float()


def pooled(weight: Tensor, bags: Tensor) -> Tensor:
    """The sum of each bag's rows: ids [B, L] -> fp32 [B, E]."""
    kind = kind_of(weight)
    if kind == "int8":
        starts = torch.arange(0, bags.numel(), bags.size(1), dtype=bags.dtype)
        found: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            weight, bags.reshape(-1), starts
        )
        return found
    summed = F.embedding_bag(bags, weight, mode="sum")
    return summed if kind == "fp32" else summed.float()
