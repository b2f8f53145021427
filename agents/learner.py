"""What every learner can do, in three verbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from streamwise.streams import Action, Transition

__all__ = ["Agent", "Learner", "Metrics", "Predictor", "State"]

Metrics = Mapping[str, float]
State = dict[str, Tensor]


class Learner(Protocol):
    """Learns from one sample at a time and keeps everything it needs to go on in `state_dict`."""

    def learn_one(self, transition: Transition, /) -> Metrics:
        """Score one sample, then make one update from it."""
        ...

    def state_dict(self) -> State:
        """Return everything: weights, traces, statistics, counters, generator."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        ...


class Agent(Learner, Protocol):
    """A learner that acts."""

    def act(self, observation: NDArray[Any], *, explore: bool = True) -> Action:
        """Choose an action; with `explore=False` the greedy one, drawing nothing at random."""
        ...

    def remember(self, observation: NDArray[Any]) -> None:
        """Take an observation that was acted on into the memory, if there is one, learning nothing."""
        ...

    def forget(self) -> None:
        """Forget the episode, as at its end: traces, and what was remembered of it."""
        ...


class Predictor(Learner, Protocol):
    """A learner that predicts a number."""

    def predict_one(self, observation: NDArray[Any]) -> float:
        """Predict from one observation, changing nothing."""
        ...

    def remember(self, observation: NDArray[Any]) -> None:
        """Take an observation into the memory, if there is one, learning nothing."""
        ...

    def forget(self) -> None:
        """Forget the episode, as at its end: traces, and what was remembered of it."""
        ...
