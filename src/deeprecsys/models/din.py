"""Deep interest network (arXiv 1706.06978, figure 2).

Knows its equations only; built by `model.py`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from deeprecsys.models.layers import (
    HE,
    InterestNetwork,
    Tables,
    click_probability,
    linear,
    mlp,
    uniform,
)
from deeprecsys.models.spec import DINSpec


class DIN(InterestNetwork):
    """P(click) = softmax(top([candidate, user, context, sum_t a(k_t, q) k_t]))."""

    def __init__(self, spec: DINSpec, tables: Tables, rng: np.random.Generator) -> None:
        super().__init__(spec, tables, time_first=False)
        self.activation = ActivationUnit(rng, spec.event_width, spec.attention, spec.steps)
        top_in = spec.event_width + spec.single_width
        self.top = mlp(rng, top_in, *spec.top, activation=nn.PReLU)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Features in the specification's order, behaviours [N, T], others [N, 1] -> [N, 1]."""
        k = self.behaviours([inputs[i] for i in self.events])  # [N, T, event]
        single = self.embed([inputs[i] for i in self.singles]).flatten(1)
        a = self.activation(k, single[:, : self.event_width])  # the candidate comes first
        interest = torch.bmm(a.unsqueeze(1), k).squeeze(1)
        return click_probability(self.top(torch.cat([single, interest], 1)))


class ActivationUnit(nn.Module):
    """How much a behaviour k matters to candidate q: k [N, T, E], q [N, E] -> a [N, T].

    a = v . PReLU(W [k, q, q - k, q * k] + b) + c, without a softmax: the paper keeps the
    intensity. The first layer is linear in k for a given q,

        (W_k - W_d + diag(q) W_p) k + (W_q + W_d) q + b,

    so it is one product of k with a small matrix a candidate, a quarter of the multiplications and
    no [N, T, 4E] in memory.
    """

    of_k: Tensor
    of_q: Tensor

    def __init__(self, rng: np.random.Generator, width: int, hidden: int, steps: int) -> None:
        super().__init__()
        bound = HE * math.sqrt(3 / (4 * width))
        self.weight = nn.Parameter(uniform(rng, 4, width, hidden, bound=bound))  # k, q, q-k, q*k
        self.bias = nn.Parameter(uniform(rng, hidden, bound=1 / math.sqrt(4 * width)))
        w_k, w_q, w_d, _ = self.weight.detach()
        self.register_buffer("of_k", w_k - w_d, persistent=False)
        self.register_buffer("of_q", w_q + w_d, persistent=False)
        self.prelu = nn.PReLU()
        # A sum over T behaviours shall have about unit variance.
        self.out = linear(rng, hidden, 1, gain=1 / math.sqrt(steps))

    def forward(self, k: Tensor, q: Tensor) -> Tensor:
        of_k = torch.addcmul(self.of_k, q.unsqueeze(2), self.weight[3])  # [N, E, hidden]
        of_q = torch.addmm(self.bias, q, self.of_q).unsqueeze(1)
        intensity: Tensor = self.out(self.prelu(torch.baddbmm(of_q, k, of_k)))  # [N, T, 1]
        return intensity.squeeze(2)
