"""The next event of a history: its time and type, by quadrature or by sampling, from intensities alone.

Both ask for intensities at offsets from now, of many histories at once. The density of a wait τ is
f(τ) = λ(τ) exp(-Λ(τ)), and a type given the wait has probability λ_k(τ) / λ(τ).

Source of the sampler: Lewis and Shedler (1979), "Simulation of nonhomogeneous Poisson processes by thinning",
with a bound that is piecewise constant, as in Ogata (1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from streamwise.agents.neural_tpp import IntensityModel, Sequences, block_shape

__all__ = ["Draws", "NextEvents", "before_every_event", "next_events", "thin"]

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
    grid: int = 64,
) -> NextEvents:
    """Predict by quadrature on a geometric grid of offsets up to `longest` seconds; nothing is drawn.

    Intensities are asked for at the ends and in the middle of each of `grid` cells, and are a parabola in
    it. The mean adds what is beyond the longest wait as if the intensity stayed what it is there.
    """
    ends = torch.cat([torch.zeros(1), _geometric(longest, grid)]).double()
    offsets = torch.stack([ends[:-1], 0.5 * (ends[1:] + ends[:-1])], 1).flatten()  # a cell is two halves
    offsets = torch.cat([offsets, ends[-1:]])
    widths = offsets.diff()
    found = rates(offsets[None])  # [histories, 2 grid + 1, types]
    total = found.sum(2).double()
    left, middle, right = total[:, :-1:2], total[:, 1::2], total[:, 2::2]
    # Simpson's rule in a cell, and the integral of the same parabola over its first half.
    whole = (left + 4.0 * middle + right) / 3.0
    first = ((5.0 * left + 8.0 * middle - right) / 12.0).clamp(min=torch.zeros(()), max=whole)
    rise = torch.stack([first, whole - first], 2).flatten(1) * widths
    compensator = nn.functional.pad(rise.cumsum(1), (1, 0))
    survival = torch.exp(-compensator)
    flat = torch.where(rise > 1e-12, -torch.expm1(-rise) / rise.clamp(min=1e-300), 1.0)
    mean = (survival[:, :-1] * flat * widths).sum(1) + survival[:, -1] / total[:, -1].clamp(min=1e-300)

    wanted = -torch.log1p(-torch.tensor(quantiles, dtype=torch.float64)).expand(len(total), -1).contiguous()
    half = torch.searchsorted(compensator, wanted).clamp(1, 2 * grid)
    below, above = total.gather(1, half - 1), total.gather(1, half)
    share = (wanted - compensator.gather(1, half - 1)) / rise.gather(1, half - 1).clamp(min=1e-300)
    # Of the half that it takes, if the intensity is a line there: the root of a quadratic.
    root = (below**2 + share * (above**2 - below**2)).clamp(min=0.0).sqrt()
    waits = offsets[half - 1] + share * (below + above) / (below + root).clamp(min=1e-300) * widths[half - 1]
    waits = torch.where(wanted > compensator[:, -1:], math.inf, waits)

    # What falls into a cell is of the types that its middle says.
    falls = torch.cat([survival[:, :-1:2] - survival[:, 2::2], survival[:, -1:]], 1)
    at = torch.cat([found[:, 1::2], found[:, -1:]], 1)
    weights = falls / at.sum(2).double().clamp(min=1e-300)
    types = (weights[:, None].to(at.dtype) @ at)[:, 0].double()
    return NextEvents(mean, waits, types, compensator[:, -1] >= _NOT_EXPECTED)


@torch.no_grad()
def before_every_event(
    model: IntensityModel,
    sequences: Sequences,
    longest: float,
    *,
    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    grid: int = 64,
    block: int = 16384,
) -> NextEvents:
    """Predict every event of some sequences, right after the event before it or the start.

    Results are [sequences, events, ...]; those of pads mean nothing. block: times that are asked about at
    once. Otherwise as `next_events`.
    """
    events = sequences.times.shape[1]
    rows, together = block_shape(events, 2 * grid + 1, block)
    predicted = []
    for part in sequences.split(rows):
        memory = model.remember(part)
        visible = torch.minimum(torch.arange(events), part.lengths[:, None])
        now = torch.cat([part.start[:, None], part.times], 1).gather(1, visible)
        blocks = []
        for seen, since in zip(torch.split(visible, together, 1), torch.split(now, together, 1), strict=True):

            def rates(
                offsets: Tensor, seen: Tensor = seen, since: Tensor = since, memory: Any = memory
            ) -> Tensor:
                return model.intensities(memory, since[..., None] + offsets[0], seen).flatten(0, 1)

            found = next_events(rates, longest, quantiles=quantiles, grid=grid)
            blocks.append([of.view(*seen.shape, *of.shape[1:]) for of in found])
        predicted.append([torch.cat(of, 1) for of in zip(*blocks, strict=True)])
    return NextEvents(*(torch.cat(of) for of in zip(*predicted, strict=True)))


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
    ends, bound, until = _bound(rates, longest, histories, cells)
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


def _bound(rates: Rates, longest: float, histories: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bound the intensity from looks at both ends of each cell and at its middle.

    Returns the ends of the cells [cells + 1], the bounds [histories, cells], and their integrals to each end
    [histories, cells + 1].
    """
    ends = torch.cat([torch.zeros(1), _geometric(longest, cells)]).double()
    looked_at = torch.cat([ends, 0.5 * (ends[1:] + ends[:-1])])[None].expand(histories, -1)
    found = rates(looked_at).double().sum(2)
    of_cells = torch.stack([found[:, :cells], found[:, 1 : cells + 1], found[:, cells + 1 :]]).amax(0)
    bound = _SAFETY * of_cells.clamp(min=1e-300)
    return ends, bound, torch.cat([torch.zeros(histories, 1), (bound * ends.diff()).cumsum(1)], 1)


def _geometric(longest: float, cells: int) -> Tensor:
    return torch.logspace(math.log10(longest * _FINEST), math.log10(longest), cells, dtype=torch.float64)
