"""Users' own models behind the server: unmodified clients, and models that fail."""

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from deeprecsys.artifacts import open_model
from deeprecsys.core import Policy
from own_models import BAGS, FOLDERS, Bags, scripted
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
        ]:
            status, said = client.infer({"x": np.full((3, 2), float(first))})
            assert status == 500
            assert line in said["error"]
        status, said = client.infer({"x": np.full((3, 2), 4.0)})
        assert (status, said["outputs"][0]["data"]) == (200, [8.0, 8.0, 8.0])


def test_an_id_out_of_range_is_refused_with_its_input_and_itself(tmp_path):
    model = open_model(FOLDERS["onnx"](tmp_path / "own"))
    given = model.example(3, np.random.default_rng(0))
    with serving(model) as server, Client(server) as client:
        status, said = client.infer({**given, "item": np.full((3, 1), 40)})
        assert (status, said["error"]) == (
            400, "input item has id 40; its ids are 0 to 39, and 0 for none",
        )  # fmt: skip
