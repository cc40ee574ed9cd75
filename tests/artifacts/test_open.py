"""A user's own model, opened: what it says, what it lacks, and whether its queries may be cut."""

import io
import json
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch

from deeprecsys.artifacts import look, open_model
from deeprecsys.core import UserError, slice_inputs
from deeprecsys.runtimes import make_runtime, runtimes_of
from own_models import (
    BAGS,
    FOLDERS,
    TOML,
    Bags,
    Ranker,
    example,
    exported_folder,
    python_folder,
    scripted,
    torchscript_folder,
    traced,
)


class ListWise(torch.nn.Module):
    def forward(self, x):
        return torch.softmax(x.sum(1), 0)


class Outputs(torch.nn.Module):
    """[N], [N, 2] of doubles, whole numbers."""

    def forward(self, x):
        total = x.sum(1)
        return {"p": total, "both": x.double() * 3, "rank": total.argsort()}


X = '[inputs.x]\ndatatype = "FP32"\nshape = [2]\n'


def of_x(folder, module, toml=X):
    folder.mkdir(exist_ok=True)
    scripted(module, folder / "model.pt")
    (folder / "model.toml").write_text(toml)
    return open_model(folder)


def test_a_model_says_what_was_found_declared_and_assumed(tmp_path):
    model = open_model(torchscript_folder(tmp_path / "ranker"))
    assert model.name == "ranker"
    assert [(s.name, s.datatype, s.shape, s.scope, s.rows) for s in model.inputs] == [
        ("user", "INT64", (1,), "query", 50),
        ("item", "INT64", (1,), "candidate", 40),
        ("dense", "FP32", (3,), "candidate", None),
    ]
    assert (model.whole, model.most_items, model.tasks, model.target.latency_s) == (
        False, None, 1, 0.05,
    )  # fmt: skip
    kinds = {(fact.where, fact.kind) for fact in model.facts}
    assert ("input dense", "assumed") in kinds
    assert ("queries", "found") in kinds


def test_its_scores_are_the_artifact_s_own_bit_for_bit(tmp_path):
    model = open_model(torchscript_folder(tmp_path / "ranker"))
    inputs = example(33)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(tmp_path / "ranker" / "model.pt"))
        said = module(*[torch.from_numpy(a) for a in inputs.values()]).numpy()
    assert np.array_equal(model.reference(inputs), said)
    once = inputs | {"user": inputs["user"][:1]}
    every = inputs | {"user": np.repeat(inputs["user"][:1], 33, 0)}
    np.testing.assert_allclose(model.reference(once), model.reference(every), rtol=1e-6)


@pytest.mark.parametrize("bounds", ["starts", "offsets", "ends", "lengths"])
def test_bags_are_cut_with_their_candidates_by_every_convention(tmp_path, bounds):
    scripted(Bags(bounds), tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text(BAGS.replace("BOUNDS", bounds))
    model = open_model(tmp_path)
    assert not model.whole
    inputs = model.example(40, np.random.default_rng(2))
    assert model.check(inputs) == 40
    whole = model.reference(inputs)
    for lo, hi in ((0, 1), (7, 8), (13, 40)):
        part = slice_inputs(model.inputs, inputs, lo, hi)
        assert model.check(part) == hi - lo
        np.testing.assert_allclose(model.reference(part), whole[lo:hi], rtol=1e-5, atol=1e-6)


def test_a_list_wise_model_is_never_cut(tmp_path):
    model = of_x(tmp_path / "list", ListWise())
    assert model.whole
    assert any("never cut: a candidate alone" in fact.what for fact in model.facts)


def test_batch_norm_left_in_training_is_never_cut(tmp_path):
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)).train()
    folder = tmp_path / "norm"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(folder / "model.pt"))
    (folder / "model.toml").write_text(X.replace("inputs.x", "inputs.input"))
    model = open_model(folder)
    assert (model.whole, model.tried.least) == (True, 2)  # of one candidate there is no variance
    with pytest.raises(UserError, match="has at least 2 candidates"):
        model.check({"input": np.zeros((1, 2), np.float32)})


def test_outputs_of_every_kind_keep_their_names_types_and_shapes(tmp_path):
    model = of_x(tmp_path / "outputs", Outputs(), X + '[outputs]\nscore = "p"\n')
    assert [(o.name, o.datatype, o.shape) for o in model.outputs] == [
        ("p", "FP32", ()), ("both", "FP64", (2,)), ("rank", "INT64", ()),
    ]  # fmt: skip
    assert (model.score, model.whole) == ("p", True)  # a rank is of the whole list


