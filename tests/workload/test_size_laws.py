"""Every size law keeps the same promises; each has the numbers of its source."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import UserError
from deeprecsys.workload import SIZE_LAWS, parse_sizes
from deeprecsys.workload.sizes import law_of

SPECS = [
    "production",
    "heavy-tail",
    "lognormal",
    "lognormal:3,1",
    "normal:200,50",
    "normal:2,10",
    "fixed:128",
    "uniform:1-1000",
    "file:{tmp}/sizes.txt",
    "each:10*3,700,25*6",
    "file:{tmp}/quantiles.csv",
]


@pytest.fixture(params=SPECS)
def law(request, tmp_path):
    (tmp_path / "sizes.txt").write_text("30\n10\n\n20\n10\n")
    (tmp_path / "quantiles.csv").write_text("quantile,size\n0.5,100\n0.9,300\n1,900\n")
    return parse_sizes(request.param.format(tmp=tmp_path))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_registered_law_is_among_the_fixtures():
    assert {spec.partition(":")[0] for spec in SPECS} == set(SIZE_LAWS)


def test_sizes_are_whole_positive_and_never_exceed_the_largest(law):
    sizes = law.sample(np.random.default_rng(0), 10_000)
    assert sizes.dtype == np.int64
    assert sizes.shape == (10_000,)
    assert 1 <= sizes.min() <= sizes.max() <= law.largest


def test_the_sample_has_the_mean_and_percentiles_the_law_states(law):
    sizes = np.sort(law.sample(np.random.default_rng(1), 200_000))
    spread = math.sqrt(law.size.astype(float) ** 2 @ law.probability - law.mean**2)
    assert abs(sizes.mean() - law.mean) <= 5 * spread / math.sqrt(len(sizes))
    for p in (10, 50, 95, 99):
        # The sampled share at or below a percentile: at least p %, and below it less than p %.
        size = law.percentile(p)
        assert np.mean(sizes <= size) >= p / 100 - 0.005
        assert np.mean(sizes < size) <= p / 100 + 0.005


def test_a_longer_sample_begins_with_the_shorter_one(law):
    short, long = (law.sample(np.random.default_rng(2), n) for n in (100, 1000))
    assert (long[:100] == short).all()


def test_probabilities_are_positive_and_sum_to_one(law):
    assert (law.probability > 0).all()
    assert law.cumulative[-1] == 1
    assert (np.diff(law.size) > 0).all()


def test_the_largest_queries_bring_at_least_their_share_of_items(law):
    assert law.share_of_largest(1.0) == pytest.approx(1)
    assert law.share_of_largest(0.25) >= 0.25 - 1e-12


def test_a_law_describes_itself_in_one_line_with_its_mean(law):
    assert f"mean {law.mean:.4g}" in law.describe()
    assert "\n" not in law.describe()


def test_production_has_the_numbers_of_mlperf():
    law = parse_sizes("production")
    assert law.mean == pytest.approx(270)
    deviation = np.sqrt(law.size.astype(float) ** 2 @ law.probability - 270**2)
    assert round(deviation) == 155
    found = {p: law.percentile(p) for p in (50, 75, 90, 95, 99)}
    assert found == {50: 200, 75: 300, 90: 500, 95: 600, 99: 700}
    assert law.largest == 700
    assert round(law.share_of_largest(0.25), 2) == 0.46
    for least, queries, items in [(300, 0.30, 0.52), (500, 0.15, 0.33)]:
        large = law.size >= least
        assert law.probability[large].sum() == pytest.approx(queries)
        share = law.size[large] @ law.probability[large] / law.mean
        assert share == pytest.approx(items, abs=0.005)


def test_lognormal_has_the_numbers_of_the_authors_scripts():
    law = parse_sizes("lognormal")
    assert [law.percentile(p) for p in (50, 95, 99)] == [164, 228, 261]
    assert law.mean == pytest.approx(math.exp(5.1 + 0.2**2 / 2), rel=1e-3)
    assert round(law.share_of_largest(0.25), 2) == 0.32


def test_heavy_tail_ends_at_a_thousand_without_a_heap_there_and_says_what_it_is():
    law = parse_sizes("heavy-tail")
    assert law.largest == 1000
    assert law.probability[-1] < law.probability[-2] * 1.01
    assert abs(law.percentile(50) - 70) <= 2
    assert law.share_of_largest(0.25) > 0.55
    assert "sigma 1.1" in law.describe()


def test_normal_is_truncated_rather_than_clipped():
    law = parse_sizes("normal:2,10")
    assert law.size[0] == 1
    assert law.probability[0] < 0.08
    assert law.mean > 2


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_uniform_has_the_mean_of_its_ends(low, width):
    law = parse_sizes(f"uniform:{low}-{low + width}")
    assert law.mean == pytest.approx(low + width / 2)
    assert (law.size[0], law.largest) == (low, low + width)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=50))
def test_a_file_of_sizes_has_their_mean_and_their_percentiles(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("sizes") / "sizes.txt"
    path.write_text("\n".join(map(str, sizes)))
    law = parse_sizes(f"file:{path}")
    assert law.mean == pytest.approx(np.mean(sizes))
    assert law.percentile(50) == sorted(sizes)[math.ceil(len(sizes) / 2) - 1]


def test_mlperfs_own_quantile_file_gives_the_production_law(tmp_path):
    sizes = [100] * 2 + [200] * 12 + [300] * 2 + [400, 500, 600, 700]
    path = tmp_path / "dist_quantile.txt"
    path.write_text("".join(f"{(i + 1) / 20:.2f}, {size}\n" for i, size in enumerate(sizes)))
    assert (parse_sizes(f"file:{path}").size == parse_sizes("production").size).all()
    assert (parse_sizes(f"file:{path}").cumulative == parse_sizes("production").cumulative).all()


@pytest.mark.parametrize("separator", [",", ";", " ", "\t", " , "])
def test_a_table_is_read_whatever_parts_its_columns(tmp_path, separator):
    path = tmp_path / "q.txt"
    path.write_text(f"# ours\nquantile{separator}size\n0.5{separator}10\n\n1{separator}30\n")
    assert parse_sizes(f"file:{path}").mean == 20


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "known: production"),
        ("productoin", "known: production"),
        ("production:5", "takes no options"),
        ("fixed", "needs 1 number"),
        ("fixed:0", "whole number of 1"),
        ("fixed:-3", "not -3"),
        ("fixed:1.5", "not 1.5"),
        ("fixed:many", "'many' is not a number"),
        ("fixed:nan", "not a number"),
        ("fixed:2000000", "1 to 1000000"),
        ("uniform:5", "parted by a dash"),
        ("uniform:10-5", "must not exceed"),
        ("uniform:0-5", "whole number of 1"),
        ("uniform:-5-5", "not -5"),
        ("uniform:a-b", "'a' is not a number"),
        ("normal", "normal:MEAN,SD"),
        ("normal:100", "needs 2 number"),
        ("normal:-100,5", "MEAN lies between"),
        ("normal:100,0", "fixed:N"),
        ("lognormal:5", "needs 2 number"),
        ("lognormal:5,-1", "SIGMA"),
        ("lognormal:50,1", "log of the median"),
        ("file:", "path is needed"),
        ("file:/no/such/file", "no file"),
    ],
)
def test_a_law_that_cannot_be_read_is_refused_in_one_line(spec, says):
    with pytest.raises(UserError) as error:
        parse_sizes(spec)
    assert says in one_line(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no numbers"),
        ("size\n", "holds no numbers"),
        ("10\nten\n", "line 2: 'ten' is not a number"),
        ("10\n0\n", "line 2: a size is a whole number"),
        ("10\n\n-4\n", "line 3"),
        ("10\n2.5\n", "not 2.5"),
        ("10\n0.5,20\n", "line 2: 2 column(s), but 1 before"),
        ("1,2,3\n", "3 columns"),
        ("0.5,10\n0.4,20\n1,30\n", "line 2: quantiles must rise"),
        ("0.5,10\n1,5\n", "line 2"),
        ("0.5,10\n0.9,20\n", "end at 1"),
        ("50,10\n100,20\n", "shares of 0 to 1"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_line(tmp_path, text, says):
    path = tmp_path / "sizes.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse_sizes(f"file:{path}")
    assert says in one_line(error)


def test_a_binary_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "sizes.parquet"
    path.write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(UserError) as error:
        parse_sizes(f"file:{path}")
    assert "as text" in one_line(error)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=400).filter(any))
def test_sizes_that_were_counted_are_a_law_of_them(counted):
    law = parse_sizes(law_of(counted))
    seen = [size for size in counted if size]
    assert set(law.size.tolist()) <= set(seen)
    assert law.largest == max(seen)
    if len(set(seen)) <= 100:
        assert law.mean == pytest.approx(np.mean(seen))
    assert len(law.size) <= 100


@pytest.mark.parametrize("options", ["", "5*0", "5*-1", "0*3", "1.5", "a"])
def test_a_counted_law_that_cannot_be_meant_is_refused_in_one_line(options):
    with pytest.raises(UserError) as error:
        parse_sizes(f"each:{options}")
    one_line(error)
