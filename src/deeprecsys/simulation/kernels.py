"""The rules of `rules.dispatch.Dispatcher` over arrays, compiled: who starts what, and when.

Queries are served first come, first served, and workers are alike, so requests *start* in the
order of their items: one loop over requests suffices, and the only state is when each worker is
free. Each instant is settled in the same order everywhere: what finishes, what arrives, who pulls.
The worker that has been free longest pulls first; of equals the lower number.

Knows arrays only; `tables` is `machines.service_time.Tables`.

`free_s` [workers] is a binary heap of when workers are free, `who` their numbers; both carry over
from one call to the next, as does the generator.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from deeprecsys.core import FloatArray
from deeprecsys.simulation.compiled import compiled, inner


class Queries(NamedTuple):
    """Of queries in order of arrival; the last three are filled."""

    arrival_s: FloatArray
    size: Any
    start_s: FloatArray
    finish_s: FloatArray
    worker: Any


@compiled()
def serve(
    queries: Queries, batch_size: int, free_s: FloatArray, who: Any, tables: Any, rng: Any
) -> int:
    """The static policy: slices of `batch_size` items, then the remainder; requests executed.

    A query of no items is answered on arrival.
    """
    requests = 0
    for q in range(queries.size.size):
        arrived, left = queries.arrival_s[q], queries.size[q]
        begin, last, mine, begun = arrived, -math.inf, -1, 1
        while left > 0:
            items = min(left, batch_size)
            now, cost, worker = _request(free_s, who, arrived, items, begun, tables, 1.0, 0, rng)
            begin = now if begun else begin
            last, mine = _later(last, mine, now + cost, worker)
            left -= items
            begun = 0
            requests += 1
        queries.start_s[q], queries.worker[q] = begin, mine
        queries.finish_s[q] = last if queries.size[q] > 0 else arrived
    return requests


@compiled()
def serve_adaptive(
    queries: Queries,
    batch_size: int,
    most_items: int,
    free_s: FloatArray,
    who: Any,
    tables: Any,
    rng: Any,
    left: int,
    final: bool,
) -> tuple[int, int, int]:
    """The adaptive policy: a request of max(batch size, queued items / idle workers) items.

    It takes slices of several queries if the first has too few left, and never more than
    `most_items`. Of the first query only the last `left` items wait. What is filled holds each
    query's arrival at first. Unless `final`, ends before the first request that queries after
    these could belong to. Requests executed; the query then at the head; its items that wait.
    """
    arrival_s, size = queries.arrival_s, queries.size
    requests = 0
    n = arrival_s.size
    seen = 0  # queries that have arrived
    head = 0  # the query at the head, of which `left` items wait
    queued = left - size[0] if n else 0
    while head < n:
        if left == 0:  # it has no items
            head += 1
            left = size[head] if head < n else 0
            continue
        now = max(free_s[0], arrival_s[head])
        if not final and now >= arrival_s[n - 1]:
            break
        while seen < n and arrival_s[seen] <= now:
            queued += size[seen]
            seen += 1
        busy = _busy(free_s, now)
        idle = free_s.size - busy + 1
        items = min(max(batch_size, -(-queued // idle)), most_items)
        items = min(items, queued)
        begun = _begun(size, head, seen, left, items)
        done = now + _cost_s(tables, items, begun, busy, now, now - free_s[0], 0, rng)
        mine = _occupy(free_s, who, done)
        queued -= items
        requests += 1
        head, left = _deal(queries, head, left, items, now, done, mine)
    return requests, head, left


@inner()
def _begun(size: Any, head: int, seen: int, left: int, items: int) -> int:
    """Queries that a request of so many items is the first of."""
    begun, reach = 0, left - size[head]
    for q in range(head, seen):
        if reach >= items:
            break
        begun += reach >= 0 and size[q] > 0
        reach += size[q]
    return begun


@inner()
def _deal(
    queries: Queries, head: int, left: int, items: int, now: float, done: float, mine: int
) -> tuple[int, int]:
    """The items of a request go to the queries they belong to; the head and its items then."""
    size, finish_s, worker = queries.size, queries.finish_s, queries.worker
    while items > 0:
        part = min(items, left)
        if part > 0:
            if left == size[head]:
                queries.start_s[head] = now
                finish_s[head], worker[head] = done, mine
            else:
                finish_s[head], worker[head] = _later(finish_s[head], worker[head], done, mine)
        items -= part
        left -= part
        if left == 0:
            head += 1
            left = size[head] if head < size.size else 0
    return head, left


@compiled()
def serve_offloaded(
    arrival_s: FloatArray,
    size: Any,
    draw: FloatArray,
    most_items: int,
    free_s: FloatArray,
    todo: Any,
    executing: Any,
    backlog: int,
    tables: Any,
    start_s: FloatArray,
    finish_s: FloatArray,
    device: Any,
    final: bool,
) -> None:
    """Whole queries on accelerators, each with a queue of its own, which a query joins where the
    fewest items are to be done; those that wait together are one request of up to `most_items`.

    draw: [queries] of 0 .. 1, the chance of the request that a query is the first of. free_s,
    todo (items), executing (items): [accelerators], carried over. Fills start_s, finish_s and
    device (from 1; 0 at first; -1 for a query that stays on the cores, since more than `backlog`
    items are to be done everywhere); unless `final`, a query that may still be joined keeps NaN.
    """
    n, count = arrival_s.size, free_s.size
    following = np.full(n, -1)
    first, last = np.full(count, -1), np.full(count, -1)
    for q in range(n + 1 if final else n):
        now = arrival_s[q] if q < n else math.inf
        for k in range(count):
            while first[k] >= 0 and max(free_s[k], arrival_s[first[k]]) < now:
                begin = max(free_s[k], arrival_s[first[k]])
                items, end = _joined(arrival_s, size, following, first[k], begin, most_items)
                done = begin + _device_s(tables[k], items, draw[first[k]])
                while first[k] != end:
                    start_s[first[k]], finish_s[first[k]] = begin, done
                    first[k] = following[first[k]]
                if end < 0:
                    last[k] = -1
                todo[k] -= executing[k]
                free_s[k], executing[k] = done, items
            if free_s[k] <= now:
                todo[k] -= executing[k]
                executing[k] = 0
        if q == n:
            break
        if device[q] == 0:
            device[q] = _assigned(todo, backlog, size[q])
        k = device[q] - 1
        if k < 0:
            continue
        if last[k] < 0:
            first[k] = q
        else:
            following[last[k]] = q
        last[k] = q


@compiled(inline="always")
def _joined(
    arrival_s: FloatArray, size: Any, following: Any, first: int, begin: float, most_items: int
) -> tuple[int, int]:
    """Items of the request that a waiting query is the first of, and the query after it."""
    items, end = 0, first
    while end >= 0 and arrival_s[end] <= begin and (items == 0 or items + size[end] <= most_items):
        items += size[end]
        end = following[end]
    return items, end


@compiled(inline="always")
def _assigned(todo: Any, backlog: int, size: int) -> int:
    """The accelerator with the fewest items to do, from 1, which has those of the query then, too;
    -1 where that is too many."""
    least = 0
    for k in range(1, todo.size):
        least = k if todo[k] < todo[least] else least
    if todo[least] > backlog:
        return -1
    todo[least] += size
    return least + 1


@compiled(inline="always")
def _request(
    free_s: FloatArray,
    who: Any,
    arrived: float,
    items: int,
    begun: int,
    tables: Any,
    slow: float,
    shift: int,
    rng: Any,
) -> tuple[float, float, int]:
    """A request on the first free worker of a machine so many times slower: when it begins, what
    it costs, who executes it."""
    now = max(free_s[0], arrived)
    busy = 1 if tables.mean_s.shape[0] == 1 else _busy(free_s, now)
    cost = slow * _cost_s(tables, items, begun, busy, now, now - free_s[0], shift, rng)
    return now, cost, _occupy(free_s, who, now + cost)


@compiled(inline="always")
def _later(last: float, mine: int, done: float, worker: int) -> tuple[float, int]:
    """When the last of a query's requests is done, and who does it; of equals the higher number."""
    if done > last or (done == last and worker > mine):
        return done, worker
    return last, mine


