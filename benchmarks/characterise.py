"""Writes `docs/characterisation.md`: how the eight models differ, and what moves their optimum.

    python benchmarks/characterise.py            # the eight models, about 15 minutes
    python benchmarks/characterise.py --hardware # narrower vectors, a noisy neighbour: about 20
    python benchmarks/characterise.py --redraw   # the roofline again, of the page's own table

Everything comes from the commands a user has, run with `--json`; nothing is measured here. Each
of the two writes its own part of the page and leaves the other's; both write after every model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeprecsys.engine import topology
from deeprecsys.engine.operators import CLASSES, PAPER_BATCH_SIZE, PAPER_SHARES
from deeprecsys.models import NAMES
from deeprecsys.report.figures.operators import roofline as roofline_figure
from draw import draw

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "characterisation.md"
FIGURE = ROOT / "docs" / "roofline.png"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
CASES: dict[str, dict[str, str]] = {"as it is": {}, "AVX2": AVX2, "SSE": SSE}
HARDWARE_HEADING = "## How do CPU differences move the optimum?"
# One that waits for memory, two that compute, one that does both.
HARDWARE_MODELS = ("dlrm-rmc1", "dlrm-rmc3", "ncf", "din")
HARDWARE_SIZES, PROFILE_S = (16, 64, 256, 1024), 20
# Reads and writes 64 MiB for ever: more than the last-level cache holds.
NEIGHBOUR = (
    "import os, sys, numpy as np; os.sched_setaffinity(0, {int(sys.argv[1])})\n"
    "a = np.ones(8 << 20)\n"
    "while True: a += 1.0"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", action="store_true", help="change the hardware instead")
    parser.add_argument("--models", nargs="*", choices=NAMES)
    parser.add_argument("--budget-s", type=float, default=40.0, help="of each profile")
    parser.add_argument("--redraw", action="store_true", help="only the picture, of its table")
    wanted = parser.parse_args()
    if wanted.redraw:
        draw(roofline_figure({"roofline": kept_roofline(PAGE.read_text())}), FIGURE)
        return
    if wanted.hardware:
        rows: list[list[str]] = []
        for name in wanted.models or HARDWARE_MODELS:
            rows += optima(name)
            _keep(hardware(rows), last=True)
    else:
        profiles: dict[str, Any] = {}
        for name in wanted.models or NAMES:
            profiles[name] = profile(name, wanted.budget_s, "--operators")
            parts = [head(), operators(profiles), work(profiles), batches(profiles)]
            _keep("".join([*parts, roofline(profiles)]), last=False)
    print(f"wrote {PAGE}")


def _keep(part: str, *, last: bool) -> None:
    """Writes one of the page's two parts and leaves the other as it is."""
    before = PAGE.read_text() if PAGE.exists() else ""
    first, heading, rest = before.partition(f"\n{HARDWARE_HEADING}\n")
    PAGE.write_text(first + part if last else part + heading + rest)


def profile(name: str, budget_s: float, *more: str, **environment: str) -> dict[str, Any]:
    return verb("profile", name, "--budget-s", f"{budget_s:g}", *more, **environment)


