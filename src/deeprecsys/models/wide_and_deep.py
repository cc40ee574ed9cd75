"""Wide & Deep (arXiv 1606.07792, figure 1) for one task or several.

Knows its equations only; built by `model.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from deeprecsys.models.layers import Lookup, Tables, Towers, linear, mlp
from deeprecsys.models.spec import WideAndDeepSpec


class WideAndDeep(nn.Module):
    """scores = sigmoid(wide(dense) + tower_k(shared([dense, embeddings]))) for each task k."""

    def __init__(self, spec: WideAndDeepSpec, tables: Tables, rng: np.random.Generator) -> None:
        super().__init__()
        self.embed = Lookup(tables, [f.name for f in spec.features])
        self.wide = linear(rng, spec.dense, 1) if spec.wide else None
        shared = (spec.deep_in, *spec.shared)
        self.shared = mlp(rng, *shared, last=True)
        widths = (shared[-1], *spec.tower)
        self.towers = Towers(rng, spec.towers, *widths) if spec.towers > 1 else mlp(rng, *widths)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """[dense [N, D], then a [N, 1] each table, or one [N, A] for all] -> [N, K]."""
        dense = inputs[0]
        x = torch.cat([dense, self.embed(inputs[1:]).flatten(1)], 1)
        logits = self.towers(self.shared(x))
        if self.wide is not None:
            logits = logits + self.wide(dense)
        return torch.sigmoid(logits)
