"""The statistics over many runs: closed forms, what must hold of any scores, and whether intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from streamwise.runs.aggregate import (
    improvement,
    interquartile_mean,
    normalized,
    overall_interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

rows = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=30)
strata = st.lists(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("scores", "mean"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 6.0], 3.0),  # of three nothing is left out
        ([0.0, 1.0, 3.0, 100.0], 2.0),
        ([5.0, 1.0, 2.0, 3.0, 99.0], 10.0 / 3.0),
        (list(range(100)), 49.5),
    ],
)
def test_the_interquartile_mean_in_small_cases(scores, mean):
    assert interquartile_mean(scores) == pytest.approx(mean)


@given(rows)
def test_the_interquartile_mean_lies_between_the_quartiles(scores):
    low, high = np.quantile(scores, [0.25, 0.75])
    assert low - 1e-9 <= interquartile_mean(scores) <= high + 1e-9


@given(rows, st.randoms())
def test_the_interquartile_mean_knows_no_order_and_follows_a_change_of_unit(scores, random):
    shuffled = random.sample(scores, len(scores))
    assert interquartile_mean(shuffled) == pytest.approx(float(interquartile_mean(scores)))
    scaled = 3.0 * np.array(scores) - 8.0
    assert interquartile_mean(scaled) == pytest.approx(3.0 * float(interquartile_mean(scores)) - 8.0)


@given(rows.filter(lambda scores: len(scores) >= 4))
def test_one_outlier_does_not_move_the_interquartile_mean(scores):
    *others, highest = sorted(scores)
    assert interquartile_mean([*others, highest + 1e9]) == pytest.approx(float(interquartile_mean(scores)))


def test_the_interquartile_mean_takes_one_axis():
    scores = np.random.default_rng(0).normal(size=(2, 9, 3))
    assert interquartile_mean(scores, axis=1) == pytest.approx(stats.trim_mean(scores, 0.25, axis=1))
    scores = np.arange(24.0).reshape(2, 4, 3)
    assert interquartile_mean(scores, axis=1).tolist() == [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]


@given(rows)
def test_normalized_scores_span_zero_to_one(scores):
    scaled = normalized(scores, min(scores), max(scores))
    if len(set(scores)) == 1:
        assert set(scaled) == {0.5}
    else:
        assert (min(scaled), max(scaled)) == (0.0, 1.0)
        assert stats.rankdata(scaled).tolist() == stats.rankdata(scores).tolist()


@pytest.mark.parametrize(
    ("scores", "others", "probability"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0, 1.0], [2.0, 3.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 4.0], [2.0, 3.0, 4.0, 9.0], (2 + 0.5) / 8),
    ],
)
def test_the_probability_of_improvement_in_small_cases(scores, others, probability):
    assert probability_of_improvement(scores, others) == pytest.approx(probability)
    estimate = improvement([scores], [others])
    assert estimate.value == pytest.approx(probability)


@given(rows, rows)
def test_the_probabilities_of_both_directions_sum_to_one(scores, others):
    there, back = probability_of_improvement(scores, others), probability_of_improvement(others, scores)
    assert there + back == pytest.approx(1.0)
    assert probability_of_improvement(scores, scores) == pytest.approx(0.5)


@given(rows, rows)
def test_the_probability_of_improvement_is_the_statistic_of_mann_and_whitney(scores, others):
    statistic = stats.mannwhitneyu(scores, others, method="asymptotic").statistic
    assert probability_of_improvement(scores, others) == pytest.approx(statistic / len(scores) / len(others))


@given(rows, rows)
def test_only_the_order_of_scores_counts_for_improvement(scores, others):
    cubes = [np.array(row) ** 3 - 5.0 for row in (scores, others)]
    assert probability_of_improvement(*cubes) == probability_of_improvement(scores, others)


@given(strata, st.integers(0, 9))
def test_improvement_over_environments_is_the_mean_and_mirrors_itself(ours, random_seed):
    theirs = [[score + 0.1 for score in row] for row in reversed(ours)]
    estimate = improvement(ours, theirs, resamples=50, random_seed=random_seed)
    parts = [probability_of_improvement(*pair) for pair in zip(ours, theirs, strict=True)]
    assert estimate.value == pytest.approx(np.mean(parts))
    assert 0.0 <= estimate.low <= estimate.high <= 1.0
    assert estimate.value + improvement(theirs, ours, resamples=1).value == pytest.approx(1.0)


@given(strata)
def test_a_profile_falls_from_all_to_none(scores):
    thresholds = np.linspace(0.0, 1.0, 11)
    fractions, low, high = performance_profile(scores, thresholds, resamples=50)
    everything = [score for row in scores for score in row]
    for line in (fractions, low, high):
        assert np.all(np.diff(line) <= 1e-12)
        assert line[-1] == 0.0
    assert np.all(low <= high)
    expected = [sum(score > threshold for score in everything) / len(everything) for threshold in thresholds]
    assert fractions.tolist() == pytest.approx(expected)


@given(strata)
def test_the_area_under_a_profile_is_the_mean_score(scores):
    """What each run adds is a step as wide as its score."""
    thresholds = np.arange(0.0, 1.0, 0.001) + 0.0005
    fractions, _, _ = performance_profile(scores, thresholds, resamples=1)
    assert fractions.mean() == pytest.approx(np.mean(np.concatenate(scores)), abs=0.001)


@given(strata)
def test_intervals_stay_within_the_scores(scores):
    estimate = overall_interquartile_mean(scores, resamples=50)
    everything = np.concatenate(scores)
    assert everything.min() - 1e-9 <= estimate.low <= estimate.high <= everything.max() + 1e-9


def test_seeds_are_drawn_within_their_environment_only():
    """Drawn across environments, scores of 0 and of 1 would make an interval of some width."""
    estimate = overall_interquartile_mean([[0.0] * 6, [1.0] * 6, [1.0] * 4])
    assert estimate.low == estimate.value == estimate.high == pytest.approx(0.75)
    estimate = improvement([[0.0] * 3, [1.0] * 3], [[1.0] * 3, [0.0] * 3])
    assert estimate == (0.5, 0.5, 0.5)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    """Two environments of n seeds: a bootstrap mean has the variance of the mean of both, not of one."""
    generator = np.random.default_rng(3)
    scores = [generator.normal(size=400), 50.0 + 2.0 * generator.normal(size=400)]
    low, high = stratified_interval(scores, lambda drawn: drawn.mean(axis=-1))
    error = np.sqrt(np.mean([row.var() for row in scores]) / 800)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_the_interval_of_an_improvement_is_that_of_drawing_seeds_by_hand():
    generator = np.random.default_rng(5)
    ours = [generator.normal(0.5, 1.0, size=7), generator.normal(size=4)]
    theirs = [generator.normal(size=5), generator.normal(size=9)]

    def redrawn(row):
        return [row[place] for place in generator.integers(len(row), size=len(row))]

    pairs = list(zip(ours, theirs, strict=True))
    drawn = [
        np.mean([naive_probability(redrawn(row), redrawn(other)) for row, other in pairs])
        for _ in range(4000)
    ]
    estimate = improvement(ours, theirs, resamples=4000)
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def naive_probability(scores, others):
    wins = 0.0
    for score in scores:
        for other in others:
            wins += 1.0 if score > other else 0.5 if score == other else 0.0
    return wins / len(scores) / len(others)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """95% in the limit; with 12 seeds a percentile bootstrap reaches a little less."""
    generator = np.random.default_rng(7)
    covered = compared = 0
    for _ in range(300):
        scores = [generator.normal(size=12) for _ in range(3)]
        rivals = [generator.normal(size=12) for _ in range(3)]
        estimate = overall_interquartile_mean(scores, resamples=400)
        covered += estimate.low <= 0.0 <= estimate.high
        estimate = improvement(scores, rivals, resamples=400)
        compared += estimate.low <= 0.5 <= estimate.high
    assert 0.89 <= covered / 300 <= 0.98
    assert 0.89 <= compared / 300 <= 0.98


def test_the_same_random_seed_gives_the_same_interval():
    scores = [[0.1, 0.5, 0.7, 0.9], [0.2, 0.4, 0.8]]
    first, again, other = (overall_interquartile_mean(scores, random_seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_one_seed_says_nothing_of_spread():
    scores = [[0.1, 0.5, 0.7], [0.4]]
    estimate = overall_interquartile_mean(scores)
    assert estimate.value == pytest.approx(0.45)
    assert np.isnan([estimate.low, estimate.high]).all()
    assert np.isnan(improvement(scores, scores)[1:]).all()
    _, low, high = performance_profile(scores, [0.2, 0.4])
    assert np.isnan([low, high]).all()
