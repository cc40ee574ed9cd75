"""Every index law stays within its table; Zipf has the shape of its exponent, scattered."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import UserError
from deeprecsys.workload import INDEX_LAWS, parse_indices, scatter

SPECS = ["uniform", "zipf", "zipf:0", "zipf:0.5", "zipf:1", "zipf:1.3", "zipf:10"]


@pytest.fixture(params=SPECS)
def law(request):
    return parse_indices(request.param)


def ranks_drawn(law, rows, n, seed=0):
    """Look-ups of each rank, hottest first, undoing the scattering."""
    count = np.bincount(law(np.random.default_rng(seed), rows, n), minlength=rows)
    return count[scatter(np.arange(rows), rows)]


def test_every_registered_law_is_among_the_fixtures():
    assert {spec.partition(":")[0] for spec in SPECS} == set(INDEX_LAWS)


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 10_000_000])
def test_every_id_lies_in_the_table(law, rows):
    ids = law(np.random.default_rng(0), rows, 100_000)
    assert ids.dtype == np.int32
    assert 0 <= ids.min() <= ids.max() < rows


@pytest.mark.parametrize("shape", [0, 7, (3, 5), (2, 0), (2, 40_000), ()])
def test_ids_come_in_the_shape_asked_for(law, shape):
    assert np.shape(law(np.random.default_rng(0), 100, shape)) == np.empty(shape).shape


def test_the_same_seed_draws_the_same_ids(law):
    first, second = (law(np.random.default_rng(3), 1000, (100, 80)) for _ in range(2))
    assert (first == second).all()


def test_a_larger_table_than_int32_can_name_gets_int64(law):
    assert law(np.random.default_rng(0), 2**31 + 10, 10).dtype == np.int64


@pytest.mark.parametrize("rows", [0, -1, 10**10])
def test_a_table_without_rows_or_beyond_exact_scattering_is_refused(law, rows):
    with pytest.raises(UserError, match="at least 1 row and at most 3e"):
        law(np.random.default_rng(0), rows, 10)


def test_every_row_of_a_small_table_is_reached():
    for spec in ("uniform", "zipf:0.5", "zipf", "zipf:1"):
        drawn = parse_indices(spec)(np.random.default_rng(0), 10, 10_000)
        assert set(drawn.tolist()) == set(range(10))


@pytest.mark.parametrize("s", [0.5, 0.92, 1.0, 1.3])
def test_the_hottest_rows_take_the_share_that_theory_gives_them(s):
    rows, n = 100_000, 2_000_000
    exact = np.arange(1, rows + 1) ** -s
    exact = np.cumsum(exact) / exact.sum()
    law = parse_indices(f"zipf:{s}")
    drawn = np.cumsum(ranks_drawn(law, rows, n)) / n
    for hottest in (1, 10, 100, 1000, 10_000):
        assert drawn[hottest - 1] == pytest.approx(law.share(hottest, rows), abs=0.002)
        assert drawn[hottest - 1] == pytest.approx(exact[hottest - 1], abs=0.03)


@pytest.mark.parametrize("s", [0.5, 0.92, 1.0, 1.3])
def test_frequency_falls_with_rank_by_the_exponent(s):
    count = ranks_drawn(parse_indices(f"zipf:{s}"), 10_000, 5_000_000)
    edges = np.unique(np.geomspace(4, 5000, 20).astype(int))
    mean = [count[a:b].mean() for a, b in pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(mean), 1)[0]
    assert slope == pytest.approx(-s, abs=0.03)


def test_exponent_zero_is_uniform():
    count = ranks_drawn(parse_indices("zipf:0"), 100, 1_000_000)
    assert (np.abs(count / 10_000 - 1) < 0.06).all()


def test_an_exponent_next_to_one_draws_what_one_draws():
    near, one = (
        parse_indices(spec)(np.random.default_rng(0), 10_000_000, 1000).tolist()
        for spec in ("zipf:0.9999999", "zipf:1")
    )
    assert near == one
    close = ranks_drawn(parse_indices("zipf:0.99999"), 1000, 100_000)
    same = ranks_drawn(parse_indices("zipf:1"), 1000, 100_000)
    # The draws run from the hot end in one and from the cold end in the other.
    np.testing.assert_allclose(np.cumsum(close) / 1e5, np.cumsum(same) / 1e5, atol=0.01)


def test_neighbouring_cold_rows_of_a_large_table_can_all_be_drawn():
    # float32 would reach one cold row in eight: ranks would then share few remainders of 8 rows.
    rows, n = 10_000_000, 2_000_000
    law = parse_indices("zipf")
    seen = np.unique(law(np.random.default_rng(0), rows, n)).size
    edge = np.unique(np.geomspace(1, rows, 4000).astype(np.int64))
    upto = np.array([0.0, *[law.share(int(k), rows) for k in edge]])
    width = np.diff(edge, prepend=0)
    expected = width @ -np.expm1(-n * np.diff(upto) / width)
    assert seen == pytest.approx(expected, rel=0.002)


@given(st.integers(1, 3000))
def test_scattering_moves_every_rank_to_its_own_row(rows):
    assert np.unique(scatter(np.arange(rows), rows)).size == rows


@pytest.mark.parametrize("rows", [1000, 4096, 1_000_000, 10_000_000, 128_000_000])
def test_hot_rows_are_not_neighbours(rows):
    hot = np.sort(scatter(np.arange(rows // 100), rows))
    assert np.diff(hot).min() > 20
    assert scatter(np.arange(1), rows)[0] > rows // 3


def test_scattering_is_exact_in_the_largest_tables():
    rows = 3_000_000_000
    last = scatter(np.array([0, rows - 2, rows - 1]), rows).tolist()
    stride = last[0]
    assert last == [stride, (rows - 1) * stride % rows, 0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("zpif", "known: uniform, zipf"),
        ("zipf:hot", "'hot' is not a number"),
        ("zipf:-1", "between 0"),
        ("zipf:11", "between 0"),
        ("zipf:1,2", "needs 1 number"),
        ("uniform:3", "takes no options"),
    ],
)
def test_a_law_that_cannot_be_read_is_refused_in_one_line(spec, says):
    with pytest.raises(UserError) as error:
        parse_indices(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_documented_gap_to_metas_histogram_is_the_true_one():
    rows = 128_000_000
    hottest = round(0.008 * rows)
    assert round(parse_indices("zipf:0.92").share(hottest, rows), 2) == 0.59
    assert round(parse_indices("zipf:0.83").share(hottest, rows), 2) == 0.42
