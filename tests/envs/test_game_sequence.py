"""Games one after the other: each to its end, with its own generator, and all with the same spaces."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamwise.envs import environment_names, family_of, make
from streamwise.envs.changing import (
    GAMES,
    GameSequence,
)


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
