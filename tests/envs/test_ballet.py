"""Ballet: its timing, its pictures, its ending, and that what the agent sees is enough to know the answer."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.envs.ballet import COLOURS, DANCES, DIRECTIONS, HOMES, SHAPES, Ballet
from streamwise.envs.ballet_vector import BalletVector
from streamwise.streams import UsageError

quick = settings(max_examples=25, deadline=None, derandomize=True)
STAY_NEAR = 0  # an action like any other, for frames where actions do not count


def towards(home: tuple[int, int]) -> int:
    """The action that leads from the middle to a dancer's home, three times over."""
    return DIRECTIONS.index((int(np.sign(home[0] - 5)), int(np.sign(home[1] - 5))))


def watch(env: Any) -> list[Any]:
    """Let the dances pass; return the observations up to the one that shows the instruction."""
    seen = [env.reset()[0]]
    while not seen[-1]["instruction"]:
        observation, reward, terminated, truncated, _ = env.step(STAY_NEAR)
        assert (reward, terminated, truncated) == (0.0, False, False)
        seen.append(observation)
    return seen


def play(env: Any, choose: Any) -> tuple[float, int]:
    """Watch, then go to the home that `choose(observations, info)` names; return reward and frames."""
    seen = watch(env)
    action, over = towards(choose(seen, env._info(False))), False
    while not over:
        _, reward, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return reward, info["frame"]


def oracle(_: Any, info: dict[str, Any]) -> tuple[int, int]:
    return info["dancers"][info["target"]][0]


def occupied(image: Any) -> set[tuple[int, int]]:
    """The cells where somebody dances, in what the agent sees from the middle."""
    if image.ndim == 3:
        lit = image.reshape(11, 9, 11, 9, -1).max(axis=(1, 3, 4)) > 0
        lit[[0, -1]] = lit[:, [0, -1]] = lit[5, 5] = False
        return set(zip(*map(np.ndarray.tolist, np.nonzero(lit)), strict=True))
    return set(zip(*map(np.ndarray.tolist, np.nonzero(image >= 3)), strict=True))


