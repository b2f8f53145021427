"""What a stream delivers, and what every source of samples can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Action", "Example", "Position", "Stream", "Transition"]

Action = NDArray[np.floating[Any]] | int | None
Position = dict[str, Any]  # where the next sample comes from; holds only what JSON can hold

Sample_co = TypeVar("Sample_co", covariant=True)


class Transition(NamedTuple):
    """One step of an environment, or of a time series that is only predicted.

    observation, next_observation: array of the observation space's shape, as the environment gave it
    (learners normalize for themselves). action: float array [action size], an int, or None when there
    is nothing to choose. reward: float, the environment's own units. terminated: the world ended here,
    nothing follows. truncated: the episode was cut, for example by a time limit, though the world goes on.
    """

    observation: NDArray[Any]
    action: Action
    reward: float
    next_observation: NDArray[Any]
    terminated: bool
    truncated: bool


class Example(NamedTuple):
    """A labelled sample. features: float32 [...], of the same shape in all. label: a class, 0 or more."""

    features: NDArray[np.float32]
    label: int


class Stream(Protocol[Sample_co]):
    """A source of samples that can say where it is and go back there."""

    @property
    def position(self) -> Position:
        """Where the next sample comes from."""
        ...

    def __iter__(self) -> Iterator[Sample_co]: ...

    def seek(self, position: Position) -> None:
        """Go on from `position`, as an earlier `position` of this kind of stream gave it."""
        ...

    def commit(self, position: Position) -> None:
        """Tell the outside that everything before `position` is durably learned."""
        ...

    def close(self) -> None:
        """Release what the stream holds."""
        ...
