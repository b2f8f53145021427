"""Three rooms one after another: what was done or seen in the first decides what the last one pays.

Between them lies a room full of apples, whose rewards drown those of the last room; so both are also told
apart, in info. Grid versions of key-to-door and visual match.

Source of the tasks: Hung et al. (2019), Optimizing agent behavior over long time scales by transporting
value, arXiv:1810.06721. The maps are our own. A room is left when its time is up: 15 frames, `apple_frames`
(90), 15 frames. Then the task is over, and the episode terminates: nothing is cut off.

The board has 7 rows and 11 columns, of which the agent sees the 5 x 5 cells around it, `VIEW_CODES` of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.envs.checks import action_index, flag, whole_number
from streamwise.streams import UsageError

__all__ = ["MOVES", "VIEW_CODES", "KeyDoor", "Rooms", "VisualMatch"]

Grid = NDArray[np.int8]
Cell = tuple[int, int]
Info = dict[str, Any]

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Row and column of the actions: north, south, west, east."""

VIEW_CODES = ("floor", "wall", "apple", "key", "door", "red", "green", "blue")
"""What the numbers in an observation mean; all outside of the board is wall."""

FLOOR, WALL, APPLE, KEY, DOOR, RED, GREEN, BLUE = range(len(VIEW_CODES))
COLOURS = (RED, GREEN, BLUE)

ROWS, COLUMNS, REACH = 7, 11, 2  # REACH: cells seen in each direction
FIRST_FRAMES = LAST_FRAMES = 15
APPLES, APPLE_AWAY = 10, 20  # an apple returns when more than so many frames have passed since it was taken
PRIZE = 10.0

TWO_HALVES = (
    "###########",
    "###.....###",
    "###.....###",
    "#####.#####",
    "###.....###",
    "###.....###",
    "###########",
)
ORCHARD = (
    "###########",
    "#.........#",
    "#.........#",
    "#.........#",
    "#.........#",
    "#.........#",
    "###########",
)
CORRIDOR_TO_A_DOOR = (
    "###########",
    "#####D#####",
    "####...####",
    "####...####",
    "####...####",
    "####...####",
    "###########",
)
THREE_NICHES = (
    "###########",
    "###.#.#.###",
    "###.....###",
    "###.....###",
    "###.....###",
    "###.....###",
    "###########",
)
UPPER = tuple((row, column) for row in (1, 2) for column in range(3, 8))  # cells of the first room's halves
LOWER = tuple((row, column) for row in (4, 5) for column in range(3, 8))
UPPER_WALL = (*((0, column) for column in range(3, 8)), (1, 2), (1, 8))  # out of sight of the lower half
NICHES = ((1, 3), (1, 5), (1, 7))
TREES = tuple((row, column) for row in range(1, 6) for column in range(1, 10) if (row + column) % 2)
MIDDLE, LOOK_FROM, BEFORE_THE_DOOR = (3, 5), (2, 5), (5, 5)


def _board(rows: tuple[str, ...]) -> Grid:
    codes = {".": FLOOR, "#": WALL, "D": DOOR}
    return np.array([[codes[letter] for letter in row] for row in rows], np.int8)


