from __future__ import annotations

import math

import numpy as np
import pytest
import spec_reference as spec
import torch
from agents_support import (
    BACKENDS,
    BOX_ACTIONS,
    CASES,
    FEATURES,
    HIDDEN,
    OBSERVATIONS,
    RULES,
    World,
    cases,
    live,
    recorded,
)
from gymnasium import spaces

from streamwise.agents import StreamAC, StreamACConfig
from streamwise.streams import Transition

CONTINUOUS = CASES[0]


def log_probability_and_entropy(outputs: torch.Tensor, action) -> tuple[torch.Tensor, torch.Tensor]:
    """From the densities: a normal with deviation 0.001 + log(1 + e^x) per dimension, or a softmax."""
    if isinstance(action, int):
        probabilities = outputs.exp() / outputs.exp().sum()
        return probabilities[action].log(), -(probabilities * probabilities.log()).sum()
    mean, deviation = outputs[:2], 1e-3 + torch.log1p(torch.exp(outputs[2:]))
    x = torch.tensor(np.asarray(action, np.float64))
    density = torch.exp(-((x - mean) ** 2) / (2.0 * deviation**2)) / (math.sqrt(2.0 * math.pi) * deviation)
    return density.log().sum(), (0.5 * torch.log(2.0 * math.pi * math.e * deviation**2)).sum()


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", cases("stream-ac"), ids=str)
def test_every_step_is_the_step_of_the_formulas(case, rule, bootstrap):
    agent = case.make(
        dtype="float64",
        step_size_rule=rule,
        bootstrap_on_truncation=bootstrap,
        entropy_coefficient=0.1,
    )
    critic = spec.Network(agent.critic.parameters, FEATURES, HIDDEN, 1)
    actor = spec.Network(agent.actor.parameters, FEATURES, HIDDEN, agent.policy.outputs)
    value_past, policy_past = spec.History(0.99 * 0.8), spec.History(0.99 * 0.8)
    statistics = spec.Statistics(0.99)
    signs = set()
    for transition in recorded(case, 30):
        metrics = agent.learn_one(transition)
        s, r, s_next = statistics.take(transition, agent.config.value_ends(transition))
        done = transition.terminated or (transition.truncated and not bootstrap)
        value, value_flat = critic.outputs(s)
        td_error = r + (1 - done) * 0.99 * critic.value(s_next)[0] - value.item()
        signs.add(np.sign(td_error))
        outputs, policy_flat = actor.outputs(s)
        log_probability, entropy = log_probability_and_entropy(outputs, transition.action)
        objective = log_probability + 0.1 * np.sign(td_error) * entropy
        gradient = spec.gradient(value[0], value_flat)
        critic.flat += spec.change(rule, value_past, gradient, td_error, agent.config)
        gradient = spec.gradient(objective, policy_flat)
        actor.flat += spec.change(rule, policy_past, gradient, td_error, agent.config, is_policy=True)
        assert metrics["td_error_magnitude"] == pytest.approx(abs(td_error), rel=1e-10)
        assert metrics["entropy"] == pytest.approx(entropy.item(), rel=1e-10)
        for flat, network in ((agent.critic, critic), (agent.actor, actor)):
            np.testing.assert_allclose(flat.parameters.numpy(), network.flat, rtol=1e-12, atol=1e-12)
            flat.parameters.numpy()[:] = network.flat
        if transition.terminated or transition.truncated:
            value_past.clear()
            policy_past.clear()
    assert signs == {-1.0, 1.0}


def test_the_log_probability_is_of_the_action_as_drawn_even_outside_the_bounds():
    """An agent that clipped it would learn from another action."""
    inside, outside = (CONTINUOUS.make() for _ in range(2))
    transition = recorded(CONTINUOUS, 1)[0]
    inside.learn_one(transition._replace(action=np.array([1.0, 1.0], np.float32)))
    outside.learn_one(transition._replace(action=np.array([3.0, 3.0], np.float32)))
    assert not torch.equal(inside.actor.parameters, outside.actor.parameters)


def test_without_exploration_the_action_is_the_policys_mode():
    agent = CONTINUOUS.make()
    live(agent, World(), 20)
    observation = World(9).observation
    mean = agent.actor.predict(agent.samples.observe(observation))[:2]
    assert agent.act(observation, explore=False).tolist() == mean.tolist()
    assert agent.act(observation).tolist() != agent.act(observation).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_better_of_two_actions_becomes_the_likelier(rule, backend):
    """A bandit: action 1 pays 1, action 0 pays nothing."""
    agent = StreamAC(
        OBSERVATIONS, spaces.Discrete(2), StreamACConfig(hidden_size=HIDDEN, step_size_rule=rule)
    )
    x = np.linspace(-1.0, 2.0, FEATURES)
    for _ in range(600):
        action = agent.act(x)
        agent.learn_one(Transition(x, action, float(action), x, True, False))
    assert sum(agent.act(x) for _ in range(200)) > 160


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_policy_that_has_lost_all_its_spread_still_learns_finite_numbers(backend):
    """softplus of a very negative number is 0 in float32, which without a floor turns gradients to NaN."""
    agent = StreamAC(OBSERVATIONS, BOX_ACTIONS, seed=0, backend=backend)
    with torch.no_grad():
        agent.actor.module[-1].bias[2:] = -200.0
    if agent.native is not None:
        agent.native.push()
    live(agent, World(), 50)
    assert all(tensor.isfinite().all() for tensor in agent.state_dict().values())
