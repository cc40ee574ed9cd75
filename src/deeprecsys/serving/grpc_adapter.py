"""gRPC: the methods of `inference.GRPCInferenceService`, and `grpc.health.v1`, on the data plane.

A thin translation of messages (`grpc_schema`); the same event loop and the same core as HTTP.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from deeprecsys.protocol import tensors
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.grpc_schema import HEALTH, METHODS, SERVICE, data_type, message
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.tensors import Array
from deeprecsys.serving.dataplane import OUTPUT, VERSION, DataPlane, clock

Method = Callable[[Any], Awaitable[Any]]
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_SERVING, _NOT_SERVING = 1, 2


async def start(
    plane: DataPlane,
    address: str,
    message_bytes: int,
    key: str | None = None,
    credentials: grpc.ServerCredentials | None = None,
) -> tuple[grpc.aio.Server, int]:
    """The server, started, and its port. Raises OSError where it cannot listen."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", message_bytes),
            ("grpc.so_reuseport", 0),
        ]
    )
    methods = _Methods(plane)
    handlers = {
        name: _handler(plane, getattr(methods, name), message(f"{name}Request"), key)
        for name in METHODS
    }
    check = _handler(plane, methods.Check, message("HealthCheckRequest"), None)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check}),
        )
    )
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen at {address}") from error
    await server.start()
    return server, port


def _handler(plane: DataPlane, method: Method, request: Any, key: str | None) -> Any:
    async def call(asked: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            _check_key(context, key)
            hold = plane.waiting.hold()
            try:
                hold.add(len(asked))
                return await method(_parsed(request, asked))
            finally:
                hold.release()
        except Refusal as error:
            plane.refused(error, query=True)
            refusal = error
        except _Answered as answered:
            refusal = answered.refusal
        await context.abort(getattr(grpc.StatusCode, refusal.reason.code), refusal.message)
        raise AssertionError("unreachable: abort raises")

    return grpc.unary_unary_rpc_method_handler(
        call, response_serializer=lambda reply: reply.SerializeToString()
    )


def _parsed(request: Any, asked: bytes) -> Any:
    try:
        return request.FromString(asked)
    except DecodeError:
        raise invalid("the message is not the protocol's") from None


class _Answered(Exception):
    """A refusal that the data plane has counted already."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


class _Methods:
    """By the protocol's names."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def ServerLive(self, request: Any) -> Any:
        return message("ServerLiveResponse")(live=self._plane.live)

    async def ServerReady(self, request: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._plane.ready)

    async def ModelReady(self, request: Any) -> Any:
        self._plane.check_model(request.name, request.version)
        return message("ModelReadyResponse")(ready=self._plane.ready)

    async def ServerMetadata(self, request: Any) -> Any:
        return message("ServerMetadataResponse")(**self._plane.server_metadata())

    async def ModelMetadata(self, request: Any) -> Any:
        self._plane.check_model(request.name, request.version)
        return message("ModelMetadataResponse")(**self._plane.model_metadata())

    async def ModelConfig(self, request: Any) -> Any:
        self._plane.check_model(request.name, request.version)
        config = self._plane.model_config()
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = data_type(tensor["data_type"].removeprefix("TYPE_"))
        parameter = message("ModelParameter")
        said = {name: parameter(**value) for name, value in config.pop("parameters").items()}
        return message("ModelConfigResponse")(
            config=message("ModelConfig")(**config, parameters=said)
        )

    async def ModelStatistics(self, request: Any) -> Any:
        if request.name:
            self._plane.check_model(request.name, request.version)
        return message("ModelStatisticsResponse")(**self._plane.statistics())

    async def RepositoryIndex(self, request: Any) -> Any:
        return message("RepositoryIndexResponse")(models=self._plane.index())

    async def Check(self, request: Any) -> Any:
        status = _SERVING if self._plane.ready else _NOT_SERVING
        return message("HealthCheckResponse")(status=status)

    async def ModelInfer(self, request: Any) -> Any:
        arrived_s, plane = clock(), self._plane
        plane.check_model(request.model_name, request.model_version)
        plane.serving()
        call = _call(request, arrived_s)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Array | Refusal] = loop.create_future()

        def settle(outcome: Array | Refusal) -> None:
            if not answered.done():
                answered.set_result(outcome)
            plane.finished(call, ticket, outcome)

        def done(outcome: Array | Refusal) -> None:  # in a worker's thread
            loop.call_soon_threadsafe(settle, outcome)

        ticket = plane.infer(call, done)
        try:
            outcome = await answered
        except asyncio.CancelledError:  # the client has gone
            ticket.cancel()
            raise
        if isinstance(outcome, Refusal):
            raise _Answered(outcome)
        return _answer(call, outcome)


def _call(request: Any, arrived_s: float) -> Call:
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs")
    inputs: dict[str, Array] = {}
    datatypes: dict[str, str] = {}
    for number, item in enumerate(request.inputs):
        name, datatype, shape = item.name, item.datatype, tuple(item.shape)
        if name in inputs:
            raise invalid(f"input {name} is given twice")
        if "shared_memory_region" in item.parameters:
            raise invalid("shared memory regions are not supported: send the data themselves")
        datatypes[name] = datatype
        if raw:
            if item.HasField("contents"):
                raise invalid(f"input {name} has contents beside raw_input_contents")
            inputs[name] = tensors.from_bytes(name, datatype, shape, raw[number])
        else:
            field = _CONTENTS.get(datatype, "bytes_contents")
            values = getattr(item.contents, field)
            inputs[name] = tensors.from_values(name, datatype, shape, values)
    return Call(
        model=request.model_name,
        version=request.model_version,
        id=request.id,
        inputs=inputs,
        datatypes=datatypes,
        outputs={output.name: True for output in request.outputs} or None,
        parameters=_parameters(request.parameters),
        arrived_s=arrived_s,
    )


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(value, kind)
        for name, value in given.items()
        if (kind := value.WhichOneof("parameter_choice"))
    }


def _answer(call: Call, scores: Array) -> Any:
    reply = message("ModelInferResponse")(model_name=call.model, model_version=VERSION, id=call.id)
    reply.outputs.add(name=OUTPUT, datatype="FP32", shape=scores.shape)
    reply.raw_output_contents.append(bytes(tensors.to_bytes(scores, "FP32")))
    return reply


def _check_key(context: grpc.aio.ServicerContext[Any, Any], key: str | None) -> None:
    if key is None:
        return
    given = dict(context.invocation_metadata() or ()).get("authorization", "")
    if not hmac.compare_digest(str(given).encode(), f"Bearer {key}".encode()):
        raise Refusal(Reason.UNAUTHENTICATED, "a key is needed: authorization: Bearer KEY")
