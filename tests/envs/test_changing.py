"""Worlds that change: when, in which order observations come, and what a name may say of it."""

from __future__ import annotations

import doctest
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from envs_support import Player
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.envs import changing, make
from streamwise.envs.changing import (
    ChangingObservations,
    ChangingPhysics,
    Schedule,
    feature_order,
)
from streamwise.streams import UsageError

same_examples = settings(max_examples=60, deadline=None, derandomize=True)


schedules = st.builds(
    Schedule,
    worlds=st.lists(st.sampled_from([1.0, 0.5, 2.0, 0.0, 7.0]), min_size=1, max_size=5).map(tuple),
    every=st.integers(1, 40),
    blend=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    repeat=st.booleans(),
)


# --- when --------------------------------------------------------------------------------------------------


def test_worlds_come_in_their_order_each_as_long_as_said_and_come_again():
    schedule = Schedule((1.0, 0.5, 1.0, 1.5, 1.0), every=3)
    values = [schedule.value(step) for step in range(18)]
    assert values == [1.0] * 3 + [0.5] * 3 + [1.0] * 3 + [1.5] * 3 + [1.0] * 6
    assert [schedule.regime(step) for step in range(0, 18, 3)] == [0, 1, 0, 2, 0, 0]


def test_without_repetition_the_last_world_stays():
    schedule = Schedule((1.0, 0.5), every=3, blend=1.0, repeat=False)
    assert {schedule.value(step) for step in range(5, 100)} == {0.5}


@same_examples
@given(schedule=schedules, step=st.integers(0, 400))
def test_a_value_lies_between_the_world_before_and_the_present_one(schedule, step):
    before, now, share = schedule.at(step)
    assert 0.0 < share <= 1.0
    assert min(before, now) <= schedule.value(step) <= max(before, now)
    if schedule.blend == 0.0:
        assert schedule.value(step) == now


@same_examples
@given(schedule=schedules)
def test_a_gradual_change_never_turns_back_and_arrives(schedule):
    for turn in range(1, 8):
        steps = range(turn * schedule.every, (turn + 1) * schedule.every)
        before, now = schedule.value(steps[0] - 1), schedule.at(steps[0])[1]
        values = [before, *map(schedule.value, steps)]
        assert values in (sorted(values), sorted(values, reverse=True))
        assert values[-1] == now
        changed = [value != following for value, following in pairwise(values)]
        assert sum(changed) <= max(round(schedule.blend * schedule.every), 1)


@pytest.mark.parametrize("blend", [0.2, 0.5, 1.0])
def test_a_gradual_change_takes_equal_steps(blend):
    schedule = Schedule((0.0, 1.0), every=20, blend=blend)
    width = round(20 * blend)
    found = [schedule.value(20 + step) for step in range(20)]
    assert found == pytest.approx([min((step + 1) / width, 1.0) for step in range(20)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"worlds": ()}, "no world"),
        ({"every": 0}, "every is 0"),
        ({"every": 1.5}, "every is 1.5"),
        ({"blend": 1.1}, "blend is 1.1"),
        ({"blend": float("nan")}, "blend is nan"),
        ({"repeat": 1}, "repeat is 1"),
    ],
)
def test_what_is_no_schedule_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Schedule(**{"worlds": (1.0,), **options})


# --- observations ------------------------------------------------------------------------------------------


@same_examples
@given(seed=st.integers(0, 1000), features=st.integers(1, 60))
def test_an_order_has_every_feature_once_and_zero_leaves_them_where_they_are(seed, features):
    order = feature_order(seed, features)
    assert sorted(order.tolist()) == list(range(features))
    assert feature_order(0, features).tolist() == list(range(features))
    np.testing.assert_array_equal(order, feature_order(seed, features))


