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
Source: Lampinen et al. (2021), "Towards mental time travel: a hierarchical memory for reinforcement learning
agents", arXiv:2105.14039.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamwise.kernels.chunk_attention import Implementation, attend, scan

__all__ = ["ChunkAttention", "Chunks", "position_table"]

_PERIOD = 10_000.0
_INIT_SCALE = 2.0  # of the variance of weights, over their inputs
_TRUNCATED = 0.87962566103423978  # the deviation of a standard normal that is cut off at ±2


class Chunks(NamedTuple):
    """What there is to read. summaries: [B, M, D]. contents: [B, M, C, D], in the order of time.

    visible: bool [B, Q or 1, M], or None for all. steps: int64 [B, M], how many steps of each chunk are real,
    the first ones; None for all.
    """

    summaries: Tensor
    contents: Tensor
    visible: Tensor | None = None
    steps: Tensor | None = None


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
    attention to every step. implementation: "reference" for the formulas in torch.
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
        implementation: Implementation = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"features is {features}; it must be a multiple of heads, which is {heads}.")
        if positions and width % 2:
            raise ValueError(f"width is {width}; with positions it must be even.")
        self.heads, self.k, self.joint, self.implementation = heads, k, joint, implementation
        self.select_query = _weights(query_width, features, generator)
        self.select_key = _weights(width, features, generator)
        self.query, self.query_bias = _weights(query_width, features, generator), _zeros(features)
        self.key = _weights(width, features, generator)  # its bias adds the same to all scores of a softmax
        self.value, self.value_bias = _weights(width, features, generator), _zeros(features)
        self.output, self.output_bias = _weights(features, features, generator), _zeros(features)
        self.register_buffer("positions", position_table(length, width) if positions else None)

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:
        """Read for queries [B, Q, E]; return [B, Q, F], zeros for a query that may see no chunk."""
        found, logits = self.select(x, chunks)
        return self.read(x, chunks, found, logits)

    def select(self, x: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Return the chunks that queries would read, int64 [B, Q, k], and their ℓ; see `scan`."""
        select = x @ self.select_query @ self.select_key.T / math.sqrt(self.select_key.shape[1])
        return scan(
            select, chunks.summaries, k=self.k, visible=chunks.visible, implementation=self.implementation
        )

    def read(self, x: Tensor, chunks: Chunks, found: Tensor, logits: Tensor) -> Tensor:
        """Read these chunks for queries [B, Q, E]; return [B, Q, F]. Summaries are not looked at."""
        by_head = (self.heads, -1)
        query = (x @ self.query + self.query_bias).unflatten(-1, by_head)
        ask = torch.einsum("bqhf,dhf->bqhd", query, self.key.unflatten(1, by_head))
        pooled = attend(
            ask / math.sqrt(query.shape[-1]), logits, found, chunks.contents, positions=self.positions,
            steps=chunks.steps, joint=self.joint, implementation=self.implementation,
        )  # fmt: skip
        values = torch.einsum("bqhd,dhf->bqhf", pooled, self.value.unflatten(1, by_head)).flatten(2)
        out = (values + self.value_bias) @ self.output + self.output_bias
        return out * (found >= 0).any(-1, keepdim=True)


def _weights(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Parameter:
    """Draw a matrix, [inputs, outputs], from a normal distribution cut off at two deviations."""
    deviation = math.sqrt(_INIT_SCALE / inputs) / _TRUNCATED
    drawn = nn.init.trunc_normal_(torch.empty(inputs, outputs), a=-2.0, b=2.0, generator=generator)
    return nn.Parameter(drawn * deviation)


def _zeros(features: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(features))
