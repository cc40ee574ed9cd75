"""Executions compute the same model: how far off each may be, and what else must not change."""

import numpy as np
import pytest
import torch

from deeprecsys.core import EXACT, Execution, Policy, UserError, slice_inputs
from deeprecsys.executions import executed, parts
from deeprecsys.models import NAMES, load_model, row_types
from deeprecsys.runtimes import RUNTIMES, make_runtime

N = 96
# The largest error of a score: of the last places, or what half a step of a type comes to.
BOUNDS = {
    "packed": 2e-6,
    "rows=fp16": 2e-3,
    "rows=int8": 2e-2,
    "layers=int8": 1e-1,
    "layers=bf16": 3e-2,
    "rows=fp16,layers=bf16,packed": 3e-2,
}


def packs_bf16():
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(8, 8, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


def scored(model, runtime, inputs, cuts=(N,)):
    """By slices of the query that end at `cuts`."""
    running = make_runtime(runtime, model)
    running.enter_thread()
    scores = np.empty((N, model.tasks), np.float32)
    prepared = running.prepare(inputs, scores)
    for lo, hi in zip([0, *cuts[:-1]], cuts, strict=True):
        running.execute(prepared, lo, hi)
    return scores


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return load_model(request.param, scale=2e-4)


@pytest.mark.parametrize("text", BOUNDS)
def test_scores_are_as_near_as_the_types_are_fine(model, text):
    if text == "rows=fp16,layers=bf16,packed" and not packs_bf16():
        pytest.skip("this processor has no packed bf16 product")
    inputs = model.example(N, np.random.default_rng(1))
    other = executed(model, Execution.parse(text))
    exact = model.reference(inputs)
    off = np.abs(scored(other, "torchscript", inputs) - exact).max()
    assert off <= BOUNDS[text]
    if text != "packed":
        assert off > 0, "it computes as before"
    assert (model.reference(inputs) == exact).all(), "the exact model was changed"


@pytest.mark.parametrize("text", ["packed", "rows=int8", "layers=int8", "layers=bf16"])
def test_a_score_does_not_depend_on_its_neighbours(model, text):
    other = executed(model, Execution.parse(text))
    inputs = model.example(N, np.random.default_rng(2))
    whole = other.reference(inputs)
    alone = other.reference(slice_inputs(other.inputs, inputs, 17, 40))
    assert np.abs(whole[17:40] - alone).max() <= (5e-3 if text == "layers=bf16" else 2e-6)


@pytest.mark.parametrize("kind", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["dlrm-rmc1", "wnd", "din"])
def test_tables_loaded_narrow_are_those_narrowed_later(name, kind):
    wide = load_model(name, scale=2e-4, seed=3)
    narrow = load_model(name, scale=2e-4, seed=3, rows=kind)
    later = executed(wide, Execution(rows=kind))
    inputs = wide.example(N, np.random.default_rng(4))
    assert (narrow.reference(inputs) == later.reference(inputs)).all()
    assert narrow.execution == later.execution == Execution(rows=kind)
    assert narrow.table_bytes == later.table_bytes < 0.51 * wide.table_bytes
    assert narrow.work.table_bytes < 0.51 * wide.work.table_bytes


def test_rows_are_narrowed_to_the_nearest_number():
    weight = torch.rand(100, 32) - 0.5
    half = row_types.narrowed(weight, "fp16")
    assert torch.equal(half, weight.half())
    byte = row_types.narrowed(weight, "int8")
    ids = torch.arange(100, dtype=torch.int32)
    step = (weight.amax(1) - weight.amin(1)) / 255
    found = row_types.gather(byte, ids)
    assert ((found - weight).abs() <= step[:, None] * 0.51).all()
    bags = ids.view(20, 5)
    summed = row_types.pooled(byte, bags)
    assert torch.allclose(summed, found.view(20, 5, 32).sum(1), atol=1e-5)


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
@pytest.mark.parametrize("name", [n for n in NAMES if load_model(n, scale=1e-5).spec.of_user])
def test_what_is_kept_of_the_user_changes_no_score(name, runtime):
    model = load_model(name, scale=2e-4, query_inputs=True)
    once = executed(model, Execution(user="query"))
    inputs = model.example(N, np.random.default_rng(5))
    cuts = (1, 30, 31, N)
    assert (scored(once, runtime, inputs, cuts) == scored(model, runtime, inputs, cuts)).all()
    # Of a row a candidate as well, where there is nothing to keep.
    repeated = {k: np.repeat(v, N, 0) if len(v) == 1 else v for k, v in inputs.items()}
    off = scored(once, runtime, repeated, cuts) - model.reference(inputs)
    assert np.abs(off).max() < 1e-5


def test_the_users_part_is_computed_for_the_first_slice_only():
    model = executed(load_model("din", scale=2e-4, query_inputs=True), Execution(user="query"))
    running = make_runtime("eager", model)
    calls = []
    compute = running._user
    running._user = lambda users: calls.append(1) or compute(users)
    prepared = running.prepare(
        model.example(N, np.random.default_rng(0)), np.empty((N, 1), np.float32)
    )
    for lo in range(0, N, 32):
        running.execute(prepared, lo, lo + 32)
    assert len(calls) == 1
    running.forget(prepared)
    running.execute(prepared, 0, 32)
    assert len(calls) == 2


def test_joined_queries_of_one_user_each_are_right():
    model = load_model("dien", scale=2e-4, query_inputs=True)
    running = make_runtime("torchscript", model)
    running.enter_thread()
    queries = [model.example(n, np.random.default_rng(n)) for n in (3, 5, 1, 8)]
    answers = [np.empty((len(q["candidate_item"]), 1), np.float32) for q in queries]
    prepared = [running.prepare(q, a) for q, a in zip(queries, answers, strict=True)]
    running.execute_together([(p, 0, len(a)) for p, a in zip(prepared, answers, strict=True)])
    for query, answer in zip(queries, answers, strict=True):
        assert np.allclose(answer, model.reference(query), atol=1e-5)


def test_layers_that_are_kept_stay_as_they_were():
    model = load_model("dlrm-rmc3", scale=1e-4)
    names = [name for name, _ in parts(model.module)]
    kept = executed(model, Execution(layers="int8", kept=tuple(names)))
    inputs = model.example(N, np.random.default_rng(6))
    assert (kept.reference(inputs) == model.reference(inputs)).all()
    some = executed(model, Execution(layers="int8", kept=("bottom",)))
    assert some.module.bottom[0] is not None
    assert torch.equal(some.module.bottom[0].weight, model.module.bottom[0].weight)
    assert (some.reference(inputs) != model.reference(inputs)).any()


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        (Execution(user="query"), "add --query-inputs, or leave user=query out"),
        (Execution(layers="int8", kept=("botom",)), "no layers botom; it has bottom, top"),
    ],
)
def test_what_a_model_has_not_is_refused(execution, said):
    with pytest.raises(UserError, match=said):
        executed(load_model("dlrm-rmc1", scale=1e-4), execution)


