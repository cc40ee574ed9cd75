"""The live engine: answers, failures, deadlines, bounds, closing. No future stays unanswered."""

import gc
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from deeprecsys.core import Execution, Policy, Schedule, Status, UserError
from deeprecsys.engine import DeadlineExceeded, Engine, EngineClosed
from deeprecsys.executions import executed
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.models import load_model, row_types
from deeprecsys.rules.dispatch import QueueFull
from deeprecsys.runtimes import RUNTIMES
from deeprecsys.runtimes.stub import FixedTime
from deeprecsys.workload import Workload
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine

WAIT_S = 10


@pytest.fixture
def runtime():
    return StubRuntime()


@pytest.fixture
def engine(runtime):
    with Engine(StubModel(), 2, runtime, max_queued_items=1000, largest=8) as engine:
        runtime.executed.clear()
        yield engine
        runtime.gate.set()


def query(n, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (7, 3), (100, 10), (5, 100), (300, 128)])
def test_scores_are_those_of_the_model_and_requests_those_of_the_policy(
    engine, runtime, size, batch
):
    inputs = StubModel().example(size, np.random.default_rng(0))
    scores = engine.submit(inputs, Policy(batch)).result(WAIT_S)
    assert scores.shape == (size, 1)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[:, 0], inputs["dense"].sum(axis=1), rtol=1e-5)
    full, rest = divmod(size, batch)
    assert sorted(runtime.executed) == sorted([batch] * full + ([rest] if rest else []))


def test_an_adaptive_policy_joins_waiting_queries_and_each_gets_its_own_scores(engine, runtime):
    runtime.gate.clear()
    policy = Policy(4, adaptive=True, most_items=32)
    futures = [engine.submit(query(8, value), policy) for value in range(12)]
    while engine._part.queued_items > 80:  # both workers hold what they could take at first
        time.sleep(0.001)
    runtime.gate.set()
    for value, future in enumerate(futures):
        np.testing.assert_allclose(future.result(WAIT_S), 4.0 * value)
    assert runtime.together
    assert max(runtime.together) <= 32


def test_a_failing_joined_request_fails_its_queries_and_no_other(engine, runtime):
    runtime.gate.clear()
    policy = Policy(8, adaptive=True, most_items=16)
    before = [engine.submit(query(8), policy) for _ in range(2)]
    while engine._part.queued_items:
        time.sleep(0.001)
    joined = [engine.submit(query(8, value), policy) for value in (1.0, 666.0)]
    after = engine.submit(query(16, 2.0), policy)
    runtime.gate.set()
    for future in joined:
        with pytest.raises(ValueError, match="beast"):
            future.result(WAIT_S)
    for future in before:
        np.testing.assert_allclose(future.result(WAIT_S), 4.0)
    np.testing.assert_allclose(after.result(WAIT_S), 8.0)


def test_no_candidates_are_answered_at_once(engine):
    assert engine.submit(query(0)).result(0).shape == (0, 1)


def test_a_failing_request_fails_its_query_alone_and_drops_its_siblings(engine, runtime):
    runtime.gate.clear()
    bad = query(400)
    bad["dense"][0] = 666
    failing = engine.submit(bad, Policy(1))
    sound = engine.submit(query(3), Policy(1))
    runtime.gate.set()
    with pytest.raises(ValueError, match="beast"):
        failing.result(WAIT_S)
    assert sound.result(WAIT_S).tolist() == [[4.0]] * 3
    assert len(runtime.executed) < 400
    assert engine.submit(query(2)).result(WAIT_S).tolist() == [[4.0]] * 2


def test_a_deadline_is_answered_in_time_though_every_worker_is_busy(engine, runtime):
    runtime.gate.clear()
    busy = [engine.submit(query(2), Policy(1)) for _ in range(2)]
    late = engine.submit(query(500), deadline_s=0.05)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)
    assert time.monotonic() - began < WAIT_S / 2
    runtime.gate.set()
    assert all(f.result(WAIT_S).shape == (2, 1) for f in busy)
    engine._part.wait_quiet()
    assert sum(runtime.executed) == 4, "an expired query's items must not be executed"


