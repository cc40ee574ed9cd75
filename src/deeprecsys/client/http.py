"""The HTTP half of the load client: one thread, `epoll`, and no copy of a body in between.

The client shares the machine with the server it measures, so its processor time is what limits;
hence no HTTP library. Tensors go from the pool to the socket with `sendmsg` (under TLS there are
copies); answers are read into one buffer and parsed for status and length. Sockets are registered
once, edge-triggered: an edge is not repeated, so reading goes on until the kernel says that there
is no more.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from deeprecsys.client.access import Access
from deeprecsys.client.server import Address, error_text
from deeprecsys.client.sheet import STATUS_OF, Rows, Tally
from deeprecsys.client.sockets import Place, Secure, places, reason
from deeprecsys.core import Status

clock = time.perf_counter

# Long gaps are slept in pieces, so that a stop is noticed; timeouts are looked for as often.
_NAP_S = 0.05
_FOREVER_S = -1.0  # until an event, of which the timer is one
# Queries sent before answers are looked at: those that wait to be read seem late.
_BURST = 4
_EVENTS = 64
_BUFFER_BYTES = 256 << 10
# Of a socket's buffer (the kernel doubles it). Its own choice, up to 4 MB, leaves the cache: bodies
# of 2.6 MB cost 0.95 ms of processor time with it and 0.8 ms with this, and the queries that come
# while one is being sent wait for 0.6 ms instead of 1.1.
_SEND_BYTES = 512 << 10
_LONGEST_HEAD = 64 << 10
_KEPT_BYTES = 2000  # of an error's body, for its text
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_IDLE = -1
_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
_MOST_PARTS = 1000  # that one `sendmsg` takes

Message = Callable[[int, int], tuple[list[Any], int]]  # offset, size -> parts, bytes


class Malformed(Exception):
    """An answer that is no HTTP."""


class Answer:
    """One HTTP answer as it arrives, in pieces; its body is counted, and kept of an error.

    Knows no socket. status: "" until the head is complete. close: the connection ends with it.
    """

    __slots__ = ("_chunked", "_head", "_left", "_open", "body", "close", "status")

    def __init__(self) -> None:
        self.status, self.close, self.body = "", False, b""
        self._head, self._left = b"", 0
        self._chunked: Chunks | None = None
        self._open = False  # of unknown length: until the connection ends

    def feed(self, data: memoryview) -> bool:
        """True once the answer is complete. Raises Malformed."""
        if self.status:
            return self._take(data)
        text = self._head + bytes(data)
        end = text.find(b"\r\n\r\n")
        if end < 0:
            self._head = text
            if len(text) > _LONGEST_HEAD or not text.startswith(b"HTTP/1."[: len(text)]):
                raise Malformed("the answer's head is no HTTP/1")
            return False
        head, rest = _parsed(text[:end]), memoryview(text)[end + 4 :]
        if head.status[0] == "1":  # 100 Continue and its like: the answer is still to come
            self._head = b""
            return self.feed(rest)
        self.status, self.close, self._open = head.status, head.close, head.length is None
        self._left = head.length or 0
        self._chunked = Chunks() if head.chunked else None
        return self._take(rest)

    def end(self) -> bool:
        """The connection has ended: is the answer complete now?"""
        return self._open

    def _take(self, data: memoryview) -> bool:
        if self.status != "200" and len(self.body) < _KEPT_BYTES:
            self.body += bytes(data[: _KEPT_BYTES - len(self.body)])
        if self._chunked:
            return self._chunked.feed(bytes(data))
        self._left -= len(data)
        if self._left < 0 and not self._open:
            raise Malformed("more bytes than the answer's content-length")
        return not self._left and not self._open


class Head(NamedTuple):
    """Of an answer. length: of its body; None: until the connection ends."""

    status: str
    close: bool
    length: int | None
    chunked: bool


@lru_cache(maxsize=4096)
def _parsed(head: bytes) -> Head:
    """Cached, as the answers to queries of one size have one head. Raises Malformed."""
    status = head[9:12]
    if not head.startswith(b"HTTP/1.") or not status.isdigit():
        raise Malformed("the answer's head is no HTTP/1")
    fields = head.lower() + b"\r\n"
    said, length = _field(fields, b"connection"), _field(fields, b"content-length")
    close = said == b"close" or (head[7:8] == b"0" and said != b"keep-alive")
    if _field(fields, b"transfer-encoding") is not None:
        return Head(status.decode(), close, 0, True)
    if status in (b"204", b"304") or status[0:1] == b"1":
        return Head(status.decode(), close, 0, False)
    if length is None:
        return Head(status.decode(), True, None, False)
    if not length.isdigit():
        raise Malformed("the answer's content-length is no number")
    return Head(status.decode(), close, int(length), False)


class Chunks:
    """The lengths of a chunked body; its trailer is skipped."""

    __slots__ = ("_last", "_line", "_skip")

    def __init__(self) -> None:
        self._line, self._skip, self._last = b"", 0, False

    def feed(self, data: bytes) -> bool:
        """True at the end of the body."""
        while data:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
            if not data:
                break
            line, found, data = (self._line + data).partition(b"\r\n")
            if not found:
                self._line = line
                if len(line) > _LONGEST_HEAD:
                    raise Malformed("a chunk's length has no end")
                break
            self._line = b""
            if self._last:
                if not line:
                    return True
            else:
                self._begin(line)
        return False

    def _begin(self, line: bytes) -> None:
        try:
            length = int(line.partition(b";")[0], 16)
        except ValueError:
            raise Malformed("a chunk's length is no number") from None
        self._last = length == 0
        self._skip = length + 2 if length else 0


class Connection:
    """A socket and the row whose answer it waits for."""

    __slots__ = (
        "answer", "answered", "left", "others", "parts", "place", "reached", "row", "secure",
        "seen", "sock",
    )  # fmt: skip

    def __init__(self, sock: socket.socket | Secure, place: Place, others: list[Place]) -> None:
        self.sock: Any = sock
        self.place = place
        self.others = others  # to be tried if this one cannot be reached
        self.secure = isinstance(sock, Secure)
        self.row = _IDLE
        self.parts: list[Any] = []  # what is still to be sent
        self.left = 0  # bytes of it
        self.answer = Answer()
        self.answered = 0
        self.reached = False  # has anything been sent?
        self.seen = False  # any byte of this answer?


class HttpLoad:
    """Sends rows when they are due over up to `connections` connections, kept between runs.

    first: which of the name's addresses to try first; the others follow where it is not reached.
    """

    def __init__(
        self,
        address: Address,
        connections: int,
        patience_s: float,
        access: Access,
        first: str | None = None,
    ) -> None:
        self._places = (
            [Place(socket.AF_UNIX, address.host)]
            if address.unix
            else places(address.host, address.port, first)
        )
        self._context = access.context() if address.secure else None
        self._name = address.host
        self._most, self._patience_s = connections, patience_s
        self._epoll = select.epoll()
        self._timer = Timer()
        if self._timer.fd is not None:
            # Edge-triggered, so that nobody has to read it.
            self._epoll.register(self._timer.fd, select.EPOLLIN | select.EPOLLET)
        self._connections: dict[int, Connection] = {}
        self._free: list[Connection] = []  # the last one used is the first one taken: it is warm
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    def connect(self) -> None:
        """Forgets connections that the server closed since the last run; new ones cost little."""
        self._poll(0)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        self._epoll.close()

    def run(self, rows: Rows, message: Message) -> Tally:
        self._rows, self._message, self._tally = rows, message, Tally()
        self._next, self._left = 0, len(rows)
        self._waiting: deque[int] = deque()
        self._resent: set[int] = set()
        self._armed_s = 0.0
        gc.disable()
        try:
            self._loop()
        finally:
            gc.enable()
            for connection in [c for c in self._connections.values() if c.row != _IDLE]:
                self._close(connection)
        return self._tally

    def _loop(self) -> None:
        rows, due_s = self._rows, self._rows.due_s
        looked_s = 0.0
        while self._left and not rows.stopped():
            now = clock()
            for _ in range(_BURST):
                if self._next == len(due_s) or due_s[self._next] > now:
                    break
                self._start(self._next)
                self._next += 1
                now = clock()
            if now - looked_s > _NAP_S:
                looked_s = now
                self._give_up(now)
            self._poll(self._timeout_s(now))
            while self._waiting and (self._free or len(self._connections) < self._most):
                self._start(self._waiting.popleft())

    def _timeout_s(self, now: float) -> float:
        """How long `epoll` may wait; what is due within a nap is told by the timer, finer."""
        if self._next == len(self._rows):
            return _NAP_S
        due_s = self._rows.due_s[self._next]
        if due_s <= now:
            return 0.0
        if due_s - now > _NAP_S or self._timer.fd is None:
            return min(due_s - now, _NAP_S)
        if due_s != self._armed_s:
            self._timer.arm(due_s)
            self._armed_s = due_s
        return _FOREVER_S

    def _poll(self, timeout_s: float) -> None:
        connections = self._connections
        for fd, edges in self._epoll.poll(timeout_s, _EVENTS):
            connection = connections.get(fd)  # None: the timer, which only wakes
            if connection is None:
                continue
            # What TLS waits for says nothing of what it has to do.
            if connection.left and (connection.secure or edges & select.EPOLLOUT):
                self._push(connection)
            if (connection.secure or edges & ~select.EPOLLOUT) and connections.get(
                fd
            ) is connection:
                self._receive(connection)
            ended = edges & select.EPOLLRDHUP and connections.get(fd) is connection
            if ended and connection.row == _IDLE:  # with the answer that was just read
                self._close(connection)

    def _start(self, row: int) -> None:
        """Sends a row, or lets it wait where every connection is busy."""
        connection = self._free.pop() if self._free else self._open(row)
        if connection is not None:
            self._send(connection, row)

    def _open(self, row: int, to: Sequence[Place] = ()) -> Connection | None:
        """A connection to the first of these places (none given: all that there are) that can be
        reached; None, with the row waiting or failed, if there is none to be had."""
        if len(self._connections) >= self._most:
            self._waiting.append(row)
            return None
        why = ""
        for place, *others in _tails(to or self._places):
            try:
                return self._begin(place, others)
            except OSError as error:
                if error.errno in _NO_MORE_FILES and self._connections:
                    self._most = len(self._connections)  # as good as no more connections
                    self._waiting.append(row)
                    return None
                why = reason(error)
        self._rows.submit_s[row] = clock()
        self._unanswered(row, why, reached=False)
        return None

    def _begin(self, place: Place, others: list[Place]) -> Connection:
        sock = socket.socket(place.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if place.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
            failed = sock.connect_ex(place.to)
            if failed not in (0, errno.EINPROGRESS):
                raise OSError(failed, os.strerror(failed))
        except OSError:
            sock.close()
            raise
        spoken = Secure(sock, self._context, self._name) if self._context else sock
        connection = Connection(spoken, place, others)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), _EDGES)
        return connection

    def _send(self, connection: Connection, row: int) -> None:
        rows = self._rows
        connection.parts, connection.left = self._message(rows.offset[row], rows.size[row])
        connection.row, connection.seen = row, False
        if row not in self._resent:
            rows.submit_s[row] = clock()
        self._push(connection)

    def _push(self, connection: Connection) -> None:
        """Sends what the socket takes now."""
        while True:
            try:
                sent = connection.sock.sendmsg(connection.parts[:_MOST_PARTS])
            except BlockingIOError:  # also while the connection is being made
                return
            except OSError as error:
                connection.parts, connection.left = [], -1  # an early answer may be there
                self._receive(connection, error)
                return
            self._tally.bytes_sent += sent
            if not connection.reached:
                self._reached(connection)
            connection.left -= sent
            if not connection.left:
                connection.parts = []
                return
            connection.parts = _rest(connection.parts, sent)

    def _reached(self, connection: Connection) -> None:
        """The next connections go there at once."""
        connection.reached = True
        if connection.place != self._places[0]:
            others = [place for place in self._places if place != connection.place]
            self._places = [connection.place, *others]

    def _receive(self, connection: Connection, failed: OSError | None = None) -> None:
        while True:
            try:
                got = connection.sock.recv_into(self._buffer)
            except BlockingIOError:
                if failed is not None:
                    self._broken(connection, reason(failed))
                return
            except OSError as error:
                self._broken(connection, reason(failed or error))
                return
            if not got and failed is not None:
                self._broken(connection, reason(failed))
                return
            if not got:
                self._ended(connection)
                return
            if connection.row == _IDLE:  # words that nobody asked for
                self._close(connection)
                return
            connection.seen = True
            try:
                complete = connection.answer.feed(self._view[:got])
            except Malformed as error:
                self._fail(connection, str(error))
                return
            if complete:
                self._finish(connection)
                return

    def _finish(self, connection: Connection) -> None:
        now, row, answer = clock(), connection.row, connection.answer
        status = answer.status
        if status == "200":
            self._rows.finish_s[row] = now
        else:
            self._tally.example(status, error_text(answer.body))
        self._tally.answered(status)
        self._done(row, STATUS_OF.get(status, Status.FAILED))
        connection.row = _IDLE
        connection.answered += 1
        if answer.close or connection.left:  # an answer before the whole question was sent
            self._close(connection)
        else:
            connection.answer = Answer()
            self._free.append(connection)

    def _ended(self, connection: Connection) -> None:
        """The server closed the connection: as an answer's end, for itself, or too early."""
        if connection.row != _IDLE and connection.answer.end():
            self._finish(connection)
        elif connection.row != _IDLE:
            self._broken(connection, "the connection was closed before the end of the answer")
        else:
            self._close(connection)

    def _broken(self, connection: Connection, why: str) -> None:
        """Sent once more, if the server had merely closed a connection that was idle; or over
        the next of the name's addresses, if there was no connection yet."""
        row = connection.row
        idle = row != _IDLE and connection.answered and not connection.seen
        if idle and row not in self._resent:
            self._resent.add(row)
            self._tally.resent += 1
            self._again(connection)
        elif row != _IDLE and not connection.reached and connection.others:
            self._again(connection, connection.others)
        else:
            self._fail(connection, why)

    def _again(self, connection: Connection, to: Sequence[Place] = ()) -> None:
        row = connection.row
        self._close(connection)
        if (fresh := self._open(row, to)) is not None:
            self._send(fresh, row)

    def _fail(self, connection: Connection, why: str) -> None:
        row = connection.row
        self._close(connection)
        if row != _IDLE:
            self._unanswered(row, why, reached=connection.reached)

    def _unanswered(self, row: int, why: str, *, reached: bool) -> None:
        self._tally.not_answered(why, reached=reached)
        self._done(row, Status.FAILED)

    def _done(self, row: int, status: Status) -> None:
        self._rows.status[row] = status
        self._left -= 1

    def _give_up(self, now: float) -> None:
        """Rows that have waited for too long, for an answer or for a connection."""
        before_s, due_s = now - self._patience_s, self._rows.due_s
        words = f"no answer within {self._patience_s:g} s"
        for connection in list(self._connections.values()):
            if connection.row != _IDLE and due_s[connection.row] < before_s:
                self._fail(connection, words)
        while self._waiting and due_s[self._waiting[0]] < before_s:
            row = self._waiting.popleft()
            self._rows.submit_s[row] = now
            why = f"no connection was free within {self._patience_s:g} s"
            self._unanswered(row, why, reached=True)

    def _close(self, connection: Connection) -> None:
        del self._connections[connection.sock.fileno()]
        if connection in self._free:
            self._free.remove(connection)
        connection.row = _IDLE
        connection.sock.close()


