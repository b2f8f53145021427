"""The event models: native against reference, closed forms, integrals, known parameters, prediction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from streamwise.agents import EVENT_MODELS, Counts, Hawkes, HawkesConfig, Poisson
from streamwise.agents.event_model import OTHER, Score, UnknownKeyError
from streamwise.kernels import native_info
from streamwise.streams import Event, UsageError
from streamwise.streams.event_stream import EventStream
from streamwise.streams.point_processes import HawkesProcess
from streamwise.streams.synthetic import SyntheticSource

MODELS = pytest.mark.parametrize("name", EVENT_MODELS)
STATISTICAL = pytest.mark.parametrize("name", ["poisson", "hawkes", "counts"])
needs_native = pytest.mark.skipif(native_info() is None, reason="the native kernels are not built")
COLUMN = {field: i for i, field in enumerate(Score._fields)}

gaps = st.one_of(st.just(0.0), st.floats(1e-4, 1e7), st.sampled_from([1e-3, 1.0, 60.0, 1e9]))


@st.composite
def streams(draw, most=120):
    """Times, types and keys of a few keys, whose gaps span thirteen orders of magnitude."""
    count = draw(st.integers(1, most))
    time, columns = draw(st.floats(0.0, 1.6e9)), ([], [], [])
    for _ in range(count):
        time += draw(gaps)
        for column, value in zip(
            columns, (time, draw(st.sampled_from("abcde")), draw(st.sampled_from("xyz"))), strict=True
        ):
            column.append(value)
    return columns


def some_events(count=2000, seed=0, types=5, keys=20):
    generator = np.random.default_rng(seed)
    times = 1e3 + np.cumsum(generator.exponential(30.0, count) * generator.choice([0.01, 1.0, 50.0], count))
    kinds = generator.choice(types, count, p=np.arange(1, types + 1) / (types * (types + 1) / 2))
    return (
        times.tolist(),
        [f"type {k}" for k in kinds],
        [f"key {k}" for k in generator.integers(keys, size=count)],
    )


def same(one, other):
    def bits(state, name):
        return state[name].dtype, state[name].shape, state[name].numpy().tobytes()

    # The second of keys.counters counts calls of state_dict.
    return one.keys() == other.keys() and all(
        bits(one, name) == bits(other, name) for name in one if name != "keys.counters"
    )


def small(name, **changes):
    """A model whose counts are halved, or whose weights grow, within a few events."""
    kind = EVENT_MODELS[name]
    if name == "prompt-tpp":
        changes |= {
            "precision": "float64",
            "width": 16,
            "time_width": 4,
            "hidden": 16,
            "window": 4,
            "group": 4,
        }
        changes |= {"hot_keys": 8, "prompts": 4, "selected": 2, "rows": 2}
    return kind.Config(types=8, keys_in_memory=1024, memory=12.0, **changes)


@needs_native
@STATISTICAL
@settings(max_examples=60, deadline=None)
@given(events=streams())
def test_native_equals_reference(name, events):
    native, reference = (EVENT_MODELS[name](small(name), backend=b) for b in ("native", "reference"))
    ours, theirs = native.learn_many(*events), reference.learn_many(*events)
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)  # pulses are kept in single precision
    for array in native.arrays:
        np.testing.assert_allclose(
            native.arrays[array], reference.arrays[array], rtol=1e-6, atol=1e-9, err_msg=array
        )


@needs_native
def test_weights_of_the_hawkes_model_are_scaled_back_alike():
    """With a memory of ten events the weight passes 1e9 within 250 events, and again and again."""
    events = some_events(600)
    config = HawkesConfig(types=8, keys_in_memory=1024, memory=10.0)
    native, reference = (Hawkes(config, backend=b) for b in ("native", "reference"))
    np.testing.assert_allclose(
        native.learn_many(*events), reference.learn_many(*events), rtol=1e-5, atol=1e-6
    )
    assert native.arrays["progress"][1] < 1e9
    np.testing.assert_allclose(native.excitation, reference.excitation, rtol=1e-5, atol=1e-12)


@MODELS
def test_many_at_once_equal_one_by_one(name):
    times, types, keys = some_events(700)
    whole, cut, single = (EVENT_MODELS[name]() for _ in range(3))
    expected = whole.learn_many(times, types, keys)
    ends = [0, 1, 2, 300, 301, 700]
    pieces = [cut.learn_many(times[a:b], types[a:b], keys[a:b]) for a, b in itertools.pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(pieces), expected)
    for i, event in enumerate(map(Event, times, types, keys)):
        np.testing.assert_array_equal(list(single.learn_one(event).values()), expected[i])
    assert same(whole.state_dict(), cut.state_dict())
    assert same(cut.state_dict(), single.state_dict())
    fresh = EVENT_MODELS[name]()
    fresh.load_state_dict(whole.state_dict())
    assert same(fresh.state_dict(), whole.state_dict())
    assert not same(fresh.state_dict(), EVENT_MODELS[name]().state_dict())


@STATISTICAL
def test_scores_are_those_of_a_point_process(name):
    """Λ is the integral of λ, log λ - Λ is the score of a time, and λ_k / λ the probability of a type."""
    times, types, keys = some_events(1500)
    model = EVENT_MODELS[name]()
    model.learn_many(times, types, keys)
    row = model.keys.find(keys[-1])
    for gap in (0.3, 7.0, 400.0, 1e5):
        intensities, compensator = model._intensities(row, np.array([gap]))
        edges = np.concatenate([[0.0], np.geomspace(1e-6, gap, 400)])  # a piece each, for λ may jump
        if name == "counts":
            edges = np.unique(np.concatenate([edges[:1], model.edges[model.edges < gap], [gap]]))

        def total(at):
            return float(model._intensities(row, np.array([at]))[0].sum())

        pieces = [
            integrate.quad(total, a, np.nextafter(b, a), limit=200)[0] for a, b in itertools.pairwise(edges)
        ]
        assert sum(pieces) == pytest.approx(compensator[0], rel=1e-6)
        score = model._score(row, float(row["last_time"]) + gap, 1)
        assert score.compensator == pytest.approx(compensator[0], rel=1e-6)
        assert score.time_log_density == pytest.approx(math.log(intensities.sum()) - compensator[0], rel=1e-6)
        assert score.type_log_probability == pytest.approx(
            math.log(intensities[0, 1] / intensities.sum()), rel=1e-9
        )


@MODELS
def test_the_predicted_gap_is_the_mean_of_the_density(name):
    times, types, keys = some_events(3000, keys=3)
    model = EVENT_MODELS[name]()
    model.learn_many(times, types, keys)
    row = model.keys.find(keys[-1])
    at = np.concatenate([[0.0], np.geomspace(1e-4, 1e10, 40_000)])
    survival = np.exp(-model._intensities(row, at)[1])
    mean = np.trapezoid(survival, at)
    assert model._score(row, float(row["last_time"]) + 1.0, 0).predicted_gap == pytest.approx(mean, rel=0.02)
    assert model.predict_one(keys[-1]).mean_wait == pytest.approx(mean, rel=0.02)


def test_a_hawkes_process_with_known_events_has_the_known_likelihood():
    """One type, base rate 0.5, jump 0.8, decay 1.5, events at 0.5, 1.2, 1.3 and 3.0, observed until 4."""
    model = Hawkes(HawkesConfig(time_scales=(1.0 / 1.5,), types=2, keys_in_memory=1024, prior_gap=2.0))
    model._ids(["a"])
    model.seen[0] = 1
    model.set_parameters(np.array([0.5, 0.0]), np.array([[[0.8 / 1.5, 0.0], [0.0, 0.0]]]))
    row = model.keys.rows[model.keys.slots(["k"])[0]]
    log_intensities, compensator = math.log(0.5), 0.5 * 0.5  # nothing came before the first event
    model._put(row, 0.5, 0)
    for time in (1.2, 1.3, 3.0):
        score = model._score(row, time, 0)
        log_intensities += score.time_log_density + score.compensator + score.type_log_probability
        compensator += score.compensator
        model._put(row, time, 0)
    compensator += float(model._intensities(row, np.array([1.0]))[1][0])
    assert log_intensities == pytest.approx(-1.038394, abs=1e-6)
    assert compensator == pytest.approx(3.994242, abs=1e-6)


def test_a_poisson_process_with_known_events_has_the_known_likelihood():
    """Rates 0.3 and 0.7, three events and seven of them in ten time units: -16.108643 whatever the times."""
    model = Poisson()
    model.learn_many([0.0] * 10, ["a"] * 3 + ["b"] * 7, ["k"] * 10)
    model.arrays["gaps"][:] = 1e9, 1e9 - model.config.prior_gap + 1.0  # one event a second, in all
    model.arrays["type_counts"][[0, 1, -1]] = 3e9, 7e9, 1e10
    row = model.keys.rows[model.keys.slots(["k"])[0]]
    total, time = math.log(1.0) + math.log(0.3), 0.0  # the first event, at the start
    for i, event_type in enumerate([0, 0] + [1] * 7):
        row["last_time"], time = time, time + 0.1 * (i + 1)
        score = model._score(row, time, event_type)
        total += score.time_log_density + score.type_log_probability
    row["last_time"] = time
    total -= float(model._intensities(row, np.array([10.0 - time]))[1][0])
    assert total == pytest.approx(-16.108643, abs=1e-5)


def hawkes_truth(seed=3, branching=0.6):
    generator = np.random.default_rng(seed)
    return HawkesProcess.random(
        generator, types=3, time_scales=(60.0, 3600.0), branching=branching, rate=10.0 / 3600.0
    )


def events_of(truth, events, keys=20, seed=1):
    stream = EventStream([SyntheticSource(truth, keys=keys, events=events, seed=seed, start=0.0)])
    return [event[:3] for event in stream]


def hawkes_of(truth, **changes):
    return Hawkes(HawkesConfig(types=4, time_scales=tuple(truth.time_scales), keys_in_memory=1024, **changes))


def parameter_error(model, truth):
    """The mean distance of children and base rates from the truth, in units of what they are."""
    order = [model.vocabulary[str(k)] for k in range(3)]
    excitation = model.excitation[:, order][:, :, order]
    children = np.abs(excitation - truth.excitation).sum() / truth.excitation.sum()
    return children + np.abs(model.base_rates[order] / truth.base - 1.0).mean()


@needs_native
def test_the_hawkes_fit_approaches_the_truth():
    truth = hawkes_truth()
    events = events_of(truth, 160_000)
    model, errors = hawkes_of(truth, memory=1e6), []
    for start, end in ((0, 2_500), (2_500, 10_000), (10_000, 40_000), (40_000, 160_000)):
        model.learn_many(*zip(*events[start:end], strict=True))
        errors.append(parameter_error(model, truth))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


@needs_native
def test_the_hawkes_fit_finds_a_process_of_one_type():
    """Base rate 0.5, 0.533 children an event within 1/1.5: both within a tenth after 20,000 events."""
    truth = HawkesProcess(np.array([0.5]), np.array([[[0.8 / 1.5]]]), np.array([1.0 / 1.5]))
    model = Hawkes(
        HawkesConfig(time_scales=(1.0 / 1.5,), types=2, keys_in_memory=1024, memory=1e6, prior_gap=1.0)
    )
    model.learn_many(*zip(*events_of(truth, 20_000, keys=5), strict=True))
    assert model.base_rates[0] == pytest.approx(0.5, rel=0.1)
    assert model.excitation[0, 0, 0] == pytest.approx(0.8 / 1.5, rel=0.1)


def with_parameters(truth, types):
    model = hawkes_of(truth)
    model._ids(types)
    model.seen[0] = 3
    order = [int(name) for name in model.vocabulary]
    base, excitation = np.zeros(4), np.zeros((len(truth.time_scales), 4, 4))
    base[:3] = truth.base[order]
    excitation[:, :3, :3] = truth.excitation[:, order][:, :, order]
    model.set_parameters(base, excitation)
    return model


def frozen_residuals(model, events):
    """The compensators of a stream by a model that does not learn from it."""
    residuals = []
    for time, event_type, key in events:
        row = model.keys.rows[model.keys.slots([key])[0]]
        if row["events"] > 0.0:
            residuals.append(float(model._intensities(row, np.array([time - row["last_time"]]))[1][0]))
        model._put(row, time, model.vocabulary[event_type])
    return np.array(residuals)


def test_residuals_of_the_true_model_are_exponential_and_those_of_a_wrong_one_are_not():
    truth = hawkes_truth()
    events = events_of(truth, 6_000)
    types = [event[1] for event in events]
    right = frozen_residuals(with_parameters(truth, types), events)
    assert stats.kstest(right, "expon").pvalue > 0.01
    assert abs(np.corrcoef(right[1:], right[:-1])[0, 1]) < 4.0 / math.sqrt(len(right))
    poisson = HawkesProcess(truth.stationary_rates, 0.0 * truth.excitation, truth.time_scales)
    wrong = frozen_residuals(with_parameters(poisson, types), events)
    assert stats.kstest(wrong, "expon").pvalue < 1e-6


@MODELS
def test_simulated_events_are_exponential_in_the_models_own_time(name):
    times, types, keys = some_events(3000)
    model = EVENT_MODELS[name]()
    model.learn_many(times, types, keys)
    before = {array: values.copy() for array, values in model.arrays.items()}
    row, residuals, simulated = model.keys.find(keys[-1]), [], []
    for event in itertools.islice(model.simulate(keys[-1], seed=4), 600):
        gap = event.time - float(row["last_time"])
        _, compensator = model._intensities(row, np.array([gap]))
        residuals.append(compensator[0])
        simulated.append(model.vocabulary[event.type])
        model._put(row, event.time, simulated[-1])
    assert stats.kstest(residuals, "expon").pvalue > 1e-3
    assert all(np.array_equal(values, before[array]) for array, values in model.arrays.items())
    if name == "poisson":
        counts, shares = np.bincount(simulated, minlength=5), model._shares()[:5]
        assert stats.chisquare(counts, 600 * shares / shares.sum()).pvalue > 1e-3


@MODELS
def test_a_prediction_agrees_with_simulation_and_changes_nothing(name):
    times, types, keys = some_events(3000, keys=4)
    model = EVENT_MODELS[name]()
    model.learn_many(times, types, keys)
    before = model.state_dict()
    prediction = model.predict_one(keys[-1], horizon=500.0)
    model.load_state_dict(before)
    nexts = [next(model.simulate(keys[-1], seed=seed)) for seed in range(600)]
    waits = np.array([event.time - prediction.now for event in nexts])
    chance = 4.0 * math.sqrt(0.25 / len(waits))
    assert np.mean(waits < prediction.median_wait) == pytest.approx(0.5, abs=chance)
    low, high = prediction.intervals["90%"]
    assert np.mean((low < waits) & (waits < high)) == pytest.approx(0.9, abs=chance)
    assert np.mean(waits < 500.0) == pytest.approx(prediction.probability, abs=chance)
    assert sum(prediction.types.values()) == pytest.approx(1.0)
    for event_type, share in prediction.types.items():
        assert np.mean([event.type == event_type for event in nexts]) == pytest.approx(share, abs=chance)
    later = model.predict_one(keys[-1], now=prediction.now + 1e4)
    assert later.now == prediction.now + 1e4
    assert later.last_time == prediction.last_time


@MODELS
def test_what_cannot_be_predicted_is_said(name):
    model = EVENT_MODELS[name]()
    model.learn_one(Event(100.0, "a", "ann"))
    with pytest.raises(UnknownKeyError, match="'bob'"):
        model.predict_one("bob")
    with pytest.raises(UsageError, match="give a later time"):
        model.predict_one("ann", now=99.0)
    with pytest.raises(UsageError, match="horizon"):
        model.predict_one("ann", horizon=0.0)


@MODELS
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_type_without_room_counts_as_other(name, backend):
    kind = EVENT_MODELS[name]
    model = kind(kind.Config(types=4, keys_in_memory=1024), backend=backend)
    for i in range(40):
        score = model.learn_one(Event(float(i), f"type {i % 6}", "k"))
        assert score["type_log_probability"] <= 0.0
        assert math.isfinite(score["type_log_probability"])
    assert list(model.vocabulary) == ["type 0", "type 1", "type 2"]
    assert model.overflowed == sum(i % 6 >= 3 for i in range(40))
    assert set(model.predict_one("k").types) == {"type 0", "type 1", "type 2", OTHER}


@MODELS
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_event_before_the_last_of_its_key_is_refused(name, backend):
    model = EVENT_MODELS[name](backend=backend)
    model.learn_one(Event(100.0, "a", "ann"))
    model.learn_one(Event(50.0, "a", "bob"))  # keys have clocks of their own
    with pytest.raises(ValueError, match="before the last"):
        model.learn_one(Event(99.0, "a", "ann"))
    assert model.learn_one(Event(100.0, "a", "ann"))["gap"] == 0.0


@MODELS
def test_keys_that_went_to_disk_come_back_as_they_were(name):
    """With room for 1,024 of 3,000 keys, every score is what it is with room for all."""
    generator = np.random.default_rng(0)
    count = 9_000
    times = (1.5e9 + np.cumsum(generator.exponential(1.0, count))).tolist()
    types, keys = (
        generator.choice(list("abc"), count).tolist(),
        generator.integers(3_000, size=count).astype(str),
    )
    kind = EVENT_MODELS[name]
    # Silence is charged to keys in memory alone, which are others.
    silent = {"silence_every": 0} if name == "prompt-tpp" else {}
    roomy, tight = (kind(kind.Config(types=4, keys_in_memory=room, **silent)) for room in (4_096, 1_024))
    np.testing.assert_array_equal(
        roomy.learn_many(times, types, keys.tolist()), tight.learn_many(times, types, keys.tolist())
    )
    assert len(tight.keys) == len(roomy.keys) == len(set(keys))
    assert tight.keys.in_memory == 1_024


@MODELS
def test_nothing_becomes_impossible_for_not_having_happened_for_long(name):
    """After 800 times the memory of one type alone, a new type and an old one have a probability."""
    model = EVENT_MODELS[name](small(name))
    model.learn_many([0.0, 1.0], ["rare", "common"], ["k", "k"])
    model.learn_many([float(i) for i in range(2, 10_000)], ["common"] * 9_998, ["k"] * 9_998)
    for kind in ("rare", "new", "rare", "common"):
        score = model.learn_one(Event(1e4, kind, "k"))
        assert -20.0 < score["type_log_probability"] < 0.0
        assert math.isfinite(score["time_log_density"])
    assert all(np.isfinite(array).all() for array in model.arrays.values())


@MODELS
def test_a_type_that_is_called_other_keeps_its_share(name):
    kind = EVENT_MODELS[name]
    model = kind(kind.Config(types=4, keys_in_memory=1024))
    for i in range(60):
        model.learn_one(Event(float(i), [OTHER, "a", "b", "c", "d"][i % 5], "k"))
    assert sum(model.predict_one("k").types.values()) == pytest.approx(1.0)


def test_pulses_of_a_busy_key_decay_however_short_the_gaps():
    """A million events 10 ms apart take a pulse of eleven days' scale down by a hundredth."""
    model = Hawkes(HawkesConfig(types=4, time_scales=(1e6,), keys_in_memory=1024))
    slot = model.keys.slots(["k"])[0]
    model.learn_many([0.0], ["a"], ["k"])
    model.keys.rows[slot]["pulses"][0, 0] = 1e6
    count = 100_000
    model.learn_many((0.01 * np.arange(1, count + 1)).tolist(), ["b"] * count, ["k"] * count)
    expected = 1e6 * math.exp(-0.01 * count / 1e6)
    assert model.keys.rows[slot]["pulses"][0, 0] == pytest.approx(expected, rel=1e-9)


