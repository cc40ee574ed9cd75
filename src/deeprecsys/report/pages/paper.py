"""A result of the paper, beside ours."""

from __future__ import annotations

from typing import Any

from deeprecsys.report import text
from deeprecsys.report.html import Part, table
from deeprecsys.report.parts.head import Fact, head
from deeprecsys.report.parts.origin import origin


def body(summary: dict[str, Any], *_: Any) -> list[Part]:
    rows = [[row["what"], row["paper"], row["ours"]] for row in summary["rows"]]
    what, paper, ours = rows[0]
    facts: list[Fact] = [
        ("workers", str(summary["workers"])),
        ("target", text.target(summary["sla"])),
    ]
    return [
        head(summary, f"{what}: {ours}; the paper: {paper}", facts),
        table("Beside the paper", ("what", "the paper", "simulated"), rows),
        origin(summary),
    ]
