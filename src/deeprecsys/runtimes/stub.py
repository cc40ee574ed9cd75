"""Runtimes without a model: to measure and test the engine itself.

`NoOp` costs nothing, so what remains is the engine's own time; `FixedTime` waits by a
service-time law, so queueing theory says what the engine must do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deeprecsys import _native
from deeprecsys.core import Inputs
from deeprecsys.runtimes import Scores


class NoOp:
    """Prepares like a real runtime if given one's `prepare`; executes nothing."""

    name = "no-op"

    def __init__(self, prepare: Callable[[Inputs, Scores], Any] | None = None) -> None:
        self._prepare = prepare

    def enter_thread(self) -> None:
        pass

    def prepare(self, inputs: Inputs, scores: Scores) -> Any:
        return self._prepare(inputs, scores) if self._prepare else None

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        pass

    def forget(self, prepared: Any) -> None:
        pass

    def execute_together(self, pieces: Sequence[tuple[Any, int, int]]) -> None:
        self.execute(None, 0, sum(hi - lo for _, lo, hi in pieces))

    def executor(self, columns: Sequence[str], most_items: int) -> _native.Executor | None:
        return _native.no_op() if type(self) is NoOp and self._prepare is None else None


class FixedTime(NoOp):
    """Sleeps `service_s(items)` seconds: a worker that is busy without using a core."""

    name = "fixed-time"

    def __init__(self, service_s: Callable[[Any], Any]) -> None:
        super().__init__()
        self._service_s = service_s

    def execute(self, prepared: Any, lo: int, hi: int) -> None:
        time.sleep(float(self._service_s(np.array([float(hi - lo)]))[0]))

    def executor(self, columns: Sequence[str], most_items: int) -> _native.Executor | None:
        if type(self) is not FixedTime:
            return None
        seconds = self._service_s(np.arange(1.0, most_items + 1))
        return _native.fixed_time([0.0, *np.broadcast_to(seconds, most_items).tolist()])
