"""How far the scores of one execution are from those of another, query by query.

Knows arrays, not models. Without labels this is drift, and says nothing of quality: random weights
prove arithmetic only. With labels it also says what became of AUC, NDCG and entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import UserError

# From fewer candidates no thousandth can be told.
LEAST_CANDIDATES = 10_000
_TOP = (10, 50)


@dataclass(frozen=True, slots=True)
class Quality:
    """Of exact scores, and of the others over them. auc and entropy over all candidates, ndcg the
    mean of queries, of the ten best."""

    auc: float
    ndcg10: float
    entropy: float
    auc_ratio: float
    ndcg10_ratio: float
    entropy_ratio: float


@dataclass(frozen=True, slots=True)
class Drift:
    """Of the worst task, where there are several.

    spread: standard deviation of the exact scores over candidates. largest, p999: of |Δscore|, and
    shift: mean of Δscore, all in scores. rank_correlation: Spearman's, the mean of queries.
    top10, top50: share of a query's best that both have, the mean of queries with more than so
    many. own_error: largest |Δscore| of the exact scores against float64, where it is known.
    """

    candidates: int
    queries: int
    spread: float
    largest: float
    p999: float
    shift: float
    rank_correlation: float
    top10: float
    top50: float
    own_error: float | None = None
    quality: Quality | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def drift(
    exact: Sequence[NDArray[Any]],
    other: Sequence[NDArray[Any]],
    labels: Sequence[NDArray[Any]] | None = None,
    own_error: float | None = None,
    least: int = LEAST_CANDIDATES,
) -> Drift:
    """Of scores [n, K] by query. labels [n]: what was clicked, or how much; of the first task.

    UserError with fewer candidates than `least`, or with labels of one class only.
    """
    candidates = sum(map(len, exact))
    if candidates < least:
        raise UserError(
            f"a guard needs at least {least} candidates and there are {candidates}: "
            "record more queries"
        )
    tasks = exact[0].shape[1]
    found = [
        _of_task([e[:, k] for e in exact], [o[:, k] for o in other], own_error)
        for k in range(tasks)
    ]
    worst = max(found, key=lambda one: one.p999 / max(one.spread, 1e-300))
    if labels is None:
        return worst
    said = _quality([e[:, 0] for e in exact], [o[:, 0] for o in other], labels)
    return Drift(**{**{name: getattr(worst, name) for name in worst.__slots__}, "quality": said})


def _of_task(
    exact: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]], own_error: float | None
) -> Drift:
    one = np.concatenate(exact).astype(np.float64)
    off = np.concatenate(other).astype(np.float64) - one
    pairs = list(zip(exact, other, strict=True))
    top10, top50 = (_overlap(pairs, count) for count in _TOP)
    return Drift(
        candidates=len(one),
        queries=len(exact),
        spread=float(one.std()),
        largest=float(np.abs(off).max()),
        p999=float(np.quantile(np.abs(off), 0.999)),
        shift=float(off.mean()),
        rank_correlation=_mean([_spearman(e, o) for e, o in pairs if len(e) > 1]),
        top10=top10,
        top50=top50,
        own_error=own_error,
    )


def _overlap(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], count: int) -> float:
    """1 where no query has more than `count`."""
    shares = [
        len(np.intersect1d(_best(e, count), _best(o, count))) / count
        for e, o in pairs
        if len(e) > count
    ]
    return _mean(shares)


def _best(scores: NDArray[Any], count: int) -> NDArray[Any]:
    """Positions of the highest; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    """From 0; of equal ones the mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: NDArray[Any] = (ends - (counts + 1) / 2)[place]
    return mean


def _spearman(one: NDArray[Any], other: NDArray[Any]) -> float:
    """1 where either is all the same."""
    a, b = _ranks(one), _ranks(other)
    if a.std() == 0 or b.std() == 0:
        return 1.0
    return float(np.corrcoef(a, b)[0, 1])


def _quality(
    exact: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]
) -> Quality:
    flat = np.concatenate(labels)
    if len(np.unique(flat > 0)) < 2:
        raise UserError("the labels are of one class only: no AUC can be told from them")
    two = [np.concatenate(scores).astype(np.float64) for scores in (exact, other)]
    auc = [area(scores, flat > 0) for scores in two]
    ndcg = [
        _mean([ndcg_at(s, y) for s, y in zip(scores, labels, strict=True) if (y > 0).any()])
        for scores in (exact, other)
    ]
    entropy = [_entropy(scores, flat > 0) for scores in two]
    ratios = [b / a if a else float("nan") for a, b in (auc, ndcg, entropy)]
    return Quality(auc[0], ndcg[0], entropy[0], *ratios)


def area(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """AUC, by ranks (Mann and Whitney 1947)."""
    many = int(positive.sum())
    ranks = _ranks(scores)[positive].sum() - many * (many - 1) / 2
    return float(ranks / (many * (len(scores) - many)))


def ndcg_at(scores: NDArray[Any], gains: NDArray[Any], count: int = 10) -> float:
    """Of one query with a gain above 0: gains over log2 of the place plus one."""
    weights = 1 / np.log2(np.arange(2, count + 2))
    got, ideal = gains[_best(scores, count)], np.sort(gains)[::-1][:count]
    return float((got * weights[: len(got)]).sum() / (ideal * weights[: len(ideal)]).sum())


def _entropy(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Cross entropy over that of the mean (He et al., ADKDD 2014); NaN unless probabilities."""
    if scores.min() < 0 or scores.max() > 1:
        return float("nan")
    kept, share = np.clip(scores, 1e-7, 1 - 1e-7), positive.mean()
    loss = -np.where(positive, np.log(kept), np.log1p(-kept)).mean()
    return float(loss / -(share * np.log(share) + (1 - share) * np.log1p(-share)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 1.0


__all__ = ["LEAST_CANDIDATES", "Drift", "Quality", "area", "drift", "ndcg_at"]
