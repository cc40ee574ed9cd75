"""`report`: rebuild the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprecsys.cli.folder import read_summary

NAME = "report"
HELP = """Rebuild the report of a run from its folder.

Example: deeprecsys report runs/20260101-120000-tune-ncf
"""


def run(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A run's folder.")],
) -> int:
    from deeprecsys.report import write_report

    read_summary(folder)
    print(f"report: {write_report(Path(folder))}")
    return 0
