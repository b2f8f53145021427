"""A store of sealed chunks in one process: all in memory, or with contents spilled to disk."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from streamwise.memory.holders import InMemory, OnDisk
from streamwise.memory.records import StoredAs, fill, record_type, records_of, set_stream
from streamwise.memory.retention import Ring
from streamwise.memory.segments import SegmentLog
from streamwise.memory.store_table import StoreTable
from streamwise.memory.table import Indexed

__all__ = ["InProcessStore"]

_IN_STATE = ("id", "position", "pins", "use")  # columns by slot
_AT_ONCE = 1024  # chunks


class InProcessStore(Indexed):
    """A `ChunkStore` of at most `capacity` chunks, in this process.

    chunk_length: steps in a chunk, at most. width: numbers in a step. retention: which chunk goes when the
    store is full, the oldest unless said otherwise; a retention serves one store. stored_as: the type that
    contents are kept in; they are returned as float32. seed: of the retention's draws.

    directory: where contents are kept, in segment files; without one they are in memory, and in the state.
    A directory with files is taken up: each chunk that was sealed and not let go of is there again, and a
    damaged tail is cut, with a warning; `recovery` says how much. A chunk is there after the process was
    killed as soon as `append` returned, and after a power cut if `flush` or `state_dict` came after it. A
    state refers to the files: to load it takes back what was appended later. Files without a chunk that is
    kept are deleted, those that an earlier state refers to once `forget_before` says that nobody will ask
    for it.

    Raises ValueError where settings or a chunk are wrong, KeyError for an id that is not kept, ChunkFileError
    for files that are damaged, in use or of other settings, and OSError where the disk fails or is full: the
    chunk that came is then not in the store, and those that are in it are whole.

    Source: Lampinen, Chan, Banino and Hill (2021), arXiv:2105.14039, for chunks and their summaries.

    >>> store = InProcessStore(chunk_length=4, width=2, capacity=2)
    >>> for time in (0.0, 3.0, 6.0):
    ...     steps = [[time, 1.0], [time + 1.0, 1.0], [time + 2.0, 1.0]]
    ...     id = store.append(steps, first=time, last=time + 2.0)
    >>> store.ids.tolist(), store.summaries[:, 0].tolist()
    ([2, 1], [7.0, 4.0])
    >>> contents, steps = store.contents([1])
    >>> contents[0, :, 0].tolist(), steps.tolist()
    ([3.0, 4.0, 5.0, 0.0], [3])
    """

    _table: StoreTable
    _not_there = "is not kept: it was let go, or never sealed; scan `ids` again."

    def __init__(
        self,
        chunk_length: int,
        width: int,
        capacity: int,
        *,
        retention: Ring | None = None,
        directory: Path | None = None,
        stored_as: StoredAs = "float32",
        records_per_file: int = 4096,
        seed: int = 0,
    ) -> None:
        for name, number in (("chunk_length", chunk_length), ("width", width), ("capacity", capacity)):
            if number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more.")
        if stored_as not in ("float32", "float16"):
            raise ValueError(f"stored_as is {stored_as!r}; use 'float32' or 'float16'.")
        self.chunk_length = chunk_length
        self.width = width
        self.capacity = capacity
        self.retention = Ring() if retention is None else retention
        self.generation = 1  # of the next state
        self._table = StoreTable(capacity, width, seed)
        self._record = np.zeros(1, record_type(chunk_length, width, stored_as))
        self._holder: InMemory | OnDisk = (
            InMemory(capacity, self._record.dtype)
            if directory is None
            else OnDisk(SegmentLog(directory, chunk_length, width, stored_as, records_per_file))
        )
        self.recovery = self._holder.recovery
        try:
            self._holder.replay(self._table)
            self.retention.bind(self._table)
        except BaseException:
            self.close()
            raise

    @property
    def next_id(self) -> int:
        """The id that the next chunk gets; every id before is below it."""
        return self._table.next_id

    # -- reading

    def contents(self, ids: Iterable[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return contents, float32 [k, chunk_length, width], zero after the last step, and the steps, [k].

        A chunk on disk is verified when it is first read. Raises KeyError if an id is not kept,
        ChunkFileError if a chunk is damaged.
        """
        slots = self._slots_of(ids)
        found = np.empty((len(slots), self.chunk_length, self.width), np.float32)
        self._holder.read(self._table, slots, found)
        return found, self._table["steps"][slots]

    def used(self, ids: Iterable[int], weights: Iterable[float]) -> None:
        """Say that one read opened these chunks, and the weight that each had in it."""
        self.retention.used(self._slots_of(ids), [float(weight) for weight in weights])

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
        """Seal a chunk, float [steps, width], and return its id, higher than every id before.

        summary: [width]; the mean over the steps if it is None. The retention may decide that the chunk is
        not kept: a reservoir, or by surprise. Raises ValueError if the chunk does not fit or every other is
        pinned, OSError if it cannot be written.
        """
        table, record = self._table, self._record
        steps = fill(record, contents, summary)
        if not first <= last or math.isnan(priority):
            raise ValueError(
                f"the chunk goes from time {first} to {last} with priority {priority}; use numbers, in order."
            )
        record["id"] = table.next_id
        set_stream(record, stream)
        record["episode"], record["first"], record["last"] = episode, first, last
        record["covered"], record["priority"] = steps, priority
        record["encoder_version"], record["sequence"] = encoder_version, sequence
        going = self.retention.going(record[0])
        if going is None:
            table.next_id += 1
            return table.next_id - 1
        try:
            self._drop(going[1:])
            if going:
                slot = going[0]
            elif table.full:
                slot = self._make_room()
            else:
                slot = table.free[0] if table.free else table.in_use
            record["id"] = record["origin"] = table.next_id  # a merge may have taken the one before
            self._place(record, slot)
        except OSError:
            self.retention.bind(table)  # it had counted on the write
            raise
        return table.next_id - 1

    def append_many(
        self, contents: ArrayLike, *, times: Sequence[float], stream: int | str = 0, sequence: int = 0
    ) -> None:
        """Seal chunks of one stream, float [n, steps, width], as `append` does one after another, but faster.

        times: of each, its first and its last. sequence: of the first of them. Raises what `append` raises;
        where the disk fails, the first ones may be in the store already.
        """
        given = np.asarray(contents, np.float32)
        if given.ndim != 3 or len(times) != len(given):
            raise ValueError(
                f"chunks have shape {list(given.shape)}, and {len(times)} times; use [n, steps, width] and n."
            )
        begin = 0
        while begin < len(given):
            room = min(_AT_ONCE, self._holder.room or _AT_ONCE)
            part = slice(begin, min(begin + room, len(given)))
            count = part.stop - begin
            # A retention that looks at each chunk, or chunks that push one another out: one by one.
            if type(self.retention) is Ring and 4 * count <= self.capacity:
                self._append_part(given[part], times[part], stream, sequence + begin)
            else:
                for number in range(begin, part.stop):
                    time = times[number]
                    self.append(
                        given[number], first=time, last=time, stream=stream, sequence=sequence + number
                    )
            begin = part.stop

    def _append_part(
        self, given: NDArray[np.float32], times: Sequence[float], stream: int | str, sequence: int
    ) -> None:
        """Seal chunks that one file has room for."""
        table, count = self._table, len(given)
        records = records_of(given, times, stream, sequence, self._record.dtype)
        records["id"] = records["origin"] = table.next_id + np.arange(count)
        try:
            slots, free = self._slots_for(count)
            self._holder.write(records, slots)
        except (OSError, ValueError):
            self.retention.bind(table)  # which had been told that some would go
            raise
        for slot in slots[table["id"][slots] >= 0].tolist():
            self._evict(slot)
        for _ in range(free):
            heapq.heappop(table.free)
        table.in_use = max(table.in_use, int(slots.max()) + 1)
        table.put_many(records, slots)
        self._holder.keep(records, slots)
        table["pins"][slots], table["use"][slots] = 0, 0.0
        table.lowest.put_many(slots, self.retention.scores(slots))

    def _slots_for(self, count: int) -> tuple[NDArray[np.int64], int]:
        """Return the slots that so many chunks get, in order, and how many of these are free ones."""
        table = self._table
        slots = heapq.nsmallest(count, table.free)
        free = len(slots)
        slots += range(table.in_use, min(table.in_use + count - free, self.capacity))
        while len(slots) < count:
            slots.append(self._make_room())
            table.lowest.put(slots[-1], math.inf)  # so that the next one is another
        return np.array(slots), free

    def pin(self, ids: Iterable[int]) -> None:
        """Keep these chunks until they are unpinned as often. Raises KeyError if one is not kept."""
        for slot in self._slots_of(ids):
            self._table["pins"][slot] += 1
            self.retention.changed(slot)

    def unpin(self, ids: Iterable[int]) -> None:
        """Take back one `pin` of each. Raises ValueError if one is not pinned."""
        for slot in self._slots_of(ids):
            if not self._table["pins"][slot]:
                raise ValueError(
                    f"chunk {self._table['id'][slot]} is not pinned; unpin it once for each pin."
                )
            self._table["pins"][slot] -= 1
            self.retention.changed(slot)

    def drop(self, ids: Iterable[int]) -> None:
        """Let go of these chunks now, as at the end of an episode. Raises ValueError if one is pinned."""
        slots = self._slots_of(ids)
        for slot in slots:
            if self._table["pins"][slot]:
                raise ValueError(f"chunk {self._table['id'][slot]} is pinned; unpin it before it is dropped.")
        self._drop(slots)

    # -- state

    def flush(self) -> None:
        """Make all that was appended safe from a power cut."""
        self._holder.flush()

    def forget_before(self, generation: int) -> None:
        """Delete the files that only states of generations before this one refer to.

        A state's generation is what `generation` said when it was made.
        """
        self._holder.forget_before(generation)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the ids by slot, pins, uses and counters; contents too if they are in memory.

        With a directory they are made safe from a power cut, and referred to.
        """
        self.flush()
        table, slots = self._table, slice(0, self._table.in_use)
        key = table.key - (1 << 64) if table.key >> 63 else table.key
        state = {
            "chunks.settings": torch.tensor(self._settings()),
            "chunks.counters": torch.tensor([table.next_id, self.generation, *self._holder.counters(), key]),
            "chunks.use_scale": torch.tensor([table.use_scale], dtype=torch.float64),
            **{f"chunks.{name}": torch.from_numpy(table[name][slots].copy()) for name in _IN_STATE},
            **self._holder.state(table),
        }
        self._begin_generation(self.generation + 1)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave; what was appended to the files after it is taken back.

        Raises ValueError if it is of a store with other settings, ChunkFileError if the files that it refers
        to are not there.
        """
        settings = state["chunks.settings"].tolist()
        if settings != self._settings():
            raise ValueError(
                f"the state is of a store with {_spelled(settings)}, and this one has "
                f"{_spelled(self._settings())}; use the same settings."
            )
        next_id, generation, oldest_kept, length, mark, key = state["chunks.counters"].tolist()
        in_use = len(state["chunks.id"])
        if in_use > self.capacity:
            raise ValueError(
                f"the state has {in_use:,} slots, and the capacity is {self.capacity:,}; use that many."
            )
        self._holder.go_back(length, mark)
        table = self._table
        table.clear()
        table.next_id, table.key = next_id, key & (2**64 - 1)
        table.use_scale = state["chunks.use_scale"].item()
        for name in _IN_STATE:
            table[name][:in_use] = state[f"chunks.{name}"].numpy()
        self._holder.load(table, state, generation, oldest_kept)
        self._begin_generation(generation + 1)
        table.begin(in_use)
        self.retention.bind(table)

    def _begin_generation(self, generation: int) -> None:
        self.generation = generation
        self._holder.begin_generation(generation)

    def _settings(self) -> list[int]:
        item = self._record["contents"].dtype.itemsize
        return [self.chunk_length, self.width, item, int(isinstance(self._holder, OnDisk))]

    def close(self) -> None:
        """Close the files; the store is not to be used after it."""
        self._holder.close()

    # -- slots

    def _place(self, record: NDArray[Any], slot: int) -> None:
        """Write a chunk's record and put it in a slot, for the one that is there if any."""
        table = self._table
        self._holder.write(record, slot)
        if table["id"][slot] >= 0:
            self._evict(slot)
        else:
            table.occupy(slot)
        self._hold(record, slot)
        table["pins"][slot], table["use"][slot] = 0, 0.0
        self.retention.came(slot)

    def _hold(self, record: NDArray[Any], slot: int) -> None:
        self._table.put(record, slot)
        self._holder.keep(record, slot)

    def _evict(self, slot: int) -> None:
        """Forget the chunk of a slot, which is to be used again or put among the free ones."""
        self.retention.gone(slot)
        self._table.remove(slot)
        self._holder.let_go(int(self._table["position"][slot]))

    def _drop(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._holder.drop(self._table.next_id, slot)
            self._evict(slot)
            heapq.heappush(self._table.free, slot)

    def _make_room(self) -> int:
        """Return a slot for a chunk that comes when all are taken."""
        pair = self.retention.pair()
        if pair is not None:
            self._merge(*pair)
            return pair[1]
        slot = self._table.lowest.first()
        if slot is None:
            raise ValueError(
                f"no chunk may go: all {self.capacity:,} are pinned, or too new; unpin some, or use a larger "
                "capacity."
            )
        return slot

    def _merge(self, left: int, right: int) -> None:
        """Make one chunk of two, in the slot of the first; the other's slot is free then.

        Every second step is left out if they do not fit as they are.
        """
        table, pair = self._table, np.array([left, right])
        contents, steps = self.contents(table["id"][pair].tolist())
        joined = np.concatenate([contents[0, : steps[0]], contents[1, : steps[1]]])
        covered = table["covered"][pair]
        shares = covered / covered.sum()
        record: Any = np.zeros_like(self._record)
        # Of whatever kind the two summaries are, theirs lies between them.
        summary = shares @ table.summaries[pair].astype(np.float64)
        fill(record, joined if len(joined) <= self.chunk_length else joined[::2], summary)
        for name in ("stream", "name", "episode", "first", "origin", "sequence"):
            record[name] = table[name][left]
        record["id"], record["last"], record["covered"] = table.next_id, table["last"][right], covered.sum()
        record["priority"] = shares @ table["priority"][pair]
        record["encoder_version"] = table["encoder_version"][pair].min()
        # If the process is killed before the chunk that comes is written in its place, the second is still
        # there beside what it was merged into: its steps are then covered twice, and none is lost.
        self._holder.write(record, left)
        del table.slots[int(table["id"][left])]
        self._holder.let_go(int(table["position"][left]))
        self._hold(record, left)
        self._evict(right)
        heapq.heappush(table.free, right)
        self.retention.changed(left)


def _spelled(settings: Sequence[int]) -> str:
    steps, width, item, on_disk = settings
    return f"{steps} steps of {width} numbers of {item} bytes {'on disk' if on_disk else 'in memory'}"
