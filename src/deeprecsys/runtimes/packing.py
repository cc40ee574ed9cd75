"""How the inputs of queries that are executed together lie in one block of bytes.

Pure: offsets and views. One block is one transfer to a device, where thirty inputs would be thirty.
Inputs of one id each lie together, [A, N], and are seen as [N, A] (`ModelSpec.joined`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import Inputs, InputSpec

# Each input begins at a multiple of this: what CUDA's own allocations promise.
ALIGNMENT = 256

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one request. sizes: each query's candidates. rows: of each input that lies apart, each
    query's rows: as many as candidates, or the one that they share. offsets: where each input
    begins, and last where the block ends."""

    sizes: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.offsets[-1]


class Packing:
    """Of a model's inputs; `joined` of them as one."""

    def __init__(self, inputs: Sequence[InputSpec], joined: Sequence[str] = ()) -> None:
        self._apart = [spec for spec in inputs if spec.name not in set(joined)]
        self._joined = list(joined)

    def layout(self, queries: Sequence[Inputs], sizes: Sequence[int]) -> Layout:
        """What the candidates of a query share lies there once."""
        rows = tuple(tuple(len(q[spec.name]) for q in queries) for spec in self._apart)
        return Layout(tuple(sizes), rows, self._offsets([sum(r) for r in rows], sum(sizes)))

    def bytes(self, n: int) -> int:
        """Of n candidates that share nothing, which is the most that n can take."""
        return self._offsets([n] * len(self._apart), n)[-1]

    def pack(self, block: Bytes, queries: Sequence[Inputs], layout: Layout) -> None:
        """Writes the queries' inputs, one after the other, into `block`."""
        for spec, rows, at in zip(self._apart, layout.rows, layout.offsets, strict=False):
            flat = block[at : at + sum(rows) * spec.bytes_per_row].view(spec.dtype)
            lines, lo = flat.reshape(-1, *spec.shape), 0
            for inputs, count in zip(queries, rows, strict=True):
                lines[lo : lo + count] = inputs[spec.name]
                lo += count
        if self._joined:
            n, at = sum(layout.sizes), layout.offsets[-2]
            flat = block[at : at + 4 * n * len(self._joined)].view(np.int32)
            ids, lo = flat.reshape(len(self._joined), n), 0
            for inputs, size in zip(queries, layout.sizes, strict=True):
                for row, name in zip(ids, self._joined, strict=True):
                    row[lo : lo + size] = inputs[name].reshape(-1)
                lo += size

    def views(self, block: Any, layout: Layout) -> list[Any]:
        """The same as tensors of a row a candidate, in the order a model's module takes them.

        block: a uint8 tensor, on whatever device, where what several queries share each for
        themselves is repeated; what one query's candidates share stays one row, seen N times.
        """
        import torch

        types = {np.dtype(np.float32): torch.float32, np.dtype(np.int32): torch.int32}
        tensors = []
        for spec, rows, at in zip(self._apart, layout.rows, layout.offsets, strict=False):
            flat = block[at : at + sum(rows) * spec.bytes_per_row].view(types[spec.dtype])
            tensors.append(_repeated(flat.view(sum(rows), *spec.shape), rows, layout.sizes))
        if self._joined:
            n, at = sum(layout.sizes), layout.offsets[-2]
            flat = block[at : at + 4 * n * len(self._joined)].view(torch.int32)
            tensors.append(flat.view(len(self._joined), n).t())
        return tensors

    def _offsets(self, rows: Sequence[int], n: int) -> tuple[int, ...]:
        sizes = [r * spec.bytes_per_row for r, spec in zip(rows, self._apart, strict=True)]
        if self._joined:
            sizes.append(4 * n * len(self._joined))
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        return tuple(offsets)


def _repeated(lines: Any, rows: Sequence[int], sizes: Sequence[int]) -> Any:
    """A row a candidate: [sum(rows), ...] -> [sum(sizes), ...]."""
    import torch

    if rows == sizes:
        return lines
    parts = [
        part if len(part) == size else part.expand(size, *part.shape[1:])
        for part, size in zip(lines.split(rows), sizes, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


__all__ = ["ALIGNMENT", "Layout", "Packing"]
