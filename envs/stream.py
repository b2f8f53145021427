"""An environment and a policy as an endless stream of transitions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from streamwise.envs.changing import live_from
from streamwise.envs.snapshot import NoSnapshotError, capture, restore, why_not
from streamwise.envs.snapshot_values import array_from_json, array_to_json
from streamwise.streams import Action, NonFiniteSampleError, Position, Transition, UsageError

__all__ = ["EnvironmentStream"]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_new_tuple: Callable[..., Transition] = tuple.__new__


class EnvironmentStream:
    """Steps `env` with the actions of `act`, for ever; a new episode starts where one ends.

    env: an environment with Box observations and Box or Discrete actions, as `make` gives. act: called with
    an observation, returns an action. It is called when the next transition is asked for, so it already knows
    what was learned from the one before. seed: int >= 0; the first reset is seeded from it, later ones go on
    with the environment's own generator.

    Arrays in a transition are never changed afterwards; the `next_observation` of one transition is the
    `observation` of the next within an episode. NaN in observations or rewards passes through: learners
    refuse it. An action of the wrong shape or range, or one that is not finite, raises ValueError.

    Leaving a loop and starting another one goes on in mid-episode. So does seeking a position, in another
    process too: it holds the environment's full state (`streamwise.envs.snapshot`), and the same actions are
    followed by the same transitions, bit for bit. For an environment whose state cannot be captured,
    `why_no_snapshot` says why, and a seek starts a new episode.

    >>> from itertools import islice
    >>> stream = EnvironmentStream(gymnasium.make("CartPole-v1"), lambda observation: 0)
    >>> total = sum(transition.reward for transition in islice(stream, 100))
    >>> total, stream.position["step"]
    (100.0, 100)
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], act: Callable[[NDArray[Any]], Action], *, seed: int = 0
    ) -> None:
        if not isinstance(env.observation_space, spaces.Box):
            raise UsageError(
                f"EnvironmentStream takes Box observations, not {env.observation_space}; "
                "streamwise.envs.make flattens them."
            )
        self.env = env
        self.act = act
        self.info: dict[str, Any] = {}
        """What the environment said beside the last transition (or reset), as it gave it."""
        self._check = _action_check(env.action_space)
        self._observation: NDArray[Any] | None = None  # None: the next step is the first of an episode
        self._reset_seed: int | None = None
        self._closed = False
        self.seek({"seed": seed, "episode": 0, "step": 0})

    @property
    def position(self) -> Position:
        """Where the next transition comes from: seed, completed episodes, delivered steps, environment.

        `environment` is its snapshot, `observation` the one to act on (None: the next step begins an episode)
        and `reset_seed` the seed of the reset before it; all three are absent if the environment cannot be
        captured, or is closed. To capture it takes some tenths of a millisecond.
        """
        numbers = {"seed": self._seed, "episode": self._episode, "step": self._step}
        if self._closed:
            return numbers
        try:
            environment = capture(self.env)
        except NoSnapshotError:
            return numbers
        observation = None if self._observation is None else array_to_json(self._observation)
        exact = {"environment": environment, "observation": observation, "reset_seed": self._reset_seed}
        return {**numbers, **exact}

    @property
    def why_no_snapshot(self) -> str | None:
        """Why `position` cannot hold the environment's state, in one line; None if it can."""
        return why_not(self.env)

    def __iter__(self) -> Iterator[Transition]:
        """Yield transitions until the stream is closed."""
        while not self._closed:
            observation = self._observation
            if observation is None:
                first, self.info = self.env.reset(seed=self._reset_seed)
                self._reset_seed = None
                observation = self._observation = np.array(first)
            action = self._check(self.act(observation), self._step)
            result, reward, terminated, truncated, self.info = self.env.step(action)
            # An environment may reuse its buffer; a copy costs 0.2 µs (1 µs for four Atari frames).
            next_observation = np.array(result)
            over = bool(terminated or truncated)
            self._observation = None if over else next_observation
            self._episode += over
            self._step += 1
            # Past the constructor that NamedTuple writes in Python.
            yield _new_tuple(
                Transition,
                (observation, action, float(reward), next_observation, bool(terminated), bool(truncated)),
            )

    def seek(self, position: Position) -> None:
        """Go on from `position`, exactly if it holds the environment's state.

        If it does not, a fresh episode begins, whose reset seed depends on the position's three numbers only:
        the counts go on, and with them a world that changes (`streamwise.envs.changing`); the rest of an
        interrupted episode is not repeated.
        Raises UsageError, with nothing changed, for a position of another kind or environment.
        """
        try:
            numbers = tuple(operator.index(position[key]) for key in ("seed", "episode", "step"))
        except (KeyError, TypeError):
            numbers = (-1,)
        if min(numbers) < 0:
            found = {key: position.get(key) for key in ("seed", "episode", "step")}
            raise UsageError(
                f"{found} is no position of an environment: "
                "seed, episode and step must be whole numbers, 0 or more."
            )
        if "environment" in position:
            observation, reset_seed = self._pending(position)
            restore(self.env, position["environment"])
            self._observation, self._reset_seed = observation, reset_seed
        else:
            self._observation = None
            self._reset_seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
            live_from(self.env, numbers[2])
        self._seed, self._episode, self._step = numbers

    def _pending(self, position: Position) -> tuple[NDArray[Any] | None, int | None]:
        """Return the observation to act on and the seed of the next reset that an exact position holds."""
        try:
            saved, seed = position["observation"], position["reset_seed"]
            observation = None if saved is None else array_from_json(saved)
            reset_seed = None if seed is None else operator.index(seed)
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(
                f"the position is damaged ({error}); use that of an earlier checkpoint."
            ) from None
        if observation is not None and observation.shape != self.env.observation_space.shape:
            raise UsageError(
                f"the position has an observation of shape {observation.shape}, and the environment one of "
                f"{self.env.observation_space.shape}; make it with the options it was captured with."
            )
        return observation, reset_seed

    def commit(self, position: Position) -> None:
        """Do nothing: nobody outside keeps an account of which steps of an environment were learned."""

    def close(self) -> None:
        """Close the environment and end the stream. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            self.env.close()


def _action_check(space: spaces.Space[Any]) -> Callable[[Action, int], Any]:
    """Return the function (action, step) -> checked action, one that the agent cannot change later."""
    if isinstance(space, spaces.Discrete):
        low = int(space.start)
        high = low + int(space.n) - 1

        def check_index(action: Action, step: int) -> int:
            try:
                index = operator.index(action)  # type: ignore[arg-type]  # what is no number is refused
            except TypeError:
                index = low - 1
            if not low <= index <= high:
                raise ValueError(
                    f"step {step}: the action is {action!r}, not a whole number {low} to {high}."
                )
            return index

        return check_index
    if isinstance(space, spaces.Box):
        shape = space.shape
        is_row = len(shape) == 1

        def check_array(action: Action, step: int) -> NDArray[Any]:
            taken = np.array(action)
            if is_row and taken.shape == shape and (taken.dtype is _FLOAT32 or taken.dtype is _FLOAT64):
                # Python's own sum: between two steps of a simulator NumPy's code is out of the fast caches.
                total = sum(taken.tolist())
                if total - total == 0.0:  # else it is not finite
                    return taken  # nearly always, and all the rest is slower
            if taken.shape != shape:
                raise ValueError(f"step {step}: the action has shape {taken.shape}, not {shape}.")
            if taken.dtype.kind not in "fiu":
                raise ValueError(f"step {step}: the action is of type {taken.dtype}, not of numbers.")
            if not np.isfinite(taken).all():
                raise NonFiniteSampleError(f"step {step}: the action is {taken.tolist()}, not finite.")
            return taken

        return check_array
    raise UsageError(f"EnvironmentStream takes Box or Discrete actions, not {space}.")
