"""How able an agent's networks still are to learn, measured now and then on what it saw of late."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents import Metrics
from streamwise.agents.plasticity import plasticity
from streamwise.streams import UsageError

__all__ = ["PlasticityWatch"]

_OBSERVATIONS = 256  # a batch; ranks are at most so large
_APART = 8  # steps between two of them: neighbours are much alike
_KEPT = "run.observations"


class PlasticityWatch:
    """Keeps the observations of some of the last 2,048 steps, and measures on them every so many steps.

    Measures have the names of `streamwise.agents.plasticity` behind that of their network: `critic_` and
    `actor_`, or `value_` where there is one network. Nothing of the agent changes. Raises UsageError for
    networks without units.
    """

    def __init__(self, learner: Any, every: int) -> None:
        self.learner, self.every = learner, every
        names = {"critic": "critic", "actor": "actor"} if hasattr(learner, "critic") else {"value": "network"}
        self.networks = {name: getattr(learner, place).module for name, place in names.items()}
        self._seen: deque[NDArray[Any]] = deque(maxlen=_OBSERVATIONS)
        if learner.config.network == "bottleneck":
            raise UsageError("--plasticity-every measures layers, and --network bottleneck has none.")

    def see(self, step: int, observation: NDArray[Any]) -> Metrics | None:
        """Take note of the observation at a step; return measures if it is time for them."""
        if step % _APART == 0:
            self._seen.append(np.array(observation))
        return self.measured() if step % self.every == 0 and len(self._seen) > 1 else None

    def measured(self) -> Metrics:
        """Return all measures of all networks."""
        if self.learner.native is not None:
            self.learner.native.pull()  # statistics of observations
        samples = self.learner.samples
        observations = samples.observations.normalize(np.stack(list(self._seen)), samples.dtype)
        return {
            f"{name}_{measure}": value
            for name, network in self.networks.items()
            for measure, value in plasticity(network, observations).items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the observations, for a checkpoint."""
        return {_KEPT: torch.from_numpy(np.stack(list(self._seen)))} if self._seen else {}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._seen.extend(state[_KEPT].numpy() if _KEPT in state else [])
