"""The table of a store: slots that are taken and set free, and which chunk is worth the least."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.splitmix import GOLDEN, MASK, mix
from streamwise.memory.table import COLUMNS, Table

__all__ = ["RECORDED", "Lowest", "StoreTable"]

RECORDED = ["id", "origin", "position", *COLUMNS]  # columns that are fields of a record, under the same name


class Lowest:
    """The slot with the lowest score, the first of equals: a tree of minima, each over 128 below it.

    A change costs three minima of 128 numbers at 10^6 slots, whatever the scores are.

    >>> lowest = Lowest(3)
    >>> lowest.put(2, 7.0)
    >>> lowest.put(1, 9.0)
    >>> lowest.first()
    2
    """

    def __init__(self, size: int) -> None:
        self._levels: list[NDArray[np.float64]] = []
        while True:
            blocks = -(-size // 128)
            self._levels.append(np.full(blocks * 128, np.inf))
            if blocks == 1:
                break
            size = blocks

    def put(self, slot: int, score: float) -> None:
        """Set the score of a slot; infinity: never the lowest."""
        self._levels[0][slot] = score
        for below, above in pairwise(self._levels):
            slot >>= 7
            above[slot] = below[slot << 7 : (slot + 1) << 7].min()

    def put_many(self, slots: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Set the scores of some slots."""
        self._levels[0][slots] = scores
        for below, above in pairwise(self._levels):
            slots = np.unique(slots >> 7)
            above[slots] = below.reshape(-1, 128)[slots].min(axis=1)

    def fill(self, scores: NDArray[np.float64]) -> None:
        """Set the scores of all slots."""
        self._levels[0][: len(scores)] = scores
        for below, above in pairwise(self._levels):
            minima = below.reshape(-1, 128).min(axis=1)
            above[: len(minima)] = minima

    def first(self) -> int | None:
        """Return the slot with the lowest score, None if all are infinite."""
        found = 0
        for level in reversed(self._levels):
            block = level[found << 7 : (found + 1) << 7]
            found = (found << 7) + int(block.argmin())
        return None if self._levels[0][found] == np.inf else found


class StoreTable(Table):
    """What is known of the chunks that are kept, and what retentions go by.

    origin: the id that a chunk had before others were merged into it. position: in the log. pins: how often
    it is pinned. use: the weights that it had in reads, in units that grow.
    """

    def __init__(self, capacity: int, width: int, seed: int) -> None:
        super().__init__(capacity, width, origin=np.int64, position=np.int64, pins=np.int64, use=np.float64)
        self.free: list[int] = []  # a heap of slots that are empty; the lowest is used first
        self.next_id = 0
        self.key = mix(seed & MASK)  # of the random draws
        self.use_scale = 1.0  # what a use of 1 counts now, in units of the column
        self.lowest = Lowest(capacity)

    @property
    def full(self) -> bool:
        """Whether a chunk must go before another can come."""
        return len(self.slots) == self.capacity

    def draw(self, number: int, attempt: int = 0) -> float:
        """Return a draw of [0, 1) as a function of the key and two counts, so that no state changes."""
        key = mix((self.key + number * GOLDEN) & MASK)
        return (mix((key + attempt * GOLDEN) & MASK) >> 11) * 2.0**-53

    def put(self, record: NDArray[Any], slot: int) -> None:
        """Put the chunk of a record [1] into a slot."""
        # At once: fields are slow one by one.
        chunk = dict(zip(RECORDED, record[RECORDED].item(), strict=True))
        for name, value in chunk.items():
            self.columns[name][slot] = value
        self.summaries[slot] = record["summary"][0]
        self.slots[chunk["id"]] = slot
        self.next_id = chunk["id"] + 1
        self.valid[slot] = True

    def read(self, records: NDArray[Any], slots: NDArray[np.int64], rows: Any = slice(None)) -> None:
        """Read columns and summaries of these slots from rows of records, which may be in a file; no more."""
        for name in RECORDED:
            self[name][slots] = records[name][rows]
        self.summaries[slots] = records["summary"][rows]

    def put_many(self, records: NDArray[Any], slots: NDArray[np.int64]) -> None:
        """Put the chunks of records [n] into slots."""
        self.read(records, slots)
        self.slots.update(zip(records["id"].tolist(), slots.tolist(), strict=True))
        self.next_id += len(records)
        self.valid[slots] = True

    def occupy(self, slot: int) -> None:
        """Take the lowest slot that is empty, or the first that was never used."""
        if slot == self.in_use:
            self.in_use += 1
        else:
            heapq.heappop(self.free)

    def remove(self, slot: int) -> None:
        """Forget the chunk of a slot, which is to be used again or put among the free ones."""
        del self.slots[int(self["id"][slot])]
        self["id"][slot] = -1
        self.valid[slot] = False

    def clear(self) -> None:
        """Empty all slots, in place."""
        self["id"][:], self["pins"][:], self["use"][:] = -1, 0, 0.0
        self.slots.clear()

    def begin(self, in_use: int) -> None:
        """Go on with the columns as they are, so many slots having been used so far."""
        self.in_use = in_use
        self.valid[:] = self["id"] >= 0
        slots = np.flatnonzero(self.valid)
        self.slots.update(zip(self["id"][slots].tolist(), slots.tolist(), strict=True))
        self.free = np.flatnonzero(~self.valid[:in_use]).tolist()  # in order: a heap
