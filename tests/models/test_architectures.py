"""Each model computes its paper's equations, whatever the batch, eagerly and traced."""

import numpy as np
import pytest
from reference import scores

from deeprecsys.models import SPECS, load_model

torch = pytest.importorskip("torch")

SCALE = 1e-4


@pytest.fixture(scope="module", params=SPECS, ids="/".join)
def model(request):
    name, variant = request.param
    return load_model(name, variant=variant, scale=SCALE, seed=3)


@pytest.fixture
def inputs(model):
    return model.example(7, np.random.default_rng(5))


def tensors(inputs, n=None):
    return [torch.from_numpy(array[:n].copy()) for array in inputs.values()]


def test_the_scores_are_those_of_the_published_equations(model, inputs):
    assert np.abs(model.reference(inputs) - scores(model, inputs)).max() < 1e-5


def test_the_scores_are_probabilities_that_differ_between_candidates(model):
    result = model.reference(model.example(64, np.random.default_rng(0)))
    assert result.dtype == np.float32
    assert result.shape == (64, model.tasks)
    assert ((result > 0) & (result < 1)).all()
    assert (result.std(0) > 0.02).all()


def test_a_candidates_score_does_not_depend_on_its_neighbours(model, inputs):
    alone = [model.reference({k: a[i : i + 1] for k, a in inputs.items()}) for i in range(7)]
    assert np.abs(np.concatenate(alone) - model.reference(inputs)).max() < 1e-5


def test_no_candidates_give_no_scores(model, inputs):
    none = {name: array[:0] for name, array in inputs.items()}
    assert model.reference(none).shape == (0, model.tasks)
    with torch.inference_mode():
        assert model.module(tensors(none)).shape == (0, model.tasks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch.jit in newer versions
def test_a_trace_serves_other_batch_sizes(model, inputs):
    with torch.no_grad():
        traced = torch.jit.trace(model.module, (tensors(inputs, 3),))
        for n in (1, 3, 7):
            expected = model.module(tensors(inputs, n))
            assert torch.allclose(traced(tensors(inputs, n)), expected, atol=1e-6)


def test_the_specification_counts_the_parameters_the_module_has(model):
    assert model.parameters == sum(p.numel() for p in model.module.parameters())
    assert model.table_bytes == model.spec.table_bytes(SCALE)


def test_nothing_is_left_to_train(model):
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
