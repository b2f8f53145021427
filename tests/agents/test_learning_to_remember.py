"""That a memory is learned to be used, one sample at a time: the point of it all."""

from __future__ import annotations

import numpy as np
import pytest

import streamwise
from streamwise.agents import StreamAC, StreamACConfig, StreamQ, StreamQConfig
from streamwise.kernels import native_info
from streamwise.runs.config import load_preset

pytestmark = pytest.mark.skipif(native_info() is None, reason="takes an hour without native kernels")


def right_answers(agent, environment, steps, last):
    """The mean return of the last episodes."""
    returns, so_far = [], 0.0
    stream = streamwise.EnvironmentStream(environment, agent.act)
    for _, transition in zip(range(steps), stream, strict=False):
        agent.learn_one(transition)
        so_far += transition.reward
        if transition.terminated:
            returns.append(so_far)
            so_far = 0.0
    return np.mean(returns[-last:])


def q_learner(memory):
    environment = streamwise.make("streamwise/DelayedRecall-v0?symbols=4&delay=10", seed=0)
    chunks = {"memory_chunk_length": 3, "memory_heads": 4} if memory == "hcam" else {}
    settings = StreamQConfig(
        memory=memory, **chunks, trace_decay=0.0, step_size_rule="obgd", exploration_steps=60_000
    )
    return StreamQ(environment.observation_space, environment.action_space, settings), environment


def test_a_symbol_is_kept_for_ten_steps_though_the_trace_reaches_one():
    assert right_answers(*q_learner("hcam"), steps=100_000, last=1_000) > 0.9


@pytest.mark.parametrize("memory", ["gru", "none"])
def test_without_chunks_of_the_past_it_is_not(memory):
    assert right_answers(*q_learner(memory), steps=100_000, last=1_000) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_an_actor_keeps_a_symbol_for_fifty_steps_and_then_for_two_hundred(seed):
    """Two minutes a seed."""
    name = "streamwise/DelayedRecall-v0?symbols=4&delay={}"
    environment = streamwise.make(name.format(50), seed=seed)
    settings = load_preset("hcam").settings
    assert isinstance(settings, StreamACConfig)
    agent = StreamAC(environment.observation_space, environment.action_space, settings, seed=seed)
    right_answers(agent, environment, steps=1_500_000, last=1)
    for delay, least in ((50, 0.95), (200, 0.9)):
        returns = []
        longer = streamwise.make(name.format(delay), seed=seed + 100)
        for _ in range(200):
            observation, _ = longer.reset()
            agent.forget()
            ended = False
            while not ended:
                action = agent.act(observation, explore=False)
                agent.remember(observation)
                observation, reward, ended, _, _ = longer.step(action)
            returns.append(reward)
        assert np.mean(returns) >= least
