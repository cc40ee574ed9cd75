"""A workload is its text and its seed: equal ones give equal schedules."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import Schedule, UserError, replace
from deeprecsys.workload import Workload

rates = st.floats(0.1, 1e5)
seeds = st.integers(0, 2**64)


@pytest.fixture
def trace(tmp_path):
    schedule = Workload(seed=4).schedule(rate_qps=37.0, queries=500)
    path = tmp_path / "trace.parquet"
    schedule.save(path)
    return schedule, Workload(arrivals=f"replay:{path}")


def same(a: Schedule, b: Schedule) -> bool:
    return np.array_equal(a.arrival_s, b.arrival_s) and np.array_equal(a.size, b.size)


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "bursty"])
@given(seeds, rates, rates)
def test_the_same_seed_at_another_rate_gives_the_same_sizes_and_scaled_gaps(
    arrivals, seed, slow, fast
):
    workload = Workload(arrivals=arrivals, seed=seed)
    a, b = (workload.schedule(rate_qps=rate, queries=50) for rate in (slow, fast))
    assert (a.size == b.size).all()
    np.testing.assert_allclose(a.arrival_s * slow, b.arrival_s * fast, rtol=1e-12)


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "bursty", "daily:7"])
@given(seeds, st.floats(0.01, 20), st.floats(0, 20))
def test_a_longer_run_begins_with_the_shorter_one(arrivals, seed, short_s, more_s):
    workload = Workload(arrivals=arrivals, seed=seed)
    short = workload.schedule(rate_qps=20, duration_s=short_s)
    long = workload.schedule(rate_qps=20, duration_s=short_s + more_s)
    n = len(short)
    assert same(short, Schedule(long.arrival_s[:n], long.size[:n]))
    assert (long.arrival_s[n:] > short_s).all()


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "bursty", "daily:7"])
@given(seeds, st.floats(0.01, 60))
def test_pieces_put_together_are_the_schedule(arrivals, seed, duration_s):
    workload = Workload(arrivals=arrivals, seed=seed)
    for limits in ({"duration_s": duration_s}, {"queries": 777}):
        whole, parts = workload.schedule(20, **limits), list(workload.pieces(20, **limits))
        arrival_s = np.concatenate([np.zeros(0), *(part.arrival_s for part in parts)])
        size = np.concatenate([np.zeros(0), *(part.size for part in parts)])
        assert same(whole, Schedule(arrival_s, size))


def test_pieces_of_a_trace_are_the_trace(trace):
    whole, workload = trace
    parts = list(workload.pieces())
    assert same(whole, Schedule(np.concatenate([p.arrival_s for p in parts]),
                                np.concatenate([p.size for p in parts])))  # fmt: skip


def test_another_seed_gives_another_schedule():
    one = Workload(seed=1)
    assert not same(one.schedule(10, queries=20), one.reseed(2).schedule(10, queries=20))
    assert one.reseed(2) == Workload(seed=2)


def test_asking_twice_gives_the_same_answer():
    workload = Workload(arrivals="bursty")
    assert same(workload.schedule(10, duration_s=50), workload.schedule(10, duration_s=50))


def test_sizes_and_gaps_do_not_disturb_each_other():
    a = Workload(sizes="production").schedule(10, queries=100)
    b = Workload(sizes="fixed:7").schedule(10, queries=100)
    c = Workload(arrivals="constant").schedule(10, queries=100)
    assert (a.arrival_s == b.arrival_s).all()
    assert (a.size == c.size).all()


def test_sampled_sizes_are_those_of_the_schedule():
    workload = Workload(seed=9)
    assert (workload.sample_sizes(64) == workload.schedule(5, queries=64).size).all()


def test_whichever_limit_comes_first_ends_the_schedule():
    workload = Workload(arrivals="constant")
    assert len(workload.schedule(10, duration_s=2)) == 20
    assert len(workload.schedule(10, duration_s=2, queries=5)) == 5
    assert len(workload.schedule(10, duration_s=2, queries=500)) == 20
    assert len(workload.schedule(10, queries=500)) == 500


def test_a_run_too_short_for_any_query_is_empty():
    assert len(Workload(arrivals="constant").schedule(1, duration_s=0.5)) == 0


def test_a_rate_that_bursts_past_the_first_guess_is_still_covered():
    # Some of these runs begin in a burst of 91 times the mean rate: the first draw falls short.
    workload = Workload(arrivals="bursty:1000,0.01,100000")
    crowded = 0
    for seed in range(100):
        schedule = workload.reseed(seed).schedule(100, duration_s=5)
        longer = workload.reseed(seed).schedule(100, duration_s=50)
        assert len(schedule) == np.searchsorted(longer.arrival_s, 5.0, side="right")
        crowded += len(schedule) > 2000
    assert crowded


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npz"])
def test_a_saved_schedule_replays_exactly(tmp_path, suffix):
    schedule = Workload(sizes="heavy-tail", seed=3).schedule(rate_qps=123.4, duration_s=20)
    path = tmp_path / f"trace.{suffix}"
    if suffix == "npz":
        np.savez(path, arrival_s=schedule.arrival_s, size=schedule.size)
    else:
        schedule.save(path)
    assert same(Workload(arrivals=f"replay:{path}").schedule(), schedule)


def test_a_trace_at_another_rate_is_stretched_to_that_mean(trace):
    schedule, replay = trace
    faster = replay.schedule(rate_qps=1000)
    assert len(faster) / faster.duration_s == pytest.approx(1000)
    assert (faster.size == schedule.size).all()
    np.testing.assert_allclose(
        faster.arrival_s / faster.duration_s, schedule.arrival_s / schedule.duration_s
    )


def test_a_trace_just_ends(trace):
    schedule, replay = trace
    assert len(replay.schedule(queries=10**6)) == 500
    assert len(replay.schedule(duration_s=1e9)) == 500
    assert same(replay.schedule(queries=7), Schedule(schedule.arrival_s[:7], schedule.size[:7]))
    assert (replay.schedule(duration_s=2).arrival_s <= 2).all()


def test_a_trace_brings_its_own_size_law(trace):
    schedule, replay = trace
    assert replay.size_law.mean == pytest.approx(schedule.size.mean())
    assert set(replay.sample_sizes(100).tolist()) <= set(schedule.size.tolist())
    with pytest.raises(UserError, match="its own sizes"):
        replace(replay, sizes="fixed:5")


def test_a_trace_in_which_all_come_at_once_has_no_rate(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,size\n0,1\n0,2\n")
    workload = Workload(arrivals=f"replay:{path}")
    assert workload.schedule().size.tolist() == [1, 2]
    with pytest.raises(UserError, match="no rate"):
        workload.schedule(rate_qps=5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"duration_s": 1}, "give rate_qps"),
        ({"rate_qps": 5}, "how long"),
        *[
            ({"rate_qps": bad, "queries": 5}, "rate_qps must be a positive")
            for bad in (0, -1, float("nan"), float("inf"), "5")
        ],
        *[
            ({"rate_qps": 5, "duration_s": bad}, "duration_s must be a positive")
            for bad in (0, -1, float("nan"), float("inf"))
        ],
        *[
            ({"rate_qps": 5, "queries": bad}, "queries must be a whole number")
            for bad in (0, -1, 2.5, float("inf"), True)
        ],
        ({"rate_qps": 1e9, "duration_s": 1e9}, "fewer than"),
        ({"rate_qps": 1, "queries": 10**12}, "fewer than"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(arguments, says):
    with pytest.raises(UserError) as error:
        Workload().schedule(**arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sizes": "fixed:-1"},
        {"sizes": 100},
        {"sizes": None},
        {"arrivals": "poison"},
        {"indices": "zipf:x"},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": "one"},
    ],
)
def test_a_workload_that_cannot_be_is_refused_on_construction(arguments):
    with pytest.raises(UserError) as error:
        Workload(**arguments)
    assert "\n" not in str(error.value)


def test_its_dictionary_is_plain_makes_it_again_and_carries_the_assumptions():
    workload = Workload(sizes="heavy-tail", arrivals="daily:60", indices="zipf:1.1", seed=5)
    plain = json.loads(json.dumps(workload.to_dict()))
    notes = plain.pop("notes")
    assert Workload(**plain) == workload
    assert notes == workload.describe()
    assert "heavy-tail" in notes["sizes"]
    assert "2:1 is an assumption" in notes["arrivals"]


def test_it_survives_a_trip_to_another_process():
    workload = Workload(arrivals="bursty", seed=11)
    again = pickle.loads(pickle.dumps(workload))
    assert again == workload
    assert same(again.schedule(9, queries=99), workload.schedule(9, queries=99))


def test_workloads_are_values():
    assert Workload() == Workload("production", "poisson", "zipf:0.92", 0)
    assert len({Workload(), Workload(), Workload(seed=1)}) == 2
    with pytest.raises(AttributeError):
        Workload().seed = 3


def test_its_streams_differ():
    workload = Workload()
    drawn = {workload.generator(name).random() for name in ("sizes", "arrivals", "indices")}
    assert len(drawn) == 3
