"""Topology, calibration and the generator, on this machine."""

import os
import sys
import time

import numpy as np
import pytest

from deeprecsys.core import UserError
from deeprecsys.engine import Engine, calibrate, topology
from deeprecsys.engine import pool as pools
from deeprecsys.engine.driver import drive
from deeprecsys.engine.pool import draw_pool
from deeprecsys.engine.process import Neighbours, generator_priority
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.models import load_model
from deeprecsys.runtimes import RUNTIMES
from deeprecsys.runtimes.stub import FixedTime
from stub_model import StubModel

linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity and quotas are Linux's")


@linux
def test_usable_cores_are_those_of_the_affinity_mask_and_the_quota(monkeypatch):
    allowed = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(topology, "cpu_quota", lambda: None)
    assert topology.usable_cores() == allowed
    monkeypatch.setattr(topology, "cpu_quota", lambda: 0.5)
    assert topology.usable_cores() == allowed[:1]


@pytest.mark.parametrize(
    ("mask", "cores", "quota", "own"),
    [
        (64, 64, 4.0, False),  # of a node's containers each sees all cores
        (4, 64, None, True),
        (4, 64, 4.0, True),
        (4, 64, 2.0, False),
        (8, 8, None, False),  # everybody's
    ],
)
def test_workers_are_bound_to_cores_that_are_the_process_s_own(
    monkeypatch, mask, cores, quota, own
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(mask)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(topology, "cpu_quota", lambda: quota)
    assert topology.own_cores() == own
    workers = 2
    assert (Engine(StubModel(), workers).cores == [0, 1]) == own
    assert Engine(StubModel(), workers, pin=True).cores == [0, 1]
    assert Engine(StubModel(), workers, pin=False).cores == [None, None]


def test_the_machine_is_described_for_results():
    machine = topology.machine()
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 1 << 28
    assert {"python", "numpy", "torch"} <= set(topology.versions())


def test_the_generator_hands_over_in_order_and_never_early():
    arrival_s = np.sort(np.random.default_rng(0).uniform(0, 0.2, 100))
    began = time.perf_counter()
    seen = []
    assert drive(arrival_s, began, lambda row, now: seen.append((row, now)), lambda: False) == 100
    assert [row for row, _ in seen] == list(range(100))
    assert all(now - began >= at for (_, now), at in zip(seen, arrival_s, strict=True))


def test_a_generator_that_is_stopped_hands_over_no_more():
    seen = []
    n = drive(
        np.arange(100.0), time.perf_counter(), lambda row, now: seen.append(row), lambda: seen
    )
    assert (n, seen) == (1, [0])


def test_the_generators_priority_is_given_back():
    before = os.sched_getscheduler(0)
    with generator_priority():
        pass
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ((1.0, 12.0, 7.0), 0.0),  # all of it our own
        ((1.0, 11.5, 6.0), 0.25),  # half a core of two
        ((1.0, 11.0, 6.1), 0.0),  # the counters' ticks differ
        ((0.01, 11.0, 6.0), 0.0),  # too short to tell
        ((1.0, 19.0, 6.0), 1.0),
    ],
)
def test_a_disturbance_is_what_others_used_of_the_cores(monkeypatch, after, share):
    """Readings: wall, CPU seconds of everyone, CPU seconds of this process."""
    readings = iter([(0.0, 10.0, 5.0), after])
    monkeypatch.setattr(Neighbours, "_reading", lambda self: next(readings))
    assert Neighbours(2).share() == pytest.approx(share)


@pytest.mark.measures
def test_the_calibrated_service_time_is_the_runtimes():
    law = ServiceTime.linear(2e-3, 1e-5)
    seen = calibrate.profile(FixedTime(law), StubModel(), [None, None], 64)
    found = calibrate.service_time(seen)
    for items in (1.0, 16.0, 64.0):
        expected = law(np.array([items]))[0]
        assert expected <= found(np.array([items]))[0] < 10 * expected


def test_an_error_on_one_core_is_raised_and_the_others_do_not_wait_for_it():
    def task(worker):
        raise RuntimeError(f"no core for {worker}")

    with pytest.raises(RuntimeError, match="no core"):
        calibrate.on_cores([None, None], lambda: None, task)


def test_auto_leaves_out_a_runtime_that_cannot_take_the_model(monkeypatch):
    model = load_model("ncf", scale=1e-3)

    def broken(model):
        raise RuntimeError("cannot trace\nlong story")

    monkeypatch.setitem(RUNTIMES, "torchscript", broken)
    runtime, choice = calibrate.choose("auto", model, [None])
    assert runtime.name == "eager"
    assert choice["torchscript"] == "cannot trace"
    with pytest.raises(UserError, match="runtime torchscript cannot take ncf: cannot trace"):
        calibrate.choose("torchscript", model, [None])


