"""Epsilon-greedy exploration, shared by stream-Q and stream-SARSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from torch import Tensor

from streamwise.agents.policies import discrete_size
from streamwise.agents.settings import StreamSettings
from streamwise.streams import UsageError

__all__ = ["ExplorationSettings", "actions_of", "greedy_action"]


@dataclass(frozen=True)
class ExplorationSettings(StreamSettings):
    """Settings of a learner that explores epsilon-greedily."""

    epsilon_start: float = 1.0
    """Probability of a random action at first."""
    epsilon_end: float = 0.01
    """Probability of a random action after `exploration_steps`."""
    exploration_steps: int | None = None
    """Steps over which epsilon falls linearly. Unset: `exploration_fraction` of a run's length, or 25000
    steps where there is no run."""
    exploration_fraction: float = 0.05
    """Share of a run's steps over which epsilon falls, where `exploration_steps` is unset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epsilon_start", "epsilon_end", "exploration_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is {getattr(self, name)}; it lies in [0, 1].")
        if self.exploration_steps is not None and self.exploration_steps < 0:
            raise UsageError(f"exploration_steps is {self.exploration_steps}; it cannot be negative.")

    @property
    def exploration_duration(self) -> int:
        """Steps over which epsilon falls; 25,000 where neither settings nor a run said otherwise."""
        return 25_000 if self.exploration_steps is None else self.exploration_steps

    def native_settings(self) -> dict[str, Any]:
        """Return what the native step needs to know of exploration."""
        return {
            "epsilon_start": float(self.epsilon_start),
            "epsilon_end": float(self.epsilon_end),
            "exploration_steps": float(self.exploration_duration),
        }

    def epsilon(self, steps: int) -> float:
        """Return the probability of a random action after `steps` steps.

        >>> ExplorationSettings(exploration_steps=100).epsilon(50)
        0.505
        """
        duration = self.exploration_duration
        remaining = max(1.0 - steps / duration, 0.0) if duration else 0.0
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * remaining


def actions_of(space: spaces.Space[Any], agent: str) -> int:
    """Return the number of discrete actions. Raises UsageError for any other space."""
    if not isinstance(space, spaces.Discrete):
        raise UsageError(f"{agent} takes Discrete actions, not {space}; stream-ac takes Box actions.")
    return discrete_size(space, agent)


def greedy_action(values: Tensor) -> int:
    """Return the index of the highest value, the first of equals. values: [actions]."""
    return int(values.argmax())
