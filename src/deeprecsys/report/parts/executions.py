"""Every execution that was tried: what it is worth, what it does to the scores, why it is not
chosen."""

from __future__ import annotations

from typing import Any

from deeprecsys.report import text
from deeprecsys.report.figures import executions
from deeprecsys.report.html import Part, Section, table

Row = dict[str, Any]


def tuned(summary: dict[str, Any]) -> list[Part]:
    """Of a tuning; nothing where none was tried."""
    rows = summary.get("executions")
    if not rows:
        return []
    return [
        Section("Capacity against drift", "How many times exact fp32's capacity an execution "
                "holds, by how far it moves scores; hollow: not searched, of the time of requests, "
                "each at its best batch size. Drift is no loss of quality: that needs labels.",
                executions.against_drift(summary)),
        table("Executions", _HEADS, [_tuned(row) for row in rows if row.get("ratio")]),
        *_refused("Not to be chosen", rows),
    ]  # fmt: skip


def profiled(summary: dict[str, Any]) -> list[Part]:
    """Of a profile."""
    rows = summary.get("executions")
    if not rows:
        return []
    able = [row for row in rows if not row["why"]]
    heads = ["execution", *_SPEED, *(f"ms at {size}" for size in able[0]["seconds"])]
    return [
        table("Executions", heads, [_profiled(row) for row in able]),
        *_refused("What cannot be made here", rows),
    ]


def _refused(heading: str, rows: list[Row]) -> list[Part]:
    found = [(row["execution"], row["why"]) for row in rows if row["why"]]
    return [table(heading, ("execution", "why"), found)] if found else []


_SPEED = ("over exact", "95 % interval", "batch size")
_HEADS = ("execution", *_SPEED, "queries/s", "top 10 shared", "rank correlation", "p99.9 |Δ|")


def _tuned(row: Row) -> tuple[str, ...]:
    capacity, drift = row.get("capacity"), row.get("drift")
    queries = text.rate(capacity["rate_qps"]) if capacity else ""
    return (row["execution"], *_speed(row), queries, *_drift(drift))


def _drift(drift: Row | None) -> tuple[str, ...]:
    if not drift:
        return "", "", ""
    top10 = "–" if drift["top10"] is None else f"{drift['top10']:.2%}"
    return top10, f"{drift['rank_correlation']:.5f}", f"{drift['p999']:.2g}"


def _profiled(row: Row) -> tuple[str, ...]:
    return (row["execution"], *_speed(row), *map(text.ms, row["seconds"].values()))


def _speed(row: Row) -> tuple[str, str, str]:
    """Over exact, each at its best batch size."""
    if row.get("ratio") is None:
        return "", "", ""
    best = min(row["seconds"], key=lambda size: row["seconds"][size] / int(size))
    bounds = text.interval(row["interval"], text.factor)
    return text.factor(row["ratio"]), bounds, best
