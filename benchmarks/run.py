"""The numbers this project promises of one machine, measured: `make bench`.

Each part prints its rows as it goes and adds them to `benchmarks/results.md` with machine, date
and versions. `python benchmarks/run.py --only dispatch limits` runs some of them. Ratios are of
measurements taken in turns, because machines drift.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import deeprecsys as drs
import simulated
import why
from choices import choices as measured_choices
from deeprecsys.core import SLA, Policy, replace
from deeprecsys.engine import calibrate, topology
from deeprecsys.engine.limits import measure_limits
from deeprecsys.engine.process import keep_freed_memory
from deeprecsys.models import Model, load_model
from deeprecsys.runtimes.eager import Eager
from deeprecsys.runtimes.stub import NoOp
from deeprecsys.tuning import FINE, find_capacity, tune
from deeprecsys.tuning.capacity import Probe, search_rate
from deeprecsys.tuning.interleave import Contestant, interleave
from rows import Row, asked, measure

RESULTS = Path(__file__).parent / "results.md"
WORKLOAD = drs.Workload()


def dispatch() -> Iterator[Row]:
    """Requests per second and GIL time of the engine alone: a runtime that executes nothing.

    Inputs are prepared as PyTorch needs them. At most one thread computes at a time here, so
    the time of a request is an upper bound on what it holds the GIL for.
    """
    for name in ("dlrm-rmc1", "mt-wnd"):
        model = load_model(name, scale=0.01)
        for workers in (1, 2, 16):
            found = [_noop_rate(model, workers) for _ in range(3)]
            rate = max(found)
            yield Row(
                f"no-op, inputs of {name}, {workers} workers",
                f"{rate:,.0f} requests/s, ≤ {1e6 / rate:.0f} µs of GIL a request "
                f"(of three: {', '.join(f'{r:,.0f}' for r in sorted(found))})",
                "25,000/s; 40 µs",
                rate >= 25_000,
            )


def _noop_rate(model: Model, workers: int, queries: int = 12_000) -> float:
    with drs.Engine(model, workers, NoOp(Eager(model).prepare)) as engine:
        engine.run(WORKLOAD.schedule(rate_qps=1000, queries=50), Policy(128))
        before = engine.requests_executed()
        records = engine.run(WORKLOAD.schedule(rate_qps=1e6, queries=queries), Policy(128))
        return (engine.requests_executed() - before) / float(np.nanmax(records.finish_s))


def lax() -> Iterator[Row]:
    """Capacity under 1 s over what the workers' service time allows."""
    for name in ("dlrm-rmc1", "dlrm-rmc3", "wnd"):
        model = load_model(name)
        with drs.Engine(model) as engine:
            watched = Watched(engine, Policy(256))
            effort = replace(FINE, least_s=30.0, most_s=30.0)
            found = search_rate(Probe(watched, WORKLOAD, SLA(1.0)), watched.policy, effort)
            ratio = found.rate_qps * float(np.mean(watched.query_s)) / engine.workers
        yield Row(
            f"capacity at 1 s / (workers / mean service time), {name}",
            f"{ratio:.3f} ({found.rate_qps:.1f} queries/s; {found.interval_qps[1]:.1f} failed; "
            f"{np.mean(watched.query_s) * 1e3:.2f} ms a query, "
            f"{min(watched.query_s) * 1e3:.2f} to {max(watched.query_s) * 1e3:.2f} before each of "
            f"{len(watched.query_s)} runs)",
            "0.95 to 1.02",
            0.95 <= ratio <= 1.02,
        )
        del model


class Watched:
    """An engine whose service time is measured before each run, because machines drift."""

    def __init__(self, engine: drs.Engine, policy: Policy) -> None:
        self.engine, self.policy = engine, policy
        self.query_s: list[float] = []
        self.facts, self.disturbance = engine.facts, engine.disturbance

    def run(self, *args, **kw):
        self.query_s.append(_mean_query_s(self.engine, self.policy, seconds=2.0))
        return self.engine.run(*args, **kw)


