"""Runs that the native core plays: the same records as when Python does, whatever happens."""

import threading
import time
import warnings

import numpy as np
import pytest
import torch

from deeprecsys.core import Policy, Schedule, Status
from deeprecsys.engine import Engine, EngineClosed
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.models import load_model
from deeprecsys.runtimes.stub import FixedTime, NoOp
from deeprecsys.runtimes.torchscript import TorchScript
from stub_model import StubModel
from waiting import WAIT_S, until

pytestmark = pytest.mark.engine

POLICIES = [Policy(16), Policy(8, adaptive=True, most_items=64), Policy(16, workers=1)]


class ByPython(FixedTime):
    """Of another class, so that it needs Python."""


def schedule(n, gap_s=1e-3):
    return Schedule(gap_s * np.arange(n), np.arange(n) % 50)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("runtime", [FixedTime, ByPython])
def test_every_item_is_executed_once_by_requests_of_the_policy(runtime, policy):
    asked = schedule(300)
    with Engine(StubModel(), 2, runtime(ServiceTime.constant(2e-4)), largest=8) as engine:
        records, requests = engine.traced_run(asked, policy)
        again, _ = engine.traced_run(asked, policy)
    for found in (records, again):
        assert (found.status == Status.OK).all()
        assert (found.submit_s >= found.arrival_s).all()
        assert (found.start_s >= found.submit_s).all()
        assert (found.finish_s >= found.start_s).all()
        assert set(found.worker[found.size > 0]) <= set(range(policy.workers or 2))
    items = requests.hi - requests.lo
    assert items.max() <= policy.most_items
    assert policy.adaptive or items.max() <= policy.batch_size
    for row in range(300):
        mine = requests[np.flatnonzero(requests.query == row)]
        order = np.argsort(mine.lo)
        assert mine.lo[order].tolist() == [0, *mine.hi[order][:-1]][: len(mine)]
        assert mine.hi.max(initial=0) == asked.size[row]
    last = np.zeros(300)
    np.maximum.at(last, requests.query, requests.finish_s)
    np.testing.assert_allclose(last[asked.size > 0], records.finish_s[asked.size > 0])


def test_requests_count_and_teach_admission_though_python_sees_none():
    with Engine(StubModel(), 1, FixedTime(ServiceTime.constant(1e-3)), largest=8) as engine:
        before, admission = engine.load(), engine._part.admission
        admission._service_s = lambda items: 5e-4 + 0.0 * items
        admission._tables.clear()
        admission.pace = 1.0
        engine.run(Schedule(np.zeros(200), np.full(200, 8)), Policy(8))
        engine.offer({"dense": np.zeros((3, 4), np.float32)}, Policy(8), WAIT_S, admit=True)
        after = engine.load()
    assert after.requests - before.requests >= 200
    assert sum(after.busy_s) - sum(before.busy_s) >= 0.2
    assert 1.8 < admission.pace < 4.0


def test_queries_that_are_submitted_during_a_run_are_answered_beside_it():
    answers = []
    with Engine(StubModel(), 2, FixedTime(ServiceTime.constant(1e-3)), largest=8) as engine:

        def watch(so_far, now_s):
            inputs = {"dense": np.ones((20, 4), np.float32)}
            answers.append(engine.submit(inputs, Policy(8, adaptive=True, most_items=64)))
            return False

        records = engine.run(schedule(400), Policy(8, adaptive=True, most_items=64), watch=watch)
        assert all(answer.result(WAIT_S).shape == (20, 1) for answer in answers)
    assert answers
    assert (records.status == Status.OK).all()


def test_an_engine_that_is_closed_ends_its_run():
    engine = Engine(StubModel(), 1, FixedTime(ServiceTime.constant(0.05)), largest=1).__enter__()
    threading.Timer(0.1, lambda: engine.close(drain=False)).start()
    with pytest.raises(EngineClosed):
        engine.run(schedule(2000), Policy(8))


def test_a_worker_that_hangs_in_a_run_is_replaced_and_its_query_fails_alone():
    """A request of 8 items takes for ever; the others are brief."""
    law = ServiceTime.linear(1e-4, 0.0)

    def seconds(items):
        return np.where(items == 8, 2.0, law(items))

    with Engine(StubModel(), 1, NoOp(), largest=1) as engine:
        engine.runtime = FixedTime(seconds)
        asked = Schedule(np.zeros(40), np.array([8, *range(9, 48)]))
        records = []
        run = threading.Thread(target=lambda: records.append(engine.run(asked, Policy(100))))
        run.start()
        until(lambda: engine.load().executing)
        until(lambda: time.sleep(0.02) or engine.replace_hung(0.015) == 1)
        run.join(WAIT_S)
        (found,) = records
        assert found.status[0] == Status.FAILED
        assert (found.status[1:] == Status.OK).all()
        assert len(engine.load().lost_workers) == 1


class Fails(torch.nn.Module):
    def forward(self, inputs: list[torch.Tensor], scores: torch.Tensor, lo: int, hi: int) -> None:
        raise ValueError("out of luck")


def test_why_a_run_s_requests_fail_is_said_once_in_one_line(caplog):
    model = load_model("ncf", scale=1e-3)
    with Engine(model, 2, TorchScript(model), largest=64) as engine:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            engine.runtime._run = torch.jit.script(Fails())
        records = engine.run(schedule(50), Policy(16))
    assert (records.status[records.size > 0] == Status.FAILED).all()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "a request failed: builtins.ValueError: out of luck"


def test_a_model_s_runs_are_played_without_python():
    model = load_model("ncf", scale=1e-3)
    prepared = []

    class Watched(TorchScript):
        def prepare(self, inputs, scores):
            prepared.append(len(scores))
            return super().prepare(inputs, scores)

    with Engine(model, 2, Watched(model), largest=64) as engine:
        prepared.clear()
        records, requests = engine.traced_run(schedule(200), Policy(16))
    assert (records.status == Status.OK).all()
    assert prepared == []
    assert (requests.hi - requests.lo).max() <= 16
