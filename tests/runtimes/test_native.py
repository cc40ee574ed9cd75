"""Native executors compute what their runtimes do in Python, of the windows that runs take."""

import numpy as np
import pytest

from deeprecsys import _native
from deeprecsys.core import Answer, Execution
from deeprecsys.engine.play import inputs
from deeprecsys.engine.pool import draw
from deeprecsys.executions import executed
from deeprecsys.models import load_model
from deeprecsys.runtimes.stub import FixedTime, NoOp
from deeprecsys.runtimes.torchscript import TorchScript

USER_ONCE = Execution(user="query")
MODELS = [
    ("dlrm-rmc1", {}),
    ("dlrm-rmc3", {}),
    ("wnd", {}),
    ("mt-wnd", {}),
    ("ncf", {}),
    ("din", {}),
    ("dien", {"query_inputs": True}),
    ("din", {"query_inputs": True}),
    ("din", {"query_inputs": True, "execution": USER_ONCE}),
]
WINDOWS = [(0, 40), (17, 1), (1234, 64), (99, 30)]
# Of windows: one sliced, two whole, three joined.
REQUESTS = [
    [[(0, 0, 16)], [(0, 16, 32)], [(0, 32, 40)], [(1, 0, 1)], [(2, 0, 64)], [(3, 0, 30)]],
    [[(0, 0, 40), (1, 0, 1), (2, 0, 10)], [(2, 10, 64), (3, 0, 30)]],
]


def opened(name, execution=None, **more):
    model = load_model(name, scale=1e-3, **more)
    return executed(model, execution) if execution else model


@pytest.mark.parametrize("requests", REQUESTS, ids=["apart", "joined"])
@pytest.mark.parametrize(("name", "more"), MODELS, ids=lambda value: str(value))
def test_torchscript_computes_the_same_without_python(name, more, requests):
    model = opened(name, **more)
    runtime, pool = TorchScript(model), draw(model, 2048, "uniform")
    executor = runtime.executor([column.name for column in pool.columns], 64)
    found = [Answer(model.outputs).empty(size) for _, size in WINDOWS]
    windows = [(at, n, scores) for (at, n), scores in zip(WINDOWS, found, strict=True)]
    _native.execute(executor, inputs(pool), pool.users, windows, requests)
    for (at, n), scores in zip(WINDOWS, found, strict=True):
        expected = Answer(model.outputs).empty(n)
        runtime.execute(runtime.prepare(pool.window(at, n), expected), 0, n)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_what_is_not_the_plain_stub_stays_with_python():
    class Mine(NoOp):
        pass

    assert isinstance(NoOp().executor([], 8), _native.Executor)
    assert Mine().executor([], 8) is None
    assert NoOp(lambda inputs, scores: None).executor([], 8) is None
    assert isinstance(FixedTime(lambda items: 1e-3 * items).executor([], 8), _native.Executor)
