"""Answer styles: which form a sample is learned through, what each form costs, and what they leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from living import arrays, live, same
from scipy import stats
from test_methods import CLASSES, FEATURES, base, examples
from torch import nn

from streamwise.memory.continual.answer_style import (
    AS_ALWAYS,
    CHOICE,
    GROUP,
    YES_OR_NO,
    AnswerStyles,
    choice_loss,
    yes_or_no_loss,
)
from streamwise.memory.continual.replay import Replay


def styles(learner=None, **changes):
    return AnswerStyles(learner or base(), CLASSES, **{"choices": 3, "groups": 2, "share": 0.5, **changes})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_learns_and_so_does_each_form():
    learner = styles()
    live(learner, examples(1_500))
    inputs, targets = arrays(examples(300, seed=5))
    assert (learner.scores(inputs).argmax(1) == targets).float().mean() > 0.6
    features = learner.forms.body(inputs)
    for right in (
        (learner.forms.yes_or_no(features) > 0.0)[range(300), targets],
        learner.forms.choice(features).argmax(1) == targets,
        learner.forms.group(features).argmax(1) == learner.group_of[targets],
    ):
        assert right.float().mean() > 0.5


# ---- which form


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_forms_have_their_shares(share):
    learner = styles(share=share)
    drawn = torch.cat([learner.drawn_forms(10, generator(seed)) for seed in range(2_000)])
    counts = np.bincount(drawn.numpy(), minlength=4)
    expected = len(drawn) * np.array([1.0 - share, share / 3, share / 3, share / 3])
    assert not counts[expected == 0.0].any()
    assert stats.chisquare(counts[expected > 0.0], expected[expected > 0.0]).pvalue > 0.001


def test_updates_draw_their_own_forms_and_the_seed_decides():
    drawn = {}
    for seed in (0, 0, 1):
        learner, seen = styles(seed=seed), []
        draw = learner.drawn_forms

        def noted(count, generator, draw=draw, seen=seen):
            seen.append(draw(count, generator).tolist())
            return draw(count, generator)

        learner.drawn_forms = noted
        live(learner, examples(200))
        drawn.setdefault(seed, []).append(seen)
    assert drawn[0][0] == drawn[0][1] != drawn[1][0]
    assert len({tuple(forms) for forms in drawn[0][0]}) > 30  # of 40 updates


def test_half_of_what_is_asked_about_is_right_and_the_rest_is_any_other():
    learner = styles()
    targets = torch.arange(CLASSES).repeat(5_000)
    asked = learner.asked(targets, generator())
    for label in range(CLASSES):
        counts = np.bincount(asked[targets == label].numpy(), minlength=CLASSES)
        expected = np.full(CLASSES, 5_000 / 2 / (CLASSES - 1))
        expected[label] = 5_000 / 2
        assert stats.chisquare(counts, expected).pvalue > 0.001


def test_the_right_class_is_offered_once_and_others_evenly():
    learner = styles()
    targets = torch.arange(CLASSES).repeat(3_000)
    offered = learner.offered(targets, generator())
    assert offered.shape == (len(targets), 3)
    assert ((offered == targets[:, None]).sum(1) == 1).all()
    assert all(len(set(row)) == 3 for row in offered.tolist())
    for label in range(CLASSES):
        counts = np.bincount(offered[targets == label].flatten().numpy(), minlength=CLASSES)
        assert stats.chisquare(np.delete(counts, label)).pvalue > 0.001


def test_groups_are_even_and_drawn():
    divisions = [AnswerStyles(base(), CLASSES, choices=2, groups=2, seed=seed).group_of for seed in range(20)]
    assert all(torch.bincount(division).tolist() == [2, 2] for division in divisions)
    assert len({tuple(division.tolist()) for division in divisions}) == math.comb(4, 2)


# ---- what each costs


def test_yes_or_no_is_the_log_of_a_sigmoid():
    outputs, targets, asked = torch.randn(8, 5), torch.arange(8) % 5, torch.tensor([0, 2, 2, 3, 1, 0, 0, 2])
    expected = []
    for row in range(8):
        chance = 1.0 / (1.0 + math.exp(-float(outputs[row, asked[row]])))
        expected.append(-math.log(chance if asked[row] == targets[row] else 1.0 - chance))
    np.testing.assert_allclose(yes_or_no_loss(outputs, asked, targets), expected, rtol=1e-4)


def test_a_choice_is_a_softmax_over_what_is_offered():
    outputs = torch.randn(3, 6)
    offered, targets = torch.tensor([[0, 3, 5], [4, 1, 2], [2, 0, 1]]), torch.tensor([3, 4, 1])
    expected = []
    for row in range(3):
        whole = sum(math.exp(float(outputs[row, label])) for label in offered[row].tolist())
        expected.append(-math.log(math.exp(float(outputs[row, targets[row]])) / whole))
    np.testing.assert_allclose(choice_loss(outputs, offered, targets), expected, rtol=1e-4)
    everything = torch.arange(6).expand(3, -1)
    torch.testing.assert_close(
        choice_loss(outputs, everything, targets),
        nn.functional.cross_entropy(outputs, targets, reduction="none"),
    )


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_objective_is_the_mean_over_samples_of_the_loss_of_their_form(share):
    learner = styles(share=share, seed=4)
    inputs, targets = arrays(examples(30))
    learner._generator, draws = (lambda: generator(8)), generator(8)
    forms = learner.drawn_forms(30, draws)
    assert len(forms.unique()) == (4 if share < 1.0 else 3)
    others = forms != AS_ALWAYS
    known, asked, offered = (
        targets[others], learner.asked(targets[others], draws), learner.offered(targets[others], draws)
    )  # fmt: skip
    features, heads = learner.forms.body(inputs[others]), learner.forms
    always = torch.nonzero(~others)[:, 0]
    losses = [learner.loss(inputs[row][None], targets[row][None]).item() for row in always]
    for row, form in enumerate(forms[others].tolist()):
        feature, target = features[row], int(known[row])
        if form == YES_OR_NO:
            odds = heads.yes_or_no(feature)[asked[row]].item()
            losses.append(math.log1p(math.exp(-odds if asked[row] == target else odds)))
        elif form == CHOICE:
            logits = {label: heads.choice(feature)[label].item() for label in offered[row].tolist()}
            losses.append(math.log(sum(map(math.exp, logits.values()))) - logits[target])
        else:
            assert form == GROUP
            logits = heads.group(feature)
            losses.append((logits.logsumexp(0) - logits[learner.group_of[target]]).item())
    assert len(losses) == 30
    assert learner.objective(inputs, targets).item() == pytest.approx(np.mean(losses), rel=1e-4)


# ---- what they leave alone


@pytest.mark.parametrize("inner", [base, lambda: Replay(base(), capacity=12, count=3)])
def test_without_a_share_it_is_what_is_inside_bit_for_bit(inner):
    learner, plain = styles(inner(), share=0.0), inner()
    heads = [head.weight.clone() for head in (learner.forms.yes_or_no, learner.forms.choice)]
    assert live(learner, examples(123), {40}) == live(plain, examples(123), {40})
    inside = [*learner.forms.body.parameters(), *learner.forms.last.parameters()]
    for one, other in zip(inside, plain.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(heads[0], learner.forms.yes_or_no.weight)
    assert torch.equal(heads[1], learner.forms.choice.weight)


def test_no_other_head_has_a_part_in_scores():
    learner, inputs = styles(), torch.randn(20, FEATURES)
    assert torch.equal(learner.scores(inputs), base().scores(inputs))
    live(learner, examples(60))
    scores = learner.scores(inputs)
    for head in (learner.forms.yes_or_no, learner.forms.choice, learner.forms.group):
        with torch.no_grad():
            head.weight.fill_(math.nan)
    assert torch.equal(learner.scores(inputs), scores)


def test_other_forms_train_the_body_and_their_heads_and_not_the_last_layer():
    learner = styles(share=1.0)
    last, body = learner.forms.last.weight.clone(), learner.forms.body[0].weight.clone()
    live(learner, examples(50))
    assert torch.equal(learner.forms.last.weight, last)
    assert not torch.equal(learner.forms.body[0].weight, body)


def test_boundaries_change_nothing():
    one, other = styles(), styles()
    live(one, examples(60), {10, 30})
    live(other, examples(60))
    same(one.state_dict(), other.state_dict())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="choices 1, groups 2; use 0 to 1, and 2 or more"):
        styles(choices=1)
    with pytest.raises(ValueError, match=r"share is 1\.2"):
        styles(share=1.2)
    learner = base()
    learner.network = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU())
    with pytest.raises(ValueError, match="ends with a linear layer"):
        styles(learner)
