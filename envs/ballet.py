"""Ballet: dancers perform one after another, and afterwards the agent is asked for the one who danced X.

Source: Lampinen, Chan, Banino and Hill (2021), Towards mental time travel: a hierarchical memory for
reinforcement learning agents, arXiv:2105.14039.

The world is 11 x 11 cells with a wall around it; the agent stands in the middle, up to eight dancers in eight
places around it, each three moves of a king away. A dance is 16 moves; `delay` frames lie between the end of
one and the start of the next. After the last delay the instruction changes from "watch" to the name of one
dance, the agent may move, and the first dancer it walks onto ends the episode: reward 1 if it is the one who
danced so, else 0. To know which it is, the agent has to remember whole dances, not single frames.

Time has a closed form, which is all the state there is beside the agent's cell: frame 0 is the observation
of reset, step f brings frame f, dancer i makes its moves on frames i (15 + delay) to i (15 + delay) + 15, and
the instruction changes on frame dancers (15 + delay), `choice_frame`. The action that brings that frame is
ignored as those before it are.

Departures from the paper's code: the instruction is a number instead of a text, 0 for "watch" and k for dance
k - 1 of `DANCES`; and delays that the paper does not have get a step limit of `choice_frame` + 64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.envs.checks import action_index, flag, whole_number
from streamwise.streams import UsageError

__all__ = ["COLOURS", "DANCES", "DIRECTIONS", "HOMES", "SHAPES", "Ballet", "BalletRules"]

Grid = NDArray[np.int8]
Observation = dict[str, Any]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]

DIRECTIONS = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
"""Row and column of the eight moves, clockwise from north: the actions, and the digits of `DANCES`."""

HOMES = ((2, 2), (2, 5), (2, 8), (5, 2), (5, 8), (8, 2), (8, 5), (8, 8))
"""The cells (row, column) where dancers start and end their dances."""

DANCES = {
    "circle_cw": "0244660022446602",
    "circle_ccw": "0644220066442206",
    "up_and_down": "0440044004400440",
    "left_and_right": "2662266226622662",
    "diagonal_uldr": "7337733773377337",
    "diagonal_urdl": "1551155115511551",
    "plus_cw": "0426406204264062",
    "plus_ccw": "0462402604624026",
    "times_cw": "1537517315375173",
    "times_ccw": "7351371573513715",
    "zee": "1662251552266151",
    "chevron_down": "7431051514570373",
    "chevron_up": "3075415150134737",
}
"""The 16 moves of each dance. All stay within one cell of where they start, and end there."""

COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "purple": (128, 0, 128),
    "orange": (255, 165, 0), "yellow": (255, 255, 0), "brown": (128, 64, 0), "pink": (255, 64, 255),
    "cyan": (0, 255, 255), "dark_green": (0, 100, 0), "dark_red": (100, 0, 0), "dark_blue": (0, 0, 100),
    "olive": (100, 100, 0), "teal": (0, 100, 100), "lavender": (215, 200, 255), "peach": (255, 210, 170),
    "rose": (255, 205, 230), "light_green": (200, 255, 200), "light_yellow": (255, 255, 200),
}  # fmt: skip
"""Red, green and blue of each colour a dancer may have, 0 to 255."""

SIZE, PIXELS, MOVES = 11, 9, 16  # cells across the board, pixels across a cell, moves of a dance
FARTHEST = SIZE - 3  # rows or columns between two who are inside the wall
_CENTRE, _REACH = SIZE // 2, 3  # the latter is how many cells it is from there to a home
FLOOR, WALL, AGENT, DANCER = 0, 1, 2, 3  # in grids; dancer i is DANCER + i
_PUBLISHED_LIMITS = {16: 320, 48: 1024}  # by delay, in steps


def _draw_shapes() -> dict[str, NDArray[np.bool_]]:
    """Return the pixels of a cell, bool [9, 9], that are on in each shape."""
    i, j = np.mgrid[:PIXELS, :PIXELS]
    middle = PIXELS // 2
    radius = (i - middle) ** 2 + (j - middle) ** 2
    row, column = abs(i - middle) <= 1, abs(j - middle) <= 1
    plus, ex = row | column, (abs(i - j) <= 1) | (abs(i + j - 8) <= 1)
    left, right, top, bottom = j <= 2, j >= 6, i <= 2, i >= 6
    shapes = {
        "triangle": i >= 2 * abs(j - middle),
        "empty_square": left | right | top | bottom,
        "plus": plus,
        "inverse_plus": ~plus,
        "ex": ex,
        "inverse_ex": ~ex,
        "circle": radius <= 16,
        "empty_circle": abs(radius - 16) < 6,
        "tee": column | top,
        "upside_down_tee": column | bottom,
        "h": left | right | row,
        "u": left | right | bottom,
        "upside_down_u": left | right | top,
        "vertical_stripes": j % 2 == 0,
        "horizontal_stripes": i % 2 == 0,
    }
    for shape in shapes.values():
        shape.setflags(write=False)
    return shapes


SHAPES = _draw_shapes()
"""The pixels of a cell, bool [9, 9], that are on in each shape a dancer may have."""


def _read_only(values: Any, dtype: Any) -> NDArray[Any]:
    array = np.array(values, dtype)
    array.setflags(write=False)
    return array


_DIRECTIONS = _read_only(DIRECTIONS, np.int64)
_HOMES = _read_only(HOMES, np.int64)
_MOVES = _read_only([[int(digit) for digit in moves] for moves in DANCES.values()], np.int64)
_PATHS = _read_only(  # [dance, moves made so far, (row, column)]: where a dancer is, seen from its home
    np.concatenate([np.zeros((len(DANCES), 1, 2)), _DIRECTIONS[_MOVES].cumsum(axis=1)], axis=1), np.int64
)
_COLOURS = _read_only(list(COLOURS.values()), np.float32)
_SHAPES = _read_only(list(SHAPES.values()), np.float32)
_LUMINANCE = _read_only([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)


def _wide_board() -> Grid:
    """Return the empty board with as much of nothing around it as a view from a corner needs: [21, 21]."""
    board = np.full((SIZE, SIZE), WALL, np.int8)
    board[1:-1, 1:-1] = FLOOR
    return _read_only(np.pad(board, _CENTRE, constant_values=FLOOR), np.int8)


BOARD = _wide_board()


class Cast(NamedTuple):
    """Who dances in an episode: the target, and of each dancer the indices into the tables above, [n]."""

    target: int
    homes: NDArray[np.int64]
    dances: NDArray[np.int64]
    colours: NDArray[np.int64]
    shapes: NDArray[np.int64]


def draw_cast(generator: np.random.Generator, dancers: int) -> Cast:
    """Draw an episode, in the order of the paper's code; no two dancers share a trait."""
    target = int(generator.integers(dancers))
    traits = []
    for count in (len(HOMES), len(DANCES), len(COLOURS), len(SHAPES)):
        indices = list(range(count))
        generator.shuffle(indices)
        traits.append(np.array(indices[:dancers]))
    return Cast(target, *traits)