def test_the_pool_touches_ten_caches_or_every_row_and_says_so():
    model = load_model("dlrm-rmc3", scale=0.01)
    pool = draw_pool(model, "uniform", 700, cache_bytes=1 << 20)
    assert pool.touched_bytes >= 10 << 20 or pool.every_row
    small = draw_pool(load_model("ncf", scale=1e-3), "uniform", 700, cache_bytes=1 << 30)
    assert small.every_row
    assert small.items >= 1400


def test_the_pool_keeps_its_bounds_whatever_the_cache_and_says_what_it_touches(monkeypatch):
    """Drawing for a cache of 480 MB took longer than the profile that it was for."""
    drawn = []
    monkeypatch.setattr(pools, "MOST_IDS", 3 * pools._CHUNK)
    draw = pools._Strip.draw
    monkeypatch.setattr(
        pools._Strip, "draw", lambda self, *key: drawn.append(self.rows) or draw(self, *key)
    )
    model = load_model("wnd", scale=0.02)
    pool = draw_pool(model, "zipf:0.92", 700, cache_bytes=480 << 20)
    assert 0 < pool.touched_bytes < 4800 << 20
    assert not pool.every_row
    assert drawn.count(20_000) == 3
    assert len(drawn) * 4 * pools._CHUNK <= pool.held_bytes <= 32 << 20
    assert pool.facts()["cache_bytes"] == 480 << 20


def test_what_the_pool_says_it_touches_is_what_a_round_of_its_windows_touches():
    model = load_model("dlrm-rmc3", scale=0.01)
    pool = draw_pool(model, "zipf:0.92", 700, cache_bytes=1 << 18)
    windows = [pool.window(at, 700) for at in range(0, pool.items, 700)]
    ids = [spec.name for spec in model.inputs if spec.rows is not None]
    rows = sum(len(set(np.concatenate([w[name].ravel() for w in windows]))) for name in ids)
    assert rows * model.spec.width * 4 == pytest.approx(pool.touched_bytes, rel=0.01)


def test_tables_of_equally_many_rows_see_different_ids():
    model = load_model("dlrm-rmc1", scale=0.01)
    window = draw_pool(model, "zipf:0.92", 700, cache_bytes=1 << 18).window(0, 64)
    ids = [window[spec.name].tobytes() for spec in model.inputs if spec.rows is not None]
    assert len(set(ids)) == len(ids) == 8


def test_a_process_draws_a_pool_once_for_all_its_engines():
    pool, other = (
        draw_pool(load_model("ncf", scale=1e-3), "uniform", 700, cache_bytes=1 << 16)
        for _ in range(2)
    )
    assert pool is other
    another = load_model("ncf", scale=1e-3, seed=1)
    assert draw_pool(another, "uniform", 700, cache_bytes=1 << 16) is not pool


def test_windows_of_the_pool_are_views_within_it():
    model = load_model("ncf", scale=1e-3)
    pool = draw_pool(model, "zipf:0.92", 700, cache_bytes=1 << 16)
    sizes = np.random.default_rng(0).integers(1, 700, 500)
    for offset, size in zip(pool.offsets(sizes), sizes, strict=True):
        window = pool.window(int(offset), int(size))
        assert all(len(a) == size and a.base is not None for a in window.values())
    shared = load_model("din", scale=1e-4, query_inputs=True)
    pool = draw_pool(shared, "zipf:0.92", 700, cache_bytes=1 << 20)
    assert pool.users >= 64
    assert pool.touched_bytes >= 10 << 20 or pool.every_row
    sizes = np.full(400, 64)
    windows = [pool.window(int(offset), 64) for offset in pool.offsets(sizes)]
    assert {shared.check(window) for window in windows} == {64}
    assert {len(window["user"]) for window in windows} == {1}
    assert len({window["behaviour_items"].tobytes() for window in windows}) > 300


def test_the_same_seed_gives_the_same_pool():
    model = load_model("ncf", scale=1e-3)
    pool = draw_pool(model, "zipf:0.92", 700, cache_bytes=1 << 16)
    pools._pools.clear()
    same = draw_pool(model, "zipf:0.92", 700, cache_bytes=1 << 16)
    assert pool is not same
    for name, column in pool.window(0, 700).items():
        np.testing.assert_array_equal(column, same.window(0, 700)[name])
