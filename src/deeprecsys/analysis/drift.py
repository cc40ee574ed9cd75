"""How far scores have moved: those of another execution against the exact ones, query by query.

Knows arrays of scores and labels; nothing of models, executions, or of how much is too much, which
`accuracy.py` says. Ties are fair: what depends on an order is the mean over the orders that they
allow, as bf16 scores have many (McSherry and Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", ECIR 2008).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprecsys.core import FloatArray, UserError

LEAST = 10_000  # candidates
_TAIL, _DECILE = 99.9, 10.0
_LEAST_PROBABILITY = 1e-12  # of what did happen: an entropy of infinity would say no more

Scores = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Quality:
    """What labels say of the exact scores, and of the others over them.

    auc: over all candidates. ndcg10: NDCG@10, the mean of the queries with a positive label.
    entropy: cross entropy over that of the mean label, normalised entropy; None where scores are no
    probabilities.
    """

    auc: float
    ndcg10: float
    entropy: float | None
    auc_ratio: float
    ndcg10_ratio: float
    entropy_ratio: float | None


@dataclass(frozen=True, slots=True)
class Drift:
    """Of several tasks, each number is that of the worst.

    spread: standard deviation of the exact scores. largest, p999: of |other - exact|, and shift:
    the mean of other - exact, all in scores. rank_correlation, rank_lowest: Spearman's within a
    query, mean and lowest decile of the queries. top10, top50: share of a query's best that stay
    among them, mean of the queries with more candidates (None: no query has more). own_error:
    largest error of the exact scores against float64, where it is known. quality: with labels.
    """

    candidates: int
    queries: int
    spread: float
    largest: float
    p999: float
    shift: float
    rank_correlation: float
    rank_lowest: float
    top10: float | None
    top50: float | None
    own_error: float | None = None
    quality: Quality | None = None

    @property
    def relative(self) -> float:
        """p999 in spreads, whatever the scores' unit."""
        return self.p999 / self.spread if self.spread else math.inf if self.p999 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def drift(
    exact: Sequence[Scores],
    other: Sequence[Scores],
    labels: Sequence[NDArray[Any]] | None = None,
    own_error: float | None = None,
) -> Drift:
    """Of queries' scores [n, K] in two executions.

    labels: 0 or 1, [n] (of the first task) or [n, K]. A score that is not finite counts as the
    worst, infinitely far off. Raises UserError for fewer than 10,000 candidates, for labels that
    are not 0 and 1 or of one class only; ValueError for shapes that do not match.
    """
    _check(exact, other)
    tasks = [
        ([query[:, k] for query in exact], [_finite(query[:, k]) for query in other])
        for k in range(exact[0].shape[1])
    ]
    found = [_of_task(*task) for task in tasks]
    worst = max(found, key=lambda one: one.relative)
    return replace(
        worst,
        largest=max(one.largest for one in found),
        shift=max((one.shift for one in found), key=abs),
        rank_correlation=min(one.rank_correlation for one in found),
        rank_lowest=min(one.rank_lowest for one in found),
        top10=_least(one.top10 for one in found),
        top50=_least(one.top50 for one in found),
        own_error=own_error,
        quality=None if labels is None else _judged(tasks, labels),
    )


def _check(exact: Sequence[Scores], other: Sequence[Scores]) -> None:
    if [query.shape for query in exact] != [query.shape for query in other]:
        raise ValueError("the two do not score the same queries")
    candidates = sum(map(len, exact))
    if candidates < LEAST:
        raise UserError(
            f"a guard without enough candidates: it needs {LEAST:,} to hold scores against each "
            f"other, and has {candidates:,}"
        )


def _finite(scores: Scores) -> FloatArray:
    return np.where(np.isfinite(scores), scores, -np.inf).astype(np.float64)


def _of_task(exact: Sequence[Scores], other: Sequence[FloatArray]) -> Drift:
    before = np.concatenate(exact).astype(np.float64)
    off = np.concatenate(other) - before
    size = np.sort(np.abs(off))
    ranks = np.sort([spearman(*pair) for pair in zip(exact, other, strict=True) if len(pair[0])])
    return Drift(
        candidates=len(before),
        queries=len(exact),
        spread=float(before.std()),
        largest=float(size[-1]),
        p999=float(size[math.ceil(len(size) * _TAIL / 100) - 1]),
        shift=float(off.mean()),
        rank_correlation=float(ranks.mean()),
        rank_lowest=float(ranks[math.ceil(len(ranks) * _DECILE / 100) - 1]),
        top10=_mean_overlap(exact, other, 10),
        top50=_mean_overlap(exact, other, 50),
    )


def _mean_overlap(exact: Sequence[Scores], other: Sequence[FloatArray], count: int) -> float | None:
    found = [
        overlap(*pair, count) for pair in zip(exact, other, strict=True) if len(pair[0]) > count
    ]
    return float(np.mean(found)) if found else None


