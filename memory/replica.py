"""Reading a large shared memory where the reader is: a copy of its index, and as many contents as fit.

A memory of 10^6 chunks has some hundred megabytes of summaries, which are looked at with every read, and
gigabytes of contents, of which a read opens a few. So a reader has the first of its own, and follows the
owner by increments; the second it fetches in blocks, which it keeps as long as there is room:

    owner    SharedMemory, its store, and beside them a `Publisher`, which says what has changed since when
    reader   `Replica`, a `ChunkStore` whose slots are those of the owner's store, row for row

How increments come about, and what is sent after the owner was started again, is in `publisher`. The cache of
contents is emptied then, for an id that was lost may stand for another chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from streamwise.memory.blocks import Block, BlockCache
from streamwise.memory.chunks import stream_code
from streamwise.memory.publisher import Contents, Increment, Mark, Publisher, Source, digests
from streamwise.memory.shared import NotOpenError, OpenedAgainError
from streamwise.memory.table import Indexed, Table

__all__ = ["NotOwnerError", "Publisher", "Replica"]

_BLOCKS_AT_ONCE = 4


class NotOwnerError(RuntimeError):
    """What only the memory itself may do, or who writes to it, was asked of a replica."""


class Replica(Indexed):
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

    >>> from streamwise.memory.shared import SharedMemory
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

    _not_there = "is not in the replica's index; refresh, and scan `ids` again."

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
        self._source, self._cache = source, BlockCache(cached_chunks)
        self._table = Table(self.capacity, self.width)
        self._age: int | None = None  # of the memory's life that the index is of
        self._mark: Mark | None = None  # all changes up to here are known
        self._start: Mark | None = None  # of what is being asked for piece by piece
        self._at = 0  # the slot that comes next
        self._compares = False  # asks for rows that differ
        self._writer, self._sequence = writer, sequence
        self._lease: int | None = None

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
        known = digests(self, self._at) if self._compares else None
        upto = None if self._start is None else self._start.next_id
        found = self._source.changes(self._mark, self._at, upto, known)
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

    def _apply(self, found: Increment) -> None:
        table, slots = self._table, found.slots
        table.in_use = max(table.in_use, found.end)
        self._forget(slots)
        there = found.ids >= 0
        table["id"][slots], table.valid[slots] = found.ids, there
        table.summaries[slots] = found.summaries
        for name, column in found.columns.items():
            table[name][slots] = column
        table.slots.update(zip(found.ids[there].tolist(), slots[there].tolist(), strict=True))

    def _cut(self, in_use: int) -> None:
        """Let go of slots from here on, which a memory that lost chunks has not used yet."""
        table = self._table
        gone = np.arange(in_use, table.in_use)
        self._forget(gone)
        table["id"][gone], table.valid[gone] = -1, False
        table.in_use = in_use

    def _forget(self, slots: NDArray[np.int64]) -> None:
        table = self._table
        there = slots[table["id"][slots] >= 0]
        for id, slot in zip(table["id"][there].tolist(), there.tolist(), strict=True):
            if table.slots.get(id) == slot:  # after power failed, the id may be another chunk's by now
                del table.slots[id]

    # -- reading

    def contents(self, ids: Iterable[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return contents, float32 [k, chunk_length, width], zero after the last step, and the steps, [k].

        Raises KeyError if an id is not in the index, and what the source raises.
        """
        wanted = [int(id) for id in ids]
        slots = self._slots_of(wanted)
        steps = self._table["steps"][slots]
        found = np.empty((len(wanted), self.chunk_length, self.width), np.float32)
        gone: list[int] = []
        missing: dict[int, list[int]] = {}  # places, by block
        for place, id in enumerate(wanted):
            number = id // self._block_chunks
            block = self._cache.get(number)
            kept = None if block is None else block.find(id)
            if kept is not None:
                found[place] = kept
                self._cache.move_to_end(number)
            elif block is not None and block.whole:
                gone.append(place)
            else:
                missing.setdefault(number, []).append(place)
        if missing:
            asked = {number: [wanted[place] for place in places] for number, places in missing.items()}
            for number, block in self._fetch(asked):
                for place in missing[number]:
                    came = None if block is None else block.find(wanted[place])
                    if came is None:
                        gone.append(place)
                    else:
                        found[place] = came
        for place in gone:
            found[place], steps[place] = 0.0, 1
            found[place, 0] = self._table.summaries[slots[place]]
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
        contents = None if block is None else block.find(id)
        if contents is None and (block is None or not block.whole):
            ((_, block),) = self._fetch({number: [id]})
            contents = None if block is None else block.find(id)
        if contents is None:
            raise KeyError(f"the memory has let go of chunk {id} or was started again; refresh.")
        self._cache.move_to_end(number)
        view = contents[: self._table["steps"][slot]]
        view.flags.writeable = False
        return view

    def _fetch(self, wanted: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, Block | None]]:
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

    def _take(self, number: int, part: Contents) -> Block:
        """Put what came into the cache."""
        size = self._block_chunks
        block = self._cache.get(number)
        if part.whole:
            block = Block(number * size, size, part.ids, part.contents, whole=True)
        else:
            if block is None:
                room = np.zeros((size, self.chunk_length, self.width), np.float32)
                block = Block(number * size, size, np.full(size, -1), room, whole=False)
            block.add(part)
        self._cache.put(number, block)
        return block

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
