"""Every arrival law keeps the same promises; each has the shape it is named after."""

import numpy as np
import pytest

from deeprecsys.core import Schedule, UserError, save_columns
from deeprecsys.workload import ARRIVAL_LAWS, parse_arrivals

# Laws whose gaps merely scale with the rate: time in them is measured in queries.
SCALING = ["poisson", "constant", "bursty", "bursty:10,0.05,30"]
SPECS = [*SCALING, "daily:50", "daily:{tmp}/day.csv,50", "replay:{tmp}/trace.csv"]


def write_files(folder):
    hours = "".join(f"{hour},{1 + hour % 5}\n" for hour in range(24))
    (folder / "day.csv").write_text("hour,rate\n" + hours)
    gaps = np.random.default_rng(5).exponential(0.1, 20_000)
    Schedule(np.cumsum(gaps), np.arange(1, 20_001)).save(folder / "trace.csv")


@pytest.fixture(params=SPECS)
def law(request, tmp_path):
    write_files(tmp_path)
    return parse_arrivals(request.param.format(tmp=tmp_path))


def times(law, rate_qps, n, seed=0):
    return next(law.pieces(np.random.default_rng(seed), rate_qps, n))


def gaps_of(spec, n=200_000, seed=0):
    return np.diff(times(parse_arrivals(spec), 1.0, n, seed))


def variation(gaps):
    return gaps.std() / gaps.mean()


def test_every_registered_law_is_among_the_fixtures():
    assert {spec.partition(":")[0] for spec in SPECS} == set(ARRIVAL_LAWS)


def test_times_are_finite_sorted_and_positive(law):
    arrival_s = times(law, 200, 20_000)
    assert arrival_s.shape == (20_000,)
    assert np.isfinite(arrival_s).all()
    assert arrival_s[0] > 0
    assert (np.diff(arrival_s) >= 0).all()


def test_the_mean_rate_is_the_one_asked_for(law):
    # 20,000 queries at 200 a second are 100 s: two whole days of 50 s. Over them, bursts of 100
    # queries leave a standard error of about 2 %.
    assert 20_000 / times(law, 200, 20_000)[-1] == pytest.approx(200, rel=0.07)


@pytest.mark.parametrize("length", [1, 7, 1000, 3000])
def test_pieces_of_any_length_are_the_same_times(law, length):
    pieces, parts = law.pieces(np.random.default_rng(0), 200, length), []
    while sum(map(len, parts)) < 5000:
        parts.append(next(pieces))
    assert (np.concatenate(parts)[:5000] == times(law, 200, 5000)).all()


def test_a_longer_schedule_begins_with_the_shorter_one(law):
    assert (times(law, 200, 10_000)[:1000] == times(law, 200, 1000)).all()


def test_a_law_describes_itself_in_one_line(law):
    assert law.describe()
    assert "\n" not in law.describe()


@pytest.mark.parametrize("spec", SCALING)
def test_another_rate_scales_the_gaps(spec):
    law = parse_arrivals(spec)
    slow, fast = times(law, 10, 5000), times(law, 70, 5000)
    np.testing.assert_allclose(slow, fast * 7, rtol=1e-12)


def test_poisson_gaps_are_exponential():
    gaps = gaps_of("poisson")
    assert variation(gaps) == pytest.approx(1, abs=0.01)
    assert np.mean(gaps > 1) == pytest.approx(np.exp(-1), abs=0.005)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.01)


def test_constant_gaps_do_not_vary():
    assert variation(gaps_of("constant")) < 1e-9


def test_bursty_gaps_vary_more_than_poisson_ones_and_keep_the_mean_rate():
    # Four times the rate for a fifth of the time: half of the gaps have mean 1.6, half 0.4, so
    # their squared variation is (1.6^2 + 0.4^2) - 1 = 1.72, a little less with the switches.
    gaps = gaps_of("bursty", n=1_000_000)
    assert variation(gaps) == pytest.approx(1.31, abs=0.04)
    assert gaps.mean() == pytest.approx(1, rel=0.01)


def test_bursty_keeps_the_mean_rate_from_the_start():
    # Over many seeds, the first stretch of a run has the rate of any other.
    law = parse_arrivals("bursty:10,0.1,50")
    seen = [np.searchsorted(times(law, 1.0, 400, seed), 20.0) for seed in range(2000)]
    assert np.mean(seen) == pytest.approx(20, rel=0.05)


def test_bursty_counts_in_windows_are_overdispersed_and_poisson_ones_are_not():
    def dispersion(spec):
        arrival = np.cumsum(gaps_of(spec))
        counts = np.bincount((arrival / 20).astype(int))[:-1]
        return counts.var() / counts.mean()

    assert dispersion("poisson") == pytest.approx(1, abs=0.1)
    assert dispersion("bursty") > 3


