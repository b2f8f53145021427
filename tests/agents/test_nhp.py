"""The neural Hawkes process against a plain loop over events, and its causality."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from streamwise.agents import nhp
from streamwise.agents.neural_tpp import Sequences, gauss_legendre, log_likelihood
from streamwise.agents.nhp import NHP, NHPSettings
from streamwise.kernels import native_info
from streamwise.kernels.event_recurrence import recur, states
from streamwise.memory.prompt_pool import PromptPool

WITH_AND_WITHOUT = pytest.mark.parametrize("pooled", [False, True])


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_model(pooled, unit=2.0):
    generator = torch.Generator().manual_seed(0)
    pool = PromptPool(6, 6, prompts=5, selected=2, rows=2, generator=generator) if pooled else None
    return NHP(3, NHPSettings(width=6, unit=unit), pool=pool, generator=generator)


def some_sequences():
    times = torch.tensor([[1.0, 1.5, 4.0, 9.0], [2.0, 2.0, 7.0, 0.0]])
    types = torch.tensor([[0, 2, 1, 0], [1, 1, 2, 0]])
    ends = torch.tensor([0.0, 0.0]), torch.tensor([12.0, 10.0])
    return Sequences(times, types, torch.tensor([4, 3]), *ends)


def plain(model, times, types, start, at):
    """The intensity at a time, by the recursion of the paper, one event at a time."""
    width, unit = model.settings.width, model.settings.unit
    seen = []
    cell = target = decay = output = torch.zeros(width)
    before = start
    for time, kind in [(start, model.types), *((t, k) for t, k in zip(times, types, strict=True) if t < at)]:
        cell = target + (cell - target) * torch.exp(-decay * (time - before) / unit)
        state = output * torch.tanh(cell)
        gates = model.weight @ torch.cat([model.embedding[kind], state]) + model.bias
        seen.append(model.embedding[kind])
        if model.pool is not None:
            ids = model.pool.retrieve(torch.stack(seen).mean(0)[None]).ids
            rows = torch.cat(model.pool.attend(ids), -1)[0]
            gates = gates + model.prompt_weight @ rows.mean(0)
        f, f_target, i, i_target, o, z, d = gates.split(width)
        z = torch.tanh(z)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * z
        target = torch.sigmoid(f_target) * target + torch.sigmoid(i_target) * z
        output, decay = torch.sigmoid(o), torch.log1p(torch.exp(d))
        before = time
    cell = target + (cell - target) * torch.exp(-decay * (at - before) / unit)
    return model.head(output * torch.tanh(cell))


@WITH_AND_WITHOUT
def test_intensities_equal_a_plain_loop(pooled):
    model, made = make_model(pooled), some_sequences()
    at = torch.tensor([[0.3, 1.2, 4.5, 11.0], [1.0, 2.5, 7.5, 9.0]])
    visible = (made.times[:, None, :] < at[..., None]).logical_and(made.mask[:, None]).sum(-1)
    found = model.intensities(model.remember(made), at, visible)
    for b in range(2):
        n = int(made.lengths[b])
        for q in range(4):
            expected = plain(
                model, made.times[b, :n].tolist(), made.types[b, :n].tolist(), 0.0, at[b, q].item()
            )
            assert torch.allclose(found[b, q], expected, atol=1e-12)


@WITH_AND_WITHOUT
def test_times_in_groups_are_those_asked_about_one_by_one(pooled):
    model, made = make_model(pooled), some_sequences()
    memory = model.remember(made)
    visible = torch.tensor([[0, 2, 4], [0, 1, 3]])
    at = torch.tensor([[0.0, 1.5, 9.0], [0.0, 2.0, 7.0]])[..., None] + torch.tensor([0.0, 0.4])
    grouped = model.intensities(memory, at, visible)
    alone = model.intensities(memory, at.flatten(1), visible.repeat_interleave(2, 1))
    assert torch.equal(grouped.flatten(1, 2), alone)


@WITH_AND_WITHOUT
def test_what_comes_later_changes_not_one_bit(pooled):
    model, made = make_model(pooled), some_sequences()
    at, visible = torch.tensor([[1.5, 3.0], [1.0, 1.0]]), torch.tensor([[1, 2], [0, 0]])
    before = model.intensities(model.remember(made), at, visible)[0]
    types, times = made.types.clone(), made.times.clone()
    types[0, 2:] = (types[0, 2:] + 1) % 3
    types[1] = (types[1] + 1) % 3
    times[0, 2:] += 0.5
    changed = Sequences(times, types, made.lengths, made.start, made.end)
    assert torch.equal(model.intensities(model.remember(changed), at, visible)[0], before)
    types[0, 0] = 1
    changed = Sequences(times, types, made.lengths, made.start, made.end)
    assert (model.intensities(model.remember(changed), at, visible)[0] - before).abs().max() > 1e-4


@WITH_AND_WITHOUT
def test_pads_and_batch_mates_change_nothing(pooled):
    model, made = make_model(pooled), some_sequences()
    whole = log_likelihood(model, made, gauss_legendre(5)).total
    for b, length in enumerate(made.lengths.tolist()):
        alone = Sequences.of([(made.times[b, :length], made.types[b, :length])], 0.0, made.end[b])
        found = log_likelihood(model, alone, gauss_legendre(5)).total
        assert found.item() == pytest.approx(whole[b].item(), abs=1e-10)


@pytest.mark.skipif(native_info() is None, reason="the native kernels are not built")
@WITH_AND_WITHOUT
def test_likelihoods_and_gradients_are_the_same_without_the_native_kernel(monkeypatch, pooled):
    model, made = make_model(pooled), some_sequences()

    def found():
        model.zero_grad()
        total = log_likelihood(model, made, gauss_legendre(3)).total
        total.sum().backward()
        return total.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    native = found()
    for name, function in (("recur", recur), ("states", states)):
        monkeypatch.setattr(nhp, name, partial(function, implementation="reference"))
    torch.testing.assert_close(found(), native, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences():
    model, made = make_model(True), some_sequences()
    log_likelihood(model, made, gauss_legendre(3)).total.sum().backward()
    for name, parameter in model.named_parameters():
        if name == "pool.keys":
            continue
        at, values = parameter.numel() // 2, []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.view(-1)[at] += step
                values.append(log_likelihood(model, made, gauss_legendre(3)).total.sum().item())
                parameter.view(-1)[at] -= step
        difference = (values[0] - values[1]) / 2e-6
        assert parameter.grad.view(-1)[at].item() == pytest.approx(difference, rel=1e-5, abs=1e-6), name
