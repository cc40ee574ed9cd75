"""Accelerators beside the workers: who answers, in which order, and what happens when one fails."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from deeprecsys.core import Policy, Schedule, Status, UserError
from deeprecsys.engine import DeadlineExceeded, Engine, EngineClosed
from deeprecsys.machines.accelerators import Accelerator
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.runtimes.emulated import Emulated
from deeprecsys.runtimes.stub import FixedTime
from deeprecsys.simulation import Simulator
from deeprecsys.workload import Workload
from stub_device import StubDevice
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine

WAIT_S = 10
OFFLOAD = Policy(8, offload_threshold=10, most_items=100)


@pytest.fixture
def device():
    return StubDevice()


@pytest.fixture
def engine(device):
    with Engine(StubModel(), 2, StubRuntime(), largest=8, accelerators=[device]) as engine:
        yield engine
        device.gate.set()
    assert device.closed


def query(n, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


def eventually(true):
    until = time.monotonic() + WAIT_S
    while not true() and time.monotonic() < until:
        time.sleep(0.001)
    assert true()


def scored_by(scores):
    return "device" if scores[0, 0] == 8.0 else "cores"


def test_queries_from_the_threshold_on_are_the_accelerators(engine):
    futures = [engine.submit(query(n), OFFLOAD) for n in (9, 10, 300, 1)]
    assert [scored_by(f.result(WAIT_S)) for f in futures] == ["cores", "device", "device", "cores"]
    assert scored_by(engine.submit(query(300), Policy(8)).result(WAIT_S)) == "cores"


def test_what_waits_together_is_executed_together_up_to_the_limit(engine, device):
    device.gate.clear()
    futures = [engine.submit(query(10), OFFLOAD)]
    eventually(lambda: device.begun)
    futures += [engine.submit(query(n), OFFLOAD) for n in (40, 50, 20, 300, 10)]
    device.gate.set()
    for future in futures:
        assert scored_by(future.result(WAIT_S)) == "device"
    assert device.begun == [[10], [40, 50], [20], [300], [10]]


def test_the_next_request_is_begun_while_one_is_under_way_if_the_device_can(engine):
    device = StubDevice(depth=2)
    with Engine(StubModel(), 1, StubRuntime(), largest=8, accelerators=[device]) as two:
        device.gate.clear()
        futures = [two.submit(query(60), OFFLOAD) for _ in range(4)]
        eventually(lambda: len(device.begun) >= 2)
        time.sleep(0.02)
        assert len(device.begun) == 2
        device.gate.set()
        assert [scored_by(f.result(WAIT_S)) for f in futures] == ["device"] * 4


@pytest.mark.parametrize("where", ["begin", "end"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_device_that_fails_leaves_its_queries_to_the_cores_and_none_is_lost(where, depth):
    device = StubDevice(depth)
    device.fails_at = {where: 3}
    with Engine(StubModel(), 2, StubRuntime(), largest=8, accelerators=[device]) as engine:
        device.gate.clear()
        futures = [engine.submit(query(n), OFFLOAD) for n in [70] * 8 + [5]]
        device.gate.set()
        answers = [scored_by(f.result(WAIT_S)) for f in futures]
        assert engine.lost() == {"stub-device": "RuntimeError: the device fell off the bus"}
        # What had begun when it failed may be lost with it.
        assert 3 - (depth - 1) <= answers.count("device") <= 3
        assert scored_by(engine.submit(query(300), OFFLOAD).result(WAIT_S)) == "cores"
        records = engine.run(Schedule(np.zeros(4), np.full(4, 50)), OFFLOAD)
        assert (records.device == 0).all()
        assert (records.status == Status.OK).all()
    assert not device.closed  # there is nothing left to close


def test_one_of_two_devices_fails_and_the_other_goes_on():
    bad, good = StubDevice(), StubDevice()
    bad.fails_at = {"begin": 0}
    with Engine(StubModel(), 1, StubRuntime(), largest=8, accelerators=[bad, good]) as engine:
        futures = [engine.submit(query(70), OFFLOAD) for _ in range(6)]
        answers = [scored_by(f.result(WAIT_S)) for f in futures]
        assert "device" in answers
        assert scored_by(engine.submit(query(70), OFFLOAD).result(WAIT_S)) == "device"
        assert good.ended


def test_deadlines_and_cancelling_reach_what_waits_for_the_device(engine, device):
    device.gate.clear()
    first = engine.submit(query(60), OFFLOAD)
    eventually(lambda: device.begun)
    late = engine.submit(query(60), OFFLOAD, deadline_s=0.02)
    unwanted = engine.submit(query(60), OFFLOAD)
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)
    assert unwanted.cancel()
    device.gate.set()
    assert scored_by(first.result(WAIT_S)) == "device"
    assert scored_by(engine.submit(query(60), OFFLOAD).result(WAIT_S)) == "device"
    assert device.begun == [[60], [60]]


@pytest.mark.parametrize("drain", [True, False])
def test_closing_answers_or_fails_what_the_device_has(drain):
    device = StubDevice()
    engine = Engine(StubModel(), 1, StubRuntime(), largest=8, accelerators=[device]).__enter__()
    device.gate.clear()
    futures = [engine.submit(query(60), OFFLOAD) for _ in range(3)]
    eventually(lambda: device.begun)
    closing = threading.Thread(target=engine.close, args=(drain,))
    closing.start()
    time.sleep(0.02)
    device.gate.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    if drain:
        assert [scored_by(f.result(0)) for f in futures] == ["device"] * 3
    else:
        for future in futures:
            with pytest.raises((EngineClosed, CancelledError)):
                future.result(0)
    assert device.closed


def test_records_and_requests_say_who_executed_what(engine):
    schedule = Schedule(np.linspace(0, 0.05, 20), np.tile([5, 50], 10))
    records, requests = engine.traced_run(schedule, OFFLOAD)
    assert (records.device == np.tile([0, 1], 10)).all()
    assert (records.finish_s >= records.start_s).all()
    on_device = requests[requests.worker == 2]
    assert sorted(on_device.query) == list(range(1, 20, 2))
    assert (on_device.hi - on_device.lo == 50).all()


def test_a_policy_may_leave_workers_idle(engine):
    schedule = Schedule(np.zeros(30), np.full(30, 8))
    one = engine.run(schedule, Policy(8, workers=1))
    assert set(one.worker) == {0}
    both = engine.run(Schedule(np.zeros(4000), np.full(4000, 8)), Policy(8))
    assert set(both.worker) == {0, 1}


def test_a_threshold_without_an_accelerator_is_refused_by_a_run():
    with (
        Engine(StubModel(), 1, StubRuntime(), largest=8) as engine,
        pytest.raises(UserError, match="has no accelerator"),
    ):
        engine.run(Schedule(np.zeros(1), np.ones(1)), OFFLOAD)


def test_an_emulated_device_answers_nan_and_keeps_its_time():
    device = Emulated(Accelerator("slow", ServiceTime.linear(0.02, 1e-4), "a law"))
    with Engine(StubModel(), 1, StubRuntime(), largest=8, accelerators=[device]) as engine:
        began = time.perf_counter()
        scores = engine.submit(query(100), OFFLOAD).result(WAIT_S)
        assert time.perf_counter() - began >= 0.03
        assert np.isnan(scores).all()
        assert scores.shape == (100, 1)


def test_the_engine_offloads_as_the_simulator_does():
    """Fixed times long against the cost of a wake-up: who executes what must be the same, in one
    run of three, for others may hold the cores meanwhile."""
    cores = ServiceTime.linear(4e-3, 1e-5)
    fast = Accelerator("fast", ServiceTime.linear(12e-3, 1e-6), "a law")
    policy = Policy(100, offload_threshold=150, most_items=700, offload_backlog=900)
    schedule = Workload(seed=3).schedule(rate_qps=120, queries=120)
    simulated = Simulator(cores, 2, accelerators=[fast]).run(schedule, policy)
    runtime, device = FixedTime(cores), Emulated(fast)
    with Engine(StubModel(), 2, runtime, largest=8, accelerators=[device]) as engine:
        runs = (engine.run(schedule, policy) for _ in range(3))
        assert any((live.device == simulated.device).mean() > 0.9 for live in runs)
    assert 10 < (simulated.device > 0).sum() < 110
