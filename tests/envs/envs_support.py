"""What tests of the environments share: somebody who plays at random and remembers every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

Event = tuple[Any, ...]


class Player:
    """Resets and steps `env` with random actions; an event is a reset or a step, as all of its bits.

    An episode is given up after `most` steps. The first reset is seeded with `seed`, later ones are not.
    """

    def __init__(self, env: Any, *, seed: int = 1, most: int = 12) -> None:
        self.env, self.most = env, most
        self.seed: int | None = seed
        self.generator = np.random.default_rng(seed)
        self.steps: int | None = None  # of the episode; None: the next event is a reset

    def goes_on_in(self, env: Any) -> Player:
        """Return a player who stands where this one does, but in `env`."""
        other = Player(env, most=self.most)
        other.seed, other.steps = self.seed, self.steps
        other.generator.bit_generator.state = self.generator.bit_generator.state
        return other

    def play(self, events: int) -> list[Event]:
        return [self._reset() if self.steps is None else self._step() for _ in range(events)]

    def _reset(self) -> Event:
        observation, _ = self.env.reset(seed=self.seed)
        self.seed, self.steps = None, 0
        return ("reset", *_bits(observation))

    def _step(self) -> Event:
        assert self.steps is not None
        observation, reward, terminated, truncated, _ = self.env.step(self._action())
        self.steps = None if terminated or truncated or self.steps + 1 == self.most else self.steps + 1
        return ("step", *_bits(observation), float(reward).hex(), bool(terminated), bool(truncated))

    def _action(self) -> Any:
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            return int(self.generator.integers(space.n))
        return self.generator.uniform(-1.2, 1.2, space.shape).astype(np.float32)


def _bits(observation: Any) -> tuple[Any, ...]:
    array = np.asarray(observation)
    return array.dtype.str, array.shape, array.tobytes()
