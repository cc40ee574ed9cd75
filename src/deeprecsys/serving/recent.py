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
from deeprecsys.protocol.tensors import Array

if TYPE_CHECKING:
    from deeprecsys.protocol.call import Call
    from deeprecsys.serving.hosted import Hosted

# One every so often is kept, whether it is written down or not: what that costs is a copy.
EVERY_S = 0.25
_QUERIES, _BYTES = 64, 64 << 20  # of one model


@dataclass(frozen=True, slots=True)
class Kept:
    """A query of a model's version, and its answer. arrived_s: on the server's clock."""

    model: str
    version: str
    arrived_s: float
    inputs: Inputs
    scores: Array

    @property
    def bytes(self) -> int:
        return self.scores.nbytes + sum(column.nbytes for column in self.inputs.values())


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

    def add(self, call: Call, scores: Array) -> None:
        """One that was answered; kept if its turn has come."""
        if call.arrived_s - self._kept_s >= self.every_s:
            self._kept_s = call.arrived_s
            inputs = {name: np.array(column) for name, column in call.inputs.items()}
            self._keep(call.hosted, call.arrived_s, inputs, np.array(scores))

    def add_native(
        self, hosted: Hosted, arrived_s: float, json_bytes: int, body: bytes, scores: bytes
    ) -> None:
        """One that the core has kept."""
        call = wire.parse(hosted.name, hosted.version, memoryview(body), json_bytes)
        rows = np.frombuffer(scores, np.float32).reshape(-1, hosted.answer.columns)
        self._keep(hosted, arrived_s, call.inputs, rows)

    def _keep(self, hosted: Hosted, arrived_s: float, inputs: Inputs, scores: Array) -> None:
        kept = Kept(hosted.name, hosted.version, arrived_s, inputs, scores)
        queue = self._of.setdefault(hosted.name, deque(maxlen=_QUERIES))
        queue.append(kept)
        while len(queue) > 1 and sum(one.bytes for one in queue) > _BYTES:
            queue.popleft()
        if self.heard is not None:
            self.heard(kept)


__all__ = ["EVERY_S", "Kept", "Recent"]