def dancer_cells(homes: NDArray[np.int64], dances: NDArray[np.int64], frame: Any, delay: int) -> NDArray[Any]:
    """Return where the dancers are: homes, dances [..., n], frame [...] -> cells [..., n, 2]."""
    starts = (MOVES - 1 + delay) * np.arange(homes.shape[-1])
    moves_made = np.minimum(np.maximum(np.asarray(frame)[..., None] - starts + 1, 0), MOVES)
    return np.asarray(_HOMES[homes] + _PATHS[dances, moves_made])


def offsets(cells: NDArray[np.int64], agent: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return where dancers at cells [..., n, 2] are, seen from agents at [..., 2]: [..., n, 2], 0 to 16."""
    return (cells - agent[..., None, :] + FARTHEST).astype(np.int8)


def named_moves(homes: NDArray[np.int64], dances: NDArray[np.int64], frame: Any, delay: int) -> Observation:
    """Return the parts of an observation that say who dances, by the place, and how.

    homes, dances [..., n], frame [...] -> dancer, int64 [...], 1 + the index in `HOMES` of the one who made a
    move, 0 for nobody; move, int64 [...], 1 + its direction, 0 for none.
    """
    turn, moves_made = np.divmod(frame, MOVES - 1 + delay)
    dancing = (turn < homes.shape[-1]) & (moves_made < MOVES)
    turn, moves_made = np.where(dancing, turn, 0), np.where(dancing, moves_made, 0)
    home, dance = (np.take_along_axis(of, turn[..., None], -1)[..., 0] for of in (homes, dances))
    return {"dancer": dancing * (1 + home), "move": dancing * (1 + _MOVES[dance, moves_made])}


def egocentric_grid(cells: NDArray[Any], agent: tuple[int, int]) -> Grid:
    """Return what the agent at a cell sees of dancers at cells [n, 2]: int8 [11, 11], the agent at [5, 5].

    0 is floor and all outside of the board, 1 wall, 2 the agent, 3 + i dancer i, who is drawn over the agent.
    """
    row, column = agent
    board = BOARD.copy()
    board[row + _CENTRE, column + _CENTRE] = AGENT
    board[cells[:, 0] + _CENTRE, cells[:, 1] + _CENTRE] = DANCER + np.arange(len(cells))
    return board[row : row + SIZE, column : column + SIZE].copy()


def cell_pictures(colours: NDArray[np.int64], shapes: NDArray[np.int64], grey: bool) -> NDArray[np.float32]:
    """Return how each code of a grid looks, float32 [3 + n, 9, 9, 3, or 1 for grey] in [0, 1].

    colours, shapes: int [n], what each dancer has.
    """
    pictures = np.zeros((DANCER + len(colours), PIXELS, PIXELS, 3), np.float32)
    pictures[WALL], pictures[AGENT] = 40.0, 255.0
    pictures[DANCER:] = _SHAPES[shapes][..., None] * _COLOURS[colours][:, None, None]
    pictures /= np.float32(255.0)
    # The weights add up to 1, but in float32 only nearly so.
    return np.minimum(pictures @ _LUMINANCE, np.float32(1.0))[..., None] if grey else pictures


def paint(grid: Grid, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the picture of a grid [11, 11], float32 [99, 99, channels]."""
    side = SIZE * PIXELS
    return pictures[grid].transpose(0, 2, 1, 3, 4).reshape(side, side, pictures.shape[-1])


class BalletRules:
    """The options of a ballet, and what follows from them. Raises UsageError for one out of its range."""

    def __init__(self, dancers: Any, delay: Any, obs: Any, grey: Any, single_shape: Any, stride: Any) -> None:
        self.dancers = whole_number("dancers", dancers, 1, len(HOMES))
        self.delay = whole_number("delay", delay, 1)
        if obs not in ("pixels", "grid", "cells", "moves"):
            raise UsageError(f'obs is {obs!r}; give "pixels", "grid", "cells" or "moves".')
        self.pixels, self.cells, self.moves = obs == "pixels", obs == "cells", obs == "moves"
        self.grey = flag("grey", grey)
        self.single_shape = flag("single_shape", single_shape)
        if not self.pixels and (self.grey or self.single_shape):
            raise UsageError('grey and single_shape are for obs="pixels"; nothing else shows them.')
        self.stride = whole_number("stride", stride, 1, _REACH)
        self.choice_frame = self.dancers * (MOVES - 1 + self.delay)
        self.step_limit = _PUBLISHED_LIMITS.get(self.delay, self.choice_frame + 64)

    def observation_space(self) -> spaces.Dict:
        """Return the space of one agent's observations."""
        instruction = spaces.Discrete(1 + len(DANCES))
        if self.cells:
            offsets = np.full((self.dancers, 2), 2 * FARTHEST + 1)
            return spaces.Dict(
                {"cells": spaces.MultiDiscrete(offsets, dtype=np.int8), "instruction": instruction}
            )
        if self.moves:
            return spaces.Dict(
                {
                    "dancer": spaces.Discrete(1 + len(HOMES)),
                    "move": spaces.Discrete(1 + len(DIRECTIONS)),
                    "instruction": instruction,
                }
            )
        side, channels = SIZE * PIXELS, 1 if self.grey else 3
        codes = np.full((SIZE, SIZE), DANCER + self.dancers)
        image: spaces.Space[Any] = (
            spaces.Box(0.0, 1.0, (side, side, channels), np.float32)
            if self.pixels
            else spaces.MultiDiscrete(codes, dtype=np.int8)
        )
        return spaces.Dict({"image": image, "instruction": instruction})

    def pictures(self, colours: NDArray[np.int64], shapes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return how each code of a grid looks under these options (see `cell_pictures`)."""
        return cell_pictures(colours, 0 * shapes if self.single_shape else shapes, self.grey)


class Ballet(gymnasium.Env[Observation, Any]):
    """The ballet of the module's docstring.

    dancers: 1 to 8. delay: frames between two dances, 1 or more; the paper has 16 and 48, with 2, 4 and 8
    dancers and limits of 320 and 1024 steps. obs: "pixels", or "grid", "cells" or "moves" for small networks.
    grey: one channel, the luminance. single_shape: all dancers are triangles, told apart by colour alone;
    everything else is drawn as without it. stride: how many cells an action leads the agent, 1 to 3, within
    a frame, unless a dancer or the wall stops it. With 3 the first action decides, which is learned sooner;
    the paper has 1.

    Observation: image, float32 [99, 99, 3] in [0, 1], the 11 x 11 cells around the agent, or, for a grid, its
    codes as int8 [11, 11] (see `egocentric_grid`); for obs="cells", there are cells instead, int8
    [dancers, 2], how far each dancer is below and to the right of the agent, plus 8; for obs="moves", which
    dancer makes which move (see `named_moves`), and nothing of who stands where; instruction, 0 while
    watching, then 1 + the index in `DANCES`. Action: 0 to 7, a direction; there is no way to stand still but
    to walk into a wall.

    A dancer touched terminates the episode; `step_limit` truncates it. info, for oracles and not for agents:
    phase ("dance" or "choice"), frame, choice_frame, target (an index into dancers), dancers (of each: home
    cell, dance, colour, shape), correct.

    >>> env = Ballet(dancers=2, delay=16, obs="grid")
    >>> observation, info = env.reset(seed=0)
    >>> int(observation["instruction"]), info["choice_frame"], info["dancers"][info["target"]][:2]
    (0, 62, ((5, 8), 'zee'))
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012  # Gymnasium's own attribute

    def __init__(
        self,
        *,
        dancers: int = 2,
        delay: int = 16,
        obs: str = "pixels",
        grey: bool = False,
        single_shape: bool = False,
        stride: int = 1,
        render_mode: str | None = None,
    ) -> None:
        rules = BalletRules(dancers, delay, obs, grey, single_shape, stride)
        self._rules = rules
        self.step_limit = rules.step_limit
        self.observation_space = rules.observation_space()
        self.action_space = spaces.Discrete(len(DIRECTIONS))
        self.render_mode = render_mode
        self._over = True
        self._frame = self._target = 0
        self._agent = (_CENTRE, _CENTRE)
        self._table: tuple[Any, ...] = ()
        nobody = np.zeros(rules.dancers, np.int64)
        self._homes, self._dances, self._colours, self._shapes = nobody, nobody, nobody, nobody

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode; returns observation and info."""
        super().reset(seed=seed)
        cast = draw_cast(self.np_random, self._rules.dancers)
        self._target, self._homes, self._dances, self._colours, self._shapes = cast
        shapes = 0 * cast.shapes if self._rules.single_shape else cast.shapes
        names = (HOMES, tuple(DANCES), tuple(COLOURS), tuple(SHAPES))
        traits = zip(names, (cast.homes, cast.dances, cast.colours, shapes), strict=True)
        self._table = tuple(zip(*([name[i] for i in indices] for name, indices in traits), strict=True))
        self._agent = (_CENTRE, _CENTRE)
        self._frame, self._over = 0, False
        return self._observation(), self._info(False)

    def step(self, action: int) -> Step:
        """Bring the next frame. Raises UsageError for an action that is none of 0 to 7, and after the end."""
        index = action_index(action, len(DIRECTIONS), over=self._over)
        self._frame += 1
        terminated = correct = False
        if self._frame > self._rules.choice_frame:
            homes = [home for home, *_ in self._table]  # where all stand now
            down, right = DIRECTIONS[index]
            for _ in range(self._rules.stride):
                row, column = self._agent
                if not terminated and 0 < row + down < SIZE - 1 and 0 < column + right < SIZE - 1:
                    self._agent = (row + down, column + right)
                terminated = self._agent in homes
            correct = self._agent == homes[self._target]
        truncated = not terminated and self._frame >= self.step_limit
        self._over = terminated or truncated
        return self._observation(), float(correct), terminated, truncated, self._info(correct)

    def render(self) -> Any:
        """Return what the agent sees as uint8 [99, 99, 3], in whatever form it sees it itself."""
        pictures = cell_pictures(self._colours, self._shapes, grey=False)
        return np.rint(paint(self._grid(), pictures) * 255.0).astype(np.uint8)

    def _grid(self) -> Grid:
        cells = dancer_cells(self._homes, self._dances, self._frame, self._rules.delay)
        return egocentric_grid(cells, self._agent)

    def _observation(self) -> Observation:
        asked = self._frame >= self._rules.choice_frame
        instruction = np.int64(asked * (1 + self._dances[self._target]))
        if self._rules.cells:
            cells = dancer_cells(self._homes, self._dances, self._frame, self._rules.delay)
            return {"cells": offsets(cells, np.array(self._agent)), "instruction": instruction}
        if self._rules.moves:
            named = named_moves(self._homes, self._dances, self._frame, self._rules.delay)
            return {**named, "instruction": instruction}
        grid = self._grid()
        image = paint(grid, self._rules.pictures(self._colours, self._shapes)) if self._rules.pixels else grid
        return {"image": image, "instruction": instruction}

    def _info(self, correct: bool) -> dict[str, Any]:
        return {
            "phase": "choice" if self._frame >= self._rules.choice_frame else "dance",
            "frame": self._frame,
            "choice_frame": self._rules.choice_frame,
            "target": self._target,
            "dancers": self._table,
            "correct": correct,
        }
