"""Reports: a run's folder in, one self-contained HTML file out.

Reads the files of a run and knows nothing of how it was made. Called by the command line after
each run and by `deeprecsys report`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deeprecsys.core import Records, Requests, UserError

__all__ = ["glance", "read_run", "render", "write_report"]

VERBS = ("tune", "bench", "profile", "simulate", "plan", "load")


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` into a run's folder from its summary and records; its path.

    UserError, in one line, where the folder is not a run's or its files are damaged.
    """
    from deeprecsys.report.page import page

    summary, records, requests = read_run(Path(folder))
    target = Path(folder) / "report.html"
    try:
        html = page(summary, records, requests)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        where = Path(folder) / "summary.json"
        raise UserError(f"{where} is damaged or of another version: {error!r}") from error
    target.write_text(html, encoding="utf-8")
    return target


def render(
    summary: dict[str, Any], records: Records | None = None, requests: Requests | None = None
) -> str:
    """The report as HTML, of what would lie in a run's folder."""
    from deeprecsys.report.page import page

    return page(summary, records, requests)


def glance(
    summary: dict[str, Any], records: Records | None = None, requests: Requests | None = None
) -> str:
    """The verdict and the main figure alone, as an HTML page: what a notebook shows."""
    from deeprecsys.report.page import glance

    return glance(summary, records, requests)


def read_run(folder: Path) -> tuple[dict[str, Any], Records | None, Requests | None]:
    """The summary, and the tables where there are any."""
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no summary.json")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(summary, dict) or summary.get("verb") not in VERBS:
        raise UserError(f"{path} is not the summary of any of {', '.join(VERBS)}")
    records, requests = folder / "records.parquet", folder / "requests.parquet"
    return (
        summary,
        Records.load(records) if records.is_file() else None,
        Requests.load(requests) if requests.is_file() else None,
    )
