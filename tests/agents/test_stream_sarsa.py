from __future__ import annotations

import numpy as np
import pytest
import spec_reference as spec
from agents_support import (
    FEATURES,
    HIDDEN,
    RULES,
    World,
    bits,
    cases,
    episode_starts,
    linear_agent,
    one_hot,
    recorded,
    traces,
)
from gymnasium import spaces

from streamwise.agents.generator import CounterGenerator
from streamwise.streams import Transition


@pytest.mark.parametrize("case", cases("stream-sarsa"), ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_trace_is_kept_after_an_exploratory_action(case, rule):
    agent, world = case.make(step_size_rule=rule), World(time_limit_steps=1000)
    checked = 0
    for _ in range(40):
        best = agent.act(world.observation, explore=False)
        transition = world.step((best + 1) % 3)
        before = traces(agent)["value.trace"]
        agent.learn_one(transition)
        after = traces(agent)["value.trace"]
        if transition.terminated or transition.truncated:
            assert not after.any()
        elif before.any():
            # Units of the last layer that this action does not touch only decay.
            other = agent.network.parameters.numel() - 3 + best
            np.testing.assert_allclose(after[other].item(), 0.792 * before[other].item(), rtol=1e-6)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("case", cases("stream-sarsa"), ids=str)
def test_the_action_of_the_target_is_the_action_taken(case):
    agent, world = case.make(epsilon_end=1.0, exploration_steps=0), World()
    for _ in range(60):
        chosen = int(agent.state_dict()["next_action"])
        action = agent.act(world.observation)
        assert chosen in (-1, action)
        assert (chosen == -1) == episode_starts(agent)
        agent.learn_one(world.step(action))


@pytest.mark.parametrize("case", cases("stream-sarsa"), ids=str)
@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_no_action_is_carried_into_the_next_episode(case, ending):
    """Even where transitions come from a recording, and nobody ever calls `act`."""
    agent = case.make()
    first, second, *_ = recorded(case, 2)
    agent.learn_one(first)
    assert int(agent.state_dict()["next_action"]) >= 0
    agent.learn_one(second._replace(**{ending: True}))
    assert int(agent.state_dict()["next_action"]) == -1


@pytest.mark.parametrize("case", cases("stream-sarsa"), ids=str)
def test_evaluating_in_the_middle_of_a_run_leaves_the_pending_action_in_place(case):
    agent = case.make(epsilon_end=1.0, exploration_steps=0)
    for transition in recorded(case, 20):
        agent.learn_one(transition)
        pending = int(agent.state_dict()["next_action"])
        before = bits(agent)
        agent.act(transition.next_observation, explore=False)
        assert bits(agent) == before
        if pending >= 0:
            assert agent.act(transition.next_observation) == pending


@pytest.mark.parametrize("case", cases("stream-sarsa"), ids=str)
@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_every_step_is_the_step_of_the_formulas(case, rule, bootstrap):
    agent = case.make(
        dtype="float64",
        step_size_rule=rule,
        bootstrap_on_truncation=bootstrap,
        epsilon_start=0.5,
        epsilon_end=0.5,
    )
    network = spec.Network(agent.network.parameters, FEATURES, HIDDEN, 3)
    past, statistics = spec.History(0.99 * 0.8), spec.Statistics(0.99)
    world = World()
    for _ in range(40):
        transition = world.step(agent.act(world.observation))
        draws = CounterGenerator(0)
        draws.load_state_dict(agent.state_dict())
        metrics = agent.learn_one(transition)
        s, r, s_next = statistics.take(transition, agent.config.value_ends(transition))
        done = transition.terminated or (transition.truncated and not bootstrap)
        outputs, flat = network.outputs(s)
        following = 0.0
        if not done:
            values = network.value(s_next)
            chosen = int(agent.state_dict()["next_action"])
            if chosen < 0:  # cut by the clock: the action that would have come is drawn again, as it was
                random = draws.uniform() < 0.5
                chosen = draws.integer(3) if random else int(values.argmax())
            following = 0.99 * values[chosen]
        td_error = r + following - outputs[transition.action].item()
        gradient = spec.gradient(outputs[transition.action], flat)
        network.flat += spec.change(rule, past, gradient, td_error, agent.config)
        assert metrics["td_error_magnitude"] == pytest.approx(abs(td_error), rel=1e-10)
        np.testing.assert_allclose(agent.network.parameters.numpy(), network.flat, rtol=1e-12, atol=1e-12)
        agent.network.parameters.numpy()[:] = network.flat
        if transition.terminated or transition.truncated:
            past.clear()


@pytest.mark.parametrize(("name", "wanted"), [("stream-q", 0.99), ("stream-sarsa", 0.495)])
def test_sarsa_values_what_it_does_and_q_what_would_be_best(name, wanted):
    """State 0 leads to state 1 (action 1) or ends with nothing. There action 0 earns 1, action 1 loses 1.

    Acting at random half of the time, state 1 is worth 3/4 - 1/4 = 1/2; acting greedily it is worth 1.
    """
    agent = linear_agent(
        name,
        2,
        spaces.Discrete(2),
        step_size_rule="obgd",
        step_size=0.01,
        trace_decay=0.0,
        epsilon_start=0.5,
        epsilon_end=0.5,
    )
    start, second = one_hot(0, 2), one_hot(1, 2)
    for _ in range(1500):
        action = agent.act(start)
        agent.learn_one(Transition(start, action, 0.0, second, action == 0, False))
        if action == 1:
            action = agent.act(second)
            agent.learn_one(Transition(second, action, 1.0 - 2.0 * action, start, True, False))
    values = agent.network.parameters.reshape(2, 2)  # [actions, states]
    assert values[1, 0].item() == pytest.approx(wanted, abs=0.1)
    assert values[:, 1].tolist() == pytest.approx([1.0, -1.0], abs=0.1)
    assert values[0, 0].item() == 0.0
