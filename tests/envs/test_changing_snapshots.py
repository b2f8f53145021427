"""Snapshots of worlds that change: they go on with the world and the count, or are refused."""

from __future__ import annotations

import gymnasium
import pytest
from envs_support import Player, sent

from streamwise.envs import EnvironmentStream, capture, make, restore
from streamwise.streams import UsageError

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
