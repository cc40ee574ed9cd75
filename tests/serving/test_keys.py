"""Keys of clients: what a file may say, whom they let in, and how a new one takes over."""

import base64
import hmac
import json

import grpc
import numpy as np
import pytest

from deeprecsys.core import UserError
from deeprecsys.protocol import wire
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.protocol.reasons import Refusal
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving import http_adapter
from deeprecsys.serving import keys as module
from deeprecsys.serving.keys import ADMIN, ANY, INFER, MEMORY, Keys
from deeprecsys.serving.server import Address
from serving_fixture import Client, serving
from stub_model import StubModel

RANKER, OPERATOR, FEATURES = "ranker-0123456789", "operator-0123456789", "features-0123456789"
FILE = f"""# who may do what
ranker   infer        {RANKER}

operator admin        {OPERATOR}
features infer,memory {FEATURES}
"""


def bearer(key):
    return f"Bearer {key}"


def test_a_file_of_one_key_is_that_key():
    keys = Keys.parse("\n  one-key-of-sixteen-and-more \n# a comment\n")
    assert keys.names == ("default",)
    for right in (INFER, MEMORY, ANY):
        assert keys.allows(bearer("one-key-of-sixteen-and-more"), right) == "default"
    refusal = keys.allows(bearer("one-key-of-sixteen-and-more"), ADMIN)
    assert refusal.reason.status == 403
    assert "this is off" in refusal.message


def test_each_key_has_its_own_rights():
    keys = Keys.parse(FILE)
    assert keys.names == ("ranker", "operator", "features")
    allowed = {
        (name, right): not isinstance(keys.allows(bearer(key), right), Refusal)
        for name, key in (("ranker", RANKER), ("operator", OPERATOR), ("features", FEATURES))
        for right in (INFER, MEMORY, ADMIN, ANY)
    }
    assert {pair for pair, may in allowed.items() if may} == {
        ("ranker", INFER), ("operator", ADMIN), ("features", INFER), ("features", MEMORY),
        ("ranker", ANY), ("operator", ANY), ("features", ANY),
    }  # fmt: skip
    refusal = keys.allows(bearer(RANKER), ADMIN)
    assert refusal.reason.status == 403
    assert refusal.message == "this needs a key with the right admin; that of ranker has infer"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer no", f"bearer {RANKER}x", f"Basic {RANKER}", RANKER,
     f"Bearer {RANKER[:-1]}", "Bearer \udc80\x00", b"Bearer \xff\xfe", "Basic ####"],
)  # fmt: skip
def test_whoever_brings_none_of_them_is_not_known(header):
    refusal = Keys.parse(FILE).allows(header, INFER)
    assert refusal.reason.status == 401
    with pytest.raises(Refusal, match="a key is needed: Authorization: Bearer KEY"):
        Keys.parse(FILE).check(header, ANY)


def test_a_browser_may_bring_one_as_password():
    basic = base64.b64encode(f"anybody:{RANKER}".encode()).decode()
    for header in (f"Basic {basic}", f"basic {basic}".encode(), f"BEARER  {RANKER} "):
        assert Keys.parse(FILE).allows(header, INFER) == "ranker"


