"""What this machine is, and what on it would spoil a measurement: findings, each with its cost.

Every check reads or measures one thing and answers one `Finding`; what a machine does not show
is said and is no fault. Add one: a function here and its name in `CHECKS`. `deeprecsys doctor`
prints them.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from deeprecsys.engine import quotas, topology
from deeprecsys.engine.process import Neighbours, generator_priority, pin_thread

Level = Literal["ok", "note", "spoils"]
SYSTEM = Path("/sys")
HIDDEN = "not visible here"

_THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_BINDINGS = ("OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
_NARROWER = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
             "MKL_ENABLE_INSTRUCTIONS")  # fmt: skip
# Others may use this share of the cores before a capacity search repeats its runs for it.
_OTHERS = 0.05
# A stop this long fails a run of a few seconds under targets of tens of milliseconds.
_LONG_STOP_S, _LOST_SHARE = 0.02, 0.01
_JITTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """cost, mend: what it costs and what to do about it; empty where all is well."""

    name: str
    value: str
    level: Level = "ok"
    cost: str = ""
    mend: str = ""


def examine(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Every check, in order; about 6 s, with the measured ones."""
    return [check(environment) for check in CHECKS]


def cores(_: Mapping[str, str]) -> Finding:
    usable, present = topology.usable_cores(), os.cpu_count() or 1
    found = quotas.tightest()
    quota, workers = found.cores, len(usable)
    value = f"{workers} usable of {present}, {quotas.said(workers, found)}"
    if quota is not None and found.file:
        value += f" ({found.file})"
    if unread := found.unread:
        return Finding(
            "cores", value, "note", f"what {', '.join(unread)} says is not understood, so ignored",
            "say --workers if the container has less",
        )  # fmt: skip
    if quota is not None and quota < 1:
        return Finding(
            "cores", value, "spoils",
            "the container stops all threads for the rest of each period once its share is used",
            "raise the container's CPU limit to a whole number of cores",
        )  # fmt: skip
    if quota is not None and quota != int(quota) and workers == int(quota):
        more = quotas.said(workers + 1, found).partition(": ")[2]
        return Finding(
            "cores", value, "note",
            f"workers are whole, so {quota - int(quota):.2g} of a core is none's; {more}",
            "ask for a whole number of cores",
        )  # fmt: skip
    return Finding("cores", value)


