"""The matrix of the Open Inference Protocol, by its reference client and by bare HTTP and gRPC."""

import gzip
import json
import socket
import zlib

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deeprecsys.models import load_model
from deeprecsys.protocol.grpc_schema import HEALTH, SERVICE, message
from serving_fixture import Client, serving

pytestmark = pytest.mark.engine

MODEL = load_model("dlrm-rmc1", scale=0.001)
N = 7


@pytest.fixture(scope="module")
def server():
    with serving(MODEL) as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server) as client:
        yield client


@pytest.fixture(scope="module")
def triton(server):
    """The reference client's module and object, by protocol."""
    return {
        "http": (triton_http, triton_http.InferenceServerClient(f"127.0.0.1:{server.http_port}")),
        "grpc": (triton_grpc, triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")),
    }


def inputs(n=N, seed=0):
    return MODEL.example(n, np.random.default_rng(seed))


def scores_of(answer):
    (output,) = answer["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def triton_inputs(module, given, binary=True):
    made = []
    for spec in MODEL.inputs:
        array = given[spec.name]
        item = module.InferInput(spec.name, list(array.shape), spec.datatype)
        if module is triton_http:
            item.set_data_from_numpy(array, binary_data=binary)
        else:
            item.set_data_from_numpy(array)
        made.append(item)
    return made


@pytest.mark.parametrize("listed", [True, False], ids=["outputs listed", "not listed"])
@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_reference_client_gets_the_models_scores(
    triton, protocol, binary, compression, version, listed
):
    module, client = triton[protocol]
    given, outputs, said = inputs(), None, {}
    if protocol == "http":
        said = {
            "request_compression_algorithm": compression,
            "response_compression_algorithm": compression,
        }
        if listed:
            outputs = [module.InferRequestedOutput("scores", binary_data=binary)]
    else:
        said = {"compression_algorithm": compression}
        if listed:
            outputs = [module.InferRequestedOutput("scores")]
    answer = client.infer(
        MODEL.name, triton_inputs(module, given, binary), model_version=version, outputs=outputs,
        request_id="of the query", priority=1, timeout=5_000_000, **said,
    )  # fmt: skip
    np.testing.assert_allclose(answer.as_numpy("scores"), MODEL.reference(given), atol=1e-5)
    said_of = answer.get_response() if protocol == "http" else answer.get_response(as_json=True)
    assert said_of["id"] == "of the query"
    assert said_of["model_version"] == "1"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_belongs_to_the_user_comes_once_or_repeated(protocol):
    model = load_model("din", scale=0.001, query_inputs=True)
    shared = [spec.name for spec in model.inputs if spec.scope == "query"]
    once = model.example(N, np.random.default_rng(0))
    repeated = {k: np.repeat(v, N, 0) if k in shared else v for k, v in once.items()}
    module = triton_http if protocol == "http" else triton_grpc
    with serving(model, "eager") as server:
        port = server.http_port if protocol == "http" else server.grpc_port
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            as_json = {} if protocol == "http" else {"as_json": True}
            config = client.get_model_config("din", **as_json)
            said = config.get("config", config)["parameters"]
            assert {k for k in said if k[:6] == "scope."} == {f"scope.{k}" for k in shared}
            for given in (once, repeated):
                sent = []
                for name, array in given.items():
                    sent.append(module.InferInput(name, list(array.shape), "INT32"))
                    sent[-1].set_data_from_numpy(array)
                scores = client.infer("din", sent).as_numpy("scores")
                np.testing.assert_allclose(scores, model.reference(repeated), atol=1e-5)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_the_server_says_of_itself(triton, protocol):
    _, client = triton[protocol]
    as_json = {} if protocol == "http" else {"as_json": True}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL.name)
    assert client.is_model_ready(MODEL.name, "1")
    assert "binary_tensor_data" in client.get_server_metadata(**as_json)["extensions"]
    meta = client.get_model_metadata(MODEL.name, **as_json)
    assert [i["name"] for i in meta["inputs"]] == [spec.name for spec in MODEL.inputs]
    assert [int(d) for d in meta["inputs"][1]["shape"]] == [-1, 80]
    assert [int(d) for d in meta["outputs"][0]["shape"]] == [-1, 1]
    config = client.get_model_config(MODEL.name, **as_json)
    config = config.get("config", config)
    assert config["parameters"]["rows.table_0"]["string_value"] == "4000"
    assert config["input"][1]["data_type"] == "TYPE_INT32"
    index = client.get_model_repository_index(**as_json)
    models = index if protocol == "http" else index["models"]
    assert [m["state"] for m in models] == ["READY"]
    with pytest.raises(InferenceServerException, match="unknown model"):
        client.get_model_metadata("other")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_statistics_count_items_and_queries(triton, protocol):
    module, client = triton[protocol]
    as_json = {} if protocol == "http" else {"as_json": True}

    def counted():
        (stats,) = client.get_inference_statistics(MODEL.name, **as_json)["model_stats"]
        return int(stats["inference_count"]), int(stats["inference_stats"]["success"]["count"])

    items, queries = counted()
    client.infer(MODEL.name, triton_inputs(module, inputs()))
    assert counted() == (items + N, queries + 1)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("n", [0, 1])
def test_no_candidate_and_one(client, n, binary):
    status, answer = client.infer(inputs(n), binary=binary)
    assert status == 200
    assert answer["outputs"][0]["shape"] == [n, 1]
    np.testing.assert_allclose(scores_of(answer), MODEL.reference(inputs(n)), atol=1e-5)


def test_no_candidate_over_grpc(triton):
    module, client = triton["grpc"]
    answer = client.infer(MODEL.name, triton_inputs(module, inputs(0)))
    assert answer.as_numpy("scores").shape == (0, 1)


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", None])
def test_the_content_type_does_not_matter(client, kind):
    status, _ = client.infer(inputs(), headers={"Content-Type": kind} if kind else {})
    assert status == 200


def test_nested_json_data(client):
    given = inputs(2)
    listed = [
        {"name": k, "shape": v.shape, "datatype": "FP32" if k == "dense" else "INT32",
         "data": v.tolist()} for k, v in given.items()
    ]  # fmt: skip
    status, answer = client.send({"inputs": listed, "id": "x"})
    assert (status, answer["id"]) == (200, "x")
    np.testing.assert_allclose(scores_of(answer), MODEL.reference(given), atol=1e-5)


def broken(change):
    """A JSON request of two candidates with one thing wrong."""
    request = {
        "inputs": [
            {"name": k, "shape": list(v.shape), "datatype": "FP32" if k == "dense" else "INT32",
             "data": v.reshape(-1).tolist()} for k, v in inputs(2).items()
        ]
    }  # fmt: skip
    change(request)
    return request


def first(**what):
    return lambda request: request["inputs"][1].update(what)


WRONG = {
    "wrong name": first(name="nobody"),
    "wrong datatype": first(datatype="INT64"),
    "unknown datatype": first(datatype="INT33"),
    "wrong shape": first(shape=[2, 79]),
    "negative shape": first(shape=[-2, -80]),
    "huge shape": first(shape=[1 << 62, 80]),
    "overflowing shape": first(shape=[1 << 32, 1 << 32, 1 << 32]),
    "too few values": first(data=[1, 2, 3]),
    "id of no row": first(data=[4000] * 160),
    "negative id": first(data=[-1] * 160),
    "no data": lambda r: r["inputs"][1].pop("data"),
    "a number for a tensor": first(shape=[]),
    "a number that says how many": lambda r: r["inputs"][0].update(shape=[], data=[1.0]),
    "missing input": lambda r: r["inputs"].pop(),
    "extra input": lambda r: r["inputs"].append({**r["inputs"][0], "name": "more"}),
    "given twice": lambda r: r["inputs"].append(r["inputs"][0]),
    "no inputs": lambda r: r.pop("inputs"),
    "inputs are no list": lambda r: r.update(inputs=3),
    "unknown output": lambda r: r.update(outputs=[{"name": "nothing"}]),
    "shared memory": first(parameters={"shared_memory_region": "x"}),
    "timeout is no number": lambda r: r.update(parameters={"timeout": "soon"}),
    "timeout beyond all numbers": lambda r: r.update(parameters={"timeout": 10**400}),
    "timeout beyond 64 bits": lambda r: r.update(parameters={"timeout": 1 << 64}),
    "timeout is a fraction": lambda r: r.update(parameters={"timeout": 0.5}),
    "nothing, and far too much": first(shape=[0, 1 << 62], data=[]),
    "nothing, many times": first(shape=[0, *[1 << 31] * 9], data=[]),
    "more than 64 bits": first(shape=[0, 10**30], data=[]),
    "a data size that is true": first(parameters={"binary_data_size": True}),
    "priority beyond all numbers": lambda r: r.update(parameters={"priority": 10**400}),
    "priority of no level": lambda r: r.update(parameters={"priority": 77}),
    "binary size beyond the body": first(parameters={"binary_data_size": 640}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_400_in_one_line(client, what):
    status, answer = client.send(broken(WRONG[what]))
    assert status == 400
    assert "\n" not in answer["error"]
    assert client.infer(inputs())[0] == 200  # on the same connection


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_400_that_name_the_input(client, value):
    given = inputs()
    given["dense"][3, 5] = value
    status, answer = client.infer(given)
    assert status == 400
    assert "dense" in answer["error"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b"[1]", {}),
        (b"\xff\xfe", {}),
        (b'{"inputs": [NaN]}', {}),
        (b"[" * 200_000, {}),
        (b"{}", {"Inference-Header-Content-Length": "9"}),
        (b"{}", {"Inference-Header-Content-Length": "-1"}),
        (b"{}", {"Inference-Header-Content-Length": "much"}),
        (b"xx", {"Content-Encoding": "gzip"}),
        (b"xx", {"Content-Encoding": "deflate"}),
        (b"xx", {"Content-Encoding": "br"}),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], {"Content-Encoding": "gzip"}),
    ],
)
def test_a_body_that_is_no_request_is_400(client, body, headers):
    path = f"/v2/models/{MODEL.name}/infer"
    status, _, answer = client.ask("POST", path, body, headers)
    assert status == 400
    assert json.loads(answer)["error"]