def test_a_deadline_that_holds_changes_nothing(engine):
    assert engine.submit(query(5), deadline_s=WAIT_S).result(WAIT_S).shape == (5, 1)


def test_past_the_bound_submit_raises_and_takes_nothing(engine, runtime):
    runtime.gate.clear()
    taken = [engine.submit(query(100), Policy(100)) for _ in range(2)]
    while engine._part.queued_items:  # both workers are held at the gate
        time.sleep(0.001)
    taken += [engine.submit(query(500), Policy(100)) for _ in range(2)]
    with pytest.raises(QueueFull, match="1000 items wait already"):
        engine.submit(query(1), Policy(100))
    runtime.gate.set()
    assert [len(f.result(WAIT_S)) for f in taken] == [100, 100, 500, 500]


def test_cancelling_a_waiting_query_frees_its_work(engine, runtime):
    runtime.gate.clear()
    busy = [engine.submit(query(2), Policy(1)) for _ in range(2)]
    gone = engine.submit(query(300), Policy(1))
    assert gone.cancel()
    runtime.gate.set()
    assert [f.result(WAIT_S).shape for f in busy] == [(2, 1)] * 2
    with pytest.raises(CancelledError):
        gone.result(WAIT_S)
    engine._part.wait_quiet()
    assert sum(runtime.executed) == 4


def test_deadlines_cancellations_and_answers_in_any_order_leave_no_future_behind(runtime):
    """Deadlines that pass while queries begin, owners that cancel, models that fail: a storm."""
    rng = np.random.default_rng(0)
    with Engine(StubModel(), 3, runtime, largest=1) as engine:
        futures = []
        for _ in range(3000):
            inputs = query(int(rng.integers(1, 30)))
            if rng.random() < 0.1:
                inputs["dense"][0] = 666
            deadline_s = float(rng.exponential(2e-4)) if rng.random() < 0.5 else None
            futures.append(engine.submit(inputs, Policy(7), deadline_s))
            if rng.random() < 0.1:
                futures[int(rng.integers(0, len(futures)))].cancel()
        kinds = {type(_outcome(f)) for f in futures}
        assert kinds <= {np.ndarray, ValueError, DeadlineExceeded, CancelledError}
        assert np.ndarray in kinds
        assert engine.submit(query(3)).result(WAIT_S).shape == (3, 1), "the workers live on"


def _outcome(future):
    try:
        return future.result(WAIT_S)
    except (Exception, CancelledError) as error:
        return error


def test_a_worker_that_cannot_start_fails_what_waits_and_refuses_more(runtime):
    started = runtime.enter_thread

    def broken():
        if threading.current_thread().name.startswith("worker"):
            raise RuntimeError("no such core")
        started()

    runtime.enter_thread = broken
    with Engine(StubModel(), 1, runtime, largest=1) as engine:
        with pytest.raises((EngineClosed, RuntimeError)):
            engine.submit(query(3)).result(WAIT_S)
        with pytest.raises(EngineClosed):
            engine.submit(query(3))


def test_closing_drains_and_then_refuses(runtime):
    runtime.gate.clear()
    engine = Engine(StubModel(), 2, runtime, largest=1)
    threading.Timer(0.02, runtime.gate.set).start()  # calibration executes too
    with engine:
        runtime.gate.clear()
        futures = [engine.submit(query(50), Policy(10)) for _ in range(20)]
        threading.Timer(0.05, runtime.gate.set).start()
    assert all(f.result(0).shape == (50, 1) for f in futures)
    with pytest.raises(EngineClosed):
        engine.submit(query(1))


