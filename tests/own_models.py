"""Small models of users, and folders that hold them."""

import atexit
import functools
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

USERS, ITEMS, WIDTH = 50, 40, 4

TOML = """
target = {sla_ms = 50}
[inputs.user]
scope = "query"
ids = 50
datatype = "INT64"
shape = [1]
[inputs.item]
ids = 40
padding = 0
datatype = "INT64"
shape = [1]
[inputs.dense]
datatype = "FP32"
shape = [3]
"""


class Ranker(torch.nn.Module):
    """A user's row, an item's, three features; the score is [N, 1]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users = torch.nn.Embedding(USERS, WIDTH)
        self.items = torch.nn.Embedding(ITEMS, WIDTH)
        self.top = torch.nn.Sequential(
            torch.nn.Linear(WIDTH + 3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )

    def forward(self, user, item, dense):
        crossed = self.users(user[:, 0]) * self.items(item[:, 0])
        return torch.sigmoid(self.top(torch.cat([crossed, dense], 1)))


def example(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, USERS, (n, 1)),
        "item": rng.integers(0, ITEMS, (n, 1)),
        "dense": rng.standard_normal((n, 3)).astype(np.float32),
    }


def traced(module, *inputs, path):
    """Saves it as TorchScript."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), inputs, check_trace=False).save(str(path))


def scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))


@functools.cache
def _kept():
    """A folder of this process, for what takes seconds to make."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return folder


def made_once(make):
    """The folder is made for the first who asks; the others get a copy."""

    @functools.wraps(make)
    def copied(folder):
        whole = _kept() / make.__name__
        if not whole.exists():
            make(whole)
        return Path(shutil.copytree(whole, folder))

    return copied


def torchscript_folder(folder, toml=TOML, module=None):
    """The ranker as TorchScript, with what TorchScript does not say."""
    folder.mkdir(parents=True, exist_ok=True)
    given = [torch.from_numpy(array) for array in example(7).values()]
    traced(module or Ranker(), *given, path=folder / "model.pt")
    (folder / "model.toml").write_text(toml)
    return folder


FOLDERS = {"torchscript": torchscript_folder}


@made_once
def onnx_folder(folder):
    """The ranker as ONNX, by PyTorch's exporter; types and shapes are in it."""
    folder.mkdir(parents=True)
    given = tuple(torch.from_numpy(array) for array in example(7).values())
    rows = torch.export.Dim("rows", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Ranker().eval(), given, str(folder / "model.onnx"), verbose=False,
            input_names=list(example(1)), output_names=["p"],
            dynamic_shapes=({0: rows}, {0: rows}, {0: rows}),
        )  # fmt: skip
    _untyped_toml(folder)
    return folder


def _untyped_toml(folder):
    lines = [line for line in TOML.splitlines() if not line.startswith(("datatype", "shape"))]
    (folder / "model.toml").write_text("\n".join(lines).replace("[inputs.dense]", ""))


def _features(rows):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((rows, 5)).astype(np.float32)
    return features, (features[:, 0] * features[:, 1] > 0).astype(np.float32)


@made_once
def lightgbm_folder(folder):
    import lightgbm

    folder.mkdir(parents=True)
    given = lightgbm.Dataset(*_features(400), params={"verbose": -1})
    params = {"objective": "binary", "verbose": -1, "num_threads": 1, "num_leaves": 7}
    lightgbm.train(params, given, 10).save_model(folder / "model.txt")
    (folder / "model.toml").write_text("target = {sla_ms = 50}\n")
    return folder


@made_once
def xgboost_folder(folder):
    import xgboost

    folder.mkdir(parents=True)
    features, labels = _features(400)
    params = {"objective": "binary:logistic", "nthread": 1, "max_depth": 3}
    booster = xgboost.train(params, xgboost.DMatrix(features, labels), 10)
    booster.save_model(folder / "model.json")
    (folder / "model.toml").write_text("target = {sla_ms = 50}\n")
    return folder


@made_once
def catboost_folder(folder):
    import catboost

    folder.mkdir(parents=True)
    model = catboost.CatBoostClassifier(
        iterations=10, depth=3, thread_count=1, verbose=False, allow_writing_files=False
    )
    model.fit(*_features(400))
    model.save_model(str(folder / "model.cbm"))
    (folder / "model.toml").write_text("target = {sla_ms = 50}\n")
    return folder


@made_once
def exported_folder(folder):
    """The ranker as a `torch.export` archive."""
    folder.mkdir(parents=True)
    _untyped_toml(folder)
    given = tuple(torch.from_numpy(array) for array in example(7).values())
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(Ranker().eval(), given, dynamic_shapes=({0: rows},) * 3)
    torch.export.save(program, folder / "model.pt2")
    return folder


def texts_folder(folder):
    """An ONNX model that takes a word and a number, with recorded queries."""
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True)
    known = helper.make_node(
        "LabelEncoder", ["country"], ["known"], domain="ai.onnx.ml", default_float=-1.0,
        keys_strings=["nl", "de", "fr"], values_floats=[1.0, 2.0, 3.0],
    )  # fmt: skip
    added = helper.make_node("Add", ["known", "dense"], ["score"])
    kinds = {"country": TensorProto.STRING, "dense": TensorProto.FLOAT, "score": TensorProto.FLOAT}
    values = [helper.make_tensor_value_info(name, kind, ["N", 1]) for name, kind in kinds.items()]
    graph = helper.make_graph([known, added], "texts", values[:2], values[2:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    rows = [{"country": [["nl"], ["de"]], "dense": [[0.5], [i]]} for i in range(3)]
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


PYTHON = """
import numpy as np

class Model:
    def __init__(self):
        self.users = np.arange(50.0)
        self.items = np.arange(40.0)

    def __call__(self, user, item, dense):
        affinity = self.users[user[:, 0]] * self.items[item[:, 0]] / 2000
        return {"p": affinity + dense.sum(1), "both": np.stack([affinity, affinity], 1)}
"""


def python_folder(folder):
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(PYTHON)
    (folder / "model.toml").write_text(TOML)
    return folder


FOLDERS |= {
    "exported": exported_folder,
    "python": python_folder,
    "onnx": onnx_folder,
    "lightgbm": lightgbm_folder,
    "xgboost": xgboost_folder,
    "catboost": catboost_folder,
}


BAGS = """
[inputs.user]
scope = "query"
datatype = "FP32"
shape = [2]
[inputs.values]
bag = "ends"
ids = 30
datatype = "INT64"
[inputs.ends]
bounds = "BOUNDS"
datatype = "INT64"
lengths = "uniform:0,5"
"""


class Bags(torch.nn.Module):
    """A bag of ids a candidate, by one of four conventions."""

    def __init__(self, bounds: str):
        super().__init__()
        torch.manual_seed(0)
        self.bounds = bounds
        self.table = torch.nn.Embedding(30, 2)

    def forward(self, user, values, ends):
        rows = self.table(values)
        if self.bounds == "lengths":
            which = torch.repeat_interleave(torch.arange(ends.size(0)), ends)
            n = ends.size(0)
        else:
            n = ends.size(0)
            if self.bounds == "ends":
                which = torch.searchsorted(ends, torch.arange(values.size(0)), right=True)
            else:
                if self.bounds == "offsets":
                    n = n - 1
                which = torch.searchsorted(ends[:n], torch.arange(values.size(0)), right=True) - 1
        pooled = torch.zeros(n, 2).index_add_(0, which, rows)
        return (pooled * user).sum(1)