def test_bursty_of_ratio_one_is_poisson():
    assert variation(gaps_of("bursty:1,0.5,100")) == pytest.approx(1, abs=0.01)


def test_the_daily_peak_is_twice_the_trough_and_says_that_it_is_assumed():
    law = parse_arrivals("daily:100")
    hour = (times(law, 1000, 1_000_000) % 100) // 4
    count = np.bincount(hour.astype(int), minlength=25)
    assert count[12] / count[[0, 24]].mean() == pytest.approx(2, rel=0.03)
    assert "2:1 is an assumption" in law.describe()


def test_a_daily_table_is_followed_hour_by_hour(tmp_path):
    path = tmp_path / "day.txt"
    path.write_text("0 1\n6 3\n12 0\n18 2\n")
    arrival = times(parse_arrivals(f"daily:{path},24"), 10_000, 240_000)
    count = np.bincount((arrival // 6).astype(int), minlength=4)[:4]
    np.testing.assert_allclose(count / count.sum(), [1 / 6, 3 / 6, 0, 2 / 6], atol=0.01)


def test_a_day_lasts_a_day_unless_told():
    assert parse_arrivals("daily").period_s == 86_400


def test_a_replayed_trace_keeps_times_sizes_and_models(tmp_path):
    columns = {"arrival_s": [0.0, 0.5, 0.5], "size": [3, 1, 2], "model": ["a", "b", "a"]}
    path = tmp_path / "trace.parquet"
    save_columns(path, {name: np.array(column) for name, column in columns.items()})
    law = parse_arrivals(f"replay:{path}")
    assert law.arrival_s.tolist() == columns["arrival_s"]
    assert law.size.tolist() == columns["size"]
    assert law.model.tolist() == columns["model"]
    assert "2 models are not told apart" in law.describe()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("poison", "known: poisson"),
        ("poisson:3", "takes no options"),
        ("constant:3", "takes no options"),
        ("bursty:4", "needs 3 number"),
        ("bursty:0.5,0.2,100", "RATIO"),
        ("bursty:4,1,100", "SHARE"),
        ("bursty:4,0.2,0", "QUERIES"),
        ("bursty:4,x,100", "'x' is not a number"),
        ("daily:0", "longer than 0 s"),
        ("daily:-5", "longer than 0 s"),
        ("daily:inf", "not a number"),
        ("daily:/no/such.csv", "no file"),
        ("replay", "path is needed"),
        ("replay:/no/such.csv", "no file"),
    ],
)
def test_a_law_that_cannot_be_read_is_refused_in_one_line(spec, says):
    with pytest.raises(UserError) as error:
        parse_arrivals(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,size\n0,1\n", "no column arrival_s"),
        ("a,b\n0,1\n", "no column arrival_s and no size"),
        ("arrival_s,size\n", "must hold numbers"),
        ("arrival_s,size\n0,1\n2,1\n1,1\n", "row 3: arrival_s must not precede"),
        ("arrival_s,size\n-1,1\n", "row 1: arrival_s must be 0 s or later, not -1"),
        ("arrival_s,size\n0,1\nnan,1\n", "row 2: arrival_s"),
        ("arrival_s,size\n0,1\n,1\n", "row 2: arrival_s"),
        ("arrival_s,size\n0,1\n1,0\n", "row 2: size must be a whole number"),
        ("arrival_s,size\n0,1\n1,-7\n", "not -7"),
        ("arrival_s,size\n0,1\n1,2.5\n", "not 2.5"),
        ("arrival_s,size\n0,one\n", "column size must hold numbers"),
        ("arrival_s,size\n1700000000,5\n", "subtract the first time"),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_by_its_row(tmp_path, text, says):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse_arrivals(f"replay:{path}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_trace_is_refused(tmp_path):
    path = tmp_path / "trace.parquet"
    save_columns(path, {"arrival_s": np.empty(0), "size": np.empty(0, dtype=np.int64)})
    with pytest.raises(UserError, match="empty"):
        parse_arrivals(f"replay:{path}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,1\n", "begin at 0"),
        ("0,1\n5,1\n5,2\n", "rise"),
        ("0,1\n24,1\n", "below 24"),
        ("hour,rate\n0,1\n1,-1\n", "line 3: a relative rate"),
        ("0,0\n1,0\n", "above 0"),
        ("0\n1\n", "hour,rate"),
    ],
)
def test_a_daily_table_that_cannot_be_read_is_refused(tmp_path, text, says):
    path = tmp_path / "day.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse_arrivals(f"daily:{path}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
