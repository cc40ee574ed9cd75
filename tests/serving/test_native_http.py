"""HTTP without the GIL: answers are Python's, byte for byte, and so is what becomes of the rest."""

import json
import socket
import threading
import time
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from deeprecsys.artifacts import open_model
from deeprecsys.core import SLA, Policy
from deeprecsys.engine import Engine
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from deeprecsys.runtimes.stub import FixedTime, NoOp
from deeprecsys.serving import http_adapter
from deeprecsys.serving import native as native_http
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.dataplane import Served
from deeprecsys.serving.server import Address, Server
from deeprecsys.serving.source import Source
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel
from waiting import until

pytestmark = pytest.mark.engine

BINARY = {"binary_data_output": True}


def dense(n, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


def request_of(server, inputs, path="", headers=(), **more):
    head, data = wire.request(inputs, **more)
    body = b"".join([head, *map(bytes, data)])
    lines = [
        f"POST /v2/models/{server.served.name}{path}/infer HTTP/1.1", "Host: x",
        f"Inference-Header-Content-Length: {len(head)}", f"Content-Length: {len(body)}", *headers,
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + body


def connected(server):
    return socket.create_connection(("127.0.0.1", server.http_port), WAIT_S)


def asked(server, inputs, path="", headers=(), **more):
    """Head and body of the answer."""
    with connected(server) as raw:
        raw.sendall(request_of(server, inputs, path, headers, **more))
        return answer_of(raw)


def answer_of(raw):
    got = b""
    while b"\r\n\r\n" not in got:
        got += raw.recv(1 << 16)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0])
    while len(body) < length:
        body += raw.recv(1 << 16)
    return head, body


def slow(seconds):
    """Takes so long for a request of 7 items, which a server that warms up does not ask for."""
    return FixedTime(lambda items: np.where(items == 7, seconds, 1e-4))


@pytest.fixture(scope="module")
def model():
    return load_model("ncf", scale=1e-3)


@pytest.fixture(scope="module")
def both(model):
    """The same server twice: as it is, and with every query by Python."""
    with (
        serving(model, policy=Policy(16), deadline_s=WAIT_S) as native,
        serving(model, policy=Policy(16), deadline_s=WAIT_S, log_queries=True) as python,
    ):
        assert native.plane.native is not None
        assert python.plane.native is None
        yield native, python


QUERIES = {
    "binary": (40, {"parameters": BINARY}),
    "one candidate": (1, {"parameters": BINARY}),
    "an output that is named": (
        40, {"outputs": [{"name": "scores", "parameters": {"binary_data": True}}]}),
    "an output as JSON": (40, {"outputs": [{"name": "scores"}]}),
    "all as JSON": (40, {}),
    "an id": (40, {"id": "query 7", "parameters": BINARY}),
    "a priority and a deadline": (
        40, {"parameters": BINARY | {"priority": 1, "timeout": 5_000_000}}),
    "an id that is escaped": (40, {"id": 'a "b" \u00e9', "parameters": BINARY}),
    "no candidates": (0, {"parameters": BINARY}),
    "an unknown parameter": (40, {"parameters": BINARY | {"color": "red"}}),
    "a priority beyond the last": (40, {"parameters": BINARY | {"priority": 10}}),
    "a deadline that is none": (40, {"parameters": BINARY | {"timeout": "soon"}}),
    "an output that is not there": (40, {"outputs": [{"name": "labels"}]}),
    "many scores as JSON": (3000, {}),
    "more candidates than the door knows": (5000, {"parameters": BINARY}),
}  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_an_answer_is_python_s_byte_for_byte(both, model, query):
    n, more = QUERIES[query]
    inputs = model.example(n, np.random.default_rng(n))
    native, python = (asked(server, inputs, **more) for server in both)
    assert same(native) == same(python)


def same(answer):
    """Of JSON, what it says: a number may be written in two ways."""
    head, body = answer
    if b"inference-header" in head:
        return answer
    lines = [line for line in head.split(b"\r\n") if b"content-length" not in line]
    return lines, json.loads(body)


