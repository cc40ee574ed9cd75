"""Mutated requests, for `reliability.py --only fuzz`: bytes changed, cut or doubled.

`python benchmarks/fuzzing.py http|grpc PORT SEED N` sends N of them and prints what became of them,
as JSON. Over HTTP bodies travel sixteen at a time on one connection that is kept, and a mutated
head on one of its own, whose sending side is then shut: no answer is waited for that is not due.
"""

from __future__ import annotations

import json
import random
import socket
import sys
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np

from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from deeprecsys.protocol.grpc_schema import SERVICE, message

MODEL, SCALE = "dlrm-rmc1", 0.001
_TOGETHER = 16  # requests on their way, of HTTP on one connection
_HANG_S = 20.0
_WORDS = (b"-1", b"1e9", b"null", b"[", b'"', b"NaN", b"{}")


def mutate(chance: random.Random, whole: bytes, head: int) -> bytes:
    """One to three changes, most of them among the first `head` bytes."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 3)):
        if not data:
            break
        at = chance.randrange(min(head, len(data)) if chance.random() < 0.8 else len(data))
        match chance.randrange(6):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 19)]
            case 2:
                data[at:at] = bytes(chance.randint(32, 126) for _ in range(chance.randint(1, 7)))
            case 3:
                data[at:at] = data[at : at + 30]
            case 4:
                data[at : at + 1] = chance.choice(_WORDS)
            case _:
                del data[at:]
    return bytes(data)


def http(port: int, seed: int, n: int) -> Counter[str]:
    """By status; "closed": no answer was due to a head that is none; "unanswered": one was."""
    chance, seen = random.Random(seed), Counter[str]()
    head, data = wire.request(_inputs(), id="fuzz", parameters={"timeout": 900_000})
    body = b"".join([head, *map(bytes, data)])
    kept = _Kept(port)
    left = n
    while left:
        if chance.random() < 0.2:
            lines = _lines(len(body), len(head))
            seen.update(_alone(port, mutate(chance, lines, len(lines)) + b"\r\n" + body))
            left -= 1
            continue
        count = min(left, _TOGETHER)
        bodies = [mutate(chance, body, len(head)) for _ in range(count)]
        seen.update(kept.ask([_lines(len(b), len(head)) + b"\r\n" + b for b in bodies]))
        left -= count
    return seen


def _lines(length: int, head: int) -> bytes:
    return (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        f"Inference-Header-Content-Length: {head}\r\n"
    ).encode()


class _Kept:
    """A connection that is kept as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, requests: list[bytes]) -> list[str]:
        try:
            if self._socket is None:
                self._socket = _connected(self._port)
            self._socket.sendall(b"".join(requests))
            found, ended = _answers(self._socket, len(requests))
        except TimeoutError:
            found, ended = ["hang"], True
        except OSError:
            found, ended = [], True
        if ended and self._socket is not None:
            self._socket.close()
            self._socket = None
        return found + ["unanswered"] * (len(requests) - len(found))


def _alone(port: int, request: bytes) -> list[str]:
    """All that is answered to one head of unknown sense and what follows it."""
    with _connected(port) as one:
        try:
            one.sendall(request)
            one.shutdown(socket.SHUT_WR)
            found, _ = _answers(one, None)
        except TimeoutError:
            return ["hang"]
        except OSError:
            return ["closed"]
    return found[:1] or ["closed"]


def _answers(one: socket.socket, wanted: int | None) -> tuple[list[str], bool]:
    """Statuses, as many as are wanted or until it ends; and whether it did."""
    got, found = bytearray(), list[str]()
    while wanted is None or len(found) < wanted:
        while (end := got.find(b"\r\n\r\n")) >= 0:
            top = bytes(got[:end]).lower()
            length = int(top.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(got) < end + 4 + length:
                break
            del got[: end + 4 + length]
            if not top.startswith(b"http/1.1 1"):  # an interim one
                found.append(top[9:12].decode())
        else:
            if wanted is not None and len(found) >= wanted:
                break
        if not (more := one.recv(1 << 16)):
            return found, True
        got += more
    return found, False


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_HANG_S)


def over_grpc(port: int, seed: int, n: int) -> Counter[str]:
    """By code; DEADLINE_EXCEEDED of the client's own is "hang"."""
    chance, seen = random.Random(seed), Counter[str]()
    request = message("ModelInferRequest")(model_name=MODEL)
    for name, array in _inputs().items():
        datatype = "FP32" if array.dtype == np.float32 else "INT32"
        request.inputs.add(name=name, shape=array.shape, datatype=datatype)
        request.raw_input_contents.append(array.tobytes())
    whole = request.SerializeToString()
    flying: deque[Any] = deque()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(n):
            if len(flying) == _TOGETHER:
                seen[_code(flying.popleft())] += 1
            flying.append(call.future(mutate(chance, whole, 400), timeout=_HANG_S))
        for one in flying:
            seen[_code(one)] += 1
    return seen


def _code(one: Any) -> str:
    one.exception()
    code, said = one.code().name, one.details() or ""
    return "hang" if code == "DEADLINE_EXCEEDED" and "Deadline" in said else str(code)


def _inputs() -> Mapping[str, Any]:
    return load_model(MODEL, scale=SCALE).example(2, np.random.default_rng(0))


def main() -> None:
    kind, port, seed, n = sys.argv[1:]
    seen = (http if kind == "http" else over_grpc)(int(port), int(seed), int(n))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
