"""What one client may do over gRPC without harming another, and the forms that messages take."""

import contextlib
import gc
import threading
import time
import weakref

import grpc
import numpy as np
import pytest

from deeprecsys.core import InputSpec
from deeprecsys.models.check import InputCheck
from deeprecsys.protocol.grpc_schema import HEALTH, SERVICE, message
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.serving import grpc_adapter
from deeprecsys.serving.bounds import Bounds
from deeprecsys.serving.grpc_queue import GrpcQueue
from deeprecsys.serving.server import Address
from serving_fixture import WAIT_S, serving
from stub_model import StubModel, StubRuntime

pytestmark = pytest.mark.engine


@contextlib.contextmanager
def channel(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as one:
        yield one


def infer(channel, request, **more):
    """The code, and the answer or what was said."""
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=lambda r: r if isinstance(r, bytes) else r.SerializeToString(),
        response_deserializer=message("ModelInferResponse").FromString,
    )
    try:
        return "OK", call(request, **{"timeout": WAIT_S} | more)
    except grpc.RpcError as error:
        return error.code().name, error.details()


def request(n=2, *, raw=True, values=None, datatype="FP32", field="fp32_contents"):
    asked = message("ModelInferRequest")(model_name="stub")
    item = asked.inputs.add(name="dense", datatype=datatype, shape=[n, 4])
    if raw:
        asked.raw_input_contents.append(bytes(n * 16))
    else:
        getattr(item.contents, field).extend([1.0] * (4 * n) if values is None else values)
    return asked


def test_no_class_of_a_message_is_ever_collected():
    """A thread that reads a part whose class another is collecting would end the process."""
    whole = request(raw=False)
    whole.parameters["p"].int64_param = whole.inputs[0].parameters["q"].int64_param = 1
    whole.outputs.add(name="scores").parameters["r"].bool_param = True
    tensor, output = whole.inputs[0], whole.outputs[0]
    parts = [tensor, tensor.contents, tensor.parameters["q"], output, output.parameters["r"],
             message("ModelInferResponse")().outputs.add(),
             message("ListServiceResponse")().service.add()]  # fmt: skip
    classes = [weakref.ref(type(part)) for part in parts]
    del whole, tensor, output, parts
    gc.collect()
    assert all(one() is not None for one in classes)


class Ids(StubModel):
    inputs = (InputSpec("dense", "INT32", (4,)),)

    def __init__(self):
        self.check = InputCheck(self.name, self.inputs)

    def example(self, n, rng, index_law=None):
        return {"dense": rng.integers(-9, 9, (n, 4), dtype=np.int32)}


@pytest.mark.parametrize("n", [3, 9000])
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_typed_contents_say_what_raw_ones_say_however_long(n, compression):
    rng = np.random.default_rng(n)
    floats = rng.standard_normal(4 * n).astype(np.float32)
    ints = rng.integers(-(2**31), 2**31, 4 * n)
    for model, values, about in (
        (StubModel(), floats, {}),
        (Ids(), ints, {"datatype": "INT32", "field": "int_contents"}),
    ):
        runtime = StubRuntime()
        seen = []
        runtime.prepare = lambda inputs, scores, seen=seen: (
            seen.append(inputs)
            or (
                inputs["dense"].astype(np.float32),
                scores,
            )
        )
        with serving(model, runtime) as server, channel(server) as one:
            for raw in (False, True):
                asked = request(n, raw=raw, values=values.tolist(), **about)
                if raw:
                    small = np.float32 if model.name == "stub" and not about else np.int32
                    asked.raw_input_contents[0] = values.astype(small).tobytes()
                assert infer(one, asked, compression=compression)[0] == "OK"
                got = seen[-1]["dense"].reshape(-1)
                np.testing.assert_array_equal(got, values.astype(got.dtype))


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"values": [1.0] * 35_999}, "values"),
        ({"values": [300] * 36_000, "datatype": "INT8", "field": "int_contents"}, "does not fit"),
        ({"values": [b""] * 36_000, "datatype": "BYTES", "field": "bytes_contents"}, "raw"),
        ({"values": [1] * 36_000, "field": "int_contents"}, "0 values"),
    ],
)
def test_long_contents_that_are_wrong_are_refused(about, said):
    with serving(StubModel(), NoOp()) as server, channel(server) as one:
        code, text = infer(one, request(9000, raw=False, **about))
        assert (code, said in text) == ("INVALID_ARGUMENT", True)


