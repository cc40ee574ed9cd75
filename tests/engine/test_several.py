"""Several models on one set of workers: each is answered as if alone, and gets its share."""

import threading

import numpy as np
import pytest

import deeprecsys as drs
from deeprecsys.core import Policy, Schedule, Status, UserError
from deeprecsys.engine import Engine, EngineClosed
from deeprecsys.experiments.beside import beside
from deeprecsys.runtimes.stub import FixedTime
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine
POLICY = Policy(8)


def fixed(seconds):
    return FixedTime(lambda items: np.full(len(items), seconds))


class Scaled(StubRuntime):
    """Scores of a model of its own: they say whose they are."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def execute(self, prepared, lo, hi):
        super().execute(prepared, lo, hi)
        _, scores = prepared
        scores[lo:hi] *= self.factor


def test_each_model_s_queries_are_executed_by_its_own_runtime():
    model, rng = StubModel(), np.random.default_rng(0)
    with Engine(model, 2, StubRuntime(), largest=16) as first:
        with Engine(model, runtime=Scaled(3.0), largest=16, workers_of=first) as other:
            asked = [model.example(n, rng) for n in (1, 7, 40)] * 20
            futures = [(first.submit(q, POLICY), other.submit(q, POLICY)) for q in asked]
            for one, two in futures:
                np.testing.assert_allclose(3.0 * one.result(30), two.result(30), rtol=1e-6)
            assert first.number != other.number
            assert first.load().open_queries == other.load().open_queries == 0
        with pytest.raises(EngineClosed):
            other.submit(asked[0], POLICY)
        assert first.submit(asked[0], POLICY).result(30) is not None


def test_the_workers_go_on_when_whoever_brought_them_leaves():
    model = StubModel()
    first = Engine(model, 2, StubRuntime(), largest=16).__enter__()
    with Engine(model, runtime=StubRuntime(), largest=16, workers_of=first) as other:
        query = model.example(9, np.random.default_rng(0))
        assert first.close()
        assert len(other.submit(query, POLICY).result(30)) == 9


def test_numbers_of_models_that_left_are_used_again():
    model = StubModel()
    with Engine(model, 1, StubRuntime(), largest=8) as first:
        numbers = set()
        for _ in range(5):
            with Engine(model, runtime=StubRuntime(), largest=8, workers_of=first) as other:
                numbers.add(other.number)
        assert numbers == {1}


def test_a_run_of_one_waits_for_its_own_queries_alone():
    model = StubModel()
    with (
        Engine(model, 2, fixed(0.02), largest=16) as first,
        Engine(model, runtime=fixed(0.001), largest=16, workers_of=first) as other,
    ):
        long = Schedule(np.linspace(0, 1.5, 60), np.full(60, 8))
        records = []
        thread = threading.Thread(target=lambda: records.append(first.run(long, POLICY)))
        thread.start()
        brief = other.run(Schedule(np.linspace(0, 0.2, 20), np.full(20, 8)), POLICY)
        assert thread.is_alive(), "it has not waited for the other's"
        thread.join()
    assert (brief.status == Status.OK).all()
    assert (records[0].status == Status.OK).all()


def test_one_is_measured_while_another_is_asked():
    model = StubModel()
    with Engine(model, 2, fixed(0.001), largest=16) as engine:
        with beside(
            engine, model, 50.0, drs.Workload(sizes="fixed:8"), None, POLICY, runtime=fixed(0.001)
        ) as other:
            records = engine.run(Schedule(np.linspace(0, 0.5, 50), np.full(50, 8)), POLICY)
        assert (records.status == Status.OK).all()
    assert sum(len(r) for r in other.records) >= 10
    assert str(other).startswith("beside stub at 50 queries/s")


def test_accelerators_are_the_first_model_s():
    model = StubModel()
    with (
        Engine(model, 1, StubRuntime(), largest=8) as first,
        pytest.raises(UserError, match="accelerators execute the first of several models"),
    ):
        Engine(model, workers_of=first, accelerators=["gtx-1080ti"])


def test_a_thread_that_brings_a_model_computes_as_before_afterwards():
    model = StubModel()
    with (
        Engine(model, 1, StubRuntime(), largest=8) as first,
        Engine(model, runtime=StubRuntime(), largest=8, workers_of=first) as other,
    ):
        other.execute_here(model.example(3, np.random.default_rng(0)), POLICY)
    assert np.float32(1e-40) * np.float32(1.0) != 0
