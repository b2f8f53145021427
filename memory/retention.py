"""Which chunk goes when a store is full: by age, at random, by time scale, use or surprise, or merged."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamwise.memory.store_table import Lowest, StoreTable

__all__ = ["LogThinning", "Merge", "Reservoir", "Ring", "Surprise", "Use", "Window"]

_RESCALE_AT = 1e100


@dataclass
class Ring:
    """The oldest goes. The base of the others, which fall back on it.

    A retention holds settings; what else it remembers follows from the table, so that `bind` makes it again
    after a restart. `coming` is a record, with fields named as the table's columns.
    """

    def bind(self, table: StoreTable) -> None:
        """Work on this table from now on, as it is."""
        self._table = table
        alive = (table["id"] >= 0) & (table["pins"] == 0)
        table.lowest.fill(np.where(alive, self.scores(slice(None)), np.inf))

    def scores(self, slots: Any) -> Any:
        """Return what each chunk is worth; of those that are not pinned, the lowest goes."""
        return self._table["origin"][slots].astype(np.float64)

    def going(self, coming: Any) -> Sequence[int] | None:
        """Return the slots of the chunks that go for the one that comes, full or not; None: that one goes."""
        return ()

    def pair(self) -> tuple[int, int] | None:
        """Return the slots of two neighbours that are to become one, if that is the way to make room."""
        return None

    def came(self, slot: int) -> None:
        """Take note of a new chunk."""
        self.changed(slot)

    def gone(self, slot: int) -> None:
        """Take note that the chunk of a slot goes; the table still has it."""
        self._table.lowest.put(slot, np.inf)

    def changed(self, slot: int) -> None:
        """Take note that a chunk was pinned, unpinned, or replaced by one that covers more."""
        pinned = bool(self._table["pins"][slot])
        self._table.lowest.put(slot, np.inf if pinned else float(self.scores(slot)))

    def used(self, slots: Sequence[int], weights: Sequence[float]) -> None:
        """Take note of one read, and of the weight that each chunk had in it."""


@dataclass
class Window(Ring):
    """What is too old for its stream goes: as another chunk of the stream comes, or the oldest when full.

    Of each stream are kept at most `chunks_per_stream`; those whose last step is at most `time_to_live`
    before the last step of the one that comes, in the stream's units of time; with `within_episode` those of
    its episode. A stream that brings no more chunks keeps what it has while there is room.
    """

    chunks_per_stream: int | None = None
    time_to_live: float | None = None
    within_episode: bool = False

    def bind(self, table: StoreTable) -> None:
        """Work on this table from now on, as it is."""
        super().bind(table)
        self._queues: dict[int, list[int]] = {}  # by stream: a heap of ids, some of which may have gone
        self._counts: dict[int, int] = {}
        self._queued: set[int] = set()  # ids, in any queue
        for slot in np.argsort(table["id"], kind="stable")[table.capacity - len(table.slots) :].tolist():
            self._queue(slot)

    def going(self, coming: Any) -> Sequence[int] | None:
        """Return those of its stream that are too old."""
        table, stream, going = self._table, int(coming["stream"]), list[int]()
        queue = self._queues.get(stream, [])
        while queue:
            slot = table.slots.get(queue[0])
            if slot is not None and not table["pins"][slot]:
                if not self._expired(slot, coming, self._counts[stream] - len(going)):
                    break
                going.append(slot)
            self._queued.discard(heapq.heappop(queue))
        return going

    def came(self, slot: int) -> None:
        """Take note of a new chunk."""
        super().changed(slot)
        self._queue(slot)

    def gone(self, slot: int) -> None:
        """Take note that the chunk of a slot goes."""
        super().gone(slot)
        stream = int(self._table["stream"][slot])
        self._counts[stream] -= 1
        if not self._counts[stream]:
            self._queued.difference_update(self._queues[stream])
            del self._counts[stream], self._queues[stream]

    def changed(self, slot: int) -> None:
        """Take note that a chunk was pinned, unpinned or replaced."""
        super().changed(slot)
        stream = int(self._table["stream"][slot])
        if stream in self._queues and not self._table["pins"][slot]:
            self._enqueue(stream, int(self._table["id"][slot]))

    def _queue(self, slot: int) -> None:
        stream = int(self._table["stream"][slot])
        self._queues.setdefault(stream, [])
        self._enqueue(stream, int(self._table["id"][slot]))
        self._counts[stream] = self._counts.get(stream, 0) + 1

    def _enqueue(self, stream: int, id: int) -> None:
        """Have a chunk looked at, once: one that is unpinned may never have been passed over."""
        if id not in self._queued:
            self._queued.add(id)
            heapq.heappush(self._queues[stream], id)

    def _expired(self, slot: int, coming: Any, count: int) -> bool:
        table = self._table
        return (
            (self.within_episode and table["episode"][slot] != coming["episode"])
            or (self.time_to_live is not None and table["last"][slot] < coming["last"] - self.time_to_live)
            or (self.chunks_per_stream is not None and count >= self.chunks_per_stream)
        )


@dataclass
class Reservoir(Ring):
    """A uniform sample of all chunks ever sealed: the n-th replaces a random one with probability capacity/n.

    Pinned chunks are not replaced, so they are more likely to be there than the rest.
    Source: Vitter (1985), "Random sampling with a reservoir", algorithm R.
    """

    def going(self, coming: Any) -> Sequence[int] | None:
        """Return a random one, or None: this one is not in the sample."""
        table, sealed = self._table, int(coming["id"]) + 1
        if not table.full:
            return ()
        slot = int(table.draw(sealed) * sealed)
        if slot >= table.capacity:
            return None
        attempt = 1
        while table["pins"][slot] and table.lowest.first() is not None:
            slot = int(table.draw(sealed, attempt) * table.capacity)
            attempt += 1
        return () if table["pins"][slot] else (slot,)


@dataclass
class LogThinning(Ring):
    """All time scales alike: of the chunks of an age in [2^l window, 2^(l+1) window) every 2^l-th stays.

    An age counts the chunks that were sealed since. At level l those stay whose ids 2^l divides: `window` of
    them at each level, and the `window` newest. When the store is full all the same, the oldest goes.
    window: a power of two, at most half the capacity.
    """

    window: int = 64

    def bind(self, table: StoreTable) -> None:
        """Work on this table from now on, as it is."""
        if self.window < 1 or self.window & (self.window - 1) or 2 * self.window > table.capacity:
            raise ValueError(
                f"window is {self.window}; use a power of two of at most half the capacity, {table.capacity}."
            )
        super().bind(table)

    def going(self, coming: Any) -> Sequence[int] | None:
        """Return the one that has come to an age at which it is not kept."""
        # A chunk goes where it enters the first level whose 2^l does not divide its id. As the window is a
        # power of two, that is so of only one of the chunks that enter a level as this one comes.
        now = int(coming["id"])
        if now == 0:
            return ()
        level = (now & -now).bit_length()
        slot = self._table.slots.get(now - (self.window << level))
        return () if slot is None or self._table["pins"][slot] else (slot,)


@dataclass
class Use(Ring):
    """What reads gave the least weight goes: a use decays with each read, and the weight in it is added.

    decay: per read. grace: so many of the newest chunks are safe, to have time to be of use; less than the
    capacity.
    """

    decay: float = 0.999
    grace: int = 64

    def bind(self, table: StoreTable) -> None:
        """Work on this table from now on, as it is."""
        if not 0.0 < self.decay <= 1.0 or not 0 <= self.grace < table.capacity:
            raise ValueError(
                f"decay is {self.decay} and grace {self.grace}; use a decay in (0, 1] and a grace of 0 to "
                f"{table.capacity - 1}, less than the capacity."
            )
        super().bind(table)

    def scores(self, slots: Any) -> Any:
        """Return what each chunk is worth."""
        table = self._table
        return np.where(table["id"][slots] < table.next_id - self.grace, table["use"][slots], np.inf)

    def came(self, slot: int) -> None:
        """Take note of a new chunk."""
        super().came(slot)
        matured = self._table.slots.get(self._table.next_id - 1 - self.grace)
        if matured is not None:
            self.changed(matured)

    def used(self, slots: Sequence[int], weights: Sequence[float]) -> None:
        """Take note of one read."""
        # All decay at once: what is added counts more instead, until the numbers get large.
        table = self._table
        table.use_scale /= self.decay
        for slot, weight in zip(slots, weights, strict=True):
            table["use"][slot] += weight * table.use_scale
            self.changed(slot)
        if table.use_scale > _RESCALE_AT:
            table["use"][:] /= table.use_scale
            table.use_scale = 1.0
            self.bind(table)


@dataclass
class Surprise(Ring):
    """The least surprising goes, which may be the one that comes, though not if it is only as low as another.

    Compare it with `Reservoir` at the same capacity: selection by surprise or error has lost to random
    selection before (Isele and Cosgun 2018; de Masson d'Autume et al. 2019).
    """

    def scores(self, slots: Any) -> Any:
        """Return what each chunk is worth."""
        return self._table["priority"][slots]

    def going(self, coming: Any) -> Sequence[int] | None:
        """Return None if the one that comes is the least surprising."""
        table = self._table
        slot = table.lowest.first() if table.full else None
        return None if slot is not None and coming["priority"] < table["priority"][slot] else ()


@dataclass
class Merge(Ring):
    """Two neighbours become one: of the pairs in an episode the one that covers the fewest steps.

    The past stays covered and loses detail. Where no two are neighbours the oldest goes.
    """

    def bind(self, table: StoreTable) -> None:
        """Work on this table from now on, as it is."""
        super().bind(table)
        self._pairs = Lowest(table.capacity)  # by the first of two
        self._next, self._previous = np.full((2, table.capacity), -1)
        self._tails: dict[tuple[int, int], int] = {}  # by stream and episode: its newest
        alive = np.flatnonzero(table["id"] >= 0)
        for slot in alive[np.argsort(table["origin"][alive])].tolist():
            self._link(slot)

    def pair(self) -> tuple[int, int] | None:
        """Return the slots of the two neighbours that cover the fewest steps."""
        left = self._pairs.first()
        return None if left is None else (left, int(self._next[left]))

    def came(self, slot: int) -> None:
        """Take note of a new chunk."""
        super().came(slot)
        self._link(slot)

    def gone(self, slot: int) -> None:
        """Take note that the chunk of a slot goes."""
        super().gone(slot)
        left, right, key = int(self._previous[slot]), int(self._next[slot]), self._episode(slot)
        self._next[slot] = self._previous[slot] = -1
        if left >= 0:
            self._next[left] = right
        if right >= 0:
            self._previous[right] = left
        elif left >= 0:
            self._tails[key] = left
        else:
            del self._tails[key]
        self._rate(slot)
        self._rate(left)

    def changed(self, slot: int) -> None:
        """Take note that a chunk was pinned, unpinned or replaced."""
        super().changed(slot)
        self._rate(slot)
        self._rate(int(self._previous[slot]))

    def _link(self, slot: int) -> None:
        key = self._episode(slot)
        left = self._tails.get(key, -1)
        self._tails[key], self._previous[slot] = slot, left
        if left >= 0:
            self._next[left] = slot
            self._rate(left)

    def _rate(self, left: int) -> None:
        """Say how many steps a chunk and its next cover, if they may be merged."""
        if left < 0:
            return
        right, pins, covered = int(self._next[left]), self._table["pins"], self._table["covered"]
        free = right >= 0 and not pins[left] and not pins[right]
        self._pairs.put(left, float(covered[left] + covered[right]) if free else np.inf)

    def _episode(self, slot: int) -> tuple[int, int]:
        return int(self._table["stream"][slot]), int(self._table["episode"][slot])
