"""Chunks that are read where they are kept, against attention that has them all."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.kernels.chunk_attention import attend, scan
from streamwise.memory.hcam import position_table
from streamwise.memory.sharded import combine, partial_read, shard_of

QUERIES, HEADS, LENGTH, WIDTH = 3, 2, 5, 6


def some(seed, chunks, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    ask, select, summaries, contents = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in (
            (QUERIES, HEADS, WIDTH), (QUERIES, WIDTH), (chunks, WIDTH), (chunks, LENGTH, WIDTH),
        )
    )  # fmt: skip
    visible = torch.rand(QUERIES, chunks, generator=generator) < 0.7
    steps = torch.randint(1, LENGTH + 1, (chunks,), generator=generator)
    return ask * scale, select * scale, summaries, contents, visible, steps


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6), shards=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    k=st.integers(1, 9), joint=st.booleans(), placed=st.booleans(), short=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 1000.0]),
)  # fmt: skip
def test_whatever_the_split_it_is_the_read_of_all_chunks_at_once(
    seed, shards, k, joint, placed, short, scale
):
    """shards: of each chunk. Each query opens chunks of its own, some of them fewer than k, or none."""
    ask, select, summaries, contents, visible, steps = some(seed, len(shards), scale)
    positions = position_table(LENGTH, WIDTH).double() if placed else None
    found, logits = scan(select[None], summaries[None], k=k, visible=visible[None])
    found, logits = found[0], logits[0]
    for tensor in (ask, logits):
        tensor.requires_grad_()
    whole = attend(
        ask[None], logits[None], found[None], contents[None], positions=positions,
        steps=steps[None] if short else None, joint=joint,
    )[0]  # fmt: skip
    wanted = found[found >= 0].unique().tolist()
    held = [[i for i in reversed(wanted) if shards[i] == shard] for shard in range(4)]
    partials = [partial_read(ask, contents[ids], positions, steps[ids] if short else None) for ids in held]
    # Of each chunk, what each query says of it that opened it.
    columns = [logits.masked_fill(found != i, -math.inf).amax(-1) for ids in held for i in ids]
    of_all = torch.stack(columns, -1) if columns else torch.zeros(QUERIES, 0, dtype=torch.float64)
    read = combine(partials, of_all, joint)
    torch.testing.assert_close(read, whole, rtol=1e-12, atol=1e-12)
    assert (read == 0.0).flatten(1).all(1).tolist() == (found < 0).all(1).tolist()
    if not columns or joint:
        return
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    mine, expected = (
        torch.autograd.grad(result, (ask, logits), gradient, retain_graph=True) for result in (read, whole)
    )
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_an_answer_is_as_large_as_promised_and_padding_is_not_in_it():
    ask, _, _, contents, _, steps = some(0, 4)
    partial = partial_read(ask, contents, None, steps)
    assert sum(part.numel() for part in partial) == QUERIES * 4 * HEADS * (WIDTH + 2)
    padded = (torch.arange(LENGTH) >= steps[:, None])[..., None]
    other = partial_read(ask, contents.masked_fill(padded, 50.0), None, steps)
    assert padded.any()
    assert all(torch.equal(one, two) for one, two in zip(partial, other, strict=True))
    assert not torch.equal(partial.peak, partial_read(ask, contents).peak)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("chunks", [0, 2])
def test_where_nothing_is_opened_nothing_is_read(joint, chunks):
    ask, _, _, contents, _, _ = some(0, chunks)
    logits = torch.full((QUERIES, chunks), -math.inf, dtype=torch.float64)
    read = combine([partial_read(ask, contents)], logits, joint)
    assert torch.equal(read, torch.zeros_like(ask))


def test_a_stream_has_one_shard_and_shards_have_about_as_many_streams():
    assert [shard_of(stream, 8) for stream in (0, 1, -1, "ann")] == [0, 5, 3, 5]
    for streams in (range(0, 80_000, 8), [f"user-{i}" for i in range(10_000)]):
        counts = Counter(shard_of(stream, 8) for stream in streams)
        assert sorted(counts) == list(range(8))
        assert all(count == pytest.approx(1250, abs=150) for count in counts.values())
    with pytest.raises(ValueError, match="shards is 0"):
        shard_of(1, 0)
