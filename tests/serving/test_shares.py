"""Clients share the workers, whatever deadlines and priorities they send."""

import http.client
import threading

import numpy as np
import pytest

from deeprecsys.core import Policy
from serving_fixture import WAIT_S, Client, serving
from stub_device import StubDevice
from stub_model import StubModel, StubRuntime
from waiting import until

pytestmark = pytest.mark.engine


def query(n):
    return {"dense": np.ones((n, 4), np.float32)}


class From(Client):
    """Of another address of this machine."""

    def __init__(self, server, address):
        super().__init__(server)
        self.http = http.client.HTTPConnection(
            "127.0.0.1", server.http_port, timeout=WAIT_S, source_address=(address, 0)
        )


def ask(server, address, n, answers, **parameters):
    def run():
        with From(server, address) as client:
            answers.append(client.infer(query(n), parameters=parameters)[0])

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_client_with_long_deadlines_and_the_first_priority_does_not_go_before_another():
    runtime = StubRuntime()
    with serving(StubModel(), runtime, deadline_s=WAIT_S) as server:
        engine, answers = server.plane.engine, []
        runtime.gate.clear()
        runtime.executed.clear()
        hog = [
            ask(server, "127.0.0.2", 7, answers, timeout=60_000_000, priority=1) for _ in range(20)
        ]
        until(lambda: engine.load().queued_items + engine.load().executing * 7 == 20 * 7)
        other = ask(server, "127.0.0.3", 3, answers)
        until(lambda: engine.load().open_queries == 21)
        runtime.gate.set()
        for thread in [*hog, other]:
            thread.join(WAIT_S)
        assert answers == [200] * 21
        assert runtime.executed.index(3) <= 4


def test_an_accelerator_that_fails_is_said_in_log_and_metrics():
    device, said = StubDevice(), []
    device.fails_at = {"begin": 0}
    policy = Policy(8, offload_threshold=10)
    with serving(
        StubModel(), StubRuntime(), policy=policy, engine={"accelerators": [device]},
        log=lambda event, **about: said.append((event, about)),
    ) as server:  # fmt: skip
        with Client(server) as client:
            assert client.infer(query(20))[0] == 200
            until(lambda: any(event == "accelerator failed" for event, _ in said))
            lines = client.ask("GET", "/metrics")[2].decode().splitlines()
        failures = next(x for x in lines if x.startswith("deeprecsys_device_failures{"))
        assert float(failures.split()[-1]) >= 1
        present = next(x for x in lines if x.startswith("deeprecsys_device_present{"))
        assert present.endswith(" 0.0")
