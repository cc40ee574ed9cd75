"""Devices that fail or hang: the cores answer, it is said, and the device comes back."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from deeprecsys.core import Policy
from deeprecsys.engine import Engine, EngineClosed, lane
from stub_device import StubDevice
from stub_model import HeldRuntime, StubModel, StubRuntime
from waiting import WAIT_S, until

pytestmark = pytest.mark.engine

OFFLOAD = Policy(8, offload_threshold=10, most_items=20)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lane, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def device():
    return StubDevice()


@pytest.fixture
def engine(device):
    with opened(device) as engine:
        yield engine
        device.gate.set()


def opened(device, **more):
    runtime = more.pop("runtime", None) or StubRuntime()
    more = {"device_hang_s": 60.0, **more}
    return Engine(StubModel(), 1, runtime, largest=8, accelerators=[device], **more)


def query(n, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


def ask(engine, n=20):
    """Who answered."""
    return "device" if engine.submit(query(n), OFFLOAD).result(WAIT_S)[0, 0] == 8.0 else "cores"


def of(engine):
    return engine.load().devices[0]


def test_one_failed_request_does_not_retire_a_device_for_good(engine, device):
    assert ask(engine) == "device"
    device.fails_at = {"end": len(device.ended)}
    assert ask(engine) == "cores"
    device.fails_at = {}
    until(lambda: of(engine).present)
    assert ask(engine) == "device"
    assert of(engine).failures >= 1
    assert "fell off the bus" in of(engine).why
    assert engine.lost() == {"stub-device": "RuntimeError: the device fell off the bus"}


@pytest.mark.parametrize("where", ["begin", "end"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_hung_device_s_queries_are_answered_by_the_cores_and_it_comes_back(where, depth):
    device = StubDevice(depth)
    with opened(device, device_hang_s=0.05) as engine:
        assert ask(engine) == "device"
        held = threading.Event()
        original = getattr(device, where)

        def hangs(what):
            held.wait(WAIT_S)
            return original(what)

        setattr(device, where, hangs)
        futures = [engine.submit(query(20), OFFLOAD) for _ in range(5)]
        answers = [future.result(WAIT_S) for future in futures]
        assert all(scores[0, 0] == 4.0 for scores in answers), "by the cores"
        assert not of(engine).present
        assert "took more than" in of(engine).why
        assert ask(engine) == "cores", "nothing is swallowed any more"
        setattr(device, where, original)
        held.set()
        until(lambda: of(engine).present)
        assert all(scores[0, 0] == 4.0 for scores in answers), "nobody writes to what was answered"
        assert ask(engine) == "device"


def test_a_device_that_goes_on_failing_is_tried_ever_more_rarely(engine, device):
    pauses, ending = [], threading.Event()

    class Hurried:
        """An event that is waited for without waiting, six times."""

        def wait(self, timeout):
            pauses.append(timeout)
            return len(pauses) >= 6 and ending.wait(WAIT_S)

        set = ending.set

    engine._part.lanes._lanes[0]._ending = Hurried()
    device.fails_at = {"begin": 0}  # for ever
    assert ask(engine) == "cores"
    until(lambda: len(pauses) >= 6)
    assert pauses == [pauses[0] * 2**k for k in range(6)]
    assert of(engine).failures == 6


def test_a_query_larger_than_a_device_holds_stays_on_the_cores():
    device = StubDevice()
    device.most_items = 50
    with opened(device) as engine:
        assert ask(engine, 50) == "device"
        assert ask(engine, 51) == "cores"
        device.gate.clear()
        futures = [engine.submit(query(n), Policy(8, offload_threshold=10)) for n in (10, 30, 25)]
        device.gate.set()
        assert all(future.result(WAIT_S)[0, 0] == 8.0 for future in futures)
        assert max(sum(sizes) for sizes in device.begun) <= 50


def test_closing_ends_though_a_device_hangs(device):
    engine = opened(device).__enter__()
    device.gate.clear()
    futures = [engine.submit(query(20), OFFLOAD) for _ in range(3)]
    until(lambda: device.begun)
    engine.close(within_s=0.05)
    for future in futures:
        with pytest.raises(EngineClosed):
            future.result(0)
    device.gate.set()


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_though_a_worker_hangs(device, drain):
    runtime = HeldRuntime()
    engine = opened(device, runtime=runtime).__enter__()
    gate = runtime.hold(1.0)
    hung, waits = engine.submit(query(1)), engine.submit(query(1, 2.0))
    until(lambda: engine.load().executing)
    engine.close(drain, within_s=0.05)
    assert not gate.is_set()
    for future in (hung, waits):
        with pytest.raises((EngineClosed, CancelledError)):
            future.result(0)
    gate.set()
