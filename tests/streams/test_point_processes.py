"""Point processes: the law of their times and types, and that drifts change it as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from synthetic_support import drained, opened

from streamwise.streams.errors import UsageError
from streamwise.streams.point_processes import (
    DriftProcess,
    GammaGaps,
    HawkesProcess,
    LogNormalGaps,
    RenewalProcess,
    log_likelihood,
    residuals,
)
from streamwise.streams.synthetic import SyntheticSource

SMALL = HawkesProcess([0.5], [[[0.8 / 1.5]]], [1 / 1.5])


SMALL_TIMES = [0.5, 1.2, 1.3, 3.0]


def sequence(process, events, seed=0, **more):
    """Return times and types of one key that follows `process` from time 0."""
    drawn, _ = drained(SyntheticSource(process, keys=1, events=events, seed=seed, start=0.0, **more))
    return np.array([e.time for e in drawn]), np.array([int(e.type) for e in drawn])


def random_process(seed=0, types=3, scales=(1.0, 20.0), branching=0.6, rate=1.0):
    return HawkesProcess.random(np.random.default_rng(seed), types, scales, branching, rate)


def correlation(values):
    return np.corrcoef(values[:-1], values[1:])[0, 1]


# The law of a Hawkes process


def test_the_likelihood_of_four_events_is_the_one_worked_out_by_hand():
    types = [0, 0, 0, 0]
    compensator = residuals(SMALL, [*SMALL_TIMES, 4.0], [*types, 0]).sum()
    assert compensator == pytest.approx(3.994242, abs=5e-7)
    likelihood = log_likelihood(SMALL, SMALL_TIMES, types, 4.0)
    assert likelihood == pytest.approx(-5.032636, abs=5e-7)
    assert likelihood + compensator == pytest.approx(-1.038394, abs=1e-6)


@given(times=st.lists(st.floats(0.001, 10.0), min_size=10, max_size=10).map(sorted))
def test_the_likelihood_of_a_poisson_process_depends_on_the_counts_alone(times):
    types = [0] * 3 + [1] * 7
    process = HawkesProcess.poisson([0.3, 0.7])
    assert log_likelihood(process, times, types, 10.0) == pytest.approx(-16.108643, abs=5e-7)


def test_the_compensator_is_the_integral_of_the_intensity():
    process = random_process(types=4, scales=(0.5, 5.0, 50.0))
    state = process.after(process.after(process.first_state(), 1.0, 2), 0.3, 0)
    for event_type in range(4):
        numeric, _ = integrate.quad(lambda t, k=event_type: process.intensity(state, t)[k], 0.0, 7.0)
        assert process.compensator(state, 7.0)[event_type] == pytest.approx(numeric, rel=1e-9)


def test_the_recursion_gives_the_intensity_and_likelihood_of_the_definition():
    process = random_process(types=4, scales=(0.5, 5.0, 50.0))
    times, types = sequence(process, 300)
    state, last, logarithms = process.first_state(), 0.0, 0.0
    for time, event_type in zip(times, types, strict=True):
        intensity = process.intensity(state, time - last)
        assert (intensity >= process.base).all()
        logarithms += math.log(intensity[event_type])
        state, last = process.after(state, time - last, event_type), time
    likelihood = logarithms - residuals(process, times, types).sum()
    assert likelihood == pytest.approx(log_likelihood(process, times, types, times[-1]), rel=1e-10)


def test_the_state_that_the_simulation_carries_is_the_one_of_the_events():
    process = random_process()
    carried, state, time = process.first_state(), process.first_state(), 0.0
    uniforms = iter(np.random.default_rng(0).random((1_000, 2)).tolist())
    for _ in range(200):
        following, event_type, carried = process.next_event(time, carried, uniforms)
        state = process.after(state, following - time, event_type)
        time = following
        np.testing.assert_allclose(np.reshape(carried, state.shape), state, rtol=1e-9)


def test_rescaled_by_the_truth_gaps_are_exponential_and_by_a_wrong_process_they_are_not():
    process = random_process(rate=0.2)
    times, types = sequence(process, 6_000)
    true = residuals(process, times, types)
    assert stats.kstest(true, "expon").pvalue > 0.01
    assert abs(correlation(true)) < 3.0 / math.sqrt(len(true))

    wrong = residuals(HawkesProcess.poisson(np.bincount(types) / times[-1]), times, types)
    assert wrong.mean() == pytest.approx(1.0)
    assert stats.kstest(wrong, "expon").pvalue < 1e-6
    assert correlation(wrong) > 3.0 / math.sqrt(len(wrong))


def test_types_are_drawn_in_proportion_to_their_intensities():
    """Every count differs from the sum of its probabilities by a martingale of known variance."""
    process = random_process(seed=1)
    times, types = sequence(process, 6_000)
    state, last, excess, variance = process.first_state(), 0.0, np.zeros(3), np.zeros(3)
    for time, event_type in zip(times, types, strict=True):
        intensity = process.intensity(state, time - last)
        share = intensity / intensity.sum()
        excess += np.eye(3)[event_type] - share
        variance += share * (1.0 - share)
        state, last = process.after(state, time - last, event_type), time
    assert (np.abs(excess) < 4.0 * np.sqrt(variance)).all()


def test_the_long_run_rate_of_one_type_is_its_base_over_one_minus_the_branching_ratio():
    """The count up to T has variance near rate * T / (1 - branching)^2."""
    process = HawkesProcess([0.4], [[[0.6]]], [2.0])
    assert process.branching_ratio == pytest.approx(0.6)
    assert process.stationary_rates == pytest.approx([1.0])
    times, _ = sequence(process, 20_000)
    deviation = math.sqrt(len(times)) / 0.4 / times[-1]
    assert abs(len(times) / times[-1] - 1.0) < 4.0 * deviation


def test_a_random_process_has_the_branching_ratio_and_the_rate_that_were_asked_for():
    source = SyntheticSource.from_url_parts(
        "hawkes", {"rate": "90", "branching": "0.7", "types": "6", "scales": "10,100", "events": "30000"}
    )
    process = source.truth
    assert process.branching_ratio == pytest.approx(0.7)
    assert process.stationary_rates.sum() * 3_600.0 == pytest.approx(90.0)
    assert process.excitation.shape == (2, 6, 6)
    assert (process.excitation == 0.0).any()
    assert process.time_scales.tolist() == [10.0, 100.0]
    events, _ = drained(source)
    hours = (events[-1].time - source.start) / 3_600.0
    # Children come in clusters, which multiply the standard error by about 1 / (1 - 0.7).
    assert len(events) / (100 * hours) == pytest.approx(90.0, rel=4.0 / 0.3 / math.sqrt(30_000))


def test_without_excitation_it_is_the_poisson_process():
    process = HawkesProcess.poisson([0.3, 0.0, 0.7])
    times, types = sequence(process, 10_000)
    assert stats.kstest(np.diff(times, prepend=0.0), "expon").pvalue > 0.01
    counts = np.bincount(types, minlength=3)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2]], [3_000, 7_000]).pvalue > 0.01


def test_an_explosive_process_has_no_long_run_rate_and_is_not_drawn_from():
    process = HawkesProcess([1.0], [[[1.0]]], [1.0])
    with pytest.raises(UsageError, match="branching ratio is 1: every event leads to another"):
        _ = process.stationary_rates
    with pytest.raises(UsageError, match="branching ratio is 1: every event leads to another"):
        SyntheticSource(process)


@pytest.mark.parametrize(
    ("base", "excitation", "scales", "said"),
    [
        ([0.5, 0.5], [[[0.1]]], [1.0], "do not fit"),
        ([0.5], [[0.1]], [1.0], "do not fit"),
        ([0.5], [[[0.1]]], 1.0, "do not fit"),
        ([-0.5], [[[0.1]]], [1.0], "base of a Hawkes process holds -0.5"),
        ([0.5], [[[math.nan]]], [1.0], "excitation of a Hawkes process holds nan"),
        ([0.0], [[[0.1]]], [1.0], "needs a base above 0"),
        ([0.5], [[[0.1]]], [0.0], "time scales above 0"),
    ],
)
def test_parameters_that_make_no_process_are_refused(base, excitation, scales, said):
    with pytest.raises(UsageError, match=said):
        HawkesProcess(base, excitation, scales)


# Renewals


@pytest.mark.parametrize(
    ("gaps", "law"),
    [
        (LogNormalGaps(median=600.0, sigma=1.3), stats.lognorm(1.3, scale=600.0)),
        (GammaGaps(mean=600.0, cv=0.5), stats.gamma(4.0, scale=150.0)),
        (GammaGaps(mean=600.0, cv=2.0), stats.gamma(0.25, scale=2_400.0)),
    ],
    ids=["lognormal", "gamma-regular", "gamma-bursty"],
)
def test_gaps_have_their_distribution_and_are_independent(gaps, law):
    times, _ = sequence(RenewalProcess(gaps, [[1.0]]), 6_000)
    drawn = np.diff(times, prepend=0.0)
    assert stats.kstest(drawn, law.cdf).pvalue > 0.01
    assert abs(correlation(law.cdf(drawn))) < 3.0 / math.sqrt(len(drawn))


def test_types_follow_the_markov_chain():
    truth = opened("lognormal", types=4).truth
    _, types = sequence(truth, 20_000)
    np.testing.assert_allclose(truth.stationary_types @ truth.transitions, truth.stationary_types, atol=1e-12)
    counts = np.zeros((4, 4))
    np.add.at(counts, (types[:-1], types[1:]), 1.0)
    for row, probabilities in zip(counts, truth.transitions, strict=True):
        expected = row.sum() * probabilities
        common = expected >= 5.0
        assert row[~common].sum() < 40
        scale = row[common].sum() / expected[common].sum()
        assert stats.chisquare(row[common], expected[common] * scale).pvalue > 0.001


def test_the_first_type_is_drawn_from_the_long_run_shares():
    truth = RenewalProcess(LogNormalGaps(600.0, 0.0), [[0.9, 0.1], [0.3, 0.7]])
    [records] = SyntheticSource(truth, keys=2_000, events=2_000, start=0.0).poll(2_000, 0.0, set())
    first = np.bincount([int(value[1]) for value in records.values])
    assert {value[2] for value in records.values} == set(map(str, range(2_000)))
    assert stats.chisquare(first, [1_500, 500]).pvalue > 0.001


@pytest.mark.parametrize(
    "transitions", [[[0.5, 0.5]], [[1.5, -0.5], [0.5, 0.5]], [[0.5, 0.4], [0.5, 0.5]], [[math.nan]]]
)
def test_transitions_that_are_no_probabilities_are_refused(transitions):
    with pytest.raises(UsageError, match="renewal process"):
        RenewalProcess(LogNormalGaps(600.0, 1.0), transitions)


# Drift


def drift(shape, period, unit="seconds", rates=((1.0, 3.0), (6.0, 2.0), (9.0, 9.0))):
    """Return a drift between processes with little excitation and these rates before it."""
    excitation = [[[0.1, 0.0], [0.2, 0.1]]]
    regimes = tuple(HawkesProcess(rate, excitation, [0.5]) for rate in rates)
    return DriftProcess(regimes, shape, period, unit, start=0.0)


def assert_rates(events, begin, end, process):
    """Whether the events between two times have the rates of a process, within five standard errors."""
    counts = np.bincount([int(e.type) for e in events if begin < e.time <= end], minlength=2)
    expected = process.stationary_rates * (end - begin)
    # Clusters of 1 / (1 - 0.1 - 0.2) events at most make the variance larger than that of Poisson counts.
    assert (np.abs(counts - expected) <= 5.0 * np.sqrt(expected) / 0.7).all()


def test_an_abrupt_drift_changes_the_rates_once_and_says_when():
    truth = drift("abrupt", 500.0)
    events, _ = drained(SyntheticSource(truth, keys=1, events=25_000, start=0.0))
    assert events[-1].time > 1_600.0
    for event in events:
        assert event.features == {"regime": min(int(event.time // 500.0), 2)}
    for stage, regime in enumerate(truth.regimes):
        assert_rates(events, 500.0 * stage + 10.0, 500.0 * (stage + 1), regime)


def test_a_recurring_drift_comes_back_to_the_first_regime_between_the_others():
    truth = drift("recurring", 400.0)
    events, _ = drained(SyntheticSource(truth, keys=1, events=25_000, start=0.0))
    assert events[-1].time > 2_400.0
    stages = [0, 1, 0, 2, 0, 1]
    for stage, regime in enumerate(stages):
        begin, end = 400.0 * stage, 400.0 * (stage + 1)
        inside = [e for e in events if begin <= e.time < end]
        assert {e.features["regime"] for e in inside} == {regime}
        assert_rates(events, begin + 10.0, end, truth.regimes[regime])


def test_a_gradual_drift_mixes_the_regimes_linearly():
    truth = drift("gradual", 1_000.0, rates=((2.0, 0.0), (0.0, 12.0)))
    events, _ = drained(SyntheticSource(truth, keys=1, events=25_000, start=0.0))
    assert events[-1].time > 2_200.0
    for event in events:
        assert event.features["regime"] == pytest.approx(np.clip(event.time / 1_000.0 - 1.0, 0.0, 1.0))
    assert_rates(events, 10.0, 1_000.0, truth.regimes[0])
    first, second = (process.base for process in truth.regimes)
    for share in (0.25, 0.5, 0.75):
        mixed = HawkesProcess((1 - share) * first + share * second, truth.regimes[0].excitation, [0.5])
        assert_rates(events, 900.0 + 1_000.0 * share, 1_100.0 + 1_000.0 * share, mixed)
    assert_rates(events, 2_010.0, events[-1].time, truth.regimes[1])


def test_a_drift_may_count_the_events_of_each_key():
    source = SyntheticSource(drift("recurring", 10, "events"), keys=3, events=300, start=0.0)
    events, _ = drained(source)
    for key in source._names:
        regimes = [e.features["regime"] for e in events if e.key == key]
        assert len(regimes) > 60
        assert regimes == [
            [0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2][n // 10] for n in range(len(regimes))
        ]


def test_rescaled_by_the_regime_in_force_a_drift_is_exponential():
    """Each event excites as its own regime says, also after the regime has changed."""
    regimes = tuple(random_process(seed, types=2) for seed in (3, 4))
    truth = DriftProcess(regimes, "abrupt", 3_000, "events", start=0.0)
    events, _ = drained(SyntheticSource(truth, keys=1, events=6_000, start=0.0))
    state, last, increments = regimes[0].first_state(), 0.0, []
    for event in events:
        process = regimes[event.features["regime"]]
        increments.append(process.compensator(state, event.time - last).sum())
        state, last = process.after(state, event.time - last, int(event.type)), event.time
    assert stats.kstest(increments, "expon").pvalue > 0.01
    assert abs(correlation(np.array(increments))) < 3.0 / math.sqrt(len(increments))


@pytest.mark.parametrize("shape", ["abrupt", "gradual", "recurring"])
def test_a_drift_between_equal_regimes_is_the_process_itself(shape):
    process = random_process()
    still = sequence(process, 500)
    drifting = sequence(DriftProcess((process, process), shape, 20.0, start=0.0), 500)
    np.testing.assert_allclose(drifting[0], still[0], rtol=1e-9)
    np.testing.assert_array_equal(drifting[1], still[1])


def test_regimes_that_do_not_go_together_are_refused():
    one, other = random_process(types=2), random_process(types=3)
    with pytest.raises(UsageError, match="two or more regimes"):
        DriftProcess((one,), "abrupt", 10.0)
    with pytest.raises(UsageError, match="differ in types"):
        DriftProcess((one, other), "abrupt", 10.0)
    with pytest.raises(UsageError, match="shape 'sudden'"):
        DriftProcess((one, one), "sudden", 10.0)
    with pytest.raises(UsageError, match="above 0"):
        DriftProcess((one, one), "abrupt", 0.0)
    with pytest.raises(UsageError, match="use the same for both"):
        SyntheticSource(DriftProcess((one, one), "abrupt", 10.0, start=5.0), start=0.0)
