"""HTTP and gRPC answer alike: one table of cases, asked of both by the reference client."""

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deeprecsys.protocol.reasons import Reason
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving.bounds import Bounds
from serving_fixture import serving
from stub_model import StubModel

MODULES = {"http": triton_http, "grpc": triton_grpc}
CODES = {str(reason.status): reason.code for reason in Reason}


@pytest.fixture(scope="module")
def clients():
    with serving(StubModel(), NoOp(), bounds=Bounds(body_bytes=1 << 20, candidates=100)) as server:
        ports = {"http": server.http_port, "grpc": server.grpc_port}
        made = {
            name: module.InferenceServerClient(f"127.0.0.1:{ports[name]}")
            for name, module in MODULES.items()
        }
        yield made
        for client in made.values():
            client.close()


def infer(module, client, *, shape=(3, 4), datatype="FP32", name="dense", model="stub", **more):
    dtype = {"FP32": np.float32, "INT32": np.int32, "FP64": np.float64}[datatype]
    given = module.InferInput(name, list(shape), datatype)
    given.set_data_from_numpy(np.ones(shape, dtype))
    output = more.pop("output", None)
    asked = [module.InferRequestedOutput(**output)] if output else None
    answer = client.infer(model, [given], outputs=asked, **more)
    return answer.as_numpy("scores").shape


CASES = {
    "ready": lambda m, c: c.is_server_ready(),
    "live": lambda m, c: c.is_server_live(),
    "the model is ready": lambda m, c: c.is_model_ready("stub"),
    "this version is ready": lambda m, c: c.is_model_ready("stub", "1"),
    "an unknown model is not": lambda m, c: c.is_model_ready("other"),
    "an unknown version is not": lambda m, c: c.is_model_ready("stub", "7"),
    "metadata of an unknown model": lambda m, c: c.get_model_metadata("other"),
    "config of an unknown model": lambda m, c: c.get_model_config("other"),
    "statistics of an unknown model": lambda m, c: c.get_inference_statistics("other"),
    "a query": infer,
    "no candidates": lambda m, c: infer(m, c, shape=(0, 4)),
    "of an unknown model": lambda m, c: infer(m, c, model="other"),
    "of an unknown version": lambda m, c: infer(m, c, model_version="7"),
    "classes": lambda m, c: infer(m, c, output={"name": "scores", "class_count": 3}),
    "an unknown output": lambda m, c: infer(m, c, output={"name": "other"}),
    "an unknown input": lambda m, c: infer(m, c, name="other"),
    "another datatype": lambda m, c: infer(m, c, datatype="FP64"),
    "another shape": lambda m, c: infer(m, c, shape=(3, 5)),
    "too many candidates": lambda m, c: infer(m, c, shape=(101, 4)),
    "a body that is too large": lambda m, c: infer(m, c, shape=(1 << 17, 4)),
    "priority of no level": lambda m, c: infer(m, c, priority=10),
    "the highest priority": lambda m, c: infer(m, c, priority=1),
    "an endless deadline": lambda m, c: infer(m, c, timeout=(1 << 63) - 1),
    "an id": lambda m, c: infer(m, c, request_id="ä"),
    "compressed": lambda m, c: infer(
        m, c, **{f"{'request_' * (m is triton_http)}compression_algorithm": "gzip"}
    ),
}  # fmt: skip


def outcome(name, client, act):
    try:
        return act(MODULES[name], client)
    except InferenceServerException as error:
        status = (error.status() or "").removeprefix("StatusCode.")
        return CODES.get(status, status)


@pytest.mark.parametrize("what", CASES)
def test_both_protocols_say_the_same(clients, what):
    said = {name: outcome(name, client, CASES[what]) for name, client in clients.items()}
    assert said["http"] == said["grpc"], said
    assert "INTERNAL" not in said.values()