@pytest.mark.parametrize("path", ["", "/versions/1", "/versions/2"])
@pytest.mark.parametrize("headers", [(), ("Accept-Encoding: gzip",), ("Connection: close",)])
def test_whatever_the_head_says_the_answer_is_python_s(both, model, path, headers):
    inputs = model.example(300, np.random.default_rng(0))
    native, python = (asked(server, inputs, path, headers, parameters=BINARY) for server in both)
    assert native == python


def wrong(name, change):
    def inputs(model):
        found = model.example(20, np.random.default_rng(0))
        return found | {name: change(found[name])}

    return inputs


WRONG = {
    "an id beyond its table": wrong("user", lambda ids: ids + 1_000_000),
    "a negative id": wrong("user", lambda ids: -1 - ids),
    "another datatype": wrong("user", lambda ids: ids.astype(np.int64)),
    "another number of rows": wrong("user", lambda ids: ids[:-1]),
    "another shape": wrong("user", lambda ids: ids[..., None]),
    "a name it does not have": lambda model: {"nobody": np.zeros((20, 1), np.int32)},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_in_python_s_words(both, model, name):
    spec = model.inputs[0].name
    inputs = {spec if key == "user" else key: value for key, value in WRONG[name](
        _Renamed(model, spec)).items()}  # fmt: skip
    native, python = (asked(server, inputs, parameters=BINARY) for server in both)
    assert native == python
    assert b" 400 " in native[0]


class _Renamed:
    """The model, its first input called `user`."""

    def __init__(self, model, first):
        self._model, self._first = model, first

    def example(self, n, rng):
        found = self._model.example(n, rng)
        return {"user" if key == self._first else key: value for key, value in found.items()}


def test_usual_queries_never_come_to_python(model, monkeypatch):
    made = []
    init = http_adapter.Connection.__init__
    monkeypatch.setattr(
        http_adapter.Connection, "__init__", lambda *of: (made.append(1), init(*of))[1]
    )
    with serving(model, policy=Policy(16)) as server, Client(server) as client:
        inputs = model.example(100, np.random.default_rng(0))
        head, data = wire.request(inputs, parameters=BINARY)
        sent = {"Inference-Header-Content-Length": str(len(head))}
        body, path = b"".join([head, *map(bytes, data)]), f"/v2/models/{model.name}/infer"
        for _ in range(20):
            status, headers, answer = client.ask("POST", path, body, sent)
            assert status == 200
        scores = np.frombuffer(answer[int(headers["Inference-Header-Content-Length"]) :], "<f4")
        np.testing.assert_allclose(scores, model.reference(inputs).ravel(), atol=1e-6)
        assert not made
        assert server.plane.native.connections == 1
        seen = server.plane.seen()
        assert (seen.answered, seen.items) == (20, 2000)
        assert all(histogram.count == 20 for histogram in seen.stages.values())
        # What is no query is Python's, which gives the connection back.
        assert client.get("/v2/health/ready")[0] == 200
        until(lambda: server.plane.native.connections == 1 and not server.site.connections)
        assert len(made) == 1
        assert client.ask("POST", path, body, sent)[0] == 200
        assert len(made) == 1
        until(lambda: server.plane.native.held == server.plane.pending == 0)


def test_overload_and_deadlines_are_answered_at_once():
    runtime = FixedTime(ServiceTime.constant(0.02))
    with serving(StubModel(), runtime, workers=1, deadline_s=0.08) as server:
        answers = []

        def ask():
            answers.append(asked(server, dense(7), parameters=BINARY))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        said = sorted(int(head[9:12]) for head, _ in answers)
        assert said.count(200) >= 1
        assert said.count(429) >= 5
        assert set(said) <= {200, 429, 504}
        refused = next(answer for answer in answers if b" 429 " in answer[0])
        assert b"retry-after: 1" in refused[0]
        assert json.loads(refused[1])["error"].startswith("overloaded: it would finish in about ")
        late = asked(server, dense(7), id="q", parameters=BINARY | {"timeout": 8_000})
        assert b" 504 " in late[0]
        assert json.loads(late[1]) == {
            "error": "the deadline passed before the query was finished", "id": "q"}  # fmt: skip
        failures = {reason.status: n for reason, n in server.plane.seen().failures.items() if n}
        assert failures[429] == said.count(429)
        assert failures[504] == 1 + said.count(504)
        until(lambda: server.plane.pending == 0 and server.plane.native.held == 0)


def test_a_full_queue_is_said():
    engine = {"max_queued_items": 14}
    with serving(StubModel(), slow(0.2), workers=1, policy=Policy(100), engine=engine) as server:
        threads = [
            threading.Thread(target=asked, args=(server, dense(7)), kwargs={"parameters": BINARY})
            for _ in range(3)
        ]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda taken=number + 1: server.plane.pending == taken)
        head, body = asked(server, dense(7), parameters=BINARY)
        assert b" 429 " in head
        assert "14 items wait already" in json.loads(body)["error"]
        for thread in threads:
            thread.join(WAIT_S)


