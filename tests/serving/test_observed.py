"""What metrics, log and live page say is what happened."""

import json
import logging
import re
import socket
import threading
import time

import grpc
import numpy as np
import pytest

from deeprecsys.protocol import wire
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.observed import EDGES_S
from deeprecsys.serving.server import json_log
from deeprecsys.serving.window import Window, percentiles
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel, StubRuntime


def query(value=1.0, n=4):
    return {"dense": np.full((n, 4), value, np.float32)}


def metrics(client):
    _, _, body = client.ask("GET", "/metrics")
    found = re.findall(r"^(\w+)\{(.*)\} (\S+)$", body.decode(), re.MULTILINE)
    return {
        (name, *re.findall(r'(?:reason|bound)="([\w-]+)"', labels)): float(value)
        for name, labels, value in found
    }


def test_a_minute_is_a_minute_at_any_rate():
    window = Window(classes=2, seconds=60)
    rng = np.random.default_rng(0)
    latencies = rng.lognormal(-4, 1, (70, 8000))
    for second in latencies:
        for took_s in second:
            window.add(float(took_s), 1)
        window.tick()
    counts = window.last(60)
    assert counts.sum(axis=1).tolist() == [0, 60 * 8000]
    exact = np.quantile(latencies[10:], (0.5, 0.95, 0.99))
    np.testing.assert_allclose(percentiles(counts[1]), exact, rtol=0.012)
    assert window.last(10).sum() == 80_000
    assert percentiles(counts[0]) == (None, None, None)


def test_what_is_no_query_is_no_failed_query():
    with serving(StubModel(), StubRuntime()) as server, Client(server) as client:
        assert client.get("/favicon.ico")[0] == 404
        assert client.ask("DELETE", "/v2")[0] == 405
        assert client.infer(query(), path="/v2/models/other/infer")[0] == 404
        seen = metrics(client)
        assert seen["nv_inference_request_failure", "NOT_FOUND"] == 1
        assert seen["nv_inference_request_failure", "METHOD"] == 0
        assert seen["deeprecsys_requests_refused", "NOT_FOUND"] == 1
        assert seen["deeprecsys_requests_refused", "METHOD"] == 1
        assert client.get("/live.json")[1]["totals"]["queries"] == 1


def test_a_client_that_leaves_is_neither_shed_nor_a_failure_of_the_server():
    lines = []
    runtime = StubRuntime()

    def log(event, **about):
        lines.append((event, about))

    with serving(StubModel(), runtime, log=log) as server, Client(server) as client:
        runtime.gate.clear()
        head, data = wire.request(query())
        with socket.create_connection(("127.0.0.1", server.http_port), WAIT_S) as leaving:
            leaving.sendall(
                b"POST /v2/models/stub/infer HTTP/1.1\r\n"
                b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
                % (len(head), len(head) + sum(map(len, data)))
                + b"".join([head, *map(bytes, data)])
            )
            while not server.plane.pending:
                pass
        while server.plane.pending:
            pass
        seen = metrics(client)
        assert seen["nv_inference_request_failure", "CANCELLED"] == 1
        assert seen[("deeprecsys_shed",)] == 0
        runtime.gate.set()
    assert not [about for event, about in lines if event == "failed"]


def test_what_the_model_raises_is_in_the_log_and_not_in_the_answer():
    lines = []
    with (
        serving(StubModel(), StubRuntime(), log=lambda event, **a: lines.append((event, a))) as s,
        Client(s) as client,
    ):
        assert client.infer(query(666))[0] == 500
    (fault,) = [about for event, about in lines if event == "fault"]
    assert "the number of the beast" in fault["error"]
    assert "stub_model.py" in fault["traceback"]


@pytest.mark.parametrize("binary", [True, False])
def test_the_log_of_queries_has_those_that_were_turned_away(binary):
    lines = []
    with serving(
        StubModel(), StubRuntime(), log=lambda event, **about: lines.append((event, about)),
        log_queries=True, bounds=Bounds(candidates=8),
    ) as server, Client(server) as client:  # fmt: skip
        assert client.infer(query(n=9), binary=binary)[0] == 413
        assert client.infer(query(), binary=binary, path="/v2/models/x/infer")[0] == 404
    assert [a["status"] for event, a in lines if event == "query"] == [413, 404]


def test_the_level_of_a_line_is_that_of_what_it_says(caplog):
    log = json_log("levels")
    with caplog.at_level(logging.INFO, "levels"):
        log("failed", status=500)
        log("fault", error="x")
        log("failed", status=503)
        log("worker replaced", why="it hung")
        log("query", status=429)
        log("ready")
    levels = [(record.levelname, json.loads(record.message)["event"]) for record in caplog.records]
    assert levels == [
        ("ERROR", "failed"), ("ERROR", "fault"), ("WARNING", "failed"),
        ("WARNING", "worker replaced"), ("INFO", "query"), ("INFO", "ready"),
    ]  # fmt: skip


def busy(server, act, done):
    """Does that while the loop is as busy as if it read what many others sent; again, where others
    had the cores in between, until it is done."""
    working, over = threading.Event(), threading.Event()

    def work():
        server.site.looks.came_s(server._loop, time.perf_counter())
        working.set()
        over.wait(WAIT_S)

    while not done():
        working.clear()
        over.clear()
        server._loop.call_soon_threadsafe(work)
        assert working.wait(WAIT_S)
        answers = act()
        time.sleep(0.1)
        over.set()
        answers()


def test_a_busy_loop_counts_from_its_last_look():
    """What finds the loop at work has waited for it, and that wait is part of its time."""
    head, _ = wire.request(query(), binary=False)
    line = b"POST /v2/models/stub/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(head)
    with (
        serving(StubModel(), StubRuntime()) as server,
        socket.create_connection(("127.0.0.1", server.http_port), WAIT_S) as client,
    ):
        receive = server.plane.observed.stages["receive"]

        def ask():
            client.sendall(line + head)
            return lambda: client.recv(1000).startswith(b"HTTP/1.1 200") or pytest.fail("no answer")

        busy(server, ask, lambda: receive.sum_s >= 0.05)
        assert receive.quantile_s(1.0) >= 0.05


def test_calls_that_stand_behind_others_count_from_when_their_queue_began():
    """gRPC hands them over one by one: the last of a burst has waited for all before it too."""
    asked = message("ModelInferRequest")(model_name="stub", raw_input_contents=[bytes(16)])
    asked.inputs.add(name="dense", datatype="FP32", shape=[1, 4])
    with (
        serving(StubModel(), StubRuntime()) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        call(asked.SerializeToString())  # it is connected
        counts = server.plane.observed.stages["receive"].counts

        def late():
            return sum(counts[EDGES_S.index(0.08) :])

        before = 0

        def ask():
            nonlocal before
            before = late()
            burst = [call.future(asked.SerializeToString()) for _ in range(20)]
            return lambda: [one.result(WAIT_S) for one in burst]

        busy(server, ask, lambda: late() - before >= 18)
        assert server.site.looks.lag_s() + server.plane.observed.loop_lag_s >= 0.05
