"""A server under pressure and through its life: deadlines, overload, lost workers, draining."""

import contextlib
import http.client
import socket
import ssl
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest

from deeprecsys.core import SLA, Policy, UserError
from deeprecsys.engine import Engine
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.runtimes.stub import FixedTime
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.dataplane import Served
from deeprecsys.serving.server import Address, Server
from deeprecsys.serving.source import Source
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine

SLOW = ServiceTime.linear(base_s=0.02, per_item_s=0.0)


def query(n=4, value=1.0):
    return {"dense": np.full((n, 4), value, np.float32)}


class Stub(StubRuntime):
    """Long enough that the engine wakes a second worker for a second query."""

    def execute(self, prepared, lo, hi):
        time.sleep(1e-4)
        super().execute(prepared, lo, hi)


@pytest.fixture
def runtime():
    runtime = Stub()
    yield runtime
    runtime.gate.set()


def later(act):
    """Runs it in a thread; a list that gets the answer, and the thread."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(act()))
    thread.start()
    return answers, thread


def until(holds):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def ask(server, inputs, **more):
    with Client(server) as client:
        return client.infer(inputs, **more)


def hold_workers(server, runtime):
    """Queries that keep the workers busy until the gate opens."""
    workers = server.plane.engine.workers
    runtime.gate.clear()
    began = len(runtime.executed)
    held = [later(lambda: ask(server, query())) for _ in range(workers)]
    until(lambda: server.plane.engine.load().executing == workers)
    assert len(runtime.executed) == began
    return held


def release(held, runtime):
    runtime.gate.set()
    for answers, thread in held:
        thread.join(WAIT_S)
        assert answers[0][0] == 200


def test_a_deadline_that_passes_is_504_and_leaves_the_queue(runtime):
    with serving(StubModel(), runtime, deadline_s=None) as server:
        held = hold_workers(server, runtime)
        status, answer = ask(server, query(), parameters={"timeout": 30_000})
        assert status == 504
        assert "deadline" in answer["error"]
        assert server.plane.engine.load().queued_items == 0
        release(held, runtime)


def test_what_would_be_late_is_429_at_once_and_the_rest_is_in_time():
    with serving(StubModel(), FixedTime(SLOW), deadline_s=0.4, policy=Policy(2048)) as server:
        asked = [later(lambda: ask(server, query())) for _ in range(80)]
        for _, thread in asked:
            thread.join(WAIT_S)
        statuses = [answers[0][0] for answers, _ in asked]
        assert set(statuses) <= {200, 429, 504}
        assert statuses.count(200) >= 3
        assert statuses.count(429) >= 10
        shed = next(answers[0][1] for answers, _ in asked if answers[0][0] == 429)
        assert "its deadline is in" in shed["error"]
        assert ask(server, query())[0] == 200  # and it has recovered


def test_a_prediction_gone_wrong_mends_itself():
    with serving(StubModel(), FixedTime(SLOW), deadline_s=0.4, policy=Policy(2048)) as server:
        admission = server.plane.engine._part.admission
        admission.pace = 1000.0
        for _ in range(200):
            assert ask(server, query())[0] == 200
            if admission.pace < 10:
                break
        assert admission.pace < 10


def test_a_full_queue_is_429(runtime):
    with serving(StubModel(), runtime, engine={"max_queued_items": 10}) as server:
        held = hold_workers(server, runtime)
        waiting = later(lambda: ask(server, query(8)))
        until(lambda: server.plane.engine.load().queued_items == 8)
        assert ask(server, query(8))[0] == 429
        release([*held, waiting], runtime)


def test_bodies_that_wait_are_bounded_in_bytes(runtime):
    bounds = Bounds(body_bytes=1 << 20, waiting_bytes=1000)
    with serving(StubModel(), runtime, bounds=bounds) as server:
        held = hold_workers(server, runtime)
        assert ask(server, query(60))[0] == 429
        release(held, runtime)
        assert ask(server, query(30))[0] == 200


def test_a_higher_priority_overtakes(runtime):
    # One worker: two of them write down what they execute in any order.
    with serving(StubModel(), runtime, workers=1) as server:
        held = hold_workers(server, runtime)
        waiting = []
        for number, (size, priority) in enumerate(((3, 9), (5, 0), (7, 1)), 2):
            waiting.append(
                later(
                    lambda size=size, priority=priority: ask(
                        server, query(size), parameters={"priority": priority}
                    )
                )
            )
            until(lambda number=number: server.plane.pending == number)
        began = len(runtime.executed)
        release([*held, *waiting], runtime)
        order = [size for size in runtime.executed[began:] if size != 4]
        assert order == [7, 5, 3]  # 0, the default, lies between


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_client_that_goes_away_frees_its_work(runtime, protocol):
    with serving(StubModel(), runtime) as server:
        held = hold_workers(server, runtime)
        if protocol == "http":
            from deeprecsys.protocol import wire

            head, data = wire.request(query(17))
            body = b"".join([head, *map(bytes, data)])
            gone = socket.create_connection(("127.0.0.1", server.http_port))
            gone.sendall(
                f"POST /v2/models/stub/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
                f"Inference-Header-Content-Length: {len(head)}\r\n\r\n".encode()
                + body
            )
            leave = gone.close
        else:
            request = message("ModelInferRequest")(model_name="stub")
            request.inputs.add(name="dense", datatype="FP32", shape=[17, 4])
            request.raw_input_contents.append(bytes(17 * 16))
            channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            asked = call.future(request.SerializeToString())
            assert not asked.done()
            leave = channel.close
        until(lambda: server.plane.engine.load().queued_items == 17)
        leave()
        until(lambda: server.plane.engine.load().queued_items == 0)
        release(held, runtime)
        until(lambda: server.plane.pending == 0)
        assert 17 not in runtime.executed


class Dying(Stub):
    """Candidates that begin with 13 end the worker's thread; with 14 they hang."""

    def execute(self, prepared, lo, hi):
        if (prepared[0][lo:hi, 0] == 13).any():
            raise SystemExit
        if (prepared[0][lo:hi, 0] == 14).any():
            time.sleep(3)
        super().execute(prepared, lo, hi)


