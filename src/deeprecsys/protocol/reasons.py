"""Why a request gets no scores: one word for each reason, whatever the protocol calls it."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Reason(Enum):
    """HTTP status and gRPC code of each; the adapters read no others."""

    INVALID = 400, "INVALID_ARGUMENT"
    UNAUTHENTICATED = 401, "UNAUTHENTICATED"
    FORBIDDEN = 403, "PERMISSION_DENIED"
    NOT_FOUND = 404, "NOT_FOUND"
    METHOD = 405, "UNIMPLEMENTED"
    SLOW = 408, "DEADLINE_EXCEEDED"
    TOO_LARGE = 413, "RESOURCE_EXHAUSTED"
    OVERLOADED = 429, "RESOURCE_EXHAUSTED"
    HEAD_TOO_LARGE = 431, "RESOURCE_EXHAUSTED"
    CANCELLED = 499, "CANCELLED"
    INTERNAL = 500, "INTERNAL"
    UNSUPPORTED = 501, "UNIMPLEMENTED"
    UNAVAILABLE = 503, "UNAVAILABLE"
    DEADLINE = 504, "DEADLINE_EXCEEDED"

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def code(self) -> str:
        return self.value[1]


class Refusal(Exception):
    """One line for the client: what is wrong, and how to mend it; nothing of the host.

    bound: which of a server's bounds refused it, by the name of its option. hosted: the server's
    word for who refused it, if a model's version did.
    """

    hosted: Any = None

    def __init__(self, reason: Reason, message: str, bound: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.bound = bound


def invalid(message: str) -> Refusal:
    return Refusal(Reason.INVALID, message)
