"""How the inputs of queries that are executed together lie in one block of bytes.

Pure: offsets and views. One block is one transfer to a device, where thirty inputs would be thirty.
Inputs of one id each lie together, [A, N], and are seen as [N, A] (`ModelSpec.joined`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Inputs, InputSpec

# Each input begins at a multiple of this: what CUDA's own allocations promise.
ALIGNMENT = 256

Bytes = NDArray[np.uint8]


class Packing:
    """Of a model's inputs; `joined` of them as one."""

    def __init__(self, inputs: Sequence[InputSpec], joined: Sequence[str] = ()) -> None:
        self._apart = [spec for spec in inputs if spec.name not in set(joined)]
        self._joined = list(joined)

    def offsets(self, n: int) -> list[int]:
        """Where each input of n candidates begins, and last where the block ends."""
        sizes = [n * spec.bytes_per_row for spec in self._apart]
        if self._joined:
            sizes.append(4 * n * len(self._joined))
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        return offsets

    def bytes(self, n: int) -> int:
        return self.offsets(n)[-1]

    def pack(self, block: Bytes, queries: Sequence[Inputs], sizes: Sequence[int]) -> None:
        """Writes the queries' inputs, one after the other, into `block` of `bytes(sum(sizes))`."""
        n = sum(sizes)
        offsets = self.offsets(n)
        for spec, at in zip(self._apart, offsets, strict=False):
            flat = block[at : at + n * spec.bytes_per_row].view(spec.dtype)
            rows, lo = flat.reshape(n, *spec.shape), 0
            for inputs, size in zip(queries, sizes, strict=True):
                rows[lo : lo + size] = inputs[spec.name]
                lo += size
        if self._joined:
            at = offsets[-2]
            flat = block[at : at + 4 * n * len(self._joined)].view(np.int32)
            ids, lo = flat.reshape(len(self._joined), n), 0
            for inputs, size in zip(queries, sizes, strict=True):
                for row, name in zip(ids, self._joined, strict=True):
                    row[lo : lo + size] = inputs[name].reshape(-1)
                lo += size

    def views(self, block: Any, n: int) -> list[Any]:
        """The same bytes as tensors, in the order a model's module takes them.

        block: a uint8 tensor, on whatever device.
        """
        import torch

        offsets = self.offsets(n)
        types = {np.dtype(np.float32): torch.float32, np.dtype(np.int32): torch.int32}
        tensors = [
            block[at : at + n * spec.bytes_per_row].view(types[spec.dtype]).view(n, *spec.shape)
            for spec, at in zip(self._apart, offsets, strict=False)
        ]
        if self._joined:
            at = offsets[-2]
            flat = block[at : at + 4 * n * len(self._joined)].view(torch.int32)
            tensors.append(flat.view(len(self._joined), n).t())
        return tensors
