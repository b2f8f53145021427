from __future__ import annotations

import numpy as np
import pytest
import torch
from agents_support import same_examples
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch.distributions import Categorical, Normal
from torch.nn import functional

from streamwise.agents.generator import CounterGenerator
from streamwise.agents.policies import CategoricalPolicy, GaussianPolicy, policy_for
from streamwise.streams import NonFiniteSampleError, UsageError

numbers = st.floats(-8.0, 8.0)


@same_examples
@given(arrays(np.float64, 6, elements=numbers), arrays(np.float64, 3, elements=numbers))
def test_gaussian_log_probability_and_entropy_are_torchs(raw, action):
    outputs = torch.tensor(raw)
    wanted = Normal(outputs[:3], functional.softplus(outputs[3:]) + 1e-3)
    log_probability, entropy = GaussianPolicy(3, np.float64).log_probability_and_entropy(outputs, action)
    assert log_probability.shape == entropy.shape == ()
    torch.testing.assert_close(
        log_probability, wanted.log_prob(torch.tensor(action)).sum(), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(entropy, wanted.entropy().sum(), rtol=1e-10, atol=1e-10)


@same_examples
@given(arrays(np.float64, 4, elements=numbers), st.integers(0, 3))
def test_categorical_log_probability_and_entropy_are_torchs(raw, action):
    outputs = torch.tensor(raw)
    wanted = Categorical(logits=outputs)
    log_probability, entropy = CategoricalPolicy(4).log_probability_and_entropy(outputs, action)
    assert log_probability.shape == entropy.shape == ()
    torch.testing.assert_close(log_probability, wanted.log_prob(torch.tensor(action)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropy, wanted.entropy(), rtol=1e-10, atol=1e-10)


def test_gaussian_samples_follow_mean_and_softplus_deviation():
    outputs = torch.tensor([2.0, -1.0, 0.5, -1.5])
    policy, generator = GaussianPolicy(2, np.float32), CounterGenerator(3)
    draws = np.array([policy.sample(outputs, generator) for _ in range(4000)])
    assert draws.dtype == np.float32
    for i, (mean, deviation) in enumerate(
        zip([2.0, -1.0], (functional.softplus(outputs[2:]) + 1e-3).tolist(), strict=True)
    ):
        assert stats.kstest(draws[:, i], "norm", args=(mean, deviation)).pvalue > 0.01


def test_gaussian_samples_are_neither_squashed_nor_clipped():
    """The bounds of the space are the environment's business; the log-probability is of what was drawn."""
    policy = policy_for(spaces.Box(-1.0, 1.0, (1,)))
    generator = CounterGenerator(0)
    assert max(float(policy.sample(torch.tensor([0.9, 2.0]), generator)[0]) for _ in range(100)) > 2.0


def test_categorical_samples_follow_the_softmax():
    outputs = torch.tensor([0.0, 1.0, -2.0, 0.5])
    policy, generator = CategoricalPolicy(4), CounterGenerator(3)
    counts = np.bincount([policy.sample(outputs, generator) for _ in range(10_000)], minlength=4)
    assert stats.chisquare(counts, 10_000 * outputs.double().softmax(0).numpy()).pvalue > 0.01


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
def test_an_action_of_probability_zero_is_never_drawn(uniform, monkeypatch):
    monkeypatch.setattr(CounterGenerator, "uniform", lambda self: uniform)
    outputs = torch.tensor([-2000.0, 0.0, -2000.0, 0.0, -2000.0])
    assert CategoricalPolicy(5).sample(outputs, CounterGenerator(0)) in (1, 3)


def test_the_mode_is_the_mean_or_the_likeliest_action():
    mode = GaussianPolicy(2, np.float32).mode(torch.tensor([2.0, -1.0, 0.5, -1.5]))
    assert mode.tolist() == [2.0, -1.0]
    assert mode.dtype == np.float32
    assert CategoricalPolicy(3).mode(torch.tensor([0.0, 2.0, 1.0])) == 1


def test_a_mode_is_the_callers_own():
    outputs = torch.tensor([2.0, -1.0, 0.5, -1.5])
    GaussianPolicy(2, np.float32).mode(outputs)[0] = 99.0
    assert outputs[0] == 2.0


@pytest.mark.parametrize("action", [-1, 3, 1.0, float("nan"), None, "1", np.array([1])])
def test_a_wrong_discrete_action_is_refused(action):
    with pytest.raises(ValueError, match=r"^step 4: .* from 0 to 2"):
        CategoricalPolicy(3).check(action, 4)


@pytest.mark.parametrize("action", [0, 2, np.int64(1), np.int32(1)])
def test_a_right_discrete_action_passes(action):
    CategoricalPolicy(3).check(action, 4)


@pytest.mark.parametrize("action", [None, 1, 0.5, np.zeros(3), np.zeros((1, 2)), np.zeros((2, 1))])
def test_a_box_action_of_the_wrong_shape_is_refused(action):
    with pytest.raises(ValueError, match=r"^step 4: .* shape"):
        GaussianPolicy(2, np.float32).check(action, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_box_action_that_is_not_finite_is_refused(bad):
    with pytest.raises(NonFiniteSampleError, match=rf"^step 4: feature 1 of the action is {bad}"):
        GaussianPolicy(2, np.float32).check(np.array([0.0, bad], np.float32), 4)


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-1.0, 1.0, (2, 2)),
        spaces.Box(-1.0, 1.0, ()),
        spaces.MultiBinary(3),
    ],
)
def test_an_action_space_without_a_policy_is_refused(space):
    with pytest.raises(UsageError, match="one-dimensional Box or Discrete"):
        policy_for(space)
