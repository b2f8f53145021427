"""A key-value bottleneck as an agent's network: a table of values that observations are looked up in.

    e    the observation, normalized, flat [E]; nothing encodes it
    q(s, ·) = 1/C Σ_c V_c,j_c(e)      for a value as for the outputs of a policy; V starts at zero

The books are one for all networks of an agent, which have values of their own. During the first `warm_up`
observations their keys follow what is seen, as in `memory.continual.key_value_bottleneck`. Outputs and
gradients are zero until then, so that nothing is learned under a key that moves; afterwards the keys stay as
they are for ever, and an update moves what was looked up: C rows of a network, or with traces those that
were looked up of late.

Two things to know. Traces are as dense as the values: rows that were not looked up decay in them, too. And
keys are where normalized observations were; where the normalization drifts, by a change of the world, the
same observation may come to another key.

Source: Träuble et al. (2023), "Discrete key-value bottleneck", arXiv:2207.11240; that it may be a linear
learner's features for streaming reinforcement learning is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamwise.memory.continual.key_value_bottleneck import Bottleneck
from streamwise.memory.splitmix import mix

__all__ = ["BottleneckMemory", "BottleneckRead"]

_MASK = (1 << 64) - 1
_BATCH = 64  # observations of one move of the keys
_KEPT = ("projection", "keys", "counts", "sums")  # counts and sums: of the keys' own averages


class BottleneckMemory:
    """Books of keys that follow the first observations. Sizes: as of `Bottleneck`.

    warm_up: observations, appended, until the keys stay; 0: they are the standard normal ones they began as.
    """

    def __init__(
        self,
        width: int,
        *,
        books: int = 64,
        pairs: int = 64,
        key_width: int = 8,
        warm_up: int = 2000,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.width, self.warm_up, self.dtype = width, warm_up, dtype
        self.sizes = {"books": books, "pairs": pairs, "key_width": key_width}
        self.books = self._bottleneck(0, seed)
        self._key = mix(seed & _MASK) >> 1
        # Native code writes to these two as well.
        self._waiting = torch.zeros(_BATCH, width, dtype=dtype)  # observations for the next move of the keys
        self._counters = np.zeros(2, np.int64)  # observations seen, and how many of them are waiting

    def _bottleneck(self, outputs: int, seed: int) -> Bottleneck:
        return _Books(self.width, outputs, **self.sizes, decay=0.95, seed=seed & _MASK).to(self.dtype)

    @property
    def seen(self) -> int:
        """How many observations were looked at before the keys stayed."""
        return int(self._counters[0])

    @property
    def is_frozen(self) -> bool:
        """Whether the keys stay as they are."""
        return self.seen >= self.warm_up

    def reader(self, outputs: int) -> BottleneckRead:
        """Return a network of its own values, [1, *observation_shape] to [1, outputs], with these books."""
        bottleneck = self._bottleneck(outputs, 0)
        for name, buffer in self.books.named_buffers():
            setattr(bottleneck, name, buffer)
        return BottleneckRead(bottleneck, self)

    def append(self, item: Tensor) -> None:
        """Look at an observation, [width]; while the keys move, they do so every few of them."""
        if self.is_frozen:
            return
        self._waiting[int(self._counters[1])] = item
        self._counters += 1
        count = int(self._counters[1])
        if count == _BATCH or self.is_frozen:
            self._counters[1] = 0
            self.move_keys(count)

    def move_keys(self, count: int) -> None:
        """Make one step of the keys towards the first `count` observations that were waiting for it."""
        generator = torch.Generator().manual_seed(mix((self._key + self.seen) & _MASK))
        self.books.move_keys(self._waiting[:count], generator)

    def clear(self) -> None:
        """Forget nothing: keys are not of an episode."""

    def native_settings(self) -> dict[str, Any]:
        """Return the arrays as the native step takes them, and what it calls when the keys are to move."""
        return {
            "projection": self.books.projection.reshape(-1),
            "keys": self.books.keys.reshape(-1),
            "waiting": self._waiting.reshape(-1),
            "counters": self._counters,
            "shape": [*self.books.keys.shape, self.width, _BATCH],
            "warm_up": self.warm_up,
            "move_keys": self.move_keys,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the books, what waits to move them, and how far they are."""
        books = dict(self.books.named_buffers())
        return {
            **{f"memory.{name}": books[name].clone() for name in _KEPT},
            "memory.waiting": self._waiting[: int(self._counters[1])].clone(),
            "memory.progress": torch.tensor([self.seen, self._key]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave. Raises ValueError for books of other sizes."""
        books = dict(self.books.named_buffers())
        waiting = state["memory.waiting"]
        for name in _KEPT:
            given, expected = tuple(state[f"memory.{name}"].shape), tuple(books[name].shape)
            if given != expected:
                raise ValueError(f"the bottleneck's {name} are {expected}, and the state's {given}.")
        if len(waiting) >= _BATCH:
            raise ValueError(
                f"{len(waiting)} observations wait in the state; {_BATCH} would have moved the keys."
            )
        for name in _KEPT:
            books[name].copy_(state[f"memory.{name}"])
        self._waiting[: len(waiting)] = waiting
        seen, self._key = (int(number) for number in state["memory.progress"])
        self._counters[:] = seen, len(waiting)


class _Books(Bottleneck):
    """Of keys that are equally near, the first is found, whatever the rounding.

    Keys that few observations fall to are put where some were, two of them at times in the same place.
    Torch's distances to many keys are made of products: which of two such keys is nearer is then a matter of
    rounding, which no other back end repeats.
    """

    def nearest(self, heads: Tensor, among: Tensor | None = None) -> Tensor:
        """Return j, [C, n], from differences of heads and keys."""
        distances = torch.cdist(heads, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        if among is not None:
            distances = distances.masked_fill(~among[:, None], torch.inf)
        return distances.argmin(2)


class BottleneckRead(nn.Module):
    """What the values of one network say of observations, [n, *shape]: [n, outputs]."""

    def __init__(self, bottleneck: Bottleneck, memory: BottleneckMemory) -> None:
        super().__init__()
        self.bottleneck, self.memory = bottleneck, memory

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, *observation_shape]. Zeros, of no gradient, while the keys move."""
        if not self.memory.is_frozen:
            return 0.0 * self.bottleneck.values.sum((0, 1)).expand(len(x), -1)
        outputs: Tensor = self.bottleneck(x.flatten(1))
        return outputs
