"""An environment as a stream: order of events, positions, arrays that stay as they were, refused actions."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from streamwise.envs import EnvironmentStream, make
from streamwise.streams import Stream, Transition, UsageError


def zeros(env: gymnasium.Env[Any, Any]) -> Any:
    action = (
        0 if isinstance(env.action_space, spaces.Discrete) else np.zeros(env.action_space.shape, np.float32)
    )
    return lambda observation: action


def random_actions(env: gymnasium.Env[Any, Any]) -> Any:
    return lambda observation: env.action_space.sample()


class ReusesItsBuffer(gymnasium.Env[Any, Any]):
    """Counts steps in the one array that it always returns; an episode is three steps."""

    observation_space = spaces.Box(0.0, np.inf, (1,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self) -> None:
        self.buffer = np.zeros(1, np.float32)
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seeds.append(seed)
        self.buffer[0] = 0.0
        return self.buffer, {}

    def step(self, action: Any) -> Any:
        self.buffer[0] += 1.0
        return self.buffer, np.float32(0.5), False, bool(self.buffer[0] >= 3.0), {"action": action}


def same(a: Transition, b: Transition) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]  # arrays here


def test_it_is_a_stream_of_transitions():
    env = make("CartPole-v1")
    stream: Stream[Transition] = EnvironmentStream(env, zeros(env))
    transition = next(iter(stream))
    assert isinstance(transition, Transition)
    assert [type(part) for part in transition] == [np.ndarray, int, float, np.ndarray, bool, bool]


def test_the_next_action_is_chosen_after_the_last_transition_was_learned():
    learned = 0
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: learned % 2)
    actions = []
    for transition in islice(stream, 8):
        actions.append(transition.action)
        learned += 1
    assert actions == [0, 1] * 4


def test_each_observation_is_the_one_before_it_led_to_until_the_episode_ends():
    env = make("CartPole-v1")
    transitions = list(islice(EnvironmentStream(env, random_actions(env), seed=2), 300))
    ends = 0
    for before, after in pairwise(transitions):
        ended = before.terminated or before.truncated
        ends += ended
        assert np.array_equal(before.next_observation, after.observation) != ended
    assert ends > 5


def test_a_pole_that_falls_terminates_and_a_pendulum_is_cut_at_200_steps():
    env = make("CartPole-v1")
    ends = [t for t in islice(EnvironmentStream(env, zeros(env)), 50) if t.terminated or t.truncated]
    assert ends
    assert all(t.terminated and not t.truncated for t in ends)
    env = make("Pendulum-v1")
    transitions = list(islice(EnvironmentStream(env, zeros(env)), 400))
    assert [i for i, t in enumerate(transitions) if t.truncated] == [199, 399]
    assert not any(t.terminated for t in transitions)


# --- position ----------------------------------------------------------------------------------------------


def test_the_position_points_past_the_delivered_transition_and_is_json():
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: 0, seed=9)
    positions = [stream.position] + [stream.position for _ in islice(stream, 4)]
    assert positions == [
        {"seed": 9, "episode": e, "step": s} for e, s in ((0, 0), (0, 1), (0, 2), (1, 3), (1, 4))
    ]
    assert json.loads(json.dumps(positions)) == positions


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "HalfCheetah-v5", "dm_control/cheetah-run-v0", "MinAtar/Asterix-v1"]
)
def test_the_same_position_is_followed_by_the_same_transitions(name):
    runs = []
    for detour in (0, 5):
        env = make(name)
        stream = EnvironmentStream(env, zeros(env), seed=1)
        list(islice(stream, detour))
        stream.seek({"seed": 3, "episode": 2, "step": 40})
        runs.append(list(islice(stream, 20)))
        assert stream.position["step"] == 60
    assert all(map(same, *runs))


def test_a_stream_that_seeks_its_start_is_a_new_stream():
    env = make("CartPole-v1")
    stream = EnvironmentStream(env, zeros(env), seed=6)
    first = list(islice(stream, 30))
    stream.seek({"seed": 6, "episode": 0, "step": 0})
    assert all(map(same, first, islice(stream, 30)))


def test_every_number_of_the_position_changes_the_episode_that_follows():
    env = ReusesItsBuffer()
    stream = EnvironmentStream(env, lambda observation: 0)
    for seed, episode, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        stream.seek({"seed": seed, "episode": episode, "step": step})
        next(iter(stream))
    assert len(set(env.seeds)) == 4


def test_only_the_first_reset_after_a_seek_is_seeded():
    env = ReusesItsBuffer()
    list(islice(EnvironmentStream(env, lambda observation: 0), 9))
    assert env.seeds[0] is not None
    assert env.seeds[1:] == [None, None]


def test_seeking_within_a_loop_takes_effect_at_the_next_transition():
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: 0)
    samples = iter(stream)
    next(samples)
    stream.seek({"seed": 0, "episode": 4, "step": 11})
    assert next(samples).observation.tolist() == [0.0]
    assert stream.position == {"seed": 0, "episode": 4, "step": 12}


def test_a_second_loop_goes_on_where_the_first_stopped():
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: 0)
    seen = [float(t.observation[0]) for n in (2, 3) for t in islice(stream, n)]
    assert seen == [0.0, 1.0, 2.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "position", [{}, {"seed": 0, "episode": 0}, {"seed": -1, "episode": 0, "step": 0}, {"offset": 3}]
)
def test_a_position_of_another_kind_is_refused(position):
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: 0)
    with pytest.raises(UsageError, match="seed, episode and step"):
        stream.seek(position)


def test_a_closed_stream_has_ended():
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: 0)
    samples = iter(stream)
    next(samples)
    stream.commit(stream.position)
    stream.close()
    stream.close()
    assert list(samples) == []


# --- arrays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "HalfCheetah-v5",
        "dm_control/walker-walk-v0",
        "ALE/Breakout-v5",
        "MinAtar/Breakout-v1",
        None,
    ],
)
def test_a_transition_stays_as_it_was_while_the_environment_goes_on(name):
    env = make(name) if name else ReusesItsBuffer()
    kept, copies = [], []
    for transition in islice(EnvironmentStream(env, random_actions(env)), 25):
        kept.append(transition)
        copies.append(Transition(*(np.copy(part) for part in transition)))  # type: ignore[arg-type]  # arrays here
    assert all(map(same, kept, copies))


def test_an_agent_may_reuse_its_action_array():
    env = make("Pendulum-v1")
    action = np.zeros(1, np.float32)

    def act(observation: Any) -> Any:
        action[0] += 1.0
        return action

    kept = list(islice(EnvironmentStream(env, act), 3))
    assert [float(t.action[0]) for t in kept] == [1.0, 2.0, 3.0]  # type: ignore[index]  # arrays here


def test_nan_from_the_environment_is_passed_on_for_the_learner_to_refuse():
    env = ReusesItsBuffer()
    stream = EnvironmentStream(env, lambda observation: 0)
    env.buffer = np.full(1, np.nan, np.float32)
    env.reset = lambda **_: (env.buffer, {})  # type: ignore[method-assign]  # replaced
    assert np.isnan(next(iter(stream)).observation).all()


def test_info_is_what_the_environment_said_beside_the_last_transition():
    stream = EnvironmentStream(ReusesItsBuffer(), lambda observation: 1)
    next(iter(stream))
    assert stream.info == {"action": 1}


# --- refused actions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "action", "says"),
    [
        ("Pendulum-v1", np.zeros(2), r"shape \(2,\), not \(1,\)"),
        ("Pendulum-v1", np.array([np.nan]), "not finite"),
        ("Pendulum-v1", np.array([np.inf]), "not finite"),
        ("Pendulum-v1", None, r"shape \(\)"),
        ("Pendulum-v1", ["left"], "not of numbers"),
        ("CartPole-v1", 2, "0 to 1"),
        ("CartPole-v1", -1, "0 to 1"),
        ("CartPole-v1", 0.5, "0 to 1"),
        ("CartPole-v1", None, "0 to 1"),
    ],
)
def test_an_impossible_action_is_refused_with_the_step_and_what_was_expected(name, action, says):
    good = 0 if name == "CartPole-v1" else np.zeros(1)
    answers = iter([good, good, action])
    stream = EnvironmentStream(make(name), lambda observation: next(answers))
    samples = iter(stream)
    list(islice(samples, 2))
    before = stream.position
    with pytest.raises(ValueError, match=rf"^step 2: [^\n]*{says}"):
        next(samples)
    assert stream.position == before


def test_a_huge_but_finite_action_is_let_through():
    env = make("Pendulum-v1")
    action = np.array([3e38], np.float32)
    assert next(iter(EnvironmentStream(env, lambda observation: action))).action == action


def test_an_environment_that_was_not_flattened_is_refused():
    with pytest.raises(UsageError, match="make flattens"):
        EnvironmentStream(gymnasium.make("FrozenLake-v1"), lambda observation: 0)
