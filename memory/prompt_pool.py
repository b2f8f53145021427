"""A pool of prompts: slow knowledge, looked up by what a sequence looks like, and put before its events.

Prompt m has a key κ_m, which is compared with a query that sums the sequence up, and rows S_m for attention.
The rows of those selected are completed with an embedding τ of the expected time of the next event.

Departures from the published code: one retrieval per sequence from its own past, one pool of which keys and
values come together, a matching loss that is averaged over selections and does not reach into the query.
Source: Xue et al. (2023), "Prompt-augmented temporal point process for streaming event sequence",
arXiv:2310.04993.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["PromptPool", "Retrieved"]

_SMALLEST_NORM = 1e-12


class Retrieved(NamedTuple):
    """What a query found: int64 [queries, selected] ids, lowest first among equals; float cosines of them."""

    ids: Tensor
    cosines: Tensor


class PromptPool(nn.Module):
    """Prompts: keys [prompts, key width], and rows [prompts, rows, 2, width] for attention's keys and values.

    selected: nearest by cosine; ties go to the lower id. usage_balance: how strongly frequent ones are held
    back, times the logarithm of their share; the shares are fading counts, kept in `usage`.
    """

    usage: Tensor

    def __init__(
        self,
        key_width: int,
        width: int,
        *,
        prompts: int = 16,
        selected: int = 4,
        rows: int = 4,
        usage_balance: float = 0.0,
        fading: float = 0.999,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= selected <= prompts:
            raise ValueError(
                f"{selected} of {prompts} prompts cannot be selected; choose from 1 to {prompts}."
            )
        self.selected, self.usage_balance, self.fading = selected, usage_balance, fading
        self.keys = nn.Parameter(torch.rand(prompts, key_width, generator=generator) * 2.0 - 1.0)
        self.rows = nn.Parameter(torch.rand(prompts, rows, 2, width, generator=generator) * 2.0 - 1.0)
        self.register_buffer("usage", torch.full((prompts,), 1.0 / prompts))

    def retrieve(self, query: Tensor) -> Retrieved:
        """Select prompts for queries, float [queries, key width], through which no gradient flows."""
        query = query.detach()
        query = query / query.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST_NORM)
        keys = self.keys / self.keys.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST_NORM)
        cosines = query @ keys.T
        merit = cosines.detach() - self.usage_balance * self.usage.clamp(min=1e-6).log()
        # A stable sort, because topk leaves ties to the back end.
        ids = merit.argsort(dim=-1, descending=True, stable=True)[..., : self.selected]
        return Retrieved(ids, cosines.gather(-1, ids))

    def attend(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of selected prompts, for keys and for values, [queries, selected * rows, width]."""
        rows = self.rows[ids].flatten(-4, -3)
        return rows[..., 0, :], rows[..., 1, :]

    def matching_loss(self, retrieved: Retrieved) -> Tensor:
        """Return 1 - the mean cosine of what was selected: it draws keys to the queries that found them."""
        return 1.0 - retrieved.cosines.mean()

    def count(self, retrieved: Retrieved) -> None:
        """Let the selection count, a query after the other in the fading usage."""
        for ids in retrieved.ids:
            self.usage *= self.fading
            self.usage[ids] += (1.0 - self.fading) / len(ids)
