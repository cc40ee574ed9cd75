"""A server in a process of its own, for the benchmarks, and the barest client of it.

`python benchmarks/served.py stub 26` serves a model of nothing, whose one input has so many ids an
item (and listens at a Unix socket as well, if its path follows); `… hanging device` (or worker) one
that hangs when it is asked to; `… echo` is the barest server that reads a body, `… uvicorn` an ASGI
app that does. All print their port.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deeprecsys.core import SLA, InputSpec, OutputSpec, Policy
from deeprecsys.engine import Engine
from deeprecsys.machines.service_time import ServiceTime
from deeprecsys.models.check import InputCheck
from deeprecsys.protocol import wire
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.dataplane import Served
from deeprecsys.serving.server import Address, Server
from deeprecsys.serving.source import Source

ROWS = 1_000_000
ANSWER = bytes(2_000)


class StubModel:
    """One input of ids; its scores are whatever was in memory."""

    name, tasks, joined, seed, scale = "stub", 1, (), 0, 1.0
    outputs = (OutputSpec("scores", "FP32", (1,)),)
    tables = ()
    work = target = most_items = None
    whole, memory_bytes = False, 0

    def __init__(self, ids: int) -> None:
        self.inputs = (InputSpec("ids", "INT32", (ids,), rows=ROWS),)
        self.check = InputCheck(self.name, self.inputs)

    def example(self, n: int, rng: np.random.Generator, law: Any = None) -> dict[str, Any]:
        shape = (n, *self.inputs[0].shape)
        return {"ids": rng.integers(0, ROWS, shape, dtype=np.int32)}


@dataclass(frozen=True)
class Host:
    http_port: int
    grpc_port: int | None
    process: psutil.Process

    def alive(self) -> bool:
        return bool(self.process.status() != psutil.STATUS_ZOMBIE)  # that "is running" as well

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        return int(self.process.memory_info().rss)


@contextmanager
def served(*arguments: str, wait_s: float = 300.0, wait: bool = True) -> Iterator[Host]:
    """`deeprecsys serve` with these arguments, ready (not `wait`: loading); SIGTERM at the end."""
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "deeprecsys", "serve", *arguments]
    command += ["--http-port", str(ports[0]), "--grpc-port", str(ports[1])]
    with running([*command, "--log-level", "warning"]) as process:
        until = time.monotonic() + wait_s
        while _answers(ports[0]) not in ((200,) if wait else (200, 503)):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not become ready: {command}")
            time.sleep(0.2)
        yield Host(ports[0], ports[1], psutil.Process(process.pid))


@contextmanager
def bare(kind: str, *arguments: str) -> Iterator[Host]:
    """This file's own servers, by their first argument."""
    command = [sys.executable, __file__, kind, *arguments]
    with running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Host(port, None, psutil.Process(process.pid))