def test_what_is_missing_is_named_with_the_line_to_add(tmp_path):
    folder = torchscript_folder(tmp_path / "r", TOML.replace("ids = 50\n", ""))
    with pytest.raises(UserError, match=r"valid ids: add ids = ROWS .* under \[inputs.user\]"):
        open_model(folder)
    assert [fact.where for fact in look(folder).derived.missing] == ["input user"]


def test_recorded_queries_say_types_shapes_and_whose_an_input_is(tmp_path):
    folder = torchscript_folder(tmp_path / "r", "")
    inputs = example(30)
    inputs["user"] = inputs["user"][:2]
    np.savez(folder / "samples.npz", size=[10, 20], **inputs)
    model = open_model(folder)
    assert [(s.datatype, s.shape, s.scope) for s in model.inputs] == [
        ("INT64", (1,), "query"), ("INT64", (1,), "candidate"), ("FP32", (3,), "candidate"),
    ]  # fmt: skip
    assert [model.check(query) for query in model.recorded] == [10, 20]


def frozen_at(n, path):
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x.reshape(n, 2).sum(1)

    traced(Fixed(), torch.zeros(n, 2), path=path)


def test_a_batch_size_that_was_frozen_in_is_filled_up_and_not_exceeded(tmp_path):
    frozen_at(16, tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text(X)
    model = open_model(tmp_path)
    assert (model.tried.least, model.most_items) == (16, 16)
    x = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    np.testing.assert_allclose(model.reference({"x": x})[:, 0], x.sum(1), rtol=1e-5)


def damaged(folder):
    torchscript_folder(folder)
    whole = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(whole[: len(whole) // 2])


def weights_only(folder):
    torchscript_folder(folder)
    torch.save(Ranker().state_dict(), folder / "model.pt")


def two(folder):
    torchscript_folder(folder)
    (folder / "other.pt").write_bytes(b"")


def pickled(folder):
    folder.mkdir()
    (folder / "model.pkl").write_bytes(b"\x80\x04.")


def exported_with_a_pickle(folder):
    """Loading it would unpickle what somebody put in the place of the example."""
    exported_folder(folder)
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    evil = io.BytesIO()
    torch.save([Ranker()], evil)
    with zipfile.ZipFile(folder / "model.pt2", "w") as archive:
        for name, data in held.items():
            archive.writestr(name, evil.getvalue() if "sample_inputs" in name else data)


def toml(old, new):
    return lambda folder: torchscript_folder(folder, TOML.replace(old, new))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda folder: None, "no file or folder"),
        (lambda folder: folder.mkdir(), "holds no model"),
        (damaged, "is no TorchScript that can be read, or is cut off"),
        (weights_only, r"is a pickle \(torch.save\), which runs code as it is loaded"),
        (pickled, "is a pickle, which runs code as it is loaded"),
        (two, r'has several models, model.pt, other.pt: say model = "\.\.\."'),
        (python_folder, r"is code, which runs in this process: give --trust \(trust=True\)"),
        (exported_with_a_pickle, "is code, which runs in this process: give --trust"),
        (toml("scope", "scop"), "unknown key 'scop' of an input; did you mean 'scope'"),
        (toml("target", "taget"), "unknown key 'taget'; did you mean 'target'"),
        (toml("[inputs.item]", "[inputs.itm]"), "names input 'itm', .*did you mean 'item'"),
        (toml('"INT64"', '"INT46"'), "unknown datatype 'INT46'; did you mean INT64"),
        (toml("ids = 40", "ids = 4000"), "fails with the last id of input item, 3999"),
        (toml("ids = 40", "ids = 0"), "ids must be the number of rows"),
        (toml("shape = [3]", "shape = [4]"), "fails on an example"),
        (toml('"FP32"', '"FP64"'), "fails on an example"),
        (toml('"INT64"', '"BYTES"'), "user is BYTES, text, which model.pt does not take"),
        (toml("target =", "outputs = {score = 'no'}\ntarget ="), "no output 'no'; .* has scores"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, make, line):
    make(tmp_path / "r")
    with pytest.raises(UserError, match=line) as raised:
        open_model(tmp_path / "r")
    assert "\n" not in str(raised.value)


def bags_recorded_flat(folder):
    """As one array of all queries' candidates, which bags' values are not."""
    scripted(Bags("lengths"), folder / "model.pt")
    (folder / "model.toml").write_text(BAGS.replace("BOUNDS", "lengths"))
    user, ends = np.ones((2, 2), np.float32), np.array([2, 0, 1])
    np.savez(folder / "samples.npz", size=[2, 1], user=user, values=np.arange(7), ends=ends)


def test_bags_recorded_as_one_array_are_refused_and_by_query_are_taken(tmp_path):
    bags_recorded_flat(tmp_path)
    with pytest.raises(UserError, match=r"values has 7 rows.*bags.* as .jsonl or .parquet"):
        open_model(tmp_path)
    (tmp_path / "samples.npz").unlink()
    rows = [([[1, 1]], [4, 5], [2, 0]), ([[1, 1]], [6], [1]), ([[1, 1]], [], [0])]
    lines = [json.dumps(dict(zip(("user", "values", "ends"), row, strict=True))) for row in rows]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    model = open_model(tmp_path)
    assert [model.check(query) for query in model.recorded] == [2, 1, 1]
    assert model.check(model.example(9, np.random.default_rng(0))) == 9


@pytest.mark.parametrize(
    ("form", "library", "extra"),
    [
        ("torchscript", "torch", "torch"),
        ("exported", "torch", "torch"),
        ("onnx", "onnxruntime", "onnx"),
        ("lightgbm", "lightgbm", "trees"),
        ("xgboost", "xgboost", "trees"),
        ("catboost", "catboost", "trees"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    form, library, extra, tmp_path, monkeypatch
):
    folder = FOLDERS[form](tmp_path / "r")
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    with pytest.raises(UserError, match=rf"needs {library}: pip install .deeprecsys\[{extra}\]"):
        open_model(folder)


def test_inputs_are_checked_by_name_type_shape_and_id(tmp_path):
    model = open_model(torchscript_folder(tmp_path / "ranker"))
    good = example(5)
    assert model.check(good | {"user": good["user"][:1, 0]}) == 5
    for bad, line in [
        ({"item": good["item"] + 40}, "input item has id 4[0-9]; its ids are 0 to 39"),
        ({"user": good["user"].astype(np.int32)}, "input user must be INT64"),
        ({"dense": good["dense"][:4]}, r"must be FP32 \[5, 3\], not float32 \[4, 3\]"),
        ({"dense": good["dense"] * np.nan}, "dense has nan in row 1: its numbers must be finite"),
        ({"more": good["dense"]}, "has no input more"),
    ]:
        with pytest.raises(UserError, match=line):
            model.check(good | bad)


class OneUser(torch.nn.Module):
    """Takes the user in one row and in no other way, as a graph does whose user's row is fixed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users = torch.nn.Embedding(50, 3)

    def forward(self, user, dense):
        if user.size(0) != 1:
            raise RuntimeError("one user, please")
        return (self.users(user[:, 0]) * dense).sum(1, keepdim=True)


ONE_USER = """
[inputs.user]
scope = "query"
ids = 50
datatype = "INT64"
shape = [1]
[inputs.dense]
datatype = "FP32"
shape = [3]
"""


def test_where_a_call_is_for_one_user_queries_that_repeat_the_row_and_joins_of_queries_work(
    tmp_path,
):
    model = of_x(tmp_path / "m", OneUser(), ONE_USER)
    assert not model.whole
    assert "in no other way" in " ".join(fact.what for fact in model.facts)
    rng = np.random.default_rng(0)
    dense, user = rng.standard_normal((9, 3), np.float32), np.array([[7]])
    once = {"user": user, "dense": dense}
    expected = (model.form.module.users.weight[7].detach().numpy() * dense).sum(1)[:, None]
    for inputs in (once, {"user": np.repeat(user, 9, 0), "dense": dense}):
        np.testing.assert_allclose(model.reference(inputs), expected, rtol=1e-5)
    for name in runtimes_of(model):
        runtime = make_runtime(name, model)
        runtime.enter_thread()
        scores = [np.zeros((9, 1), np.float32), np.zeros((9, 1), np.float32)]
        other = {"user": np.array([[8]]), "dense": dense}
        prepared = [runtime.prepare(q, s) for q, s in zip((once, other), scores, strict=True)]
        runtime.execute_together([(prepared[0], 0, 9), (prepared[1], 2, 5)])
        np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
        np.testing.assert_allclose(scores[1][2:5], model.reference(other)[2:5], rtol=1e-5)
        runtime.execute(
            runtime.prepare({"user": np.repeat(user, 9, 0), "dense": dense}, scores[1]), 0, 9
        )
        np.testing.assert_allclose(scores[1], expected, rtol=1e-5)
