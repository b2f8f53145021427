"""One memory of several learners: what each wrote, in one store, and what the others have not seen of it yet.

A learner reads from arrays of its own process, at the speed of its own step: its own chunks, and beside them
copies of those that others wrote, its guests (memory/episode.py). `MemoryLink` takes sealed chunks from there
to a `SharedMemory`, in whatever process that is, and brings what others have sent.

**Who a chunk is.** A chunk's name is its writer and its sequence number, how many chunks that writer had
sealed before. A writer sends its chunks in that order, and says where it begins when it opens the memory:

    open at s      chunks of this writer from s on, if the memory has any, are in doubt: the writer was
                   restored to an older checkpoint, or was killed before it heard that they had come
    append n       n was in doubt and is the same, bit for bit: it is in doubt no longer, nor written again
                   n is another chunk, or new: all of this writer that are still in doubt are dropped, and n
                   is kept
    opened again   whoever opened before may not write any more

So a chunk that is sent twice is there once. A learner that does after a restart what it did before, as it
does if it reads nothing of others, writes what is already there, and nobody notices. One that does something
else takes its lost future back: others let go of it when they next hear from the memory. It does not see it
itself in any case: its own chunks it reads from its own checkpoint. And while a chunk has not arrived, its
writer does not overwrite it (`MemoryLink.turn` waits), so that none is lost however long the memory is away.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.chunks import stream_code
from streamwise.memory.episode import EpisodeMemory
from streamwise.memory.sharded import shard_of
from streamwise.memory.store import InProcessStore

__all__ = [
    "Connection",
    "MemoryCounts",
    "MemoryLink",
    "News",
    "NotOpenError",
    "OpenedAgainError",
    "SharedMemory",
]

_SENT_AT_ONCE = 256  # chunks
_ANSWERED_AT_ONCE = 1024
_RECENT = 4096  # chunks whose writers are remembered apart


class OpenedAgainError(RuntimeError):
    """Another process has opened the memory under this writer's name; this one is not to write any more."""


class NotOpenError(RuntimeError):
    """The memory's process was started again, and has forgotten who was writing: open it again."""


class News(NamedTuple):
    """What has come to a memory.

    age: which life of the memory's process this is. drops: how often chunks were taken back in that life.
    next_id: all ids there ever were are below it. ids, contents: int64 [n] and float32 [n, steps, width], the
    oldest first.
    """

    age: int
    drops: int
    next_id: int
    ids: NDArray[np.int64]
    contents: NDArray[np.float32]


class Connection(Protocol):
    """What a link asks of a `SharedMemory`, in this process or another."""

    def open_writer(self, writer: str, sequence: int) -> int:
        """Begin to write."""

    def append(self, writer: str, lease: int, sequence: int, contents: NDArray[np.float32]) -> int:
        """Send chunks."""

    def news(self, reader: str, after: int, most: int) -> News:
        """Ask what others have written."""

    def gone(self, ids: Sequence[int]) -> list[int]:
        """Ask which chunks are not there any more."""


@dataclass
class _Writer:
    lease: int
    sequence: int  # of the chunk that comes next
    in_doubt: dict[int, int]  # ids by sequence number, in order


