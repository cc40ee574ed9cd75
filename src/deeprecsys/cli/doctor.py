"""`doctor`: what this machine is, what limits it, what is misconfigured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.cli.folder import check_target

NAME = "doctor"
HELP = """Look at this machine: what would spoil a measurement, what it costs, how to mend it.

Takes about 6 s. Exit code 1 when something would spoil a measurement.

Example: deeprecsys doctor
"""


def run(json_file: opt.JsonFile = None) -> int:
    from deeprecsys.engine.doctor import examine

    check_target("--json", json_file)
    console = show.console(json_file)
    found = examine()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "finding", "costs", "to mend it"):
        table.add_column(name, overflow="fold")
    style = {"ok": None, "note": "yellow", "spoils": "bold red"}
    for finding in found:
        mark = "" if finding.level == "ok" else f" ({finding.level})"
        table.add_row(
            finding.name, finding.value + mark, finding.cost, finding.mend,
            style=style[finding.level],
        )  # fmt: skip
    console.print(table)
    spoiled = [finding.name for finding in found if finding.level == "spoils"]
    verdict = (
        f"would spoil a measurement: {', '.join(spoiled)}"
        if spoiled
        else "nothing here would spoil a measurement"
    )
    console.print(f"\n{verdict}", style="bold", markup=False)
    if json_file:
        text = json.dumps({"findings": [asdict(f) for f in found], "spoiled": spoiled}, indent=1)
        print(text) if json_file == "-" else Path(json_file).write_text(text + "\n")
    return 1 if spoiled else 0
