"""Positions of a stream of transitions: who seeks one goes on bit for bit, or is told why not."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from envs_support import sent
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from snapshot_support import Walk, named, same_examples, with_leaf

from streamwise.envs import (
    EnvironmentStream,
    make,
)
from streamwise.streams import Transition, UsageError


def random_policy(seed: int, env: Any) -> Any:
    """Actions that depend on the observation and on how many were chosen before."""
    generator = np.random.default_rng(seed)

    def act(observation: Any) -> Any:
        if isinstance(env.action_space, spaces.Discrete):
            return int(generator.integers(env.action_space.n))
        return generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)

    act.generator = generator  # type: ignore[attr-defined]  # the function's own
    return act


def bits(transitions: list[Transition]) -> list[tuple[Any, ...]]:
    return [
        tuple((np.asarray(part).dtype.str, np.asarray(part).tobytes()) for part in transition)
        for transition in transitions
    ]


@named([("CartPole-v1", {}), ("HalfCheetah-v5", {"max_episode_steps": 20}), ("dm_control/fish-swim-v0", {}),
        ("ALE/Breakout-v5", {"episodic_life": True}), ("MinAtar/Breakout-v1", {})])  # fmt: skip
@pytest.mark.parametrize("steps", [0, 1, 20, 33])
def test_a_stream_that_seeks_a_position_goes_on_bit_for_bit(name, options, steps):
    original = EnvironmentStream(env := make(name, seed=1, **options), random_policy(1, env), seed=4)
    list(islice(original, steps))
    position = sent(original.position)
    other = EnvironmentStream(env := make(name, seed=2, **options), random_policy(1, env), seed=5)
    list(islice(other, 7))
    other.seek(position)
    other.act.generator.bit_generator.state = original.act.generator.bit_generator.state  # type: ignore[attr-defined]  # the function's own
    assert sent(other.position) == position
    assert bits(list(islice(other, 60))) == bits(list(islice(original, 60)))
    assert sent(other.position) == sent(original.position)


@same_examples
@given(steps=st.integers(0, 200))
def test_every_position_of_a_stream_is_followed_by_the_same_transitions(steps):
    policies = [random_policy(3, env := make("CartPole-v1")) for _ in range(2)]
    original = EnvironmentStream(make("CartPole-v1"), policies[0], seed=steps)
    list(islice(original, steps))
    policies[1].generator.bit_generator.state = policies[0].generator.bit_generator.state
    other = EnvironmentStream(env, policies[1])
    other.seek(sent(original.position))
    assert bits(list(islice(other, 50))) == bits(list(islice(original, 50)))


def test_at_an_episodes_end_the_position_is_of_the_world_before_the_reset():
    stream = EnvironmentStream(make("CartPole-v1"), lambda observation: 0, seed=1)
    for transition in stream:
        if transition.terminated:
            break
    assert stream.position["observation"] is None
    assert stream.position["reset_seed"] is None
    other = EnvironmentStream(make("CartPole-v1", seed=8), lambda observation: 0)
    other.seek(sent(stream.position))
    assert bits([next(iter(other))]) == bits([next(iter(stream))])


def test_a_sought_observation_may_be_written_to_without_changing_the_position():
    stream = EnvironmentStream(make("CartPole-v1"), lambda observation: 0)
    list(islice(stream, 3))
    position = stream.position
    before = sent(position)
    stream.seek(position)
    next(iter(stream)).observation[:] = 7.0
    assert position == before


def test_a_stream_without_snapshots_says_why_and_starts_a_new_episode():
    stream = EnvironmentStream(Walk(), lambda observation: 0, seed=2)
    list(islice(stream, 3))
    assert set(stream.position) == {"seed", "episode", "step"}
    assert "Walk cannot be captured" in str(stream.why_no_snapshot)
    stream.seek(stream.position)
    assert next(iter(stream)).observation.tolist() == [0.0]
    assert EnvironmentStream(make("CartPole-v1"), lambda observation: 0).why_no_snapshot is None


def test_a_closed_stream_has_a_position_without_the_environment():
    stream = EnvironmentStream(make("dm_control/cheetah-run-v0"), lambda observation: np.zeros(6))
    list(islice(stream, 2))
    stream.close()
    assert set(stream.position) == {"seed", "episode", "step"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("environment",), {}),
        (("observation",), {"kind": "array"}),
        (("observation", "shape"), [2, 2]),
        (("observation", "bytes"), "AAAA"),
        (("reset_seed",), "x"),
        (("seed",), None),
    ],
)
def test_a_position_that_does_not_fit_is_refused_and_the_stream_stays_where_it_was(path, value):
    stream = EnvironmentStream(make("CartPole-v1"), lambda observation: 0)
    list(islice(stream, 3))
    position = sent(stream.position)
    with pytest.raises(UsageError, match=r"^[^\n]{1,400}$"):
        stream.seek(with_leaf(position, path, value))
    assert sent(stream.position) == position
