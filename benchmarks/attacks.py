"""What one client may try on a server, for `reliability.py --only attacks`: processes of their own.

`python benchmarks/attacks.py NAME HTTP_PORT GRPC_PORT SECONDS` goes on for so long, at ten times
the size at which each was first shown to stop a server.
"""

from __future__ import annotations

import gzip
import os
import select
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

import grpc
import numpy as np

from deeprecsys.protocol.grpc_schema import SERVICE, message

MODEL = "dlrm-rmc1"
INFER = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\n"
IDS = 80  # of an item and table


def keyless_bodies(http: int, _: int, until: float) -> None:
    """160 bodies of 64 MB announced where no key is asked for, a byte a second each."""
    held: list[socket.socket] = []
    while time.monotonic() < until:
        while len(held) < 160:
            held.append(_connected(http))
            held[-1].sendall(b"POST /v2/health/live HTTP/1.1\r\nContent-Length: 67108864\r\n\r\n1")
        time.sleep(1.0)
        held = [one for one in held if _sent(one, b"1")]


def slow_bodies(http: int, _: int, until: float) -> None:
    """160 bodies of 64 MB announced to inference, 1 MB each sent, then a byte a second."""
    held: list[socket.socket] = []
    while time.monotonic() < until:
        while len(held) < 160:
            held.append(_connected(http))
            _sent(held[-1], f"{INFER}Content-Length: 67108864\r\n\r\n".encode() + bytes(1 << 20))
        time.sleep(1.0)
        held = [one for one in held if _sent(one, b"1")]


def small_chunks(http: int, _: int, until: float) -> None:
    """28 MB of chunks of one byte on each of ten connections, again and again."""
    piece = b"1\r\nx\r\n" * 10_000
    _flood(http, INFER.encode() + b"Transfer-Encoding: chunked\r\n\r\n", piece, 10, until)


def trailers(http: int, _: int, until: float) -> None:
    """Trailers without an end on ten connections."""
    head = INFER.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    _flood(http, head, b"a: " + b"b" * 1000 + b"\r\n", 10, until)


def unread(http: int, _: int, until: float) -> None:
    """A page of 5 MB asked for 300 times on each of ten connections, never read."""
    while time.monotonic() < until:
        held = [_connected(http) for _ in range(10)]
        for one in held:
            one.sendall(b"GET /plotly.min.js HTTP/1.1\r\n\r\n" * 300)
        time.sleep(min(10.0, max(0.0, until - time.monotonic())))
        for one in held:
            one.close()


def long_json(http: int, _: int, until: float) -> None:
    """57 MB of JSON, on two connections, again and again."""
    n = 57_000_000 // 5 // IDS
    ids = b",".join([b"1234"] * (n * IDS))
    said = b'{"inputs":[{"name":"table_0","shape":[%d,%d],"datatype":"INT32","data":[%b]}]}'
    _post_often(http, said % (n, IDS, ids), "", 2, until)


def bombs(http: int, _: int, until: float) -> None:
    """61 kB of gzip that grow to 61 MB, on ten connections, again and again."""
    _post_often(http, gzip.compress(bytes(61 << 20)), "Content-Encoding: gzip\r\n", 10, until)


def viewers(http: int, _: int, until: float) -> None:
    """Ten viewers of the live page, ten times as often as a page asks."""

    def watch() -> None:
        with _connected(http) as one:
            while time.monotonic() < until:
                one.sendall(b"GET /live.json HTTP/1.1\r\n\r\n")
                one.recv(1 << 20)
                time.sleep(0.1)

    _each(watch, 10)


def long_messages(_: int, port: int, until: float) -> None:
    """120 gRPC messages of 60 MB at once, over 12 connections, again and again."""
    body = _request(bytes(60 << 20))

    def send() -> None:
        with _channel(port) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while time.monotonic() < until:
                for one in [call.future(body, timeout=20) for _ in range(10)]:
                    one.exception()

    _each(send, 12)


def typed_contents(_: int, port: int, until: float) -> None:
    """15 MB of typed contents, four at once, again and again."""
    request = message("ModelInferRequest")(model_name=MODEL)
    item = request.inputs.add(name="table_0", datatype="INT32", shape=[90_000, IDS])
    item.contents.int_contents.extend(np.full(90_000 * IDS, 300).tolist())
    body = request.SerializeToString()

    def send() -> None:
        with _channel(port) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while time.monotonic() < until:
                call.future(body, timeout=20).exception()

    _each(send, 4)


def nothing(_: int, __: int, until: float) -> None:
    """Nothing is sent, for comparison: two threads compute."""

    def compute() -> None:
        while time.monotonic() < until:
            zlib.compress(bytes(4 << 20), 9)

    _each(compute, 2)


ATTACKS: dict[str, Callable[[int, int, float], None]] = {
    act.__name__: act
    for act in (
        nothing, keyless_bodies, slow_bodies, small_chunks, trailers, unread, long_json, bombs,
        viewers, long_messages, typed_contents,
    )
}  # fmt: skip


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _sent(one: socket.socket, data: bytes) -> bool:
    """False, and closed, if the server has ended it."""
    with suppress(OSError):
        if not select.select([one], [], [], 0)[0]:
            one.sendall(data)
            return True
    one.close()
    return False


def _flood(port: int, head: bytes, piece: bytes, connections: int, until: float) -> None:
    def send() -> None:
        while time.monotonic() < until:
            with suppress(OSError), _connected(port) as one:
                one.sendall(head)
                while time.monotonic() < until and _sent(one, piece):
                    pass

    _each(send, connections)


def _post_often(port: int, body: bytes, headers: str, connections: int, until: float) -> None:
    head = f"{INFER}{headers}Content-Length: {len(body)}\r\n\r\n".encode()

    def send() -> None:
        while time.monotonic() < until:
            with suppress(OSError), _connected(port) as one:
                one.settimeout(30)
                one.sendall(head)
                one.sendall(body)
                one.recv(1 << 16)

    _each(send, connections)


def _each(act: Callable[[], None], number: int) -> None:
    threads = [threading.Thread(target=act) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _channel(port: int) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options)


def _request(raw: bytes) -> bytes:
    request = message("ModelInferRequest")(model_name=MODEL)
    request.inputs.add(name="table_0", datatype="INT32", shape=[len(raw) // 4 // IDS, IDS])
    request.raw_input_contents.append(raw)
    return bytes(request.SerializeToString())


def main() -> None:
    name, http, port, seconds = sys.argv[1:]
    os.nice(19)  # it shares the cores with what it attacks; real ones bring their own
    ATTACKS[name](int(http), int(port), time.monotonic() + float(seconds))


if __name__ == "__main__":
    main()
