"""Classifiers: gradients, batches, what they refuse, and that they go on where they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamwise.agents.classifier import Classifier, ClassifierConfig
from streamwise.agents.nearest_mean import NearestMean
from streamwise.streams import Example, NonFiniteSampleError, UsageError

FEATURES, CLASSES = 5, 3
LEARNERS = {
    "classifier": lambda: Classifier(
        FEATURES, CLASSES, ClassifierConfig(hidden_size=7, batch_size=4), seed=1
    ),
    "nearest-mean": lambda: NearestMean(FEATURES, CLASSES),
}
each_learner = pytest.mark.parametrize("name", LEARNERS)


def examples(count, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=count)
    features = random.standard_normal((count, FEATURES)) + labels[:, None]
    return [Example(x.astype(np.float32), int(y)) for x, y in zip(features, labels, strict=True)]


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_an_update_is_a_step_down_the_gradient_of_the_mean_loss_of_the_batch():
    config = ClassifierConfig(hidden_size=6, hidden_layers=1, batch_size=3, step_size=0.5)
    learner = Classifier(FEATURES, CLASSES, config, seed=2)
    before = {name: weight.detach().clone() for name, weight in learner.network.named_parameters()}
    batch = examples(3)
    for example in batch[:2]:
        learner.learn_one(example)
    assert all(torch.equal(weight, before[name]) for name, weight in learner.network.named_parameters())
    learner.learn_one(batch[2])

    hidden, _, out = (before[f"{layer}.weight"] if layer != 1 else None for layer in (0, 1, 2))
    weights = [hidden.double().requires_grad_(), before["0.bias"].double().requires_grad_(),
               out.double().requires_grad_(), before["2.bias"].double().requires_grad_()]  # fmt: skip
    losses = []
    for example in batch:
        x = torch.from_numpy(example.features).double()
        logits = weights[2] @ (weights[0] @ x + weights[1]).clamp(min=0.0) + weights[3]
        losses.append(logits.exp().sum().log() - logits[example.label])
    gradients = torch.autograd.grad(torch.stack(losses).mean(), weights)
    for (name, weight), gradient in zip(learner.network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.double(), before[name] - 0.5 * gradient, atol=1e-6, rtol=1e-5)


def test_each_example_is_scored_before_it_is_learned():
    learner = Classifier(FEATURES, CLASSES, seed=0)
    for example in examples(50):
        logits = learner.scores(torch.from_numpy(example.features)[None])[0]
        metrics = learner.learn_one(example)
        assert metrics["correct"] == float(logits.argmax() == example.label)
        assert metrics["log_loss"] == pytest.approx(-float(logits.log_softmax(0)[example.label]))


def test_some_parameters_may_step_otherwise():
    usual, slow = (Classifier(FEATURES, CLASSES, ClassifierConfig(hidden_layers=1), seed=0) for _ in range(2))
    slow.step_scales = {"2.": 0.25, "0.bias": 0.0}
    start = {name: weight.detach().clone() for name, weight in usual.network.named_parameters()}
    for learner in (usual, slow):
        learner.learn_one(examples(1)[0])
    for (name, one), (_, other) in zip(
        usual.network.named_parameters(), slow.network.named_parameters(), strict=True
    ):
        scale = 0.25 if name.startswith("2.") else 0.0 if name == "0.bias" else 1.0
        torch.testing.assert_close(other - start[name], scale * (one - start[name]), atol=1e-7, rtol=1e-4)


def test_what_needs_no_gradient_stays():
    learner = Classifier(FEATURES, CLASSES, seed=0)
    learner.network[0].weight.requires_grad_(False)
    kept, trained = learner.network[0].weight.clone(), learner.network[2].weight.clone()
    for example in examples(20):
        learner.learn_one(example)
    assert torch.equal(learner.network[0].weight, kept)
    assert not torch.equal(learner.network[2].weight, trained)


@each_learner
@settings(max_examples=20, deadline=None, derandomize=True)
@given(split=st.integers(0, 60))
def test_it_goes_on_where_it_was(name, split):
    whole, first, again = (LEARNERS[name]() for _ in range(3))
    stream = examples(60)
    seen = [whole.learn_one(example) for example in stream]
    for example in stream[:split]:
        first.learn_one(example)
    again.load_state_dict(first.state_dict())
    assert [again.learn_one(example) for example in stream[split:]] == seen[split:]
    same(again.state_dict(), whole.state_dict())


@each_learner
def test_scoring_changes_nothing_and_a_state_is_a_copy(name):
    learner = LEARNERS[name]()
    for example in examples(30):
        learner.learn_one(example)
    state = learner.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    learner.scores(torch.randn(40, FEATURES))
    learner.consolidate()
    same(learner.state_dict(), kept)
    for example in examples(30, seed=1):
        learner.learn_one(example)
    same(state, kept)


@each_learner
def test_it_refuses_what_is_no_example_and_is_unchanged(name):
    learner = LEARNERS[name]()
    for example in examples(10):
        learner.learn_one(example)
    before = learner.state_dict()
    with pytest.raises(NonFiniteSampleError, match="class 1 has features that are not finite"):
        learner.learn_one(Example(np.float32([0, 0, np.nan, 0, 0]), 1))
    with pytest.raises(ValueError, match="the class is 3, and there are 3"):
        learner.learn_one(Example(np.zeros(FEATURES, np.float32), 3))
    same(learner.state_dict(), before)


def test_making_one_draws_from_no_generator_but_its_own():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = Classifier(4, 2, seed=3), Classifier(4, 2, seed=3)
    assert torch.equal(torch.rand(3), expected)
    same(one.state_dict(), other.state_dict())
    assert not torch.equal(one.network[0].weight, Classifier(4, 2, seed=4).network[0].weight)


def test_first_weights_have_the_variance_that_keeps_signals():
    network = Classifier(400, 10, ClassifierConfig(hidden_size=300)).network
    for layer, inputs in ((0, 400), (2, 300), (4, 300)):
        assert float(network[layer].weight.detach().var()) == pytest.approx(2.0 / inputs, rel=0.1)
        assert not network[layer].bias.any()


@pytest.mark.parametrize(
    "wrong", [{"step_size": 0.0}, {"hidden_size": 0}, {"batch_size": 0}, {"hidden_layers": -1}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError, match="use positive numbers"):
        ClassifierConfig(**wrong)


def test_the_nearest_mean_is_that_of_numpy_in_the_space_of_its_map():
    stream, turn = examples(80), torch.linalg.qr(torch.randn(FEATURES, FEATURES))[0][:, :3]
    learner = NearestMean(FEATURES, CLASSES, feature_map=lambda inputs: inputs @ turn)
    for example in stream:
        learner.learn_one(example)
    mapped = np.stack([example.features for example in stream]) @ turn.numpy()
    labels = np.array([example.label for example in stream])
    means = np.stack([mapped[labels == label].mean(0) for label in range(CLASSES)])
    np.testing.assert_allclose(learner.means.numpy(), means, atol=1e-5)
    new = torch.randn(50, FEATURES)
    nearest = ((new @ turn).numpy()[:, None] - means) ** 2
    np.testing.assert_array_equal(learner.scores(new).argmax(1).numpy(), nearest.sum(2).argmin(1))


def test_a_class_that_has_not_come_is_never_predicted():
    learner = NearestMean(2, 3)
    assert learner.learn_one(Example(np.float32([1, 1]), 2))["correct"] == 0.0
    scores = learner.scores(torch.randn(5, 2))
    assert torch.isinf(scores[:, :2]).all()
    assert torch.isfinite(scores[:, 2]).all()


def test_any_network_may_be_trained():
    learner = Classifier(FEATURES, CLASSES)
    learner.network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    learner.config = ClassifierConfig(batch_size=4)
    for example in examples(40):
        learner.learn_one(example)
    assert int(learner.network[1].num_batches_tracked) == 10  # scoring does not count
