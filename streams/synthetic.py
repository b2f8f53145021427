"""Events drawn from processes whose truth is known, for many keys side by side."""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import math
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import LAST_TIME, Decoded, Records
from streamwise.streams.point_processes import DEFAULT_START, DriftProcess, HawkesProcess, Process, State
from streamwise.streams.synthetic_url import KINDS, Query

__all__ = ["SyntheticSource"]

PARTITION = "synthetic"
_SNAPSHOT_EVENTS = 4_096  # between two copies of the state; a seek draws up to so many events again
_PAIRS_AHEAD = 2**18  # of random numbers, drawn at once over all keys


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
        if kind not in KINDS:
            raise UsageError(
                f"there is no synthetic process {kind!r}.{meant(kind, KINDS)} "
                f"Choose one of: {', '.join(KINDS)}."
            )
        given = Query(kind, query)
        events = given.integer("events", 100_000, 0, 2**53)
        keys = given.integer("keys", 100, 1, 1_000_000)
        seed = given.integer("seed", 0, 0, 2**64 - 1)
        start = given.number("start", DEFAULT_START, 0.0, LAST_TIME)
        speed = given.optional("speed", 1e-6, 1e9)
        truth = KINDS[kind](given, seed, start)
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


def _digest(description: Any) -> str:
    text = json.dumps(description, default=lambda array: array.tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