@pytest.mark.parametrize(("value", "why"), [(13, "died"), (14, "hung")])
def test_a_worker_that_dies_or_hangs_is_replaced_and_its_query_fails_clearly(value, why):
    with serving(StubModel(), Dying(), longest_s=0.3) as server:
        for _ in range(3):
            status, answer = ask(server, query(value=value))
            assert status == 503
            assert why in answer["error"]
        assert len(server.plane.engine.load().lost_workers) == 3
        assert server.plane.live
        asked = [later(lambda: ask(server, query())) for _ in range(8)]
        for answers, thread in asked:
            thread.join(WAIT_S)
            assert answers[0][0] == 200


def test_a_model_that_fails_is_500_without_its_words(runtime):
    with serving(StubModel(), runtime) as server:
        status, answer = ask(server, query(value=666))
        assert status == 500
        assert answer["error"] == "the model failed: ValueError"
        assert ask(server, query())[0] == 200


def test_it_is_live_while_it_loads_and_not_ready(runtime):
    loading = threading.Event()

    class Slow(StubModel):
        def example(self, n, rng, index_law=None):  # the first thing a warm-up asks for
            loading.wait(WAIT_S)
            return super().example(n, rng)

    with serving(Slow(), runtime, wait=False) as server, Client(server) as client:
        assert client.get("/v2/health/live") == (200, {"live": True})
        assert client.get("/v2/health/ready") == (503, {"ready": False})
        assert client.get("/v2/models/stub/ready")[0] == 503
        status, answer = client.infer(query())
        assert (status, answer["error"]) == (503, "the model is being loaded")
        loading.set()
        assert server.ready.wait(WAIT_S)
        assert client.get("/v2/health/ready")[0] == 200


def test_draining_still_serves_for_a_while_then_finishes_what_it_took(runtime):
    with serving(StubModel(), runtime, drain_s=WAIT_S) as server:
        held = hold_workers(server, runtime)
        waiting = later(lambda: ask(server, query(7)))
        until(lambda: server.plane.pending == 3)
        body = b'{"inputs":[{"name":"dense","datatype":"FP32","shape":[0,4],"data":[]}]}'
        with Client(server) as kept, Client(server) as fresh, half_sent(server, body) as rest:
            assert kept.get("/v2/health/ready")[0] == 200
            server.stop()
            until(lambda: fresh.get("/v2/health/ready")[0] == 503)
            status, headers, _ = kept.ask("GET", "/v2/health/live")
            assert (status, headers["Connection"]) == (200, "close")
            assert kept.infer(query(0))[0] == 200
            with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                assert channel.unary_unary(f"/{SERVICE}/ServerReady")(b"") == b""  # false
            assert rest() == 200
            server.stop()  # hurries
            until(lambda: is_refused(server))
        release([*held, waiting], runtime)
    assert server.totals()["answered"] == 5


@contextlib.contextmanager
def half_sent(server, body):
    """A request whose body has come by half; calling it sends the rest, and says the status."""
    with socket.create_connection(("127.0.0.1", server.http_port), WAIT_S) as raw:
        line = f"POST /v2/models/stub/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(line.encode() + body[:10])

        def rest():
            raw.sendall(body[10:])
            return int(raw.recv(1000)[9:12])

        yield rest


def is_refused(server):
    try:
        socket.create_connection(("127.0.0.1", server.http_port), WAIT_S).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it stood in the listener's queue when that was closed
        return False
    return False


def test_a_body_that_comes_after_the_time_to_drain_is_still_answered(runtime):
    body = b'{"inputs":[{"name":"dense","datatype":"FP32","shape":[0,4],"data":[]}]}'
    with serving(StubModel(), runtime) as server, half_sent(server, body) as rest:
        until(lambda: any(c._head for c in server.site.connections))
        server.stop()
        until(lambda: is_refused(server))
        assert rest() == 200


