from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from agents_support import same_examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from streamwise.agents.networks import FlatNetwork, LayerNorm, published_network, sparse_init_
from streamwise.streams import UsageError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


channels = st.integers(1, 5)
layers = st.one_of(
    st.builds(nn.Linear, st.integers(1, 90), st.integers(1, 6)),
    st.builds(
        nn.Conv2d, st.integers(1, 5), st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4))
    ),
)


@same_examples
@given(layers, st.integers(0, 2**31))
def test_exactly_nine_tenths_of_every_units_inputs_are_cut(layer, seed):
    fan_in = layer.weight[0].numel()
    sparse_init_(layer, generator(seed))
    zeros = (layer.weight.flatten(1) == 0.0).sum(1)
    assert zeros.tolist() == [math.ceil(Fraction(9, 10) * fan_in)] * len(layer.weight)


@same_examples
@given(layers, st.integers(0, 2**31))
def test_initial_weights_lie_within_the_bound_and_biases_are_zero(layer, seed):
    with torch.no_grad():
        layer.bias.fill_(9.0)
    sparse_init_(layer, generator(seed))
    assert layer.weight.abs().max().item() <= 1.0 / math.sqrt(layer.weight[0].numel()) * (1.0 + 1e-6)
    assert not layer.bias.any()


def test_initial_weights_fill_the_whole_range():
    layer = nn.Linear(100, 2000)
    sparse_init_(layer, generator())
    kept = layer.weight[layer.weight != 0.0].detach()
    assert len(kept) == 20_000
    assert kept.max().item() == pytest.approx(0.1, rel=0.01)
    assert kept.min().item() == pytest.approx(-0.1, rel=0.01)
    assert kept.std().item() == pytest.approx(0.1 / math.sqrt(3.0), rel=0.02)


def test_which_inputs_are_cut_differs_from_unit_to_unit_and_leaves_none_out():
    layer = nn.Linear(50, 400)
    sparse_init_(layer, generator())
    uses = (layer.weight != 0.0).sum(0)  # [50], 40 on average
    assert uses.min() > 15
    assert uses.max() < 75


