"""Models that learned from different parts of a stream, made into one or kept alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.agents import EVENT_MODELS
from streamwise.agents.event_merge import (
    Part,
    TypesFullError,
    _counted,
    adopt,
    average,
    merge,
    parameters,
)

MODELS = pytest.mark.parametrize("name", EVENT_MODELS)
TYPES = [f"type {k}" for k in range(5)]
SETTINGS = {
    "prompt-tpp": {
        "width": 16, "time_width": 4, "hidden": 16, "window": 4, "group": 4, "hot_keys": 8, "prompts": 4,
        "selected": 2, "rows": 2, "history": 2, "history_length": 2, "history_reads": 1,
        "history_features": 8, "history_heads": 2, "silence_every": 8,
    },
}  # fmt: skip


def model_of(name, **changes):
    kind = EVENT_MODELS[name]
    return kind(kind.Config(**{"types": 8, "keys_in_memory": 1024, **SETTINGS.get(name, {}), **changes}))


def some_events(count, seed, keys, types=TYPES):
    generator = np.random.default_rng(seed)
    times = 1e3 + np.cumsum(generator.exponential(30.0, count))
    kinds = generator.choice(len(types), count, p=np.arange(1, len(types) + 1) / sum(range(len(types) + 1)))
    return (
        times.tolist(),
        [types[k] for k in kinds],
        [keys[k] for k in generator.integers(len(keys), size=count)],
    )


ANN, BOB = some_events(400, 1, ["ann", "al"]), some_events(300, 2, ["bob", "ben"], TYPES[::-1])


def learned(name, *logs, **changes):
    model = model_of(name, **changes)
    for log in logs:
        model.learn_many(*log)
    return model


def assert_same_prediction(one, other, key):
    first, second = (model.predict_one(key, horizon=100.0) for model in (one, other))
    assert first.types == pytest.approx(second.types, rel=1e-4)
    assert first.median_wait == pytest.approx(second.median_wait, rel=1e-4)
    assert first.probability == pytest.approx(second.probability, rel=1e-4)
    assert (first.events, first.last_time, first.last_type) == (
        second.events, second.last_time, second.last_type
    )  # fmt: skip


@MODELS
def test_whatever_numbers_types_have_predictions_are_the_same(name):
    """The other model knows the types in reverse, and has neither counted nor weighs anything."""
    model = learned(name, ANN)
    reverse = learned(name, ([1.0] * 5, TYPES[::-1], ["nobody"] * 5))
    into = model_of(name)
    merge(into, [Part(reverse, 0.0, 0.0), Part(model, 1.0, 400.0)])
    assert list(into.vocabulary) == TYPES[::-1] != list(model.vocabulary)
    for key in ("ann", "al"):
        assert_same_prediction(model, into, key)
    more = some_events(50, 3, ["ann", "al"])
    more = ([time + 1e6 for time in more[0]], *more[1:])
    into.learn_many(*more)  # whose first event in either key closes the gap that was open
    assert into.predict_one("ann").events > model.predict_one("ann").events


@MODELS
def test_a_merge_knows_the_keys_of_both_and_the_newer_state_of_each(name):
    one, other = learned(name, ANN), learned(name, BOB, ([1e6], ["type 0"], ["ann"]))
    into = model_of(name)
    merge(into, [Part(one, 1.0, 400.0), Part(other, 1.0, 300.0)])
    assert len(into.keys) == 4
    for key, holder in {"al": one, "bob": other, "ben": other, "ann": other}.items():
        mine, theirs = into.predict_one(key), holder.predict_one(key)
        assert (mine.events, mine.last_time, mine.last_type) == (
            theirs.events, theirs.last_time, theirs.last_type
        )  # fmt: skip
    assert into.predict_one("ann").last_time == 1e6


def by_type(model, name):
    """An array of counts, its types in the order of their names."""
    order = [model.vocabulary[kind] for kind in TYPES]
    array = model.arrays[name]
    layout = model.layouts()[name]
    array = array.reshape(layout.shape or array.shape)
    for axis in layout.axes:
        array = np.take(array, [*order, *range(len(TYPES), array.shape[axis])], axis)
    return array


@pytest.mark.parametrize("name", ["poisson", "counts"])
def test_merged_counts_are_those_of_a_model_that_saw_everything(name):
    one, other, both = learned(name, ANN), learned(name, BOB), learned(name, ANN, BOB)
    into = model_of(name)
    merge(into, [Part(one, 1.0, 400.0), Part(other, 1.0, 300.0)])
    for array, layout in into.layouts().items():
        if layout.rule == "counts":
            np.testing.assert_allclose(by_type(into, array), by_type(both, array), rtol=1e-12)


@MODELS
def test_shares_that_add_up_to_one_lose_and_repeat_nothing_that_was_counted(name):
    model = learned(name, ANN)
    parts = [model_of(name) for _ in range(2)]
    for part, share in zip(parts, (0.25, 0.75), strict=True):
        merge(part, [Part(model, share, 1.0)])
    for array, layout in model.layouts().items():
        if layout.rule in ("counts", "sums", "open") and not array.endswith("progress"):
            total = sum(part.common()[array] for part in parts)
            np.testing.assert_allclose(total, model.common()[array], rtol=1e-5, atol=1e-7)


def test_types_without_room_count_as_other():
    one = learned("counts", some_events(200, 1, ["ann"]), types=6)
    other = learned("counts", some_events(100, 2, ["bob"], ["x", "y", "z"]), types=6)
    into = model_of("counts", types=6)
    merge(into, [Part(one, 1.0, 1.0), Part(other, 1.0, 1.0)])
    assert list(into.vocabulary) == list(one.vocabulary)
    assert into.predict_one("bob").last_type == "(other)"
    assert into.arrays["global_types"][0, 5] == 100.0


@MODELS
def test_models_that_are_kept_alike_have_equal_parameters(name):
    one, other, like = learned(name, ANN), learned(name, BOB), model_of(name)
    shared = average(like, [parameters(one), parameters(other)], [400.0, 300.0], None)
    for model in (one, other):
        adopt(model, shared)
    again = average(like, [parameters(one), parameters(other)], [1.0, 0.0], None)
    assert again.vocabulary == shared.vocabulary
    back = average(like, [parameters(other), parameters(one)], [1.0, 0.0], shared)
    for array in shared.arrays:
        known = shared.arrays[array]
        np.testing.assert_allclose(again.arrays[array], known, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(back.arrays[array], known, rtol=1e-6, atol=1e-9)
    for model in (one, other):  # and they learn on
        model.learn_many([2e6, 2e6 + 5.0], ["type 1", "type 3"], ["ann", "ann"])


@pytest.mark.parametrize("name", ["poisson", "counts"])
def test_what_models_have_counted_since_they_were_alike_is_added(name):
    """After the first average, which nothing came before, they count as one model would that sees both."""
    one, other, both, like = (model_of(name) for _ in range(4))
    shared = average(like, [parameters(one), parameters(other)], [1.0, 1.0], None)
    for start in (0, 100, 200):
        part = slice(start, start + 100)
        for model, log in ((one, ANN), (other, BOB)):
            model.learn_many(*(column[part] for column in log))
            both.learn_many(*(column[part] for column in log))
        shared = average(like, [parameters(one), parameters(other)], [100.0, 100.0], shared)
        adopt(one, shared)
        adopt(other, shared)
        for array, layout in like.layouts().items():
            if layout.rule == "counts":
                np.testing.assert_allclose(by_type(one, array), by_type(both, array), rtol=1e-12)
                np.testing.assert_allclose(by_type(other, array), by_type(both, array), rtol=1e-12)


def test_weights_are_averaged_as_heavy_as_what_was_learned():
    one, other, like = learned("prompt-tpp", ANN), learned("prompt-tpp", ANN), model_of("prompt-tpp")
    other.arrays["weights"] += 1.0
    shared = average(like, [parameters(one), parameters(other)], [300.0, 100.0], None)
    adopt(one, shared)
    bias = like.network.parameters
    import torch

    before, after = (
        bias(torch.from_numpy(array))["gap_bias"].numpy()
        for array in (other.arrays["weights"] - 1.0, one.arrays["weights"])
    )
    np.testing.assert_allclose(after, before + 0.25, rtol=1e-4, atol=1e-4)


def test_models_that_know_too_many_types_together_are_told_from_each_other():
    one = learned("counts", some_events(50, 1, ["a"], list("abcd")), types=6)
    other = learned("counts", some_events(50, 1, ["a"], list("efgh")), types=6)
    with pytest.raises(TypesFullError, match="8 types"):
        average(model_of("counts", types=6), [parameters(one), parameters(other)], [1.0, 1.0], None)


counts = st.lists(st.integers(0, 50), min_size=3, max_size=3)


@settings(deadline=None)
@given(before=counts, added=st.lists(counts, min_size=1, max_size=4), halved=st.data())
def test_counts_that_faded_meanwhile_stay_counts(before, added, halved):
    start = np.array([before], float)
    now = []
    for more in added:
        times = halved.draw(st.integers(0, 2))
        now.append((start + np.array([more], float)) * 0.5**times)
    total = _counted(start, now)
    assert (total >= 0.0).all()
    assert (total <= start + sum(np.array([more]) for more in added) + 1e-6).all()
    if all((one >= start).all() for one in now):
        np.testing.assert_allclose(total, start + sum(one - start for one in now), atol=1e-9)
