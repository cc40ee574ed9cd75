"""Which executions a tuning may choose, on a live engine of a small model."""

import numpy as np
import pytest

from deeprecsys.core import EXACT, SLA, Execution, Policy, UserError
from deeprecsys.engine import Engine
from deeprecsys.engine.executions import Measured
from deeprecsys.experiments import executing
from deeprecsys.experiments.executing import Tried, opened
from deeprecsys.experiments.tuning import tune
from deeprecsys.models import load_model
from deeprecsys.workload import Workload

PACKED, NARROW, BYTES = (Execution.parse(t) for t in ("packed", "rows=fp16", "layers=int8"))


@pytest.fixture
def engine():
    with Engine(load_model("wnd", scale=1e-3), 2, "torchscript", largest=64) as open_engine:
        yield open_engine


@pytest.fixture
def as_fast_as(monkeypatch):
    """Instead of a clock: `factors` of exact fp32's speed, by execution; 1 of all others."""

    def say(factors):
        def measure(models, *_, **__):
            sizes = (32, 128)
            return Measured(
                {
                    how: {n: np.full(3, 1e-4 * n / factors.get(how, 1.0)) for n in sizes}
                    for how in models
                },
                {},
            )

        monkeypatch.setattr("deeprecsys.engine.executions.measure", measure)

    return say


@pytest.mark.engine
def test_the_fastest_within_the_guard_and_the_fastest_exact_one_are_opened(engine, as_fast_as):
    as_fast_as({PACKED: 1.2, NARROW: 1.5, BYTES: 3.0})
    with opened(engine, Workload(), "99.9") as chosen:
        tried = {one.execution: one for one in chosen.tried}
        assert chosen.tried[0].execution == EXACT
        assert tried[BYTES].why, "this drifts by more than a thousandth"
        assert tried[BYTES].drift is not None
        assert not tried[NARROW].why
        assert list(chosen.system.systems) == [EXACT, NARROW, PACKED]
        schedule = Workload().schedule(rate_qps=100, queries=20)
        for how in chosen.system.systems:
            assert chosen.system.run(schedule, Policy(execution=how)).status.max() == 0
    with opened(engine, Workload(), "any") as chosen:
        assert list(chosen.system.systems) == [EXACT, BYTES, PACKED]


@pytest.mark.engine
def test_what_is_no_faster_is_not_held_against_the_scores(engine, as_fast_as, monkeypatch):
    as_fast_as({})
    monkeypatch.setattr(
        "deeprecsys.experiments.guarding.guarded", lambda model, executions, workload, **_: []
    )
    said = []
    with opened(engine, Workload(), "any", say=said.append) as chosen:
        assert chosen.system is engine
    assert "rows=fp16: 1.00× [1.00, 1.00] the items/s of exact fp32; not faster" in said


@pytest.mark.engine
def test_one_execution_alone_is_taken_or_refused_with_its_reason(engine, as_fast_as):
    as_fast_as({BYTES: 3.0, NARROW: 1.5})
    with opened(engine, Workload(), "99.9", only=NARROW) as chosen:
        assert list(chosen.system.systems) == [EXACT, NARROW]
    with (
        pytest.raises(UserError, match=r"layers=int8 is not within --accuracy 99\.9: "),
        opened(engine, Workload(), "99.9", only=BYTES),
    ):
        pass
    with opened(engine, Workload(), "99.9", only=EXACT) as chosen:
        assert chosen.system is engine
    with (
        pytest.raises(UserError, match="add --query-inputs"),
        opened(engine, Workload(), "any", only=Execution(user="query")),
    ):
        pass


@pytest.mark.measures
def test_a_tuning_tells_what_was_tried_and_saves_what_the_guard_saw(engine, as_fast_as):
    as_fast_as({NARROW: 1.5})
    found = tune(engine, Workload(sizes="fixed:16"), SLA(0.2), budget_s=12, accuracy="99.9")
    summary = found.to_dict()
    by_name = {row["execution"]: row for row in summary["executions"]}
    assert summary["accuracy"] == "99.9"
    assert by_name["exact"]["capacity"] is not None
    assert not by_name["rows=fp16"]["why"]
    policy = found.files()["policy.json"]
    if Policy.from_dict(policy["policy"]).execution == NARROW:
        assert policy["guard"]["accuracy"] == "99.9"
        assert policy["guard"]["drift"]["candidates"] >= 10_000


def test_recorded_queries_that_tell_too_little_admit_nothing(monkeypatch):
    def refuse(*_, **__):
        raise UserError("a guard without enough candidates")

    monkeypatch.setattr("deeprecsys.experiments.guarding.guarded", refuse)
    half = Execution(rows="fp16")
    tried = [Tried(EXACT, (1.0, 1.0, 1.0)), Tried(half, (2.0, 1.9, 2.1))]
    judged = executing._judged(None, {}, tried, Workload(), "any", asked_for=False)
    assert judged[1].why == "a guard without enough candidates"
    assert executing._worth(judged) == []
