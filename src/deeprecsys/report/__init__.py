"""Reports: a run's folder in, one self-contained HTML file out.

Reads the files of a run and knows nothing of how it was made. Called by the command line after
each run and by `deeprecsys report`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deeprecsys.core import Records, UserError

__all__ = ["read_run", "write_report"]


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` into a run's folder from its summary and records; its path.

    UserError, in one line, where the folder is not a run's or its files are damaged.
    """
    from deeprecsys.report.page import page

    summary, records = read_run(Path(folder))
    target = Path(folder) / "report.html"
    target.write_text(page(summary, records), encoding="utf-8")
    return target


def read_run(folder: Path) -> tuple[dict[str, Any], Records | None]:
    """The summary, and the records where there are any."""
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no summary.json")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(summary, dict) or summary.get("verb") not in ("tune", "bench"):
        raise UserError(f"{path} is not the summary of a tune or a bench")
    columns = folder / "records.parquet"
    return summary, Records.load(columns) if columns.is_file() else None
