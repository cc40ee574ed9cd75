"""The guard: what it scores, whom it lets through, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from deeprecsys.analysis import accuracy
from deeprecsys.artifacts import open_model
from deeprecsys.core import EXACT, Execution, UserError
from deeprecsys.executions import executed
from deeprecsys.executions.double import Double
from deeprecsys.experiments import guarding
from deeprecsys.experiments.guarding import guard, guarded
from deeprecsys.models import NAMES, load_model
from deeprecsys.workload import Workload
from own_models import FOLDERS, example

PACKED, HALF, BYTE = (Execution.parse(t) for t in ("packed", "rows=fp16", "rows=int8"))


@pytest.fixture(scope="module")
def model():
    return load_model("ncf", scale=1e-3)


@pytest.fixture(scope="module")
def found(model):
    return guarded(model, [EXACT, PACKED, HALF, BYTE], Workload())


def test_exact_scores_are_within_every_level(found):
    assert found[0].drift.largest == 0
    assert [found[0].why_not(level) for level in accuracy.LEVELS] == [""] * 4


def test_only_another_order_of_sums_is_as_exact(found):
    said = [bool(one.why_not("exact")) for one in found]
    assert said == [False, False, True, True]
    assert 0 < found[1].drift.largest < 4 * found[1].drift.own_error < 1e-5


def test_finer_rows_drift_less(found):
    _, _, half, byte = found
    assert half.drift.p999 < byte.drift.p999
    assert not half.why_not("99.9")
    assert found[0].drift.candidates >= 10_000
    assert found[0].drift.quality is None, "there are no labels"


def test_a_guard_is_the_same_again_and_json(model, found):
    again = guard(model, HALF, Workload())
    assert again.drift == found[2].drift
    said = json.loads(json.dumps(again.to_dict()))
    assert said["execution"] == "rows=fp16"
    assert said["drift"]["candidates"] == again.drift.candidates
    assert said["not_within"]["99"] == ""
    other = guard(model, HALF, Workload(seed=1))
    assert other.drift != again.drift


def test_sizes_are_the_workloads(model):
    said = guard(model, HALF, Workload(sizes="fixed:100"))
    assert (said.drift.candidates, said.drift.queries) == (10_000, 100)


def test_what_cannot_be_made_or_run_is_listed(model, monkeypatch):
    class Broken:
        name = "torchscript"

        def enter_thread(self):
            pass

        def prepare(self, inputs, scores):
            raise RuntimeError("no such kernel\nat line 3")

    make = guarding.make_runtime
    monkeypatch.setattr(
        guarding, "make_runtime",
        lambda name, it: Broken() if it.execution == HALF else make(name, it),
    )  # fmt: skip
    unknown = Execution(layers="int8", kept=("nothing",))
    said = guarded(model, [unknown, HALF, BYTE], Workload())
    assert "no layers nothing" in said[0].why_not("any")
    assert said[1].why == said[1].why_not("any") == "no such kernel"
    assert said[2].drift is not None
    with pytest.raises(UserError, match="no layers nothing"):
        guard(model, unknown, Workload())


def test_a_model_that_is_not_exact_is_no_reference(model):
    with pytest.raises(UserError, match="was loaded as rows=fp16"):
        guard(executed(model, HALF), BYTE, Workload())


def test_too_few_candidates_are_refused(model):
    with pytest.raises(UserError, match="a guard without enough candidates"):
        guard(model, HALF, Workload(), candidates=500)


def test_what_is_kept_of_the_user_is_guarded_as_it_is_served():
    model = load_model("din", scale=1e-4, query_inputs=True)
    said = guard(model, Execution(user="query"), Workload(sizes="fixed:500"))
    assert said.why_not("exact") == ""
    assert said.drift.own_error > 0


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_nearer_than_fp32_can_be(name):
    model = load_model(name, scale=1e-4)
    inputs = model.example(16, np.random.default_rng(0))
    tensors = [torch.from_numpy(inputs[spec.name]) for spec in model.inputs]
    exact, before = model.reference(inputs), [p.dtype for p in model.module.parameters()]
    true = Double(model.module)(tensors).numpy()
    assert true.dtype == np.float64
    assert 0 < np.abs(exact - true).max() < 2e-6
    assert (model.reference(inputs) == exact).all()
    assert [p.dtype for p in model.module.parameters()] == before


def recorded(folder, labels, count=50, size=200):
    """The ranker as a file, with recorded queries."""
    FOLDERS["torchscript"](folder)
    with (folder / "samples.jsonl").open("w") as file:
        for number in range(count):
            query = {name: rows.tolist() for name, rows in example(size, number).items()}
            file.write(json.dumps(query | labels(number, size)) + "\n")
    return open_model(folder)


def test_recorded_queries_are_judged_by_their_labels(tmp_path):
    model = recorded(
        tmp_path, lambda i, n: {"labels": np.random.default_rng(i).integers(0, 2, n).tolist()}
    )
    said = guard(model, EXACT, Workload())
    assert (said.drift.candidates, said.drift.queries) == (10_000, 50)
    assert said.drift.quality.auc_ratio == said.drift.quality.ndcg10_ratio == 1
    assert 0.45 < said.drift.quality.auc < 0.55, "of labels drawn at random"
    assert said.drift.own_error is None
    assert said.why_not("exact") == ""


@pytest.mark.parametrize(
    ("labels", "count", "said"),
    [
        (lambda i, n: {"labels": [1] * n}, 50, "labels of one class only, all are 1"),
        (lambda i, n: {"labels": [0, 1]}, 50, "row 1 has 2 labels of 200 candidates"),
        (lambda i, n: {}, 49, "a guard without enough candidates: .* has 9,800"),
    ],
)
def test_recorded_queries_that_cannot_tell_are_refused(tmp_path, labels, count, said):
    with pytest.raises(UserError, match=said):
        guard(recorded(tmp_path, labels, count), EXACT, Workload())