class Rooms(gymnasium.Env[Grid, Any], ABC):
    """Clock, walking, apples; a subclass furnishes the first and the last room.

    apple_frames: those of the middle room, 0 or more. apple_reward: of each apple, or several, of which one
    is drawn for an episode.

    Observation: int8 [5, 5], `VIEW_CODES` around the agent, which is in the middle and not drawn. Action: 0
    north, 1 south, 2 west, 3 east; into a wall it does nothing. The step that ends a room still counts in it.

    info, for oracles and not for agents: phase ("first", "apples" or "last"), frame, position, board (int8
    [7, 11]), apple_return and final_return (the rewards so far of apples and of the last room).
    """

    def __init__(self, apple_frames: Any, apple_reward: Any) -> None:
        self._last_room_frame = FIRST_FRAMES + whole_number("apple_frames", apple_frames, 0)
        self.step_limit = self._last_room_frame + LAST_FRAMES
        several = apple_reward if isinstance(apple_reward, list | tuple) else [apple_reward]
        if not several or not all(type(r) in (int, float) and np.isfinite(r) for r in several):
            raise UsageError(f"apple_reward is {apple_reward!r}; give a number, or a list of numbers.")
        self._apple_rewards = [float(reward) for reward in several]
        self.observation_space = spaces.MultiDiscrete(
            np.full((2 * REACH + 1, 2 * REACH + 1), len(VIEW_CODES)), dtype=np.int8
        )
        self.action_space = spaces.Discrete(len(MOVES))
        self._map = _board(ORCHARD)
        self._position: Cell = MIDDLE
        self._trees = np.zeros((APPLES, 2), np.int64)
        self._apple_back = np.zeros(APPLES, np.int64)  # the frame from which an apple is there (again)
        self._apple_reward = self._apple_return = self._final_return = 0.0
        self._frame, self._phase, self._over = 0, "first", True

    @abstractmethod
    def furnish_first(self, generator: np.random.Generator) -> tuple[Grid, Cell]:
        """Draw an episode; return the first room and where the agent starts."""

    @abstractmethod
    def furnish_last(self) -> tuple[Grid, Cell]:
        """Return the last room and where the agent starts in it."""

    @abstractmethod
    def may_enter(self, code: int) -> bool:
        """Return whether the agent may walk onto what is no wall."""

    @abstractmethod
    def arrive(self, code: int) -> float:
        """Change the first or the last room as the agent walks onto what is no floor; return the reward."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Grid, Info]:
        """Start an episode; returns observation and info."""
        super().reset(seed=seed)
        generator = self.np_random
        self._map, self._position = self.furnish_first(generator)
        self._trees = np.array(TREES)[generator.permutation(len(TREES))[:APPLES]]
        self._apple_back = np.zeros(APPLES, np.int64)
        self._apple_reward = self._apple_rewards[generator.integers(len(self._apple_rewards))]
        self._apple_return = self._final_return = 0.0
        self._frame, self._phase, self._over = 0, "first", False
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[Grid, float, bool, bool, Info]:
        """Walk. Raises UsageError for an action that is none of 0 to 3, and after the end."""
        down, right = MOVES[action_index(action, len(MOVES), over=self._over)]
        self._frame += 1
        if self._phase == "apples":
            self._map[tuple(self._trees.T)] = np.where(self._apple_back <= self._frame, APPLE, FLOOR)
        row, column = self._position
        ahead = int(self._map[row + down, column + right])
        if ahead != WALL and self.may_enter(ahead):
            self._position = (row + down, column + right)
        reward = self._touch()
        if self._frame == FIRST_FRAMES:
            self._phase, self._map, self._position = "apples", _board(ORCHARD), MIDDLE
            self._map[tuple(self._trees.T)] = APPLE
        if self._frame == self._last_room_frame:
            self._phase = "last"
            self._map, self._position = self.furnish_last()
        self._over = self._frame == self.step_limit
        return self._observation(), reward, self._over, False, self._info()

    def _touch(self) -> float:
        """Return the reward of what lies where the agent stands."""
        code = int(self._map[self._position])
        if code == FLOOR:
            return 0.0
        if code == APPLE:
            tree = int((self._trees == self._position).all(axis=1).argmax())
            self._map[self._position] = FLOOR
            self._apple_back[tree] = self._frame + APPLE_AWAY + 1
            self._apple_return += self._apple_reward
            return self._apple_reward
        reward = self.arrive(code)
        self._final_return += reward
        return reward

    def _observation(self) -> Grid:
        board = np.full((ROWS + 2 * REACH, COLUMNS + 2 * REACH), WALL, np.int8)
        board[REACH:-REACH, REACH:-REACH] = self._map
        row, column = self._position
        return board[row : row + 2 * REACH + 1, column : column + 2 * REACH + 1].copy()

    def _info(self) -> Info:
        return {
            "phase": self._phase,
            "frame": self._frame,
            "position": self._position,
            "board": self._map.copy(),
            "apple_return": self._apple_return,
            "final_return": self._final_return,
        }


class KeyDoor(Rooms):
    """A key in the first room opens the door of the last one, 10 for walking through; nothing shows the key.

    The key lies in the upper half of the first room, the agent starts in the lower half, with a gap in the
    wall between. The door can be entered with the key alone, which is then used up. Options, observations,
    actions: see `Rooms`. info: has_key, too.

    >>> env = KeyDoor()
    >>> observation, info = env.reset(seed=0)
    >>> int(observation.shape[0]), env.step_limit, info["has_key"]
    (5, 120, False)
    """

    def __init__(self, *, apple_frames: int = 90, apple_reward: float | Sequence[float] = 1.0) -> None:
        super().__init__(apple_frames, apple_reward)
        self._has_key = False

    def furnish_first(self, generator: np.random.Generator) -> tuple[Grid, Cell]:
        """Put the key into the upper half, the agent into the lower one."""
        self._has_key = False
        board = _board(TWO_HALVES)
        board[UPPER[generator.integers(len(UPPER))]] = KEY
        return board, LOWER[generator.integers(len(LOWER))]

    def furnish_last(self) -> tuple[Grid, Cell]:
        """Return three columns below a door."""
        return _board(CORRIDOR_TO_A_DOOR), BEFORE_THE_DOOR

    def may_enter(self, code: int) -> bool:
        """Return whether it is no door, or the key is there."""
        return code != DOOR or self._has_key

    def arrive(self, code: int) -> float:
        """Take the key, or use it."""
        if code == KEY:
            self._has_key = True
            self._map[self._position] = FLOOR
            return 0.0
        used, self._has_key = self._has_key, False
        return PRIZE if used else 0.0  # whoever stays in the doorway is paid once

    def _info(self) -> Info:
        return {**super()._info(), "has_key": self._has_key}


class VisualMatch(Rooms):
    """One wall cell of the first room is coloured; in the last room, of three colours, that one pays 10.

    The others pay 0; after one choice the other two are gone. passive: true, the agent starts where it sees
    the coloured cell; false, it has to walk up from the lower half to see it. Other options, observations,
    actions: see `Rooms`. info: target (its code), choice (the code chosen, None before) and correct, too.

    >>> env = VisualMatch(passive=True)
    >>> observation, info = env.reset(seed=0)
    >>> bool((observation == info["target"]).any())
    True
    """

    def __init__(
        self,
        *,
        passive: bool = False,
        apple_frames: int = 90,
        apple_reward: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(apple_frames, apple_reward)
        self._passive = flag("passive", passive)
        self._colours, self._target = list(COLOURS), RED  # colours: of the niches
        self._choice: int | None = None

    def furnish_first(self, generator: np.random.Generator) -> tuple[Grid, Cell]:
        """Colour one cell of a wall, and draw where the colours will be."""
        board = _board(TWO_HALVES)
        self._target = COLOURS[generator.integers(len(COLOURS))]
        self._colours = [COLOURS[i] for i in generator.permutation(len(COLOURS))]
        self._choice = None
        walls = UPPER_WALL[:5] if self._passive else UPPER_WALL  # these five are in view of LOOK_FROM
        board[walls[generator.integers(len(walls))]] = self._target
        start = LOWER[generator.integers(len(LOWER))]
        return board, LOOK_FROM if self._passive else start

    def furnish_last(self) -> tuple[Grid, Cell]:
        """Return a room with the three colours in its niches, all in view."""
        board = _board(THREE_NICHES)
        for niche, colour in zip(NICHES, self._colours, strict=True):
            board[niche] = colour
        return board, MIDDLE

    def may_enter(self, code: int) -> bool:
        """Return whether it is not the coloured wall of the first room."""
        return code not in COLOURS or self._phase == "last"

    def arrive(self, code: int) -> float:
        """Choose a colour, if none is chosen yet."""
        if self._choice is not None:
            return 0.0
        self._choice = code
        for niche in NICHES:
            if niche != self._position:
                self._map[niche] = FLOOR
        return PRIZE if code == self._target else 0.0

    def _info(self) -> Info:
        correct = self._choice == self._target
        return {**super()._info(), "target": self._target, "choice": self._choice, "correct": correct}
