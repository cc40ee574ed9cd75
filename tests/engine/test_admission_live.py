"""What is turned away at once, where the wait is for an accelerator or for others' queries."""

import numpy as np
import pytest

from deeprecsys.core import Policy
from deeprecsys.engine import Engine, TooLate
from stub_device import StubDevice
from stub_model import StubModel, StubRuntime
from waiting import WAIT_S, until

pytestmark = pytest.mark.engine

OFFLOAD = Policy(8, offload_threshold=10, most_items=20)


def query(n, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


class Slow(StubDevice):
    service_s = staticmethod(lambda items: 0.05 + 0.0 * items)


@pytest.fixture
def device():
    return Slow()


@pytest.fixture
def runtime():
    return StubRuntime()


@pytest.fixture
def engine(device, runtime):
    with Engine(StubModel(), 1, runtime, largest=8, accelerators=[device]) as engine:
        yield engine
        device.gate.set()
        runtime.gate.set()


def offer(engine, n, deadline_s, policy=OFFLOAD, **more):
    answers = []
    engine.offer(query(n), policy, deadline_s, admit=True, done=answers.append, **more)
    return answers


def test_what_an_accelerator_would_answer_too_late_is_turned_away(engine, device):
    device.gate.clear()
    taken = [offer(engine, 20, WAIT_S)]
    until(lambda: device.begun)
    with pytest.raises(TooLate, match="its deadline is in"):
        offer(engine, 20, 0.08)
    taken.append(offer(engine, 20, WAIT_S))
    assert offer(engine, 3, 0.08) is not None, "the cores have nothing to do"
    device.gate.set()
    until(lambda: all(taken))


def test_an_idle_accelerator_takes_what_comes_whatever_is_predicted(engine):
    answers = offer(engine, 20, 0.04)
    until(lambda: answers)
    (scores,) = answers
    assert scores.shape == (20, 1)


def test_what_spills_to_the_cores_is_predicted_there(engine, device, runtime):
    """An accelerator with a backlog sends queries to cores that have enough to do."""
    policy = Policy(8, offload_threshold=10, most_items=20, offload_backlog=1)
    group = engine._part
    group.admission._service_s = lambda items: 0.05 + 0.0 * items
    group.admission._tables.clear()
    group.admission.pace = 1.0
    device.gate.clear()
    runtime.gate.clear()
    held = [offer(engine, 20, WAIT_S, policy), offer(engine, 8, WAIT_S, policy)]
    until(lambda: device.begun and engine.load().executing)
    with pytest.raises(TooLate):
        offer(engine, 20, 0.15, policy)
    device.gate.set()
    runtime.gate.set()
    until(lambda: all(held))


def test_a_hog_s_backlog_is_not_before_another_client(engine, runtime):
    group, plain = engine._part, Policy(8)
    group.admission._service_s = lambda items: 0.05 + 0.0 * items
    group.admission._tables.clear()
    group.admission.pace = 1.0
    runtime.gate.clear()
    held = [offer(engine, 8, WAIT_S, plain, client="hog") for _ in range(40)]
    until(lambda: engine.load().executing)
    with pytest.raises(TooLate):
        offer(engine, 8, 0.5, plain, client="hog")
    held.append(offer(engine, 8, 0.5, plain, client="other"))
    runtime.gate.set()
    until(lambda: all(held))


def test_the_target_s_percentile_is_aimed_at():
    with Engine(StubModel(), 1, StubRuntime(), largest=8, percentile=99.0) as engine:
        assert engine._part.admission.in_time == pytest.approx(0.994)
