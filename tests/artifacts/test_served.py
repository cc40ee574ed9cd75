"""Users' own models behind the server: unmodified clients, and models that fail."""

import math
import re
import runpy
import warnings

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deeprecsys.artifacts import open_model
from deeprecsys.client.client import Client as LoadClient
from deeprecsys.core import Policy, Schedule, Status
from own_models import BAGS, FOLDERS, Bags, scripted, texts_folder
from serving_fixture import Client, serving

pytestmark = pytest.mark.engine
N = 23


def bags_folder(folder):
    """A user's row and a ragged bag a candidate."""
    folder.mkdir()
    scripted(Bags("ends"), folder / "model.pt")
    (folder / "model.toml").write_text(BAGS.replace("BOUNDS", "ends"))
    return folder


@pytest.mark.parametrize("form", ["bags", "onnx", "lightgbm", "python"])
def test_the_reference_client_gets_what_the_artifact_says_by_name(form, tmp_path):
    make = bags_folder if form == "bags" else FOLDERS[form]
    model = open_model(make(tmp_path / "own"), trust=True)
    given = model.example(N, np.random.default_rng(1))
    expected = model._answer.split(model.reference(given))
    with serving(model, policy=Policy(8)) as server:
        for module, port in ((triton_http, server.http_port), (triton_grpc, server.grpc_port)):
            with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
                inputs = []
                for spec in model.inputs:
                    array = given[spec.name]
                    inputs.append(module.InferInput(spec.name, list(array.shape), spec.datatype))
                    inputs[-1].set_data_from_numpy(array)
                answer = client.infer(model.name, inputs)
                for output in model.outputs:
                    found = answer.as_numpy(output.name)
                    assert found.dtype == expected[output.name].dtype
                    np.testing.assert_allclose(found, expected[output.name], rtol=1e-6)
                    assert found.shape == (N, *output.shape)


def by_torchscript(folder, given):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(folder / "model.pt"))
        return module(*map(torch.from_numpy, given.values())).numpy()


def by_export(folder, given):
    module = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        return module(*map(torch.from_numpy, given.values())).numpy()


def by_onnx(folder, given):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options).run(None, given)[0]


def by_lightgbm(folder, given):
    import lightgbm

    return lightgbm.Booster(model_file=folder / "model.txt").predict(given["features"])


def by_xgboost(folder, given):
    import xgboost

    booster = xgboost.Booster(model_file=folder / "model.json")
    return booster.predict(xgboost.DMatrix(given["features"]))


def by_catboost(folder, given):
    import catboost

    return catboost.CatBoost().load_model(str(folder / "model.cbm")).predict(given["features"])


def by_python(folder, given):
    return runpy.run_path(folder / "model.py")["Model"]()(**given)["p"]


# Of each form: its own library, called with the same inputs; and whether a row's score is the same
# bits however many rows come with it.
DIRECTLY = {
    "torchscript": (by_torchscript, False),
    "exported": (by_export, False),
    "onnx": (by_onnx, False),
    "lightgbm": (by_lightgbm, True),
    "xgboost": (by_xgboost, True),
    "catboost": (by_catboost, True),
    "python": (by_python, False),
}


@pytest.mark.parametrize("form", FOLDERS)
def test_served_scores_are_those_of_the_artifact_s_own_library(form, tmp_path):
    folder = FOLDERS[form](tmp_path / "own")
    model = open_model(folder, trust=True)
    given = dict(model.example(53, np.random.default_rng(4)))
    every = {
        spec.name: np.repeat(given[spec.name], 53, 0) if spec.scope == "query" else given[spec.name]
        for spec in model.inputs
    }
    directly, same_bits = DIRECTLY[form]
    expected = directly(folder, every)
    for batch_size in (8, 64):  # in pieces, and in one
        with serving(model, policy=Policy(batch_size)) as server:
            scores = asked(server, model, given)
        assert scores.dtype == expected.dtype
        scores = scores.reshape(expected.shape)
        if same_bits or batch_size == 64:
            assert np.array_equal(scores, expected)
        np.testing.assert_allclose(scores, expected, rtol=1e-6)


