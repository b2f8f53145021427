"""Physics that changes: how much, when, that nothing else does, and how exactly it comes back."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from envs_support import Player
from gymnasium import spaces

from streamwise.envs import make
from streamwise.envs.changing import (
    ChangingPhysics,
    Schedule,
)
from streamwise.streams import UsageError

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
    model, data = env.unwrapped.model, env.unwrapped.data  # type: ignore[attr-defined]  # the environment's own
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
