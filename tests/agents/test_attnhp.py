"""The attentive model: its likelihood, causality to the last bit, and attention against the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from streamwise.agents.attnhp import AttNHP, AttNHPSettings, time_embedding
from streamwise.agents.neural_tpp import (
    Nodes,
    Sequences,
    gauss_legendre,
    log_likelihood,
    log_spaced,
    stratified,
)
from streamwise.memory.prompt_pool import PromptPool

TYPES = 4
KINDS = [
    {
        "time": time,
        "chain_heads": chain,
        "attachment": attachment,
        "pooled": pooled,
        "decay": time == "gaps",
    }
    for time in ("gaps", "absolute")
    for chain in (False, True)
    for pooled, attachment in ((False, "prefix"), (True, "prefix"), (True, "prompt"))
]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))


def make_model(kind, seed=0, unit=1.0, **pool_options):
    kind = dict(kind)
    generator = torch.Generator().manual_seed(seed)
    pooled = kind.pop("pooled")
    settings = AttNHPSettings(width=8, time_width=4, unit=unit, **kind)
    pool = None
    if pooled:
        pool = PromptPool(12, 8, prompts=6, selected=2, rows=3, generator=generator, **pool_options)
    model = AttNHP(TYPES, settings, pool=pool, generator=generator)
    if model.decay is not None:
        torch.nn.init.uniform_(model.decay, -2.0, 1.0, generator=generator)
    return model


def some_sequences(count=3, longest=9, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        length = longest if i == 0 else int(torch.randint(1, longest + 1, (1,), generator=generator))
        gaps = torch.rand(length, generator=generator, dtype=torch.float64) ** 3 * 10.0
        types = torch.randint(TYPES, (length,), generator=generator)
        made.append((shift + gaps.cumsum(0), types))
    return Sequences.of(made, shift, shift + 60.0)


def intensities(model, sequences, times, visible):
    return model.intensities(model.remember(sequences), times, visible)


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The likelihood


def test_a_constant_intensity_has_the_known_likelihood_by_any_rule():
    model = make_model(KINDS[0])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.3, 0.7, 1e-12, 1e-12]).expm1().log())
    made = Sequences.of([(torch.arange(1, 11) * 0.93, [0, 1, 1, 0, 1, 1, 0, 1, 1, 1])], 0.0, 10.0)
    generator = torch.Generator().manual_seed(0)
    for nodes in (gauss_legendre(1), gauss_legendre(7), log_spaced(gauss_legendre(3), 4),
                  stratified((1, 11), 5, generator)):  # fmt: skip
        assert log_likelihood(model, made, nodes).total.item() == pytest.approx(-16.108643, abs=1e-6)


class KnownHawkes:
    """One type, base rate 0.5, jump 0.8, decay 1.5, by direct sums."""

    def remember(self, sequences):
        return sequences

    def intensities(self, sequences, times, visible):
        since = times[..., None] - sequences.times[:, None, None, :]
        seen = torch.arange(since.shape[3]) < visible[..., None, None]
        return 0.5 + (0.8 * torch.exp(-1.5 * since) * seen).sum(3)[..., None]


def test_a_hawkes_process_has_the_known_likelihood():
    made = Sequences.of([([0.5, 1.2, 1.3, 3.0], [0, 0, 0, 0])], 0.0, 4.0)
    found = log_likelihood(KnownHawkes(), made, gauss_legendre(12))
    compensator = found.compensator.sum() + found.tail.sum()
    assert compensator.item() == pytest.approx(3.994242, abs=1e-6)
    assert (found.total + compensator).item() == pytest.approx(-1.038394, abs=1e-6)
    assert found.type.abs().max() == 0.0


@EVERY_KIND
def test_pads_and_batch_mates_change_nothing(kind):
    model, made = make_model(kind), some_sequences()
    whole = log_likelihood(model, made, gauss_legendre(5))
    for i, length in enumerate(made.lengths.tolist()):
        alone = Sequences.of([(made.times[i, :length], made.types[i, :length])], 0.0, 60.0)
        found = log_likelihood(model, alone, gauss_legendre(5), block=7)
        assert found.total.item() == pytest.approx(whole.total[i].item(), abs=1e-9)
        assert torch.allclose(found.compensator[0], whole.compensator[i, :length], atol=1e-10)
    assert (whole.time[~made.mask] == 0.0).all()
    assert (whole.type[~made.mask] == 0.0).all()
    assert torch.allclose((whole.time + whole.type).sum(1) - whole.tail, whole.total)


@EVERY_KIND
def test_moving_all_times_moves_nothing(kind):
    """Times are float64 until they are differences, so an epoch of 1.5e9 s costs next to nothing."""
    model = make_model(kind)
    here, there = some_sequences(), some_sequences(shift=1.5e9)
    one, other = (log_likelihood(model, made, gauss_legendre(5)).total for made in (here, there))
    assert torch.allclose(one, other, atol=1e-4)


def test_the_stratified_estimate_is_unbiased_and_the_mean_over_a_linspace_is_not():
    generator = torch.Generator().manual_seed(0)
    exact = (1.0 - math.exp(-5.0)) / 5.0
    nodes = stratified((2_000,), 20, generator)
    estimates = (torch.exp(-5.0 * nodes.at) * nodes.weights).sum(-1)
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - exact) < 4.0 * error
    assert abs(torch.exp(-5.0 * torch.linspace(0.0, 1.0, 20)).mean() - exact) > 100.0 * error


def test_the_stratified_compensator_of_a_model_is_unbiased_in_value_and_gradient():
    model, made = make_model(KINDS[1]), some_sequences(1, 4)
    generator = torch.Generator().manual_seed(1)

    def compensator(nodes):
        found = log_likelihood(model, made, nodes)
        total = found.compensator.sum() + found.tail.sum()
        return total.item(), torch.autograd.grad(total, model.head.bias)[0][0].item()

    exact = compensator(log_spaced(gauss_legendre(60), 3))
    draws = torch.tensor([compensator(stratified((1, 5), 4, generator)) for _ in range(600)])
    errors = draws.std(0) / math.sqrt(len(draws))
    assert (abs(draws.mean(0) - torch.tensor(exact)) < 4.0 * errors).all()


def test_rules_integrate_what_they_should():
    at, weights = gauss_legendre(4)
    assert (weights * at**7).sum().item() == pytest.approx(1.0 / 8.0, abs=1e-12)
    at, weights = log_spaced(gauss_legendre(4), 5)
    assert weights.sum().item() == pytest.approx(1.0)
    # A burst that is over after a thousandth of the interval.
    exact = (1.0 - math.exp(-1e4)) / 1e4
    assert (weights * torch.exp(-1e4 * at)).sum().item() == pytest.approx(exact, rel=2e-3)
    at, weights = gauss_legendre(24)
    assert (weights * torch.exp(-1e4 * at)).sum().item() != pytest.approx(exact, rel=0.5)
    assert isinstance(stratified((2, 3), 4, torch.Generator()), Nodes)


# Causality


@EVERY_KIND
def test_what_comes_later_changes_not_one_bit(kind):
    model, made = make_model(kind), some_sequences(2)
    seen = 5
    times = torch.full((2, 3), made.times[0, seen - 1].item()) + torch.tensor([0.0, 0.1, 2.0])
    visible = torch.full((2, 3), min(seen, int(made.lengths.min())))
    visible[0] = seen
    before = intensities(model, made, times, visible)[0]
    scores_before = log_likelihood(model, made, gauss_legendre(3), block=20)

    later_types, later_times = made.types.clone(), made.times.clone()
    later_types[0, seen:] = (later_types[0, seen:] + 1) % TYPES
    later_times[0, seen:] += 0.37
    mates = made.types.clone()
    mates[1] = (mates[1] + 1) % TYPES
    pads = made.times.masked_fill(~made.mask, 1e9)
    for changed in (
        Sequences(made.times, later_types, made.lengths, made.start, made.end),
        Sequences(later_times, made.types, made.lengths, made.start, made.end),
        Sequences(made.times, mates, made.lengths, made.start, made.end),
        Sequences(pads, made.types.masked_fill(~made.mask, 3), made.lengths, made.start, made.end),
    ):
        assert torch.equal(intensities(model, changed, times, visible)[0], before)
        scores = log_likelihood(model, changed, gauss_legendre(3), block=20)
        for part in ("time", "type", "compensator"):
            assert torch.equal(getattr(scores, part)[0, :seen], getattr(scores_before, part)[0, :seen])
    other_times = times.clone()
    other_times[:, 2] += 1.0
    assert torch.equal(intensities(model, made, other_times, visible)[0, :2], before[:2])

    newest = made.types.clone()
    newest[0, seen - 1] = (newest[0, seen - 1] + 1) % TYPES
    changed = Sequences(made.times, newest, made.lengths, made.start, made.end)
    assert (intensities(model, changed, times, visible)[0] - before).abs().max() > 1e-4


@EVERY_KIND
def test_the_intensity_at_an_event_is_a_left_limit(kind):
    model, made = make_model(kind), some_sequences(1)
    at = made.times[:, 4:5]
    before = intensities(model, made, at, torch.tensor([[4]]))
    just_before = intensities(model, made, at - 1e-9, torch.tensor([[4]]))
    after = intensities(model, made, at, torch.tensor([[5]]))
    assert torch.allclose(before, just_before, atol=1e-6)
    assert (before - after).abs().max() > 1e-4


# Attention


def plain(model, times, types, start, at):
    """h at one time that all events are before, token by token, as the formulas are written."""
    c, seen = model.settings, len(times)
    gaps = times - torch.cat([start[None], times[:-1]])
    z = [model._embedded(gaps[j], times[j] - start) for j in range(seen)]
    embedded = [model.embedding[kind].tanh() for kind in types]
    last = times[-1] if seen else start
    z_now = model._embedded(at - last, at - start)

    def attention(query, keys, values, falls=()):
        """Attend to events, whose scores fall, and to what comes after them in the lists."""
        scores = torch.stack([query @ key for key in keys]) / math.sqrt(c.width)
        scores[: len(falls)] -= torch.tensor(falls)
        return sum(share * value for share, value in zip(scores.softmax(0), values, strict=True))

    def falls(head, layer, now, count):
        """Return by how much the scores of the first events have fallen."""
        if model.decay is None:
            return [0.0] * count
        rate = torch.nn.functional.softplus(model.decay[layer, head])
        return [float(rate * torch.log1p((now - times[j]) / c.unit)) for j in range(count)]

    def projections(head, layer):
        """Return a map from a state and a time's embedding for each of query, key and value."""
        parts = model.weight[layer, head].chunk(3, -1)
        return [lambda h, at, part=part: torch.cat([h, at]) @ part for part in parts]

    def prompts(head, count):
        """Return the keys and values of prompts in every layer, after some events."""
        if model.pool is None:
            return [([], [])] * c.layers
        tokens = [torch.cat([embedded[j], z[j][:-1]]) for j in range(count)]
        mean = sum(tokens) / count if count else torch.zeros(model.token_width)
        ids = model.pool.retrieve(mean[None]).ids[0]
        mean_gap = gaps[:count].mean() if count else torch.zeros(())
        since = (times[count - 1] - start) if count else torch.zeros(())
        late = model._embedded(mean_gap, since + mean_gap)
        for_keys, for_values = (
            [row for i in ids for row in model.pool.rows[i, :, which]] for which in (0, 1)
        )
        found = []
        for layer in range(c.layers):
            to_query, to_key, to_value = projections(head, layer)
            keys = [to_key(row, late) for row in for_keys]
            values = [to_value(row, late) for row in for_values]
            found.append((keys, values))
            if c.attachment == "prompt":
                for_keys = for_values = [attention(to_query(row, late), keys, values) for row in for_keys]
        return found

    states, events = [], embedded
    for head in range(c.heads):
        events, h = events if c.chain_heads else embedded, torch.zeros(c.width)
        for layer in range(c.layers):
            to_query, to_key, to_value = projections(head, layer)
            keys = [to_key(x, at_x) for x, at_x in zip(events, z, strict=True)]
            values = [to_value(x, at_x) for x, at_x in zip(events, z, strict=True)]
            extra_keys, extra_values = prompts(head, seen)[layer]
            h = (
                h
                + attention(
                    to_query(h, z_now),
                    [*keys, *extra_keys, to_key(h, z_now)],
                    [*values, *extra_values, to_value(h, z_now)],
                    falls(head, layer, at, seen),
                ).tanh()
            )
            after = [prompts(head, j + 1)[layer] for j in range(seen)]
            events = [
                attention(
                    to_query(x, z[j]),
                    keys[: j + 1] + after[j][0],
                    values[: j + 1] + after[j][1],
                    falls(head, layer, times[j], j + 1),
                )
                for j, x in enumerate(events)
            ]
        states.append(h)
    return torch.cat(states)


