"""Probes of memory: who remembers is always right, who does not is at chance, scripts are as written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.envs.ballet import DANCES
from streamwise.envs.probes import (
    DelayedRecall,
    EventRecall,
    Naming,
    OrderRecall,
    PairRecall,
    ShellGame,
    TMaze,
    Told,
)
from streamwise.envs.routes import GraphRoutes, distances_to, draw_graph
from streamwise.streams import UsageError

quick = settings(max_examples=40, deadline=None, derandomize=True)

small = st.integers(0, 6)
PROBES: dict[type, Any] = {  # options of each that make a short episode
    DelayedRecall: st.fixed_dictionaries({"symbols": st.integers(2, 6), "delay": small}),
    PairRecall: st.fixed_dictionaries(
        {"pairs": st.integers(1, 6), "symbols": st.integers(2, 6), "delay": small}
    ),
    OrderRecall: st.fixed_dictionaries(
        {"length": st.integers(1, 6), "symbols": st.integers(2, 6), "delay": small}
    ),
    EventRecall: st.fixed_dictionaries(
        {
            "actors": st.integers(3, 13),
            "delay": st.integers(1, 5),
            "turns": st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=1, max_size=3),
        }
    ),
    TMaze: st.fixed_dictionaries({"corridor": small}),
    ShellGame: st.fixed_dictionaries({"boxes": st.integers(2, 6), "delay": small}),
    Naming: st.fixed_dictionaries(
        {"objects": st.integers(2, 4), "distractors": st.lists(st.integers(0, 3), min_size=1, max_size=3)}
    ),
    Told: st.fixed_dictionaries({"facts": st.integers(1, 5), "role": st.just("tell")}),
}
each_probe = pytest.mark.parametrize("kind", PROBES, ids=lambda kind: kind.__name__)


def frames_of(env: Any, seed: int | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Go up to the question with a useless action; return all observations, and info."""
    observation, info = env.reset(seed=seed)
    seen = [observation]
    for _ in range(info["question_frame"]):
        observation, reward, terminated, truncated, _ = env.step(0)
        assert (reward, terminated, truncated) == (0.0, False, False)
        seen.append(observation)
    return seen, info


def hot(row: Any) -> int:
    """The index of the one that is on."""
    (index,) = np.flatnonzero(row)
    return int(index)


def remembered(env: Any, seen: list[Any]) -> int:
    """The answer to the question, from all that was seen."""
    *before, question = seen
    actions = int(env.action_space.n)
    match env:
        case DelayedRecall():
            return hot(before[0][:-2])
        case ShellGame():
            return hot(before[0][:-2])
        case TMaze():
            return hot(before[0][:2])
        case Told():
            return hot(question[-2 - actions : -2])
        case PairRecall():
            keys = len(question) - actions - 2
            shown = {hot(row[:keys]): hot(row[keys:-2]) for row in before if row[-2]}
            return shown[hot(question[:keys])]
        case OrderRecall():
            shown_in_order = [hot(row[:actions]) for row in before if row[-2]]
            return shown_in_order[hot(question[actions:-2])]
        case EventRecall():
            moves: dict[int, str] = {}
            for row in before:
                if row.any():
                    actor = hot(row[8 : 8 + actions])
                    moves[actor] = moves.get(actor, "") + str(hot(row[:8]))
            wanted = list(DANCES.values())[hot(question[8 + actions :])]
            return next(actor for actor, made in moves.items() if made == wanted)
        case Naming():
            size = (len(question) - 1) // (1 + actions)
            things = {hot(row[:size]): hot(row[size:-1]) % size for row in before}
            places = question[size:-1].reshape(actions, size)
            return hot(places[:, things[hot(question[:size])]])
    raise AssertionError(env)


@each_probe
def test_who_remembers_what_was_shown_is_always_right_and_the_episode_ends_there(kind):
    @quick
    @given(PROBES[kind], st.integers(0, 2**32 - 1))
    def check(options, seed):
        env = kind(**options)
        seen, info = frames_of(env, seed)
        assert all(env.observation_space.contains(row) for row in seen)
        answer = remembered(env, seen)
        assert answer == info["answer"]
        observation, reward, terminated, truncated, info = env.step(answer)
        assert (reward, terminated, truncated, info["correct"]) == (1.0, True, False, True)
        assert info["frame"] == len(seen) <= env.step_limit
        assert not observation.any()
        with pytest.raises(UsageError, match="call reset"):
            env.step(answer)

    check()


