"""What the owner of a large shared memory does for its replicas: it says what has changed, and gives blocks.

**Slots.** The owner numbers its changes, and notes by slot which was the last one there. An increment is the
rows of all slots that changed after a number that the reader names. So removals need no log of their own, a
slot that changed often is sent once, and no reader is so late that its number is not known any more.

**A new life.** An owner that was started again counts anew. Chunks are in the slots that they were in, as the
files say, but for what a power cut took; so the reader sends checksums of its rows, of 1,024 slots each, and
gets those rows whose checksum is another one: some kilobytes for a million chunks, if nothing was lost.

**Blocks.** Chunks whose ids have the same quotient by the block's size are a block. Once all ids of a block
have been given, nothing is ever added to it, so it can be handed out as one object that all readers of a node
look at where it lies (runs/shared_memory.py); chunks of the block that is being filled are copied one by one.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.chunks import ChunkStore
from streamwise.memory.shared import SharedMemory
from streamwise.memory.table import COLUMNS

__all__ = ["Contents", "Increment", "Mark", "Publisher", "Shape", "Source", "digests"]

# Bounds of what one call takes: some milliseconds of the owner, and some megabytes.
_LOOKED_AT_ONCE = 1 << 20  # slots, for changes
_SENT_AT_ONCE = 1 << 14  # slots
_COMPARED = 1024  # slots, by one checksum
_BLOCK_CHUNKS, _BLOCK_BYTES = 1024, 1 << 22  # of a block, at most


class Shape(NamedTuple):
    """What to make room for: a memory's chunk_length, width and capacity; and the chunks of a block."""

    chunk_length: int
    width: int
    capacity: int
    block_chunks: int


class Mark(NamedTuple):
    """A moment of a memory: its life, and in it the number of changes noted, the next id, and chunks kept.

    A memory that has given no id since, and keeps as many chunks, has not changed.
    """

    age: int
    version: int
    next_id: int
    kept: int


class Increment(NamedTuple):
    """Some slots as they are, and that all those before `end`, of `in_use`, have been looked at.

    slots: int64 [n]. ids: int64 [n], -1 for a slot that is empty. summaries: float32 [n, width]. columns: by
    name, [n] each.
    """

    mark: Mark
    in_use: int
    end: int
    slots: NDArray[np.int64]
    ids: NDArray[np.int64]
    summaries: NDArray[np.float32]
    columns: dict[str, NDArray[Any]]


class Contents(NamedTuple):
    """Contents of chunks of one block, by ids in order, int64 [n]: float32 [n, chunk_length, width].

    age: the memory's life. whole: it is all of the block that there was, and more can never be.
    """

    age: int
    whole: bool
    ids: NDArray[np.int64]
    contents: NDArray[np.float32]


class Source(Protocol):
    """What a replica asks of a memory, in this process or another."""

    def shape(self) -> Shape:
        """Ask what to make room for."""

    def changes(
        self, since: Mark | None, at: int, upto: int | None, digests: Sequence[int] | None
    ) -> Increment:
        """Ask for some of what has changed, from slot `at` on."""

    def contents(self, wanted: Mapping[int, Sequence[int]]) -> Sequence[Contents]:
        """Ask for blocks, by number, of which these ids are wanted."""

    def open_writer(self, writer: str, sequence: int) -> int:
        """Begin to write."""

    def append(self, writer: str, lease: int, sequence: int, contents: NDArray[np.float32]) -> int:
        """Send chunks."""

    def flush(self) -> None:
        """Make what was appended safe from a power cut."""


