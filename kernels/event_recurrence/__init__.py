"""The recurrence of the neural Hawkes process: cells that decay towards a target between events.

`reference.py` is the definition, in torch. `native.cpp` does the same on the CPU, forth and back: a few
sequences side by side, so that a weight is read once for all of them, and no pad is computed. It is chosen
where the extension is built and numbers are float32 or float64; for others, and for gradients of gaps, which
it does not know, there is the reference.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from streamwise.kernels import native_info
from streamwise.kernels.event_recurrence import reference
from streamwise.kernels.event_recurrence.reference import GATES, Recurrence

__all__ = ["GATES", "Implementation", "Recurrence", "recur", "states"]

Implementation = Literal["auto", "reference"]

_KEPT = 8  # numbers that a step leaves for its way back, in units of the width


def recur(
    inputs: Tensor, weight: Tensor, gaps: Tensor, lengths: Tensor, *, implementation: Implementation = "auto"
) -> Recurrence:
    """Take the steps of some sequences; what everything is, and its shape, `reference.recur` says."""
    if not _has_kernel(implementation, gaps, inputs, weight):
        return reference.recur(inputs, weight, gaps, lengths)
    call: Any = _Recur.apply if _recorded(inputs, weight) else _recur
    return Recurrence(*call(inputs, weight, gaps, lengths))


def states(
    recurrence: Recurrence, seen: Tensor, gaps: Tensor, *, implementation: Implementation = "auto"
) -> Tensor:
    """Return h at some times; what everything is, and its shape, `reference.states` says."""
    if not _has_kernel(implementation, gaps, *recurrence):
        return reference.states(recurrence, seen, gaps)
    call: Any = _States.apply if _recorded(*recurrence) else _states
    found: Tensor = call(*recurrence, seen, gaps)
    return found


def _has_kernel(implementation: Implementation, gaps: Tensor, *others: Tensor) -> bool:
    """Whether there is a kernel for these, and it is wanted."""
    return (
        implementation == "auto"
        and gaps.dtype in (torch.float32, torch.float64)
        and all(tensor.device.type == "cpu" for tensor in (gaps, *others))
        and not gaps.requires_grad
        and native_info() is not None
        and torch._C._functorch.peek_interpreter_stack() is None  # torch.func.vmap has no arrays to give
    )


def _recorded(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _native() -> tuple[Any, str]:
    from streamwise.kernels import _native

    return _native, _native.instruction_set()


def _arrays(*tensors: Tensor | None) -> list[Any]:
    """As the extension takes them: it reads an array of NumPy much sooner than a tensor."""
    return [None if tensor is None else tensor.detach().contiguous().numpy() for tensor in tensors]


def _recur(
    inputs: Tensor,
    weight: Tensor,
    gaps: Tensor,
    lengths: Tensor,
    states: Tensor | None = None,
    kept: Tensor | None = None,
) -> Recurrence:
    native, instruction_set = _native()
    parts = Recurrence(*(inputs.new_empty(*inputs.shape[:2], weight.shape[1]) for _ in range(4)))
    native.event_recurrence(*_arrays(inputs, weight, gaps, lengths, *parts, states, kept), instruction_set)
    return parts


class _Recur(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, gaps: Tensor, lengths: Tensor) -> Recurrence:
        width = weight.shape[1]
        states, kept = (inputs.new_empty(*inputs.shape[:2], size) for size in (width, _KEPT * width))
        parts = _recur(inputs, weight, gaps, lengths, states, kept)
        ctx.save_for_backward(weight, gaps, lengths, *parts, states, kept)
        return parts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *of_parts: Tensor) -> tuple[Tensor | None, ...]:
        native, instruction_set = _native()
        *given, states, kept = ctx.saved_tensors
        of_inputs = states.new_empty(*states.shape[:2], len(given[0]))
        native.event_recurrence_back(*_arrays(*given, kept, *of_parts, of_inputs), instruction_set)
        of_weight = of_inputs.flatten(0, 1).T @ states.flatten(0, 1)
        return of_inputs, of_weight, None, None


def _states(
    cells: Tensor, targets: Tensor, decays: Tensor, outputs: Tensor, seen: Tensor, gaps: Tensor
) -> Tensor:
    native, instruction_set = _native()
    found = gaps.new_empty(*gaps.shape, cells.shape[2])
    native.event_states(*_arrays(cells, targets, decays, outputs, seen, gaps, found), instruction_set)
    return found


class _States(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        return _states(*given)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_states: Tensor) -> tuple[Tensor | None, ...]:
        native, instruction_set = _native()
        given = ctx.saved_tensors
        of_parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in given[:4]]
        native.event_states_back(*_arrays(*given, of_states, *of_parts), instruction_set)
        return *of_parts, None, None
