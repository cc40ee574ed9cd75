"""Drift and quality against their definitions, and what each level admits."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from deeprecsys.analysis.accuracy import BOUNDS, LEVELS, check_accuracy, why_not
from deeprecsys.analysis.drift import area, drift, ndcg_at
from deeprecsys.core import UserError


def queries(rng, noise=0.01, tasks=1):
    sizes = rng.integers(1, 200, 60)
    exact = [rng.random((n, tasks)).astype(np.float32) for n in sizes]
    other = [(e + rng.normal(0, noise, e.shape)).astype(np.float32) for e in exact]
    return exact, other


def found(exact, other, labels=None, **options):
    return drift(exact, other, labels, least=1, **options)


def test_drift_is_as_defined():
    exact, other = queries(np.random.default_rng(0))
    said = found(exact, other)
    one, two = (np.concatenate(x)[:, 0].astype(float) for x in (exact, other))
    assert said.candidates == len(one)
    assert said.queries == 60
    assert said.largest == pytest.approx(np.abs(two - one).max())
    assert said.shift == pytest.approx((two - one).mean())
    assert said.spread == pytest.approx(one.std())
    assert said.p999 == pytest.approx(np.quantile(np.abs(two - one), 0.999))
    many = [(e[:, 0], o[:, 0]) for e, o in zip(exact, other, strict=True) if len(e) > 1]
    assert said.rank_correlation == pytest.approx(np.mean([spearmanr(e, o)[0] for e, o in many]))
    for count, share in ((10, said.top10), (50, said.top50)):
        shares = [
            len({*np.argsort(e)[-count:]} & {*np.argsort(o)[-count:]}) / count
            for e, o in many
            if len(e) > count
        ]
        assert share == pytest.approx(np.mean(shares))


def test_equal_scores_share_their_rank():
    one = np.array([[1.0], [1.0], [0.0], [2.0]])
    two = np.array([[3.0], [4.0], [4.0], [9.0]])
    expected = spearmanr(one[:, 0], two[:, 0])[0]
    assert found([one], [two]).rank_correlation == pytest.approx(expected)
    assert found([one], [one * 0 + 1]).rank_correlation == 1.0


def test_the_worst_task_is_told():
    rng = np.random.default_rng(1)
    exact, other = queries(rng, tasks=3)
    for e, o in zip(exact, other, strict=True):
        o[:, [0, 2]] = e[:, [0, 2]]
    assert found(exact, other) == found([e[:, 1:2] for e in exact], [o[:, 1:2] for o in other])


def test_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(2)
    scores, positive = rng.integers(0, 20, 300) / 20, rng.random(300) < 0.3
    difference = scores[positive][:, None] - scores[~positive][None, :]
    pairs = (difference > 0).mean() + 0.5 * (difference == 0).mean()
    assert area(scores, positive) == pytest.approx(pairs)


def test_ndcg_is_one_for_the_ideal_order_and_less_for_others():
    gains = np.array([3.0, 0.0, 1.0, 2.0])
    assert ndcg_at(gains, gains) == pytest.approx(1.0)
    worst = ndcg_at(-gains, gains)
    by_hand = 1 / np.log2(3) + 2 / np.log2(4) + 3 / np.log2(5)
    ideal = 3 / np.log2(2) + 2 / np.log2(3) + 1 / np.log2(4)
    assert worst == pytest.approx(by_hand / ideal)


def test_quality_is_of_both_and_perfect_for_the_same_scores():
    rng = np.random.default_rng(3)
    exact, other = queries(rng)
    labels = [(rng.random(len(e)) < e[:, 0]).astype(float) for e in exact]
    same = found(exact, exact, labels).quality
    assert (same.auc_ratio, same.ndcg10_ratio, same.entropy_ratio) == (1.0, 1.0, 1.0)
    assert 0.6 < same.auc < 1.0
    assert same.entropy < 1.0
    shuffled = [rng.permutation(o) for o in other]
    assert found(exact, shuffled, labels).quality.auc_ratio < 0.9


def test_what_cannot_be_judged_is_refused():
    exact, other = queries(np.random.default_rng(4))
    with pytest.raises(UserError, match="at least 10000 candidates and there are"):
        drift(exact, other)
    with pytest.raises(UserError, match="of one class only"):
        found(exact, other, [np.ones(len(e)) for e in exact])
    with pytest.raises(UserError, match=r"exact, 99\.9, 99 or any, not '98'"):
        check_accuracy("98")


def test_levels_admit_less_and_less_and_name_what_failed():
    exact, _ = queries(np.random.default_rng(5))
    for noise, admitted in ((0.0, 4), (1e-4, 3), (5e-3, 2), (0.3, 1)):
        other = [e + np.float32(noise) * np.sin(1e3 * e) for e in exact]
        said = found(exact, other)
        able = [level for level in LEVELS if not why_not(said, level)]
        assert len(able) == admitted, (noise, [why_not(said, level) for level in LEVELS])
        assert able == list(LEVELS[-admitted:])
    assert "p99.9 drift" in why_not(said, "99")
    assert "top-10 overlap" in why_not(said, "99")


def test_exact_is_measured_by_what_exact_scores_are_off_themselves():
    exact, _ = queries(np.random.default_rng(6))
    other = [e + np.float32(3e-6) for e in exact]
    assert why_not(found(exact, other, own_error=2e-6), "exact") == ""
    assert "at most" in why_not(found(exact, other, own_error=5e-7), "exact")


def test_with_labels_quality_decides():
    rng = np.random.default_rng(7)
    exact, other = queries(rng, noise=0.2)
    labels = [(rng.random(len(e)) < e[:, 0]).astype(float) for e in exact]
    said = found(exact, other, labels)
    for ratio, level in ((0.9995, "99.9"), (0.995, "99")):
        good = replace(said, quality=replace(said.quality, auc_ratio=ratio, ndcg10_ratio=1.0))
        assert why_not(good, level) == ""
        bad = replace(good, quality=replace(good.quality, ndcg10_ratio=ratio - 0.01))
        assert f"NDCG {ratio - 0.01:.4f} of the exact" in why_not(bad, level)
    assert set(BOUNDS) < set(LEVELS)
