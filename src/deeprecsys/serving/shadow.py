"""Two versions of a model over the same queries: how far their scores are apart, and how much
longer the one takes. Nobody is answered.

Executed in the thread that asks, request by request as the policy cuts them, in turns, and timed in
that thread's processor time: what the workers do meanwhile does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeprecsys.core import Inputs, UserError
from deeprecsys.protocol.reasons import invalid
from deeprecsys.serving.hosted import Hosted
from deeprecsys.serving.recent import Kept

_EXAMPLES = (1, 17, 64, 128, 256, 512)  # candidates, where no queries are known
_WARM, _ROUNDS, _LEAST, _MOST = 1, 2, 8, 24
# What either takes beside its requests: differences much below it do not matter.
_LEAST_S = 1e-4


@dataclass(frozen=True, slots=True)
class Compared:
    """queries: how many. slower: the new one's p95 over the old one's. difference: of scores, the
    most and in the mean."""

    queries: int = 0
    slower: float = 1.0
    difference: float = 0.0
    mean_difference: float = 0.0

    def and_(self, more: Compared) -> Compared:
        """Both together; the time of the later."""
        n = self.queries + more.queries
        mean = self.mean_difference * self.queries + more.mean_difference * more.queries
        return Compared(n, more.slower, max(self.difference, more.difference), mean / max(n, 1))

    def about(self) -> dict[str, Any]:
        return {
            "queries": self.queries,
            "slower": round(self.slower, 3),
            "difference": round(self.difference, 6),
            "mean_difference": round(self.mean_difference, 6),
        }


def compare(old: Hosted, new: Hosted, kept: Sequence[Kept], least: int = _LEAST) -> Compared:
    """Over what is kept of the traffic; where that is less than `least` queries, over drawn ones.
    Also warms the new one up. Refusal where it gives no scores."""
    queries: list[Inputs] = [one.inputs for one in kept[-_MOST:]]
    if len(queries) < least:
        queries += _drawn(old)
    _all_sizes(new)
    times: list[tuple[float, float]] = []
    apart: list[tuple[float, float]] = []
    for round_ in range(_WARM + _ROUNDS):
        for inputs in queries:
            before, old_s = _again(old, inputs)
            after, new_s = _again(new, inputs)
            if not np.isfinite(after).all():
                raise invalid(f"version {new.version} gives scores that are not numbers")
            if round_ >= _WARM:
                times.append((old_s, new_s))
            else:
                difference = np.abs(after.astype(np.float64) - before)
                apart.append((float(difference.max(initial=0.0)), float(difference.mean())))
    if not times:
        return Compared()
    by_query = np.median(np.array(times).reshape(_ROUNDS, len(queries), 2), axis=0)
    before_s, after_s = np.percentile(by_query, 95, axis=0) + _LEAST_S
    return Compared(
        len(queries),
        float(after_s / before_s),
        max(most for most, _ in apart),
        float(np.mean([mean for _, mean in apart])),
    )


def _again(one: Hosted, inputs: Inputs) -> tuple[Any, float]:
    """Scores, and the time of a second execution: what rows the workers have in the cache, for the
    queries that they answer, says nothing of a version that answers none."""
    policy = one.served.policy
    one.engine.execute_here(inputs, policy)
    return one.engine.execute_here(inputs, policy)


def _drawn(old: Hosted) -> list[Inputs]:
    model = old.engine.model
    most = model.most_items if model.whole and model.most_items is not None else max(_EXAMPLES)
    rng = np.random.default_rng(0)
    return [model.example(size, rng) for size in _EXAMPLES if size <= most]


def _all_sizes(new: Hosted) -> None:
    """Every size of a request at least once, before it is timed."""
    for inputs in _drawn(new):
        try:
            new.engine.execute_here(inputs, new.served.policy)
        except UserError:  # fewer candidates than the model takes
            continue


__all__ = ["Compared", "compare"]
