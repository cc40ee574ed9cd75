"""A KServe v2 server in a thread, HTTP or gRPC, whose every answer a test can choose."""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import grpc

from deeprecsys.protocol.grpc_schema import SERVICE, message
from deeprecsys.protocol.tensors import from_bytes

INPUTS = [
    {"name": "dense", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "ids", "datatype": "INT32", "shape": [-1, 3]},
]
PARAMETERS = {"rows.ids": "50", "workers": "2"}


def bracketed(host):
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True)
class Act:
    """How to answer. how: plain, chunked, pieces, close (said), cut (no answer at all), half (an
    answer that ends too early), bare (until the connection ends), junk, silent."""

    status: int = 200
    how: str = "plain"
    delay_s: float = 0.0


@dataclass
class Asked:
    """A request as it was understood."""

    head: dict
    fields: dict
    inputs: dict


@dataclass
class Stub:
    act: Callable[[int], Act] = lambda n: Act()
    inputs: list = field(default_factory=lambda: list(INPUTS))
    parameters: dict = field(default_factory=lambda: dict(PARAMETERS))
    ready: int = 200
    host: str = "127.0.0.1"
    port: int = 0
    signed: tuple | None = None  # certificate and key, PEM files: then it speaks TLS
    asked: list = field(default_factory=list)
    questions: list = field(default_factory=list)  # headers of whatever is no query
    connections: int = 0
    url: str = ""

    def metadata(self):
        return {"name": "m", "versions": ["1"], "platform": "stub", "inputs": self.inputs}

    def config(self):
        said = {name: {"string_value": value} for name, value in self.parameters.items()}
        return {"name": "m", "parameters": said}

    def take(self, head, fields, tensors):
        inputs, at = {}, 0
        for said in head["inputs"]:
            if "data" in said:
                inputs[said["name"]] = said["data"]
                continue
            size = said["parameters"]["binary_data_size"]
            data = tensors[at : at + size]
            inputs[said["name"]] = from_bytes(said["name"], said["datatype"], said["shape"], data)
            at += size
        assert at == len(tensors)
        self.asked.append(Asked(head, fields, inputs))
        return self.act(len(self.asked) - 1)


class HttpStub(Stub):
    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        context = None
        if self.signed:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.signed)
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, self.host, self.port, limit=1 << 26, ssl=context)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self.signed else ''}://{bracketed(self.host)}:{self.port}"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        async def end():
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over: neither is the stub's to judge
        finally:
            writer.close()

    async def _one(self, reader, writer):
        begin = await reader.readexactly(1)
        if begin == b"\x16":  # TLS
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return False
        head = begin + await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        method, path, _ = first.split()
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if method == "GET":
            self.questions.append(fields)
            status, told = self._told(path)
            body = json.dumps(told).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
            )
            return True
        cut = int(fields.get("inference-header-content-length", len(body)))
        act = self.take(json.loads(body[:cut]), fields, body[cut:])
        if act.delay_s:
            await asyncio.sleep(act.delay_s)
        return await self._answer(act, writer)

    def _told(self, path):
        answers = {
            "/v2": (200, {"name": "stub", "version": "0.1"}),
            "/v2/models/m": (200, self.metadata()),
            "/v2/models/m/ready": (self.ready, {}),
            "/v2/models/m/config": (200, self.config()),
        }
        return answers.get(path, (404, {"error": f"nothing at {path}"}))

    async def _answer(self, act, writer):
        body = b'{"outputs":[]}' + b"\0" * 400
        if act.status != 200:
            body = b'{"error": "because of %d"}' % act.status
        line = b"HTTP/1.1 %d Word\r\n" % act.status
        length = b"Content-Length: %d\r\n" % len(body)
        match act.how:
            case "plain":
                writer.write(line + length + b"\r\n" + body)
            case "close":
                writer.write(line + length + b"Connection: close\r\n\r\n" + body)
                return False
            case "chunked":
                writer.write(line + b"Transfer-Encoding: chunked\r\n\r\n")
                for part in (body[:7], body[7:]):
                    writer.write(b"%x\r\n%b" % (len(part), part))
                    await writer.drain()
                    await asyncio.sleep(0.002)
                    writer.write(b"\r\n")
                writer.write(b"0\r\n\r\n")
            case "pieces":
                whole = b"HTTP/1.1 100 Continue\r\n\r\n" + line + length + b"\r\n" + body
                for at in range(0, len(whole), 31):
                    writer.write(whole[at : at + 31])
                    await writer.drain()
                    await asyncio.sleep(0)
            case "half":
                writer.write(line + length + b"\r\n" + body[:-5])
                return False
            case "bare":
                writer.write(line + b"\r\n" + body)
                return False
            case "junk":
                writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
            case "cut":
                return False
            case "silent":
                await asyncio.sleep(60)
        return True


