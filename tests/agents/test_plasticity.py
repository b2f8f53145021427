"""What is measured of a network's ability to learn: closed forms, and that measuring changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from agents_support import BOX_ACTIONS, MEMORIES, OBSERVATIONS, World, same_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streamwise.agents import StreamAC, StreamACConfig
from streamwise.agents.networks import published_network
from streamwise.agents.plasticity import (
    dead,
    dormant,
    effective_rank,
    hidden_units,
    mean_square_weight,
    plasticity,
    srank,
)

sizes = st.integers(1, 12)
seeds = st.integers(0, 1_000)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Columns, or rows if these are fewer, of length 1 at right angles."""
    tall = torch.linalg.qr(draw(max(rows, columns), min(rows, columns), seed=seed))[0]
    return tall if rows >= columns else tall.T


# --- ranks -------------------------------------------------------------------------------------------------


@same_examples
@given(rows=sizes, columns=sizes, seed=seeds, scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_orthogonal_features_have_as_many_directions_as_there_are(rows, columns, seed, scale):
    features = scale * orthogonal(rows, columns, seed)
    count = min(rows, columns)
    assert effective_rank(features) == pytest.approx(count, rel=1e-9)
    assert srank(features) == count  # a share of 0.01 is less than one of twelve


@same_examples
@given(rows=sizes, columns=sizes, seed=seeds)
def test_features_that_are_multiples_of_one_have_one_direction(rows, columns, seed):
    features = draw(rows, 1, seed=seed) * draw(1, columns, seed=seed + 1)
    assert effective_rank(features) == pytest.approx(1.0, abs=1e-6)
    assert srank(features) == 1


@same_examples
@given(
    strengths=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=8), delta=st.sampled_from([0.01, 0.1, 0.5])
)
def test_ranks_follow_from_singular_values_as_the_papers_say(strengths, delta):
    count = len(strengths)
    features = (
        orthogonal(12, count, 1)
        @ torch.diag(torch.tensor(strengths, dtype=torch.float64))
        @ orthogonal(count, count, 2)
    )
    total = sum(strengths)
    entropy = -sum(strength / total * math.log(strength / total) for strength in strengths)
    assert effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-6)
    largest = sorted(strengths, reverse=True)
    sums = [sum(largest[: k + 1]) / total for k in range(count)]
    if min(abs(value - (1.0 - delta)) for value in sums) > 1e-9:
        assert srank(features, delta) == next(k + 1 for k in range(count) if sums[k] >= 1.0 - delta)


def test_a_hundred_directions_of_equal_strength_need_all_but_the_share_that_is_left():
    assert srank(torch.eye(100), 0.105) == 90
    assert srank(torch.eye(100), 0.0) == 100


@same_examples
@given(seed=seeds, rows=sizes, columns=sizes)
def test_no_rank_is_above_that_of_algebra_and_rotations_change_none(seed, rows, columns):
    features = draw(rows, columns, seed=seed)
    turned = orthogonal(rows, rows, seed) @ features @ orthogonal(columns, columns, seed + 1)
    assert 1.0 <= effective_rank(features) <= min(rows, columns) + 1e-9
    assert effective_rank(turned) == pytest.approx(effective_rank(features), rel=1e-9)
    assert srank(turned) == srank(features)


def test_features_that_are_all_zero_have_no_direction():
    assert (effective_rank(torch.zeros(5, 3)), srank(torch.zeros(5, 3))) == (0.0, 0)


# --- units -------------------------------------------------------------------------------------------------


def test_a_unit_is_dead_if_it_is_never_above_zero_in_the_batch():
    units = torch.tensor([[0.0, -1.0, 0.0, 2.0], [0.0, -0.01, 1e-9, -3.0]])
    assert dead(units).tolist() == [True, True, False, False]


def test_a_channel_is_dead_if_it_is_in_all_its_places():
    units = -torch.ones(2, 3, 4, 4)
    units[1, 2, 3, 0] = 1.0
    assert dead(units).tolist() == [True, True, False]


@pytest.mark.parametrize(("tau", "expected"), [(0.0, 1), (0.06, 2), (0.6, 3), (1.6, 4), (3.0, 5)])
def test_dormant_units_are_small_beside_their_layer(tau, expected):
    """Mean magnitudes 0, 0.1, 1, 3 and 5.9: of 2 on the mean."""
    signs = torch.tensor([[1.0], [-1.0], [1.0]])
    units = signs * torch.tensor([0.0, 0.1, 1.0, 3.0, 5.9])
    assert dormant(units, tau).tolist() == [True] * expected + [False] * (5 - expected)
    assert dormant(7.0 * units, tau).tolist() == dormant(units, tau).tolist()


def test_all_units_of_a_silent_layer_are_dead_and_dormant():
    assert dead(torch.zeros(3, 4)).all()
    assert dormant(torch.zeros(3, 4), 0.0).all()


