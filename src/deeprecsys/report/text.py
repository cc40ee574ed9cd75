"""Numbers as a person reads them: shared by terminal and HTML. Milliseconds only here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from deeprecsys.core import Execution, Policy

Number = float | None


def rate(value: Number) -> str:
    """Queries per second: three digits, whole from 100 on; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def about(queries: int, rate_qps: Number) -> str:
    """A length of run that is a guess: two digits, and its seconds where the rate is known."""
    seconds = f" ({_two_digits(queries / rate_qps):,} s)" if rate_qps else ""
    return f"{_two_digits(queries):,} queries{seconds}"


def _two_digits(value: float) -> int:
    return max(1, round(float(f"{value:.2g}")))


def ms(seconds: Number) -> str:
    """Milliseconds: three digits, whole from 100 on; a dash where there is none."""
    return rate(None if seconds is None else seconds * 1e3)


def factor(value: Number) -> str:
    """A ratio: two digits after the point; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def interval(bounds: Sequence[Number] | None, show: Callable[[Number], str]) -> str:
    lo, hi = bounds or (None, None)
    return f"[{show(lo)}, {show(hi)}]"


def ratio(comparison: dict[str, Any]) -> str:
    """`1.24× [1.20, 1.29]`, and whether that is significant."""
    if comparison.get("ratio") is None:
        return "not measured"
    lo, hi = comparison["interval"]
    doubt = "" if comparison.get("significant") else ", not significant"
    return f"{comparison['ratio']:.2f}× [{lo:.2f}, {hi:.2f}]{doubt}"


def policy(chosen: dict[str, Any] | None) -> str:
    """As `core.Policy` says it, from its JSON; None where a server has its own."""
    return "the server's own policy" if chosen is None else str(Policy.from_dict(chosen))


def execution(summary: dict[str, Any]) -> str | None:
    """How requests were computed: of the policy that was chosen or run, else as the model was
    loaded. None where there was no model, or it is a server's; exact in files from before there was
    a choice."""
    if not summary.get("model") or summary.get("verb") == "load":
        return None
    chosen = summary.get("policy") or (summary.get("best") or {}).get("policy") or {}
    if "execution" in chosen:
        return str(Execution.from_dict(chosen["execution"]))
    return str(summary.get("execution") or "exact")


def target(sla: dict[str, Any] | None) -> str:
    if not sla:
        return "no target"
    return f"p{sla['percentile']:g} ≤ {sla['latency_s'] * 1e3:g} ms"


def meets(value: bool | None) -> str:
    return {True: "meets", False: "misses", None: "undecided"}[value]
