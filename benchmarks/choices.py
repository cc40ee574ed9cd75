"""What each choice of the decision records is worth on this machine, in turns with and without it.

Part `choices` of `run.py`. Each measurement answers (what, with it, without it); medians of
turns, because machines drift.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import torch

import deeprecsys as drs
from deeprecsys.core import Policy
from deeprecsys.engine import calibrate, engine, topology
from deeprecsys.engine.process import SWITCH_INTERVAL_S
from deeprecsys.models import load_model
from deeprecsys.models.tables import new_tables
from deeprecsys.runtimes.eager import Eager

TURNS = 5
Found = tuple[str, str, str]


def choices() -> Iterator[Found]:
    yield switch_interval()
    yield generator_class()
    yield freed_memory()
    for name in ("ncf", "dlrm-rmc1"):
        yield from traced(name)
    yield from huge_pages()
    yield one_gather()
    yield joined_inputs()


def switch_interval() -> Found:
    """Requests per second of `ncf` in small requests on all workers, offered far too many."""
    rates: dict[float, list[float]] = {SWITCH_INTERVAL_S: [], 5e-3: []}
    with drs.Engine(load_model("ncf"), runtime="eager") as system:
        before = sys.getswitchinterval()
        for _ in range(TURNS):
            for seconds, found in rates.items():
                sys.setswitchinterval(seconds)
                done = system.requests_executed()
                schedule = drs.Workload(sizes="fixed:64").schedule(rate_qps=1e6, queries=3000)
                records = system.run(schedule, Policy(16))
                done = system.requests_executed() - done
                found.append(done / float(np.nanmax(records.finish_s)))
        sys.setswitchinterval(before)
    with_it, without = (f"{np.median(found):,.0f} requests/s" for found in rates.values())
    return "switch interval 0.1 ms instead of 5 ms (ncf eager, requests of 16)", with_it, without


def generator_class() -> Found:
    """Lateness p99 at 1,000 queries/s, workers 70 % busy."""
    lags: dict[bool, list[float]] = {True: [], False: []}
    with drs.Engine(load_model("ncf")) as system:
        service_s = system.facts().service_s
        sizes = np.arange(50, 2000, 10)
        busy = service_s(sizes) * 1000 / system.workers
        size = int(sizes[np.searchsorted(busy, 0.7)])
        for turn in range(TURNS):
            workload = drs.Workload(sizes=f"fixed:{size}", seed=turn)
            schedule = workload.schedule(rate_qps=1000, duration_s=5)
            for kept, found in lags.items():
                ordinary = mock.patch.object(engine, "generator_priority", nullcontext)
                with nullcontext() if kept else ordinary:
                    records = system.run(schedule, Policy(size))
                found.append(drs.summarize(records).generator_lag_p99_s)
    with_it, without = (f"{np.median(found) * 1e3:.2f} ms" for found in lags.values())
    return "generator in the real-time class (lateness p99)", with_it, without


def freed_memory() -> Found:
    """Seconds of a request of DIN, every core busy; each time in a process of its own, since the
    setting cannot be undone."""
    code = (
        "import sys\n"
        "from deeprecsys.engine import calibrate, process, topology\n"
        "from deeprecsys.models import load_model\n"
        "from deeprecsys.runtimes import make_runtime\n"
        "process.keep_freed_memory() if sys.argv[1] == 'True' else None\n"
        "model = load_model('din', scale=0.1); runtime = make_runtime('torchscript', model)\n"
        "seen = calibrate.profile(runtime, model, topology.usable_cores(), 512)\n"
        "law = calibrate.service_time(seen)\n"
        "print(float(law(256)))"
    )
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(TURNS):
        for kept, seconds in found.items():
            command = [sys.executable, "-c", code, str(kept)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout))
    with_it, without = (f"{np.median(seconds) * 1e3:.1f} ms" for seconds in found.values())
    return "malloc keeps what is freed (din, request of 256)", with_it, without


def traced(name: str) -> Iterator[Found]:
    """Seconds of a request, every core busy, traced and eager."""
    model = load_model(name)
    cores = topology.usable_cores()
    turns = [calibrate.choose("auto", model, cores)[1] for _ in range(TURNS)]
    for size in turns[0]["eager"]:
        with_it, without = (
            f"{np.median([turn[runtime][size] for turn in turns]) * 1e3:.3f} ms"
            for runtime in ("torchscript", "eager")
        )
        yield f"TorchScript instead of eager ({name}, request of {size})", with_it, without


def huge_pages() -> Iterator[Found]:
    """Random rows of a 2 GB table of 32 floats, on one core."""
    rows, width = 16_000_000, 32
    torch.set_num_threads(1)
    ids = [torch.randint(0, rows, (256, 80), dtype=torch.int32) for _ in range(20)]
    turn = iter(range(1 << 30))
    tables = {True: new_tables([rows], width, 1.0, seed=0)}
    with _without_huge_pages():
        tables[False] = new_tables([rows], width, 1.0, seed=0)

    def bags(table: torch.Tensor) -> None:
        torch.nn.functional.embedding_bag(ids[next(turn) % 20], table, mode="sum")

    def gather(table: torch.Tensor) -> None:
        torch.index_select(table, 0, ids[next(turn) % 20].flatten())

    for what, work in (("pooled look-ups", bags), ("row gathers", gather)):
        times = _in_turns(lambda w=work: w(tables[True]), lambda w=work: w(tables[False]))
        yield f"huge pages ({what}, 20,480 rows of 128 bytes)", *times


@contextmanager
def _without_huge_pages() -> Iterator[None]:
    from deeprecsys.models import tables

    def plain(floats: int) -> np.ndarray:
        return np.empty(floats, dtype=np.float32)

    libc_says_no = 41  # PR_SET_THP_DISABLE <sys/prctl.h>: numpy asks for huge pages itself
    import ctypes

    libc = ctypes.CDLL("libc.so.6")
    libc.prctl(libc_says_no, 1, 0, 0, 0)
    try:
        with mock.patch.object(tables, "allocate", plain):
            yield
    finally:
        libc.prctl(libc_says_no, 0, 0, 0, 0)


def one_gather() -> Found:
    """A batch of 1 from 27 tables: all tables as one array, or one after the other."""
    table = torch.rand(27 * 1000, 32)
    parts = [table[1000 * i : 1000 * (i + 1)] for i in range(27)]
    ids = torch.randint(0, 1000, (27,))
    shifted = ids + 1000 * torch.arange(27)
    each = [ids[i : i + 1] for i in range(27)]

    def one_by_one() -> None:
        torch.cat([torch.index_select(p, 0, i) for p, i in zip(parts, each, strict=True)])

    times = _in_turns(lambda: torch.index_select(table, 0, shifted), one_by_one)
    return "one gather over 27 tables instead of 27 (batch of 1)", *times


def joined_inputs() -> Found:
    """What `mt-wnd`'s inputs cost before the first operator: joined once a query, or each."""
    model = load_model("mt-wnd", scale=0.01)
    inputs = model.example(270, np.random.default_rng(0))
    scores = np.empty((270, model.tasks), np.float32)
    runtime = Eager(model)

    def once() -> None:
        tensors, _ = runtime.prepare(inputs, scores)
        _ = [t[0:128] for t in tensors]

    def each() -> None:
        tensors = [torch.from_numpy(a) for a in inputs.values()]
        cut = [t[0:128] for t in tensors]
        torch.cat([t for t in cut if t.dtype == torch.int32], 1)

    what = "inputs of one id joined once a query (mt-wnd, preparation and one request's cut)"
    return what, *_in_turns(once, each)


def _in_turns(one: Callable[[], object], other: Callable[[], object]) -> tuple[str, str]:
    """Median times of two pieces of work, as text."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(300):
            for work, found in zip((one, other), times, strict=True):
                began = time.perf_counter()
                work()
                found.append(time.perf_counter() - began)
    with_it, without = (f"{np.median(found[50:]) * 1e6:,.0f} µs" for found in times)
    return with_it, without
