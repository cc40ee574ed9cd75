"""What every runtime must do: the model's scores, in place, for any slices, on any threads."""

import threading

import numpy as np
import pytest

from deeprecsys.core import UserError
from deeprecsys.models import NAMES, load_model
from deeprecsys.runtimes import RUNTIMES, make_runtime

N = 37


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return load_model(request.param, scale=1e-4, seed=3)


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request, model):
    return make_runtime(request.param, model)


def run_slices(runtime, prepared, cuts):
    for lo, hi in cuts:
        runtime.execute(prepared, lo, hi)


def test_slices_on_several_threads_give_the_reference_scores(model, runtime):
    inputs = model.example(N, np.random.default_rng(1))
    scores = np.full((N, model.tasks), np.nan, np.float32)
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
    scores = [np.full((n, model.tasks), 7.0, np.float32) for n in (5, 1, 9)]
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
    scores = np.full((N, model.tasks), 7.0, np.float32)
    runtime.execute(runtime.prepare(inputs, scores), 5, 9)
    assert (scores[:5] == 7).all()
    assert (scores[9:] == 7).all()
    assert (scores[5:9] != 7).all()


def test_an_unknown_runtime_is_refused_by_name(model):
    with pytest.raises(UserError, match=r"unknown runtime 'nope'; known: auto, eager, torchscript"):
        make_runtime("nope", model)
