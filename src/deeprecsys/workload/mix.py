"""Traffic of several models: one stream of arrivals, each query of one model and its size law."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deeprecsys.core import IntArray, Schedule, UserError
from deeprecsys.workload.sizes import SizeLaw, parse_sizes
from deeprecsys.workload.workload import Workload


@dataclass(frozen=True)
class Share:
    """Of the traffic: a model's mean rate and sizes."""

    model: str
    qps: float
    sizes: str = "production"


class Mix:
    """`Mix([Share("ncf", 1000.0)], "daily:600").pieces(600)`; with one model, its `Workload`."""

    def __init__(self, shares: Sequence[Share], arrivals: str = "poisson", seed: int = 0) -> None:
        if not shares:
            raise UserError("there is no traffic: name at least one model with its qps")
        for share in shares:
            if not 0 < share.qps < np.inf:
                raise UserError(f"qps of {share.model} must be positive, not {share.qps:g}")
        self.shares, self.seed = tuple(shares), seed
        self.workload = Workload(sizes=shares[0].sizes, arrivals=arrivals, seed=seed)
        self.laws: list[SizeLaw] = [parse_sizes(share.sizes) for share in shares]

    @property
    def qps(self) -> float:
        return sum(share.qps for share in self.shares)

    def pieces(self, duration_s: float) -> Iterator[tuple[Schedule, IntArray]]:
        """Schedules that follow each other, with each query's model as an index into `shares`."""
        rng = np.random.default_rng([self.seed, 0x313])
        upto = np.cumsum([share.qps for share in self.shares]) / self.qps
        for piece in self.workload.pieces(rate_qps=self.qps, duration_s=duration_s):
            if len(self.shares) == 1:
                yield piece, np.zeros(len(piece), np.int64)
                continue
            model = np.searchsorted(upto, rng.random(len(piece)), side="right")
            model = np.minimum(model, len(self.shares) - 1)
            size = piece.size.copy()
            for i, law in enumerate(self.laws):
                mine = model == i
                size[mine] = law.sample(rng, int(mine.sum()))
            yield Schedule(piece.arrival_s, size, piece.indices), model
