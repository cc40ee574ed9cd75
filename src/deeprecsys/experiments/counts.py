"""How many machines of each kind: the pure rule behind `plan`.

`spare` machines may fail, whichever: so the most capable are taken to fail. Of n_i machines of q_i
queries/s each there then remains, by duality, max over t of Σ n_i·min(q_i, t) - spare·t, reached at
one of the q_i. For a given t that is plain covering: each machine is worth min(q_i, t), and
demand + spare·t is needed. Its cheapest fractional answer takes all that can be had of the kinds
cheapest for their worth, and a part of one more; rounded up, that is at most one machine dearer.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# 10,000 queries/s are ten machines of 1,000, whatever the last bit of either says.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Supply:
    """A kind: what one machine bears in a fleet, what it costs, how many can be had."""

    qps: float
    cost: float
    most: int | None = None


def remaining(supplies: Sequence[Supply], counts: Sequence[int], spare: int) -> list[int]:
    """Machines of each kind once the `spare` most capable have failed."""
    left = list(counts)
    for i in sorted(range(len(supplies)), key=lambda i: -supplies[i].qps):
        failed = min(left[i], spare)
        left[i] -= failed
        spare -= failed
    return left


def capacity_qps(supplies: Sequence[Supply], counts: Sequence[int], spare: int) -> float:
    """What is borne without the `spare` most capable machines."""
    left = remaining(supplies, counts, spare)
    return sum(n * supply.qps for n, supply in zip(left, supplies, strict=True))


def cost_of(supplies: Sequence[Supply], counts: Sequence[int]) -> float:
    return sum(n * supply.cost for n, supply in zip(counts, supplies, strict=True))


def cheapest(supplies: Sequence[Supply], demand_qps: float, spare: int) -> list[int] | None:
    """Machines of each kind, spares among them; None where all that can be had do not suffice.

    Never dearer than any kind alone, and at most one machine above the cheapest there is.
    """
    found = [
        _trimmed(supplies, counts, demand_qps, spare)
        for worth in dict.fromkeys(supply.qps for supply in supplies)
        for counts in _covers(supplies, demand_qps + spare * worth, worth)
    ]
    return min(found, key=lambda n: (cost_of(supplies, n), sum(n), -max(n)), default=None)


def _covers(supplies: Sequence[Supply], needed: float, most_worth: float) -> list[list[int]]:
    """All that can be had of the kinds cheapest for their worth, then of one what is missing."""
    worth = [min(supply.qps, most_worth) for supply in supplies]
    order = sorted(range(len(supplies)), key=lambda i: supplies[i].cost / worth[i])
    found, counts = [], [0] * len(supplies)
    for at, kind in enumerate(order):
        for last in order[at:]:
            wanted, most = math.ceil(needed / worth[last] - _ROUNDING), supplies[last].most
            if most is None or wanted <= most:
                found.append([wanted if i == last else n for i, n in enumerate(counts)])
        most = supplies[kind].most
        if most is None or most * worth[kind] >= needed:
            break  # more kinds only cost more
        counts[kind] = most
        needed -= most * worth[kind]
    return found


def _trimmed(supplies: Sequence[Supply], counts: list[int], demand: float, spare: int) -> list[int]:
    """Without the machines that rounding up made needless, the dearest first."""
    enough = demand * (1 - _ROUNDING)
    for i in sorted(range(len(supplies)), key=lambda i: -supplies[i].cost):
        others = list(counts)

        def capacity(n: int, i: int = i, others: list[int] = others) -> float:
            others[i] = n
            return capacity_qps(supplies, others, spare)

        fewest = bisect_left(range(counts[i]), enough, key=capacity)
        counts = [fewest if j == i else n for j, n in enumerate(counts)]
    return counts
