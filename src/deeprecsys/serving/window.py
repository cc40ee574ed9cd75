"""Latencies of the last minute, by second and class of size, however many there are.

Counts in bins that are 1 % wide, so a second costs the same at 5 and at 50,000 queries. Told what
happened; knows no clock. From one thread.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_S, _MOST_S, _STEP = 1e-5, 1e3, 0.01
_BINS = math.ceil(math.log(_MOST_S / _LEAST_S) / _STEP)
_LOG_LEAST = math.log(_LEAST_S)
PERCENTILES = (50, 95, 99)

Percentiles = tuple[float | None, float | None, float | None]


class Window:
    """The last `seconds` that `tick` ended, and what came since."""

    def __init__(self, classes: int, seconds: int) -> None:
        self._classes = classes
        self._now = array("H")
        self._seconds: deque[NDArray[Any]] = deque(maxlen=seconds)

    def add(self, seconds: float, number: int) -> None:
        """A latency of a query of this class."""
        place = int((math.log(seconds) - _LOG_LEAST) / _STEP) if seconds > _LEAST_S else 0
        self._now.append(number * _BINS + min(place, _BINS - 1))

    def tick(self) -> None:
        """A second is over."""
        self._seconds.append(self._counted())
        self._now = array("H")

    def last(self, seconds: int) -> NDArray[Any]:
        """Counts [classes, bins] of so many seconds, the current one beside them."""
        recent = [self._seconds[k] for k in range(-min(seconds, len(self._seconds)), 0)]
        return np.sum([*recent, self._counted()], axis=0)  # type: ignore[no-any-return]

    def _counted(self) -> NDArray[Any]:
        counts = np.bincount(self._now, minlength=self._classes * _BINS)
        return counts.astype(np.int32).reshape(self._classes, _BINS)


def percentiles(counts: NDArray[Any]) -> Percentiles:
    """p50, p95, p99 of counts [bins]: of the bin with that order statistic, its middle."""
    running = np.cumsum(counts)
    n = int(running[-1])
    if not n:
        return None, None, None
    ranks = [-(-p * n // 100) for p in PERCENTILES]
    p50, p95, p99 = (
        _LEAST_S * math.exp((k + 0.5) * _STEP) for k in np.searchsorted(running, ranks)
    )
    return p50, p95, p99


__all__ = ["Percentiles", "Window", "percentiles"]
