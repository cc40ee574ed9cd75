"""The admission rule: its predictions, and that it learns the pace and its own errors."""

import numpy as np
import pytest

from deeprecsys.core import Policy, UserError
from deeprecsys.rules.admission import Admission, in_time

BASE_S, ITEM_S = 1e-3, 1e-4


def law(n):
    return BASE_S + ITEM_S * n


def admission(workers=2, **more):
    return Admission(workers, law, **more)


@pytest.mark.parametrize(("size", "batch"), [(1, 128), (128, 128), (300, 128), (1000, 25)])
def test_work_is_the_sum_of_the_requests_that_the_policy_cuts(size, batch):
    sizes = [batch] * (size // batch) + ([size % batch] if size % batch else [])
    expected = sum(BASE_S + ITEM_S * n for n in sizes)
    assert admission().work_s(size, Policy(batch)) == pytest.approx(expected)


def test_a_prediction_is_what_is_ahead_and_its_own_requests_side_by_side():
    rule = admission(workers=2)
    one = rule.predict_s(0.0, 100, Policy(128)) / rule.factor()
    assert one == pytest.approx(BASE_S + 100 * ITEM_S)
    split = rule.predict_s(0.0, 100, Policy(50)) / rule.factor()
    assert split == pytest.approx(BASE_S + 50 * ITEM_S)
    behind = rule.predict_s(0.3, 100, Policy(50)) / rule.factor()
    assert behind == pytest.approx(split + 0.15)


def test_the_pace_follows_requests_that_take_twice_as_long():
    rule = admission()
    for _ in range(200):
        rule.executed(0.01, 0.02)
    assert rule.pace == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("percentile", [50, 90, 95, 99])
def test_the_factor_rests_where_the_wanted_share_is_in_time(percentile):
    rule, rng = admission(percentile=percentile), np.random.default_rng(0)
    took = rng.lognormal(0.0, 0.3, 20_000)
    late = []
    for one in took:
        predicted = rule.factor() * 0.1
        rule.finished(predicted, 0.1 * one, deadline_s=0.1)
        late.append(0.1 * one > predicted)
    assert np.mean(late[2000:]) == pytest.approx(1 - in_time(percentile), rel=0.2, abs=0.002)


def test_the_share_aimed_at_is_a_little_above_the_target_s():
    for percentile in (1.0, 50.0, 95.0, 99.0, 99.9):
        assert percentile / 100 < in_time(percentile) < 1
    assert in_time(95) == pytest.approx(0.97)


def test_each_priority_learns_from_its_own_errors_alone():
    rule = admission()
    for _ in range(500):
        rule.finished(0.1, 0.3, deadline_s=0.1, priority=9)
        rule.finished(0.1, 0.05, deadline_s=0.1, priority=1)
    assert rule.factor(9) > 3
    assert rule.factor(1) < 1.2
    assert rule.predict_s(0.1, 10, Policy(10), 9) > 2 * rule.predict_s(0.1, 10, Policy(10), 1)


def test_an_accelerator_takes_queries_whole():
    rule = admission(workers=1, whole=True)
    assert rule.work_s(300, Policy(25)) == pytest.approx(BASE_S + 300 * ITEM_S)
    assert rule.predict_s(0.5, 300, Policy(25)) / rule.factor() == pytest.approx(
        0.5 + BASE_S + 300 * ITEM_S
    )


def test_predictions_far_within_a_deadline_teach_nothing():
    rule = admission()
    before = rule.factor()
    for _ in range(100):
        rule.finished(0.01, 5.0, deadline_s=0.1)
    assert rule.factor() == before


def test_there_is_no_admission_without_workers():
    with pytest.raises(UserError):
        admission(workers=0)