def _mean_query_s(engine: drs.Engine, policy: Policy, seconds: float) -> float:
    """Mean worker-seconds of a query, executed one after the other on every core at once,
    without the engine; over the same pool of inputs as its runs.

    Whole rounds of 64 sizes spread over the law: a sample as long as this would be wrong by 4 %.
    """
    sizes = np.sort(WORKLOAD.sample_sizes(4096))
    spread = np.random.default_rng(0).permutation(sizes[32::64])
    engine.run(WORKLOAD.schedule(rate_qps=100, queries=5), policy)
    pool = engine._pool(WORKLOAD.schedule(rate_qps=100, queries=3000))
    offsets = pool.offsets(np.tile(spread, 40))

    def work(worker: int) -> float:
        began, done = time.perf_counter(), 0
        turn = worker * len(offsets) // engine.workers
        while done % len(spread) or time.perf_counter() - began < seconds:
            offset, n = int(offsets[turn % len(offsets)]), int(spread[turn % len(spread)])
            scores = np.empty((n, engine.model.tasks), np.float32)
            prepared = engine.runtime.prepare(pool.window(offset, n), scores)
            for lo in range(0, n, policy.batch_size):
                engine.runtime.execute(prepared, lo, min(lo + policy.batch_size, n))
            turn, done = turn + 1, done + 1
        return (time.perf_counter() - began) / done

    cores = topology.usable_cores()[: engine.workers]
    found = calibrate.on_cores(cores, engine.runtime.enter_thread, work)
    return float(np.mean(found) * sizes.mean() / spread.mean())


def generator() -> Iterator[Row]:
    """Lateness at 1,000 queries/s with the workers 70 % busy."""
    model = load_model("ncf")
    with drs.Engine(model) as engine:
        service_s = engine.facts().service_s
        sizes = np.arange(50, 2000, 10)
        size = int(sizes[np.searchsorted(service_s(sizes) * 1000 / engine.workers, 0.7)])
        schedule = drs.Workload(sizes=f"fixed:{size}").schedule(rate_qps=1000, duration_s=20)
        lag = drs.summarize(engine.run(schedule, Policy(size))).generator_lag_p99_s
    yield Row("generator lateness p99, 1,000 queries/s, 70 % busy", f"{lag * 1e3:.2f} ms",
              "1 ms or less", lag <= 1e-3)  # fmt: skip


def seeds() -> Iterator[Row]:
    """Capacity of `ncf` over five seeds."""
    model = load_model("ncf")
    with drs.Engine(model) as engine:
        rates = [
            find_capacity(
                engine, drs.Workload(seed=10 * s), model.target, Policy(256), budget_s=60
            ).rate_qps
            for s in range(5)
        ]
    spread = max(rates) / min(rates) if min(rates) else math.inf
    yield Row("capacity of ncf over five seeds, largest / smallest",
              f"{spread:.3f} ({', '.join(f'{r:.0f}' for r in rates)} queries/s)",
              "1.10 or less", spread <= 1.10)  # fmt: skip


def climb() -> Iterator[Row]:
    """The hill climb's best policy against the exhaustive search's, interleaved."""
    for name in ("ncf", "dlrm-rmc1", "wnd", "dlrm-rmc3"):
        model = load_model(name)
        with drs.Engine(model) as engine:
            best = []
            for method, budget_s in (("hill-climb", 50), ("exhaustive", 80)):
                best.append(tune(engine, WORKLOAD, model.target, method, budget_s=budget_s).best)
            measured = _ratio(engine, model.target, best)
        yield Row(f"hill climb / exhaustive, {name}", measured[1], "0.95", measured[0])
        del model


def _ratio(engine: drs.Engine, sla: SLA, best: list) -> tuple[bool | None, str]:
    if None in best:
        return None, "no rate meets the target"
    sizes = " against ".join(str(t.policy.batch_size) for t in best)
    if best[0].policy == best[1].policy:
        return True, f"1, the same batch size {best[0].policy.batch_size}"
    probe = Probe(engine, WORKLOAD, sla)
    contestants = [Contestant.at(t.policy, t.capacity.rate_qps, probe) for t in best]
    found = interleave(probe, contestants, lambda rate: 5.0)[0]
    if found is None:
        return None, f"undecided, batch sizes {sizes}"
    lo, hi = found.interval
    return found.ratio >= 0.95, f"{found.ratio:.3f} [{lo:.3f}, {hi:.3f}], batch sizes {sizes}"


