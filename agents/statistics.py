"""Running statistics of what a learner sees, kept by the learner.

Both normalizers follow stream-x (Elsayed, Vasan and Mahmood 2024, arXiv:2410.14606): the sample first
enters the statistics, then is normalized by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.streams import NonFiniteSampleError, Transition

__all__ = ["ObservationNormalizer", "RewardScaler", "RunningStatistics", "TransitionNormalizer"]

_EPSILON = 1e-8


class RunningStatistics:
    """Mean and unbiased variance of a stream of arrays, by Welford's algorithm, in float64.

    The variance is 1 until two samples have been seen.

    >>> statistics = RunningStatistics((2,))
    >>> for x in ([0.0, 1.0], [2.0, 5.0]): statistics.update(np.array(x))
    >>> statistics.mean.tolist(), statistics.variance.tolist()
    ([1.0, 3.0], [2.0, 8.0])
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(shape)
        self.squared_deviation: NDArray[np.float64] = np.zeros(shape)  # sum over samples

    @property
    def variance(self) -> NDArray[np.float64]:
        """The variance with count - 1 in the denominator."""
        if self.count < 2:
            return np.ones_like(self.mean)
        return self.squared_deviation / (self.count - 1)

    def update(self, x: NDArray[Any]) -> None:
        """Take one sample of the statistics' shape into account."""
        self.count += 1
        deviation = x - self.mean
        self.mean += deviation / self.count
        self.squared_deviation += deviation * (x - self.mean)

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return count, mean and summed squared deviation under `prefix`."""
        return {
            f"{prefix}.count": torch.tensor(self.count),
            f"{prefix}.mean": torch.from_numpy(self.mean.copy()),
            f"{prefix}.squared_deviation": torch.from_numpy(self.squared_deviation.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave."""
        self.count = int(state[f"{prefix}.count"])
        self.mean[...] = state[f"{prefix}.mean"].numpy()
        self.squared_deviation[...] = state[f"{prefix}.squared_deviation"].numpy()


class ObservationNormalizer:
    """(observation - mean) / sqrt(variance + 1e-8), feature by feature.

    The last `passthrough` features of a flat observation are left as they are: a time feature already has
    a scale of its own.
    """

    def __init__(self, shape: tuple[int, ...], passthrough: int = 0) -> None:
        if passthrough and (len(shape) != 1 or shape[0] < passthrough):
            raise ValueError(f"{passthrough} features of an observation of shape {shape} cannot be left out.")
        self.shape = shape
        self.features = (..., slice(0, shape[0] - passthrough)) if passthrough else (...,)
        kept = (shape[0] - passthrough,) if passthrough else shape
        self.statistics = RunningStatistics(kept)

    def update(self, observation: NDArray[Any]) -> None:
        """Take one observation into account."""
        self.statistics.update(observation[self.features])

    def normalize(self, observation: NDArray[Any], dtype: torch.dtype) -> Tensor:
        """Return one observation, or an array of them, under the present statistics, as a new tensor."""
        statistics = self.statistics
        normalized = np.array(observation, dtype=np.float64)
        features = normalized[self.features]
        features -= statistics.mean
        features /= np.sqrt(statistics.variance + _EPSILON)
        return torch.from_numpy(normalized).to(dtype)


class RewardScaler:
    """reward / sqrt(variance of the running discounted return + 1e-8); not centred, not clipped.

    The discounted return u follows u = discount * u + reward and starts again where the value's own target
    does: at a termination, and at a truncation that is not bootstrapped (as in each published code).
    """

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.discounted_return = 0.0
        self.statistics = RunningStatistics(())

    def scale(self, reward: float, ended: bool) -> float:
        """Take one reward into account, then return it in units of the return's deviation."""
        carried = 0.0 if ended else self.discount * self.discounted_return
        self.discounted_return = carried + reward
        self.statistics.update(np.asarray(self.discounted_return))
        return reward / self.deviation

    @property
    def deviation(self) -> float:
        """What a reward is divided by: reward units per unit of what the learner sees."""
        return math.sqrt(float(self.statistics.variance) + _EPSILON)

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return the statistics and the discounted return under `prefix`."""
        present = torch.tensor(self.discounted_return, dtype=torch.float64)
        return {f"{prefix}.discounted_return": present, **self.statistics.state_dict(prefix)}

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave."""
        self.discounted_return = float(state[f"{prefix}.discounted_return"])
        self.statistics.load_state_dict(state, prefix)


