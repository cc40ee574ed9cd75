"""Workers that hang, come back and are replaced: nobody writes but the owner of a place."""

import threading

import numpy as np
import pytest

from deeprecsys.core import Policy
from deeprecsys.engine import DeadlineExceeded, Engine, WorkerLost, workers
from deeprecsys.engine.ledger import clock
from deeprecsys.engine.reaper import Reaper
from stub_model import HeldRuntime, StubModel
from waiting import WAIT_S, until

pytestmark = pytest.mark.engine


@pytest.fixture
def runtime():
    return HeldRuntime()


@pytest.fixture
def engine(runtime):
    with Engine(StubModel(), 1, runtime, largest=8) as engine:
        yield engine
        for gate in runtime.held.values():
            gate.set()


def query(n, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


def begin(engine, value):
    """A query whose request is under way, held by its value's gate."""
    future = engine.submit(query(1, value))
    until(lambda: engine.load().executing == 1 and engine.load().queued_items == 0)
    return future


def test_a_worker_that_comes_back_leaves_its_successor_s_record_alone(engine, runtime):
    first, second = runtime.hold(1.0), runtime.hold(2.0)
    hung = begin(engine, 1.0)
    old = engine._part.workers._at[0].thread
    executed = engine.requests_executed()
    assert engine.replace_hung(0.0) == 1
    with pytest.raises(WorkerLost):
        hung.result(WAIT_S)
    also = begin(engine, 2.0)
    first.set()
    old.join(WAIT_S)
    assert not old.is_alive()
    assert engine.requests_executed() == executed, "a failed query was not executed"
    assert engine.replace_hung(0.0) == 1, "the second hang is seen"
    with pytest.raises(WorkerLost):
        also.result(WAIT_S)
    second.set()
    assert engine.submit(query(2, 3.0)).result(WAIT_S).shape == (2, 1)
    assert len(engine.load().lost_workers) == 2


def test_a_request_that_began_after_the_look_is_not_taken_for_the_hung_one(
    engine, runtime, monkeypatch
):
    """Between the look and the lock the worker finishes, and begins another."""
    first, second = runtime.hold(1.0), runtime.hold(2.0)
    one, two = begin(engine, 1.0), engine.submit(query(1, 2.0))
    me = threading.current_thread()

    def looked():
        if threading.current_thread() is me:
            first.set()
            one.result(WAIT_S)
            until(lambda: engine.load().executing == 1 and engine.load().queued_items == 0)
        return clock()

    monkeypatch.setattr(workers, "clock", looked)
    assert engine.replace_hung(-WAIT_S) == 0
    monkeypatch.undo()
    second.set()
    assert two.result(WAIT_S).tolist() == [[8.0]]


def test_a_failing_callback_is_its_owner_s_trouble_alone(engine, caplog):
    def fails(answer):
        raise RuntimeError("the caller's own")

    engine.offer(query(1), done=fails)
    assert engine.submit(query(2)).result(WAIT_S).shape == (2, 1)
    assert "callback failed" in caplog.text


def test_what_becomes_due_while_the_reaper_looks_is_not_slept_over():
    again, reaper = threading.Event(), None
    looks = []

    def expire(now):
        looks.append(now)
        if len(looks) == 1:
            reaper.watch(now + 0.001)  # by the owner of what has just expired
        else:
            again.set()
        return np.inf

    reaper = Reaper(expire)
    reaper.watch(clock())
    assert again.wait(WAIT_S)
    reaper.stop(WAIT_S)


def test_an_expired_query_whose_owner_asks_again_is_answered_in_time(engine, runtime):
    gate = runtime.hold(1.0)
    begin(engine, 1.0)
    followers, asked = [], threading.Event()

    def again(answer):
        followers.append(engine.submit(query(1), deadline_s=0.01))
        asked.set()

    engine.offer(query(1), deadline_s=0.01, done=again)
    assert asked.wait(WAIT_S)
    with pytest.raises(DeadlineExceeded):
        followers[0].result(WAIT_S / 2)
    assert not gate.is_set()


@pytest.mark.parametrize("begun", [True, False])
def test_a_short_request_does_not_wait_behind_a_long_one_beside_an_idle_worker(runtime, begun):
    """Where requests are so short that nobody is woken while somebody is awake."""
    with Engine(StubModel(), 2, runtime, largest=8) as engine:
        engine._part.wait_quiet()
        engine._part.workers.sleepers.typical_s = 1e-6
        gate = runtime.hold(1.0)
        long = engine.submit(query(1, 1.0))
        until(lambda: not begun or engine.load().executing)
        assert engine.submit(query(1, 2.0)).result(WAIT_S / 2).tolist() == [[8.0]]
        assert not long.done()
        gate.set()


def test_a_policy_s_workers_are_respected_by_queries_as_they_come(runtime):
    with Engine(StubModel(), 3, runtime, largest=8) as engine:
        gate = runtime.hold(1.0)
        for workers, expected in ((1, 1), (2, 2), (None, 3), (1, 1)):
            gate.clear()
            futures = [engine.submit(query(1), Policy(8, workers=workers)) for _ in range(9)]
            until(lambda n=expected: engine.load().executing == n)
            assert engine.load().queued_items == 9 - expected
            assert engine._part.admission.workers == expected
            gate.set()
            for future in futures:
                future.result(WAIT_S)
