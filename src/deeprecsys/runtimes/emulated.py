"""An accelerator that is not here: it takes as long as one would, and computes nothing.

Its scores are NaN, so that nobody takes them for an answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeprecsys.core import Inputs
from deeprecsys.machines.accelerators import Accelerator
from deeprecsys.machines.service_time import drawn_s
from deeprecsys.runtimes import Scores


class Emulated:
    """One request at a time, as published speed-ups and profiles were measured."""

    emulated = True
    depth = 1
    most_items = None

    def __init__(self, accelerator: Accelerator, largest: int = 1024, seed: int = 0) -> None:
        """UserError where its figures do not cover requests of `largest` items."""
        self.name = accelerator.name
        self.service_s = self._service = accelerator.service
        self.detail: dict[str, Any] = accelerator.to_dict()
        self._tables = accelerator.service.tables(largest, 1)
        self._rng = np.random.default_rng(seed)

    def enter_thread(self) -> None:
        pass

    def begin(self, pieces: Sequence[tuple[Inputs, Scores]]) -> float:
        """When the request will be done."""
        began = time.perf_counter()
        for _, scores in pieces:
            scores.fill(np.nan)
        items = sum(len(scores) for _, scores in pieces)
        if items >= self._tables.mean_s.shape[1]:
            self._tables = self._service.tables(items, 1)
        return began + drawn_s(self._tables, items, self._rng.random())

    def end(self, ticket: float) -> None:
        time.sleep(max(0.0, ticket - time.perf_counter()))

    def close(self) -> None:
        pass
