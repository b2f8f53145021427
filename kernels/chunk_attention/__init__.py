"""Looking up chunks of the past: a scan of their summaries for the best few, and attention inside those.

`reference.py` is the definition, in torch. `native.cpp` does the same on the CPU: it reads every summary
once, whatever the number of queries, keeps the best, and touches the contents of no other chunk.
`triton_kernel.py` does it on a GPU. `operators.py` makes both parts operators of torch with gradients, which
`torch.compile` takes as they are. Where there is no kernel, the reference does it all.

Summaries may be stored in less: bfloat16, or int8 with a scale for each (`quantize`). What is found can then
differ where two chunks are about equally good.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from streamwise.kernels import native_info
from streamwise.kernels.chunk_attention import reference

__all__ = ["Implementation", "Lookup", "attend", "lookup", "quantize", "scan"]

Implementation = Literal["auto", "reference"]

# Looked up once, for torch.compile cannot follow a search for modules.
_IS_THERE = {"cpu": native_info() is not None, "cuda": find_spec("triton") is not None}


class Lookup(NamedTuple):
    """What was read, [B, Q, H, D]; of which chunks, int64 [B, Q, K], -1 for none; and their ℓ."""

    read: Tensor
    chunks: Tensor
    logits: Tensor


def lookup(
    select: Tensor,
    ask: Tensor,
    summaries: Tensor,
    contents: Tensor,
    *,
    k: int,
    scales: Tensor | None = None,
    visible: Tensor | None = None,
    positions: Tensor | None = None,
    steps: Tensor | None = None,
    joint: bool = False,
    implementation: Implementation = "auto",
) -> Lookup:
    """Read the `k` best of M chunks. What everything is, and its shape, `scan` and `attend` say."""
    chunks, logits = scan(
        select, summaries, k=k, scales=scales, visible=visible, implementation=implementation
    )
    read = attend(
        ask, logits, chunks, contents, positions=positions, steps=steps, joint=joint,
        implementation=implementation,
    )  # fmt: skip
    return Lookup(read, chunks, logits)


def scan(
    select: Tensor,
    summaries: Tensor,
    *,
    k: int,
    scales: Tensor | None = None,
    visible: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the numbers of the K = min(k, M) best chunks, int64 [B, Q, K], best first, and ℓ of each.

    ℓ is the product of a query, select [B, Q, D], with a summary, [B, M, D]; of equal ones the lower number
    is the better. visible: bool [B, Q or 1, M]; where fewer than K chunks are visible, the rest is -1, with
    ℓ = -inf. Gradients flow from ℓ to `select` alone. scales: float32 [B, M], for int8 summaries.
    """
    _check_widths(select, summaries)
    if (summaries.dtype == torch.int8) != (scales is not None):
        raise ValueError("int8 summaries need scales, and no others have any.")
    if _has_kernel(select, implementation):
        kernels = _kernels(select.device.type)
        call = torch.ops.streamwise.chunk_scan if _recorded(select) else kernels.scan
        logits, chunks = call(select, summaries, scales, visible, k)
        return chunks, logits
    plain = summaries.to(select.dtype)
    if scales is not None:
        plain = plain * scales[..., None].to(select.dtype)
    return reference.scan(select, plain, visible, k)


def attend(
    ask: Tensor,
    logits: Tensor,
    chunks: Tensor,
    contents: Tensor,
    *,
    positions: Tensor | None = None,
    steps: Tensor | None = None,
    joint: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return what attention inside some chunks reads, [B, Q, H, D]; zeros where there is none to read.

    ask: [B, Q, H, D], a query for each head. logits, chunks: of `scan`. contents: [B, M, C, D]. positions:
    [C, D], added to the steps of a chunk so that the last row is with its last step. steps: int64 [B, M],
    of how many steps each chunk is, the first of its C. joint: all steps that are read share one softmax
    for each head, in place of chunks that are weighed by the softmax of their logits. Gradients flow to
    `ask` and `logits`.
    """
    if ask.shape[-1] != contents.shape[-1]:
        raise ValueError(f"ask is {ask.shape[-1]} wide, and contents are {contents.shape[-1]}.")
    if _has_kernel(ask, implementation):
        kernels = _kernels(ask.device.type)
        call = torch.ops.streamwise.chunk_attend if _recorded(ask, logits) else kernels.attend
        read: Tensor = call(ask, logits, chunks, contents, positions, steps, joint)[0]
        return read
    return reference.attend(ask, logits, chunks, contents, positions, steps, joint=joint)


def quantize(summaries: Tensor) -> tuple[Tensor, Tensor]:
    """Return summaries [..., D] as int8, and what each is multiplied with, float32 [...]."""
    scales = summaries.abs().amax(-1).float().clamp(min=1e-30) / 127.0
    return (summaries / scales[..., None]).round().to(torch.int8), scales


def _check_widths(select: Tensor, summaries: Tensor) -> None:
    if select.shape[-1] != summaries.shape[-1] or len(select) != len(summaries):
        raise ValueError(
            f"select is [memories, queries, width] = {list(select.shape)}, summaries are [memories, chunks, "
            f"width] = {list(summaries.shape)}; memories and width must be the same."
        )


def _has_kernel(query: Tensor, implementation: Implementation) -> bool:
    """Whether there is a kernel for this query, and it is wanted."""
    if implementation == "reference" or query.dtype not in (torch.float32, torch.float64):
        return False
    return _IS_THERE.get(query.device.type, False)


def _kernels(device: str) -> Any:
    """Return the module with the functions of a device, which makes the operators known to torch."""
    if device == "cuda":
        from streamwise.kernels.chunk_attention import triton_kernel

        return triton_kernel
    from streamwise.kernels.chunk_attention import operators

    return operators


def _recorded(*queries: Tensor) -> bool:
    """Whether torch has to know of a call. It takes longer than a small lookup to tell it."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(query.requires_grad for query in queries)
