"""W3C Trace Context: which trace a request belongs to, as its headers say. Pure.

The Recommendation of 2021-11-23 (https://www.w3.org/TR/trace-context-1/), sections 3.2 and 3.3.
What is not well formed counts as not sent: no query fails for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADERS = (b"traceparent", b"tracestate")
# Version, trace, the sender's span, flags; what else a later version says is not looked at.
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_VERSION = "ff"
_SAMPLED = 1  # of the flags
_REST = r"[a-z0-9_*/-]"
_MEMBER = re.compile(
    rf"((?:[a-z]{_REST}{{0,255}}|[a-z0-9]{_REST}{{0,240}}@[a-z]{_REST}{{0,13}}))"
    r"=([ -+\--<>-~]{0,255}[!-+\--<>-~])"
)
_MOST_MEMBERS = 32

State = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Parent:
    """The sender's span. sampled: it is recorded there. state: `tracestate`, key and value."""

    trace_id: int
    span_id: int
    sampled: bool
    state: State = ()


def parent(traceparent: str, tracestate: str = "") -> Parent | None:
    """None: there is none that is well formed, and then `tracestate` says nothing either. Several
    headers of one name come joined by commas."""
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == _NO_VERSION or (version == "00" and more is not None):
        return None
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state(tracestate))


def state(tracestate: str) -> State:
    """Its members in order; none, where one of them is wrong, there twice or one too many."""
    texts = [text.strip(" \t") for text in tracestate.split(",")]
    found = [_MEMBER.fullmatch(text) for text in texts if text]
    members = tuple((one[1], one[2]) for one in found if one is not None)
    whole = len(members) == len(found) == len(dict(members)) and len(texts) <= _MOST_MEMBERS
    return members if whole else ()


def traceparent(trace_id: int, span_id: int) -> str:
    """Of a span of ours that is recorded."""
    return f"00-{trace_id:032x}-{span_id:016x}-{_SAMPLED:02x}"


__all__ = ["HEADERS", "Parent", "State", "parent", "state", "traceparent"]
