"""A client may ask so many queries a second, where that is bounded, and others do not notice."""

import contextlib
import http.client
import re

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.protocol import wire
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.protocol.reasons import Refusal
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.rates import Rates
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel

BOUND = "max-qps-per-client"


def taken(rates, client, times_s):
    """At which of these times it was let in."""
    let_in = []
    for now_s in times_s:
        with contextlib.suppress(Refusal):
            rates.take(client, now_s)
            let_in.append(now_s)
    return let_in


@given(
    st.floats(0.1, 50),
    st.lists(st.floats(0, 10), min_size=1, max_size=300).map(sorted),
)
def test_no_second_has_more_than_twice_its_worth_and_a_patient_client_is_never_refused(qps, at_s):
    let_in = taken(Rates(qps), "a", at_s)
    for begin_s in let_in:
        within = sum(begin_s <= t < begin_s + 1 for t in let_in)
        assert within <= max(1.0, qps) + qps + 1e-6
    even = [k / qps for k in range(40)]
    assert taken(Rates(qps), "a", even) == even


def test_a_second_s_worth_may_come_at_once_and_clients_do_not_share_it():
    rates = Rates(3)
    assert len(taken(rates, "a", [1.0] * 10)) == 3
    assert len(taken(rates, "b", [1.0] * 10)) == 3
    rates.sweep(1.5)  # while it counts, it is remembered
    assert len(taken(rates, "a", [1.5] * 10)) == 1
    rates.sweep(99.0)
    assert not rates._paid_s


def test_without_a_bound_nothing_is_refused_or_remembered():
    rates = Rates(None)
    assert len(taken(rates, "a", [0.0] * 1000)) == 1000
    assert not rates._paid_s


def http_codes(server, address, times):
    said = http.client.HTTPConnection("127.0.0.1", server.http_port, WAIT_S, (address, 0))
    with Client(server) as client, contextlib.closing(said):
        client.http.close()
        client.http = said
        codes = []
        for _ in range(times):
            codes.append(client.infer({"dense": np.ones((2, 4), np.float32)})[0])
        return codes


def test_over_http_a_client_beyond_it_is_told_which_bound_and_others_are_served():
    with serving(StubModel(), NoOp(), bounds=Bounds(client_qps=0.01)) as server:
        assert http_codes(server, "127.0.0.2", 3) == [200, 429, 429]  # on one connection
        assert http_codes(server, "127.0.0.3", 1) == [200]
        with Client(server) as client:
            assert client.get("/v2/health/ready")[0] == 200
            query, _ = wire.request({"dense": np.ones((1, 4), np.float32)}, binary=False)
            answers = [client.ask("POST", "/v2/models/stub/infer", query) for _ in range(2)]
            assert [status for status, _, _ in answers] == [200, 429]
            _, headers, body = answers[1]
            assert headers["Retry-After"] == "1"
            assert f"--{BOUND}" in body.decode()
            metrics = client.ask("GET", "/metrics")[2].decode()
        counted = re.search(rf'deeprecsys_bounded{{bound="{BOUND}".*}} (\S+)', metrics)
        assert counted is not None
        assert float(counted[1]) == 3
        assert server.plane.observed.shed == 3


def test_over_grpc_too_and_both_protocols_count_together():
    asked = message("ModelInferRequest")(model_name="stub", raw_input_contents=[bytes(16)])
    asked.inputs.add(name="dense", datatype="FP32", shape=[1, 4])
    body = asked.SerializeToString()
    with (
        serving(StubModel(), NoOp(), bounds=Bounds(client_qps=0.01)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        infer(body, timeout=WAIT_S)
        with pytest.raises(grpc.RpcError) as refused:
            infer(body, timeout=WAIT_S)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"--{BOUND}" in refused.value.details()
        assert http_codes(server, "127.0.0.1", 1) == [429]
        channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=WAIT_S)  # no query
        assert server.plane.observed.bounds == {BOUND: 2}
