"""Service times by size and busy workers, and where they go: what `profile` finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deeprecsys.core import EXACT, Execution, Limits, UserError, Work
from deeprecsys.experiments.result import Asked, Result, origin
from deeprecsys.machines.service_time import Profile
from deeprecsys.report import text
from deeprecsys.workload import Workload

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.engine.profiler import Grid
    from deeprecsys.models import Model

FILE = "profile.json"
_OPERATOR_SIZES = (1, 16, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Profiling(Result):
    """A profile, its distance from the machine's limits, and, if asked for, operators, and the
    time of a request in each execution (rows of `engine.executions.survey`)."""

    profile: Profile
    asked: Asked
    grid: Grid
    limits: Limits
    work: Work | None  # None where nobody can tell, and then there is no distance
    workers: int
    operators: Sequence[Mapping[str, Any]] | None = None
    executions: Sequence[Mapping[str, Any]] | None = None
    roofline: Mapping[str, Any] | None = None
    interrupted: bool = False

    @property
    def verdict(self) -> str:
        """What contention costs, and how far the best batch size is from the limits."""
        rows = self._rows()
        parts = [self._contention(rows), *self._most_items(rows), self._fastest()]
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
            "executions": self.executions,
            "roofline": self.roofline,
            "paper_shares": _paper_shares(self.asked.model) if self.operators else None,
        }

    def save(self, folder: str | Path) -> Path:
        """Also profile.json, what simulation reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.profile.save(Path(folder) / FILE)
        return super().save(folder)

    def _fastest(self) -> str:
        if not self.executions:
            return ""
        best = self.executions[0]
        lo, hi = best["interval"]
        if lo <= 1:
            return "no execution is faster than exact beyond doubt"
        return (
            f"fastest executed as {best['execution']}: {best['ratio']:.2f}× [{lo:.2f}, {hi:.2f}] "
            "exact's items/s"
        )

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
    executions: bool = False,
    before: Profile | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_visit: Callable[[Profile, Grid], None] = lambda *_: None,
    on_executions: Callable[[float], None] = lambda _: None,
    asked: Asked | None = None,
) -> Profiling:
    """Measures how long a request takes, by its size and the number of busy workers.

    batch_sizes: default 1, 2, 4 .. the workload's largest query. before: goes on where that
    profile ended. operators: also the share of each class of operator, and a roofline. executions:
    also the time of a request in each execution, in half of the budget; on_executions is told the
    share of it that is done. UserError for what the model cannot.
    """
    from deeprecsys.engine.limits import measure_limits
    from deeprecsys.engine.profiler import Grid, busy_levels, powers_of_two

    if operators:
        from deeprecsys.engine.operators import check_operators

        check_operators(engine.model)
    if executions:
        _check_executions(engine.model)
        budget_s /= 2
    workload = workload or Workload()
    sizes = list(batch_sizes or powers_of_two(workload.size_law.largest))
    found = engine.profile(
        sizes, budget_s=budget_s, indices=workload.indices, before=before, stop=stop,
        on_visit=on_visit,
    )  # fmt: skip
    model, cores = engine.model, engine.cores
    limits = measure_limits(cores, *_width(model))
    more = operators and not stop()
    ways: list[dict[str, Any]] = []
    if executions and not stop():
        from deeprecsys.engine.executions import BATCH_SIZES, survey

        ways = survey(
            cast("Model", model), cores, batch_sizes or BATCH_SIZES, budget_s=budget_s,
            runtime=engine.runtime.name, indices=workload.indices, stop=stop,
            on_round=on_executions,
        ).rows()  # fmt: skip
    roofs = (more or bool(ways)) and bool(model.work)
    return Profiling(
        origin=origin("profile"),
        profile=found,
        asked=asked or Asked.of(engine, workload, model.target),
        grid=Grid(sizes, busy_levels(engine.workers)),
        limits=limits,
        work=model.work,
        workers=engine.workers,
        operators=_operators(model, sizes) if more else None,
        executions=ways or None,
        roofline=_roofline(found, model, limits, cores, ways) if roofs else None,
        interrupted=stop(),
    )


def _width(model: Any) -> list[int]:
    """Floats of a row that it looks up, if anybody knows."""
    return [row_bytes // 4 for _, row_bytes in (model.tables or ())[:1]]


def _operators(model: Any, sizes: Sequence[int]) -> list[dict[str, Any]]:
    from deeprecsys.engine.operators import measure_operators

    return [measure_operators(model, n).to_dict() for n in _OPERATOR_SIZES if n <= sizes[-1]]


def _check_executions(model: Any) -> None:
    if not getattr(model, "rewritable", True):
        raise UserError(f"{model.name} stays as it is: leave out --executions")
    if model.execution != EXACT:
        raise UserError("--executions holds all others against exact: leave out --execution")


def _roofline(
    found: Profile, model: Any, limits: Limits, cores: Any, ways: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    from deeprecsys.engine import roofline

    points = [
        roofline.point(model.work, model.spec.weights(), batch, busy / samples.median_s)
        for (batch, busy), samples in found.points.items()
        if busy == len(cores)
    ]
    return {
        **roofline.roofs(limits, roofline.bf16_flops_per_s(cores)),
        "models": {
            model.name: points,
            **{
                f"{model.name}, {row['execution']}": _under(model, row, cores)
                for row in ways
                if row.get("ratio") and row["execution"] != str(EXACT)
            },
            **roofline.contrast(cores),
        },
        "query_bytes": model.spec.bytes_per_query(270, model.query_inputs),
    }


def _under(model: Any, row: Mapping[str, Any], cores: Any) -> list[dict[str, float]]:
    """An execution's point under the roofs, at its best batch size."""
    from deeprecsys.engine import roofline

    execution = Execution.parse(row["execution"])
    work = model.spec.work(model.query_inputs, execution.rows)
    size = row["best_batch"]
    rate = len(cores) / row["seconds"][str(size)]
    return [roofline.point(work, model.spec.weights(), size, rate, execution.layers)]


def _paper_shares(model: str | None) -> dict[str, float]:
    from deeprecsys.engine.operators import PAPER_SHARES

    return dict(PAPER_SHARES.get(model or "", {}))
