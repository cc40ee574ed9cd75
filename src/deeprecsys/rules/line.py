"""Who is next of those that wait: first come, first served for one client, shares between several.

Each client has a clock that its executed items advance, and the one furthest behind goes next, so
that clients who always wait get equal shares whatever they ask for, and one that comes back does
not find others' backlog before it. One that takes less than its share is behind whoever takes more,
by so many items at most, and so goes before it: its latencies are nearly those that it has alone,
where equal turns would give it a machine of half the pace. What is dropped costs nobody anything.
(Start-time fair queueing, Goyal, Vin and Cheng, 1996, with tags given when items are taken, not
when they arrive, and a bounded credit, as in Duda and Cheriton's borrowed virtual time, 1999.)
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING

from deeprecsys.core import Policy

if TYPE_CHECKING:
    from deeprecsys.rules.shares import Share

# Items that a client may be behind: some sixty queries' worth.
CREDIT = 20_000
# Dropped entries, and clients with nothing, that may lie about before somebody sweeps.
_SWEEP = 64
# Of more clients than these, what is before a query is estimated from so many.
_LOOKED_AT = 64


class Entry:
    """What the dispatcher remembers of one query it has not finished."""

    __slots__ = (
        "accelerator", "client", "dropped", "id", "item_cost", "left", "line", "next", "policy",
        "priority", "share", "size",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        size: int,
        policy: Policy,
        line: Line,
        accelerator: int | None,
        priority: int,
        client: str,
        item_cost: float,
        share: Share,
    ) -> None:
        self.id = id
        self.share = share
        self.priority = priority
        self.client = client
        self.item_cost = item_cost
        self.size = size
        self.policy = policy
        self.line = line  # where it waits
        self.accelerator = accelerator
        self.next = 0  # first item that no worker has taken
        self.left = size  # items not yet executed
        self.dropped = False


class _Queue:
    """One client's queries of one priority, in order. items, cost: of those that wait."""

    __slots__ = ("cost", "entries", "items", "stale")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.items, self.cost, self.stale = 0, 0.0, 0

    def head(self) -> Entry | None:
        while self.entries:
            if not self.entries[0].dropped:
                return self.entries[0]
            self.entries.popleft()
            self.stale -= 1
        return None

    def sweep(self) -> None:
        """One more was dropped."""
        self.stale += 1
        if self.stale > _SWEEP and self.stale > len(self.entries) // 2:
            self.entries = deque(entry for entry in self.entries if not entry.dropped)
            self.stale = 0


class _Client:
    """clock: items that it had; listed: its line counts it among those that may be next. items,
    cost: of its queries that wait."""

    __slots__ = ("clock", "cost", "items", "listed", "queues")

    def __init__(self) -> None:
        self.queues: dict[int, _Queue] = {}  # by priority, in its order; nearly always one
        self.clock, self.listed = -math.inf, False
        self.items, self.cost = 0, 0.0

    def queue(self, priority: int) -> _Queue:
        """A new one."""
        kept = {level: queue for level, queue in self.queues.items() if queue.items}
        self.queues = dict(sorted({**kept, priority: _Queue()}.items()))
        return self.queues[priority]

    def head(self) -> Entry | None:
        for queue in self.queues.values():
            if (entry := queue.head()) is not None:
                return entry
        return None

    def before(self, priority: int) -> tuple[int, float]:
        """Items and cost of what goes before a new query of this priority."""
        queues = [queue for level, queue in self.queues.items() if level <= priority]
        return sum(queue.items for queue in queues), sum(queue.cost for queue in queues)


class Line:
    """Queries that wait for the same workers, of any number of clients. items, cost: of them."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        # (clock, number of its listing, client): the head is next.
        self._next: list[tuple[float, int, _Client]] = []
        self._clock, self._listings, self._hollow = 0.0, 0, 0
        self.items, self.cost = 0, 0.0

    def __len__(self) -> int:
        """Entries and clients remembered, whether they wait or not."""
        queues = [queue for client in self._clients.values() for queue in client.queues.values()]
        return len(self._next) + len(queues) + sum(len(queue.entries) for queue in queues)

    def add(self, entry: Entry, first: bool = False) -> None:
        """Behind its client's others of its priority, or before them."""
        client = self._clients.get(entry.client) or self._new(entry.client)
        queue = client.queues.get(entry.priority) or client.queue(entry.priority)
        if first:
            queue.entries.appendleft(entry)
        else:
            queue.entries.append(entry)
        items = entry.size - entry.next
        self._wait(client, queue, items, items * entry.item_cost)
        if not client.listed:
            client.clock = max(client.clock, self._clock - CREDIT)
            client.listed = True
            self._listings += 1
            heapq.heappush(self._next, (client.clock, self._listings, client))

    def head(self) -> Entry | None:
        """Whose items are next."""
        while self._next:
            client = self._next[0][2]
            if (entry := client.head()) is not None:
                return entry
            heapq.heappop(self._next)
            client.listed = False
        return None

    def take(self, entry: Entry, items: int) -> None:
        """The next items of the head."""
        clock, number, client = self._next[0]
        queue = client.queues[entry.priority]
        entry.next += items
        if entry.next == entry.size:
            queue.entries.popleft()
        self._wait(client, queue, -items, -items * entry.item_cost)
        self._clock, client.clock = max(self._clock, clock), clock + items
        if not client.items:
            heapq.heappop(self._next)
            client.listed = False
        else:
            heapq.heapreplace(self._next, (client.clock, number, client))

    def forget(self, entry: Entry) -> None:
        """It was dropped with items that nobody has taken."""
        client = self._clients[entry.client]
        queue = client.queues[entry.priority]
        items = entry.next - entry.size
        self._wait(client, queue, items, items * entry.item_cost)
        queue.sweep()
        if not client.items:
            self._sweep()

    def ahead(self, name: str, priority: int, size: int) -> float:
        """The cost of what would be taken before a new query of this client were taken whole."""
        client = self._clients.get(name)
        items, cost = client.before(priority) if client else (0, 0.0)
        least = self._clock - CREDIT
        until = max(client.clock if client else least, least) + items + size
        others = 0.0
        for clock, _, other in self._next[:_LOOKED_AT]:
            if other is not client and other.items:
                others += other.cost * min(max(until - clock, 0.0) / other.items, 1.0)
        return cost + others * max(1.0, len(self._next) / _LOOKED_AT)

    def _wait(self, client: _Client, queue: _Queue, items: int, cost: float) -> None:
        """So many items more (or fewer) wait. Written out, for it is in the way of every query.

        Sums of fractions do not return to nothing by themselves, so they are told to.
        """
        queue.items += items
        queue.cost = queue.cost + cost if queue.items else 0.0
        client.items += items
        client.cost = client.cost + cost if client.items else 0.0
        self.items += items
        self.cost = self.cost + cost if self.items else 0.0

    def _new(self, name: str) -> _Client:
        """Clients of which nothing waits are forgotten: what they are ahead is a request."""
        if len(self._clients) > _SWEEP + 2 * len(self._next):
            self._clients = {n: client for n, client in self._clients.items() if client.listed}
        client = self._clients[name] = _Client()
        return client

    def _sweep(self) -> None:
        """One more client is listed of which nothing waits."""
        self._hollow += 1
        if self._hollow > _SWEEP and self._hollow > len(self._next) // 2:
            for _, _, client in self._next:
                client.listed = bool(client.items)
            self._next = [listing for listing in self._next if listing[2].listed]
            heapq.heapify(self._next)
            self._hollow = 0
