"""A folder of versions of one model: `1`, `2` and so on, each with a manifest of what is in it.

A version counts only if its manifest does, and says of every file how long it is and its SHA-256,
so that one which is still being written, or was damaged, is never picked up. `publish` writes one
beside the others and renames it when it is whole. A file `current` may name the one to serve; the
newest, unless there is one. Knows no server.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeprecsys.core import UserError

MANIFEST, POINTER = "manifest.json", "current"
_PIECE = 1 << 20


def is_folder_of_versions(path: Path) -> bool:
    """Has it any, whole or not?"""
    return path.is_dir() and any(_numbers(path))


def versions(path: Path) -> list[str]:
    """Those that are whole, by their manifests and the lengths of their files; the last one is
    what to serve: that which `current` names, if it is there, else the newest."""
    whole = [str(number) for number in sorted(_numbers(path)) if _is_whole(path / str(number))]
    pointed = _pointed(path)
    if pointed in whole:
        whole.remove(pointed)
        whole.append(pointed)
    return whole


def check(folder: Path) -> None:
    """UserError where a version is not what its manifest says, byte by byte."""
    said = _manifest(folder)
    for name, about in said.items():
        if _sha256(folder / name) != about["sha256"]:
            raise UserError(f"{folder / name} is not what {MANIFEST} says: publish it again")


def publish(source: Path, path: Path) -> str:
    """Copies a model's file or folder as the next version; its number."""
    if not source.exists():
        raise UserError(f"{source} does not exist")
    path.mkdir(parents=True, exist_ok=True)
    number = str(max(_numbers(path), default=0) + 1)
    partial = path / f".{number}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, partial)
    else:
        partial.mkdir()
        shutil.copy2(source, partial)
    (partial / MANIFEST).unlink(missing_ok=True)
    files = sorted(file for file in partial.rglob("*") if file.is_file())
    said = {
        str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in files
    }
    (partial / MANIFEST).write_text(json.dumps({"files": said}, indent=1))
    for file in [*files, partial / MANIFEST]:
        _to_disk(file)
    os.rename(partial, path / number)
    _to_disk(path)
    return number


def point(path: Path, version: str) -> None:
    """From now on this one is to be served; whoever looks sees the old word or the new one."""
    if version not in versions(path):
        raise UserError(f"{path} has no whole version {version}")
    partial = path / f".{POINTER}.partial"
    partial.write_text(f"{version}\n")
    _to_disk(partial)
    os.replace(partial, path / POINTER)


def _numbers(path: Path) -> Iterator[int]:
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.is_dir() and entry.name.isdecimal() and str(int(entry.name)) == entry.name:
            yield int(entry.name)


def _pointed(path: Path) -> str:
    try:
        return (path / POINTER).read_text().strip()
    except (OSError, ValueError):
        return ""


def _is_whole(folder: Path) -> bool:
    try:
        return bool(_manifest(folder))
    except UserError:
        return False


def _manifest(folder: Path) -> dict[str, Any]:
    """What it says of each file; UserError where one is missing, or of another length."""
    try:
        said: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["files"]
        for name, about in said.items():
            file = folder / name
            inside = folder.resolve() in file.resolve().parents
            if not inside or file.stat().st_size != about["bytes"]:
                raise UserError(f"{file} is not what {MANIFEST} says: publish it again")
            str.__len__(about["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} has no {MANIFEST} that can be used: {error}") from error
    return said


def _sha256(file: Path) -> str:
    """A piece at a time: it may be gigabytes, which should not all come at once."""
    seen = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            seen.update(piece)
    return seen.hexdigest()


def _to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


__all__ = ["MANIFEST", "POINTER", "check", "is_folder_of_versions", "point", "publish", "versions"]
