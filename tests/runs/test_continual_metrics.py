"""Scores of continual learning: by hand, by their identities, and by loops that say what they mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamwise.runs import continual_metrics as metrics

R = [[0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.5, 0.9, 0.7]]
square = st.integers(1, 6).flatmap(lambda n: arrays(float, (n, n), elements=st.floats(0.0, 1.0)))


def test_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx(0.7)
    assert metrics.stream_accuracy(R, [10, 10, 80]) == pytest.approx(0.05 + 0.09 + 0.56)
    assert metrics.incremental_accuracy(R) == pytest.approx((0.9 + 0.7 + 0.7) / 3)
    assert metrics.learning_accuracy(R) == pytest.approx(0.8)
    assert metrics.forgetting(R) == pytest.approx((0.4 - 0.1) / 2)
    assert metrics.forgetting_from_best(R) == pytest.approx((0.4 - 0.1) / 2)
    assert metrics.forward_transfer(R, [0.5, 0.05, 0.1]) == pytest.approx((0.05 + 0.2) / 2)
    assert metrics.worst_case_accuracy(R, [0, 1, 2]) == pytest.approx((0.5 + 0.8 + 0.7) / 3)


def test_what_was_best_may_have_come_later():
    later = [[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.4, 0.5, 0.5]]
    assert metrics.forgetting(later) == pytest.approx(0.05)
    assert metrics.forgetting_from_best(later) == pytest.approx(0.25)


@given(square)
def test_identities_and_bounds(found):
    assert metrics.backward_transfer(found) == -metrics.forgetting(found)
    assert metrics.forgetting_from_best(found) >= metrics.forgetting(found) - 1e-12
    assert metrics.stream_accuracy(found, [7] * len(found)) == pytest.approx(metrics.average_accuracy(found))
    own = [found[j, j] for j in range(len(found))]
    loss = [own[j] - found[-1, j] for j in range(len(found) - 1)]
    assert metrics.forgetting(found) == pytest.approx(sum(loss) / len(loss) if loss else 0.0)
    worst = [min(found[i, j] for i in range(j, len(found))) for j in range(len(found))]
    assert metrics.worst_case_accuracy(found, range(len(found))) == pytest.approx(np.mean(worst))


@given(st.integers(1, 6))
def test_who_keeps_all_is_perfect_and_who_keeps_nothing_has_a_share(experiences):
    perfect = np.ones((experiences, experiences))
    assert metrics.average_accuracy(perfect) == metrics.learning_accuracy(perfect) == 1.0
    assert metrics.forgetting(perfect) == metrics.forgetting_from_best(perfect) == 0.0
    only_the_last = np.eye(experiences)
    assert metrics.average_accuracy(only_the_last) == pytest.approx(1.0 / experiences)
    assert metrics.forgetting(only_the_last) == (1.0 if experiences > 1 else 0.0)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.sampled_from([0.5, 0.9, 0.999]))
def test_a_fading_mean_weighs_by_age_without_the_bias_of_its_start(correct, decay):
    found = metrics.fading_accuracy(correct, decay)
    for n in range(1, len(correct) + 1):
        weights = decay ** np.arange(n)[::-1]
        assert found[n - 1] == pytest.approx(np.average(np.array(correct[:n], float), weights=weights))


def test_retention_is_a_mean_over_the_logarithm_of_time():
    assert metrics.retention_area([1, 10, 100], [1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert metrics.retention_area([1, 10, 100], [1.0, 0.5, 0.0]) == pytest.approx(0.5)
    assert metrics.retention_area([1, 2, 100], [0.0, 1.0, 1.0]) > 0.8
    with pytest.raises(ValueError, match="above zero, in order"):
        metrics.retention_area([1, 1], [0.0, 1.0])


def test_what_has_more_times_than_experiences_is_refused():
    with pytest.raises(ValueError, match="one time for each experience"):
        metrics.average_accuracy([[1.0, 0.0]])


@given(square)
def test_where_nothing_returns_what_is_lost_on_leaving_is_what_is_forgotten(found):
    count = len(found)
    segments = [(10 * j, 10 * j + 10, j) for j in range(count)]
    looks = [10 * j + 10 for j in range(count)]
    assert metrics.lost_on_leaving(looks, found, segments) == pytest.approx(metrics.forgetting(found))


def test_what_returns_is_looked_at_before_it_does():
    segments = [(0, 10, 0), (10, 20, 1), (20, 30, 0), (30, 40, 2)]  # A B A C
    looks = [0, 10, 20, 30, 40]
    rows = [[0.1, 0.0, 0.0], [0.9, 0.0, 0.0], [0.5, 0.8, 0.1], [1.0, 0.4, 0.1], [0.7, 0.3, 0.9]]
    lost = [0.9 - 0.5, 0.8 - 0.3, 1.0 - 0.7]
    assert metrics.lost_on_leaving(looks, rows, segments) == pytest.approx(np.mean(lost))
    curve = metrics.retention_curve(looks, rows, segments, [0, 5, 10, 20, 21])
    assert curve[0] == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert curve[1] == pytest.approx((0.7 + 0.6 + 0.85) / 3)
    assert curve[2] == pytest.approx((0.5 + 0.4 + 0.7) / 3)
    assert curve[3] == pytest.approx(0.3)  # only B is away for so long
    assert np.isnan(curve[4])
    assert metrics.lost_on_leaving(looks[:2], rows[:2], [(0, 10, 0)]) == 0.0
    assert np.isnan(metrics.retention_curve(looks[:2], rows[:2], [(0, 10, 0)], [0, 1])).all()
