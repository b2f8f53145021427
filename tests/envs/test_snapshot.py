"""Snapshots: what goes on from one equals, bit for bit, what was never interrupted; and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from envs_support import Player, check_that_another_process_goes_on, sent
from gymnasium.envs.classic_control import CartPoleEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_support import Case, Walk, named, same_examples, with_leaf

from streamwise.envs import (
    NoSnapshotError,
    capture,
    environment_names,
    make,
    restore,
    why_not,
)
from streamwise.envs.snapshot import attributes, set_attributes
from streamwise.streams import UsageError


def registered(module: str, ending: str = "") -> list[Case]:
    """Every name that Gymnasium itself registers for the classes of a module."""
    specs = gymnasium.registry.values()
    found = [spec.id for spec in specs if str(spec.entry_point).startswith(f"gymnasium.envs.{module}.")]
    return [(name, {}) for name in sorted(found) if name.endswith(ending)]


PURE_PYTHON = [
    *registered("classic_control"),
    *registered("toy_text"),
    ("CartPole-v1", {"time_feature": True}),
    ("Taxi-v4", {"fickle_passenger": True, "is_rainy": True}),
    *((f"MinAtar/{game}-v1", {}) for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")),
]


MUJOCO = [*registered("mujoco", "-v5"), ("HalfCheetah-v4", {}), ("Ant-v5", {"time_feature": True})]


DM_CONTROL = [
    (f"dm_control/{task}-v0", {})
    for task in (
        "walker-walk", "finger-turn_hard", "reacher-easy", "point_mass-hard", "swimmer-swimmer6",
        "lqr-lqr_2_1", "fish-swim", "stacker-stack_2", "manipulator-insert_ball", "quadruped-fetch",
        "dog-walk", "cartpole-swingup",
    )
]  # fmt: skip


ATARI = [
    ("ALE/Pong-v5", {}),
    ("ALE/Breakout-v5", {"episodic_life": True}),
    ("ALE/Breakout-v5", {"episodic_life": True, "max_episode_steps": 9}),
    ("PongNoFrameskip-v4", {}),
]


ALL = [*PURE_PYTHON, *MUJOCO, *DM_CONTROL, *ATARI]


def used(name: str, options: dict[str, Any]) -> Any:
    """An environment of that name with a past of its own."""
    env = make(name, seed=99, **options)
    Player(env, seed=98, most=3).play(6)
    return env


# --- exactness ---------------------------------------------------------------------------------------------


def check_cuts(name: str, options: dict[str, Any], cuts: tuple[int, ...], events: int = 30) -> None:
    """After each number of events, go on in an environment with another past and in a new one."""
    original = Player(make(name, **options))
    others = [used(name, options), make(name, **options)]
    before = 0
    for cut, env in zip(cuts, others * len(cuts), strict=False):
        original.play(cut - before)
        before = cut + events
        snapshot = sent(capture(original.env))
        restore(env, snapshot)
        assert sent(capture(env)) == snapshot
        other = original.goes_on_in(env)
        assert other.play(events) == original.play(events)


@named(ALL)
def test_a_restored_environment_goes_on_bit_for_bit(name, options):
    """Before the first reset, right after one, within an episode, at its end; and across later resets."""
    check_cuts(name, options, (0, 1 + 39, 5 + 39 * 2, 13 + 39 * 3))


@same_examples
@given(cut=st.integers(0, 120), case=st.sampled_from(PURE_PYTHON))
def test_a_pure_python_environment_can_be_cut_anywhere(cut, case):
    name, options = case
    original = Player(make(name, **options), seed=cut, most=60)
    original.play(cut)
    other = original.goes_on_in(used(name, options))
    restore(other.env, sent(capture(original.env)))
    assert other.play(70) == original.play(70)


@pytest.mark.parametrize("name", ["CartPole-v1", "HalfCheetah-v5", "dm_control/cheetah-run-v0"])
def test_an_episode_that_is_cut_ends_at_the_same_step(name):
    original = Player(make(name), most=2000)
    original.play(950)
    other = original.goes_on_in(used(name, {}))
    restore(other.env, sent(capture(original.env)))
    events = original.play(60)
    assert other.play(60) == events
    assert any(event[0] == "reset" for event in events)


@named([*PURE_PYTHON, ("Humanoid-v5", {}), ("dm_control/quadruped-walk-v0", {}), *ATARI[:2]])
def test_capturing_changes_nothing(name, options):
    captured, alone = Player(make(name, **options)), Player(make(name, **options))
    for _ in range(30):
        capture(captured.env)
        assert captured.play(1) == alone.play(1)


ACROSS_PROCESSES = ["CartPole-v1", "Ant-v5", "dm_control/walker-run-v0", "dm_control/reacher-hard-v0",
                    "dm_control/lqr-lqr_6_2-v0", "ALE/Pong-v5", "MinAtar/Seaquest-v1"]  # fmt: skip


def test_another_process_goes_on_bit_for_bit(tmp_path):
    check_that_another_process_goes_on(tmp_path, ACROSS_PROCESSES)


@named(DM_CONTROL)
def test_no_task_changes_a_part_of_its_model_that_is_not_restored(name, options):
    original, other = make(name, seed=1), used(name, options)
    Player(original).play(15)
    restore(other, sent(capture(original)))
    models = [env.unwrapped._env.physics.model.ptr for env in (original, other)]
    fields = [field for field in dir(models[0]) if isinstance(getattr(models[0], field, None), np.ndarray)]
    assert len(fields) > 300
    assert [f for f in fields if getattr(models[0], f).tobytes() != getattr(models[1], f).tobytes()] == []


@pytest.mark.parametrize("name", ["Humanoid-v5", "Reacher-v5", "dm_control/quadruped-run-v0"])
def test_the_observation_can_be_read_again_from_the_restored_simulation(name):
    original, other = make(name), used(name, {})
    Player(original).play(8)
    restore(other, sent(capture(original)))

    def read(env: Any) -> bytes:
        inner = env.unwrapped
        if name.startswith("dm_control/"):
            parts = inner._env.task.get_observation(inner._env.physics)
            return b"".join(np.asarray(part).tobytes() for part in parts.values())
        return bytes(inner._get_obs().tobytes())

    assert read(other) == read(original)


def test_spaces_draw_what_they_would_have_drawn():
    original, other = make("Pendulum-v1", seed=1), make("Pendulum-v1", seed=2)
    original.action_space.sample()
    restore(other, sent(capture(original)))
    assert other.action_space.sample() == original.action_space.sample()


def test_the_generator_that_a_minatar_game_shares_is_shared_again():
    for seeds in ((None, 1), (1, None)):  # seeded or not, the game has one generator by two names, or two
        original, other = (make("MinAtar/Asterix-v1", seed=seed) for seed in seeds)
        restore(other, sent(capture(original)))
        games = [env.unwrapped.game for env in (original, other)]
        assert [game.random is game.env.random for game in games] == [seeds[0] is not None] * 2


def test_wrappers_of_gymnasium_come_back_with_their_state():
    def wrapped(seed: int) -> Any:
        env: Any = make("Pendulum-v1", seed=seed)
        env = gymnasium.wrappers.StickyAction(env, 0.4, (1, 3))
        env = gymnasium.wrappers.RescaleAction(env, np.float32(-0.5), np.float32(0.5))
        env = gymnasium.wrappers.DelayObservation(env, 3)
        env = gymnasium.wrappers.NormalizeObservation(env)
        env = gymnasium.wrappers.NormalizeReward(env)
        env = gymnasium.wrappers.RecordEpisodeStatistics(env)
        return gymnasium.wrappers.FrameStackObservation(env, 2)

    original, env = Player(wrapped(1)), wrapped(2)
    original.play(17)
    restore(env, sent(capture(original.env)))
    other = original.goes_on_in(env)
    assert other.play(40) == original.play(40)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["DM Control", "Atari", "MuJoCo"])
def test_every_environment_of_the_family_goes_on_bit_for_bit(family):
    wrong = []
    for name in environment_names()[family]:
        if family == "Atari" and not name.startswith("ALE/"):
            continue  # the same games
        if family == "DM Control" and ("-" not in name[:-3] or "escape" in name):
            continue  # tasks of no suite; quadruped-escape needs OpenGL for its terrain
        try:
            env = make(name)
        except (UsageError, ValueError):  # mujoco < 3 (Pusher-v4); no NOOP (ALE/Backgammon-v5)
            continue
        if "does not save all of its state" not in (why_not(env) or ""):
            try:
                check_cuts(name, {}, (3, 43), events=20)
            except AssertionError:
                wrong.append(name)
    assert wrong == []


# --- what cannot be captured -------------------------------------------------------------------------------


class WalkWithSnapshot(Walk):
    """One that can be captured."""

    def snapshot(self) -> dict[str, Any]:
        return {"place": self.place, "generator": self.np_random}

    def restore(self, state: dict[str, Any]) -> None:
        self.place, self.np_random = state["place"], state["generator"]


class Recorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper of a user's that adds the number of steps so far to the reward."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) + self.steps, *rest

    def snapshot(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class Tilted(CartPoleEnv):
    """A subclass of a known class, which could keep its state anywhere."""


class TiltedWithSnapshot(Tilted):
    """One that promises to keep it in attributes."""

    def snapshot(self) -> dict[str, Any]:
        return attributes(self)

    def restore(self, state: dict[str, Any]) -> None:
        set_attributes(self, state)


def test_an_unknown_environment_is_refused_by_its_name():
    for env in (Walk(), Recorded(Walk()), Tilted()):
        with pytest.raises(NoSnapshotError, match=r"(Walk|Tilted) cannot be captured") as error:
            capture(env)
        assert why_not(env) == str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind",
    [
        WalkWithSnapshot,
        TiltedWithSnapshot,
        lambda: Recorded(WalkWithSnapshot()),
        lambda: Recorded(make("Hopper-v5")),
    ],
    ids=["environment", "subclass", "wrapper of one's own", "wrapper of a known one"],
)
def test_an_environment_with_the_two_methods_goes_on_bit_for_bit(kind):
    original, env = Player(kind()), kind()
    Player(env, seed=5).play(4)
    original.play(20)
    assert why_not(original.env) is None
    restore(env, sent(capture(original.env)))
    other = original.goes_on_in(env)
    assert other.play(40) == original.play(40)


def test_state_that_is_no_plain_value_is_refused_with_the_attribute_that_holds_it():
    env = make("CartPole-v1")
    env.unwrapped.memory = [object()]  # type: ignore[attr-defined]  # the environment's own
    assert "CartPoleEnv cannot be captured: memory holds a builtins.object" in str(why_not(env))
    env.unwrapped.memory = np.array([None])  # type: ignore[attr-defined]  # the environment's own
    assert "memory holds an array of object" in str(why_not(env))


@pytest.mark.parametrize(
    "game",
    ["Qbert", "Tetris", "Pitfall2", "MiniatureGolf", "Amidar", "Koolaid", "TicTacToe3D", "YarsRevenge"],
)
def test_a_game_that_the_emulator_does_not_save_whole_is_refused(game):
    assert "the emulator does not save all of its state" in str(why_not(make(f"ALE/{game}-v5")))


def test_a_wrapper_around_a_function_of_the_users_is_refused():
    env = gymnasium.wrappers.TransformReward(make("CartPole-v1"), lambda reward: reward)
    assert "TransformReward cannot be captured" in str(why_not(env))


def test_an_emulator_that_repeats_actions_by_itself_is_refused():
    """Its saved state lacks the action that it would repeat."""
    make("ALE/Pong-v5")
    assert "repeat_action_probability=0.0" in str(why_not(gymnasium.make("ALE/Pong-v5")))


# --- what cannot be restored -------------------------------------------------------------------------------


def refused(env: Any, snapshot: Any) -> str:
    """The line that refuses `snapshot`, which leaves `env` as it was."""
    before = capture(env)
    with pytest.raises(UsageError, match=r"^[^\n]+$") as error:
        restore(env, snapshot)
    assert capture(env) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("taken", "restored", "says"),
    [
        (("CartPole-v1", {}), ("Acrobot-v1", {}), "CartPoleEnv, not .*AcrobotEnv"),
        (("CartPole-v1", {}), ("CartPole-v1", {"max_episode_steps": 7}), "another max_episode_steps"),
        (("Pendulum-v1", {}), ("Pendulum-v1", {"g": 3.0}), "PendulumEnv has another g"),
        (("Pendulum-v1", {}), ("Pendulum-v1", {"time_feature": True}), "TimeFeature"),
        (("FrozenLake-v1", {"map_name": None}), ("FrozenLake-v1", {"map_name": None}), "another map"),
        (("Hopper-v5", {}), ("Hopper-v4", {}), "hopper_v5.HopperEnv, not"),
        (("Ant-v5", {}), ("Ant-v5", {"ctrl_cost_weight": 3.0}), "another ctrl_cost_weight"),
        (("dm_control/swimmer-swimmer6-v0", {}), ("dm_control/swimmer-swimmer15-v0", {}), "another id"),
        (("ALE/Pong-v5", {}), ("ALE/Breakout-v5", {}), "another game, id"),
        (("MinAtar/Asterix-v1", {}), ("MinAtar/Asterix-v0", {}), "use_minimal_action_set"),
    ],
)
def test_a_snapshot_of_another_environment_or_other_options_is_refused(taken, restored, says):
    said = refused(make(restored[0], **restored[1]), sent(capture(make(taken[0], **taken[1]))))
    assert re.search(says, said)
    assert "make the environment by the same name with the same options" in said


def test_a_snapshot_of_other_library_versions_is_refused_with_what_to_install():
    env = make("HalfCheetah-v5", seed=0)
    snapshot = capture(env)
    assert set(snapshot["versions"]) == {"gymnasium", "mujoco"}
    snapshot["versions"]["mujoco"] = "2.1.0"
    assert "install mujoco==2.1.0" in refused(env, snapshot)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each number, string and empty container of a snapshot is."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    inner = [found for key, child in items for found in leaves(child, (*path, key))]
    yield from inner or [path]


DAMAGED = ["CartPole-v1", "Taxi-v4", "Reacher-v5", "dm_control/point_mass-hard-v0", "ALE/Pong-v5"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_snapshot_fits_or_is_refused_in_one_line_before_anything_changed(data):
    """Any one leaf replaced or cut: never an error of NumPy's, the emulator's or Python's."""
    env = made(data.draw(st.sampled_from(DAMAGED)))
    snapshot = sent(capture(env))
    path = data.draw(st.sampled_from(list(leaves(snapshot))))
    node = snapshot
    for key in path:
        node = node[key]
    values = [None, -1, 1e300, "x", [], {}, {"kind": "array"}, {"kind": "x"}, str(node)[:-3]]
    damaged = with_leaf(snapshot, path, data.draw(st.sampled_from(values)))
    try:
        restore(env, damaged)
    except UsageError as error:
        said = str(error)
        unchanged = sent(capture(env)) == snapshot
        assert unchanged and "\n" not in said  # noqa: PT018
    else:
        restore(env, snapshot)


