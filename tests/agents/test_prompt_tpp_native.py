"""The native PromptTPP against its reference, and gradients against finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from prompt_tpp_support import COLUMN, KINDS, _part, gradient, lively, make, needs_native, some_events

from streamwise.agents import PromptTPP
from streamwise.kernels import native_info
from streamwise.streams import Event

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# Native against reference


@needs_native
@EVERY_KIND
def test_native_equals_reference(kind):
    """The gradient of an open group to 1e-9, and after 25 steps what it leads to.

    Scores are those of forecasts, which rows keep in single precision.
    """
    events = some_events(100)
    one, other = (lively(make(kind, backend, group=1000)) for backend in ("native", "reference"))
    scores = [model.learn_many(*(column[:60] for column in events)) for model in (one, other)]
    np.testing.assert_allclose(*scores, rtol=1e-6, atol=1e-7)
    grown = gradient(other)
    np.testing.assert_allclose(gradient(one), grown, rtol=1e-9, atol=1e-11 * np.abs(grown).max())
    if kind.get("train") != "pool":
        assert np.abs(grown).max() > 0.1
    one, other = make(kind, "native"), make(kind, "reference")
    np.testing.assert_allclose(one.learn_many(*events), other.learn_many(*events), rtol=1e-5, atol=1e-7)
    for name in ("progress", "usage", "floor_weights", "cached"):
        np.testing.assert_allclose(one.arrays[name], other.arrays[name], rtol=1e-5, atol=1e-9)


@needs_native
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_gives_the_same(instruction_set, monkeypatch):
    here = native_info()
    if instruction_set == "avx2" and here.instruction_set not in ("avx2", "avx512"):
        pytest.skip("this processor has no AVX2")
    events = some_events(300)
    widest = make()
    monkeypatch.setattr(
        "streamwise.agents.prompt_state.native_info",
        lambda: dataclasses.replace(here, instruction_set=instruction_set),
    )
    np.testing.assert_allclose(make().learn_many(*events), widest.learn_many(*events), rtol=1e-5, atol=1e-7)


@needs_native
def test_single_precision_is_near_double():
    events = some_events(400)
    double, single = make(), make(precision="float32")
    theirs, ours = double.learn_many(*events), single.learn_many(*events)
    for name in ("time_log_density", "type_log_probability", "compensator"):
        near = np.isclose(
            ours[:, COLUMN[name]], theirs[:, COLUMN[name]], rtol=2e-3, atol=2e-3, equal_nan=True
        )
        assert near.mean() > 0.99


@needs_native
def test_a_run_may_change_its_back_end_in_an_open_group():
    times, types, keys = some_events(130)
    reference, mixed = make(backend="reference"), make(backend="native")
    reference.learn_many(times, types, keys)
    mixed.learn_many(times[:61], types[:61], keys[:61])
    state = mixed.state_dict()
    mixed = make(backend="reference")
    mixed.load_state_dict(state)
    mixed.learn_many(times[61:97], types[61:97], keys[61:97])
    state = mixed.state_dict()
    mixed = make(backend="native")
    mixed.load_state_dict(state)
    mixed.learn_many(times[97:], types[97:], keys[97:])
    np.testing.assert_allclose(mixed.arrays["weights"], reference.arrays["weights"], rtol=1e-5, atol=1e-7)


@needs_native
def test_the_native_model_refuses_arrays_that_do_not_fit():
    model = make()
    kind, spec = model._native_spec()
    from streamwise.kernels import _native

    rows = model.keys.rows.view(np.uint8).reshape(-1)
    spec |= {**model.arrays, "keys": rows, "slots": len(model.keys.rows), "capacity": model.config.types}
    getattr(_native, kind)(spec)
    for name, wrong, message in [
        ("weights", np.zeros(5), "weights has the wrong size"),
        ("weights", model.arrays["weights"].astype(np.float32), "weights is not"),
        ("width", 24, "multiples of 16"),
        ("size", 10, "wrong size|size is not"),
        ("keys", rows[:-8], "keys has the wrong size"),
        ("selected", 6, "selected is out of range"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            getattr(_native, kind)({**spec, name: wrong})


# Gradients


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if "train" not in kind])
def test_gradients_equal_finite_differences(kind):
    """Of the loss of one event, the constants of older events held where they are.

    The step, not the gradient, is what training the pool alone changes.
    """
    # A matching loss is no part of the score; silence would be another event's.
    model = lively(make(kind, group=1000, matching=0.0, silence_every=0, cache_age=10**6))
    times, types, keys = some_events(40)
    model.learn_many(times, types, keys)
    before = model.state_dict()
    event = Event(times[-1] + 70.0, types[0], max(keys, key=keys.count))

    def loss(weights):
        model.load_state_dict(before)
        model.arrays["weights"][:] = weights
        model.arrays["gradients"][:] = 0.0
        model.arrays["prompt_gradients"][:] = 0.0
        if model.native is not None:
            model.native.refresh()
        score = model.learn_one(event)
        return -score["at_arrival_time_log_likelihood"] - score["type_log_probability"]

    weights = before["weights"].numpy().copy()
    loss(weights)
    exact = gradient(model)
    if kind.get("decoder") == "intensity":  # whose loss has nodes of its own, drawn by chance
        model.network.nodes = None
        return assert_gradient_of_drawn_nodes(model, before, event, exact)
    generator = np.random.default_rng(0)
    # What the history holds, and is asked, is a constant made of embeddings, which come first.
    first = _part(model, "embedding").size if kind.get("history") else 0
    if first:
        parts = model.network.parameters(torch.from_numpy(exact))
        assert all(parts[name].abs().max() > 1e-4 for name in model.network.recall_shapes)
    large = first + np.argsort(-np.abs(exact[first:]))[:200]
    for at in np.concatenate([generator.choice(large, 25), generator.integers(first, len(weights), 15)]):
        step = np.zeros_like(weights)
        step[at] = 1e-5
        rise = (loss(weights + step) - loss(weights - step)) / 2e-5
        assert rise == pytest.approx(exact[at], rel=2e-5, abs=2e-6)


def assert_gradient_of_drawn_nodes(model, before, event, exact):
    """The same, of the loss as the reference writes it."""
    reference = PromptTPP(model.config, backend="reference")
    reference.load_state_dict(before)
    row = reference.keys.rows[reference.keys.slots([event.key])[0]]
    weights = torch.from_numpy(before["weights"].numpy().copy())

    def loss(at):
        p = reference.network.parameters(at)
        reference.arrays["cached"][:] = before["cached"].numpy().reshape(reference.arrays["cached"].shape)
        past = reference._remember(p, row, fresh=model.config.gradients == "exact")
        kind = reference.vocabulary[event.type]
        return reference._score_event(p, past, event.time - float(row["last_time"]), kind, None)[2].item()

    for at in np.argsort(-np.abs(exact))[:20]:
        step = torch.zeros_like(weights)
        step[at] = 1e-5
        with torch.no_grad():
            rise = (loss(weights + step) - loss(weights - step)) / 2e-5
        assert rise == pytest.approx(exact[at], rel=2e-5, abs=2e-6)
