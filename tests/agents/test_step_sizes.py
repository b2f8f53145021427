from __future__ import annotations

import numpy as np
import pytest
import spec_reference as spec
import torch
from agents_support import RULES, linear_agent, same_examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from streamwise.agents import StreamSettings
from streamwise.agents.networks import FlatNetwork
from streamwise.agents.step_sizes import AdaptiveObGD, Intentional, ObGD, bounded_step_size
from streamwise.streams import Transition

SIZE = 4


def vectors(low: float, high: float) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, SIZE, elements=st.floats(low, high, allow_subnormal=False))


def td_error_around_one_update(case) -> tuple[float, float]:
    """Before and after, of the same transition."""
    weights, trace, observation, next_observation, reward, trace_decay, overshoot_margin, terminated = case
    agent = linear_agent(
        "stream-td",
        SIZE,
        weights=weights,
        step_size_rule="obgd",
        overshoot_margin=overshoot_margin,
        trace_decay=trace_decay,
    )
    agent.rule.trace.copy_(torch.as_tensor(trace))

    def td_error() -> float:
        w = agent.network.parameters.numpy()
        following = 0.0 if terminated else 0.99 * float(w @ next_observation)
        return reward + following - float(w @ observation)

    before = td_error()
    agent.learn_one(Transition(observation, None, reward, next_observation, terminated, False))
    return before, td_error()


def cases(lowest_feature: float, lowest_margin: float):
    return st.tuples(
        vectors(-100.0, 100.0),  # weights
        vectors(-50.0, 50.0),  # trace
        vectors(lowest_feature, 1.0),
        vectors(lowest_feature, 1.0),
        st.floats(-1e3, 1e3),  # reward
        st.floats(0.0, 1.0),  # trace decay
        st.floats(lowest_margin, 10.0),
        st.booleans(),
    )


@same_examples
@given(cases(lowest_feature=0.0, lowest_margin=1.0))
def test_obgd_never_jumps_past_its_target_when_features_lie_in_0_1(case):
    before, after = td_error_around_one_update(case)
    assert before * after >= -1e-9 * before**2


@same_examples
@given(cases(lowest_feature=-1.0, lowest_margin=1.99))
def test_obgd_never_jumps_past_its_target_when_features_lie_in_minus_1_1_and_the_margin_is_2(case):
    """The target moves too: its features are discount * next - present, and those lie in [-1.99, 1.99]."""
    before, after = td_error_around_one_update(case)
    assert before * after >= -1e-9 * before**2


def test_obgd_with_margin_1_can_overshoot_where_the_next_features_oppose_the_present_ones():
    """So the published 2.0 is no luxury: margins from 1 are enough for features in [0, 1] only."""
    ones = np.ones(SIZE)
    before, after = td_error_around_one_update((0.0 * ones, 0.0 * ones, ones, -ones, 1.0, 0.8, 1.0, False))
    assert before == 1.0
    assert after == pytest.approx(-0.99)


@pytest.mark.parametrize("bounded", [True, False])
def test_without_the_bound_the_same_update_overshoots(bounded, monkeypatch):
    if not bounded:
        monkeypatch.setattr(
            "streamwise.agents.step_sizes.bounded_step_size",
            lambda td_error, norm, step_size, margin: step_size,
        )
    ones = np.ones(SIZE)
    before, after = td_error_around_one_update((0.0 * ones, ones, ones, ones, 2.0, 0.8, 2.0, True))
    assert (before * after > 0.0) == bounded


@same_examples
@given(st.floats(-1e6, 1e6), st.floats(0.0, 1e6), st.floats(1e-6, 10.0), st.floats(1.0, 10.0))
def test_the_bounded_step_is_the_smaller_of_two_closed_forms(td_error, norm, step_size, margin):
    step = bounded_step_size(td_error, norm, step_size, margin)
    bound = np.inf if norm == 0.0 else 1.0 / (margin * max(abs(td_error), 1.0) * norm)
    assert step == pytest.approx(min(step_size, bound), rel=1e-12)


def random_inputs(steps: int, seed: int = 0):
    """Gradients of every size, some entries never touched, TD errors with rare spikes, episode ends."""
    random = np.random.default_rng(seed)
    for t in range(steps):
        gradient = random.normal(size=6) * 10.0 ** random.uniform(-1, 1)
        gradient[random.random(6) < 0.3] = 0.0
        gradient[5] = 0.0
        td_error = random.normal() * (1e4 if t in (550, 571) else 1.0)
        yield gradient, td_error, random.random() < 0.1


def compare_with_formula(rule, formula, steps: int, decay: float = 0.99 * 0.8) -> None:
    past = spec.History(decay)
    weights = np.zeros(6)
    parameters = torch.zeros(6, dtype=torch.float64)
    for gradient, td_error, ends in random_inputs(steps):
        rule.update(parameters, torch.tensor(gradient), td_error, decay)
        change = formula(past, gradient, td_error)
        weights += change
        np.testing.assert_allclose(
            parameters.numpy(), weights, rtol=1e-10, atol=1e-10 * np.abs(weights).max()
        )
        np.testing.assert_allclose(rule.trace.numpy(), past.traces[-1], rtol=1e-10, atol=1e-12)
        if ends:
            rule.trace.zero_()
            past.clear()


def zeros() -> torch.Tensor:
    return torch.zeros(6, dtype=torch.float64)


