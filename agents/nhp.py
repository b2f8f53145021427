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
from streamwise.kernels.event_recurrence import GATES, Recurrence, recur, states
from streamwise.memory.prompt_pool import PromptPool, Retrieved

__all__ = ["NHP", "NHPSettings", "RecurrentMemory"]


@dataclass(frozen=True)
class NHPSettings:
    """Settings of the neural Hawkes process."""

    width: int = 32
    """Of the state and of an event's embedding."""
    unit: float = 1.0
    """Seconds in a unit of time: about a usual gap."""


class RecurrentMemory(NamedTuple):
    """What each event left behind, the begin of the sequence first.

    events: float [sequences, events + 1, width] each. times: float64 [sequences, events + 1].
    """

    events: Recurrence
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
        self.weight = uniform((GATES * c.width, 2 * c.width), 2 * c.width, generator)
        self.bias = uniform((GATES * c.width,), 2 * c.width, generator)
        if pool is not None:
            self.prompt_weight = uniform((GATES * c.width, 2 * c.width), 2 * c.width, generator)
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
        # Gates are W [token, h] + b: the token's part is looked up, that of h waits for h.
        of_token, of_state = self.weight.chunk(2, -1)
        inputs = nn.functional.embedding(types, self.embedding @ of_token.T + self.bias)
        retrieved, offsets = self._prompts(types)
        if offsets is not None:
            inputs = inputs + offsets
        gaps = self._units(times.diff(dim=1, prepend=start))
        return RecurrentMemory(recur(inputs, of_state, gaps, sequences.lengths + 1), times, retrieved)

    def _units(self, gaps: Tensor) -> Tensor:
        return (gaps.clamp(min=0.0) / self.settings.unit).to(self.weight.dtype)

    def _prompts(self, types: Tensor) -> tuple[Retrieved | None, Tensor | None]:
        """Retrieve by the mean of the tokens so far; return what prompts add to the gates of each event."""
        if self.pool is None:
            return None, None
        means = self.embedding.detach()[types].cumsum(1) / torch.arange(1, types.shape[1] + 1)[:, None]
        retrieved = self.pool.retrieve(means)
        of_prompts = self.pool.rows.mean(1).flatten(1) @ self.prompt_weight.T  # [prompts, gates]
        offsets = nn.functional.embedding_bag(retrieved.ids.flatten(0, 1), of_prompts, mode="mean")
        return retrieved, offsets.view(*types.shape, -1)

    def intensities(self, memory: RecurrentMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return λ_k, float [*times.shape, types], events a second; see `IntensityModel`."""
        gaps = times[..., None].flatten(2) - memory.times.gather(1, visible)[..., None]
        state = states(memory.events, visible, self._units(gaps))
        intensities: Tensor = self.head(state).view(*times.shape, -1)
        return intensities
