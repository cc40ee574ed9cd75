"""What this machine can do, measured: arithmetic, random rows, streaming.

With every worker busy and one thread each, as requests run. A verdict of what binds a model
compares the model's work (`core.Work`) with these.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from deeprecsys.core import Limits
from deeprecsys.engine.calibrate import Cores, on_cores
from deeprecsys.models.tables import new_tables

# (N, fan-in, fan-out): shapes of ranking models' layers; the best rate of them is the limit.
_PRODUCTS = ((256, 2560, 512), (512, 1024, 1024), (1024, 1024, 512))
_TABLE_ROWS = 4_000_000
_BAG = 80
_SECONDS = 0.25


def measure_limits(cores: Cores, width: int = 32) -> Limits:
    """Limits of all `cores` together; look-ups are of fp32 rows `width` wide. About 2 s."""
    table = new_tables([_TABLE_ROWS], width, 1.0, seed=0)

    def measure(worker: int) -> tuple[float, float, float]:
        torch.set_grad_enabled(False)
        return (
            max(_product_rate(*shape) for shape in _PRODUCTS),
            _lookup_rate(table, worker),
            _stream_rate(),
        )

    rates = on_cores(cores, lambda: torch.set_num_threads(1), measure)
    flops, lookups, stream = (sum(column) for column in zip(*rates, strict=True))
    return Limits(flops, lookups, 4 * width, stream)


def _product_rate(n: int, fan_in: int, fan_out: int) -> float:
    x, w, b = torch.rand(n, fan_in), torch.rand(fan_out, fan_in), torch.rand(fan_out)
    seconds = _best_s(lambda: torch.nn.functional.linear(x, w, b), _SECONDS / len(_PRODUCTS))
    return 2.0 * n * fan_in * fan_out / seconds


def _lookup_rate(table: Any, worker: int) -> float:
    """Sum-pooled int32 look-ups of uniformly random rows; new ids each time."""
    rng = torch.Generator().manual_seed(worker)
    ids = torch.randint(0, len(table), (40, 256, _BAG), dtype=torch.int32, generator=rng)
    turn = iter(range(1 << 30))
    bags = torch.nn.functional.embedding_bag
    median_s = _median_s(lambda: bags(ids[next(turn) % len(ids)], table, mode="sum"), _SECONDS)
    return 256 * _BAG / median_s


def _stream_rate() -> float:
    """Bytes read and written per second of a copy far larger than the caches."""
    source = torch.zeros(16 << 20)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _median_s(lambda: target.copy_(source), _SECONDS)


def _times(work: Callable[[], Any], seconds: float) -> list[float]:
    work()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        at = time.perf_counter()
        work()
        times.append(time.perf_counter() - at)
    return times


def _best_s(work: Callable[[], Any], seconds: float) -> float:
    return min(_times(work, seconds))


def _median_s(work: Callable[[], Any], seconds: float) -> float:
    return statistics.median(_times(work, seconds))
