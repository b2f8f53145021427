"""Environments by name: what `make` promises about names, observations, actions, seeds and quiet."""

from __future__ import annotations

import ctypes.util
import logging
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from streamwise.envs import check_families, environment_names, family_of, make
from streamwise.envs.wrappers import (
    FlattenObservations,
    TimeFeature,
    standard_actions,
    standard_observations,
)
from streamwise.streams import UsageError

ONE_OF_EACH = [
    "CartPole-v1",
    "Pendulum-v1",
    "HalfCheetah-v5",
    "dm_control/cheetah-run-v0",
    "dm_control/walker-walk-v0",
    "dm_control/dog-walk-v0",
    "dm_control/humanoid-walk-v0",
    "ALE/Breakout-v5",
    "MinAtar/Breakout-v1",
]


class Sample(gymnasium.Env[Any, Any]):
    """An environment of the given spaces whose observations are drawn from its space."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any] | None = None
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(2)
        self.taken: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.taken = action
        return self.observation_space.sample(), 0.0, False, False, {}


def run_python(code: str, cwd: Any, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True, timeout=60)


# --- names -------------------------------------------------------------------------------------------------


def test_importing_envs_loads_no_simulator(tmp_path):
    heavy = "('mujoco', 'dm_control', 'ale_py', 'shimmy', 'cv2', 'minatar')"
    code = (
        "import sys, streamwise.envs as e; e.make('CartPole-v1')\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert run_python(code, tmp_path).stdout == "[]\n"


def test_making_environments_prints_nothing_and_leaves_no_file(tmp_path):
    """No deprecation notes of MuJoCo, no MUJOCO_LOG.TXT, no banner of the emulator, no precision warnings."""
    code = (
        "import streamwise.envs as e\n"
        "for n in ('HalfCheetah-v5', 'dm_control/cheetah-run-v0', 'ALE/Pong-v5'):\n"
        "    env = e.make(n, seed=1); env.step(env.action_space.sample()); env.close()"
    )
    done = run_python(code, tmp_path)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])


def test_a_warning_of_the_simulation_is_logged_and_writes_no_file(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = make("HalfCheetah-v5", seed=0)
    env.unwrapped.data.qvel[:] = 1e20  # type: ignore[attr-defined]  # the environment's own
    with caplog.at_level(logging.WARNING, logger="streamwise.envs"):
        env.step(np.zeros(6, np.float32))
    assert any("unstable" in record.message for record in caplog.records)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="drawing without a display needs EGL")
def test_dm_control_draws_if_the_first_environment_asks_for_it_and_says_so_if_a_later_one_does(tmp_path):
    first = "import streamwise.envs as e; e.make('dm_control/cheetah-run-v0', seed=0"
    draw = f"{first}, render_mode='rgb_array', render_kwargs={{'height': 8, 'width': 8}}).render()"
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    run_python(draw, tmp_path, environment)
    with pytest.raises(subprocess.CalledProcessError) as error:
        run_python(f"{first})\n{draw}", tmp_path, environment)
    assert "UsageError: DM Control was loaded without a renderer" in error.value.stderr


def test_every_task_of_the_dm_control_suite_has_a_name():
    names = set(environment_names()["DM Control"])
    from dm_control import suite

    assert len(suite.ALL_TASKS) > 45
    assert {f"dm_control/{domain}-{task}-v0" for domain, task in suite.ALL_TASKS} <= names


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("CartPole-v1", "Classic control"),
        ("HalfCheetah-v5", "MuJoCo"),
        ("dm_control/dog-run-v0", "DM Control"),
        ("ALE/Pong-v5", "Atari"),
        ("PongNoFrameskip-v4", "Atari"),
        ("MinAtar/Breakout-v1", "MinAtar"),
        ("MinAtar/SpaceInvaders-v0", "MinAtar"),
        ("FrozenLake-v1", "Other"),
    ],
)
def test_a_name_is_listed_under_its_family(name, family):
    assert family_of(name) == family
    assert name in environment_names()[family]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("HalfCheetah-v9", "HalfCheetah-v5"),
        ("HalfCheetah-v3", "HalfCheetah-v5"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("Pong-v5", "ALE/Pong-v5"),
        ("cheetah-run", "dm_control/cheetah-run-v0"),
        ("dm_control/dog-wolk-v0", "dm_control/dog-walk-v0"),
        ("MinAtar/Brekout-v1", "MinAtar/Breakout-v1"),
        ("CartPole", "CartPole-v1"),
    ],
)
def test_an_unknown_name_is_answered_with_the_one_that_was_meant(wrong, meant):
    with pytest.raises(UsageError) as error:
        make(wrong)
    assert meant in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "zzzzzz", "a b/c", "no_such_module:Thing-v0", "Thing-v0-v1"])
def test_a_hopeless_name_is_a_usage_error_in_one_line(name):
    with pytest.raises(UsageError, match=r"^[^\n]+$"):
        make(name)


def test_missing_minatar_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "streamwise\[minatar\]"'):
        make("MinAtar/Breakout-v1")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("CartPole-v1", {"gravity_of_jupiter": 1}, "gravity_of_jupiter"),
        ("Pendulum-v1", {"episodic_life": True}, "Atari"),
        ("ALE/Pong-v5", {"frameskip": 2}, "frameskip"),
        ("ALE/Pong-v5", {"repeat_action_probability": 1.5}, "repeat_action_probability"),
        ("ALE/Pong-v5", {"time_feature": True}, "flat"),
        ("dm_control/lqr-lqr_2_1-v0", {"time_feature": True}, "max_episode_steps"),
    ],
)
def test_an_option_that_cannot_hold_is_a_usage_error_in_one_line(name, options, says):
    with pytest.raises(UsageError, match=says) as error:
        make(name, **options)
    assert "\n" not in str(error.value)


def test_every_family_works_here():
    assert check_families() == dict.fromkeys(["Classic control", "MuJoCo", "DM Control", "Atari", "MinAtar"])


def test_a_broken_family_is_reported_in_one_line_and_the_others_still_checked(monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(gymnasium.wrappers, "AtariPreprocessing", fail)
    report = check_families()
    assert report.pop("Atari") == "ALE/Breakout-v5: first line"
    assert set(report.values()) == {None}


# --- observations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_observations_are_flat_floats_or_images_and_lie_in_their_space(name):
    env = make(name, seed=3)
    observation, _ = env.reset()
    assert isinstance(env.observation_space, spaces.Box)
    for _ in range(5):
        assert env.observation_space.contains(observation)
        assert observation.dtype in ((np.uint8,) if name.startswith("ALE/") else (np.float32, np.float64))
        observation, *_ = env.step(env.action_space.sample())
    expected = {"ALE/Breakout-v5": (4, 84, 84), "MinAtar/Breakout-v1": (10, 10, 4)}
    assert observation.shape == expected.get(name, (observation.size,))


@pytest.mark.parametrize("task", ["cheetah-run", "walker-walk", "dog-walk", "humanoid-walk"])
def test_dm_control_features_come_in_the_alphabetical_order_of_their_names(task):
    env = make(f"dm_control/{task}-v0", seed=0)
    observation, _ = env.reset()
    inner = env.unwrapped._env  # type: ignore[attr-defined]  # the environment's own
    parts = inner.task.get_observation(inner.physics)
    assert list(parts) == list(inner.observation_spec())
    expected = np.concatenate([np.ravel(parts[key]) for key in sorted(parts)])
    np.testing.assert_array_equal(observation, expected.astype(np.float32))
    plain = gymnasium.make(f"dm_control/{task}-v0", disable_env_checker=True)
    assert observation.shape == spaces.flatten_space(plain.observation_space).shape


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=2),
        spaces.MultiDiscrete([3, 2, 4]),
        spaces.MultiBinary([2, 3]),
        spaces.Box(-1.0, 1.0, (), np.float64),
        spaces.Box(-1.0, 1.0, (2, 3), np.float64),
        spaces.Box(0, 255, (7,), np.uint8),
        spaces.Tuple([spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))]),
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Dict({"z": spaces.Box(0.0, 1.0, (2, 2))})}),
    ],
    ids=str,
)
def test_flattening_agrees_with_gymnasium(space):
    env = Sample(space)
    flattened = FlattenObservations(env)
    assert flattened.observation_space.shape == spaces.flatten_space(space).shape
    for _ in range(20):
        value = space.sample()
        expected = np.asarray(spaces.flatten(space, value), np.float32)
        np.testing.assert_array_equal(flattened._flatten(value), expected)
        assert flattened.observation_space.contains(flattened._flatten(value))


def test_a_discrete_observation_is_one_hot():
    observation, _ = make("FrozenLake-v1", seed=0).reset()
    assert observation.tolist() == [1.0] + [0.0] * 15


def test_images_keep_their_shape_and_type():
    env = Sample(spaces.Box(0, 255, (96, 96, 3), np.uint8))
    assert standard_observations(env, "image") is env


def test_float64_bounds_beyond_float32_become_infinite():
    largest = np.finfo(np.float64).max
    space = FlattenObservations(Sample(spaces.Box(-largest, largest, (2,), np.float64))).observation_space
    assert isinstance(space, spaces.Box)
    assert space.high.tolist() == [np.inf, np.inf]


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))})], ids=str
)
def test_an_observation_without_a_fixed_size_is_refused_by_name(space):
    with pytest.raises(UsageError, match=r"Text|Sequence"):
        standard_observations(Sample(space), "thing")


# --- actions -----------------------------------------------------------------------------------------------


def test_actions_beyond_the_bounds_act_like_the_bounds():
    env = Sample(spaces.Box(0.0, 1.0, (2,)), spaces.Box(np.float32([-1, -2, -3]), np.float32([1, 2, np.inf])))
    standard = standard_actions(env, "thing")
    action = np.array([3.0, -7.0, 100.0], np.float32)
    standard.step(action)
    assert env.taken.tolist() == [1.0, -2.0, 100.0]
    assert action.tolist() == [3.0, -7.0, 100.0]
    assert standard.action_space == env.action_space


def test_discrete_actions_count_from_zero():
    env = Sample(spaces.Box(0.0, 1.0, (2,)), spaces.Discrete(3, start=5))
    standard = standard_actions(env, "thing")
    standard.step(2)
    assert env.taken == 7
    assert standard.action_space == spaces.Discrete(3)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([2, 2]),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Box(-1.0, 1.0, (2, 2)),
        spaces.Box(0, 5, (2,), np.int64),
    ],
    ids=str,
)
def test_actions_that_no_agent_takes_are_refused_with_what_agents_take(space):
    with pytest.raises(UsageError, match=r"stream-ac .*Box.*stream-q") as error:
        standard_actions(Sample(spaces.Box(0.0, 1.0, (2,)), space), "thing")
    assert type(space).__name__ in str(error.value)


# --- time feature ------------------------------------------------------------------------------------------


def test_the_time_feature_rises_from_minus_a_half_to_a_half_at_the_time_limit():
    env = make("Pendulum-v1", seed=0, time_feature=True)
    for _ in range(2):  # it starts again with each episode
        observation, _ = env.reset()
        times, truncated = [observation[-1]], False
        while not truncated:
            observation, _, _, truncated, _ = env.step(np.zeros(1, np.float32))
            times.append(observation[-1])
        np.testing.assert_allclose(times, np.arange(201) / 200 - 0.5, atol=1e-7)
    assert env.observation_space.contains(observation)


def test_a_time_limit_of_ones_own_sets_the_pace_of_the_time_feature():
    env = make("Pendulum-v1", time_feature=True, max_episode_steps=4)
    env.reset(seed=0)
    assert [float(env.step(np.zeros(1, np.float32))[0][-1]) for _ in range(4)] == [-0.25, 0.0, 0.25, 0.5]


def test_dm_control_episodes_are_a_thousand_steps_and_truncated_there():
    env = make("dm_control/cheetah-run-v0", seed=0, time_feature=True)
    assert isinstance(env, TimeFeature)
    assert env.max_episode_steps == 1000
    env.reset()
    flags = [env.step(np.zeros(6))[2:4] for _ in range(999)]
    assert set(flags) == {(False, False)}
    observation, _, terminated, truncated, _ = env.step(np.zeros(6))
    assert (terminated, truncated, observation[-1]) == (False, True, 0.5)


# --- seeds -------------------------------------------------------------------------------------------------


def rollout(name: str, seed: int) -> tuple[list[np.ndarray], list[float]]:
    """Steps of two episodes, neither reset with a seed."""
    env = make(name, seed=seed)
    observations, rewards = [], []
    for _ in range(2):
        observations.append(env.reset()[0])
        for _ in range(8):
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            observations.append(observation)
            rewards.append(float(reward))
            if terminated or truncated:
                break
    return observations, rewards


@pytest.mark.parametrize(
    "name",
    ["CartPole-v1", "HalfCheetah-v5", "dm_control/cheetah-run-v0", "ALE/Pong-v5", "MinAtar/Asterix-v1"],
)
def test_the_seed_of_make_fixes_all_that_follows(name):
    first, second, other = rollout(name, 7), rollout(name, 7), rollout(name, 8)
    assert first[1] == second[1]
    np.testing.assert_equal(first[0], second[0])
    assert len(first[0]) != len(other[0]) or not all(map(np.array_equal, first[0], other[0]))


# --- Atari -------------------------------------------------------------------------------------------------


def test_fire_is_pressed_at_a_reset_so_a_policy_of_no_ops_loses_its_lives():
    env = make("ALE/Breakout-v5", seed=0)
    _, info = env.reset()
    assert info["lives"] == 5
    for _ in range(200):
        *_, info = env.step(0)
    assert info["lives"] < 5


def test_atari_actions_stick_as_often_as_asked_for_and_not_by_the_emulator():
    for name, options, expected in (
        ("ALE/Pong-v5", {}, 0.25),
        ("ALE/Pong-v5", {"repeat_action_probability": 0.5}, 0.5),
        ("PongNoFrameskip-v4", {}, None),
    ):
        env = make(name, **options)
        sticky = env.has_wrapper_attr("repeat_action_probability")
        assert (env.get_wrapper_attr("repeat_action_probability") if sticky else None) == expected
        assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0  # type: ignore[attr-defined]  # the environment's own


def test_an_action_sticks_to_a_frame_with_the_probability_asked_for():
    env: Any = make("ALE/Pong-v5", seed=0)
    while not isinstance(env, gymnasium.wrappers.StickyAction):
        env = env.env
    env.reset()
    stuck = 0
    for frame in range(2000):
        env.step(frame % 6)
        stuck += env.last_action != frame % 6
    assert abs(stuck / 2000 - 0.25) < 0.04  # four standard errors


def test_a_game_without_fire_starts_without_it():
    observation, _ = make("ALE/Freeway-v5", seed=0).reset()
    assert observation.shape == (4, 84, 84)
    assert all(np.array_equal(frame, observation[0]) for frame in observation)


def test_a_lost_life_ends_the_episode_but_not_the_game():
    env = make("ALE/Breakout-v5", seed=0, episodic_life=True)
    _, info = env.reset()
    lives_at_the_end, rewards, frames = [], 0.0, [info["frame_number"]]
    while "game_return" not in info:
        terminated = False
        while not terminated:
            _, reward, terminated, truncated, info = env.step(1)
            rewards += float(reward)
            assert not truncated
        lives_at_the_end.append(info["lives"])
        if "game_return" not in info:
            _, begun = env.reset()
            assert begun["lives"] == info["lives"]
            frames.append(begun["frame_number"])
            assert begun["episode_frame_number"] > info["episode_frame_number"]  # the same game
    assert lives_at_the_end == [4, 3, 2, 1, 0]
    assert info["game_return"] == rewards  # nothing is hit in the two steps after each lost life
    _, info = env.reset()
    assert info["lives"] == 5
    assert info["episode_frame_number"] <= 4 * 2 + 30


def test_a_seeded_or_early_reset_starts_a_new_game():
    env = make("ALE/Breakout-v5", seed=0, episodic_life=True)
    for seed in (4, None):
        env.reset()
        terminated = False
        while not terminated:
            *_, terminated, _, _ = env.step(0)
        if seed is None:
            env.reset()  # the next life
            env.step(0)  # given up half-way
        assert env.reset(seed=seed)[1]["lives"] == 5


def test_a_time_limit_counts_the_agents_steps_across_lives():
    env = make("ALE/Breakout-v5", seed=0, episodic_life=True, max_episode_steps=70)
    env.reset()
    steps, ended = 0, False
    while not ended:
        _, _, terminated, ended, info = env.step(0)
        steps += 1
        if terminated:
            env.reset()
            steps += 2  # a no-op and FIRE
    assert info["lives"] < 5
    assert steps == 70 - 1  # FIRE at the first reset
