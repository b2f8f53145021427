"""Reading a large shared memory where the reader is: a copy of its index, and as many contents as fit.

A memory of 10^6 chunks has some hundred megabytes of summaries, which are looked at with every read, and
gigabytes of contents, of which a read opens a few. So a reader has the first of its own, and follows the
owner by increments; the second it fetches in blocks, which it keeps as long as there is room:

    owner    SharedMemory, its store, and beside them a `Publisher`, which says what has changed since when
    reader   `Replica`, a `ChunkStore` whose slots are those of the owner's store, row for row

**Slots.** The owner numbers its changes, and notes by slot which was the last one there. An increment is the
rows of all slots that changed after a number that the reader names. So removals need no log of their own, a
slot that changed often is sent once, and no reader is so late that its number is not known any more.

**A new life.** An owner that was started again counts anew. Chunks are in the slots that they were in, as the
files say, but for what a power cut took; so the reader sends checksums of its rows, of 1,024 slots each, and
gets those rows whose checksum is another one: some kilobytes for a million chunks, if nothing was lost. Its
cache of contents it empties, for an id that was lost may stand for another chunk.

**Blocks.** Chunks whose ids have the same quotient by the block's size are a block. Once all ids of a block
have been given, nothing is ever added to it, so it can be handed out as one object that all readers of a node
look at where it lies (runs/shared_memory.py); chunks of the block that is being filled are copied one by one.
"""

from __future__ import annotations

import secrets
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from streamwise.memory.chunks import Chunk, ChunkStore, stream_code
from streamwise.memory.shared import NotOpenError, OpenedAgainError, SharedMemory

__all__ = ["Contents", "Increment", "Mark", "NotOwnerError", "Publisher", "Replica", "Shape", "Source"]

# What is known of a chunk beside its id and its summary, by slot; name: of its stream, if it has one.
_COLUMNS: dict[str, Any] = {
    "stream": np.int64, "name": "S32", "episode": np.int64, "first": np.float64, "last": np.float64,
    "steps": np.int64, "covered": np.int64, "priority": np.float64, "encoder_version": np.int64,
    "sequence": np.int64,
}  # fmt: skip

# Bounds of what one call takes: some milliseconds of the owner, and some megabytes.
_LOOKED_AT_ONCE = 1 << 20  # slots, for changes
_SENT_AT_ONCE = 1 << 14  # slots
_COMPARED = 1024  # slots, by one checksum
_BLOCKS_AT_ONCE = 4
_BLOCK_CHUNKS, _BLOCK_BYTES = 1024, 1 << 22  # of a block, at most


class NotOwnerError(RuntimeError):
    """What only the memory itself may do, or who writes to it, was asked of a replica."""


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
        columns = {name: store.column(name)[slots] for name in _COLUMNS}
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


class _Block:
    """Contents of chunks of one block: all there is, in order, or (not whole) some, each in its place."""

    __slots__ = ("contents", "first", "ids", "is_full", "whole")

    def __init__(
        self, first: int, size: int, ids: NDArray[np.int64], contents: NDArray[np.float32], whole: bool
    ) -> None:
        self.first, self.ids, self.contents, self.whole = first, ids, contents, whole
        self.is_full = whole and len(ids) == size  # none had gone: each is in its place

    @property
    def size(self) -> int:
        """The chunks that there is room for."""
        return max(len(self.ids), 1)

    def row(self, id: int) -> int:
        """Return the row of a chunk's contents, [chunk_length, width]; -1: they are not here."""
        row = id - self.first
        if self.is_full:
            return row
        ids = self.ids
        if self.whole:
            row = int(ids.searchsorted(id))
        return row if row < len(ids) and ids[row] == id else -1

    def add(self, part: Contents) -> None:
        """Take up chunks of a block that is being filled."""
        rows = part.ids - self.first
        self.ids[rows], self.contents[rows] = part.ids, part.contents


