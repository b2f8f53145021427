"""The next event of a history: its time and type, by quadrature or by sampling, from intensities alone.

Both ask for intensities at offsets from now, of many histories at once. The density of a wait τ is
f(τ) = λ(τ) exp(-Λ(τ)), and a type given the wait has probability λ_k(τ) / λ(τ).

Source of the sampler: Lewis and Shedler (1979), "Simulation of nonhomogeneous Poisson processes by thinning",
with a bound that is piecewise constant, as in Ogata (1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Draws", "NextEvents", "next_events", "thin"]

Rates = Callable[[Tensor], Tensor]  # offsets, float64 [histories, n], to λ_k, [histories, n, types]

_FINEST = 1e-7  # of the longest wait: where the geometric grids begin
_NOT_EXPECTED = 0.01  # Λ up to the longest wait below which no event is expected
_SAFETY = 1.5  # of a bound over the intensities it was made from
_ROUNDS = 1_000  # of proposals before a draw is given up as censored


class NextEvents(NamedTuple):
    """What is expected of each history, float64 [histories].

    mean: of the wait. quantiles: [histories, quantiles], inf beyond the longest wait. types: [histories,
    types]. expected: bool; False where an event within the longest wait is very unlikely, and mean and
    quantiles say little.
    """

    mean: Tensor
    quantiles: Tensor
    types: Tensor
    expected: Tensor


def next_events(
    rates: Rates,
    longest: float,
    *,
    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    grid: int = 128,
) -> NextEvents:
    """Predict by quadrature on a geometric grid of offsets up to `longest` seconds; nothing is drawn.

    The mean adds what is beyond the longest wait as if the intensity stayed what it is there.
    """
    ends = torch.cat([torch.zeros(1), _geometric(longest, grid)]).double()
    middles = 0.5 * (ends[1:] + ends[:-1])
    offsets = torch.cat([ends, middles])[None]
    found = rates(offsets).double()  # [histories, 2 grid + 1, types]
    at_ends, at_middles = found[:, : grid + 1], found[:, grid + 1 :]
    total = at_ends.sum(2)
    # Simpson's rule in every cell.
    mean_rate = (total[:, :-1] + 4.0 * at_middles.sum(2) + total[:, 1:]) / 6.0
    compensator = torch.cat([torch.zeros(len(found), 1), (mean_rate * ends.diff()).cumsum(1)], 1)
    survival = torch.exp(-compensator)
    rise = compensator.diff(dim=1)
    flat = torch.where(rise > 1e-12, -torch.expm1(-rise) / rise.clamp(min=1e-300), 1.0)
    mean = (survival[:, :-1] * flat * ends.diff()).sum(1) + survival[:, -1] / total[:, -1].clamp(min=1e-300)

    wanted = -torch.log1p(-torch.tensor(quantiles, dtype=torch.float64)).expand(len(found), -1).contiguous()
    cell = torch.searchsorted(compensator, wanted).clamp(1, grid)
    low, high = compensator.gather(1, cell - 1), compensator.gather(1, cell)
    share = (wanted - low) / (high - low).clamp(min=1e-300)
    waits = ends[cell - 1] + share * (ends[cell] - ends[cell - 1])
    waits = torch.where(wanted > compensator[:, -1:], math.inf, waits)

    by_middle = at_middles / at_middles.sum(2, keepdim=True)
    by_end = at_ends[:, -1] / total[:, -1:]
    types = ((survival[:, :-1] - survival[:, 1:])[..., None] * by_middle).sum(1) + survival[:, -1:] * by_end
    return NextEvents(mean, waits, types, compensator[:, -1] >= _NOT_EXPECTED)


class Draws(NamedTuple):
    """Sampled next events.

    waits: float64 [histories, draws], in seconds. types: int64 of the same shape. censored: bool; True where
    nothing came within the longest wait, which is then the wait, and the type is -1. violations: how often a
    bound was too low.
    """

    waits: Tensor
    types: Tensor
    censored: Tensor
    violations: int


def thin(
    rates: Rates,
    longest: float,
    generator: torch.Generator,
    *,
    histories: int,
    draws: int = 64,
    proposals: int = 64,
    cells: int = 32,
) -> Draws:
    """Draw next events by thinning under a bound that is constant in each cell of a geometric grid.

    A history of which an intensity rose above its bound starts again with twice the bound, in all its draws.
    A draw that runs out of proposals goes on from the last.
    """
    ends = torch.cat([torch.zeros(1), _geometric(longest, cells)]).double()
    looked_at = torch.cat([ends, 0.5 * (ends[1:] + ends[:-1])])[None].expand(histories, -1)
    found = rates(looked_at).double().sum(2)
    of_cells = torch.stack([found[:, :cells], found[:, 1 : cells + 1], found[:, cells + 1 :]]).amax(0)
    bound = _SAFETY * of_cells.clamp(min=1e-300)  # [histories, cells]
    until = torch.cat([torch.zeros(histories, 1), (bound * ends.diff()).cumsum(1)], 1)

    factor = torch.ones(histories, 1, dtype=torch.float64)  # of the bound
    passed = torch.zeros(histories, draws, dtype=torch.float64)  # of the cumulative bound
    waits = torch.full((histories, draws), longest, dtype=torch.float64)
    types = torch.full((histories, draws), -1)
    open_ = torch.ones(histories, draws, dtype=torch.bool)
    violations = 0
    for _ in range(_ROUNDS):
        if not open_.any():
            break
        shape = (histories, draws, proposals)
        steps = -torch.log1p(-torch.rand(shape, generator=generator, dtype=torch.float64))
        at = passed[..., None] + steps.cumsum(2)
        scaled = (at / factor[..., None]).flatten(1)
        cell = torch.searchsorted(until, scaled, right=True).clamp(1, cells) - 1
        height = bound.gather(1, cell)
        offsets = ends[cell] + (scaled - until.gather(1, cell)) / height
        beyond = (scaled >= until[:, -1:]).view(shape)
        asked = rates(torch.where(beyond.flatten(1), longest, offsets)).double()
        total = asked.sum(2).view(shape)
        ceiling = height.view(shape) * factor[..., None]
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        accepted = (uniform * ceiling < total) & ~beyond
        first = torch.where(accepted.any(2), accepted.int().argmax(2), proposals)
        used = torch.arange(proposals) <= first[..., None]
        above = (total > ceiling) & used & ~beyond & open_[..., None]
        violations += int(above.sum())
        broken = above.any(2).any(1, keepdim=True)
        factor = torch.where(broken, 2.0 * factor, factor)

        done = open_ & ~broken & (first < proposals)
        chosen = first.clamp(max=proposals - 1)[..., None]
        waits = torch.where(done, offsets.view(shape).gather(2, chosen)[..., 0], waits)
        shares = asked.view(*shape, -1).gather(2, chosen[..., None].expand(-1, -1, 1, asked.shape[2]))[
            :, :, 0
        ]
        draw = torch.rand(histories, draws, 1, generator=generator, dtype=torch.float64)
        kinds = (shares.cumsum(2) <= draw * shares.sum(2, keepdim=True)).sum(2).clamp(max=asked.shape[2] - 1)
        types = torch.where(done, kinds, types)
        censored = open_ & ~broken & ~done & beyond.any(2)
        passed = torch.where(broken, 0.0, at[..., -1])
        open_ = (open_ & ~done & ~censored) | broken
        waits, types = torch.where(broken, longest, waits), torch.where(broken, -1, types)
    return Draws(waits, types, types < 0, violations)


def _geometric(longest: float, cells: int) -> Tensor:
    return torch.logspace(math.log10(longest * _FINEST), math.log10(longest), cells, dtype=torch.float64)
