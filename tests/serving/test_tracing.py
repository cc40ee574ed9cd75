"""Traces of queries: what is taken over from clients, which are traced, what their spans say; and
which queries are in the log."""

import http.server
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from random import Random

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprecsys.core import Policy, UserError
from deeprecsys.models import load_model
from deeprecsys.protocol import wire
from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.protocol.trace_context import Parent, parent, state, traceparent
from deeprecsys.rules.traffic import place
from deeprecsys.serving import otlp
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.server import Address
from deeprecsys.serving.tracing import Tracing
from serving_fixture import WAIT_S, Client, serving
from stub_model import StubModel, StubRuntime
from waiting import until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"

# The parser.

hexadecimal = "0123456789abcdef"


def digits(count, least=0):
    return st.integers(least, 16**count - 1).map(lambda value: f"{value:0{count}x}")


ids = st.tuples(digits(32, 1), digits(16, 1), digits(2))


@given(ids)
def test_what_is_well_formed_is_taken_over(drawn):
    trace, span, flags = drawn
    found = parent(f"00-{trace}-{span}-{flags}")
    assert found == Parent(int(trace, 16), int(span, 16), bool(int(flags, 16) & 1))
    assert traceparent(found.trace_id, found.span_id) == f"00-{trace}-{span}-01"


@given(ids, st.integers(0, 54), st.characters(codec="latin-1"))
def test_another_character_in_it_is_another_trace_or_none(drawn, at, other):
    text = "00-{}-{}-{}".format(*drawn)
    changed = text[:at] + other + text[at + 1 :]
    kept = other == text[at] if at in (0, 1, 2, 35, 52) else other in hexadecimal
    found = parent(changed)
    if at not in (0, 1) and not kept:  # another version may be a later one
        assert found is None
    elif found is not None:
        assert f"{found.trace_id:032x}-{found.span_id:016x}" == changed[3:52]


@given(st.text(max_size=60))
def test_no_text_is_an_error(text):
    assert parent(text) is None or text.strip(" \t")[2] == "-"
    state(text)


@given(ids, st.integers(1, 254), st.text(st.characters(codec="latin-1", exclude_characters="\n")))
def test_later_versions_may_say_more_behind_a_dash(drawn, version, more):
    known = "{}-{}-{}".format(*drawn)
    expected = parent(f"00-{known}")
    assert parent(f"{version:02x}-{known}") == expected
    assert parent(f"{version:02x}-{known}-{more}x") == expected
    assert parent(f"{version:02x}-{known}.{more}") is None
    assert parent(f"00-{known}-{more}") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "00", SAMPLED[:-1], SAMPLED + "0", SAMPLED.upper(), SAMPLED.replace("-", "_"),
        "ff" + SAMPLED[2:], f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"{SAMPLED},{SAMPLED}", f"{SAMPLED}\n", f"01-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-0g",
    ],
)  # fmt: skip
def test_what_is_not_well_formed_counts_as_not_sent(text):
    assert parent(text, "a=1") is None


rest = st.text("abcxyz019_-*/", max_size=12)
keys = st.one_of(
    st.builds("{}{}".format, st.sampled_from("abz"), rest),
    st.builds("{}{}@{}{}".format, st.sampled_from("az09"), rest, st.sampled_from("az"), rest),
)
printable = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
values = st.builds(
    "{}{}".format, st.text(printable, max_size=20), st.sampled_from(printable.strip())
)
members = st.dictionaries(keys, values, max_size=16)
blanks = st.text(" \t", max_size=2)


@given(members, blanks, blanks)
def test_a_state_is_kept_in_order(members, before, after):
    text = ",".join(f"{before}{key}={value}{after}" for key, value in members.items())
    assert state(text) == tuple(members.items())
    assert state(f"{text},{before},") == tuple(members.items())
    assert parent(SAMPLED, text).state == tuple(members.items())


@given(members, st.sampled_from(["=1", "A=1", "a", "a=", "a=1=2", "a@=1", "a=é", "@a=1", "a b=1"]))
def test_a_state_with_a_wrong_member_is_dropped_whole_and_its_parent_stays(members, wrong):
    text = ",".join([*(f"{key}={value}" for key, value in members.items()), wrong])
    assert state(text) == ()
    assert parent(SAMPLED, text) == parent(SAMPLED)


def test_a_state_has_at_most_32_members_each_of_another_key():
    assert len(state(",".join(f"k{i}=v" for i in range(32)))) == 32
    assert state(",".join(f"k{i}=v" for i in range(33))) == ()
    assert state("a=1,b=2,a=3") == ()
    assert state(f"{'a' * 256}=1") != ()
    assert state(f"{'a' * 257}=1") == ()
    assert state(f"a={'x' * 256}") != ()
    assert state(f"a={'x' * 257}") == ()


