"""Worlds that change while an agent lives in them: physics, senses, games. Nothing tells the agent.

    HalfCheetah-v5?change=gravity&values=1,0.5,1,1.5&every=100000          A, B, A, C, and again
    dm_control/walker-walk-v0?change=friction&values=1,0.2&blend=0.5       little by little
    Hopper-v5?change=actuators&values=1,0.6&repeat=false                   once, and never back
    Hopper-v5?change=observations&values=0,1,2                             three orders of the features
    MinAtar/Sequence-v0?games=Breakout,Asterix,Freeway&every=100000

Which world it is depends on how many steps were lived, over all episodes; so it may change in the middle of
one. Values of physics are factors of what the model came with, of which a world is made anew each time: it
returns as it was, to the last bit. A value of `observations` is the seed of an order of the features; 0
leaves them as they are. Between two orders a feature is a mixture of what both have in its place.

What physics changes (MuJoCo's names are those of mjModel):

- gravity: `opt.gravity`.
- friction: `geom_friction` and `pair_friction`, that is sliding, spinning and rolling. MuJoCo does not go
  below 0.00001 in a contact.
- actuators: the force at the same control and state. `actuator_gainprm`, `actuator_biasprm` (of muscles only
  their peak force: their other parameters are lengths and speeds) and `actuator_forcerange`.

DM Control's step begins in the middle of one of its simulator's: the first of its substeps after a change
still has forces that were computed before. Nothing else lags.

A restored snapshot goes on with the world that it was taken in: what is kept is the count of steps, and the
factor that the model has.

Slippery Ant of Dohare et al. (2024), "Loss of plasticity in deep continual learning", Nature 632, is such a
change of friction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from streamwise.envs.checks import flag, whole_number
from streamwise.envs.snapshot import attributes, set_attributes
from streamwise.streams import UsageError
from streamwise.streams.errors import nearest

__all__ = [
    "CHANGES",
    "GAMES",
    "OPTIONS",
    "ChangingObservations",
    "ChangingPhysics",
    "ChangingWorld",
    "GameSequence",
    "Schedule",
    "changing_world",
    "feature_order",
    "live_from",
]

Environment = gymnasium.Env[Any, Any]
Array = NDArray[Any]
Step = tuple[Any, Any, bool, bool, dict[str, Any]]
Reset = tuple[Any, dict[str, Any]]

CHANGES = ("gravity", "friction", "actuators", "observations")
OPTIONS = ("change", "values", "every", "blend", "repeat")
"""What a name may say of a changing world, after its question mark."""

GAMES = {  # MinAtar's own names, by those in names of environments
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
GRID = (10, 10, 10)  # of the game that shows most: Seaquest has ten channels

EVERY = 100_000  # steps that a world lasts, where nothing else is said


# --- when --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Which world it is after how many steps. Raises UsageError for what is none.

    Worlds come in their order, `every` steps each; one may come several times. repeat: after the last the
    first comes again; else the last stays for ever. blend: share of its time, 0 to 1, in which a world turns
    from the one before into itself; 0 changes between two steps, with 1 it never stands still.

    >>> schedule = Schedule((1.0, 0.5, 1.0, 1.5), every=10, blend=0.5)
    >>> [schedule.value(step) for step in (0, 9, 10, 12, 14, 19, 20)]
    [1.0, 1.0, 0.9, 0.7, 0.5, 0.5, 0.6]
    >>> [schedule.regime(step) for step in (0, 10, 20, 30, 40)]
    [0, 1, 0, 2, 0]
    """

    worlds: tuple[Any, ...]
    every: int = EVERY
    blend: float = 0.0
    repeat: bool = True

    def __post_init__(self) -> None:
        whole_number("every", self.every, 1)
        flag("repeat", self.repeat)
        if not self.worlds:
            raise UsageError("no world is given; give one or more.")
        if type(self.blend) not in (int, float) or not 0.0 <= self.blend <= 1.0:
            raise UsageError(f"blend is {self.blend!r}; give a share of the time of a world, 0 to 1.")

    def at(self, step: int) -> tuple[Any, Any, float]:
        """Return the world before, the present one, and the share, above 0, of the latter."""
        turn, lived = divmod(step, self.every)
        count = len(self.worlds)
        if not self.repeat and turn >= count:
            return self.worlds[-1], self.worlds[-1], 1.0
        now = self.worlds[turn % count]
        width = max(round(self.blend * self.every), 1)
        if not turn or lived + 1 >= width:
            return now, now, 1.0
        return self.worlds[turn % count - 1], now, (lived + 1) / width

    def value(self, step: int) -> float:
        """Return the value of the present world, where worlds are numbers."""
        before, now, share = self.at(step)
        value: float = now if share == 1.0 else before + share * (now - before)
        return value

    def regime(self, step: int) -> int:
        """Return the number of the present world, from 0 on in the order in which they first come."""
        return list(dict.fromkeys(self.worlds)).index(self.at(step)[1])


