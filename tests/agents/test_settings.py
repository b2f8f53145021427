from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agents_support import FEATURES, OBSERVATIONS
from gymnasium import spaces
from torch import nn

from streamwise.agents import AGENTS, StreamAC, StreamACConfig, StreamQConfig, StreamSettings, agent_class
from streamwise.agents.exploration import ExplorationSettings
from streamwise.streams import UsageError


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"discount": -0.1}, "discount"),
        ({"discount": 1.1}, "discount"),
        ({"discount": math.nan}, "discount"),
        ({"trace_decay": -0.1}, "trace_decay"),
        ({"trace_decay": 1.5}, "trace_decay"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 9}, "hidden_size"),
        ({"step_size_rule": "adam"}, "step_size_rule"),
        ({"dtype": "float16"}, "dtype"),
        ({"intended_change": 0.0}, "intended_change"),
        ({"intended_change": 1.5}, "intended_change"),
        ({"intended_change": math.nan}, "intended_change"),
        ({"policy_intended_change": -1.0}, "policy_intended_change"),
        ({"policy_intended_change": math.nan}, "policy_intended_change"),
        ({"entropy_coefficient": math.nan}, "entropy_coefficient"),
        ({"step_size_rule": "obgd", "step_size": 0.0}, "step_size"),
        ({"step_size_rule": "obgd", "step_size": math.nan}, "step_size"),
        ({"step_size_rule": "obgd", "step_size": math.inf}, "step_size"),
        ({"step_size_rule": "obgd", "overshoot_margin": 0.9}, "overshoot_margin"),
        ({"step_size_rule": "obgd", "overshoot_margin": math.nan}, "overshoot_margin"),
        ({"step_size_rule": "obgd", "policy_overshoot_margin": 0.0}, "policy_overshoot_margin"),
        ({"epsilon_start": 1.1}, "epsilon_start"),
        ({"epsilon_end": -0.1}, "epsilon_end"),
        ({"exploration_fraction": 2.0}, "exploration_fraction"),
        ({"exploration_steps": -1}, "exploration_steps"),
        ({"memory": "lstm"}, "memory"),
        ({"memory": "hcam", "memory_features": 0}, "memory_features"),
        ({"memory": "hcam", "memory_heads": 3}, "memory_features"),
        ({"memory": "hcam", "memory_reads": 10**9}, "memory_reads"),
        ({"memory": "hcam", "memory_random_reads": 8}, "memory_random_reads"),
        ({"memory": "hcam", "memory_capacity": 0}, "memory_capacity"),
        # A setting that the chosen rule or memory never reads:
        ({"memory_features": 8}, "memory_features"),
        ({"memory": "gru", "memory_chunk_length": 2}, "memory_chunk_length"),
        ({"memory": "gru", "memory_joint": True}, "memory_joint"),
        ({"memory_span": "life"}, "memory_span"),
        ({"memory": "hcam", "memory_span": "week"}, "memory_span"),
        ({"memory_guests": 4}, "memory_guests"),
        ({"memory": "hcam", "memory_guests": -1}, "memory_guests"),
        ({"step_size": 0.5}, "step_size"),
        ({"overshoot_margin": 3.0}, "overshoot_margin"),
        ({"policy_overshoot_margin": 2.0}, "policy_overshoot_margin"),
        ({"step_size_rule": "obgd", "intended_change": 0.4}, "intended_change"),
        ({"step_size_rule": "adaptive-obgd", "policy_intended_change": 0.4}, "policy_intended_change"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_or_without_effect_is_refused_in_one_line_that_names_it(changes, field):
    config = StreamQConfig if field.startswith(("epsilon", "exploration")) else StreamACConfig
    with pytest.raises(UsageError) as refused:
        config(**changes)
    assert str(refused.value).startswith(f"{field} ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"discount": 0.0, "trace_decay": 1.0},
        {"discount": 1.0, "trace_decay": 0.0},
        {"step_size_rule": "obgd", "step_size": 0.1, "overshoot_margin": 1.0, "policy_overshoot_margin": 1.0},
        {"step_size_rule": "adaptive-obgd", "step_size": 5.0},
        {"intended_change": 1.0, "policy_intended_change": 0.2, "entropy_coefficient": 0.0},
        {"hidden_size": 10, "dtype": "float64"},
    ],
    ids=str,
)
def test_settings_at_the_edge_of_their_range_are_taken(changes):
    config = StreamACConfig(**changes)
    assert {name: getattr(config, name) for name in changes} == changes


