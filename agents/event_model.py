"""What the event models share: types, states by key, learning many events at once, prediction, simulation.

A model is a marked temporal point process for each key. Given the key's events so far it has an intensity
λ_k(t) for every type k, whose sum is λ(t), and a compensator Λ, the integral of λ since the key's last event.
An event of type k after a gap is worth log λ(t) - Λ(gap) (its time) plus log(λ_k(t) / λ(t)) (its type).
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents.event_merge import Layout, Part
from streamwise.agents.generator import CounterGenerator
from streamwise.agents.learner import Metrics, State
from streamwise.kernels import native_info
from streamwise.memory.key_states import KeyStates
from streamwise.streams import Event, UsageError

__all__ = [
    "OTHER",
    "EventBackend",
    "EventModel",
    "EventSettings",
    "Prediction",
    "Score",
    "StatisticalModel",
    "UnknownKeyError",
]

EventBackend = Literal["auto", "native", "reference"]
Array = NDArray[np.float64]

OTHER = "(other)"  # every type for which the vocabulary has no room
_CHUNK = 1024  # events learned in one call; a key table is never smaller
_OFFSETS = 2048  # at which a prediction looks
CLOCK = [("last_time", "f8"), ("events", "f8"), ("last_type", "i4"), ("type_before", "i4")]  # of every row
_LONGEST_WAIT = 1e10  # seconds, three centuries
_NOT_EXPECTED = 0.01  # compensator below which no event is expected at all


class UnknownKeyError(UsageError):
    """A key of which no event was seen."""


@dataclass(frozen=True)
class EventSettings:
    """Settings that every event model has."""

    types: int = 64
    """How many types there is room for; later ones count as one more, "(other)"."""
    keys_in_memory: int = 20_000
    """How many keys' states are kept in memory; the least recently active others are on disk."""
    prior_gap: float = 3600.0
    """Seconds between two events of a key that are expected before any was seen."""
    memory: float = 100_000.0
    """About how many events back the estimates look. Lower follows changes sooner and is noisier."""

    def __post_init__(self) -> None:
        if not 2 <= self.types <= 1024:
            raise UsageError(f"types is {self.types}; it lies between 2 and 1,024.")
        if self.keys_in_memory < _CHUNK:
            raise UsageError(f"keys_in_memory is {self.keys_in_memory}; use {_CHUNK:,} or more.")
        if not 1e-6 <= self.prior_gap <= 1e12:
            raise UsageError(f"prior_gap is {self.prior_gap}; it lies between 1e-6 and 1e12 seconds.")
        if not self.memory >= 10.0:
            raise UsageError(f"memory is {self.memory}; use 10 events or more.")


class Score(NamedTuple):
    """How an event was predicted by what was known before it; NaN where a key's first event has no gap.

    gap: seconds since the key's last event. time_log_density: log λ(t) - Λ, in nats, of a gap in seconds.
    type_log_probability: in nats. compensator: Λ over the gap, a draw from Exp(1) if the model is true.
    predicted_type: the most likely one at the event's time. predicted_gap: the mean, in seconds. type: what
    it was, numbered like predicted_type in the order in which types were first seen.
    """

    gap: float
    time_log_density: float
    type_log_probability: float
    compensator: float
    predicted_type: float
    predicted_gap: float
    type: float


@dataclass(frozen=True)
class Prediction:
    """What is known about a key's next event, from `now` on.

    intensity: events a second, now. types: how likely the next event is of each type, whenever it comes.
    mean_wait, median_wait: seconds from now; None if no event is expected. intervals: the waits between which
    the next event falls with probability 0.5 and 0.9; None: after centuries. probability: of an event within
    `horizon` seconds.
    """

    key: str
    events: int
    last_time: float
    last_type: str
    now: float
    intensity: float
    types: dict[str, float]
    mean_wait: float | None
    median_wait: float | None
    intervals: dict[str, tuple[float | None, float | None]]
    horizon: float | None
    probability: float | None


