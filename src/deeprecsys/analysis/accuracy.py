"""How much drift is too much: the levels of `--accuracy`.

With labels, a level is a share of the exact AUC and NDCG@10. Without, it is bounds on how far
scores and their order moved, which is drift and says nothing of quality (`docs/accuracy.md` has
the measured figures behind the bounds). Knows a `Drift`; not how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

from deeprecsys.analysis.drift import Drift
from deeprecsys.core import UserError

LEVELS = ("exact", "99.9", "99", "any")
# Another order of the same sums may be off by as much as fp32 itself, several times over.
OWN_ERRORS = 4.0
# Of a model whose float64 scores nobody can tell: p99.9 in standard deviations of its scores. fp32
# is off by 2e-6 to 4e-6 of them in the models of the zoo.
UNKNOWN_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class Bounds:
    """quality: least ratio of AUC and of NDCG@10. Without labels: relative, the most that
    `Drift.relative` may be, and the least overlap of the ten best."""

    quality: float
    relative: float
    top10: float


BOUNDS = {"99.9": Bounds(0.999, 0.07, 0.98), "99": Bounds(0.99, 0.2, 0.95)}


def check_accuracy(level: str) -> None:
    """UserError naming the known ones."""
    if level not in LEVELS:
        raise UserError(f"--accuracy is {', '.join(LEVELS[:-1])} or {LEVELS[-1]}, not {level!r}")


def why_not(drift: Drift, level: str) -> str:
    """What fails of the level, each bound with its number, in one line; "" where nothing does."""
    check_accuracy(level)
    if level == "any":
        return ""
    if level == "exact":
        return _not_exact(drift)
    bounds = BOUNDS[level]
    failed = _lost(drift, bounds) if drift.quality is not None else _moved(drift, bounds)
    return "; ".join(failed)


def _not_exact(drift: Drift) -> str:
    if drift.own_error is None:
        if drift.relative <= UNKNOWN_ERROR:
            return ""
        return f"p99.9 |Δscore| {drift.relative:.2g} of the scores' spread, over {UNKNOWN_ERROR:g}"
    bound = OWN_ERRORS * drift.own_error
    if drift.largest <= bound:
        return ""
    return (
        f"largest |Δscore| {drift.largest:.2g}, over {OWN_ERRORS:g} times fp32's own error, "
        f"{bound:.2g}"
    )


def _lost(drift: Drift, bounds: Bounds) -> list[str]:
    assert drift.quality is not None
    ratios = {"AUC": drift.quality.auc_ratio, "NDCG@10": drift.quality.ndcg10_ratio}
    return [
        f"{name} {ratio:.5f} of the exact one, under {bounds.quality:g}"
        for name, ratio in ratios.items()
        if not ratio >= bounds.quality
    ]


def _moved(drift: Drift, bounds: Bounds) -> list[str]:
    failed = []
    if not drift.relative <= bounds.relative:
        failed.append(
            f"drift: p99.9 |Δscore| {drift.relative:.2g} of the scores' spread, over "
            f"{bounds.relative:g}"
        )
    if drift.top10 is None:
        failed.append("drift: no query has more than ten candidates, so the ten best tell nothing")
    elif not drift.top10 >= bounds.top10:
        failed.append(f"drift: {drift.top10:.4f} of the ten best stay, under {bounds.top10:g}")
    return failed


__all__ = ["BOUNDS", "LEVELS", "Bounds", "check_accuracy", "why_not"]