def test_what_a_processor_cannot_is_refused_in_one_line():
    if packs_bf16():
        pytest.skip("this processor has the packed bf16 product that would be refused")
    with pytest.raises(UserError, match="this machine cannot execute layers=bf16,packed: "):
        executed(load_model("ncf", scale=1e-3), Execution(layers="bf16", packed=True))


@pytest.mark.parametrize(
    "text", ["exact", "packed", "rows=fp16,layers=bf16,packed", "layers=int8,kept=bottom+top"]
)
def test_an_execution_is_read_as_it_is_said(text):
    execution = Execution.parse(text)
    assert str(execution) == text
    assert Execution.from_dict(execution.to_dict()) == execution
    policy = Policy(batch_size=64, execution=execution)
    assert Policy.from_json(policy.to_json()) == policy
    assert ("execution" in policy.to_dict()) == (execution != EXACT)


@pytest.mark.parametrize(
    "raw", [None, "packed", 3, {"rows": 16}, {"rows": []}, {"kept": "top"}, {"kept": [3, "top"]},
            {"packed": 1}, {"speed": "high"}],
)  # fmt: skip
def test_an_execution_of_a_file_that_is_none_is_refused(raw):
    with pytest.raises(UserError):
        Policy.from_dict({"batch_size": 4, "execution": raw})


@pytest.mark.parametrize(
    "text", ["", "bf16", "rows=fp8", "layers", "packed=yes", "kept=", "exact,packed", "rows=fp16;"]
)
def test_an_execution_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError):
        Execution.parse(text)
