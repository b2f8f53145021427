"""Attention of times to the events before them: many queries of few keys, which see more and more of them.

`reference.py` is the definition, in torch. The kernel, `queries.inl`, does the same on the CPU: it looks at
no event that is not seen, and of what is in between it keeps the shares alone, which the way back needs.
`operators.py` makes it an operator of torch with a gradient. (`attention.inl` is another thing, the live
event model, which is trained as a whole; `prompts.inl`, `encoder.inl`, `history.inl`, `bins.inl`,
`intensities.inl` and `steps.inl` are its parts.)
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from streamwise.kernels import native_info
from streamwise.kernels.event_attention import reference
from streamwise.kernels.event_attention.reference import Prompts, select

__all__ = ["Implementation", "Prompts", "attend", "log_ages", "select"]

Implementation = Literal["auto", "reference"]
_VECTOR_BYTES = 32  # which rows of values have to fill


def log_ages(
    events: Tensor, asked: Tensor, visible: Tensor, unit: float, *, implementation: Implementation = "auto"
) -> Tensor:
    """Return log(1 + time since an event / unit), float [B, G, S, events or more], of those that are seen.

    events: float64 [B, L]. asked: float64 [B, G, S]. visible: int64 [B, G], how many of the first events a
    group sees. The rest is finite, and counts nowhere.
    """
    if implementation == "auto" and _has_kernel():
        found: Tensor = _operators().log_ages(events, asked, visible, unit)
        return found
    return reference.log_ages(events, asked, visible, unit)


def attend(
    asked: Tensor,
    at: Tensor | None,
    keys: Tensor,
    values: Tensor,
    since: Tensor | None,
    visible: Tensor,
    fall: Tensor | None,
    prompts: Prompts | None,
    *,
    squash: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return what times attend to, float [H, B, G, S, D], by one softmax over all that each sees.

    asked: queries, [H, B, G, S, W], and beside them, where a time attends to itself, its key and its value:
    [H, B, G, S, 2 W + D]. at: [B, G, S, W] if all heads have these queries, through which no gradient flows;
    then `asked` has no others. keys, values: of events, [H, B, L, W] and [H, B, L, D]. visible: int64 [B, G],
    how many of the first events a group sees. fall, [H], times since, see `log_ages`, is taken off the scores
    of events. squash: return the hyperbolic tangent of it.
    """
    whole = values.shape[-1] * values.element_size() % _VECTOR_BYTES == 0
    if implementation == "auto" and whole and asked.numel() and values.device.type == "cpu" and _has_kernel():
        found: Tensor = _operators().attend(asked, at, keys, values, since, visible, fall, prompts, squash)
        return found
    return reference.attend(asked, at, keys, values, since, visible, fall, prompts, squash)


def _has_kernel() -> bool:
    return (
        _found()
        and torch.get_default_dtype() in (torch.float32, torch.float64)
        and torch._C._functorch.peek_interpreter_stack() is None  # torch.func.vmap has no arrays to give
    )


@cache
def _found() -> bool:
    return native_info() is not None


def _operators() -> Any:
    from streamwise.kernels.event_attention import operators

    return operators
