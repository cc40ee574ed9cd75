"""What one client may do to a server without harming another: bounds, by sockets alone."""

import contextlib
import gzip
import json
import re
import socket
import time

import numpy as np
import psutil
import pytest

from deeprecsys.protocol import wire
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving import http_adapter
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.http_adapter import Connection
from deeprecsys.serving.server import Address
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel, StubRuntime
from waiting import until

pytestmark = pytest.mark.engine

INFER = "POST /v2/models/stub/infer HTTP/1.1\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\n\r\n"


def query(n=4):
    return {"dense": np.ones((n, 4), np.float32)}


def as_json(n=4):
    head, _ = wire.request(query(n), binary=False)
    return head


@contextlib.contextmanager
def raw(server):
    with socket.create_connection(("127.0.0.1", server.http_port), WAIT_S) as connection:
        yield connection


def until_closed(connection):
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            got += more
    return got


def statuses(text):
    return [int(found) for found in re.findall(rb"HTTP/1.1 (\d{3})", text)]


def bounded(server, option, **headers):
    """How often this bound refused, by the metrics."""
    with Client(server) as client:
        _, _, body = client.ask("GET", "/metrics", headers=headers)
    found = re.search(rf'deeprecsys_bounded{{bound="{option}".*}} (\d+)', body.decode())
    return int(found[1]) if found else 0


def is_served(server, **more):
    with Client(server) as client:
        return client.infer(query(), **more)[0] == 200


def test_where_no_key_is_asked_for_no_body_is_taken():
    address = Address("127.0.0.1", 0, None, key="k")
    bounds = Bounds(body_bytes=1 << 20, waiting_bytes=1 << 20)
    with (
        serving(StubModel(), NoOp(), address=address, bounds=bounds) as server,
        contextlib.ExitStack() as stack,
    ):
        attackers = [stack.enter_context(raw(server)) for _ in range(8)]
        for attacker, framing in zip(
            attackers, ["Content-Length: 1000000", "Transfer-Encoding: chunked"] * 4, strict=True
        ):
            attacker.sendall(f"POST /v2/health/live HTTP/1.1\r\n{framing}\r\n\r\n1".encode())
        assert is_served(server, headers={"Authorization": "Bearer k"})
        for attacker in attackers:
            attacker.shutdown(socket.SHUT_WR)
            assert statuses(until_closed(attacker)) == [413]


def test_what_is_announced_counts_only_once_it_comes():
    bounds = Bounds(body_bytes=1 << 20, waiting_bytes=1 << 20)
    with (
        serving(StubModel(), NoOp(), bounds=bounds) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(8):
            attacker = stack.enter_context(raw(server))
            attacker.sendall(f"{INFER}Content-Length: 1048500\r\n\r\n1".encode())
        assert is_served(server)


def test_a_body_that_dribbles_is_ended_by_the_time_of_the_whole():
    bounds = Bounds(body_s=0.1)
    with serving(StubModel(), NoOp(), bounds=bounds) as server, raw(server) as slow:
        slow.sendall(f"{INFER}Content-Length: 1000\r\n\r\n1".encode())
        slow.settimeout(0.02)
        got = b""
        while not got:
            with contextlib.suppress(TimeoutError):
                slow.sendall(b"1")
                got = slow.recv(1000)
        assert statuses(got) == [408]
        assert b"--body-s" in got
        assert bounded(server, "body-s") == 1


def test_the_oldest_body_that_is_still_coming_makes_room():
    bounds = Bounds(body_bytes=1 << 20, waiting_bytes=100_000)
    with serving(StubModel(), NoOp(), bounds=bounds) as server, raw(server) as slow:
        slow.sendall(f"{INFER}Content-Length: 200000\r\n\r\n".encode() + bytes(99_990))
        until(lambda: server.plane.waiting.held == 99_990)
        while not is_served(server):  # for its first second it is safe
            pass
        assert statuses(slow.recv(1000)) == [408]


def test_the_connection_that_says_nothing_longest_makes_room():
    with (
        serving(StubModel(), NoOp(), bounds=Bounds(connections=3)) as server,
        contextlib.ExitStack() as stack,
    ):
        silent = [stack.enter_context(raw(server)) for _ in range(3)]
        silent[2].sendall(LIVE[:9])
        assert is_served(server)
        assert until_closed(silent[0]) == b""
        silent[2].sendall(LIVE[9:])
        assert statuses(silent[2].recv(1000)) == [200]
        assert bounded(server, "max-connections") >= 1


def chunked(body, size, trailer=b""):
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n" + trailer + b"\r\n"


CHUNKED = f"{INFER}Transfer-Encoding: chunked\r\n".encode()


@pytest.mark.parametrize("size", [1, 7, 5000, 1 << 20])
def test_a_chunked_body_and_what_follows_it_in_the_same_segment(size):
    with serving(StubModel(), NoOp()) as server, raw(server) as client:
        sent = CHUNKED + b"\r\n" + chunked(as_json(500), size, b"a: b\r\n")
        client.sendall(sent + LIVE + sent + LIVE)
        client.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(client)) == [200] * 4