# --- worlds around an environment --------------------------------------------------------------------------


def changing_world(
    env: Environment,
    name: str,
    change: Any,
    values: Any = None,
    every: Any = EVERY,
    blend: Any = 0.0,
    repeat: Any = True,
) -> ChangingWorld:
    """Put a changing world around `env`, as its name says. Raises UsageError for what cannot be.

    values: a number, several, or a text with commas between them.
    """
    if change not in CHANGES:
        raise UsageError(
            f"{name}: change is {change!r}, which nothing changes.{nearest(str(change), CHANGES)}"
        )
    try:
        schedule = Schedule(_numbers(values), every, blend, repeat)
        if change == "observations":
            return ChangingObservations(env, schedule)
        return ChangingPhysics(env, change, schedule)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _numbers(values: Any) -> tuple[float, ...]:
    given = values.split(",") if isinstance(values, str) else values
    given = given if isinstance(given, list | tuple) else [given]
    try:
        numbers = tuple(math.nan if isinstance(value, bool) else float(value) for value in given)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UsageError(f"values is {values!r}; give numbers with commas between them, as in values=1,0.5.")
    return numbers


class ChangingWorld(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Counts the steps lived, of which a subclass makes its world.

    `info["regime"]` of a step is the number of the world it was taken in, for who records or evaluates.
    """

    def __init__(self, env: Environment, change: str, schedule: Schedule) -> None:
        layer = env
        while isinstance(layer, gymnasium.Wrapper):
            if getattr(layer, "change", None) == change:
                raise UsageError(f"{change} changes already; give one schedule of it.")
            layer = layer.env
        RecordConstructorArgs.__init__(
            self,
            change=change,
            worlds=list(schedule.worlds),
            every=schedule.every,
            blend=float(schedule.blend),
            repeat=schedule.repeat,
        )  # a snapshot is of one schedule
        gymnasium.Wrapper.__init__(self, env)
        self.change = change
        self.schedule = schedule
        self.steps = 0

    def step(self, action: Any) -> Step:
        """Take a step in the present world."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["regime"] = self.schedule.regime(self.steps)
        self.steps += 1
        return observation, reward, terminated, truncated, info

    def snapshot(self) -> dict[str, Any]:
        """Return the count of steps."""
        return {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `snapshot` gave."""
        self.steps = int(state["steps"])


class ChangingPhysics(ChangingWorld):
    """Gravity, friction or the strength of actuators is a multiple of what the model came with.

    Of any environment whose `unwrapped` is one of Gymnasium's on MuJoCo, or one of DM Control's. Raises
    UsageError for others, for a negative factor but of gravity, and for kinds of actuators whose force is no
    multiple of some parameters.

    >>> env = ChangingPhysics(gymnasium.make("Hopper-v5"), "gravity", Schedule((1.0, 0.5), every=2))
    >>> _ = env.reset(), env.step(np.zeros(3)), env.step(np.zeros(3)), env.step(np.zeros(3))
    >>> env.unwrapped.model.opt.gravity.tolist()
    [0.0, 0.0, -4.905]
    """

    def __init__(self, env: Environment, change: str, schedule: Schedule) -> None:
        if change not in _PHYSICS:
            raise UsageError(f"{change!r} is no part of physics.{nearest(change, _PHYSICS)}")
        if change != "gravity" and min(schedule.worlds) < 0.0:
            raise UsageError(
                f"{change} cannot be {min(schedule.worlds):g} times as large; give factors of 0 or more."
            )
        super().__init__(env, change, schedule)
        self._factor = 1.0
        self._model: Any = None
        self._parts: list[_Part] = []
        self._read_model()

    def step(self, action: Any) -> Step:
        """Take a step in the present world."""
        self._become(self.schedule.value(self.steps))
        return super().step(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode in the present world."""
        self._become(self.schedule.value(self.steps))
        result = self.env.reset(seed=seed, options=options)
        if _model_of(self.unwrapped) is not self._model:  # some tasks build another one for every episode
            self._read_model()
            self._become(self.schedule.value(self.steps))
        return result

    def _read_model(self) -> None:
        self._model = _model_of(self.unwrapped)
        if self._model is None:
            raise UsageError(f"{self.change} changes in tasks of MuJoCo and DM Control only.")
        self._parts = _PHYSICS[self.change](self._model)
        self._factor = 1.0

    def _become(self, factor: float) -> None:
        if factor == self._factor:
            return
        for part in self._parts:
            part.array[...] = np.where(part.scaled, part.original * factor, part.original)
        self._factor = factor

    def snapshot(self) -> dict[str, Any]:
        """Return the count of steps and the model's factor, which follows with the next step or reset."""
        return {**super().snapshot(), "factor": self._factor}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `snapshot` gave. Inner layers come after it, and find the model as it was."""
        super().restore(state)
        self._become(float(state["factor"]))


@dataclass(frozen=True)
class _Part:
    """An array of the model, what it was, and which of its numbers are multiplied."""

    array: Array
    original: Array
    scaled: Any = True


def _model_of(env: Any) -> Any:
    """Return MuJoCo's model in an environment without wrappers, or None."""
    physics = getattr(getattr(env, "_env", None), "physics", None)  # shimmy has DM Control's own in there
    model = getattr(env, "model", None) if physics is None else physics.model.ptr
    return model if type(model).__name__ == "MjModel" else None


def _gravity(model: Any) -> list[_Part]:
    return [_Part(model.opt.gravity, model.opt.gravity.copy())]


def _friction(model: Any) -> list[_Part]:
    return [_Part(array, array.copy()) for array in (model.geom_friction, model.pair_friction)]


def _actuators(model: Any) -> list[_Part]:
    import mujoco

    gain, bias = mujoco.mjtGain, mujoco.mjtBias
    known = (
        (model.actuator_gaintype, (gain.mjGAIN_FIXED, gain.mjGAIN_AFFINE), gain.mjGAIN_MUSCLE),
        (model.actuator_biastype, (bias.mjBIAS_NONE, bias.mjBIAS_AFFINE), bias.mjBIAS_MUSCLE),
    )
    parts = [_Part(model.actuator_forcerange, model.actuator_forcerange.copy())]
    for array, (kinds, lines, muscle) in zip(
        (model.actuator_gainprm, model.actuator_biasprm), known, strict=True
    ):
        if not np.isin(kinds, [int(kind) for kind in (*lines, muscle)]).all():
            raise UsageError("actuators changes motors, servos, dampers and muscles, and here are others.")
        scaled = np.ones(array.shape, np.bool_)
        scaled[kinds == int(muscle)] = False
        scaled[kinds == int(muscle), 2:4] = True  # its peak force, or what that is computed from
        parts.append(_Part(array, array.copy(), scaled))
    return parts


_PHYSICS: dict[str, Callable[[Any], list[_Part]]] = {
    "gravity": _gravity,
    "friction": _friction,
    "actuators": _actuators,
}


class ChangingObservations(ChangingWorld):
    """Flat observations come in another order. Worlds: whole numbers, 0 for the order as it is.

    An observation belongs to the world of the step that comes after it. The space has room for all worlds.
    """

    def __init__(self, env: Environment, schedule: Schedule) -> None:
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise UsageError("observations change their order where they are flat, and here they are not.")
        for value in schedule.worlds:
            if value < 0 or value != int(value):
                raise UsageError(f"{value:g} is no order of observations; give whole numbers, 0 or more.")
        super().__init__(env, "observations", schedule)
        self.orders = {value: feature_order(int(value), space.shape[0]) for value in schedule.worlds}
        self.observation_space = spaces.Box(
            np.min([space.low[order] for order in self.orders.values()], axis=0),
            np.max([space.high[order] for order in self.orders.values()], axis=0),
            dtype=space.dtype.type,
        )

    def step(self, action: Any) -> Step:
        """Take a step."""
        observation, *rest = super().step(action)
        return self._seen(observation), *rest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._seen(observation), info

    def _seen(self, observation: Array) -> Array:
        before, now, share = self.schedule.at(self.steps)
        seen: Array = observation[self.orders[now]]
        if share < 1.0:
            mixture = (1.0 - share) * observation[self.orders[before]] + share * seen
            seen = mixture.astype(seen.dtype, copy=False)
        return seen


def feature_order(seed: int, features: int) -> NDArray[np.int64]:
    """Return which feature comes at each place: int64 [features], a permutation; seed 0: all stay."""
    return np.random.default_rng(seed).permutation(features) if seed else np.arange(features)


def live_from(env: Environment, steps: int) -> None:
    """Tell the layers of `env` whose world changes how many steps were lived before its next reset."""
    layer: Any = env
    while layer is not None:
        if isinstance(layer, ChangingWorld | GameSequence):
            layer.steps = steps
        layer = layer.env if isinstance(layer, gymnasium.Wrapper) else None


# --- games -------------------------------------------------------------------------------------------------


class GameSequence(gymnasium.Env[Any, Any]):
    """MinAtar's games one after the other, with the same observations and actions in all.

    games: names as in `MinAtar/<name>-v0`, a list or a text with commas; one may come several times. Episodes
    are played to their end: a game begins with the first episode that starts after its time has come, and is
    left out if none does. Each game has its own generator, which waits while others are played.

    Observation: bool [10, 10, 10]; channels that a game lacks are empty. Action: the six of all games. info
    of a step has `regime`, the number of its game among those given.
    """

    metadata = {"render_modes": ["human", "array", "rgb_array"]}  # noqa: RUF012  # Gymnasium's own type

    def __init__(
        self,
        games: Any = tuple(GAMES),
        every: Any = EVERY,
        repeat: Any = True,
        render_mode: str | None = None,
    ) -> None:
        from minatar.gym import BaseEnv

        names = games.split(",") if isinstance(games, str) else games
        if not isinstance(names, Sequence):
            raise UsageError(f"games is {games!r}; give names with commas between them.")
        for name in names:
            if name not in GAMES:
                raise UsageError(f"no game is named {name!r}.{nearest(str(name), GAMES)}")
        self.schedule = Schedule(tuple(names), every, 0.0, repeat)
        self.render_mode = render_mode
        self.games = {name: BaseEnv(GAMES[name], render_mode) for name in dict.fromkeys(names)}
        self.observation_space = spaces.Box(0.0, 1.0, GRID, np.bool_)
        self.action_space = self.games[names[0]].action_space
        self.steps = 0
        self.game = str(names[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Start an episode of the game whose time it is. seed: of all games."""
        if seed is not None:
            seeds = np.random.SeedSequence(seed).generate_state(len(GAMES)).tolist()
            for name, own in zip(GAMES, seeds, strict=True):
                if name in self.games:
                    self.games[name].seed(own)
        self.game = self.schedule.at(self.steps)[1]
        observation, info = self.games[self.game].reset(options=options)
        return _padded(observation), info

    def step(self, action: int) -> Step:
        """Take a step in the present game."""
        observation, reward, terminated, truncated, info = self.games[self.game].step(action)
        self.steps += 1
        info["regime"] = list(self.games).index(self.game)
        return _padded(observation), reward, terminated, truncated, info

    def render(self) -> Any:
        """Draw the present game."""
        return self.games[self.game].render()

    def close(self) -> None:
        """Close all games."""
        for game in self.games.values():
            game.close()

    def snapshot(self) -> dict[str, Any]:
        """Return the count of steps, the present game, and the state of all."""
        games = {name: attributes(game) for name, game in self.games.items()}
        return {"steps": self.steps, "game": self.game, "games": games}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `snapshot` gave."""
        for name, game in self.games.items():
            set_attributes(game, state["games"][name])
        self.steps, self.game = int(state["steps"]), str(state["game"])


def _padded(observation: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.zeros(GRID, np.bool_)
    padded[..., : observation.shape[2]] = observation
    return padded