@compiled(inline="always")
def _device_s(tables: Any, items: int, draw: float) -> float:
    """Seconds of a request on an accelerator."""
    quantiles = tables.spread.shape[2]
    seconds = tables.mean_s[-1, items]
    if quantiles > 1:
        seconds *= tables.spread[-1, tables.group[items], int(draw * quantiles)]
    return float(seconds)


@compiled(inline="always")
def _busy(free_s: FloatArray, now: float) -> int:
    """Workers that execute once one more has begun."""
    busy = 1
    for w in range(free_s.size):
        busy += free_s[w] > now
    return busy


@compiled(inline="always")
def _cost_s(
    tables: Any, items: int, begun: int, busy: int, now: float, idle: float, shift: int, rng: Any
) -> float:
    """Seconds of a request that begins `begun` queries, by a worker that was idle so long, in
    weather that is `shift` steps ahead of its table."""
    mean_s, row = tables.mean_s[0, items], 0
    if tables.mean_s.shape[0] > 1:
        at = tables.level[busy]
        below = min(int(at), tables.mean_s.shape[0] - 2)
        weight = at - below
        mean_s = tables.mean_s[below, items]
        mean_s += weight * (tables.mean_s[below + 1, items] - mean_s)
        row = below + (weight >= 0.5)
    quantiles = tables.spread.shape[2]
    if tables.exponential:
        mean_s *= rng.standard_exponential()
    elif quantiles > 1:
        mean_s *= tables.spread[row, tables.group[items], int(rng.random() * quantiles)]
    at_idle = 0
    while at_idle + 1 < tables.idle_s.size and idle >= tables.idle_s[at_idle + 1]:
        at_idle += 1
    seconds = mean_s + (tables.extra_s[at_idle] + begun * tables.query_s)
    if tables.weather.size > 1:
        seconds *= tables.weather[(int(now / tables.weather_step_s) + shift) % tables.weather.size]
    return float(seconds)


@compiled(inline="always")
def _occupy(free_s: FloatArray, who: Any, until: float) -> int:
    """The first free worker is busy until then; its number. Sifts the heap's top down."""
    mine = who[0]
    n, hole = free_s.size, 0
    while True:
        child = 2 * hole + 1
        if child >= n:
            break
        other = child + 1
        if other < n and (
            free_s[other] < free_s[child]
            or (free_s[other] == free_s[child] and who[other] < who[child])
        ):
            child = other
        if until < free_s[child] or (until == free_s[child] and mine < who[child]):
            break
        free_s[hole], who[hole] = free_s[child], who[child]
        hole = child
    free_s[hole], who[hole] = until, mine
    return int(mine)
