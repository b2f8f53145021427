"""Chunk attention: the published formulas, their limits, and the options of ours."""

from __future__ import annotations

import math

import pytest
import torch
from hcam_support import FEATURES, HEADS, IMPLEMENTATIONS, LENGTH, QUERY, WIDTH, pooled_by_steps
from torch import nn
from torch.func import functional_call

from streamwise.memory.hcam import ChunkAttention, Chunks, position_table


def make(**settings):
    settings = {"features": FEATURES, "heads": HEADS, "length": LENGTH, "k": 4, **settings}
    made = ChunkAttention(QUERY, WIDTH, generator=torch.Generator().manual_seed(0), **settings).double()
    for name in ("query_bias", "value_bias", "output_bias"):
        nn.init.normal_(getattr(made, name), generator=torch.Generator().manual_seed(1))
    return made


def some(seed=0, queries=9, chunks=7, length=LENGTH, masked=True):
    generator = torch.Generator().manual_seed(seed)
    x, summaries, contents = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, queries, QUERY), (2, chunks, WIDTH), (2, chunks, length, WIDTH))
    )
    visible = torch.rand(2, queries, chunks, generator=generator) < 0.7 if masked else None
    steps = torch.randint(1, length + 1, (2, chunks), generator=generator) if masked else None
    return x, Chunks(summaries, contents, visible, steps)


def as_published(module, x, chunks):
    """The formulas with everything that is stored projected, a query and a chunk at a time."""
    scale = math.sqrt(FEATURES)
    rows = []
    for b in range(len(x)):
        for q in range(x.shape[1]):
            logits = (chunks.summaries[b] @ module.select_key) @ (x[b, q] @ module.select_query) / scale
            seen = [i for i in range(len(logits)) if chunks.visible is None or chunks.visible[b, q, i]]
            best = sorted(seen, key=lambda i: (-logits[i].item(), i))[: module.k]
            out = torch.zeros(FEATURES, dtype=torch.float64)
            if best:
                weights = torch.stack([logits[i] for i in best]).softmax(0)
                query = (x[b, q] @ module.query + module.query_bias).view(HEADS, -1)
                for weight, i in zip(weights, best, strict=True):
                    count = chunks.contents.shape[2] if chunks.steps is None else int(chunks.steps[b, i])
                    stored = chunks.contents[b, i, :count]
                    if module.positions is not None:
                        stored = stored + module.positions[-count:]
                    key = (stored @ module.key + 0.3).view(count, HEADS, -1)  # a bias that cannot matter
                    value = (stored @ module.value + module.value_bias).view(count, HEADS, -1)
                    scores = torch.einsum("hf,chf->hc", query, key) / math.sqrt(FEATURES // HEADS)
                    read = torch.einsum("hc,chf->hf", scores.softmax(1), value).flatten()
                    out = out + weight * (read @ module.output + module.output_bias)
            rows.append(out)
    return torch.stack(rows).view(len(x), x.shape[1], FEATURES)


@IMPLEMENTATIONS
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("queries", [1, 9])
def test_it_reads_what_the_published_formulas_say_and_learns_by_their_gradients(
    implementation, positions, masked, queries
):
    module = make(implementation=implementation, positions=positions)
    found, gradients = [], []
    for formula in (module, lambda *arguments: as_published(module, *arguments)):
        x, chunks = some(queries=queries, masked=masked)
        x.requires_grad_()
        read = formula(x, chunks)
        assert read.shape == (2, queries, FEATURES)
        found.append(read)
        read.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in module.named_parameters()} | {"x": x.grad})
        module.zero_grad()
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0.0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-10, atol=1e-11, msg=name)


