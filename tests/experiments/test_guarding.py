"""The guard on models: what is exact passes, what is narrow drifts, what cannot be made says so."""

import numpy as np
import pytest

from deeprecsys.analysis.accuracy import why_not
from deeprecsys.core import Execution
from deeprecsys.executions import in_float64
from deeprecsys.experiments.guarding import guard, guarded
from deeprecsys.models import NAMES, load_model
from deeprecsys.workload import Workload

SMALL = Workload(sizes="fixed:250")


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_nearer_the_truth_than_anything_narrow(name):
    model = load_model(name, scale=1e-4)
    inputs = model.example(64, np.random.default_rng(0))
    off = np.abs(in_float64(model).reference(inputs) - model.reference(inputs)).max()
    assert off < 5e-6
    if name != "dien":  # whose products are few and small
        assert off > 0


def test_each_execution_is_judged_on_the_same_queries():
    model = load_model("wnd", scale=1e-3)
    texts = ["packed", "rows=fp16", "layers=int8"]
    packed, half, byte = guarded(model, [Execution.parse(text) for text in texts], SMALL)
    assert packed.drift.candidates == half.drift.candidates == 10_000
    assert packed.drift.spread == half.drift.spread
    assert packed.drift.own_error > 0
    assert why_not(packed.drift, "exact") == ""
    assert why_not(half.drift, "exact") != ""
    assert packed.drift.p999 < half.drift.p999 < byte.drift.p999


def test_what_cannot_be_made_has_its_reason():
    model = load_model("ncf", scale=1e-2)
    said = guard(model, Execution(user="query"), SMALL)
    assert said.drift is None
    assert "no inputs of the user's own" in said.why


def test_queries_repeat_with_the_seed_and_differ_without():
    model = load_model("ncf", scale=1e-2)
    one, again = (guard(model, Execution(rows="fp16"), SMALL).drift for _ in range(2))
    other = guard(model, Execution(rows="fp16"), Workload(sizes="fixed:250", seed=1)).drift
    assert one == again != other
