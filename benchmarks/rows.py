"""Rows of a table with their verdict, under a line that says where they were measured."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeprecsys.analysis.usage import usage
from deeprecsys.core import Policy, Schedule
from deeprecsys.engine import Engine, topology

Part = Any  # a named function that yields rows
HEADER = "| what | measured | wanted | |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    what: str
    measured: str
    wanted: str
    met: bool | None

    def __str__(self) -> str:
        word = {True: "met", False: "falls short", None: ""}[self.met]
        return f"| {self.what} | {self.measured} | {self.wanted} | {word} |\n"


def provenance(command: str, device: str = "", versions: str = "") -> str:
    """Date, machine, versions, seed and the command that repeats it."""
    machine = topology.machine()
    known = ", ".join(f"{name} {version}" for name, version in topology.versions().items())
    return (
        f"\n## {time.strftime('%Y-%m-%d')}, {device}{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['simd']}, {machine['last_level_cache_bytes'] >> 20} MiB last-level cache, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB\n\n{known}{versions}; seed 0; `{command}`\n\n"
    )


def writer(results: Path) -> Callable[[str], None]:
    """Shows and keeps a text at once: an interrupted benchmark loses nothing."""

    def write(text: str) -> None:
        print(text, end="", flush=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(text)

    return write


def asked(parts: Sequence[Part], doc: str | None) -> argparse.ArgumentParser:
    """A command line that chooses among parts: `--only NAME …`."""
    parser = argparse.ArgumentParser(description=doc)
    names = [part.__name__ for part in parts]
    parser.add_argument("--only", nargs="*", choices=sorted(names), default=names)
    return parser


def measure(
    parts: Mapping[str, Callable[[], Iterable[Row]]],
    only: Sequence[str],
    results: Path,
    script: str,
) -> None:
    """Runs the parts that are wanted; every row is kept as it comes."""
    write = writer(results)
    write(provenance(f"python benchmarks/{Path(script).name} --only {' '.join(only)}") + HEADER)
    for name in only:
        for row in parts[name]():
            write(str(row))


def usage_of(engine: Engine, schedule: Schedule, policy: Policy) -> dict[str, Any]:
    """How busy an engine and its accelerators are over one run."""
    records, requests = engine.traced_run(schedule, policy)
    devices = engine.facts().detail["accelerators"]
    return usage(records, requests, engine.workers, devices, measured=engine.joules())
