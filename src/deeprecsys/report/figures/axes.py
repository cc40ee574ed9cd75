"""Axes, by what is told along them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Axis = dict[str, Any]


def axis(title: str, **more: Any) -> Axis:
    return {"title": {"text": title}, "automargin": True, **more}


def from_zero(title: str) -> Axis:
    return axis(title, rangemode="tozero")


def batch_axis() -> Axis:
    """Batch sizes, a tick a power of two."""
    return axis("batch size (items a request)", type="log", tickvals=[1 << k for k in range(21)])


def steps(powers: Iterable[int]) -> list[float]:
    """1, 2 and 5 of each power of ten: ticks of a logarithmic axis that spans little."""
    return [k * 10.0**p for p in powers for k in (1, 2, 5)]
