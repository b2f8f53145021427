"""Worlds that change: what changes, when, how exactly it comes back, and that a snapshot goes on with it."""

from __future__ import annotations

import doctest
import json
import re
from itertools import pairwise
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from envs_support import Player
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.envs import EnvironmentStream, capture, changing, environment_names, family_of, make, restore
from streamwise.envs.changing import (
    GAMES,
    ChangingObservations,
    ChangingPhysics,
    GameSequence,
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


# --- physics -----------------------------------------------------------------------------------------------

LABORATORY = """
<mujoco>
  <option timestep="0.002" cone="elliptic"/>
  <worldbody>
    <geom name="floor" type="plane" size="100 100 1" friction="0.4"/>
    <body name="ball" pos="0 5 100"><freejoint name="falling"/><geom size="0.1"/></body>
    <body name="box" pos="0 0 0.1"><joint name="sliding" type="slide" axis="1 0 0"/>
      <joint type="slide" axis="0 0 1"/>
      <geom name="box" type="box" size="0.5 0.5 0.1" friction="0.4" {contact}/></body>
    <body pos="0 -5 50" gravcomp="1"><joint name="motor" type="slide" axis="1 0 0"/><geom size="0.1"/></body>
    <body pos="0 -6 50" gravcomp="1"><joint name="servo" type="slide" axis="1 0 0"/><geom size="0.1"/></body>
    <body pos="0 -7 50" gravcomp="1"><joint name="muscle" axis="0 1 0"/><geom pos="1 0 0" size="0.1"/></body>
  </worldbody>
  <contact>{pair}</contact>
  <actuator>
    <motor joint="motor" gear="3"/>
    <position joint="servo" kp="5" kv="2" forcerange="-4 4"/>
    <muscle joint="muscle" force="50" lengthrange="-1 1"/>
    <muscle joint="muscle" scale="70" lengthrange="-1 1"/>
  </actuator>
</mujoco>
"""


class Laboratory(gymnasium.Env[Any, Any]):
    """Something that falls, something that slides, and actuators of every kind; a step is ten of MuJoCo's."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space: Any = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(self, xml: str = LABORATORY.format(contact="", pair="")) -> None:
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        mujoco.mj_resetData(self.model, self.data)
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, 10)
        return np.zeros(1), 0.0, False, False, {}


NOTHING = np.zeros(4)


def speeds(env: Any, joint: str, axis: int, steps: int) -> list[float]:
    """The speed of a free body before each step and after the last."""
    data = env.unwrapped.data
    found = [data.joint(joint).qvel[axis]]
    for _ in range(steps):
        env.step(NOTHING)
        found.append(data.joint(joint).qvel[axis])
    return [float(speed) for speed in found]


def test_a_ball_falls_as_much_faster_as_gravity_is_stronger():
    env = ChangingPhysics(Laboratory(), "gravity", Schedule((1.0, 0.5, 0.0, -2.0), every=5))
    env.reset()
    pulls = np.diff(speeds(env, "falling", 2, 20)) / (10 * 0.002)
    np.testing.assert_allclose(pulls, np.repeat([-9.81, -4.905, 0.0, 19.62], 5), rtol=1e-9, atol=1e-9)


def test_gravity_grows_step_by_step_where_it_changes_little_by_little():
    env = ChangingPhysics(Laboratory(), "gravity", Schedule((1.0, 2.0), every=10, blend=0.5))
    env.reset()
    pulls = np.diff(speeds(env, "falling", 2, 20)) / (10 * 0.002) / -9.81
    np.testing.assert_allclose(pulls, [1.0] * 10 + [1.2, 1.4, 1.6, 1.8, 2.0] + [2.0] * 5, rtol=1e-9)


@pytest.mark.parametrize(
    "contact",
    [
        {"contact": "", "pair": ""},
        {
            "contact": 'contype="0" conaffinity="0"',
            "pair": '<pair geom1="floor" geom2="box" friction="0.4 0.4 0.005 0.0001 0.0001"/>',
        },
    ],
    ids=["geoms", "an explicit pair"],
)
def test_a_box_that_is_pulled_slides_as_much_faster_as_friction_is_smaller(contact):
    """Pulled with 0.3 of its weight: friction of 0.4 holds it, 0.2 leaves a third of the pull, 0 all."""
    env = ChangingPhysics(
        Laboratory(LABORATORY.format(**contact)), "friction", Schedule((1.0, 0.5, 0.0), every=10)
    )
    env.reset()
    model, data = env.unwrapped.model, env.unwrapped.data  # type: ignore[attr-defined]
    box = model.body("box").id
    data.xfrc_applied[box, 0] = 0.3 * 9.81 * model.body_mass[box]
    found = np.array(speeds(env, "sliding", 0, 30)) / (10 * 10 * 0.002 * 9.81)  # in pulls of a weight
    np.testing.assert_allclose(np.diff(found[::10]), [0.0, 0.1, 0.3], atol=0.005)


@pytest.mark.parametrize("control", [0.3, 1.0, -1.0])
def test_an_actuator_has_that_multiple_of_its_force_at_the_same_control_and_state(control):
    plain = Laboratory()
    env: Any = ChangingPhysics(Laboratory(), "actuators", Schedule((0.5, 0.0, 3.0), every=1))
    forces = []
    for inner in (plain, env.unwrapped):
        inner.reset()
        inner.data.joint("servo").qpos, inner.data.joint("servo").qvel = 0.2, -0.1
        inner.data.joint("muscle").qpos, inner.data.joint("muscle").qvel = 0.1, 0.2
        inner.data.ctrl[:], inner.data.act[:] = control, 0.5
    for factor in (1.0, 0.5, 0.0, 3.0):
        inner = plain if factor == 1.0 else env.unwrapped
        if inner is not plain:
            env._become(factor)
        mujoco.mj_forward(inner.model, inner.data)
        forces.append(inner.data.actuator_force.copy())
    assert np.all(forces[0] != 0.0)
    for factor, force in zip((0.5, 0.0, 3.0), forces[1:], strict=True):
        np.testing.assert_allclose(force, factor * forces[0], rtol=1e-12, atol=0.0)


def test_an_actuator_of_another_kind_is_refused():
    xml = LABORATORY.format(contact="", pair="").replace(
        '<motor joint="motor" gear="3"/>', '<general joint="motor" gaintype="user"/>'
    )
    with pytest.raises(UsageError, match="motors, servos, dampers and muscles"):
        ChangingPhysics(Laboratory(xml), "actuators", Schedule((1.0,)))


def physics(env: Any) -> tuple[Any, Any]:
    """MuJoCo's model and data of an environment that `make` gave."""
    inner = env.unwrapped
    if hasattr(inner, "_env"):
        return inner._env.physics.model.ptr, inner._env.physics.data.ptr
    return inner.model, inner.data


def parameters(env: Any) -> dict[str, bytes]:
    """Every array of the model, and gravity."""
    model = physics(env)[0]
    names = [name for name in dir(model) if isinstance(getattr(model, name, None), np.ndarray)]
    arrays = {name: getattr(model, name).tobytes() for name in names}
    return {**arrays, "gravity": model.opt.gravity.tobytes()}


PHYSICS = {  # what may differ from what the model came with
    "gravity": {"gravity"},
    "friction": {"geom_friction"},
    "actuators": {"actuator_gainprm", "actuator_biasprm"},
}


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Humanoid-v5", "dm_control/fish-swim-v0"])
@pytest.mark.parametrize("change", PHYSICS)
def test_a_world_that_returns_is_exactly_what_it_was_and_nothing_else_changes(name, change):
    env = make(f"{name}?change={change}&values=1,0.3,1,1.7&every=3", seed=1)
    plain = make(name, seed=1)
    env.reset(seed=3), plain.reset(seed=3)
    came_with = parameters(plain)
    seen = []
    for _ in range(24):
        env.step(np.zeros(env.action_space.shape))
        seen.append(parameters(env))
    for step, found in enumerate(seen):
        changed = {key for key in found if found[key] != came_with[key]}
        if step // 3 % 2 == 0:
            assert changed == set()
        else:
            assert changed
            assert changed <= PHYSICS[change]
        assert found == seen[step % 12]


@pytest.mark.parametrize("name", ["Ant-v5", "dm_control/humanoid-run-v0", "dm_control/quadruped-run-v0"])
def test_a_body_of_many_parts_falls_in_every_task_as_gravity_says(name):
    """The velocity of its centre of mass; what happens inside of it cancels."""
    env = make(f"{name}?change=gravity&values=1,0.5,-1&every=4", seed=0)
    env.reset()
    model, data = physics(env)
    data.qpos[2] += 30.0
    mujoco.mj_forward(model, data)
    root = int(model.body_rootid[model.nbody - 1])
    found = []
    for _ in range(13):
        mujoco.mj_subtreeVel(model, data)
        found.append((data.time, float(data.subtree_linvel[root, 2])))
        env.step(np.zeros(env.action_space.shape))
    times, velocities = np.array(found).T
    pulls = np.diff(velocities) / np.diff(times) / -9.81
    expected = np.repeat([1.0, 0.5, -1.0], 4)
    if name.startswith("dm_control"):  # the first substep after a change has the force of before
        substeps = round(np.diff(times)[0] / model.opt.timestep)
        expected[[4, 8]] += np.array([0.5, 1.5]) / substeps
    np.testing.assert_allclose(pulls, expected, rtol=0.01)


def test_until_the_first_change_a_world_is_as_it_would_be_without():
    for name in ("Hopper-v5", "dm_control/walker-walk-v0"):
        for change in PHYSICS:
            env = Player(make(f"{name}?change={change}&values=1,0.1&every=20"), most=1000)
            plain = Player(make(name), most=1000)
            events = plain.play(21)
            assert env.play(21) == events
            assert env.play(15) != plain.play(15)


def test_the_change_comes_in_the_middle_of_an_episode_and_the_count_goes_on_over_resets():
    env = make("HalfCheetah-v5?change=gravity&values=1,0.5&every=10", seed=0)
    gravity = physics(env)[0].opt.gravity
    found = []
    for step in range(40):
        if step % 4 == 0:
            env.reset()
        env.step(np.zeros(6))
        found.append(gravity[2] / -9.81)
    assert found == ([1.0] * 10 + [0.5] * 10) * 2


def test_an_episode_starts_in_the_world_of_its_first_step():
    """A first observation may have forces in it, and DM Control's first substep does."""
    env = make("HalfCheetah-v5?change=gravity&values=1,0.5&every=2", seed=0)
    env.reset()
    env.step(np.zeros(6)), env.step(np.zeros(6))
    assert physics(env)[0].opt.gravity[2] == -9.81
    env.reset()
    assert physics(env)[0].opt.gravity[2] == -9.81 / 2


def test_a_model_that_is_built_anew_for_an_episode_is_changed_too():
    env = make("dm_control/reach_site_features-v0?change=gravity&values=0.5,2&every=2", seed=0)
    models = []
    for factor in (0.5, 2.0, 0.5):
        env.reset()
        models.append(physics(env)[0])
        for _ in range(2):
            env.step(np.zeros(env.action_space.shape))
            assert physics(env)[0].opt.gravity.tolist() == [0.0, 0.0, -9.81 * factor]
    assert models[0] is not models[1]


def test_two_things_change_each_on_its_own_schedule_and_none_twice():
    inner = ChangingPhysics(make("Hopper-v5"), "gravity", Schedule((1.0, 0.5), every=2))
    env: Any = ChangingPhysics(inner, "friction", Schedule((1.0, 3.0), every=3))
    model, _ = physics(env)
    friction = model.geom_friction.copy()
    env.reset()
    for step in range(12):
        env.step(np.zeros(3))
        assert model.opt.gravity[2] == -9.81 * (1.0, 0.5)[step // 2 % 2]
        np.testing.assert_array_equal(model.geom_friction, friction * (1.0, 3.0)[step // 3 % 2])
    with pytest.raises(UsageError, match="gravity changes already"):
        ChangingPhysics(env, "gravity", Schedule((1.0,)))


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
    low, high = plain.low, plain.high  # type: ignore[attr-defined]
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


# --- games -------------------------------------------------------------------------------------------------


def play_games(env: Any, steps: int, seed: int = 0) -> list[tuple[str, Any, bool]]:
    """The game, the observation and whether it was an episode's last, of each step."""
    generator = np.random.default_rng(seed)
    env.reset(seed=seed)
    found = []
    for _ in range(steps):
        game = env.unwrapped.game
        observation, _, terminated, _, info = env.step(int(generator.integers(6)))
        assert info["regime"] == list(env.unwrapped.games).index(game)
        found.append((game, observation, terminated))
        if terminated:
            env.reset()
    return found


def test_a_game_is_played_to_its_end_and_then_the_one_whose_time_it_is_begins():
    every, names = 60, ["Breakout", "Asterix", "Breakout", "Freeway"]
    env = make(f"MinAtar/Sequence-v0?games={','.join(names)}&every={every}&max_episode_steps=300")
    found = play_games(env, 3_000)
    assert {game for game, _, _ in found} == set(names)
    expected = names[0]
    for step, (game, _, terminated) in enumerate(found):
        assert game == expected
        if terminated:
            expected = names[(step + 1) // every % len(names)]


def test_every_game_has_the_same_observations_and_actions_and_lacks_only_channels():
    spaces_seen = set()
    for name in GAMES:
        env = make(f"MinAtar/Sequence-v0?games={name}", seed=3)
        plain = make(f"MinAtar/{name}-v0")
        spaces_seen.add((str(env.observation_space), str(env.action_space)))
        seed = int(np.random.SeedSequence(3).generate_state(len(GAMES))[list(GAMES).index(name)])
        observation, unpadded = env.reset(seed=3)[0], plain.reset(seed=seed)[0]
        for step in range(30):
            channels = unpadded.shape[2]
            np.testing.assert_array_equal(observation[..., :channels], unpadded)
            assert not observation[..., channels:].any()
            observation, reward, terminated, *_ = env.step(step % 6)
            unpadded, expected, over, *_ = plain.step(step % 6)
            assert (reward, terminated) == (expected, over)
            if terminated:
                break
    assert spaces_seen == {("Box(0.0, 1.0, (10, 10, 10), float32)", "Discrete(6)")}


def test_a_game_waits_with_its_generator_while_others_are_played():
    """Played by turns with another or alone, its steps are the same."""
    env, alone = GameSequence("Breakout,Asterix", every=30), GameSequence("Breakout")
    env.reset(seed=5), alone.reset(seed=5)
    generator = np.random.default_rng(5)
    turns = [env.game]
    while len(turns) < 7:
        if env.game != turns[-1]:
            turns.append(env.game)
        action = int(generator.integers(6))
        observation, reward, terminated, *_ = env.step(action)
        if env.game == "Breakout":
            expected, expected_reward, over, *_ = alone.step(action)
            assert (reward, terminated) == (expected_reward, over)
            np.testing.assert_array_equal(observation, expected)
            if over:
                alone.reset()
        if terminated:
            env.reset()


def test_a_sequence_of_games_is_one_of_minatars_environments():
    assert "MinAtar/Sequence-v0" in environment_names()["MinAtar"]
    assert family_of("MinAtar/Sequence-v0?games=Breakout") == "MinAtar"


# --- snapshots ---------------------------------------------------------------------------------------------

CHANGING = [
    "HalfCheetah-v5?change=gravity&values=1,0.5,1.5&every=9",
    "HalfCheetah-v5?change=gravity&values=0.5,1.5&every=14&blend=0.5",
    "Ant-v5?change=friction&values=1,0.1&every=9",
    "Hopper-v5?change=actuators&values=1,0.2,1,3&every=9&blend=1",
    "dm_control/walker-walk-v0?change=gravity&values=1,0.5&every=9",
    "dm_control/quadruped-walk-v0?change=friction&values=2,0.1&every=9&blend=0.4",
    "dm_control/fish-swim-v0?change=actuators&values=1,0.4&every=9",
    "dm_control/cheetah-run-v0?change=observations&values=0,1,2&every=9&blend=0.5",
    "CartPole-v1?change=observations&values=0,1&every=9",
    "MinAtar/Sequence-v0?games=Breakout,Asterix,Seaquest&every=25",
]


def sent(snapshot: Any) -> Any:
    """What arrives of a snapshot that went through a strict JSON file."""
    return json.loads(json.dumps(snapshot, allow_nan=False, sort_keys=True))


@pytest.mark.parametrize("name", CHANGING)
def test_a_restored_world_goes_on_bit_for_bit_and_changes_when_it_would_have(name):
    """Cut before the first reset, within worlds and transitions, and right at changes; with another past."""
    original, copy = Player(make(name), most=40), make(name, seed=9)
    before = 0
    for cut in (0, 1, 9, 10, 11, 47, 60):
        original.play(cut - before)
        before = cut + 45
        snapshot = sent(capture(original.env))
        Player(copy, seed=cut, most=7).play(cut % 4 * 8)  # into another world, maybe another game
        restore(copy, snapshot)
        assert sent(capture(copy)) == snapshot
        other = original.goes_on_in(copy)
        assert other.play(45) == original.play(45)


@pytest.mark.parametrize("name", CHANGING)
def test_a_world_can_be_cut_between_any_two_steps(name):
    original, copy = Player(make(name), most=25), make(name, seed=4)
    for _ in range(60):
        restore(copy, sent(capture(original.env)))
        other = original.goes_on_in(copy)
        assert other.play(1) == original.play(1)


class Uncapturable(gymnasium.Wrapper):
    """Holds what no snapshot can."""

    def __init__(self, env):
        super().__init__(env)
        self.handle = object()


@pytest.mark.parametrize("name", ["Hopper-v5?change=gravity&values=1,0.5,2&every=10",
                                  "MinAtar/Sequence-v0?games=Breakout,Asterix,Freeway&every=10"])  # fmt: skip
def test_where_there_is_no_snapshot_the_world_goes_on_by_the_count(name):
    """It began anew with the first world."""
    if name.startswith("MinAtar"):
        pytest.importorskip("minatar")
    stream = EnvironmentStream(env := Uncapturable(make(name)), lambda _: env.action_space.sample())
    assert stream.why_no_snapshot is not None
    stream.seek({"seed": 0, "episode": 3, "step": 25})
    next(iter(stream))
    assert stream.info["regime"] == 2
    assert stream.position["step"] == 26
    stream.close()


@pytest.mark.parametrize(
    "other",
    [
        "values=1,0.5&every=8",
        "values=1,0.6&every=9",
        "values=1,0.5&every=9&blend=0.5",
        "values=1,0.5&every=9&repeat=false",
    ],
)
def test_a_snapshot_of_another_schedule_is_refused(other):
    snapshot = sent(capture(make("Hopper-v5?change=gravity&values=1,0.5&every=9")))
    with pytest.raises(UsageError, match=r"ChangingPhysics has another (every|worlds|blend|repeat)"):
        restore(make(f"Hopper-v5?change=gravity&{other}"), snapshot)


def test_a_snapshot_of_other_games_or_of_another_minatar_is_refused():
    env = make("MinAtar/Sequence-v0?games=Breakout,Asterix")
    snapshot = sent(capture(env))
    with pytest.raises(UsageError, match="GameSequence has another games"):
        restore(make("MinAtar/Sequence-v0?games=Asterix,Breakout"), snapshot)
    snapshot["versions"]["minatar"] = "0.1"
    with pytest.raises(UsageError, match=r"install minatar==0\.1"):
        restore(env, snapshot)


def test_capturing_changes_nothing():
    for name in CHANGING[4], CHANGING[-1]:
        captured, alone = Player(make(name)), Player(make(name))
        for _ in range(40):
            capture(captured.env)
            assert captured.play(1) == alone.play(1)


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