def test_a_trailer_that_comes_line_by_line_ends_like_any_other():
    """It is read rarely, and neither its end nor the next request is missed for that."""
    with serving(StubModel(), NoOp()) as server, raw(server) as client:
        client.sendall(CHUNKED + b"\r\n" + chunked(as_json(), 100)[:-2])
        for line in (b"a: b\r\n", b"c: d", b"\r", b"\n", b"\r\n" + LIVE):
            time.sleep(0.01)
            client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(client)) == [200, 200]


def test_a_flood_of_trailers_costs_few_readings(monkeypatch):
    read = []
    updated = Connection.buffer_updated
    monkeypatch.setattr(
        Connection, "buffer_updated", lambda self, n: (read.append(n), updated(self, n))
    )
    monkeypatch.setattr(http_adapter, "_REST_S", 0.2)
    with serving(StubModel(), NoOp()) as server, raw(server) as client:
        client.sendall(CHUNKED + b"\r\n0\r\na: b\r\n")
        for _ in range(30):
            time.sleep(0.002)
            client.sendall(b"a: b\r\n")
        client.shutdown(socket.SHUT_WR)
        until_closed(client)
        assert sum(read) > 30 * 6
        assert len(read) < 15


def test_a_trailer_is_bounded_and_is_no_header():
    with serving(StubModel(), NoOp()) as server:
        with raw(server) as client:
            trailer = b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 3\r\n"
            client.sendall(CHUNKED + b"\r\n" + chunked(as_json(), 100, trailer) + LIVE)
            client.shutdown(socket.SHUT_WR)
            assert statuses(until_closed(client)) == [200, 200]
        with raw(server) as client:
            client.sendall(CHUNKED + b"\r\n" + chunked(as_json(), 100)[:-2])
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    client.sendall(b"a: " + b"b" * 1000 + b"\r\n")
            assert statuses(until_closed(client)) in ([431], [])  # [] where it was reset meanwhile


@pytest.mark.parametrize(
    "body",
    [b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1_0\r\n", b"1\n2\r\n", b"1\r\nab\r\n", b"\r\n",
     b"f" * 16 + b"\r\n", b"1;" + b"x" * 5000, b"1\r\nabc\r\n"],
)  # fmt: skip
def test_chunks_that_are_none_are_refused_and_the_connection_closed(body):
    with serving(StubModel(), NoOp()) as server, raw(server) as client:
        client.sendall(CHUNKED + b"\r\n" + body + LIVE)
        client.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(client)) == [400]


@pytest.mark.parametrize("given", ["gzip, chunked", "identity", "chunked\r\nTransfer-Encoding: x"])
def test_other_transfer_encodings_are_refused(given):
    with serving(StubModel(), NoOp()) as server, raw(server) as client:
        client.sendall(f"{INFER}Transfer-Encoding: {given}\r\n\r\n0\r\n\r\n".encode() + LIVE)
        client.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(client)) == [400]


def test_who_does_not_read_is_answered_no_further_and_is_ended():
    """A page of 5 MB, asked for 300 times in one segment."""
    bounds = Bounds(send_s=0.5)
    with serving(StubModel(), NoOp(), bounds=bounds) as server:
        assert is_served(server)
        before = psutil.Process().memory_info().rss
        with contextlib.ExitStack() as stack:
            deaf = [stack.enter_context(raw(server)) for _ in range(4)]
            for one in deaf:
                one.sendall(b"GET /plotly.min.js HTTP/1.1\r\n\r\n" * 300)
            while bounded(server, "send-s") < 4:
                assert psutil.Process().memory_info().rss - before < 100e6
            assert is_served(server)


def test_all_that_is_not_read_is_bounded_together():
    bounds = Bounds(unsent_bytes=4 << 20)
    with serving(StubModel(), NoOp(), bounds=bounds) as server, contextlib.ExitStack() as stack:
        for _ in range(8):
            deaf = stack.enter_context(raw(server))
            deaf.sendall(b"GET /plotly.min.js HTTP/1.1\r\n\r\n")
        while not bounded(server, "max-unsent-mb"):
            pass
        assert is_served(server)


def test_who_does_not_read_does_not_keep_the_server_from_ending():
    with contextlib.ExitStack() as stack, serving(StubModel(), NoOp()) as server:
        deaf = stack.enter_context(raw(server))
        deaf.sendall(b"GET /plotly.min.js HTTP/1.1\r\n\r\n" * 300)
        assert is_served(server)