def fresh() -> Iterator[Row]:
    """Fresh runs below and above the reported capacity, ten each."""
    for name in ("dlrm-rmc1", "ncf"):
        model = load_model(name)
        with drs.Engine(model) as engine:
            capacity = find_capacity(engine, WORKLOAD, model.target, Policy(256), budget_s=90)
            probe = Probe(engine, WORKLOAD, model.target)
            counts = []
            for factor in (0.95, 1.2):
                rate = factor * capacity.rate_qps
                runs = [probe(Policy(256), rate, 10.0, turn=300 + t) for t in range(10)]
                counts.append(sum(run.passed for run in runs))
        yield Row(f"fresh runs at 0.95 × capacity that meet, {name}", f"{counts[0]} of 10",
                  "9 of 10", counts[0] >= 9)  # fmt: skip
        yield Row(f"fresh runs at 1.2 × capacity that miss, {name}", f"{10 - counts[1]} of 10",
                  "9 of 10", counts[1] <= 1)  # fmt: skip
        del model


def limits() -> Iterator[Row]:
    """Parts of models against the machine's limits, on one core, in turns."""
    core = topology.usable_cores()[:1]
    torch.set_num_threads(1)
    keep_freed_memory()  # as in an engine
    rmc3, rmc1 = load_model("dlrm-rmc3", scale=0.01), load_model("dlrm-rmc1", scale=0.5)
    with torch.inference_mode():
        dense = torch.rand(256, 2560)
        joined = torch.rand(256, rmc3.module.top[0].in_features)
        flops = sum(2.0 * 256 * layer.fan_in * layer.fan_out for layer in rmc3.spec.linears)
        ids = [
            [torch.randint(0, rows.rows, (256, 80), dtype=torch.int32) for rows in rmc1.inputs[1:]]
            for _ in range(20)
        ]
        matrix, rows = [], []
        for _ in range(12):
            limit = measure_limits(core)
            matrix_s = _best_s(lambda: (rmc3.module.bottom(dense), rmc3.module.top(joined)))
            matrix.append(flops / matrix_s / limit.flops_per_s)
            bags_s = []
            for picked in ids:
                began = time.perf_counter()
                rmc1.module.bags(picked)
                bags_s.append(time.perf_counter() - began)
            rows.append(256 * 640 / np.median(bags_s) / limit.lookups_per_s)
    yield Row("matrix part of dlrm-rmc3 at batch 256 / measured fp32 rate",
              f"{np.median(matrix[2:]):.2f}", "0.8", np.median(matrix[2:]) >= 0.8)  # fmt: skip
    yield Row("embedding part of dlrm-rmc1 / measured random-row rate",
              f"{np.median(rows[2:]):.2f}", "0.8", np.median(rows[2:]) >= 0.8)  # fmt: skip


def _best_s(work: Callable[[], object], repeats: int = 30) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def load() -> Iterator[Row]:
    """Time and memory of loading the 4 GB of `dlrm-rmc1`, in a process of its own."""
    code = (
        "import resource, time, torch; from deeprecsys.models import load_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "load_model('ncf', scale=0.001); before = peak(); at = time.perf_counter()\n"
        "model = load_model('dlrm-rmc1')\n"
        "print(time.perf_counter() - at, (peak() - before) / model.table_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, ratio = map(float, done.stdout.split())
    yield Row("loading dlrm-rmc1 (4.1 GB)", f"{seconds:.1f} s", "20 s or less", seconds <= 20)
    yield Row("its peak memory / the tables' bytes", f"{ratio:.3f}", "1.15 or less", ratio <= 1.15)


def choices() -> Iterator[Row]:
    """What the choices of `docs/decisions/` are worth here."""
    for what, with_it, without in measured_choices():
        yield Row(what, f"{with_it}; {without} without", "", None)


def tuning() -> Iterator[Row]:
    """`tune dlrm-rmc1` from the command to the report."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "deeprecsys", "tune", "dlrm-rmc1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    lines = done.stdout.split("\n\n")[-1].replace("\n", " ").split("report:")
    yield Row("tune dlrm-rmc1, command to report", f"{seconds:.0f} s: {lines[0].strip()}",
              "5 min or less", seconds <= 300)  # fmt: skip


def _rows(part: Callable[[], Iterator[why.Found]]) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        yield from (Row(*found) for found in part())

    rows.__name__ = part.__name__
    return rows


PARTS = (
    load,
    limits,
    dispatch,
    generator,
    choices,
    seeds,
    fresh,
    lax,
    climb,
    tuning,
    *map(_rows, (why.profiles, why.shares, why.tracing, why.reports, *simulated.PARTS)),
)


def main() -> None:
    only = asked(PARTS, __doc__).parse_args().only
    measure({part.__name__: part for part in PARTS}, only, RESULTS, __file__)


if __name__ == "__main__":
    main()
