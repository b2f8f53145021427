"""Looking chunks up, as the formulas are: the definition that the other implementations are held against.

Symbols: B memories, Q queries of each, M chunks, C steps of a chunk, K chunks that are read, H heads, D
width.

    ℓ_i = s · κ_i                                   for all M chunks, by their summaries κ
    the K largest ℓ_i of visible chunks are read;   of equal ones those with the lower number
    w = softmax(ℓ) over those
    o_h = Σ_j w_j Σ_c softmax_c(u_h · x_jc) x_jc    x = contents + positions

Both queries live in the space of the contents: whoever has projections W_k and W_v multiplies the query by
W_kᵀ before and the result by W_v after, which is the same thing (`memory/hcam.py`). So stored contents are
never projected, and stay valid while projections learn.

Summaries and contents are constants: gradients go to s and u alone. Which chunks are read has no gradient.
Source: Lampinen et al. (2021), "Towards mental time travel: a hierarchical memory for reinforcement learning
agents", arXiv:2105.14039.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attend", "scan"]


def scan(select: Tensor, summaries: Tensor, visible: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the chunks to be read, int64 [B, Q, K], and their ℓ, best first; K = min(k, M).

    select: [B, Q, D]. summaries: [B, M, D]. visible: bool [B, Q or 1, M], or None for all. Where fewer than
    K are visible, the rest is -1, with ℓ = -inf. A product that is no number is not selected.
    """
    logits = select @ summaries.detach().mT
    hidden = logits.detach().isnan()
    if visible is not None:
        hidden = hidden | ~visible
    logits = logits.masked_fill(hidden, -math.inf)
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., : min(k, summaries.shape[1])]
    found = logits.gather(-1, order)
    return order.masked_fill(found.detach() == -math.inf, -1), found


def attend(
    ask: Tensor,
    logits: Tensor,
    chunks: Tensor,
    contents: Tensor,
    positions: Tensor | None = None,
    steps: Tensor | None = None,
    *,
    joint: bool = False,
) -> Tensor:
    """Return what is read, [B, Q, H, D]; zeros where there is no chunk to read.

    ask: u, [B, Q, H, D]. logits, chunks: as `scan` gives them, [B, Q, K]. contents: [B, M, C, D]. positions:
    [C, D], whose last row belongs to the last step of a chunk, however many it has. steps: int64 [B, M], how
    many steps of each chunk are real, the first ones; all of them if it is None. joint: instead of w, one
    softmax for each head over the steps of all chunks that are read, so that with all chunks this is plain
    attention to every step.
    """
    count, queries, heads, _ = ask.shape
    read, length = chunks.shape[2], contents.shape[2]
    if read == 0:
        return ask * 0.0
    known = chunks >= 0
    memory = torch.arange(count, device=chunks.device)[:, None, None]
    places = chunks.clamp(min=0)
    x = contents.detach()[memory, places].to(ask.dtype)  # [B, Q, K, C, D]
    real = torch.full_like(chunks, length) if steps is None else steps[memory, places]
    index = torch.arange(length, device=chunks.device)
    if positions is not None:
        row = (index + length - real[..., None]).clamp(max=length - 1)
        x = x + positions.to(ask.dtype)[row]
    hidden = (index >= real[..., None]) | ~known[..., None]  # [B, Q, K, C]
    scores = torch.einsum("bqhd,bqkcd->bqhkc", ask, x)
    if joint:
        scores = scores.masked_fill(hidden[:, :, None], -math.inf).flatten(-2)
        shares = _softmax(scores).view(count, queries, heads, read, length)
    else:
        weights = _softmax(logits.masked_fill(~known, -math.inf))
        inside = _softmax(scores.masked_fill(hidden[:, :, None], -math.inf))
        shares = weights[:, :, None, :, None] * inside
    return torch.einsum("bqhkc,bqkcd->bqhd", shares, x)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension; zeros, without a gradient, where all scores are -inf."""
    none = (scores.detach() == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(none, 0.0).softmax(-1).masked_fill(none, 0.0)