@IMPLEMENTATIONS
def test_with_every_chunk_and_one_softmax_it_is_the_attention_of_torch(implementation):
    module = make(k=7, joint=True, implementation=implementation)
    x, chunks = some(masked=False)
    dense = nn.MultiheadAttention(
        FEATURES, HEADS, kdim=WIDTH, vdim=WIDTH, batch_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        # Its queries are as wide as its features, so it gets them projected.
        dense.q_proj_weight.copy_(torch.eye(FEATURES))
        dense.k_proj_weight.copy_(module.key.T)
        dense.v_proj_weight.copy_(module.value.T)
        dense.in_proj_bias.zero_()
        dense.in_proj_bias[2 * FEATURES :] = module.value_bias
        dense.out_proj.weight.copy_(module.output.T)
        dense.out_proj.bias.copy_(module.output_bias)
        flat = (chunks.contents + module.positions).flatten(1, 2)
        expected, _ = dense(x @ module.query + module.query_bias, flat, flat)
        torch.testing.assert_close(module(x, chunks), expected, rtol=1e-12, atol=1e-12)
        weighed = make(k=7, implementation=implementation)(x, chunks)
    assert (weighed - expected).abs().max() > 1e-3


@IMPLEMENTATIONS
def test_chunks_of_one_step_are_values_weighed_by_their_summaries(implementation):
    module = make(k=7, length=1, positions=False, implementation=implementation)
    x, chunks = some(length=1, masked=False)
    logits = x @ module.select_query @ (chunks.summaries @ module.select_key).mT / math.sqrt(FEATURES)
    values = chunks.contents[:, :, 0] @ module.value + module.value_bias
    expected = logits.softmax(-1) @ values @ module.output + module.output_bias
    torch.testing.assert_close(module(x, chunks), expected, rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
def test_a_single_chunk_has_the_whole_weight(implementation):
    module = make(implementation=implementation)
    x, chunks = some(chunks=1, masked=False)
    other = chunks._replace(summaries=chunks.summaries + 100.0)
    assert torch.equal(module(x, chunks), module(x, other))


@IMPLEMENTATIONS
def test_a_query_that_may_see_nothing_reads_nothing(implementation):
    module = make(implementation=implementation)
    x, chunks = some()
    chunks.visible[0, 4] = False
    read = module(x, chunks)
    assert (read[0, 4] == 0.0).all()
    assert (read[0, 5] != 0.0).all()
    empty = Chunks(chunks.summaries[:, :0], chunks.contents[:, :0])
    assert (module(x, empty) == 0.0).all()


@IMPLEMENTATIONS
def test_what_is_hidden_changes_not_one_bit(implementation):
    module = make(implementation=implementation)
    x, chunks = some()
    before = module(x, chunks)
    hidden = ~chunks.visible[:, 2]
    changed = chunks._replace(summaries=chunks.summaries.clone(), contents=chunks.contents.clone())
    changed.summaries[hidden] = 7.0
    changed.contents[hidden] = -5.0
    after = module(x, changed)
    assert torch.equal(before[:, 2], after[:, 2])
    assert not torch.equal(before, after)


def test_positions_tell_how_far_the_end_of_a_chunk_is():
    table = position_table(6, 8)
    assert table.shape == (6, 8)
    assert table[-1].tolist() == [0.0] * 4 + [1.0] * 4
    torch.testing.assert_close(table[-3, [0, 4]], torch.tensor([math.sin(2.0), math.cos(2.0)]))
    torch.testing.assert_close(table[0, [3, 7]], torch.tensor([math.sin(5e-3), math.cos(5e-3)]))


def test_weights_begin_with_the_published_variance():
    module = ChunkAttention(200, 200, features=300, heads=3, generator=torch.Generator().manual_seed(0))
    for name in ("select_query", "select_key", "query", "key", "value"):
        weights = getattr(module, name).detach()
        assert weights.std() == pytest.approx(math.sqrt(2.0 / 200.0), rel=0.01)
        assert weights.abs().max() <= 2.0 * math.sqrt(2.0 / 200.0) / 0.8796


@pytest.mark.parametrize("width", [8, 10])
def test_keys_that_begin_alike_find_what_is_like_the_query(width):
    """What is looked for is among many that are not like it; queries may be narrower than what is stored."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(200, 8, generator=generator)
    items = 3.0 * items / items.norm(dim=1, keepdim=True)
    contents = torch.nn.functional.pad(items, (0, width - 8))[None, :, None]
    summaries = contents[:, :, 0]
    found = {}
    for alike in (False, True):
        module = ChunkAttention(
            8, width, features=256, heads=2, length=1, k=1, alike=alike, positions=False,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        slots, _ = module.select(items[None], summaries)
        found[alike] = (slots[0, :, 0] == torch.arange(200)).float().mean().item()
    assert found[True] > 0.95
    assert found[False] < 0.1


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of heads"):
        ChunkAttention(4, 4, features=10, heads=3)
    with pytest.raises(ValueError, match="must be even"):
        ChunkAttention(4, 5)
    with pytest.raises(ValueError, match="use 'mean' or 'attention'"):
        ChunkAttention(4, 4, pooling="max")
    with pytest.raises(ValueError, match="have no ages; give them"):
        make(age=True)(*some())


# Options of ours


def some_with_ages(seed=0, **settings):
    x, chunks = some(seed, **settings)
    generator = torch.Generator().manual_seed(seed + 1)
    ages = torch.randint(0, 90, chunks.summaries.shape[:2], generator=generator)
    return x, chunks._replace(ages=ages.double())


def made_with_options(**settings):
    """An attention with both options, at weights that matter."""
    module = make(pooling="attention", age=True, **settings)
    nn.init.normal_(module.pool_query, std=3.0, generator=torch.Generator().manual_seed(2))
    nn.init.constant_(module.age_weight, 0.2)
    return module


def test_options_that_are_off_have_no_parameters():
    plain = ["select_query", "select_key", "query", "query_bias", "key", "value", "value_bias", "output"]
    plain.append("output_bias")
    assert [name for name, _ in make().named_parameters()] == plain
    assert list(make().state_dict()) == [*plain, "positions"]
    names = [name for name, _ in make(pooling="attention", age=True).named_parameters()]
    assert names == [*plain, "pool_query", "age_weight"]


@IMPLEMENTATIONS
@pytest.mark.parametrize("masked", [True, False])
def test_both_options_begin_as_if_they_were_off(implementation, masked):
    x, chunks = some_with_ages(masked=masked)
    module, plain = make(pooling="attention", age=True, implementation=implementation), make()
    means = module.pool(chunks.contents, chunks.steps)
    if not masked:
        torch.testing.assert_close(means, chunks.contents.mean(2), rtol=1e-12, atol=1e-12)
    chunks = chunks._replace(summaries=means.detach())
    torch.testing.assert_close(module(x, chunks), plain(x, chunks), rtol=1e-12, atol=1e-12)
    nn.init.normal_(module.pool_query)
    assert (module(x, chunks) - plain(x, chunks)).abs().max() > 1e-3


@IMPLEMENTATIONS
@pytest.mark.parametrize("masked", [True, False])
def test_chunks_are_chosen_by_what_is_stored_and_weighed_by_what_is_in_them(implementation, masked):
    module = made_with_options(implementation=implementation)
    x, chunks = some_with_ages(masked=masked)
    penalty = module.age_weight * (1.0 + chunks.ages[:, None]).log()
    keys, query = module.select_key, x @ module.select_query / math.sqrt(FEATURES)
    stored = query @ (chunks.summaries @ keys).mT - penalty
    if masked:
        stored = stored.masked_fill(~chunks.visible, -math.inf)
    best = stored.argsort(-1, descending=True)[..., : module.k]
    found, logits = module.select(x, chunks.summaries, chunks.visible, ages=chunks.ages)
    known = found >= 0
    assert torch.equal(found[known], best[known])
    assert known.all() == (not masked)
    torch.testing.assert_close(logits, stored.gather(-1, best), rtol=1e-12, atol=1e-12)
    anew = query @ (pooled_by_steps(module, chunks.contents, chunks.steps) @ keys).mT - penalty
    anew = anew.gather(-1, best).masked_fill(~known, -math.inf)
    torch.testing.assert_close(module.weigh(x, chunks, found, logits), anew, rtol=1e-12, atol=1e-12)
    read = module.read(x, chunks, found, anew)
    torch.testing.assert_close(module(x, chunks), read, rtol=1e-12, atol=1e-12)


@IMPLEMENTATIONS
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_gradients_of_the_options_are_finite_differences_and_contents_have_none(implementation, pooling):
    x, chunks = some_with_ages(queries=3)
    module = make(pooling=pooling, age=True, implementation=implementation)
    names = ["age_weight", "pool_query"] if pooling == "attention" else ["age_weight"]
    generator = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(getattr(module, name).shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name in names
    ]

    def read(*given):
        # The differences are of a millionth, which does not change which chunks are read.
        return functional_call(module, dict(zip(names, given, strict=True)), (x, chunks))

    assert torch.autograd.gradcheck(read, weights)
    for gradient in torch.autograd.grad(read(*weights).square().sum(), weights):
        assert gradient.abs().min() > 0.0
    chunks.contents.requires_grad_()
    chunks.summaries.requires_grad_()
    module(x, chunks).sum().backward()
    assert chunks.contents.grad is None
    assert chunks.summaries.grad is None


@IMPLEMENTATIONS
def test_padded_steps_do_not_count(implementation):
    module = made_with_options(implementation=implementation)
    x, chunks = some_with_ages()
    padded = torch.arange(LENGTH) >= chunks.steps[..., None]
    other = chunks._replace(contents=chunks.contents.masked_fill(padded[..., None], 9.0))
    assert padded.any()
    assert torch.equal(module(x, chunks), module(x, other))
    counted = other._replace(steps=torch.full_like(chunks.steps, LENGTH))
    assert not torch.equal(module(x, chunks), module(x, counted))


@IMPLEMENTATIONS
def test_the_age_term_changes_which_chunks_are_opened(implementation):
    module = make(age=True, k=3, implementation=implementation)
    x, chunks = some(masked=False)
    chunks = chunks._replace(ages=torch.tensor([[9.0, 0.0, 8.0, 1.0, 7.0, 2.0, 6.0]] * 2))
    free, logits = module.select(x, chunks.summaries, ages=chunks.ages)
    expected, same = make(k=3).select(x, chunks.summaries)
    assert torch.equal(free, expected)
    torch.testing.assert_close(logits, same, rtol=1e-12, atol=1e-12)
    for a, chosen in ((1e6, [1, 3, 5]), (-1e6, [0, 2, 4])):
        nn.init.constant_(module.age_weight, a)
        found, _ = module.select(x, chunks.summaries, ages=chunks.ages)
        assert (found == torch.tensor(chosen)).all()
        assert not torch.equal(found, free)