@contextmanager
def running(command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> int:
    """The status of its readiness; 0: it does not listen yet."""
    try:
        with Bare(port) as client:
            return client.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")[0]
    except OSError:
        return 0


class Bare:
    """One connection; requests and answers as bytes, nothing parsed that need not be."""

    def __init__(self, port: int, path: str = "") -> None:
        """path: of a Unix socket instead."""
        if path:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(60)
            self.socket.connect(path)
            return
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def ask(self, head: bytes, *body: Any) -> tuple[int, bytes]:
        """Status and body of the answer."""
        total = len(head) + sum(len(part) for part in body)
        sent = self.socket.sendmsg([head, *body])
        if sent < total:
            self.socket.sendall(memoryview(b"".join([head, *map(bytes, body)]))[sent:])
        got = b""
        while b"\r\n\r\n" not in got:
            if not (more := self.socket.recv(65536)):
                raise ConnectionError("closed before an answer")
            got += more
        top, _, rest = got.partition(b"\r\n\r\n")
        length = int(top.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(rest) < length:
            if not (more := self.socket.recv(65536)):
                raise ConnectionError("closed within an answer")
            rest += more
        return int(top[9:12]), rest


class _Echo(asyncio.BufferedProtocol):
    """Reads a body into one buffer, and answers 2 kB: what no server can do without."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.head, self.filled = transport, bytearray(65536), 0
        self.body: memoryview | None = None
        self.got = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.body is not None:
            return self.body[self.got :]
        return memoryview(self.head)[self.filled :]

    def buffer_updated(self, received: int) -> None:
        if self.body is None:
            self.filled += received
            end = self.head.find(b"\r\n\r\n", 0, self.filled)
            if end < 0:
                return
            top = bytes(self.head[:end]).lower()
            length = int(top.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            self.body = np.empty(length, np.uint8).data
            received = self.filled - end - 4
            self.body[:received] = memoryview(self.head)[end + 4 : self.filled]
            self.filled = self.got = 0
        self.got += received
        if self.got == len(self.body):
            self.body = None
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
            self.transport.write(head + ANSWER)


async def _echo() -> None:
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _asgi_echo(scope: Any, receive: Any, send: Any) -> None:
    """The same on any ASGI server."""
    parts, more = [], scope["type"] == "http"
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message.get("more_body", False)
    b"".join(parts)
    headers = [(b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


HANGING = ("hung device", "hung worker")
_HANGS = 777  # candidates of the query at which it does


class _HungDevice:
    """Computes what it is given on the thread that waits for it, until it hangs for good."""

    name, emulated, depth, most_items = "hanging", False, 1, None
    detail: Mapping[str, Any] = {"name": "hanging"}
    service_s = ServiceTime.linear(base_s=1e-3, per_item_s=1e-5)

    def __init__(self, model: Any) -> None:
        self._model = model

    def enter_thread(self) -> None:
        pass

    def begin(self, pieces: Any) -> Any:
        return pieces

    def end(self, ticket: Any) -> None:
        for inputs, scores in ticket:
            if len(scores) == _HANGS:
                threading.Event().wait()
            scores[:] = self._model.reference(inputs)

    def close(self) -> None:
        pass


class _HungWorker:
    """A runtime, one of whose workers hangs for good."""

    def __init__(self, runtime: Any) -> None:
        self._runtime, self.name = runtime, runtime.name
        self.enter_thread, self.execute_together = runtime.enter_thread, runtime.execute_together
        self.hung = threading.Event()

    def prepare(self, inputs: Any, scores: Any) -> Any:
        return self._runtime.prepare(inputs, scores), len(scores)

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        inner, n = prepared
        if n == _HANGS and not self.hung.is_set():
            self.hung.set()
            threading.Event().wait()
        self._runtime.execute(inner, lo, hi)

    def forget(self, prepared: Any) -> None:
        self._runtime.forget(prepared[0])


def _hanging(which: str, scale: float, drain_s: float) -> None:
    from deeprecsys.models import load_model
    from deeprecsys.runtimes import make_runtime

    model = load_model("dlrm-rmc1", scale=scale)
    runtime, devices, policy = make_runtime("torchscript", model), [], Policy(128)
    if which == "hung device":
        devices, policy = [_HungDevice(model)], Policy(128, offload_threshold=128)
    else:
        runtime = _HungWorker(runtime)
    port = free_port()
    server = Server(
        [
            Source.one(
                Served("dlrm-rmc1", policy, SLA(0.1), 1.0),
                Engine(model, 2, runtime, accelerators=devices, device_hang_s=60.0).__enter__,
            )
        ],
        Address("127.0.0.1", port, None),
        Bounds(drain_s=drain_s),
    )
    threading.Thread(target=lambda: (server.ready.wait(), print(port, flush=True))).start()
    server.run()
    os._exit(0)  # as `serve` does where a thread is left behind


def ask_it_to_hang(port: int, model: Any) -> None:
    """Without waiting for an answer, as there may be none."""
    inputs = model.example(_HANGS, np.random.default_rng(0))
    request = posted("dlrm-rmc1", inputs, timeout=60_000_000)

    def ask() -> None:
        with suppress(OSError), Bare(port) as client:
            client.ask(*request)

    threading.Thread(target=ask, daemon=True).start()


def posted(model: str, inputs: Any, **parameters: int) -> tuple[bytes, bytes]:
    """A query, with scores wanted as JSON: head and body."""
    head, data = wire.request(inputs, parameters=parameters)
    body = b"".join([head, *map(bytes, data)])
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    )
    return lines.encode(), body


def _stub(ids: int, path: str | None = None) -> None:
    engine = Engine(StubModel(ids), 2, NoOp(), largest=8)
    port = free_port()
    server = Server(
        [Source.one(Served("stub", Policy(512), SLA(0.1), None, admit=False), engine.__enter__)],
        Address("127.0.0.1", port, None, unix=path),
    )
    print(port, flush=True)
    server.run()


def main() -> None:
    match sys.argv[1:]:
        case ["stub", ids]:
            _stub(int(ids))
        case ["stub", ids, path]:
            _stub(int(ids), path)
        case ["hanging", which, scale, drain_s]:
            _hanging(which, float(scale), float(drain_s))
        case ["echo"]:
            import uvloop

            uvloop.run(_echo())
        case ["uvicorn"]:
            import uvicorn

            port = free_port()
            print(port, flush=True)
            uvicorn.run(_asgi_echo, port=port, log_level="warning", access_log=False)
        case _:
            raise SystemExit(Path(__file__).name + " stub IDS | echo | uvicorn")


if __name__ == "__main__":
    main()