@EVERY_KIND
def test_batched_attention_equals_the_formulas_token_by_token(kind):
    model, made = make_model(kind), some_sequences(2, 4)
    visible = torch.tensor([[0, 2, 4], [0, 1, int(made.lengths[1])]])
    known = torch.cat([made.start[:, None], made.times], 1).gather(1, visible)
    at = known[..., None] + torch.tensor([0.0, 0.3, 7.0])
    with torch.no_grad():
        found = model.states(model.remember(made), at, visible)
        for b in range(2):
            for g, seen in enumerate(visible[b].tolist()):
                for s in range(3):
                    events = made.times[b, :seen], made.types[b, :seen]
                    expected = plain(model, *events, made.start[b], at[b, g, s])
                    assert torch.allclose(found[b, g, s], expected, atol=1e-12)


@EVERY_KIND
def test_times_in_groups_are_those_asked_about_one_by_one(kind):
    model, made = make_model(kind), some_sequences(3)
    memory = model.remember(made)
    visible = torch.minimum(torch.tensor([0, 3, 9]), made.lengths[:, None])
    known = torch.cat([made.start[:, None], made.times], 1).gather(1, visible)
    at = known[..., None] + torch.tensor([0.1, 1.0, 4.0, 20.0])
    grouped = model.intensities(memory, at, visible)
    alone = model.intensities(memory, at.flatten(1), visible.repeat_interleave(4, 1))
    assert torch.allclose(grouped.flatten(1, 2), alone, atol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the most elements that a tensor has which anything returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        parts = result if isinstance(result, (tuple, list)) else (result,)
        sizes = [part.numel() for part in parts if isinstance(part, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("pooled", [False, True])
def test_no_tensor_is_larger_than_a_block_of_scores(pooled):
    kind = {"time": "gaps", "chain_heads": False, "attachment": "prefix", "pooled": pooled}
    model, made = make_model(kind), some_sequences(4, 200)
    block, columns = 500, 200 + 6 + 3 * 4  # events, rows of prompts, oneself; whole vectors
    with Largest() as largest:
        log_likelihood(model, made, gauss_legendre(9), block=block).total.sum().backward()
    assert largest.elements <= 2 * block * columns
    with Largest() as largest:
        log_likelihood(model, made, gauss_legendre(9), block=10**6).total.sum().backward()
    assert largest.elements > 3 * 2 * block * columns


def test_a_chain_of_heads_lets_the_first_reach_the_second():
    for chain in (False, True):
        kind = {"time": "gaps", "chain_heads": chain, "attachment": "prefix", "pooled": False}
        model, made = make_model(kind), some_sequences(1)
        at, visible = torch.tensor([[30.0]]), torch.tensor([[9]])
        before = model.states(model.remember(made), at, visible)
        with torch.no_grad():
            model.weight[:, 0] += 0.1
        after = model.states(model.remember(made), at, visible)
        assert torch.equal(before[..., 8:], after[..., 8:]) != chain


def test_embeddings_of_times_have_the_published_periods():
    embedded = time_embedding(torch.tensor([0.0, 1.5]), 4)
    rates = torch.tensor([1.0, 1.0 / 100.0])
    assert torch.allclose(embedded[0], torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]))
    assert torch.allclose(embedded[1, 0:4:2], (1.5 * rates).sin())
    assert torch.allclose(embedded[1, 1:4:2], (1.5 * rates).cos())
    assert (embedded[:, 4] == 1.0).all()


@EVERY_KIND
def test_gradients_equal_finite_differences(kind):
    model, made = make_model(kind, usage_balance=0.0), some_sequences(2, 5)
    loss = -log_likelihood(model, made, gauss_legendre(3)).total.sum()
    loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name == "pool.keys":  # reached by the matching loss alone
            assert parameter.grad is None
            continue
        for _ in range(3):
            at = int(torch.randint(parameter.numel(), (1,), generator=generator))
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.view(-1)[at] += step
                    values.append(-log_likelihood(model, made, gauss_legendre(3)).total.sum().item())
                    parameter.view(-1)[at] -= step
            assert parameter.grad.view(-1)[at].item() == pytest.approx(
                (values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-6
            ), name


# Prompts


@pytest.mark.parametrize("attachment", ["prefix", "prompt"])
def test_prompts_matter_and_their_order_in_the_pool_does_not(attachment):
    kind = {"time": "gaps", "chain_heads": False, "attachment": attachment, "pooled": True}
    model, made = make_model(kind), some_sequences(2)
    before = log_likelihood(model, made, gauss_legendre(4)).total
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        model.pool.keys.copy_(model.pool.keys[order])
        model.pool.rows.copy_(model.pool.rows[order])
    permuted = log_likelihood(model, made, gauss_legendre(4))
    # Where nothing was seen yet all prompts are equally near, and the lowest ids are taken.
    assert torch.allclose(permuted.time[:, 1:], log_likelihood_again(model, made, order).time[:, 1:])
    with torch.no_grad():
        model.pool.rows.zero_()
    assert (log_likelihood(model, made, gauss_legendre(4)).total - before).abs().min() > 1e-4


def log_likelihood_again(model, made, order):
    inverse = order.argsort()
    with torch.no_grad():
        model.pool.keys.copy_(model.pool.keys[inverse])
        model.pool.rows.copy_(model.pool.rows[inverse])
    return log_likelihood(model, made, gauss_legendre(4))


def test_the_nearest_prompts_are_selected_and_ties_go_to_the_lower_id():
    pool = PromptPool(2, 3, prompts=4, selected=2, rows=1)
    with torch.no_grad():
        pool.keys.copy_(torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]))
    found = pool.retrieve(torch.tensor([[5.0, 0.0], [0.0, 0.1], [0.0, 0.0]]))
    assert found.ids.tolist() == [[1, 2], [0, 1], [0, 1]]
    assert found.cosines.tolist() == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert not found.cosines.isnan().any()
    everything = PromptPool(2, 3, prompts=4, selected=4, rows=1)
    assert sorted(everything.retrieve(torch.ones(1, 2)).ids[0].tolist()) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="5 of 4 prompts"):
        PromptPool(2, 3, prompts=4, selected=5, rows=1)


