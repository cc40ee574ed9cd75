"""The pure dispatcher: conservation, order, deadlines."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import Policy
from deeprecsys.rules.dispatch import Dispatcher, QueueFull, requests

sizes = st.lists(st.integers(1, 500), min_size=1, max_size=20)
batch = st.integers(1, 600)


def drain(rules: Dispatcher) -> list[tuple[int, int, int]]:
    pulled = []
    while slices := rules.pull(0, 0.0):
        pulled += slices
    return pulled


@given(sizes, batch)
def test_splitting_conserves_items_in_order_and_no_request_exceeds_the_batch_size(sizes, batch):
    rules, policy = Dispatcher(), Policy(batch)
    for query, size in enumerate(sizes):
        rules.add(query, size, policy)
    assert rules.queued_items == sum(sizes)
    pulled = drain(rules)
    expected = [(q, lo, hi) for q, n in enumerate(sizes) for lo, hi in requests(n, policy)]
    assert pulled == expected
    assert all(0 < hi - lo <= batch for _, lo, hi in pulled)
    assert rules.queued_items == 0


@given(sizes, batch, st.randoms(use_true_random=False))
def test_a_query_finishes_once_and_with_its_last_request_in_whatever_order_they_end(
    sizes, batch, random
):
    rules = Dispatcher()
    for query, size in enumerate(sizes):
        rules.add(query, size, Policy(batch))
    pulled = drain(rules)
    random.shuffle(pulled)
    done = [q for q, lo, hi in pulled if rules.finish(q, hi - lo)]
    assert sorted(done) == list(range(len(sizes)))
    assert len(rules) == 0


@given(sizes, batch, st.data())
def test_dropping_forgets_what_nobody_started_and_nothing_else(sizes, batch, data):
    rules, policy = Dispatcher(), Policy(batch)
    for query, size in enumerate(sizes):
        rules.add(query, size, policy)
    started = [
        rules.pull(0, 0.0)[0] for _ in range(data.draw(st.integers(0, 3))) if rules.queued_items
    ]
    victim = data.draw(st.sampled_from(range(len(sizes))))
    taken = sum(hi - lo for q, lo, hi in started if q == victim)
    before = rules.queued_items
    assert rules.drop(victim)
    assert rules.queued_items == before - (sizes[victim] - taken)
    assert not rules.drop(victim)
    rest = drain(rules)
    assert all(q != victim for q, _, _ in rest)
    others = sum(n for q, n in enumerate(sizes) if q != victim)
    assert sum(hi - lo for q, lo, hi in started + rest if q != victim) == others
    for q, lo, hi in started:
        assert not (rules.finish(q, hi - lo) and q == victim)


adaptive = st.builds(
    Policy, batch_size=st.integers(1, 50), adaptive=st.just(True), most_items=st.integers(50, 600)
)


@given(sizes, adaptive, st.lists(st.integers(1, 8), min_size=1))
def test_the_adaptive_rule_takes_its_share_of_what_waits_across_queries_in_order(
    sizes, policy, idle
):
    rules = Dispatcher()
    for query, size in enumerate(sizes):
        rules.add(query, size, policy)
    pulled, turn = [], 0
    while rules.queued_items:
        free, queued = idle[turn % len(idle)], rules.queued_items
        slices = rules.pull(0, 0.0, free)
        items = sum(hi - lo for _, lo, hi in slices)
        share = max(policy.batch_size, math.ceil(queued / free))
        assert items == min(share, policy.most_items, queued)
        pulled, turn = pulled + slices, turn + 1
    every = [(q, i) for q, lo, hi in pulled for i in range(lo, hi)]
    assert every == [(q, i) for q, size in enumerate(sizes) for i in range(size)]
    assert sorted(q for q, lo, hi in pulled if rules.finish(q, hi - lo)) == list(range(len(sizes)))


def test_queries_of_another_policy_are_not_joined():
    rules = Dispatcher()
    for query, policy in enumerate([Policy(4, adaptive=True), Policy(4), Policy(4, adaptive=True)]):
        rules.add(query, 6, policy)
    assert rules.pull(0, 0.0) == [(0, 0, 6)]
    assert rules.pull(0, 0.0) == [(1, 0, 4)]
    assert rules.pull(0, 0.0) == [(1, 4, 6)]
    assert rules.pull(0, 0.0) == [(2, 0, 6)]


@given(sizes, st.integers(1, 500), st.integers(1, 700), st.integers(1, 3))
def test_large_queries_go_whole_to_the_accelerator_with_the_least_to_do(
    sizes, threshold, most, count
):
    rules = Dispatcher(accelerators=count)
    policy = Policy(16, offload_threshold=threshold, most_items=most)
    todo = [0] * count
    for query, size in enumerate(sizes):
        rules.add(query, size, policy)
        if size >= threshold:
            todo[todo.index(min(todo))] += size
        assert rules.offloaded_items == todo
    assert rules.queued_items == sum(size for size in sizes if size < threshold)
    done = []
    for device in range(count):
        while slices := rules.pull_offloaded(device, 0.0):
            assert [lo for _, lo, _ in slices] == [0] * len(slices)
            items = sum(hi for _, _, hi in slices)
            assert items <= most or len(slices) == 1
            assert all(sizes[q] == hi >= threshold for q, _, hi in slices)
            done += [q for q, _, hi in slices if rules.finish(q, hi)]
    assert rules.offloaded_items == [0] * count
    assert sorted(done) == [q for q, size in enumerate(sizes) if size >= threshold]
    assert all(sizes[q] < threshold for q, _, _ in drain(rules))


def test_a_dropped_query_leaves_the_accelerator_free():
    rules, policy = Dispatcher(accelerators=2), Policy(8, offload_threshold=10, most_items=100)
    for query, size in enumerate([50, 30, 40]):
        rules.add(query, size, policy)
    assert rules.offloaded_items == [50, 70]
    assert rules.drop(1)
    assert rules.offloaded_items == [50, 40]
    assert rules.pull_offloaded(1, 0.0) == [(2, 0, 40)]
    assert rules.drop(2)
    assert not rules.finish(2, 40)
    assert rules.offloaded_items == [50, 0]


def test_without_an_accelerator_nothing_is_offloaded():
    rules = Dispatcher()
    rules.add(0, 50, Policy(64, offload_threshold=10))
    assert rules.pull(0, 0.0) == [(0, 0, 50)]


def test_deadlines_expire_open_queries_only_and_at_their_time():
    rules = Dispatcher()
    for query, deadline in enumerate([5.0, 1.0, math.inf, 3.0]):
        rules.add(query, 10, Policy(10), deadline)
    assert rules.next_deadline_s() == 1.0
    assert rules.expire(0.5) == []
    assert rules.expire(3.0) == [1, 3]
    assert rules.pull(0, 3.0) == [(0, 0, 10)]
    assert rules.finish(0, 10)
    assert rules.next_deadline_s() == math.inf
    assert rules.expire(9.0) == []
    assert rules.pull(0, 9.0) == [(2, 0, 10)]


def test_the_bound_refuses_whole_queries_but_never_the_only_one():
    rules = Dispatcher(max_queued_items=100)
    rules.add(0, 1000, Policy(10))
    with pytest.raises(QueueFull, match="1000 items wait"):
        rules.add(1, 1, Policy(10))
    assert rules.queued_items == 1000
    drain(rules)
    rules.add(2, 100, Policy(10))


def test_a_query_stays_on_the_cores_while_the_accelerators_have_enough_to_do():
    rules = Dispatcher(accelerators=2)
    policy = Policy(8, offload_threshold=10, offload_backlog=30)
    chosen = [rules.add(query, size, policy) for query, size in enumerate([40, 9, 31, 20, 20])]
    assert chosen == [0, None, 1, None, None]
    rules.finish(2, 31)
    assert rules.add(5, 20, policy) == 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(0, 6), st.integers(0, 3))
def test_a_lost_accelerator_s_queries_are_the_cores_and_none_is_lost(sizes, begun, done):
    rules, policy = Dispatcher(accelerators=1), Policy(8, offload_threshold=10, most_items=50)
    for query, size in enumerate(sizes):
        rules.add(query, size, policy)
    finished = []
    for _ in range(done):
        for query, _, hi in rules.pull_offloaded(0, 0.0):
            assert rules.finish(query, hi)
            finished.append(query)
    for _ in range(begun):
        rules.pull_offloaded(0, 0.0)
    rules.retire(0)
    assert rules.offloaded_items == [0]
    executed: dict[int, int] = {}
    while slices := rules.pull(0, 0.0):
        for query, lo, hi in slices:
            assert lo == executed.get(query, 0)
            executed[query] = hi
            if rules.finish(query, hi - lo):
                finished.append(query)
    assert sorted(finished) == list(range(len(sizes)))
    assert rules.add(99, 60, policy) is None
    assert rules.queued_items == 60


@given(
    queries=st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 3), st.booleans()), min_size=1, max_size=20
    ),
    pulls=st.integers(0, 10),
)
def test_a_lower_number_goes_first_and_ahead_is_the_work_before_a_new_query(queries, pulls):
    rules, policy = Dispatcher(), Policy(8)
    for id, (size, priority, _) in enumerate(queries):
        rules.add(id, size, policy, priority=priority, cost=2.0 * size)
    left = {id: size for id, (size, _, _) in enumerate(queries)}
    taken = dict.fromkeys(left, 0)

    def do(pieces):
        for id, lo, hi in pieces:
            taken[id] += hi - lo
            left[id] -= hi - lo
            rules.finish(id, hi - lo)

    for _ in range(pulls):
        waiting = [queries[id][1] for id in left if taken[id] < queries[id][0]]
        pieces = rules.pull(0, 0.0)
        assert all(queries[id][1] == min(waiting) for id, _, _ in pieces)
        do(pieces)
    for id, (_, _, dropped) in enumerate(queries):
        if dropped and rules.drop(id):
            left[id] = 0
    for priority in range(4):
        before = sum(2.0 * n for id, n in left.items() if queries[id][1] <= priority)
        assert rules.ahead(priority) == pytest.approx(before, abs=1e-9)
    while pieces := rules.pull(0, 0.0):
        do(pieces)
    assert rules.ahead(9) == pytest.approx(0.0, abs=1e-9)
