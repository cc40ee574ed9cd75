"""gRPC: the methods of `inference.GRPCInferenceService`, and `grpc.health.v1`, on the data plane.

A thin translation of messages; the same event loop and the same core as HTTP. Every method is
registered as one that reads a stream, so that the call is seen, counted and stamped before its
message is received; and messages are inflated here, where their growth is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio

from deeprecsys.protocol import grpc_request, tensors
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.grpc_schema import (
    HEALTH,
    METHODS,
    REFLECTION,
    SERVICE,
    data_type,
    described,
    message,
)
from deeprecsys.protocol.inflate import inflate
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.tensors import Array, Buffer
from deeprecsys.serving import admin, http_memory, keys, shared_memory
from deeprecsys.serving.bounds import Bounds, Hold, over
from deeprecsys.serving.dataplane import DataPlane, clock
from deeprecsys.serving.gate import Gate
from deeprecsys.serving.grpc_queue import GrpcQueue, newest_server
from deeprecsys.serving.looks import Looks
from deeprecsys.serving.shared_memory import LongCopy, Reader
from deeprecsys.serving.tracing import Trace
from deeprecsys.serving.unix import private
from deeprecsys.serving.unread import Unread

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Method = Callable[["Asked"], Awaitable[Any]]
_KEYLESS = ("ServerLive", "ServerReady")
# What a key must have, by method: see `keys`; None: there need be no key.
_RIGHTS: dict[str, str | None] = {
    "ServerLive": None, "ServerReady": None, "ModelInfer": keys.INFER,
    "RepositoryModelLoad": keys.ADMIN, "RepositoryModelUnload": keys.ADMIN,
    "SystemSharedMemoryRegister": keys.MEMORY, "SystemSharedMemoryUnregister": keys.MEMORY,
}  # fmt: skip
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_MOST_DESCRIBED = 1000  # questions of one reflection
_LOOK_S = 0.2  # how often a watch looks
_SHORT_COPY = 8 << 20  # bytes of shared memory that are copied without a thread
# What of a stream is received before anybody asks for it.
_AHEAD_BYTES = 64 << 10


async def start(
    plane: DataPlane,
    looks: Looks,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
    unix: str | None = None,
) -> tuple[grpc.aio.Server, int]:
    """The server, started, and its port. unix: the path of a socket beside it. Raises OSError
    where it cannot listen."""
    server = grpc.aio.server(options=_options(plane.bounds))
    queue, unread = GrpcQueue(looks, newest_server()), Unread(plane.bounds.unsent_bytes)
    calls, probes = Calls(plane, queue, unread), Calls(plane, queue, unread, places=2)
    methods = _Methods(plane, probes)
    handlers = {
        name: (probes if name in _KEYLESS else calls).handler(
            name, getattr(methods, name), _RIGHTS.get(name, keys.ANY)
        )
        for name in METHODS
    }
    health = {
        "Check": probes.handler("HealthCheck", methods.Check, None),
        "Watch": grpc.stream_stream_rpc_method_handler(methods.Watch, None, _serialized),
    }
    describing = grpc.stream_stream_rpc_method_handler(_describer(probes), None, _serialized)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            grpc.method_handlers_generic_handler(HEALTH, health),
            *(
                grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": describing})
                for name in (REFLECTION, REFLECTION.replace(".v1.", ".v1alpha."))
            ),
        )
    )
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        if unix is not None:
            with private():
                server.add_insecure_port(f"unix:{unix}")
    except RuntimeError as error:
        raise OSError(str(error)) from error
    await server.start()
    return server, port


def _options(bounds: Bounds) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", bounds.body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", bounds.calls),
        ("grpc.enable_channelz", 1),
        ("grpc.http2.lookahead_bytes", _AHEAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.so_reuseport", 0),
    ]


class Asked:
    """One call: its message, what it holds of the bytes that may wait, and when it began."""

    __slots__ = ("arrived_s", "body", "context", "hold", "until_s")

    def __init__(self, context: Context, hold: Hold, arrived_s: float) -> None:
        self.context, self.hold, self.body = context, hold, b""
        self.arrived_s = arrived_s
        left_s = context.time_remaining()
        self.until_s = float("inf") if left_s is None else clock() + left_s


class Calls:
    """Calls that are open, up to a bound; and how each is received and answered."""

    def __init__(
        self, plane: DataPlane, queue: GrpcQueue, unread: Unread, places: int | None = None
    ) -> None:
        self.plane, self._gate = plane, Gate(plane.bounds, places)
        self._queue, self._unread = queue, unread
        self._loop = asyncio.get_running_loop()
        self._open = 0

    def handler(self, name: str, method: Method, right: str | None) -> Any:
        async def call(_: Any, context: Context) -> Any:
            self._open += 1
            asked = Asked(context, self.plane.waiting.hold(), self.taken(context))
            try:
                self._check(context, right, query=name == "ModelInfer")
                await self._receive(asked)
                return self._handed_over(context, await method(asked))
            except Refusal as error:
                self._refused(asked, error, query=name == "ModelInfer")
                refusal = error.with_traceback(None)  # which holds the message
            except _Answered as answered:
                refusal = answered.refusal
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                self.plane.fault(error, name)
                refusal = Refusal(Reason.INTERNAL, "internal error")
                self._refused(asked, refusal, query=name == "ModelInfer")
            finally:
                self._open -= 1
                self.left(context)
                asked.body = b""
                asked.hold.release()
            await context.abort(getattr(grpc.StatusCode, refusal.reason.code), refusal.message)
            raise AssertionError("unreachable: abort raises")

        return grpc.stream_unary_rpc_method_handler(call)

    def taken(self, context: Context) -> float:
        """The earliest that a call can have come, which is open until `left`."""
        context.add_done_callback(self._queue.ended)
        return self._queue.enter(context, self._loop, clock())

    def left(self, context: Context) -> None:
        self._queue.leave(context, clock())

    def _refused(self, asked: Asked, refusal: Refusal, *, query: bool) -> None:
        trace = _traced(self.plane, asked.context, refusal) if query else None
        _hand_on(trace, asked.context)
        self.plane.refused(refusal, query=query, trace=trace, arrived_s=asked.arrived_s)

    def _handed_over(self, context: Context, reply: Any) -> bytes:
        answer = _serialized(reply)
        peer, size = context.peer(), len(answer)
        try:
            self._unread.add(peer, size)
        except Refusal as refusal:  # of a query that is counted as answered
            self.plane.refused(refusal, query=False)
            raise _Answered(refusal) from None
        context.add_done_callback(lambda _: self._unread.remove(peer, size))
        return answer

    def _check(self, context: Context, right: str | None, *, query: bool) -> None:
        """Refuses by what is known before the message is received."""
        if right is not None:
            _check_key(self.plane, context, right)
        if query:
            self.plane.rates.take(_client(context.peer()), clock())
        if self._open > self.plane.bounds.calls:
            raise over(Reason.OVERLOADED, "overloaded: too many calls at once", "max-calls")

    async def _receive(self, asked: Asked) -> None:
        body = await self.read(asked.context)
        if body is None:
            raise invalid("the call brought no message")
        asked.hold.add(len(body))
        asked.body = body

    async def read(self, context: Context) -> bytes | None:
        """A call's next message; None: there is no more."""
        peer = context.peer()
        client = _client(peer)
        async with self._gate.place(peer, client):
            body = await context.read()
            if isinstance(body, bytes):
                self._gate.came(client, len(body))
        self._queue.looked(self._loop, clock())
        return body if isinstance(body, bytes) else None


