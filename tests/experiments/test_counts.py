"""Counts of machines: enough of them, none that is not there, none that is not needed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprecsys.experiments.counts import Supply, capacity_qps, cheapest, cost_of

supplies = st.lists(
    st.builds(
        Supply,
        st.floats(1, 2000),
        st.sampled_from([0.0, 0.7, 1.0, 1.6, 20.0]),
        st.none() | st.integers(0, 30),
    ),
    min_size=1,
    max_size=4,
)
few = st.lists(
    st.builds(Supply, st.floats(1, 100), st.floats(0.1, 10), st.integers(0, 4)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=500, deadline=None)
@given(supplies, st.floats(0.1, 30_000), st.integers(0, 6))
def test_what_is_answered_suffices_without_the_spares_of_any_kind(kinds, demand, spare):
    counts = cheapest(kinds, demand, spare)
    if counts is None:
        return
    assert all(n >= 0 for n in counts)
    assert all(s.most is None or n <= s.most for s, n in zip(kinds, counts, strict=True))
    assert sum(counts) > spare
    assert capacity_qps(kinds, counts, spare) >= demand * (1 - 1e-8)
    for failed in itertools.product(*(range(min(n, spare) + 1) for n in counts)):
        if sum(failed) == spare:
            left = sum((n - f) * s.qps for n, f, s in zip(counts, failed, kinds, strict=True))
            assert left >= demand * (1 - 1e-8)


@settings(max_examples=300, deadline=None)
@given(supplies, st.floats(0.1, 30_000), st.integers(0, 6))
def test_no_answer_is_given_only_where_all_that_can_be_had_do_not_suffice(kinds, demand, spare):
    if cheapest(kinds, demand, spare) is None:
        assert all(s.most is not None for s in kinds)
        assert capacity_qps(kinds, [s.most for s in kinds], spare) < demand


@settings(max_examples=300, deadline=None)
@given(supplies, st.floats(0.1, 30_000), st.integers(0, 6))
def test_no_kind_alone_is_cheaper_and_no_machine_could_be_left_out(kinds, demand, spare):
    counts = cheapest(kinds, demand, spare)
    if counts is None:
        return
    for kind in kinds:
        alone = cheapest([kind], demand, spare)
        assert alone is None or cost_of(kinds, counts) <= alone[0] * kind.cost + 1e-9
    for i, n in enumerate(counts):
        fewer = [n - 1 if j == i else m for j, m in enumerate(counts)]
        assert n == 0 or capacity_qps(kinds, fewer, spare) < demand


@settings(max_examples=200, deadline=None)
@given(few, st.floats(0.1, 500), st.integers(0, 3))
def test_the_cheapest_of_all_counts_is_at_most_one_machine_cheaper(kinds, demand, spare):
    counts = cheapest(kinds, demand, spare)
    every = itertools.product(*(range(s.most + 1) for s in kinds))
    enough = [n for n in every if capacity_qps(kinds, n, spare) >= demand]
    assert (counts is None) == (not enough)
    if counts is not None:
        best = min(cost_of(kinds, n) for n in enough)
        assert cost_of(kinds, counts) <= best + max(s.cost for s in kinds)


@pytest.mark.parametrize(
    ("kinds", "demand", "spare", "counts"),
    [
        ([Supply(1000, 1, 10)], 10_000, 0, [10]),
        ([Supply(1000, 1, 10)], 10_000, 4, None),  # the spares can be had no more than the rest
        ([Supply(1000, 1, 14)], 10_000, 4, [14]),
        # Of equal cost and number: one kind rather than two.
        ([Supply(1700, 1, 4), Supply(212, 1)], 2000, 4, [0, 14]),
        ([Supply(100, 1), Supply(100, 2)], 950, 1, [11, 0]),
        ([Supply(100, 1, 5), Supply(100, 2)], 950, 1, [5, 6]),
    ],
)
def test_spares_are_no_capacity(kinds, demand, spare, counts):
    assert cheapest(kinds, demand, spare) == counts
