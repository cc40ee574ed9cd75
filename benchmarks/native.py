"""What the native core costs: queries and requests that it can hand out, and when.

`python benchmarks/native.py` measures and appends to results.md; give it the machine alone. What it
is compared with is the same engine where a query needs Python, as `submit` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import deeprecsys as drs
from deeprecsys.core import Policy, Schedule
from deeprecsys.engine import Engine
from deeprecsys.machines.service_time import ServiceTime, query_work_s
from deeprecsys.models import load_model
from deeprecsys.runtimes import Runtime
from deeprecsys.runtimes.eager import Eager
from deeprecsys.runtimes.stub import FixedTime, NoOp
from deeprecsys.runtimes.torchscript import TorchScript
from rows import Row, asked, measure

RESULTS = Path(__file__).parent / "results.md"
WORKLOAD = drs.Workload()
POLICY = Policy(128)
TURNS = 3


class ByPython(TorchScript):
    """The same, its queries prepared by Python."""

    def executor(self, columns: Any, most_items: int) -> None:
        return None


def queries() -> Iterator[Row]:
    """Queries a second that are handed over and executed, of production sizes."""
    model = load_model("dlrm-rmc1", scale=0.01)
    for workers, wanted_qps in ((2, 100_000), (16, 80_000)):
        native = _best(model, workers, NoOp(), 200_000)
        python = _best(model, workers, NoOp(Eager(model).prepare), 8_000)
        yield Row(
            f"no-op, inputs of dlrm-rmc1, batch 128, {workers} workers",
            f"{native:,.0f} queries/s ({native / python:.0f} times the {python:,.0f} of queries "
            "that Python prepares)",
            f"{wanted_qps:,}/s",
            native >= wanted_qps,
        )


def requests() -> Iterator[Row]:
    """Requests a second, of one query cut into many."""
    model = load_model("dlrm-rmc1", scale=0.01)
    one, rates = Schedule(np.zeros(1), np.array([200_000])), []
    for runtime in (NoOp(), NoOp(Eager(model).prepare)):
        with Engine(model, 2, runtime, max_queued_items=None) as engine:
            found = [engine.run(one, Policy(4)) for _ in range(2 * TURNS)]
            rates.append(max(50_000 / float(r.finish_s[0] - r.start_s[0]) for r in found))
    native, python = rates
    yield Row(
        "one query of 50,000 requests, no-op, 2 workers",
        f"{native:,.0f} requests/s ({native / python:.0f} times the {python:,.0f} by Python)",
        "1,500,000/s",
        native >= 1_500_000,
    )


def faithful() -> Iterator[Row]:
    """Fixed times, against the simulation of the same schedule: long ones, as `validate.py` has
    them, and brief ones, of which waking a worker is more."""
    model = load_model("ncf", scale=0.001)
    for base_s, item_s, workers, duration_s, wanted in (
        (2e-2, 2e-4, 4, 30, "within 1 %"),
        (2e-3, 2e-5, 2, 8, ""),
    ):
        law = ServiceTime.linear(base_s, item_s)
        work_s = float(query_work_s(law, WORKLOAD.sample_sizes(4096), POLICY).mean())
        schedule = WORKLOAD.schedule(rate_qps=0.7 * workers / work_s, duration_s=duration_s)
        with Engine(model, workers, FixedTime(law)) as engine:
            live = engine.run(schedule, POLICY)
        simulated = drs.Simulator(law, workers).run(schedule, POLICY)
        mean = live.latency_s.mean() / simulated.latency_s.mean()
        p95 = float(np.divide(*(np.percentile(r.latency_s, 95) for r in (live, simulated))))
        yield Row(
            f"engine over simulation, {workers} workers at 0.7, requests of {base_s * 1e3:g} ms "
            f"and {item_s * 1e6:g} µs an item",
            f"mean {mean:.4f}, p95 {p95:.4f}; others used {engine.disturbance():.0%} of the cores",
            wanted,
            max(abs(mean - 1), abs(p95 - 1)) <= 0.01 if wanted else None,
        )


def lateness() -> Iterator[Row]:
    """How late the generator hands queries over, both workers at work."""
    model = load_model("dlrm-rmc1", scale=0.01)
    with Engine(model, 2, NoOp()) as engine:
        for rate_qps, most_s in ((1_000, 1e-4), (10_000, 2e-4)):
            records = engine.run(WORKLOAD.schedule(rate_qps=rate_qps, duration_s=4), POLICY)
            p99_s = float(np.percentile(records.lag_s, 99))
            yield Row(
                f"generator at {rate_qps:,} queries/s",
                f"p99 {p99_s * 1e3:.3f} ms late; others used {engine.disturbance():.0%} of the "
                "cores",
                f"{most_s * 1e3:g} ms",
                p99_s <= most_s,
            )


def models() -> Iterator[Row]:
    """Queries a second of models at saturation, and a query's CPU, in turns."""
    for name, batch, count in (("ncf", 256, 4_000), ("dlrm-rmc1", 128, 400)):
        model, rates = load_model(name, scale=0.05), dict[str, list[float]]()
        with (
            Engine(model, 2, TorchScript(model)) as native,
            Engine(model, 2, ByPython(model)) as python,
        ):
            for _ in range(TURNS):
                for kind, engine in (("native", native), ("python", python)):
                    rates.setdefault(kind, []).append(_rate(engine, count, Policy(batch)))
        medians = {kind: float(np.median(found)) for kind, found in rates.items()}
        yield Row(
            f"{name}, saturated, batch {batch}, 2 workers",
            f"{medians['native']:,.0f} queries/s, {medians['python']:,.0f} where Python prepares "
            "them (medians of turns)",
            "no fewer",
            medians["native"] >= 0.98 * medians["python"],
        )


def _best(model: Any, workers: int, runtime: Runtime, count: int) -> float:
    with Engine(model, workers, runtime, max_queued_items=None) as engine:
        return max(_rate(engine, count, POLICY) for _ in range(TURNS))


def _rate(engine: Engine, count: int, policy: Policy) -> float:
    """Queries a second where all are due at once."""
    records = engine.run(WORKLOAD.schedule(rate_qps=1e7, queries=count), policy)
    assert (records.status == 0).all()
    return count / float(np.max(records.finish_s))


PARTS = {part.__name__: part for part in (queries, requests, faithful, lateness, models)}


if __name__ == "__main__":
    arguments = asked(list(PARTS.values()), __doc__).parse_args()
    measure(PARTS, arguments.only, RESULTS, __file__)
