"""Everything that needs an NVIDIA GPU: `make bench-gpu`.

    python benchmarks/gpu.py [--models dlrm-rmc3 wnd] [--budget-s 60]

For each model: scores against the reference, the device's profile (for `emulated:FILE`), the host's
cost of an offloaded query, tuned cores with and without the GPU turn by turn, and what binds. Adds
a table to `benchmarks/results.md` as it goes; profiles go to `runs/gpu/` and to $OUT, where it is
set. Needs a CUDA build of PyTorch; exits with 2 and one line where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deeprecsys as drs
from deeprecsys.analysis.usage import sentences
from deeprecsys.core import UserError
from deeprecsys.engine import topology
from deeprecsys.machines.service_time import ABOUT_MODEL, Profile
from deeprecsys.models import NAMES, load_model
from deeprecsys.runtimes.cuda import Cuda, check
from rows import provenance, usage_of, writer

RESULTS = Path(__file__).parent / "results.md"
FOLDER = Path(os.environ.get("OUT", "runs/gpu"))
WORKLOAD = drs.Workload()
_SIZES = [1 << k for k in range(11)]
_REPEATS = 60
_HOST_WANTED_S = 200e-6


def profile_of(device: Cuda, model: Any) -> Profile:
    """Seconds of single requests, one at a time."""
    about = {
        **{name: getattr(model, name) for name in ABOUT_MODEL[1:]},
        "execution": str(model.execution),
        "model": model.name,
        "runtime": device.name,
        "workers": 1,
        "machine": {"cpu": torch.cuda.get_device_name(0)},
        "versions": topology.versions(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    profile = Profile(about)
    for n in _SIZES:
        inputs = model.example(n, np.random.default_rng(n))
        scores = np.empty((n, model.tasks), np.float32)
        seconds = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            device.end(device.begin([(inputs, scores)]))
            seconds.append(time.perf_counter() - began)
        profile = profile.with_visit((n, 1), np.array(seconds[10:]))
    return profile


def one(name: str, budget_s: float) -> str:
    model = load_model(name)
    device = Cuda(model)  # compares every size class with the reference
    profile = profile_of(device, model)
    FOLDER.mkdir(parents=True, exist_ok=True)
    profile.save(FOLDER / f"{name}.json")
    spent = device.spent
    host_us = 1e6 * spent.host_s / spent.requests
    copy_share = (spent.copy_in_s + spent.copy_out_s) / (
        spent.copy_in_s + spent.copy_out_s + spent.execute_s
    )
    with drs.Engine(model, accelerators=[device]) as engine:
        study = drs.tune(engine, WORKLOAD, model.target, "simulated", budget_s=budget_s)
        if study.best is None:
            return f"| {name} | no rate holds the target | | | {host_us:.0f} | |"
        schedule = WORKLOAD.schedule(rate_qps=study.best.capacity.rate_qps, duration_s=6)
        found = usage_of(engine, schedule, study.best.policy)
    ratios = {c.name: c.ratio for c in study.comparisons}
    said = [
        f"{r.ratio:.2f}× [{r.interval[0]:.2f}, {r.interval[1]:.2f}]" if r else "–"
        for r in (ratios.get("the static baseline"), ratios.get("the tuned cores alone"))
    ]
    gpu = found["accelerators"][0]
    binds = f"copy {copy_share:.0%} of the device's time; {study.binds.kind}"
    word = "met" if host_us <= _HOST_WANTED_S * 1e6 else "falls short"
    return (
        f"| {name} | {study.best.capacity.rate_qps:,.0f} ({study.best.policy}) | {said[0]} | "
        f"{said[1]} | {host_us:.0f} ({word}) | {gpu['busy']:.0%} busy, {gpu['share_of_items']:.0%} "
        f"of items; {binds}; {sentences(found)[-1]} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--budget-s", type=float, default=50.0)
    wanted = parser.parse_args()
    try:
        check(0, 0)
    except UserError as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    _, total = torch.cuda.mem_get_info(0)
    write = writer(RESULTS)
    device = f"{torch.cuda.get_device_name(0)} with {total / 2**30:.0f} GiB, "
    write(provenance("python benchmarks/gpu.py", device, f", CUDA {torch.version.cuda}"))
    write(
        "| model | capacity | over static | over the tuned cores alone | host µs an offloaded "
        "query beside its copy (200) | at capacity |\n|---|---|---|---|---|---|\n"
    )
    for name in wanted.models:
        write(one(name, wanted.budget_s) + "\n")


if __name__ == "__main__":
    main()
