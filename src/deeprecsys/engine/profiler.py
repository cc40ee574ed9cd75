"""Fills a `Profile`: every point is visited in several rounds, so that a drifting machine does
not favour one of them, and each visit keeps all its busy workers at it for the same time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeprecsys.core import DEFAULT_INDICES, FloatArray
from deeprecsys.engine import topology
from deeprecsys.engine.calibrate import Cores, on_cores
from deeprecsys.engine.pool import draw_pool
from deeprecsys.machines.service_time import Point, Profile
from deeprecsys.runtimes import Runtime

ROUNDS = 4
_WARM_REPEATS = 2
_LEAST_REPEATS = 2  # a visit's, however slow the requests
_MOST_SAMPLES = 200  # a visit's
_SHORTEST_VISIT_S = 0.02


@dataclass(frozen=True, slots=True)
class Grid:
    batch_sizes: Sequence[int]
    busy: Sequence[int]

    @property
    def points(self) -> list[Point]:
        return [(batch, busy) for busy in self.busy for batch in self.batch_sizes]

    def next(self, profile: Profile) -> Point | None:
        """The point visited least; None once all have had their rounds."""

        def visits(point: Point) -> int:
            return profile.points[point].rounds if point in profile.points else 0

        point = min(self.points, key=visits)
        return point if visits(point) < ROUNDS else None

    def share_done(self, profile: Profile) -> float:
        done = sum(
            min(profile.points[p].rounds, ROUNDS) for p in self.points if p in profile.points
        )
        return done / (ROUNDS * len(self.points))


def measure(
    profile: Profile,
    model: Any,
    runtime: Runtime,
    cores: Cores,
    grid: Grid,
    *,
    budget_s: float,
    indices: str = DEFAULT_INDICES,
    stop: Callable[[], bool] = lambda: False,
    on_visit: Callable[[Profile, Point], None] = lambda *_: None,
) -> Profile:
    """Goes on where `profile` ends, until the grid is done, `budget_s` is over, or `stop`.

    The budget begins once the inputs are drawn, and every point is visited once whatever it is.
    on_visit is told of every visit, with the profile so far: to show it and to keep it.
    """
    pool = draw_pool(model, indices, max(grid.batch_sizes), topology.last_level_cache_bytes())
    prepared = pool.prepared(runtime, model.outputs)
    began = time.monotonic()
    remaining = max(1.0, (1 - grid.share_done(profile)) * ROUNDS * len(grid.points))
    visit_s = max(_SHORTEST_VISIT_S, 0.9 * budget_s / remaining)
    while (point := grid.next(profile)) is not None:
        over = point in profile.points and time.monotonic() - began > budget_s
        if over or stop():
            break
        seconds = _visit(runtime, prepared, pool.span, cores[: point[1]], point[0], visit_s)
        profile = profile.with_visit(point, seconds)
        on_visit(profile, point)
    return profile


def _visit(
    runtime: Runtime,
    prepared: Sequence[Any],
    span: int,
    cores: Cores,
    batch: int,
    seconds: float,
) -> FloatArray:
    """Seconds of the requests that all `cores` execute side by side for `seconds`.

    Each reads the next `batch` candidates, of `span`, of the next query in `prepared`, and begins
    with its own part of them. What was begun in time counts to its end: leaving it out would leave
    out slow requests more often than others.
    """

    def work(worker: int) -> list[float]:
        times: list[float] = []
        until, turn = math.inf, 0
        while True:
            lo = (worker * span // len(cores) + turn * batch) % (span - batch + 1)
            query = prepared[(worker * len(prepared) // len(cores) + turn) % len(prepared)]
            runtime.forget(query)
            began = time.perf_counter()
            if turn == _WARM_REPEATS:
                until = began + seconds
            elif began >= until and len(times) >= _LEAST_REPEATS:
                return times
            runtime.execute(query, lo, lo + batch)
            turn += 1
            if turn > _WARM_REPEATS:
                times.append(time.perf_counter() - began)

    by_worker = on_cores(cores, runtime.enter_thread, work)
    return np.concatenate([_thinned(np.array(times)) for times in by_worker])


def _thinned(times: FloatArray) -> FloatArray:
    """Evenly over the visit: files stay small, and a slow moment keeps its weight."""
    if len(times) <= _MOST_SAMPLES:
        return times
    rows = np.linspace(0, len(times) - 1, _MOST_SAMPLES).round().astype(int)
    return np.asarray(times[rows])


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4 .. to the first that is not below `largest`."""
    return [1 << k for k in range(max(1, largest - 1).bit_length() + 1)]


def busy_levels(workers: int) -> list[int]:
    """1, 2, 4 .. and all of them."""
    return sorted({1 << k for k in range(int(math.log2(workers)) + 1)} | {workers})
