"""The attentive neural Hawkes process: an intensity that attends to the events before a time, and to prompts.

Event states never depend on the times that are asked about, and those never see each other, so events are
projected once, and any number of times can then be asked about as queries of the cached keys and values.

Symbols: B sequences, L events, Q queries, K types, D width, Z time width, H heads, Y layers, P prompt rows.

Departures from the published code: each head starts from the embeddings of the events (`chain_heads` goes on
from the head before, as published models do); the mask is aligned with its columns; prompts are retrieved
from what a query may see; a time can be told by gaps (`time="gaps"`), which neither wraps around nor leaves
the range of training. Sources: Yang et al. (2022), "Transformer embeddings of irregularly spaced events and
their participants", arXiv:2201.00044; Xue et al. (2023), arXiv:2310.04993, for the prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from streamwise.agents.neural_tpp import IntensityHead, Sequences, uniform
from streamwise.memory.prompt_pool import PromptPool, Retrieved

__all__ = ["AttNHP", "AttNHPSettings", "EventMemory", "time_embedding"]

_LONGEST_PERIOD = 10_000.0
_GAP_SCALE = 8.0  # times log(1 + gap): the finest of its sines turns once for a factor of two


@dataclass(frozen=True)
class AttNHPSettings:
    """Settings of the attentive neural Hawkes process."""

    width: int = 32
    """Of keys, values and states."""
    time_width: int = 16
    """Of the embedding of a time; even."""
    layers: int = 2
    """Layers of each head."""
    heads: int = 2
    """Stacks of attention, each of the full width."""
    chain_heads: bool = False
    """Let each head go on from the event states of the one before, as published models do."""
    time: Literal["gaps", "absolute"] = "gaps"
    """What an event's time is told by: the gap before it, or the time since the sequence began."""
    unit: float = 1.0
    """Seconds in a unit of time: about a usual gap."""
    attachment: Literal["prefix", "prompt"] = "prefix"
    """prefix: prompts are further keys and values of each layer; prompt: tokens that go through layers."""


class EventMemory(NamedTuple):
    """What the events of some sequences leave behind.

    keys, values: float [H, Y, B, L, D]. times: float64 [B, L]; start: float64 [B]. prompt_keys,
    prompt_values: float [H, Y, B, L + 1, P, D], by how many events were seen, or None. retrieved: what was
    selected, [B, L + 1, ...].
    """

    keys: Tensor
    values: Tensor
    times: Tensor
    start: Tensor
    prompt_keys: Tensor | None
    prompt_values: Tensor | None
    retrieved: Retrieved | None


