"""Neural collaborative filtering: NeuMF (arXiv 1708.05031, figure 3).

Knows its equations only; built by `model.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from deeprecsys.models.layers import Lookup, Tables, mlp
from deeprecsys.models.spec import NCFSpec


class NCF(nn.Module):
    """score = sigmoid(predict([gmf_user * gmf_item, mlp([mlp_user, mlp_item])]))."""

    def __init__(self, spec: NCFSpec, tables: Tables, rng: np.random.Generator) -> None:
        super().__init__()
        order = ("gmf_user", "gmf_item", "mlp_user", "mlp_item")
        self.embed = Lookup(tables, order)
        self.mlp = mlp(rng, 2 * spec.width, *spec.mlp, last=True)
        self.predict = mlp(rng, spec.width + spec.mlp[-1], *spec.predict)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """[user [N, 1], item [N, 1]] -> [N, 1]."""
        user, item = inputs
        e = self.embed([user, item, user, item])  # [N, 4, E]
        gmf = e[:, 0] * e[:, 1]
        deep = self.mlp(e[:, 2:].flatten(1))
        return torch.sigmoid(self.predict(torch.cat([gmf, deep], 1)))
