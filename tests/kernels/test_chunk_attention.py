"""The lookup of chunks: both implementations against loops, dense attention and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.kernels import native_info
from streamwise.kernels.chunk_attention import attend, lookup, quantize, scan
from streamwise.kernels.stream_step import INSTRUCTION_SETS

needs_native = pytest.mark.skipif(native_info() is None, reason="the native kernels are not built")
IMPLEMENTATIONS = pytest.mark.parametrize(
    "implementation", ["reference", pytest.param("auto", marks=needs_native, id="native")]
)


def draw(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(seed, memories=2, queries=3, chunks=7, length=5, width=12, heads=3, dtype=torch.float64):
    """Random queries, memories, and everything that is optional."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "select": draw(seed, memories, queries, width, dtype=dtype),
        "ask": draw(seed + 1, memories, queries, heads, width, dtype=dtype),
        "summaries": draw(seed + 2, memories, chunks, width, dtype=dtype),
        "contents": draw(seed + 3, memories, chunks, length, width, dtype=dtype),
        "visible": torch.rand(memories, queries, chunks, generator=generator) < 0.6,
        "positions": draw(seed + 4, length, width, dtype=dtype),
        "steps": torch.randint(1, length + 1, (memories, chunks), generator=generator),
    }


def by_loops(select, ask, summaries, contents, *, k, visible=None, positions=None, steps=None, joint=False):
    """The formulas, a number at a time."""
    out = torch.zeros(ask.shape, dtype=torch.float64)
    (memories, queries, heads, _), (chunks, length) = ask.shape, contents.shape[1:3]
    for b, q in itertools.product(range(memories), range(queries)):
        logits = {
            i: float(select[b, q] @ summaries[b, i])
            for i in range(chunks)
            if visible is None or visible[b, min(q, visible.shape[1] - 1), i]
        }
        best = sorted(logits, key=lambda i: (-logits[i], i))[:k]
        if not best:
            continue
        weights = torch.tensor([logits[i] for i in best], dtype=torch.float64).softmax(0)
        for h in range(heads):
            rows, scores = [], []
            for i in best:
                n = length if steps is None else int(steps[b, i])
                x = contents[b, i, :n].double()
                if positions is not None:
                    x = x + positions[length - n :]
                rows.append(x)
                scores.append(x @ ask[b, q, h].double())
            if joint:
                out[b, q, h] = torch.cat(scores).softmax(0) @ torch.cat(rows)
            else:
                parts = zip(weights, scores, rows, strict=True)
                out[b, q, h] = sum(w * (s.softmax(0) @ x) for w, s, x in parts)
    return out


@IMPLEMENTATIONS
@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**30),
    memories=st.integers(1, 3),
    queries=st.sampled_from([1, 2, 5, 16, 18]),
    chunks=st.sampled_from([1, 2, 7, 19, 300]),
    length=st.sampled_from([1, 3, 6, 8, 19]),
    width=st.sampled_from([1, 3, 12, 16, 33, 70]),
    heads=st.integers(1, 5),
    k=st.sampled_from([1, 2, 4, 9]),
    without=st.sets(st.sampled_from(["visible", "positions", "steps"])),
    joint=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_lookup_is_what_the_formulas_say(
    implementation, seed, memories, queries, chunks, length, width, heads, k, without, joint, dtype
):
    given_ = case(seed, memories, queries, chunks, length, width, heads, dtype)
    for name in without:
        given_[name] = None
    expected = by_loops(**given_, k=k, joint=joint)
    found = lookup(**given_, k=k, joint=joint, implementation=implementation)
    assert found.chunks.shape == found.logits.shape == (memories, queries, min(k, chunks))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found.read.double(), expected, rtol=tolerance, atol=tolerance)


@IMPLEMENTATIONS
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("optional", [False, True])
def test_gradients_are_those_of_finite_differences(implementation, joint, optional):
    given_ = case(5, queries=2, length=3, width=4, heads=2)
    if not optional:
        given_ |= dict.fromkeys(("visible", "positions", "steps"))
    select, ask = (given_.pop(name).requires_grad_() for name in ("select", "ask"))

    def read(select, ask):
        found = lookup(select, ask, **given_, k=3, joint=joint, implementation=implementation)
        seen = torch.where(found.logits.isfinite(), found.logits, 0.0)
        return found.read, seen

    assert torch.autograd.gradcheck(read, (select, ask))


