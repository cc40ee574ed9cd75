"""HTTP/1.1: one connection, which reads a head, then its body, then answers.

Bodies decide what serving costs, so they are received straight to where tensors are read: the
kernel writes into one aligned buffer a request, and nobody copies it again. No ASGI server does
that: for 2.6 MB their best took three times as long (`docs/decisions/0012-serving.md`).

One request at a time: those that follow it wait in the scratch buffer and, behind that, in the
kernel's, also while the client does not read its answers. What would keep the loop for long
(long JSON, compressed bodies, long answers) goes to a thread. Decides nothing about queries.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from typing import cast

import numpy as np

from deeprecsys.engine import Ticket
from deeprecsys.protocol import trace_context, wire
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.inflate import inflate
from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.tensors import Array, Buffer
from deeprecsys.serving import admin, files, http_memory, shared_memory
from deeprecsys.serving import http_routes as routes
from deeprecsys.serving.bounds import Hold, over
from deeprecsys.serving.dataplane import clock
from deeprecsys.serving.http_head import Chunks, Head
from deeprecsys.serving.http_routes import Answer
from deeprecsys.serving.native import Handed, NativeHttp
from deeprecsys.serving.shared_memory import LongCopy, Reader
from deeprecsys.serving.site import Site
from deeprecsys.serving.tracing import Trace
from deeprecsys.serving.unix import peer_of

_HEAD_BYTES = 16 << 10  # most of a request's head, and what is read beyond a body
_ALIGNMENT = 16  # of binary tensors: what numpy's own memory begins at
_LINGER_S, _ENDING_S = 2.0, 10.0  # after the last answer: without a byte, and in all
# What nobody needs (trailers, what comes after the last answer) is read so rarely, and much at
# once: each reading costs the loop more than its bytes do.
_REST_S, _SCRAP = 5e-3, memoryview(bytearray(256 << 10))
# What is read and written without a thread takes under a millisecond.
_SHORT_JSON, _SHORT_BODY, _SHORT_ANSWER = 32 << 10, 8 << 20, 2048  # bytes, bytes, scores
_GONE_S = 0.1  # a client that shut its sending side may have gone: it is asked after so long
_TCP_INFO, _TCP_CLOSE = getattr(socket, "TCP_INFO", None), 7  # <netinet/tcp.h>


class Connection(asyncio.BufferedProtocol):
    """What has come and is not used lies in `_scratch[:_filled]`; bodies of known length do not."""

    def __init__(self, site: Site, handed: Handed | None = None) -> None:
        """handed: what the native path has read and sent of it."""
        self.site, self.bounds = site, site.plane.bounds
        self.loop = asyncio.get_running_loop()
        self._buffer = bytearray(_HEAD_BYTES)
        self._scratch = memoryview(self._buffer)
        self._filled = 0
        self._head: Head | None = None
        self._body: memoryview | None = None  # of a length that is known, received in place
        self._got = 0
        self._chunks: Chunks | None = None  # its length is not known
        self._hold: Hold | None = None  # of its bytes
        self._busy = False  # a request is being answered
        self._ticket: Ticket | None = None  # of the query that is being answered
        self._early: tuple[Call, Array | Refusal] | None = None  # its answer, where that was faster
        self._began_s = self._moved_s = self._arrived_s = clock()
        self._paused = False  # nothing is read
        self._rests = False  # nor will be, for `_REST_S`
        self._goes_on = False  # with what lies in the scratch buffer, when others had their turn
        self._choked = 0  # bytes that count as unsent, while the client does not read
        self._written = 0
        self._mark: tuple[int, float] | None = None  # what must be sent by then
        self._no_more = False  # the client has shut its sending side
        self._handed = handed
        self._ending = False  # answered for the last time; what still comes is thrown away
        self._gone = False

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(high=self.bounds.pipe_bytes, low=0)
        number = transport.get_extra_info("socket").fileno()
        try:
            self.site.enter_with(self, number)
        except Refusal as refusal:
            self._refuse(refusal)
            if files.left(number) < files.spare() // 2:  # too few to wait for what it still sends
                self.transport.close()
            return
        handed, self._handed = self._handed, None
        if handed is not None:
            self._take_over(handed)
            self.loop.call_soon(self._pause_again)

    def _take_over(self, handed: Handed) -> None:
        if handed.unsent:
            self._write([handed.unsent], ())
        if handed.ends:
            self._end()
            return
        read = memoryview(handed.read)
        while read and (room := self.get_buffer(-1)):
            count = min(len(room), len(read))
            room[:count] = read[:count]
            read = read[count:]
            self.buffer_updated(count)

    def _pause_again(self) -> None:
        """The loop begins to read when `connection_made` is over, whatever was said in it."""
        if self._paused and not self.transport.is_closing():
            self.transport.pause_reading()

    @property
    def began_s(self) -> float:
        """When it last began to wait: for a head, or a body."""
        return self._began_s

    def connection_lost(self, error: Exception | None) -> None:
        self._gone = True
        self.site.leave(self)
        self.resume_writing()
        if self._ticket is not None:
            self._ticket.cancel()
        self._release()

    def pause_writing(self) -> None:
        """The client does not read its answers: it gets no further ones."""
        self._choked = self.transport.get_write_buffer_size()
        self.site.unsent += self._choked
        if self.site.unsent > self.bounds.unsent_bytes:
            self._abort("max-unsent-mb")

    def resume_writing(self) -> None:
        self.site.unsent -= self._choked
        self._choked = 0
        self._go_on()

    def eof_received(self) -> bool:
        """It may still wait for its answer (over TLS, Python cannot tell the two apart)."""
        self._no_more = True
        if self._busy:
            self.loop.call_later(_GONE_S, self._ask_whether_gone, self._head)
        elif self._ending or not self._filled:
            self.transport.close()
        else:
            self._go_on()
        return self.transport.get_extra_info("sslcontext") is None

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._ending:
            return _SCRAP
        if self._body is not None and self._got < len(self._body):
            return self._body[self._got :]
        return self._scratch[self._filled :]

    def buffer_updated(self, received: int) -> None:
        self._moved_s = clock()
        if self._ending:
            self._rest()
            return
        if self._body is not None and self._got < len(self._body):
            self._got += received
            if self._is_held(received) and self._got == len(self._body):
                self._complete(self._body)
            return
        if not self._filled and not self._busy:
            self._began_s = self._moved_s
            if self._head is None:
                self._arrived_s = self.site.looks.came_s(self.loop, self._moved_s)
        self._filled += received
        if self._busy or self._choked or self._goes_on:
            self._mind_reading()
        else:
            self._read()

    # Reading.

    def _read(self) -> None:
        """Goes on with what lies in the scratch buffer."""
        if self._gone or self._ending or self._busy or self._choked:
            return
        before = self._filled
        try:
            if self._chunks is not None:
                self._read_chunks(self._chunks)
            elif self._body is None and self._filled:
                self._read_head()
        except Refusal as refusal:
            self._refuse(refusal)
        self._mind_reading()
        stuck = self._filled in (0, before) and not (self._busy or self._ending)
        if self._no_more and stuck:
            self.transport.close()  # what is missing will not come

    def _mind_reading(self) -> None:
        """Reads on if there is room for what comes."""
        full = self._filled == _HEAD_BYTES and not self._ending
        pause = full or self._rests
        if pause is self._paused or self._gone or self.transport.is_closing():
            return
        self._paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _rest(self) -> None:
        if not self._rests:
            self._rests = True
            self._mind_reading()
            self.loop.call_later(_REST_S, self._rested)

    def _rested(self) -> None:
        self._rests = False
        self._mind_reading()

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled) + 4
        if end == 3:
            if self._filled == _HEAD_BYTES:
                raise Refusal(Reason.HEAD_TOO_LARGE, f"the head is over {_HEAD_BYTES} bytes")
            return
        head = self._head = Head(bytes(self._scratch[:end]))
        self.site.waiting.pop(self, None)
        self._check(head)
        if head.length == 0:
            self._use(end)
            self._complete(b"")
            return
        self._hold = self.site.plane.waiting.hold()
        self._began_s = clock()
        self.site.receiving[self] = self._began_s
        if head.expects:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.length is None:
            self._use(end)
            self._chunks = Chunks()
            self._read_chunks(self._chunks)
        else:
            self._begin_body(head.length, end)

    def _check(self, head: Head) -> None:
        """Refuses by the head alone: its body is not even read."""
        if not routes.is_keyless(head.path):
            brought = head.headers.get(b"authorization", b"")
            self.site.plane.keys.check(brought, routes.right_of(head.method, head.path))
        if head.length != 0 and not routes.takes_body(head.method, head.path):
            raise Refusal(Reason.TOO_LARGE, "this takes no body")
        if (head.length or 0) > self.bounds.body_bytes:
            raise self._too_large()

    def _begin_body(self, length: int, at: int) -> None:
        """A buffer in which the binary tensors behind the JSON head will lie aligned; what of the
        body was read already, from `at` on, is the only part that is copied."""
        assert self._head is not None
        skip = -(self._head.json_bytes() or 0) % _ALIGNMENT
        body = self._body = np.empty(length + _ALIGNMENT, np.uint8)[skip : skip + length].data
        got = self._got = min(self._filled - at, length)
        body[:got] = self._scratch[at : at + got]
        self._use(at + got)
        if self._is_held(got) and got == length:
            self._complete(body)

    def _read_chunks(self, chunks: Chunks) -> None:
        before = len(chunks.body)
        self._use(used := chunks.feed(bytes(self._scratch[: self._filled])))
        if len(chunks.body) > self.bounds.body_bytes:
            raise self._too_large()
        if not self._is_held(len(chunks.body) - before):
            return
        if chunks.complete:
            self._complete(chunks.body)
        elif used:
            self._go_on()
            if chunks.in_trailer:
                self._rest()

    def _use(self, count: int) -> None:
        """So much of the scratch buffer is used; what is behind it moves to its beginning."""
        rest = self._filled - count
        if rest and count:
            self._scratch[:rest] = bytes(self._scratch[count : self._filled])
        self._filled = rest

    def _is_held(self, count: int) -> bool:
        """Counts what came of a body; False: it was too much, and is refused."""
        assert self._hold is not None
        try:
            self.site.hold(self._hold, count)
        except Refusal as refusal:
            self._refuse(refusal)
            return False
        return True

    def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.release()

    def _too_large(self) -> Refusal:
        limit = self.bounds.body_bytes
        return over(Reason.TOO_LARGE, f"the body is over {limit} bytes", "max-body-mb")

    # Answering.

    def _complete(self, body: Buffer) -> None:
        head = self._head
        assert head is not None
        self.site.receiving.pop(self, None)
        self._busy = True
        if self._no_more:
            self.loop.call_later(_GONE_S, self._ask_whether_gone, head)
        try:
            self._route(head, body)
        except Refusal as refusal:
            self._refuse(refusal, keep=True)
        except Exception as error:
            self._fault(error)

    def _route(self, head: Head, body: Buffer) -> None:
        plane = self.site.plane
        model = routes.asked_model(head.path) if head.method == "POST" else None
        if model is not None:
            self._infer(head, *model, body)
            return
        asked = routes.asked_of_repository(head.path) if head.method == "POST" else None
        if asked is not None:
            self._administer(*asked, bytes(body))
            return
        if http_memory.is_path(parts := routes.parts_of(head.path)):
            client = _client(self.transport)
            said = http_memory.answer(plane.regions, head.method, parts, body, client)
            answer = routes.said(200, said)
        else:
            answer = routes.answer(plane, self.site.pages, head.method, head.path)
        size = sum(map(len, answer.parts))
        if size > self.bounds.pipe_bytes:
            self.site.room(size)
        self._answer(answer)

    def _administer(self, what: str, model: str, body: bytes) -> None:
        """Takes as long as it takes; another thread does it."""
        plane, loop = self.site.plane, self.loop
        if what != "reload":
            plane.check_model(model)
        done = admin.act(plane.administered, what, model, admin.parameters_of(body))
        done.add_done_callback(lambda done: loop.call_soon_threadsafe(self._administered, done))

    def _administered(self, done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            self._answer(routes.said(200, {}))
        elif isinstance(error, Refusal):
            self._refuse(error, keep=True)
        else:
            self._fault(error)

    def _infer(self, head: Head, model: str, version: str, body: Buffer) -> None:
        plane = self.site.plane
        plane.check_model(model, version)
        plane.serving()
        plane.rates.take(_client(self.transport), clock())
        encoding = head.text(b"content-encoding")
        json_bytes = head.json_bytes()
        text = len(body) if json_bytes is None else json_bytes
        hold = self._hold = self._hold or plane.waiting.hold()  # an empty body has none yet
        memory = Reader(plane.regions, hold, self.bounds, _SHORT_BODY)
        if encoding in ("", "identity") and text <= _SHORT_JSON and len(body) <= _SHORT_BODY:
            with suppress(LongCopy):
                call = wire.parse(model, version, body, json_bytes, memory=memory)
                self._ticket = self._offer(head, call)
                return
        loop = self.loop

        def take() -> None:  # in a thread
            ticket: Ticket | None = None
            refusal: Exception | None = None
            try:
                plain = self._inflated(body, encoding, hold)
                there = memory.again()
                call = wire.parse(model, version, plain, json_bytes, long=True, memory=there)
                ticket = self._offer(head, call)
            except Refusal as error:
                refusal = error.with_traceback(None)  # which holds the body
            except Exception as error:
                refusal = error
            loop.call_soon_threadsafe(self._taken, head, ticket, refusal)

        plane.threads.submit(take, _client(self.transport), long=len(body) > _SHORT_BODY // 8)

    def _inflated(self, body: Buffer, encoding: str, hold: Hold) -> Buffer:
        if encoding in ("", "identity"):
            return body
        left = self.bounds.body_bytes

        def grown(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise self._too_large()
            hold.add(count)

        return inflate(body, encoding, grown)

    def _offer(self, head: Head, call: Call) -> Ticket:
        """Hands the query over; from the loop or a thread."""
        call.arrived_s = self._arrived_s
        call.client = _client(self.transport)
        call.trace = self._traced(head)
        loop, done = self.loop, self._done

        def answered(outcome: Array | Refusal) -> None:  # in a worker's thread
            loop.call_soon_threadsafe(done, head, call, outcome)

        return self.site.plane.infer(call, answered)

    def _traced(self, head: Head, refusal: Refusal | None = None) -> Trace | None:
        tracing, headers = self.site.plane.tracing, head.headers
        if tracing is None:
            return None
        parent, state = (headers.get(name, b"").decode("latin-1") for name in trace_context.HEADERS)
        return tracing.begin(parent, state, refusal)

    def _taken(self, head: Head, ticket: Ticket | None, error: Exception | None) -> None:
        """A thread has handed the query over, or could not."""
        if ticket is None:
            if self._gone:
                self._release()
            elif isinstance(error, Refusal):
                self._refuse(error, keep=True)
            elif error is not None:
                self._fault(error)
            return
        self._ticket = ticket
        if self._gone:
            ticket.cancel()
        if self._early is not None:
            (call, outcome), self._early = self._early, None
            self._done(head, call, outcome)

    def _done(self, head: Head, call: Call, outcome: Array | Refusal) -> None:
        if self._ticket is None:
            self._early = call, outcome
            return
        ticket, self._ticket = self._ticket, None
        if call.targets:
            outputs = None
            if not isinstance(outcome, Refusal) and not self._gone:
                outputs = self.site.plane.named(call, outcome)
            outcome = shared_memory.put(call, outputs) or outcome
        if not isinstance(outcome, Refusal) and not np.isfinite(outcome).all():
            outcome = wire.unsayable(call, self.site.plane.named(call, outcome)) or outcome
        if self._gone and isinstance(outcome, Refusal):
            outcome = Refusal(Reason.CANCELLED, "the client has gone")
        if self._gone:
            pass
        elif isinstance(outcome, Refusal):
            self._answer(routes.traced(routes.refused(outcome, call.id), call.trace))
        elif self._is_short(head, call, outcome):
            self._answer(self._scores(head, call, outcome))
        else:
            self._answer_long(head, call, outcome)
        self.site.plane.finished(call, ticket, outcome)

    def _is_short(self, head: Head, call: Call, scores: Array) -> bool:
        if scores.size <= _SHORT_ANSWER:
            return True
        binary = all(wire.is_binary(call, name) for name in call.hosted.asked_for(call))
        return binary and not head.text(b"accept-encoding")

    def _answer_long(self, head: Head, call: Call, scores: Array) -> None:
        loop = self.loop

        def make() -> None:  # in a thread
            loop.call_soon_threadsafe(self._answer, self._scores(head, call, scores))

        self.site.plane.threads.submit(make, call.client)

    def _scores(self, head: Head, call: Call, scores: Array) -> Answer:
        text, data = wire.answer(call, call.hosted.version, self.site.plane.named(call, scores))
        parts: Sequence[Buffer] = [text, *data]
        headers = [routes.JSON]
        if data:
            headers = [routes.OCTETS, (wire.HEAD_LENGTH, b"%d" % len(text))]
        parts, encoding = wire.compress(parts, head.text(b"accept-encoding"))
        if encoding:
            headers.append((b"content-encoding", encoding.encode()))
        return routes.traced(Answer(200, headers, parts), call.trace)

    def _fault(self, error: BaseException) -> None:
        """A fault of ours: said to the log, not to the client."""
        path = self._head.path[:200] if self._head is not None else ""
        self.site.plane.fault(error, path)
        self._refuse(Refusal(Reason.INTERNAL, "internal error"))

    def _refuse(self, refusal: Refusal, *, keep: bool = False) -> None:
        """Counted here: no query came of it. keep: the request was read to its end."""
        if self._ending:
            return
        head = self._head
        asked = routes.asked_model(head.path) if head is not None else None
        model = asked[0] if asked is not None else ""
        trace = None if asked is None or head is None else self._traced(head, refusal)
        self.site.plane.refused(
            refusal, query=asked is not None, model=model, trace=trace, arrived_s=self._arrived_s
        )
        self._answer(routes.traced(routes.refused(refusal), trace), close=not keep)

    def _answer(self, answer: Answer, *, close: bool = False) -> None:
        head = self._head
        self._forget_request()
        if self._gone:
            return
        site = self.site
        keep = not (close or site.draining or (self._no_more and not self._filled))
        keep = keep and head is not None and head.keep_alive
        lines = [_STATUS[answer.status]]
        for name, value in answer.headers:
            lines += [name, b": ", value, b"\r\n"]
        lines += [b"content-length: ", b"%d" % sum(map(len, answer.parts)), b"\r\n"]
        if not keep:
            lines.append(b"connection: close\r\n")
        elif head is not None and head.old:
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._write(lines, () if head is not None and head.method == "HEAD" else answer.parts)
        if not keep:
            self._end()
            return
        native = site.plane.native
        if native is not None and head is not None and routes.asked_model(head.path) is None:
            self.loop.call_soon(self._give_back, native)  # queries that came here would come again
        site.waiting[self] = None
        self._began_s = self._arrived_s = clock()
        self._go_on()

    def _give_back(self, native: NativeHttp) -> None:
        """To the native path, for what comes next may be a query."""
        transport = self.transport
        idle = not (self._gone or self._ending or self._no_more or self._filled or self._busy)
        if not (idle and native.taking and self._head is None) or transport.is_closing():
            return
        if transport.get_write_buffer_size() or transport.get_extra_info("sslcontext"):
            return
        transport.pause_reading()
        native.adopt(transport.get_extra_info("socket").fileno(), _client(transport))
        self._gone = True
        transport.abort()

    def _forget_request(self) -> None:
        self.site.receiving.pop(self, None)
        self._head, self._body, self._chunks, self._busy = None, None, None, False
        self._release()

    def _write(self, head: list[bytes], parts: Sequence[Buffer]) -> None:
        """Long parts are not copied: the same page may go to many."""
        size = sum(map(len, parts))
        if size <= _HEAD_BYTES:
            whole = b"".join([*head, *parts])
            self._written += len(whole)
            self.transport.write(whole)
        else:
            self._written += size + sum(map(len, head))
            self.transport.writelines([b"".join(head), *parts])

    def _go_on(self) -> None:
        """With the next request, if it has come; others have their turn first."""
        if self._filled and not self._goes_on:
            self._goes_on = True
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._goes_on = False
        self._read()

    def _end(self) -> None:
        """Says so, and throws away what the client still sends: closed at once, a connection with
        bytes unread is reset, and the answer with it."""
        self._ending = True
        self.site.waiting.pop(self, None)
        self._began_s = clock()
        if self.transport.can_write_eof() and not self._no_more:
            self.transport.write_eof()
            self._mind_reading()
        else:
            self.transport.close()

    # Time.

    def check_time(self, now_s: float) -> None:
        bounds, waits_s = self.bounds, now_s - self._began_s
        self._check_reads(now_s)
        if self._ending:
            if now_s - self._moved_s > _LINGER_S or waits_s > _ENDING_S:
                self._abort_unless_sending()
        elif self._busy:
            pass  # the query has a deadline of its own
        elif self._head is not None:
            if waits_s > bounds.body_s:
                self._refuse(over(Reason.SLOW, "the body did not come in time", "body-s"))
        elif self._filled and not self._choked:
            if waits_s > bounds.head_s:
                self._refuse(over(Reason.SLOW, "the head did not come in time", "head-s"))
        elif waits_s > bounds.idle_s and not self._choked:
            self.transport.close()

    def _check_reads(self, now_s: float) -> None:
        """What was written must be read in time."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._mark = None
        elif self._mark is None or self._written - unsent >= self._mark[0]:
            self._mark = self._written, now_s
        elif now_s - self._mark[1] > self.bounds.send_s:
            self._abort("send-s")

    def _abort_unless_sending(self) -> None:
        if not self.transport.get_write_buffer_size():
            self.transport.abort()

    def _abort(self, option: str) -> None:
        self.site.plane.bounded(option)
        self.transport.abort()

    def give_way(self) -> None:
        """Others need the room: the client had time."""
        if self._head is None:
            self.site.plane.bounded("max-connections")
            self.site.leave(self)
            self.transport.abort()
        else:
            message = "the body came too slowly while others waited for room"
            self._refuse(over(Reason.SLOW, message, "max-waiting-mb"))

    def abort_if_deaf(self) -> None:
        if self._choked and clock() - self._moved_s > _LINGER_S:
            self.transport.abort()

    def close_if_idle(self) -> None:
        if not (self._ending or self._busy or self._filled) and self._head is None:
            self.transport.close()

    def _ask_whether_gone(self, head: Head | None) -> None:
        """Has the client only shut its sending side, or closed the connection? Its kernel answers
        an interim response with a reset if it has."""
        if self._gone or not self._busy or head is not self._head or head is None:
            return
        if not head.old and not self._choked:
            self._write([b"HTTP/1.1 102 Processing\r\n\r\n"], ())
        self.loop.call_later(_GONE_S, self._end_if_gone, head)

    def _end_if_gone(self, head: Head) -> None:
        if self._gone or head is not self._head:
            return
        connection = self.transport.get_extra_info("socket")
        if _TCP_INFO is None or connection is None:
            return
        if connection.family == socket.AF_UNIX:  # the response failed at once if it has
            return
        if connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()


def _client(transport: asyncio.Transport) -> str:
    """Who asks, as far as shares between clients go: its address, or user."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else peer_of(transport.get_extra_info("socket"))


_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_STATUS[499] = b"HTTP/1.1 499 Client Closed Request\r\n"

__all__ = ["Connection"]
