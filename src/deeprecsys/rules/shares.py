"""Which model is next of those that wait for the same workers: shares by weight, of worker time.

Each model has a clock that the cost of what it executes advances, over its weight, and the one
furthest behind goes next. One that takes less than its share is behind, by a bounded credit, and so
goes before one that takes more: another's overload is not in its way. Within a model, `line`.
(Start-time fair queueing, as `line` has it between clients; there by items, here by cost, since an
item of one model costs a hundred times what one of another does.)
"""

from __future__ import annotations

import math

from deeprecsys.core import UserError
from deeprecsys.rules.line import Entry, Line

# Cost, in seconds of a worker where it is a prediction, that a model may be behind.
CREDIT_S = 0.5
# Levels of priority where nobody waits, that may lie about.
_SWEEP = 64
# Of an item of which no cost is known: beside real ones it does not count.
_LEAST = 1e-9


class Share:
    """One model's. items: that wait for the cores. clock: cost that was executed, over weight."""

    __slots__ = ("clock", "items", "lines", "number", "weight")

    def __init__(self, number: int, weight: float) -> None:
        self.number, self.weight = number, weight
        self.lines: dict[int, Line] = {0: Line()}  # by priority, in its order; nearly always one
        self.clock, self.items = 0.0, 0

    def line(self, level: int) -> Line:
        """Where queries of this level wait."""
        if level not in self.lines:
            kept = {level: line for level, line in self.lines.items() if line.items}
            lines = self.lines if len(self.lines) < _SWEEP else kept
            self.lines = dict(sorted({**lines, level: Line()}.items()))
        return self.lines[level]

    def head(self) -> Entry | None:
        """The first query with items that wait."""
        for line in self.lines.values():
            if line.items and (entry := line.head()) is not None:
                return entry
        return None

    def cost(self) -> float:
        """Of what waits."""
        return sum(line.cost for line in self.lines.values())

    def ahead(self, level: int, client: str, priority: int, size: int) -> float:
        """Of it, what would go before a new query."""
        cost = 0.0
        for other, line in self.lines.items():
            if other < level:
                cost += line.cost
            elif other == level:
                cost += line.ahead(client, priority, size)
        return cost


class Shares:
    """Those of all models, and whose turn it is."""

    def __init__(self) -> None:
        self._all = [Share(0, 1.0)]
        self._free: list[int] = []
        self._clock = 0.0

    def __getitem__(self, model: int) -> Share:
        return self._all[model]

    def add(self, weight: float) -> int:
        """One more; its number, which may be that of one that was removed."""
        number = self._free.pop() if self._free else len(self._all)
        share = Share(number, _checked(weight))
        if number == len(self._all):
            self._all.append(share)
        else:
            self._all[number] = share
        return number

    def remove(self, model: int) -> None:
        """One of which nothing is open."""
        self._free.append(model)

    def weigh(self, model: int, weight: float) -> None:
        self._all[model].weight = _checked(weight)

    def next(self) -> Share | None:
        """Of those that wait the one furthest behind, of equals the first; None: nobody waits."""
        waiting = (share for share in self._all if share.items)
        return min(waiting, key=lambda share: share.clock, default=None)

    def wait(self, share: Share, items: int) -> None:
        """So many items of it more (or fewer) wait. One that comes back has a bounded credit."""
        if not share.items:
            share.clock = max(share.clock, self._clock - CREDIT_S)
        share.items += items

    def take(self, share: Share, cost: float, items: int) -> None:
        """Items of it begin."""
        self._clock = max(self._clock, share.clock)
        share.clock += max(cost, _LEAST * items) / share.weight

    def cost(self) -> float:
        """Of what waits."""
        return sum(share.cost() for share in self._all)

    def others(self, own: Share, cost: float) -> float:
        """Of the others' cost that waits, what goes before so much of this one's."""
        if len(self._all) == 1:
            return 0.0
        until = max(own.clock, self._clock - CREDIT_S) + cost / own.weight
        return sum(
            min(share.cost(), max(0.0, until - share.clock) * share.weight)
            for share in self._all
            if share is not own
        )


def _checked(weight: float) -> float:
    if not 0 < weight < math.inf:
        raise UserError(f"a model's weight must be positive, not {weight}")
    return weight


__all__ = ["CREDIT_S", "Share", "Shares"]