@MODELS
def test_scores_do_not_look_ahead(name):
    """The score of an event is the same whatever comes after it."""
    times, types, keys = some_events(400)
    one, other = (EVENT_MODELS[name]() for _ in range(2))
    expected = one.learn_many(times, types, keys)
    changed = other.learn_many(
        times[:300] + [t + 5.0 for t in times[300:]], types[:300] + ["new"] * 100, keys
    )
    np.testing.assert_array_equal(changed[:300], expected[:300])
    assert changed[300, COLUMN["type_log_probability"]] != expected[300, COLUMN["type_log_probability"]]


def test_hawkes_and_counts_beat_poisson_where_events_bring_events():
    events = list(zip(*events_of(hawkes_truth(branching=0.8), 20_000), strict=True))
    late = slice(10_000, None)
    totals = {}
    for kind in (Poisson, Counts, Hawkes):
        scores = kind().learn_many(*events)[late]
        totals[kind.name] = np.nanmean(
            scores[:, COLUMN["time_log_density"]] + scores[:, COLUMN["type_log_probability"]]
        )
    assert totals["hawkes"] > totals["counts"] > totals["poisson"]


def test_wrong_settings_are_refused():
    for kind, changes in (
        (Poisson, {"types": 1}), (Poisson, {"keys_in_memory": 10}), (Poisson, {"prior_gap": 0.0}),
        (Poisson, {"memory": math.nan}), (Counts, {"share": 1.0}), (Counts, {"types": 200}),
        (Counts, {"gap_pull": -1.0}), (Hawkes, {"time_scales": ()}), (Hawkes, {"time_scales": (1.0, 1.0)}),
        (Hawkes, {"prior_children": 1.5}), (Hawkes, {"warm_up": math.inf}),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(changes))):
            kind.Config(**changes)


@needs_native
def test_the_native_model_refuses_arrays_that_do_not_fit():
    model = Poisson(backend="native")
    scores = np.empty((1, len(Score._fields)))
    zero = np.zeros(1, np.int64)
    for times, types, slots, out, why in (
        (np.zeros(2), zero, zero, scores, "one length"),
        (np.zeros(1), zero, zero, scores[:, :3].copy(), "shape"),
        (np.array([np.nan]), zero, zero, scores, "finite"),
        (np.zeros(1), zero + 64, zero, scores, "types"),
        (np.zeros(1), zero - 1, zero, scores, "types"),
        (np.zeros(1), zero, zero + 20_000, scores, "slots"),
        (np.zeros(1), zero, zero - 1, scores, "slots"),
    ):
        with pytest.raises(ValueError, match=why):
            model.native.learn(times, types, slots, out)
    with pytest.raises(TypeError):
        model.native.learn(np.zeros(1, np.float32), zero, zero, scores)
    assert model.seen[0] == 0.0
