"""A run's folder: made and tried before anything is measured, filled afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprecsys.core import UserError

if TYPE_CHECKING:
    from deeprecsys.cli.options import Request
    from deeprecsys.experiments.result import Result


def prepared(request: Request, verb: str, name: str) -> Path:
    """The run's folder, once everything that will be written can be."""
    check_target("--json", request.json_file)
    return new_folder(request.out, verb, name)


def new_folder(out: str | None, verb: str, model: str) -> Path:
    """Creates it; UserError if it cannot be written, so that no measurement is lost for it."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(out) if out else _unused(Path("runs") / f"{stamp}-{verb}-{model}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {folder}: {reason}; choose another --out") from error
    return folder


def check_target(option: str, target: str | None) -> None:
    """UserError if the file could not be written later; "-" is standard output."""
    if not target or target == "-":
        return
    path = Path(target).resolve()
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else "no such folder"
        raise UserError(f"cannot write {target}: {what}; choose another {option}")


def write(found: Result, folder: Path, json_target: str | None) -> Path:
    """The run's files, and its summary for machines; the path of its report."""
    report = found.save(folder)
    write_json(found.to_json(), json_target)
    return report


def write_json(text: str, target: str | None) -> None:
    if target == "-":
        print(text)
    elif target:
        Path(target).write_text(text + "\n")


def read_summary(folder: str) -> dict[str, Any]:
    """UserError in one line where the folder is none of a run, or its summary is damaged."""
    from deeprecsys.report import read_run

    return read_run(Path(folder))[0]


def _unused(folder: Path) -> Path:
    """Two runs within a second must not share a folder."""
    candidate, n = folder, 2
    while candidate.exists():
        candidate, n = folder.with_name(f"{folder.name}-{n}"), n + 1
    return candidate
