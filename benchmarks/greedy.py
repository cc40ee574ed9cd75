"""A client that asks for more than its share, from an address of its own, for `reliability.py`.

`python benchmarks/greedy.py PORT MODEL SCALE QPS TIMEOUT_US PRIORITY SECONDS` asks that often, or
as often as so many connections can, and prints the answers by status, as JSON. 0: no timeout, or
no priority.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import numpy as np

from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from served import Bare

ADDRESS = "127.0.0.2"  # the server tells clients by their addresses
_CONNECTIONS, _SIZE = 100, 130


def main() -> None:
    port, model, scale, qps, timeout_us, priority, seconds = sys.argv[1:]
    os.nice(19)  # it shares the cores with what it asks; real ones bring their own
    inputs = load_model(model, scale=float(scale)).example(_SIZE, np.random.default_rng(0))
    given = {"timeout": int(timeout_us), "priority": int(priority)}
    head, data = wire.request(inputs, parameters={k: v for k, v in given.items() if v})
    body = b"".join([head, *map(bytes, data)])
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    ).encode()
    each_s = _CONNECTIONS / float(qps)
    seen, begun_s = Counter[str](), time.monotonic()
    until_s = begun_s + float(seconds)

    def ask(number: int) -> None:
        with suppress(OSError), _From(int(port)) as client:
            next_s = begun_s + each_s * number / _CONNECTIONS
            while next_s < until_s:
                time.sleep(max(0.0, next_s - time.monotonic()))
                seen[str(client.ask(lines, body)[0])] += 1
                next_s = max(next_s + each_s, time.monotonic())

    threads = [threading.Thread(target=ask, args=(k,), daemon=True) for k in range(_CONNECTIONS)]
    print("begun", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()) + 1.0)
    print(json.dumps(seen), flush=True)
    os._exit(0)  # some may wait for answers yet


class _From(Bare):
    """Of that address."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 90, (ADDRESS, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


if __name__ == "__main__":
    main()
