"""What a KServe v2 server says of itself and of a model, over HTTP or gRPC, for the load client.

Two small askers with the same four questions; the rest of the client knows neither protocol.
Whatever is wrong (the URL, nobody there, another model, a key) is a `UserError` that says how
to mend it. No inference here.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlsplit

from deeprecsys.client.access import NO_HANDSHAKE, Access, tls_reason, tls_trouble
from deeprecsys.core import UserError

_PATIENCE_S = 10.0
# As large as a body of our own server may be; gRPC's own limit of 4 MB is 1,200 candidates.
MESSAGE_BYTES = 256 << 20
_USUAL_PORT = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 443}
# HTTP status of the gRPC codes that the questions below can be answered with.
_STATUS = {
    "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504,
}  # fmt: skip

_UNREACHED = re.compile(
    "failed to connect|connection re(fused|set)|socket closed|broken pipe|resolution failed"
    "|recvmsg|sendmsg|goaway|transport|endpoint|timed? ?out|unreachable",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. prefix: a path before `/v2`, as behind a gateway; or empty."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Of `http://HOST:PORT` or `grpc://HOST:PORT`, with TLS `https://` or `grpcs://`; or of
        `unix:PATH`, HTTP over a Unix socket, whose host is the path."""
        usage = (
            "write http://HOST:PORT or grpc://HOST:PORT, or https:// or grpcs:// for TLS, or "
            "unix:PATH"
        )
        if url.startswith("unix:"):
            path = url.removeprefix("unix:").removeprefix("//")
            if not path:
                raise UserError(f"cannot read the URL {url!r}: {usage}")
            return cls("unix", path, 0)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UserError(f"cannot read the URL {url!r}: {error}; {usage}") from error
        if parts.scheme not in _USUAL_PORT or not host or parts.query:
            raise UserError(f"cannot read the URL {url!r}: {usage}")
        if parts.username is not None:
            raise UserError("a URL with a user is not read: give --header 'Authorization: Basic …'")
        prefix = parts.path.rstrip("/")
        if prefix and not parts.scheme.startswith("http"):
            raise UserError(f"a gRPC address has no path: leave {prefix} out of {url!r}")
        return cls(parts.scheme, host, port or _USUAL_PORT[parts.scheme], prefix)

    @property
    def http(self) -> bool:
        return self.scheme.startswith("http") or self.unix

    @property
    def unix(self) -> bool:
        return self.scheme == "unix"

    @property
    def secure(self) -> bool:
        return self.scheme.endswith("s")

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def host_field(self) -> str:
        """For a header: gateways compare names, and the usual port is not named."""
        if self.unix:
            return "localhost"
        usual = _USUAL_PORT[self.scheme] == self.port
        return self.netloc.rpartition(":")[0] if usual else self.netloc

    def path(self, model: str) -> str:
        return f"{self.prefix}/v2/models/{quote(model, safe='')}"

    def __str__(self) -> str:
        return f"unix:{self.host}" if self.unix else f"{self.scheme}://{self.netloc}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as the metadata describe it; -1 is a variable dimension.

    datatype: "" and shape: None where they do not say."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Description:
    """What a server says. parameters: of the model's configuration, empty where it has none.
    peer: which of its name's addresses answered, where that is known."""

    server: str
    version: str
    platform: str
    inputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    peer: str | None = None

    @property
    def workers(self) -> int:
        said = self.parameters.get("workers", "")
        return max(1, int(said)) if said.isdecimal() else 1


class Answered(Exception):
    """A question was answered with an error; `status` is HTTP's, also for gRPC."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class NotTrusted(OSError):
    """TLS failed, in words that say how to mend it."""


class Asker(Protocol):
    """Dictionaries as the protocol's JSON has them. Raises Answered, OSError."""

    peer: str | None

    def server(self) -> dict[str, Any]: ...
    def metadata(self, model: str) -> dict[str, Any]: ...
    def ready(self, model: str) -> bool: ...
    def config(self, model: str) -> dict[str, Any]: ...
    def close(self) -> None: ...


