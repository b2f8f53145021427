"""Synthetic events: their law, their order, and where they go on."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from streamwise.streams.errors import UsageError
from streamwise.streams.event import LAST_TIME, Event
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

URLS = {
    "hawkes": ("hawkes", {"scales": "60,3600"}),
    "hawkes without excitation": ("hawkes", {"branching": "0", "types": "1"}),
    "poisson": ("poisson", {"rates": "30,0,70"}),
    "lognormal": ("renewal", {}),
    "gamma": ("renewal", {"gaps": "gamma", "cv": "2"}),
    "abrupt": ("drift", {"period": "7200"}),
    "gradual": ("drift", {"shape": "gradual", "period": "20events", "regimes": "3"}),
    "recurring": ("drift", {"shape": "recurring", "period": "15events"}),
}


def opened(name, **more):
    kind, query = URLS[name]
    return SyntheticSource.from_url_parts(kind, query | {k: str(v) for k, v in more.items()})


def drained(source, limit=1_000):
    """Return all that is left, as events, and the position after each poll."""
    events, positions = [], []
    while not source.finished:
        [records] = source.poll(limit, 0.0, set())
        events += [Event(*value) for value in records.values]
        positions.append(records.next_position)
    return events, positions


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


# The source


@pytest.mark.parametrize("name", URLS)
def test_events_come_in_order_of_time_and_as_many_as_asked_for(name):
    source = opened(name, events=700, keys=7, start=1_000)
    events, _ = drained(source, limit=97)
    assert len(events) == 700
    assert events[0].time >= 1_000.0
    assert all(before.time <= after.time for before, after in pairwise(events))
    assert {e.key for e in events} == set("0123456")
    assert {e.type for e in events} <= {str(k) for k in range(source.truth.types)}
    assert source.poll(10, 0.0, set()) == []


@pytest.mark.parametrize("name", URLS)
def test_other_keys_do_not_change_the_events_of_a_key(name):
    few, _ = drained(opened(name, events=400, keys=4))
    many, _ = drained(
        opened(name, events=30_000, keys=3_000) if name == "poisson" else opened(name, events=4_000, keys=20)
    )
    for key in "0123":
        alone = [e for e in few if e.key == key]
        among = [e for e in many if e.key == key]
        shared = min(len(alone), len(among))
        assert shared > 0
        assert alone[:shared] == among[:shared]


def test_keys_and_seeds_draw_differently():
    events, _ = drained(opened("lognormal", events=2_000, keys=2))
    gaps = [np.diff([e.time for e in events if e.key == key])[:900] for key in "01"]
    assert abs(np.corrcoef(*gaps)[0, 1]) < 3.0 / math.sqrt(900)
    others, _ = drained(opened("lognormal", events=2_000, keys=2, seed=1))
    assert not {e.time for e in events} & {e.time for e in others}


@pytest.mark.parametrize("name", URLS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_from_any_position_it_goes_on_as_if_never_stopped(name, data):
    whole, _ = drained(opened(name, events=400, keys=3), limit=400)
    source, events = opened(name, events=400, keys=3), []
    for cut in sorted(data.draw(st.lists(st.integers(1, 399), max_size=5))):
        for records in source.poll(cut - len(events), 0.0, set()):
            events += [Event(*value) for value in records.values]
            position = json.loads(json.dumps({records.partition: records.next_position}))
            source = opened(name, events=400, keys=3)
            source.seek(position)
    assert events + drained(source)[0] == whole


@pytest.mark.parametrize("name", ["hawkes", "lognormal", "gradual"])
@pytest.mark.parametrize("keys", [3, 5_001])
def test_it_goes_on_exactly_before_at_and_after_each_copy_of_the_state(name, keys):
    """Copies are taken every 4,096 events, or every 5,001 with so many keys."""
    limit = 1_024 if keys == 3 else 2_000
    events, positions = drained(opened(name, events=11_000, keys=keys), limit)
    assert len({position["events"] for position in positions}) > 1
    assert len(json.dumps(positions[-1])) < 500 + 300 * keys
    for i, position in enumerate(positions[:-1]):
        again = opened(name, events=11_000, keys=keys)
        again.seek({"synthetic": json.loads(json.dumps(position))})
        emitted = limit * (i + 1)
        assert position["events"] + position["again"] == emitted
        assert drained(again, limit) == (events[emitted:], positions[i + 1 :])


def test_a_position_takes_more_events_but_no_other_parameters():
    _, positions = drained(opened("hawkes", events=50, keys=3))
    position = {"synthetic": positions[-1]}
    longer = opened("hawkes", events=80, keys=3)
    longer.seek(position)
    assert longer.lag() == 30
    shorter = opened("hawkes", events=20, keys=3)
    shorter.seek(position)
    assert shorter.finished
    for other in ({"seed": 1}, {"keys": 4}, {"start": 0}, {"branching": 0.5}):
        with pytest.raises(UsageError, match="belongs to another synthetic:hawkes; open it with"):
            opened("hawkes", **({"events": 80, "keys": 3} | other)).seek(position)


def test_a_position_of_another_partition_leaves_it_at_the_start():
    source = opened("poisson", events=5)
    source.seek({"clicks/0": 17})
    assert source.lag() == 5


def test_records_decode_to_columns_and_say_where_they_are():
    source = opened("recurring", events=40, keys=3)
    source.poll(15, 0.0, set())
    [records] = source.poll(20, 0.0, set())
    assert records.partition == "synthetic" == source.partitions[0]
    assert list(records.positions) == list(range(15, 35))
    decoded = source.decode(records)
    rows = zip(decoded.times, decoded.types, decoded.keys, decoded.features, strict=True)
    assert list(rows) == list(records.values)
    assert list(decoded.which) == list(range(20))
    assert decoded.refused == []
    hawkes = opened("hawkes")
    assert hawkes.decode(hawkes.poll(5, 0.0, set())[0]).features is None
    assert hawkes.decode(hawkes.poll(5, 0.0, set())[0]._replace(values=[], positions=[])).times == []


def test_a_paused_partition_waits():
    source = opened("hawkes", events=30, keys=3)
    assert source.poll(10, 0.0, {"synthetic"}) == []
    assert source.poll(0, 0.0, set()) == []
    assert (source.lag(), source.at_end("synthetic"), source.finished) == (30, False, False)
    assert len(drained(source)[0]) == 30
    assert (source.lag(), source.at_end("synthetic"), source.finished) == (0, True, True)


def test_no_number_of_events_means_no_end():
    source = opened("hawkes", events=0, keys=3)
    assert source.lag() is None
    for _ in range(5):
        assert len(source.poll(1_000, 0.0, set())[0].values) == 1_000
    assert not source.finished


def test_the_year_9999_is_the_end_of_all_events():
    source = opened("lognormal", events=0, keys=3, start=LAST_TIME - 3_600.0, median=60)
    events, _ = drained(source)
    assert 100 < len(events) < 1_000
    assert events[-1].time <= LAST_TIME


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.time = 50.0
        self.slept = []

    def __call__(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


def test_with_a_speed_events_come_when_they_are_due():
    """At speed 60 a gap of a minute takes a second, counted from the first event."""
    clock = Clock()
    truth = RenewalProcess(LogNormalGaps(60.0, 0.0), [[1.0]])
    source = SyntheticSource(truth, keys=1, events=6, start=0.0, speed=60.0, clock=clock, sleep=clock.sleep)
    assert not source.at_end("synthetic")

    [records] = source.poll(10, 5.0, set())
    assert [value[0] for value in records.values] == [60.0]
    assert (clock.slept, records.polled_at) == ([], 50.0)
    assert source.at_end("synthetic")
    assert source.lag() == 0

    assert source.poll(10, 0.25, set()) == []  # nothing is due, and it waits no longer than it may
    assert clock.slept == [0.25]
    [records] = source.poll(10, 5.0, set())
    assert [value[0] for value in records.values] == [120.0]
    assert clock.slept == [0.25, 0.75]

    clock.time += 3.5  # a slow reader finds what came in the meantime, and is not told how much it was
    [records] = source.poll(2, 5.0, set())
    assert [value[0] for value in records.values] == [180.0, 240.0]
    assert not source.at_end("synthetic")
    assert source.lag() is None
    [records] = source.poll(10, 5.0, set())
    assert [value[0] for value in records.values] == [300.0]
    assert len(clock.slept) == 2

    resumed = SyntheticSource(truth, keys=1, events=6, start=0.0, speed=60.0, clock=clock, sleep=clock.sleep)
    resumed.seek({"synthetic": records.next_position})
    [records] = resumed.poll(10, 5.0, set())  # the first after a restart is due at once
    assert [value[0] for value in records.values] == [360.0]
    assert len(clock.slept) == 2
    assert resumed.finished


def test_commit_and_close_change_nothing():
    source = opened("hawkes", events=10, keys=2)
    [records] = source.poll(5, 0.0, set())
    source.commit({"synthetic": records.next_position})
    source.close()
    source.close()
    assert source.lag() == 5


# The URL


def test_the_defaults_are_those_of_the_manual():
    source = SyntheticSource.from_url_parts("hawkes", {})
    assert (source.keys, source.events, source.seed, source.speed) == (100, 100_000, 0, None)
    assert source.start == 1_600_000_000.0
    assert source.truth.time_scales.tolist() == [60.0, 3_600.0, 86_400.0]
    assert source.truth.types == 5
    assert source.truth.branching_ratio == pytest.approx(0.6)
    assert source.name == "synthetic:hawkes"
    assert len(SyntheticSource.from_url_parts("drift", {"shape": "recurring"}).truth.regimes) == 3


def test_rates_are_per_hour_and_make_the_types():
    truth = SyntheticSource.from_url_parts("poisson", {"rates": "36,72"}).truth
    assert truth.base == pytest.approx([0.01, 0.02])
    assert SyntheticSource.from_url_parts(
        "poisson", {"rate": "36", "types": "4"}
    ).truth.base.sum() == pytest.approx(0.01)


def test_parameters_reach_the_process_and_the_source():
    query = {"gaps": "gamma", "mean": "5", "cv": "0.5", "types": "2", "speed": "60", "seed": str(2**64 - 1)}
    source = SyntheticSource.from_url_parts("renewal", query)
    assert source.truth.gaps == GammaGaps(5.0, 0.5)
    assert (source.truth.types, source.speed, source.seed) == (2, 60.0, 2**64 - 1)
    source = SyntheticSource.from_url_parts(
        "drift", {"period": "500events", "shape": "gradual", "regimes": "4"}
    )
    assert (source.truth.period, source.truth.unit, source.truth.shape) == (500.0, "events", "gradual")
    assert len(source.truth.regimes) == 4


@pytest.mark.parametrize(
    ("kind", "query", "said"),
    [
        (
            "hawks",
            {},
            "no synthetic process 'hawks'. Did you mean 'hawkes'? Choose one of: hawkes, poisson, renewal",
        ),
        ("", {}, "no synthetic process ''. Choose one of"),
        (
            "hawkes",
            {"branchin": "0.5"},
            "does not take 'branchin' here. Did you mean 'branching'? Choose from: events,",
        ),
        ("hawkes", {"sped": "60"}, "Did you mean 'speed'?"),
        ("hawkes", {"speed": ""}, "speed of synthetic:hawkes is ''"),
        ("hawkes", {"median": "5"}, "synthetic:hawkes does not take 'median' here."),
        ("poisson", {"rates": "1,2", "types": "2"}, "does not take 'types' here."),
        ("renewal", {"gaps": "gamma", "sigma": "2"}, "does not take 'sigma' here."),
        ("hawkes", {"line\nbreak": "1"}, "does not take 'line\\nbreak' here."),
        (
            "hawkes",
            {"events": "many\nmore"},
            "events of synthetic:hawkes is 'many\\nmore'; use an integer from 0 to",
        ),
        ("hawkes", {"events": "-1"}, "events of synthetic:hawkes is '-1'"),
        ("hawkes", {"events": "1e6"}, "events of synthetic:hawkes is '1e6'"),
        ("hawkes", {"keys": "0"}, "use an integer from 1 to 1000000"),
        ("hawkes", {"seed": str(2**64)}, "seed of synthetic:hawkes"),
        ("hawkes", {"seed": "²"}, "seed of synthetic:hawkes is '²'"),
        ("hawkes", {"types": "0"}, "types of synthetic:hawkes is '0'"),
        ("hawkes", {"start": "-1"}, "start of synthetic:hawkes is '-1'"),
        ("hawkes", {"start": "nan"}, "start of synthetic:hawkes is 'nan'"),
        ("hawkes", {"speed": "0"}, "speed of synthetic:hawkes is '0'; use a number from 1e-06 to 1e+09"),
        ("hawkes", {"branching": "1"}, "branching of synthetic:hawkes is '1'; use a number from 0 to 0.999"),
        ("hawkes", {"rate": "0"}, "rate of synthetic:hawkes"),
        ("hawkes", {"rate": "inf"}, "rate of synthetic:hawkes"),
        ("hawkes", {"rate": "1_0"}, "rate of synthetic:hawkes"),
        ("hawkes", {"scales": "60,,3600"}, "scales of synthetic:hawkes is '60,,3600'"),
        ("hawkes", {"scales": ""}, "scales of synthetic:hawkes is ''"),
        ("poisson", {"rates": "0,0"}, "use a rate above 0"),
        ("poisson", {"rates": "1,-1"}, "rates of synthetic:poisson is '1,-1'"),
        ("renewal", {"gaps": "gama"}, "use one of: lognormal, gamma. Did you mean 'gamma'?"),
        ("renewal", {"median": "0"}, "median of synthetic:renewal"),
        ("renewal", {"sigma": "-1"}, "sigma of synthetic:renewal"),
        ("renewal", {"gaps": "gamma", "cv": "0"}, "cv of synthetic:renewal"),
        ("drift", {"shape": "abrut"}, "use one of: abrupt, gradual, recurring. Did you mean 'abrupt'?"),
        ("drift", {"regimes": "1"}, "regimes of synthetic:drift is '1'"),
        ("drift", {"period": "events"}, "period of synthetic:drift is 'events'"),
        ("drift", {"period": "3days"}, "use a number from 0.001 to 1e+12, of seconds, or followed by events"),
        ("drift", {"period": "0"}, "period of synthetic:drift is '0'"),
    ],
)
def test_a_wrong_url_is_refused_in_one_line(kind, query, said):
    with pytest.raises(UsageError) as refused:
        SyntheticSource.from_url_parts(kind, query)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
