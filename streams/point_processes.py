"""Point processes whose truth is known: Hawkes, Poisson, renewal, and Hawkes whose parameters drift."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from operator import add, mul
from statistics import NormalDist
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamwise.streams.errors import UsageError

__all__ = [
    "DEFAULT_START",
    "DEFAULT_TIME_SCALES",
    "SHAPES",
    "DriftProcess",
    "GammaGaps",
    "HawkesProcess",
    "LogNormalGaps",
    "Process",
    "RenewalProcess",
    "State",
    "Uniforms",
    "log_likelihood",
    "residuals",
]

DEFAULT_START = 1_600_000_000.0  # a day in September 2020
DEFAULT_TIME_SCALES = (60.0, 3_600.0, 86_400.0)  # seconds

SHAPES = ("abrupt", "gradual", "recurring")
_TINY = 2.0**-54  # instead of a uniform number that is 0, where a logarithm or quantile would be infinite

Array = NDArray[np.float64]
Uniforms = Iterator[tuple[float, float]]  # pairs of independent numbers in [0, 1)
State = list[float]  # all that a process remembers of one key; its length never changes


class Process(Protocol):
    """What `SyntheticSource` asks of a process, a frozen dataclass of the parameters: the law of one key."""

    @property
    def types(self) -> int:
        """How many types of events there are."""
        ...

    def first_state(self) -> State:
        """Return the state of a key without events."""
        ...

    def next_event(self, time: float, state: State, uniforms: Uniforms) -> tuple[float, int, State]:
        """Return the time and type of the event after `time`, and the state just after it.

        time: seconds, of the key's last event or of the start; state: as it was just after that.
        """
        ...

    def features(self, state: State) -> dict[str, Any] | None:
        """Return what is known of the event that left this state, besides its time and type."""
        ...


@dataclass(frozen=True, eq=False, init=False)
class HawkesProcess:
    """A multivariate Hawkes process with a sum of exponential kernels; Poisson without time scales.

    base: float64 [types], events per second. excitation: float64 [scales, source types, target types], the
    expected number of children of each target type that one event of the source type has on that scale.
    time_scales: float64 [scales], seconds. The intensity of type k is

        base[k] + sum over earlier events i and scales m of
            excitation[m, type_i, k] * exp(-(t - t_i) / time_scales[m]) / time_scales[m].

    The state of a key, [scales, types], holds the excited part of it by scale just after the last event. It
    decays by itself, and all else follows from it. Raises UsageError for shapes that do not fit and for
    values that are negative or not finite.
    Source: Hawkes (1971), Spectra of some self-exciting and mutually exciting point processes.

    >>> process = HawkesProcess([0.5], [[[0.8 / 1.5]]], [1 / 1.5])
    >>> round(log_likelihood(process, [0.5, 1.2, 1.3, 3.0], [0, 0, 0, 0], end=4.0), 6)
    -5.032636
    """

    base: Array
    excitation: Array
    time_scales: Array

    def __init__(self, base: ArrayLike, excitation: ArrayLike, time_scales: ArrayLike) -> None:
        for name, values in (("base", base), ("excitation", excitation), ("time_scales", time_scales)):
            array = np.array(values, dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
            if not np.isfinite(array).all() or (array < 0.0).any():
                raise UsageError(
                    f"{name} of a Hawkes process holds {array.min()}; use finite values from 0 up."
                )
        shape = (*self.time_scales.shape, *self.base.shape, *self.base.shape)
        if self.base.ndim != 1 or self.time_scales.ndim != 1 or self.excitation.shape != shape:
            raise UsageError(
                f"base {self.base.shape}, excitation {self.excitation.shape} and time_scales "
                f"{self.time_scales.shape} do not fit; use [types], [scales, types, types] and [scales]."
            )
        if not self.base.any() or not self.time_scales.all():
            raise UsageError("a Hawkes process needs a base above 0 and time scales above 0.")

    @classmethod
    def poisson(cls, rates: ArrayLike) -> HawkesProcess:
        """Return the homogeneous Poisson process with these rates: [types], events per second."""
        types = np.size(np.asarray(rates))
        return cls(rates, np.zeros((0, types, types)), np.zeros(0))

    @classmethod
    def random(
        cls,
        generator: np.random.Generator,
        types: int,
        time_scales: Sequence[float] = DEFAULT_TIME_SCALES,
        branching: float = 0.6,
        rate: float = 10.0 / 3_600.0,
    ) -> HawkesProcess:
        """Draw a process: every type excites itself and, on average, three in ten of the others.

        branching: the `branching_ratio`, in [0, 1). rate: events per second in the long run, all types
        together; the base is scaled to give it.
        """
        edges = (generator.random((types, types)) < 0.3) | np.eye(types, dtype=bool)
        children = np.where(edges, generator.exponential(size=(types, types)), 0.0)
        shares = generator.dirichlet(
            np.ones(len(time_scales)), size=(types, types)
        )  # [source, target, scales]
        excitation = np.moveaxis(shares * children[..., None], -1, 0)
        base = generator.dirichlet(np.full(types, 2.0))
        process = cls(base, excitation, time_scales)
        excitation = excitation * (branching / process.branching_ratio)
        unscaled = cls(base, excitation, time_scales).stationary_rates.sum()
        return cls(base * (rate / unscaled), excitation, time_scales)

    @property
    def types(self) -> int:
        """How many types of events there are."""
        return len(self.base)

    @property
    def branching_ratio(self) -> float:
        """Spectral radius of the expected children, over all scales; below 1 the process is stationary."""
        return float(np.abs(np.linalg.eigvals(self.excitation.sum(axis=0))).max())

    @property
    def stationary_rates(self) -> Array:
        """Events per second in the long run, [types].

        Raises UsageError if the branching ratio is 1 or more.
        """
        if self.branching_ratio >= 1.0:
            raise UsageError(
                f"the branching ratio is {self.branching_ratio:g}: every event leads to another or more, "
                "and their number explodes; scale the excitation down to below 1."
            )
        children = self.excitation.sum(axis=0)
        return np.asarray(np.linalg.solve(np.eye(self.types) - children.T, self.base), dtype=np.float64)

    def first_state(self) -> State:
        """Return the state of a key without events: zeros."""
        return [0.0] * (len(self.time_scales) * self.types)

    def intensity(self, state: ArrayLike, elapsed: float = 0.0) -> Array:
        """Return the intensities [types] `elapsed` seconds after the event that left `state`."""
        return np.asarray(self.base + np.exp(-elapsed / self.time_scales) @ self._by_scale(state))

    def compensator(self, state: ArrayLike, elapsed: float) -> Array:
        """Return the integral of `intensity` over the next `elapsed` seconds, [types]."""
        weights = -self.time_scales * np.expm1(-elapsed / self.time_scales)
        return np.asarray(self.base * elapsed + weights @ self._by_scale(state))

    def after(self, state: ArrayLike, elapsed: float, event_type: int) -> Array:
        """Return the state [scales, types] just after an event `elapsed` seconds later."""
        decays = np.exp(-elapsed / self.time_scales)[:, None]
        jumps = self.excitation[:, event_type] / self.time_scales[:, None]
        return np.asarray(decays * self._by_scale(state) + jumps)

    def next_event(self, time: float, state: State, uniforms: Uniforms) -> tuple[float, int, State]:
        """Return the time and type of the next event, and the state just after it, drawn exactly."""
        time, event_type, decayed = _thin(
            time, state, uniforms, self._scales, self._base_sum, lambda _: (self._base, self._base_sum)
        )
        return time, event_type, list(map(add, decayed, self._jumps[event_type]))

    def features(self, state: State) -> None:
        """Nothing is known besides time and type."""

    def _by_scale(self, state: ArrayLike) -> Array:
        return np.asarray(state, dtype=np.float64).reshape(len(self.time_scales), self.types)

    # Plain numbers for the inner loop, where arrays of five would cost ten times as much.

    @cached_property
    def _scales(self) -> list[float]:
        return cast(list[float], self.time_scales.tolist())

    @cached_property
    def _base(self) -> list[float]:
        return cast(list[float], self.base.tolist())

    @cached_property
    def _base_sum(self) -> float:
        return sum(self._base)

    @cached_property
    def _jumps(self) -> list[list[float]]:
        """What an event of each type adds to the state, [types][scales * types]."""
        jumps = np.moveaxis(self.excitation / self.time_scales[:, None, None], 1, 0)
        return jumps.reshape(self.types, -1).tolist()


@dataclass(frozen=True, eq=False)
class DriftProcess:
    """A Hawkes process whose parameters change with time.

    regimes: two or more processes with the same types and time scales. shape: "abrupt" goes through them one
    after the other, for a period each, and stays in the last; "gradual" spends a period in the first, then
    mixes linearly into each of the following over a period; "recurring" alternates between the first and the
    others, A-B-A-C-A-B. period: in `unit`, either "seconds" since `start` or "events" of the key itself.

    The base is that of the moment, and an event excites as the regime at its time says, for as long as its
    excitation lasts. The state is that of a Hawkes process, then the number of the key's events and the
    regime of its last. Raises UsageError for regimes that do not go together.
    """

    regimes: tuple[HawkesProcess, ...]
    shape: Literal["abrupt", "gradual", "recurring"]
    period: float
    unit: Literal["seconds", "events"] = "seconds"
    start: float = DEFAULT_START

    def __post_init__(self) -> None:
        first, *others = self.regimes
        if not others:
            raise UsageError("a drift needs two or more regimes; there is one.")
        for other in others:
            if other.types != first.types or not np.array_equal(other.time_scales, first.time_scales):
                raise UsageError(
                    "the regimes of a drift differ in types or time scales; use the same for all."
                )
        if self.shape not in SHAPES or self.unit not in ("seconds", "events") or not self.period > 0.0:
            raise UsageError(
                f"a drift of shape {self.shape!r} and period {self.period} {self.unit} is unknown; "
                f"use a shape of {', '.join(SHAPES)} and a period above 0 in seconds or events."
            )

    @property
    def types(self) -> int:
        """How many types of events there are."""
        return self.regimes[0].types

    def regime(self, time: float, events: float) -> float:
        """Return the regime in force at `time` for a key with so many events: 0 is the first.

        1.25 is three quarters of regime 1 and one quarter of regime 2.
        """
        periods = ((time - self.start) if self.unit == "seconds" else events) / self.period
        last = len(self.regimes) - 1
        if self.shape == "gradual":
            return min(max(periods - 1.0, 0.0), float(last))
        stage = int(periods)
        if self.shape == "abrupt":
            return float(min(stage, last))
        return 0.0 if stage % 2 == 0 else float(1 + stage // 2 % last)

    def first_state(self) -> State:
        """Return the state of a key without events."""
        return [*self.regimes[0].first_state(), 0.0, 0.0]

    def next_event(self, time: float, state: State, uniforms: Uniforms) -> tuple[float, int, State]:
        """Return the time and type of the next event, and the state just after it, drawn exactly."""
        *excited, events, _ = state

        def base_at(time: float) -> tuple[list[float], float]:
            base = _mixed(self._bases, self.regime(time, events))
            return base, sum(base)

        scales = self.regimes[0]._scales
        time, event_type, decayed = _thin(time, excited, uniforms, scales, self._highest_base, base_at)
        regime = self.regime(time, events)
        jumps = _mixed([process._jumps[event_type] for process in self.regimes], regime)
        return time, event_type, [*map(add, decayed, jumps), events + 1.0, regime]

    def features(self, state: State) -> dict[str, Any]:
        """Return the regime that was in force: an integer, or a fraction where the shape is gradual."""
        return {"regime": state[-1] if self.shape == "gradual" else int(state[-1])}

    @cached_property
    def _bases(self) -> list[list[float]]:
        return [process._base for process in self.regimes]

    @cached_property
    def _highest_base(self) -> float:
        return max(process._base_sum for process in self.regimes)  # no mixture of two is above both


@dataclass(frozen=True)
class LogNormalGaps:
    """Gaps whose logarithm is normal. median: seconds. sigma: standard deviation of the logarithm."""

    median: float
    sigma: float

    def quantile(self, probability: float) -> float:
        """Return the gap, in seconds, that is not exceeded with this probability, in (0, 1)."""
        return self.median * math.exp(self.sigma * NormalDist().inv_cdf(probability))


@dataclass(frozen=True)
class GammaGaps:
    """Gaps with a gamma distribution. mean: seconds. cv: standard deviation over mean; 1 is exponential."""

    mean: float
    cv: float

    def quantile(self, probability: float) -> float:
        """Return the gap, in seconds, that is not exceeded with this probability, in (0, 1)."""
        from scipy.special import gammaincinv  # half a second that other processes do not need

        shape = self.cv**-2
        return float(gammaincinv(shape, probability)) * self.mean / shape


@dataclass(frozen=True, eq=False, init=False)
class RenewalProcess:
    """Independent gaps, the first from the start, and types that follow a first-order Markov chain.

    transitions: float64 [types, types], the probability of the next type in the row of the last. The first
    type is drawn from the chain's stationary distribution. The state is the last type, [1], or -1 before the
    first. Raises UsageError for rows that are no probabilities.
    """

    gaps: LogNormalGaps | GammaGaps
    transitions: Array

    def __init__(self, gaps: LogNormalGaps | GammaGaps, transitions: ArrayLike) -> None:
        matrix = np.array(transitions, dtype=np.float64)
        matrix.setflags(write=False)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not (matrix >= 0.0).all():
            raise UsageError("the transitions of a renewal process are no square of probabilities from 0 up.")
        if not np.allclose(matrix.sum(axis=1), 1.0):
            raise UsageError("the transitions of a renewal process have a row that does not sum to 1.")
        object.__setattr__(self, "gaps", gaps)
        object.__setattr__(self, "transitions", matrix)

    @property
    def types(self) -> int:
        """How many types of events there are."""
        return len(self.transitions)

    @property
    def stationary_types(self) -> Array:
        """The share of each type in the long run, [types]."""
        equations = np.vstack([self.transitions.T - np.eye(self.types), np.ones(self.types)])
        shares = np.linalg.lstsq(equations, np.append(np.zeros(self.types), 1.0), rcond=None)[0]
        return np.asarray(np.clip(shares, 0.0, None), dtype=np.float64)

    def first_state(self) -> State:
        """Return the state of a key without events."""
        return [-1.0]

    def next_event(self, time: float, state: State, uniforms: Uniforms) -> tuple[float, int, State]:
        """Return the time and type of the next event, and the state just after it."""
        wait, mark = next(uniforms)
        event_type = min(bisect_right(self._cumulative[int(state[0])], mark), self.types - 1)
        return time + self.gaps.quantile(wait or _TINY), event_type, [float(event_type)]

    def features(self, state: State) -> None:
        """Nothing is known besides time and type."""

    @cached_property
    def _cumulative(self) -> list[list[float]]:
        # The row before the first event comes last, so that its index is -1 as the state says.
        rows = np.vstack([self.transitions, self.stationary_types])
        return cast(list[list[float]], np.cumsum(rows, axis=1).tolist())


def log_likelihood(
    process: HawkesProcess, times: ArrayLike, types: ArrayLike, end: float, start: float = 0.0
) -> float:
    """Return the log-likelihood of one key's events on (start, end], term by term from the definition.

    times: float64 [events], ascending seconds. types: integer [events]. It takes time and memory quadratic in
    the events and shares nothing with the recursions, so that it can check them.
    """
    times, types = np.asarray(times, dtype=np.float64), np.asarray(types, dtype=np.int64)
    scales = process.time_scales
    logarithms = 0.0
    compensator = process.base.sum() * (end - start)
    for i, (moment, event_type) in enumerate(zip(times, types, strict=True)):
        ages = moment - times[:i]
        kernels = np.exp(-ages / scales[:, None]) / scales[:, None]  # [scales, i]
        excited = (process.excitation[:, types[:i], event_type] * kernels).sum()
        intensity = process.base[event_type] + excited
        logarithms += math.log(intensity) if intensity > 0.0 else -math.inf
        children = process.excitation[:, event_type].sum(axis=1)  # [scales]
        compensator += (children * (1.0 - np.exp(-(end - moment) / scales))).sum()
    return float(logarithms - compensator)


def residuals(process: HawkesProcess, times: ArrayLike, types: ArrayLike, start: float = 0.0) -> Array:
    """Return the compensator of all types between successive events of one key, [events].

    times: float64 [events], ascending seconds. types: integer [events]. Under the true process these are
    independent and exponential with mean 1 (the time-rescaling theorem).
    Source: Brown, Barbieri, Ventura, Kass and Frank (2002), doi:10.1162/08997660252741149.
    """
    state: ArrayLike = process.first_state()
    increments = []
    for moment, event_type in zip(np.asarray(times).tolist(), np.asarray(types).tolist(), strict=True):
        elapsed = moment - start
        increments.append(process.compensator(state, elapsed).sum())
        state, start = process.after(state, elapsed, event_type), moment
    return np.array(increments, dtype=np.float64)


def _thin(
    time: float,
    state: State,
    uniforms: Uniforms,
    scales: list[float],
    base_bound: float,
    base_at: Callable[[float], tuple[list[float], float]],
) -> tuple[float, int, State]:
    """Return the time and type of the next event of a Hawkes process, and the state decayed until then.

    state: [scales * types], at `time`. base_at: the base [types] at a time, and its sum, which is never above
    base_bound. Between events the excitation only decays, so the bound on the intensity is its value at the
    last candidate, and every candidate that is refused lowers it.
    Source: Ogata (1981), On Lewis' simulation method for point processes, doi:10.1109/TIT.1981.1056305.
    """
    types = len(state) // len(scales) if scales else 0
    rows = [state[i : i + types] for i in range(0, len(state), types or 1)]
    excited = [sum(row) for row in rows]
    bound = base_bound + sum(excited)
    elapsed = 0.0
    for wait, mark in uniforms:
        elapsed -= math.log1p(-wait) / bound
        decays = [math.exp(-elapsed / scale) for scale in scales]
        base, base_sum = base_at(time + elapsed)
        remaining = sum(map(mul, excited, decays))
        level = mark * bound
        if level < base_sum + remaining:
            break
        bound = base_bound + remaining
    rows = [[decay * value for value in row] for row, decay in zip(rows, decays, strict=True)]
    # Given that there is an event, the level is uniform below the intensity: it also picks the type.
    intensities = map(sum, zip(base, *rows, strict=True))
    event_type = min(bisect_right(list(accumulate(intensities)), level), len(base) - 1)
    return time + elapsed, event_type, list(chain.from_iterable(rows))


def _mixed(rows: Sequence[list[float]], at: float) -> list[float]:
    """Interpolate linearly between rows at a fractional index."""
    lower = int(at)
    share = at - lower
    if share == 0.0:
        return rows[lower]
    return [(1.0 - share) * a + share * b for a, b in zip(rows[lower], rows[lower + 1], strict=True)]
