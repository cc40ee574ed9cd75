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

    # The activation unit's [T, N * hidden] is 36 kB a candidate and shall stay in the cache: 512
    # candidates of one user take 22 ms in pieces of 32, 33 in pieces of 64 (AMD EPYC, 32 MB).
    block = 32

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

    def user(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The user's features, one row each -> behaviours [T, event], the others [1, U]."""
        k = self.behaviours([inputs[i] for i in self.user_events])
        return k[0], self.embed_user([inputs[i] for i in self.user_singles]).flatten(1)

    def candidates(self, user: tuple[Tensor, Tensor], inputs: list[Tensor]) -> Tensor:
        """What `user` answered, and the other features [N, 1] -> [N, 1]."""
        k, single = user
        rest = self.embed_rest([inputs[i] for i in self.rest_singles]).flatten(1)
        interest = self.activation(k, rest[:, : self.event_width]) @ k
        return click_probability(self.top(self.joined(rest, single, interest)))


class ActivationUnit(nn.Module):
    """How much a behaviour k matters to candidate q: k [N, T, E] or [T, E], q [N, E] -> a [N, T].

    a = v . PReLU(W [k, q, q - k, q * k] + b) + c, without a softmax: the paper keeps the
    intensity. The first layer is linear in k for a given q,

        (W_k - W_d + diag(q) W_p) k + (W_q + W_d) q + b,

    so it is one product of k with a small matrix a candidate, a quarter of the multiplications and
    no [N, T, 4E] in memory. Where all candidates share k, these matrices lie side by side and it
    is one product [T, E] x [E, N hidden].

    Its products are in the type of its weights.
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
        k, q = k.to(self.weight.dtype), q.to(self.weight.dtype)
        if k.dim() == 2:
            return self._of_one_user(k, q)
        of_k = torch.addcmul(self.of_k, q.unsqueeze(2), self.weight[3])  # [N, E, hidden]
        of_q = torch.addmm(self.bias, q, self.of_q).unsqueeze(1)
        hidden = torch.baddbmm(of_q, k, of_k).float()
        intensity: Tensor = self.out(self.prelu(hidden))  # [N, T, 1]
        return intensity.squeeze(2)

    def _of_one_user(self, k: Tensor, q: Tensor) -> Tensor:
        of_k = torch.addcmul(
            self.of_k.unsqueeze(1), q.t().unsqueeze(2), self.weight[3].unsqueeze(1)
        )  # [E, N, hidden]
        of_q = torch.addmm(self.bias, q, self.of_q).view(1, -1)
        # What is the same for every k is one more row, read by a column of ones: added to the
        # product instead, it would be a pass of its own over [T, N hidden].
        matrix = torch.cat([of_k.reshape(k.size(1), -1), of_q])
        hidden = torch.cat([k, torch.ones_like(k[:, :1])], 1) @ matrix
        active = self.prelu(hidden.float().view(-1, self.bias.size(0)))
        intensity: Tensor = self.out(active)  # [T * N, 1]
        return intensity.view(k.size(0), -1).t()
