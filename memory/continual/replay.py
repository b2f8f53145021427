"""Experience replay: every update also learns from a few samples of before.

Sources: Chaudhry et al. (2019), "On tiny episodic memories in continual learning", arXiv:1902.10486; Vitter
(1985) for what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamwise.memory.continual.reservoir import Reservoir
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["Replay"]


class Replay(Wrapped):
    """Adds samples of before to each batch, and the batch to a reservoir afterwards.

    capacity: samples that are kept. count: of them are drawn for an update. Boundaries change nothing.
    """

    name = "replay"

    def __init__(self, learner: Trainable, *, capacity: int = 200, count: int = 10, seed: int = 0) -> None:
        super().__init__(learner)
        if count < 1:
            raise ValueError(f"count is {count}; use 1 or more.")
        self.reservoir, self.count = Reservoir(capacity, seed), count
        self.plain = learner.objective
        self.objective = self._of_both

    def _of_both(self, inputs: Tensor, targets: Tensor) -> Tensor:
        rows = self.reservoir.rows(self.count)
        before, known = self.reservoir.inputs[rows], self.reservoir.targets[rows]
        for input, target in zip(inputs, targets, strict=True):
            self.reservoir.add(input, target)
        if not len(before):
            return self.plain(inputs, targets)
        return self.plain(torch.cat([inputs, before]), torch.cat([targets, known]))

    def own_state(self) -> dict[str, Tensor]:
        """Return the reservoir."""
        return self.reservoir.state_dict()

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.reservoir.load_state_dict(state)