def test_long_messages_that_are_none_are_refused():
    whole = request(20_000).SerializeToString()
    tensor = request(9000, raw=False).SerializeToString()
    unpacked = b"".join(b"\x35" + bytes(4) for _ in range(20_000))
    wrong = [whole[:-1], whole[:-5] + b"\xff" * 5, tensor[:-3], bytes(100_000), b"\x0b" * 100_000,
             b"\x2a\x00" * 50_000, b"\x2a" + b"\xff" * 100_000,
             b"\x2a\xa8\x8d\x06\x2a\xa4\x8d\x06" + unpacked]  # fmt: skip
    with serving(StubModel(), NoOp()) as server, channel(server) as one:
        for body in wrong:
            assert infer(one, body)[0] == "INVALID_ARGUMENT"
        assert infer(one, request())[0] == "OK"


def test_what_a_message_grows_to_is_bounded():
    with serving(StubModel(), NoOp(), bounds=Bounds(1 << 20)) as server, channel(server) as one:
        code, said = infer(one, request(200_000), compression=grpc.Compression.Gzip)
        assert (code, "--max-body-mb" in said) == ("RESOURCE_EXHAUSTED", True)
        assert infer(one, request())[0] == "OK"


def test_calls_at_once_are_bounded_and_probes_are_none_of_them():
    runtime = StubRuntime()
    with serving(StubModel(), runtime, bounds=Bounds(calls=2)) as server, channel(server) as one:
        runtime.gate.clear()
        held = [one.unary_unary(f"/{SERVICE}/ModelInfer").future(request().SerializeToString())
                for _ in range(2)]  # fmt: skip
        while server.plane.pending < 2:
            pass
        with channel(server) as other:
            code, said = infer(other, request())
            assert (code, "--max-calls" in said) == ("RESOURCE_EXHAUSTED", True)
            assert check(other) == 1
        runtime.gate.set()
        assert all(call.result(WAIT_S) for call in held)


def check(channel, service=""):
    call = channel.unary_unary(f"/{HEALTH}/Check", lambda r: r.SerializeToString(),
                               message("HealthCheckResponse").FromString)  # fmt: skip
    return call(message("HealthCheckRequest")(service=service), timeout=WAIT_S).status


def test_calls_without_a_message_keep_no_other_waiting():
    """Eight times as many as may be received at once, of both kinds, without a key."""
    address = Address("127.0.0.1", 0, 0, key="k")
    bounds = Bounds(body_bytes=1 << 20, waiting_bytes=16 << 20, body_s=1.0)
    key = [("authorization", "Bearer k")]
    with (
        serving(StubModel(), NoOp(), bounds=bounds, address=address) as server,
        channel(server) as attacker,
        channel(server) as one,
    ):
        over = threading.Event()

        def silence():
            over.wait(WAIT_S)
            return
            yield

        calls = [
            attacker.stream_unary(f"/{path}").future(silence(), metadata=key)
            for path in [f"{SERVICE}/ModelInfer", f"{HEALTH}/Check"] * 16
        ]
        for _ in range(3):
            assert infer(one, request(), metadata=key)[0] == "OK"
            assert check(one) == 1
        over.set()
        codes = {call.exception(WAIT_S).code().name for call in calls}
        assert codes <= {"DEADLINE_EXCEEDED", "INVALID_ARGUMENT"}


def test_many_long_messages_are_answered_or_refused():
    bounds = Bounds(body_bytes=4 << 20, waiting_bytes=4 << 20, candidates=1 << 20)
    with serving(StubModel(), NoOp(), bounds=bounds) as server, contextlib.ExitStack() as stack:
        whole = request(200_000).SerializeToString()
        channels = [stack.enter_context(channel(server)) for _ in range(4)]
        calls = [one.unary_unary(f"/{SERVICE}/ModelInfer").future(whole) for one in channels * 6]
        codes = [call.code().name for call in calls]
        assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
        assert "OK" in codes
        assert server.plane.waiting.held == 0
        assert infer(channels[0], request())[0] == "OK"


@contextlib.contextmanager
def unread(server, n=50_000):
    """Asks for answers of 200 kB that wait to be read, which is more than gRPC sends ahead."""
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0),
               ("grpc.use_local_subchannel_pool", 1)]  # fmt: skip
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as one:
        ask = one.unary_stream(f"/{SERVICE}/ModelInfer")
        yield lambda: ask(request(n).SerializeToString())


def until(holds):
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_a_call_that_is_answered_waits_at_no_door_though_its_client_does_not_read(monkeypatch):
    made = []
    monkeypatch.setattr(
        grpc_adapter, "GrpcQueue", lambda *given: made.append(GrpcQueue(*given)) or made[-1]
    )

    def waiting():
        return made[0].waiting(time.perf_counter())

    with serving(StubModel(), NoOp()) as server, unread(server) as ask, channel(server) as other:
        calls = [ask() for _ in range(3)]
        until(lambda: server.plane.observed.answered == 3 and waiting() == 0)
        assert infer(other, request())[0] == "OK"
        for call in calls:
            call.cancel()
        until(lambda: waiting() == 0 and not made[0].open and not made[0].answered)