def test_obgd_follows_its_formula():
    compare_with_formula(ObGD(zeros(), 0.7, 2.5), lambda *a: spec.obgd(*a, 0.7, 2.5), steps=200)


def test_adaptive_obgd_follows_its_formula():
    compare_with_formula(
        AdaptiveObGD(zeros(), 0.7, 2.5), lambda *a: spec.adaptive_obgd(*a, 0.7, 2.5), steps=200
    )


@pytest.mark.parametrize("is_policy", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.792, 0.99, 1.0])
def test_intentional_follows_its_formula(is_policy, decay):
    """600 steps, for the cap first binds after some 420; decay 1 is Monte-Carlo without discount."""
    compare_with_formula(
        Intentional(zeros(), 0.3, is_policy), lambda *a: spec.intentional(*a, 0.3, is_policy), 600, decay
    )


def test_the_spikes_of_that_comparison_are_clipped():
    """Otherwise the comparison above would say nothing about the cap."""
    past = spec.History(0.0)
    for gradient, td_error, _ in random_inputs(600):
        spec.intentional(past, gradient, td_error, 0.3, False)
    clipped = np.abs(past.clipped) < np.abs(past.td_errors)
    assert clipped[[550, 571]].any()


@same_examples
@given(
    st.lists(vectors(-10.0, 10.0).filter(lambda x: np.abs(x).max() > 1e-3), min_size=1, max_size=5),
    vectors(-5.0, 5.0),
    st.floats(-100.0, 100.0),
    st.floats(0.05, 1.0),
)
def test_an_intentional_value_update_without_trace_removes_exactly_the_intended_share(
    observations, weights, reward, share
):
    agent = linear_agent(
        "stream-td",
        SIZE,
        weights=weights,
        step_size_rule="intentional",
        intended_change=share,
        trace_decay=0.0,
    )
    for observation in observations:
        before = reward - agent.predict_one(observation)
        agent.learn_one(Transition(observation, None, reward, observation, True, False))
        after = reward - agent.predict_one(observation)
        assert after == pytest.approx((1.0 - share) * before, rel=1e-6, abs=1e-6 * abs(before))


def test_an_intentional_value_update_with_a_trace_removes_the_intended_share_on_average():
    """One feature that is always on: the trace settles, and each update moves the value by eta * delta.

    z -> 1 / (1 - d), sigma -> n, S -> n / (1 - d)^2: the step is eta (1 - d) / n, and w moves by eta * delta.
    """
    agent = linear_agent("stream-td", 1, step_size_rule="intentional", intended_change=0.5)
    x = np.ones(1)
    for _ in range(300):
        agent.learn_one(Transition(x, None, 0.0, x, False, False))
    before = 1.0 - agent.predict_one(x)
    agent.learn_one(Transition(x, None, 1.0 - 0.99 * agent.predict_one(x), x, False, False))
    assert 1.0 - agent.predict_one(x) == pytest.approx(0.5 * before, rel=1e-6)


@pytest.mark.parametrize(("is_policy", "same"), [(True, True), (False, False)])
def test_only_an_intentional_policy_is_blind_to_the_scale_of_the_td_error(is_policy, same):
    changes = []
    for scale in (1.0, 1000.0):
        rule, parameters = Intentional(zeros(), 0.05, is_policy), zeros()
        for gradient, td_error, _ in random_inputs(50):
            rule.update(parameters, torch.tensor(gradient), scale * td_error, 0.792)
        changes.append(parameters.numpy())
    assert np.allclose(changes[0], changes[1], rtol=1e-10, atol=0.0) == same


def test_an_intentional_policy_changes_the_objective_by_eta_when_the_td_error_is_as_usual():
    rule, parameters = Intentional(zeros(), 0.05, True), zeros()
    gradient = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1e-3], dtype=torch.float64)
    for _ in range(20):
        before = parameters.clone()
        rule.update(parameters, gradient, -7.0, 0.0)
        assert torch.dot(gradient, parameters - before).item() == pytest.approx(-0.05, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_td_error_of_zero_moves_nothing(rule):
    network = FlatNetwork(nn.Linear(3, 1), torch.float64)
    chosen = StreamSettings(step_size_rule=rule).rule_for(network)
    before = network.parameters.clone()
    chosen.update(network.parameters, torch.ones(4, dtype=torch.float64), 0.0, 0.8)
    assert torch.equal(network.parameters, before)
    assert torch.equal(chosen.trace, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_of_zero_is_no_accident(rule):
    """A dead network must not turn 0 / 0 into NaN."""
    network = FlatNetwork(nn.Linear(3, 1), torch.float32)
    chosen = StreamSettings(step_size_rule=rule).rule_for(network)
    before = network.parameters.clone()
    step = chosen.update(network.parameters, torch.zeros(4), 1.0, 0.8)
    assert np.isfinite(step)
    assert torch.equal(network.parameters, before)


@pytest.mark.parametrize("rule", RULES)
def test_the_choice_of_rule_is_the_rule_that_is_made(rule):
    network = FlatNetwork(nn.Linear(3, 1), torch.float32)
    kinds = {"obgd": ObGD, "adaptive-obgd": AdaptiveObGD, "intentional": Intentional}
    assert rule in kinds, "a new rule has its class here, too"
    assert type(StreamSettings(step_size_rule=rule).rule_for(network)) is kinds[rule]
