"""Many machines behind one balancer, compiled; each obeys the dispatcher as in `kernels.py`.

A machine's queries are served first come, first served, so what becomes of a query is known when it
is handed over: when its requests start, and when the last one ends. It then lies in a heap of its
machine's open queries, by finish, and is counted for good once somebody asks that machine how much
it has to do at a later time. Until then a failure of the machine can take it back. So memory holds
open queries only, and an idle machine costs nothing.

Knows arrays only: `State` is a fleet, `Counts` what has been counted.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from deeprecsys.core import FloatArray
from deeprecsys.simulation.compiled import compiled, inner
from deeprecsys.simulation.kernels import _assigned, _device_s, _later, _request

RANDOM, ROUND_ROBIN, TWO_CHOICES, LEAST_QUERIES, LEAST_ITEMS, SIZE_AWARE = range(6)
DOWN, UP, SLOW = range(3)
# Latencies are counted in logarithmic bins of 1 %, from a microsecond to 10,000 s.
LEAST_S, STEP, BINS = 1e-6, 1e-2, 2304
DONE, GROW = 0, 1


class State(NamedTuple):
    """M machines of up to W workers, D accelerators, room for K open queries a machine, P in all.

    Of machines: kind, workers, shift (of the weather), slow (factor), first and number of its
    accelerators; free_s and who, the heap of workers; heap_s and heap_slot, the open queries by
    finish; queries and items open. Of accelerators: kind, free_s, todo and executing items, and a
    ring of slots that wait. Of slots: an open query. listed [2, M], by group: the machines that are
    up, of them `up` [2]; turn [2]: of round robin.
    """

    kind: Any
    workers: Any
    shift: Any
    slow: FloatArray
    free_s: FloatArray
    who: Any
    heap_s: FloatArray
    heap_slot: Any
    queries: Any
    items: Any
    first_device: Any
    devices: Any
    device_kind: Any
    device_free_s: FloatArray
    todo: Any
    executing: Any
    ring: Any
    ring_head: Any
    ring_count: Any
    arrival_s: FloatArray
    handed_s: FloatArray
    draw: FloatArray
    size: Any
    model: Any
    row: Any
    spare: Any
    group: Any
    listed: Any
    up: Any
    turn: Any
    # Single numbers: spare slots, the most open queries of a machine, open queries.
    spares: Any
    fullest: Any
    open: Any


class Rules(NamedTuple):
    """By kind and model: batch size, offload threshold (0: none), most items, backlog; and how the
    balancer chooses; queries of `large` items or more belong to group 1, where it is size-aware."""

    batch: Any
    threshold: Any
    most: Any
    backlog: Any
    balancer: int
    large: int


class Counts(NamedTuple):
    """By stretch of the run: latency [stretches, models, BINS] and items [stretches, models], by
    arrival; busy_s and device_busy_s [stretches, kinds], by begin; in all: retried, unserved."""

    latency: Any
    items: Any
    busy_s: FloatArray
    device_busy_s: FloatArray
    totals: Any
    stretch_s: float


class Kept(NamedTuple):
    """By row, where every query is kept; else empty."""

    start_s: FloatArray
    finish_s: FloatArray
    worker: Any
    device: Any
    machine: Any


class Events(NamedTuple):
    """In order of time: DOWN, UP or SLOW, of which machine, by which factor."""

    time_s: FloatArray
    what: Any
    machine: Any
    factor: FloatArray


@compiled(no_cfunc_wrapper=True)
def serve_fleet(
    first: int,
    first_event: int,
    arrival_s: FloatArray,
    size: Any,
    model: Any,
    row: int,
    final: bool,
    events: Events,
    state: State,
    rules: Rules,
    tables: Any,
    device_tables: Any,
    counts: Counts,
    kept: Kept,
    rng: Any,
    device_rng: Any,
    balancer_rng: Any,
) -> tuple[int, int, int]:
    """Queries from `first` on, events up to the last arrival; the next query, the next event, and
    DONE, or GROW if the state is too small to go on.

    row: number of the first query of these arrays, of the run. final: then all later events, too,
    and what is still open.
    """
    e, n = first_event, arrival_s.size
    room = state.heap_s.shape[1]
    for q in range(first, n + 1 if final else n):
        now = arrival_s[q] if q < n else math.inf
        while e < events.time_s.size and events.time_s[e] <= now:
            if _tight(state, room):
                return q, e, GROW
            _happen(e, events, state, rules, tables, device_tables, counts, kept, rng,
                    balancer_rng)  # fmt: skip
            e += 1
        if q == n:
            break
        if _tight(state, room):
            return q, e, GROW
        slot = _arrive(state, now, size[q], model[q] if model.size else 0, row + q)
        _hand_over(slot, now, state, rules, tables, device_tables, counts, kept, rng, device_rng,
                   balancer_rng)  # fmt: skip
    if final:
        for m in range(state.kind.size):
            _settle(m, math.inf, state, rules, device_tables, counts, kept)
    return n, e, DONE


@inner()
def _arrive(state: State, now: float, size: int, model: int, row: int) -> int:
    """The slot of a query that is open from now on."""
    state.spares[0] -= 1
    slot = state.spare[state.spares[0]]
    state.arrival_s[slot] = now
    state.size[slot] = size
    state.model[slot] = model
    state.row[slot] = row
    state.draw[slot] = -1.0
    return int(slot)


@inner()
def _leave(state: State, slot: int) -> None:
    """A query is open no more."""
    state.spare[state.spares[0]] = slot
    state.spares[0] += 1


@compiled(inline="always")
def _tight(state: State, room: int) -> bool:
    """Half full: a failing machine may hand all it has to another."""
    return bool(2 * state.fullest[0] >= room - 2 or state.spares[0] < 1)


@inner()
def _hand_over(
    slot: int, now: float, state: State, rules: Rules, tables: Any, device_tables: Any,
    counts: Counts, kept: Kept, rng: Any, device_rng: Any, balancer_rng: Any,
) -> None:  # fmt: skip
    """The balancer's choice, and what becomes of the query there."""
    m = _choose(state.size[slot], now, state, rules, device_tables, counts, kept, balancer_rng)
    r = state.row[slot]
    if m < 0:  # nobody is up
        counts.totals[1] += 1
        if kept.finish_s.size:
            kept.start_s[r] = kept.finish_s[r] = math.nan
        _leave(state, slot)
        return
    _settle(m, now, state, rules, device_tables, counts, kept)
    state.handed_s[slot] = now
    state.queries[m] += 1
    state.items[m] += state.size[slot]
    state.open[0] += 1
    state.fullest[0] = max(state.fullest[0], state.queries[m])
    if kept.finish_s.size:
        kept.machine[r] = m
        kept.device[r] = 0
        kept.worker[r] = -1
    k, kind = state.model[slot], state.kind[m]
    threshold = rules.threshold[kind, k]
    if threshold > 0 and state.size[slot] >= threshold and state.devices[m] > 0:
        if state.draw[slot] < 0:
            state.draw[slot] = device_rng.random()
        d, end = state.first_device[m], state.first_device[m] + state.devices[m]
        number = _assigned(state.todo[d:end], rules.backlog[kind, k], state.size[slot])
        if number > 0:
            d += number - 1
            at = (state.ring_head[d] + state.ring_count[d]) % state.ring.shape[1]
            state.ring[d, at] = slot
            state.ring_count[d] += 1
            return
    _execute(m, slot, now, state, rules.batch[kind, k], tables[kind * rules.batch.shape[1] + k],
             counts, kept, rng)  # fmt: skip


