"""Memory probes and POPGym by name: options in names, observations for agents, and snapshots that go on."""

from __future__ import annotations

import importlib.util
import sys
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from envs_support import Player, check_that_another_process_goes_on, sent
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.agents import StreamAC, StreamQ
from streamwise.envs import EnvironmentStream, capture, environment_names, family_of, make, restore
from streamwise.streams import UsageError

has_popgym = pytest.mark.skipif(importlib.util.find_spec("popgym") is None, reason="needs the extra popgym")

FEATURES = {  # of the observation that an agent gets, by name
    "streamwise/Ballet-v0": 99 * 99 * 3 + 14,
    "streamwise/Ballet-v0?dancers=8&delay=48&grey=true": 99 * 99 + 14,
    "streamwise/Ballet-v0?dancers=1&delay=1&obs=grid": 11 * 11 * (3 + 1) + 14,
    "streamwise/Ballet-v0?dancers=4&delay=2&obs=grid": 11 * 11 * (3 + 4) + 14,
    "streamwise/DelayedRecall-v0?delay=5": 8 + 2,
    "streamwise/PairRecall-v0?pairs=3&delay=5": 3 + 8 + 2,
    "streamwise/OrderRecall-v0?length=4&delay=5": 4 + 8 + 2,
    "streamwise/EventRecall-v0?actors=2&delay=2": 8 + 2 + 13,
    "streamwise/TMaze-v0": 4,
    "streamwise/ShellGame-v0": 4 + 2,
    "streamwise/Naming-v0?distractors=[0,1,2]": 64 * 4 + 1,
    "streamwise/Told-v0?facts=5": 16 + 4 + 2,
    "streamwise/Told-v0?facts=5&role=tell&world=3": 16 + 4 + 2,
    "streamwise/KeyDoor-v0?apple_frames=20": 25 * 8,
    "streamwise/VisualMatch-v0?apple_frames=20&apple_reward=[1,10]": 25 * 8,
    "streamwise/VisualMatch-v0?passive=true": 25 * 8,
    "streamwise/GraphRoutes-v0?nodes=6&goals=2": 12,
}
each_name = pytest.mark.parametrize("name", FEATURES)
SMALL = [name for name in FEATURES if FEATURES[name] < 9000]


def used(name: str) -> Any:
    """An environment of that name with a past of its own."""
    env = make(name, seed=99)
    Player(env, seed=98, most=3).play(6)
    return env


# --- names and options -------------------------------------------------------------------------------------


def test_every_probe_is_listed_and_found_under_its_family():
    listed = environment_names()["Memory probes"]
    assert set(listed) == {name.partition("?")[0] for name in FEATURES}
    assert all(family_of(name) == "Memory probes" for name in FEATURES)
    assert not any(name.startswith("streamwise/") for name in gymnasium.registry)


@each_name
def test_a_probe_gives_agents_flat_observations_in_their_space_and_discrete_actions(name):
    env = make(name, seed=0)
    assert isinstance(env.action_space, spaces.Discrete)
    observation, _ = env.reset()
    for _ in range(4):
        assert observation.shape == (FEATURES[name],)
        assert env.observation_space.contains(observation)
        observation, _, terminated, _, _ = env.step(env.action_space.sample())
        if terminated:
            observation, _ = env.reset()


@pytest.mark.filterwarnings("ignore:.*WARN.*:UserWarning")
@pytest.mark.parametrize("name", SMALL)
def test_a_probe_passes_gymnasiums_own_check(name):
    check_env(make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", SMALL)
def test_an_episode_ends_within_the_step_limit(name):
    env = make(name, seed=1)
    limit, steps, over = env.unwrapped.step_limit, 0, False  # type: ignore[attr-defined]  # the environment's own
    env.reset()
    while not over:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        over, steps = terminated or truncated, steps + 1
    assert steps <= limit
    assert make(name, time_feature=True).max_episode_steps == limit  # type: ignore[attr-defined]  # the environment's own
    shorter = min(2, limit)
    assert make(name, time_feature=True, max_episode_steps=shorter).max_episode_steps == shorter  # type: ignore[attr-defined]  # the environment's own


def test_an_option_in_the_name_is_the_option_beside_it():
    for name, options in (
        ("DelayedRecall-v0?symbols=3&delay=4", {"symbols": 3, "delay": 4}),
        ("Ballet-v0?obs=grid&dancers=3", {"obs": "grid", "dancers": 3}),
        ("Naming-v0?distractors=[0,2]", {"distractors": [0, 2]}),
        ("KeyDoor-v0?apple_reward=0.5", {"apple_reward": 0.5}),
        ("VisualMatch-v0?passive=true", {"passive": True}),
    ):
        by_name = make(f"streamwise/{name}")
        beside = make(f"streamwise/{name.partition('?')[0]}", **options)
        assert Player(by_name).play(40) == Player(beside).play(40)
        restore(by_name, sent(capture(beside)))
    assert make("Pendulum-v1?g=3.5").unwrapped.g == 3.5  # type: ignore[attr-defined]  # the environment's own
    assert make("CartPole-v1?max_episode_steps=7").spec.max_episode_steps == 7  # type: ignore[union-attr]  # the environment's own


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("streamwise/Ballet-v0?dancers=9", {}, "Ballet-v0 cannot be made: dancers is 9; give .* 1 to 8"),
        ("streamwise/Ballet-v0?dancer=2", {}, "it has no option 'dancer'. Did you mean 'dancers'"),
        ("streamwise/Ballet-v0?dancers", {}, r"write options as streamwise/Ballet-v0\?OPTION=VALUE"),
        ("streamwise/Ballet-v0?dancers=2&dancers=3", {}, "given twice"),
        ("streamwise/Ballet-v0?dancers=2", {"dancers": 2}, "dancers is given twice"),
        ("streamwise/Ballet-v0?grey=yes", {}, "grey is 'yes'; give true or false"),
        ("streamwise/TMaze-v0?seed=1", {}, "seed is no option of the environment"),
        ("streamwise/Balet-v0?dancers=2", {}, "the nearest are streamwise/Ballet-v0"),
        ("streamwise/TMaze-v0", {"episodic_life": True}, "no lives"),
        ("streamwise/TMaze-v0", {"render_mode": "rgb_array"}, "render_mode"),
    ],
)
def test_an_option_that_cannot_hold_is_a_usage_error_in_one_line(name, options, says):
    with pytest.raises(UsageError, match=says) as error:
        make(name, **options)
    assert "\n" not in str(error.value)


