"""What a request of HTTP/1.1 says before and around its body: its head, its chunks.

Pure: bytes in, values or a `Refusal` out; knows no socket. httptools parses heads, and refuses what
two servers might read differently (a length given twice, a length beside chunks, bare line feeds).
Chunks are read here, since httptools cannot say where a body ends and the next request begins.
"""

from __future__ import annotations

import re

import httptools

from deeprecsys.protocol import trace_context, wire
from deeprecsys.protocol.reasons import Reason, Refusal, invalid

_HEX = re.compile(rb"[0-9a-fA-F]{1,15}(?=;|$)")
_LINE_BYTES = 4 << 10  # most of a line between chunks: a length and its extensions
_TRAILER_BYTES = 8 << 10
_TURN = 256  # chunks that are read before others have their turn


class Head:
    """A request's line and headers.

    headers: names in lower case, the last of equal ones kept; of a trace's, all. length: None of a
    chunked body. path: without scheme and host, where the target names them.
    """

    __slots__ = ("_parser", "_whole", "headers", "keep_alive", "length", "method", "old", "path")

    def __init__(self, data: bytes) -> None:
        self.path, self.headers = "", dict[bytes, bytes]()
        self._whole = self.keep_alive = False
        self._parser = httptools.HttpRequestParser(self)
        self._feed(data)
        if not self._whole:
            raise invalid("not a request of HTTP/1.1: it has no head")
        self.method = self._parser.get_method().decode("latin-1")
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise invalid("this server speaks HTTP/1.1 and HTTP/1.0")
        self.old = version == "1.0"
        if not self.path.startswith("/"):
            self.path = _origin_form(self.path)
        self.length = self._length()

    @property
    def expects(self) -> bool:
        """Does the client wait to be told that its body is wanted?"""
        return b"expect" in self.headers and self.text(b"expect") == "100-continue" and not self.old

    def text(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1").strip().lower()

    def json_bytes(self) -> int | None:
        """How many bytes of the body are its JSON head; None: all."""
        text = self.headers.get(wire.HEAD_LENGTH)
        if text is None:
            return None
        if not text.isdigit() or len(text) > 15:
            raise invalid("Inference-Header-Content-Length is not a number")
        return int(text)

    def _length(self) -> int | None:
        coding = self.headers.get(b"transfer-encoding")
        if coding is not None:
            if self.old or coding.strip().lower() != b"chunked":
                raise invalid("Transfer-Encoding must be chunked, of HTTP/1.1")
            return None
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18:
            raise invalid("Content-Length is not a number")
        return int(length)

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to another protocol: an offer, which is ignored
        except httptools.HttpParserError as error:
            raise invalid(f"not a request of HTTP/1.1: {str(error)[:80]}") from None

    # What httptools calls.

    def on_url(self, url: bytes) -> None:
        self.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"transfer-encoding" and name in self.headers:
            raise ValueError("Transfer-Encoding is given twice")
        if name in trace_context.HEADERS and name in self.headers:
            value = self.headers[name] + b"," + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self._whole = True
        self.keep_alive = self._parser.should_keep_alive()


class Chunks:
    """A chunked body. `body` grows by what is fed; what follows its end is left alone, and its
    trailer is read and dropped: nothing in it may pass for a header."""

    __slots__ = ("_after", "_left", "_trailer", "body", "complete")

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False
        self._left = 0  # bytes of the chunk that are still to come
        self._after = False  # the line end behind a chunk is still to come
        self._trailer: int | None = None  # bytes of it, once it has begun

    @property
    def in_trailer(self) -> bool:
        """What still comes is dropped."""
        return bool(self._trailer)

    def feed(self, data: bytes) -> int:
        """How many bytes were used; fewer than given: a line is not whole, or `_TURN` chunks were
        read. Costs what is fed, however it is cut. Refusal (400, 431)."""
        at, end = 0, len(data)
        for _ in range(_TURN):
            if self._left:
                taken = data[at : at + self._left]
                self.body += taken
                at += len(taken)
                self._left -= len(taken)
                self._after = True
            if self._left or self.complete or at == end:
                break
            stop = data.find(b"\r\n", at)
            if stop < 0:
                if end - at > _LINE_BYTES:
                    raise invalid("a line between chunks is too long")
                break
            self._line(data[at:stop])
            at = stop + 2
        return at

    def _line(self, line: bytes) -> None:
        if b"\n" in line or b"\r" in line or len(line) > _LINE_BYTES:
            raise invalid("a line between chunks is not one")
        if self._trailer is not None:
            self._trailer += len(line) + 2
            self.complete = not line
            if self._trailer > _TRAILER_BYTES:
                raise Refusal(Reason.HEAD_TOO_LARGE, f"the trailer is over {_TRAILER_BYTES} bytes")
        elif self._after:
            if line:
                raise invalid("a chunk is longer than it says")
            self._after = False
        else:
            size = _HEX.match(line)
            if size is None:
                raise invalid("a chunk's length is no number")
            self._left = int(size[0], 16)
            if not self._left:
                self._trailer = 0


def _origin_form(target: str) -> str:
    """`/path` of `http://host/path`; others (`*`, a host for CONNECT) as they are."""
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        return target
    _, slash, path = rest.partition("/")
    return slash + path or "/"


__all__ = ["Chunks", "Head"]