@inner()
def _execute(
    m: int, slot: int, arrived: float, state: State, batch: int, tables: Any, counts: Counts,
    kept: Kept, rng: Any,
) -> None:  # fmt: skip
    """On the machine's cores: `kernels.serve` for one query."""
    free_s, who = state.free_s[m, : state.workers[m]], state.who[m, : state.workers[m]]
    left, last, mine, begin, begun = state.size[slot], -math.inf, -1, arrived, 1
    while left > 0:
        items = min(left, batch)
        now, cost, worker = _request(free_s, who, arrived, items, begun, tables, state.slow[m],
                                     state.shift[m], rng)  # fmt: skip
        begin = now if begun else begin
        last, mine = _later(last, mine, now + cost, worker)
        left -= items
        begun = 0
        counts.busy_s[_stretch(now, counts), state.kind[m]] += cost
    finish = last if state.size[slot] > 0 else arrived
    if kept.finish_s.size:
        r = state.row[slot]
        kept.start_s[r], kept.finish_s[r], kept.worker[r] = begin, finish, mine
    _push(state.heap_s[m], state.heap_slot[m], state.queries[m] - 1 - _waiting(m, state),
          finish, slot)  # fmt: skip


@compiled(inline="always")
def _waiting(m: int, state: State) -> int:
    """Open queries of a machine that wait for its accelerators: in no heap yet."""
    count = 0
    for d in range(state.first_device[m], state.first_device[m] + state.devices[m]):
        count += state.ring_count[d]
    return count


