"""A server at a Unix socket, beside its ports: who is let in, natively too, and what is left."""

import http.client
import json
import os
import socket
import stat
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

import deeprecsys as drs
from deeprecsys.client.client import Client as LoadClient
from deeprecsys.client.server import Address as Reached
from deeprecsys.core import Policy, UserError
from deeprecsys.protocol import wire
from deeprecsys.protocol.reasons import Reason
from deeprecsys.runtimes.stub import FixedTime, NoOp
from deeprecsys.serving import http_adapter, unix
from deeprecsys.serving.server import Address, Server
from deeprecsys.serving.source import Source
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel, StubRuntime
from waiting import until

pytestmark = pytest.mark.engine

BINARY = {"binary_data_output": True}


def dense(n=3, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "http.sock")


class Connection(http.client.HTTPConnection):
    path = ""

    def connect(self):
        self.sock = connected(self.path)


class Through(Client):
    """By a Unix socket."""

    def __init__(self, server, path):
        super().__init__(server)
        self.http = Connection("localhost", timeout=WAIT_S)
        self.http.path = path


def connected(path):
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(WAIT_S)
    found.connect(path)
    return found


def at(path, **more):
    return Address("127.0.0.1", 0, 0, unix=path, **more)


def asked(inputs, **more):
    head, data = wire.request(inputs, parameters=BINARY, **more)
    body = b"".join([head, *map(bytes, data)])
    return (
        f"POST /v2/models/stub/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode() + body


def test_queries_come_by_it_natively(path, monkeypatch):
    came = []
    init = http_adapter.Connection.__init__
    monkeypatch.setattr(
        http_adapter.Connection, "__init__", lambda *of: (came.append(1), init(*of))[1]
    )
    with serving(StubModel(), NoOp(), address=at(path)) as server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with connected(path) as raw:
            for _ in range(3):
                raw.sendall(asked(dense()))
                assert raw.recv(1000).startswith(b"HTTP/1.1 200")
            assert not came
            assert server.plane.native.connections == 1
            raw.sendall(b"GET /v2/health/ready HTTP/1.1\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
            assert len(came) == 1
            until(lambda: server.plane.native.connections == 1 and not server.site.connections)
            raw.sendall(asked(dense()))
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
            assert len(came) == 1
        with Client(server) as client:
            assert client.infer(dense())[0] == 200
    assert not os.path.exists(path)
    assert os.listdir(os.path.dirname(path)) == []


def test_queries_come_by_it_through_python(path):
    runtime = StubRuntime()
    with serving(StubModel(), runtime, address=at(path)) as server:
        assert server.plane.native is None
        with Through(server, path) as client:
            status, answer = client.infer(dense())
            assert (status, answer["outputs"][0]["data"]) == (200, [4.0] * 3)
            assert client.get("/v2")[1]["name"] == "deeprecsys"
            assert client.infer(dense(60_000))[0] == 200


def test_grpc_listens_at_one_too(tmp_path):
    path = str(tmp_path / "grpc.sock")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    address = Address("127.0.0.1", 0, 0, grpc_unix=path)
    with serving(StubModel(), StubRuntime(), address=address):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with triton_grpc.InferenceServerClient(f"unix:{path}") as client:
            item = triton_grpc.InferInput("dense", [3, 4], "FP32")
            item.set_data_from_numpy(dense()["dense"])
            assert client.infer("stub", [item]).as_numpy("scores").tolist() == [[4.0]] * 3
    assert not os.path.exists(path)


def test_a_dead_servers_socket_is_replaced_and_a_live_ones_is_not(path):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    with serving(StubModel(), StubRuntime(), address=at(path)) as first:
        second = Server([Source.one(first.served, lambda: None)], at(path))
        with pytest.raises(UserError, match="a server listens there; choose another --uds"):
            second.run()
        taken = Address("127.0.0.1", 0, 0, grpc_unix=path)
        third = Server([Source.one(first.served, lambda: None)], taken)
        with pytest.raises(UserError, match="a server listens there; choose another --grpc-uds"):
            third.run()
        with Through(first, path) as client:
            assert client.infer(dense())[0] == 200
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("letter", "there is a file that is no socket"),
        ("folder", "there is a file that is no socket"),
        ("x" * 200, "too long"),
        ("nowhere/it", "No such file or directory"),
    ],
)
def test_what_is_no_place_for_one_is_said(tmp_path, name, why):
    (tmp_path / "letter").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=why) as caught:
        unix.bound(str(tmp_path / name), "--uds")
    assert "choose another --uds" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_another_servers_by_now_stays(path):
    first = unix.bound(path, "--uds")
    file = unix.File(path)
    first.close()
    second = unix.bound(path, "--uds")
    file.close()
    assert os.path.exists(path)
    unix.File(path).close()
    assert not os.path.exists(path)
    second.close()


