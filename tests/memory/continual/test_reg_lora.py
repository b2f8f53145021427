"""RegLoRA around event models, whose matrices are no layers; test_slow_changes.py has it on classifiers."""

from __future__ import annotations

import pytest
import torch
from event_worlds import base, windows
from living import arrays, live

from streamwise.memory.continual.reg_lora import RegLoRA, matrices
from streamwise.memory.continual.state_bottleneck import StateBottleneck

both = pytest.mark.parametrize("kind", ["nhp", "attnhp"])


def changed(kind, seed=0, **settings):
    """A learner in its second world, whose thin matrices are no longer zero."""
    learner = RegLoRA(base(kind, layers=2, heads=2), **{"rank": 2, "strength": 1.0, **settings})
    live(learner, windows(18, seed=seed))
    learner.consolidate()
    live(learner, windows(18, seed=seed + 1))
    return learner


@both
def test_what_multiplies_states_is_changed_and_what_is_added_to_them_is_not(kind):
    assert set(matrices(base(kind).network)) == {"model", "model.head"}
    learner = changed(kind)
    trained = {name for name, weight in learner.network.named_parameters() if weight.requires_grad}
    assert {"model.down", "model.up", "model.head.down", "model.head.up", "model.embedding"} < trained
    assert not {"model.weight", "model.head.weight"} & trained


@both
def test_the_model_is_the_one_whose_matrices_have_the_product_in_them(kind):
    learner, plain = changed(kind, alpha=3.0), base(kind, layers=2, heads=2)
    state = dict(learner.network.state_dict())
    for path in ("model", "model.head"):
        state.pop(f"{path}.start")
        up, down = state.pop(f"{path}.up"), state.pop(f"{path}.down")
        assert up.any()
        product = torch.einsum("...or,...ri->...oi", up, down)
        state[f"{path}.weight"] = state[f"{path}.weight"] + 1.5 * product
    plain.network.load_state_dict(state)
    inputs, targets = arrays(windows(9, seed=7))
    torch.testing.assert_close(learner.scores(inputs), plain.scores(inputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learner.loss(inputs, targets), plain.loss(inputs, targets))


@both
def test_until_the_first_boundary_it_is_the_model_alone_to_the_last_bit(kind):
    plain, learner = base(kind), RegLoRA(base(kind))
    stream = windows(24)
    assert live(learner, stream) == live(plain, stream)
    for name, weight in plain.network.state_dict().items():
        assert torch.equal(learner.network.state_dict()[name], weight)


@both
def test_the_penalty_of_a_stack_is_that_of_all_its_products(kind):
    learner = changed(kind, share=0.1)
    found = []
    for layer in learner.layers.values():
        product = torch.einsum("...or,...ri->...oi", layer.up, layer.down)
        assert product.shape == layer.weight.shape
        found.append(product.abs().flatten()[layer.protected].mean())
        torch.testing.assert_close(layer.penalty(), found[-1])
    assert min(float(penalty.detach()) for penalty in found) > 0.0
    inputs, targets = arrays(windows(3, seed=5))
    expected = learner.loss(inputs, targets) + sum(found) / len(found)
    torch.testing.assert_close(learner.objective(inputs, targets), expected)


@both
def test_a_boundary_keeps_what_the_model_says_and_protects_what_changed_most(kind):
    learner = changed(kind, share=0.05, most=1.0)
    inputs, _ = arrays(windows(9, seed=7))
    before = learner.scores(inputs)
    known = {path: set(layer.protected.tolist()) for path, layer in learner.layers.items()}
    changes = {path: layer.scale * (layer.up @ layer.down).detach() for path, layer in learner.layers.items()}
    learner.consolidate()
    torch.testing.assert_close(learner.scores(inputs), before, atol=1e-5, rtol=1e-5)
    for path, layer in learner.layers.items():
        assert not layer.up.any()
        size = changes[path].abs().flatten()
        largest = set(size.topk(round(0.05 * len(size))).indices.tolist())
        assert set(layer.protected.tolist()) == known[path] | largest


def test_protected_entries_of_gates_move_less_than_others():
    ratios = {}
    for strength in (0.0, 30.0):
        learner = RegLoRA(base(), rank=4, strength=strength, share=0.1)
        live(learner, windows(90))
        learner.consolidate()
        gates = learner.layers["model"]
        before, protected = gates.weight.detach().clone(), gates.protected
        live(learner, windows(120, seed=1, gap=40.0))
        learner.consolidate()
        change = (gates.weight.detach() - before).abs().flatten()
        inside = torch.zeros_like(change, dtype=torch.bool)
        inside[protected] = True
        ratios[strength] = float(change[inside].mean() / change[~inside].mean())
    assert ratios[30.0] < 0.3 < ratios[0.0]


def test_where_it_does_not_go_is_refused():
    with pytest.raises(ValueError, match="no linear layer to change by low rank"):
        RegLoRA(StateBottleneck(base()))  # whose model is inside one that adds offsets
    with pytest.raises(ValueError, match="no linear layer to change by low rank"):
        RegLoRA(RegLoRA(base()))
