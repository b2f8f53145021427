"""Attention of times to events, as the formulas are: the definition that the kernel is held against.

Symbols: H heads, B sequences, L events, G groups of S times, P rows of prompts, W and D widths.

    s_i = q · k_i - γ log(1 + (t - t_i) / unit)   of the events that a group sees, its first ones
    s_p = q · k_p                                 of its prompts
    s_* = q · k_*                                 of the time itself
    o = Σ softmax(s) v                            over all of these
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Prompts", "attend", "log_ages", "select"]

_UNSEEN = -1e30  # a score that leaves no share but zero


class Prompts(NamedTuple):
    """What is attended to beside the events: rows of a table, and what a group adds to each that it selects.

    keys, values: [H, M, R, W] and [H, M, R, D], of M prompts with R rows each. ids: int64 [B, G, N], those
    that a group selects. added_keys, added_values: [H, B, G, W] and [H, B, G, D].
    """

    keys: Tensor
    values: Tensor
    ids: Tensor
    added_keys: Tensor
    added_values: Tensor


def select(table: Tensor, ids: Tensor, added: Tensor) -> Tensor:
    """Return what groups select from a table [H, M, R, W], float [H, B, G, N * R, W]; see `Prompts`."""
    heads, prompts, rows, width = table.shape
    places = ids + prompts * torch.arange(heads)[:, None, None, None]
    found = nn.functional.embedding(places, table.flatten(0, 1).flatten(1))
    return found.view(*places.shape[:3], ids.shape[2] * rows, width) + added[..., None, :]


def log_ages(events: Tensor, asked: Tensor, visible: Tensor, unit: float) -> Tensor:
    """Return log(1 + time since an event / unit), float [B, G, S, events that any group sees]."""
    seen = events[:, : _most(visible)]
    apart = (asked[..., None] - seen[:, None, None]).clamp_(min=0.0).div_(unit)
    return apart.to(torch.get_default_dtype()).log1p_()


def attend(
    asked: Tensor,
    at: Tensor | None,
    keys: Tensor,
    values: Tensor,
    since: Tensor | None,
    visible: Tensor,
    fall: Tensor | None,
    prompts: Prompts | None,
    squash: bool,
) -> Tensor:
    """Return what is attended to, float [H, B, G, S, D]. What everything is says `event_attention.attend`."""
    heads, width = len(keys), keys.shape[-1]
    length = _most(visible)  # nobody sees later events
    keys, values = keys[:, :, :length], values[:, :, :length]
    own = None
    if at is not None:
        query, own = at.expand(heads, *at.shape), torch.split(asked, [width, values.shape[3]], -1)
    elif asked.shape[-1] > width:
        query, *parts = torch.split(asked, [width, width, values.shape[3]], -1)
        own = tuple(parts)
    else:
        query = asked

    shape = query.shape[:-1]
    to_events = torch.bmm(query.flatten(2, 3).flatten(0, 1), keys.flatten(0, 1).mT).view(*shape, length)
    if since is not None and fall is not None:
        to_events = to_events.addcmul_(fall[:, None, None, None, None], since[..., :length], value=-1.0)
    unseen = torch.arange(length) >= visible[..., None, None]
    scores = [to_events.masked_fill(unseen, _UNSEEN)]
    if prompts is not None:
        prompt_keys = select(prompts.keys, prompts.ids, prompts.added_keys).flatten(0, 2)
        scores.append(torch.bmm(query.flatten(0, 2), prompt_keys.mT).view(*shape, prompt_keys.shape[1]))
    if own is not None:
        scores.append((query * own[0]).sum(-1, keepdim=True))
    shares = torch.split(torch.cat(scores, -1).softmax(-1), [part.shape[-1] for part in scores], -1)

    attended = torch.bmm(shares[0].flatten(2, 3).flatten(0, 1), values.flatten(0, 1))
    attended = attended.view(*shape, values.shape[3])
    if prompts is not None:
        prompt_values = select(prompts.values, prompts.ids, prompts.added_values).flatten(0, 2)
        from_prompts = torch.bmm(shares[1].flatten(0, 2), prompt_values)
        attended = attended + from_prompts.view(attended.shape)
    if own is not None:
        attended = torch.addcmul(attended, shares[-1], own[1])
    return attended.tanh() if squash else attended


def _most(visible: Tensor) -> int:
    return int(visible.max()) if visible.numel() else 0
