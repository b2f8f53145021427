"""The likelihood of marked event sequences under any intensity, by quadrature, in batches.

    log L = Σ_i [ log λ_{k_i}(t_i) - Λ_i ] - Λ_tail,    Λ_i = ∫ λ from t_{i-1} to t_i,  t_0 = start

The intensity at t_i is a left limit: event i is not part of its own history. The first interval, from
`start`, and the tail, to `end`, are charged. Times stay in float64 until they are differences.

Source: Daley and Vere-Jones (2003), "An introduction to the theory of point processes", chapter 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "IntensityHead",
    "IntensityModel",
    "LogLikelihood",
    "Nodes",
    "Sequences",
    "block_shape",
    "gauss_legendre",
    "log_likelihood",
    "log_spaced",
    "stratified",
    "uniform",
]

_LINEAR_ABOVE = 20.0  # where softplus is its argument, to the last bit of a float
_FLOOR = 1e-9  # of an intensity, before its logarithm


@dataclass(frozen=True)
class Sequences:
    """Sequences of one key each, padded on the right.

    times: float64 [sequences, events], in the order of the events; types: int64 of the same shape; what pads
    hold is not looked at. lengths: int64 [sequences]. start, end: float64 [sequences], between which the
    sequence was observed.
    """

    times: Tensor
    types: Tensor
    lengths: Tensor
    start: Tensor
    end: Tensor

    @property
    def mask(self) -> Tensor:
        """Which entries are events, bool [sequences, events]."""
        return torch.arange(self.times.shape[1]) < self.lengths[:, None]

    def split(self, count: int) -> list[Sequences]:
        """Return parts of at most `count` sequences, padded as here."""
        tensors = (self.times, self.types, self.lengths, self.start, self.end)
        return [Sequences(*part) for part in zip(*(torch.split(of, count) for of in tensors), strict=True)]

    def take(self, rows: Tensor) -> Sequences:
        """Return some of the sequences, padded to the longest of them. rows: int64 [taken]."""
        lengths = self.lengths[rows]
        longest = int(lengths.max()) if len(rows) else 0
        of = self.times[rows, :longest], self.types[rows, :longest]
        return Sequences(*of, lengths, self.start[rows], self.end[rows])

    @classmethod
    def of(cls, sequences: list[tuple[Any, Any]], start: Any, end: Any) -> Sequences:
        """Pad some (times, types) to one length; start and end: a number for all, or one for each."""
        count, longest = len(sequences), max((len(times) for times, _ in sequences), default=0)
        times = torch.zeros(count, longest, dtype=torch.float64)
        types = torch.zeros(count, longest, dtype=torch.int64)
        for i, (of_times, of_types) in enumerate(sequences):
            times[i, : len(of_times)] = torch.as_tensor(of_times, dtype=torch.float64)
            types[i, : len(of_types)] = torch.as_tensor(of_types, dtype=torch.int64)
        bounds = (torch.as_tensor(bound, dtype=torch.float64).expand(count) for bound in (start, end))
        return cls(times, types, torch.tensor([len(times) for times, _ in sequences]), *bounds)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    """Return weights drawn evenly between -1 / sqrt(fan_in) and 1 / sqrt(fan_in)."""
    return nn.Parameter((torch.rand(shape, generator=generator) * 2.0 - 1.0) / math.sqrt(fan_in))


class IntensityHead(nn.Module):
    """From a state to intensities, λ_k = log(1 + exp(β_k a_k)) / β_k, a = W h + b, with a learned β_k > 0.

    unit: seconds in the unit of time in which the softplus is an intensity; the result is events a second.
    """

    def __init__(self, width: int, types: int, unit: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.unit = unit
        self.weight = uniform((types, width), width, generator)
        self.bias = uniform((types,), width, generator)
        self.log_sharpness = nn.Parameter(torch.zeros(types))

    def forward(self, state: Tensor) -> Tensor:
        """Return λ_k, float [..., types], of states [..., width]."""
        sharpness = self.log_sharpness.exp()
        scaled = nn.functional.linear(state, sharpness[:, None] * self.weight, sharpness * self.bias)
        return nn.functional.softplus(scaled, threshold=_LINEAR_ABOVE) * (1.0 / (self.unit * sharpness))


class IntensityModel(Protocol):
    """What `log_likelihood` needs: intensities of every type at any time, given what came before it."""

    def remember(self, sequences: Sequences) -> Any:
        """Return what the events of the sequences leave behind, before any time is asked about."""
        ...

    def intensities(self, memory: Any, times: Tensor, visible: Tensor) -> Tensor:
        """Return λ_k, float [*times.shape, types].

        times: float64 [sequences, groups], or [sequences, groups, times] where those of a group see the same
        events, which is faster. visible: int64 [sequences, groups], how many of a sequence's first events
        are before them.
        """
        ...


class Nodes(NamedTuple):
    """Where an interval is evaluated, as shares of its length, and what each value weighs; both sum to it."""

    at: Tensor  # float64 [..., nodes], in [0, 1]
    weights: Tensor  # of the same shape, summing to 1


def gauss_legendre(count: int) -> Nodes:
    """Return the rule that is exact for polynomials of degree 2 * count - 1: for scoring."""
    at, weights = np.polynomial.legendre.leggauss(count)
    return Nodes(torch.from_numpy((at + 1.0) / 2.0), torch.from_numpy(weights / 2.0))


def stratified(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Nodes:
    """Return one uniform draw in each of `count` equal parts, [*shape, count]: unbiased, for training.

    The variance of the estimate falls with the third power of `count` where the intensity is smooth.
    """
    draws = torch.rand(*shape, count, generator=generator, dtype=torch.float64)
    at = (torch.arange(count, dtype=torch.float64) + draws) / count
    return Nodes(at, torch.full_like(at, 1.0 / count))


def log_spaced(rule: Nodes, decades: int) -> Nodes:
    """Return a rule applied to [0, 10^-decades] and to each decade above it, for gaps of many magnitudes."""
    bounds = torch.cat([torch.zeros(1), 10.0 ** torch.arange(-decades, 1)]).double()
    widths = bounds.diff()
    at = bounds[:-1, None] + widths[:, None] * rule.at[..., None, :]
    weights = widths[:, None] * rule.weights[..., None, :]
    return Nodes(at.flatten(-2), weights.flatten(-2))


class LogLikelihood(NamedTuple):
    """The parts of a log-likelihood, in nats; entries of pads are zero.

    time: float [sequences, events], log λ(t_i) - Λ_i. type: of the same shape, log(λ_{k_i}(t_i) / λ(t_i)).
    compensator: of the same shape, Λ_i. tail: float [sequences]. floored: how many intensities were raised to
    the floor before their logarithm was taken.
    """

    time: Tensor
    type: Tensor
    compensator: Tensor
    tail: Tensor
    floored: int

    @property
    def total(self) -> Tensor:
        """The log-likelihood of each sequence, float [sequences]."""
        return (self.time + self.type).sum(1) - self.tail


def block_shape(longest: int, times: int, block: int) -> tuple[int, int]:
    """Return how many sequences, and how many of the groups of each, make a block.

    longest: groups of a sequence. times: of a group. block: times that are asked about at once; it bounds
    what a step needs of memory.
    """
    groups = max(min(longest, block // times), 1)
    return max(block // (times * groups), 1), groups


def log_likelihood(
    model: IntensityModel, sequences: Sequences, nodes: Nodes, *, block: int = 8192
) -> LogLikelihood:
    """Return the log-likelihood of some sequences, its compensators by quadrature.

    nodes: [nodes] for all intervals, or [sequences, events + 1, nodes] with the tail's last. block: times
    that are asked about at once, see `block_shape`. Sequences of about one length share a block, so that
    few of the times are those of pads.
    """
    count, longest = sequences.times.shape
    at, weights = (of.expand(count, longest + 1, -1) for of in nodes)
    rows, intervals = block_shape(longest + 1, at.shape[2] + 1, block)
    order = sequences.lengths.argsort(descending=True, stable=True)
    parts = []
    for of_part in torch.split(order, rows):
        part = sequences.take(of_part)
        within = slice(part.times.shape[1] + 1)
        parts.append(
            _log_likelihood(model, part, Nodes(at[of_part, within], weights[of_part, within]), intervals)
        )
    back = order.argsort()
    time, types, compensator = (
        torch.cat([nn.functional.pad(of, (0, longest - of.shape[1])) for of in each])[back]
        for each in zip(*(part[:3] for part in parts), strict=True)
    )
    tail = torch.cat([part.tail for part in parts])[back]
    return LogLikelihood(time, types, compensator, tail, sum(part.floored for part in parts))


def _log_likelihood(
    model: IntensityModel, sequences: Sequences, nodes: Nodes, intervals: int
) -> LogLikelihood:
    """Return the log-likelihood of sequences that are remembered at once, asking some intervals at a time."""
    memory = model.remember(sequences)
    times, mask, lengths = sequences.times, sequences.mask, sequences.lengths
    longest, start = times.shape[1], sequences.start[:, None]
    # Interval i ends with event i and sees the i events before; the last one is the tail; others are empty,
    # and see nothing, which takes the least time.
    index = torch.arange(longest + 1)
    ends = torch.where(mask, times, start)
    begin = torch.cat([start, ends], 1)
    finish = torch.where(index == lengths[:, None], sequences.end[:, None], nn.functional.pad(ends, (0, 1)))
    length = torch.where(index <= lengths[:, None], finish - begin, 0.0)
    # The end of an interval is asked about with its nodes: it sees as many events.
    asked = torch.cat([begin[..., None] + nodes.at * length[..., None], finish[..., None]], 2)
    visible = torch.where(index <= lengths[:, None], index, 0)
    blocks = zip(torch.split(asked, intervals, 1), torch.split(visible, intervals, 1), strict=True)
    rates = torch.cat([model.intensities(memory, *block) for block in blocks], 1)
    at_nodes, at_ends = torch.split(rates, [nodes.at.shape[2], 1], 2)
    at_events = at_ends[:, :longest, 0]
    compensators = (at_nodes.sum(3) * nodes.weights.to(rates.dtype)).sum(2) * length.to(rates.dtype)

    total = at_events.sum(2)
    own = at_events.gather(2, torch.where(mask, sequences.types, 0)[..., None])[..., 0]
    floored = int(((own < _FLOOR) & mask).sum() + ((total < _FLOOR) & mask).sum())
    log_total, log_own = total.clamp(min=_FLOOR).log(), own.clamp(min=_FLOOR).log()
    zero = torch.zeros((), dtype=rates.dtype)
    events = compensators[:, :longest]
    return LogLikelihood(
        time=torch.where(mask, log_total - events, zero),
        type=torch.where(mask, log_own - log_total, zero),
        compensator=torch.where(mask, events, zero),
        tail=compensators.gather(1, lengths[:, None])[:, 0],
        floored=floored,
    )