class SharedMemory:
    """The chunks of all writers in one store, whose capacity and retention hold for all of them together.

    What `append` has returned for is there after the process was killed, if the store is on disk; and after a
    power cut once `flush` came after it. Which writers are open is forgotten: they open it again.
    """

    def __init__(self, store: InProcessStore) -> None:
        self.store = store
        self.written: dict[str, int] = {}  # chunks by writer, in this life
        self.repeated = self.taken_back = self.given = 0
        self._age = secrets.randbits(62)
        self._drops = 0
        self._writers: dict[str, _Writer] = {}
        self._recent: deque[tuple[int, int]] = deque(
            maxlen=_RECENT
        )  # ids and writers, of all since the first

    def open_writer(self, writer: str, sequence: int) -> int:
        """Begin to write as `writer`, the next chunk being this one; return the lease to write under.

        Raises ValueError for a name that is longer than 32 bytes.
        """
        store = self.store
        own = np.flatnonzero(store.valid & (store.column("stream") == stream_code(writer)))
        later = own[store.column("sequence")[own] >= sequence]
        later = later[np.argsort(store.column("sequence")[later], kind="stable")]
        in_doubt = dict(zip(store.column("sequence")[later].tolist(), store.ids[later].tolist(), strict=True))
        lease = secrets.randbits(62)
        self._writers[writer] = _Writer(lease, sequence, in_doubt)
        return lease

    def append(self, writer: str, lease: int, sequence: int, contents: NDArray[np.float32]) -> int:
        """Take chunks [n, steps, width], numbered from `sequence`; return the number of the one to come next.

        Those that have come before are passed over. Raises NotOpenError in a new life of the memory,
        OpenedAgainError if the lease is not the last that was given, ValueError for a gap, and what the store
        raises.
        """
        at = self._writers.get(writer)
        if at is None:
            raise NotOpenError(f"{writer} has not opened the memory since it was started.")
        if at.lease != lease:
            raise OpenedAgainError(f"another process has opened the memory as {writer}.")
        if sequence > at.sequence:
            raise ValueError(f"{writer} sends chunk {sequence}, and {at.sequence} comes next.")
        chunks = contents[at.sequence - sequence :]
        known = 0
        while known < len(chunks) and at.in_doubt and self._repeats(at, chunks[known]):
            known += 1
        if known < len(chunks):
            self._write(writer, at, chunks[known:])
        return at.sequence

    def _repeats(self, at: _Writer, chunk: NDArray[np.float32]) -> bool:
        """Take note of a chunk that has come before; False if this is another one, or new."""
        id = at.in_doubt.get(at.sequence)
        if id is None or not self._is(id, chunk):
            return False
        del at.in_doubt[at.sequence]
        at.sequence += 1
        self.repeated += 1
        return True

    def _write(self, writer: str, at: _Writer, chunks: NDArray[np.float32]) -> None:
        self._take_back(list(at.in_doubt.values()))
        at.in_doubt.clear()
        first, numbers = self.store.next_id, range(at.sequence, at.sequence + len(chunks))
        try:
            self.store.append_many(chunks, times=numbers, stream=writer, sequence=at.sequence)
        except BaseException:
            del self._writers[writer]  # some may be there: they are in doubt when it is opened again
            raise
        finally:  # readers hear of those, too
            code = stream_code(writer)
            self._recent.extend((id, code) for id in range(first, self.store.next_id))
        self.written[writer] = self.written.get(writer, 0) + len(chunks)
        at.sequence += len(chunks)

    def _is(self, id: int, chunk: NDArray[np.float32]) -> bool:
        try:
            contents, steps = self.store.contents([id])
        except KeyError:  # the retention has let go of it meanwhile
            return False
        return int(steps[0]) == len(chunk) and contents[0, : len(chunk)].tobytes() == chunk.tobytes()

    def _take_back(self, ids: Sequence[int]) -> None:
        there = [id for id in ids if id in self.store]
        if there:
            self.store.drop(there)
            self._drops += 1
            self.taken_back += len(there)

    def news(self, reader: str, after: int, most: int) -> News:
        """Return the newest `most` chunks with ids above `after` that `reader` has not written itself."""
        store = self.store
        if store.next_id <= after + 1:
            nothing = np.zeros((0, store.chunk_length, store.width), np.float32)
            return News(self._age, self._drops, store.next_id, np.zeros(0, np.int64), nothing)
        ids = self._others(stream_code(reader), after)[-min(most, _ANSWERED_AT_ONCE) :]
        contents, _ = store.contents(ids.tolist())
        self.given += len(ids)
        return News(self._age, self._drops, store.next_id, ids, contents)

    def _others(self, reader: int, after: int) -> NDArray[np.int64]:
        """Return the ids above `after` of chunks that are kept and not the reader's, in order."""
        store = self.store
        # Who asks often is not worth a look at all slots.
        if self._recent and self._recent[0][0] <= after + 1:
            newer = takewhile(lambda chunk: chunk[0] > after, reversed(self._recent))
            ids = [id for id, writer in newer if writer != reader and id in store]
            return np.array(ids[::-1], np.int64)
        others = store.valid & (store.column("stream") != reader) & (store.ids > after)
        return np.sort(store.ids[others])

    def gone(self, ids: Sequence[int]) -> list[int]:
        """Return those of these ids under which there is no chunk any more."""
        return [id for id in ids if id not in self.store]

    def flush(self) -> None:
        """Make all that was appended safe from a power cut."""
        self.store.flush()

    def counts(self) -> MemoryCounts:
        """Return how many chunks there are, and what has come and gone in this life."""
        return MemoryCounts(
            self._age,
            os.getpid(),
            len(self.store),
            self.store.capacity,
            dict(self.written),
            self.repeated,
            self.taken_back,
            self.given,
        )


class MemoryCounts(NamedTuple):
    """chunks, of capacity; and in this life, which is called age: written, by writer, repeated, ..."""

    age: int
    process: int
    chunks: int
    capacity: int
    written: dict[str, int]
    repeated: int
    taken_back: int
    given: int


@dataclass
class _Heard:
    """What a link has heard from one shard."""

    after: int | None = None  # ids up to here were heard of; None: nothing was asked yet
    age: int = -1
    drops: int = 0
    problem: str = ""  # why the last exchange failed; empty: it did not


