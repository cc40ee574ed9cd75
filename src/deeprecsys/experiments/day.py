"""A fleet's day: what `simulate --fleet FILE` finds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.core import SLA, IntArray, Schedule, UserError
from deeprecsys.experiments.result import Result, origin, target_dict
from deeprecsys.fleet import file as fleet_file
from deeprecsys.fleet.fleet import Fleet, FleetDay
from deeprecsys.report.text import ms
from deeprecsys.workload.mix import Mix

STRETCHES = 96
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Day(Result):
    """`found`: what the run counted, by stretch of the day."""

    file: fleet_file.FleetFile
    found: FleetDay
    seed: int
    elapsed_s: float

    @property
    def holds(self) -> bool:
        """No model is known to miss its target, and nothing was overloaded."""
        missed = any(self.meets(model.name, model.sla) is False for model in self.file.model)
        return not missed and not self.found.overloaded

    def meets(self, model: str, sla: SLA) -> bool | None:
        """None where no query of it finished."""
        reached = self.found.percentile_s(sla.percentile, self._index(model))
        if math.isnan(reached):
            return None
        return bool(
            reached <= sla.latency_s and not self.found.unserved and not self.found.overloaded
        )

    @property
    def verdict(self) -> str:
        said = [self._said(model) for model in self._models()]
        if self.found.overloaded:
            said.append("overloaded: ended early, the backlog grew without end")
        if self.found.retried:
            said.append(f"{self.found.retried:,} queries retried after failures")
        if self.found.unserved:
            said.append(f"{self.found.unserved:,} queries found no machine up")
        return "simulated: " + "; ".join(said)

    def summary(self) -> dict[str, Any]:
        fleet = self.found.fleet
        notes = {"arrivals": self.file.arrivals, "models": ", ".join(fleet.models)}
        return {
            "model": None,
            "seed": self.seed,
            "sla": None,
            "fleet": {
                "file": fleet_file.described(self.file),
                "machines": fleet.machines,
                "cores": fleet.workers,
                "balancer": self.file.balancer,
                "seconds": self.file.day.seconds,
            },
            "workload": {"notes": notes},
            "simulated": {"service": "a fleet", "assumptions": _assumptions(fleet)},
            **self._counted(),
            "elapsed_s": self.elapsed_s,
            "verdict": self.verdict,
        }

    def _counted(self) -> dict[str, Any]:
        day = self.found
        stretches = len(day.counts.latency)
        return {
            "queries": day.queries,
            "retried": day.retried,
            "unserved": day.unserved,
            "overloaded": day.overloaded,
            "models": self._models(),
            "time_s": [(i + 0.5) * day.counts.stretch_s for i in range(stretches)],
            "rate_qps": day.rates_qps().tolist(),
            "busy": {name: share.tolist() for name, share in day.busy().items()},
            "devices_busy": {name: share.tolist() for name, share in day.devices_busy().items()},
        }

    def _models(self) -> list[dict[str, Any]]:
        slas = {model.name: model.sla for model in self.file.model}
        return [self._model(name, slas[name]) for name in self.found.fleet.models]

    def _model(self, name: str, sla: SLA) -> dict[str, Any]:
        day, i = self.found, self._index(name)
        return {
            "name": name,
            "queries": int(day.counts.latency[:, i].sum()),
            "sla": target_dict(sla),
            **{f"p{p}_s": day.percentile_s(p, i) for p in PERCENTILES},
            "meets_sla": self.meets(name, sla),
            "over_time": {f"p{p}_s": day.percentiles_s(p, i) for p in PERCENTILES},
        }

    def _said(self, model: Mapping[str, Any]) -> str:
        sla = model["sla"]
        word = {True: "meets", False: "misses", None: "undecided"}[model["meets_sla"]]
        return (
            f"{model['name']}: p95 {ms(model['p95_s'])} ms, p99 {ms(model['p99_s'])} ms "
            f"over the day, {word} p{sla['percentile']:g} ≤ {sla['latency_s'] * 1e3:g} ms"
        )

    def _index(self, model: str) -> int:
        return self.found.fleet.models.index(model)


@dataclass(frozen=True)
class DayTask:
    """A fleet and its traffic, ready to run."""

    file: fleet_file.FleetFile
    fleet: Fleet
    mix: Mix
    seed: int = 0

    @classmethod
    def read(cls, path: str | Path, seed: int = 0) -> DayTask:
        """UserError in one line for every mistake in the file."""
        file = fleet_file.read(str(path))
        fleet = fleet_file.fleet_of(file, Path(path).parent, seed)
        mix = fleet_file.mix_of(file, seed)
        for share in mix.shares:
            if share.model not in fleet.models:
                raise UserError(f"no kind serves {share.model}")
        return cls(file, fleet, mix, seed)

    def __str__(self) -> str:
        return (
            f"{self.fleet.machines:,} machines, {self.fleet.workers:,} cores, "
            f"{self.file.balancer}; {self.mix.qps:,.0f} queries/s on average for "
            f"{self.file.day.seconds:g} s, simulated"
        )

    def run(self) -> Day:
        began, seconds = time.monotonic(), self.file.day.seconds
        found = self.fleet.stream(self._pieces(), seconds, STRETCHES)
        elapsed_s = time.monotonic() - began
        return Day(
            origin=origin("simulate"),
            file=self.file,
            found=found,
            seed=self.seed,
            elapsed_s=elapsed_s,
        )

    def _pieces(self) -> Iterator[tuple[Schedule, IntArray]]:
        """With models as the fleet numbers them."""
        order = np.array([self.fleet.models.index(share.model) for share in self.mix.shares])
        for piece, model in self.mix.pieces(self.file.day.seconds):
            yield piece, order[model]


def _assumptions(fleet: Fleet) -> list[str]:
    said = [text for kind in fleet.kinds for model in fleet.models
            for text in kind.assumptions(model)]  # fmt: skip
    return list(dict.fromkeys(said))
