"""The pure dispatcher: which items of which query a free worker executes next.

Knows no threads, no clock and no tensors: time comes in as `now`, queries are the caller's
integers. The engine wraps it in a lock; the simulator must obey it query by query.

First come, first served among queries of one priority, and workers *pull*. Static policy: a free
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
from collections import deque
from collections.abc import Iterator

from deeprecsys.core import Policy, UserError

Slice = tuple[int, int, int]  # (query, lo, hi): items lo .. hi - 1


class QueueFull(RuntimeError):
    """The bound on queued items would be passed; the query was not taken."""


class _Query:
    """What the dispatcher remembers of one query it has not finished."""

    __slots__ = (
        "accelerator", "dropped", "id", "item_cost", "left", "next", "policy", "priority", "size",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        size: int,
        policy: Policy,
        accelerator: int | None,
        priority: int,
        item_cost: float,
    ) -> None:
        self.id = id
        self.priority = priority
        self.item_cost = item_cost
        self.size = size
        self.policy = policy
        self.accelerator = accelerator
        self.next = 0  # first item that no worker has taken
        self.left = size  # items not yet executed
        self.dropped = False


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
    accelerator.
    """

    def __init__(self, max_queued_items: int | None = None, accelerators: int = 0) -> None:
        if max_queued_items is not None and max_queued_items < 1:
            raise UserError(f"the bound on queued items must be positive, not {max_queued_items}")
        self.max_queued_items = max_queued_items
        self.queued_items = 0
        self._open_cost = 0.0  # of the items that wait for the cores or are executed by them
        self.offloaded_items = [0] * accelerators
        # By priority, in its order; nearly always there is one.
        self._waiting: dict[int, deque[_Query]] = {0: deque()}
        self._queues: list[deque[_Query]] = [deque() for _ in range(accelerators)]
        self._present = list(range(accelerators))
        self._open: dict[int, _Query] = {}
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
    ) -> int | None:
        """Queues a query of `size >= 1` items: for which accelerator, None for the cores.

        priority: on the cores, queries of a lower number go first, begun or not. cost: what it
        adds to `ahead`, in whatever unit.
        Raises QueueFull, and then takes none of it.
        A query larger than the whole bound is taken when nothing else waits: otherwise it
        could never be answered.
        """
        bound = self.max_queued_items
        waiting = self.queued_items + sum(self.offloaded_items)
        if bound is not None and waiting and waiting + size > bound:
            raise QueueFull(f"{waiting} items wait already, the bound is {bound}")
        chosen = self._accelerator(size, policy)
        entry = self._open[query] = _Query(query, size, policy, chosen, priority, cost / size)
        if chosen is None:
            self._line(priority).append(entry)
            self.queued_items += size
            self._open_cost += cost
        else:
            self._queues[chosen].append(entry)
            self.offloaded_items[chosen] += size
        if deadline_s < math.inf:
            heapq.heappush(self._deadlines, (deadline_s, query))
        return chosen

    def pull(self, worker: int, now: float, idle: int = 1) -> list[Slice]:
        """The slices that `worker` executes next as one request; empty: nothing waits.

        idle: how many workers are free, this one among them.
        """
        entry = self._head()
        if entry is None:
            return []
        policy = entry.policy
        wanted = request_items(policy, self.queued_items, idle)
        slices = [self._cut(entry, wanted)]
        if not policy.adaptive:
            return slices
        _, lo, hi = slices[0]
        wanted -= hi - lo
        while wanted and (entry := self._head()) is not None and entry.policy == policy:
            _, lo, hi = piece = self._cut(entry, wanted)
            slices.append(piece)
            wanted -= hi - lo
        return slices

    def _head(self) -> _Query | None:
        """The first query with items that wait."""
        for queue in self._waiting.values():
            while queue:
                if not queue[0].dropped:
                    return queue[0]
                queue.popleft()
        return None

    def _line(self, priority: int) -> deque[_Query]:
        """Where queries of a priority wait."""
        if priority not in self._waiting:
            lines = {**self._waiting, priority: deque[_Query]()}
            self._waiting = dict(sorted(lines.items()))
        return self._waiting[priority]

    def _cut(self, entry: _Query, items: int) -> Slice:
        """The next items of the query at the head, at most so many."""
        lo = entry.next
        hi = entry.next = min(lo + items, entry.size)
        if hi == entry.size:
            self._waiting[entry.priority].popleft()
        self.queued_items -= hi - lo
        return entry.id, lo, hi

    def pull_offloaded(self, accelerator: int, now: float) -> list[Slice]:
        """The whole queries that an accelerator executes next as one request; empty: none waits.

        The first is taken whatever its size, the next ones of its policy while all of them have
        at most `most_items`.
        """
        queue = self._queues[accelerator]
        taken: list[_Query] = []
        left = 0
        while queue:
            entry = queue[0]
            unfit = taken and (entry.size > left or entry.policy != taken[0].policy)
            if unfit and not entry.dropped:
                break
            queue.popleft()
            if entry.dropped:
                continue
            if not taken:
                left = entry.policy.most_items
            left -= entry.size
            entry.next = entry.size
            taken.append(entry)
        return [(entry.id, 0, entry.size) for entry in taken]

    def _accelerator(self, size: int, policy: Policy) -> int | None:
        """The one with the fewest items to do, of equals the first; None: the cores."""
        if not self._present or not offloads(policy, size):
            return None
        least = min(self._present, key=self.offloaded_items.__getitem__)
        backlog = policy.offload_backlog
        return None if backlog is not None and self.offloaded_items[least] > backlog else least

    def ahead(self, priority: int) -> float:
        """The cost on the cores that a new query of this priority would wait for."""
        if not self._open:
            self._open_cost = 0.0  # sums of fractions do not return to nothing by themselves
        behind = sum(
            (entry.size - entry.next) * entry.item_cost
            for level, queue in self._waiting.items()
            if level > priority
            for entry in queue
            if not entry.dropped
        )
        return max(0.0, self._open_cost - behind)

    def retire(self, accelerator: int) -> None:
        """It is lost: all that it had, begun or not, is the cores' and next in line."""
        self._present.remove(accelerator)
        self._queues[accelerator].clear()
        self.offloaded_items[accelerator] = 0
        back = [entry for entry in self._open.values() if entry.accelerator == accelerator]
        for entry in reversed(back):
            entry.accelerator, entry.next = None, 0
            self._line(entry.priority).appendleft(entry)
            self.queued_items += entry.size
            self._open_cost += entry.left * entry.item_cost

    def finish(self, query: int, items: int) -> bool:
        """`items` of it were executed; True once, when that was the last of the query."""
        entry = self._open.get(query)
        if entry is None:  # dropped while this request was executing
            return False
        entry.left -= items
        if entry.accelerator is None:
            self._open_cost -= items * entry.item_cost
        if entry.left:
            return False
        del self._open[query]
        if entry.accelerator is not None:
            self.offloaded_items[entry.accelerator] -= entry.size
        return True

    def drop(self, query: int) -> bool:
        """Cancelled, failed or expired: forgets what nobody has started. False: not open."""
        entry = self._open.pop(query, None)
        if entry is None:
            return False
        entry.dropped = True
        if entry.accelerator is None:
            self.queued_items -= entry.size - entry.next
            self._open_cost -= entry.left * entry.item_cost
        else:
            self.offloaded_items[entry.accelerator] -= entry.size
        return True

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