def test_a_call_that_grpc_loses_makes_no_other_look_late():
    """One with too much metadata is begun and never ended in gRPC's own count."""
    with serving(StubModel(), NoOp(), deadline_s=1.0) as server, channel(server) as one:
        for _ in range(3):
            code, _ = infer(one, request(), metadata=[("x", "a" * 70_000)])
            assert code == "RESOURCE_EXHAUSTED"
        ask = one.unary_unary(f"/{SERVICE}/ModelInfer")
        burst = [ask.future(request().SerializeToString()) for _ in range(200)]
        assert {call.code().name for call in burst} <= {"OK", "DEADLINE_EXCEEDED"}
        for _ in range(3):
            time.sleep(1.1)
            assert infer(one, request())[0] == "OK"


class Late:
    """What `Looks` says of calls; a loop that was at ease found the last one as it came."""

    late, behind = True, 0

    def came_s(self, loop, now_s):
        return now_s

    def waited(self, seconds):
        self.waited_s = seconds


@pytest.mark.parametrize("lost", [0, 1, 1000])
def test_the_queue_is_told_from_calls_that_were_lost(lost):
    looks = Late()
    queue = GrpcQueue(looks, lambda _: lost + looks.behind)
    now_s = 0.0
    for _ in range(10):  # which a first burst does not tell
        now_s += 0.01
        queue.enter(object(), None, now_s)
    looks.late, now_s = False, now_s + 10.0
    for _ in range(20):
        now_s += 0.01
        assert queue.enter(object(), None, now_s) == now_s
        looks.late = True
    began_s = now_s = now_s + 0.01
    for looks.behind in reversed(range(8)):
        assert queue.enter(object(), None, now_s) == began_s
        now_s += 0.006
    assert queue.enter(object(), None, now_s) == now_s


def test_answers_that_are_not_read_are_bounded_and_harm_no_other():
    bounds = Bounds(body_bytes=1 << 20, unsent_bytes=1 << 20)
    with serving(StubModel(), NoOp(), bounds=bounds) as server, unread(server) as ask:
        held = ask()
        until(lambda: server.plane.observed.answered == 1)
        refused = ask()
        assert refused.code().name == "RESOURCE_EXHAUSTED"
        assert "--max-unsent-mb" in refused.details()
        with channel(server) as other:
            assert infer(other, request(50_000))[0] == "OK"
        assert len(list(held)) == 1
        assert len(list(ask())) == 1


def test_the_clients_own_deadline_is_the_querys():
    runtime = StubRuntime()
    with serving(StubModel(), runtime, deadline_s=WAIT_S) as server, channel(server) as one:
        assert infer(one, request())[0] == "OK"
        runtime.gate.clear()
        held = [one.unary_unary(f"/{SERVICE}/ModelInfer").future(request().SerializeToString())
                for _ in range(2)]  # fmt: skip
        while server.plane.pending < 2:
            pass
        assert infer(one, request(), timeout=0.05)[0] == "DEADLINE_EXCEEDED"
        while server.plane.pending > 2:
            pass
        runtime.gate.set()
        assert all(call.result(WAIT_S) for call in held)


def test_health_is_watched_until_the_server_ends():
    with contextlib.ExitStack() as stack, serving(StubModel(), NoOp()) as server:
        one = stack.enter_context(channel(server))
        watch = one.unary_stream(
            f"/{HEALTH}/Watch", None, message("HealthCheckResponse").FromString
        )
        seen = watch(b"")
        assert next(seen).status == 1
        unknown = watch(message("HealthCheckRequest")(service="nobody").SerializeToString())
        assert next(unknown).status == 3
        server.stop()
        assert [said.status for said in seen] == [2]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_the_server_describes_itself(version):
    """As `grpcurl` asks: which services, and the file of a symbol."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    def asked(**what):
        return message("ServerReflectionRequest")(**what)

    with serving(StubModel(), NoOp()) as server, channel(server) as one:
        call = one.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            lambda r: r.SerializeToString(),
            message("ServerReflectionResponse").FromString,
        )
        requests = [
            asked(list_services="*"),
            asked(file_containing_symbol=SERVICE),
            asked(file_containing_symbol=f"{HEALTH}.Watch"),
            asked(file_by_filename="x"),
        ]
        services, inference, health, nothing = list(call(iter(requests), timeout=WAIT_S))
        assert [s.name for s in services.list_services_response.service] == [SERVICE, HEALTH]
        pool = descriptor_pool.DescriptorPool()
        for answer in (inference, health):
            (text,) = answer.file_descriptor_response.file_descriptor_proto
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(text))
        method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelInfer")
        assert method.input_type.full_name == "inference.ModelInferRequest"
        assert nothing.error_response.error_code == 5
