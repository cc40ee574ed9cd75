"""What a person sees while and after a verb works: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deeprecsys.analysis.metrics import percentile
from deeprecsys.core import EXACT, SLA, Policy, Records
from deeprecsys.report.text import interval, ms, rate
from deeprecsys.report.text import policy as policy_text

if TYPE_CHECKING:
    from deeprecsys.cli.options import Request
    from deeprecsys.engine import Engine


def console(json_target: str | None) -> Console:
    """Standard output; standard error where standard output is for the JSON alone."""
    width = None if sys.stdout.isatty() else 140  # a pipe has no width: do not fold tables
    return Console(stderr=json_target == "-", highlight=False, width=width)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, so that what was measured is kept; the second kills."""
    asked = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def loaded(progress: Progress, request: Request) -> Iterator[Engine]:
    """An engine that is open, once the model that was asked for is loaded."""
    loading(progress, request)
    with request.engine(request.load()) as engine:
        if engine.model.whole:
            progress.line("its queries are never cut: that would change their scores")
        elif engine.model.most_items is not None:
            progress.line(f"it takes at most {engine.model.most_items} candidates at once")
        with ExitStack() as stack:
            told = [stack.enter_context(one) for one in _beside(request, engine)]
            yield engine
        for other in told:
            progress.line(str(other))


def _beside(request: Request, engine: Engine) -> Iterator[AbstractContextManager[Any]]:
    """Other models, asked meanwhile."""
    from deeprecsys.experiments.beside import beside

    for other, rate_qps in request.others:
        yield beside(engine, other.load(), rate_qps, request.workload, other.target)


def loading(progress: Progress, request: Request) -> None:
    of = request.which
    how = f", {of.execution}" if of.execution != EXACT else ""
    megabytes = of.memory_bytes / 1e6
    size = f"{megabytes / 1e3:.2f} GB" if megabytes >= 100 else f"{megabytes:.2g} MB"
    progress.line(f"loading {request.model} ({size}{how})")


class Progress:
    """One live line: phase, policy, rate, the percentile so far against the target, time left."""

    def __init__(self, out: Console, sla: SLA | None, seconds: float | None) -> None:
        self._out, self._sla, self._seconds = out, sla, seconds
        self._began = self._drawn = time.monotonic()
        self._phase = ""
        self._live = Live(Text(""), console=out, refresh_per_second=8, transient=True)

    def __enter__(self) -> Progress:
        if self._out.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._out.is_terminal:
            self._live.__exit__(*exc)

    def phase(self, name: str) -> None:
        self._phase = name

    def line(self, text: str) -> None:
        """A line that stays."""
        self._out.print(text, markup=False)

    def step(self, policy: Policy | None, rate_qps: float, so_far: Records, now_s: float) -> None:
        """Called all the time from a run; draws a few times a second, on a terminal only."""
        if self._due():
            self._draw(str(policy or ""), f"{rate_qps:,.4g} queries/s", self._so_far(so_far))

    def at(self, where: str) -> None:
        """The same for work that is no run."""
        if self._due():
            self._draw(where)

    def _due(self) -> bool:
        return self._out.is_terminal and time.monotonic() - self._drawn >= 0.2

    def _draw(self, *parts: str) -> None:
        self._drawn = time.monotonic()
        words = [self._phase, *parts, self._left(self._drawn)]
        self._live.update(Text("  ".join(word for word in words if word), style="cyan"))

    def _so_far(self, so_far: Records) -> str:
        latency = so_far.latency_s
        done = latency[~np.isnan(latency)]
        if not len(done):
            return ""
        p = self._sla.percentile if self._sla else 95.0
        bound = f" of {self._sla.latency_s * 1e3:g}" if self._sla else ""
        return f"p{p:g} {percentile(done, p) * 1e3:.1f}{bound} ms"

    def _left(self, now: float) -> str:
        passed = now - self._began
        if self._seconds is None:
            return f"{passed:.0f} s"
        return f"{passed:.0f} s, at most {max(0.0, self._seconds - passed):.0f} s left"


def trials_table(summary: dict[str, Any]) -> Table:
    """The trials of a tuning, by batch size; the best is marked."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("batch size", "queries/s", "interval", "runs", ""):
        table.add_column(name, justify="left" if not name else "right")
    best = (summary["best"] or {}).get("policy")
    notes = {policy_text(c["policy"]): c["name"] for c in summary["comparisons"]}
    for trial in summary["trials"]:
        capacity, policy = trial["capacity"], trial["policy"]
        name = policy_text(policy)
        note = [notes[name]] if name in notes else []
        note += ["best"] if policy == best else []
        note += [capacity["kind"]] if capacity.get("kind", "interval") != "interval" else []
        note += [] if capacity["decided"] else ["undecided"]
        table.add_row(
            name.removeprefix("batch size "),
            rate(capacity["rate_qps"]),
            interval(capacity["interval_qps"], rate),
            str(len(trial["runs"])),
            ", ".join(note),
            style="bold green" if policy == best else None,
        )
    return table


__all__ = [
    "Progress",
    "console",
    "interruptible",
    "interval",
    "loaded",
    "loading",
    "ms",
    "rate",
    "trials_table",
]