class EventModel(ABC):
    """A learner of events. Subclasses hold the shared statistics, and say what a key's row is.

    backend: native is C++, reference is NumPy, which reads like the formulas; auto takes native where it was
    built. Both have the same state. keys_path: the file that keys spill to; without one it is temporary.
    """

    name: ClassVar[str]
    Config: ClassVar[type[EventSettings]]
    extras: tuple[str, ...] = ()
    """Names of the scores after those of `Score`; a model that has some overrides `_learn_event`."""

    def __init__(
        self,
        config: EventSettings,
        *,
        backend: EventBackend = "auto",
        keys_path: Path | None = None,
        read_only: bool = False,
    ) -> None:
        self.config = config
        self.vocabulary: dict[str, int] = {}
        self.overflowed = 0  # events that count as OTHER
        self.seen = np.zeros(1)  # types
        self.keys = KeyStates(self._row_type(), config.keys_in_memory, keys_path, read_only=read_only)
        self.arrays: dict[str, Array] = {"seen": self.seen}
        self._make_arrays()
        if backend == "native" and native_info() is None:
            raise UsageError("the native kernels are not built; use --backend reference, or auto.")
        self.native = self._make_native() if backend != "reference" and native_info() is not None else None

    # What a model defines.

    @abstractmethod
    def _row_type(self) -> np.dtype[Any]:
        """Return the type of a key's row, which begins with CLOCK."""

    @abstractmethod
    def _make_arrays(self) -> None:
        """Fill `arrays` with the shared statistics before the first event."""

    @abstractmethod
    def _native_spec(self) -> tuple[str, dict[str, Any]]:
        """Return the name of the native model, and what it needs besides arrays, keys and capacity."""

    @abstractmethod
    def _score(self, row: Any, time: float, event_type: int) -> Score:
        """Score an event with what was known before it. Changes nothing."""

    @abstractmethod
    def _learn_event(self, row: Any, time: float, event_type: int) -> Sequence[float]:
        """Score an event, learn from it, and put it into the state of its key; return its scores."""

    @abstractmethod
    def _advance(self, row: Any, time: float, event_type: int) -> None:
        """Put an event into the state of its key."""

    @abstractmethod
    def _intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return λ_k at some gaps after the key's last event, [gaps, classes], and Λ up to them, [gaps]."""

    @abstractmethod
    def layouts(self) -> dict[str, Layout]:
        """Return how `arrays` are numbered, but for `seen`, and how those of several models become one."""

    def common(self) -> dict[str, Array]:
        """Return `arrays` in units that are the same for all models of these settings."""
        return self.arrays

    def settle(self, parts: Sequence[Part], heaviest: int) -> None:
        """Make whole what follows from other arrays, after these were put in place of what there was.

        parts: the models that were merged, and which has learned most; none where models are kept alike.
        """
        return

    def renumber_rows(self, rows: NDArray[Any], numbering: NDArray[np.int64]) -> None:
        """Give the types in the states of keys other numbers."""
        for name in ("last_type", "type_before"):
            rows[name] = numbering[rows[name]]

    def receive_rows(self, rows: NDArray[Any]) -> None:
        """Make states of keys of another model one's own."""
        return

    # Learning.

    @property
    def classes(self) -> int:
        """How many types have a probability: those seen, and one for whatever is new."""
        return min(int(self.seen[0]) + 1, self.config.types)

    def learn_one(self, event: Event) -> Metrics:
        """Score one event, then learn from it. Raises ValueError if it lies before the last of its key."""
        scores = self.learn_many([event.time], [event.type], [event.key])[0].tolist()
        return dict(zip([*Score._fields, *self.extras], scores, strict=True))

    def learn_many(self, times: Sequence[float], types: Sequence[str], keys: Sequence[str]) -> Array:
        """Score and learn events one after the other, as `learn_one` would; return float64 [events, columns].

        The columns are those of `Score` and then `extras`. Events of one key must be in order of time; raises
        ValueError if one is not, having learned those before it.
        """
        scores = np.empty((len(times), len(Score._fields) + len(self.extras)))
        for start in range(0, len(times), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            slots = self.keys.slots(keys[chunk])
            self._learn_chunk(
                np.asarray(times[chunk], np.float64), self._ids(types[chunk]), slots, scores[chunk]
            )
        return scores

    def _ids(self, types: Sequence[str]) -> NDArray[np.int64]:
        vocabulary, ids = self.vocabulary, np.empty(len(types), np.int64)
        for i, event_type in enumerate(types):
            found = vocabulary.get(event_type)
            if found is None:
                other = self.config.types - 1
                found = len(vocabulary)
                if found < other:
                    vocabulary[event_type] = found
                else:
                    self.overflowed += 1
                    found = other
            ids[i] = found
        return ids

    def _learn_chunk(
        self, times: Array, ids: NDArray[np.int64], slots: NDArray[np.int64], scores: Array
    ) -> None:
        if self.native is not None:
            self.native.learn(times, ids, slots, scores)
            return
        rows = self.keys.rows
        for i, (time, event_type, slot) in enumerate(
            zip(times.tolist(), ids.tolist(), slots.tolist(), strict=True)
        ):
            row = rows[slot]
            if row["events"] > 0.0 and time < row["last_time"]:
                raise ValueError(f"event {i} lies before the last one of its key")
            scores[i] = self._learn_event(row, time, event_type)

    def _put(self, row: Any, time: float, event_type: int) -> None:
        self._advance(row, time, event_type)
        row["type_before"], row["last_type"] = row["last_type"], event_type
        row["last_time"] = time
        row["events"] += 1.0

    def type_name(self, event_type: int) -> str:
        """Return the name of a type by its number; "(other)" stands for those that had no room."""
        names = list(self.vocabulary)
        return names[event_type] if event_type < len(names) else OTHER

    def statistics(self) -> dict[str, float]:
        """Return what else is to be recorded with scores, always by the same names; NaN if unknown."""
        return {}

    # Prediction.

    def predict_one(self, key: str, *, now: float | None = None, horizon: float | None = None) -> Prediction:
        """Predict the next event of a key, given that none came until `now`; changes nothing.

        now: seconds, in the events' own time; by default that of the key's last event. horizon: seconds.
        Raises UnknownKeyError for a key without events, UsageError for a `now` before its last event.
        """
        row = self.keys.find(key)
        if row is None:
            raise UnknownKeyError(f"no event of key {key!r} was seen.")
        last_time = float(row["last_time"])
        now = last_time if now is None else now
        if not last_time <= now < math.inf:
            raise UsageError(
                f"now is {now}, and the last event of {key!r} was at {last_time}; give a later time."
            )
        if horizon is not None and not 0.0 < horizon < math.inf:
            raise UsageError(f"horizon is {horizon}; give a number of seconds above 0.")
        elapsed = now - last_time
        at, compensator, intensities = self._ahead(row, elapsed)
        survival = np.exp(-compensator)
        total = intensities.sum(1)

        # The type marginal: between two offsets the mixture of types hardly changes.
        shares = intensities / total[:, None]
        weights = np.append(survival[:-1] - survival[1:], survival[-1])
        by_type = weights @ np.vstack([0.5 * (shares[:-1] + shares[1:]), shares[-1:]])
        names = [*list(self.vocabulary)[: int(self.seen[0])], *([OTHER] if self.overflowed else [])]
        known = by_type[: len(names)]

        types = dict.fromkeys(names, 0.0)  # a type may be called like OTHER
        for name, share in zip(names, (known / known.sum()).tolist(), strict=True):
            types[name] += share

        waits: dict[float, float | None] = {}
        expected = compensator[-1] >= _NOT_EXPECTED
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            wait = float(np.interp(-math.log1p(-quantile), compensator, at, right=math.inf))
            waits[quantile] = wait if math.isfinite(wait) else None
        mean = float(np.trapezoid(survival, at) + survival[-1] / max(total[-1], 1e-300))
        probability = None
        if horizon is not None:
            _, passed = self._intensities(row, np.array([elapsed, elapsed + horizon]))
            probability = float(-np.expm1(passed[0] - passed[1]))
        return Prediction(
            key=key,
            events=int(row["events"]),
            last_time=last_time,
            last_type=self.type_name(int(row["last_type"])),
            now=now,
            intensity=float(total[0]),
            types=types,
            mean_wait=mean if expected else None,
            median_wait=waits[0.5] if expected else None,
            intervals={"50%": (waits[0.25], waits[0.75]), "90%": (waits[0.05], waits[0.95])},
            horizon=horizon,
            probability=probability,
        )

    def _ahead(self, row: Any, elapsed: float) -> tuple[Array, Array, Array]:
        """Return offsets from now until an event is all but certain, Λ until each, and λ_k at each."""
        end = 1e-2
        while end < _LONGEST_WAIT:
            _, ends = self._intensities(row, np.array([elapsed, elapsed + end]))
            if ends[1] - ends[0] > 30.0:
                break
            end *= 4.0
        at = np.concatenate([[0.0], np.geomspace(1e-4, end, _OFFSETS)])
        intensities, compensator = self._intensities(row, elapsed + at)
        return at, compensator - compensator[0], intensities

    def simulate(self, key: str, *, seed: int = 0) -> Iterator[Event]:
        """Yield what might come next of a key, for ever, by what has been learned; the model stays as it is.

        Each gap solves Λ(gap) = E for E drawn from Exp(1). Raises UnknownKeyError for a key without events.
        """
        row = self.keys.find(key)
        if row is None:
            raise UnknownKeyError(f"no event of key {key!r} was seen.")
        generator = CounterGenerator(seed)
        while True:
            wanted = -math.log(1.0 - generator.uniform())
            gap = self._gap_of(row, wanted)
            intensities = self._intensities(row, np.array([gap]))[0][0, : int(self.seen[0])]
            cumulative = np.cumsum(intensities)
            event_type = int(np.searchsorted(cumulative, generator.uniform() * cumulative[-1], side="right"))
            time = float(row["last_time"]) + gap
            self._put(row, time, event_type)
            yield Event(time, self.type_name(event_type), key)

    def _gap_of(self, row: Any, wanted: float) -> float:
        """Return the gap whose compensator is `wanted`, by bisection of its logarithm."""
        low, high = 1e-9, 1e-3
        while high < _LONGEST_WAIT and self._intensities(row, np.array([high]))[1][0] < wanted:
            low, high = high, high * 4.0
        for _ in range(50):
            middle = math.sqrt(low * high)
            if self._intensities(row, np.array([middle]))[1][0] < wanted:
                low = middle
            else:
                high = middle
        return high

    # State.

    def state_dict(self) -> State:
        """Return everything: statistics, vocabulary, counters, and the states of keys."""
        text = json.dumps({"types": list(self.vocabulary), "overflowed": self.overflowed})
        state = {name: torch.from_numpy(array.copy()) for name, array in self.arrays.items()}
        state["vocabulary"] = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
        return {**state, **self.keys.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        for name, array in self.arrays.items():
            array[:] = state[name].numpy().reshape(array.shape)
        vocabulary = json.loads(bytes(state["vocabulary"].numpy()))
        self.vocabulary = {name: i for i, name in enumerate(vocabulary["types"])}
        self.overflowed = vocabulary["overflowed"]
        self.keys.load_state_dict(state)

    def close(self) -> None:
        """Close the file of the keys."""
        self.keys.close()

    def _make_native(self) -> Any:
        from streamwise.kernels import _native

        kind, numbers = self._native_spec()
        rows = self.keys.rows.view(np.uint8).reshape(-1)
        state = {
            **numbers,
            **self.arrays,
            "keys": rows,
            "slots": len(self.keys.rows),
            "capacity": self.config.types,
        }
        return getattr(_native, kind)(state)


class StatisticalModel(EventModel):
    """An event model that learns from an event apart from scoring it."""

    @abstractmethod
    def _learn(self, row: Any, time: float, event_type: int) -> None:
        """Update the shared statistics from an event that was scored; the row comes after."""

    def _learn_event(self, row: Any, time: float, event_type: int) -> Sequence[float]:
        score = self._score(row, time, event_type)
        self._learn(row, time, event_type)
        self._put(row, time, event_type)
        self.seen[0] = max(self.seen[0], event_type + 1)
        return score