# Which queries.


class Kept:
    """A collector that keeps what it is sent."""

    def __init__(self):
        self.sent = []

    def send(self, trace, spans):
        self.sent.append((trace, spans))

    def close(self):
        return True


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_sampled_parent_is_always_followed_and_another_never(share):
    tracing = Tracing(Kept(), share, Random(1))
    for _ in range(50):
        trace = tracing.begin(SAMPLED, "a=1")
        assert trace.parent == Parent(int(TRACE, 16), int(SPAN, 16), True, (("a", "1"),))
        assert trace.trace_id == trace.parent.trace_id
        assert trace.span_id not in (0, trace.parent.span_id)
        assert tracing.begin(UNSAMPLED, "") is None


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("sent", ["", f"00-{'0' * 32}-{SPAN}-00"])
def test_of_queries_without_a_parent_a_share_begins_a_trace(share, sent):
    tracing = Tracing(Kept(), share, Random(1))
    begun = [trace for _ in range(2000) if (trace := tracing.begin(sent, "a=1"))]
    assert abs(len(begun) - 2000 * share) <= (60 if 0 < share < 1 else 0)
    assert all(trace.parent is None for trace in begun)
    assert len({trace.trace_id for trace in begun}) == len(begun)
    assert all(parent(trace.traceparent).sampled for trace in begun)


# Spans of real queries.


@contextmanager
def traced(runtime=None, share=0.0, **more):
    """A server, and its spans as OpenTelemetry has them."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing(otlp.Otlp(SimpleSpanProcessor(exporter)), share)
    with serving(StubModel(), runtime or StubRuntime(), tracing=tracing, **more) as server:
        yield server, exporter


def by_http(server, n, sent, model="stub", first=1.0, **parameters):
    """Status, and the `traceparent` of the answer."""
    dense = np.full((n, 4), first, np.float32)
    head, data = wire.request({"dense": dense}, binary=True, id="q1", parameters=parameters)
    length = {wire.HEAD_LENGTH.decode(): str(len(head))}
    with Client(server) as client:
        body = b"".join([head, *map(bytes, data)])
        status, headers, _ = client.ask("POST", f"/v2/models/{model}/infer", body, length | sent)
    return status, headers["traceparent"]


CODES = {"NOT_FOUND": 404, "INTERNAL": 500, "DEADLINE_EXCEEDED": 504, "UNAUTHENTICATED": 401}


def by_grpc(server, n, sent, model="stub", first=1.0, **parameters):
    dense = np.full((n, 4), first, np.float32)
    request = message("ModelInferRequest")(model_name=model, id="q1")
    request.inputs.add(name="dense", datatype="FP32", shape=dense.shape)
    request.raw_input_contents.append(dense.tobytes())
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        try:
            _, call = infer.with_call(request.SerializeToString(), metadata=tuple(sent.items()))
            status = 200
        except grpc.RpcError as error:
            call, status = error, CODES[error.code().name]
        return status, dict(call.trailing_metadata()).get("traceparent")


both = pytest.mark.parametrize("ask", [by_http, by_grpc])


def own(exporter, count=1):
    """The queries' own spans, once there are so many; and those within the last."""
    until(lambda: sum(s.name == "deeprecsys.infer" for s in exporter.get_finished_spans()) >= count)
    spans = exporter.get_finished_spans()
    queries = [span for span in spans if span.name == "deeprecsys.infer"]
    last = queries[-1].context.span_id
    return queries, [span for span in spans if span.parent and span.parent.span_id == last]


def said(span):
    return {name.removeprefix("deeprecsys."): value for name, value in span.attributes.items()}


@both
@pytest.mark.engine
def test_a_query_is_a_span_of_its_clients_trace_and_its_stages_add_up(ask):
    with traced(policy=Policy(32)) as (server, exporter):
        before_ns = time.time_ns()
        status, answered = ask(server, 70, {"traceparent": SAMPLED, "tracestate": "a=1,b=2"})
        (query,), within = own(exporter)
        after_ns = time.time_ns()
    assert status == 200
    assert query.context.trace_id == query.parent.trace_id == int(TRACE, 16)
    assert query.parent.span_id == int(SPAN, 16)
    assert query.parent.is_remote
    assert dict(query.context.trace_state) == {"a": "1", "b": "2"}
    assert query.kind.name == "SERVER"
    assert query.resource.attributes["service.name"] == "deeprecsys"
    assert answered == traceparent(query.context.trace_id, query.context.span_id)
    assert said(query) == {
        "model": "stub", "version": "1", "status": 200, "items": 70, "batch_size": 32, "id": "q1",
    }  # fmt: skip

    receive, queue, *compute, answer = within
    names = [span.name for span in within]
    assert names == ["receive", "queue", "compute", "compute", "compute", "answer"]
    assert [said(span)["items"] for span in compute] == [32, 32, 6]
    assert {said(span)["worker"] for span in compute} <= {0, 1}
    assert query.start_time == receive.start_time
    assert receive.end_time == queue.start_time
    assert queue.end_time == compute[0].start_time
    assert max(span.end_time for span in compute) == answer.start_time
    assert answer.end_time == query.end_time
    assert all(span.end_time >= span.start_time for span in within)
    assert len({span.context.span_id for span in [query, *within]}) == 7
    slack_ns = 20_000_000  # between the two clocks
    assert before_ns - slack_ns < query.start_time
    assert query.end_time < after_ns + slack_ns