def asked(server, model, given):
    """The score, by tritonclient over HTTP."""
    with triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        inputs = []
        for spec in model.inputs:
            array = given[spec.name]
            inputs.append(triton_http.InferInput(spec.name, list(array.shape), spec.datatype))
            inputs[-1].set_data_from_numpy(array)
        return client.infer(model.name, inputs).as_numpy(model.score)


def test_words_go_to_an_artifact_that_takes_them(tmp_path):
    model = open_model(texts_folder(tmp_path / "own"))
    assert [(s.name, s.datatype) for s in model.inputs] == [("country", "BYTES"), ("dense", "FP32")]
    words = np.array([["fr"], ["nl"], ["atlantis"]], object)
    given = {"country": words, "dense": np.full((3, 1), 0.25, np.float32)}
    with serving(model, policy=Policy(2)) as server:
        assert asked(server, model, given).tolist() == [[3.25], [1.25], [-0.75]]
        with pytest.raises(
            InferenceServerException, match="country has text that is not UTF-8"
        ) as no:
            asked(server, model, given | {"country": np.array([[b"\xff"]] * 3, object)})
    assert no.value.status() == "400"


@pytest.mark.parametrize(
    ("bounds", "scheme"),
    [("starts", "http"), ("offsets", "grpc"), ("ends", "http"), ("lengths", "grpc")],
)
def test_load_knows_the_bags_of_our_server_by_every_convention(bounds, scheme, tmp_path):
    scripted(Bags(bounds), tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text(BAGS.replace("BOUNDS", bounds))
    model = open_model(tmp_path)
    schedule = Schedule(np.arange(20) * 0.005, np.arange(1, 21))
    with serving(model, policy=Policy(8)) as server:
        port = server.http_port if scheme == "http" else server.grpc_port
        with LoadClient(f"{scheme}://127.0.0.1:{port}", model.name, processes=1) as client:
            records = client.run(schedule, Policy())
            assert client.last_run()["unanswered"] == 0
    assert (records.status == Status.OK).all()


HISTORY = """
[inputs.history]
bag = "n"
ids = 30
datatype = "INT64"
[inputs.n]
bounds = "lengths"
scope = "query"
datatype = "INT64"
lengths = "uniform:0,5"
[inputs.item]
ids = 30
datatype = "INT64"
shape = [1]
"""


class History(torch.nn.Module):
    """A user's bag: its mean times the item's row; nothing of a user without one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(30, 2)

    def forward(self, history, n, item):
        which = torch.repeat_interleave(torch.arange(n.size(0)), n)
        user = torch.zeros(n.size(0), 2).index_add_(0, which, self.table(history))
        return (user * self.table(item[:, 0])).sum(1)


def test_a_user_without_a_single_value_is_answered_like_any_other(tmp_path):
    scripted(History(), tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text(HISTORY)
    model = open_model(tmp_path)
    item = np.arange(5).reshape(5, 1)
    with serving(model, policy=Policy(2)) as server:
        none = {"history": np.empty(0, np.int64), "n": np.array([0]), "item": item}
        assert asked(server, model, none).tolist() == [0.0] * 5
        some = none | {"history": np.array([3, 4]), "n": np.array([2])}
        table = History().table.weight.detach().numpy()
        expected = table[:5] @ (table[3] + table[4])
        np.testing.assert_allclose(asked(server, model, some), expected, rtol=1e-5, atol=1e-6)


FAILING = """
import numpy as np

class Model:
    def __call__(self, x):
        first = x[0, 0]
        if first == 101:
            raise ValueError("no such item\\nin the catalogue")
        if first == 102:
            return np.full(len(x), np.nan)
        if first == 103:
            return x[:1, 0]
        if first == 104:
            return np.stack([x[:, 0], x[:, 0]], 1)
        if first == 105:
            return None
        if first == 106:
            return x[:, 0] + 1j
        if first == 107:
            return {"other": x[:, 0]}
        if first == 108:
            return np.full(len(x), 2**53 + 1)
        if first == 109:
            return np.full(len(x), -np.inf)
        return x[:, 0] * 2
"""


def test_a_query_that_fails_says_why_and_the_server_goes_on(tmp_path):
    (tmp_path / "model.py").write_text(FAILING)
    (tmp_path / "model.toml").write_text('[inputs.x]\ndatatype = "FP64"\nshape = [2]\n')
    model = open_model(tmp_path, trust=True)
    with serving(model) as server, Client(server) as client:
        for first, line in [
            (101, "the model failed: no such item"),
            (102, "a score is not a number"),
            (103, r"scores is shape [1], not [3]"),
            (104, r"scores is shape [3, 2], not [3]"),
            (105, "scores is shape [], not [3]"),
            (106, "scores is complex128, not FP64"),
            (107, "scores is nothing, not [3]"),
            (108, "scores has a whole number beyond 2^53, which would be rounded"),
        ]:
            status, said = client.infer({"x": np.full((3, 2), float(first))})
            assert status == 500
            assert line in said["error"]
        infinite = {"x": np.full((3, 2), 109.0)}  # which JSON cannot say, and bytes can
        status, said = client.infer(infinite)
        assert (status, "ask for it as binary data" in said["error"]) == (500, True)
        assert asked(server, model, infinite).tolist() == [-math.inf] * 3
        metrics = client.ask("GET", "/metrics")[2].decode()
        failed = re.findall(r"request_failure{[^}]*INTERNAL[^}]*} (.*)", metrics)
        assert failed == ["9.0"]
        status, said = client.infer({"x": np.full((3, 2), 4.0)})
        assert (status, said["outputs"][0]["data"]) == (200, [8.0, 8.0, 8.0])


class Echo(torch.nn.Module):
    """Whole numbers as they were given, beside a score."""

    def forward(self, id):
        return {"score": id[:, 0] * 0.5, "id": id[:, 0]}


def test_whole_numbers_are_answered_exactly_or_not_at_all(tmp_path):
    scripted(Echo(), tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text(
        '[inputs.id]\ndatatype = "INT64"\nshape = [1]\nvalues = "uniform:-9,9"\n'
    )
    model = open_model(tmp_path)
    with serving(model) as server, Client(server) as client:
        for binary in (True, False):
            most = np.array([[2**53], [2**53 - 1], [-10]])
            status, said = client.infer({"id": most}, binary=binary)
            assert status == 200
            found = {part["name"]: part["data"] for part in said["outputs"]}
            assert found["id"] == most.ravel().tolist()
            status, said = client.infer({"id": most + 1}, binary=binary)
            assert (status, "beyond 2^53" in said["error"]) == (500, True)


def test_the_configuration_says_what_the_score_is(tmp_path):
    folder = FOLDERS["lightgbm"](tmp_path / "own")
    said = '[outputs]\nkind = "probability"\ntasks = ["click"]\n'
    (folder / "model.toml").write_text((folder / "model.toml").read_text() + said)
    with serving(open_model(folder)) as server, Client(server) as client:
        status, found = client.get("/v2/models/own/config")
    assert status == 200
    told = {name: value["string_value"] for name, value in found["parameters"].items()}
    assert (told["score"], told["kind"], told["tasks"]) == ("scores", "probability", "click")
    assert "queries" not in told  # which may be cut


def test_an_id_out_of_range_is_refused_with_its_input_and_itself(tmp_path):
    model = open_model(FOLDERS["onnx"](tmp_path / "own"))
    given = model.example(3, np.random.default_rng(0))
    with serving(model) as server, Client(server) as client:
        status, said = client.infer({**given, "item": np.full((3, 1), 40)})
        assert (status, said["error"]) == (
            400, "input item has id 40; its ids are 0 to 39, and 0 for none",
        )  # fmt: skip