def test_it_ends_while_it_loads(runtime):
    loading = threading.Event()

    class Slow(StubModel):
        def example(self, n, rng, index_law=None):
            loading.wait(WAIT_S)
            return super().example(n, rng)

    with serving(Slow(), runtime, wait=False, drain_s=WAIT_S) as server:
        pass
    assert server.left_behind
    loading.set()


def attempt(server):
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(server, query())


def test_it_ends_with_a_worker_that_hangs(runtime):
    with serving(StubModel(), runtime) as server:
        runtime.gate.clear()
        hung = later(lambda: attempt(server))
        until(lambda: server.plane.pending == 1)
    runtime.gate.set()
    hung[1].join(WAIT_S)
    assert server.left_behind


def test_a_taken_port_is_one_line(runtime):
    with serving(StubModel(), runtime) as first:
        second = Server(
            [Source.one(first.served, lambda: None)], Address("127.0.0.1", first.http_port, None)
        )
        with pytest.raises(UserError, match="is taken; choose another --http-port"):
            second.run()


def test_the_true_reason_of_a_failed_bind_is_said(runtime):
    with serving(StubModel(), runtime) as first:
        for address, said in (
            (Address("127.0.0.1", 0, first.grpc_port), "it is taken; choose another --grpc-port"),
            (Address("192.0.2.1", 0, None), "annot assign requested address"),
            (Address("no.such.host.invalid", 0, None), "no.such.host.invalid"),
        ):
            with pytest.raises(UserError, match=said):
                Server([Source.one(first.served, lambda: None)], address).run()


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(("host", "clients"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_it_listens_at_ipv6(runtime, host, clients):
    with serving(StubModel(), runtime, address=Address(host, 0, 0)) as server:
        for client in clients:
            with socket.create_connection((client, server.http_port), WAIT_S) as raw:
                raw.sendall(b"GET /v2/health/ready HTTP/1.1\r\n\r\n")
                assert raw.recv(1000).startswith(b"HTTP/1.1 200")
            where = f"[{client}]" if ":" in client else client
            with grpc.insecure_channel(f"{where}:{server.grpc_port}") as channel:
                assert channel.unary_unary(f"/{SERVICE}/ServerReady")(b"") == b"\x08\x01"
    with serving(StubModel(), runtime, address=Address(host, 0, None)) as first:
        second = Server(
            [Source.one(first.served, lambda: None)], Address(host, first.http_port, None)
        )
        with pytest.raises(UserError, match="it is taken"):
            second.run()


def test_a_model_that_cannot_be_opened_ends_the_server():
    class Bad(StubModel):
        def example(self, n, rng, index_law=None):
            raise UserError("no memory for it")

    server = Server(
        [
            Source.one(
                Served("stub", Policy(), SLA(0.1), None),
                lambda: Engine(Bad(), 1, StubRuntime(), largest=8).__enter__(),
            )
        ],
        Address("127.0.0.1", 0, None),
    )
    with pytest.raises(UserError, match="no memory for it"):
        server.run()


def test_a_key_is_asked_for_everywhere_but_at_the_probes(runtime):
    address = Address("127.0.0.1", 0, 0, key="of the house")
    with serving(StubModel(), runtime, address=address) as server, Client(server) as client:
        assert client.get("/v2/health/ready")[0] == 200
        for path in ("/v2", "/", "/metrics", "/live.json"):
            assert client.ask("GET", path)[0] == 401
        assert client.infer(query())[0] == 401
        assert client.infer(query(), headers={"Authorization": "Bearer no"})[0] == 401
        assert client.infer(query(), headers={"Authorization": "Bearer of the house"})[0] == 200
        basic = {"Authorization": "Basic OnRoZSBrZXk="}
        assert client.ask("GET", "/", headers=basic)[0] == 401
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"")
            assert caught.value.code().name == "UNAUTHENTICATED"
            assert call(b"", metadata=[("authorization", "Bearer of the house")])


def test_tls(runtime, tmp_path):
    pair = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", pair[0], "-out", pair[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    address = Address("127.0.0.1", 0, 0, certificate=str(pair[1]), private_key=str(pair[0]))
    with serving(StubModel(), runtime, address=address) as server:
        context = ssl.create_default_context(cafile=str(pair[1]))
        with (
            socket.create_connection(("127.0.0.1", server.http_port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1") as secure,
        ):
            secure.sendall(b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert secure.recv(1000).startswith(b"HTTP/1.1 200")
        credentials = grpc.ssl_channel_credentials(pair[1].read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            assert channel.unary_unary(f"/{SERVICE}/ServerMetadata")(b"")


def test_the_log_has_a_line_for_every_query_with_its_id(runtime):
    lines = []

    def log(event, **about):
        lines.append((event, about))

    with serving(StubModel(), runtime, log=log, log_queries=True) as server:
        ask(server, query(5), id="first")
        ask(server, query(value=666), id="second")
        until(lambda: server.plane.pending == 0)
    said = {about["id"]: about for event, about in lines if event == "query"}
    assert (said["first"]["status"], said["first"]["items"]) == (200, 5)
    assert said["first"]["took_ms"] >= said["first"]["compute_ms"]
    assert said["second"]["status"] == 500
    assert [event for event, _ in lines][-2:] == ["draining", "ended"]