@inner()
def _settle(
    m: int, now: float, state: State, rules: Rules, device_tables: Any, counts: Counts, kept: Kept
) -> None:
    """Brings a machine to `now`: its accelerators begin what they can, and what has finished by
    then is counted."""
    for d in range(state.first_device[m], state.first_device[m] + state.devices[m]):
        _advance(m, d, now, state, rules, device_tables, counts, kept)
    heap_s, heap_slot = state.heap_s[m], state.heap_slot[m]
    n = state.queries[m] - _waiting(m, state)
    while n > 0 and heap_s[0] <= now:
        finish, slot = heap_s[0], heap_slot[0]
        _pop(heap_s, heap_slot, n)
        n -= 1
        state.queries[m] -= 1
        state.items[m] -= state.size[slot]
        state.open[0] -= 1
        arrival, k = state.arrival_s[slot], state.model[slot]
        stretch = _stretch(arrival, counts)
        latency = max(finish - arrival, LEAST_S)
        counts.latency[stretch, k, min(int(math.log(latency / LEAST_S) / STEP), BINS - 1)] += 1
        counts.items[stretch, k] += state.size[slot]
        _leave(state, slot)


@inner()
def _advance(
    m: int, d: int, now: float, state: State, rules: Rules, device_tables: Any, counts: Counts,
    kept: Kept,
) -> None:  # fmt: skip
    """An accelerator begins the requests that it can before `now`: `kernels.serve_offloaded`."""
    ring, room = state.ring[d], state.ring.shape[1]
    while state.ring_count[d] > 0:
        head = ring[state.ring_head[d]]
        begin = max(state.device_free_s[d], state.handed_s[head])
        if begin >= now:
            break
        k = state.model[head]
        most = rules.most[state.kind[m], k]
        in_heap = state.queries[m] - _waiting(m, state)
        items, joined = 0, 0
        while joined < state.ring_count[d]:
            slot = ring[(state.ring_head[d] + joined) % room]
            late = state.handed_s[slot] > begin or state.model[slot] != k
            if late or (joined > 0 and items + state.size[slot] > most):
                break
            items += state.size[slot]
            joined += 1
        index = state.device_kind[d] * rules.batch.shape[1] + k
        cost = state.slow[m] * _device_s(device_tables[index], items, state.draw[head])
        for _ in range(joined):
            slot = ring[state.ring_head[d]]
            state.ring_head[d] = (state.ring_head[d] + 1) % room
            state.ring_count[d] -= 1
            if kept.finish_s.size:
                r = state.row[slot]
                kept.start_s[r], kept.finish_s[r] = begin, begin + cost
                kept.device[r] = d - state.first_device[m] + 1
            _push(state.heap_s[m], state.heap_slot[m], in_heap, begin + cost, slot)
            in_heap += 1
        counts.device_busy_s[_stretch(begin, counts), state.kind[m]] += cost
        state.todo[d] -= state.executing[d]
        state.device_free_s[d], state.executing[d] = begin + cost, items
    if state.device_free_s[d] <= now:
        state.todo[d] -= state.executing[d]
        state.executing[d] = 0


