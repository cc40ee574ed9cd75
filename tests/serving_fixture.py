"""A real server on free ports of 127.0.0.1, in a thread of the test's process."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import replace

from deeprecsys.core import SLA, Policy
from deeprecsys.engine import Engine
from deeprecsys.protocol import wire
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.dataplane import Served
from deeprecsys.serving.server import Address, Server
from deeprecsys.serving.source import Source

WAIT_S = 30


@contextmanager
def serving(
    model, runtime="auto", *, deadline_s=None, policy=None, bounds=None, engine=None, address=None,
    workers=2, wait=True, drain_s=0.0, log=lambda *_, **__: None, recorder=None, tracing=None,
    **served,
):  # fmt: skip
    """Yields the Server, ready; ends it, and checks that it ended by itself."""

    def open_engine():
        return Engine(model, workers, runtime, largest=16, **(engine or {})).__enter__()

    server = Server(
        [Source.one(Served(model.name, policy or Policy(32), SLA(0.1), deadline_s,
                           admit=deadline_s is not None, **served), open_engine)],
        address or Address("127.0.0.1", 0, 0),
        replace(bounds or Bounds(body_bytes=1 << 20), drain_s=drain_s),
        log, recorder=recorder, tracing=tracing,
    )  # fmt: skip
    with running(server, wait=wait):
        yield server


@contextmanager
def running(server, *, wait=True):
    """The server, ready; ends it, and checks that it ended by itself."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert (server.ready if wait else server.started).wait(WAIT_S)
        assert server.failure is None
        yield server
    finally:
        server.stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()


class Client:
    """Bare HTTP, so that what is sent can be wrong in every way."""

    def __init__(self, server):
        self.http = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=WAIT_S)
        self.name = server.served.name

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.http.close()

    def ask(self, method, path, body=None, headers=None):
        """Status, headers, body."""
        self.http.request(method, path, body, headers or {})
        answer = self.http.getresponse()
        return answer.status, answer.headers, answer.read()

    def get(self, path):
        status, _, body = self.ask("GET", path)
        return status, json.loads(body)

    def infer(self, inputs, *, binary=True, path=None, headers=None, **more):
        """Status and JSON of the answer, whose scores come as a list."""
        head, data = wire.request(inputs, binary=binary, **more)
        sent = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
        status, _, body = self.ask(
            "POST", path or f"/v2/models/{self.name}/infer",
            b"".join([head, *map(bytes, data)]), {**sent, **(headers or {})},
        )  # fmt: skip
        return status, json.loads(body)

    def send(self, head, data=b"", headers=None, path=None):
        """Any JSON head (a value, or bytes), and binary data behind it."""
        text = head if isinstance(head, bytes) else json.dumps(head).encode()
        sent = {"Inference-Header-Content-Length": str(len(text))} if data else {}
        path = path or f"/v2/models/{self.name}/infer"
        status, _, body = self.ask("POST", path, text + data, {**sent, **(headers or {})})
        return status, json.loads(body)
