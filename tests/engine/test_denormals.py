"""Numbers below 1e-38 cost what others do: every thread that computes takes them for 0.

The time itself is not asserted; what makes it is: the thread's mode, seen by a product.
"""

import threading

import numpy as np
import pytest

from deeprecsys.core import Policy
from deeprecsys.engine import Engine, calibrate, limits, operators, roofline
from deeprecsys.engine.profiler import Grid, measure
from deeprecsys.machines.service_time import Profile
from deeprecsys.models import load_model
from deeprecsys.runtimes.eager import Eager
from stub_device import StubDevice
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine

WAIT_S = 10
TINY = np.full(4, 1e-39, np.float32)
HALF = np.full(4, 0.5, np.float32)
CORES = [None, None]


def flushes():
    return not (TINY * HALF).any()


class Watched:
    """What the threads that pass here do with a denormal, by their names."""

    def __init__(self):
        self.seen = {}

    def look(self):
        self.seen[threading.current_thread().name] = flushes()


class WatchedRuntime(Watched, StubRuntime):
    def __init__(self):
        StubRuntime.__init__(self)
        Watched.__init__(self)

    def execute(self, prepared, lo, hi):
        self.look()
        super().execute(prepared, lo, hi)


class WatchedDevice(Watched, StubDevice):
    def __init__(self):
        StubDevice.__init__(self)
        Watched.__init__(self)

    def begin(self, pieces):
        self.look()
        return super().begin(pieces)

    def end(self, ticket):
        self.look()
        super().end(ticket)


def test_a_thread_of_nobody_keeps_them():
    assert not flushes()


def test_workers_and_lanes_flush_them_and_the_callers_thread_keeps_them():
    runtime, device = WatchedRuntime(), WatchedDevice()
    with Engine(StubModel(), 2, runtime, largest=8, accelerators=[device]) as engine:
        inputs = StubModel().example(64, np.random.default_rng(0))
        engine.submit(inputs, Policy(8)).result(WAIT_S)
        engine.submit(inputs, Policy(8, offload_threshold=10)).result(WAIT_S)
    assert len(device.seen) >= 2  # one begins requests, another ends them
    assert any(name.startswith("worker-") for name in runtime.seen)
    assert all(runtime.seen.values())
    assert all(device.seen.values())
    assert not flushes()


def test_a_worker_that_replaces_a_lost_one_flushes_them_too():
    runtime = WatchedRuntime()

    def dies(prepared, lo, hi):
        raise SystemExit

    with Engine(StubModel(), 1, runtime, largest=8) as engine:
        inputs = StubModel().example(4, np.random.default_rng(0))
        runtime.execute = dies
        assert engine.submit(inputs).exception(WAIT_S)
        del runtime.execute
        runtime.seen.clear()
        engine.submit(inputs).result(WAIT_S)
    assert list(runtime.seen.values()) == [True]


def test_calibration_and_profiling_flush_them():
    runtime = WatchedRuntime()
    calibrate.profile(runtime, StubModel(), CORES, 4)
    assert len(runtime.seen) == 2
    measure(Profile({}), StubModel(), runtime, CORES, Grid([1, 4], [1, 2]), budget_s=0.2)
    assert all(runtime.seen.values())


@pytest.mark.parametrize(
    "measuring",
    [
        lambda: limits.measure_limits([None]),
        lambda: roofline.bf16_flops_per_s([None], seconds=0.01),
        lambda: operators.measure_operators(load_model("ncf", scale=1e-4), 4, seconds=0.01),
    ],
    ids=["limits", "roofline", "operators"],
)
def test_what_a_machine_and_its_operators_can_do_is_measured_on_such_threads(
    measuring, monkeypatch
):
    import torch

    seen = []
    monkeypatch.setattr(limits, "_SECONDS", 0.01)
    monkeypatch.setattr(limits, "_TABLE_ROWS", 4000)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: seen.append(flushes()))
    measuring()
    assert seen
    assert all(seen)
    assert not flushes()


@pytest.mark.parametrize("name", ["dlrm-rmc1", "wnd", "din"])
def test_the_scores_of_denormal_inputs_are_the_references(name):
    model = load_model(name, scale=1e-4)
    inputs = model.example(32, np.random.default_rng(0))
    for spec in model.inputs:
        if spec.datatype == "FP32":
            inputs[spec.name] = np.full_like(inputs[spec.name], 1e-40)
    with Engine(model, 1, Eager(model), largest=32) as engine:
        scores = engine.submit(inputs).result(WAIT_S)
    np.testing.assert_allclose(scores, model.reference(inputs), atol=1e-6)