def test_a_client_that_goes_takes_its_query_with_it():
    with serving(StubModel(), slow(1.0), workers=1, policy=Policy(100)) as server:
        raw = connected(server)
        raw.sendall(request_of(server, dense(7), parameters=BINARY))
        until(lambda: server.plane.engine.load().executing)
        raw.close()
        until(lambda: server.plane.engine.load().open_queries == 0)
        until(lambda: server.plane.pending == 0)
        cancelled = {reason.name for reason, n in server.plane.seen().failures.items() if n}
        assert cancelled == {"CANCELLED"}
        until(lambda: server.plane.native.held == 0)


def test_a_client_that_shuts_its_sending_side_is_answered():
    with serving(StubModel(), slow(0.4), workers=1, policy=Policy(100)) as server:
        with connected(server) as raw:
            raw.sendall(request_of(server, dense(7), parameters=BINARY))
            raw.shutdown(socket.SHUT_WR)
            got = b""
            while more := raw.recv(1 << 16):
                got += more
        assert got.startswith(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert b"connection: close" in got


@pytest.mark.parametrize("pieces", [2, 7, 40])
def test_a_request_may_come_in_any_pieces(both, model, pieces):
    server, inputs = both[0], model.example(200, np.random.default_rng(0))
    whole = request_of(server, inputs, parameters=BINARY)
    cuts = np.linspace(0, len(whole), pieces + 1).astype(int)
    with connected(server) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for lo, hi in pairwise(cuts):
            raw.sendall(whole[lo:hi])
            time.sleep(0.005)
        assert answer_of(raw) == asked(server, inputs, parameters=BINARY)


@pytest.mark.parametrize("sent", [30, -100])
def test_a_client_that_is_slow_is_python_s_and_is_answered(both, model, sent):
    server, inputs = both[0], model.example(200, np.random.default_rng(0))
    whole = request_of(server, inputs, parameters=BINARY)
    with connected(server) as raw:
        raw.sendall(whole[:sent])
        until(lambda: len(server.site.connections) == 1)
        raw.sendall(whole[sent:])
        assert answer_of(raw) == asked(server, inputs, parameters=BINARY)
    until(lambda: not server.site.connections)


def test_many_connections_are_answered_beside_each_other(both, model):
    server, inputs = both[0], model.example(64, np.random.default_rng(0))
    expected, wrong = asked(server, inputs, parameters=BINARY), []

    def ask():
        for _ in range(25):
            if asked(server, inputs, parameters=BINARY) != expected:
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong
    until(lambda: server.plane.native.connections == 0)


def test_connections_beyond_the_bound_make_room_or_are_turned_away():
    bounds = Bounds(connections=4)
    with serving(StubModel(), NoOp(), bounds=bounds) as server:
        idle = [connected(server) for _ in range(4)]
        until(lambda: server.plane.native.connections == 4)
        assert b" 200 " in asked(server, dense(4), parameters=BINARY)[0]
        assert idle[0].recv(1) == b""  # the one that had said nothing longest
        assert server.plane.observed.bounds["max-connections"] >= 1
        for one in idle:
            one.close()


def test_a_key_is_asked_for():
    address = Address("127.0.0.1", 0, None, key="secret")
    with serving(StubModel(), NoOp(), address=address) as server:
        assert server.plane.native is not None
        for header, status in (
            ("Authorization: Bearer secret", b" 200 "),
            ("Authorization: Bearer secre", b" 401 "),
            ("Authorization: Basic OnNlY3JldA==", b" 200 "),
            ("X: y", b" 401 "),
        ):
            assert status in asked(server, dense(4), "", (header,), parameters=BINARY)[0]


def test_a_worker_that_hangs_costs_its_query_alone():
    with serving(StubModel(), slow(3.0), policy=Policy(100), longest_s=0.2) as server:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(asked(server, dense(7), parameters=BINARY))
        )
        thread.start()
        until(lambda: server.plane.engine.load().executing)
        assert b" 200 " in asked(server, dense(5), parameters=BINARY)[0]
        thread.join(WAIT_S)
        assert b" 503 " in answers[0][0]
        assert "a worker hung" in json.loads(answers[0][1])["error"]
        assert b" 200 " in asked(server, dense(5), parameters=BINARY)[0]
        assert len(server.plane.engine.load().lost_workers) == 1
        until(lambda: server.plane.native.held == 0)