@both
@pytest.mark.engine
def test_only_what_is_sampled_is_sent_and_handed_on(ask):
    with traced(share=1.0) as (server, exporter):
        assert ask(server, 2, {"traceparent": UNSAMPLED}) == (200, None)
        status, answered = ask(server, 2, {})
        (query,), _ = own(exporter)
        assert query.parent is None
        assert parent(answered).trace_id == query.context.trace_id
    with traced(share=0.0) as (server, exporter):
        assert ask(server, 2, {}) == (200, None)
        assert ask(server, 2, {"traceparent": SAMPLED.upper()}) == (200, None)
        status, answered = ask(server, 2, {"traceparent": SAMPLED})
        assert status == 200
        assert parent(answered).trace_id == int(TRACE, 16)
        own(exporter)
    assert len(own(exporter)[0]) == 1


@both
@pytest.mark.engine
def test_a_query_that_is_not_answered_has_a_span_too(ask):
    runtime = StubRuntime()
    with traced(runtime) as (server, exporter):
        status, answered = ask(server, 2, {"traceparent": SAMPLED}, model="nobody")
        (query,), within = own(exporter)
        assert status == said(query)["status"] == 404
        assert parent(answered).span_id == query.context.span_id
        assert "unknown model" in said(query)["why"]
        assert within == []
        assert query.status.status_code.name == "UNSET"

        status, _ = ask(server, 2, {"traceparent": SAMPLED}, first=666)
        (_, query), within = own(exporter, 2)
        assert status == said(query)["status"] == 500
        assert query.status.status_code.name == "ERROR"
        assert [span.name for span in within] == ["receive", "queue", "compute"]

        runtime.gate.clear()
        status, answered = ask(server, 2, {"traceparent": SAMPLED}, timeout=50_000)
        runtime.gate.set()
        (*_, query), within = own(exporter, 3)
        assert status == said(query)["status"] == 504
        assert parent(answered).span_id == query.context.span_id
        assert query.end_time - query.start_time >= 50_000_000
        assert max(span.end_time for span in within) == query.end_time


@both
@pytest.mark.engine
def test_without_a_key_nobody_makes_spans(ask):
    address = Address("127.0.0.1", 0, 0, key="secret")
    with traced(share=1.0, address=address) as (server, exporter):
        assert ask(server, 2, {"traceparent": SAMPLED}) == (401, None)
        with_key = {"traceparent": SAMPLED, "authorization": "Bearer secret"}
        assert ask(server, 2, with_key)[0] == 200
        assert [said(query)["status"] for query in own(exporter)[0]] == [200]


@pytest.mark.engine
def test_a_long_body_is_traced_as_well():
    with traced(bounds=Bounds(body_bytes=64 << 20), policy=Policy(1 << 20)) as (server, exporter):
        status, _ = by_http(server, 600_000, {"traceparent": SAMPLED})
        assert status == 413
        assert said(own(exporter)[0][0])["status"] == 413
        head, _ = wire.request({"dense": np.ones((2000, 4), np.float32)}, binary=False)
        with Client(server) as client:
            path = "/v2/models/stub/infer"
            status, headers, _ = client.ask("POST", path, head, {"traceparent": SAMPLED})
        assert status == 200
        (_, query), _ = own(exporter, 2)
        assert parent(headers["traceparent"]).span_id == query.context.span_id
        assert said(query)["items"] == 2000


@pytest.mark.engine
def test_several_headers_of_one_name_are_taken_together():
    with traced() as (server, exporter):
        with Client(server) as client:
            head, _ = wire.request({"dense": np.ones((2, 4), np.float32)}, binary=False)
            for parents in (1, 2):
                client.http.putrequest("POST", "/v2/models/stub/infer")
                for _ in range(parents):
                    client.http.putheader("Traceparent", SAMPLED)
                client.http.putheader("tracestate", "a=1")
                client.http.putheader("tracestate", "b=2")
                client.http.putheader("Content-Length", str(len(head)))
                client.http.endheaders(head)
                answer = client.http.getresponse()
                answer.read()
                assert (answer.headers["traceparent"] is None) == (parents == 2)
        (query,), _ = own(exporter)
    assert dict(query.context.trace_state) == {"a": "1", "b": "2"}


