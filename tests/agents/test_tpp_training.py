"""Training of intensities: what is scored, how a pool is refreshed, and whether a known process is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamwise.agents.attnhp import AttNHP, AttNHPSettings
from streamwise.agents.neural_tpp import Sequences, gauss_legendre, log_likelihood
from streamwise.agents.nhp import NHP, NHPSettings
from streamwise.agents.tpp_training import (
    SCORING,
    Batch,
    Trainer,
    TrainingSettings,
    event_scores,
    fit,
)
from streamwise.memory.prompt_pool import PromptPool
from streamwise.streams import UsageError

TYPES = 3
BASES = pytest.mark.parametrize("base", ["attnhp", "nhp"])


def make_model(base, *, pooled=False, types=TYPES, width=8, unit=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = width + 4 if base == "attnhp" else width
    pool = PromptPool(tokens, width, prompts=6, selected=2, rows=2, generator=generator) if pooled else None
    if base == "attnhp":
        settings = AttNHPSettings(width=width, time_width=width // 2, layers=1, heads=1, unit=unit)
        return AttNHP(types, settings, pool=pool, generator=generator)
    return NHP(types, NHPSettings(width=width, unit=unit), pool=pool, generator=generator)


def some_batch(count=4, first=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        gaps = torch.rand(8 + i, generator=generator, dtype=torch.float64) ** 3 * 5.0 + 0.01
        made.append((gaps.cumsum(0), torch.randint(TYPES, (8 + i,), generator=generator)))
    return Batch(Sequences.of(made, 0.0, 60.0), torch.full((count,), first))


# What is scored


@BASES
@pytest.mark.parametrize("pooled", [False, True])
def test_scores_are_the_likelihood_of_the_scored_events_and_context_is_none_of_them(base, pooled):
    model, batch = make_model(base, pooled=pooled), some_batch(first=3)
    rule = gauss_legendre(5)
    whole = log_likelihood(model, batch.sequences, rule)
    found = event_scores(model, batch, rule)
    for row, length in enumerate(batch.sequences.lengths.tolist()):
        scored = slice(0, length - 3)
        assert torch.allclose(found.time[row, scored], whole.time[row, 3:length], atol=1e-4)
        assert torch.allclose(found.type[row, scored], whole.type[row, 3:length], atol=1e-5)
        assert torch.allclose(found.compensator[row, scored], whole.compensator[row, 3:length], atol=1e-5)
        assert found.mask[row].sum() == length - 3
    assert (found.time[~found.mask] == 0.0).all()
    total = (whole.time + whole.type)[:, 3:].sum() / found.mask.sum()
    assert found.log_likelihood.item() == pytest.approx(total.item(), rel=1e-5)


class Burst:
    """An intensity that is high for a ten-thousandth of a second after every event."""

    pool = None

    def remember(self, sequences):
        return sequences

    def intensities(self, sequences, times, visible):
        last = sequences.times.gather(1, visible - 1)
        return (0.1 + 1e4 * torch.exp(-1e4 * (times - last)))[..., None]


def test_the_rule_that_scores_sees_a_burst_that_is_over_at_once():
    batch = Batch(Sequences.of([([0.0, 20.0], [0, 0])], 0.0, 20.0), torch.ones(1, dtype=torch.int64))
    exact = 0.1 * 20.0 + 1.0
    assert event_scores(Burst(), batch, SCORING).compensator.item() == pytest.approx(exact, rel=0.03)
    assert event_scores(Burst(), batch, gauss_legendre(21)).compensator.item() < 0.9 * exact


# Refreshing the pool


def snapshot(model):
    return [parameter.detach().clone() for parameter in model.pool.parameters()]


def retrieved(model, batch):
    """Which prompts the scored events of one sequence are told of; nobody sees the last event."""
    ids = model.remember(batch.sequences).retrieved.ids
    unseen = 1 if isinstance(model, AttNHP) else 0  # NHP begins with an event of its own
    return set(ids[:, unseen:-1].flatten().tolist())


@BASES
def test_synchronous_every_selected_prompt_moves_at_one_step_and_no_other(base):
    model, batch = make_model(base, pooled=True), some_batch(1)
    trainer = Trainer(model, TrainingSettings(refresh_every=1), torch.Generator().manual_seed(0))
    selected, before = retrieved(model, batch), snapshot(model)
    assert 2 <= len(selected) < 6
    loss = trainer.loss(batch)
    loss.backward()
    for parameter in model.pool.parameters():
        for prompt in set(range(6)) - selected:
            assert (parameter.grad[prompt] == 0.0).all()
    model.zero_grad()
    trainer.step(batch)
    for old, new in zip(before, snapshot(model), strict=True):
        moved = {prompt for prompt in range(6) if not torch.equal(old[prompt], new[prompt])}
        assert moved <= selected
    rows = before[1], snapshot(model)[1]
    assert {prompt for prompt in range(6) if not torch.equal(rows[0][prompt], rows[1][prompt])} == selected


@BASES
def test_asynchronous_the_pool_waits_and_moves_by_the_accumulated_gradient(base):
    every = 3
    model, batch = make_model(base, pooled=True), some_batch()
    settings = TrainingSettings(refresh_every=every, largest_gradient=1e9)
    trainer = Trainer(model, settings, torch.Generator().manual_seed(0))
    twin = make_model(base, pooled=True)
    draws = Trainer(twin, settings, torch.Generator().manual_seed(0))
    moves, accumulated = 0, None
    for step in range(1, 10 * every + 1):
        twin.load_state_dict(model.state_dict())
        twin.zero_grad()
        draws.loss(batch).backward()
        gradient = [p.grad.clone() for p in twin.pool.parameters()]
        accumulated = (
            gradient if accumulated is None else [a + g for a, g in zip(accumulated, gradient, strict=True)]
        )
        before = snapshot(model)
        base_before = model.embedding.detach().clone()
        if step % every == 0:
            expected = [p.detach().clone().requires_grad_() for p in model.pool.parameters()]
            for parameter, total in zip(expected, accumulated, strict=True):
                parameter.grad = total
            if moves == 0:
                torch.optim.Adam(expected, settings.pool_step_size).step()
        trainer.step(batch)
        assert not torch.equal(model.embedding, base_before)
        after = snapshot(model)
        if step % every:
            assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
            continue
        assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
        if moves == 0:
            for parameter, found in zip(expected, after, strict=True):
                assert torch.allclose(parameter, found, atol=1e-5)
        moves, accumulated = moves + 1, None
    assert moves == 10
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pool_without_a_step_size_stays_as_it_is_to_the_last_bit():
    model, batch = make_model("attnhp", pooled=True), some_batch()
    trainer = Trainer(model, TrainingSettings(pool_step_size=0.0), torch.Generator().manual_seed(0))
    before = snapshot(model)
    for _ in range(6):
        trainer.step(batch)
    assert all(torch.equal(x, y) for x, y in zip(before, snapshot(model), strict=True))


# Training


@BASES
def test_a_model_is_left_at_its_best_validation_and_never_worse_than_before(base):
    model, batch = make_model(base), some_batch()
    settings = TrainingSettings(step_size=3.0)  # which destroys it
    trainer = Trainer(model, settings, torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def validate():
        with torch.no_grad():
            return event_scores(model, batch, SCORING).log_likelihood.item()

    start = validate()
    found = fit(trainer, lambda: [batch], lambda: min(validate(), start), steps=3)
    assert (found.epoch, found.epochs, found.steps) == (0, 3, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    gentle = Trainer(model, TrainingSettings(step_size=0.01), torch.Generator().manual_seed(0))
    found = fit(gentle, lambda: [batch], validate, steps=7)
    assert found.steps == 7
    assert found.validation > start
    assert validate() == pytest.approx(found.validation)


def test_settings_outside_their_range_are_refused():
    for name, value in (("refresh_every", 0), ("samples", 0), ("step_size", 0.0), ("matching", -1.0),
                        ("largest_gradient", math.inf)):  # fmt: skip
        with pytest.raises(UsageError, match=name):
            TrainingSettings(**{name: value})


# Recovery of a known process

BASE_RATE, JUMP, DECAY = 0.5, 0.8, 1.5


def simulate(count, seed):
    """Draw event times of a Hawkes process by Ogata's thinning."""
    draw, times, time, excited = np.random.default_rng(seed), [], 0.0, 0.0
    while len(times) < count:
        bound = BASE_RATE + excited
        wait = draw.exponential(1.0 / bound)
        time, excited = time + wait, excited * math.exp(-DECAY * wait)
        if draw.random() * bound < BASE_RATE + excited:
            times.append(time)
            excited += JUMP
    return np.array(times)


