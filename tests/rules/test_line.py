"""Shares between clients: nobody starves, nothing is wasted, one client alone sees no change."""

import heapq
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprecsys.core import Policy
from deeprecsys.rules import line
from deeprecsys.rules.dispatch import USUAL_PRIORITY, Dispatcher, QueueFull

BATCH = 8
POLICY = Policy(BATCH)
sizes = st.lists(st.integers(1, 60), min_size=1, max_size=20)
# (client, size, priority), and None: a worker pulls, and finishes at once.
steps = st.lists(
    st.none()
    | st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 60), st.integers(1, 9)),
    max_size=120,
)


def everything(rules):
    pulled = []
    while slices := rules.pull(0, 0.0):
        pulled += slices
        for query, lo, hi in slices:
            rules.finish(query, hi - lo)
    return pulled


@given(sizes, st.lists(st.integers(0, 3), max_size=20))
def test_one_client_alone_is_served_first_come_first_served(sizes, pulls):
    """As a machine whose queries name no client, which the simulator obeys."""
    named, plain = Dispatcher(), Dispatcher()
    for query, size in enumerate(sizes):
        named.add(query, size, POLICY, client="somebody", priority=USUAL_PRIORITY)
        plain.add(query, size, POLICY)
        for _ in range(pulls[query] if query < len(pulls) else 0):
            assert named.pull(0, 0.0) == plain.pull(0, 0.0)
    assert everything(named) == everything(plain)


@settings(max_examples=300)
@given(steps)
def test_workers_are_never_idle_while_items_wait_and_none_is_lost(steps):
    rules, left = Dispatcher(), {}
    for query, step in enumerate(steps):
        if step is None:
            slices = rules.pull(0, 0.0)
            assert bool(slices) == bool(left)
            for id, lo, hi in slices:
                left[id] -= hi - lo
                assert rules.finish(id, hi - lo) == (not left[id])
                if not left[id]:
                    del left[id]
        else:
            client, size, priority = step
            rules.add(query, size, POLICY, priority=priority, client=client)
            left[query] = size
        assert rules.queued_items == sum(left.values())
    for id, lo, hi in everything(rules):
        left[id] -= hi - lo
    assert not any(left.values())