@pytest.mark.engine
def test_the_native_core_leaves_queries_to_python_where_they_are_traced():
    model = load_model("ncf", scale=0.001)
    with serving(model, tracing=Tracing(Kept(), 0.0)) as server:
        assert server.plane.native is None
        assert server.plane.tracing is not None


# The collector.


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *about):
        pass


@contextmanager
def receiving():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        receiver.got = []
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join(WAIT_S)


@pytest.mark.engine
def test_a_collector_has_every_span_when_the_server_has_ended():
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with receiving() as receiver:
        tracing = Tracing(otlp.to_collector(f"http://127.0.0.1:{receiver.server_port}"), 1.0)
        with serving(StubModel(), StubRuntime(), tracing=tracing) as server:
            for _ in range(5):
                by_http(server, 2, {"traceparent": SAMPLED, "tracestate": "a=1"})
    assert {path for path, _ in receiver.got} == {"/v1/traces"}
    spans = [
        span
        for _, body in receiver.got
        for of in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in of.scope_spans
        for span in scope.spans
    ]
    assert sum(span.name == "deeprecsys.infer" for span in spans) == 5
    assert len(spans) == 5 * 5
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.trace_state for span in spans} == {"a=1"}


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/", "https://c/v1/traces"),
        ("http://[::1]:4318/other/traces", "http://[::1]:4318/other/traces"),
    ],
)
def test_a_url_without_a_path_gets_that_of_the_protocol(url, where):
    assert otlp.endpoint(url) == where


@pytest.mark.parametrize("url", ["", "c", "c:4318", "ftp://c", "http://", "http://c:x", "http://["])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UserError, match="is a collector's URL"):
        otlp.endpoint(url)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"pip install 'deeprecsys\[otel\]'"):
        otlp.to_collector("http://c:4318")


def test_nothing_else_imports_opentelemetry():
    code = (
        "import sys, deeprecsys.cli.serve, deeprecsys.serving.grpc_adapter, "
        "deeprecsys.serving.otlp, deeprecsys.serving.server\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The log.


def logging(lines, **served):
    def log(event, **about):
        if event == "query":
            lines.append(about)

    return {"log": log, "log_queries": True, **served}


@pytest.mark.engine
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_answers_is_in_the_log_and_all_that_had_none(share):
    lines, dense = [], np.ones((2, 4), np.float32)
    ids = [f"query {number}" for number in range(100)]
    with (
        serving(StubModel(), StubRuntime(), **logging(lines, log_share=share)) as server,
        Client(server) as client,
    ):
        for number, id in enumerate(ids):
            assert client.infer({"dense": dense}, id=id)[0] == 200
            if number % 25 == 0:
                assert client.infer({"dense": dense * 666}, id="failed")[0] == 500
                assert client.infer({"dense": dense[:, :1]}, id="refused")[0] == 400
        until(lambda: server.plane.pending == 0)
    answered = [line["id"] for line in lines if line["status"] == 200]
    assert answered == [id for id in ids if place(f"log {id}".encode()) < share]
    assert sum(line["status"] == 500 for line in lines) == 4
    assert sum(line["status"] == 400 for line in lines) == 4
    assert len(answered) == 100 * share or 15 < len(answered) < 45


@pytest.mark.engine
def test_queries_without_an_id_are_in_the_log_by_their_time():
    lines, dense = [], np.ones((2, 4), np.float32)
    with (
        serving(StubModel(), StubRuntime(), **logging(lines, log_share=0.5)) as server,
        Client(server) as client,
    ):
        for _ in range(100):
            client.infer({"dense": dense})
        until(lambda: server.plane.pending == 0)
    assert 15 < len(lines) < 85


def test_what_the_log_keeps_is_not_what_a_canary_gets():
    ids = [f"{number}".encode() for number in range(20_000)]
    canary = [id for id in ids if place(id) < 0.1]
    logged = sum(place(b"log " + id) < 0.1 for id in canary)
    assert 0.07 < logged / len(canary) < 0.13


@pytest.mark.engine
def test_a_traced_query_has_its_trace_in_the_log():
    lines = []
    with traced(**logging(lines)) as (server, exporter):
        by_http(server, 2, {"traceparent": SAMPLED})
        own(exporter)
        by_http(server, 2, {"traceparent": UNSAMPLED})
        until(lambda: len(lines) == 2)
    assert [line.get("trace") for line in lines] == [TRACE, None]