def test_ballet_can_be_filmed():
    env = make("streamwise/Ballet-v0?obs=grid", seed=0, render_mode="rgb_array")
    env.reset()
    picture: Any = env.render()
    assert (picture.shape, picture.dtype) == ((99, 99, 3), np.uint8)


# --- snapshots ---------------------------------------------------------------------------------------------


@each_name
def test_a_restored_probe_goes_on_bit_for_bit(name):
    """Before the first reset, right after one, within an episode, at its end; and across later resets."""
    most = 12 if name in SMALL else 3
    original = Player(make(name), most=most)
    for events in (0, 1, 4, 13):
        original.play(events)
        for env in (make(name), used(name)):
            snapshot = sent(capture(original.env))
            restore(env, snapshot)
            assert sent(capture(env)) == snapshot
            other = original.goes_on_in(env)
            assert other.play(30) == original.play(30)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut=st.integers(0, 150), name=st.sampled_from(SMALL))
def test_a_probe_can_be_cut_anywhere(cut, name):
    original = Player(make(name), seed=cut, most=200)
    original.play(cut)
    other = original.goes_on_in(used(name))
    restore(other.env, sent(capture(original.env)))
    assert other.play(70) == original.play(70)


def test_another_process_goes_on_bit_for_bit(tmp_path):
    check_that_another_process_goes_on(tmp_path, SMALL, most=60, before=37, after=80)


def test_a_stream_that_seeks_a_position_goes_on_bit_for_bit():
    for name in SMALL:

        def act(observation: Any) -> int:
            return int(observation.sum()) % 2

        original = EnvironmentStream(make(name, seed=1), act, seed=4)
        list(islice(original, 21))
        other = EnvironmentStream(make(name, seed=2), act, seed=5)
        list(islice(other, 7))
        other.seek(sent(original.position))
        for one, two in zip(islice(original, 60), islice(other, 60), strict=True):
            assert all(map(np.array_equal, one, two))
        assert sent(other.position) == sent(original.position)


def test_a_snapshot_of_other_options_is_refused():
    snapshot = capture(make("streamwise/TMaze-v0?corridor=5"))
    with pytest.raises(UsageError, match="TMaze has another corridor"):
        restore(make("streamwise/TMaze-v0?corridor=6"), snapshot)
    with pytest.raises(UsageError, match="ShellGame"):
        restore(make("streamwise/ShellGame-v0"), snapshot)


# --- agents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [StreamAC, StreamQ], ids=["stream-ac", "stream-q"])
def test_agents_learn_from_every_probe_by_its_name(agent):
    for name in SMALL:
        env = make(name, seed=0)
        learner = agent(env.observation_space, env.action_space, seed=0)
        before = {key: value.clone() for key, value in learner.state_dict().items()}
        for transition in islice(EnvironmentStream(env, learner.act), 80):
            learner.learn_one(transition)
        after = learner.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before), name


# --- POPGym ------------------------------------------------------------------------------------------------


def test_missing_popgym_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(UsageError, match=r'^POPGym .* `pip install "streamwise\[popgym\]"`\.$'):
        make("popgym-RepeatFirstEasy-v0")


@has_popgym
def test_every_environment_of_popgym_is_made_for_agents_and_goes_on_bit_for_bit():
    names = environment_names()["POPGym"]
    assert "popgym-RepeatPreviousHard-v0" in names
    assert len(names) >= 40
    for name in names:
        original = Player(make(name), most=25)
        original.play(31)
        other = original.goes_on_in(used(name))
        restore(other.env, sent(capture(original.env)))
        assert other.play(40) == original.play(40)
        assert isinstance(other.env.observation_space, spaces.Box)


@has_popgym
def test_a_pair_of_numbers_is_one_action_of_popgym():
    env = make("popgym-BattleshipEasy-v0", seed=0)
    assert env.action_space == spaces.Discrete(64)
    env.reset()
    *_, terminated, _, _ = env.step(63)
    assert not terminated
