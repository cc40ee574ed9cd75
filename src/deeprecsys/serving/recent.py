"""The last queries that were answered, kept whole: to warm a new version up with, to hold it
against the one that serves, and to write down where that is asked for.

One of many, evenly spread over time, within a bound of bytes. Knows no model; in the event loop's
thread, but for `of`, which any may ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deeprecsys.core import Inputs
from deeprecsys.protocol import wire

if TYPE_CHECKING:
    from deeprecsys.protocol.call import Call

# One every so often is kept, whether it is written down or not: what that costs is a copy.
EVERY_S = 0.25
_QUERIES, _BYTES = 64, 64 << 20  # of one model


@dataclass(frozen=True, slots=True)
class Kept:
    """A query of a model. arrived_s: on the server's clock."""

    model: str
    arrived_s: float
    inputs: Inputs

    @property
    def bytes(self) -> int:
        return sum(column.nbytes for column in self.inputs.values())


class Recent:
    """heard: told of each that is kept."""

    def __init__(self) -> None:
        self._of: dict[str, deque[Kept]] = {}
        self._kept_s = -np.inf
        self.every_s = EVERY_S
        self.heard: Callable[[Kept], None] | None = None

    def of(self, model: str) -> list[Kept]:
        """The oldest first."""
        return list(self._of.get(model, ()))

    def forget(self, model: str) -> None:
        self._of.pop(model, None)

    def add(self, call: Call) -> None:
        """One that was answered; kept if its turn has come."""
        if call.arrived_s - self._kept_s >= self.every_s:
            self._kept_s = call.arrived_s
            inputs = {name: np.array(column) for name, column in call.inputs.items()}
            self._keep(Kept(call.hosted.name, call.arrived_s, inputs))

    def add_native(self, model: str, arrived_s: float, json_bytes: int, body: bytes) -> None:
        """One that the core has kept."""
        call = wire.parse(model, "", memoryview(body), json_bytes)
        self._keep(Kept(model, arrived_s, call.inputs))

    def _keep(self, kept: Kept) -> None:
        queue = self._of.setdefault(kept.model, deque(maxlen=_QUERIES))
        queue.append(kept)
        while len(queue) > 1 and sum(one.bytes for one in queue) > _BYTES:
            queue.popleft()
        if self.heard is not None:
            self.heard(kept)


__all__ = ["EVERY_S", "Kept", "Recent"]
