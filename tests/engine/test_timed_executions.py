"""Executions side by side: what can be made, how they are timed, and what follows from it."""

import json

import numpy as np
import pytest

from deeprecsys.core import EXACT, Execution, UserError
from deeprecsys.engine import executions
from deeprecsys.engine.executions import Measured, combined, made, measure, singles
from deeprecsys.models import load_model

CORES = [None, None]
PACKED, INT8, HALF = Execution(packed=True), Execution(layers="int8"), Execution(rows="fp16")


@pytest.fixture(scope="module")
def model():
    return load_model("dlrm-rmc3", scale=1e-4, query_inputs=True)


def found(seconds, failed=()):
    return Measured(
        {e: {size: np.array(s) for size, s in by.items()} for e, by in seconds.items()},
        dict(failed),
    )


def test_what_is_made_shares_one_copy_of_the_tables_a_type_of_rows(model):
    both = Execution(rows="fp16", layers="int8")
    able, refused = made(model, [EXACT, INT8, HALF, both, Execution(layers="int8", kept=("to",))])
    assert {e: m.execution for e, m in able.items()} == {e: e for e in (EXACT, INT8, HALF, both)}
    assert [why for why in refused.values()] == ["dlrm-rmc3 has no layers to; it has bottom, top"]

    def tables(execution):
        return {p.data_ptr() for p in able[execution].module.parameters() if p.dim() == 2 and
                p.nbytes == able[execution].table_bytes}  # fmt: skip

    assert len(tables(EXACT)) == 1
    assert tables(EXACT) == tables(INT8) != tables(HALF) == tables(both)


def test_copies_of_the_tables_that_do_not_fit_are_refused(model, monkeypatch):
    monkeypatch.setattr("deeprecsys.executions.available_bytes", lambda: 1 << 29)
    able, refused = made(model, [EXACT, HALF, INT8])
    assert list(able) == [EXACT, INT8]
    assert "a copy of the tables in fp16 needs 0.5 GB" in refused[HALF]


@pytest.mark.engine
def test_each_is_timed_at_every_batch_size_and_what_cannot_run_is_said(model):
    able, refused = made(model, singles(model))
    assert {EXACT, PACKED, INT8, HALF, Execution(user="query")} <= set(able)
    assert all("\n" not in why for why in refused.values())
    broken = Execution(layers="int8", kept=("top",))
    able[broken] = able[INT8].__class__(model.spec, model.scale, 0, Broken(), True, broken)
    seen = measure(able, CORES, [4, 16], budget_s=0.2, runtime="eager")
    assert set(seen.seconds) == set(able) - {broken}
    assert seen.failed == {broken: "no such product"}
    rounds = {len(s) for by in seen.seconds.values() for s in by.values()}
    assert min(rounds) >= 2
    assert all((s > 0).all() for by in seen.seconds.values() for s in by.values())
    rows = json.loads(json.dumps(seen.to_dict()))
    assert rows[0]["execution"] == "exact"
    assert rows[0]["ratio"] == 1
    assert rows[-1] == {"execution": str(broken), "why": "no such product"}
    with pytest.raises(UserError, match=r"cannot be executed as .*: no such product"):
        measure({broken: able[broken]}, CORES, [4], runtime="eager")


class Broken:
    block = 8

    def __call__(self, *inputs):
        raise RuntimeError("no such product\nat line 3")

    user = candidates = __call__


def test_ratios_are_of_the_same_rounds_each_at_its_best_batch_size():
    drift = np.array([1.0, 2.0, 4.0])
    seen = found({
        EXACT: {16: 1.0 * drift, 64: 3.2 * drift},  # best at 64: 0.05 an item
        INT8: {16: 0.4 * drift, 64: 3.2 * drift},  # best at 16: 0.025 an item
        HALF: {16: 2.0 * drift[:2], 64: 12.8 * drift[:2]},
    })  # fmt: skip
    assert (seen.best_batch(EXACT), seen.best_batch(INT8)) == (64, 16)
    assert seen.ratio(INT8) == pytest.approx((2.0, 2.0, 2.0))
    assert seen.ratio(INT8, 16)[0] == pytest.approx(2.5)
    assert seen.ratio(HALF)[0] == pytest.approx(0.4)
    assert seen.best([HALF, INT8, PACKED]) == INT8
    assert seen.best([HALF]) == EXACT


def test_a_disturbed_round_moves_no_ratio():
    exact, narrow = np.full(9, 3.0), np.full(9, 2.0)
    exact[4], narrow[7] = 90.0, 50.0
    seen = found({EXACT: {64: exact}, INT8: {64: narrow}})
    assert seen.ratio(INT8) == pytest.approx((1.5, 1.5, 1.5))
    few = found({EXACT: {64: [3.0, 3.3]}, INT8: {64: [2.0, 2.0]}}).ratio(INT8)
    assert few[1] < 1.5 < few[2], "two rounds settle nothing"
    assert few[1] < 1 < few[2]


def test_the_best_rows_are_tried_with_the_best_layers_and_with_the_users_part():
    user = Execution(user="query")
    one, two = {16: [1.0, 1.0]}, {16: [0.5, 0.5]}
    seen = found({EXACT: one, HALF: two, INT8: two, PACKED: {16: [0.6, 0.6]}})
    assert combined(seen) == [Execution(rows="fp16", layers="int8")]
    seen = found({EXACT: one, HALF: one, INT8: two, PACKED: one, user: two})
    assert combined(seen) == [Execution(layers="int8", user="query")]
    assert combined(found({EXACT: one, PACKED: one})) == []


def test_the_users_part_is_paid_once_a_query_as_it_is_live():
    calls = []

    class Runtime:
        def enter_thread(self):
            pass

        def forget(self, query):
            calls.append("forget")

        def execute(self, query, lo, hi):
            calls.append((query, lo, hi))

    executions.visit(Runtime(), ["q"], 4096, [None], 64, 0.001)
    assert calls[:6] == ["forget", *(("q", lo, lo + 64) for lo in range(0, 320, 64))]
    assert calls.count("forget") * 5 == len(calls) - calls.count("forget")
