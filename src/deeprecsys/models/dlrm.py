"""Deep learning recommendation model (arXiv 1906.00091, figure 1), for the classes RMC1 to RMC3.

Knows its equations only; built by `model.py`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from deeprecsys.models.layers import WHOLE, SumPooled, Tables, mlp
from deeprecsys.models.spec import DLRMSpec


class DLRM(nn.Module):
    """score = sigmoid(top(interact(bottom(dense), pooled bags)))."""

    block = WHOLE

    def __init__(self, spec: DLRMSpec, tables: Tables, rng: np.random.Generator) -> None:
        super().__init__()
        self.bags = SumPooled(tables, [t.name for t in spec.tables], spec.pooled)
        self.bottom = mlp(rng, spec.dense, *spec.bottom, last=True)
        self.interact = Dot(spec.vectors) if spec.interaction == "dot" else Concat()
        self.top = mlp(rng, spec.top_in, *spec.top, input_rms=_interaction_rms(spec))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """[dense [N, D], then a [N, L] each table] -> [N, 1]."""
        return self._scores(self.bottom(inputs[0]), self.bags(inputs[1:]))

    def user(self, inputs: list[Tensor]) -> tuple[Tensor]:
        """[dense [1, D]] -> [1, B], the bottom's output."""
        return (self.bottom(inputs[0]),)

    def candidates(self, user: tuple[Tensor], inputs: list[Tensor]) -> Tensor:
        """What `user` answered, and a [N, L] each table -> [N, 1]."""
        bags = self.bags(inputs)
        return self._scores(user[0].expand(bags.size(0), -1), bags)

    def _scores(self, dense: Tensor, bags: Tensor) -> Tensor:
        return torch.sigmoid(self.top(self.interact(dense, bags)))


class Dot(nn.Module):
    """The dense vector, then all pairwise dot products: [N, E], [N, F-1, E] -> [N, E + pairs]."""

    below: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("below", row * vectors + column)

    def forward(self, dense: Tensor, bags: Tensor) -> Tensor:
        vectors = torch.cat([dense.unsqueeze(1), bags], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        # index_select: 47 µs for N 256 and F 33, where indexing with brackets takes 290.
        return torch.cat([dense, products.index_select(1, self.below)], 1)


class Concat(nn.Module):
    """The vectors side by side: [N, B], [N, F-1, E] -> [N, B + (F-1) E]."""

    def forward(self, dense: Tensor, bags: Tensor) -> Tensor:
        return torch.cat([dense, bags.flatten(1)], 1)


def _interaction_rms(spec: DLRMSpec) -> float:
    """Products of unit-variance vectors have variance E; what is concatenated has 1."""
    if spec.interaction == "cat":
        return 1.0
    return math.sqrt((spec.bottom[-1] + spec.pairs * spec.width) / spec.top_in)
