"""What is written down of the traffic: whole queries, evenly spread over time, and a schedule.

Queries go to files that `load --queries-file` and models' `samples.jsonl` are, the schedule to one
that `--arrivals replay:FILE` takes. Both within a bound: a file of queries that has reached it
loses every second one, and from then on half as many come; a schedule ends. Written by a thread of
its own, so that nobody waits for a disk; what it cannot follow is left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import UserError
from deeprecsys.serving.lowly import be_lowly
from deeprecsys.serving.recent import Kept

_WAITING = 16  # queries that wait to be written
_LATE_S = 10.0  # a query takes no longer: then its row's place is known
_FLUSH_S = 1.0
_ROWS = 4_000_000  # of a schedule
# Of one core, what writing may take, and seconds that it may be ahead: long queries cost a tenth of
# a second each as JSON.
_SHARE, _AHEAD_S = 0.005, 0.2
_encode = msgspec.json.Encoder().encode


class Recorder:
    """path, schedule: of the files; None: none. most_bytes: of one file of queries. several: is
    there more than one model? Then each has a file, with its name in it."""

    def __init__(
        self,
        path: str | None,
        schedule: str | None,
        most_bytes: int,
        *,
        several: bool,
        log: Callable[..., None],
    ) -> None:
        self._path = None if path is None else Path(path)
        self._most_bytes, self._several, self._log = most_bytes, several, log
        self._schedule = None if schedule is None else _Schedule(_opened(schedule))
        if self._path is not None:
            _opened(path or "").close()
        self._of: dict[str, _Queries] = {}
        self._kept: SimpleQueue[Kept] = SimpleQueue()
        self._over, self._began_s = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def heard(self, kept: Kept) -> None:
        """A query that is kept whole."""
        if self._path is not None and self._kept.qsize() < _WAITING:
            self._kept.put(kept)

    def answered(self, model: str, arrived_s: NDArray[Any], items: NDArray[Any]) -> None:
        """When queries of a model came, and of how many candidates they were."""
        if self._schedule is not None:
            self._schedule.add(model, arrived_s, items)

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        be_lowly()
        try:
            while not self._over.wait(_FLUSH_S):
                self._write()
            self._write()
            if self._schedule is not None:
                self._schedule.flush(np.inf)
                self._schedule.close()
            for queries in self._of.values():
                queries.close()
        except OSError as error:
            self._log("recording ended", why=str(error))

    def _write(self) -> None:
        while not self._kept.empty():
            kept = self._kept.get()
            if time.thread_time() < _AHEAD_S + _SHARE * (time.monotonic() - self._began_s):
                self._queries(kept.model).add(kept)
        if self._schedule is not None:
            self._schedule.flush(-_LATE_S)

    def _queries(self, model: str) -> _Queries:
        if model not in self._of:
            assert self._path is not None
            path = self._path
            if self._several:
                safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in model)
                path = path.with_name(f"{path.stem}-{safe}{path.suffix}")
            self._of[model] = _Queries(path, self._most_bytes)
        return self._of[model]


class _Queries:
    """A file of them, in the order in which they came; `every` so manieth of those kept."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._file = _opened(str(path))
        self._every = 1
        self._seen = self._bytes = 0

    def add(self, kept: Kept) -> None:
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        line = _encode({name: column.tolist() for name, column in kept.inputs.items()}) + b"\n"
        self._file.write(line)
        self._file.flush()
        self._bytes += len(line)
        if self._bytes > self._most_bytes:
            self._thin()

    def close(self) -> None:
        self._file.close()

    def _thin(self) -> None:
        """Every second one stays; what is there meanwhile is the whole file, or the new one."""
        self._file.close()
        partial = self._path.with_name(f".{self._path.name}.partial")
        with self._path.open("rb") as before, _opened(str(partial)) as after:
            for line in islice(before, 0, None, 2):
                after.write(line)
            self._bytes = after.tell()
        os.replace(partial, self._path)
        self._file = self._path.open("ab")
        self._every *= 2


class _Schedule:
    """Rows of a CSV, sorted, in seconds since the first."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._file.write(b"arrival_s,size,model\n")
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, int, str]] = []
        self._began_s: float | None = None
        self._last_s, self._rows = 0.0, 0

    def add(self, model: str, arrived_s: NDArray[Any], items: NDArray[Any]) -> None:
        rows = zip(arrived_s.tolist(), items.tolist(), strict=True)
        with self._lock:
            self._waiting += [(at_s, n, model) for at_s, n in rows if n > 0]

    def close(self) -> None:
        self._file.close()

    def flush(self, since_s: float) -> None:
        """Those that came so long before the latest; all of them at the end."""
        with self._lock:
            self._waiting.sort()
            until_s = self._waiting[-1][0] + since_s if self._waiting else 0.0
            ready = [row for row in self._waiting if row[0] <= until_s]
            self._waiting = self._waiting[len(ready) :]
        if ready and self._began_s is None:
            self._began_s = ready[0][0]
        for at_s, items, model in ready[: _ROWS - self._rows]:
            assert self._began_s is not None
            self._last_s = max(self._last_s, at_s - self._began_s)
            self._file.write(f"{self._last_s:.6f},{items},{model}\n".encode())
        self._rows += len(ready)
        self._file.flush()


def _opened(path: str) -> Any:
    """For its owner alone: it holds what clients sent. UserError where it cannot be written."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise UserError(f"cannot write the recording {path}: {error.strerror}") from error
    return os.fdopen(file, "wb")


__all__ = ["Recorder"]
