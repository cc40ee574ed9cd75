"""Drift against what its numbers are defined as, slowly; and the levels that are made of it."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import stats

from deeprecsys.analysis import drift as room
from deeprecsys.analysis.accuracy import BOUNDS, LEVELS, why_not
from deeprecsys.analysis.drift import auc, drift, ndcg, overlap, quality, spearman
from deeprecsys.core import UserError


@pytest.fixture
def few(monkeypatch):
    """Queries of a few candidates are enough."""
    monkeypatch.setattr(room, "LEAST", 1)


def scores(rng, *shape, ties=False):
    found = rng.random(shape)
    return np.round(found, 1) if ties else found


def queries(seed=0, count=60, tasks=1, noise=0.05):
    """Exact scores, others near them, labels that go with the exact ones."""
    rng = np.random.default_rng(seed)
    exact = [scores(rng, int(n), tasks) for n in rng.integers(100, 300, count)]
    other = [np.clip(q + noise * rng.standard_normal(q.shape), 0, 1) for q in exact]
    labels = [(rng.random(q.shape) < q).astype(int) for q in exact]
    return exact, other, labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_spearmans(seed, ties):
    rng = np.random.default_rng(seed)
    a, b = scores(rng, 40, ties=ties), scores(rng, 40, ties=ties)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_rank_correlation_of_what_is_all_one_tie():
    flat, other = np.ones(5), np.arange(5.0)
    assert (spearman(flat, flat), spearman(flat, other), spearman(other, flat)) == (1, 0, 0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_in_order(seed, ties):
    rng = np.random.default_rng(seed)
    found, labels = scores(rng, 50, ties=ties), rng.integers(0, 2, 50)
    pairs = [
        (p > n) + (p == n) / 2 for p in found[labels == 1] for n in found[labels == 0]
    ]  # fmt: skip
    assert auc(found, labels) == pytest.approx(np.mean(pairs))


def orders(found):
    """Every order in which a sort may put them."""
    for order in permutations(range(len(found))):
        if all(found[a] >= found[b] for a, b in pairwise(order)):
            yield list(order)


@pytest.mark.parametrize("seed", range(8))
def test_ndcg_is_the_mean_over_the_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    found, labels = rng.integers(0, 4, 7) / 4, rng.integers(0, 2, 7)
    labels[0] = 1
    gain = 1 / np.log2(np.arange(2, 6))
    best = gain[: labels.sum()].sum()
    expected = np.mean([gain @ labels[order[:4]] / best for order in orders(found)])
    assert ndcg(found, labels, 4) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
def test_overlap_is_the_mean_over_the_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    exact, other = rng.permutation(7), rng.integers(0, 4, 7)
    best = set(np.argsort(-exact)[:3].tolist())
    expected = np.mean([len(best & set(order[:3])) / 3 for order in orders(other)])
    assert overlap(exact, other, 3) == pytest.approx(expected)


def test_what_ties_with_the_last_of_the_best_is_as_good():
    exact = np.array([3.0, 2, 2, 2, 1])
    assert overlap(exact, np.array([9.0, 1, 2, 8, 0]), 2) == 1
    assert overlap(exact, np.array([9.0, 1, 2, 3, 8]), 2) == 0.5


def test_numbers_of_drift_are_those_of_their_definitions():
    exact, other, labels = queries()
    found = drift(exact, other, labels)
    a, b, label = (np.concatenate(part).ravel() for part in (exact, other, labels))
    off = np.sort(np.abs(b - a))
    assert found.candidates == len(a)
    assert found.queries == len(exact)
    assert found.largest == off[-1]
    assert found.p999 == off[math.ceil(0.999 * len(off)) - 1]
    assert found.relative == pytest.approx(found.p999 / a.std())
    assert found.shift == pytest.approx((b - a).mean())
    ranks = sorted(
        stats.spearmanr(x.ravel(), y.ravel()).statistic
        for x, y in zip(exact, other, strict=True)
    )  # fmt: skip
    assert found.rank_correlation == pytest.approx(np.mean(ranks))
    assert found.rank_lowest == pytest.approx(ranks[math.ceil(len(ranks) / 10) - 1])
    for count, said in ((10, found.top10), (50, found.top50)):
        shares = [
            len(set(np.argsort(-x.ravel())[:count]) & set(np.argsort(-y.ravel())[:count])) / count
            for x, y in zip(exact, other, strict=True)
        ]
        assert said == pytest.approx(np.mean(shares), abs=1e-3)  # clipped ones tie
    happened = np.where(label == 1, b, 1 - b).clip(1e-12)
    p = label.mean()
    base = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert found.quality.entropy_ratio == pytest.approx(
        -np.log(happened).mean() / base / found.quality.entropy
    )
    assert found.quality.auc_ratio == pytest.approx(auc(b, label) / auc(a, label))


def test_the_same_scores_have_not_moved():
    exact, _, labels = queries()
    found = drift(exact, exact, labels, 1e-7)
    assert (found.largest, found.relative, found.shift) == (0, 0, 0)
    assert (found.top10, found.top50) == (1, 1)
    assert found.rank_correlation == pytest.approx(1)
    assert (found.quality.auc_ratio, found.quality.ndcg10_ratio) == (1, 1)
    assert found.quality.entropy_ratio == 1
    assert [why_not(found, level) for level in LEVELS] == [""] * len(LEVELS)


def test_of_several_tasks_the_worst_is_told():
    exact, other, labels = queries(tasks=3)
    other = [np.stack([q[:, 0], o[:, 1], q[:, 2]], 1) for q, o in zip(exact, other, strict=True)]
    every = drift(exact, other, labels)
    alone = drift(*([q[:, 1:2] for q in part] for part in (exact, other, labels)))
    assert every == alone
    first = drift(exact, other, [label[:, 0] for label in labels])
    assert first.quality.auc_ratio == 1, "labels of one column are the first task's"


def test_a_score_that_is_no_number_is_the_worst():
    exact, _, labels = queries()
    other = [q.copy() for q in exact]
    other[3][0] = np.nan
    other[5][1] = np.inf
    found = drift(exact, other, labels)
    assert found.largest == np.inf
    assert np.isfinite(found.relative), "two of ten thousand are beyond the 99.9th percentile"
    assert found.quality.auc_ratio < 1
    for level in ("exact", "99.9"):
        every = drift(exact, [np.full_like(q, np.nan) for q in exact])
        assert why_not(every, level)


def test_scores_that_are_no_probabilities_have_no_entropy():
    exact, other, labels = queries()
    found = drift([10 * q for q in exact], [10 * q for q in other], labels)
    assert found.quality.entropy is found.quality.entropy_ratio is None
    assert found.quality.auc == drift(exact, other, labels).quality.auc


def test_queries_of_ten_candidates_say_nothing_of_the_ten_best(few):
    rng = np.random.default_rng(0)
    small = [scores(rng, 10, 1) for _ in range(4)]
    found = drift(small, small)
    assert found.top10 is None
    assert "no query has more than ten candidates" in why_not(found, "99")


def test_a_guard_without_enough_candidates_is_refused():
    exact, other, _ = queries(count=20)
    with pytest.raises(UserError, match=r"a guard without enough candidates: it needs 10,000"):
        drift(exact, other)


@pytest.mark.parametrize(("label", "said"), [(0, "all are 0"), (1, "all are 1"), (3, "one is 3")])
def test_labels_that_tell_nothing_are_refused(label, said):
    exact, other, labels = queries()
    with pytest.raises(UserError, match=said):
        drift(exact, other, [np.full_like(one, label) for one in labels])


def test_what_does_not_belong_together_is_a_mistake():
    exact, other, labels = queries()
    with pytest.raises(ValueError, match="the same queries"):
        drift(exact, other[:-1])
    with pytest.raises(ValueError, match="not of these queries"):
        drift(exact, other, labels[:-1])


def test_exact_is_measured_by_what_exact_scores_are_off_themselves():
    exact, _, _ = queries()
    other = [q + 3e-6 for q in exact]
    assert why_not(drift(exact, other, own_error=1e-6), "exact") == ""
    assert "over 4 times fp32's own error, 2e-06" in why_not(
        drift(exact, other, own_error=5e-7), "exact"
    )
    assert "over 1e-05" in why_not(drift(exact, other), "exact"), "nobody knows the error"
    assert why_not(drift(exact, [q + 1e-6 for q in exact]), "exact") == ""


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2, 0.1, 1.0])
def test_a_level_admits_what_a_stricter_one_does(noise):
    exact, other, labels = queries(noise=noise)
    for said in (drift(exact, other), drift(exact, other, labels)):
        failed = [bool(why_not(said, level)) for level in LEVELS]
        assert failed == sorted(failed, reverse=True)


def test_with_labels_a_level_is_their_ratio_alone():
    exact, other, labels = queries(noise=0.3)
    found = drift(exact, other, labels)
    assert 0 < found.quality.auc_ratio < 0.99
    said = why_not(found, "99")
    assert f"AUC {found.quality.auc_ratio:.5f} of the exact one, under 0.99" in said
    assert "drift" not in said
    without = why_not(drift(exact, other), "99")
    assert without.count("drift: ") == 2
    assert f"{found.top10:.4f} of the ten best stay, under {BOUNDS['99'].top10:g}" in without


def test_quality_is_that_of_the_queries_with_a_positive():
    first = np.array([0.9, 0.1]), np.array([1, 0])
    none = np.array([0.8, 0.2]), np.array([0, 0])
    both = [list(part) for part in zip(first, none, strict=True)]
    assert quality(both[0], *both).ndcg10 == 1


def test_an_unknown_level_is_refused():
    exact, _, _ = queries()
    with pytest.raises(UserError, match=r"exact, 99.9, 99 or any, not '99.5'"):
        why_not(drift(exact, exact), "99.5")
