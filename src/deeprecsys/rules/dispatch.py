"""The pure dispatcher: which items of which query a free worker executes next.

Knows no threads, no clock and no tensors: time comes in as `now`, queries are the caller's
integers. The engine wraps it in a lock; the simulator must obey it query by query.

First come, first served among a client's queries of one priority, equal shares between clients
(`line`), shares by weight between models (`shares`), and workers *pull*. Static policy: a free
worker takes one slice of `min(batch_size, items left)` items of the query at the head, so a query
is cut lazily into full slices and a remainder. Adaptive: it takes its share of all that waits,
coalescing queries when they are many. Queries of at least `offload_threshold` items go whole to the
accelerator with the least to do, which executes those that wait together as one request, up to
`most_items`; a lost accelerator's go back to the cores. Dropping a query forgets its items that
nobody has started.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence

from deeprecsys.core import Policy, UserError
from deeprecsys.rules.line import Entry, Line
from deeprecsys.rules.shares import Share, Shares

Slice = tuple[int, int, int]  # (query, lo, hi): items lo .. hi - 1
# A priority of a lower number than this puts a client's query before its own others, not before
# those of other clients: none may push itself forward. A higher one lets everybody go first.
USUAL_PRIORITY = 5
# A client may hold so many times what is left of the bound on queued items: never all of it.
_SHARE_OF_REST = 3
# Deadlines of finished queries, and levels of priority where nobody waits, that may lie about.
_SWEEP = 64


class QueueFull(RuntimeError):
    """The bound on queued items would be passed; the query was not taken."""


def request_items(policy: Policy, queued_items: int, idle: int) -> int:
    """How many items a free worker reaches for, `idle` workers (itself among them) being free."""
    if not policy.adaptive:
        return policy.batch_size
    return min(max(policy.batch_size, -(-queued_items // idle)), policy.most_items)


def requests(size: int, policy: Policy) -> Iterator[tuple[int, int]]:
    """The slices `(lo, hi)` into which a static policy cuts a query for cores: to plan ahead."""
    for lo in range(0, size, policy.batch_size):
        yield lo, min(lo + policy.batch_size, size)


def offloads(policy: Policy, size: int) -> bool:
    """Does a query of so many items go to an accelerator, where there is one?"""
    return policy.offload_threshold is not None and size >= policy.offload_threshold


class Dispatcher:
    """Queue and splitting rule of one machine. Not thread-safe: its owner holds a lock.

    queued_items wait for the cores; offloaded_items [accelerators] wait for, or execute on, each
    accelerator. most_items [accelerators]: of a request that it can hold (None: any). There is one
    model, number 0, unless more are added. max_queued_items: of each model.
    """

    def __init__(
        self,
        max_queued_items: int | None = None,
        accelerators: int = 0,
        most_items: Sequence[int | None] = (),
    ) -> None:
        if max_queued_items is not None and max_queued_items < 1:
            raise UserError(f"the bound on queued items must be positive, not {max_queued_items}")
        self.max_queued_items = max_queued_items
        self.queued_items = 0
        self.offloaded_items = [0] * accelerators
        # Of what waits for, or is executed by, the cores, and each accelerator.
        self._open_cost, self._offloaded_cost = 0.0, [0.0] * accelerators
        self._most_items = list(most_items) or [None] * accelerators
        self._shares = Shares()
        self._queues = [Line() for _ in range(accelerators)]
        self._present = list(range(accelerators))
        self._open: dict[int, Entry] = {}
        self._held: dict[str, int] = {}  # items that wait or are offloaded, by client
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        """Queries taken and not finished, dropped or expired."""
        return len(self._open)

    def open_queries(self) -> list[int]:
        return list(self._open)

    def add(
        self,
        query: int,
        size: int,
        policy: Policy,
        deadline_s: float = math.inf,
        priority: int = 0,
        cost: float = 0.0,
        client: str = "",
        model: int = 0,
    ) -> int | None:
        """Queues a query of `size >= 1` items: for which accelerator, None for the cores.

        priority: queries of a lower number go first, begun or not; client: who
        asks, with an equal share beside others (none: whoever runs this machine, whose priorities
        hold against everybody). cost: what it adds to `ahead`, in whatever unit, in which models
        have their shares too.
        Raises QueueFull, and then takes none of it.
        A query larger than the whole bound is taken when nothing else waits: otherwise it
        could never be answered.
        """
        share = self._shares[model]
        self._check_room(size, client, share)
        chosen = self.choice(size, policy)
        if chosen is None:
            line = share.line(_level(priority, client))
            self._open_cost += cost
        else:
            line = self._queues[chosen]
            self._offloaded_cost[chosen] += cost
        entry = self._open[query] = Entry(
            query, size, policy, line, chosen, priority, client, cost / size, share
        )
        line.add(entry)
        self._wait(entry, size)
        if deadline_s < math.inf:
            self._remember(deadline_s, query)
        return chosen

    def add_model(self, weight: float = 1.0) -> int:
        """One more; its number."""
        return self._shares.add(weight)

    def remove_model(self, model: int) -> None:
        """One of which no query is open: its number may be another's."""
        self._shares.remove(model)

    def weigh(self, model: int, weight: float) -> None:
        """Of what is executed while several models wait, each has a share by its weight."""
        self._shares.weigh(model, weight)

    def _check_room(self, size: int, client: str, share: Share) -> None:
        bound = self.max_queued_items
        waiting = share.items + sum(self.offloaded_items)
        if bound is None or not waiting:
            return
        if waiting + size > bound:
            raise QueueFull(f"{waiting} items wait already, the bound is {bound}")
        if client and self._held.get(client, 0) + size > _SHARE_OF_REST * (bound - waiting):
            raise QueueFull(f"{self._held[client]} items of this client wait already")

    def _wait(self, entry: Entry, items: int) -> None:
        """So many of its items more (or fewer) wait for the cores, or for its accelerator."""
        if entry.accelerator is None:
            self.queued_items += items
            self._shares.wait(entry.share, items)
        else:
            self.offloaded_items[entry.accelerator] += items
        if entry.client:
            held = self._held.get(entry.client, 0) + items
            self._held[entry.client] = held
            if not held:
                del self._held[entry.client]

    def _remember(self, deadline_s: float, query: int) -> None:
        if len(self._deadlines) > _SWEEP + 2 * len(self._open):
            self._deadlines = [due for due in self._deadlines if due[1] in self._open]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (deadline_s, query))

    def pull(self, worker: int, now: float, idle: int = 1) -> list[Slice]:
        """The slices that `worker` executes next as one request; empty: nothing waits.

        idle: how many workers are free, this one among them.
        """
        share = self._shares.next()
        if share is None or (entry := share.head()) is None:
            return []
        policy = entry.policy
        wanted = request_items(policy, share.items, idle)
        slices = [self._cut(entry, wanted)]
        if not policy.adaptive:
            return slices
        _, lo, hi = slices[0]
        wanted -= hi - lo
        while wanted and (entry := share.head()) is not None and entry.policy == policy:
            _, lo, hi = piece = self._cut(entry, wanted)
            slices.append(piece)
            wanted -= hi - lo
        return slices

    def _cut(self, entry: Entry, items: int) -> Slice:
        """The next items of the query at the head, at most so many."""
        lo = entry.next
        items = min(items, entry.size - lo)
        entry.line.take(entry, items)
        self._shares.take(entry.share, items * entry.item_cost, items)
        self._wait(entry, -items)
        return entry.id, lo, lo + items

    def pull_offloaded(self, accelerator: int, now: float) -> list[Slice]:
        """The whole queries that an accelerator executes next as one request; empty: none waits.

        The first is taken whatever its size, the next ones of its policy while all of them have
        at most `most_items`.
        """
        line = self._queues[accelerator]
        taken: list[Entry] = []
        left = 0
        while line.items and (entry := line.head()) is not None:
            if not taken:
                left = self._together(accelerator, entry.policy)
            elif entry.size > left or entry.policy != taken[0].policy:
                break
            left -= entry.size
            line.take(entry, entry.size)
            taken.append(entry)
        return [(entry.id, 0, entry.size) for entry in taken]

    def _together(self, accelerator: int, policy: Policy) -> int:
        """Items of a request of several queries."""
        most = self._most_items[accelerator]
        return policy.most_items if most is None else min(policy.most_items, most)

    def choice(self, size: int, policy: Policy) -> int | None:
        """Which accelerator such a query would go to: of those that can hold it the one with the
        fewest items to do, of equals the first; None: the cores."""
        if not self._present or not offloads(policy, size):
            return None
        most = self._most_items
        able = [a for a in self._present if (bound := most[a]) is None or size <= bound]
        if not able:
            return None
        least = min(able, key=self.offloaded_items.__getitem__)
        backlog = policy.offload_backlog
        return None if backlog is not None and self.offloaded_items[least] > backlog else least

    def ahead(
        self, priority: int = 0, client: str = "", size: int = 1, model: int = 0, cost: float = 0.0
    ) -> float:
        """The cost on the cores that a new query of `size` and `cost` would wait for."""
        if not self._open:
            self._open_cost = 0.0  # sums of fractions do not return to nothing by themselves
        own = self._shares[model]
        before = own.ahead(_level(priority, client), client, priority, size)
        executing = self._open_cost - self._shares.cost()
        return max(0.0, executing + before + self._shares.others(own, before + cost))

    def ahead_offloaded(
        self, accelerator: int, priority: int = 0, client: str = "", size: int = 1
    ) -> float:
        """The same, on an accelerator."""
        line = self._queues[accelerator]
        if not self.offloaded_items[accelerator]:
            self._offloaded_cost[accelerator] = 0.0
        cost = self._offloaded_cost[accelerator] - line.cost
        return max(0.0, cost + line.ahead(client, priority, size))

    def retire(
        self, accelerator: int, cost: Callable[[int, Policy], float] = lambda *_: 0.0
    ) -> list[int]:
        """It is lost: all that it had, begun or not, is the cores' and next in line.

        cost: of a query of so many items on the cores."""
        self._present.remove(accelerator)
        back = [entry for entry in self._open.values() if entry.accelerator == accelerator]
        for entry in reversed(back):
            self._wait(entry, -entry.size)
            entry.accelerator, entry.next = None, 0
            entry.item_cost = cost(entry.size, entry.policy) / entry.size
            entry.line = entry.share.line(_level(entry.priority, entry.client))
            entry.line.add(entry, first=True)
            self._wait(entry, entry.size)
            self._open_cost += entry.size * entry.item_cost
        self._queues[accelerator], self._offloaded_cost[accelerator] = Line(), 0.0
        return [entry.id for entry in back]

    def restore(self, accelerator: int) -> None:
        """It is back."""
        self._present = sorted({*self._present, accelerator})

    def finish(self, query: int, items: int) -> bool:
        """`items` of it were executed; True once, when that was the last of the query."""
        entry = self._open.get(query)
        if entry is None:  # dropped while this request was executing
            return False
        entry.left -= items
        self._spend(entry, items)
        if entry.left:
            return False
        del self._open[query]
        if entry.accelerator is not None:
            self._wait(entry, -entry.size)
        return True

    def drop(self, query: int) -> bool:
        """Cancelled, failed or expired: forgets what nobody has started. False: not open."""
        entry = self._open.pop(query, None)
        if entry is None:
            return False
        entry.dropped = True
        self._spend(entry, entry.left)
        if entry.accelerator is None:
            self._wait(entry, entry.next - entry.size)
        else:
            self._wait(entry, -entry.size)
        if entry.next < entry.size:
            entry.line.forget(entry)
        return True

    def _spend(self, entry: Entry, items: int) -> None:
        """So many items are open no longer."""
        cost = items * entry.item_cost
        if entry.accelerator is None:
            self._open_cost -= cost
        else:
            self._offloaded_cost[entry.accelerator] -= cost

    def expire(self, now: float) -> list[int]:
        """Drops and returns the open queries whose deadline is at or before `now`."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, query = heapq.heappop(self._deadlines)
            if self.drop(query):
                expired.append(query)
        return expired

    @property
    def has_deadlines(self) -> bool:
        return bool(self._deadlines)

    def next_deadline_s(self) -> float:
        """The earliest deadline of an open query; infinity if none has one."""
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf


def _level(priority: int, client: str) -> int:
    """Of those that wait, which go before or after everybody else's."""
    return max(priority, USUAL_PRIORITY) if client else priority
