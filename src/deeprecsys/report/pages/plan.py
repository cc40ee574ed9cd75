"""How many machines of which kind."""

from __future__ import annotations

from typing import Any

from deeprecsys.report import text
from deeprecsys.report.figures import fleet
from deeprecsys.report.html import Part, Section, table
from deeprecsys.report.parts.head import Fact, head
from deeprecsys.report.parts.origin import origin

_HEADS = ("kind", "balancer", "policy", "queries/s a machine", "alone", "machines", "busy", "cost",
          "kW", "bound by")  # fmt: skip


def body(summary: dict[str, Any], *_: Any) -> list[Part]:
    # Said once, in the head.
    summary = summary | {"simulated": {"assumptions": summary["assumptions"]}, "assumptions": []}
    return [
        head(summary, summary["verdict"], _facts(summary)),
        Section("Machines needed", "Of each kind alone, behind each balancer.",
                fleet.machines_needed(summary)),
        table("Every kind behind every balancer", _HEADS, [_row(a) for a in summary["answers"]]),
        origin(summary),
    ]  # fmt: skip


def _facts(summary: dict[str, Any]) -> list[Fact]:
    return [
        ("traffic", f"{text.rate(summary['planned_qps'])} queries/s", "with growth"),
        ("target", text.target(summary["sla"])),
        *[(f"{a['kind']}, {a['balancer']}", f"{a['machines']:,} machines",
           text.policy(a["policy"])) for a in summary["chosen"]],
        ("machines to spare", str(summary["spare"])),
    ]  # fmt: skip


def _row(answer: dict[str, Any]) -> list[str]:
    cost, watts = answer["cost"], answer["watts"]
    return [
        answer["kind"],
        answer["balancer"],
        text.policy(answer["policy"]) if answer["policy"] else "–",
        text.rate(answer["fleet_qps"]),
        text.rate(answer["single_qps"] or None),
        f"{answer['machines']:,}" if answer["machines"] else "–",
        f"{answer['busy']:.0%}" if answer["busy"] else "–",
        f"{cost:,.0f}" if cost is not None else "–",
        f"{watts / 1e3:,.1f}" if watts is not None else "–",
        answer["binds"],
    ]
