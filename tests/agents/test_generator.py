from __future__ import annotations

import numpy as np
import pytest
import torch
from agents_support import same_examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from streamwise.agents.generator import CounterGenerator

MASK = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """Outputs of the published generator from a given state, after Steele, Lea and Flood (2014)."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


def raw(generator: CounterGenerator) -> int:
    """The 53 bits behind one uniform draw."""
    return int(generator.uniform() * 2.0**53)


def test_seed_0_gives_the_published_splitmix64_numbers():
    generator = CounterGenerator(0)
    for output in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F):
        assert raw(generator) == output >> 11


@same_examples
@given(st.integers(-(2**63), 2**64 - 1))
def test_every_seed_gives_a_splitmix64_stream_that_starts_at_its_key(seed):
    generator = CounterGenerator(seed)
    assert [raw(generator) for _ in range(20)] == [bits >> 11 for bits in splitmix64(generator.key, 20)]


def test_neighbouring_seeds_share_no_draws():
    first, second = CounterGenerator(1), CounterGenerator(2)
    assert not {first.uniform() for _ in range(1000)} & {second.uniform() for _ in range(1000)}


def test_uniform_draws_are_uniform():
    generator = CounterGenerator(5)
    draws = np.array([generator.uniform() for _ in range(20_000)])
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert stats.kstest(draws, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.02


def test_all_ones_stay_below_1(monkeypatch):
    monkeypatch.setattr("streamwise.agents.generator.mix", lambda bits: MASK)
    assert CounterGenerator(0).uniform() < 1.0
    assert CounterGenerator(0).integer(7) == 6
    assert np.isfinite(CounterGenerator(0).normal(3)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 10_000])
def test_normal_draws_are_standard_normal(size):
    generator = CounterGenerator(5)
    draws = np.concatenate([generator.normal(size) for _ in range(20_000 // size)])
    assert stats.kstest(draws, "norm").pvalue > 0.01


def test_normal_draws_of_one_call_are_uncorrelated():
    generator = CounterGenerator(5)
    draws = np.array([generator.normal(4) for _ in range(5_000)])
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.05


@pytest.mark.parametrize("below", [1, 2, 3, 18])
def test_integers_cover_their_range_evenly(below):
    generator = CounterGenerator(5)
    counts = np.bincount([generator.integer(below) for _ in range(10_000)])
    assert len(counts) == below
    assert below == 1 or stats.chisquare(counts).pvalue > 0.01


@same_examples
@given(st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_a_saved_generator_goes_on_where_it_was(seed, draws):
    generator, other = CounterGenerator(seed), CounterGenerator(seed ^ 1)
    for _ in range(draws):
        generator.uniform()
    state = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    assert all(tensor.dtype == torch.int64 for tensor in state.values())
    other.load_state_dict(state)
    assert [other.uniform() for _ in range(5)] == [generator.uniform() for _ in range(5)]
    assert other.normal(3).tolist() == generator.normal(3).tolist()
