"""Every policy that was tried; each opens to the runs that judged it."""

from __future__ import annotations

from html import escape
from typing import Any

from deeprecsys.report import text
from deeprecsys.report.html import grid

_HEADS = ("queries/s", "p50 ms", "p95 ms", "95 % interval", "target", "queries", "s", "lag p99 ms",
          "seed")  # fmt: skip


def trials(summary: dict[str, Any]) -> str:
    best = summary.get("best") or {"policy": {}}  # which is no trial's
    rows = "".join(_trial(t, t["policy"] == best["policy"]) for t in summary["trials"])
    return (
        "<section><h2>Trials</h2><p>Every policy that was tried; open a row for its runs.</p>"
        f"<div class=trials>{rows}</div></section>"
    )


def _trial(trial: dict[str, Any], best: bool) -> str:
    runs = [_run(run) for run in trial["runs"]]
    return (
        f"<details{' class=best' if best else ''}><summary>"
        f"<b>{escape(text.policy(trial['policy']))}</b>"
        f"<span>{_capacity(trial['capacity'])}</span>"
        f"<span>{_count(len(runs))}{' · best' if best else ''}</span>"
        f"</summary>{grid(_HEADS, runs)}</details>"
    )


def _capacity(capacity: dict[str, Any]) -> str:
    bounds = text.interval(capacity["interval_qps"], text.rate)
    kind = capacity.get("kind", "interval")
    doubt = "" if kind == "interval" else f" · {kind}"
    doubt += "" if capacity.get("decided", True) else " · undecided"
    if not capacity["rate_qps"]:
        return f"no rate {bounds}{doubt}"
    return f"{text.rate(capacity['rate_qps'])} queries/s {bounds}{doubt}"


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _run(run: dict[str, Any]) -> tuple[str, ...]:
    early = " early" if run.get("stopped_early") else ""
    others = run.get("disturbance") or 0
    note = f" ({others:.0%} of the cores used by others)" if others >= 0.05 else ""
    return (
        text.rate(run["rate_qps"]),
        text.ms(run.get("p50_s")),
        text.ms(run.get("p95_s")),
        text.interval(run.get("p95_interval_s"), text.ms),
        text.meets(run.get("meets_sla")) + note,
        f"{run['queries']:,}",
        f"{run['duration_s']:.1f}{early}",
        text.ms(run.get("generator_lag_p99_s")),
        str(run.get("seed", "")),
    )
