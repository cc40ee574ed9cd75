"""What every runtime must do: the model's scores, in place, for any slices, on any threads.

A user's own model has one runtime, that of its form: add a form by a line in `own_models.FOLDERS`.
"""

import threading

import numpy as np
import pytest

from deeprecsys.artifacts import open_model
from deeprecsys.core import Answer, UserError, repeat_inputs, slice_inputs
from deeprecsys.models import NAMES, load_model
from deeprecsys.runtimes import RUNTIMES, make_runtime
from own_models import FOLDERS

N = 37
# Models whose users' inputs come in one row, but for `dlrm-rmc2` and `-rmc3`, which are as `-rmc1`.
SHARED = [
    ("din", "paper"),
    ("din", "authors-code"),
    ("dien", "paper"),
    ("dien", "authors-code"),
    ("dlrm-rmc1", "paper"),
]


def loaded(name, variant="paper", query_inputs=True):
    return load_model(name, scale=1e-4, seed=3, variant=variant, query_inputs=query_inputs)


PUBLISHED = [(model, name) for model in [*NAMES, *SHARED] for name in sorted(RUNTIMES)]
OWN = [("own", name) for name in FOLDERS]


@pytest.fixture(scope="module", params=[*PUBLISHED, *OWN], ids=str)
def case(request, tmp_path_factory):
    of, name = request.param
    if of == "own":
        folder = tmp_path_factory.mktemp("own") / name
        return open_model(FOLDERS[name](folder), trust=True), name
    return (loaded(of, query_inputs=False) if isinstance(of, str) else loaded(*of)), name


@pytest.fixture
def model(case):
    return case[0]


@pytest.fixture(scope="module", params=SHARED, ids="/".join)
def shared(request):
    return loaded(*request.param)


@pytest.fixture
def runtime(case):
    return make_runtime(case[1], case[0])


def filled(model, n, value):
    scores = Answer(model.outputs).empty(n)
    scores.fill(value)
    return scores


def run_slices(runtime, prepared, cuts):
    for lo, hi in cuts:
        runtime.execute(prepared, lo, hi)


def test_slices_on_several_threads_give_the_reference_scores(model, runtime):
    inputs = model.example(N, np.random.default_rng(1))
    scores = filled(model, N, np.nan)
    prepared = runtime.prepare(inputs, scores)
    cuts = [(0, 1), (1, 17), (17, 36), (36, 37)]

    def work(mine):
        runtime.enter_thread()
        run_slices(runtime, prepared, mine)

    threads = [threading.Thread(target=work, args=(cuts[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(scores, model.reference(inputs), atol=1e-4)


def test_slices_of_several_queries_as_one_request_give_each_its_scores(model, runtime):
    runtime.enter_thread()
    queries = [model.example(n, np.random.default_rng(n)) for n in (5, 1, 9)]
    scores = [filled(model, n, 7.0) for n in (5, 1, 9)]
    prepared = [runtime.prepare(*pair) for pair in zip(queries, scores, strict=True)]
    cuts = [(3, 5), (0, 1), (0, 4)]
    runtime.execute_together([(p, *cut) for p, cut in zip(prepared, cuts, strict=True)])
    for inputs, found, (lo, hi) in zip(queries, scores, cuts, strict=True):
        np.testing.assert_allclose(found[lo:hi], model.reference(inputs)[lo:hi], atol=1e-4)
        assert (found[:lo] == 7).all()
        assert (found[hi:] == 7).all()


def test_only_the_rows_of_the_slice_are_written(model, runtime):
    runtime.enter_thread()
    inputs = model.example(N, np.random.default_rng(2))
    scores = filled(model, N, 7.0)
    runtime.execute(runtime.prepare(inputs, scores), 5, 9)
    assert (scores[:5] == 7).all()
    assert (scores[9:] == 7).all()
    assert (scores[5:9] != 7).all()


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_one_row_of_a_users_inputs_or_a_row_a_candidate_give_the_same_scores(shared, name):
    runtime = make_runtime(name, shared)
    runtime.enter_thread()
    for n in (70, 1, 0):
        inputs = shared.example(n, np.random.default_rng(n))
        repeated = repeat_inputs(shared.inputs, inputs, n)
        first = shared.spec.of_user[0]
        forms = [inputs, repeated, repeated | {first: inputs[first]}]
        for form in [*forms, shared.example(n, np.random.default_rng(7), users=n)]:
            assert shared.check(form) == n
            scores = np.full((n, shared.tasks), np.nan, np.float32)
            prepared = runtime.prepare(form, scores)
            for lo, hi in ((0, min(n, 1)), (min(n, 1), n)):
                runtime.execute(prepared, lo, hi)
            np.testing.assert_allclose(scores, shared.reference(form), atol=1e-5)
        np.testing.assert_array_equal(shared.reference(inputs), shared.reference(repeated))


def test_a_slice_of_a_query_keeps_its_users_row(shared):
    inputs = shared.example(9, np.random.default_rng(1))
    part = slice_inputs(shared.inputs, inputs, 3, 8)
    assert shared.check(part) == 5
    np.testing.assert_allclose(shared.reference(part), shared.reference(inputs)[3:8], atol=1e-6)


def test_queries_of_all_forms_join_in_one_request(shared):
    runtime = make_runtime("torchscript", shared)
    runtime.enter_thread()
    once, single = (shared.example(n, np.random.default_rng(n)) for n in (5, 1))
    queries = [once, single, repeat_inputs(shared.inputs, once, 5)]
    scores = [np.empty((n, shared.tasks), np.float32) for n in (5, 1, 5)]
    prepared = [runtime.prepare(*pair) for pair in zip(queries, scores, strict=True)]
    runtime.execute_together([(p, 0, len(s)) for p, s in zip(prepared, scores, strict=True)])
    for inputs, found in zip(queries, scores, strict=True):
        np.testing.assert_allclose(found, shared.reference(inputs), atol=1e-5)


def test_an_unknown_runtime_is_refused_by_name(shared):
    with pytest.raises(UserError, match=r"unknown runtime 'nope'; known: auto, eager, torchscript"):
        make_runtime("nope", shared)
