"""Statistics of runs agree with what their words say, computed the slow way."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwise.runs import statistics
from streamwise.runs.statistics import (
    bootstrap_interval,
    curve_on_grid,
    discounted_returns,
    known_returns,
    prediction_scores,
    running_mean,
)

rewards = st.lists(st.floats(-100, 100), max_size=60)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(statistics).failed == 0


@given(rewards, st.integers(1, 25))
def test_the_running_mean_is_the_mean_of_the_last_values_at_every_place(values, window):
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    assert running_mean(values, window) == pytest.approx(expected, abs=1e-9)


def test_one_nan_leaves_the_running_mean_with_the_window():
    values = np.ones(50)
    values[10] = np.nan
    means = running_mean(values, 20)
    assert np.flatnonzero(np.isnan(means)).tolist() == list(range(10, 30))


def test_a_window_below_one_is_refused():
    with pytest.raises(ValueError, match="window is 0"):
        running_mean([1.0], 0)


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    """Some 95% of 200 intervals hold the mean; 0.88 lies over three standard errors away."""
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.normal(5.0, 2.0, 40), np.mean, resamples=400) for _ in range(200)]
    covered = np.mean([low <= 5.0 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.99


def test_the_bootstrap_interval_is_of_percentiles_of_resampled_statistics():
    """Against resampling written out, with a seed of its own: equal within the noise of 2,000 resamples."""
    samples = np.random.default_rng(2).exponential(size=25)
    resamples = np.random.default_rng(3).choice(samples, (2000, 25))
    low, high = bootstrap_interval(samples, np.mean)
    expected_low, expected_high = np.percentile(resamples.mean(axis=1), [2.5, 97.5])
    assert low == pytest.approx(expected_low, abs=0.05)
    assert high == pytest.approx(expected_high, abs=0.05)


def test_a_curve_is_resampled_whole():
    """Curves that are shifts of one another keep the shape in both ends of the interval."""
    shape = np.sin(np.arange(30))
    curves = np.array([[0.0], [1.0], [3.0], [7.0]]) + shape
    low, high = bootstrap_interval(curves, np.mean)
    assert low.shape == high.shape == (30,)
    assert low - shape == pytest.approx(np.full(30, (low - shape)[0]))
    assert np.all(low < curves.mean(axis=0))
    assert np.all(curves.mean(axis=0) < high)


def test_the_same_seed_gives_the_same_interval_and_one_sample_gives_none():
    samples = [1.0, 5.0, 2.0, 8.0]
    assert bootstrap_interval(samples, np.mean, seed=4) == bootstrap_interval(samples, np.mean, seed=4)
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        bootstrap_interval([1.0], np.mean)


@given(st.lists(st.integers(0, 50), max_size=20), st.lists(st.integers(-5, 60), max_size=20))
def test_a_curve_on_a_grid_is_the_last_value_by_then(steps, grid):
    steps = sorted(steps)
    values = list(range(len(steps)))
    expected = [max((v for s, v in zip(steps, values, strict=True) if s <= g), default=np.nan) for g in grid]
    np.testing.assert_array_equal(curve_on_grid(steps, values, grid), expected)


@given(rewards, st.floats(0, 1))
def test_a_discounted_return_is_the_sum_written_out(cumulant, discount):
    expected = [
        sum(discount ** (k - t) * cumulant[k] for k in range(t, len(cumulant))) for t in range(len(cumulant))
    ]
    assert discounted_returns(cumulant, discount) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_a_known_return_can_not_be_moved_by_what_was_not_seen(discount):
    """Cumulants of 1 for ever: the known returns are within 1% of 1 / (1 - discount), no others."""
    steps = 700
    known = known_returns(steps, discount)
    if discount == 1.0:
        assert known == 0
        return
    missing = 1.0 - discounted_returns(np.ones(steps), discount) * (1.0 - discount)
    assert np.all(missing[:known] <= 0.01 + 1e-12)
    assert np.all(missing[known:] > 0.01 - 1e-12)


def brute_force_scores(prediction, cumulant, discount):
    """Return the three errors, each from its definition, one step at a time."""
    n = len(cumulant)
    errors = []
    for t in range(max(1, n // 2), n):
        if discount ** (n - t) > 0.01:
            continue
        true = sum(discount ** (k - t) * cumulant[k] for k in range(t, n))
        guesses = (prediction[t], sum(cumulant[:t]) / t / (1 - discount), cumulant[t - 1] / (1 - discount))
        errors.append([(guess - true) ** 2 for guess in guesses])
    return np.mean(errors, axis=0), len(errors)


@pytest.mark.parametrize(("steps", "discount"), [(101, 0.0), (100, 0.5), (301, 0.9), (400, 0.97)])
def test_prediction_scores_equal_their_definition(steps, discount):
    rng = np.random.default_rng(steps)
    cumulant = np.cumsum(rng.normal(size=steps)) + 20.0
    prediction = rng.normal(20.0 / (1 - discount), 5.0, size=steps)
    scores = prediction_scores(prediction, cumulant, discount)
    (learner, mean, last), count = brute_force_scores(prediction, cumulant, discount)
    assert (scores.learner, scores.running_mean, scores.last_cumulant) == pytest.approx((learner, mean, last))
    assert scores.scored_steps == count
    assert scores.ratio_to_running_mean == pytest.approx(learner / mean)
    assert scores.ratio_to_last_cumulant == pytest.approx(learner / last)


def test_a_perfect_prediction_scores_nothing_and_no_score_looks_at_the_first_half():
    cumulant = np.random.default_rng(0).normal(size=2000)
    prediction = discounted_returns(cumulant, 0.9)
    prediction[:1000] = 1e9
    assert prediction_scores(prediction, cumulant, 0.9).learner == 0.0


def test_no_baseline_sees_the_cumulant_it_is_scored_on():
    """One spike: at its own step both baselines still predict nothing, so both err by the whole spike."""
    cumulant = np.zeros(11)
    cumulant[9] = 10.0
    scores = prediction_scores(np.zeros(11), cumulant, 0.0)
    assert (scores.first_step, scores.last_step) == (6, 11)
    assert scores.running_mean == pytest.approx((100.0 + 1.0) / 6)  # the spike, then a mean of 10 values
    assert scores.last_cumulant == pytest.approx((100.0 + 100.0) / 6)  # the spike, then its echo


@pytest.mark.parametrize("steps", [0, 1, 10, 459])
def test_a_stream_too_short_to_be_judged_has_no_scores(steps):
    scores = prediction_scores(np.zeros(steps), np.ones(steps), 0.99)
    assert scores.scored_steps == 0
    assert np.isnan([scores.learner, scores.running_mean, scores.ratio_to_running_mean]).all()


def test_rows_that_do_not_match_and_impossible_discounts_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        prediction_scores([1.0, 2.0], [1.0], 0.9)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        prediction_scores([1.0], [1.0], 1.5)