def test_clients_are_told_apart_by_user():
    one, other = socket.socketpair()
    with one, other:
        assert unix.peer_of(one) == f"user {os.getuid()}"
    with socket.socket() as tcp:
        assert unix.peer_of(tcp) in ("local", f"user {2**32 - 1}")


class Slow(StubRuntime):
    """Queries of 3 candidates wait for the gate; the engine measures none of those."""

    def execute(self, prepared, lo, hi):
        if hi - lo == 3:
            self.gate.wait(WAIT_S)
        prepared[1][lo:hi, 0] = 4


def slow(items):
    """The same natively: they take so long."""
    return np.where(items == 3, 0.5, 1e-4)


@pytest.mark.parametrize("make", [Slow, lambda: FixedTime(slow)], ids=["python", "native"])
def test_a_client_that_goes_takes_its_query_with_it_and_one_that_waits_is_answered(path, make):
    runtime = make()
    with serving(StubModel(), runtime, workers=1, policy=Policy(100), address=at(path)) as server:
        assert (server.plane.native is None) is isinstance(runtime, Slow)
        if isinstance(runtime, Slow):
            runtime.gate.clear()
        waits, goes = connected(path), connected(path)
        waits.sendall(asked(dense()))
        until(lambda: server.plane.engine.load().executing)
        goes.sendall(asked(dense()))
        until(lambda: server.plane.pending == 2)
        goes.close()
        until(lambda: server.plane.seen().failures[Reason.CANCELLED] == 1)
        waits.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        if isinstance(runtime, Slow):
            runtime.gate.set()
        got = b""
        while more := waits.recv(1000):
            got += more
        assert b"HTTP/1.1 200 OK" in got
        waits.close()
        until(lambda: server.plane.pending == 0)


def test_what_was_taken_is_answered_at_the_end(path):
    runtime = StubRuntime()
    answers = []
    with serving(StubModel(), runtime, address=at(path)) as server:
        runtime.gate.clear()

        def ask():
            with Through(server, path) as client:
                answers.append(client.infer(dense())[0])

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: server.plane.engine.load().executing)
        server.stop()
        until(lambda: server.plane.state == "finishing")
        until(lambda: not os.path.exists(path))
        runtime.gate.set()
        thread.join(WAIT_S)
    assert answers == [200]


def test_a_key_is_asked_for_there_too(path):
    address = at(path, key="of the house")
    with (
        serving(StubModel(), NoOp(), address=address) as server,
        Through(server, path) as client,
    ):
        assert client.infer(dense())[0] == 401
        authorized = {"Authorization": "Bearer of the house"}
        assert client.infer(dense(), headers=authorized)[0] == 200


def test_the_load_client_reaches_it(path):
    with serving(StubModel(), NoOp(), address=at(path)):
        schedule = drs.Workload(sizes="fixed:20").schedule(rate_qps=200, duration_s=0.2)
        for more in ({}, {"shared_memory": True}):
            with LoadClient(f"unix:{path}", "stub", **more) as client:
                records = client.run(schedule, None)
                assert (records.status == 0).all(), client.last_run()
    with (
        pytest.raises(UserError, match=f"no answer from unix:{path} .No such file"),
        LoadClient(f"unix:{path}", "stub"),
    ):
        pass


def test_urls_of_sockets():
    assert Reached.parse("unix:/run/a.sock") == Reached.parse("unix:///run/a.sock")
    found = Reached.parse("unix:/run/a.sock")
    assert (found.http, found.secure, found.host_field) == (True, False, "localhost")
    assert (str(found), found.path("m")) == ("unix:/run/a.sock", "/v2/models/m")
    with pytest.raises(UserError, match="unix:PATH"):
        Reached.parse("unix:")


def test_the_log_says_where_it_listens(path):
    lines = []
    with serving(StubModel(), NoOp(), address=at(path),
                 log=lambda event, **more: lines.append((event, more))):  # fmt: skip
        pass
    listening = dict(lines)["listening"]
    assert listening["uds"] == path
    assert "grpc_uds" not in listening
    assert json.dumps(listening)