def test_a_seed_fixes_the_network_and_another_seed_gives_another():
    def weights(seed):
        return torch.cat([p.flatten() for p in published_network((15,), 16, seed)(2).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_two_networks_of_one_builder_differ():
    """Critic and actor must not start as twins."""
    build = published_network((15,), 16, 0)
    first, second = build(2), build(2)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_making_a_network_leaves_the_numbers_of_its_seed_to_no_chance_outside():
    """The draws come from the network's own generator, whatever torch's global one has been through."""
    torch.manual_seed(1)
    first = published_network((15,), 16, 0)(2)[0].weight
    torch.manual_seed(2)
    assert torch.equal(first, published_network((15,), 16, 0)(2)[0].weight)


@pytest.mark.parametrize(
    ("shape", "flattened", "hidden"),
    [((4, 84, 84), 256, 256), ((1, 84, 84), 256, 256), ((10, 10, 4), 1024, 64), ((10, 10, 7), 1024, 64)],
)
def test_convolutions_flatten_to_the_published_size(shape, flattened, hidden):
    network = published_network(shape, 64, 0)(3)
    body = network[: [isinstance(layer, nn.Flatten) for layer in network].index(True) + 1]
    assert body(torch.zeros(1, *shape)).shape == (1, flattened)
    assert network(torch.zeros(1, *shape)).shape == (1, 3)
    linear = [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)]
    assert linear == [(flattened, hidden), (hidden, 3)]


def test_a_flat_observation_gets_two_hidden_layers():
    network = published_network((5,), 32, 0)(2)
    assert [tuple(p.shape) for p in network.parameters()] == [(32, 5), (32,), (32, 32), (32,), (2, 32), (2,)]


@pytest.mark.parametrize("shape", [(5,), (10, 10, 4), (4, 84, 84)])
def test_every_layer_but_the_last_is_normalized_before_its_leaky_relu(shape):
    weighted = [m for m in published_network(shape, 8, 0)(2) if isinstance(m, nn.Linear | nn.Conv2d)]
    kinds = [type(m).__name__ for m in published_network(shape, 8, 0)(2)]
    assert kinds[-1] == "Linear"
    assert kinds.count("LayerNorm") == kinds.count("LeakyReLU") == len(weighted) - 1
    for i, kind in enumerate(kinds[:-1]):
        if kind in ("Linear", "Conv2d"):
            assert kinds[i + 1 : i + 3] == ["LayerNorm", "LeakyReLU"]


def test_the_mlp_is_what_its_formula_says():
    network = published_network((15,), 16, 0)(2).double()
    x = torch.randn(15, generator=generator(1), dtype=torch.float64)
    w1, b1, w2, b2, w3, b3 = network.parameters()
    h = x
    for w, b in ((w1, b1), (w2, b2)):
        h = w @ h + b
        h = (h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-5)
        h = torch.maximum(h, 0.01 * h)
    assert torch.allclose(network(x[None])[0], w3 @ h + b3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_layer_norm_spans_all_features_of_a_layer_and_learns_nothing(shape):
    x = torch.randn(1, *shape, generator=generator(), dtype=torch.float64) * 3.0 + 2.0
    wanted = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
    assert torch.allclose(LayerNorm()(x), wanted, rtol=1e-12, atol=1e-12)
    assert not list(LayerNorm().parameters())


def test_minatar_channels_reach_the_convolution_as_channels():
    """A 10x10xC frame viewed instead of moved would mix rows with channels."""
    network = published_network((10, 10, 4), 8, 0)(2)
    frame = torch.zeros(1, 10, 10, 4)
    frame[0, 2, 5, 3] = 1.0
    moved = network[0](frame)
    assert moved.shape == (1, 4, 10, 10)
    assert moved[0, 3, 2, 5] == 1.0


@pytest.mark.parametrize("shape", [(), (3, 3), (84, 84), (10, 11, 4), (4, 84, 83), (1, 2, 3, 4)])
def test_an_observation_without_a_built_in_network_is_refused_with_a_way_out(shape):
    with pytest.raises(UsageError, match="pass your own torch module") as refusal:
        published_network(shape, 8, 0)(2)
    assert str(shape) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_flat_parameters_are_the_modules_parameters(dtype):
    module = published_network((15,), 16, 0)(2)
    wanted = torch.cat([p.detach().flatten() for p in module.parameters()]).to(dtype)
    network = FlatNetwork(module, dtype)
    assert network.parameters.dtype == network.gradient.dtype == dtype
    assert network.parameters.is_contiguous()
    assert torch.equal(network.parameters, wanted)

    x = torch.ones(15, dtype=dtype)
    before = network.predict(x)
    network.parameters.mul_(2.0)
    assert not torch.equal(network.predict(x), before)
    assert torch.equal(module[0].weight.flatten(), network.parameters[: module[0].weight.numel()])
    with torch.no_grad():
        module[-1].bias[-1] = 42.0
    assert network.parameters[-1] == 42.0


def test_the_flat_gradient_is_autograds_and_does_not_pile_up():
    module = published_network((15,), 16, 0)(2)
    network = FlatNetwork(module, torch.float64)
    x = torch.randn(15, generator=generator(1), dtype=torch.float64)
    wanted = torch.autograd.grad(network(x)[1], list(module.parameters()))
    for _ in range(2):
        flat = network.differentiate(network(x)[1])
        assert torch.equal(flat, torch.cat([g.flatten() for g in wanted]))
    assert module[0].weight.grad.data_ptr() == network.gradient.data_ptr()


def test_predict_builds_no_graph_and_call_does():
    network = FlatNetwork(published_network((15,), 16, 0)(2), torch.float32)
    assert not network.predict(torch.ones(15)).requires_grad
    assert network(torch.ones(15)).requires_grad
    assert network(torch.ones(15)).shape == (2,)


def test_a_module_with_odd_strides_is_flattened_in_order():
    module = nn.Linear(3, 2)
    module.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2).T)  # not contiguous
    network = FlatNetwork(module, torch.float64)
    assert network.parameters[:6].tolist() == [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    np.testing.assert_allclose(
        network.predict(torch.eye(3, dtype=torch.float64)[1]) - module.bias.detach(), [2, 3]
    )
