"""The Triton kernels against the reference, on the CPU: run by test_chunk_attention_triton.py.

They need Triton's interpreter, which is chosen for a whole process, as Triton is imported.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.kernels.chunk_attention import quantize, reference, triton_kernel


def draw(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**30),
    queries=st.integers(1, 3),
    chunks=st.sampled_from([0, 1, 7, 70]),
    length=st.integers(1, 5),
    width=st.sampled_from([1, 6, 16]),
    heads=st.integers(1, 2),
    k=st.sampled_from([1, 3, 8]),
    optional=st.booleans(),
    joint=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_kernels_do_what_the_reference_does(
    seed, queries, chunks, length, width, heads, k, optional, joint, dtype
):
    generator = torch.Generator().manual_seed(seed)
    select = draw(seed, 2, queries, width, dtype=dtype).requires_grad_()
    ask = draw(seed + 1, 2, queries, heads, width, dtype=dtype).requires_grad_()
    summaries = draw(seed + 2, 2, chunks, width, dtype=dtype)
    contents = draw(seed + 3, 2, chunks, length, width, dtype=dtype)
    visible = positions = steps = None
    if optional:
        visible = torch.rand(2, queries, chunks, generator=generator) < 0.6
        positions = draw(seed + 4, length, width, dtype=dtype)
        steps = torch.randint(1, length + 1, (2, chunks), generator=generator)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}

    found, expected = reference.scan(select, summaries, visible, k)
    logits, ids = triton_kernel.scan(select, summaries, None, visible, k)
    assert torch.equal(ids, found)
    torch.testing.assert_close(logits, expected.detach(), **close)
    of_logits = draw(seed + 5, *logits.shape, dtype=dtype)
    if chunks:
        known = torch.where(found >= 0, expected, 0.0)
        (of_select,) = torch.autograd.grad((known * of_logits).sum(), select)
        torch.testing.assert_close(
            triton_kernel.scan_back(of_logits, ids, summaries, None), of_select, **close
        )

    weighed = expected.detach().requires_grad_()
    read = reference.attend(ask, weighed, found, contents, positions, steps, joint=joint)
    ours, shares = triton_kernel.attend(ask, logits, ids, contents, positions, steps, joint)
    torch.testing.assert_close(ours, read.detach(), **close)
    gradient = draw(seed + 6, *read.shape, dtype=dtype)
    wanted = torch.autograd.grad((read * gradient).sum(), (ask, weighed), allow_unused=True)
    got = triton_kernel.attend_back(gradient, shares, logits, ids, contents, positions, steps, joint)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, **close)


def test_parts_of_a_large_memory_are_put_together_in_their_order():
    summaries = draw(0, 1, 9_000, 4)
    summaries[0, [8_500, 4_200, 17]] = 50.0
    summaries[0, 5] = float("nan")
    found, _ = reference.scan(torch.ones(1, 2, 4), summaries, None, 6)
    logits, ids = triton_kernel.scan(torch.ones(1, 2, 4), summaries, None, None, 6)
    assert ids[0, 0, :3].tolist() == [17, 4_200, 8_500]
    assert torch.equal(ids, found)
    assert logits[0, 0, 0] == 200.0


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_summaries_in_less_are_what_they_stand_for(storage):
    select, whole = draw(1, 1, 2, 8), draw(2, 1, 90, 8)
    summaries, scales = (whole.bfloat16(), None) if storage == "bfloat16" else quantize(whole)
    plain = summaries.float() if scales is None else summaries * scales[..., None]
    logits, ids = triton_kernel.scan(select, summaries, scales, None, 5)
    found, expected = reference.scan(select, plain, None, 5)
    assert torch.equal(ids, found)
    torch.testing.assert_close(logits, expected)
    back = triton_kernel.scan_back(logits, ids, summaries, scales)
    torch.testing.assert_close(back, (logits[..., None] * plain[0][ids]).sum(2))
