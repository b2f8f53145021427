"""The lookup of chunks on a GPU, in Triton. What it computes is defined in `reference.py`.

The scan divides the chunks of a memory into parts, so that a single query keeps the whole device busy. Each
program keeps the best of its part, sorted, and a stable sort of these few finds the best of all; equal chunks
stay in their order all the way. Attention has a program for each query and head, which touches the chunks
that were found and no others.

The functions take tensors of any device on which Triton runs, its interpreter included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamwise.kernels.chunk_attention import operators

__all__ = ["attend", "attend_back", "scan", "scan_back"]

_BLOCK = 64  # summaries that a program looks at together
_SEGMENT = 4_096  # summaries of a part, at least
_PARTS = 64  # at most


@triton.jit
def scan_kernel(
    select, summaries, scales, visible, logits, chunks, queries, visible_rows, count, width, segment,
    K: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keep the K best of a part of the chunks, for one query: logits and chunks [B * Q, parts, K]."""
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    memory = row // queries
    d, slot = tl.arange(0, WIDTH), tl.arange(0, K)
    query = tl.load(select + row * width + d, mask=d < width, other=0.0)
    best = tl.full((K,), float("-inf"), query.dtype)
    ids = tl.full((K,), -1, tl.int64)
    end = tl.minimum((part + 1) * segment, count)
    for start in range(part * segment, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < end
        place = memory * count + i
        at, there = place[:, None] * width + d[None, :], inside[:, None] & (d < width)[None, :]
        x = tl.load(summaries + at, mask=there, other=0.0)
        score = tl.sum(x.to(query.dtype) * query[None, :], 1)
        if SCALED:
            score = score * tl.load(scales + place, mask=inside, other=0.0).to(query.dtype)
        if MASKED:
            seen_by = memory * visible_rows + (row % queries) * (visible_rows > 1)
            inside = inside & (tl.load(visible + seen_by * count + i, mask=inside, other=0) != 0)
        is_number = score == score  # noqa: PLR0124  which NaN is not
        score = tl.where(inside & is_number, score, float("-inf"))
        top = tl.max(score, 0)
        while top > tl.min(best, 0):
            first = tl.min(tl.where(score == top, i, 1 << 30), 0)
            rank = tl.sum((best >= top).to(tl.int32), 0)
            before = slot[None, :] == slot[:, None] - 1
            moved = tl.max(tl.where(before, best[None, :], float("-inf")), 1)
            moved_ids = tl.max(tl.where(before, ids[None, :], -1), 1)
            best = tl.where(slot < rank, best, tl.where(slot == rank, top, moved))
            ids = tl.where(slot < rank, ids, tl.where(slot == rank, first.to(tl.int64), moved_ids))
            score = tl.where(i == first, float("-inf"), score)
            top = tl.max(score, 0)
    out = (row * parts + part) * K + slot
    tl.store(logits + out, best)
    tl.store(chunks + out, ids)


@triton.jit
def scan_back_kernel(
    gradient, chunks, summaries, scales, out, queries, count, width, k,
    WIDTH: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Add up the summaries that one query found, each times its gradient: [B * Q, D]."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), out.dtype.element_ty)
    for j in range(k):
        chunk = tl.load(chunks + row * k + j)
        known = chunk >= 0
        place = (row // queries) * count + tl.maximum(chunk, 0)
        weight = tl.where(known, tl.load(gradient + row * k + j), 0.0)
        if SCALED:
            weight = weight * tl.load(scales + place, mask=known, other=0.0).to(total.dtype)
        x = tl.load(summaries + place * width + d, mask=d < tl.where(known, width, 0), other=0.0)
        total += weight * x.to(total.dtype)
    tl.store(out + row * width + d, total, mask=d < width)


@triton.jit
def _weights(logits, chunks, row, k, K: tl.constexpr):
    """Return the softmax of the logits of one query's chunks, zeros where there are none, [K]."""
    slot = tl.arange(0, K)
    known = tl.load(chunks + row * k + slot, mask=slot < k, other=-1) >= 0
    logit = tl.where(known, tl.load(logits + row * k + slot, mask=slot < k, other=0.0), float("-inf"))
    most = tl.max(logit, 0)
    weight = tl.where(known, tl.exp(logit - tl.where(most == float("-inf"), 0.0, most)), 0.0)
    total = tl.sum(weight, 0)
    return weight / tl.where(total > 0.0, total, 1.0)


@triton.jit
def _steps_of(
    contents, positions, steps, first, chunk, length, width,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, PLACED: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """Return the steps of a chunk with their positions, [LENGTH, WIDTH], and which are real: none of -1."""
    c, d = tl.arange(0, LENGTH), tl.arange(0, WIDTH)
    place = first + tl.maximum(chunk, 0)
    real = length
    if SHORT:
        real = tl.load(steps + place).to(tl.int32)
    is_real = c < tl.where(chunk >= 0, real, 0)
    inside = is_real[:, None] & (d < width)[None, :]
    at = place * length + c
    x = tl.load(contents + at[:, None] * width + d[None, :], mask=inside, other=0.0)
    if PLACED:
        row = length - real + c
        x += tl.load(positions + row[:, None] * width + d[None, :], mask=inside, other=0.0)
    return x, is_real


@triton.jit
def attend_kernel(
    ask, logits, chunks, contents, positions, steps, read, shares, queries, heads, count, length, width, k,
    K: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr, PLACED: tl.constexpr, SHORT: tl.constexpr,
    JOINT: tl.constexpr,
):  # fmt: skip
    """Read what one query's head is looking for: read [B * Q, H, D], shares [B * Q, H, k, C]."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, d, slot = tl.arange(0, LENGTH), tl.arange(0, WIDTH), tl.arange(0, K)
    u = tl.load(ask + (row * heads + head) * width + d, mask=d < width, other=0.0)
    weight = _weights(logits, chunks, row, k, K)
    base = shares + (row * heads + head) * k * length
    first = (row // queries) * count
    most = tl.full((), float("-inf"), u.dtype)
    sum_of = tl.full((), 0.0, u.dtype)
    for j in range(k):  # the scores, where the shares are going to be
        chunk = tl.load(chunks + row * k + j)
        x, is_real = _steps_of(
            contents, positions, steps, first, chunk, length, width, LENGTH, WIDTH, PLACED, SHORT
        )
        score = tl.where(is_real, tl.sum(x * u[None, :], 1), float("-inf"))
        top = tl.max(score, 0)
        if JOINT:
            now = tl.maximum(most, top)
            fixed = tl.where(now == float("-inf"), 0.0, now)
            sum_of = sum_of * tl.exp(most - fixed) + tl.sum(tl.exp(score - fixed), 0)
            most = now
            share = score
        else:
            part = tl.exp(score - tl.where(top == float("-inf"), 0.0, top))
            total = tl.sum(part, 0)
            share = part / tl.where(total > 0.0, total, 1.0) * tl.sum(tl.where(slot == j, weight, 0.0), 0)
        tl.store(base + j * length + c, share, mask=c < length)
    tl.debug_barrier()
    found = tl.zeros((WIDTH,), u.dtype)
    for j in range(k):
        chunk = tl.load(chunks + row * k + j)
        x, is_real = _steps_of(
            contents, positions, steps, first, chunk, length, width, LENGTH, WIDTH, PLACED, SHORT
        )
        share = tl.load(base + j * length + c, mask=c < length, other=0.0)
        if JOINT:
            share = tl.exp(share - tl.where(most == float("-inf"), 0.0, most))
            share = share / tl.where(sum_of > 0.0, sum_of, 1.0)
            share = tl.where(is_real, share, 0.0)
            tl.store(base + j * length + c, share, mask=c < length)
        found += tl.sum(share[:, None] * x, 0)
    tl.store(read + (row * heads + head) * width + d, found, mask=d < width)


@triton.jit
def attend_back_kernel(
    gradient, shares, logits, chunks, contents, positions, steps, of_ask, of_logits, queries, heads, count,
    length, width, k,
    K: tl.constexpr, LENGTH: tl.constexpr, WIDTH: tl.constexpr, PLACED: tl.constexpr, SHORT: tl.constexpr,
    JOINT: tl.constexpr,
):  # fmt: skip
    """Find the gradients of one query: of_ask [B * Q, H, D] and of_logits [B * Q, k]."""
    row = tl.program_id(0).to(tl.int64)
    c, d, slot = tl.arange(0, LENGTH), tl.arange(0, WIDTH), tl.arange(0, K)
    weight = _weights(logits, chunks, row, k, K)
    of_weight = weight * 0.0
    first = (row // queries) * count
    for head in range(heads):
        g = tl.load(gradient + (row * heads + head) * width + d, mask=d < width, other=0.0)
        base = shares + (row * heads + head) * k * length
        whole = tl.full((), 0.0, g.dtype)
        if JOINT:
            for j in range(k):
                chunk = tl.load(chunks + row * k + j)
                x, is_real = _steps_of(
                    contents, positions, steps, first, chunk, length, width, LENGTH, WIDTH, PLACED, SHORT
                )
                share = tl.load(base + j * length + c, mask=is_real, other=0.0)
                whole += tl.sum(share * tl.sum(x * g[None, :], 1), 0)
        total = tl.zeros((WIDTH,), g.dtype)
        for j in range(k):
            chunk = tl.load(chunks + row * k + j)
            x, is_real = _steps_of(
                contents, positions, steps, first, chunk, length, width, LENGTH, WIDTH, PLACED, SHORT
            )
            share = tl.load(base + j * length + c, mask=is_real, other=0.0)
            product = tl.sum(x * g[None, :], 1)
            mean = whole
            if not JOINT:
                own = tl.sum(tl.where(slot == j, weight, 0.0), 0)
                mean = tl.where(own > 0.0, tl.sum(share * product, 0) / tl.where(own > 0.0, own, 1.0), 0.0)
                of_weight += tl.where(slot == j, mean, 0.0)
            total += tl.sum((share * (product - mean))[:, None] * x, 0)
        tl.store(of_ask + (row * heads + head) * width + d, total, mask=d < width)
    of_logit = weight * (of_weight - tl.sum(weight * of_weight, 0))
    tl.store(of_logits + row * k + slot, of_logit, mask=slot < k)


# What launches them.


def scan(
    select: Tensor, summaries: Tensor, scales: Tensor | None, visible: Tensor | None, k: int
) -> tuple[Tensor, Tensor]:
    """Return logits and chunks; see `operators`."""
    select, summaries, scales, visible = _whole(select, summaries, scales, visible)
    (memories, queries, width), count = select.shape, summaries.shape[1]
    read = min(k, count)
    if read == 0:
        nothing = select.new_empty(memories, queries, 0)
        return nothing, nothing.long()
    kept = triton.next_power_of_2(read)
    segment = max(_SEGMENT, -(-count // _PARTS))
    parts = -(-count // segment)
    logits = select.new_empty(memories * queries, parts, kept)
    chunks = select.new_empty((memories * queries, parts, kept), dtype=torch.int64)
    scan_kernel[(memories * queries, parts)](
        select, summaries, scales, None if visible is None else visible.view(torch.uint8), logits, chunks,
        queries, 1 if visible is None else visible.shape[1], count, width, segment,
        K=kept, BLOCK=_BLOCK, WIDTH=triton.next_power_of_2(width), SCALED=scales is not None,
        MASKED=visible is not None,
    )  # fmt: skip
    order = logits.flatten(1).argsort(dim=-1, descending=True, stable=True)[:, :read]
    shape = (memories, queries, read)
    return logits.flatten(1).gather(1, order).view(shape), chunks.flatten(1).gather(1, order).view(shape)


def scan_back(gradient: Tensor, chunks: Tensor, summaries: Tensor, scales: Tensor | None) -> Tensor:
    """Return the gradient of `select`."""
    gradient, chunks, summaries, scales = _whole(gradient, chunks, summaries, scales)
    (memories, queries, k), (_, count, width) = gradient.shape, summaries.shape
    out = gradient.new_empty(memories, queries, width)
    scan_back_kernel[(memories * queries,)](
        gradient, chunks, summaries, scales, out, queries, count, width, k,
        WIDTH=triton.next_power_of_2(width), SCALED=scales is not None,
    )  # fmt: skip
    return out


def attend(
    ask: Tensor, logits: Tensor, chunks: Tensor, contents: Tensor, positions: Tensor | None,
    steps: Tensor | None, joint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what is read, and the share of each step."""
    ask, logits, chunks, contents, positions, steps = _whole(ask, logits, chunks, contents, positions, steps)
    memories, queries, heads, _ = ask.shape
    read = torch.empty_like(ask)
    shares = ask.new_empty(*ask.shape[:3], chunks.shape[2], contents.shape[2])
    if chunks.shape[2] == 0:
        return read.zero_(), shares
    attend_kernel[(memories * queries, heads)](
        ask, logits, chunks, contents, positions, steps, read, shares,
        *_sizes(ask, chunks, contents), **_constants(chunks, contents, positions, steps, joint),
    )  # fmt: skip
    return read, shares


def attend_back(
    gradient: Tensor, shares: Tensor, logits: Tensor, chunks: Tensor, contents: Tensor,
    positions: Tensor | None, steps: Tensor | None, joint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `ask` and `logits`."""
    gradient, shares, logits, chunks, contents, positions, steps = _whole(
        gradient, shares, logits, chunks, contents, positions, steps
    )
    of_ask, of_logits = torch.empty_like(gradient), torch.empty_like(logits)
    if chunks.shape[2] == 0:
        return of_ask.zero_(), of_logits
    attend_back_kernel[(len(gradient) * gradient.shape[1],)](
        gradient, shares, logits, chunks, contents, positions, steps, of_ask, of_logits,
        *_sizes(gradient, chunks, contents), **_constants(chunks, contents, positions, steps, joint),
    )  # fmt: skip
    return of_ask, of_logits


def _whole(*tensors: Any) -> Any:
    return [None if tensor is None else tensor.detach().contiguous() for tensor in tensors]


def _sizes(ask: Tensor, chunks: Tensor, contents: Tensor) -> tuple[int, ...]:
    _, count, length, width = contents.shape
    return ask.shape[1], ask.shape[2], count, length, width, chunks.shape[2]


def _constants(
    chunks: Tensor, contents: Tensor, positions: Tensor | None, steps: Tensor | None, joint: bool
) -> dict[str, Any]:
    sizes = {"K": chunks.shape[2], "LENGTH": contents.shape[2], "WIDTH": contents.shape[3]}
    return {
        **{name: triton.next_power_of_2(size) for name, size in sizes.items()},
        "PLACED": positions is not None,
        "SHORT": steps is not None,
        "JOINT": joint,
    }


_OPERATORS: dict[str, Callable[..., object]] = {
    "chunk_scan": scan,
    "chunk_scan_back": scan_back,
    "chunk_attend": attend,
    "chunk_attend_back": attend_back,
}
for _name, _function in _OPERATORS.items():
    torch.library.impl(f"{operators.NAMESPACE}::{_name}", "cuda", _function)
