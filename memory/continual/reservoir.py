"""A few of all samples that ever came, each with the same chance to be among them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamwise.memory.splitmix import mix

__all__ = ["Reservoir"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Reservoir:
    """At most `capacity` inputs and targets, a uniform sample of all that were added.

    Sample n, from 0, takes a place that is drawn from 0 to n, if that is one of the capacity (algorithm R). A
    draw is a function of the seed and of how many there were before, so that the state is the samples and two
    counts.

    Source: Vitter (1985), "Random sampling with a reservoir".

    >>> reservoir = Reservoir(2, seed=0)
    >>> for number in range(100):
    ...     place = reservoir.add(torch.tensor([float(number)]), torch.tensor(number % 3))
    >>> len(reservoir), reservoir.seen
    (2, 100)
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; use 1 or more.")
        self.capacity = capacity
        self.seen = self.drawn = 0
        self.inputs = torch.zeros(0)  # [n, ...]
        self.targets = torch.zeros(0, dtype=torch.int64)  # [n, ...]
        self._key = mix(seed & _MASK)

    def __len__(self) -> int:
        return len(self.inputs)

    def add(self, input: Tensor, target: Tensor) -> int | None:
        """Take a sample, and return its place; None if it was let go."""
        place = self._integer(self.seen + 1)
        self.seen += 1
        if len(self) < self.capacity:
            self.inputs = torch.cat([self.inputs, input[None]]) if len(self) else input[None].clone()
            self.targets = (
                torch.cat([self.targets, target[None]]) if len(self.targets) else target[None].clone()
            )
            return len(self) - 1
        if place >= self.capacity:
            return None
        self.inputs[place], self.targets[place] = input, target
        return place

    def rows(self, count: int) -> Tensor:
        """Return `count` of the places, or all if there are fewer, each at most once, in a drawn order."""
        order = torch.arange(len(self))
        taken = min(count, len(order))
        for place in range(taken):  # of Fisher and Yates' shuffle, as much as is needed
            other = place + self._integer(len(order) - place)
            order[[place, other]] = order[[other, place]]
        return order[:taken]

    def balanced_rows(self, count: int) -> Tensor:
        """Return `count` places, some more than once, each of a class that is drawn first, evenly."""
        classes = [torch.nonzero(self.targets == label)[:, 0] for label in torch.unique(self.targets)]
        chosen = [classes[self._integer(len(classes))] for _ in range(count if classes else 0)]
        return torch.tensor([int(rows[self._integer(len(rows))]) for rows in chosen], dtype=torch.int64)

    def _integer(self, below: int) -> int:
        self.drawn += 1
        bits = mix((self._key + self.drawn * _GOLDEN) & _MASK)
        return (bits * below) >> 64

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples and the counts."""
        return {
            "inputs": self.inputs.clone(),
            "targets": self.targets.clone(),
            "counts": torch.tensor([self.seen, self.drawn]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave. Raises ValueError if it holds more than the capacity."""
        if len(state["inputs"]) > self.capacity:
            raise ValueError(
                f"the state holds {len(state['inputs'])} samples, and the capacity is {self.capacity}; use "
                "the same."
            )
        self.inputs, self.targets = state["inputs"].clone(), state["targets"].clone()
        self.seen, self.drawn = (int(count) for count in state["counts"])
