"""How able to learn a network still is: units that are out of use, size of weights, rank of features.

A learner that lives long may lose its plasticity: weights grow, units fall silent, features become alike.
None of these numbers proves it.

    dead:            h_i ≤ 0 for all of a batch
    dormant:         E|h_i| ≤ τ E|h| of its layer                      Sokar et al. (2023), arXiv:2302.12902
    effective rank:  exp(−Σ p log p), p = σ / Σ σ                      Roy and Vetterli (2007)
    srank:           how few σ, the largest, sum to (1 − δ) Σ σ        Kumar et al. (2021), arXiv:2010.14498

with h the outputs of a rectifier, and σ the singular values of those of the last hidden layer, [batch,
units], which are not centred. A unit of a convolution is a channel, in all its places.

A dead unit behind a ReLU has no gradient, and is dormant at τ = 0. Behind the LeakyReLU of our networks it
has a hundredth of one and is linear, as far as the batch goes; its |h| is small, but not zero. Normalization
before the rectifier makes up for inputs that are small together: a unit whose weights are all 0 is not dead
by that alone, for it lies below or above the mean of its layer.

Both ranks are at most the number of observations: compare those of equal batches only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from streamwise.agents.learner import Metrics
from streamwise.agents.networks import MemoryNetwork

__all__ = ["dead", "dormant", "effective_rank", "hidden_units", "mean_square_weight", "plasticity", "srank"]

_RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)


@torch.no_grad()
def plasticity(network: nn.Module, observations: Tensor, tau: float = 0.025) -> Metrics:
    """Return all measures of a network on a batch of observations as it sees them, normalized.

    observations: [batch, *shape]. dead_units and dormant_units are shares of all hidden units. Nothing
    changes by it. Raises ValueError for a network without rectifiers.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> for weight, values in zip(network.parameters(), ([[1.0, 0.0], [0.0, 0.0]], [[3.0, 4.0]])):
    ...     weight.data = torch.tensor(values)
    >>> measured = plasticity(network, torch.eye(2))
    >>> measured["dead_units"], measured["effective_rank"], round(measured["mean_square_weight"], 3)
    (0.5, 1.0, 4.333)
    """
    layers = hidden_units(network, observations)
    features = layers[-1].flatten(1)
    return {
        "dead_units": _share([dead(layer) for layer in layers]),
        "dormant_units": _share([dormant(layer, tau) for layer in layers]),
        "mean_square_weight": mean_square_weight(network),
        "effective_rank": effective_rank(features),
        "srank": float(srank(features)),
    }


def _share(found: Sequence[Tensor]) -> float:
    return float(torch.cat(list(found)).double().mean())


@torch.no_grad()
def hidden_units(network: nn.Module, observations: Tensor) -> list[Tensor]:
    """Return what each rectifier gives, [batch, units] or [batch, channels, ...], the first layer first."""
    layers: dict[nn.Module, list[Tensor]] = {}

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        layers.setdefault(module, []).append(output)

    hooks = [
        module.register_forward_hook(keep) for module in network.modules() if isinstance(module, _RECTIFIERS)
    ]
    if not hooks:
        kinds = ", ".join(kind.__name__ for kind in _RECTIFIERS)
        raise ValueError(f"the network has no rectifier; use one of {kinds}.")
    # A memory reads for one observation at a time.
    one_by_one = isinstance(network, MemoryNetwork)
    batches = [row[None] for row in observations] if one_by_one else [observations]
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(outputs) for outputs in layers.values()]


def dead(units: Tensor) -> Tensor:
    """Return which units are never above 0: bool [units]. units: as of `hidden_units`."""
    return (_by_unit(units) <= 0.0).all(0)


def dormant(units: Tensor, tau: float = 0.025) -> Tensor:
    """Return which units have a mean magnitude of at most `tau` times that of their layer: bool [units]."""
    magnitude = _by_unit(units).abs().mean(0)
    return magnitude <= tau * magnitude.mean()


def _by_unit(units: Tensor) -> Tensor:
    """Return [batch and places, units], in float64."""
    return units.movedim(1, -1).flatten(0, -2).double()


def mean_square_weight(network: nn.Module) -> float:
    """Return the mean of the squares of all parameters, which is their squared norm over their number."""
    weights = torch.cat([weight.detach().flatten() for weight in network.parameters()])
    return float(weights.double().square().mean())


def effective_rank(features: Tensor) -> float:
    """Return how many directions [batch, units] has, from 1 to its rank; 0 for zeros."""
    strengths = torch.linalg.svdvals(features.double())
    total = float(strengths.sum())
    return float(torch.special.entr(strengths / total).sum().exp()) if total else 0.0


def srank(features: Tensor, delta: float = 0.01) -> int:
    """Return how many directions [batch, units] needs for all but a share of its strength; 0 for zeros."""
    sums = torch.linalg.svdvals(features.double()).cumsum(0)
    total = float(sums[-1])
    return int((sums < (1.0 - delta) * total).sum()) + 1 if total else 0