class GrpcStub(Stub):
    """`act` answers with the codes that belong to its HTTP statuses."""

    CODES: ClassVar = {
        429: grpc.StatusCode.RESOURCE_EXHAUSTED,
        499: grpc.StatusCode.CANCELLED,
        500: grpc.StatusCode.INTERNAL,
        504: grpc.StatusCode.DEADLINE_EXCEEDED,
    }  # fmt: skip

    def __enter__(self):
        self._server = grpc.server(ThreadPoolExecutor(8), options=[
            ("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])  # fmt: skip
        self._server.add_generic_rpc_handlers([
            grpc.method_handlers_generic_handler(SERVICE, {
                name: grpc.unary_unary_rpc_method_handler(
                    getattr(self, name), message(f"{question}Request").FromString,
                    lambda answer: answer.SerializeToString(),
                )
                for name, question in (
                    ("ServerMetadata", "ServerMetadata"), ("ModelMetadata", "ModelMetadata"),
                    ("ModelReady", "ModelReady"), ("ModelConfig", "ModelConfig"),
                    ("ModelInfer", "ModelInfer"),
                )
            })
        ])  # fmt: skip
        where = f"{bracketed(self.host)}:{self.port}"
        if self.signed:
            chain, key = (Path(path).read_bytes() for path in self.signed)
            credentials = grpc.ssl_server_credentials([(key, chain)])
            self.port = self._server.add_secure_port(where, credentials)
        else:
            self.port = self._server.add_insecure_port(where)
        self.url = f"grpc{'s' if self.signed else ''}://{bracketed(self.host)}:{self.port}"
        self._server.start()
        return self

    def __exit__(self, *exc):
        self._server.stop(0).wait()

    def ServerMetadata(self, request, context):
        return message("ServerMetadataResponse")(name="stub", version="0.1")

    def _fields(self, context):
        host = context._rpc_event.call_details.host.decode()  # nowhere else to be had
        return {**dict(context.invocation_metadata()), "host": host}

    def ModelReady(self, request, context):
        self.questions.append(self._fields(context))
        return message("ModelReadyResponse")(ready=self.ready == 200)

    def ModelMetadata(self, request, context):
        if request.name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name}")
        return message("ModelMetadataResponse")(**self.metadata())

    def ModelConfig(self, request, context):
        config = message("ModelConfig")(name="m")
        for name, value in self.parameters.items():
            config.parameters[name].string_value = value
        return message("ModelConfigResponse")(config=config)

    def ModelInfer(self, request, context):
        head = {
            "parameters": {name: p.int64_param for name, p in request.parameters.items()},
            "inputs": [
                {"name": said.name, "datatype": said.datatype, "shape": list(said.shape),
                 "parameters": {"binary_data_size": len(raw)}}
                for said, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            ],
        }  # fmt: skip
        fields = self._fields(context)
        act = self.take(head, fields, b"".join(request.raw_input_contents))
        if act.delay_s:
            threading.Event().wait(act.delay_s)
        if act.status != 200:
            context.abort(self.CODES[act.status], f"because of {act.status}")
        return message("ModelInferResponse")(model_name="m")