def spearman(exact: Scores, other: Scores) -> float:
    """Correlation of the ranks of [n] scores, ties at their mean rank; 1 where both are one tie,
    0 where one is."""
    a, b = (_ranks(scores) for scores in (exact, other))
    a, b = a - a.mean(), b - b.mean()
    flat = (not a.any()) + (not b.any())
    if flat:
        return 1.0 if flat == 2 else 0.0
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def _ranks(scores: Scores) -> FloatArray:
    """From 1 for the lowest; equal scores share the mean of theirs."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean: FloatArray = np.cumsum(count) - (count - 1) / 2
    return mean[place]


def overlap(exact: Scores, other: Scores, count: int) -> float:
    """Share of the `count` best of [n > count] by `other` that are as good as the best by `exact`:
    none of these is lost by what only ties with the last of them."""
    good = exact >= np.partition(exact, -count)[-count]
    last = np.partition(other, -count)[-count]
    over, tied = other > last, other == last
    places = count - int(over.sum())
    hits = float((good & over).sum()) + places * float(good[tied].mean())
    return min(1.0, hits / count)


def _judged(
    tasks: Sequence[tuple[Sequence[Scores], Sequence[FloatArray]]], labels: Sequence[NDArray[Any]]
) -> Quality:
    """Of the task, among those with labels, that lost most; ratios the worst of all."""
    columns = [np.asarray(query).reshape(len(query), -1) for query in labels]
    if [len(query) for query in columns] != [len(query) for query in tasks[0][0]]:
        raise ValueError("the labels are not of these queries")
    found = []
    for k, (exact, other) in enumerate(tasks[: columns[0].shape[1]]):
        own = [query[:, k] for query in columns]
        _check_labels(np.concatenate(own))
        found.append(quality(exact, other, own))
    entropies = [one.entropy_ratio for one in found if one.entropy_ratio is not None]
    return replace(
        min(found, key=lambda one: min(one.auc_ratio, one.ndcg10_ratio)),
        auc_ratio=min(one.auc_ratio for one in found),
        ndcg10_ratio=min(one.ndcg10_ratio for one in found),
        entropy_ratio=max(entropies) if entropies else None,
    )


def _check_labels(labels: NDArray[Any]) -> None:
    values = np.unique(labels)
    if not np.isin(values, (0, 1)).all():
        wrong = values[~np.isin(values, (0, 1))][0]
        raise UserError(f"labels are 0 or 1, and one is {wrong}: quality cannot be told by them")
    if len(values) < 2:
        raise UserError(
            f"labels of one class only, all are {int(values[0])}: quality cannot be told by them"
        )


def quality(
    exact: Sequence[Scores], other: Sequence[Scores], labels: Sequence[NDArray[Any]]
) -> Quality:
    """Of queries' scores [n] and labels [n], 0 and 1, of both classes."""
    label = np.concatenate(labels).astype(bool)
    (a, n, e), (b, m, f) = (
        (auc(every, label), _mean_ndcg(scores, labels), _entropy(every, label))
        for scores in (exact, other)
        for every in [np.concatenate(scores)]
    )
    entropy_ratio = None if e is None or f is None else _over(f, e)
    return Quality(a, n, e, _over(b, a), _over(m, n), entropy_ratio)


def _over(other: float, exact: float) -> float:
    """Nothing of nothing is lost."""
    return other / exact if exact else 1.0


def _mean_ndcg(scores: Sequence[Scores], labels: Sequence[NDArray[Any]]) -> float:
    return float(np.mean([ndcg(*p) for p in zip(scores, labels, strict=True) if p[1].any()]))


def auc(scores: Scores, labels: NDArray[Any]) -> float:
    """How often a positive one is before a negative one; a tie is half."""
    positive = labels.astype(bool)
    count = int(positive.sum())
    wins = _ranks(scores)[positive].sum() - count * (count + 1) / 2
    return float(wins / (count * (len(scores) - count)))


def ndcg(scores: Scores, labels: NDArray[Any], top: int = 10) -> float:
    """NDCG@top of one query with a positive label."""
    discount = np.zeros(len(scores))
    discount[:top] = 1 / np.log2(np.arange(2, min(top, len(scores)) + 2))
    _, place, count = np.unique(-scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    summed = np.concatenate([[0.0], np.cumsum(discount)])
    mean = (summed[ends] - summed[ends - count]) / count  # of the places that a tie shares
    return float(labels @ mean[place] / summed[int(labels.sum())])


def _entropy(scores: Scores, positive: NDArray[np.bool_]) -> float | None:
    finite = scores[np.isfinite(scores)]
    if not len(finite) or finite.min() < 0 or finite.max() > 1:
        return None
    happened = np.where(positive, scores, 1 - np.clip(scores, 0, 1)).astype(np.float64)
    cross = -np.log(np.clip(happened, _LEAST_PROBABILITY, 1)).mean()
    mean = positive.mean()
    return float(cross / -(mean * np.log(mean) + (1 - mean) * np.log(1 - mean)))


def _least(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


__all__ = ["LEAST", "Drift", "Quality", "auc", "drift", "ndcg", "overlap", "quality", "spearman"]
