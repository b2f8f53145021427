"""Relation distillation on event models: what is related, what each loss moves, and what is held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from event_worlds import LENGTH, TYPES, base, windows
from living import arrays, live
from torch import nn

from streamwise.agents.classifier import Classifier
from streamwise.memory.continual.reg_lora import RegLoRA
from streamwise.memory.continual.relation_distillation import relation_loss, supervised_contrast
from streamwise.memory.continual.state_bottleneck import StateBottleneck
from streamwise.memory.continual.type_relations import TypeRelations, resemblances, states_before

both = pytest.mark.parametrize("kind", ["nhp", "attnhp"])


def related(kind="nhp", worlds=1, **settings):
    """A learner that has lived in some worlds, and for a moment in another."""
    learner = TypeRelations(base(kind, layers=2, heads=2), **settings)
    for world in range(worlds):
        live(learner, windows(18, seed=world))
        learner.consolidate()
    live(learner, windows(6, seed=99, gap=30.0))
    return learner


def gradients(loss, *weights):
    found = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]


def off(learner, inputs, over="samples"):
    """How far relations are from the teacher's, κ = 0.1, on windows."""
    sequences = learner.network.sequences(inputs)
    with torch.no_grad():
        then, now = (
            resemblances(
                states_before(model, sequences)[:, 1:].flatten(0, 1), model.head.weight[learner.known]
            )
            for model in (learner.teacher, learner.model)
        )
    return float(relation_loss(10.0 * then, 10.0 * now, over))


# ---- states


@both
def test_the_head_makes_of_the_states_the_rates_at_events(kind):
    learner = related(kind)
    model, sequences = learner.model, learner.network.sequences(arrays(windows(4, seed=3))[0])
    memory = model.remember(sequences)
    for place in range(LENGTH):
        seen = torch.full((4, 1), place)
        rates = model.intensities(memory, sequences.times[:, place : place + 1], seen)[:, 0]
        states = states_before(model, sequences)[:, place]
        torch.testing.assert_close(model.head(states), rates)
    assert isinstance(model.head, type(base(kind).network.model.head))  # it was not touched


@both
def test_a_state_before_an_event_knows_its_time_and_what_was_before_it(kind):
    learner = related(kind)
    one, two = arrays(windows(2, seed=1))[0]
    two = torch.cat([one[:3], two[3:]])
    two[3, 0] = one[3, 0]  # the fourth event comes when it does in the other, and is of another type
    two[3, 1] = (one[3, 1] + 1) % TYPES
    states = states_before(learner.model, learner.network.sequences(torch.stack([one, two])))
    torch.testing.assert_close(states[0, :4], states[1, :4])
    assert not torch.allclose(states[0, 4], states[1, 4])
    two[3, 0] += 5.0
    later = states_before(learner.model, learner.network.sequences(two[None]))[0]
    assert not torch.allclose(later[3], states[0, 3])
    assert gradients(states.sum(), learner.model.weight)[0].any()


# ---- losses


