"""Three rooms: the oracle is paid in the last one, what is seen suffices, and apples come back in time."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from streamwise.envs.rooms import MOVES, VIEW_CODES, KeyDoor, VisualMatch
from streamwise.streams import UsageError

FLOOR, WALL, APPLE, KEY, DOOR, RED, GREEN, BLUE = range(8)


def way(board: Any, start: Any, goals: Any, *, through: Any) -> list[int]:
    """The shortest list of actions from a cell to one of the goals, over cells of the codes `through`."""
    came, queue = {start: []}, deque([start])
    while queue:
        cell = queue.popleft()
        if cell in goals:
            return came[cell]
        for action, (down, right) in enumerate(MOVES):
            ahead = (cell[0] + down, cell[1] + right)
            if ahead not in came and (ahead in goals or board[ahead] in through):
                came[ahead] = [*came[cell], action]
                queue.append(ahead)
    raise AssertionError("no way")


def where(board: Any, *codes: int) -> list[tuple[int, int]]:
    return [tuple(cell) for cell in np.argwhere(np.isin(board, codes)).tolist()]


def skip_to(env: Any, phase: str) -> tuple[Any, dict[str, Any]]:
    """Step north until the phase begins."""
    while True:
        observation, _, terminated, _, info = env.step(0)
        assert not terminated
        if info["phase"] == phase:
            return observation, info


def follow(env: Any, actions: list[int]) -> tuple[float, dict[str, Any]]:
    assert actions
    total = 0.0
    for action in actions:
        _, reward, _, _, info = env.step(action)
        total += reward
    return total, info


def end(env: Any) -> dict[str, Any]:
    """Step south until the end; return the last info."""
    terminated = False
    while not terminated:
        *_, terminated, truncated, info = env.step(1)
        assert not truncated
    return info


KINDS = [(KeyDoor, {}), (VisualMatch, {}), (VisualMatch, {"passive": True})]
each_kind = pytest.mark.parametrize(("kind", "options"), KINDS, ids=["key-door", "match", "passive match"])


# --- the clock ---------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("apple_frames", [0, 1, 90])
def test_every_room_lasts_as_long_as_it_is_said_to_and_the_last_one_terminates(kind, options, apple_frames):
    env = kind(apple_frames=apple_frames, **options)
    _, info = env.reset(seed=0)
    phases, terminated = [info["phase"]], False
    while not terminated:
        observation, _, terminated, truncated, info = env.step(2)
        assert env.observation_space.contains(observation)
        assert not truncated
        phases.append(info["phase"])
    assert phases == ["first"] * 15 + ["apples"] * apple_frames + ["last"] * (15 + 1)
    assert len(phases) - 1 == env.step_limit == 30 + apple_frames
    with pytest.raises(UsageError, match="call reset"):
        env.step(0)


# --- key and door ------------------------------------------------------------------------------------------


def test_from_every_start_to_every_key_there_is_time_and_the_key_opens_the_door_once():
    """Exhaustive: episodes are drawn until each of the 10 x 10 has come."""
    env, seen = KeyDoor(apple_frames=1), set()
    env.reset(seed=0)
    while len(seen) < 100:
        _, info = env.reset()
        (key,) = where(info["board"], KEY)
        seen.add((info["position"], key))
        total, after = follow(env, way(info["board"], info["position"], [key], through=[FLOOR]))
        assert (total, after["has_key"], where(after["board"], KEY)) == (0.0, True, [])
        assert after["frame"] <= 15 - 5
        _, info = skip_to(env, "last")
        total, after = follow(
            env, way(info["board"], info["position"], where(info["board"], DOOR), through=[FLOOR])
        )
        assert (total, after["has_key"]) == (10.0, False)
        assert where(after["board"], DOOR) == [after["position"]]
        assert [env.step(action)[1] for action in (2, 0, 1, 0)] == [0.0] * 4  # it is used up
        assert env._info()["position"] == (2, 5)
        assert end(env)["final_return"] == 10.0
    assert {start[0] for start, _ in seen} == {4, 5}
    assert {key[0] for _, key in seen} == {1, 2}


def test_without_the_key_the_door_is_a_wall():
    env = KeyDoor(apple_frames=0)
    env.reset(seed=1)
    while True:  # to and fro in the lower half
        *_, info = env.step(1)
        if info["phase"] == "last":
            break
    rewards = [env.step(0)[1] for _ in range(14)]
    assert (env._info()["position"], rewards) == ((2, 5), [0.0] * 14)


def test_nothing_shows_whether_the_key_was_taken():
    with_key, without = KeyDoor(), KeyDoor()
    for env in (with_key, without):
        env.reset(seed=2)
    info = with_key._info()
    follow(with_key, way(info["board"], info["position"], where(info["board"], KEY), through=[FLOOR]))
    views = [
        [skip_to(env, phase)[0].tobytes() for phase in ("apples", "last")] for env in (with_key, without)
    ]
    assert views[0] == views[1]


# --- visual match ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passive", [False, True])
def test_the_right_colour_pays_ten_the_others_nothing_and_one_choice_is_all(passive):
    env, seen = VisualMatch(passive=passive, apple_frames=1), set()
    env.reset(seed=3)
    for episode in range(90):
        _, info = env.reset()
        target = info["target"]
        assert where(info["board"], RED, GREEN, BLUE) == where(info["board"], target)
        _, info = skip_to(env, "last")
        niches = {int(info["board"][cell]): cell for cell in where(info["board"], RED, GREEN, BLUE)}
        chosen = (RED, GREEN, BLUE)[episode % 3]
        seen.add((target, tuple(niches[code] for code in (RED, GREEN, BLUE)), chosen))
        actions = way(info["board"], info["position"], [niches[chosen]], through=[FLOOR])
        assert len(actions) <= 15 - 5
        total, after = follow(env, actions)
        assert (total, after["correct"], after["choice"]) == (
            10.0 if chosen == target else 0.0,
            chosen == target,
            chosen,
        )
        assert where(after["board"], RED, GREEN, BLUE) == [niches[chosen]]
        assert [env.step(0)[1] for _ in range(2)] == [0.0, 0.0]
        assert end(env)["final_return"] == total
    assert len({target for target, *_ in seen}) == 3
    assert len({places for _, places, _ in seen}) == 6


def test_the_active_colour_cannot_be_seen_from_the_start_and_the_passive_one_can():
    for passive in (False, True):
        env = VisualMatch(passive=passive)
        views = [env.reset(seed=seed) for seed in range(60)]
        assert {bool((view >= RED).any()) for view, _ in views} == {passive}
        places = {cell for _, info in views for cell in where(info["board"], RED, GREEN, BLUE)}
        assert len(places) == (5 if passive else 7)


def test_the_coloured_wall_cannot_be_walked_onto():
    env = VisualMatch(passive=True)
    env.reset(seed=0)
    (cell,) = where(env._info()["board"], RED, GREEN, BLUE)
    follow(env, way(env._info()["board"], (2, 5), [(1, cell[1])], through=[FLOOR]))
    follow(env, [0, 0])
    assert env._info()["position"] == (1, cell[1])


# --- players who see only what is shown --------------------------------------------------------------------


def view_of(board: Any, cell: tuple[int, int]) -> Any:
    return np.pad(board, 2, constant_values=WALL)[cell[0] : cell[0] + 5, cell[1] : cell[1] + 5]


def located(view: Any, board: Any) -> tuple[int, int]:
    """The one cell of a known map from which walls look like this, whatever else is there."""
    cells = [
        cell
        for cell in where(board, FLOOR)
        if ((view_of(board, cell) == WALL) == ((view == WALL) | (view >= RED))).all()
    ]
    assert len(cells) == 1
    return cells[0]


def explore(env: Any, view: Any, board: Any, wanted: tuple[int, ...]) -> Any:
    """Walk below the top wall until something wanted is in view; return view, and where one stands."""
    here = located(view, board)
    for stop in ((2, 5), (2, 4), (2, 6)):
        for action in way(board, here, [stop], through=[FLOOR]):
            if np.isin(view, wanted).any():
                return view, here
            view, *_ = env.step(action)
            here = (here[0] + MOVES[action][0], here[1] + MOVES[action][1])
    assert np.isin(view, wanted).any()
    return view, here


def first_map() -> Any:
    """The first room without its key: what somebody knows who has played before."""
    _, info = KeyDoor().reset(seed=0)
    return np.where(info["board"] == KEY, FLOOR, info["board"])


@pytest.mark.parametrize("passive", [False, True])
def test_what_is_seen_suffices_to_match_the_colour(passive):
    env, board = VisualMatch(passive=passive), first_map()
    env.reset(seed=4)
    for _ in range(25):
        view, _ = env.reset()
        view, _ = explore(env, view, board, (RED, GREEN, BLUE))
        target = int(view.max())
        view, _ = skip_to(env, "last")
        ((row, column),) = np.argwhere(view == target).tolist()
        across = [2 if column < 2 else 3] * abs(column - 2)
        follow(env, [*across, *[0] * (2 - row)])
        assert end(env)["final_return"] == 10.0


def test_what_is_seen_suffices_to_fetch_the_key():
    env, board = KeyDoor(), first_map()
    env.reset(seed=5)
    for _ in range(25):
        view, _ = env.reset()
        view, here = explore(env, view, board, (KEY,))
        ((row, column),) = np.argwhere(view == KEY).tolist()
        follow(env, way(board, here, [(here[0] + row - 2, here[1] + column - 2)], through=[FLOOR]))
        skip_to(env, "last")
        follow(env, [0] * 4)
        assert end(env)["final_return"] == 10.0


def test_who_takes_the_same_niche_every_time_is_at_chance():
    env, episodes = VisualMatch(passive=True, apple_frames=0), 300
    env.reset(seed=6)
    paid = 0.0
    for _ in range(episodes):
        env.reset()
        skip_to(env, "last")
        paid += follow(env, [0, 0])[0] / 10
    assert abs(paid / episodes - 1 / 3) < 4 * np.sqrt(1 / 3 * 2 / 3 / episodes)


# --- apples ------------------------------------------------------------------------------------------------


def test_ten_apples_lie_on_a_checkerboard_and_one_that_was_taken_returns_after_more_than_twenty_frames():
    env = KeyDoor()
    env.reset(seed=7)
    _, info = skip_to(env, "apples")
    trees = where(info["board"], APPLE)
    assert len(trees) == 10
    assert {(row + column) % 2 for row, column in trees} == {1}
    total, info = follow(env, way(info["board"], info["position"], trees, through=[FLOOR]))
    assert (total, info["apple_return"], len(where(info["board"], APPLE))) == (1.0, 1.0, 9)


def test_an_apple_that_was_taken_is_back_when_more_than_twenty_frames_have_passed():
    env = KeyDoor()
    env.reset(seed=7)
    _, info = skip_to(env, "apples")
    board = info["board"]
    by_a_wall = [
        (tree, action)
        for tree in where(board, APPLE)
        for action, (down, right) in enumerate(MOVES)
        if board[tree[0] + down, tree[1] + right] == WALL
    ]
    tree, into_the_wall = by_a_wall[0]
    follow(env, way(board, info["position"], [tree], through=[FLOOR, APPLE]))
    rewards = [env.step(into_the_wall)[1] for _ in range(45)]
    assert [passed for passed, reward in enumerate(rewards, start=1) if reward] == [21, 42]


def test_an_apple_pays_what_was_drawn_for_the_episode_and_is_told_apart_from_the_last_room():
    env, values = VisualMatch(apple_reward=[1.0, 10.0]), set()
    env.reset(seed=8)
    for _ in range(12):
        env.reset()
        _, info = skip_to(env, "apples")
        apples = where(info["board"], APPLE)
        reward, info = follow(env, way(info["board"], info["position"], apples, through=[FLOOR]))
        assert (info["apple_return"], info["final_return"]) == (reward, 0.0)
        values.add(reward)
    assert values == {1.0, 10.0}


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (KeyDoor, {"apple_frames": -1}, "apple_frames is -1"),
        (KeyDoor, {"apple_reward": "much"}, "apple_reward is 'much'; give a number, or a list of numbers"),
        (KeyDoor, {"apple_reward": []}, "apple_reward is \\[\\]"),
        (KeyDoor, {"apple_reward": float("nan")}, "apple_reward is nan"),
        (VisualMatch, {"passive": "yes"}, "passive is 'yes'; give true or false"),
    ],
)
def test_an_option_out_of_its_range_is_refused_in_one_line(kind, options, says):
    with pytest.raises(UsageError, match=rf"^[^\n]*{says}[^\n]*$"):
        kind(**options)


def test_the_codes_are_those_that_are_named():
    assert VIEW_CODES == ("floor", "wall", "apple", "key", "door", "red", "green", "blue")
