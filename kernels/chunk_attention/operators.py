"""The lookup of chunks as operators of torch: `streamwise::chunk_scan` and `streamwise::chunk_attend`.

Each has a way back of its own, and a fake that knows shapes, so that autograd and `torch.compile` work. On
the CPU they are the extension's; where that is not built they are not called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.kernels import native_info

__all__ = ["NAMESPACE", "attend", "scan"]

NAMESPACE = "streamwise"

for _name, _signature in {
    "chunk_scan": "(Tensor select, Tensor summaries, Tensor? scales, Tensor? visible, int k) "
    "-> (Tensor, Tensor)",
    "chunk_scan_back": "(Tensor gradient, Tensor chunks, Tensor summaries, Tensor? scales) -> Tensor",
    "chunk_attend": "(Tensor ask, Tensor logits, Tensor chunks, Tensor contents, Tensor? positions, "
    "Tensor? steps, bool joint) -> (Tensor, Tensor)",
    "chunk_attend_back": "(Tensor gradient, Tensor shares, Tensor logits, Tensor chunks, Tensor contents, "
    "Tensor? positions, Tensor? steps, bool joint) -> (Tensor, Tensor)",
}.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _signature)


def _native() -> tuple[Any, str]:
    from streamwise.kernels import _native

    info = native_info()
    assert info is not None
    return _native, info.instruction_set


def _array(tensor: Tensor | None) -> NDArray[Any] | None:
    """As the extension takes it, which has no type for bfloat16 and bool, and is slow to take a tensor."""
    if tensor is None:
        return None
    plain = tensor.detach().contiguous()
    if plain.dtype in (torch.bfloat16, torch.bool):
        plain = plain.view(torch.uint16 if plain.dtype == torch.bfloat16 else torch.uint8)
    return plain.numpy()


# The scan.


def _new_scan(
    select: Tensor, summaries: Tensor, scales: Tensor | None, visible: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    shape = (*select.shape[:2], min(k, summaries.shape[1]))
    return select.new_empty(shape), select.new_empty(shape, dtype=torch.int64)


def scan(
    select: Tensor, summaries: Tensor, scales: Tensor | None, visible: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Return logits and chunks, on the CPU and without a gradient."""
    native, instruction_set = _native()
    logits, chunks = _new_scan(select, summaries, scales, visible, k)
    native.chunk_scan(
        _array(select), _array(summaries), _array(scales), _array(visible), k, chunks.numpy(), logits.numpy(),
        instruction_set,
    )  # fmt: skip
    return logits, chunks


def _new_scan_back(gradient: Tensor, chunks: Tensor, summaries: Tensor, scales: Tensor | None) -> Tensor:
    return gradient.new_empty(*gradient.shape[:2], summaries.shape[2])


def _scan_back(gradient: Tensor, chunks: Tensor, summaries: Tensor, scales: Tensor | None) -> Tensor:
    native, instruction_set = _native()
    out = _new_scan_back(gradient, chunks, summaries, scales)
    native.chunk_scan_back(
        _array(gradient), _array(chunks), _array(summaries), _array(scales), out.numpy(), instruction_set
    )
    return out


def _keep_scan(ctx: Any, inputs: Any, output: Any) -> None:
    _, summaries, scales, _, _ = inputs
    ctx.save_for_backward(output[1], summaries, scales)
    ctx.mark_non_differentiable(output[1])


def _scan_gradient(ctx: Any, gradient: Tensor, _chunks: Any) -> tuple[Tensor | None, ...]:
    of_select: Tensor = torch.ops.streamwise.chunk_scan_back(gradient, *ctx.saved_tensors)
    return of_select, None, None, None, None


# Attention.


def _new_attend(
    ask: Tensor, logits: Tensor, chunks: Tensor, contents: Tensor, positions: Tensor | None,
    steps: Tensor | None, joint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shares = ask.new_empty(*ask.shape[:3], chunks.shape[2], contents.shape[2])
    return ask.new_empty(ask.shape), shares


def attend(
    ask: Tensor, logits: Tensor, chunks: Tensor, contents: Tensor, positions: Tensor | None,
    steps: Tensor | None, joint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what is read, and the share of each step, on the CPU and without a gradient."""
    native, instruction_set = _native()
    read, shares = _new_attend(ask, logits, chunks, contents, positions, steps, joint)
    native.chunk_attend(
        _array(ask), _array(logits), _array(chunks), _array(contents), _array(positions), _array(steps),
        joint, read.numpy(), shares.numpy(), instruction_set,
    )  # fmt: skip
    return read, shares


def _new_attend_back(
    gradient: Tensor, shares: Tensor, logits: Tensor, chunks: Tensor, contents: Tensor,
    positions: Tensor | None, steps: Tensor | None, joint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return gradient.new_empty(gradient.shape), logits.new_empty(logits.shape)


def _attend_back(
    gradient: Tensor, shares: Tensor, logits: Tensor, chunks: Tensor, contents: Tensor,
    positions: Tensor | None, steps: Tensor | None, joint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    native, instruction_set = _native()
    of_ask, of_logits = _new_attend_back(gradient, shares, logits, chunks, contents, positions, steps, joint)
    native.chunk_attend_back(
        _array(gradient), _array(shares), _array(logits), _array(chunks), _array(contents), _array(positions),
        _array(steps), joint, of_ask.numpy(), of_logits.numpy(), instruction_set,
    )  # fmt: skip
    return of_ask, of_logits


def _keep_attend(ctx: Any, inputs: Any, output: Any) -> None:
    _, logits, chunks, contents, positions, steps, ctx.joint = inputs
    ctx.save_for_backward(output[1], logits, chunks, contents, positions, steps)
    ctx.mark_non_differentiable(output[1])


def _attend_gradient(ctx: Any, gradient: Tensor, _shares: Any) -> tuple[Tensor | None, ...]:
    of_ask, of_logits = torch.ops.streamwise.chunk_attend_back(gradient, *ctx.saved_tensors, ctx.joint)
    return of_ask, of_logits, None, None, None, None, None


torch.library.register_autograd(f"{NAMESPACE}::chunk_scan", _scan_gradient, setup_context=_keep_scan)
torch.library.register_autograd(f"{NAMESPACE}::chunk_attend", _attend_gradient, setup_context=_keep_attend)
_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "chunk_scan": (scan, _new_scan),
    "chunk_scan_back": (_scan_back, _new_scan_back),
    "chunk_attend": (attend, _new_attend),
    "chunk_attend_back": (_attend_back, _new_attend_back),
}
for _name, (_on_cpu, _fake) in _OPERATORS.items():
    torch.library.impl(f"{NAMESPACE}::{_name}", "cpu", _on_cpu)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
