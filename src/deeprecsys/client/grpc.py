"""The gRPC half of the load client: futures on a few channels, answers left as they came.

Messages are put together here, so the library serialises nothing; what it costs beside that
(its own threads, about a tenth of a millisecond a call) is why HTTP is the protocol to load
small queries with.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from deeprecsys.client.access import Access, tls_trouble
from deeprecsys.client.server import Address, grpc_channel, grpc_reason, unreached
from deeprecsys.client.sheet import STATUS_OF, Rows, Tally
from deeprecsys.core import Status
from deeprecsys.engine.driver import drive
from deeprecsys.engine.process import SWITCH_INTERVAL_S
from deeprecsys.protocol.grpc_schema import SERVICE

clock = time.perf_counter

# Calls of one channel share one connection; large bodies on one would wait for each other.
_CHANNELS = 4
_NAP_S = 0.05
_READY_S = 2.0
# The library counts a deadline on another clock, from a little before.
_EARLY_S = 0.02

Message = Callable[[int, int], bytes]  # offset, size -> a serialised request


class GrpcLoad:
    """Sends rows when they are due; as many calls at once as there are queries without answer."""

    def __init__(
        self, address: Address, connections: int, patience_s: float, access: Access
    ) -> None:
        self._channels = [grpc_channel(address, access) for _ in range(min(connections, _CHANNELS))]
        # No serialisers: bytes go out and come in as they are.
        self._calls = [c.unary_unary(f"/{SERVICE}/ModelInfer") for c in self._channels]
        self._patience_s = patience_s
        self._metadata = access.metadata
        self._lock = threading.Lock()
        # The library's threads and the one that sends share the GIL.
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    def run(self, rows: Rows, message: Message) -> Tally:
        tally, under_way = Tally(), dict[int, Any]()

        def submit(row: int, now: float) -> None:
            rows.submit_s[row] = now
            request = message(rows.offset[row], rows.size[row])
            call = self._calls[row % len(self._calls)].future(
                request, timeout=self._patience_s, metadata=self._metadata
            )
            with self._lock:
                under_way[row] = call
                tally.bytes_sent += len(request)
            call.add_done_callback(partial(self._done, rows, tally, under_way, row))

        drive(np.array(rows.due_s), 0.0, submit, rows.stopped)
        while under_way and not rows.stopped():
            time.sleep(_NAP_S / 10)
        for row in list(under_way):
            if (call := under_way.get(row)) is not None:
                call.cancel()
        while under_way:  # their callbacks come at once
            time.sleep(_NAP_S / 10)
        return tally

    def _done(
        self, rows: Rows, tally: Tally, under_way: dict[int, Any], row: int, call: Any
    ) -> None:
        """On a thread of the library's."""
        now = clock()
        with self._lock:
            try:
                self._count(rows, tally, row, call, now)
            finally:
                del under_way[row]  # last: a run ends when nothing is under way

    def _count(self, rows: Rows, tally: Tally, row: int, call: Any, now: float) -> None:
        code = call.code().name
        if code == "OK":
            rows.finish_s[row] = now
        elif code == "CANCELLED" and rows.stopped():
            return  # by `run`; it stays as it is
        elif (reason := self._unanswered(call, code, now - rows.submit_s[row])) is not None:
            tally.not_answered(reason, reached=not _not_connected(call))
            rows.status[row] = Status.FAILED
            return
        else:
            tally.example(code, str(call.details()))
        tally.answered(code)
        rows.status[row] = STATUS_OF.get(code, Status.FAILED)

    def _unanswered(self, call: Any, code: str, waited_s: float) -> str | None:
        """Why the server said nothing; None if it did. The library's own deadline has the same
        code as the server's, but comes when it was set to."""
        if code == "DEADLINE_EXCEEDED" and waited_s >= self._patience_s - _EARLY_S:
            return f"no answer within {self._patience_s:g} s"
        return grpc_reason(call) if unreached(call) else None

    def connect(self) -> None:
        """Before the first query is due; where nobody listens, the calls will say so."""
        import grpc

        for channel in self._channels:
            ready = grpc.channel_ready_future(channel)
            try:
                ready.result(timeout=_READY_S)
            except grpc.FutureTimeoutError:
                ready.cancel()
                return


def _not_connected(call: Any) -> bool:
    details = str(call.details())
    return "failed to connect" in details.lower() or tls_trouble(details) is not None