class Publisher:
    """What the owner of a `SharedMemory` does for replicas; it looks at the store, and changes nothing.

    The store is appended to and dropped from, and not taken back to an earlier state. block_chunks: of a
    block; as many as make 4 MiB, up to 1,024, if it is None.

    It holds 16 bytes a slot. An answer takes a look at up to 2^20 slots, 2 ms, and none if nothing changed.
    """

    def __init__(self, memory: SharedMemory, block_chunks: int | None = None) -> None:
        store = memory.store
        if block_chunks is None:
            block_chunks = _BLOCK_BYTES // (4 * store.chunk_length * store.width)
            block_chunks = min(max(block_chunks, 1), _BLOCK_CHUNKS)
        if block_chunks < 1:
            raise ValueError(f"block_chunks is {block_chunks}; use 1 or more.")
        self._memory, self._store, self._block_chunks = memory, store, block_chunks
        self._age, self._version = secrets.randbits(62), 0
        self._seen = np.full(store.capacity, -1)  # ids by slot, as they were when last looked at
        self._seen[: len(store.ids)] = store.ids
        self._changed = np.zeros(store.capacity, np.int64)  # the version of the last change of each slot

    def shape(self) -> Shape:
        """Return what a reader makes room for."""
        store = self._store
        return Shape(store.chunk_length, store.width, store.capacity, self._block_chunks)

    def changes(
        self, since: Mark | None, at: int, upto: int | None = None, digests: Sequence[int] | None = None
    ) -> Increment:
        """Return slots from `at` on that changed after `since`, or that ever were used if that is None.

        upto: chunks with this id or a higher one are left out, for the next time: so that a reader who asks
        piece by piece, while others write, sees chunks come in the order of their ids. digests: of the
        reader's rows, of 1,024 slots each; those of them are returned that differ, whenever they changed.
        A `since` of another life is answered with nothing but the present mark.
        """
        store, in_use = self._store, len(self._store.ids)
        slots, end = np.zeros(0, np.int64), 0
        if digests is not None:
            slots, end = self._differing(at, digests)
        elif since is None:
            slots, end = self._later_than(-1, at)
        elif since.age == self._age:
            idle = at == 0 and (since.next_id, since.kept) == (store.next_id, len(store))
            slots, end = (slots, in_use) if idle else self._later_than(since.version, at)
        mark = Mark(self._age, self._version, store.next_id, len(store))
        ids = store.ids[slots]
        if upto is not None:
            ids[ids >= upto] = -1
        columns = {name: store.column(name)[slots] for name in COLUMNS}
        return Increment(mark, in_use, end, slots, ids, store.summaries[slots], columns)

    def _look(self, at: int, end: int) -> None:
        """Note which slots have changed. No reader hears of a slot that has not been looked at."""
        ids, seen = self._store.ids[at:end], self._seen[at:end]
        new = np.flatnonzero(ids != seen)
        if len(new):
            # Whoever makes it look, the number is higher than that of every mark that was given before.
            self._version += 1
            seen[new], self._changed[at + new] = ids[new], self._version

    def _later_than(self, version: int, at: int) -> tuple[NDArray[np.int64], int]:
        """Return slots from `at` on whose last change is later, and before which slot these are all."""
        end = min(at + _LOOKED_AT_ONCE, len(self._store.ids))
        self._look(at, end)
        slots = at + np.flatnonzero(self._changed[at:end] > version)
        if len(slots) > _SENT_AT_ONCE:
            end = int(slots[_SENT_AT_ONCE])
        return slots[:_SENT_AT_ONCE], end

    def _differing(self, at: int, digests: Sequence[int]) -> tuple[NDArray[np.int64], int]:
        """Return the slots of all rows, from `at` on, that have other checksums than these, and their end."""
        end = min(at + _COMPARED * len(digests), len(self._store.ids))
        self._look(at, end)
        differing = [
            np.arange(first, min(first + _COMPARED, end))
            for first, digest in zip(range(at, end, _COMPARED), digests, strict=False)
            if _digest(self._store, first) != digest
        ]
        return np.concatenate([np.zeros(0, np.int64), *differing]), end

    def is_whole(self, block: int) -> bool:
        """Whether all ids of a block have been given."""
        return (block + 1) * self._block_chunks <= self._store.next_id

    def block(self, block: int) -> Contents:
        """Return all that there is of a block that is whole."""
        first = block * self._block_chunks
        return self._contents(True, range(first, first + self._block_chunks))

    def some(self, ids: Iterable[int]) -> Contents:
        """Return those of these chunks, of one block, that are kept."""
        return self._contents(False, sorted(ids))

    def contents(self, wanted: Mapping[int, Sequence[int]]) -> list[Contents]:
        """Return blocks, by number; of the one that is being filled only the ids that are wanted."""
        return [
            self.block(block) if self.is_whole(block) else self.some(ids) for block, ids in wanted.items()
        ]

    def _contents(self, whole: bool, ids: Iterable[int]) -> Contents:
        kept = [id for id in ids if id in self._store]
        return Contents(self._age, whole, np.array(kept, np.int64), self._store.contents(kept)[0])

    def open_writer(self, writer: str, sequence: int) -> int:
        """See `SharedMemory`."""
        return self._memory.open_writer(writer, sequence)

    def append(self, writer: str, lease: int, sequence: int, contents: NDArray[np.float32]) -> int:
        """See `SharedMemory`."""
        return self._memory.append(writer, lease, sequence, contents)

    def flush(self) -> None:
        """See `SharedMemory`."""
        self._memory.flush()


def digests(store: ChunkStore, at: int) -> list[int]:
    """Return checksums of the rows of a reader's slots from `at` on, as many as one call compares."""
    return [_digest(store, at + first) for first in range(0, _SENT_AT_ONCE, _COMPARED)]


def _digest(store: ChunkStore, first: int) -> int:
    """Return a checksum of the rows of up to 1,024 slots from `first` on: what chunks are there.

    Of 32 bits, for it is against power cuts, in which a difference is missed once in 2^32 times.
    """
    ids: Any = store.ids[first : first + _COMPARED]
    there = first + np.flatnonzero(ids >= 0)  # of empty slots an owner that was started again knows nothing
    digest = zlib.crc32(ids)
    for array in (*(store.column(name) for name in COLUMNS), store.summaries):
        rows: Any = array[there]
        digest = zlib.crc32(rows, digest)
    return digest