def _client(peer: str) -> str:
    """The address in "ipv4:10.0.0.1:4711" or "ipv6:%5B::1%5D:4711", as HTTP has it."""
    address = peer.partition(":")[2].rpartition(":")[0] or "local"
    return address.removeprefix("%5B").removesuffix("%5D")


def _encoding(body: bytes) -> str:
    """How gRPC compressed it: no request's first field looks like either header."""
    if body[:2] == b"\x1f\x8b":
        return "gzip"
    return "deflate" if body[:1] == b"\x78" and len(body) > 1 else ""


class _Answered(Exception):
    """A refusal that the data plane has counted already."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class Query:
    """An inference call on its way through data plane and threads; in the loop's thread."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._loop = asyncio.get_running_loop()
        self.answered: asyncio.Future[Array | Refusal] = self._loop.create_future()
        self.call: Call | None = None
        self._ticket: Any = None
        self._outcome: Array | Refusal | None = None
        self._gone = False

    def offer(self, call: Call) -> None:
        """From any thread. Raises Refusal."""
        loop = self._loop
        ticket = self._plane.infer(
            call, lambda outcome: _post(loop, self._settle, outcome)
        )  # whose answer comes from a worker's thread
        _post(loop, self._taken, call, ticket)

    def leave(self) -> None:
        """The client has gone."""
        self._gone = True
        if self._ticket is not None:
            self._ticket.cancel()

    def fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)

    def _taken(self, call: Call, ticket: Any) -> None:
        self.call, self._ticket = call, ticket
        if self._gone:
            ticket.cancel()
        if self._outcome is not None:
            self._settle(self._outcome)

    def _settle(self, outcome: Array | Refusal) -> None:
        if self._ticket is None or self.call is None:
            self._outcome = outcome
            return
        if self.call.targets:
            outputs = None
            if not isinstance(outcome, Refusal) and not self._gone:
                outputs = self._plane.named(self.call, outcome)
            outcome = shared_memory.put(self.call, outputs) or outcome
        if self._gone and isinstance(outcome, Refusal):
            outcome = Refusal(Reason.CANCELLED, "the client has gone")
        self._plane.finished(self.call, self._ticket, outcome)
        if not self.answered.done():
            self.answered.set_result(outcome)


