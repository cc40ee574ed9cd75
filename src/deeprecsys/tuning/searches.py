"""Searches over policies: each knows a function that measures one, and nothing of systems.

`measure(policy)` answers a `Capacity` after a first, quick look. A search answers the policies
worth a careful second look, in any order. Add one: a function here and a line in `SEARCHES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deeprecsys.core import Policy, replace
from deeprecsys.tuning.capacity import Capacity

# The paper's static setting spreads the largest query evenly: ceil(1000 / cores), which it
# prints as 25 for its 40-core Skylake (recalled, not checked against the PDF).
LARGEST_QUERY = 1000
LITERAL_25 = 25

Measure = Callable[[Policy], Capacity]


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may choose from.

    thresholds: sizes from which on queries may be offloaded, descending; empty without an
    accelerator.
    """

    workers: int
    largest: int
    thresholds: tuple[int, ...] = ()

    @property
    def batch_sizes(self) -> list[int]:
        """1, 2, 4 .. to the first that leaves the largest query whole."""
        sizes = [1]
        while sizes[-1] < self.largest:
            sizes.append(2 * sizes[-1])
        return sizes

    @property
    def static(self) -> Policy:
        return Policy(batch_size=-(-LARGEST_QUERY // self.workers))

    @property
    def literal(self) -> Policy:
        return Policy(batch_size=LITERAL_25)


def hill_climb(measure: Measure, space: Space) -> None:
    """The paper's climb: batch size 1 upward while the rate grows; then the threshold, downward.

    A plateau, or a loss within the noise of a first look, does not stop it: two steps in a row
    must be surely worse than the best.
    """
    best = _climb(measure, [Policy(batch_size=size) for size in space.batch_sizes])
    if space.thresholds:
        _climb(measure, [best, *offloading(best, space)])


def _climb(measure: Measure, policies: Sequence[Policy]) -> Policy:
    """The best of them, tried in order until two in a row are surely worse than the best."""
    best, rate, worse = policies[0], measure(policies[0]), 0
    for policy in policies[1:]:
        found = measure(policy)
        if found.interval_qps[1] < rate.interval_qps[0]:
            worse += 1
            if worse == 2:
                break
            continue
        worse = 0
        if found.rate_qps > rate.rate_qps:
            best, rate = policy, found
    return best


def offloading(policy: Policy, space: Space) -> list[Policy]:
    """The same policy with each threshold, the one that offloads least first."""
    return [replace(policy, offload_threshold=size) for size in space.thresholds]


def exhaustive(measure: Measure, space: Space) -> None:
    """Every batch size of the climb, the sizes between them from 16 on, and both baselines; then
    every threshold, with the best of them."""
    between = [3 * size // 2 for size in space.batch_sizes if 16 <= size < space.largest]
    sizes = {*space.batch_sizes, *between, space.static.batch_size, space.literal.batch_size}
    found = {size: measure(Policy(batch_size=size)).rate_qps for size in sorted(sizes)}
    best = Policy(batch_size=max(found, key=lambda size: found[size]))
    for policy in offloading(best, space):
        measure(policy)


def static(measure: Measure, space: Space) -> None:
    """The paper's baseline and its literal 25: nothing is searched."""
    measure(space.static)
    measure(space.literal)


SEARCHES: dict[str, Callable[[Measure, Space], None]] = {
    "hill-climb": hill_climb,
    "exhaustive": exhaustive,
    "static": static,
}


# Not a search over a measured function: the policies come from a search in simulation.
SIMULATED = "simulated"


def contenders(trials: Sequence[tuple[Policy, Capacity]], most: int = 3) -> list[Policy]:
    """The policies whose first look leaves them a chance of being the best, best first."""
    able = sorted((t for t in trials if t[1].rate_qps > 0), key=lambda t: -t[1].rate_qps)
    if not able:
        return []
    sure = max(capacity.interval_qps[0] for _, capacity in able)
    return [policy for policy, capacity in able if capacity.interval_qps[1] >= sure][:most]
