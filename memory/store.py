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

from streamwise.memory.chunks import Chunk, stream_code
from streamwise.memory.retention import Ring, Table
from streamwise.memory.segments import (
    CHUNK,
    DROP,
    ChunkFileError,
    Recovery,
    SegmentLog,
    StoredAs,
    record_type,
)

__all__ = ["InProcessStore"]

# Columns of the table that are fields of a record, under the same name.
_RECORDED = [
    "id", "origin", "position", "stream", "name", "episode", "first", "last", "covered", "priority", "steps",
    "encoder_version", "sequence",
]  # fmt: skip
_IN_STATE = ("id", "position", "pins", "use")  # columns by slot
_AT_ONCE = 1024  # chunks
_NOT_FINITE = "the contents of a chunk are not finite as {}; look where they come from."


class InProcessStore:
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
        self._record = np.zeros(1, record_type(chunk_length, width, stored_as))
        self._log: SegmentLog | None = None
        self._held: NDArray[Any] | None = None  # contents by slot, without a directory
        # Pages that were never written take no memory, so that room for all is made at once.
        self._table = Table(capacity, seed)
        self._summaries = np.zeros((capacity, width), np.float32)
        self._valid = np.zeros(capacity, np.bool_)
        self._in_use = 0  # slots that were ever used: those before this one
        self._free: list[int] = []  # a heap of those that are empty; the lowest is used first
        if directory is None:
            self._held = np.zeros((capacity, chunk_length, width), stored_as)
            self.recovery = Recovery(0, 0, 0)
            self.retention.bind(self._table)
        else:
            self._log = SegmentLog(directory, chunk_length, width, stored_as, records_per_file)
            self.recovery = self._log.recovery
            try:
                self._replay(self._log)
            except BaseException:
                self.close()
                raise

    def __len__(self) -> int:
        return len(self._table.slots)

    def __contains__(self, id: int) -> bool:
        return id in self._table.slots

    @property
    def next_id(self) -> int:
        """The id that the next chunk gets; every id before is below it."""
        return self._table.next_id

    @property
    def summaries(self) -> NDArray[np.float32]:
        """The mean over each chunk's steps, or what was given in its place, float32 [slots, width]."""
        return self._summaries[: self._in_use]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The id of each slot's chunk, int64 [slots]; -1: empty."""
        return self._table["id"][: self._in_use]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Whether there is a chunk in each slot, bool [slots]."""
        return self._valid[: self._in_use]

    def column(self, name: str) -> NDArray[Any]:
        """Return a field of `Chunk` for each slot, [slots]; streams as `stream_code` says."""
        return self._table[name][: self._in_use]

    # -- reading

    def contents(self, ids: Iterable[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return contents, float32 [k, chunk_length, width], zero after the last step, and the steps, [k].

        A chunk on disk is verified when it is first read. Raises KeyError if an id is not kept,
        ChunkFileError if a chunk is damaged.
        """
        slots = self._slots_of(ids)
        found = np.empty((len(slots), self.chunk_length, self.width), np.float32)
        if self._log is None:
            assert self._held is not None
            found[:] = self._held[slots]
        else:
            self._log.read(self._table["position"][slots].tolist(), found)
        return found, self._table["steps"][slots]

    def chunk(self, id: int) -> Chunk:
        """Return what is known of a chunk. Raises KeyError if it is not kept."""
        (slot,) = self._slots_of([id])
        row = {name: self._table[name][slot].item() for name in (*Chunk._fields, "name")}
        name = row.pop("name")
        return Chunk(**(row | {"stream": name.decode()} if name else row))

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
        steps = self._fill(record, contents, summary)
        if not first <= last or math.isnan(priority):
            raise ValueError(
                f"the chunk goes from time {first} to {last} with priority {priority}; use numbers, in order."
            )
        record["id"] = table.next_id
        record["stream"], record["name"] = stream_code(stream), _name(stream)
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
                slot = self._free[0] if self._free else self._in_use
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
            room = _AT_ONCE if self._log is None else min(_AT_ONCE, self._log.room)
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
        table, count, steps = self._table, len(given), given.shape[1]
        self._check_shape(given[0])
        records: Any = np.zeros(count, self._record.dtype)
        with np.errstate(over="ignore"):
            records["contents"][:, :steps] = given
        if not _all_finite(records["contents"]) or not _all_finite(np.asarray(times)):
            raise ValueError(_NOT_FINITE.format(records["contents"].dtype.name))
        numbers = np.arange(count)
        records["id"] = records["origin"] = table.next_id + numbers
        records["stream"], records["name"] = stream_code(stream), _name(stream)
        records["first"] = records["last"] = times
        records["covered"] = records["steps"] = steps
        records["sequence"] = sequence + numbers
        records["summary"] = np.add.reduce(given, 1, np.float64) / steps
        try:
            slots, free = self._slots_for(count)
            if self._log is not None:
                records["kind"], records["slot"] = CHUNK, slots
                self._log.append_chunks(records)
        except (OSError, ValueError):
            self.retention.bind(table)  # which had been told that some would go
            raise
        for slot in slots[table["id"][slots] >= 0].tolist():
            self._evict(slot)
        for _ in range(free):
            heapq.heappop(self._free)
        self._in_use = max(self._in_use, int(slots.max()) + 1)
        self._take(records, slots, slice(None))
        table["pins"][slots], table["use"][slots] = 0, 0.0
        table.slots.update(zip(records["id"].tolist(), slots.tolist(), strict=True))
        table.next_id += count
        self._valid[slots] = True
        if self._log is not None:
            self._log.keep(int(records["position"][0]), count)
        else:
            assert self._held is not None
            self._held[slots] = records["contents"]
        table.lowest.put_many(slots, self.retention.scores(slots))

    def _slots_for(self, count: int) -> tuple[NDArray[np.int64], int]:
        """Return the slots that so many chunks get, in order, and how many of these are free ones."""
        slots = heapq.nsmallest(count, self._free)
        free = len(slots)
        slots += range(self._in_use, min(self._in_use + count - free, self.capacity))
        while len(slots) < count:
            slots.append(self._make_room())
            self._table.lowest.put(slots[-1], math.inf)  # so that the next one is another
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
        if self._log is not None:
            self._log.flush()

    def forget_before(self, generation: int) -> None:
        """Delete the files that only states of generations before this one refer to.

        A state's generation is what `generation` said when it was made.
        """
        if self._log is not None:
            self._log.oldest_kept = generation
            self._log.remove_files()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the ids by slot, pins, uses and counters; contents too if they are in memory.

        With a directory they are made safe from a power cut, and referred to.
        """
        self.flush()
        table, slots = self._table, slice(0, self._in_use)
        kept, length, mark = 1, 0, 0
        if self._log is not None:
            kept, length = self._log.oldest_kept, self._log.length
            mark = self._log.mark(length)
        key = table.key - (1 << 64) if table.key >> 63 else table.key
        state = {
            "chunks.settings": torch.tensor(self._settings()),
            "chunks.counters": torch.tensor([table.next_id, self.generation, kept, length, mark, key]),
            "chunks.use_scale": torch.tensor([table.use_scale], dtype=torch.float64),
            **{f"chunks.{name}": torch.from_numpy(table[name][slots].copy()) for name in _IN_STATE},
        }
        if self._held is not None:
            alive = np.flatnonzero(self.valid)
            records: Any = np.zeros(len(alive), self._record.dtype)
            for name in _RECORDED:
                records[name] = table[name][alive]
            records["summary"], records["contents"] = self._summaries[alive], self._held[alive]
            state["chunks.records"] = torch.from_numpy(records.view(np.uint8).reshape(-1, records.itemsize))
        self.generation += 1
        if self._log is not None:
            self._log.generation = self.generation
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
        ids, positions = (state[f"chunks.{name}"].numpy() for name in ("id", "position"))
        if len(ids) > self.capacity:
            raise ValueError(
                f"the state has {len(ids):,} slots, and the capacity is {self.capacity:,}; use that many."
            )
        if self._log is not None:
            self._log.truncate(length, mark)
        table = self._table
        table.clear()
        table.next_id, table.key = next_id, key & (2**64 - 1)
        table.use_scale = state["chunks.use_scale"].item()
        for name in _IN_STATE:
            table[name][: len(ids)] = state[f"chunks.{name}"].numpy()
        self.generation = generation + 1
        slots = np.flatnonzero(ids >= 0)
        if self._log is not None:
            self._log.generation, self._log.oldest_kept = generation, oldest_kept
            self._gather(self._log, slots, positions[slots])
            self._log.generation = self.generation
        else:
            assert self._held is not None
            records = state["chunks.records"].numpy().copy().view(self._record.dtype).reshape(-1)
            self._take(records, slots, slice(None))
            self._held[slots] = records["contents"]
        self._begin(len(ids))

    def close(self) -> None:
        """Close the files; the store is not to be used after it."""
        if self._log is not None:
            self._log.close()

    # -- slots

    def _place(self, record: NDArray[Any], slot: int) -> None:
        """Write a chunk's record and put it in a slot, for the one that is there if any."""
        table = self._table
        self._write(record, CHUNK, slot)
        if table["id"][slot] >= 0:
            self._evict(slot)
        elif slot == self._in_use:
            self._in_use += 1
        else:
            heapq.heappop(self._free)
        self._hold(record, slot)
        table["pins"][slot], table["use"][slot] = 0, 0.0
        self.retention.came(slot)

    def _hold(self, record: NDArray[Any], slot: int) -> None:
        chunk = dict(
            zip(_RECORDED, record[_RECORDED].item(), strict=True)
        )  # at once: fields are slow one by one
        for name, value in chunk.items():
            self._table.columns[name][slot] = value
        self._summaries[slot] = record["summary"][0]
        self._table.slots[chunk["id"]] = slot
        self._table.next_id = chunk["id"] + 1
        self._valid[slot] = True
        if self._log is not None:
            self._log.keep(chunk["position"])
        else:
            assert self._held is not None
            self._held[slot] = record["contents"][0]

    def _evict(self, slot: int) -> None:
        """Forget the chunk of a slot, which is to be used again or put among the free ones."""
        table = self._table
        self.retention.gone(slot)
        del table.slots[int(table["id"][slot])]
        table["id"][slot] = -1
        self._valid[slot] = False
        if self._log is not None:
            self._log.let_go(int(table["position"][slot]))

    def _drop(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if self._log is not None:
                record = np.zeros_like(self._record)
                record["id"] = self._table.next_id
                self._write(record, DROP, slot)
            self._evict(slot)
            heapq.heappush(self._free, slot)

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
        summary = shares @ self._summaries[pair].astype(np.float64)
        self._fill(record, joined if len(joined) <= self.chunk_length else joined[::2], summary)
        for name in ("stream", "name", "episode", "first", "origin", "sequence"):
            record[name] = table[name][left]
        record["id"], record["last"], record["covered"] = table.next_id, table["last"][right], covered.sum()
        record["priority"] = shares @ table["priority"][pair]
        record["encoder_version"] = table["encoder_version"][pair].min()
        # If the process is killed before the chunk that comes is written in its place, the second is still
        # there beside what it was merged into: its steps are then covered twice, and none is lost.
        self._write(record, CHUNK, left)
        del table.slots[int(table["id"][left])]
        if self._log is not None:
            self._log.let_go(int(table["position"][left]))
        self._hold(record, left)
        self._evict(right)
        heapq.heappush(self._free, right)
        self.retention.changed(left)

    def _fill(self, record: NDArray[Any], contents: ArrayLike, summary: ArrayLike | None) -> int:
        """Put contents and their summary into a record, and return how many steps they are."""
        given = np.asarray(contents, np.float32)
        self._check_shape(given)
        stored, steps = record["contents"][0], len(given)
        with np.errstate(over="ignore"):
            stored[:steps] = given
        stored[steps:] = 0.0
        if not _all_finite(stored):
            raise ValueError(_NOT_FINITE.format(stored.dtype.name))
        if summary is None:
            record["steps"], record["summary"] = steps, np.add.reduce(given, 0, np.float64) / steps
            return steps
        found = np.asarray(summary, np.float32)
        if found.shape != (self.width,) or not _all_finite(found):
            raise ValueError(
                f"the summary of a chunk has shape {list(found.shape)}; use {self.width} finite numbers."
            )
        record["steps"], record["summary"] = steps, found
        return steps

    def _check_shape(self, chunk: NDArray[np.float32]) -> None:
        if chunk.ndim != 2 or chunk.shape[1] != self.width or not 1 <= len(chunk) <= self.chunk_length:
            raise ValueError(
                f"the contents of a chunk have shape {list(chunk.shape)}; use [steps, {self.width}] with 1 "
                f"to {self.chunk_length} steps."
            )

    def _write(self, record: NDArray[Any], kind: int, slot: int) -> None:
        if self._log is not None:
            record["kind"], record["slot"] = kind, slot
            self._log.append(record)

    def _slots_of(self, ids: Iterable[int]) -> list[int]:
        found = []
        for id in ids:
            slot = self._table.slots.get(int(id))
            if slot is None:
                raise KeyError(f"chunk {id} is not kept: it was let go, or never sealed; scan `ids` again.")
            found.append(slot)
        return found

    # -- restarts

    def _replay(self, log: SegmentLog) -> None:
        """Find what the log's records leave in each slot."""
        positions, in_use = np.full(self.capacity, -1), 0
        for first, records in log.files():
            slots, chunks = records["slot"].astype(np.int64), records["kind"] == CHUNK
            in_use = max(in_use, int(slots.max()) + 1)
            if in_use > self.capacity:
                raise ValueError(
                    f"{log.directory} holds a chunk in slot {in_use - 1:,}, and the capacity is "
                    f"{self.capacity:,}; use a larger one, or another directory."
                )
            # Of records of the same slot the last one counts.
            positions[slots] = np.where(chunks, first + np.arange(len(records)), -1)
            self._table.next_id = max(
                self._table.next_id, int((records["id"].astype(np.int64) + chunks).max())
            )
        slots = np.flatnonzero(positions >= 0)
        self._gather(log, slots, positions[slots])
        self._begin(in_use)

    def _gather(self, log: SegmentLog, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Read what is known of the chunks at these positions, and their summaries, into the slots."""
        found = 0
        for first, records in log.files():
            there = np.flatnonzero((positions >= first) & (positions < first + len(records)))
            self._take(records, slots[there], positions[there] - first)
            found += len(there)
        if found < len(slots):
            raise ChunkFileError(
                f"{log.directory} lacks files of {len(slots) - found:,} chunks that are kept; put them back, "
                "or go on from an older checkpoint."
            )
        log.ask_for(positions)

    def _take(self, records: NDArray[Any], slots: NDArray[np.int64], rows: Any) -> None:
        for name in _RECORDED:
            self._table[name][slots] = records[name][rows]
        self._summaries[slots] = records["summary"][rows]

    def _begin(self, in_use: int) -> None:
        """Go on from the table as it is, with so many slots used so far."""
        table, self._in_use = self._table, in_use
        self._valid[:] = table["id"] >= 0
        slots = np.flatnonzero(self._valid)
        table.slots.update(zip(table["id"][slots].tolist(), slots.tolist(), strict=True))
        self._free = np.flatnonzero(~self._valid[:in_use]).tolist()  # in order: a heap
        self.retention.bind(table)

    def _settings(self) -> list[int]:
        item = self._record["contents"].dtype.itemsize
        return [self.chunk_length, self.width, item, int(self._log is not None)]


def _all_finite(numbers: NDArray[Any]) -> bool:
    # Not `all`, the method, which goes through Python and takes twice as long.
    return bool(np.logical_and.reduce(np.isfinite(numbers), None))


def _name(stream: int | str) -> bytes:
    """What a record keeps of a stream's name; nothing of a number."""
    if not isinstance(stream, str):
        return b""
    name = stream.encode()
    if not 1 <= len(name) <= 32 or b"\0" in name:
        raise ValueError(f"stream is {stream!r}; use a name of 1 to 32 bytes without NUL, or a number.")
    return name


def _spelled(settings: Sequence[int]) -> str:
    steps, width, item, on_disk = settings
    return f"{steps} steps of {width} numbers of {item} bytes {'on disk' if on_disk else 'in memory'}"
