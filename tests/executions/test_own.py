"""Users' own models in other executions: each form by its own means, or refused in one line."""

import numpy as np
import pytest
import torch

from deeprecsys.artifacts import open_model
from deeprecsys.core import EXACT, Execution, UserError
from deeprecsys.executions import executed
from deeprecsys.runtimes import make_runtime, runtimes_of
from own_models import FOLDERS, TOML, example

MODULE = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users = torch.nn.Embedding(50, 4)
        self.items = torch.nn.Embedding(40, 4)
        self.bags = torch.nn.EmbeddingBag(40, 4, mode="sum")
        self.top = torch.nn.Sequential(
            torch.nn.Linear(7, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )

    def forward(self, user, item, dense):
        user, item, dense = map(torch.from_numpy, (user, item, dense))
        crossed = self.users(user[:, 0]) * self.items(item[:, 0]) + self.bags(item)
        return torch.sigmoid(self.top(torch.cat([crossed, dense], 1)))
"""


def module_folder(folder):
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODULE)
    (folder / "model.toml").write_text(TOML)
    return folder


REWRITTEN = {"module": module_folder, "exported": FOLDERS["exported"], "onnx": FOLDERS["onnx"]}
# How far a score may be off.
TORCH = {
    "rows=fp16": 1e-3, "rows=int8": 1e-2, "packed": 1e-6, "layers=bf16": 2e-2,
    "rows=fp16,layers=bf16": 2e-2,
}  # fmt: skip
ABLE = [(form, text) for form in ("module", "exported") for text in TORCH]
ABLE += [("onnx", "rows=fp16")]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return {name: open_model(make(folder / name), trust=True) for name, make in REWRITTEN.items()}


def scored(model, inputs, cuts):
    (name,) = runtimes_of(model)
    running = make_runtime(name, model)
    running.enter_thread()
    scores = np.empty((cuts[-1], 1), np.float32)
    prepared = running.prepare(inputs, scores)
    for lo, hi in zip([0, *cuts[:-1]], cuts, strict=True):
        running.execute(prepared, lo, hi)
    return scores


@pytest.mark.parametrize(("form", "text"), ABLE)
def test_scores_are_as_near_as_the_types_are_fine(opened, form, text):
    model, inputs = opened[form], example(96, seed=1)
    exact = model.reference(inputs)
    other = executed(model, Execution.parse(text))
    assert other.execution == Execution.parse(text)
    off = np.abs(scored(other, inputs, (96,)) - exact).max()
    assert off <= TORCH[text]
    if text != "packed":
        assert off > 0, "it computes as before"
    cut = scored(other, inputs, (1, 40, 96))
    assert np.abs(cut - other.reference(inputs)).max() <= (5e-3 if "bf16" in text else 2e-6)
    assert (model.reference(inputs) == exact).all(), "the exact model was changed"
    assert executed(other, EXACT) is model


@pytest.mark.parametrize("form", REWRITTEN)
def test_int8_layers_do_not_see_neighbours(tmp_path, form):
    model = open_model(REWRITTEN[form](tmp_path / form), trust=True)
    inputs = example(64, seed=2)
    other = executed(model, Execution(layers="int8"))
    exact, found = model.reference(inputs), other.reference(inputs)
    if form == "onnx":  # which has no bound on how few weights are worth it
        assert 0 < np.abs(found - exact).max() < 0.2
    alone = np.concatenate(
        [other.reference({k: v[i : i + 1] for k, v in inputs.items()}) for i in range(64)]
    )
    assert np.abs(found - alone).max() < 2e-6


def test_layers_of_an_exported_graph_become_one_chain(opened):
    other = executed(opened["exported"], Execution(layers="bf16"))
    chains = dict(other.form._flat.module.named_modules())
    assert "top_0" in chains
    assert type(chains["top_0"]).__name__ == "InBF16"
    assert other.form.module is not None, "it could not be traced"


def test_a_layer_that_is_kept_stays(opened):
    for form, name in (("exported", "top_0"), ("module", "top")):
        kept = executed(opened[form], Execution(layers="bf16", kept=(name,)))
        inputs = example(16)
        assert (kept.reference(inputs) == opened[form].reference(inputs)).all()


@pytest.mark.parametrize("form", ["torchscript", "lightgbm", "python"])
def test_what_stays_as_it_is_says_so_in_one_line(tmp_path, form):
    model = open_model(FOLDERS[form](tmp_path / form), trust=True)
    assert not model.rewritable
    with pytest.raises(UserError, match=r"stays as it is: nothing in a model of the form") as said:
        executed(model, Execution(rows="fp16"))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("form", "execution", "said"),
    [
        ("onnx", Execution(packed=True), "onnxruntime packs by itself"),
        ("onnx", Execution(layers="bf16"), "no bf16 products"),
        ("onnx", Execution(rows="int8"), "say rows=fp16"),
        ("onnx", Execution(layers="int8", kept=("top",)), "whose layers are known"),
        ("exported", Execution(user="query"), "for published models"),
        ("module", Execution(layers="bf16", kept=("bottom",)), "no layers bottom; it has top"),
    ],
)
def test_what_a_form_has_no_means_for_is_refused(opened, form, execution, said):
    with pytest.raises(UserError, match=said) as told:
        executed(opened[form], execution)
    assert f"cannot be executed as {execution}" in str(told.value)


def test_a_module_without_tables_or_layers_is_refused(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\nclass Model(torch.nn.Module):\n"
        "    def forward(self, dense):\n        return dense.sum(1)\n"
    )
    (tmp_path / "model.toml").write_text('[inputs.dense]\ndatatype = "FP32"\nshape = [3]\n')
    model = open_model(tmp_path, trust=True)
    for execution, said in (
        (Execution(rows="fp16"), "no embedding rows"),
        (Execution(layers="bf16"), "no linear layers"),
    ):
        with pytest.raises(UserError, match=said):
            executed(model, execution)


def test_a_shared_table_is_narrowed_once():
    from deeprecsys.executions.own import rewritten

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Embedding(10, 4)
            self.two = self.one

        def forward(self, ids):
            return self.one(ids) + self.two(ids)

    module = Twice()
    other = rewritten(module, Execution(rows="fp16"), lambda _: None)
    assert other.one is other.two
    assert isinstance(module.one, torch.nn.Embedding)
    assert torch.allclose(other(torch.arange(10)), module(torch.arange(10)), atol=1e-2)
