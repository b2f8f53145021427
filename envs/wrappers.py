"""Wrappers that give every environment one of few shapes: what an agent sees, and what it may do.

After `standard_observations` an observation is a flat float array, or an image or grid in its own shape.
After `standard_actions` an action is a one-dimensional float Box or a Discrete that counts from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.streams import UsageError

__all__ = [
    "BooleanGridToFloat",
    "ClipActions",
    "CountActionsFromZero",
    "EpisodicLife",
    "FireOnReset",
    "FlattenObservations",
    "TimeFeature",
    "flat_size",
    "standard_actions",
    "standard_observations",
]

Environment = gymnasium.Env[Any, Any]
Wrapper = gymnasium.Wrapper[Any, Any, Any, Any]
Step = tuple[Any, Any, bool, bool, dict[str, Any]]
Reset = tuple[Any, dict[str, Any]]

_WHO_TAKES_WHAT = (
    "stream-ac takes one-dimensional Box and Discrete actions, stream-q and stream-sarsa Discrete"
)


# --- observations ------------------------------------------------------------------------------------------


def standard_observations(env: Environment, name: str) -> Environment:
    """Return `env` with observations that every agent can read.

    A uint8 Box of two or more dimensions is an image and stays as it is; a boolean one is a grid and becomes
    float32 in its own shape; a flat float32 or float64 one needs nothing; everything else becomes a flat
    float32 array (see `FlattenObservations`).
    Raises UsageError for spaces of no fixed size (Text, Sequence, Graph, OneOf).
    """
    space = env.observation_space
    if isinstance(space, spaces.Box):
        if len(space.shape) >= 2 and space.dtype == np.uint8:
            return env
        if len(space.shape) >= 2 and space.dtype == np.bool_:
            return BooleanGridToFloat(env)
        if len(space.shape) == 1 and space.dtype in (np.float32, np.float64):
            return env
    unreadable = _first_unreadable(space)
    if unreadable is not None:
        raise UsageError(
            f"{name} has {type(unreadable).__name__} observations, which have no fixed size; "
            "every agent needs Box observations, or Dict, Tuple, Discrete ones that flatten to one."
        )
    return FlattenObservations(env)


def _first_unreadable(space: spaces.Space[Any]) -> spaces.Space[Any] | None:
    """Return the first part of `space` that cannot be flattened, or None."""
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.values())
    elif isinstance(space, spaces.Tuple):
        parts = list(space.spaces)
    else:
        flat = isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
        return None if flat else space
    return next((found for part in parts if (found := _first_unreadable(part)) is not None), None)


def flat_size(space: spaces.Space[Any]) -> int:
    """Return how many features `space` has when it is flattened."""
    return len(_flat_bounds(space)[0])


def _flat_bounds(space: spaces.Space[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the lowest and highest value of each flattened feature."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        bounds = [_flat_bounds(part) for part in parts]
        empty = [np.zeros(0, np.float32)]
        return np.concatenate(empty + [b[0] for b in bounds]), np.concatenate(empty + [b[1] for b in bounds])
    if isinstance(space, spaces.Box):
        with np.errstate(over="ignore"):  # the largest float64 stands for "unbounded" and becomes infinity
            return space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
    if isinstance(space, spaces.Discrete):
        size = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        size = int(space.nvec.sum())
    elif isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
    else:
        raise TypeError(f"{space} cannot be flattened.")
    return np.zeros(size, np.float32), np.ones(size, np.float32)


_Writer = Callable[[NDArray[np.float32], Any], None]  # puts a value's features where they belong in the array


def _writer(space: spaces.Space[Any], start: int) -> _Writer:
    """Return the function that writes a member of `space` into a zeroed array from index `start` on."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        writers: list[tuple[Any, _Writer]] = []
        for key, part in items:
            writers.append((key, _writer(part, start)))
            start += flat_size(part)

        def write_parts(flat: NDArray[np.float32], value: Any) -> None:
            for key, write in writers:
                write(flat, value[key])

        return write_parts
    if isinstance(space, spaces.Discrete):
        offset = start - int(space.start)

        def write_one_hot(flat: NDArray[np.float32], value: Any) -> None:
            flat[offset + int(value)] = 1.0

        return write_one_hot
    if isinstance(space, spaces.MultiDiscrete):
        widths = space.nvec.ravel()
        offsets = start + np.cumsum(widths) - widths - space.start.ravel()

        def write_one_hots(flat: NDArray[np.float32], value: Any) -> None:
            flat[offsets + np.ravel(value)] = 1.0

        return write_one_hots
    place = slice(start, start + flat_size(space))

    def write_numbers(flat: NDArray[np.float32], value: Any) -> None:
        flat[place] = np.ravel(value)

    return write_numbers


