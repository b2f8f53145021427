"""RegLoRA, the view-batch model and relation distillation: what their formulas say, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from living import arrays, live
from test_methods import CLASSES, FEATURES, base, examples
from torch import nn

from streamwise.memory.continual.reg_lora import LowRank, RegLoRA
from streamwise.memory.continual.relation_distillation import (
    RelationDistillation,
    relation_loss,
    supervised_contrast,
)
from streamwise.memory.continual.view_batch import ViewBatch, views_of

# ---- RegLoRA


def changed(rank=3, worlds=1, **settings):
    learner = RegLoRA(base(), rank=rank, **{"strength": 1.0, **settings})
    for world in range(worlds):
        live(learner, examples(60, seed=world))
        learner.consolidate()
    return learner


def test_a_layer_is_the_linear_one_until_it_changes():
    linear, inputs = nn.Linear(5, 4), torch.randn(7, 5)
    before = linear(inputs)
    change = LowRank(linear, 2, 4.0)
    assert torch.equal(linear(inputs), before)
    change.train_low_rank()
    with torch.no_grad():
        change.up.normal_()
        change.down.normal_()
    expected = before + 2.0 * inputs @ (change.up @ change.down).T
    torch.testing.assert_close(linear(inputs), expected)
    trained = {name for name, weight in linear.named_parameters() if weight.requires_grad}
    assert trained == {"up", "down", "bias"}


def test_the_penalty_is_that_of_the_whole_product():
    learner = changed()
    for layer in learner.layers.values():
        with torch.no_grad():
            layer.up.normal_()
        whole = (layer.up @ layer.down).abs().flatten()[layer.protected].mean()
        torch.testing.assert_close(layer.penalty(), whole)


def test_merging_changes_no_output_and_the_penalty_begins_at_zero():
    learner, inputs = changed(), torch.randn(20, FEATURES)
    live(learner, examples(40, seed=3))
    before = learner.scores(inputs)
    learner.consolidate()
    torch.testing.assert_close(learner.scores(inputs), before, atol=1e-6, rtol=1e-5)
    assert all(float(layer.penalty().detach()) == 0.0 for layer in learner.layers.values())


def test_what_changed_most_is_protected_once_and_at_most_so_much_of_a_layer():
    learner = RegLoRA(base(), rank=2, share=0.1, most=0.25)
    starts = {path: layer.weight.detach().clone() for path, layer in learner.layers.items()}
    live(learner, examples(60))
    changes = {path: (layer.weight - starts[path]).detach().abs() for path, layer in learner.layers.items()}
    learner.consolidate()
    for path, layer in learner.layers.items():
        most = changes[path].flatten().argsort(descending=True)[: round(0.1 * layer.weight.numel())]
        assert set(layer.protected.tolist()) == set(most.tolist())
    for world in range(1, 8):
        live(learner, examples(60, seed=world))
        learner.consolidate()
    for layer in learner.layers.values():
        assert len(set(layer.protected.tolist())) == len(layer.protected) <= 0.25 * layer.weight.numel()
        assert len(layer.changed) == len(layer.protected)


def test_protected_entries_move_less_than_others():
    learner = changed(strength=3.0, share=0.2)
    before = {path: layer.weight.detach().clone() for path, layer in learner.layers.items()}
    protected = {path: layer.protected for path, layer in learner.layers.items()}
    live(learner, examples(400, seed=1, classes=[0, 1]))
    learner.consolidate()
    ratios = []
    for path, layer in learner.layers.items():
        change = (layer.weight.detach() - before[path]).abs().flatten()
        inside = torch.zeros_like(change, dtype=torch.bool)
        inside[protected[path]] = True
        ratios.append(float(change[inside].mean() / change[~inside].mean()))
    assert np.mean(ratios) < 0.3


def test_without_strength_it_is_one_change_of_low_rank_after_another():
    learner, plain = changed(strength=0.0), changed(strength=0.0, share=1.0)
    for one in (learner, plain):  # whatever is protected
        live(one, examples(50, seed=8))
    for one, other in zip(learner.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, other)
    for layer in learner.layers.values():
        change = (layer.scale * layer.up @ layer.down).detach()
        assert int(torch.linalg.matrix_rank(change)) <= 3


def test_a_network_without_linear_layers_is_refused():
    learner = base()
    learner.network = nn.Conv1d(1, 1, 1)
    with pytest.raises(ValueError, match="no linear layer"):
        RegLoRA(learner)


# ---- views


def test_the_first_view_is_weak_and_the_others_are_strong():
    inputs = torch.full((500, 10), 3.0)
    views = views_of(inputs, 4, 0.5, 0.2, torch.Generator().manual_seed(0))
    assert views.shape == (500, 4, 10)
    assert float((views[:, 0] - 3.0).std()) == pytest.approx(0.1, rel=0.05)
    assert not (views[:, 0] == 0.0).any()
    strong = views[:, 1:]
    assert float((strong == 0.0).float().mean()) == pytest.approx(0.2, rel=0.1)
    assert float((strong[strong != 0.0] - 3.0).std()) == pytest.approx(0.5, rel=0.05)


def test_a_sample_rests_between_two_looks_at_it():
    learner, looks = ViewBatch(base(), capacity=30, places=8, views=2, rest=6), {}
    rested = learner._rested

    def noted():
        chosen = rested()
        for place in chosen.tolist():
            looks.setdefault((place, learner.reservoir.inputs[place].numpy().tobytes()), []).append(
                learner.updates
            )
        assert len(chosen) <= 4
        return chosen

    learner._rested = noted
    live(learner, examples(600))
    gaps = np.concatenate([np.diff(times) for times in looks.values()])
    assert len(gaps) > 100
    assert gaps.min() > 6


def test_without_views_and_noise_it_adds_the_loss_of_samples_of_before():
    learner = ViewBatch(base(), places=3, views=1, rest=0, noise=0.0, lost=0.0, agreement=0.0)
    live(learner, examples(20))
    rows = learner.reservoir.rows(len(learner.reservoir))[:3]
    learner.reservoir.drawn -= len(learner.reservoir)  # the same draw again
    inputs, targets = arrays(examples(5, seed=2))
    expected = learner.loss(inputs, targets)
    expected = expected + learner.loss(learner.reservoir.inputs[rows], learner.reservoir.targets[rows])
    torch.testing.assert_close(learner.objective(inputs, targets), expected)


def test_nothing_flows_through_the_weak_view():
    learner = ViewBatch(base(), agreement=1.0)
    views, targets = torch.randn(3, 4, FEATURES), torch.tensor([0, 1, 2])
    with_agreement = torch.autograd.grad(learner._loss_of(views, targets), learner.network[0].weight)[0]
    learner.agreement = 0.0
    without = torch.autograd.grad(learner._loss_of(views, targets), learner.network[0].weight)[0]
    logs = learner.network(views).log_softmax(2)
    weak = logs[:, :1].detach()
    divergence = (weak.exp() * (weak - logs[:, 1:])).sum(2).mean()
    by_hand = torch.autograd.grad(divergence, learner.network[0].weight)[0]
    torch.testing.assert_close(with_agreement - without, by_hand, atol=1e-6, rtol=1e-4)


# ---- relations


def test_the_contrast_is_that_of_loops():
    features = nn.functional.normalize(torch.randn(9, 5), dim=1)
    targets, total, counted = torch.tensor([0, 1, 0, 2, 1, 0, 3, 3, 4]), 0.0, 0
    for i in range(9):
        others = [p for p in range(9) if p != i and targets[p] == targets[i]]
        if not others:
            continue
        counted += 1
        whole = sum(float(torch.exp(features[i] @ features[a] / 0.2)) for a in range(9) if a != i)
        total -= np.mean([float(features[i] @ features[p] / 0.2) - np.log(whole) for p in others])
    expected = 0.2 / 0.07 * total / counted
    assert float(supervised_contrast(features, targets, 0.2)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("axis", ["samples", "classes"])
def test_the_relation_is_a_divergence_that_nothing_moves_at_zero(axis):
    before = torch.randn(6, 3)
    now = before.clone().requires_grad_()
    loss = relation_loss(before, now, axis)
    (gradient,) = torch.autograd.grad(loss, now)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert gradient.abs().max() < 1e-6
    other = torch.randn(6, 3)
    over = 0 if axis == "samples" else 1
    p, q = (x.softmax(over).numpy() for x in (before, other))
    assert float(relation_loss(before, other, axis)) == pytest.approx(
        (p * np.log(p / q)).sum(over).mean(), rel=1e-4
    )


def test_the_length_of_a_prototype_says_nothing():
    learner = RelationDistillation(base(), CLASSES)
    live(learner, examples(40))
    learner.consolidate()
    inputs, features = torch.randn(8, FEATURES), torch.randn(8, 8)
    scores, resembles = learner.scores(inputs), learner.model.resemblances(features, torch.arange(CLASSES))
    with torch.no_grad():
        learner.model.prototypes.mul_(torch.tensor([[0.1], [3.0], [7.0], [20.0]]))
    torch.testing.assert_close(learner.scores(inputs), scores)
    torch.testing.assert_close(learner.model.resemblances(features, torch.arange(CLASSES)), resembles)


def test_prototypes_alone_follow_their_samples_and_begin_at_the_first():
    learner = RelationDistillation(base(batch_size=1), CLASSES, prototype_weight=0.0)
    stream = examples(1)
    inputs, targets = arrays(stream)
    with torch.no_grad():
        feature = nn.functional.normalize(learner.model.encoder(inputs)[0], dim=0)
    live(learner, stream)
    torch.testing.assert_close(learner.model.prototypes[targets[0]].detach(), feature)
    scores = learner.scores(torch.randn(3, FEATURES))
    assert (scores == -10.0).sum() == 3 * (CLASSES - 1)  # the least cosine, over τ

    # The weight of the prototypes' loss changes no gradient of the encoder.
    gradients = []
    for weight in (0.0, 5.0):
        one = RelationDistillation(base(), CLASSES, prototype_weight=weight)
        loss = one.losses(*arrays(examples(12)))
        gradients.append(torch.autograd.grad(loss, one.model.encoder[0].weight)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_distillation_keeps_more_of_what_was_learned_before():
    kept = {}
    for strength in (0.0, 20.0):
        accuracies = []
        for seed in range(4):
            learner = RelationDistillation(base(seed=seed), CLASSES, distillation=strength, seed=seed)
            live(learner, examples(300, seed=seed, classes=[0, 1]))
            learner.consolidate()
            live(learner, examples(300, seed=seed + 10, classes=[2, 3]))
            inputs, targets = arrays(examples(200, seed=99, classes=[0, 1]))
            accuracies.append(float((learner.scores(inputs)[:, :2].argmax(1) == targets).float().mean()))
        kept[strength] = np.mean(accuracies)
    assert kept[20.0] > kept[0.0]


def test_a_network_that_does_not_end_with_a_layer_is_refused():
    learner = base()
    learner.network = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU())
    with pytest.raises(ValueError, match="ends with a linear layer"):
        RelationDistillation(learner, 4)