class Timer:
    """A `timerfd`: wakes `epoll`, whose own timeouts are whole milliseconds, to the microsecond.

    fd: None where there is none; then the timeouts have to do.
    """

    def __init__(self) -> None:
        self.fd: int | None = None
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError):
            return
        if fd >= 0:
            self.fd = fd
            self._spec = ctypes.create_string_buffer(32)  # struct itimerspec: interval, value
            self._settime = self._libc.timerfd_settime
            self._settime.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
            self._at = ctypes.addressof(self._spec)

    def arm(self, at_s: float) -> None:
        """Wakes once at this time of `perf_counter`, and no more at what it was armed for."""
        at_ns = int(at_s * 1e9) + 1  # not before
        _ITIMERSPEC.pack_into(self._spec, 0, 0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        self._settime(self.fd, _ABSOLUTE, self._at, None)


_ITIMERSPEC = struct.Struct("@llll")
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


def _field(fields: bytes, name: bytes) -> bytes | None:
    """Of a head in small letters that ends with a line break."""
    at = fields.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    begin = at + len(name) + 3
    return fields[begin : fields.index(b"\r\n", begin)].strip()


def _rest(parts: Sequence[Any], sent: int) -> list[Any]:
    """What is left of `parts` after their first `sent` bytes."""
    for i, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[i + 1 :]]
        sent -= len(part)
    return []


def _tails(places: Sequence[Place]) -> list[Sequence[Place]]:
    return [places[at:] for at in range(len(places))]
