from __future__ import annotations

import numpy as np
import pytest
import spec_reference as spec
from agents_support import (
    FEATURES,
    HIDDEN,
    OBSERVATIONS,
    RULES,
    cases,
    linear_agent,
    one_hot,
    recorded,
    same_examples,
)
from hypothesis import given
from hypothesis import strategies as st

from streamwise.agents import StreamTD, StreamTDConfig
from streamwise.streams import Transition

LENGTH = 5


def chain(rewards, ending="terminated"):
    """One episode through LENGTH states in a row, each seen once, to state LENGTH."""
    last = len(rewards) - 1
    return [
        Transition(
            one_hot(t, LENGTH + 1),
            None,
            reward,
            one_hot(t + 1, LENGTH + 1),
            t == last and ending == "terminated",
            t == last and ending == "truncated",
        )
        for t, reward in enumerate(rewards)
    ]


rewards_of_an_episode = st.lists(st.floats(-3.0, 3.0), min_size=LENGTH, max_size=LENGTH)


@same_examples
@given(rewards_of_an_episode, st.floats(0.0, 1.0), st.integers(1, 400))
def test_tabular_values_with_lambda_1_go_to_the_monte_carlo_returns_at_each_episodes_end(
    rewards, discount, episodes
):
    """Each state is visited once, so every episode closes exactly the share alpha of the gap to the return.

    The step size is so small that the overshoot bound never binds: alpha * kappa * delta * |z| stays below 1.
    """
    alpha = 0.01
    agent = linear_agent(
        "stream-td", LENGTH + 1, step_size_rule="obgd", step_size=alpha, trace_decay=1.0, discount=discount
    )
    returns, following = np.zeros(LENGTH), 0.0
    for t in reversed(range(LENGTH)):
        following = returns[t] = rewards[t] + discount * following
    for _ in range(min(episodes, 30)):
        for transition in chain(rewards):
            agent.learn_one(transition)
    learned = agent.network.parameters.numpy()
    wanted = returns * (1.0 - (1.0 - alpha) ** min(episodes, 30))
    np.testing.assert_allclose(learned[:LENGTH], wanted, rtol=1e-9, atol=1e-12)
    assert learned[LENGTH] == 0.0


def test_after_many_episodes_the_values_are_the_returns():
    rewards = [1.0, -2.0, 0.0, 3.0, 0.5]
    agent = linear_agent("stream-td", LENGTH + 1, step_size_rule="obgd", step_size=0.02, trace_decay=1.0)
    for _ in range(600):
        for transition in chain(rewards):
            agent.learn_one(transition)
    returns = [sum(0.99 ** (k - t) * rewards[k] for k in range(t, LENGTH)) for t in range(LENGTH)]
    for t in range(LENGTH):
        assert agent.predict_one(one_hot(t, LENGTH + 1)) == pytest.approx(returns[t], abs=1e-4)


