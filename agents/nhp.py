"""The neural Hawkes process: a recurrent state that decays towards a target between events.

    c(t) = c̄ + (c - c̄) exp(-δ (t - t_i)),   h(t) = o ⊙ tanh(c(t)),   λ(t) = head(h(t))

Each event sets c, c̄, δ and o by one linear map of its embedding and the state just before it. Memory is
constant by construction. A sequence begins with an event of its own at its start, so that the first interval
has an intensity.

Departure from the published model: prompts, which it does not have. The mean of those selected is added to
the gates, because rows of attention have no place in it. Source: Mei and Eisner (2017), "The neural Hawkes
process", arXiv:1612.09328.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamwise.agents.neural_tpp import IntensityHead, Sequences, uniform
from streamwise.memory.prompt_pool import PromptPool, Retrieved

__all__ = ["NHP", "NHPSettings", "RecurrentMemory"]

_GATES = 7  # input, its target's, forget, its target's, output, update, decay


@dataclass(frozen=True)
class NHPSettings:
    """Settings of the neural Hawkes process."""

    width: int = 32
    """Of the state and of an event's embedding."""
    unit: float = 1.0
    """Seconds in a unit of time: about a usual gap."""


class RecurrentMemory(NamedTuple):
    """What each event left behind, the begin of the sequence first.

    cell, target, decay, output: float [sequences, events + 1, width]. times: float64 [sequences, events + 1].
    """

    cell: Tensor
    target: Tensor
    decay: Tensor
    output: Tensor
    times: Tensor
    retrieved: Retrieved | None


class NHP(nn.Module):
    """An intensity model of `types` types. pool: prompts whose mean is added to the gates, or None."""

    def __init__(
        self,
        types: int,
        settings: NHPSettings | None = None,
        *,
        pool: PromptPool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = c = settings or NHPSettings()
        self.types, self.pool = types, pool
        self.embedding = nn.Parameter(torch.randn(types + 1, c.width, generator=generator))  # begin is last
        self.weight = uniform((_GATES * c.width, 2 * c.width), 2 * c.width, generator)
        self.bias = uniform((_GATES * c.width,), 2 * c.width, generator)
        if pool is not None:
            self.prompt_weight = uniform((_GATES * c.width, 2 * c.width), 2 * c.width, generator)
        self.head = IntensityHead(c.width, types, c.unit, generator)

    @property
    def token_width(self) -> int:
        """The width of a pool's keys: that of an event's embedding."""
        return self.settings.width

    def remember(self, sequences: Sequences) -> RecurrentMemory:
        """Read the events one after the other."""
        start = sequences.start[:, None]
        times = torch.cat([start, torch.where(sequences.mask, sequences.times, start)], 1)
        begin = torch.full_like(start, self.types, dtype=torch.int64)
        types = torch.cat([begin, torch.where(sequences.mask, sequences.types, 0)], 1)
        tokens = self.embedding[types]
        retrieved, offsets = self._prompts(tokens)
        zero = torch.zeros(len(times), self.settings.width)
        cell, target, decay, output = zero, zero, zero, zero
        steps = []
        for i in range(times.shape[1]):
            gap = (times[:, i] - times[:, i - 1]).clamp(min=0.0)[:, None] if i else torch.zeros(len(times), 1)
            cell = self._decayed(cell, target, decay, gap)
            state = output * cell.tanh()
            gates = torch.cat([tokens[:, i], state], -1) @ self.weight.T + self.bias
            if offsets is not None:
                gates = gates + offsets[:, i]
            keep, keep_target, add, add_target, output, update, decay = gates.chunk(_GATES, -1)
            update, output = update.tanh(), output.sigmoid()
            decay = nn.functional.softplus(decay)
            cell = keep.sigmoid() * cell + add.sigmoid() * update
            target = keep_target.sigmoid() * target + add_target.sigmoid() * update
            steps.append((cell, target, decay, output))
        cells, targets, decays, outputs = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        return RecurrentMemory(cells, targets, decays, outputs, times, retrieved)

    def _decayed(self, cell: Tensor, target: Tensor, decay: Tensor, gap: Tensor) -> Tensor:
        units = (gap / self.settings.unit).to(cell.dtype)
        return target + (cell - target) * torch.exp(-decay * units)

    def _prompts(self, tokens: Tensor) -> tuple[Retrieved | None, Tensor | None]:
        """Retrieve by the mean of the tokens so far; return what prompts add to the gates of each event."""
        if self.pool is None:
            return None, None
        means = tokens.detach().cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        retrieved = self.pool.retrieve(means)
        rows = torch.cat(self.pool.attend(retrieved.ids), -1).mean(-2)
        return retrieved, rows @ self.prompt_weight.T

    def intensities(self, memory: RecurrentMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return λ_k, float [*times.shape, types], events a second; see `IntensityModel`."""
        sequence = torch.arange(len(times))[:, None]
        cell, target, decay, output = (part[sequence, visible][:, :, None] for part in memory[:4])
        gaps = times[..., None].flatten(2) - memory.times[sequence, visible][..., None]
        state = output * self._decayed(cell, target, decay, gaps.clamp(min=0.0)[..., None]).tanh()
        intensities: Tensor = self.head(state).view(*times.shape, -1)
        return intensities