def test_bytes_missing_or_left_over_are_400(client):
    from deeprecsys.protocol import wire

    head, data = wire.request(inputs())
    whole = b"".join(map(bytes, data))
    assert client.send(head, whole)[0] == 200
    assert client.send(head, whole[:-4])[0] == 400
    assert client.send(head, whole + b"1234")[0] == 400


def test_unknown_model_version_path_and_method(client):
    for path in ("/v2/models/other/infer", f"/v2/models/{MODEL.name}/versions/2/infer"):
        assert client.infer(inputs(), path=path)[0] == 404
    assert client.get("/v2/models/other")[0] == 404
    assert client.get("/v2/nothing")[0] == 404
    assert client.get("/nothing")[0] == 404
    assert client.get(f"/v2/models/{MODEL.name}/infer")[0] == 405
    status, _, _ = client.ask("DELETE", "/v2/health/live")
    assert status == 405
    assert client.ask("POST", f"/v2/repository/models/{MODEL.name}/load", b"{}")[0] == 403


def test_only_body_bytes_over_the_limit_are_413(client, server):
    assert client.ask("POST", f"/v2/models/{MODEL.name}/infer", bytes((1 << 20) + 1))[0] == 413
    bomb = zlib.compress(bytes(50 << 20))
    headers = {"Content-Encoding": "deflate"}
    with Client(server) as fresh:
        status, _, _ = fresh.ask("POST", f"/v2/models/{MODEL.name}/infer", bomb, headers)
    assert status == 413