@inner()
def _choose(
    size: int, now: float, state: State, rules: Rules, device_tables: Any, counts: Counts,
    kept: Kept, rng: Any,
) -> int:  # fmt: skip
    """A machine that is up, -1 if none is; of equals the first one looked at."""
    g = 1 if rules.balancer == SIZE_AWARE and size >= rules.large else 0
    if state.up[g] == 0:
        g = 1 - g
    n = state.up[g]
    if n == 0:
        return -1
    if n == 1:
        return int(state.listed[g, 0])
    if rules.balancer == ROUND_ROBIN:
        state.turn[g] = (state.turn[g] + 1) % n
        return int(state.listed[g, state.turn[g]])
    one = int(rng.random() * n)
    if rules.balancer == RANDOM:
        return int(state.listed[g, one])
    if rules.balancer in (TWO_CHOICES, SIZE_AWARE):
        other = int(rng.random() * (n - 1))
        other += other >= one
        a, b = state.listed[g, one], state.listed[g, other]
        _settle(a, now, state, rules, device_tables, counts, kept)
        _settle(b, now, state, rules, device_tables, counts, kept)
        # As a share of what a machine has to work with, so that kinds can be compared.
        return int(b if state.queries[b] * state.workers[a] < state.queries[a] * state.workers[b]
                   else a)  # fmt: skip
    best, least = -1, math.inf
    for i in range(n):  # from a random one on: equals share
        m = state.listed[g, (one + i) % n]
        _settle(m, now, state, rules, device_tables, counts, kept)
        load = state.queries[m] if rules.balancer == LEAST_QUERIES else state.items[m]
        if load / state.workers[m] < least:
            best, least = m, load / state.workers[m]
    return int(best)


@inner(allocates=True)
def _happen(
    e: int, events: Events, state: State, rules: Rules, tables: Any, device_tables: Any,
    counts: Counts, kept: Kept, rng: Any, balancer_rng: Any,
) -> None:  # fmt: skip
    """A machine slows down, comes back, or fails: then its open queries are handed over again."""
    now, m = events.time_s[e], events.machine[e]
    g = state.group[m]
    if events.what[e] == SLOW:
        state.slow[m] = events.factor[e]
        return
    if events.what[e] == UP:
        state.listed[g, state.up[g]] = m
        state.up[g] += 1
        state.free_s[m, :] = now
        for w in range(state.workers[m]):
            state.who[m, w] = w
        return
    _settle(m, now, state, rules, device_tables, counts, kept)
    by_row, lost = np.empty(state.queries[m]), np.empty(state.queries[m], np.int64)
    n = state.queries[m] - _waiting(m, state)
    for i in range(n):
        slot = state.heap_slot[m, i]
        _push(by_row, lost, i, state.row[slot], slot)
    for d in range(state.first_device[m], state.first_device[m] + state.devices[m]):
        for i in range(state.ring_count[d]):
            slot = state.ring[d, (state.ring_head[d] + i) % state.ring.shape[1]]
            _push(by_row, lost, n, state.row[slot], slot)
            n += 1
        state.ring_count[d] = state.todo[d] = state.executing[d] = 0
        state.device_free_s[d] = 0.0
    state.open[0] -= n
    state.queries[m] = state.items[m] = 0
    at = 0
    while state.listed[g, at] != m:
        at += 1
    state.up[g] -= 1
    state.listed[g, at] = state.listed[g, state.up[g]]
    for left in range(n, 0, -1):  # in the order they came; numba's argsort takes 10 s to compile
        slot = lost[0]
        _pop(by_row, lost, left)
        counts.totals[0] += 1
        _hand_over(slot, now, state, rules, tables, device_tables, counts, kept, rng, balancer_rng,
                   balancer_rng)  # fmt: skip


@compiled(inline="always")
def _stretch(now: float, counts: Counts) -> int:
    return int(min(int(now / counts.stretch_s), counts.busy_s.shape[0] - 1))


@compiled(inline="always")
def _push(times: FloatArray, slots: Any, n: int, time: float, slot: int) -> None:
    """Into a heap of n."""
    while n > 0:
        parent = (n - 1) // 2
        if times[parent] <= time:
            break
        times[n], slots[n] = times[parent], slots[parent]
        n = parent
    times[n], slots[n] = time, slot


@compiled(inline="always")
def _pop(times: FloatArray, slots: Any, n: int) -> None:
    """The first of a heap of n goes."""
    time, slot = times[n - 1], slots[n - 1]
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= n - 1:
            break
        if child + 1 < n - 1 and times[child + 1] < times[child]:
            child += 1
        if times[child] >= time:
            break
        times[hole], slots[hole] = times[child], slots[child]
        hole = child
    times[hole], slots[hole] = time, slot
