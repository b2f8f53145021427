"""Attention of times to events as an operator of torch, `streamwise::event_attend`, with its way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamwise.kernels import native_info
from streamwise.kernels.event_attention.reference import Prompts

__all__ = ["attend", "log_ages"]

_LANES = 8  # rows of ages hold whole vectors, of either precision

_QUERIES = (
    "Tensor asked, Tensor? at, Tensor keys, Tensor values, Tensor? since, Tensor visible, Tensor? fall, "
    "Tensor? prompt_keys, Tensor? prompt_values, Tensor? ids, Tensor? added_keys, Tensor? added_values, "
    "bool squash"
)
for _name, _signature in {
    "event_attend": f"({_QUERIES}, bool keep) -> (Tensor, Tensor)",
    "event_attend_back": f"(Tensor gradient, Tensor out, Tensor shares, {_QUERIES}) -> Tensor[]",
}.items():
    torch.library.define(f"streamwise::{_name}", _signature)


def _native() -> tuple[Any, str]:
    from streamwise.kernels import _native

    info = native_info()
    assert info is not None
    return _native, info.instruction_set


def log_ages(events: Tensor, asked: Tensor, visible: Tensor, unit: float) -> Tensor:
    """Return whole vectors of what is seen, float [B, G, S, row]."""
    native, instruction_set = _native()
    row = max(-(-events.shape[1] // _LANES), 1) * _LANES
    out = torch.empty(*asked.shape, row)
    native.log_ages(events.contiguous(), asked.contiguous(), visible.contiguous(), unit, out, instruction_set)
    return out


def attend(
    asked: Tensor, at: Tensor | None, keys: Tensor, values: Tensor, since: Tensor | None, visible: Tensor,
    fall: Tensor | None, prompts: Prompts | None, squash: bool,
) -> Tensor:  # fmt: skip
    """Return what is attended to, with a gradient where one is wanted."""
    of_prompts = (None,) * 5 if prompts is None else prompts
    learned = (asked, keys, values, fall, *of_prompts)
    keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in learned)
    out: Tensor = torch.ops.streamwise.event_attend(
        asked, at, keys, values, since, visible, fall, *of_prompts, squash, keep
    )[0]
    return out


def _rows(tensor: Tensor) -> Tensor:
    """As rows that lie one after the other, [H, times of all groups, ...]; a view where it can be."""
    rows = tensor.detach().flatten(1, -2)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _events(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or tensor.stride(-1) == 1:
        return None if tensor is None else tensor.detach()
    return tensor.detach().contiguous()


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def _queries(
    asked: Tensor, at: Tensor | None, keys: Tensor, values: Tensor, since: Tensor | None, visible: Tensor,
    fall: Tensor | None, prompt_keys: Tensor | None, prompt_values: Tensor | None, *of_groups: Tensor | None,
) -> tuple[Any, ...]:  # fmt: skip
    """As the extension takes them."""
    query, own = _parts(_rows(asked), keys.shape[-1], at is not None)
    if at is not None:
        query = _rows(at[None])
    return (
        query, own, _events(keys), _events(values), _plain(since), _plain(visible), _plain(fall),
        _events(prompt_keys), _events(prompt_values), *map(_plain, of_groups),
    )  # fmt: skip


def _parts(rows: Tensor, width: int, shared: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the queries among the rows, and the keys and values of the times themselves."""
    if shared:
        return None, rows
    return rows[..., :width], rows[..., width:] if rows.shape[-1] > width else None


def _columns(own: Tensor | None, keys: Tensor, prompt_keys: Tensor | None, ids: Tensor | None) -> int:
    """Return how long a row of shares is: whole vectors of events, of prompts, and of oneself."""
    lanes = 32 // keys.element_size()
    prompts = 0 if prompt_keys is None or ids is None else ids.shape[2] * prompt_keys.shape[2]
    sizes = keys.shape[2], prompts, 0 if own is None else 1
    return sum(-(-size // lanes) * lanes for size in sizes)


def _attend(asked: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    native, instruction_set = _native()
    *rest, squash, keep = others
    queries = _queries(asked, *rest)
    _, own, keys, values, _, _, _, prompt_keys, _, ids, _, _ = queries
    heads, times = len(asked), queries[0].shape[1]
    out = values.new_empty(heads, times, values.shape[-1])
    shares = values.new_empty(heads, times, _columns(own, keys, prompt_keys, ids)) if keep else None
    native.attend_events(*queries, squash, out, shares, instruction_set)
    return out.view(*asked.shape[:-1], -1), out.new_empty(0) if shares is None else shares


def _attend_back(
    gradient: Tensor, out: Tensor, shares: Tensor, asked: Tensor, at: Tensor | None, *others: Any
) -> list[Tensor]:
    native, instruction_set = _native()
    *rest, squash = others
    queries = _queries(asked, at, *rest)
    _, _, keys, values, _, _, fall, prompt_keys, prompt_values, _, *added = queries
    of_asked = asked.new_empty(asked.shape)
    of_query, of_own = _parts(of_asked.flatten(1, -2), keys.shape[-1], at is not None)
    of_keys, of_values = keys.new_empty(keys.shape), values.new_empty(values.shape)
    of_fall, *of_table = (
        None if part is None else part.new_zeros(part.shape) for part in (fall, prompt_keys, prompt_values)
    )
    of_added = [None if part is None else torch.empty_like(part) for part in added]
    native.attend_events_back(
        gradient.flatten(1, -2).contiguous(), out.flatten(1, -2), shares, *queries, squash, of_query, of_own,
        of_keys, of_values, of_fall, *of_table, *of_added, instruction_set,
    )  # fmt: skip
    found = (of_asked, of_keys, of_values, of_fall, *of_table, *of_added)
    return [part for part in found if part is not None]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.squash, _ = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # shares, which are large, have none


def _gradient(ctx: Any, gradient: Tensor | None, _shares: Any) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 14
    found = torch.ops.streamwise.event_attend_back(gradient, *ctx.saved_tensors, ctx.squash)
    of_asked, of_keys, of_values, *rest = found
    others = iter(rest)
    fall, *table, _, added_keys, added_values = ctx.saved_tensors[8:]
    of_fall, *of_table = (None if part is None else next(others) for part in (fall, *table))
    of_added = (None if part is None else next(others) for part in (added_keys, added_values))
    return (
        of_asked, None, of_keys, of_values, None, None, of_fall, *of_table, None, *of_added, None, None,
    )  # fmt: skip


torch.library.register_autograd("streamwise::event_attend", _gradient, setup_context=_keep)
torch.library.impl("streamwise::event_attend", "cpu", _attend)
torch.library.impl("streamwise::event_attend_back", "cpu", _attend_back)
