"""The attentive neural Hawkes process: an intensity that attends to the events before a time, and to prompts.

Event states never depend on the times that are asked about, and those never see each other, so events are
projected once, and any number of times can then be asked about as queries of the cached keys and values.
Times come in groups that see the same events and prompts, such as the nodes of an interval. In the first
layer a query is a linear map of z(t): it is multiplied into the keys, and scores are products with z(t).

Symbols: B sequences, L events, G groups of S times, K types, D width, Z time width, H heads, Y layers,
P prompt rows.

Departures from the published code: each head starts from the embeddings of the events (`chain_heads` goes on
from the head before, as published models do); the mask is aligned with its columns; prompts are retrieved
from what a query may see; a time can be told by gaps (`time="gaps"`), which neither wraps around nor leaves
the range of training. Sources: Yang et al. (2022), "Transformer embeddings of irregularly spaced events and
their participants", arXiv:2201.00044; Xue et al. (2023), arXiv:2310.04993, for the prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from streamwise.agents.neural_tpp import IntensityHead, Sequences, uniform
from streamwise.kernels.event_attention import Prompts, attend, log_ages, select
from streamwise.memory.prompt_pool import PromptPool, Retrieved

__all__ = ["AttNHP", "AttNHPSettings", "EventMemory", "time_embedding"]

_LONGEST_PERIOD = 10_000.0
_FALL = math.log(math.expm1(0.5))
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
    decay: bool = True
    """Learn, for each head and layer, how scores fall with the logarithm of the time since an event."""
    attachment: Literal["prefix", "prompt"] = "prefix"
    """prefix: prompts are further keys and values of each layer; prompt: tokens that go through layers."""


class EventMemory(NamedTuple):
    """What the events of some sequences leave behind.

    keys, values: float [H, B, L, D] for each layer. Keys are divided by √D; those of the first layer are
    [H, B, L, Z + 1], for queries that are embedded times. times: float64 [B, L]; start: float64 [B].
    retrieved: the prompts that were selected, [B, L + 1, ...], by how many events were seen. expected: float
    [B, L + 1, Z + 1], the embedded time of the next event. Both are None without a pool.
    """

    keys: list[Tensor]
    values: list[Tensor]
    times: Tensor
    start: Tensor
    retrieved: Retrieved | None
    expected: Tensor | None


def time_embedding(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines of times, with periods from 2π to 2π·10⁴ units, and a one: [..., width + 1].

    times: float64; the result is float32. The one takes the biases of projections along.
    """
    rates, phases = torch.zeros(2, width + 1, dtype=torch.float64)
    rates[:-1] = (_LONGEST_PERIOD ** (-torch.arange(0, width, 2).double() / width)).repeat_interleave(2)
    phases[1::2] = phases[-1] = 0.5 * math.pi
    return torch.addcmul(phases, times[..., None], rates).sin_().to(torch.get_default_dtype())


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
        # To queries, keys and values side by side, [Y, H, D + Z + 1, 3 D]; the last row is the bias.
        self.weight = uniform((c.layers, c.heads, inputs + 1, 3 * c.width), inputs, generator)
        # Of the falling off of scores, before softplus, [Y, H]; it begins at half a nat for a factor e.
        self.decay = nn.Parameter(torch.full((c.layers, c.heads), _FALL)) if c.decay else None
        self.head = IntensityHead(c.heads * c.width, types, c.unit, generator)

    @property
    def token_width(self) -> int:
        """The width of an event's token, which is also that of a pool's keys."""
        return self.settings.width + self.settings.time_width

    def _embedded(self, gaps: Tensor, elapsed: Tensor) -> Tensor:
        """Embed a time that is `gaps` after the event before it and `elapsed` after the start, in seconds."""
        c = self.settings
        value = _GAP_SCALE * torch.log1p(gaps / c.unit) if c.time == "gaps" else elapsed / c.unit
        return time_embedding(value, c.time_width)

    def _projections(self) -> Tensor:
        """Return the weights, those of keys divided by √D, as scores should be."""
        scale = torch.ones(3, self.settings.width)
        scale[1] /= math.sqrt(self.settings.width)
        return self.weight * scale.flatten()

    def remember(self, sequences: Sequences) -> EventMemory:
        """Project the events once. Their states are those of attention to themselves and what came before."""
        c = self.settings
        start = sequences.start[:, None]
        times = torch.where(sequences.mask, sequences.times, start)
        gaps = times.diff(dim=1, prepend=start).clamp(min=0.0)
        at = self._embedded(gaps, times - start)[None]
        states = self.embedding[torch.where(sequences.mask, sequences.types, 0)].tanh()[None]
        tokens = torch.cat([states, at[..., :-1]], -1)[0]
        retrieved, expected = self._retrieve(tokens, gaps, times - start)
        # Event j has seen j + 1 events, itself included.
        seen = torch.arange(1, times.shape[1] + 1).expand(len(times), -1)
        since = self._since(times, times[..., None], seen)

        weights, keys, values = self._projections(), [], []
        # Heads of a chain go on from the states of the one before; others all start with the events.
        turns = [slice(i, i + 1) for i in range(c.heads)] if c.chain_heads else [slice(c.heads)]
        for heads in turns:
            prompts = self._prompts(weights[:, heads], retrieved, expected, (slice(None), slice(1, None)))
            for layer, weight in enumerate(weights[:, heads]):
                query, key, value = project(weight, states, at).chunk(3, -1)
                keys.append(key if layer else project(self._keys_for_times(weight), states, at))
                values.append(value)
                if layer < c.layers - 1 or c.chain_heads:  # somebody asks for the states
                    asked, fall = query[..., None, :], self._fall(layer, heads)
                    states = attend(asked, None, key, value, since, seen, fall, next(prompts))[..., 0, :]
        layers = range(c.layers)
        return EventMemory(
            [torch.cat(keys[layer :: c.layers]) for layer in layers],
            [torch.cat(values[layer :: c.layers]) for layer in layers],
            times,
            sequences.start,
            retrieved,
            expected,
        )

    def _since(self, events: Tensor, asked: Tensor, visible: Tensor) -> Tensor | None:
        """Return what scores fall with, of events [B, L] and times [B, G, S]; see `log_ages`."""
        return None if self.decay is None else log_ages(events, asked, visible, self.settings.unit)

    def _fall(self, layer: int, heads: slice = slice(None)) -> Tensor | None:
        """Return by how much scores fall with what `_since` gives, [H]."""
        return None if self.decay is None else nn.functional.softplus(self.decay[layer, heads])

    def _keys_for_times(self, weight: Tensor) -> Tensor:
        """Return what makes keys of the first layer for embedded times, float [H, D + Z + 1, Z + 1].

        There the state of a query is zero, and a score (W_q z)·(W_k y) is z·(W_qᵀ W_k y).
        """
        to_query, to_key, _ = weight.chunk(3, -1)
        return to_key @ to_query[:, self.settings.width :].mT

    def _retrieve(
        self, tokens: Tensor, gaps: Tensor, elapsed: Tensor
    ) -> tuple[Retrieved | None, Tensor | None]:
        """Retrieve prompts for each number of events seen, 0 to L, and embed when the next is expected.

        The query is the mean of the tokens seen; the next event is expected after the mean gap.
        """
        if self.pool is None:
            return None, None
        count = torch.arange(1, tokens.shape[1] + 1)
        means = tokens.detach().cumsum(1) / count[:, None]
        mean_gap = nn.functional.pad(gaps.cumsum(1) / count, (1, 0))
        last = nn.functional.pad(elapsed, (1, 0))
        retrieved = self.pool.retrieve(nn.functional.pad(means, (0, 0, 1, 0)))
        return retrieved, self._embedded(mean_gap, last + mean_gap)

    def _prompts(
        self,
        weights: Tensor,
        retrieved: Retrieved | None,
        expected: Tensor | None,
        groups: Any,
        for_times: bool = False,
    ) -> Iterator[Prompts | None]:
        """Give the prompts of each layer, one after the other.

        groups: an index into [B, L + 1]. for_times: with keys of the first layer for embedded times. The
        time at which the next event is expected completes the rows.
        """
        if self.pool is None or retrieved is None or expected is None:
            yield from itertools.repeat(None)
            return
        width, ids, at = self.settings.width, retrieved.ids[groups], expected[groups][None]
        for_keys, for_values = (rows[None] for rows in self.pool.rows.unbind(2))
        for layer, weight in enumerate(weights):
            to_query, to_key, to_value = weight.chunk(3, -1)
            asked_by_times = self._keys_for_times(weight) if for_times and not layer else to_key
            # The whole pool is projected; what is selected is taken from that.
            prompts = Prompts(
                project(asked_by_times[:, :width], for_keys),
                project(to_value[:, :width], for_values),
                ids,
                project(asked_by_times[:, width:], at),
                project(to_value[:, width:], at),
            )
            yield prompts
            if self.settings.attachment == "prompt" and layer < len(weights) - 1:
                # They attend to each other alone, or they would carry events to whoever may not see them.
                query, key = (
                    select(project(part[:, :width], for_keys), ids, project(part[:, width:], at))
                    for part in (to_query, to_key)
                )
                shares = (query @ key.mT).softmax(-1)
                states = shares @ select(prompts.values, ids, prompts.added_values)
                # From here on a group has rows of its own.
                for_keys = for_values = states.flatten(1, 2)
                ids = torch.arange(ids[..., 0].numel()).view(*ids.shape[:2], 1)

    def states(self, memory: EventMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return h(t), float [*times.shape, H * D]. times: float64 [B, G, ...]; visible: int64 [B, G]."""
        c = self.settings
        start = memory.start[:, None]
        asked = times[..., None].flatten(2)
        known = torch.cat([start, memory.times], 1).gather(1, visible)[..., None]
        at = self._embedded((asked - known).clamp(min=0.0), asked - start[..., None])
        since = self._since(memory.times, asked, visible)
        weights = self._projections()
        index = torch.arange(len(visible))[:, None], visible
        prompts = self._prompts(weights, memory.retrieved, memory.expected, index, for_times=True)
        h: Tensor | None = None
        for layer, (weight, keys, values) in enumerate(zip(weights, memory.keys, memory.values, strict=True)):
            if h is None:  # queries are the embedded times, the same for all heads
                own = torch.cat([self._keys_for_times(weight), weight[..., 2 * c.width :]], -1)[:, c.width :]
                queries, tokens = at, project(own, at[None])
            else:
                queries, tokens = None, project(weight, h, at[None])
            sees = keys, values, since, visible, self._fall(layer), next(prompts)
            change = attend(tokens, queries, *sees, squash=True)
            h = change if h is None else h + change
        assert h is not None
        return torch.cat(tuple(h), -1).view(*times.shape, -1)

    def intensities(self, memory: EventMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return λ_k, float [*times.shape, types], events a second; see `IntensityModel`."""
        intensities: Tensor = self.head(self.states(memory, times, visible))
        return intensities


def project(weight: Tensor, *tokens: Tensor) -> Tensor:
    """Multiply tokens, side by side, by a matrix of each head.

    weight: [H, inputs, outputs]. tokens: [1 or H, ..., width] each, whose widths sum to the inputs.
    """
    heads = len(weight)
    flat = [part.expand(heads, *part.shape[1:]).flatten(1, -2) for part in tokens]
    first, *others = torch.split(weight, [part.shape[-1] for part in tokens], 1)
    found = torch.bmm(flat[0], first)
    for part, rows in zip(flat[1:], others, strict=True):
        found.baddbmm_(part, rows)
    return found.view(heads, *tokens[0].shape[1:-1], weight.shape[-1])
