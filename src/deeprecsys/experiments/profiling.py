"""Service times by size and busy workers, and where they go: what `profile` finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprecsys.core import Limits, Work
from deeprecsys.experiments.result import Asked, Result, origin
from deeprecsys.machines.service_time import Profile
from deeprecsys.report import text
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.engine.profiler import Grid

FILE = "profile.json"
_OPERATOR_SIZES = (1, 16, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Profiling(Result):
    """A profile, its distance from the machine's limits, and, if asked for, operators."""

    profile: Profile
    asked: Asked
    grid: Grid
    limits: Limits
    work: Work | None  # None where nobody can tell, and then there is no distance
    workers: int
    operators: Sequence[Mapping[str, Any]] | None = None
    roofline: Mapping[str, Any] | None = None
    interrupted: bool = False

    @property
    def verdict(self) -> str:
        """What contention costs, and how far the best batch size is from the limits."""
        rows = self._rows()
        parts = [self._contention(rows), *self._most_items(rows)]
        done = self.grid.share_done(self.profile)
        if done < 1:
            parts.append(f"{done:.0%} of the visits were made; give more --budget-s for the rest")
        return "; ".join(part for part in parts if part)

    def summary(self) -> dict[str, Any]:
        return {
            **self.asked.to_dict(),
            "workers": self.workers,
            "runtime": self.profile.about["runtime"],
            "interrupted": self.interrupted,
            "share_done": self.grid.share_done(self.profile),
            "points": self._rows(),
            "limits": {name: getattr(self.limits, name) for name in Limits.__slots__},
            "operators": self.operators,
            "roofline": self.roofline,
            "paper_shares": _paper_shares(self.asked.model) if self.operators else None,
        }

    def save(self, folder: str | Path) -> Path:
        """Also profile.json, what simulation reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.profile.save(Path(folder) / FILE)
        return super().save(folder)

    def _rows(self) -> list[dict[str, Any]]:
        return [self._row(point) for point in self.profile.points]

    def _row(self, point: tuple[int, int]) -> dict[str, Any]:
        """A point of the profile, and how much of its time this machine's limits explain."""
        (batch, busy), samples = point, self.profile.points[point]
        item_s = self._item_s()
        return {
            "batch_size": batch,
            "busy": busy,
            "samples": len(samples.seconds),
            "rounds": samples.rounds,
            "median_s": samples.median_s,
            "mean_s": samples.mean_s,
            "p5_s": samples.percentile_s(5),
            "p95_s": samples.percentile_s(95),
            "items_per_s": busy * batch / samples.mean_s,
            "limits_share": item_s and batch * self.workers * item_s / samples.median_s,
        }

    def _item_s(self) -> float | None:
        """What one candidate must take, by the machine's limits."""
        limits, work = self.limits, self.work
        if work is None:
            return None
        rows = work.table_bytes / limits.lookup_bytes
        return work.flops / limits.flops_per_s + rows / limits.lookups_per_s

    def _contention(self, rows: Sequence[Mapping[str, Any]]) -> str:
        at = {(row["batch_size"], row["busy"]): row["median_s"] for row in rows}
        ratios = {n: at[n, self.workers] / at[n, 1] for n in self.grid.batch_sizes
                  if (n, 1) in at and (n, self.workers) in at}  # fmt: skip
        if not ratios or self.workers == 1:
            return ""
        size = max(ratios, key=lambda n: ratios[n])
        return (
            f"with {self.workers} workers busy a request takes up to {ratios[size]:.2f}× as long "
            f"as alone (batch size {size})"
        )

    def _most_items(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        full = [row for row in rows if row["busy"] == self.workers]
        if not full:
            return []
        best = max(full, key=lambda row: float(row["items_per_s"]))
        said = [
            f"most items/s at batch size {best['batch_size']}: {text.rate(best['items_per_s'])}"
        ]
        if best["limits_share"] is None:
            return said
        said[0] += f", {best['limits_share']:.0%} of what this machine's limits allow"
        if best["limits_share"] > 1:
            said.append("that limit is of uniformly random rows, and popular ones come from the "
                        "cache")  # fmt: skip
        return said


def profile(
    engine: Engine,
    workload: Workload | None = None,
    batch_sizes: Sequence[int] | None = None,
    *,
    budget_s: float = 60.0,
    operators: bool = False,
    before: Profile | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_visit: Callable[[Profile, Grid], None] = lambda *_: None,
    asked: Asked | None = None,
) -> Profiling:
    """Measures how long a request takes, by its size and the number of busy workers.

    batch_sizes: default 1, 2, 4 .. the workload's largest query. before: goes on where that
    profile ended. operators: also the share of each class of operator, and a roofline.
    """
    from deeprecsys.engine.limits import measure_limits
    from deeprecsys.engine.profiler import Grid, busy_levels, powers_of_two

    if operators:
        from deeprecsys.engine.operators import check_operators

        check_operators(engine.model)
    workload = workload or Workload()
    sizes = list(batch_sizes or powers_of_two(workload.size_law.largest))
    found = engine.profile(
        sizes, budget_s=budget_s, indices=workload.indices, before=before, stop=stop,
        on_visit=on_visit,
    )  # fmt: skip
    model, cores = engine.model, engine.cores
    limits = measure_limits(cores, *_width(model))
    more = operators and not stop()
    return Profiling(
        origin=origin("profile"),
        profile=found,
        asked=asked or Asked.of(engine, workload, model.target),
        grid=Grid(sizes, busy_levels(engine.workers)),
        limits=limits,
        work=model.work,
        workers=engine.workers,
        operators=_operators(model, sizes) if more else None,
        roofline=_roofline(found, model, limits, cores) if more and model.work else None,
        interrupted=stop(),
    )


def _width(model: Any) -> list[int]:
    """Floats of a row that it looks up, if anybody knows."""
    return [row_bytes // 4 for _, row_bytes in (model.tables or ())[:1]]


def _operators(model: Any, sizes: Sequence[int]) -> list[dict[str, Any]]:
    from deeprecsys.engine.operators import measure_operators

    return [measure_operators(model, n).to_dict() for n in _OPERATOR_SIZES if n <= sizes[-1]]


def _roofline(found: Profile, model: Any, limits: Limits, cores: Any) -> dict[str, Any]:
    from deeprecsys.engine import roofline

    points = [
        roofline.point(model.work, model.spec.weights(), batch, busy / samples.median_s)
        for (batch, busy), samples in found.points.items()
        if busy == len(cores)
    ]
    return {
        **roofline.roofs(limits, roofline.bf16_flops_per_s(cores)),
        "models": {model.name: points, **roofline.contrast(cores)},
        "query_bytes": model.spec.bytes_per_query(270, model.query_inputs),
    }


def _paper_shares(model: str | None) -> dict[str, float]:
    from deeprecsys.engine.operators import PAPER_SHARES

    return dict(PAPER_SHARES.get(model or "", {}))