@IMPLEMENTATIONS
def test_nothing_flows_into_what_is_stored_or_was_not_chosen(implementation):
    given_ = case(6)
    for name in ("select", "ask", "summaries", "contents"):
        given_[name].requires_grad_()
    found = lookup(**given_, k=2, implementation=implementation)
    (found.read.square().sum() + found.logits[found.chunks >= 0].sum()).backward()
    assert given_["summaries"].grad is None
    assert given_["contents"].grad is None
    assert given_["ask"].grad.abs().sum() > 0.0
    assert given_["select"].grad.abs().sum() > 0.0


@IMPLEMENTATIONS
def test_with_all_chunks_and_one_softmax_it_is_attention_to_every_step(implementation):
    """Two levels, written as one: dense attention over all steps, positions repeated."""
    given_ = case(7) | {"visible": None, "steps": None}
    ask, contents, positions = given_["ask"], given_["contents"], given_["positions"]
    flat = (contents + positions).flatten(1, 2)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(ask.transpose(1, 2), flat, flat, scale=1.0)
    found = lookup(**given_, k=7, joint=True, implementation=implementation).read
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)
    plain = lookup(**given_, k=7, implementation=implementation).read
    assert (plain - found).abs().max() > 1e-3


@IMPLEMENTATIONS
def test_equal_chunks_are_taken_in_their_order(implementation):
    summaries = torch.zeros(1, 300, 16)
    summaries[0, 77:80, 0] = 1.0
    for queries in (1, 20):
        chunks, logits = scan(torch.ones(1, queries, 16), summaries, k=5, implementation=implementation)
        assert chunks[0].tolist() == [[77, 78, 79, 0, 1]] * queries
        assert logits[0].tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0]] * queries


@needs_native
@pytest.mark.parametrize("width", [16, 20, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_chunks_have_equal_products_wherever_they_stand(width, dtype):
    """Rows that are left over from a block are added up in the order of all others."""
    summaries = draw(17, 1, 1, width, dtype=dtype).expand(1, 77, width)
    for queries in (1, 2, 3, 20):
        chunks, logits = scan(draw(18, 1, queries, width, dtype=dtype), summaries, k=77)
        assert (chunks == torch.arange(77)).all()
        assert (logits == logits[..., :1]).all()


@IMPLEMENTATIONS
def test_few_or_no_visible_chunks_and_an_empty_memory_read_zeros(implementation):
    given_ = case(8)
    given_["visible"][:] = False
    given_["visible"][0, 0, 3] = True
    given_["steps"][:] = 5
    given_["select"].requires_grad_()
    found = lookup(**given_, k=4, implementation=implementation)
    assert found.chunks[0, 0].tolist() == [3, -1, -1, -1]
    assert (found.chunks.flatten(0, 1)[1:] == -1).all()
    assert found.logits[0, 0, 1:].tolist() == [-math.inf] * 3
    alone = attend(
        given_["ask"][:1, :1], torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64),
        given_["contents"][:1, 3:4], positions=given_["positions"], implementation="reference",
    )  # fmt: skip
    torch.testing.assert_close(found.read[:1, :1], alone)
    assert (found.read.flatten(0, 1)[1:] == 0.0).all()
    found.read.sum().backward()
    assert (given_["select"].grad == 0.0).all()

    empty = case(9, chunks=0)
    found = lookup(**empty, k=4, implementation=implementation)
    assert found.chunks.shape == (2, 3, 0)
    assert (found.read == 0.0).all()


@IMPLEMENTATIONS
def test_a_product_that_is_no_number_is_not_selected(implementation):
    summaries = draw(1, 1, 40, 16)
    summaries[0, 3] = math.nan
    for queries in (1, 20):
        chunks, _ = scan(draw(2, 1, queries, 16), summaries, k=40, implementation=implementation)
        assert (chunks[..., -1] == -1).all()
        assert not (chunks == 3).any()


@IMPLEMENTATIONS
def test_the_order_of_chunks_does_not_matter_and_that_of_steps_only_with_positions(implementation):
    given_ = case(10) | {"steps": None}
    turned = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    moved = dict(given_)
    for name in ("summaries", "contents"):
        moved[name] = given_[name][:, turned]
    moved["visible"] = given_["visible"][..., turned]
    same = [lookup(**x, k=3, implementation=implementation).read for x in (given_, moved)]
    torch.testing.assert_close(*same, rtol=1e-12, atol=1e-12)

    back = given_ | {"contents": given_["contents"].flip(2)}
    for positions, is_same in ((given_["positions"], False), (None, True)):
        pair = [
            lookup(**(x | {"positions": positions}), k=3, implementation=implementation).read
            for x in (given_, back)
        ]
        assert torch.allclose(*pair, rtol=1e-10, atol=1e-12) == is_same


@needs_native
@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize("queries", [1, 20])
def test_summaries_in_less_are_scanned_as_what_they_stand_for(storage, queries):
    given_ = case(11, queries=queries, chunks=200, width=48, dtype=torch.float32)
    given_["visible"] = None
    summaries, scales = given_["summaries"].bfloat16(), None
    if storage == "int8":
        summaries, scales = quantize(given_["summaries"])
        given_["scales"] = scales
    given_["summaries"] = summaries
    given_["select"].requires_grad_()
    both = []
    for implementation in ("auto", "reference"):
        found = lookup(**given_, k=6, implementation=implementation)
        found.logits.square().sum().backward()
        both.append((*found, given_["select"].grad))
        given_["select"].grad = None
    assert torch.equal(both[0][1], both[1][1])
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("queries", [1, 20])
def test_every_instruction_set_gives_the_same(queries):
    from streamwise.kernels import _native

    info = native_info()
    widest = INSTRUCTION_SETS.index(info.instruction_set) if info.instruction_set in INSTRUCTION_SETS else 0
    given_ = case(15, queries=queries, chunks=150, width=20, dtype=torch.float32)
    found = []
    for instruction_set in INSTRUCTION_SETS[: widest + 1]:
        chunks = torch.empty(2, queries, 5, dtype=torch.int64)
        logits, read = torch.empty(2, queries, 5), torch.empty_like(given_["ask"])
        _native.chunk_scan(
            given_["select"], given_["summaries"], None, None, 5, chunks, logits, instruction_set
        )
        _native.chunk_attend(
            given_["ask"], logits, chunks, given_["contents"], given_["positions"], given_["steps"], False,
            read, torch.empty(2, queries, 3, 5, 5), instruction_set,
        )  # fmt: skip
        found.append((chunks, logits, read))
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-5, atol=1e-5)