def test_closing_without_draining_answers_every_future(runtime):
    engine = Engine(StubModel(), 2, runtime, largest=1).__enter__()
    runtime.gate.clear()
    futures = [engine.submit(query(50), Policy(10)) for _ in range(20)]
    threading.Timer(0.1, runtime.gate.set).start()
    engine.close(drain=False)
    for future in futures:
        assert future.done()
        with pytest.raises((EngineClosed, CancelledError)):
            future.result(0)


def test_many_threads_submitting_at_once_all_get_their_own_scores(engine):
    wrong = []

    def client(value):
        for _ in range(50):
            scores = engine.submit(query(9, value), Policy(4)).result(WAIT_S)
            if not (scores == 4 * value).all():
                wrong.append(value)

    threads = [threading.Thread(target=client, args=(float(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "lacks input dense"),
        ({"dense": np.zeros((3, 5), np.float32)}, r"must be FP32 \[3, 4\], not float32 \[3, 5\]"),
        ({"dense": np.zeros((3, 4))}, "not float64"),
        ({"dense": np.zeros((3, 4), np.float32), "x": np.zeros(3)}, "has no input x"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(engine, inputs, says):
    with pytest.raises(UserError, match=says):
        engine.submit(inputs)


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_wrong_numbers_of_workers_are_refused(workers):
    with pytest.raises(UserError, match="workers"):
        Engine(StubModel(), workers)


def test_settings_of_the_process_are_restored(runtime):
    before = sys.getswitchinterval()  # the engine's, where another test's engine is open
    with Engine(StubModel(), 1, runtime, largest=1):
        assert sys.getswitchinterval() <= before
    assert sys.getswitchinterval() == before
    sys.setswitchinterval(0.005)
    with Engine(StubModel(), 1, runtime, largest=1):
        assert sys.getswitchinterval() < 0.001
    assert sys.getswitchinterval() == 0.005
    sys.setswitchinterval(before + 1e-9)


def test_a_run_records_every_query_as_scheduled(engine):
    # Fewer items than the bound, however long the machine is held up.
    schedule = Schedule(np.arange(200) / 2000, np.arange(200) % 9)
    records = engine.run(schedule, Policy(5))
    assert len(records) == 200
    np.testing.assert_array_equal(records.arrival_s, schedule.arrival_s)
    np.testing.assert_array_equal(records.size, schedule.size)
    assert (records.status == Status.OK).all()
    assert (records.lag_s >= 0).all()
    assert (records.start_s >= records.submit_s).all()
    assert (records.finish_s >= records.start_s).all()
    busy = records.size > 0
    assert set(records.worker[busy]) <= {0, 1}


def test_an_empty_schedule_gives_empty_records(engine):
    assert len(engine.run(Schedule(np.array([]), np.array([])), Policy())) == 0


def test_a_watch_stops_a_run_and_what_was_under_way_is_cancelled(runtime):
    slow = FixedTime(ServiceTime.constant(0.02))
    with Engine(StubModel(), 2, slow, largest=1) as engine:
        schedule = Schedule(np.arange(1000) / 1000, np.ones(1000))
        seen = []

        def watch(so_far, now_s):
            seen.append((len(so_far), now_s))
            assert set(so_far.status) <= {Status.OK, Status.PENDING}
            return now_s > 0.25

        records = engine.run(schedule, Policy(), watch=watch)
        assert 0 < len(records) < 1000
        assert seen[-1][0] <= len(records)
        counts = np.bincount(records.status, minlength=6)
        assert counts[Status.CANCELLED] > 0
        assert counts[Status.OK] + counts[Status.CANCELLED] == len(records)
        assert np.isnan(records.finish_s[records.status == Status.CANCELLED]).all()
        assert len(engine.run(Schedule(np.zeros(1), np.ones(1)), Policy())) == 1


def test_an_error_in_a_watch_ends_the_run_and_is_raised(engine):
    def watch(so_far, now_s):
        raise RuntimeError("broken watch")

    with pytest.raises(RuntimeError, match="broken watch"):
        engine.run(Schedule(np.arange(100) / 100, np.ones(100)), Policy(), watch=watch)
    assert engine.submit(query(1)).result(WAIT_S).shape == (1, 1)


def test_beyond_the_bound_a_run_records_rejections():
    slow = FixedTime(ServiceTime.constant(0.005))
    with Engine(StubModel(), 1, slow, max_queued_items=20, largest=1) as engine:
        records = engine.run(Schedule(np.zeros(30), np.full(30, 2)), Policy())
    counts = np.bincount(records.status, minlength=6)
    assert counts[Status.REJECTED] > 0
    assert counts[Status.OK] + counts[Status.REJECTED] == 30
    assert np.isnan(records.latency_s[records.status == Status.REJECTED]).all()


def test_latency_counts_from_the_scheduled_arrival_not_from_the_hand_over():
    """Every query is due at once: the later ones wait, and the records must say so."""
    fixed = FixedTime(ServiceTime.constant(0.01))
    with Engine(StubModel(), 1, fixed, largest=1) as engine:
        records = engine.run(Schedule(np.zeros(10), np.ones(10)), Policy())
    assert records.latency_s.min() >= 0.01
    assert np.sort(records.latency_s)[-1] >= 0.1


@pytest.mark.parametrize("policy", [Policy(16), Policy(4, adaptive=True, most_items=64)])
def test_queries_that_share_their_users_inputs_get_their_own_scores(policy):
    model = load_model("din", scale=1e-4, query_inputs=True)
    with Engine(model, 2, "torchscript", largest=8) as engine:
        queries = [model.example(n, np.random.default_rng(n)) for n in (0, 1, 2, 40, 40)]
        futures = [engine.submit(inputs, policy) for inputs in queries]
        for inputs, future in zip(queries, futures, strict=True):
            np.testing.assert_allclose(future.result(WAIT_S), model.reference(inputs), atol=1e-5)
        assert engine.run(Workload().schedule(rate_qps=50, queries=5), policy).status.max() == 0
        with pytest.raises(UserError, match="input user must be"):
            engine.submit(queries[-1] | {"user": np.zeros((7, 1), np.int32)})


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_a_closed_engine_lets_its_tables_go(monkeypatch, runtime, shared):
    """Two models of 4 GB one after the other must fit where one does."""
    allocated = []
    allocate = row_types.allocate

    def watched(size):
        array = allocate(size)
        allocated.append(weakref.ref(array))
        return array

    monkeypatch.setattr(row_types, "allocate", watched)
    model = load_model("dlrm-rmc3", scale=1e-3, query_inputs=shared)
    with Engine(model, 1, runtime, largest=8) as engine:
        del model
        engine.submit(engine.model.example(3, np.random.default_rng(0))).result(WAIT_S)
    assert [array() is None for array in allocated] == [False]
    del engine
    gc.collect()
    assert [array() is None for array in allocated] == [True]


def test_an_engine_takes_policies_of_its_models_execution_only():
    packed = Execution(packed=True)
    model = executed(load_model("ncf", scale=1e-3), packed)
    inputs = model.example(30, np.random.default_rng(0))
    schedule = Schedule(np.array([0.0]), np.array([5]))
    with Engine(model, 1, "torchscript", largest=64) as engine:
        assert np.abs(engine.submit(inputs).result(WAIT_S) - model.reference(inputs)).max() < 2e-6
        assert len(engine.run(schedule, Policy(8, execution=packed))) == 1
        assert engine.profile([4], budget_s=0.05).points
        for ask in (
            lambda: engine.submit(inputs, Policy(8)),
            lambda: engine.run(schedule, Policy(8)),
        ):
            with pytest.raises(UserError, match="executes packed, the policy asks for exact: open"):
                ask()


def test_a_model_that_says_nothing_of_its_execution_is_exact(engine):
    with pytest.raises(UserError, match="executes exact, the policy asks for packed"):
        engine.submit(query(3), Policy(8, execution=Execution(packed=True)))
