"""The payload's way into the server: `python benchmarks/payload.py`, in ten minutes.

Queries of dlrm-rmc3, 2.8 MB on average: their inputs in shared memory against the engine in this
process, and sent through a Unix socket against TCP on loopback, in turns, the client on the
server's own cores; and what each way takes alone, before a runtime that computes nothing.
`--scale 0.01 --seconds 0.1` only shows that it works. Rows are shown as they come and kept in
docs/payload.md.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import deeprecsys as drs
from deeprecsys.client.client import Client
from deeprecsys.core import SLA
from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from rows import Row, asked, measure
from served import Bare, StubModel, bare, served
from turns import WORKLOAD, compare, said

RESULTS = Path(__file__).parents[1] / "docs" / "payload.md"
MODEL, BATCH, SLA_S = "dlrm-rmc3", 256, 0.1
_IDS, _ROUNDS = 1400, 10  # a query of 500 is 2.8 MB


def shm(scale: float, seconds: float) -> Iterator[Row]:
    """Inputs in shared memory, answers with the response, as `tritonclient` does by default."""
    model = load_model(MODEL, scale=scale)
    with ExitStack() as stack:
        host = stack.enter_context(_server(scale))
        url = f"http://127.0.0.1:{host.http_port}"
        systems: dict[str, Any] = {
            "shared memory": stack.enter_context(Client(url, MODEL, shared_memory=True)),
            "in-process": stack.enter_context(drs.Engine(model)),
        }
        yield _row(systems, f"capacity, shared memory / in-process, {_about(model)}", 0.95, seconds)


def uds(scale: float, seconds: float) -> Iterator[Row]:
    """The same server, by either."""
    model = load_model(MODEL, scale=min(scale, 0.01))  # only to say how long a query is
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = f"{folder}/http.sock"
        host = stack.enter_context(_server(scale, "--uds", path))
        systems: dict[str, Any] = {
            "Unix socket": stack.enter_context(Client(f"unix:{path}", MODEL)),
            "TCP": stack.enter_context(Client(f"http://127.0.0.1:{host.http_port}", MODEL)),
        }
        yield _row(systems, f"capacity, Unix socket / TCP, {_about(model)}", 1.05, seconds)


def alone(scale: float, seconds: float) -> Iterator[Row]:
    """One client, one query after another, a runtime that computes nothing."""
    inputs = StubModel(_IDS).example(500, np.random.default_rng(0))
    sent = bytes(inputs["ids"].data)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = f"{folder}/http.sock"
        host = stack.enter_context(bare("stub", str(_IDS), path))
        time.sleep(4.0)
        clients = {"TCP": Bare(host.http_port), "Unix socket": Bare(0, path)}
        clients["shared memory"] = clients["TCP"]
        whole = _posted(inputs)
        asked_for = dict.fromkeys(clients, whole) | {"shared memory": _told(clients["TCP"], sent)}
        taken: dict[str, list[float]] = {name: [] for name in clients}
        cpu_s = dict.fromkeys(clients, 0.0)
        each, process = max(1, int(40 * seconds)), psutil.Process()
        for turn in range(_ROUNDS + 1):  # the first warms up
            for name, client in clients.items():
                before_s = host.cpu_s() + _cpu_s(process)
                for _ in range(each):
                    began_s = time.perf_counter()
                    assert client.ask(*asked_for[name])[0] == 200
                    taken[name] += [time.perf_counter() - began_s] * (turn > 0)
                if turn:
                    cpu_s[name] += (host.cpu_s() + _cpu_s(process) - before_s) / (_ROUNDS * each)
        for client in (clients["TCP"], clients["Unix socket"]):
            client.socket.close()
    for name, seconds_taken in taken.items():
        yield Row(
            f"a query of {len(sent) / 1e6:.1f} MB by {name}, nothing computed",
            f"{np.median(seconds_taken) * 1e3:.2f} ms (p50), {cpu_s[name] * 1e3:.2f} ms of CPU, "
            "client and server",
            "",
            None,
        )


def _posted(inputs: Any) -> tuple[bytes, bytes]:
    head, data = wire.request(inputs, parameters={"binary_data_output": True})
    body = b"".join([head, *map(bytes, data)])
    more = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return _head("models/stub/infer", len(body), more), body


def _told(client: Bare, sent: bytes) -> tuple[bytes, bytes]:
    """The same in shared memory, which loses its name once the server has it."""
    name = f"deeprecsys-payload-{os.getpid()}"
    path = Path("/dev/shm", name)
    path.write_bytes(sent)
    said = json.dumps({"key": f"/{name}", "byte_size": len(sent)}).encode()
    try:
        where = f"systemsharedmemory/region/{name}/register"
        assert client.ask(_head(where, len(said)), said)[0] == 200
    finally:
        path.unlink()
    there = {"shared_memory_region": name, "shared_memory_byte_size": len(sent)}
    item = {"name": "ids", "shape": [500, _IDS], "datatype": "INT32", "parameters": there}
    asking = {"inputs": [item], "parameters": {"binary_data_output": True}}
    body = json.dumps(asking).encode()
    return _head("models/stub/infer", len(body)), body


def _head(path: str, length: int, more: str = "") -> bytes:
    head = f"POST /v2/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n"
    return head.encode()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _server(scale: float, *more: str) -> Any:
    """Without deadlines: a capacity counts every query. Inputs as in the paper."""
    return served(MODEL, "--batch-size", str(BATCH), "--deadline-ms", "0", "--no-query-inputs",
                  "--scale", str(scale), *more)  # fmt: skip


def _row(systems: dict[str, Any], what: str, least: float, seconds: float) -> Row:
    times = {"search_s": 30.0 * seconds, "round_s": 4.0 * seconds, "most_s": 90.0 * seconds}
    rates, ratios = compare(systems, SLA(SLA_S), BATCH, **times)
    first, second = systems
    ratio = ratios[second]
    return Row(
        what,
        f"{said(ratio)} ({rates[first]:,.0f} and {rates[second]:,.0f} queries/s)",
        f"at least {least}",
        ratio is not None and ratio.ratio >= least,
    )


def _about(model: Any) -> str:
    size = int(WORKLOAD.sample_sizes(4096).mean())
    one = model.example(1, np.random.default_rng(0))
    width = sum(array.nbytes for array in one.values())
    return f"{MODEL}, {size * width / 1e6:.1f} MB a query, at {SLA(SLA_S)}"


PARTS = (shm, uds, alone)


def main() -> None:
    parser = asked(PARTS, __doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Of the tables.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Times the usual length.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    parts = {part.__name__: partial(part, given.scale, given.seconds) for part in PARTS}
    measure(parts, given.only, given.results, __file__)


if __name__ == "__main__":
    main()