def test_draining_answers_what_it_took():
    with serving(StubModel(), slow(0.3), workers=1, policy=Policy(100), drain_s=1.0) as server:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(asked(server, dense(7), parameters=BINARY))
        )
        thread.start()
        until(lambda: server.plane.pending == 1)
        server.stop()
        until(lambda: server.plane.state == "draining")
        late = asked(server, dense(7), parameters=BINARY)
        thread.join(WAIT_S)
        for head, _ in (*answers, late):
            assert b" 200 " in head
            assert b"connection: close" in head


def test_without_a_native_executor_or_with_tls_python_serves():
    class Other(NoOp):
        pass

    with serving(StubModel(), Other()) as server:
        assert server.plane.native is None
        assert b" 200 " in asked(server, dense(4), parameters=BINARY)[0]


class Fails(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 100).any()):
            raise ValueError("too large")
        return x[:, :1] * 2


def test_a_model_that_fails_says_why_as_by_python(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.save(torch.jit.script(Fails()), tmp_path / "model.pt")
    (tmp_path / "model.toml").write_text('[inputs.x]\ndatatype = "FP32"\nshape = [2]\n')
    own = open_model(tmp_path)
    lines = []
    with (
        serving(
            own, policy=Policy(16), log=lambda event, **more: lines.append((event, more))
        ) as native,
        serving(own, policy=Policy(16), log_queries=True) as python,
    ):
        assert native.plane.native is not None
        query = {"x": np.full((3, 2), 101, np.float32)}
        answers = [asked(server, query, id="q", parameters=BINARY) for server in (native, python)]
        assert answers[0] == answers[1]
        assert b" 500 " in answers[0][0]
        assert "too large" in json.loads(answers[0][1])["error"]
        fine = {"x": np.ones((3, 2), np.float32)}
        assert b" 200 " in asked(native, fine, parameters=BINARY)[0]
        failures = {reason.name: n for reason, n in native.plane.seen().failures.items() if n}
        assert failures == {"INTERNAL": 1}
        assert not capfd.readouterr().err
        assert ("failed", "q") in [(event, more.get("id")) for event, more in lines]


def test_a_query_that_is_late_is_logged_with_its_id():
    lines = []

    def log(event, **more):
        lines.append((event, more))

    with serving(StubModel(), slow(0.2), policy=Policy(100), deadline_s=WAIT_S, log=log) as server:
        late = asked(server, dense(7), id="q", parameters=BINARY | {"timeout": 20_000})
        assert b" 504 " in late[0]
        server.plane.seen()
    (failed,) = [more for event, more in lines if event == "failed"]
    why = "the deadline passed before the query was finished"
    assert failed == {"id": "q", "status": 504, "why": why}


def test_a_door_that_fails_ends_the_server_with_its_reason(monkeypatch):
    class Broken:
        def __init__(self, door):
            self._door = door

        def __getattr__(self, name):
            return getattr(self._door, name)

        def run(self):
            raise MemoryError("no room")

    made = native_http.Door
    monkeypatch.setattr(native_http, "Door", lambda *of, **more: Broken(made(*of, **more)))
    model = StubModel()
    server = Server(
        [
            Source.one(
                Served(model.name, Policy(32), SLA(0.1), None, admit=False),
                Engine(model, 2, NoOp(), largest=16).__enter__,
            )
        ],
        Address("127.0.0.1", 0, None),
        Bounds(drain_s=0.0),
    )
    with pytest.raises(MemoryError, match="no room"):
        server.run()
