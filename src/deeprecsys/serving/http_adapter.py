"""HTTP/1.1: one connection, and the paths of the protocol.

Bodies decide what serving costs, so they are received straight to where tensors are read: the
kernel writes into one aligned buffer a request, and nobody copies it again. No ASGI server does
that: for 2.6 MB their best took three times as long (`docs/decisions/0011-serving.md`). httptools
parses heads and chunked bodies; what it calls invalid is answered with 400 and closed.

Knows the data plane and the wire format; decides nothing about queries.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec
import numpy as np

from deeprecsys.engine import Ticket
from deeprecsys.protocol import wire
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.tensors import Array, Buffer
from deeprecsys.serving.dataplane import VERSION, DataPlane, clock
from deeprecsys.serving.page import CONTENT_SECURITY_POLICY

_HEAD_BYTES = 16 << 10  # most of a request's head, and what is read beyond a body
_ALIGNMENT = 16  # of binary tensors: what numpy's own memory begins at
# For a next request, its head, more of a body; and after the last answer, for what still comes.
_WAITING_S, _HEAD_S, _STALLED_S, _LINGER_S = 75.0, 10.0, 30.0, 2.0
_JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")
_encode = msgspec.json.Encoder().encode

Header = tuple[bytes, bytes]
Page = Callable[[], tuple[bytes, bytes]]  # content type and body


@dataclass(slots=True, eq=False)
class Site:
    """What all connections share. pages: path -> what a GET of it answers; key: bearer key."""

    plane: DataPlane
    pages: Mapping[str, Page] = field(default_factory=dict)
    key: str | None = None
    connections: set[Connection] = field(default_factory=set)
    draining: bool = False

    def sweep(self, now_s: float) -> None:
        """Once a second: ends connections that wait too long for what the client owes."""
        for connection in list(self.connections):
            connection.check_time(now_s)

    def drain(self) -> None:
        """From now on every answer closes its connection."""
        self.draining = True

    def close_idle(self) -> None:
        for connection in list(self.connections):
            connection.close_if_idle()


class Connection(asyncio.BufferedProtocol):
    """Reads a head, then its body, then answers; one request at a time."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.loop = asyncio.get_running_loop()
        self._buffer = bytearray(_HEAD_BYTES)
        self._scratch = memoryview(self._buffer)
        self._filled = 0  # bytes of it that are not yet used
        self._head: Head | None = None
        self._body: memoryview | None = None  # of a length that is known, received in place
        self._got = 0
        self._chunked = False  # its length is not known
        self._held = 0  # bytes of the body that count as waiting
        self._busy = False  # a request is being answered
        self._ticket: Ticket | None = None  # of the query that is being answered
        self._began_s = self._moved_s = clock()
        self._ending = False  # answered for the last time; what still comes is thrown away
        self._gone = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.site.connections.add(self)
        if len(self.site.connections) > self.site.plane.bounds.connections:
            self._refuse(Refusal(Reason.UNAVAILABLE, "too many connections"), close=True)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self.site.connections.discard(self)
        if self._ticket is not None:
            self._ticket.cancel()
        self._release()

    def pause_writing(self) -> None:
        """A client that does not read its answers gets no further ones."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._ending:
            return self._scratch
        if self._body is not None and self._got < len(self._body):
            return self._body[self._got :]
        return self._scratch[self._filled :]

    def buffer_updated(self, received: int) -> None:
        self._moved_s = clock()
        if self._ending:
            return
        if self._body is not None and self._got < len(self._body):
            self._got += received
            if self._got == len(self._body):
                self._complete(self._body)
            return
        if not self._filled and not self._busy:
            self._began_s = self._moved_s
        self._filled += received
        if self._busy:
            if self._filled == _HEAD_BYTES:
                self.transport.pause_reading()
        else:
            self._read()

    # Reading.

    def _read(self) -> None:
        """Goes on with what lies in the scratch buffer."""
        try:
            if self._chunked:
                self._read_chunks()
            elif self._filled:
                self._read_head()
        except Refusal as refusal:
            self._refuse(refusal, close=True)

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled) + 4
        if end == 3:
            if self._filled == _HEAD_BYTES:
                raise Refusal(Reason.HEAD_TOO_LARGE, f"the head is over {_HEAD_BYTES} bytes")
            return
        head = self._head = Head(bytes(self._scratch[:end]))
        self._check(head)
        if b"expect" in head.headers and head.text(b"expect") == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.length is None:
            self._use(end)
            self._chunked = True
            self._read_chunks()
        elif head.length:
            self._begin_body(head, end)
        else:
            self._use(end)
            self._complete(b"")

    def _check(self, head: Head) -> None:
        """Refuses by the head alone: its body is not even read."""
        site, length = self.site, head.length or 0
        if length > site.plane.bounds.body_bytes:
            raise _too_large(site.plane.bounds.body_bytes)
        if site.key is not None and not head.path.startswith("/v2/health/"):
            _check_key(head, site.key)

    def _begin_body(self, head: Head, at: int) -> None:
        """A buffer in which the binary tensors behind the JSON head will lie aligned; what of the
        body was read already, from `at` on, is the only part that is copied."""
        length = head.length or 0
        self._hold(length)
        ahead = head.headers.get(wire.HEAD_LENGTH, b"0")
        first = int(ahead) if ahead.isdigit() and len(ahead) < 10 else 0
        skip = -first % _ALIGNMENT
        body = self._body = np.empty(length + _ALIGNMENT, np.uint8)[skip : skip + length].data
        got = self._got = min(self._filled - at, length)
        body[:got] = self._scratch[at : at + got]
        self._use(at + got)
        if got == length:
            self._complete(body)

    def _read_chunks(self) -> None:
        head, limit = self._head, self.site.plane.bounds.body_bytes
        assert head is not None
        data = bytes(self._scratch[: self._filled])
        self._filled, held = 0, self._held
        head.feed(data)
        size = sum(map(len, head.pieces))
        if size > limit:
            raise _too_large(limit)
        self._hold(size - held)
        if head.complete:
            self._complete(b"".join(head.pieces))

    def _use(self, count: int) -> None:
        """So much of the scratch buffer is used; what is behind it moves to its beginning."""
        rest = self._filled - count
        if rest:
            self._scratch[:rest] = bytes(self._scratch[count : self._filled])
        self._filled = rest

    def _hold(self, count: int) -> None:
        self.site.plane.hold(count)
        self._held += count

    def _release(self) -> None:
        self.site.plane.release(self._held)
        self._held = 0

    # Answering.

    def _complete(self, body: Buffer) -> None:
        head = self._head
        assert head is not None
        self._busy = True
        try:
            self._route(head, body)
        except Refusal as refusal:
            self.site.plane.refused(refusal)
            self._refuse(refusal)
        except Exception as error:  # a fault of ours: said to the log, not to the client
            self.site.plane.log("fault", error=repr(error), path=head.path[:200])
            self._refuse(Refusal(Reason.INTERNAL, "internal error"), close=True)

    def _route(self, head: Head, body: Buffer) -> None:
        plane, path = self.site.plane, head.path
        if path == plane.infer_path and head.method == "POST":  # nearly all there is
            self._infer(head, plane.served.name, "", body)
            return
        parts = [unquote(part) for part in path.split("?", 1)[0].split("/")[1:]]
        match head.method, parts:
            case "POST", ["v2", "models", model, "infer"]:
                self._infer(head, model, "", body)
            case "POST", ["v2", "models", model, "versions", version, "infer"]:
                self._infer(head, model, version, body)
            case "GET", ["v2", "health", "live"]:
                self._json(200 if plane.live else 503, {"live": plane.live})
            case "GET", ["v2", "health", "ready"]:
                self._json(200 if plane.ready else 503, {"ready": plane.ready})
            case "GET", ["v2"] | ["v2", ""]:
                self._json(200, plane.server_metadata())
            case "GET", ["v2", "models", "stats"]:
                self._json(200, plane.statistics())
            case "GET", ["v2", "models", model, *rest]:
                self._model(model, rest)
            case "POST", ["v2", "repository", "index"]:
                self._json(200, plane.index())
            case "POST", ["v2", "repository", "models", model, "load" | "unload"]:
                plane.check_model(model)
                raise Refusal(
                    Reason.UNSUPPORTED, "this server loads its one model when it starts: restart it"
                )
            case "GET" | "HEAD", _ if page := self.site.pages.get("/" + "/".join(parts)):
                kind, content = page()
                policy = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                self._answer(200, [(b"content-type", kind), policy], [content])
            case method, _ if _exists(parts) or "/" + "/".join(parts) in self.site.pages:
                raise Refusal(Reason.METHOD, f"{method[:20]} is not what this path takes")
            case _:
                raise Refusal(Reason.NOT_FOUND, "no such path")

    def _model(self, model: str, rest: Sequence[str]) -> None:
        plane, version = self.site.plane, ""
        if len(rest) > 1 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        plane.check_model(model, version)
        match rest:
            case []:
                self._json(200, plane.model_metadata())
            case ["ready"]:
                self._json(200 if plane.ready else 503, {"name": model, "ready": plane.ready})
            case ["config"]:
                self._json(200, plane.model_config())
            case ["stats"]:
                self._json(200, plane.statistics())
            case ["infer"]:
                raise Refusal(Reason.METHOD, "infer takes POST")
            case _:
                raise Refusal(Reason.NOT_FOUND, "no such path")

    def _infer(self, head: Head, model: str, version: str, body: Buffer) -> None:
        plane = self.site.plane
        plane.check_model(model, version)
        plane.serving()
        encoding = head.text(b"content-encoding")
        if encoding:
            body = wire.decompress(body, encoding, self.site.plane.bounds.body_bytes)
        call = wire.parse(model, version, body, _head_length(head))
        call.arrived_s = self._began_s
        loop, connection = self.loop, self

        def done(outcome: Array | Refusal) -> None:  # in a worker's thread
            loop.call_soon_threadsafe(connection._done, head, call, outcome)

        self._ticket = plane.infer(call, done)

    def _done(self, head: Head, call: Call, outcome: Array | Refusal) -> None:
        ticket, self._ticket = self._ticket, None
        assert ticket is not None
        if self._gone:
            pass
        elif isinstance(outcome, Refusal):
            self._refuse(outcome, id=call.id)
        else:
            text, data = wire.answer(call, VERSION, outcome)
            parts: Sequence[Buffer] = [text] if data is None else [text, data]
            headers = [_JSON]
            if data is not None:
                headers = [_OCTETS, (wire.HEAD_LENGTH, b"%d" % len(text))]
            parts, encoding = wire.compress(parts, head.text(b"accept-encoding"))
            if encoding:
                headers.append((b"content-encoding", encoding.encode()))
            self._answer(200, headers, parts)
        self.site.plane.finished(call, ticket, outcome)

    def _json(self, status: int, value: Any, headers: Sequence[Header] = ()) -> None:
        self._answer(status, [_JSON, *headers], [_encode(value)])

    def _refuse(self, refusal: Refusal, *, close: bool = False, id: str = "") -> None:
        more: list[Header] = []
        if refusal.reason is Reason.UNAUTHENTICATED:
            more = [(b"www-authenticate", b'Bearer, Basic realm="deeprecsys"')]
        if refusal.reason in (Reason.OVERLOADED, Reason.UNAVAILABLE):
            more = [(b"retry-after", b"1")]
        if close:
            self.site.plane.refused(refusal)
        answer = {"error": refusal.message} | ({"id": id} if id else {})
        self._answer(refusal.reason.status, [_JSON, *more], [_encode(answer)], close=close)

    def _answer(
        self, status: int, headers: list[Header], body: Sequence[Buffer], *, close: bool = False
    ) -> None:
        head, self._head, self._body, self._chunked = self._head, None, None, False
        self._release()
        if self._gone:
            return
        keep = not close and not self.site.draining and head is not None and head.keep_alive
        lines = [_STATUS[status]]
        for name, value in headers:
            lines += [name, b": ", value, b"\r\n"]
        lines += [b"content-length: ", b"%d" % sum(map(len, body)), b"\r\n"]
        lines.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
        if not (head is not None and head.method == "HEAD"):
            lines += body  # type: ignore[arg-type]
        self.transport.write(b"".join(lines))
        if not keep:
            self._end()
            return
        self._busy = False
        if self._filled:
            self._began_s = clock()
            if self._filled == _HEAD_BYTES:
                self.transport.resume_reading()
            self.loop.call_soon(self._read)

    def _end(self) -> None:
        """Says so, and throws away what the client still sends: closed at once, a connection with
        bytes unread is reset, and the answer with it."""
        self._ending = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.transport.resume_reading()
        else:
            self.transport.close()

    # Time.

    def check_time(self, now_s: float) -> None:
        if self._ending:
            if now_s - self._moved_s > _LINGER_S or now_s - self._began_s > _STALLED_S:
                self.transport.abort()
        elif self._busy:
            if self.transport.get_write_buffer_size() and now_s - self._moved_s > _STALLED_S:
                self.transport.abort()
        elif self._head is not None:
            if now_s - self._moved_s > _STALLED_S:
                self._refuse(Refusal(Reason.SLOW, "the body did not come"), close=True)
        elif self._filled:
            if now_s - self._began_s > _HEAD_S:
                self._refuse(Refusal(Reason.SLOW, "the head did not come"), close=True)
        elif now_s - self._moved_s > _WAITING_S:
            self.transport.close()

    def close_if_idle(self) -> None:
        if not (self._ending or self._busy or self._filled) and self._head is None:
            self.transport.close()


class Head:
    """A request's line and headers, as httptools finds them; then a chunked body, if it has one.

    headers: names in lower case, the last of equal ones kept. length: None of a chunked body.
    """

    __slots__ = (
        "_parser", "_whole", "complete", "headers", "keep_alive", "length", "method", "path",
        "pieces",
    )  # fmt: skip

    def __init__(self, data: bytes) -> None:
        self.path, self.headers, self.pieces = "", dict[bytes, bytes](), list[bytes]()
        self._whole = self.keep_alive = self.complete = False
        self._parser = httptools.HttpRequestParser(self)
        self.feed(data)
        if not self._whole:
            raise invalid("not a request of HTTP/1.1: it has no head")
        self.method = self._parser.get_method().decode("latin-1")
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise invalid("Content-Length is not a number")
        chunked = b"transfer-encoding" in self.headers
        self.length = None if chunked else int(length)
        # What follows a chunked body would have to be told apart from it: such a connection ends.
        self.keep_alive = self.keep_alive and not chunked

    def text(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1").strip().lower()

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise invalid("this server speaks HTTP/1.1 only") from None
        except httptools.HttpParserError as error:
            raise invalid(f"not a request of HTTP/1.1: {str(error)[:80]}") from None

    # What httptools calls.

    def on_url(self, url: bytes) -> None:
        self.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._whole = True
        self.keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = True


def _head_length(head: Head) -> int | None:
    text = head.headers.get(wire.HEAD_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 15:
        raise invalid("Inference-Header-Content-Length is not a number")
    return int(text)


def _check_key(head: Head, key: str) -> None:
    """`Bearer KEY`; or `Basic`, any name and the key as password, which browsers can ask for."""
    kind, _, given = head.headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            given = b""
    elif kind.lower() != b"bearer":
        given = b""
    if not hmac.compare_digest(given.strip(), key.encode()):
        raise Refusal(Reason.UNAUTHENTICATED, "a key is needed: Authorization: Bearer KEY")


def _too_large(limit: int) -> Refusal:
    return Refusal(Reason.TOO_LARGE, f"the body is over {limit} bytes")


def _exists(parts: Sequence[str]) -> bool:
    """Is there such a path of the protocol, whatever the method?"""
    match parts:
        case ["v2"] | ["v2", "health", "live" | "ready"] | ["v2", "models", *_]:
            return True
        case ["v2", "repository", *_]:
            return True
    return False


_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_STATUS[499] = b"HTTP/1.1 499 Client Closed Request\r\n"

__all__ = ["Connection", "Site"]
