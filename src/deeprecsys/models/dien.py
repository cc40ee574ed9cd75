"""Deep interest evolution network (arXiv 1809.03672, figure 1); its auxiliary loss is training's.

Knows its equations only; built by `model.py`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from deeprecsys.models.layers import (
    WHOLE,
    InterestNetwork,
    Tables,
    click_probability,
    mlp,
    uniform,
)
from deeprecsys.models.spec import DIENSpec


class DIEN(InterestNetwork):
    """P(click) = softmax(top([candidate, others, evolved interest]))."""

    block = WHOLE

    def __init__(self, spec: DIENSpec, tables: Tables, rng: np.random.Generator) -> None:
        super().__init__(spec, tables, time_first=True)
        self.extract = Extraction(rng, spec.event_width, spec.hidden)
        self.evolve = Evolution(rng, spec.event_width, spec.hidden)
        self.top = mlp(rng, spec.hidden + spec.single_width, *spec.top, activation=nn.PReLU)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Features in the specification's order -> [N, 1]."""
        events = self.behaviours([inputs[i] for i in self.events])  # [T, N, event]
        single = self.embed([inputs[i] for i in self.singles]).flatten(1)
        interests = self.extract(events)  # [T, N, H]
        final = self.evolve(interests, single[:, : self.event_width])
        return click_probability(self.top(torch.cat([single, final], 1)))

    def user(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The user's features, one row each -> interests [T, H], these as the AUGRU's input
        [T, 3H], the others [1, U]."""
        events = self.behaviours([inputs[i] for i in self.user_events])  # [T, 1, event]
        interests = self.extract(events).squeeze(1)
        single = self.embed_user([inputs[i] for i in self.user_singles]).flatten(1)
        return interests, self.evolve.project(interests), single

    def candidates(self, user: tuple[Tensor, Tensor, Tensor], inputs: list[Tensor]) -> Tensor:
        """What `user` answered, and the other features [N, 1] -> [N, 1]."""
        interests, projected, single = user
        rest = self.embed_rest([inputs[i] for i in self.rest_singles]).flatten(1)
        final = self.evolve(interests, rest[:, : self.event_width], projected)
        return click_probability(self.top(self.joined(rest, single, final)))


class Extraction(nn.Module):
    """The interest extractor, a GRU: [T, N, width] -> [T, N, H].

    torch's kernel, called directly: nn.GRU adds checks that a trace cannot take. Its update gate
    is one minus the paper's, and it has a bias at the input and one at the state. Computed in the
    type of its weights.
    """

    def __init__(self, rng: np.random.Generator, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        gates, bound = 3 * hidden, 1 / math.sqrt(hidden)  # reset, update, new
        self.input = nn.Parameter(uniform(rng, gates, width, bound=bound))
        self.state = nn.Parameter(uniform(rng, gates, hidden, bound=bound))
        self.input_bias = nn.Parameter(uniform(rng, gates, bound=bound))
        self.state_bias = nn.Parameter(uniform(rng, gates, bound=bound))

    def forward(self, events: Tensor) -> Tensor:
        weights = (self.input, self.state, self.input_bias, self.state_bias)
        events = events.to(self.input.dtype)
        start = events.new_zeros(1, events.size(1), self.hidden)
        # biases, one layer, no dropout, not training, one direction, time first
        interests, _ = torch.gru(events, start, weights, True, 1, 0.0, False, False, False)
        return interests.float()


class Evolution(nn.Module):
    """Attention over the interests and the AUGRU: h [T, N, H] or [T, H], candidate e [N, E]
    -> [N, H].

    a_t = softmax_t(h_t W e); r, u = sigmoid(.); n = tanh(W_n h_t + r * (U_n s) + b_n);
    u' = a_t u; s = (1 - u') s + u' n. Five products and sums a step: the fixed cost of a small
    request is T times this loop. W_n h_t and the gates' share of h_t do not depend on the state:
    `project` makes them of all steps at once, and of interests that all candidates share only
    once. Computed in the type of its weights.
    """

    def __init__(self, rng: np.random.Generator, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.attention = nn.Parameter(uniform(rng, width, hidden, bound=math.sqrt(3 / width)))
        bound = 1 / math.sqrt(hidden)
        self.input = nn.Parameter(uniform(rng, hidden, 3 * hidden, bound=bound))  # r, u, n
        self.bias = nn.Parameter(uniform(rng, 3 * hidden, bound=bound))
        self.state_gates = nn.Parameter(uniform(rng, hidden, 2 * hidden, bound=bound))  # r, u
        self.state_new = nn.Parameter(uniform(rng, hidden, hidden, bound=bound))  # n

    def project(self, interests: Tensor) -> Tensor:
        """What the AUGRU reads of them: [.., H] -> [.., 3H]."""
        flat = torch.addmm(
            self.bias, interests.reshape(-1, self.hidden).to(self.input.dtype), self.input
        )
        return flat.view(*interests.shape[:-1], 3 * self.hidden)

    def forward(
        self, interests: Tensor, candidate: Tensor, projected: Tensor | None = None
    ) -> Tensor:
        interests = interests.to(self.attention.dtype)
        sought = candidate.to(self.attention.dtype) @ self.attention  # [N, H]
        if interests.dim() == 2:
            relevance = (interests @ sought.t()).unsqueeze(2)  # [T, N, 1]
        else:
            relevance = (interests * sought).sum(2, keepdim=True)
        attention = torch.softmax(relevance, 0).unbind(0)
        projected = self.project(interests) if projected is None else projected
        gates = projected[..., : 2 * self.hidden].unbind(0)
        new = projected[..., 2 * self.hidden :].unbind(0)
        state = torch.zeros_like(sought)
        for a, gate, candidate_state in zip(attention, gates, new, strict=True):
            r, u = torch.sigmoid(torch.addmm(gate, state, self.state_gates)).chunk(2, 1)
            n = torch.tanh(torch.addcmul(candidate_state, r, state @ self.state_new))
            state = torch.lerp(state, n, a * u)
        return state.float()