def time_embedding(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines of times, float32 [..., width]: periods from 2π to 2π·10⁴ units."""
    rates = _LONGEST_PERIOD ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = times.double()[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(torch.get_default_dtype())


class AttNHP(nn.Module):
    """An intensity model of `types` types. pool: prompts to attend to, or None."""

    def __init__(
        self,
        types: int,
        settings: AttNHPSettings | None = None,
        *,
        pool: PromptPool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = c = settings or AttNHPSettings()
        self.types, self.pool = types, pool
        inputs = c.width + c.time_width

        self.embedding = nn.Parameter(torch.randn(types, c.width, generator=generator))
        # Query, key and value projections of every head and layer.
        self.weight = uniform((3, c.heads, c.layers, c.width, inputs), inputs, generator)
        self.bias = uniform((3, c.heads, c.layers, c.width), inputs, generator)
        self.head = IntensityHead(c.heads * c.width, types, c.unit, generator)

    @property
    def token_width(self) -> int:
        """The width of an event's token, which is also that of a pool's keys."""
        return self.settings.width + self.settings.time_width

    def _project(self, which: int, head: int, layer: int, tokens: Tensor) -> Tensor:
        return tokens @ self.weight[which, head, layer].T + self.bias[which, head, layer]

    def _embedded(self, gaps: Tensor, elapsed: Tensor) -> Tensor:
        """Embed a time that is `gaps` after the event before it and `elapsed` after the start, in seconds."""
        c = self.settings
        value = _GAP_SCALE * torch.log1p(gaps / c.unit) if c.time == "gaps" else elapsed / c.unit
        return time_embedding(value, c.time_width)

    def remember(self, sequences: Sequences) -> EventMemory:
        """Project the events once. Their states are those of attention to themselves and what came before."""
        c = self.settings
        times, mask, start = sequences.times, sequences.mask, sequences.start
        times = torch.where(mask, times, start[:, None])
        before = torch.cat([start[:, None], times[:, :-1]], 1)
        gaps = (times - before).clamp(min=0.0)
        at = self._embedded(gaps, times - start[:, None])
        tokens = torch.cat([self.embedding[torch.where(mask, sequences.types, 0)].tanh(), at], -1)
        length = times.shape[1]
        retrieved, prompts = self._select(tokens, gaps, times - start[:, None])
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)  # later events
        keys, values, prompt_keys, prompt_values = [], [], [], []
        for head in range(c.heads):
            if head == 0 or not c.chain_heads:
                x = tokens
            tokens_of_prompts = prompts
            for layer in range(c.layers):
                query, key, value = (self._project(which, head, layer, x) for which in range(3))
                keys.append(key)
                values.append(value)
                extra = None
                if prompts is not None:
                    assert tokens_of_prompts is not None
                    extra, tokens_of_prompts = self._prompt_layer(head, layer, tokens_of_prompts)
                    prompt_keys.append(extra[0])
                    prompt_values.append(extra[1])
                    extra = (
                        extra[0][:, 1:],
                        extra[1][:, 1:],
                    )  # event j has seen j + 1 events, itself included
                x = torch.cat([self._attend(query, key, value, hidden, extra), at], -1)

        def stacked(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).view(c.heads, c.layers, *parts[0].shape)

        return EventMemory(
            stacked(keys),
            stacked(values),
            times,
            start,
            stacked(prompt_keys) if prompt_keys else None,
            stacked(prompt_values) if prompt_values else None,
            retrieved,
        )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor,
        prompts: tuple[Tensor, Tensor] | None,
        own: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend to events that are not hidden, to prompts, and to oneself.

        query: [B, Q, D]. key, value: [B, L, D]. hidden: bool, broadcast to [B, Q, L]. prompts: [B, Q, P, D]
        each. own: the query's own key and value, [B, Q, D] each.
        """
        scale = 1.0 / math.sqrt(self.settings.width)
        scores = [(query @ key.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)]
        if prompts is not None:
            scores.append((prompts[0] @ query[..., None])[..., 0] * scale)
        if own is not None:
            scores.append((query * own[0]).sum(-1, keepdim=True) * scale)
        shares = torch.cat(scores, -1).softmax(-1)
        length = key.shape[1]
        attended = shares[..., :length] @ value
        if prompts is not None:
            rows = prompts[1].shape[2]
            attended = attended + (shares[..., None, length : length + rows] @ prompts[1])[..., 0, :]
        if own is not None:
            attended = attended + shares[..., -1:] * own[1]
        return attended

    def _select(
        self, tokens: Tensor, gaps: Tensor, elapsed: Tensor
    ) -> tuple[Retrieved | None, Tensor | None]:
        """Retrieve prompts for each number of events seen, 0 to L: tokens [2, B, L + 1, P, D + Z].

        The query is the mean of the tokens seen; the time that completes the rows is that of the next event,
        if it came after the mean gap.
        """
        if self.pool is None:
            return None, None
        count = torch.arange(1, tokens.shape[1] + 1)
        means = tokens.detach().cumsum(1) / count[:, None]
        query = torch.cat([torch.zeros_like(means[:, :1]), means], 1)
        retrieved = self.pool.retrieve(query)
        mean_gap = torch.cat([torch.zeros_like(gaps[:, :1]), gaps.cumsum(1) / count], 1)
        last = torch.cat([torch.zeros_like(elapsed[:, :1]), elapsed], 1)
        expected = self._embedded(mean_gap, last + mean_gap)[..., None, :]
        rows = torch.stack(self.pool.attend(retrieved.ids))  # [2, B, L + 1, P, D]
        expected = expected.expand(*rows.shape[:-1], -1)
        return retrieved, torch.cat([rows, expected], -1)

    def _prompt_layer(self, head: int, layer: int, tokens: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return the prompts' keys and values in a layer, [B, L + 1, P, D], and their tokens for the next."""
        key = self._project(1, head, layer, tokens[0])
        value = self._project(2, head, layer, tokens[1])
        if self.settings.attachment == "prefix":
            return (key, value), tokens
        # As tokens they attend to each other alone, or they would carry events to whoever may not see them.
        query = self._project(0, head, layer, tokens[0])
        shares = (query @ key.transpose(-1, -2) / math.sqrt(self.settings.width)).softmax(-1)
        state = (shares @ value).expand_as(tokens[..., : self.settings.width])
        return (key, value), torch.cat([state, tokens[..., self.settings.width :]], -1)

    def states(self, memory: EventMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return h(t), float [B, Q, H * D]. times: float64 [B, Q]; visible: int64 [B, Q], events before."""
        c = self.settings
        start = memory.start[:, None]
        known = torch.cat([start, memory.times], 1)
        gaps = (times - known.gather(1, visible)).clamp(min=0.0)
        at = self._embedded(gaps, times - start)
        hidden = torch.arange(memory.times.shape[1]) >= visible[..., None]
        sequence = torch.arange(len(times))[:, None]
        heads = []
        for head in range(c.heads):
            h = torch.zeros(*times.shape, c.width)
            for layer in range(c.layers):
                query, key, value = (
                    self._project(which, head, layer, torch.cat([h, at], -1)) for which in range(3)
                )
                prompts = None
                if memory.prompt_keys is not None and memory.prompt_values is not None:
                    prompts = (
                        memory.prompt_keys[head, layer][sequence, visible],
                        memory.prompt_values[head, layer][sequence, visible],
                    )
                attended = self._attend(
                    query, memory.keys[head, layer], memory.values[head, layer], hidden, prompts, (key, value)
                )
                h = h + attended.tanh()
            heads.append(h)
        return torch.cat(heads, -1)

    def intensities(self, memory: EventMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return λ_k, float [B, Q, types], events a second."""
        intensities: Tensor = self.head(self.states(memory, times, visible))
        return intensities
