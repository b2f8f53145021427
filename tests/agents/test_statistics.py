from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agents_support import CASES, FEATURES, World, recorded, same_examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from streamwise.agents.statistics import (
    ObservationNormalizer,
    RewardScaler,
    RunningStatistics,
    TransitionNormalizer,
)
from streamwise.streams import Transition

samples = arrays(np.float64, array_shapes(min_dims=2, max_dims=3, max_side=12), elements=st.floats(-1e6, 1e6))


def statistics_of(data: np.ndarray) -> RunningStatistics:
    statistics = RunningStatistics(data.shape[1:])
    for sample in data:
        statistics.update(sample)
    return statistics


@same_examples
@given(samples)
def test_running_mean_and_variance_are_numpys(data):
    statistics = statistics_of(data)
    scale = max(np.abs(data).max(), 1.0)
    np.testing.assert_allclose(statistics.mean, data.mean(axis=0), rtol=1e-12, atol=1e-12 * scale)
    if len(data) > 1:
        np.testing.assert_allclose(
            statistics.variance, data.var(axis=0, ddof=1), rtol=1e-9, atol=1e-12 * scale**2
        )


@same_examples
@given(arrays(np.int64, (200, 2), elements=st.integers(-4, 4)))
def test_an_offset_of_a_hundred_million_does_not_disturb_the_variance(data):
    """The textbook formula E[x^2] - E[x]^2 has lost every digit here."""
    statistics = statistics_of(1e8 + data)
    np.testing.assert_allclose(statistics.variance, data.var(axis=0, ddof=1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(statistics.mean - 1e8, data.mean(axis=0), atol=1e-6)


def test_the_variance_is_one_until_the_second_sample():
    statistics = RunningStatistics((2,))
    assert statistics.variance.tolist() == [1.0, 1.0]
    statistics.update(np.array([3.0, 9.0]))
    assert statistics.variance.tolist() == [1.0, 1.0]
    statistics.update(np.array([3.0, 5.0]))
    assert statistics.variance.tolist() == [0.0, 8.0]


def test_statistics_stay_float64_for_samples_of_lower_precision():
    data = (1e4 + np.random.default_rng(0).normal(size=(500, 3))).astype(np.float32)
    statistics = statistics_of(data)
    assert statistics.mean.dtype == np.float64
    np.testing.assert_allclose(statistics.variance, data.astype(np.float64).var(axis=0, ddof=1), rtol=1e-9)


def test_an_observation_is_normalized_by_mean_and_deviation():
    data = np.random.default_rng(0).normal(5.0, 3.0, size=(50, 4))
    normalizer = ObservationNormalizer((4,))
    for observation in data:
        normalizer.update(observation)
    wanted = (data[7] - data.mean(axis=0)) / np.sqrt(data.var(axis=0, ddof=1) + 1e-8)
    seen = normalizer.normalize(data[7], torch.float64)
    np.testing.assert_allclose(seen.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_normalizing_leaves_the_callers_array_alone(dtype):
    normalizer = ObservationNormalizer((3,))
    observation = np.array([1, 2, 3], dtype)
    normalizer.update(observation)
    normalizer.update(observation + observation)
    seen = normalizer.normalize(observation, torch.float32)
    seen += 1.0
    assert observation.tolist() == [1, 2, 3]


def test_a_constant_feature_becomes_zero():
    normalizer = ObservationNormalizer((2,))
    for x in (1.0, 2.0, 3.0):
        normalizer.update(np.array([x, 7.0]))
    assert normalizer.normalize(np.array([2.0, 7.0]), torch.float32).tolist() == [0.0, 0.0]


def test_a_passthrough_feature_is_not_touched_and_the_others_are_as_without_it():
    data = np.random.default_rng(0).normal(5.0, 3.0, size=(20, 3))
    with_time, without = ObservationNormalizer((4,), passthrough=1), ObservationNormalizer((3,))
    for t, observation in enumerate(data):
        clock = -0.5 + t / 20
        with_time.update(np.append(observation, clock))
        without.update(observation)
        seen = with_time.normalize(np.append(observation, clock), torch.float64)
        assert seen[3].item() == clock
        assert torch.equal(seen[:3], without.normalize(observation, torch.float64))


def test_a_passthrough_wider_than_the_observation_is_refused():
    with pytest.raises(ValueError, match="2 features"):
        ObservationNormalizer((1,), passthrough=2)


def test_rewards_are_scaled_by_the_deviation_of_all_discounted_returns():
    random = np.random.default_rng(3)
    scaler, returns = RewardScaler(0.9), []
    assert scaler.deviation == pytest.approx(1.0)
    for t in range(200):
        reward, terminated = random.normal(2.0, 5.0), t % 13 == 12
        carried = 0.0 if terminated or not returns else 0.9 * returns[-1]
        returns.append(carried + reward)
        variance = np.var(returns, ddof=1) if t else 1.0
        assert scaler.scale(reward, terminated) == pytest.approx(
            reward / math.sqrt(variance + 1e-8), rel=1e-10
        )


def test_rewards_are_not_centred():
    """A reward that never changes keeps its sign, though nothing about it is a surprise."""
    scaler = RewardScaler(0.0)
    assert [scaler.scale(-2.0, False) < 0.0 for _ in range(5)] == [True] * 5


def test_every_observation_enters_the_statistics_exactly_once():
    stream = recorded(CASES[-1], 60)
    normalizer = TransitionNormalizer((FEATURES,), 0.99, torch.float64)
    seen, opens = [], True
    for transition in stream:
        normalizer.learn_one(transition, transition.terminated)
        seen += [transition.observation] if opens else []
        seen += [transition.next_observation]
        opens = transition.terminated or transition.truncated
    assert sum(t.terminated or t.truncated for t in stream) > 5
    statistics = normalizer.observations.statistics
    assert statistics.count == len(seen)
    np.testing.assert_allclose(statistics.mean, np.mean(seen, axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, np.var(seen, axis=0, ddof=1), rtol=1e-10)


def test_an_observation_looks_the_same_as_next_observation_and_then_as_observation():
    """It is normalized by the statistics of the moment it arrived, whichever role it plays."""
    world = World(time_limit_steps=1000)
    normalizer = TransitionNormalizer((FEATURES,), 0.99, torch.float64)
    before = normalizer.learn_one(world.step(None), False)[2]
    for _ in range(5):
        observation, _, following = normalizer.learn_one(world.step(None), False)
        assert torch.equal(observation, before)
        before = following


def test_a_reward_of_numpy_is_kept_in_float64():
    """A float32 reward would pull the discounted return to float32, and loading a state would undo it."""
    normalizer = TransitionNormalizer((1,), 0.99, torch.float32)
    x = np.zeros(1)
    for reward in (0.1, 0.2, 0.3):
        _, scaled, _ = normalizer.learn_one(Transition(x, None, np.float32(reward), x, False, False), False)
        assert type(scaled) is float
    exact = 0.0
    for reward in (0.1, 0.2, 0.3):
        exact = 0.99 * exact + float(np.float32(reward))
    assert normalizer.rewards.discounted_return == exact
