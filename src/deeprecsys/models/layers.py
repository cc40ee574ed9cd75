"""The blocks that the architectures share: look-ups, perceptrons, weights from a generator.

Knows nothing of whole models. The architecture files build from it.

Look-ups of a model read one array that holds all its tables (`tables.py`): ids of each feature
are shifted to their table's first row. One gather over 27 tables takes 3 µs where 27 gathers take
88 µs (batch of 1, `benchmarks/choices.py`): most of a small request's fixed cost. An id beyond its
table would read a neighbour's row, not fail: `Model.check` is there for inputs from outside.

Symbols: N candidates, D dense width, L look-ups, E embedding width, T behaviours, K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from deeprecsys.models.row_types import gather, pooled, width_of
from deeprecsys.models.spec import INT32_MAX, DIENSpec, DINSpec, ModelSpec


class Tables:
    """All tables of a model: `weight` (see `row_types.py`), and where each begins."""

    def __init__(self, spec: ModelSpec, scale: float, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight, requires_grad=False)
        rows = [table.scaled_rows(scale) for table in spec.tables]
        self.start = dict(
            zip((t.name for t in spec.tables), np.cumsum([0, *rows])[:-1].tolist(), strict=True)
        )

    def starts(self, names: Sequence[str]) -> Tensor:
        """First rows [len(names)], in the ids' type unless the rows of all outgrow it."""
        small = self.weight.shape[0] <= INT32_MAX
        dtype = torch.int32 if small else torch.int64
        return torch.tensor([self.start[name] for name in names], dtype=dtype)


class Lookup(nn.Module):
    """One row of each of A tables: ids A x [N, 1] -> [N, A, E]."""

    starts: Tensor

    def __init__(self, tables: Tables, names: Sequence[str]) -> None:
        super().__init__()
        self.weight = tables.weight
        self.register_buffer("starts", tables.starts(names))

    def forward(self, ids: list[Tensor]) -> Tensor:
        return gather(self.weight, torch.cat(ids, 1) + self.starts)


class SumPooled(nn.Module):
    """The sum of L rows of each of A tables: ids A x [N, L] -> [N, A, E]."""

    starts: Tensor

    def __init__(self, tables: Tables, names: Sequence[str], lookups: int) -> None:
        super().__init__()
        self.weight, self.lookups, self.count = tables.weight, lookups, len(names)
        self.register_buffer("starts", tables.starts(names).view(-1, 1, 1))

    def forward(self, ids: list[Tensor]) -> Tensor:
        # Stacked table by table: contiguous copies, and the shift in place.
        rows = torch.stack(ids).to(self.starts.dtype).add_(self.starts).view(-1, self.lookups)
        bags = pooled(self.weight, rows)
        return bags.view(self.count, -1, width_of(self.weight)).transpose(0, 1)


class Behaviours(nn.Module):
    """A sequence of events: ids A x [N, T] -> [N, T, A * E].

    table_a_step: ids T x [N, 1] -> [N, T, E] instead, each step from a table of its own.
    time_first: [T, N, ...] instead, as the recurrent layers read it.
    """

    starts: Tensor

    def __init__(
        self, tables: Tables, names: Sequence[str], *, table_a_step: bool, time_first: bool
    ) -> None:
        super().__init__()
        self.weight, self.time_first = tables.weight, time_first
        self.width = width_of(self.weight) * (1 if table_a_step else len(names))
        self.table_a_step = table_a_step
        starts = tables.starts(names)
        self.register_buffer("starts", starts.unsqueeze(1) if table_a_step else starts)

    def forward(self, ids: list[Tensor]) -> Tensor:
        rows = torch.cat(ids, 1).unsqueeze(2) if self.table_a_step else torch.stack(ids, 2)
        rows = rows + self.starts  # [N, T, A]
        if self.time_first:
            rows = rows.transpose(0, 1)
        # A bag of one row is a copy; embedding_bag prefetches where embedding does not.
        flat = pooled(self.weight, rows.reshape(-1, 1))
        return flat.view(rows.size(0), rows.size(1), self.width)