def describe(address: Address, model: str, access: Access) -> Description:
    """Asks the server; UserError, in one line, where it cannot be put under load."""
    asker: Asker = (Http if address.http else _Grpc)(address, access)
    try:
        return _described(asker, address, model)
    except Answered as error:
        _explain(address, model, error)
    except NotTrusted as error:
        raise UserError(f"{address}: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(
            f"no answer from {address} ({reason}): start the server, or mend the URL"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        tls = "" if address.secure else ", or its scheme if the server speaks TLS"
        raise UserError(
            f"{address} does not answer as a KServe v2 server does ({error!r}): mend the URL{tls}"
        ) from error
    finally:
        asker.close()


def _described(asker: Asker, address: Address, model: str) -> Description:
    server = asker.server()
    metadata = _metadata(asker, model)
    if not asker.ready(model):
        raise UserError(f"model {model!r} of {address} is not ready: try again once it is")
    return Description(
        str(server.get("name", "")),
        str(server.get("version", "")),
        str(metadata.get("platform", "")),
        tuple(_tensor(raw) for raw in metadata.get("inputs") or ()),
        _parameters(asker, model),
        asker.peer,
    )


def _metadata(asker: Asker, model: str) -> dict[str, Any]:
    """Empty where the server has the model, but not this question."""
    try:
        return asker.metadata(model)
    except Answered as error:
        if error.status in (405, 501):
            return {}
        raise


def grpc_channel(address: Address, access: Access) -> Any:
    # Or it writes on standard error, beside the line that a user gets.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import grpc
    except ModuleNotFoundError as error:
        raise UserError(f"{address} needs gRPC: pip install 'deeprecsys[serve]'") from error
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # or several channels would share a connection
    ]
    if access.host:
        options.append(("grpc.default_authority", access.host))
    if address.secure:
        trusted = grpc.ssl_channel_credentials(access.roots())
        return grpc.secure_channel(address.netloc, trusted, options)
    return grpc.insecure_channel(address.netloc, options)


def unreached(call: Any) -> bool:
    """Did the connection fail? The library says so with a code that servers use as well, and
    since its version 1.8x nothing but the words tells the two apart."""
    return call.code().name == "UNAVAILABLE" and bool(_UNREACHED.search(str(call.details())))


class Http:
    def __init__(self, address: Address, access: Access) -> None:
        self._address = address
        self.peer: str | None = None
        where = (address.host, address.port)
        if address.unix:
            self._http: http.client.HTTPConnection = _Unix(address.host)
        elif address.secure:
            self._http = http.client.HTTPSConnection(
                *where, timeout=_PATIENCE_S, context=access.context()
            )
        else:
            self._http = http.client.HTTPConnection(*where, timeout=_PATIENCE_S)
        self._headers = access.headers

    def server(self) -> dict[str, Any]:
        return self._get(f"{self._address.prefix}/v2")

    def metadata(self, model: str) -> dict[str, Any]:
        return self._get(self._address.path(model))

    def ready(self, model: str) -> bool:
        try:
            self._body(f"{self._address.path(model)}/ready")
        except Answered as error:
            return error.status not in (400, 503)
        return True  # or the server is not asked

    def config(self, model: str) -> dict[str, Any]:
        return self._get(f"{self._address.path(model)}/config")

    def post(self, path: str, body: bytes) -> bytes:
        return self._body(path, body)

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str) -> dict[str, Any]:
        found = json.loads(self._body(path))
        if not isinstance(found, dict):
            raise ValueError(f"GET {path} is no object")
        return found

    def _body(self, path: str, sent: bytes | None = None) -> bytes:
        """sent: with POST; None: GET."""
        try:
            self._ask(path, sent)
            answer = self._http.getresponse()
            body = answer.read()
        except ssl.SSLError as error:
            raise NotTrusted(tls_reason(error)) from error
        except http.client.HTTPException as error:
            raise ValueError(f"GET {path}: {error!r}") from error
        if answer.status != 200:
            raise Answered(answer.status, error_text(body))
        return body

    def _ask(self, path: str, sent: bytes | None) -> None:
        named = any(name.lower() == "host" for name, _ in self._headers)
        self._connect()
        self._http.putrequest("GET" if sent is None else "POST", path, skip_host=named)
        for name, value in self._headers:  # which may come more than once
            self._http.putheader(name, value)
        if sent is not None:
            self._http.putheader("Content-Length", str(len(sent)))
        self._http.endheaders(sent)

    def _connect(self) -> None:
        """At once, so that whoever waits for a handshake is told from who waits for an answer."""
        if self._http.sock is not None:
            return
        try:
            self._http.connect()
        except TimeoutError as error:
            if "handshake" in str(error):
                raise NotTrusted(NO_HANDSHAKE) from error
            raise
        connected: Any = self._http.sock
        peer = connected.getpeername()
        self.peer = str(peer[0]) if isinstance(peer, tuple) else None