def test_chunked_bodies_and_expectations(server):
    head = json.dumps(broken(lambda r: None)).encode()
    pieces = (head[i : i + 1000] for i in range(0, len(head), 1000))
    with Client(server) as client:
        status, _, _ = client.ask("POST", f"/v2/models/{MODEL.name}/infer", pieces)
    assert status == 200
    with socket.create_connection(("127.0.0.1", server.http_port), 5) as raw:
        line = f"POST /v2/models/{MODEL.name}/infer HTTP/1.1\r\nContent-Length: {len(head)}\r\n"
        raw.sendall(f"{line}Expect: 100-continue\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 100")
        raw.sendall(head)
        assert raw.recv(100).startswith(b"HTTP/1.1 200")


def test_requests_behind_each_other_are_answered_in_order(server):
    with socket.create_connection(("127.0.0.1", server.http_port), 5) as raw:
        raw.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n" * 2)
        got = b""
        while got.count(b"HTTP/1.1") < 4:
            got += raw.recv(65536)
    lines = [line for line in got.split(b"\r\n") if b"HTTP/1.1" in line]
    assert [line.partition(b"HTTP/1.1 ")[2][:3] for line in lines] == [b"200", b"404"] * 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\r\n\r\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4000, 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", 400),
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(server, sent, status):
    with socket.create_connection(("127.0.0.1", server.http_port), 5) as raw:
        raw.sendall(sent)
        answer = b""
        while chunk := raw.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 %d" % status)


