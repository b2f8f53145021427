from __future__ import annotations

import numpy as np
import pytest
import spec_reference as spec
from agents_support import (
    FEATURES,
    HIDDEN,
    RULES,
    World,
    cases,
    episode_starts,
    linear_agent,
    one_hot,
    recorded,
    traces,
)
from gymnasium import spaces
from scipy import stats

from streamwise.streams import Transition


def greedy(agent, observation) -> int:
    return agent.act(observation, explore=False)


@pytest.mark.parametrize("case", cases("stream-q"), ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_trace_is_cut_after_an_exploratory_action_and_only_then(case, rule):
    agent, world = case.make(step_size_rule=rule), World(time_limit_steps=1000)
    cut = kept = 0
    for t in range(60):
        best = greedy(agent, world.observation)
        transition = world.step(best if t % 3 else (best + 1) % 3)
        first = episode_starts(agent)
        agent.learn_one(transition)
        ended = transition.terminated or transition.truncated
        if first or ended:
            continue
        (trace,) = traces(agent).values()
        assert bool(trace.any()) == bool(t % 3)
        cut, kept = cut + (t % 3 == 0), kept + (t % 3 > 0)
    assert min(cut, kept) > 10


def test_a_random_draw_that_hits_the_greedy_action_keeps_the_trace():
    """What was done counts, not how it was chosen; so a recorded stream can be learned from."""
    agent = linear_agent("stream-q", 2, spaces.Discrete(2), weights=[0.0, 0.0, 1.0, 1.0])
    agent.learn_one(Transition(one_hot(0, 2), 1, 0.0, one_hot(1, 2), False, False))
    assert agent.rule.trace.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_the_exploratory_update_itself_still_reaches_back():
    """Published order: update along the whole trace, then cut it."""
    agent = linear_agent(
        "stream-q", 2, spaces.Discrete(2), weights=[1.0, 1.0, 0.0, 0.0], step_size_rule="obgd", step_size=0.1
    )
    agent.learn_one(Transition(one_hot(0, 2), 0, 1.0 - 0.99, one_hot(1, 2), False, False))
    before = agent.network.parameters.clone()
    agent.learn_one(Transition(one_hot(1, 2), 1, 5.0, one_hot(0, 2), True, False))
    assert agent.network.parameters[0] > before[0]
    assert not agent.rule.trace.any()


@pytest.mark.parametrize("case", cases("stream-q"), ids=str)
@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_every_step_is_the_step_of_the_formulas(case, rule, bootstrap):
    agent = case.make(dtype="float64", step_size_rule=rule, bootstrap_on_truncation=bootstrap)
    network = spec.Network(agent.network.parameters, FEATURES, HIDDEN, 3)
    past, statistics = spec.History(0.99 * 0.8), spec.Statistics(0.99)
    for transition in recorded(case, 40):
        metrics = agent.learn_one(transition)
        s, r, s_next = statistics.take(transition, agent.config.value_ends(transition))
        done = transition.terminated or (transition.truncated and not bootstrap)
        outputs, flat = network.outputs(s)
        is_greedy = int(outputs.argmax()) == transition.action
        td_error = r + (1 - done) * 0.99 * network.value(s_next).max() - outputs[transition.action].item()
        gradient = spec.gradient(outputs[transition.action], flat)
        network.flat += spec.change(rule, past, gradient, td_error, agent.config)
        assert metrics["td_error_magnitude"] == pytest.approx(abs(td_error), rel=1e-10)
        np.testing.assert_allclose(agent.network.parameters.numpy(), network.flat, rtol=1e-12, atol=1e-12)
        agent.network.parameters.numpy()[:] = network.flat
        if transition.terminated or transition.truncated or not is_greedy:
            past.clear()


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_actions_are_random_as_often_as_epsilon_says(epsilon):
    agent = linear_agent(
        "stream-q",
        1,
        spaces.Discrete(3),
        weights=[0.0, 1.0, 0.0],
        epsilon_start=epsilon,
        epsilon_end=epsilon,
    )
    counts = np.bincount([agent.act(np.ones(1)) for _ in range(3000)], minlength=3)
    wanted = [1000 * epsilon, 3000 - 2000 * epsilon, 1000 * epsilon]
    if epsilon == 0.0:
        assert counts.tolist() == [0, 3000, 0]
    else:
        assert stats.chisquare(counts, wanted).pvalue > 0.01


@pytest.mark.parametrize("case", cases("stream-q"), ids=str)
def test_epsilon_falls_with_the_steps_learned_from(case):
    agent = case.make(exploration_steps=10)
    shown = [agent.learn_one(transition)["epsilon"] for transition in recorded(case, 15)]
    np.testing.assert_allclose(shown, [1.0 - 0.099 * min(t, 10) for t in range(15)], rtol=1e-12)


def test_of_equal_values_the_first_is_greedy():
    agent = linear_agent("stream-q", 1, spaces.Discrete(3))
    assert agent.act(np.ones(1), explore=False) == 0
