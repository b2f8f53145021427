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
from streamwise.memory.prompt_pool import PromptPool, Retrieved

__all__ = ["AttNHP", "AttNHPSettings", "EventMemory", "time_embedding"]

_LONGEST_PERIOD = 10_000.0
_FALL = math.log(math.expm1(0.5))
_NEVER = 1e30  # a logarithm of time; times any fall, no score is left, and no share but zero
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
        later = torch.ones(times.shape[1], times.shape[1], dtype=torch.bool).triu(1)
        since = self._since(times, times[..., None], later[:, None])

        weights, keys, values = self._projections(), [], []
        # Heads of a chain go on from the states of the one before; others all start with the events.
        turns = [slice(i, i + 1) for i in range(c.heads)] if c.chain_heads else [slice(c.heads)]
        for heads in turns:
            # Event j has seen j + 1 events, itself included.
            prompts = self._prompts(weights[:, heads], retrieved, expected, (slice(None), slice(1, None)))
            for layer, weight in enumerate(weights[:, heads]):
                query, key, value = project(weight, states, at).chunk(3, -1)
                keys.append(key if layer else project(self._keys_for_times(weight), states, at))
                values.append(value)
                if layer < c.layers - 1 or c.chain_heads:  # somebody asks for the states
                    asked, fall = query[..., None, :], self._fall(layer)[heads]
                    states = attend(asked, key, value, since, fall, next(prompts))[..., 0, :]
        layers = range(c.layers)
        return EventMemory(
            [torch.cat(keys[layer :: c.layers]) for layer in layers],
            [torch.cat(values[layer :: c.layers]) for layer in layers],
            times,
            sequences.start,
            retrieved,
            expected,
        )

    def _since(self, events: Tensor, asked: Tensor, later: Tensor) -> Tensor:
        """Return log(1 + time since an event / unit), [B, G, S, L], of events [B, L] and times [B, G, S].

        later: bool, broadcast to it: events that are not seen. They are as if forgotten long ago.
        """
        if self.decay is None:
            since = torch.zeros(*asked.shape, events.shape[1])
        else:
            apart = (asked[..., None] - events[:, None, None]).clamp_(min=0.0).div_(self.settings.unit)
            since = apart.to(torch.get_default_dtype()).log1p_()
        return since.masked_fill_(later, _NEVER)

    def _fall(self, layer: int) -> Tensor:
        """Return by how much scores fall with what `_since` gives, [H]."""
        if self.decay is None:
            return torch.ones(self.settings.heads)
        return nn.functional.softplus(self.decay[layer])

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
    ) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Give the keys and values of prompts, [H, B, G, P, D] each, in one layer after the other.

        groups: an index into [B, L + 1]. for_times: with keys of the first layer [H, B, G, P, Z + 1]. The
        time at which the next event is expected completes the rows.
        """
        if self.pool is None or retrieved is None or expected is None:
            yield from itertools.repeat(None)
            return
        width, ids, at = self.settings.width, retrieved.ids[groups], expected[groups][None, :, :, None]
        rows_of_keys, rows_of_values = self.pool.rows.unbind(2)
        states: Tensor | None = None

        def tokens(weight: Tensor, rows: Tensor) -> Tensor:
            # At first the whole pool is projected, then those selected are taken.
            of_rows = weight[:, :width]
            found = select(project(of_rows, rows[None]), ids) if states is None else project(of_rows, states)
            return found + project(weight[:, width:], at)

        for layer, weight in enumerate(weights):
            to_query, to_key, to_value = weight.chunk(3, -1)
            value = tokens(to_value, rows_of_values)
            yield (
                tokens(self._keys_for_times(weight) if for_times and not layer else to_key, rows_of_keys),
                value,
            )
            if self.settings.attachment == "prompt":
                # They attend to each other alone, or they would carry events to whoever may not see them.
                scores = tokens(to_query, rows_of_keys) @ tokens(to_key, rows_of_keys).mT
                states = scores.softmax(-1) @ value

    def states(self, memory: EventMemory, times: Tensor, visible: Tensor) -> Tensor:
        """Return h(t), float [*times.shape, H * D]. times: float64 [B, G, ...]; visible: int64 [B, G]."""
        c = self.settings
        start = memory.start[:, None]
        asked = times[..., None].flatten(2)
        known = torch.cat([start, memory.times], 1).gather(1, visible)[..., None]
        at = self._embedded((asked - known).clamp(min=0.0), asked - start[..., None])
        at = at.expand(c.heads, *at.shape)
        length = int(visible.max()) if visible.numel() else 0  # nobody sees later events
        later = torch.arange(length) >= visible[..., None, None]
        since = self._since(memory.times[:, :length], asked, later)
        weights = self._projections()
        index = torch.arange(len(visible))[:, None], visible
        prompts = self._prompts(weights, memory.retrieved, memory.expected, index, for_times=True)
        h: Tensor | None = None
        for layer, (weight, keys, values) in enumerate(zip(weights, memory.keys, memory.values, strict=True)):
            if h is None:
                own = torch.cat([self._keys_for_times(weight), weight[..., 2 * c.width :]], -1)[:, c.width :]
                query = at
                key, value = torch.split(project(own, at), [at.shape[-1], c.width], -1)
            else:
                query, key, value = project(weight, h, at).chunk(3, -1)
            seen = keys[:, :, :length], values[:, :, :length]
            change = attend(query, *seen, since, self._fall(layer), next(prompts), (key, value)).tanh()
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


def select(rows: Tensor, ids: Tensor) -> Tensor:
    """Take ids [B, G, selected] of rows [H, prompts, rows, width]: [H, B, G, selected * rows, width]."""
    heads, prompts, each, width = rows.shape
    places = ids + prompts * torch.arange(heads)[:, None, None, None]
    found = nn.functional.embedding(places, rows.flatten(0, 1).flatten(1))
    return found.view(*places.shape[:3], ids.shape[2] * each, width)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    since: Tensor,
    fall: Tensor,
    prompts: tuple[Tensor, Tensor] | None,
    own: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the values that queries attend to, float [H, B, G, S, D], by one softmax over all they see.

    query: [H, B, G, S, width]. keys, values: of events, [H, B, L, ...]. fall, [H], times since, [B, G, S, L],
    is taken off the scores of events. prompts: keys and values, [H, B, G, P, ...] each. own: the key and
    value of each query itself, [H, B, G, S, ...] each.
    """
    shape = query.shape[:-1]
    to_events = torch.bmm(query.flatten(2, 3).flatten(0, 1), keys.flatten(0, 1).mT)
    to_events = to_events.view(*shape, keys.shape[2])
    scores = [to_events.addcmul_(fall[:, None, None, None, None], since, value=-1.0)]
    if prompts is not None:
        to_prompts = torch.bmm(query.flatten(0, 2), prompts[0].flatten(0, 2).mT)
        scores.append(to_prompts.view(*shape, prompts[0].shape[3]))
    if own is not None:
        scores.append((query * own[0]).sum(-1, keepdim=True))
    shares = torch.split(torch.cat(scores, -1).softmax(-1), [part.shape[-1] for part in scores], -1)

    attended = torch.bmm(shares[0].flatten(2, 3).flatten(0, 1), values.flatten(0, 1))
    attended = attended.view(*shape, values.shape[3])
    if prompts is not None:
        from_prompts = torch.bmm(shares[1].flatten(0, 2), prompts[1].flatten(0, 2))
        attended = attended + from_prompts.view(attended.shape)
    if own is not None:
        attended = torch.addcmul(attended, shares[-1], own[1])
    return attended