def true_log_likelihood(times):
    """Return log λ(t_i) - Λ_i of every event but the first, by the recursion of the sum."""
    found, excited = [], 0.0
    for gap in np.diff(times):
        excited += JUMP
        left = excited * math.exp(-DECAY * gap)
        found.append(math.log(BASE_RATE + left) - BASE_RATE * gap - (excited - left) / DECAY)
        excited = left
    return np.array([math.nan, *found])


def windows(times, start, end, size=64):
    """Batches of sequences of `size` scored events after as many of context."""
    made = [
        (times[max(i - size, 0) : min(i + size, end)], [0] * (min(i + size, end) - max(i - size, 0)))
        for i in range(max(start, 1), end, size)
    ]
    firsts = torch.tensor([min(size, i) for i in range(max(start, 1), end, size)])
    starts = torch.tensor([times[0] for times, _ in made], dtype=torch.float64)
    ends = torch.tensor([times[-1] for times, _ in made], dtype=torch.float64)
    return [
        Batch(Sequences.of(made[i : i + 4], starts[i : i + 4], ends[i : i + 4]), firsts[i : i + 4])
        for i in range(0, len(made), 4)
    ]


def shortfall(base, count, epochs):
    """Return by how many nats an event a trained model is behind the true one on the last fifth."""
    times, cut = simulate(count, 0), 4 * count // 5
    training, held_out = windows(times, 0, cut), windows(times, cut, count)
    model = make_model(base, types=1, width=16)

    def score(batches):
        with torch.no_grad():
            found = [event_scores(model, batch, SCORING) for batch in batches]
        return sum(x.time.sum().item() for x in found) / sum(x.mask.sum().item() for x in found)

    for step_size in (1e-2, 2e-3):
        settings = TrainingSettings(step_size=step_size)
        trainer = Trainer(model, settings, torch.Generator().manual_seed(0))
        fit(trainer, lambda: training, lambda: score(training), steps=epochs * len(training))
    return true_log_likelihood(times)[cut:].mean() - score(held_out)


def poisson_shortfall(count):
    """Return the same of the best constant rate."""
    times, cut = simulate(count, 0), 4 * count // 5
    rate = cut / times[cut]
    gaps = np.diff(times)[cut - 1 :]
    return true_log_likelihood(times)[cut:].mean() - (math.log(rate) - rate * gaps).mean()


@BASES
def test_a_hawkes_process_is_found_twice_as_well_as_by_any_constant_rate(base):
    assert shortfall(base, 4_000, {"attnhp": 6, "nhp": 2}[base]) < 0.5 * poisson_shortfall(4_000)


@pytest.mark.slow  # a minute and a half
@BASES
def test_a_hawkes_process_is_recovered(base):
    assert shortfall(base, 20_000, 10) < 0.03
