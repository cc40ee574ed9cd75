"""Another model on the same workers, asked at a rate of its own while one is measured: what
co-location costs is measured so, and not guessed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from deeprecsys.analysis.metrics import summarize
from deeprecsys.core import SLA, Policy, Records, Servable
from deeprecsys.engine import Engine
from deeprecsys.runtimes import Runtime
from deeprecsys.workload import Workload

_PIECE_S = 20.0  # of its load, which is played again and again with other seeds
_SEED = 7_000
_LEAST = 20  # queries of a piece that tell anything


@dataclass(slots=True)
class Beside:
    """records: of what it was asked so far, piece by piece."""

    name: str
    rate_qps: float
    sla: SLA | None
    records: list[Records] = field(default_factory=list)

    def __str__(self) -> str:
        whole = [records for records in self.records if len(records) >= _LEAST]
        if not whole:
            return f"beside {self.name} at {self.rate_qps:g} queries/s"
        p95_s = np.median([summarize(records, self.sla).p95_s for records in whole])
        return (
            f"beside {self.name} at {self.rate_qps:g} queries/s, whose p95 was "
            f"{p95_s * 1e3:.1f} ms (median of {len(whole)} runs)"
        )


@contextmanager
def beside(
    engine: Engine,
    model: Servable,
    rate_qps: float,
    workload: Workload,
    sla: SLA | None,
    policy: Policy | None = None,
    weight: float = 1.0,
    runtime: str | Runtime = "auto",
) -> Iterator[Beside]:
    """`model` shares the workers of `engine` and is asked so many queries a second, open loop, for
    as long as this is open."""
    told = Beside(model.name, rate_qps, sla)
    over = threading.Event()
    with Engine(model, runtime=runtime, workers_of=engine, weight=weight) as other:
        how = policy or Policy(execution=other.execution)

        def ask() -> None:
            turn = 0
            while not over.is_set():
                schedule = workload.reseed(_SEED + turn).schedule(
                    rate_qps=rate_qps, duration_s=_PIECE_S
                )
                told.records.append(other.run(schedule, how, watch=lambda *_: over.is_set()))
                turn += 1

        thread = threading.Thread(target=ask, name=f"beside-{model.name}", daemon=True)
        thread.start()
        try:
            yield told
        finally:
            over.set()
            thread.join()


__all__ = ["Beside", "beside"]