def test_without_keys_all_is_open_but_what_administers():
    keys = Keys()
    assert not keys
    assert keys.allows("", INFER) == keys.allows("", MEMORY) == keys.allows("Bearer x", ANY) == ""
    refusal = keys.allows("", ADMIN)
    assert refusal.reason.status == 403
    assert "a line NAME admin KEY" in refusal.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f is empty: write the key into it"),
        ("# nothing\n\n", "f is empty"),
        ("short\n", "f, line 1: the key has 5 characters, of at least 16"),
        (f"{FILE}\nb infer short\n", "f, line 7: the key has 5 characters"),
        (f"{FILE}\nb reed {OPERATOR}1\n", "unknown right 'reed'; known are infer, memory, admin"),
        (f"b infer,,admin {OPERATOR}1\n", "f, line 1: unknown right ''"),
        (f"{FILE}\nranker infer {OPERATOR}1\n", "f, line 7: a second key of the name ranker"),
        (f"{FILE}\nb infer {RANKER}\n", "f, line 7: the same key as that of ranker"),
        (f"{FILE}\n{RANKER}1\n", "f, line 7: write NAME RIGHTS KEY"),
        (f"b infer {RANKER} too\n", "f, line 1: write NAME RIGHTS KEY"),
        (f"b/c infer {RANKER}\n", "'b/c' is no name"),
        ("b infer schlüssel-0123456789\n", "f, line 1: a key is printable ASCII"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_without_the_key(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        Keys.parse(text, "f")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    for secret in (RANKER, OPERATOR, FEATURES, "schlüssel"):
        assert secret not in str(caught.value)


def test_files_that_cannot_be_read_are_said(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the key .*: No such file"):
        Keys.read(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text: a key is printable ASCII"):
        Keys.read(tmp_path / "binary")


def test_a_key_is_compared_with_all_of_them_and_none_is_kept(monkeypatch):
    keys, compared = Keys.parse(FILE), []

    def compare(one, other):
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(module, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    for key in (RANKER, FEATURES, "nobody"):
        compared.clear()
        keys.allows(bearer(key), INFER)
        assert len(compared) == 3
        assert {len(side) for pair in compared for side in pair} == {32}
    kept = repr([(key.name, key.rights, key.digest) for key in keys._keys])
    assert not any(key in kept for key in (RANKER, OPERATOR, FEATURES))


def dense(n=3):
    return {"dense": np.ones((n, 4), np.float32)}


def authorized(key):
    return {"Authorization": bearer(key)}


@pytest.fixture(scope="module")
def server():
    address = Address("127.0.0.1", 0, 0, key=Keys.parse(FILE))
    with serving(StubModel(), NoOp(), address=address) as server:
        yield server


@pytest.mark.engine
def test_over_http(server):
    with Client(server) as client:
        asked = [client.infer(dense(), headers=authorized(key))[0]
                 for key in (RANKER, FEATURES, OPERATOR, "nobody")]  # fmt: skip
        assert asked == [200, 200, 403, 401]
        assert client.infer(dense())[0] == 401
        for path in ("/metrics", "/live.json", "/v2", "/v2/systemsharedmemory/status"):
            assert client.ask("GET", path)[0] == 401
            assert client.ask("GET", path, headers=authorized(OPERATOR))[0] == 200
        load = "/v2/repository/models/stub/lo%61d"
        status, _, body = client.ask("POST", load, b"{}", authorized(RANKER))
        assert (status, "the right admin" in json.loads(body)["error"]) == (403, True)
        assert client.ask("POST", load, b"{}", authorized(OPERATOR))[0] not in (401, 403)
        status, headers, _ = client.ask("GET", "/")
        assert (status, headers["www-authenticate"][:6]) == (401, "Bearer")
        assert client.ask("GET", "/v2/health/ready")[0] == 200


@pytest.mark.engine
def test_over_grpc(server):
    request = message("ModelInferRequest")(model_name="stub")
    request.inputs.add(name="dense", datatype="FP32", shape=[3, 4])
    request.raw_input_contents.append(dense()["dense"].tobytes())

    def code(method, body, key=None):
        metadata = [("authorization", bearer(key))] if key else []
        try:
            channel.unary_unary(f"/{SERVICE}/{method}")(body, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        body = request.SerializeToString()
        keys = (RANKER, FEATURES, OPERATOR, "nobody", None)
        codes = [code("ModelInfer", body, key) for key in keys]
        assert codes == ["OK", "OK", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAUTHENTICATED"]
        assert code("ServerMetadata", b"", OPERATOR) == "OK"
        assert code("ServerMetadata", b"") == "UNAUTHENTICATED"
        assert code("ServerReady", b"") == "OK"


@pytest.mark.engine
def test_without_a_key_that_may_nothing_is_administered():
    with serving(StubModel(), NoOp()) as server, Client(server) as client:
        status, _, body = client.ask("POST", "/v2/repository/models/stub/unload", b"{}")
        assert status == 403
        assert "this is off: it needs a key with the right admin" in json.loads(body)["error"]
        assert client.infer(dense())[0] == 200


@pytest.mark.engine
def test_natively_each_key_that_may_is_let_in_and_a_new_one_takes_over(monkeypatch):
    came = []
    init = http_adapter.Connection.__init__
    monkeypatch.setattr(
        http_adapter.Connection, "__init__", lambda *of: (came.append(1), init(*of))[1]
    )
    head, data = wire.request(dense(), parameters={"binary_data_output": True})
    body, path = b"".join([head, *map(bytes, data)]), "/v2/models/stub/infer"
    about = {"Inference-Header-Content-Length": str(len(head))}

    def ask(server, key):
        """The status, and whether it was answered natively."""
        came.clear()
        with Client(server) as client:
            status = client.ask("POST", path, body, about | authorized(key))[0]
        return status, not came

    address = Address("127.0.0.1", 0, None, key=Keys.parse(FILE))
    with serving(StubModel(), NoOp(), address=address) as server:
        native = server.plane.native
        assert native is not None
        assert ask(server, RANKER) == ask(server, FEATURES) == (200, True)
        assert ask(server, OPERATOR) == (403, False)
        assert ask(server, RANKER + "1") == (401, False)
        new = Keys.parse(f"ranker infer {RANKER}\nnext infer the-next-0123456789")
        server.plane.keys = new
        native.admit(new)
        assert ask(server, RANKER) == ask(server, "the-next-0123456789") == (200, True)
        assert ask(server, FEATURES) == (401, False)
        only = Keys.parse(f"operator admin {OPERATOR}\n")
        server.plane.keys = only
        native.admit(only)
        assert ask(server, RANKER) == (401, False)
        assert ask(server, OPERATOR) == (403, False)
