"""Parts of `run.py` on profiles, operator shares, recording and reports.

Each yields (what, measured, wanted, met).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import deeprecsys as drs
from deeprecsys.core import Policy, Records, Schedule, Watch
from deeprecsys.engine.operators import measure_operators
from deeprecsys.models import NAMES, load_model
from deeprecsys.tuning import find_capacity
from deeprecsys.tuning.capacity import Probe
from deeprecsys.tuning.interleave import Contestant, interleave

Found = tuple[str, str, str, bool | None]


def profiles() -> Iterator[Found]:
    """Two profiles one after the other with the default grid; seconds of each, whole command."""
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = [], []
        for turn in "ab":
            began = time.perf_counter()
            out = f"{folder}/{turn}"
            _verb("profile", "dlrm-rmc1", "--out", out)
            seconds.append(time.perf_counter() - began)
            found.append(drs.Profile.load(f"{out}/profile.json"))
    one, other = found
    differ = [
        abs(one.points[point].median_s / other.points[point].median_s - 1) for point in one.points
    ]
    yield (
        "profile dlrm-rmc1, default grid, from the command to the report",
        f"{max(seconds):.0f} s", "90 s or less", max(seconds) <= 90,
    )  # fmt: skip
    yield (
        "two profiles of dlrm-rmc1: median relative difference over batch sizes",
        f"{np.median(differ):.1%} (largest {max(differ):.1%})", "5 %",
        bool(np.median(differ) <= 0.05),
    )  # fmt: skip


def shares() -> Iterator[Found]:
    """The operator classes' sum over the clock's time, at batch 64."""
    for name in NAMES:
        found = measure_operators(load_model(name, scale=0.1), 64)
        told = ", ".join(f"{kind} {s:.1%}" for kind, s in found.shares.items() if s > 0.001)
        yield (f"operator classes, sum / total, {name}", f"{found.covered:.3f} ({told})",
               "0.98", found.covered >= 0.98)  # fmt: skip


def tracing() -> Iterator[Found]:
    """Capacity with every request recorded over capacity without, in turns; small requests."""

    class Traced:
        def __init__(self, engine: drs.Engine) -> None:
            self.engine = engine
            self.facts, self.disturbance = engine.facts, engine.disturbance

        def run(self, schedule: Schedule, policy: Policy, *, watch: Watch | None = None) -> Records:
            # Two policies that do the same; one stands for recording.
            if policy.offload_threshold:
                return self.engine.traced_run(schedule, Policy(policy.batch_size), watch=watch)[0]
            return self.engine.run(schedule, policy, watch=watch)

    model, plain = load_model("ncf"), Policy(64)
    workload = drs.Workload()
    with drs.Engine(model) as engine:
        rate = find_capacity(engine, workload, model.target, plain, budget_s=40).rate_qps
        probe, traced = Probe(Traced(engine), workload, model.target), Policy(64, 10**9)
        both = [Contestant.at(p, rate, probe) for p in (traced, plain)]
        (ratio,) = interleave(probe, both, lambda r: 5.0)
    if ratio is None:
        yield "capacity recorded / not, ncf at batch size 64", "undecided", "0.97", None
        return
    lo, hi = ratio.interval
    yield ("capacity recorded / not, ncf at batch size 64",
           f"{ratio.ratio:.3f} [{lo:.3f}, {hi:.3f}]", "0.97", ratio.ratio >= 0.97)  # fmt: skip


def reports() -> Iterator[Found]:
    """Size of the report of a tuning with 20 trials; time to its pictures in a browser."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _verb("tune", "ncf", "--method", "exhaustive", "--budget-s", "60", "--out", name)
        page = folder / "report.html"
        trials = len(json.loads((folder / "summary.json").read_text())["trials"])
        size = page.stat().st_size
        yield (f"report of a tuning with {trials} trials: size", f"{size / 1e6:.1f} MB", "6 MB",
               size <= 6e6)  # fmt: skip
        chromium = shutil.which("chromium")
        if chromium is None:
            yield "... until its pictures are drawn", "no chromium here", "1.5 s", None
            return
        timed = "<script>document.title = 'drawn ' + performance.now()</script></body>"
        page.write_text(page.read_text().replace("</body>", timed))
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu",
                   f"--user-data-dir={name}/profile", "--dump-dom", page.as_uri()]  # fmt: skip
        found = []
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            found.append(float(re.findall(r"<title>drawn ([\d.]+)", done.stdout)[0]) / 1e3)
        seconds = float(np.median(found))
        yield ("... until all its pictures are drawn (median of 5, headless chromium)",
               f"{seconds:.2f} s", "1.5 s", seconds <= 1.5)  # fmt: skip


def _verb(*arguments: str) -> None:
    command = [sys.executable, "-m", "deeprecsys", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)