@pytest.mark.parametrize("credit", [0, 40])
@settings(max_examples=200)
@given(steps=steps)
def test_clients_that_wait_all_the_while_get_equal_shares_whatever_they_ask_for(credit, steps):
    """Priorities up to the usual one, and any sizes: of two that always had something waiting,
    neither had more than a request of items, and what it was behind, over the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "CREDIT", credit)
        check_shares(steps, credit)


def check_shares(steps, credit):
    rules, waiting, had, owner = Dispatcher(), {}, {}, {}
    for query, step in enumerate(steps):
        if step is not None:
            client, size, priority = step
            rules.add(query, size, POLICY, priority=min(priority, USUAL_PRIORITY), client=client)
            owner[query] = client
            if not waiting.get(client):
                had[client] = dict.fromkeys(had, 0)  # since it waits, itself and each other
                for other in had:
                    had[client][other] = had[other][client] = 0
            waiting[client] = waiting.get(client, 0) + size
            continue
        for id, lo, hi in rules.pull(0, 0.0):
            client = owner[id]
            waiting[client] -= hi - lo
            for other in had:
                had[client][other] += hi - lo
            for other in had:
                if other != client and waiting[client] and waiting[other]:
                    assert had[client][other] - had[other][client] <= credit + 2 * BATCH
            if not waiting[client]:
                for other in had:
                    had[client][other] = had[other][client] = 0


@given(st.integers(1, 200), st.integers(1, 40))
def test_a_newcomer_does_not_wait_for_another_s_backlog(backlog, size):
    rules = Dispatcher()
    for query in range(backlog):
        rules.add(query, 100, POLICY, priority=1, client="hog")
    rules.pull(0, 0.0)
    rules.add(-1, size, POLICY, priority=USUAL_PRIORITY, client="newcomer")
    before, taken = 0, 0
    while taken < size:
        for query, lo, hi in rules.pull(0, 0.0):
            taken += (hi - lo) if query == -1 else 0
            before += 0 if query == -1 else hi - lo
    assert before <= size + BATCH


@pytest.mark.parametrize("load", [0.1, 0.25, 0.45])
def test_who_takes_less_than_its_share_hardly_notices_who_takes_all_there_is(load):
    alone_s, beside_s = p95_s(load, hogs=0), p95_s(load, hogs=16)
    assert beside_s < 1.3 * alone_s


def p95_s(load, hogs, workers=2, queries=3000):
    """Of a client at a share of the machine, beside queries of another that come back as soon as
    they are answered, all of the first priority; in virtual time."""
    rng, rules, policy = np.random.default_rng(0), Dispatcher(), Policy(64)
    size = np.minimum(rng.lognormal(4.5, 1.0, queries).astype(int) + 1, 1024)
    rate_qps = load * workers / (1.5e-5 * size.mean() + 1e-4 * (size / 64 + 0.5).mean())
    arrival_s = np.cumsum(rng.exponential(1 / rate_qps, queries))
    finish_s, idle, busy, row = np.full(queries, np.nan), workers, [], 0

    def again(hog):
        rules.add(queries + hog, int(size[hog]), policy, priority=1, client="hog")

    for hog in range(hogs):
        again(hog)
    while np.isnan(finish_s).any():
        if row < queries and (not busy or arrival_s[row] <= busy[0][0]):
            now = arrival_s[row]
            rules.add(row, int(size[row]), policy, priority=USUAL_PRIORITY, client="ordinary")
            row += 1
        else:
            now, slices = heapq.heappop(busy)
            idle += 1
            for query, lo, hi in slices:
                if rules.finish(query, hi - lo):
                    if query < queries:
                        finish_s[query] = now
                    else:
                        again(query - queries)
        while idle and (slices := rules.pull(0, now)):
            idle -= 1
            items = sum(hi - lo for _, lo, hi in slices)
            heapq.heappush(busy, (now + 1e-4 + 1.5e-5 * items, slices))
    return float(np.percentile(finish_s - arrival_s, 95))


def test_what_was_dropped_is_not_held_against_its_client():
    rules = Dispatcher()
    for query in range(50):
        rules.add(query, 100, POLICY, client="unlucky")
    for query in range(50):
        rules.drop(query)
    rules.add(100, 8, POLICY, client="unlucky")
    rules.add(101, 8, POLICY, client="other")
    assert rules.pull(0, 0.0) == [(100, 0, 8)]


def test_a_priority_orders_a_client_s_own_queries_and_lets_others_go_first_but_pushes_nobody():
    rules = Dispatcher()
    rules.add(0, 8, POLICY, priority=5, client="ordinary")
    rules.add(1, 8, POLICY, priority=5, client="eager")
    rules.add(2, 8, POLICY, priority=1, client="eager")
    rules.add(3, 8, POLICY, priority=9, client="patient")
    rules.add(4, 8, POLICY, priority=5, client="ordinary")
    assert [query for query, _, _ in everything(rules)] == [0, 2, 4, 1, 3]


def test_a_client_leaves_room_in_the_queue_for_the_next():
    rules = Dispatcher(max_queued_items=1000)
    for query in range(75):
        rules.add(query, 10, POLICY, client="hog")
    with pytest.raises(QueueFull, match="of this client"):
        rules.add(75, 10, POLICY, client="hog")
    rules.add(-1, 100, POLICY, client="other")
    with pytest.raises(QueueFull):
        rules.add(-2, 500, POLICY)
    everything(rules)
    rules.add(-3, 990, POLICY, client="hog")


def test_an_accelerator_is_shared_too():
    rules = Dispatcher(accelerators=1)
    policy = Policy(8, offload_threshold=10, most_items=20)
    for query in range(4):
        rules.add(query, 20, policy, client="hog")
    rules.add(9, 20, policy, client="other")
    order = []
    while slices := rules.pull_offloaded(0, 0.0):
        order += [query for query, _, _ in slices]
    assert order == [0, 9, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 12))
def test_what_is_remembered_is_bounded_by_what_is_open(seed, clients, levels):
    """Queries of many clients and priorities that expire behind one that nobody takes."""
    random = Random(seed)
    rules, open_ = Dispatcher(), []
    rules.add(-1, 1, POLICY, deadline_s=1.0, priority=-1)  # a short open deadline stays in front
    for query in range(600):
        client = random.randrange(clients)
        priority, drops = random.randrange(levels), random.random() < 0.3
        rules.add(query, 3, POLICY, 1e9 + query, priority, client=f"{client}" if client else "")
        open_.append(query)
        assert len(rules._deadlines) <= 2 * len(rules) + 66
        while drops and open_:
            rules.drop(open_.pop())
        remembered = sum(len(each) for each in rules._shares[0].lines.values())
        assert remembered <= 8 * len(rules) + 64 * 4 * len(rules._shares[0].lines)
        assert len(rules._held) <= len(rules)
    assert rules.next_deadline_s() == 1.0


def test_starved_queries_that_expire_leave_nothing_behind():
    rules = Dispatcher()
    rules.add(-1, 1, POLICY, priority=0)
    for query in range(5000):
        rules.add(query, 3, POLICY, query + 0.5, priority=9)
        assert rules.expire(query + 1.0) == [query]
    assert sum(len(each) for each in rules._shares[0].lines.values()) < 300
    assert rules.next_deadline_s() == math.inf


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), min_size=1, max_size=15),
    st.integers(0, 6),
    st.sampled_from("abcd"),
    st.integers(1, 40),
)
def test_ahead_is_what_is_taken_before_a_new_query_is_taken_whole(queries, pulls, client, size):
    rules = Dispatcher()
    for query, (name, items) in enumerate(queries):
        rules.add(query, items, POLICY, cost=float(items), client=name)
    executing = 0
    for _ in range(pulls):
        executing += sum(hi - lo for _, lo, hi in rules.pull(0, 0.0))
    said = rules.ahead(0, client, size)
    rules.add(-1, size, POLICY, cost=float(size), client=client)
    before, left = 0, size
    while left:
        for query, lo, hi in rules.pull(0, 0.0):
            left -= hi - lo if query == -1 else 0
            before += hi - lo if query != -1 else 0
    assert said - executing == pytest.approx(before, abs=2 * 3 * BATCH)
