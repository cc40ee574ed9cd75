"""What the processes of a load client share: one run's columns in memory, and what they count.

A row is a query. Process p of P sends rows p, p + P, ...; it alone writes them, so there are no
locks. Times are absolute, on `time.perf_counter`, which on Linux is one clock for all processes
(CLOCK_MONOTONIC). The parent reads while the others write: a row's status is written last.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deeprecsys.core import Schedule, Status

_COLUMNS: dict[str, Any] = {
    "arrival_s": np.float64, "submit_s": np.float64, "finish_s": np.float64,
    "size": np.int64, "offset": np.int64, "status": np.int8,
}  # fmt: skip
_HEADER_BYTES = 64  # the stop flag, alone in its cache line
_ROW_BYTES = sum(np.dtype(kind).itemsize for kind in _COLUMNS.values())
_MOST_EXAMPLE = 300


def new_file() -> int:
    """A file descriptor of memory that child processes may inherit."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("deeprecsys-load")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Sheet:
    """The columns of a run of `rows` queries, in the file `fd`."""

    def __init__(self, fd: int, rows: int) -> None:
        wanted = _HEADER_BYTES + rows * _ROW_BYTES
        if os.fstat(fd).st_size < wanted:
            os.ftruncate(fd, wanted)
        memory = mmap.mmap(fd, wanted)
        self.stop = np.frombuffer(memory, np.int64, 1)
        at = _HEADER_BYTES
        self._columns = {}
        for name, kind in _COLUMNS.items():  # the widest first: all are aligned
            self._columns[name] = np.frombuffer(memory, kind, rows, at)
            at += rows * np.dtype(kind).itemsize

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def fill(self, schedule: Schedule, offset: Any) -> None:
        """A run that has not begun: arrivals count from its beginning until `begin`."""
        self.stop[0] = 0
        self["arrival_s"][:] = schedule.arrival_s
        self["size"][:] = schedule.size
        self["offset"][:] = offset
        self["submit_s"][:] = self["finish_s"][:] = np.nan
        self["status"][:] = Status.PENDING


class Rows:
    """A process's own rows: what it reads as lists, what it writes as views of the sheet."""

    def __init__(self, sheet: Sheet, number: int, processes: int, began_s: float) -> None:
        mine = slice(number, None, processes)
        self.due_s: list[float] = (sheet["arrival_s"][mine] + began_s).tolist()
        self.size: list[int] = sheet["size"][mine].tolist()
        self.offset: list[int] = sheet["offset"][mine].tolist()
        # A store through a memoryview costs a third of one through an array.
        self.submit_s, self.finish_s, self.status = (
            _view(sheet[name][mine]) for name in ("submit_s", "finish_s", "status")
        )
        self._stop = _view(sheet.stop)

    def __len__(self) -> int:
        return len(self.due_s)

    def stopped(self) -> bool:
        return bool(self._stop[0])


def _view(array: Any) -> Any:
    return memoryview(array)


REFUSED = os.strerror(errno.ECONNREFUSED).lower()


@dataclass(slots=True)
class Tally:
    """What became of a run's queries, beside the records.

    by_status: answers by the protocol's own status, "200" or "OK". unanswered: queries that got
    none (refused, broken, timed out); unreached: those of them for which there was no connection;
    refused: those of them that no server took. examples: one text of each that was not ok.
    """

    by_status: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0
    unreached: int = 0
    refused: int = 0
    resent: int = 0
    bytes_sent: int = 0
    cpu_s: float = 0.0
    examples: dict[str, str] = field(default_factory=dict)

    def answered(self, status: str) -> None:
        self.by_status[status] = self.by_status.get(status, 0) + 1

    def not_answered(self, reason: str, queries: int = 1, *, reached: bool = True) -> None:
        self.unanswered += queries
        self.unreached += 0 if reached else queries
        if reason == REFUSED:
            self.refused += queries
        self.example("unanswered", reason)

    def example(self, status: str, text: str) -> None:
        self.examples.setdefault(status, text[:_MOST_EXAMPLE])

    def add(self, other: Tally) -> None:
        for status, n in other.by_status.items():
            self.by_status[status] = self.by_status.get(status, 0) + n
        for name in ("unanswered", "unreached", "refused", "resent", "bytes_sent", "cpu_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = {**other.examples, **self.examples}


# What an answer's status makes of a query; whatever is not here is FAILED.
STATUS_OF: Mapping[str, Status] = {
    "200": Status.OK, "429": Status.REJECTED, "504": Status.EXPIRED, "499": Status.CANCELLED,
    "OK": Status.OK, "RESOURCE_EXHAUSTED": Status.REJECTED,
    "DEADLINE_EXCEEDED": Status.EXPIRED, "CANCELLED": Status.CANCELLED,
}  # fmt: skip