def replay(seen: list[Any], _: Any) -> tuple[int, int]:
    """Find the dancer who danced what the instruction says, from observations alone."""
    wanted = [int(digit) for digit in list(DANCES.values())[int(seen[-1]["instruction"]) - 1]]
    cells = [occupied(observation["image"]) for observation in seen]
    found = []
    for home in HOMES:
        near = {(home[0] + i, home[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
        path = [next(iter(cell & near), None) for cell in cells]
        path = [home, *path]  # before the first frame everybody was at home
        moves = [
            DIRECTIONS.index((b[0] - a[0], b[1] - a[1])) for a, b in pairwise(path) if a and b and a != b
        ]
        if moves == wanted:
            found.append(home)
    assert len(found) == 1
    return found[0]


# --- the checks of the published environment ---------------------------------------------------------------


def test_with_one_dancer_the_instruction_says_watch_for_thirty_steps_and_then_names_the_dance():
    env = Ballet(dancers=1, delay=16)
    first, info = env.reset(seed=3)
    shown = [first["instruction"]] + [env.step(STAY_NEAR)[0]["instruction"] for _ in range(31)]
    assert [int(number) for number in shown[:31]] == [0] * 31
    assert list(DANCES)[int(shown[31]) - 1] == info["dancers"][0][1]


def test_the_first_episode_of_seed_zero_is_that_of_the_published_code():
    env = Ballet(dancers=1, delay=16)
    _, info = env.reset(seed=0)
    assert info["dancers"] == (((2, 8), "up_and_down", "orange", "plus"),)
    for _ in range(30):
        env.step(STAY_NEAR)
    ends = [env.step(1) for _ in range(4)]
    assert [(reward, terminated) for _, reward, terminated, *_ in ends] == [(0.0, False)] * 3 + [(1.0, True)]
    assert ends[-1][4]["frame"] == 34
    assert ends[-1][4]["correct"] is True
    centre = ends[-1][0]["image"][45:54, 45:54]
    expected = SHAPES["plus"][..., None] * np.float32(COLOURS["orange"]) / np.float32(255)
    np.testing.assert_array_equal(centre, expected)


@pytest.mark.parametrize(
    ("delay", "dancers", "choice_frame", "limit"),
    [
        (16, 2, 62, 320),
        (16, 4, 124, 320),
        (16, 8, 248, 320),
        (48, 2, 126, 1024),
        (48, 4, 252, 1024),
        (48, 8, 504, 1024),
        (2, 2, 34, 64 + 34),
        (2, 8, 136, 64 + 136),
        (300, 8, 2520, 64 + 2520),
    ],
)
def test_the_choice_comes_when_it_is_said_to_and_the_oracle_ends_three_steps_later(
    delay, dancers, choice_frame, limit
):
    env = Ballet(dancers=dancers, delay=delay, obs="grid")
    assert env.reset(seed=delay)[1]["choice_frame"] == choice_frame
    assert env.step_limit == limit
    assert play(env, oracle) == (1.0, choice_frame + 3)


def test_every_dance_returns_to_where_it_began_and_stays_within_one_cell_of_it():
    assert len(set(DANCES.values())) == 13
    for moves in DANCES.values():
        path = np.cumsum([DIRECTIONS[int(digit)] for digit in moves], axis=0)
        assert len(path) == 16
        assert path[-1].tolist() == [0, 0]
        assert np.abs(path).max() == 1


def test_the_first_picture_has_a_grey_wall_around_it_and_a_white_agent_in_the_middle():
    env = Ballet(dancers=8)
    image = env.reset(seed=1)[0]["image"]
    assert image.shape == (99, 99, 3)
    assert image.dtype == np.float32
    for wall in (image[:9], image[-9:], image[:, :9], image[:, -9:]):
        assert set(wall.ravel().tolist()) == {float(np.float32(40) / np.float32(255))}
    assert set(image[45:54, 45:54].ravel().tolist()) == {1.0}


@pytest.mark.parametrize(("dancers", "delay"), [(1, 16), (8, 2)])
def test_an_episode_is_cut_at_the_limit_and_not_one_step_later(dancers, delay):
    env = Ballet(dancers=dancers, delay=delay, obs="grid")
    env.reset(seed=0)
    flags = []
    while not flags or not any(flags[-1]):
        # North and south in turns: from the middle, that touches no one.
        _, reward, *ends, _ = env.step(4 * (len(flags) % 2))
        flags.append(ends)
        assert reward == 0.0
    assert len(flags) == env.step_limit
    assert flags[-1] == [False, True]


@given(seed=st.integers(0, 2**31), direction=st.integers(0, 7), stride=st.integers(1, 3))
@settings(max_examples=50)
def test_a_stride_is_that_many_steps_in_one_frame(seed, direction, stride):
    """Until a dancer is touched; the wall, four cells from the middle, stops it as well."""
    walker, strider = (Ballet(dancers=8, delay=1, obs="cells", stride=each) for each in (1, stride))
    for env in (walker, strider):
        _, info = env.reset(seed=seed)
        for _ in range(info["choice_frame"]):
            env.step(direction)
    for _ in range(3):
        for _ in range(stride):
            expected = walker.step(direction)
            if expected[2]:
                break
        seen = strider.step(direction)
        np.testing.assert_array_equal(seen[0]["cells"], expected[0]["cells"])
        assert (seen[1], seen[2], seen[4]["correct"]) == (expected[1], expected[2], expected[4]["correct"])
        if seen[2]:
            break
    assert seen[2]  # with eight dancers there is one in every direction


@pytest.mark.parametrize(
    "options",
    [
        {"obs": "grid"},
        {"obs": "cells"},
        {"obs": "moves"},
        {"obs": "pixels", "grey": True},
        {"obs": "grid", "stride": 2},
    ],
)
def test_many_at_once_are_as_each_alone(options):
    """Observations, rewards, endings and new episodes, by two ways to compute them."""
    alone = [Ballet(dancers=3, delay=2, **options) for _ in range(4)]
    together = BalletVector(4, dancers=3, delay=2, **options)
    seen, _ = together.reset(seed=5)
    expected = [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)]
    generator, over, endings = np.random.default_rng(1), [False] * 4, 0
    for _ in range(260):
        for i in range(4):
            assert together.single_observation_space.contains({key: seen[key][i] for key in seen})
            for key in seen:
                np.testing.assert_array_equal(seen[key][i], expected[i][key])
        actions = generator.integers(8, size=4)
        seen, rewards, terminated, truncated, info = together.step(actions)
        for i, env in enumerate(alone):
            if over[i]:
                expected[i], single = env.reset()
                ends: Any = (0.0, False, False)
            else:
                expected[i], *ends, single = env.step(int(actions[i]))
            assert [rewards[i], terminated[i], truncated[i]] == list(ends)
            assert (info["frame"][i], info["target"][i], info["correct"][i]) == (
                single["frame"],
                single["target"],
                single["correct"],
            )
            over[i] = any(ends[1:])
            endings += over[i]
    assert endings > 8


def test_the_same_seed_is_the_same_episode_and_another_is_another():
    env = Ballet(dancers=8)
    first, again, other = (env.reset(seed=seed)[1]["dancers"] for seed in (4, 4, 5))
    assert first == again != other


# --- the rules, frame by frame -----------------------------------------------------------------------------


def rules_by_the_clock(dancers: int, delay: int, table: Any, target: int, actions: Any) -> Any:
    """Yield agent, dancers, dance asked for, reward and end of each frame, from counters and a queue."""
    homes = [home for home, *_ in table]
    cells, moves_left = list(homes), [[] for _ in homes]
    agent, phase, counter, queue = (5, 5), "dance", 1, deque(range(dancers))
    for action in (None, *actions):
        if phase == "choice":
            down, right = DIRECTIONS[action]
            moved = (agent[0] + down, agent[1] + right)
            agent = moved if {*moved} <= {*range(1, 10)} else agent
        elif counter > 0:
            counter -= 1
            if counter == 0 and queue:
                starts = queue.popleft()
                moves_left[starts] = [int(digit) for digit in DANCES[table[starts][1]]]
            elif counter == 0:
                phase = "choice"
        reward, over = 0.0, False
        for i in range(dancers):
            if moves_left[i]:
                down, right = DIRECTIONS[moves_left[i].pop(0)]
                cells[i] = (cells[i][0] + down, cells[i][1] + right)
                counter = counter if moves_left[i] else delay
            elif cells[i] == agent:
                reward, over = float(i == target), True
        yield agent, list(cells), table[target][1] if phase == "choice" else None, reward, over
        if over:
            return


def seen_from(agent: tuple[int, int], cells: list[tuple[int, int]]) -> Any:
    """What an agent in a cell sees of a board with dancers in cells."""
    codes = {(row, column): 0 for row in range(1, 10) for column in range(1, 10)}
    codes |= {agent: 2} | {cell: 3 + i for i, cell in enumerate(cells)}
    window = [[(agent[0] + i, agent[1] + j) for j in range(-5, 6)] for i in range(-5, 6)]
    return [[codes.get(cell, int({*cell} <= {*range(11)})) for cell in row] for row in window]


@quick
@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_every_frame_is_what_the_rules_say(dancers, delay, seed):
    env = Ballet(dancers=dancers, delay=delay, obs="grid")
    observation, info = env.reset(seed=seed)
    generator = np.random.default_rng(seed)
    actions = generator.integers(8, size=info["choice_frame"] + 40)
    expected = rules_by_the_clock(dancers, delay, info["dancers"], info["target"], actions)
    reward, over = 0.0, False
    for frame, (agent, cells, name, wanted_reward, wanted_over) in enumerate(expected):
        if frame:
            observation, reward, over, _, info = env.step(actions[frame - 1])
        np.testing.assert_array_equal(observation["image"], seen_from(agent, cells))
        shown = int(observation["instruction"])
        assert (list(DANCES)[shown - 1] if shown else None) == name
        assert (reward, over) == (wanted_reward, wanted_over)
        assert env.observation_space.contains(observation)


def test_the_view_scrolls_and_a_step_into_the_wall_does_nothing():
    env = Ballet(dancers=1, delay=1, obs="grid")
    _, info = env.reset(seed=0)
    home = info["dancers"][0][0]
    corner = (1, 1) if home != (2, 2) else (9, 9)
    for _ in range(info["choice_frame"] + 6):
        observation, *_ = env.step(towards(corner))
    np.testing.assert_array_equal(observation["image"], seen_from(corner, [home]))


# --- pictures ----------------------------------------------------------------------------------------------


def test_cells_are_where_the_grid_has_the_dancers():
    grids, cells = (Ballet(dancers=4, delay=2, obs=obs) for obs in ("grid", "cells"))
    generator, over = np.random.default_rng(2), True
    for step in range(400):
        if over:
            (grid, _), (seen, _) = (env.reset(seed=step) for env in (grids, cells))
            over = False
        else:
            action = generator.integers(8)
            (grid, *_), (seen, _, *ends, _) = (env.step(action) for env in (grids, cells))
            over = any(ends)
        assert seen["instruction"] == grid["instruction"]
        for i, (row, column) in enumerate(seen["cells"].tolist()):
            if max(abs(row - 8), abs(column - 8)) <= 5:  # not farther than the grid shows
                assert grid["image"][row - 8 + 5, column - 8 + 5] == 3 + i


def test_moves_lead_the_dancers_from_home_to_where_the_cells_have_them():
    cells, moves = (Ballet(dancers=4, delay=2, obs=obs) for obs in ("cells", "moves"))
    (seen, info), (named, _) = (env.reset(seed=7) for env in (cells, moves))
    homes = [home for home, *_ in info["dancers"]]
    where, danced = {home: np.array(home) for home in homes}, 0
    for frame in range(info["choice_frame"] + 1):  # the agent stands in the middle all the while
        assert moves.observation_space.contains(named)
        assert bool(named["dancer"]) == bool(named["move"])
        if named["dancer"]:
            danced += 1
            where[HOMES[named["dancer"] - 1]] += DIRECTIONS[named["move"] - 1]
        expected = np.array([where[home] for home in homes]) - 5 + 8
        np.testing.assert_array_equal(seen["cells"], expected)
        assert seen["instruction"] == named["instruction"]
        (seen, *_), (named, *_) = (env.step(frame % 8) for env in (cells, moves))
    assert danced == 4 * 16


def test_a_picture_shows_each_dancer_in_its_colour_and_shape_where_the_grid_has_it():
    seen, grids = (Ballet(dancers=8, delay=2, obs=obs) for obs in ("pixels", "grid"))
    _, info = seen.reset(seed=9)
    grids.reset(seed=9)
    for _ in range(20):
        image, grid = (env.step(STAY_NEAR)[0]["image"] for env in (seen, grids))
        for i, (_, _, colour, shape) in enumerate(info["dancers"]):
            ((row, column),) = np.argwhere(grid == 3 + i)
            cell = image[9 * row : 9 * row + 9, 9 * column : 9 * column + 9] * 255
            np.testing.assert_allclose(cell, SHAPES[shape][..., None] * np.array(COLOURS[colour]), atol=1e-4)
        assert not image[np.kron(grid == 0, np.ones((9, 9))).astype(bool)].any()


def test_shapes_differ_and_have_the_symmetry_of_their_names():
    drawn = list(SHAPES.values())
    assert len({shape.tobytes() for shape in drawn}) == len(drawn) == 15
    assert all(0 < shape.sum() < 81 for shape in drawn)
    for name in ("plus", "ex", "circle", "empty_circle", "empty_square", "inverse_plus", "inverse_ex"):
        np.testing.assert_array_equal(SHAPES[name], np.rot90(SHAPES[name]))
    np.testing.assert_array_equal(SHAPES["tee"], SHAPES["upside_down_tee"][::-1])
    np.testing.assert_array_equal(SHAPES["u"], SHAPES["upside_down_u"][::-1])
    np.testing.assert_array_equal(SHAPES["vertical_stripes"], SHAPES["horizontal_stripes"].T)
    assert SHAPES["triangle"].sum(axis=1).tolist() == [1, 1, 3, 3, 5, 5, 7, 7, 9]
    assert len(COLOURS) == 19


def test_grey_has_one_channel_and_single_shape_one_shape_and_neither_changes_the_episode():
    plain, grey, single = (
        Ballet(dancers=8),
        Ballet(dancers=8, grey=True),
        Ballet(dancers=8, single_shape=True),
    )
    infos = [env.reset(seed=2)[1]["dancers"] for env in (plain, grey, single)]
    assert infos[0] == infos[1]
    assert [traits[:3] for traits in infos[2]] == [traits[:3] for traits in infos[0]]
    assert {traits[3] for traits in infos[2]} == {"triangle"}
    image = grey.step(0)[0]["image"]
    assert image.shape == (99, 99, 1)
    luminance = plain.step(0)[0]["image"] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(image[..., 0], luminance, atol=1e-6)


def test_what_is_rendered_is_what_is_seen():
    env = Ballet(dancers=2, delay=2, obs="pixels")
    image = env.reset(seed=0)[0]["image"]
    np.testing.assert_array_equal(env.render(), np.rint(image * 255))


# --- players -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("obs", "episodes"), [("grid", 25), ("pixels", 4)])
def test_whoever_remembers_all_observations_is_always_right(obs, episodes):
    env = Ballet(dancers=8, delay=2, obs=obs)
    env.reset(seed=11)
    assert [play(env, replay)[0] for _ in range(episodes)] == [1.0] * episodes


def test_whoever_always_goes_to_the_same_dancer_is_right_in_one_of_n_episodes():
    env, episodes = Ballet(dancers=4, delay=1, obs="grid"), 300
    env.reset(seed=12)
    right = sum(play(env, lambda _, info: info["dancers"][1][0])[0] for _ in range(episodes))
    assert abs(right / episodes - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / episodes)


def test_who_walks_at_random_is_right_no_more_often_than_by_chance():
    env, generator, episodes, rewards = (
        Ballet(dancers=4, delay=1, obs="grid"),
        np.random.default_rng(0),
        200,
        0.0,
    )
    env.reset(seed=14)
    ends = set()
    for _ in range(episodes):
        watch(env)
        over = False
        while not over:
            _, reward, *flags, _ = env.step(generator.integers(8))
            over, rewards = any(flags), rewards + reward
        ends.add(tuple(flags))
    assert ends == {(True, False), (False, True)}  # found somebody; ran out of time
    assert rewards / episodes < 1 / 4 + 4 * np.sqrt(1 / 4 * 3 / 4 / episodes)


def test_targets_and_places_are_drawn_evenly():
    env = Ballet(dancers=2, delay=1, obs="grid")
    infos = [env.reset(seed=13 if i == 0 else None)[1] for i in range(2000)]
    first = np.bincount([HOMES.index(info["dancers"][0][0]) for info in infos], minlength=8)
    assert np.abs(first / 2000 - 1 / 8).max() < 4 * np.sqrt(1 / 8 * 7 / 8 / 2000)
    assert abs(np.mean([info["target"] for info in infos]) - 0.5) < 4 * 0.5 / np.sqrt(2000)


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dancers": 0}, "dancers is 0; give a whole number, 1 to 8"),
        ({"dancers": 9}, "dancers is 9"),
        ({"dancers": 2.0}, "dancers is 2.0"),
        ({"dancers": True}, "dancers is True"),
        ({"delay": 0}, "delay is 0; give a whole number, 1 or more"),
        ({"obs": "text"}, "obs is 'text'"),
        ({"stride": 4}, "stride is 4; give a whole number, 1 to 3"),
        ({"stride": [1]}, "stride is"),
        ({"grey": 1}, "grey is 1; give true or false"),
        ({"obs": "grid", "single_shape": True}, "single_shape"),
        ({"obs": "cells", "grey": True}, "single_shape"),
        ({"obs": "moves", "single_shape": True}, "single_shape"),
    ],
)
def test_an_option_out_of_its_range_is_refused_in_one_line(options, says):
    for make in (Ballet, lambda **o: BalletVector(2, **o)):
        with pytest.raises(UsageError, match=rf"^[^\n]*{says}[^\n]*$"):
            make(**options)


@pytest.mark.parametrize("action", [-1, 8, 1.0, None, "north"])
def test_what_is_no_action_is_refused(action):
    env = Ballet(obs="grid")
    env.reset(seed=0)
    with pytest.raises(UsageError, match="give a whole number, 0 to 7"):
        env.step(action)
    many = BalletVector(2, obs="grid")
    many.reset(seed=0)
    with pytest.raises(UsageError, match="give 2 whole numbers, 0 to 7"):
        many.step([action, 0])
    with pytest.raises(UsageError, match="3 seeds are given for 2 ballets"):
        many.reset(seed=[1, 2, 3])


def test_there_is_no_step_before_a_reset_nor_after_the_end():
    env = Ballet(dancers=1, delay=1, obs="grid")
    with pytest.raises(UsageError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    play(env, oracle)
    with pytest.raises(UsageError, match="call reset"):
        env.step(0)