def test_observations_are_those_of_the_plain_world_in_the_present_order():
    for name in ("HalfCheetah-v5", "dm_control/walker-walk-v0", "CartPole-v1"):
        env: Any = make(f"{name}?change=observations&values=0,3,8&every=5", seed=1)
        plain = make(name, seed=1)
        orders = [feature_order(seed, plain.observation_space.shape[0]) for seed in (0, 3, 8)]
        seen, expected = [env.reset()[0]], [plain.reset()[0]]
        for _ in range(14):
            action = plain.action_space.sample()
            observation, reward, *_ = env.step(action)
            unchanged, expected_reward, *_ = plain.step(action)
            assert reward == expected_reward
            seen.append(observation), expected.append(unchanged)
        for step, (found, unchanged) in enumerate(zip(seen, expected, strict=True)):
            np.testing.assert_array_equal(found, unchanged[orders[step // 5 % 3]])
            assert found.dtype == unchanged.dtype


def test_the_space_has_room_for_every_order_and_for_mixtures():
    env: Any = make("CartPole-v1?change=observations&values=0,1,2&every=6&blend=1", seed=0)
    plain = make("CartPole-v1").observation_space
    low, high = plain.low, plain.high  # type: ignore[attr-defined]  # a Box
    orders = [feature_order(seed, 4) for seed in (0, 1, 2)]
    np.testing.assert_array_equal(env.observation_space.low, np.min([low[order] for order in orders], 0))
    np.testing.assert_array_equal(env.observation_space.high, np.max([high[order] for order in orders], 0))
    player = Player(env)
    for _ in range(60):
        _, dtype, shape, data, *_ = player.play(1)[0]
        assert env.observation_space.contains(np.frombuffer(data, dtype).reshape(shape))


def test_between_two_orders_a_feature_is_a_mixture_of_both():
    env: Any = make("Hopper-v5?change=observations&values=0,4&every=4&blend=1", seed=1)
    plain = make("Hopper-v5", seed=1)
    order = feature_order(4, 11)
    env.reset(), plain.reset()
    for step in range(1, 8):
        found, unchanged = env.step(np.zeros(3))[0], plain.step(np.zeros(3))[0]
        share = max(step - 3, 0) / 4
        np.testing.assert_allclose(found, (1.0 - share) * unchanged + share * unchanged[order], rtol=1e-12)


def test_the_time_feature_stays_in_its_place():
    env = make("Hopper-v5?change=observations&values=5&max_episode_steps=100", seed=1, time_feature=True)
    env.reset()
    assert [float(env.step(np.zeros(3))[0][-1]) for _ in range(3)] == pytest.approx([-0.49, -0.48, -0.47])


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Hopper-v5?change=gravty&values=1", "Did you mean 'gravity'"),
        ("Hopper-v5?change=gravity", "values is None"),
        ("Hopper-v5?change=gravity&values=1,x", "values is '1,x'"),
        ("Hopper-v5?change=gravity&values=true", "values is True"),
        ("Hopper-v5?change=gravity&values=NaN", "values is nan"),
        ("Hopper-v5?change=gravity&values=1&every=0", "every is 0"),
        ("Hopper-v5?change=gravity&values=1&evry=7", "evry"),
        ("Hopper-v5?change=friction&values=-1", "0 or more"),
        ("Hopper-v5?change=observations&values=0.5", "0.5 is no order"),
        ("CartPole-v1?change=gravity&values=1", "MuJoCo and DM Control only"),
        ("MinAtar/Breakout-v1?change=observations&values=0,1", "where they are flat"),
        ("MinAtar/Sequence-v0?games=Brekout", "Did you mean 'Breakout'"),
        ("MinAtar/Sequence-v0?games=3", "games is 3"),
        ("MinAtar/Sequence-v0?games=[]", "no world"),
        ("MinAtar/Sequence?games=Breakout", "MinAtar/Sequence-v0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_says_what_can(name, says):
    with pytest.raises(UsageError, match=re.escape(says)) as error:
        make(name)
    assert "\n" not in str(error.value)


def test_values_are_written_as_one_likes():
    wanted = Schedule((1.0, 0.5), every=7)
    for text in ("values=1,0.5", "values=[1,0.5]", "values=1.0,.5"):
        env: Any = make(f"Hopper-v5?change=gravity&every=7&{text}")
        assert env.schedule == wanted
    env = make("Hopper-v5", change="gravity", values=(1, 0.5), every=7)
    assert env.schedule == wanted
    env = make("Hopper-v5?change=gravity&values=0.5")  # one world, such as to evaluate in
    env.reset()
    assert env.unwrapped.model.opt.gravity[2] == -9.81 / 2


def test_only_info_tells_which_world_it_is():
    env = make("Hopper-v5?change=gravity&values=1,0.5,1,2&every=2", seed=0)
    assert isinstance(env, ChangingPhysics)
    assert env.observation_space == make("Hopper-v5").observation_space
    env.reset()
    assert [env.step(np.zeros(3))[4]["regime"] for _ in range(9)] == [0, 0, 1, 1, 0, 0, 2, 2, 0]
    env = make("Hopper-v5?change=observations&values=0,1&every=2", seed=0)
    assert isinstance(env, ChangingObservations)
    env.reset()
    assert [env.step(np.zeros(3))[4]["regime"] for _ in range(5)] == [0, 0, 1, 1, 0]


def test_the_examples_in_docstrings_print_what_they_promise():
    assert doctest.testmod(changing) == (0, 6)