def test_the_matching_loss_moves_keys_of_selected_prompts_alone_and_not_the_query():
    pool = PromptPool(3, 2, prompts=5, selected=2, rows=1, generator=torch.Generator().manual_seed(0))
    query = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = pool.retrieve(query)
    pool.matching_loss(found).backward()
    assert query.grad is None
    selected = set(found.ids.flatten().tolist())
    for i in range(5):
        assert (pool.keys.grad[i] != 0.0).any() == (i in selected)
    before = found.cosines.mean().item()
    with torch.no_grad():
        pool.keys -= 0.1 * pool.keys.grad
    assert pool.retrieve(query).cosines.mean().item() > before


def test_balanced_selection_brings_every_prompt_into_use():
    used = {}
    for balance in (0.0, 0.5):
        pool = PromptPool(4, 2, prompts=8, selected=1, rows=1, usage_balance=balance, fading=0.95,
                          generator=torch.Generator().manual_seed(0))  # fmt: skip
        query, ids = torch.tensor([[1.0, 0.2, -0.3, 0.5]]), set()
        for _ in range(300):
            found = pool.retrieve(query)
            pool.count(found)
            ids.add(int(found.ids))
        used[balance] = len(ids)
        assert pool.usage.sum().item() == pytest.approx(1.0)
    assert used[0.0] == 1
    assert used[0.5] == 8
