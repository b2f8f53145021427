"""Next events by quadrature and by thinning: closed forms, known processes, and each against the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from streamwise.agents.attnhp import AttNHP, AttNHPSettings
from streamwise.agents.neural_tpp import Sequences
from streamwise.agents.next_event import before_every_event, next_events, thin
from streamwise.agents.nhp import NHP
from streamwise.memory.prompt_pool import PromptPool


def constant(*shares):
    """An intensity of one event a second, divided among types."""
    return lambda offsets: torch.tensor(shares, dtype=torch.float64).expand(*offsets.shape, -1)


def hawkes(offsets):
    """Just after an event, with base rate 0.5, jump 0.8, decay 1.5; half of the base is of type 1."""
    falling = 0.8 * torch.exp(-1.5 * offsets)
    return torch.stack([0.25 + falling, torch.full_like(offsets, 0.25)], -1)


def hawkes_compensator(wait):
    return 0.5 * wait + 0.8 / 1.5 * -np.expm1(-1.5 * wait)


@pytest.mark.parametrize("proposals", [8, 64, 500])
def test_waits_at_a_constant_rate_are_exponential(proposals):
    generator = torch.Generator().manual_seed(0)
    draws = 100_000 // proposals if proposals > 8 else 20_000
    found = thin(constant(0.3, 0.7), 1e4, generator, histories=2, draws=draws, proposals=proposals)
    waits = found.waits.flatten()
    assert waits.mean().item() == pytest.approx(1.0, abs=4.0 / math.sqrt(len(waits)))
    assert stats.kstest(waits[:10_000].numpy(), "expon").pvalue > 1e-3
    assert not found.censored.any()
    assert found.violations == 0
    share = (found.types == 1).double().mean().item()
    assert share == pytest.approx(0.7, abs=4.0 * math.sqrt(0.21 / len(waits)))


def test_thinned_waits_of_a_hawkes_process_are_exponential_in_its_own_time():
    found = thin(hawkes, 100.0, torch.Generator().manual_seed(1), histories=1, draws=10_000)
    residuals = hawkes_compensator(found.waits[0].numpy())
    assert stats.kstest(residuals, "expon").pvalue > 1e-3
    assert abs(np.corrcoef(residuals[1:], residuals[:-1])[0, 1]) < 4.0 / math.sqrt(10_000)


def test_a_spike_between_the_points_of_the_bound_is_noticed_and_drawn_right():
    """A burst of 50 a second around one second lies between two points of a grid of eight cells."""

    def spiky(offsets):
        return (0.1 + 50.0 * torch.exp(-(((offsets - 1.3) / 0.02) ** 2)))[..., None]

    found = thin(spiky, 100.0, torch.Generator().manual_seed(2), histories=1, draws=4_000, cells=8)
    assert found.violations > 0
    ends = np.linspace(0.0, 100.0, 400_001)
    rates = spiky(torch.from_numpy(ends))[:, 0].numpy()
    compensator = np.concatenate([[0.0], np.cumsum(0.5 * (rates[1:] + rates[:-1]) * np.diff(ends))])
    residuals = np.interp(found.waits[0].numpy(), ends, compensator)
    residuals = residuals[~found.censored[0].numpy()]
    assert stats.kstest(residuals, "expon").statistic < 0.05


def test_nothing_within_the_longest_wait_is_censored_and_not_an_event():
    found = thin(constant(1.0), 0.1, torch.Generator().manual_seed(3), histories=3, draws=2_000, proposals=4)
    share = found.censored.double().mean().item()
    assert share == pytest.approx(math.exp(-0.1), abs=0.02)
    assert (found.waits[found.censored] == 0.1).all()
    assert (found.types[found.censored] == -1).all()
    assert (found.waits[~found.censored] <= 0.1).all()


def test_the_prediction_at_a_constant_rate_is_in_closed_form():
    found = next_events(constant(0.3, 0.7), 1e3)
    assert found.mean.item() == pytest.approx(1.0, rel=1e-6)
    expected = [-math.log(1.0 - q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert found.quantiles[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert found.types[0].tolist() == pytest.approx([0.3, 0.7])
    assert found.expected.item()


def test_an_event_that_is_not_to_be_expected_is_not_invented():
    found = next_events(lambda offsets: 1e-9 * constant(1.0)(offsets), 1e3)
    assert not found.expected.item()
    assert found.quantiles.isinf().all()
    assert found.mean.item() == pytest.approx(1e9, rel=1e-3)


def test_quadrature_and_thinning_agree():
    predicted = next_events(hawkes, 200.0)
    drawn = thin(hawkes, 200.0, torch.Generator().manual_seed(4), histories=1, draws=40_000)
    waits = drawn.waits[0]
    error = waits.std() / math.sqrt(len(waits))
    assert abs(predicted.mean.item() - waits.mean().item()) < 3.0 * error
    for quantile, at in zip((0.05, 0.25, 0.5, 0.75, 0.95), predicted.quantiles[0], strict=True):
        assert (waits <= at).double().mean().item() == pytest.approx(quantile, abs=0.01)
    shares = torch.stack([(drawn.types == k).double().mean() for k in range(2)])
    assert predicted.types[0].tolist() == pytest.approx(shares.tolist(), abs=0.01)


def test_histories_are_predicted_each_for_itself():
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64)[:, None, None]

    def both(offsets):
        return rates.expand(2, offsets.shape[1], 1)

    assert next_events(both, 1e3).mean.tolist() == pytest.approx([2.0, 0.5], rel=1e-6)
    drawn = thin(both, 1e3, torch.Generator().manual_seed(5), histories=2, draws=20_000)
    assert drawn.waits.mean(1).tolist() == pytest.approx([2.0, 0.5], rel=0.05)


def test_the_default_grid_is_as_good_as_a_fine_one():
    """Of the Hawkes process, of an intensity that oscillates in log time, and of one that falls steeply."""

    def oscillating(offsets):
        return (0.02 * (1.0 + 0.8 * torch.sin(4.0 * torch.log1p(offsets))))[..., None]

    def falling(offsets):
        return (0.01 + 2.0 / (1.0 + (offsets / 3.0) ** 4))[..., None]

    for rates in (hawkes, oscillating, falling):
        coarse, fine = (next_events(rates, 1e4, **grid) for grid in ({}, {"grid": 4096}))
        assert coarse.mean.item() == pytest.approx(fine.mean.item(), rel=1e-3)
        assert coarse.quantiles[0].tolist() == pytest.approx(fine.quantiles[0].tolist(), rel=1e-3)
        assert coarse.types[0].tolist() == pytest.approx(fine.types[0].tolist(), abs=1e-3)


@pytest.mark.parametrize("kind", ["attnhp", "attnhp with prompts", "nhp"])
def test_predictions_before_every_event_are_those_of_each_history_alone(kind):
    generator = torch.Generator().manual_seed(6)
    pool = PromptPool(12, 8, prompts=5, selected=2, rows=3, generator=generator)
    settings = AttNHPSettings(width=8, time_width=4)
    model = {
        "attnhp": AttNHP(3, settings, generator=generator),
        "attnhp with prompts": AttNHP(3, settings, pool=pool, generator=generator),
        "nhp": NHP(3, generator=generator),
    }[kind]
    made = [(torch.rand(n, generator=generator).cumsum(0), torch.arange(n) % 3) for n in (5, 9)]
    found = before_every_event(model, Sequences.of(made, -1.0, 20.0), 50.0, block=300)
    assert found.mean.shape == (2, 9)
    for b, (times, types) in enumerate(made):
        for i in range(len(times)):
            history = Sequences.of([(times[:i], types[:i])], -1.0, 20.0)
            now = torch.tensor([[times[i - 1] if i else -1.0]], dtype=torch.float64)

            def rates(offsets, history=history, now=now, i=i):
                return model.intensities(model.remember(history), now + offsets, torch.full(offsets.shape, i))

            with torch.no_grad():
                alone = next_events(rates, 50.0)
            for one, other in zip(found, alone, strict=True):
                assert torch.allclose(one[b, i].double(), other[0].double(), rtol=1e-4)