def test_a_memory_that_no_machine_has_room_for_is_refused():
    observations, actions = spaces.Box(-1.0, 1.0, (100,)), spaces.Discrete(2)
    with pytest.raises(UsageError, match="memory_capacity is 100000000000, chunks of 4 steps of 100 numbers"):
        StreamACConfig(memory="hcam", memory_capacity=10**11).memory_for((100,), None, 0)
    with pytest.raises(UsageError, match="read by the built-in networks"):
        StreamAC(observations, actions, StreamACConfig(memory="hcam"), network=lambda n: nn.Linear(100, n))


def test_the_published_defaults():
    ac, q = StreamACConfig(), StreamQConfig()
    assert (ac.discount, ac.trace_decay, ac.step_size) == (0.99, 0.8, 1.0)
    assert (ac.overshoot_margin, ac.policy_overshoot_margin, q.overshoot_margin) == (2.0, 3.0, 2.0)
    assert (ac.intended_change, ac.policy_intended_change, ac.entropy_coefficient) == (0.5, 0.05, 0.01)
    assert (q.epsilon_start, q.epsilon_end, q.exploration_fraction) == (1.0, 0.01, 0.05)


def test_epsilon_falls_in_a_straight_line_and_stays_down():
    config = ExplorationSettings(exploration_steps=200, epsilon_start=0.9, epsilon_end=0.1)
    assert config.epsilon(0) == 0.9
    assert config.epsilon(50) == pytest.approx(0.7)
    assert config.epsilon(100) == pytest.approx(0.5)
    assert config.epsilon(200) == config.epsilon(10**9) == 0.1


def test_without_exploration_steps_epsilon_is_low_at_once():
    assert ExplorationSettings(exploration_steps=0).epsilon(0) == 0.01


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_space_that_is_no_box_is_refused_with_a_way_out(name):
    actions = spaces.Discrete(2)
    with pytest.raises(UsageError, match="flatten or encode") as refused:
        AGENTS[name](spaces.Discrete(4), actions)
    assert str(refused.value).startswith(name)


@pytest.mark.parametrize("name", ["stream-q", "stream-sarsa"])
def test_a_value_of_actions_needs_discrete_actions(name):
    with pytest.raises(UsageError, match="stream-ac takes Box"):
        AGENTS[name](OBSERVATIONS, spaces.Box(-1.0, 1.0, (2,)))


@pytest.mark.parametrize("name", ["stream-ac", "stream-q", "stream-sarsa"])
def test_discrete_actions_that_do_not_start_at_zero_are_refused(name):
    """An agent counts from 0: it would take actions that the environment does not have."""
    with pytest.raises(UsageError, match="start"):
        AGENTS[name](OBSERVATIONS, spaces.Discrete(3, start=1))


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_a_time_feature_needs_a_flat_observation(name):
    config = AGENTS[name].Config(time_feature=True)
    with pytest.raises(UsageError, match="time_feature"):
        AGENTS[name](spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(2), config)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_the_time_feature_is_not_normalized_and_without_the_setting_it_is(name):
    for time_feature in (True, False):
        config = AGENTS[name].Config(time_feature=time_feature, hidden_size=10)
        agent = AGENTS[name](OBSERVATIONS, spaces.Discrete(2), config, backend="torch")
        agent.samples.observations.update(np.full(FEATURES, 0.75))
        seen = agent.samples.observe(np.full(FEATURES, 0.25))
        normalized = torch.full((FEATURES,), -0.5)
        if time_feature:
            normalized[-1] = 0.25
        torch.testing.assert_close(seen, normalized)


def test_an_unknown_agent_is_answered_with_the_nearest_one():
    with pytest.raises(UsageError, match="Did you mean 'stream-sarsa'") as refused:
        agent_class("stream-sarse")
    assert all(name in str(refused.value) for name in AGENTS)
    assert agent_class("stream-q") is AGENTS["stream-q"]


def test_precision_is_one_of_two():
    assert StreamSettings().torch_dtype == torch.float32
    assert StreamSettings(dtype="float64").torch_dtype == torch.float64