_made: dict[str, Any] = {}


def made(name: str) -> Any:
    if name not in _made:
        _made[name] = make(name, seed=1)
        Player(_made[name]).play(3)
    return _made[name]


@pytest.mark.parametrize(
    ("name", "path", "value", "says"),
    [
        ("CartPole-v1", ("format",), 99, "format 99"),
        ("CartPole-v1", ("layers",), [], "not gymnasium"),
        ("CartPole-v1", ("layers", -1, "state", "state", "shape"), [2, 2], r"state is \(2, 2\) there"),
        ("CartPole-v1", ("layers", -1, "state", "state", "dtype"), "|O", "damaged"),
        ("CartPole-v1", ("layers", -1, "state", "metadata"), 1, "metadata"),
        ("CartPole-v1", ("layers", -1, "state", "action_space"), 1, "action_space is None there, and space"),
        ("Ant-v5", ("layers", -1, "state", "data", "structure"), "1", "the structure of the model is 1"),
        ("Ant-v5", ("layers", -1, "state", "data", "values", "shape"), [1, -1], "the array of its values"),
        ("ALE/Pong-v5", ("layers", -1, "state", "ale", "bytes"), "AAAA", "another checksum"),
    ],
)
def test_what_does_not_fit_is_named(name, path, value, says):
    env = make(name, seed=0)
    assert re.search(says, refused(env, with_leaf(sent(capture(env)), path, value)))


@pytest.mark.parametrize("snapshot", [None, {}, [], "x", {"format": 1}])
def test_what_is_no_snapshot_is_refused(snapshot):
    assert refused(make("CartPole-v1"), snapshot)