class TransitionNormalizer:
    """Everything between a raw transition and what a learner's networks see.

    Refuses NaN and infinities before anything changes, then normalizes observation, reward and next
    observation. An observation is normalized by the statistics of the moment it arrived, so the first
    observation of an episode is counted when its transition is learned; `observe`, which choosing an action
    uses, changes nothing.
    """

    def __init__(
        self, shape: tuple[int, ...], discount: float, dtype: torch.dtype, passthrough: int = 0
    ) -> None:
        self.observations = ObservationNormalizer(shape, passthrough)
        self.rewards = RewardScaler(discount)
        self.dtype = dtype
        self.steps = 0
        self.episode_starts = True

    def observe(self, observation: NDArray[Any]) -> Tensor:
        """Return the observation as the networks see it. Raises NonFiniteSampleError."""
        self._check(observation, "observation")
        return self.observations.normalize(observation, self.dtype)

    def learn_one(self, transition: Transition, value_ends: bool) -> tuple[Tensor, float, Tensor]:
        """Take one transition into account; return observation, reward and next observation, normalized.

        value_ends: nothing is valued beyond this transition.
        Raises NonFiniteSampleError and ValueError (a wrong shape), both before any state has changed.
        """
        self.check(transition)
        self.steps += 1
        if self.episode_starts:
            self.observations.update(transition.observation)
        observation = self.observations.normalize(transition.observation, self.dtype)
        self.observations.update(transition.next_observation)
        next_observation = self.observations.normalize(transition.next_observation, self.dtype)
        # A NumPy scalar would pass its type on: float32 would take precision from the running return, and
        # np.float64 would make booleans of NumPy's out of comparisons further on.
        reward = self.rewards.scale(float(transition.reward), value_ends)
        self.episode_starts = transition.terminated or transition.truncated
        return observation, reward, next_observation

    def check(self, transition: Transition) -> None:
        """Raise NonFiniteSampleError, or ValueError for a wrong shape, unless this can be learned."""
        self._check(transition.observation, "observation")
        self._check(transition.next_observation, "next observation")
        if not math.isfinite(transition.reward):
            raise NonFiniteSampleError(
                f"step {self.steps + 1}: the reward is {transition.reward}; the sample was refused."
            )

    def _check(self, observation: NDArray[Any], what: str) -> None:
        step = self.steps + 1
        if observation.shape != self.observations.shape:
            raise ValueError(
                f"step {step}: the {what} has shape {observation.shape}; this learner was made for "
                f"{self.observations.shape}."
            )
        if observation.dtype.kind == "f" and not np.isfinite(observation).all():
            feature = tuple(int(i) for i in np.argwhere(~np.isfinite(observation))[0])
            name = ", ".join(str(i) for i in feature)
            raise NonFiniteSampleError(
                f"step {step}: feature {name} of the {what} is {observation[feature]}; the sample was "
                "refused."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics, the step count and whether the next transition opens an episode."""
        return {
            "steps": torch.tensor(self.steps),
            "episode_starts": torch.tensor(self.episode_starts),
            **self.observations.statistics.state_dict("observations"),
            **self.rewards.state_dict("rewards"),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.steps = int(state["steps"])
        self.episode_starts = bool(state["episode_starts"])
        self.observations.statistics.load_state_dict(state, "observations")
        self.rewards.load_state_dict(state, "rewards")
