"""Many ballets at once, by the rules of `ballet`, computed as one array of boards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from streamwise.envs.ballet import (
    AGENT,
    BOARD,
    DANCER,
    DIRECTIONS,
    HOMES,
    SIZE,
    BalletRules,
    dancer_cells,
    draw_cast,
    named_moves,
    offsets,
    paint,
)
from streamwise.streams import UsageError

__all__ = ["BalletVector"]

Observation = dict[str, NDArray[Any]]
Step = tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


def egocentric_grids(cells: NDArray[np.int64], agents: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return `ballet.egocentric_grid` of many, int8 [batch, 11, 11].

    cells: int [batch, n, 2], those of the dancers. agents: int [batch, 2].
    """
    boards = np.repeat(BOARD[None], len(cells), axis=0)
    lanes, margin, window = np.arange(len(cells)), SIZE // 2, np.arange(SIZE)
    boards[lanes, agents[:, 0] + margin, agents[:, 1] + margin] = AGENT
    codes = DANCER + np.arange(cells.shape[1])
    boards[lanes[:, None], cells[..., 0] + margin, cells[..., 1] + margin] = codes
    rows, columns = agents[:, :1] + window, agents[:, 1:] + window
    return np.asarray(boards[lanes[:, None, None], rows[:, :, None], columns[:, None, :]])


class BalletVector(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """`num_envs` independent ballets; the other options are those of `Ballet`.

    Each has a generator of its own: `reset(seed=s)` gives ballet i the episodes that `Ballet` has after
    `reset(seed=s + i)`. An ended ballet ignores the next action and starts anew instead, with reward 0, as
    Gymnasium's AutoresetMode.NEXT_STEP says. Observations, rewards [num_envs] and flags are those of `Ballet`
    with one more dimension in front; info has frame, target and correct, [num_envs], and choice_frame.

    >>> env = BalletVector(num_envs=3, dancers=2, delay=2, obs="grid")
    >>> observation, info = env.reset(seed=0)
    >>> observation["image"].shape, info["choice_frame"]
    ((3, 11, 11), 34)
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # Gymnasium's own attribute

    def __init__(
        self,
        num_envs: int,
        *,
        dancers: int = 2,
        delay: int = 16,
        obs: str = "pixels",
        grey: bool = False,
        single_shape: bool = False,
        stride: int = 1,
    ) -> None:
        self._rules = rules = BalletRules(dancers, delay, obs, grey, single_shape, stride)
        self.num_envs = num_envs
        self.single_observation_space = rules.observation_space()
        self.single_action_space = spaces.Discrete(len(DIRECTIONS))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._over = np.ones(num_envs, np.bool_)  # these start anew with the next step
        self._frame, self._target = np.zeros((2, num_envs), np.int64)
        self._agent = np.zeros((num_envs, 2), np.int64)
        self._homes, self._dances, self._colours, self._shapes = np.zeros(
            (4, num_envs, rules.dancers), np.int64
        )
        self._begin(range(num_envs))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes. seed: of the first ballet, the others follow; or one of each, None to go on."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise UsageError(f"{len(seeds)} seeds are given for {self.num_envs} ballets.")
            for i, own in enumerate(seeds):
                if own is not None:
                    self._generators[i] = gymnasium.utils.seeding.np_random(own)[0]
        self._begin(range(self.num_envs))
        return self._observation(), self._info(np.zeros(self.num_envs, np.bool_))

    def step(self, actions: NDArray[Any]) -> Step:
        """Bring the next frame of all. Raises UsageError unless actions is [num_envs] of 0 to 7."""
        taken = np.asarray(actions)
        fits = taken.shape == (self.num_envs,) and taken.dtype.kind in "iu"
        if not fits or not ((taken >= 0) & (taken < len(DIRECTIONS))).all():
            raise UsageError(f"the actions are {actions!r}; give {self.num_envs} whole numbers, 0 to 7.")
        begins = self._over
        self._frame += 1
        homes = np.array(HOMES)[self._homes]
        # While others dance the agent stands in the middle, where nobody dances or lives.
        touched = np.zeros((self.num_envs, self._rules.dancers), np.bool_)
        for _ in range(self._rules.stride):
            cells = self._agent + np.array(DIRECTIONS)[taken]
            walks = (self._frame > self._rules.choice_frame) & ~touched.any(axis=1)
            walks &= ((cells > 0) & (cells < SIZE - 1)).all(axis=1)
            self._agent = np.where(walks[:, None], cells, self._agent)
            touched = (homes == self._agent[:, None]).all(axis=2)
        terminated = touched.any(axis=1) & ~begins
        correct = terminated & touched[np.arange(self.num_envs), self._target]
        truncated = (self._frame >= self._rules.step_limit) & ~terminated & ~begins
        self._begin(np.flatnonzero(begins))
        self._over = terminated | truncated
        return self._observation(), correct.astype(np.float64), terminated, truncated, self._info(correct)

    def _begin(self, which: Any) -> None:
        for i in which:
            self._target[i], *traits = draw_cast(self._generators[i], self._rules.dancers)
            self._homes[i], self._dances[i], self._colours[i], self._shapes[i] = traits
            self._agent[i], self._frame[i], self._over[i] = SIZE // 2, 0, False

    def _observation(self) -> Observation:
        cells = dancer_cells(self._homes, self._dances, self._frame, self._rules.delay)
        asked = self._frame >= self._rules.choice_frame
        instruction = asked * (1 + self._dances[np.arange(self.num_envs), self._target])
        if self._rules.cells:
            return {"cells": offsets(cells, self._agent), "instruction": instruction}
        if self._rules.moves:
            named = named_moves(self._homes, self._dances, self._frame, self._rules.delay)
            return {**named, "instruction": instruction}
        image: NDArray[Any] = egocentric_grids(cells, self._agent)
        if self._rules.pixels:
            traits = zip(self._colours, self._shapes, image, strict=True)
            image = np.stack(
                [paint(grid, self._rules.pictures(colours, shapes)) for colours, shapes, grid in traits]
            )
        return {"image": image, "instruction": instruction}

    def _info(self, correct: NDArray[np.bool_]) -> dict[str, Any]:
        state = {"frame": self._frame.copy(), "target": self._target.copy(), "correct": correct}
        return {**state, "choice_frame": self._rules.choice_frame}
