"""Reading chunks where they are kept: what a shard answers, and what the reader makes of the answers.

Contents are many, summaries few. A reader that has the summaries chooses chunks by itself, and sends each
shard the ids that it wants there and its queries, u of each head. The shard looks inside its chunks and sends
back three things for each query, chunk and head: the highest score, the sum of exponentials, and the contents
that these weigh, added up. That is H (D + 2) numbers in place of a chunk's C D, and loses nothing: softmaxes
over a chunk, or over the steps of all chunks on all shards, are put together from them.

These are the functions alone, for a store of several processes. What `combine` gives is what `attend` of
kernels/chunk_attention gives for the same chunks; gradients to the logits need nothing of the shards, those
to the queries do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streamwise.memory.chunks import stream_code
from streamwise.memory.splitmix import mix

__all__ = ["Partial", "combine", "partial_read", "shard_of"]


class Partial(NamedTuple):
    """What Q queries of H heads found in each of k chunks.

    peak: [Q, H, k], the highest score of a step. total: [Q, H, k], the sum over steps of exp(score - peak).
    pooled: [Q, H, k, D], the same sum with each step, its position added, times its exponential.
    """

    peak: Tensor
    total: Tensor
    pooled: Tensor


def shard_of(stream: int | str, shards: int) -> int:
    """Return the shard, from 0, that keeps a stream's chunks: the same one in every process."""
    if shards < 1:
        raise ValueError(f"shards is {shards}; use 1 or more.")
    return mix(stream_code(stream) & (2**64 - 1)) % shards  # mixed, as numbers may all be even


def partial_read(
    ask: Tensor, contents: Tensor, positions: Tensor | None = None, steps: Tensor | None = None
) -> Partial:
    """Look inside each of k chunks for each query.

    ask: u, [Q, H, D]. contents: [k, C, D]. positions: [C, D], whose last row belongs to the last step of a
    chunk. steps: int64 [k], 1 to C, how many steps of each chunk are real, the first ones; None for all.
    """
    count, length, _ = contents.shape
    index = torch.arange(length, device=contents.device)
    real = torch.full((count,), length, device=contents.device) if steps is None else steps
    x = contents.detach().to(ask.dtype)
    if positions is not None:
        row = (index + length - real[:, None]).clamp(max=length - 1)
        x = x + positions.to(ask.dtype)[row]
    scores = torch.einsum("qhd,kcd->qhkc", ask, x).masked_fill(index >= real[:, None], -math.inf)
    peak = scores.detach().amax(-1)  # which changes nothing of what is combined, so has no gradient
    parts = (scores - peak[..., None]).exp()
    return Partial(peak, parts.sum(-1), torch.einsum("qhkc,kcd->qhkd", parts, x))


def combine(partials: Sequence[Partial], logits: Tensor, joint: bool = False) -> Tensor:
    """Return what attention inside all these chunks reads, [Q, H, D]; zeros for a query that opens none.

    partials: of one shard or more, in any split. logits: ℓ of their chunks, [Q, K], in the same order; -inf
    where a query did not open a chunk that another did. joint: see `attend`.
    """
    peak, total, pooled = (torch.cat(parts, 2) for parts in zip(*partials, strict=True))
    if not logits.shape[-1]:
        return pooled.sum(2)
    # [Q, H or 1, K]
    level = (peak if joint else logits[:, None]).masked_fill((logits == -math.inf)[:, None], -math.inf)
    most = level.detach().amax(-1, keepdim=True)
    weights = (level - most.masked_fill(most == -math.inf, 0.0)).exp()  # zero for what was not opened
    inside = weights if joint else weights / total
    # The best has weight 1 and a total of 1 or more, so that the sum is below 1 only where nothing is opened.
    whole = (weights * total if joint else weights).sum(-1, keepdim=True).clamp(min=1.0)
    return torch.einsum("qhk,qhkd->qhd", inside / whole, pooled)