@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.LeakyReLU])
def test_a_unit_without_weights_is_dead_behind_a_rectifier_without_normalization(rectifier):
    network = nn.Sequential(
        nn.Linear(4, 6), rectifier(), nn.Linear(6, 5), rectifier(), nn.Linear(5, 2)
    ).double()
    observations = draw(200, 4)
    for layer in network:
        if isinstance(layer, nn.Linear):
            layer.weight.data, layer.bias.data = (
                draw(*layer.weight.shape, seed=7),
                torch.zeros(layer.out_features),
            )
            layer.bias.data = layer.bias.data.double()
    whole = plasticity(network, observations)
    network[0].weight.data[2] = 0.0
    network[2].weight.data[[0, 3]] = 0.0
    first, second = hidden_units(network, observations)
    assert dead(first).nonzero().flatten().tolist() == dormant(first, 0.0).nonzero().flatten().tolist() == [2]
    assert set(dormant(second, 0.0).nonzero().flatten().tolist()) == {0, 3}
    cut = plasticity(network, observations)
    assert whole["dead_units"] == 0.0
    assert cut["dead_units"] == cut["dormant_units"] == pytest.approx(3 / 11)
    assert cut["effective_rank"] < whole["effective_rank"]
    assert cut["srank"] == whole["srank"] - 2


def test_a_unit_of_ours_that_always_lies_far_below_its_layer_is_dead_but_passes_a_hundredth():
    network = published_network((12,), 16, seed=0)(2)
    observations = draw(100, 12).float()
    before = plasticity(network, observations)
    first = network[0]  # type: ignore[index]  # a Linear
    first.bias.data[3] = -100.0  # type: ignore[operator, union-attr]  # a Linear
    layer = hidden_units(network, observations)[0]
    assert bool(dead(layer)[3])
    assert (layer[:, 3] < 0.0).all()
    assert not dormant(layer, 0.0).any()
    assert before["dead_units"] < 0.2
    first.weight.data[3], first.bias.data[3] = 0.0, 0.0  # type: ignore[operator, union-attr]  # a Linear
    assert not dead(hidden_units(network, observations)[0])[3]


# --- networks ----------------------------------------------------------------------------------------------


def test_the_mean_square_weight_is_the_squared_norm_over_the_number_of_weights():
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    weights = [value for weight in network.parameters() for value in weight.flatten().tolist()]
    assert len(weights) == 11
    assert mean_square_weight(network) == pytest.approx(sum(value**2 for value in weights) / 11)
    for weight in network.parameters():
        weight.data *= 3.0
    assert mean_square_weight(network) == pytest.approx(9.0 * sum(value**2 for value in weights) / 11)


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((12,), [(16,), (16,)]),
        ((10, 10, 4), [(16, 8, 8), (16,)]),
        ((4, 84, 84), [(32, 16, 16), (64, 5, 5), (64, 2, 2), (256,)]),
    ],
)
def test_the_published_networks_show_all_their_hidden_layers(shape, layers):
    network = published_network(shape, 16, seed=1)(3)
    observations = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2))
    found = hidden_units(network, observations)
    assert [tuple(layer.shape) for layer in found] == [(5, *layer) for layer in layers]
    alone = [hidden_units(network, observation[None]) for observation in observations]
    for number, layer in enumerate(found):  # a batch is what its observations are one by one
        torch.testing.assert_close(layer, torch.cat([one[number] for one in alone]))


def test_a_network_without_rectifiers_is_refused():
    with pytest.raises(ValueError, match=r"no rectifier.*LeakyReLU"):
        plasticity(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("memory", MEMORIES)
def test_measuring_an_agent_changes_nothing_with_any_memory(memory):
    def agent() -> StreamAC:
        config = StreamACConfig(hidden_size=11, **MEMORIES[memory])
        return StreamAC(OBSERVATIONS, BOX_ACTIONS, config, seed=3)

    measured, alone = agent(), agent()
    worlds = [World(seed=1), World(seed=1)]
    window: list[Tensor] = []
    for step in range(40):
        before = torch.get_rng_state()
        transitions = [
            world.step(one.act(world.observation))
            for world, one in zip(worlds, (measured, alone), strict=True)
        ]
        assert measured.learn_one(transitions[0]) == alone.learn_one(transitions[1])
        window.append(measured.samples.observe(transitions[0].observation))
        for world, transition in zip(worlds, transitions, strict=True):
            if transition.terminated or transition.truncated:
                world.reset()
        if step % 5 == 4:
            found = plasticity(measured.critic.module, torch.stack(window[-20:]))
            assert 0.0 <= found["dead_units"] <= 1.0
            assert 1.0 <= found["effective_rank"] <= 11.0
        assert torch.equal(torch.get_rng_state(), before)
    states = measured.state_dict(), alone.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
