"""Which queries are traced, and the spans of one: reading, queue, each request, answer.

Spans are values; a `Collector` (`otlp`) sends them. The adapters ask for a trace of each query, the
data plane says how it ended. Times are on the data plane's clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from deeprecsys.protocol import trace_context
from deeprecsys.protocol.call import Call
from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.tensors import Array
from deeprecsys.protocol.trace_context import Parent

if TYPE_CHECKING:
    from deeprecsys.engine import Ticket
    from deeprecsys.serving.hosted import Hosted

NAME = "deeprecsys.infer"
SHARE = 0.01
# What somebody without a key sends makes no span, whatever its parent.
_UNTRACED = (Reason.UNAUTHENTICATED, Reason.FORBIDDEN)
_MOST_TEXT = 200  # characters of what a client may have sent
Attributes = Mapping[str, str | int]
Stage = tuple[str, float, float, Attributes]


@dataclass(frozen=True, slots=True)
class Trace:
    """Of one query: whose trace it is part of, and the span that stands for it. parent: the
    client's; None: the trace begins here."""

    trace_id: int
    span_id: int
    parent: Parent | None = None

    @property
    def traceparent(self) -> str:
        return trace_context.traceparent(self.trace_id, self.span_id)


@dataclass(frozen=True, slots=True)
class Span:
    span_id: int
    name: str
    since_s: float
    until_s: float
    attributes: Attributes


class Collector(Protocol):
    def send(self, trace: Trace, spans: Sequence[Span]) -> None:
        """The query's own span, and those within it. Must not take long."""
        ...

    def close(self) -> bool:
        """Sends what is left."""
        ...


class Tracing:
    """share: of the queries that bring no parent. A sampled parent is always followed, one that is
    not never."""

    def __init__(
        self, collector: Collector, share: float = SHARE, random: Random | None = None
    ) -> None:
        self._collector, self._share, self._random = collector, share, random or Random()
        self.close = collector.close

    def begin(
        self, traceparent: str, tracestate: str, refusal: Refusal | None = None
    ) -> Trace | None:
        """For a query that brought these, from any thread; None: it is not traced. refusal: why it
        was not taken."""
        if refusal is not None and refusal.reason in _UNTRACED:
            return None
        parent = trace_context.parent(traceparent, tracestate) if traceparent else None
        if parent is not None:
            return Trace(parent.trace_id, self._id(64), parent) if parent.sampled else None
        if self._random.random() >= self._share:
            return None
        return Trace(self._id(128), self._id(64))

    def finished(self, call: Call, ticket: Ticket, outcome: Array | Refusal, now_s: float) -> None:
        """A traced query was taken, and ended so."""
        trace: Trace = call.trace
        about = {
            **_about(outcome if isinstance(outcome, Refusal) else None, call.hosted),
            "deeprecsys.items": len(ticket.query.scores),
            "deeprecsys.batch_size": ticket.query.policy.batch_size,
        }
        if call.id:
            about["deeprecsys.id"] = _text(call.id)
        own = Span(trace.span_id, NAME, call.arrived_s, now_s, about)
        within = [Span(self._id(64), *stage) for stage in stages(call, ticket, now_s)]
        self._collector.send(trace, [own, *within])

    def refused(
        self, trace: Trace, refusal: Refusal, hosted: Hosted | None, arrived_s: float, now_s: float
    ) -> None:
        """A query was not taken. hosted: by whom, if a model was found."""
        own = Span(trace.span_id, NAME, arrived_s, now_s, _about(refusal, hosted))
        self._collector.send(trace, [own])

    def _id(self, bits: int) -> int:
        return self._random.getrandbits(bits) or 1  # 0 is no id


def stages(call: Call, ticket: Ticket, now_s: float) -> Iterator[Stage]:
    """Name, begin, end and attributes of each; one after the other, but for requests that several
    workers execute at a time."""
    start_s, finish_s = ticket.start_s, ticket.finish_s
    begun, computed = not math.isnan(start_s), not math.isnan(finish_s)
    yield "receive", call.arrived_s, call.parsed_s, {}
    yield "queue", call.parsed_s, start_s if begun else now_s, {}
    for _, lo, hi, worker, since_s, until_s in sorted(ticket.requests, key=lambda row: row[1]):
        about = {"deeprecsys.items": hi - lo, "deeprecsys.worker": worker}
        yield "compute", since_s, until_s, about
    if begun and not ticket.requests:  # it failed in its first one, or has no candidates
        yield "compute", start_s, finish_s if computed else now_s, {}
    if computed:
        yield "answer", finish_s, now_s, {}


def _about(refusal: Refusal | None, hosted: Hosted | None) -> dict[str, Any]:
    status = 200 if refusal is None else refusal.reason.status
    said: dict[str, Any] = {"deeprecsys.status": status}
    if refusal is not None:
        said["deeprecsys.why"] = _text(refusal.message)
    if hosted is not None:
        said |= {"deeprecsys.model": hosted.name, "deeprecsys.version": hosted.version}
    return said


def _text(text: str) -> str:
    """Half of a surrogate pair cannot be sent, and would keep a whole batch from it."""
    return text[:_MOST_TEXT].encode(errors="replace").decode()


__all__ = ["NAME", "SHARE", "Collector", "Span", "Trace", "Tracing", "stages"]
