"""Event models that learn from windows: likelihoods, updates, what they refuse, and that they go on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.agents.neural_tpp import Sequences, gauss_legendre, log_likelihood, log_spaced
from streamwise.agents.tpp_training import SCORING
from streamwise.agents.window_tpp import TRAINING, WindowTPP, WindowTPPConfig
from streamwise.streams import Example, NonFiniteSampleError, UsageError

TYPES, LENGTH = 3, 6
SMALL = {"width": 4, "length": LENGTH, "unit": 10.0, "batch_size": 3}
each_base = pytest.mark.parametrize("base", ["nhp", "attnhp"])


def model(base="nhp", seed=0, **changes):
    return WindowTPP(TYPES, WindowTPPConfig(**{**SMALL, "base": base, **changes}), seed=seed)


def window(gaps, types):
    return Example(np.stack([gaps, types], axis=1).astype(np.float32), int(types[-1]))


def windows(count, seed=0, length=LENGTH, types=TYPES):
    random = np.random.default_rng(seed)
    gaps = random.exponential(10.0, (count, length))
    gaps[:, 0] = 0.0
    return [window(one, random.integers(types, size=length)) for one in gaps]


def arrays(stream):
    return torch.from_numpy(np.stack([e.features for e in stream])), torch.tensor([e.label for e in stream])


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Poisson(torch.nn.Module):
    """Constant intensities, whatever came before."""

    def __init__(self, rates):
        super().__init__()
        self.logs = torch.nn.Parameter(torch.tensor(rates).log())

    def remember(self, sequences):
        return None

    def intensities(self, memory, times, visible):
        return self.logs.exp().expand(*times.shape, -1)


# ---- likelihoods


@pytest.mark.parametrize("context", [1, 3])
def test_of_a_poisson_process_it_is_the_closed_form_and_so_is_its_gradient(context):
    rates = [0.05, 0.02, 0.1]
    learner = model(context=context)
    learner.network.model = Poisson(rates)
    inputs, targets = arrays(windows(7))
    gaps, types = inputs[:, context:, 0].double(), inputs[:, context:, 1].long()
    rate = torch.tensor(rates).double()
    expected = (rate.log()[types] - rate.sum() * gaps).mean()
    assert learner.log_likelihood(inputs) == pytest.approx(float(expected), rel=1e-5)
    loss = learner.loss(inputs, targets)
    assert float(loss.detach()) == pytest.approx(-float(expected), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [learner.network.model.logs])
    counts = torch.bincount(types.flatten(), minlength=TYPES) / types.numel()
    torch.testing.assert_close(gradient.double(), rate * gaps.mean() - counts, atol=1e-6, rtol=1e-4)


@each_base
@pytest.mark.parametrize("context", [1, 2])
def test_the_loss_is_that_of_each_event_by_hand(base, context):
    """Intensities are asked for event by event, with what came before alone, and summed up by the rule."""
    learner = model(base, context=context)
    inputs, targets = arrays(windows(4))
    logs = []
    with torch.no_grad():
        for row in inputs.double():
            times, types = row[:, 0].cumsum(0), row[:, 1].long()
            for event in range(context, LENGTH):
                seen = Sequences.of([(times[:event], types[:event])], 0.0, float(times[event]))
                before, memory = times[event - 1], learner.network.model.remember(seen)
                visible = torch.tensor([[event]])

                def at(time, memory=memory, visible=visible):
                    return learner.network.model.intensities(memory, time.view(1, 1), visible)[0, 0].double()

                gap = times[event] - before
                compensator = sum(
                    weight * at(before + share * gap).sum() * gap
                    for share, weight in zip(*TRAINING, strict=True)
                )
                logs.append(at(times[event])[types[event]].log() - compensator)
    loss = learner.loss(inputs, targets)
    assert float(loss.detach()) == pytest.approx(-float(torch.stack(logs).mean()), rel=1e-5)


@each_base
def test_with_one_event_of_context_windows_are_sequences_from_their_first_event_on(base):
    """What everything else is scored by, less the first interval, which has no length, and its event."""
    learner = model(base)
    inputs, _ = arrays(windows(5))
    whole = log_likelihood(learner.network.model, learner.network.sequences(inputs), SCORING)
    expected = (whole.time + whole.type)[:, 1:].mean()
    assert learner.log_likelihood(inputs) == pytest.approx(float(expected.detach()), rel=1e-5)


@each_base
def test_the_rules_of_training_and_scoring_are_near_a_finer_one(base):
    learner = model(base, step_size=0.03)
    for example in windows(150):
        learner.learn_one(example)
    inputs, targets = arrays(windows(50, seed=1))
    with torch.no_grad():
        fine = float(learner.network.event_scores(inputs, log_spaced(gauss_legendre(8), 8)).log_likelihood)
        training = -float(learner.loss(inputs, targets))
    assert training == pytest.approx(fine, abs=0.015)
    assert learner.log_likelihood(inputs) == pytest.approx(fine, abs=0.005)


@each_base
def test_scores_are_log_intensities_of_the_last_event_and_do_not_see_its_type(base):
    learner = model(base)
    inputs, _ = arrays(windows(6))
    scores = learner.scores(inputs)
    sequences = learner.network.sequences(inputs)
    parts = learner.event_scores(inputs)
    own = scores.gather(1, sequences.types[:, -1:])[:, 0]
    torch.testing.assert_close(own - scores.logsumexp(1), parts.type[:, -1], atol=1e-5, rtol=1e-4)
    total = parts.time[:, -1] + parts.compensator[:, -1]
    torch.testing.assert_close(scores.logsumexp(1), total, atol=1e-5, rtol=1e-4)
    other = inputs.clone()
    other[:, -1, 1] = (other[:, -1, 1] + 1) % TYPES
    assert torch.equal(learner.scores(other), scores)


@each_base
def test_each_window_is_scored_before_it_is_learned(base):
    learner = model(base, context=2, batch_size=1)
    for example in windows(12):
        inputs = torch.from_numpy(example.features)[None]
        expected, likeliest = learner.log_likelihood(inputs), learner.event_scores(inputs).likeliest[0]
        metrics = learner.learn_one(example)
        assert metrics["log_likelihood"] == expected
        assert metrics["correct"] == (likeliest.numpy() == example.features[2:, 1]).mean()


@each_base
def test_a_poisson_stream_is_learned_to_its_entropy(base):
    learner = model(base, batch_size=4, step_size=0.02)
    seen = [learner.learn_one(example)["log_likelihood"] for example in windows(600)]
    entropy = -1.0 - math.log(10.0) - math.log(TYPES)
    assert np.mean(seen[:20]) < entropy - 0.1
    noise = 3.0 / math.sqrt(300 * (LENGTH - 1))  # three standard errors of a mean of exponential gaps
    assert entropy - 0.06 - noise < np.mean(seen[-300:]) < entropy + noise


# ---- updates


def test_updates_are_those_of_adam():
    learner, other = model(step_size=0.05, largest_gradient=1e9), model()
    adam = torch.optim.Adam(other.network.parameters(), lr=0.05)
    stream = windows(30)
    for example in stream:
        learner.learn_one(example)
    for start in range(0, 30, 3):
        adam.zero_grad()
        other.loss(*arrays(stream[start : start + 3])).backward()
        adam.step()
    for (name, one), (_, two) in zip(
        learner.network.named_parameters(), other.network.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4, msg=name)


def test_a_gradient_that_is_too_long_is_shortened():
    learner = model(largest_gradient=1e-3, batch_size=1)
    example = windows(1)[0]
    named = dict(learner.network.named_parameters())
    gradients = torch.autograd.grad(learner.loss(*arrays([example])), list(named.values()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 1e-3
    learner.learn_one(example)
    for name, gradient in zip(named, gradients, strict=True):
        mean = learner.state_dict()[f"moments.{name}"][0]
        torch.testing.assert_close(mean, 0.1 * 1e-3 * gradient / norm, atol=1e-8, rtol=1e-3)


def test_a_type_that_does_not_come_is_not_moved_by_what_it_was_in_before():
    learner = model(batch_size=1)
    for example in windows(10):
        learner.learn_one(example)
    before = learner.state_dict()
    for example in windows(10, seed=1, types=2):
        learner.learn_one(example)
    after = learner.state_dict()
    name = "model.embedding"
    assert torch.equal(after[f"network.{name}"][2], before[f"network.{name}"][2])
    assert torch.equal(after[f"moments.{name}"][:, 2], before[f"moments.{name}"][:, 2])
    assert not torch.equal(after[f"network.{name}"][1], before[f"network.{name}"][1])


def test_some_parameters_may_step_otherwise_and_what_needs_no_gradient_stays():
    usual, slow = model(batch_size=1), model(batch_size=1)
    slow.step_scales = {"model.head": 0.25, "model.embedding": 0.0}
    slow.network.model.bias.requires_grad_(False)
    start = {name: weight.detach().clone() for name, weight in usual.network.named_parameters()}
    for learner in (usual, slow):
        learner.learn_one(windows(1)[0])
    for (name, one), (_, other) in zip(
        usual.network.named_parameters(), slow.network.named_parameters(), strict=True
    ):
        scale = 0.25 if name.startswith("model.head") else float(name == "model.weight")
        torch.testing.assert_close(other - start[name], scale * (one - start[name]), atol=1e-6, rtol=1e-3)


def test_a_parameter_that_comes_later_begins_as_one_does_at_first():
    learner = model(batch_size=1, largest_gradient=1e9)
    for example in windows(20):
        learner.learn_one(example)
    plain = learner.objective
    learner.network.extra = torch.nn.Parameter(torch.zeros(2))
    learner.objective = lambda inputs, targets: plain(inputs, targets) + 3.0 * learner.network.extra[0]
    learner.learn_one(windows(1)[0])
    torch.testing.assert_close(learner.network.extra.detach(), torch.tensor([-0.01, 0.0]))


# ---- what every learner does


@each_base
@settings(max_examples=10, deadline=None, derandomize=True)
@given(split=st.integers(0, 40))
def test_it_goes_on_where_it_was(base, split):
    whole, first, again = (model(base) for _ in range(3))
    stream = windows(40)
    seen = [whole.learn_one(example) for example in stream]
    for example in stream[:split]:
        first.learn_one(example)
    again.load_state_dict(first.state_dict())
    assert [again.learn_one(example) for example in stream[split:]] == seen[split:]
    same(again.state_dict(), whole.state_dict())


@each_base
def test_scoring_changes_nothing_and_a_state_is_a_bounded_copy(base):
    learner = model(base)
    for example in windows(31):
        learner.learn_one(example)
    state = learner.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    inputs, targets = arrays(windows(20, seed=2))
    learner.scores(inputs)
    learner.log_likelihood(inputs)
    learner.loss(inputs, targets)
    learner.consolidate()
    same(learner.state_dict(), kept)
    for example in windows(30, seed=1):
        learner.learn_one(example)
    same(state, kept)
    shapes = {key: value.shape for key, value in learner.state_dict().items()}
    assert shapes == {key: value.shape for key, value in state.items()}


@each_base
def test_making_and_training_one_draws_from_no_generator_but_its_own(base):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = model(base, seed=3), model(base, seed=3)
    for example in windows(6):
        one.learn_one(example)
        other.learn_one(example)
    assert torch.equal(torch.rand(3), expected)
    same(one.state_dict(), other.state_dict())
    assert not torch.equal(
        model(base, seed=3).network.model.embedding, model(base, seed=4).network.model.embedding
    )


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        ((2, 0), np.nan, NonFiniteSampleError, "holds what is not finite"),
        ((2, 1), np.inf, NonFiniteSampleError, "holds what is not finite"),
        ((3, 0), -2.0, ValueError, "a gap is -2.0 seconds; sort"),
        ((1, 1), 3.0, ValueError, "a type is 3, and there are 3, from 0"),
        ((1, 1), -1.0, ValueError, "a type is -1"),
        ((1, 1), 0.5, ValueError, "a type is 0.5"),
    ],
)
def test_it_refuses_what_is_no_window_and_is_unchanged(place, value, error, message):
    learner = model()
    for example in windows(7):
        learner.learn_one(example)
    before = learner.state_dict()
    wrong = windows(1)[0]
    wrong.features[place] = value
    with pytest.raises(error, match=message):
        learner.learn_one(wrong)
    with pytest.raises(ValueError, match=r"shape \[5, 2\]; use \[6, 2\]"):
        learner.learn_one(Example(wrong.features[1:], wrong.label))
    good = windows(1)[0]
    with pytest.raises(ValueError, match="the label is 7, and the last type"):
        learner.learn_one(Example(good.features, 7))
    same(learner.state_dict(), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base": "rnn"}, "use nhp or attnhp"),
        ({"width": 0}, "width is 0"),
        ({"context": 0}, "context is 0"),
        ({"context": 6}, "use a length above it"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"unit": 0.0}, "unit is 0.0"),
        ({"step_size": math.nan}, "step_size is nan"),
        ({"largest_gradient": math.inf}, "largest_gradient is inf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        WindowTPPConfig(**{**SMALL, **wrong})