@both
@pytest.mark.parametrize("relation", ["samples", "classes"])
def test_the_losses_are_what_they_are_called(kind, relation):
    weights = {"contrast": 0.7, "prototype_weight": 0.5, "distillation": 3.0}
    learner = related(kind, sharpness=0.4, relation=relation, **weights)
    inputs, targets = arrays(windows(4, seed=2))
    types, sequences = inputs[:, 1:, 1].long().flatten(), learner.network.sequences(inputs)
    rows, count = learner.model.head.weight, len(types)

    states = states_before(learner.model, sequences)[:, 1:].flatten(0, 1)
    unit = nn.functional.normalize(states @ learner.projection, dim=1)
    contrast = supervised_contrast(unit, types, 0.1)
    apart = [
        1.0 - h @ rows[k] / (h.norm() * rows[k].norm()) for h, k in zip(states.detach(), types, strict=True)
    ]
    a = torch.stack([states @ row / row.norm() for row in rows], 1) / 0.4
    then = states_before(learner.teacher, sequences)[:, 1:].flatten(0, 1)
    b = torch.stack([then @ row / row.norm() for row in learner.teacher.head.weight], 1) / 0.4
    over = 0 if relation == "samples" else 1
    p, q = b.softmax(over), a.softmax(over)
    divergence = (p * (p / q).log()).sum() / (TYPES if relation == "samples" else count)
    assert float(divergence.detach()) > 1e-5
    expected = learner.loss(inputs, targets) + 0.7 * contrast + 0.5 * sum(apart) / count + 3.0 * divergence

    loss = learner.objective(inputs, targets)
    torch.testing.assert_close(loss, expected)
    trained = [*learner.network.parameters()]
    for one, other in zip(gradients(loss, *trained), gradients(expected, *trained), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_without_its_losses_it_is_the_model_alone():
    plain, learner = base(), TypeRelations(base(), contrast=0.0, distillation=0.0)
    stream = windows(24)
    for one, other in zip(live(learner, stream, {9}), live(plain, stream), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_prototypes_are_drawn_to_states_and_states_not_to_prototypes():
    found = []
    for weight in (0.0, 5.0):
        learner = TypeRelations(base(), prototype_weight=weight)
        loss = learner.losses(*arrays(windows(6)))
        found.append(
            gradients(loss, learner.model.weight, learner.model.embedding, learner.model.head.weight)
        )
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(found[0][2], found[1][2])


def test_right_after_a_boundary_the_relation_is_kept_and_pulls_at_nothing():
    learner, found = related(), {}
    learner.consolidate()
    batch = arrays(windows(6, seed=5))
    for strength in (0.0, 50.0):
        learner.distillation = strength
        loss = learner.losses(*batch)
        found[strength] = [loss.detach(), *gradients(loss, *learner.model.parameters())]
    for one, other in zip(found[0.0], found[50.0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    live(learner, windows(30, seed=6, gap=60.0))
    held = learner.losses(*batch)
    learner.distillation = 0.0
    assert held > learner.losses(*batch)


def test_the_length_of_a_prototype_says_nothing():
    random = np.random.default_rng(0)
    states, rows = (torch.from_numpy(random.standard_normal((count, 4))) for count in (7, 3))
    expected = resemblances(states, rows)
    torch.testing.assert_close(resemblances(states, rows * torch.tensor([[0.1], [3.0], [7.0]])), expected)
    torch.testing.assert_close(expected[2, 1], states[2] @ rows[1] / rows[1].norm())


def test_types_that_had_not_come_are_not_held():
    learner = TypeRelations(base(batch_size=1), distillation=5.0)
    inputs, targets = arrays(windows(1))
    inputs[0, :, 1] = torch.tensor([2.0, 0.0, 0.0, 1.0, 0.0])
    learner.losses(inputs, targets)
    learner.consolidate()
    assert learner.known.tolist() == [True, True, False]  # the third was in the context, which is not scored
    loss = {}
    for row in (1, 2):
        with torch.no_grad():
            learner.model.head.weight[row].neg_()
        kept = learner.distillation
        whole = learner.losses(inputs, targets)
        learner.distillation = 0.0
        loss[row] = float(whole.detach() - learner.losses(inputs, targets).detach())
        learner.distillation = kept
        with torch.no_grad():
            learner.model.head.weight[row].neg_()
    assert loss[1] > 1e-4
    assert loss[2] == pytest.approx(0.0, abs=1e-6)


def test_a_boundary_before_anything_came_changes_nothing():
    early, late = TypeRelations(base()), TypeRelations(base())
    early.consolidate()
    assert early.teacher is None
    assert live(early, windows(9)) == live(late, windows(9))


@pytest.mark.parametrize("relation", ["samples", "classes"])
def test_distillation_holds_what_histories_resemble_while_another_world_is_learned(relation):
    found = {}
    for weight in (0.0, 30.0):
        learner = TypeRelations(base(), distillation=weight, sharpness=0.1, relation=relation)
        live(learner, windows(60))
        learner.consolidate()
        live(learner, windows(60, seed=1, gap=60.0))
        found[weight] = off(learner, arrays(windows(30, seed=2, gap=60.0))[0], relation)
    assert found[30.0] < 0.5 * found[0.0]


# ---- around others


def test_it_goes_around_a_model_whose_matrices_change_by_low_rank():
    learner = TypeRelations(RegLoRA(base(), rank=2))
    live(learner, windows(18))
    learner.consolidate()
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    assert off(learner, arrays(windows(6))[0]) < 1e-6
    live(learner, windows(9, seed=1))
    after = learner.network.state_dict()
    assert torch.equal(after["model.head.weight"], before["model.head.weight"])
    for name in ("model.up", "model.down", "model.head.up", "projection"):
        assert not torch.equal(after[name], before[name])


def test_what_it_cannot_go_around_is_refused():
    for other in (Classifier(4, 2), StateBottleneck(base())):
        with pytest.raises(ValueError, match="put this around an event model"):
            TypeRelations(other)
    with pytest.raises(ValueError, match="use 1 or more, and numbers above 0"):
        TypeRelations(base(), sharpness=0.0)