def test_what_a_body_grows_to_counts_and_is_bounded():
    grown = gzip.compress(bytes(1 << 20))
    headers = {"Content-Encoding": "gzip"}
    path = "/v2/models/stub/infer"
    with (
        serving(StubModel(), NoOp(), bounds=Bounds(1 << 19)) as server,
        Client(server) as client,
    ):
        status, _, answer = client.ask("POST", path, grown, headers)
        assert (status, "--max-body-mb" in json.loads(answer)["error"]) == (413, True)
        assert bounded(server, "max-body-mb") == 1
    bounds = Bounds(body_bytes=1 << 22, waiting_bytes=1 << 19)
    with serving(StubModel(), NoOp(), bounds=bounds) as server, Client(server) as client:
        status, _, answer = client.ask("POST", path, grown, headers)
        assert (status, "--max-waiting-mb" in json.loads(answer)["error"]) == (429, True)
        assert client.infer(query())[0] == 200


@pytest.mark.parametrize("members", [1, 2, 30])
def test_a_gzip_body_of_several_members_is_their_sum(members):
    body = as_json(3000)
    cut = len(body) // members + 1
    zipped = b"".join(gzip.compress(body[i : i + cut]) for i in range(0, len(body), cut))
    with serving(StubModel(), NoOp()) as server, Client(server) as client:
        path = "/v2/models/stub/infer"
        assert client.ask("POST", path, zipped, {"Content-Encoding": "gzip"})[0] == 200
        many = gzip.compress(body) + gzip.compress(b"") * 2000
        assert client.ask("POST", path, many, {"Content-Encoding": "gzip"})[0] == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity"])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
)
def test_an_empty_body_is_refused_whatever_its_encoding(encoding, framing):
    with serving(StubModel(), NoOp()) as server, raw(server) as one:
        one.sendall(f"{INFER}Content-Encoding: {encoding}\r\n".encode() + framing + LIVE)
        one.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(one)) == [400, 200]
        assert server.plane.waiting.held == 0


def test_a_query_of_too_many_candidates_is_refused():
    with serving(StubModel(), NoOp(), bounds=Bounds(candidates=8)) as server:
        with Client(server) as client:
            assert client.infer(query(8))[0] == 200
            status, answer = client.infer(query(9))
        assert (status, "--max-candidates" in answer["error"]) == (413, True)
        assert bounded(server, "max-candidates") == 1


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("separators", [(",", ":"), (" , ", " : ")])
def test_long_json_says_what_short_json_says(nested, separators):
    """It is read in pieces, so that it does not stop the loop; what it says is the same."""
    dense = np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float32)
    values = (dense if nested else dense.reshape(-1)).tolist()
    item = {"name": "dense", "datatype": "FP32", "shape": [20_000, 4], "data": values}

    def answer(client, **changed):
        request = {"id": 'a "\\" [1, 2]}', "inputs": [item | changed], "parameters": {"x": "}]"}}
        text = json.dumps(request, separators=separators)
        status, _, body = client.ask("POST", "/v2/models/stub/infer", text)
        return status, json.loads(body)

    bounds = Bounds(body_bytes=1 << 24)
    with serving(StubModel(), StubRuntime(), bounds=bounds) as server, Client(server) as client:
        status, said = answer(client)
        assert (status, said["id"]) == (200, 'a "\\" [1, 2]}')
        np.testing.assert_allclose(
            said["outputs"][0]["data"], dense.sum(axis=1), rtol=1e-4, atol=1e-5
        )
        for wrong in (
            {"shape": [20_001, 4]}, {"shape": [10_000, 8]}, {"data": [*values, 1.0]},
            {"data": [*values[:-1], None]}, {"data": [*values[:-1], "1"]}, {"datatype": "INT32"},
            {"data": [*values[:-1], 1e300]}, {"data": {"a": values}}, {"datatype": "BYTES"},
            {"shape": [1 << 40, 1]}, {"shape": [0, 4]}, {"data": "x" * 500_000},
            {"data": ["x"] * 80_000}, {"data": [{}] * 80_000}, {"data": [values]},
        ):  # fmt: skip
            if nested and wrong == {"shape": [10_000, 8]}:
                continue
            status, said = answer(client, **wrong)
            assert status == 400, wrong
        assert is_served(server)


def test_all_viewers_of_the_live_page_are_shown_the_same():
    with serving(StubModel(), NoOp()) as server, Client(server) as one, Client(server) as other:
        for _ in range(5):  # unless a moment passed between the two
            shown = one.get("/live.json"), other.get("/live.json")
            if shown[0] == shown[1]:
                break
        assert shown[0] == shown[1]


def test_a_client_that_has_said_all_gets_its_answers():
    """It shut its sending side: `nc -N`, and clients that say so by it."""
    body = as_json()
    sent = f"{INFER}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with serving(StubModel(), StubRuntime()) as server, raw(server) as client:
        client.sendall(sent * 3)
        client.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(client)) == [200] * 3