class _Cache(OrderedDict[int, _Block]):
    """Blocks by number, at most so many chunks of them; those that were used last, which come last."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.chunks = room, 0

    def put(self, number: int, block: _Block) -> None:
        """Keep a block, in place of the one of this number."""
        before = self.pop(number, None)
        self.chunks += block.size - (0 if before is None else before.size)
        while self.chunks > self.room:
            _, gone = self.popitem(last=False)
            self.chunks -= gone.size
        self[number] = block

    def empty(self) -> None:
        """Let go of all."""
        self.clear()
        self.chunks = 0


class Replica:
    """A `ChunkStore` that reads a shared memory in another process, and may write to it under one name.

    source: of the memory. It is empty at first; `refresh` brings it up to date, and nothing else does, so
    that its arrays stay as they are during a read. Call it as often as new chunks matter. Slots are those of
    the memory's store, so that what is read with it is what would be read there, bit for bit. cached_chunks:
    how many chunks' contents are kept at most, a block or more.

    writer: a name to append under, which one process at a time may have; see memory/shared.py. sequence: of
    the chunk that is appended first: those of this writer from there on are taken back unless they come
    again. None: after the last one that the memory has.

    **What is read.** An id that was not kept at the last refresh raises KeyError, as in any store. One that
    was, and that the memory has let go of since, is read from the cache if it is there; else it stands for
    its summary: a chunk of one step, counted by `stood_in`. The same holds for what is not cached when the
    memory was started again and no `refresh` has ended since. Where the memory cannot be reached,
    what is not cached raises the source's error, and so does `refresh`, which goes on where it was.

    Pinning and dropping are the owner's: NotOwnerError. `used` is not told to it. It belongs to one thread.

    >>> from streamwise.memory.store import InProcessStore
    >>> memory = SharedMemory(InProcessStore(chunk_length=2, width=2, capacity=100))
    >>> writer, reader = Replica(Publisher(memory), writer="ann"), Replica(Publisher(memory))
    >>> writer.append([[1.0, 2.0], [3.0, 4.0]], first=0, last=1, stream="ann")
    0
    >>> len(writer), len(reader), reader.refresh(), len(reader)
    (1, 0, False, 1)
    >>> reader.summaries.tolist(), reader.contents([0])[0].tolist()
    ([[2.0, 3.0]], [[[1.0, 2.0], [3.0, 4.0]]])
    """

    def __init__(
        self,
        source: Source,
        *,
        writer: str | None = None,
        sequence: int | None = None,
        cached_chunks: int = 65_536,
    ) -> None:
        shape = source.shape()
        if cached_chunks < shape.block_chunks:
            raise ValueError(
                f"cached_chunks is {cached_chunks}; use {shape.block_chunks} or more, which are a block."
            )
        self.chunk_length, self.width, self.capacity, self._block_chunks = shape
        self.stood_in = self.fetched = 0  # chunks read by their summaries; blocks, or parts of one, that came
        self._source, self._cache = source, _Cache(cached_chunks)
        # Pages that were never written take no memory, so that room for all is made at once.
        self._ids = np.full(self.capacity, -1)
        self._summaries = np.zeros((self.capacity, self.width), np.float32)
        self._valid = np.zeros(self.capacity, np.bool_)
        self._columns = {name: np.zeros(self.capacity, kind) for name, kind in _COLUMNS.items()}
        self._in_use = 0
        self._slots: dict[int, int] = {}  # by id
        self._age: int | None = None  # of the memory's life that the index is of
        self._mark: Mark | None = None  # all changes up to here are known
        self._start: Mark | None = None  # of what is being asked for piece by piece
        self._at = 0  # the slot that comes next
        self._compares = False  # asks for rows that differ
        self._writer, self._sequence = writer, sequence
        self._lease: int | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, id: int) -> bool:
        return id in self._slots

    @property
    def summaries(self) -> NDArray[np.float32]:
        """The mean over each chunk's steps, or what was given in its place, float32 [slots, width]."""
        return self._summaries[: self._in_use]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The id of each slot's chunk, int64 [slots]; -1: empty."""
        return self._ids[: self._in_use]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Whether there is a chunk in each slot, bool [slots]."""
        return self._valid[: self._in_use]

    def column(self, name: str) -> NDArray[Any]:
        """Return a field of `Chunk` for each slot, [slots]; streams as `stream_code` says."""
        return self.ids if name == "id" else self._columns[name][: self._in_use]

    @property
    def cached(self) -> int:
        """Chunks that contents are kept of, or room for them."""
        return self._cache.chunks

    # -- following

    def refresh(self, pieces: int | None = None) -> bool:
        """Take up what has come to the memory before this call, and what went; return whether there is more.

        pieces: ask so often at most, each time for up to 16,384 slots, and go on with the next call. All
        that is missing, if it is None; there is no more then. Raises what the source raises, ValueError if
        the memory was started again with a larger capacity.
        """
        is_new = self._start is None
        asked = 0
        while pieces is None or asked < pieces:
            asked += 1
            if self._ask():
                if is_new:
                    return False
                is_new = True  # that was what had come before an earlier call
        return True

    def _ask(self) -> bool:
        """Ask for a piece, and return whether it was the last."""
        digests = self._digests() if self._compares else None
        upto = None if self._start is None else self._start.next_id
        found = self._source.changes(self._mark, self._at, upto, digests)
        if found.in_use > self.capacity:
            raise ValueError(
                f"the memory has {found.in_use:,} slots now, and the replica was made for {self.capacity:,}; "
                "make another one."
            )
        if found.mark.age != self._age:
            self._compares = self._age is not None
            self._age, self._mark, self._start, self._at = found.mark.age, None, None, 0
            self._cache.empty()
            if self._compares:
                return False
        if self._start is None:
            self._start = found.mark
        self._apply(found)
        self._at = found.end
        if found.end < found.in_use:
            return False
        self._cut(found.in_use)
        self._mark, self._start, self._at, self._compares = self._start, None, 0, False
        return True

    def _digests(self) -> list[int]:
        return [_digest(self, self._at + first) for first in range(0, _SENT_AT_ONCE, _COMPARED)]

    def _apply(self, found: Increment) -> None:
        slots = found.slots
        self._in_use = max(self._in_use, found.end)
        self._forget(slots)
        self._ids[slots], self._valid[slots] = found.ids, found.ids >= 0
        self._summaries[slots] = found.summaries
        for name, column in found.columns.items():
            self._columns[name][slots] = column
        there = found.ids >= 0
        self._slots.update(zip(found.ids[there].tolist(), slots[there].tolist(), strict=True))

    def _cut(self, in_use: int) -> None:
        """Let go of slots from here on, which a memory that lost chunks has not used yet."""
        gone = np.arange(in_use, self._in_use)
        self._forget(gone)
        self._ids[gone], self._valid[gone] = -1, False
        self._in_use = in_use

    def _forget(self, slots: NDArray[np.int64]) -> None:
        there = slots[self._ids[slots] >= 0]
        for id, slot in zip(self._ids[there].tolist(), there.tolist(), strict=True):
            if self._slots.get(id) == slot:  # after power failed, the id may be another chunk's by now
                del self._slots[id]

    # -- reading

    def contents(self, ids: Iterable[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return contents, float32 [k, chunk_length, width], zero after the last step, and the steps, [k].

        Raises KeyError if an id is not in the index, and what the source raises.
        """
        wanted = [int(id) for id in ids]
        slots = self._slots_of(wanted)
        steps = self._columns["steps"][slots]
        found = np.empty((len(wanted), self.chunk_length, self.width), np.float32)
        gone: list[int] = []
        missing: dict[int, list[int]] = {}  # places, by block
        for place, id in enumerate(wanted):
            number = id // self._block_chunks
            block = self._cache.get(number)
            row = -1 if block is None else block.row(id)
            if block is not None and row >= 0:
                found[place] = block.contents[row]
                self._cache.move_to_end(number)
            elif block is not None and block.whole:
                gone.append(place)
            else:
                missing.setdefault(number, []).append(place)
        if missing:
            asked = {number: [wanted[place] for place in places] for number, places in missing.items()}
            for number, block in self._fetch(asked):
                for place in missing[number]:
                    row = -1 if block is None else block.row(wanted[place])
                    if block is not None and row >= 0:
                        found[place] = block.contents[row]
                    else:
                        gone.append(place)
        for place in gone:
            found[place], steps[place] = 0.0, 1
            found[place, 0] = self._summaries[slots[place]]
        self.stood_in += len(gone)
        return found, steps

    def view(self, id: int) -> NDArray[np.float32]:
        """Return a chunk's contents where they lie, float32 [steps, width], not to be written to.

        Through Ray that is memory which all processes of the node look at. Raises KeyError if the chunk is
        not in the index, or the memory has let go of it since, or was started again.
        """
        (slot,) = self._slots_of([id])
        number = id // self._block_chunks
        block = self._cache.get(number)
        if block is None or (block.row(id) < 0 and not block.whole):
            ((_, block),) = self._fetch({number: [id]})
        row = -1 if block is None else block.row(id)
        if block is None or row < 0:
            raise KeyError(f"the memory has let go of chunk {id} or was started again; refresh.")
        self._cache.move_to_end(number)
        view: NDArray[np.float32] = block.contents[row, : self._columns["steps"][slot]]
        view.flags.writeable = False
        return view

    def _fetch(self, wanted: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, _Block | None]]:
        """Yield blocks, by number, in which these ids are if the memory has them; None: it is not known."""
        numbers = list(wanted)
        for first in range(0, len(numbers), _BLOCKS_AT_ONCE):
            some = numbers[first : first + _BLOCKS_AT_ONCE]
            parts = self._source.contents({number: wanted[number] for number in some})
            for number, part in zip(some, parts, strict=True):
                self.fetched += 1
                # Of another life than the index is known to be of, ids may stand for other chunks.
                is_known = part.age == self._age and not self._compares
                yield number, self._take(number, part) if is_known else None

    def _take(self, number: int, part: Contents) -> _Block:
        """Put what came into the cache."""
        size = self._block_chunks
        block = self._cache.get(number)
        if part.whole:
            block = _Block(number * size, size, part.ids, part.contents, whole=True)
        else:
            if block is None:
                room = np.zeros((size, self.chunk_length, self.width), np.float32)
                block = _Block(number * size, size, np.full(size, -1), room, whole=False)
            block.add(part)
        self._cache.put(number, block)
        return block

    def chunk(self, id: int) -> Chunk:
        """Return what is known of a chunk. Raises KeyError if it is not in the index."""
        (slot,) = self._slots_of([id])
        row = {name: self.column(name)[slot].item() for name in (*Chunk._fields, "name")}
        name = row.pop("name")
        return Chunk(**(row | {"stream": name.decode()} if name else row))

    def _slots_of(self, ids: Iterable[int]) -> list[int]:
        try:
            return [self._slots[id] for id in ids]
        except KeyError as missing:
            raise KeyError(
                f"chunk {missing} is not in the replica's index; refresh, and scan `ids` again."
            ) from None

    # -- writing

    def append(
        self,
        contents: ArrayLike,
        *,
        first: float,
        last: float,
        stream: int | str = 0,
        episode: int = 0,
        priority: float = 0.0,
        encoder_version: int = 0,
        sequence: int = 0,
        summary: ArrayLike | None = None,
    ) -> int:
        """Send a chunk, float [steps, width], to the memory, refresh, and return its id.

        A shared memory knows a chunk by its writer and its number there: `stream` is the writer's name, the
        number is `sequence`, `first` and `last`, and the rest that is said here is not kept. If the
        retention did not keep the chunk, the highest id that was given is returned.

        Raises NotOwnerError if the replica has no writer's name, ValueError for another stream's chunk or a
        summary of its own, OpenedAgainError if another process has opened the memory under this name, and
        what the source raises. After an error the same chunk may be sent again, and is there once; if
        another one comes in its place, it is taken back.
        """
        if self._writer is None:
            raise NotOwnerError("the replica only reads; make it with a writer's name to append.")
        if stream != self._writer:
            raise ValueError(f"stream is {stream!r}, and the replica writes as {self._writer!r}; use that.")
        if summary is not None:
            raise ValueError("a shared memory makes summaries itself, by the mean over steps; give none.")
        if self._sequence is None:
            self.refresh()
            self._sequence = int(self.column("sequence")[self._mine()].max(initial=-1)) + 1
        self._send(self._writer, self._sequence, np.asarray(contents, np.float32)[None])
        number, self._sequence = self._sequence, self._sequence + 1
        slots = self._mine()
        slots = slots[self.column("sequence")[slots] == number]
        assert self._mark is not None
        return int(self.ids[slots].max(initial=-1)) if len(slots) else self._mark.next_id - 1

    def _mine(self) -> NDArray[np.int64]:
        """Return the slots of the writer's own chunks."""
        assert self._writer is not None
        return np.flatnonzero(self.valid & (self.column("stream") == stream_code(self._writer)))

    def _send(self, writer: str, sequence: int, chunks: NDArray[np.float32]) -> None:
        """Send chunks and see them in the index; whatever fails, sending them again makes it good."""
        try:
            for is_last in (False, True):
                if self._lease is None:
                    self._lease = self._source.open_writer(writer, sequence)
                try:
                    self._source.append(writer, self._lease, sequence, chunks)
                    break
                except NotOpenError:
                    self._lease = None
                    if is_last:
                        raise
            self.refresh()
        except OpenedAgainError:
            raise  # and again, if it is tried again: to open it now would shut out the other one
        except BaseException:
            # Whether they have come is not known; who opens the memory at this number puts them in doubt.
            self._lease = None
            raise

    # -- what is the owner's

    def used(self, ids: Iterable[int], weights: Iterable[float]) -> None:
        """Do nothing: how much a chunk is read by replicas is not told to the memory."""

    def pin(self, ids: Iterable[int]) -> None:
        """Raise NotOwnerError."""
        raise NotOwnerError("a replica cannot pin chunks of a shared memory; ask its owner.")

    def unpin(self, ids: Iterable[int]) -> None:
        """Raise NotOwnerError."""
        raise NotOwnerError("a replica cannot unpin chunks of a shared memory; ask its owner.")

    def drop(self, ids: Iterable[int]) -> None:
        """Raise NotOwnerError."""
        raise NotOwnerError("a replica cannot drop chunks of a shared memory; ask its owner.")

    def flush(self) -> None:
        """Make all that was appended, by anybody, safe from a power cut."""
        self._source.flush()

    # -- state

    def state_dict(self) -> dict[str, Tensor]:
        """Return the number of the chunk that is appended next, -1 if it is not known yet.

        The chunks are the memory's. Who goes on from here and appends something else than before takes back
        what it had appended since; what others did is not taken back.
        """
        return {"replica.sequence": torch.tensor([-1 if self._sequence is None else self._sequence])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on appending from a state that `state_dict` gave."""
        (sequence,) = state["replica.sequence"].tolist()
        self._sequence, self._lease = (None if sequence < 0 else sequence), None

    def close(self) -> None:
        """Let go of the contents that are kept; the memory stays as it is."""
        self._cache.empty()


def _digest(store: ChunkStore, first: int) -> int:
    """Return a checksum of the rows of up to 1,024 slots from `first` on: what chunks are there.

    Of 32 bits, for it is against power cuts, in which a difference is missed once in 2^32 times.
    """
    ids: Any = store.ids[first : first + _COMPARED]
    there = first + np.flatnonzero(ids >= 0)  # of empty slots an owner that was started again knows nothing
    digest = zlib.crc32(ids)
    for array in (*(store.column(name) for name in _COLUMNS), store.summaries):
        rows: Any = array[there]
        digest = zlib.crc32(rows, digest)
    return digest
