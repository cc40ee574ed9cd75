"""How near the exact scores an execution must be, by level: pure rules over a `Drift`.

With labels, MLPerf's: a ratio to the exact AUC and NDCG@10. Without, bounds on drift, in units of
the exact scores' own spread, and on the ten best of a query; that is no claim of quality.
"""

from __future__ import annotations

from dataclasses import dataclass

from deeprecsys.analysis.drift import Drift
from deeprecsys.core import UserError

# Exact arithmetic in another order errs about as much as it did.
_OWN_ERRORS, _LEAST_ERROR = 4.0, 1e-6


@dataclass(frozen=True, slots=True)
class Bounds:
    """quality: of AUC and NDCG@10, over the exact. p999: of |Δscore| over the spread, at most.
    top10: at least."""

    quality: float
    p999: float
    top10: float


BOUNDS = {"99.9": Bounds(0.999, 0.01, 0.99), "99": Bounds(0.99, 0.1, 0.95)}
LEVELS = ("exact", *BOUNDS, "any")


def check_accuracy(level: str) -> None:
    """UserError naming the known ones."""
    if level not in LEVELS:
        raise UserError(f"--accuracy is {', '.join(LEVELS[:-1])} or {LEVELS[-1]}, not {level!r}")


def why_not(drift: Drift, level: str) -> str:
    """What keeps an execution from being admitted, in one line with its numbers; "" if nothing."""
    check_accuracy(level)
    if level == "any":
        return ""
    if level == "exact":
        most = max(_OWN_ERRORS * (drift.own_error or 0.0), _LEAST_ERROR)
        return "" if drift.largest <= most else f"drift {drift.largest:.2g}, at most {most:.2g}"
    bounds, failed = BOUNDS[level], []
    if drift.quality is not None:
        for name, ratio in (("AUC", drift.quality.auc_ratio), ("NDCG", drift.quality.ndcg10_ratio)):
            if not ratio >= bounds.quality:
                failed.append(f"{name} {ratio:.4f} of the exact, at least {bounds.quality:g}")
        return "; ".join(failed)
    p999 = drift.p999 / drift.spread if drift.spread else float(drift.p999 > 0)
    if not p999 <= bounds.p999:
        failed.append(f"p99.9 drift {p999:.2g} of the scores' spread, at most {bounds.p999:g}")
    if not drift.top10 >= bounds.top10:
        failed.append(f"top-10 overlap {drift.top10:.3f}, at least {bounds.top10:g}")
    return "; ".join(failed)