@each_probe
def test_every_other_answer_is_wrong_and_pays_what_it_is_said_to(kind):
    env = kind()
    actions = int(env.action_space.n)
    for guess in range(actions):
        _, info = frames_of(env, seed=guess)
        wrong = (info["answer"] + 1 + guess % (actions - 1)) % actions
        _, reward, terminated, _, info = env.step(wrong)
        assert (reward, terminated, info["correct"]) == (-1.0 if kind is TMaze else 0.0, True, False)


@pytest.mark.parametrize(
    ("env", "chance", "spread"),
    [
        (DelayedRecall(symbols=4, delay=0), 1 / 4, None),
        (PairRecall(pairs=2, symbols=4, delay=0), 1 / 4, None),
        (OrderRecall(length=2, symbols=4, delay=0), 1 / 4, None),
        (EventRecall(actors=2, delay=1), 1 / 2, None),
        (TMaze(corridor=0), 0.0, 1.0),
        (ShellGame(boxes=3, delay=0), 1 / 3, None),
        (Naming(objects=3), 1 / 3, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_who_always_gives_the_same_answer_is_at_chance(env, chance, spread):
    """Four standard errors; the answers themselves are spread evenly, so no answer is better than another."""
    env.reset(seed=21)
    rewards, answers, episodes = [], [], 800
    for _ in range(episodes):
        _, info = frames_of(env)
        answers.append(info["answer"])
        rewards.append(env.step(1)[1])
    deviation = spread or np.sqrt(chance * (1 - chance))
    assert abs(np.mean(rewards) - chance) < 4 * deviation / np.sqrt(episodes)
    actions = int(env.action_space.n)
    shares = np.bincount(answers, minlength=actions) / episodes
    assert np.abs(shares - 1 / actions).max() < 4 * np.sqrt(1 / actions / episodes)


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        (DelayedRecall(delay=1000), 1002),
        (PairRecall(pairs=5, delay=7), 13),
        (OrderRecall(length=5, delay=7), 13),
        (EventRecall(actors=3, delay=16), 3 * 31 + 1),
        (EventRecall(actors=8, delay=16, turns=2), 2 * 31 + 1),
        (TMaze(corridor=50), 52),
        (ShellGame(boxes=2, delay=9), 11),
        (Naming(objects=3, distractors=20), 3 * 21 + 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_episode_is_as_long_as_its_delays_say(env, steps):
    seen, _ = frames_of(env, seed=0)
    assert len(seen) == steps == env.step_limit


@pytest.mark.parametrize("env", [TMaze(corridor=5), ShellGame(boxes=4, delay=5)], ids=["maze", "shells"])
def test_after_the_cue_all_episodes_look_alike(env):
    seen = [frames_of(env, seed=seed)[0] for seed in range(20)]
    assert len({frames[0].tobytes() for frames in seen}) == env.action_space.n
    assert len({np.stack(frames[1:]).tobytes() for frames in seen}) == 1


def test_noise_tells_nothing_about_the_answer():
    env, episodes = DelayedRecall(symbols=4, delay=1), 1000
    env.reset(seed=22)
    same = sum(
        hot(seen[1][:-2]) == info["answer"] for seen, info in (frames_of(env) for _ in range(episodes))
    )
    assert abs(same / episodes - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / episodes)


@pytest.mark.parametrize(
    ("env", "turn"),
    [
        (PairRecall(pairs=4, delay=0), lambda seen: [hot(row[:4]) for row in seen].index(hot(seen[-1][:4]))),
        (OrderRecall(length=4, delay=0), lambda seen: hot(seen[-1][8:12])),
        (Naming(objects=4), lambda seen: [hot(row[:64]) for row in seen].index(hot(seen[-1][:64]))),
        (
            EventRecall(actors=4, delay=1),
            lambda seen: [
                "".join(str(hot(row[:8])) for row in seen[turn * 16 : turn * 16 + 16]) for turn in range(4)
            ].index(list(DANCES.values())[hot(seen[-1][12:])]),
        ),
    ],
    ids=["pair", "order", "naming", "event"],
)
def test_every_turn_is_asked_for_equally_often(env, turn):
    env.reset(seed=23)
    asked = [turn(frames_of(env)[0]) for _ in range(400)]
    shares = np.bincount(asked, minlength=4) / len(asked)
    assert np.abs(shares - 1 / 4).max() < 4 * np.sqrt(1 / 4 * 3 / 4 / len(asked))


def test_noise_is_not_marked_and_is_not_always_the_same():
    for env in (DelayedRecall(delay=50), PairRecall(pairs=3, delay=50), OrderRecall(length=3, delay=50)):
        seen, _ = frames_of(env, seed=1)
        noise = seen[-51:-1]
        assert all(row.any() and not row[-2:].any() for row in noise)
        assert len({row.tobytes() for row in noise}) > 4


def test_a_sequence_is_shown_in_the_order_of_the_ballet_with_nothing_between():
    seen, _ = frames_of(EventRecall(actors=2, delay=5), seed=0)
    shown = [bool(row.any()) for row in seen]
    assert shown == ([True] * 16 + [False] * 4) * 2 + [True]


def test_distractors_are_drawn_from_those_given_and_no_name_or_thing_comes_twice():
    env = Naming(objects=3, distractors=[0, 2, 5])
    env.reset(seed=0)
    drawn = set()
    for _ in range(30):
        seen, info = frames_of(env)
        names = [hot(row[:64]) for row in seen[:-1]]
        things = [hot(row[64:-1]) % 64 for row in seen[:-1]]
        assert len(names) == 3 * (1 + info["distractors"])
        assert len(set(names)) == len(set(things)) == len(names)
        places = seen[-1][64:-1].reshape(3, 64)
        assert sorted(np.argmax(places, axis=1)) == sorted(things[:3])  # the first phase is asked about
        drawn.add(info["distractors"])
    assert drawn == {0, 2, 5}


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (DelayedRecall, {"symbols": 1}, "symbols is 1; give a whole number, 2 or more"),
        (DelayedRecall, {"delay": -1}, "delay is -1"),
        (PairRecall, {"pairs": 0}, "pairs is 0"),
        (OrderRecall, {"length": 1.5}, "length is 1.5"),
        (EventRecall, {"actors": 14}, "actors is 14; give a whole number, 1 to 13"),
        (EventRecall, {"delay": 0}, "delay is 0"),
        (EventRecall, {"actors": 3, "turns": 4}, "turns is 4; give a whole number, 0 to 3"),
        (EventRecall, {"turns": []}, "turns is an empty list"),
        (TMaze, {"corridor": "long"}, "corridor is 'long'"),
        (ShellGame, {"boxes": 1}, "boxes is 1"),
        (Naming, {"distractors": 30}, "93 things are named: give 93 or more"),
        (Naming, {"distractors": []}, "empty"),
        (Naming, {"distractors": [1, -1]}, "distractors is -1"),
        (GraphRoutes, {"nodes": 1}, "nodes is 1"),
        (GraphRoutes, {"degree": 1}, "degree is 1"),
        (GraphRoutes, {"goals": None}, "goals is None"),
    ],
)
def test_an_option_out_of_its_range_is_refused_in_one_line(kind, options, says):
    with pytest.raises(UsageError, match=rf"^[^\n]*{says}[^\n]*$"):
        kind(**options)


@pytest.mark.parametrize("action", [-1, 8, 0.0, None])
def test_what_is_no_action_is_refused(action):
    env = DelayedRecall()
    env.reset(seed=0)
    with pytest.raises(UsageError, match="give a whole number, 0 to 7"):
        env.step(action)


# --- routes ------------------------------------------------------------------------------------------------


@quick
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_a_graph_is_connected_goes_both_ways_and_has_no_loop(nodes, degree, seed):
    exits = draw_graph(np.random.default_rng(seed), nodes, degree)
    assert exits.shape == (nodes, degree)
    edges = [(a, int(b)) for a in range(nodes) for b in exits[a] if b >= 0]
    assert len(set(edges)) == len(edges)
    assert {(b, a) for a, b in edges} == set(edges)
    assert all(a != b for a, b in edges)
    steps = np.full((nodes, nodes), nodes)  # by Floyd and Warshall, another way to the same distances
    np.fill_diagonal(steps, 0)
    steps[tuple(np.array(edges).T)] = 1
    for middle in range(nodes):
        steps = np.minimum(steps, steps[:, [middle]] + steps[[middle]])
    assert steps.max() < nodes
    for goal in range(nodes):
        np.testing.assert_array_equal(distances_to(goal, exits), steps[:, goal])


def test_distances_are_those_to_the_goal_also_where_edges_go_one_way():
    exits = np.array([[1, -1], [2, -1], [-1, -1], [1, 3]])
    assert distances_to(2, exits).tolist() == [2, 1, 0, 2]
    assert distances_to(0, exits).tolist() == [0, -1, -1, -1]


def shortest_way(info: dict[str, Any], exits: Any) -> int:
    """The exit to take towards the goal."""
    ahead = exits[info["node"]]
    steps = np.where(ahead < 0, 1000, distances_to(info["goal"], exits)[ahead])
    return int(np.where(steps < 0, 1000, steps).argmin())


@quick
@given(st.integers(2, 40), st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_oracle_reaches_all_goals_by_shortest_paths(nodes, degree, goals, seed):
    env = GraphRoutes(nodes=nodes, goals=goals, degree=degree)
    observation, info = env.reset(seed=seed)
    total, steps, expected, terminated = 0.0, 0, info["shortest"], False
    while not terminated:
        assert (hot(observation[:nodes]), hot(observation[nodes:])) == (info["node"], info["goal"])
        observation, reward, terminated, truncated, info = env.step(shortest_way(info, info["exits"]))
        total, steps = total + reward, steps + 1
        expected += info["shortest"] if reward and not terminated else 0
        assert not truncated
    assert (total, steps, info["path_ratios"]) == (float(goals), expected, (1.0,) * goals)


def test_who_draws_a_map_from_observations_takes_shorter_and_shorter_ways():
    """Walks at random where the map is blank; by the last goals, it is nearly drawn."""
    env, generator = GraphRoutes(nodes=20, goals=8), np.random.default_rng(0)
    ratios = []
    for episode in range(12):
        observation, info = env.reset(seed=episode)
        known, over = np.full((20, 4), -1), False
        tried = np.zeros((20, 4), np.bool_)
        while not over:
            node, goal = hot(observation[:20]), hot(observation[20:])
            if distances_to(goal, known)[node] > 0:
                action = shortest_way({"node": node, "goal": goal}, known)
            else:
                new = np.flatnonzero(~tried[node])
                action = int(generator.choice(new)) if new.size else int(generator.integers(4))
            observation, _, terminated, truncated, info = env.step(action)
            tried[node, action] = True
            after = hot(observation[:20])
            known[node, action] = after if after != node else -1
            over = terminated or truncated
        assert terminated
        ratios.append(info["path_ratios"])
    first, last = np.mean(ratios, axis=0)[[0, -1]]
    assert first > 2 * last
    assert last < 2.0


def test_routes_without_memory_are_long_and_cut_at_the_limit():
    env = GraphRoutes(nodes=30, goals=8)
    env.reset(seed=0)
    flags = [env.step(0)[2:4] for _ in range(env.step_limit)]  # to and fro
    assert env.step_limit == 4 * 30 * 8
    assert flags == [(False, False)] * (env.step_limit - 1) + [(False, True)]


def test_a_goal_is_never_where_one_stands_and_graphs_differ():
    env = GraphRoutes(nodes=20)
    graphs = set()
    for seed in range(30):
        _, info = env.reset(seed=seed)
        assert info["node"] != info["goal"]
        graphs.add(info["exits"].tobytes())
    assert len(graphs) == 30


def test_who_was_told_every_fact_of_a_world_knows_what_is_asked_and_another_world_has_others():
    teller, asked = Told(facts=50, world=3, role="tell"), Told(facts=50, world=3)
    told = {}
    for _ in range(50):
        fact, info = teller.reset()
        told[tuple(fact[:16])] = hot(fact[16:20])
        assert info["answer"] == told[tuple(fact[:16])]
    assert len(told) == 50
    for episode in range(200):
        question, info = asked.reset(seed=None if episode else 1)
        assert told[tuple(question[:16])] == info["answer"]
        assert not question[16:20].any()
    elsewhere, _ = Told(facts=50, world=4, role="tell").reset()
    assert tuple(elsewhere[:16]) not in told
    with pytest.raises(UsageError, match="role is 'listen'; give one of: tell, ask"):
        Told(role="listen")
