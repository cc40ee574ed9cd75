"""Where the arithmetic of a model goes: shares of operator classes, and a roofline."""

from __future__ import annotations

from typing import Any

from deeprecsys.report.figures.axes import axis
from deeprecsys.report.figures.colours import CYCLE, GREY
from deeprecsys.report.figures.traces import Figure, bars, figure, rounded, scatter

_SYMBOLS = ("circle", "diamond", "square")
_INTENSITIES = [2.0 ** (k / 4) for k in range(-12, 41)]  # FLOP a byte; fine: roofs have edges


def shares(summary: dict[str, Any]) -> Figure | None:
    """Stacked shares of the operator classes by batch size, and the paper's bar."""
    entries = summary.get("operators") or []
    if not entries:
        return None
    stacks = {f"batch {e['batch_size']}": e["shares"] for e in entries}
    paper = summary.get("paper_shares")
    if paper:
        stacks["the paper, batch 64"] = {**paper, "rest": 1 - sum(paper.values())}
    data = [
        bars(name, list(stacks), [round(100 * s.get(name, 0.0), 2) for s in stacks.values()],
             colour, hovertemplate=f"{name}: %{{y:.1f}} %")
        for colour, name in zip((*CYCLE[:4], GREY), entries[0]["shares"], strict=True)
        if any(s.get(name) for s in stacks.values())
    ]  # fmt: skip
    return figure(data, axis(""), axis("share of the time (%)"), barmode="stack")


def roofline(summary: dict[str, Any]) -> Figure | None:
    """Points (intensity, achieved rate) under the measured roofs; None without them."""
    found = summary.get("roofline")
    if not found:
        return None
    data = [_roof(name, roof, found["stream_bytes_per_s"]) for name, roof in found["roofs"].items()]
    data.append(_random_rows(found["random_bytes_per_s"], found["roofs"]))
    data += [_model(i, name, points) for i, (name, points) in enumerate(found["models"].items())]
    shown = figure(
        data,
        axis("arithmetic intensity (FLOP a byte)", type="log", dtick=1),
        axis("GFLOP/s", type="log", dtick=1),
    )
    if len(found["models"]) > 3:  # beside the picture: above it, so many names would cover it
        shown["layout"]["legend"] = {"orientation": "v", "x": 1.02, "y": 1}
    return shown


def _roof(name: str, roof: dict[str, Any], bytes_per_s: float) -> Figure:
    limits = [min(roof["flops_per_s"], at * bytes_per_s) / 1e9 for at in _INTENSITIES]
    return _grey(name, _INTENSITIES, limits, roof.get("dash", "solid"))


def _random_rows(bytes_per_s: float, roofs: dict[str, Any]) -> Figure:
    """Up to the highest roof."""
    top = max(roof["flops_per_s"] for roof in roofs.values())
    x = [at for at in _INTENSITIES if at * bytes_per_s <= top]
    return _grey("random rows", x, [at * bytes_per_s / 1e9 for at in x], "dot")


def _grey(name: str, x: list[float], y: list[float], dash: str) -> Figure:
    line = {"color": GREY, "dash": dash, "width": 1.5}
    return scatter("lines", name, x, rounded(y), line=line)


def _model(number: int, name: str, points: list[dict[str, Any]]) -> Figure:
    """A colour each; where those are used up, another symbol."""
    lap, place = divmod(number, len(CYCLE))
    return scatter(
        "lines+markers", name, rounded(p["flops_per_byte"] for p in points),
        rounded(p["flops_per_s"] / 1e9 for p in points),
        text=[f"batch {p['batch_size']}" for p in points],
        line={"color": CYCLE[place], "width": 1},
        marker={"size": 7, "symbol": _SYMBOLS[lap % len(_SYMBOLS)]},
        hovertemplate="%{text}: %{y:.3g} GFLOP/s at %{x:.3g} FLOP a byte",
    )  # fmt: skip
