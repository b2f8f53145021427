"""Hierarchical chunk attention: reading a past that is kept in chunks, most of which are not looked into.

A query is compared with a summary of every chunk. The few best are opened, attention looks for it inside
each, and what is found is added up by how good the summaries were:

    ℓ_i = (x W_q) · (κ_i W_k) / √F        w = softmax(ℓ) over the k best
    y = Σ_j w_j MHA(query x, keys and values c̃_j)        c̃ = contents + positions

What is stored is a constant, so the gradient of the present step is the whole gradient, and no step is gone
back to. Projections are absorbed into the query: for each head the keys' matrix is applied to the query
before contents are touched, the values' after they are summed up. That is the same function, of raw
contents, so that nothing stored becomes stale when projections learn (kernels/chunk_attention).

Departures from the published code: a query that may see no chunk gets zeros, not a mean of whatever is there.
Two options, off by default, are ours and not published: summaries pooled by attention, and a term for age.
Source: Lampinen et al. (2021), "Towards mental time travel: a hierarchical memory for reinforcement learning
agents", arXiv:2105.14039.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamwise.kernels.chunk_attention import Implementation, attend, scan
from streamwise.memory.chunks import ChunkStore, stream_code
from streamwise.memory.index import SummaryIndex

__all__ = ["HCAM", "ChunkAttention", "Chunks", "position_table"]

_PERIOD = 10_000.0
_INIT_SCALE = 2.0  # of the variance of weights, over their inputs
_TRUNCATED = 0.87962566103423978  # the deviation of a standard normal that is cut off at ±2


class Chunks(NamedTuple):
    """What there is to read. summaries: [B, M, D]. contents: [B, M, C, D], in the order of time.

    visible: bool [B, Q or 1, M], or None for all. steps: int64 [B, M], how many steps of each chunk are real,
    the first ones; None for all. ages: float [B, M], steps since each chunk was sealed; for an age term.
    """

    summaries: Tensor
    contents: Tensor
    visible: Tensor | None = None
    steps: Tensor | None = None
    ages: Tensor | None = None


def position_table(length: int, width: int) -> Tensor:
    """Return sines, then cosines, of how far a step is from the end of its chunk, [length, width].

    The last step of a chunk is row -1, and 0 steps away. width: even.
    """
    away = torch.arange(length - 1, -1, -1, dtype=torch.float64)
    rates = _PERIOD ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = away[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).to(torch.get_default_dtype())


class ChunkAttention(nn.Module):
    """The learned part of the memory: what a query looks for, and what it makes of what it finds.

    query_width: E, of queries. width: D, of stored steps; even with positions. features: F, of what is read;
    a multiple of `heads`. length: C, steps of a chunk. k: chunks that are read. joint: weigh all steps that
    are read by one softmax for each head, in place of chunks by their summaries; with k = M that is plain
    attention to every step. alike: begin with keys projected as queries are, so that what is like the query
    is found before anything was learned. implementation: "reference" for the formulas in torch.

    Ours, not published; both start as if they were off, and learn by ℓ, so not where `joint` ignores it:

    pooling: "attention" makes a chunk's summary Σ_c softmax_c(c · u / √D) c with a learned u, [D], not the
    mean. Summaries that are stored were made with the u of their time, and are constants: chunks are chosen
    by those, and ℓ of the chosen ones is then taken from their contents with the present u, which so learns.
    age: subtract a log(1 + age) from ℓ, with a learned number a.
    """

    positions: Tensor | None

    def __init__(
        self,
        query_width: int,
        width: int,
        *,
        features: int = 64,
        heads: int = 4,
        length: int = 16,
        k: int = 8,
        positions: bool = True,
        joint: bool = False,
        alike: bool = False,
        pooling: Literal["mean", "attention"] = "mean",
        age: bool = False,
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"features is {features}; it must be a multiple of heads, which is {heads}.")
        if positions and width % 2:
            raise ValueError(f"width is {width}; with positions it must be even.")
        if pooling not in ("mean", "attention"):
            raise ValueError(f"pooling is {pooling!r}; use 'mean' or 'attention'.")
        self.heads, self.k, self.joint, self.implementation = heads, k, joint, implementation
        self.shape = length, width  # of a chunk
        self.select_query = _weights(query_width, features, generator)
        self.select_key = _weights(width, features, generator)
        self.query, self.query_bias = _weights(query_width, features, generator), _zeros(features)
        self.key = _weights(width, features, generator)  # its bias adds the same to all scores of a softmax
        if alike:
            same = min(query_width, width)
            with torch.no_grad():
                self.select_key[:same] = self.select_query[:same]
                self.key[:same] = self.query[:same]
        self.value, self.value_bias = _weights(width, features, generator), _zeros(features)
        self.output, self.output_bias = _weights(features, features, generator), _zeros(features)
        self.pool_query = _zeros(width) if pooling == "attention" else None  # u
        self.age_weight = nn.Parameter(torch.zeros(())) if age else None  # a
        self.register_buffer("positions", position_table(length, width) if positions else None)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        """Read for queries [B, Q, E]; return [B, Q, F], zeros for a query that may see no chunk."""
        found, logits = self.select(x, chunks.summaries, chunks.visible, ages=chunks.ages)
        return self.read(x, chunks, found, self.weigh(x, chunks, found, logits))

    def select(
        self,
        x: Tensor,
        summaries: Tensor,
        visible: Tensor | None = None,
        *,
        k: int | None = None,
        ages: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the chunks that queries would read, int64 [B, Q, k], and their ℓ; see `scan`."""
        select, summaries = self._with_age(self.looks_for(x), summaries, ages)
        return scan(
            select,
            summaries,
            k=self.k if k is None else k,
            visible=visible,
            implementation=self.implementation,
        )

    def weigh(self, x: Tensor, chunks: Chunks, found: Tensor, logits: Tensor) -> Tensor:
        """Return ℓ, [B, Q, k], of the chunks that were found: the given, or with attention pooling anew."""
        if self.pool_query is None:
            return logits
        known = found >= 0
        memory, query, _ = known.nonzero(as_tuple=True)
        at = memory, found[known]
        steps, ages = (None if of is None else of[at] for of in (chunks.steps, chunks.ages))
        pooled = self.pool(chunks.contents.detach()[at], steps)
        select, pooled = self._with_age(self.looks_for(x)[memory, query], pooled, ages)
        return logits.masked_scatter(known, (select * pooled).sum(-1))

    def pool(self, contents: Tensor, steps: Tensor | None = None) -> Tensor:
        """Return summaries by attention pooling, [..., D], of contents [..., C, D]. steps: [...], or all."""
        assert self.pool_query is not None
        contents = contents.to(self.pool_query.dtype)
        scores = contents @ self.pool_query / math.sqrt(contents.shape[-1])
        if steps is not None:
            padded = torch.arange(contents.shape[-2], device=contents.device) >= steps[..., None]
            scores = scores.masked_fill(padded, -math.inf)
        return torch.einsum("...c,...cd->...d", scores.softmax(-1), contents)

    def read(self, x: Tensor, chunks: Chunks, found: Tensor, logits: Tensor) -> Tensor:
        """Read these chunks for queries [B, Q, E]; return [B, Q, F]. Summaries are not looked at."""
        query = self._by_head(x @ self.query + self.query_bias)
        ask = torch.einsum("bqhf,dhf->bqhd", query, self._by_head(self.key))
        pooled = attend(
            ask / math.sqrt(query.shape[-1]), logits, found, chunks.contents, positions=self.positions,
            steps=chunks.steps, joint=self.joint, implementation=self.implementation,
        )  # fmt: skip
        values = torch.einsum("bqhd,dhf->bqhf", pooled, self._by_head(self.value)).flatten(2)
        out = (values + self.value_bias) @ self.output + self.output_bias
        return out * (found >= 0).any(-1, keepdim=True)

    def looks_for(self, x: Tensor) -> Tensor:
        """Return what a product with a summary gives ℓ, [B, Q, D]."""
        return x @ self.select_query @ self.select_key.T / math.sqrt(self.select_key.shape[1])

    def _with_age(self, select: Tensor, summaries: Tensor, ages: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give both one number more, whose product is the age term: [..., D + 1].

        The scan adds nothing to a product, and has to choose by the sum. This copies the summaries, at about
        the cost of a scan; who does not use the option does not pay it.
        """
        if self.age_weight is None:
            return select, summaries
        if ages is None:
            raise ValueError("the attention has an age term, and the chunks have no ages; give them.")
        old = ages.to(select.dtype).clamp(min=0.0).log1p()[..., None].to(summaries.dtype)
        weight = -self.age_weight.expand_as(select[..., :1])
        return torch.cat([select, weight], -1), torch.cat([summaries, old], -1)

    def _by_head(self, features: Tensor) -> Tensor:
        return features.view(*features.shape[:-1], self.heads, -1)


def _weights(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Parameter:
    """Draw a matrix, [inputs, outputs], from a normal distribution cut off at two deviations."""
    deviation = math.sqrt(_INIT_SCALE / inputs) / _TRUNCATED
    drawn = nn.init.trunc_normal_(torch.empty(inputs, outputs), a=-2.0, b=2.0, generator=generator)
    return nn.Parameter(drawn * deviation)


def _zeros(features: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(features))


class _Open:
    """The chunk that is not sealed yet, apart from the module, whose attributes are slow to set."""

    __slots__ = ("episode", "fill", "priority", "steps", "time")

    def __init__(self, length: int, width: int) -> None:
        self.steps = np.zeros((length, width), np.float32)
        self.fill = 0
        self.priority = 0.0  # summed
        self.time = 0  # steps that were appended, over all episodes
        self.episode = 0


class HCAM(nn.Module):
    """The memory of one stream, a step at a time: `read` for what is, then `append` what was.

    A chunk is sealed when it has as many steps as the store's chunks are long, or at a boundary, and can be
    read from the next step on. The steps of the open chunk cannot: who reads needs something else for those,
    such as the recent past in its observation or a recurrent state.

    attention: of the width of the store. episodes: "own" reads what was in the present episode alone. least:
    at the end of an episode, the share of a chunk's length that its open steps must be to be kept. stream:
    what the store calls this stream; other streams in the store are not read. index: of the same store, to
    choose chunks by in place of a scan, where there are more than 100,000 or so.

    >>> from streamwise.memory.store import InProcessStore
    >>> store = InProcessStore(chunk_length=4, width=8, capacity=100)
    >>> memory = HCAM(ChunkAttention(6, 8, features=16, heads=2, length=4, k=2), store)
    >>> for step in range(10):
    ...     found = memory.read(torch.ones(6))
    ...     memory.append(torch.full((8,), float(step)))
    >>> found.shape, len(store)
    (torch.Size([16]), 2)
    """

    def __init__(
        self,
        attention: ChunkAttention,
        store: ChunkStore,
        *,
        episodes: Literal["own", "all"] = "own",
        least: float = 0.25,
        stream: int | str = 0,
        index: SummaryIndex | None = None,
    ) -> None:
        super().__init__()
        if index is not None and attention.age_weight is not None:
            raise ValueError("an index knows no ages; use it without the age term, or scan.")
        if episodes not in ("own", "all"):
            raise ValueError(f"episodes is {episodes!r}; use 'own' or 'all'.")
        if not 0.0 <= least <= 1.0:
            raise ValueError(f"least is {least}; use a share, from 0 to 1.")
        length, width = attention.shape
        if (store.chunk_length, store.width) != (length, width):
            raise ValueError(
                f"the store's chunks are {store.chunk_length} steps of {store.width} numbers, and the "
                f"attention is for {length} of {width}; make both alike."
            )
        self.attention, self.store, self.stream = attention, store, stream
        self.episodes, self.least, self.index = episodes, least, index
        self._open = _Open(length, width)

    def append(self, item: Tensor, *, priority: float = 0.0, boundary: bool = False) -> None:
        """Remember a step, [width], as it is now: no gradient flows to it.

        priority: what `Surprise` keeps chunks by, such as the size of an error. boundary: something ends with
        this step, so its chunk is sealed, however short.
        """
        now = self._open
        if now.fill == len(now.steps):  # the store failed when it was full
            self._seal()
        now.steps[now.fill] = item.detach().numpy()
        now.fill += 1
        now.priority += priority
        now.time += 1
        if boundary or now.fill == len(now.steps):
            self._seal()

    def end_episode(self) -> None:
        """Seal or drop the open chunk; what comes is of the next episode."""
        now = self._open
        if now.fill and now.fill >= self.least * len(now.steps):
            self._seal()
        now.fill, now.priority = 0, 0.0
        now.episode += 1

    def _seal(self) -> None:
        now, summary = self._open, None
        if self.attention.pool_query is not None:
            with torch.no_grad():
                summary = self.attention.pool(torch.from_numpy(now.steps[: now.fill])).numpy()
        self.store.append(
            now.steps[: now.fill], first=float(now.time - now.fill), last=float(now.time - 1),
            stream=self.stream, episode=now.episode, priority=now.priority / now.fill, summary=summary,
        )  # fmt: skip
        now.fill, now.priority = 0, 0.0

    def read(self, x: Tensor) -> Tensor:
        """Look something up: [E] gives [F], and several queries, [Q, E], give [Q, F]."""
        queries = x if x.dim() == 2 else x[None]
        visible, ages = self._visible(), self._ages()
        summaries = torch.from_numpy(self.store.summaries)[None]
        if self.index is None:
            slots, logits = self.attention.select(queries[None], summaries, visible, ages=ages)
        else:
            looks_for, seen = self.attention.looks_for(queries), None if visible is None else visible[0]
            slots, logits = (found[None] for found in self.index.search(looks_for, self.attention.k, seen))
        wanted, places = torch.unique(slots[slots >= 0], return_inverse=True)
        ids = self.store.ids[wanted.numpy()]
        contents, steps = self.store.contents(ids.tolist())
        opened = torch.full_like(slots, -1)
        opened[slots >= 0] = places
        chunks = Chunks(
            summaries, torch.from_numpy(contents)[None], steps=torch.from_numpy(steps)[None],
            ages=None if ages is None else ages[:, wanted],
        )  # fmt: skip
        logits = self.attention.weigh(queries[None], chunks, opened, logits)
        found = self.attention.read(queries[None], chunks, opened, logits)[0]
        self._count(ids, opened, logits)
        return found if x.dim() == 2 else found[0]

    def _visible(self) -> Tensor | None:
        seen = self.store.valid & (self.store.column("stream") == stream_code(self.stream))
        if self.episodes == "own":
            seen &= self.store.column("episode") == self._open.episode
        return None if seen.all() else torch.from_numpy(seen)[None, None]

    def _ages(self) -> Tensor | None:
        """Return how many steps came after each slot's chunk, [1, slots], if the attention asks for it."""
        if self.attention.age_weight is None:
            return None
        return torch.from_numpy(self._open.time - 1 - self.store.column("last"))[None]

    def _count(self, ids: NDArray[np.int64], opened: Tensor, logits: Tensor) -> None:
        """Tell the store what each query opened, and how much that weighed."""
        for chunks, weights in zip(opened[0], logits.detach()[0].softmax(-1), strict=True):
            known = chunks >= 0
            if known.any():
                self.store.used(ids[chunks[known].numpy()].tolist(), weights[known].tolist())

    def memory_state(self) -> dict[str, Tensor]:
        """Return what is remembered, open steps included, and the store's state; weights are apart."""
        now = self._open
        return {
            "memory.open": torch.from_numpy(now.steps.copy()),
            "memory.counters": torch.tensor([now.fill, now.time, now.episode]),
            "memory.priority": torch.tensor([now.priority], dtype=torch.float64),
            **self.store.state_dict(),
        }

    def load_memory_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `memory_state`."""
        now = self._open
        now.steps[:] = state["memory.open"].numpy()
        now.fill, now.time, now.episode = state["memory.counters"].tolist()
        now.priority = state["memory.priority"].item()
        self.store.load_state_dict(state)