def smt(_: Mapping[str, str]) -> Finding:
    shared = {
        core: _read(f"devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        for core in topology.usable_cores()
    }
    if None in shared.values():
        return Finding("SMT", HIDDEN)
    physical = len(set(shared.values()))
    if physical == len(shared):
        return Finding("SMT", "every usable core is a core of its own")
    return Finding(
        "SMT", f"{len(shared)} usable threads of {physical} cores", "note",
        "two workers on one core share its arithmetic units; memory-bound models may still gain",
        f"compare --workers {physical} with --workers {len(shared)}",
    )  # fmt: skip


def numa(_: Mapping[str, str]) -> Finding:
    nodes = len(list((SYSTEM / "devices/system/node").glob("node[0-9]*")))
    if nodes == 0:
        return Finding("NUMA", HIDDEN)
    if nodes == 1:
        return Finding("NUMA", "one node")
    return Finding(
        "NUMA", f"{nodes} nodes", "note",
        "tables lie where they were filled: workers of other nodes read them at a distance",
        "start with `numactl --interleave=all`, or one process a node",
    )  # fmt: skip


def huge_pages(_: Mapping[str, str]) -> Finding:
    text = _read("kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", text or "")
    if chosen is None:
        return Finding("huge pages", HIDDEN)
    if chosen.group(1) != "never":
        return Finding("huge pages", f"transparent, {chosen.group(1)}")
    return Finding(
        "huge pages", "off", "note", "look-ups of large tables take up to 1.7 times as long",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )  # fmt: skip


def instructions(environment: Mapping[str, str]) -> Finding:
    import torch

    flags = set((topology.cpu_flags() or "").split())
    more = [name for flag, name in (("avx512_bf16", "bf16"), ("avx512_vnni", "VNNI"),
                                    ("amx_bf16", "AMX")) if flag in flags]  # fmt: skip
    used = torch.backends.cpu.get_cpu_capability()
    value = ", ".join([topology.simd(), *more, f"PyTorch uses {used}"])
    limited = [f"{name}={environment[name]}" for name in _NARROWER if environment.get(name)]
    if limited:
        return Finding(
            "instructions", f"{value}; {', '.join(limited)}", "spoils",
            "matrix products run with narrower vectors than the processor has",
            f"unset {' '.join(part.split('=')[0] for part in limited)}",
        )  # fmt: skip
    return Finding("instructions", value)


def memory(_: Mapping[str, str]) -> Finding:
    from deeprecsys.models import NAMES, get_spec
    from deeprecsys.models.memory import available_bytes

    free = available_bytes()
    value = f"{psutil.virtual_memory().total / 1e9:.1f} GB, {free / 1e9:.1f} GB free"
    swapped = psutil.swap_memory().used
    if swapped > 64 << 20:
        return Finding(
            "memory", f"{value}, {swapped / 1e9:.1f} GB swapped out", "spoils",
            "a page that comes back from disk takes milliseconds", "free memory, or swapoff -a",
        )  # fmt: skip
    tight = [name for name in NAMES if get_spec(name).memory_bytes() * 1.3 > free]
    if tight:
        return Finding(
            "memory", value, "note", f"{', '.join(tight)} does not fit at full size",
            "free memory, or use --scale",
        )  # fmt: skip
    return Finding("memory", value)


def bandwidth(_: Mapping[str, str]) -> Finding:
    from deeprecsys.engine.limits import measure_limits

    found = measure_limits(topology.usable_cores())
    return Finding(
        "limits",
        f"{found.flops_per_s / 1e9:.0f} GFLOP/s fp32, {found.stream_bytes_per_s / 1e9:.0f} GB/s "
        f"streaming, {found.lookups_per_s / 1e6:.0f} M random rows of {found.lookup_bytes} B a "
        "second, all cores",
    )


def thread_settings(environment: Mapping[str, str]) -> Finding:
    bound = [f"{name}={environment[name]}" for name in _BINDINGS if environment.get(name)]
    if bound:
        return Finding(
            "thread settings", ", ".join(bound), "spoils",
            "libraries move threads away from the cores that workers are pinned to",
            f"unset {' '.join(part.split('=')[0] for part in bound)}",
        )  # fmt: skip
    counts = [f"{name}={environment[name]}" for name in _THREAD_COUNTS if environment.get(name)]
    if any(not part.endswith("=1") for part in counts):
        return Finding(
            "thread settings", ", ".join(counts), "note",
            "none here: workers use one thread each whatever they say; other servers obey them",
            "unset them, or set 1",
        )  # fmt: skip
    return Finding("thread settings", ", ".join(counts) or "none")


def neighbours(_: Mapping[str, str]) -> Finding:
    watched = Neighbours(len(topology.usable_cores()))
    time.sleep(1.0)
    share = watched.share()
    value = f"others use {share:.0%} of the cores, load {psutil.getloadavg()[0]:.1f}"
    if share < _OTHERS:
        return Finding("neighbours", value)
    busiest = _busiest()
    return Finding(
        "neighbours", value, "spoils",
        "requests wait for a core that somebody else has; capacity comes out too low",
        f"end or move {busiest}" if busiest else "end what else runs, or use a machine alone",
    )  # fmt: skip


def frequency(_: Mapping[str, str]) -> Finding:
    governor = _read("devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return Finding("frequency", HIDDEN)
    if governor == "powersave" and not _read("devices/system/cpu/intel_pstate/status"):
        return Finding(
            "frequency", f"governor {governor}", "spoils", "cores stay at their lowest clock",
            "cpupower frequency-set -g performance",
        )  # fmt: skip
    return Finding("frequency", f"governor {governor}")


def clock_source(_: Mapping[str, str]) -> Finding:
    began, reads = time.perf_counter(), 20_000
    for _again in range(reads):
        time.perf_counter()
    cost_s = (time.perf_counter() - began) / reads
    source = _read("devices/system/clocksource/clocksource0/current_clocksource") or HIDDEN
    value = f"{source}, {cost_s * 1e9:.0f} ns a reading"
    if cost_s < 1e-6:
        return Finding("clock", value)
    return Finding(
        "clock", value, "note", "every request is timed twice", "boot with clocksource=tsc"
    )


def priority(_: Mapping[str, str]) -> Finding:
    with generator_priority() as allowed:
        pass
    if allowed:
        return Finding("real-time class", "allowed for the load generator")
    return Finding(
        "real-time class", "not allowed", "note",
        "on busy cores the generator is late by 2 ms (p99) instead of 0.1 ms",
        "run as root, or with CAP_SYS_NICE",
    )  # fmt: skip


def jitter(_: Mapping[str, str]) -> Finding:
    """Every core reads the clock for two seconds: gaps are time that somebody else had."""
    usable = topology.usable_cores()
    stops: list[list[float]] = [[] for _ in usable]
    threads = [
        threading.Thread(target=_watch_clock, args=(core, _JITTER_S / len(usable), found))
        for core, found in zip(usable, stops, strict=True)
    ]
    for thread in threads:  # one after the other: side by side they would stop each other
        thread.start()
        thread.join()
    every = np.array([stop for found in stops for stop in found])
    lost, longest = float(every.sum()) / _JITTER_S, float(every.max(initial=0.0))
    value = f"{lost:.2%} of the time lost, longest stop {longest * 1e3:.1f} ms"
    if longest < _LONG_STOP_S and lost < _LOST_SHARE:
        return Finding("noise", value)
    return Finding(
        "noise", value, "spoils",
        "somebody else, perhaps a hypervisor, stops the cores: tails come out too long",
        "use a machine alone, or longer runs; compare only what was measured in turns",
    )  # fmt: skip


CHECKS: tuple[Callable[[Mapping[str, str]], Finding], ...] = (
    cores, smt, numa, huge_pages, instructions, memory, bandwidth, thread_settings, frequency,
    clock_source, priority, neighbours, jitter,
)  # fmt: skip


def _watch_clock(core: int, seconds: float, stops: list[float]) -> None:
    """Gaps of more than 100 us between two readings."""
    pin_thread(core)
    clock = time.perf_counter
    last = clock()
    until = last + seconds
    while last < until:
        now = clock()
        if now - last > 1e-4:
            stops.append(now - last)
        last = now


def _busiest() -> str | None:
    """The process that used the most processor time in a tenth of a second."""

    def used() -> dict[int, tuple[float, str]]:
        found: dict[int, Any] = {}
        for process in psutil.process_iter(["pid", "name", "cpu_times"]):
            times = process.info["cpu_times"]
            if times and process.info["pid"] != os.getpid():
                found[process.info["pid"]] = (times.user + times.system, process.info["name"])
        return found

    before = used()
    time.sleep(0.2)
    grown = [(s - before[pid][0], name, pid) for pid, (s, name) in used().items() if pid in before]
    seconds, name, pid = max(grown, default=(0.0, "", 0))
    return f"{name} (process {pid})" if seconds > 0.01 else None


def _read(path: str) -> str | None:
    try:
        return (SYSTEM / path).read_text().strip()
    except OSError:
        return None