class FlattenObservations(Wrapper):
    """Observations become one float32 array, written anew at every step.

    Order: the parts of a Dict in the order of the Gymnasium space, of a Tuple from first to last, the
    elements of an array row by row (C order); a scalar is one feature. Gymnasium sorts the keys of a plain
    dict, so for DM Control the order is alphabetical (walker: height, orientations, velocity) and not that of
    DM Control's own specification (orientations, height, velocity). It is the order of Gymnasium's
    FlattenObservation too, and so of results published with it. Discrete and MultiDiscrete parts are one-hot.

    float64 is cast to float32: all learners compute in it by default, and a simulator's float64 carries no
    more than noise beyond. A value above 3.4e38 becomes infinite, which every learner refuses.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        low, high = _flat_bounds(env.observation_space)
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.size = len(low)
        self._write = _writer(env.observation_space, 0)

    def _flatten(self, observation: Any) -> NDArray[np.float32]:
        flat = np.zeros(self.size, np.float32)
        self._write(flat, observation)
        return flat

    def step(self, action: Any) -> Step:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._flatten(observation), reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flatten(observation), info


class BooleanGridToFloat(Wrapper):
    """A grid of false and true becomes float32 zeros and ones in the same shape."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0.0, 1.0, env.observation_space.shape, np.float32)

    def step(self, action: Any) -> Step:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return np.array(observation, np.float32), reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return np.array(observation, np.float32), info


class TimeFeature(Wrapper):
    """One more feature, the last: -0.5 at the start, higher by 1 / `max_episode_steps` each step.

    It is 0.5 at the time limit. The observation has to be a flat Box.
    """

    def __init__(self, env: Environment, max_episode_steps: int) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        low, high = np.append(space.low, -0.5), np.append(space.high, 0.5)
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self.max_episode_steps = max_episode_steps
        self.size = len(low)
        self._steps = 0

    def _with_time(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        extended = np.empty(self.size, np.float32)
        extended[:-1] = observation
        extended[-1] = self._steps / self.max_episode_steps - 0.5
        return extended

    def step(self, action: Any) -> Step:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        return self._with_time(observation), reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._steps = 0
        return self._with_time(observation), info


# --- actions -----------------------------------------------------------------------------------------------


def standard_actions(env: Environment, name: str) -> Environment:
    """Return `env` with actions that some agent can choose. Raises UsageError if no agent can."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return env if space.start == 0 else CountActionsFromZero(env)
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return ClipActions(env)
    raise UsageError(f"{name} has actions {space}, which no agent takes: {_WHO_TAKES_WHAT}.")


class ClipActions(Wrapper):
    """Actions outside the bounds are clipped to them, so that a Gaussian policy may sample freely.

    `action_space` keeps the bounds: they say which actions differ.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Box)
        self._low, self._high = env.action_space.low, env.action_space.high

    def step(self, action: Any) -> Step:
        """Take a step with the clipped action."""
        # Half the time of np.clip, 1 µs; the result is new, so no environment can change the agent's array.
        clipped = np.maximum(action, self._low)
        return self.env.step(np.minimum(clipped, self._high, out=clipped))


class CountActionsFromZero(Wrapper):
    """Discrete actions are 0, 1, ..., whatever number the environment starts with."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, spaces.Discrete)
        self._start = int(env.action_space.start)
        self.action_space = spaces.Discrete(int(env.action_space.n))

    def step(self, action: Any) -> Step:
        """Take a step."""
        return self.env.step(int(action) + self._start)


# --- Atari -------------------------------------------------------------------------------------------------


class EpisodicLife(Wrapper):
    """A lost life ends the episode, while the game goes on.

    The step that loses a life is `terminated`; the `reset` after it takes one no-op step in the running game.
    The game itself starts anew only when it is over, when an episode is given up half-way, or when `reset` is
    given a seed or options. The step that ends the game has `info["game_return"]`, the sum of all rewards
    since the game began, those of the steps taken inside `reset` included; a game
    that ends inside `reset` (rare) has nowhere to report it.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._lives = 0
        self._game_return = 0.0
        self._only_a_life_was_lost = False

    def step(self, action: Any) -> Step:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._game_return += float(reward)
        lives = int(info["lives"])
        # Some games (Q*bert) show 0 lives for a few frames before the game is over: wait for its end.
        self._only_a_life_was_lost = 0 < lives < self._lives and not (terminated or truncated)
        self._lives = lives
        if terminated or truncated:
            info["game_return"] = self._game_return
        return observation, reward, terminated or self._only_a_life_was_lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode: with the next life if there is one, else with a new game."""
        if self._only_a_life_was_lost and seed is None and options is None:
            observation, _, terminated, truncated, info = self.step(0)
            self._only_a_life_was_lost = False
            if not (terminated or truncated):
                return observation, info
        observation, info = self.env.reset(seed=seed, options=options)
        self._lives = int(info["lives"])
        self._game_return = 0.0
        self._only_a_life_was_lost = False
        return observation, info


class FireOnReset(Wrapper):
    """Press FIRE once at the start of each episode, in games that wait for it."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._fire: int = env.unwrapped.get_action_meanings().index("FIRE")  # type: ignore[attr-defined]  # Atari's own

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode."""
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self.env.step(self._fire)
        if terminated or truncated:  # a life can end in that one step: start again, without another FIRE
            observation, info = self.env.reset()
        return observation, info