def _post(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *given: Any) -> None:
    loop.call_soon_threadsafe(act, *given)


class _Methods:
    """By the protocol's names."""

    def __init__(self, plane: DataPlane, probes: Calls) -> None:
        self._plane, self._probes = plane, probes
        self._watches = 0

    async def ServerLive(self, asked: Asked) -> Any:
        return message("ServerLiveResponse")(live=self._plane.live)

    async def ServerReady(self, asked: Asked) -> Any:
        return message("ServerReadyResponse")(ready=self._plane.ready)

    async def ModelReady(self, asked: Asked) -> Any:
        request = _read("ModelReadyRequest", asked)
        ready = self._plane.is_ready(request.name, request.version)
        return message("ModelReadyResponse")(ready=ready)

    async def ServerMetadata(self, asked: Asked) -> Any:
        return message("ServerMetadataResponse")(**self._plane.server_metadata())

    async def ModelMetadata(self, asked: Asked) -> Any:
        request = _read("ModelMetadataRequest", asked)
        self._plane.check_model(request.name, request.version)
        said = self._plane.model_metadata(request.name, request.version)
        return message("ModelMetadataResponse")(**said)

    async def ModelConfig(self, asked: Asked) -> Any:
        request = _read("ModelConfigRequest", asked)
        self._plane.check_model(request.name, request.version)
        config = self._plane.model_config(request.name, request.version)
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = data_type(tensor["data_type"].removeprefix("TYPE_"))
        parameter = message("ModelParameter")
        said = {name: parameter(**value) for name, value in config.pop("parameters").items()}
        return message("ModelConfigResponse")(
            config=message("ModelConfig")(**config, parameters=said)
        )

    async def ModelStatistics(self, asked: Asked) -> Any:
        request = _read("ModelStatisticsRequest", asked)
        if request.name:
            self._plane.check_model(request.name, request.version)
        said = self._plane.statistics(request.name, request.version)
        return message("ModelStatisticsResponse")(**said)

    async def RepositoryIndex(self, asked: Asked) -> Any:
        return message("RepositoryIndexResponse")(models=self._plane.index())

    async def RepositoryModelLoad(self, asked: Asked) -> Any:
        await self._administer("load", _read("RepositoryModelLoadRequest", asked))
        return message("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, asked: Asked) -> Any:
        await self._administer("unload", _read("RepositoryModelUnloadRequest", asked))
        return message("RepositoryModelUnloadResponse")()

    async def _administer(self, what: str, request: Any) -> None:
        """Takes as long as it takes; another thread does it."""
        parameters = {name: _value_of(one) for name, one in request.parameters.items()}
        self._plane.check_model(request.model_name)
        done = admin.act(self._plane.administered, what, request.model_name, parameters)
        await asyncio.shield(asyncio.wrap_future(done))

    async def SystemSharedMemoryStatus(self, asked: Asked) -> Any:
        name = _read("SystemSharedMemoryStatusRequest", asked).name
        found = self._plane.regions.status(name)
        region = message("SystemSharedMemoryRegion")
        regions = {one.name: region(**http_memory.said(one)) for one in found}
        return message("SystemSharedMemoryStatusResponse")(regions=regions)

    async def SystemSharedMemoryRegister(self, asked: Asked) -> Any:
        shared_memory.check_local(_client(asked.context.peer()))
        given = _read("SystemSharedMemoryRegisterRequest", asked)
        self._plane.regions.register(given.name, given.key, given.offset, given.byte_size)
        return message("SystemSharedMemoryRegisterResponse")()

    async def SystemSharedMemoryUnregister(self, asked: Asked) -> Any:
        shared_memory.check_local(_client(asked.context.peer()))
        self._plane.regions.unregister(_read("SystemSharedMemoryUnregisterRequest", asked).name)
        return message("SystemSharedMemoryUnregisterResponse")()

    async def CudaSharedMemoryStatus(self, asked: Asked) -> Any:
        raise Refusal(Reason.UNSUPPORTED, http_memory.NO_CUDA)

    CudaSharedMemoryRegister = CudaSharedMemoryUnregister = CudaSharedMemoryStatus

    async def Check(self, asked: Asked) -> Any:
        status = self._status(_read("HealthCheckRequest", asked).service)
        if status == _SERVICE_UNKNOWN:
            raise Refusal(Reason.NOT_FOUND, "unknown service")
        return message("HealthCheckResponse")(status=status)

    async def Watch(self, _: Any, context: Context) -> AsyncIterator[Any]:
        """Says the status, and again whenever it is another, until the server ends."""
        self._watches += 1
        self._probes.taken(context)
        try:
            if self._watches > self._plane.bounds.calls:
                raise over(Reason.OVERLOADED, "overloaded: too many watches", "max-calls")
            body = await self._probes.read(context) or b""
            service, before = grpc_request.parsed("HealthCheckRequest", body).service, None
            while True:
                if (status := self._status(service)) != before:
                    yield message("HealthCheckResponse")(status=status)
                if self._plane.ending:
                    return
                before = status
                await asyncio.sleep(_LOOK_S)
        except Refusal as refusal:
            await _refuse(self._plane, refusal, context)
        finally:
            self._watches -= 1
            self._probes.left(context)

    def _status(self, service: str) -> int:
        if service not in ("", SERVICE, *self._plane.models):
            return _SERVICE_UNKNOWN
        return _SERVING if self._plane.ready else _NOT_SERVING

    async def ModelInfer(self, asked: Asked) -> Any:
        plane, query, body = self._plane, Query(self._plane), asked.body
        encoding = _encoding(body)
        memory = Reader(plane.regions, asked.hold, plane.bounds, _SHORT_COPY)
        quick = not encoding and grpc_request.is_quick(body)
        if quick:
            try:
                self._take(query, asked, body, encoding, memory)
            except LongCopy:
                quick = False
        if not quick:

            def take() -> None:  # in a thread
                try:
                    self._take(query, asked, body, encoding, memory.again())
                except Refusal as refusal:
                    _post(query._loop, query.fail, refusal.with_traceback(None))
                except Exception as error:
                    _post(query._loop, query.fail, error)

            client = _client(asked.context.peer())
            plane.threads.submit(take, client, long=len(body) > 1 << 20)
        try:
            outcome = await query.answered
        except asyncio.CancelledError:
            query.leave()
            raise
        assert query.call is not None
        _hand_on(query.call.trace, asked.context)
        if isinstance(outcome, Refusal):
            raise _Answered(outcome)
        return _answer(query.call, plane.named(query.call, outcome))

    def _take(
        self, query: Query, asked: Asked, body: Buffer, encoding: str, memory: Reader
    ) -> None:
        plane = self._plane
        if encoding:
            body = _inflated(plane, body, encoding, asked.hold)
        call = grpc_request.call_of(body, memory)
        plane.check_model(call.model, call.version)
        call.arrived_s, call.until_s = asked.arrived_s, asked.until_s
        call.client = _client(asked.context.peer())
        call.trace = _traced(plane, asked.context)
        query.offer(call)


def _traced(plane: DataPlane, context: Context, refusal: Refusal | None = None) -> Trace | None:
    if plane.tracing is None:
        return None
    sent = context.invocation_metadata() or ()

    def said(name: str) -> str:
        return ",".join(str(value) for other, value in sent if other == name)

    return plane.tracing.begin(said("traceparent"), said("tracestate"), refusal)


def _hand_on(trace: Trace | None, context: Context) -> None:
    """In the metadata that follow the answer."""
    if trace is not None:
        context.set_trailing_metadata((("traceparent", trace.traceparent),))


def _describer(probes: Calls) -> Any:
    """Server reflection: the services, and the files that describe them."""

    async def describe(_: Any, context: Context) -> AsyncIterator[Any]:
        probes.taken(context)
        try:
            _check_key(probes.plane, context, keys.ANY)
            for _ in range(_MOST_DESCRIBED):
                if (body := await probes.read(context)) is None:
                    return
                yield _reflected(grpc_request.parsed("ServerReflectionRequest", body))
        except Refusal as refusal:
            await _refuse(probes.plane, refusal, context)
        finally:
            probes.left(context)

    return describe


async def _refuse(plane: DataPlane, refusal: Refusal, context: Context) -> None:
    plane.refused(refusal, query=False)
    await context.abort(getattr(grpc.StatusCode, refusal.reason.code), refusal.message)


def _reflected(request: Any) -> Any:
    answer = message("ServerReflectionResponse")(valid_host=request.host, original_request=request)
    symbol = request.file_containing_symbol or request.file_by_filename
    if (file := described(symbol)) is not None:
        answer.file_descriptor_response.file_descriptor_proto.append(file)
    elif not symbol and not request.all_extension_numbers_of_type:
        for name in (SERVICE, HEALTH):
            answer.list_services_response.service.add(name=name)
    else:
        answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
        answer.error_response.error_message = "nothing of that name"
    return answer


def _read(kind: str, asked: Asked) -> Any:
    body: Buffer = asked.body
    if encoding := _encoding(asked.body):
        body = _inflated(None, body, encoding, asked.hold)
    return grpc_request.parsed(kind, body)


def _inflated(plane: DataPlane | None, body: Buffer, encoding: str, hold: Hold) -> Buffer:
    """plane None: of a method whose messages are short."""
    left = most = plane.bounds.body_bytes if plane else 64 << 10

    def grown(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise over(Reason.TOO_LARGE, f"the message is over {most} bytes", "max-body-mb")
        hold.add(count)

    return inflate(body, encoding, grown)


def _answer(call: Call, outputs: Mapping[str, Array]) -> Any:
    version = call.hosted.version
    reply = message("ModelInferResponse")(model_name=call.model, model_version=version, id=call.id)
    for name, array in outputs.items():
        datatype = tensors.datatype_of(array)
        output = reply.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if (target := call.targets.get(name)) is None:
            reply.raw_output_contents.append(bytes(tensors.to_bytes(array, datatype)))
            continue
        reply.raw_output_contents.append(b"")  # clients count them with the outputs
        for parameter, value in target.place.said(array.nbytes).items():
            kind = "string_param" if isinstance(value, str) else "int64_param"
            setattr(output.parameters[parameter], kind, value)
    return reply


def _value_of(parameter: Any) -> Any:
    """Of a `ModelRepositoryParameter`, whichever of its fields is set."""
    fields = parameter.ListFields()
    return fields[0][1] if fields else ""


def _serialized(reply: Any) -> bytes:
    return bytes(reply.SerializeToString())


def _check_key(plane: DataPlane, context: Context, right: str) -> None:
    brought = dict(context.invocation_metadata() or ()).get("authorization", "")
    plane.keys.check(brought, right)


__all__ = ["start"]
