"""Axes, by what is told along them."""

from __future__ import annotations

from typing import Any

Axis = dict[str, Any]


def axis(title: str, **more: Any) -> Axis:
    return {"title": {"text": title}, "automargin": True, **more}


def from_zero(title: str) -> Axis:
    return axis(title, rangemode="tozero")


def batch_axis() -> Axis:
    """Batch sizes, a tick a power of two."""
    return axis("batch size (items a request)", type="log", tickvals=[1 << k for k in range(21)])