class InterestNetwork(nn.Module):
    """What DIN and DIEN share: the look-ups of the events, and of what there is one of.

    Of a request's inputs as a whole, or apart: the user's, and the candidates' with the context.
    """

    def __init__(self, spec: DINSpec | DIENSpec, tables: Tables, *, time_first: bool) -> None:
        super().__init__()
        names = [f.name for f in spec.features]
        table_of = [f.tables[0] for f in spec.features]
        self.events = [names.index(name) for name in spec.behaviours]
        self.singles = [names.index(name) for name in (*spec.candidate, *spec.others)]
        self.event_width = spec.event_width
        self.behaviours = Behaviours(
            tables,
            [table_of[i] for i in self.events],
            table_a_step=spec.table_a_step,
            time_first=time_first,
        )
        self.embed = Lookup(tables, [table_of[i] for i in self.singles])
        mine = [name for name in names if name in spec.of_user]
        rest = [name for name in names if name not in spec.of_user]
        others = [name for name in spec.others if name not in spec.of_user]
        once = [name for name in spec.others if name in spec.of_user]
        assert spec.others == (*once, *others)  # the order in which the top reads them
        self.user_events = [mine.index(name) for name in spec.behaviours]
        self.user_singles = [mine.index(name) for name in once]
        self.rest_singles = [rest.index(name) for name in (*spec.candidate, *others)]
        self.embed_user = Lookup(tables, [spec.feature(name).tables[0] for name in once])
        self.embed_rest = Lookup(
            tables, [spec.feature(name).tables[0] for name in (*spec.candidate, *others)]
        )

    def joined(self, rest: Tensor, user: Tensor, interest: Tensor) -> Tensor:
        """[candidate, user, context, interest]: [N, C], [1, U], [N, H] -> [N, C + U + H]."""
        shared = user.expand(rest.size(0), -1)
        candidate, context = rest[:, : self.event_width], rest[:, self.event_width :]
        return torch.cat([candidate, shared, context, interest], 1)


def uniform(rng: np.random.Generator, *shape: int, bound: float) -> Tensor:
    return torch.from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))


def linear(rng: np.random.Generator, fan_in: int, fan_out: int, gain: float = 1.0) -> nn.Linear:
    """A layer whose outputs have `gain` times the root mean square of its inputs."""
    layer = nn.Linear(fan_in, fan_out, device="meta")  # no memory: both tensors come next
    layer.weight = nn.Parameter(uniform(rng, fan_out, fan_in, bound=gain * math.sqrt(3 / fan_in)))
    layer.bias = nn.Parameter(uniform(rng, fan_out, bound=gain / math.sqrt(fan_in)))
    return layer


# Candidates at a time, for a model whose request needs no cutting.
WHOLE = 1 << 30

HE = math.sqrt(2)  # keeps the mean square through a ReLU


def mlp(
    rng: np.random.Generator,
    *widths: int,
    activation: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True),
    last: bool = False,
    input_rms: float = 1.0,
) -> nn.Sequential:
    """[N, widths[0]] -> [N, widths[-1]]; `last` says whether the output is activated too.

    input_rms: expected size of the inputs, divided out so that scores do not saturate.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        active = last or i < len(widths) - 2
        gain = (HE if active else 1.0) / (input_rms if i == 0 else 1.0)
        layers.append(linear(rng, fan_in, fan_out, gain))
        if active:
            layers.append(activation())
    return nn.Sequential(*layers)


class Towers(nn.Module):
    """K perceptrons of equal widths side by side: [N, widths[0]] -> [N, K], a score each.

    All read the same input, so their first layers are one matrix; the others are batched
    products, in the type of their weights.
    """

    def __init__(self, rng: np.random.Generator, count: int, *widths: int) -> None:
        super().__init__()
        self.count = count
        self.first = linear(rng, widths[0], count * widths[1], HE)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(widths[1:]):
            gain = 1.0 if fan_out == widths[-1] else HE
            bound = gain * math.sqrt(3 / fan_in)
            self.weights.append(uniform(rng, count, fan_in, fan_out, bound=bound))
            self.biases.append(uniform(rng, count, 1, fan_out, bound=1 / math.sqrt(fan_in)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(1, (self.count, -1)).transpose(0, 1)  # [K, N, width]
        x = x.to(self.weights[0].dtype)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(bias, torch.relu_(x), weight)
        return x.squeeze(2).t().float()


def click_probability(logits: Tensor) -> Tensor:
    """Softmax over (no click, click) [N, 2] -> P(click) [N, 1]."""
    return torch.softmax(logits, 1)[:, 1:]
