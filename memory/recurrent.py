"""A recurrent state in place of a memory: what chunks of the past are compared with.

The gradient goes one step back, as a streaming update allows: the state that came before is a constant. A
cell then learns to keep only what is of use at once.

Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder", arXiv:1406.1078.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["RecurrentMemory", "RecurrentRead"]


class RecurrentMemory:
    """The states of an agent's recurrent cells, one a network, through an episode.

    width: numbers in an item. features: units of each cell.
    """

    def __init__(self, width: int, *, features: int = 32, dtype: torch.dtype = torch.float32) -> None:
        self.width, self.features, self.dtype = width, features, dtype
        self.reads: list[RecurrentRead] = []

    def reader(self, generator: torch.Generator | None = None) -> RecurrentRead:
        """Return a cell whose state is this memory's."""
        read = RecurrentRead(self.width, self.features, self.dtype, generator)
        self.reads.append(read)
        return read

    @torch.no_grad()
    def append(self, item: Tensor) -> None:
        """Move every cell's state on by one step, [width]."""
        for read in self.reads:
            read.hidden[:] = read(item[None])[0].numpy()

    def clear(self) -> None:
        """Start every cell from zeros, as at the end of an episode."""
        for read in self.reads:
            read.hidden[:] = 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states, [cells, features]."""
        return {"memory.hidden": torch.tensor(np.stack([read.hidden for read in self.reads]))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave. Raises ValueError for one of another shape."""
        given, expected = tuple(state["memory.hidden"].shape), (len(self.reads), self.features)
        if given != expected:
            raise ValueError(f"the state is of {given} recurrent units, and the memory has {expected}.")
        for read, hidden in zip(self.reads, state["memory.hidden"], strict=True):
            read.hidden[:] = hidden.numpy()


class RecurrentRead(nn.Module):
    """One step of a gated recurrent unit from where the memory stands: [1, width] to [1, features]."""

    def __init__(
        self, width: int, features: int, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, features)
        # Of the memory, not of the module; native code writes to it as well.
        self.hidden: NDArray[Any] = torch.zeros(features, dtype=dtype).numpy()
        bound = 1.0 / math.sqrt(features)
        for weight in self.cell.parameters():
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, width]. Changes no state."""
        before = torch.from_numpy(self.hidden.copy())[None]  # the state may move on before the backward pass
        after: Tensor = self.cell(x, before)
        return after