def test_what_int8_stands_for_is_within_half_a_step():
    summaries = draw(12, 5, 9, 32, dtype=torch.float32)
    found, scales = quantize(summaries)
    assert ((found * scales[..., None] - summaries).abs() <= 0.5001 * scales[..., None]).all()
    assert found.abs().max() == 127
    zero, scales = quantize(torch.zeros(2, 4))
    assert (zero * scales[:, None] == 0.0).all()


@needs_native
@pytest.mark.parametrize("joint", [False, True])
def test_torch_knows_the_operators(joint):
    from streamwise.kernels.chunk_attention import operators  # noqa: F401

    given_ = case(13, dtype=torch.float32)
    select, ask = (given_[name].requires_grad_() for name in ("select", "ask"))
    ops = torch.ops.streamwise
    torch.library.opcheck(ops.chunk_scan, (select, given_["summaries"], None, given_["visible"], 3))
    chunks, logits = scan(select, given_["summaries"], k=3)
    logits = logits.detach().requires_grad_()
    rest = (chunks, given_["contents"], given_["positions"], given_["steps"], joint)
    torch.library.opcheck(ops.chunk_attend, (ask, logits, *rest))
    shares = ops.chunk_attend(ask, logits, *rest)[1].detach()
    torch.library.opcheck(ops.chunk_attend_back, (ask.detach(), shares, logits.detach(), *rest))
    torch.library.opcheck(ops.chunk_scan_back, (logits.detach(), chunks, given_["summaries"], None))


@IMPLEMENTATIONS
def test_a_compiled_lookup_is_the_same(implementation):
    given_ = case(16, dtype=torch.float32)
    select, ask = (given_.pop(name).requires_grad_() for name in ("select", "ask"))

    def read(select, ask):
        return lookup(select, ask, **given_, k=3, implementation=implementation).read

    found = []
    for function in (read, torch.compile(read, backend="aot_eager", fullgraph=True)):
        out = function(select, ask)
        found.append((out, *torch.autograd.grad(out.square().sum(), (select, ask))))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"summaries": torch.zeros(2, 7, 11)}, "width must be the same"),
        ({"contents": torch.zeros(2, 7, 5, 11)}, "ask is 12 wide"),
        ({"contents": torch.zeros(2, 6, 5, 12), "steps": None}, "a chunk that is not there"),
        ({"visible": torch.ones(2, 2, 7, dtype=torch.bool)}, "visible must be"),
        ({"positions": torch.zeros(4, 12)}, "positions must be"),
        ({"steps": torch.full((2, 7), 6)}, "more steps than"),
        ({"scales": torch.ones(2, 7)}, "no others have any"),
    ],
)
def test_what_does_not_fit_is_refused(change, reason):
    given_ = case(14, dtype=torch.float32) | {"visible": None} | change
    with pytest.raises(ValueError, match=reason):
        lookup(**given_, k=7)