@same_examples
@given(
    rewards_of_an_episode,
    st.lists(st.integers(0, 2), min_size=LENGTH + 1, max_size=LENGTH + 1),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from(["terminated", "truncated"]),
)
def test_small_steps_sum_up_to_the_offline_lambda_return_update(
    rewards, states, discount, trace_decay, ending
):
    """Forward view: G_t = r + gamma ((1 - lambda) v(s') + lambda G_{t+1}), values as before the episode."""
    alpha, values = 1e-7, np.array([0.5, -1.0, 2.0])
    agent = linear_agent(
        "stream-td",
        3,
        weights=values,
        step_size_rule="obgd",
        step_size=alpha,
        trace_decay=trace_decay,
        discount=discount,
        bootstrap_on_truncation=True,
    )
    after = 0.0 if ending == "terminated" else values[states[LENGTH]]
    wanted, lambda_return = np.zeros(3), after
    for t in reversed(range(LENGTH)):
        next_value = after if t == LENGTH - 1 else values[states[t + 1]]
        mixed = (1.0 - trace_decay) * next_value + trace_decay * lambda_return
        lambda_return = rewards[t] + discount * mixed
        wanted[states[t]] += lambda_return - values[states[t]]
    for t, reward in enumerate(rewards):
        end = {ending: t == LENGTH - 1}
        step = Transition(one_hot(states[t], 3), None, reward, one_hot(states[t + 1], 3), False, False)
        agent.learn_one(step._replace(**end))
    change = (agent.network.parameters.numpy() - values) / alpha
    np.testing.assert_allclose(change, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", cases("stream-td"), ids=str)
@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_every_step_is_the_step_of_the_formulas(case, rule, bootstrap):
    agent = case.make(dtype="float64", step_size_rule=rule, bootstrap_on_truncation=bootstrap)
    network = spec.Network(agent.network.parameters, FEATURES, HIDDEN, 1)
    past, statistics = spec.History(0.99 * 0.8), spec.Statistics(0.99)
    for transition in recorded(case, 40):
        metrics = agent.learn_one(transition)
        s, r, s_next = statistics.take(transition, agent.config.value_ends(transition))
        done = transition.terminated or (transition.truncated and not bootstrap)
        outputs, flat = network.outputs(s)
        td_error = r + (1 - done) * 0.99 * network.value(s_next)[0] - outputs.item()
        gradient = spec.gradient(outputs[0], flat)
        network.flat += spec.change(rule, past, gradient, td_error, agent.config)
        assert metrics["td_error_magnitude"] == pytest.approx(abs(td_error), rel=1e-10)
        np.testing.assert_allclose(agent.network.parameters.numpy(), network.flat, rtol=1e-12, atol=1e-12)
        # One update from equal weights agrees much closer than a run of them.
        agent.network.parameters.numpy()[:] = network.flat
        if transition.terminated or transition.truncated:
            past.clear()


def place(k: int) -> np.ndarray:
    angles = np.arange(1, FEATURES + 1) * 2.0 * np.pi * k / 5
    return np.sin(angles + angles**2)


START = place(0)


def train_on_ring(config: StreamTDConfig, reward: float, time_limit_steps: int, steps: int) -> StreamTD:
    """Walk round a ring of 5 places for ever; the clock is not observed, and cuts an episode now and then."""
    agent = StreamTD(OBSERVATIONS, None, config)
    ring = [place(k) for k in range(5)]
    for t in range(steps):
        truncated = t % time_limit_steps == time_limit_steps - 1
        agent.learn_one(Transition(ring[t % 5], None, reward, ring[(t + 1) % 5], False, truncated))
    return agent


@pytest.mark.parametrize(("bootstrap", "low", "high"), [(True, 9.9, 10.1), (False, 2.0, 8.5)])
def test_a_time_limit_does_not_lower_the_value(bootstrap, low, high):
    """A reward of one per step forever is worth 1 / (1 - discount), however often the clock resets.

    With the limit treated as an ending it is worth less: the test can tell the two apart.
    """
    config = StreamTDConfig(discount=0.9, bootstrap_on_truncation=bootstrap, hidden_size=16)
    agent = train_on_ring(config, reward=1.0, time_limit_steps=8, steps=3000)
    assert low < agent.predict_one(START) < high


def test_a_prediction_is_in_the_rewards_own_units():
    """Rewards a thousand times as large are worth a thousand times as much; the network sees them alike."""
    config = StreamTDConfig(discount=0.9, hidden_size=16)
    small, large = (train_on_ring(config, reward, 8, 800).predict_one(START) for reward in (1.0, 1000.0))
    assert large == pytest.approx(1000.0 * small, rel=0.02)


@pytest.mark.parametrize("case", cases("stream-td"), ids=str)
def test_the_metric_prediction_was_made_before_learning(case):
    agent = case.make()
    opens = True
    for transition in recorded(case, 40):
        before = agent.predict_one(transition.observation)
        prediction = agent.learn_one(transition)["prediction"]
        if not opens:  # the first observation of an episode is counted only when it is learned from
            assert prediction == before
        opens = transition.terminated or transition.truncated


@pytest.mark.parametrize("case", cases("stream-td"), ids=str)
def test_actions_are_not_looked_at(case):
    first, second = case.make(), case.make()
    for transition in recorded(case, 10):
        assert first.learn_one(transition) == second.learn_one(transition._replace(action=np.array([np.nan])))