@dataclass
class MemoryLink:
    """Between the memory of one learner, which lasts, and a shared one, of one or several shards.

    name: of the learner. writes: whether its sealed chunks are sent; all go to one shard, which follows from
    its name. reads: whether those of others are admitted, from all shards. `turn` belongs to the thread of
    the learner, after each sample; `exchange` to another one, or one for each shard.
    """

    memory: EpisodeMemory
    name: str
    writes: bool
    reads: bool
    shards: int = 1
    received: int = 0
    waits: bool = False  # the learner does, for what it wrote to arrive
    _lease: int | None = None
    home: int = field(init=False)  # the shard that this learner writes to
    _heard: list[_Heard] = field(init=False)  # by shard
    _inbox: deque[tuple[int, NDArray[np.float32] | None]] = field(default_factory=deque)  # None: it is gone
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        if not self.memory.lasting:
            raise ValueError("chunks of an episode go with it; share a memory that lasts.")
        if self.reads and not len(self.memory.guest_ids):
            raise ValueError("the memory has no room for guests.")
        self.home = shard_of(self.name, self.shards)
        self._heard = [_Heard() for _ in range(self.shards)]

    @property
    def unsent(self) -> int:
        """Chunks that are sealed and not known to have arrived."""
        return int(self.memory.counters[0]) - self.memory.delivered if self.writes else 0

    @property
    def problem(self) -> str:
        """Why the last exchange with a shard failed; empty if none did."""
        return next((heard.problem for heard in self._heard if heard.problem), "")

    def turn(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Admit what has come; wait while no chunk may be overwritten, unless `is_over` says so."""
        if self._inbox:
            self._admit()
        self._wait(self.memory.own_slots - 1, is_over)

    def settle(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until all that is sealed has arrived, unless `is_over` says so.

        For a learner's end: one that has finished is not started again to send the rest.
        """
        self._wait(1, is_over)

    def _admit(self) -> None:
        while self._inbox:
            id, contents = self._inbox[0]
            if contents is None:
                self.memory.dismiss(id)
            else:
                self.memory.admit(id, contents)
                self.received += 1
            self._inbox.popleft()  # now, so that it is here or among the guests whenever somebody looks

    def _wait(self, too_many: int, is_over: Callable[[], bool]) -> None:
        """Wait while so many chunks, or more, have not arrived."""
        if self.unsent < too_many:
            return
        self.waits = True
        with self._arrived:
            while self.unsent >= too_many and not is_over():
                self._arrived.wait(0.05)
        self.waits = False

    def concerns(self, shard: int) -> bool:
        """Whether there is anything to exchange with this shard, ever."""
        return self.reads or (self.writes and shard == self.home)

    def exchange(self, connection: Connection, shard: int = 0) -> bool:
        """Send what has been sealed, and ask for what others have written; return whether there is more."""
        more = self._send(connection) if self.writes and shard == self.home else False
        more = self._receive(connection, shard) or more if self.reads else more
        self._heard[shard].problem = ""
        return more

    def _send(self, connection: Connection) -> bool:
        memory, sealed = self.memory, int(self.memory.counters[0])
        if self._lease is None:
            self._lease = connection.open_writer(self.name, memory.delivered)
        first = memory.delivered
        if first == sealed:
            return False
        # Not overwritten meanwhile: the learner waits for these.
        numbers = range(first, min(sealed, first + _SENT_AT_ONCE))
        chunks = memory.sealed_chunks(numbers).astype(np.float32)
        memory.delivered = connection.append(self.name, self._lease, first, chunks)
        with self._arrived:
            self._arrived.notify()
        return memory.delivered < sealed

    def _receive(self, connection: Connection, shard: int) -> bool:
        heard, room = self._heard[shard], len(self.memory.guest_ids)
        if len(self._inbox) > room:  # the learner is busy; what would come now may have gone by then
            return False
        if heard.after is None:  # a memory that was restored has guests
            heard.after = max(self._ids_of(shard, self.memory.guest_ids), default=-1)
        news = connection.news(self.name, heard.after, room)
        if (news.age, news.drops) != (heard.age, heard.drops):
            self._look_for_gone(connection, shard, news)
        self._inbox.extend(zip(self._guests(shard, news.ids.tolist()), news.contents, strict=True))
        heard.after = news.next_id - 1
        return bool(len(news.ids))

    def _look_for_gone(self, connection: Connection, shard: int, news: News) -> None:
        """Dismiss what was taken back, or let go of: it is not known which."""
        waiting = [id for id, _ in list(self._inbox)]  # at once: the learner empties it meanwhile
        known = self._ids_of(shard, [*waiting, *self.memory.guest_ids.tolist()])
        gone = connection.gone(known) if known else []
        self._inbox.extend((guest, None) for guest in self._guests(shard, gone))
        self._heard[shard].age, self._heard[shard].drops = news.age, news.drops

    def _guests(self, shard: int, ids: Iterable[int]) -> list[int]:
        """Return what chunks of a shard are called among all shards' guests."""
        return [id * self.shards + shard for id in ids]

    def _ids_of(self, shard: int, guests: Iterable[int]) -> list[int]:
        """Return the ids, in their shard, of those guests that are of this one."""
        return [int(guest) // self.shards for guest in guests if guest >= 0 and guest % self.shards == shard]

    def lost(self, problem: str, shard: int = 0) -> None:
        """Say that a shard could not be reached, or has been started again: it is opened anew."""
        self._heard[shard].problem = problem
        if shard == self.home:
            self._lease = None