def grpc_call(server, method, request, service=SERVICE):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        reply = "HealthCheckResponse" if service == HEALTH else f"{method}Response"
        call = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda r: r if isinstance(r, bytes) else r.SerializeToString(),
            response_deserializer=message(reply).FromString,
        )
        return call(request, timeout=10)


def grpc_request(raw=True, n=2):
    request = message("ModelInferRequest")(model_name=MODEL.name)
    for name, array in inputs(n).items():
        item = request.inputs.add(
            name=name, shape=array.shape, datatype="FP32" if name == "dense" else "INT32"
        )
        if raw:
            request.raw_input_contents.append(array.tobytes())
        elif name == "dense":
            item.contents.fp32_contents.extend(array.reshape(-1).tolist())
        else:
            item.contents.int_contents.extend(array.reshape(-1).tolist())
    return request


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_takes_raw_and_typed_contents(server, raw):
    reply = grpc_call(server, "ModelInfer", grpc_request(raw))
    scores = np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(reply.outputs[0].shape)
    np.testing.assert_allclose(scores, MODEL.reference(inputs(2)), atol=1e-5)


def test_grpc_refuses_with_the_protocols_codes(server):
    def code(change):
        request = grpc_request()
        change(request)
        with pytest.raises(grpc.RpcError) as caught:
            grpc_call(server, "ModelInfer", request)
        return caught.value.code().name

    assert code(lambda r: r.raw_input_contents.pop()) == "INVALID_ARGUMENT"
    assert code(lambda r: setattr(r.inputs[1], "datatype", "INT64")) == "INVALID_ARGUMENT"
    assert code(lambda r: setattr(r.inputs[1], "name", "nobody")) == "INVALID_ARGUMENT"
    assert code(lambda r: r.inputs[1].contents.int_contents.append(3)) == "INVALID_ARGUMENT"
    assert code(lambda r: setattr(r, "model_name", "other")) == "NOT_FOUND"
    assert code(lambda r: setattr(r, "model_version", "2")) == "NOT_FOUND"
    with pytest.raises(grpc.RpcError) as caught:
        grpc_call(server, "ModelInfer", b"\xff\xff\xff")
    assert caught.value.code().name == "INVALID_ARGUMENT"


def test_grpc_health(server):
    asked = message("HealthCheckRequest")()
    assert grpc_call(server, "Check", asked, HEALTH).status == 1


def test_metrics_are_what_prometheus_reads(client):
    from prometheus_client.parser import text_string_to_metric_families

    client.infer(inputs())
    status, _, body = client.ask("GET", "/metrics")
    assert status == 200
    families = {f.name: f for f in text_string_to_metric_families(body.decode())}
    assert families["nv_inference_count"].samples[0].value >= N
    buckets = [
        s.value for s in families["deeprecsys_query_seconds"].samples
        if s.name.endswith("_bucket") and s.labels["size"] == "0-63"
    ]  # fmt: skip
    assert buckets == sorted(buckets)
    assert buckets[-1] >= 1


def test_the_mutated_and_the_random_never_break_it(client):
    """A hundred times as many in `benchmarks/reliability.py`."""
    from deeprecsys.protocol import wire

    rng = np.random.default_rng(0)
    head, data = wire.request(inputs())
    body = b"".join([head, *map(bytes, data)])
    for _ in range(300):
        mutated = bytearray(body[: rng.integers(0, len(body))] if rng.random() < 0.2 else body)
        for _ in range(rng.integers(1, 5)):
            if mutated:
                most = len(head) if rng.random() < 0.7 else len(mutated)
                mutated[rng.integers(0, min(most, len(mutated)))] = rng.integers(0, 256)
        headers = {"Inference-Header-Content-Length": str(len(head))}
        status, _, answer = client.ask(
            "POST", f"/v2/models/{MODEL.name}/infer", bytes(mutated), headers
        )
        assert status in (200, 400, 429, 504), answer
    assert client.infer(inputs())[0] == 200