def verb(*arguments: str, **environment: str) -> dict[str, Any]:
    """Runs a command of the product in a folder of its own; its JSON. Exit code 1 is an answer."""
    print(" ".join(["deeprecsys", *arguments]), environment or "", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "deeprecsys", *arguments, "--json", "-"]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, text=True
        )
    if done.returncode not in (0, 1):
        raise SystemExit(f"deeprecsys {' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def head() -> str:
    machine = topology.machine()
    versions = ", ".join(f"{k} {v}" for k, v in topology.versions().items())
    cache_mib, memory_gib = machine["last_level_cache_bytes"] >> 20, machine["memory_bytes"] / 2**30
    return f"""# Characterisation

Written by `python benchmarks/characterise.py` on {time.strftime("%Y-%m-%d")}, on {machine["cpu"]},
{machine["cores"]} cores, {machine["simd"]}, {cache_mib} MiB last-level cache, {memory_gib:.0f} GiB;
{versions}.
Full-size models, seed 0, fp32, all workers busy unless it says otherwise.
"""


def operators(profiles: dict[str, Any]) -> str:
    rows = []
    for name, found in profiles.items():
        at = next(e for e in found["operators"] if e["batch_size"] == PAPER_BATCH_SIZE)
        cells = []
        for kind in CLASSES:
            paper = PAPER_SHARES[name].get(kind)
            beside = "" if paper is None else f" ({paper:.1%})"
            cells.append(f"{at['shares'][kind]:.1%}{beside}")
        rows.append([name, *cells, f"{at['covered']:.3f}", _rest(at)])
    return f"""
## How do the models differ in operators?

Share of a request's time at batch {PAPER_BATCH_SIZE}, eager, one thread; in parentheses the
paper's plot on a CPU, read from the authors' public code. Covered: the classes' sum over the time
that a clock measured around the same requests.

{_table(["model", *CLASSES, "covered", "largest of the rest"], rows)}

Differences from the paper, and why:

- Their operators are Caffe2's. Here all tables of a model are one array and one look-up reads them
  all, so embedding costs the models with one look-up a table less than theirs.
- DIN's attention is the local activation unit over 250 behaviours as its own paper defines it; the
  authors' configuration runs one behaviour, so their DIN is mostly FC.
- Recurrent is DIEN's GRU and attentional-update GRU; theirs are plain tanh recurrences.
"""


def work(profiles: dict[str, Any]) -> str:
    rows = []
    for name, found in profiles.items():
        points = {p["batch_size"]: p for p in found["roofline"]["models"][name]}
        rows.append([
            name, f"{points[1]['flops'] / 1e6:.3g}", f"{points[1]['flops_per_byte']:.2g}",
            f"{points[64]['flops_per_byte']:.3g}", f"{points[1024]['flops_per_byte']:.3g}",
            f"{found['roofline']['query_bytes'] / 1e6:.3g}",
        ])  # fmt: skip
    return f"""
## ... in memory access and inputs?

Arithmetic of an item, arithmetic intensity (FLOP a byte of table rows, inputs, and the weights
once a request), and the rows and inputs that an average query of 270 items reads.

{_table(["model", "MFLOP an item", "FLOP/B at 1", "at 64", "at 1,024", "MB a query"], rows)}
"""


def batches(profiles: dict[str, Any]) -> str:
    rows = []
    for name, found in profiles.items():
        at = {(p["batch_size"], p["busy"]): p for p in found["points"]}
        busy = found["workers"]
        full = [p for (_, b), p in at.items() if b == busy]
        best = max(full, key=lambda p: float(p["items_per_s"]))
        slower = {n: at[n, busy]["median_s"] / at[n, 1]["median_s"] for n in (16, 256)}
        rows.append([
            name, *(f"{at[n, busy]['median_s'] * 1e3:.3g}" for n in (1, 16, 64, 256, 1024)),
            *(f"{ratio:.2f}" for ratio in slower.values()),
            str(best["batch_size"]), f"{best['limits_share']:.0%}",
        ])  # fmt: skip
    heads = ["model", *(f"ms at {n}" for n in (1, 16, 64, 256, "1,024")),
             "all busy / one, at 16", "at 256", "most items/s at", "of the limits"]  # fmt: skip
    return f"""
## What does batching buy?

Median time of a request, what the other busy workers cost it, the batch size with the most items a
second, and how much of that time this machine's measured limits explain. The limit of look-ups is
of uniformly random rows; popular rows come from the cache, so a model of many can pass it.

{_table(heads, rows)}
"""


def roofline(profiles: dict[str, Any]) -> str:
    every: dict[str, Any] = {}
    for name, found in profiles.items():
        every[name] = found["roofline"]["models"][name]
    every |= {n: p for n, p in found["roofline"]["models"].items() if n not in every}
    shown = dict(next(iter(profiles.values()))["roofline"], models=every)
    limits = "; ".join([
        *(f"{name} {roof['flops_per_s'] / 1e9:.0f} GFLOP/s" for name, roof in
          shown["roofs"].items()),
        f"streaming {shown['stream_bytes_per_s'] / 1e9:.0f} GB/s",
        f"random rows {shown['random_bytes_per_s'] / 1e9:.1f} GB/s",
    ])  # fmt: skip
    drawn = draw(roofline_figure({"roofline": shown}), FIGURE)
    rows = [
        [name, str(p["batch_size"]), f"{p['flops_per_byte']:.3g}", f"{p['flops_per_s'] / 1e9:.3g}"]
        for name, points in every.items()
        for p in points
        if p["batch_size"] in (1, 64, 1024)
    ]
    return f"""
## Under the roofs

Measured: {limits}. {"![Roofline of the eight models](roofline.png)" if drawn else ""}

{_table(["model", "batch", "FLOP/B", "GFLOP/s"], rows)}

The models with many look-ups lie along the roof of random rows and batching moves them little; the
others climb towards the arithmetic roof as the weights are read once for more items. The CNN
computes from the cache and lies at the arithmetic roof; the RNN reads its 32 MiB of weights at
every step, above the streaming roof where the last-level cache holds them.
"""


def kept_roofline(page: str) -> dict[str, Any]:
    """What the page says of the roofs and the points below them."""
    _, _, told = page.partition("## Under the roofs")
    measured, _, table = told.partition("| model |")
    rate = {name.strip(" ;:"): float(number) * 1e9 for name, number in
            re.findall(r"([a-z][\w ]*?) ([\d.]+) G(?:FLOP|B)/s", measured)}  # fmt: skip
    points: dict[str, list[dict[str, Any]]] = {}
    for row in re.findall(r"^\| (.+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", table, re.M):
        name, batch, intensity, gflops = row
        points.setdefault(name, []).append(
            {"batch_size": int(batch), "flops_per_byte": float(intensity),
             "flops_per_s": float(gflops) * 1e9}
        )  # fmt: skip
    return {
        "roofs": {"fp32": {"flops_per_s": rate["fp32"]},
                  "bf16": {"flops_per_s": rate["bf16"], "dash": "dash"}},
        "stream_bytes_per_s": rate["streaming"], "random_bytes_per_s": rate["random rows"],
        "models": points,
    }  # fmt: skip


def optima(name: str) -> list[list[str]]:
    """Rows of one model's optimum on this machine as it is, and as it is made worse."""
    found = {case: _optimum(name, variables) for case, variables in CASES.items()}
    cores = topology.usable_cores()
    if len(cores) > 1:
        found["one worker"] = _optimum(name, {}, "--workers", "1")
        with neighbour(cores[-1]):
            found["one worker, noisy neighbour"] = _optimum(name, {}, "--workers", "1")
    return [[name, case, *cells] for case, cells in found.items()]


def hardware(rows: list[list[str]]) -> str:
    """The paper's fifth question: how do differences between CPUs move the optimum?"""
    heads = ["model", "hardware", "best batch size", "within 3 %", "queries/s",
             *(f"ms at {n}" for n in HARDWARE_SIZES)]  # fmt: skip
    return f"""
{HARDWARE_HEADING}

Written by `python benchmarks/characterise.py --hardware` on {time.strftime("%Y-%m-%d")}. Profiles
of {PROFILE_S} s with narrower vectors (PyTorch, oneDNN and MKL told to use AVX2, or SSE), and with
one worker while a neighbour on another core streams 64 MiB through the shared cache; the best batch
size and its capacity by simulation of each profile, and the batch sizes whose capacity is within
3 % of it.

{_table(heads, rows)}
"""


def _optimum(name: str, environment: dict[str, str], *more: str) -> list[str]:
    """By simulation of a profile taken under these conditions: best batch size, those within 3 %,
    capacity; then median service times."""
    with tempfile.TemporaryDirectory() as folder:
        measured = verb("profile", name, "--budget-s", str(PROFILE_S), "--out", folder, *more,
                        **environment)  # fmt: skip
        found = verb("simulate", name, "--profile", f"{folder}/profile.json", "--tune",
                     "--method", "exhaustive")  # fmt: skip
    busy = measured["workers"]
    at = {p["batch_size"]: p["median_s"] for p in measured["points"] if p["busy"] == busy}
    ms = [f"{at[n] * 1e3:.3g}" for n in HARDWARE_SIZES]
    if found["best"] is None:
        return ["–", "no rate", "–", *ms]
    best = found["best"]["capacity"]["rate_qps"]
    near = [t["policy"]["batch_size"] for t in found["trials"]
            if t["capacity"]["rate_qps"] > 0.97 * best]  # fmt: skip
    within = f"{min(near)} to {max(near)}"
    return [str(found["best"]["policy"]["batch_size"]), within, f"{best:.4g}", *ms]


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(core)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _rest(entry: dict[str, Any]) -> str:
    total = sum(entry["seconds"].values())
    most = list(entry["rest"].items())[:3]
    return ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in most)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
