"""Events from processes whose truth is known: Hawkes, Poisson, renewal, and Hawkes whose parameters drift."""

from __future__ import annotations

import base64
import difflib
import hashlib
import heapq
import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, chain
from operator import add, mul
from statistics import NormalDist
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamwise.streams.errors import UsageError
from streamwise.streams.event import LAST_TIME, Decoded, Records

__all__ = [
    "DriftProcess",
    "GammaGaps",
    "HawkesProcess",
    "LogNormalGaps",
    "Process",
    "RenewalProcess",
    "SyntheticSource",
    "log_likelihood",
    "residuals",
]

DEFAULT_START = 1_600_000_000.0  # a day in September 2020
DEFAULT_TIME_SCALES = (60.0, 3_600.0, 86_400.0)  # seconds

PARTITION = "synthetic"
SHAPES = ("abrupt", "gradual", "recurring")
_SNAPSHOT_EVENTS = 4_096  # between two copies of the state; a seek draws up to so many events again
_PAIRS_AHEAD = 2**18  # of random numbers, drawn at once over all keys
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


class SyntheticSource:
    """A `Source` of events drawn from a process, for many keys side by side, in order of time.

    truth: the process that every key follows, independently of the others. keys: how many; they are named
    "0", "1" and so on, and so are the types. events: how many in all; 0 goes on for ever. seed: of the draws,
    in [0, 2^64). start: seconds, when every key begins without a past. speed: seconds of event time per
    second of the clock, counted from the first poll, when the next event is due at once; None does not wait.
    clock, sleep: as time.monotonic and time.sleep.

    The events of a key depend on the process, the seed and the key's number only, not on how many other keys
    there are; each takes about 1 kB of memory. A position holds a copy of the state of all keys and how many
    events to draw again from there: fewer than 4,096, or than the number of keys if that is more. `seek` goes
    on bit for bit, and raises UsageError for a position of another process, seed, start or number of keys;
    `events` and `speed` may differ.

    >>> source = SyntheticSource(HawkesProcess.poisson([0.3, 0.7]), keys=1, events=3, seed=1, start=0.0)
    >>> [records] = source.poll(10, timeout=0.0, paused=set())
    >>> [(round(time, 2), type, key) for time, type, key, _ in records.values]
    [(0.36, '1', '0'), (0.53, '0', '0'), (2.84, '0', '0')]
    """

    def __init__(
        self,
        truth: Process,
        *,
        keys: int = 100,
        events: int = 100_000,
        seed: int = 0,
        start: float = DEFAULT_START,
        speed: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if isinstance(truth, DriftProcess) and truth.start != start:
            raise UsageError(
                f"the drift starts at {truth.start}, the source at {start}; use the same for both."
            )
        for process in truth.regimes if isinstance(truth, DriftProcess) else [truth]:
            if isinstance(process, HawkesProcess):
                _ = process.stationary_rates  # which an explosive one does not have
        self.truth = truth
        self.keys, self.events, self.seed, self.start, self.speed = keys, events, seed, start, speed
        self.name = PARTITION
        self.partitions: Sequence[str] = (PARTITION,)
        self.finished = False
        self._clock, self._sleep = clock, sleep
        self._pace: tuple[float, float] | None = None  # a time of the clock, and the event time it stands for
        self._due = math.inf  # the event time that has come, when last looked
        self._identity = _digest([truth.__class__.__name__, asdict(cast(Any, truth)), keys, seed, start])
        self._names = [str(key) for key in range(keys)]
        self._type_names = [str(event_type) for event_type in range(truth.types)]
        self._uniforms = [_Uniforms(seed, key, keys) for key in range(keys)]
        self._states: list[State] = []
        self._next: list[tuple[float, int, int]] = []  # a heap: time, key and type of each key's next event
        self._emitted = 0
        for key in range(keys):
            moment, event_type, state = truth.next_event(start, truth.first_state(), self._uniforms[key])
            self._states.append(state)
            self._next.append((moment, key, event_type))
        heapq.heapify(self._next)
        self._snapshot = self._copy()
        self._finish()

    @classmethod
    def from_url_parts(cls, kind: str, query: dict[str, str]) -> SyntheticSource:
        """Return the source that `synthetic:KIND?NAME=VALUE&...` describes.

        All kinds take events (100000), keys (100), seed (0), start (1600000000) and speed, as the class does.
        hawkes: types (5), rate (10 events of a key per hour in the long run), branching (0.6) and scales
            (60,3600,86400 seconds) of a random process of the seed.
        poisson: types and rate, which random shares divide, or rates of each type, events of a key per hour.
        renewal: types; gaps=lognormal with median (600 seconds) and sigma (1), or gaps=gamma with mean (600
            seconds) and cv (1), the standard deviation over the mean; a random Markov chain of types.
        drift: as hawkes, with regimes (2; 3 if recurring) whose rates are up to twice or half the first's;
            shape=abrupt (the default), gradual or recurring; period (86400 seconds, or such as 500events
            of each key).
        Raises UsageError for another kind or name, and for values that make no sense.
        """
        if kind not in _KINDS:
            raise UsageError(
                f"there is no synthetic process {kind!r}.{_hint(kind, _KINDS)} "
                f"Choose one of: {', '.join(_KINDS)}."
            )
        given = _Query(kind, query)
        events = given.integer("events", 100_000, 0, 2**53)
        keys = given.integer("keys", 100, 1, 1_000_000)
        seed = given.integer("seed", 0, 0, 2**64 - 1)
        start = given.number("start", DEFAULT_START, 0.0, LAST_TIME)
        speed = given.optional("speed", 1e-6, 1e9)
        truth = _KINDS[kind](given, seed, start)
        given.finish()
        source = cls(truth, keys=keys, events=events, seed=seed, start=start, speed=speed)
        source.name = f"{PARTITION}:{kind}"
        return source

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return up to `limit` events; without a speed never wait, with one wait until the next is due."""
        if self.finished or limit < 1 or PARTITION in paused:
            return []
        if self.speed is not None:
            self._due = self._wait(timeout, self.speed)
        first = self._emitted
        values = self._take(limit, self._due)
        if not values:
            return []
        positions = range(first, self._emitted)
        return [Records(PARTITION, values, positions, self._position(), self._clock())]

    def decode(self, records: Records) -> Decoded:
        """Turn (time, type, key, features) by event into columns."""
        values = records.values
        features = [value[3] for value in values]
        return Decoded(
            which=range(len(values)),
            times=[value[0] for value in values],
            types=[value[1] for value in values],
            keys=[value[2] for value in values],
            features=features if any(features) else None,
            refused=[],
        )

    def at_end(self, partition: str) -> bool:
        """Whether the next event is not due yet, or there is none."""
        return self.finished or self._next[0][0] > self._due

    def seek(self, positions: dict[str, Any]) -> None:
        """Go on from the position of the one partition, if it is there."""
        position = positions.get(PARTITION)
        if position is None:
            return
        if position.get("source") != self._identity:
            raise UsageError(
                f"the position belongs to another {self.name}; open it with the parameters, keys, seed and "
                "start that it was saved with."
            )
        self._restore(position)
        self._take(position["again"], math.inf)

    def commit(self, positions: dict[str, Any]) -> None:
        """Nothing: nobody else wants to know."""

    def lag(self) -> int | None:
        """Return how many events are left; with a speed, or without an end, only 0 is ever known."""
        if self.at_end(PARTITION):
            return 0
        return self.events - self._emitted if self.events and self.speed is None else None

    def close(self) -> None:
        """Nothing is held."""

    def _take(self, limit: int, until: float) -> list[tuple[float, str, str, dict[str, Any] | None]]:
        """Draw the next events, up to `limit` of them and not after the time `until`."""
        upcoming, states, uniforms, truth = self._next, self._states, self._uniforms, self.truth
        names, type_names = self._names, self._type_names
        until = min(until, LAST_TIME)
        if self.events:
            limit = min(limit, self.events - self._emitted)
        values = []
        for _ in range(limit):
            moment, key, event_type = upcoming[0]
            if moment > until:
                break
            state = states[key]
            values.append((moment, type_names[event_type], names[key], truth.features(state)))
            following, event_type, states[key] = truth.next_event(moment, state, uniforms[key])
            heapq.heapreplace(upcoming, (following, key, event_type))
        self._emitted += len(values)
        self._finish()
        return values

    def _finish(self) -> None:
        """See whether that was all."""
        self.finished = 0 < self.events <= self._emitted or self._next[0][0] > LAST_TIME

    def _wait(self, timeout: float, speed: float) -> float:
        """Wait for the next event, up to `timeout` seconds, and return the event time that it is then."""
        following = self._next[0][0]
        if self._pace is None:
            self._pace = self._clock(), following
        wall, moment = self._pace
        wait = (following - moment) / speed - (self._clock() - wall)
        if wait > 0.0:
            self._sleep(min(wait, timeout))
        return moment + (self._clock() - wall) * speed

    def _position(self) -> dict[str, Any]:
        """Return where the next event comes from: a copy of the state not long ago, and the events since."""
        if self._emitted - self._snapshot["events"] >= max(_SNAPSHOT_EVENTS, self.keys):
            self._snapshot = self._copy()
        return {**self._snapshot, "again": self._emitted - self._snapshot["events"]}

    def _copy(self) -> dict[str, Any]:
        """Return the state of all keys as JSON; floats as the bytes that they are."""
        upcoming = sorted(self._next, key=lambda entry: entry[1])
        floats = [[moment, *state] for (moment, _, _), state in zip(upcoming, self._states, strict=True)]
        integers = [
            [event_type, pairs.used]
            for (_, _, event_type), pairs in zip(upcoming, self._uniforms, strict=True)
        ]
        return {
            "source": self._identity,
            "events": self._emitted,
            "floats": base64.b64encode(np.array(floats, dtype="<f8").tobytes()).decode(),
            "integers": base64.b64encode(np.array(integers, dtype="<i8").tobytes()).decode(),
        }

    def _restore(self, position: dict[str, Any]) -> None:
        """Undo `_copy`."""
        floats = np.frombuffer(base64.b64decode(position["floats"]), dtype="<f8").reshape(self.keys, -1)
        integers = np.frombuffer(base64.b64decode(position["integers"]), dtype="<i8").reshape(self.keys, 2)
        self._states = floats[:, 1:].tolist()
        self._next = list(zip(floats[:, 0].tolist(), range(self.keys), integers[:, 0].tolist(), strict=True))
        heapq.heapify(self._next)
        for pairs, used in zip(self._uniforms, integers[:, 1].tolist(), strict=True):
            pairs.go_to(used)
        self._emitted = position["events"]
        self._snapshot = {name: value for name, value in position.items() if name != "again"}


class _Uniforms:
    """Pairs of uniform numbers of one key, counted, so that any of them can be drawn again.

    Pair n holds numbers 2n and 2n + 1 of the Philox generator whose key is (seed, key). How many are drawn
    ahead does not change them. Source: Salmon, Moraes, Dror and Shaw (2011), doi:10.1145/2063384.2063405.
    """

    __slots__ = ("_ahead", "_key", "_pairs", "_start")

    def __init__(self, seed: int, key: int, keys: int) -> None:
        self._key = seed + (key << 64)
        self._pairs = min(max(_PAIRS_AHEAD // keys, 2), 128) & ~1  # even: Philox makes two pairs at a time
        self.go_to(0)

    @property
    def used(self) -> int:
        return self._start - len(self._ahead)

    def go_to(self, used: int) -> None:
        self._start = used & ~1
        self._ahead: list[tuple[float, float]] = []  # last first
        if used % 2:
            next(self)

    def __iter__(self) -> _Uniforms:
        return self

    def __next__(self) -> tuple[float, float]:
        if not self._ahead:
            philox = np.random.Philox(key=self._key, counter=self._start // 2)
            numbers = np.random.Generator(philox).random(2 * self._pairs).tolist()
            self._ahead = list(zip(numbers[-2::-2], numbers[::-2], strict=True))
            self._start += self._pairs
        return self._ahead.pop()


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


class _Query:
    """The parameters of a URL; which of them are asked for depends on the process."""

    def __init__(self, kind: str, query: dict[str, str]) -> None:
        self._where = f"{PARTITION}:{kind}"
        self._query = query
        self._asked: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._query

    def text(self, name: str, default: str = "") -> str:
        self._asked.append(name)
        return self._query.get(name, default)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.text(name, str(default))
        if not text.isdecimal() or not low <= int(text) <= high:
            raise self.fault(name, f"an integer from {low} to {high}")
        return int(text)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        return self._checked(name, self.text(name, repr(default)), low, high)

    def optional(self, name: str, low: float, high: float) -> float | None:
        text = self.text(name)
        return self._checked(name, text, low, high) if name in self else None

    def numbers(self, name: str, default: Sequence[float], low: float, high: float) -> list[float]:
        text = self.text(name, ",".join(map(repr, default)))
        return [self._checked(name, part, low, high) for part in text.split(",")]

    def choice(self, name: str, choices: Sequence[str]) -> str:
        text = self.text(name, choices[0])
        if text not in choices:
            raise self.fault(name, f"one of: {', '.join(choices)}", _hint(text, choices))
        return text

    def period(self) -> tuple[float, Literal["seconds", "events"]]:
        text = self.text("period", "86400")
        amount = text.removesuffix("events")
        period = self._checked("period", amount, 1e-3, 1e12, ", of seconds, or followed by events")
        return period, "seconds" if amount == text else "events"

    def finish(self) -> None:
        """Raise UsageError for the first parameter that nobody asked for."""
        for name in self._query:
            if name not in self._asked:
                raise UsageError(
                    f"{self._where} does not take {name!r} here.{_hint(name, self._asked)} "
                    f"Choose from: {', '.join(self._asked)}."
                )

    def _checked(self, name: str, text: str, low: float, high: float, more: str = "") -> float:
        try:
            number = (
                math.nan if "_" in text else float(text)
            )  # Python reads 1_000 as a number; nobody else does
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise self.fault(name, f"a number from {low:g} to {high:g}{more}")
        return number

    def fault(self, name: str, wanted: str, hint: str = "") -> UsageError:
        return UsageError(f"{name} of {self._where} is {self._query[name]!r}; use {wanted}.{hint}")


def _hawkes(given: _Query, seed: int, start: float) -> HawkesProcess:
    return _random_hawkes(given)(np.random.default_rng(seed), 1.0)


def _poisson(given: _Query, seed: int, start: float) -> HawkesProcess:
    if "rates" in given:
        rates = np.array(given.numbers("rates", (), 0.0, _HIGHEST_RATE)) / 3_600.0
        if not rates.any():
            raise given.fault("rates", "a rate above 0 for one type or more")
        return HawkesProcess.poisson(rates)
    types, rate = _types(given), _rate(given)
    given.text("rates")
    return HawkesProcess.poisson(rate * np.random.default_rng(seed).dirichlet(np.full(types, 2.0)))


def _renewal(given: _Query, seed: int, start: float) -> RenewalProcess:
    types = _types(given)
    gaps: LogNormalGaps | GammaGaps
    if given.choice("gaps", ("lognormal", "gamma")) == "lognormal":
        gaps = LogNormalGaps(given.number("median", 600.0, 1e-3, 1e9), given.number("sigma", 1.0, 0.0, 5.0))
    else:
        gaps = GammaGaps(given.number("mean", 600.0, 1e-3, 1e9), given.number("cv", 1.0, 0.05, 5.0))
    return RenewalProcess(gaps, np.random.default_rng(seed).dirichlet(np.full(types, 0.5), size=types))


def _drift(given: _Query, seed: int, start: float) -> DriftProcess:
    shape = cast(Literal["abrupt", "gradual", "recurring"], given.choice("shape", SHAPES))
    count = given.integer("regimes", 3 if shape == "recurring" else 2, 2, 100)
    period, unit = given.period()
    draw = _random_hawkes(given)
    generators = [np.random.default_rng([seed, index]) for index in range(count)]
    # The first has the rate asked for; the others differ from it, up to twice as high or low.
    factors = [1.0, *(2.0 ** generator.uniform(-1.0, 1.0) for generator in generators[1:])]
    regimes = tuple(map(draw, generators, factors))
    return DriftProcess(regimes, shape, period, unit, start)


def _random_hawkes(given: _Query) -> Callable[[np.random.Generator, float], HawkesProcess]:
    """Return what draws a process with the parameters given, its rate times a factor."""
    types, rate = _types(given), _rate(given)
    branching = given.number("branching", 0.6, 0.0, 0.999)
    scales = given.numbers("scales", DEFAULT_TIME_SCALES, 1e-3, 1e9)
    return lambda generator, factor: HawkesProcess.random(generator, types, scales, branching, rate * factor)


def _types(given: _Query) -> int:
    return given.integer("types", 5, 1, 1_000)


def _rate(given: _Query) -> float:
    return given.number("rate", 10.0, 1e-6, _HIGHEST_RATE) / 3_600.0


_HIGHEST_RATE = (
    3_600_000.0  # events of a key per hour; more than a thousand a second come close to the clock's grain
)
_KINDS: dict[str, Callable[[_Query, int, float], Process]] = {
    "hawkes": _hawkes,
    "poisson": _poisson,
    "renewal": _renewal,
    "drift": _drift,
}


def _digest(description: Any) -> str:
    text = json.dumps(description, default=lambda array: array.tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hint(name: str, candidates: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name.lower(), candidates, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