class _Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PATIENCE_S)
        self.sock.connect(self._path)


class _Grpc:
    def __init__(self, address: Address, access: Access) -> None:
        self._channel = grpc_channel(address, access)
        self.peer: str | None = None
        self._metadata = access.metadata

    def server(self) -> dict[str, Any]:
        return self._ask("ServerMetadata")

    def metadata(self, model: str) -> dict[str, Any]:
        return self._ask("ModelMetadata", model)

    def ready(self, model: str) -> bool:
        try:
            return bool(self._ask("ModelReady", model).get("ready"))
        except Answered as error:
            return error.status == 501  # or the server is not asked

    def config(self, model: str) -> dict[str, Any]:
        return dict(self._ask("ModelConfig", model).get("config", {}))

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: str, model: str | None = None) -> dict[str, Any]:
        import grpc
        from google.protobuf import json_format

        from deeprecsys.protocol.grpc_schema import SERVICE, message

        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message(f"{method}Response").FromString,
        )
        request = message(f"{method}Request")(**({"name": model} if model is not None else {}))
        try:
            found = call(request, timeout=_PATIENCE_S, metadata=self._metadata)
        except grpc.RpcError as error:
            if trouble := tls_trouble(str(error.details())):
                raise NotTrusted(trouble) from error
            if unreached(error):
                raise ConnectionError(grpc_reason(error)) from error
            status = _STATUS.get(error.code().name, 500)
            raise Answered(status, str(error.details())) from error
        return dict(json_format.MessageToDict(found, preserving_proto_field_name=True))


def grpc_reason(error: Any) -> str:
    """Of the library's long story, its end."""
    details = str(error.details())
    return tls_trouble(details) or details.rsplit(": ", 1)[-1]


def error_text(body: bytes) -> str:
    """Of an error's body: what the protocol's `{"error": ...}` says, else its first line."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        lines = body.decode(errors="replace").split("\n")
        return lines[0].strip()[:200]


def _tensor(raw: Mapping[str, Any]) -> Tensor:
    shape = raw.get("shape")
    return Tensor(
        str(raw["name"]),
        str(raw.get("datatype") or ""),
        None if shape is None else tuple(int(length) for length in shape),
    )


def _parameters(asker: Asker, model: str) -> dict[str, str]:
    """A server need not have a configuration to show."""
    try:
        found = asker.config(model).get("parameters", {})
        return {str(name): str(value["string_value"]) for name, value in found.items()}
    except (Answered, OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _explain(address: Address, model: str, error: Answered) -> NoReturn:
    said = f": {error}" if str(error) else ""
    match error.status:
        case 400 | 404:
            raise UserError(
                f"{address} has no model {model!r}{said}; mend --model, or the URL"
            ) from error
        case 401 | 403:
            raise UserError(f"{address} wants another key{said}; give --key") from error
        case 503 | 504:
            raise UserError(f"{address} is not ready{said}; try again once it is") from error
    raise UserError(
        f"{address} answers {error.status}{said}: it is no KServe v2 server, or is not well"
    ) from error
