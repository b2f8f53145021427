"""A memory that several processes share, in a process of its own: a Ray actor's body, and who talks to it.

Nothing here happens at a sample. A learner's own thread puts chunks that have come where its agent reads
them; another one sends what the learner has sealed and asks for what others have, some ten times a second.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.publisher import Contents, Increment, Mark, Publisher, Shape
from streamwise.memory.retention import LogThinning, Reservoir, Ring
from streamwise.memory.shared import (
    Connection,
    MemoryCounts,
    MemoryLink,
    News,
    NotOpenError,
    OpenedAgainError,
    SharedMemory,
)
from streamwise.memory.store import InProcessStore

__all__ = ["RETENTIONS", "LinkCounts", "Linked", "MemoryActor", "MemorySettings", "RayConnection"]

# How a shard of so many chunks is kept within them.
RETENTIONS: dict[str, Callable[[int], Ring]] = {
    "ring": lambda capacity: Ring(),
    "reservoir": lambda capacity: Reservoir(),
    "log-thinning": lambda capacity: LogThinning(min(1024, 1 << max(capacity // 2, 1).bit_length() - 1)),
}

_FLUSH_SECONDS = 1.0
_EXCHANGE_SECONDS = 0.1
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0  # while the memory is away
_ANSWER_WITHIN_SECONDS = 30.0
_SEND_AT_THE_END_SECONDS = 5.0
_OBJECT_BYTES = 1 << 29  # of blocks that an actor keeps in Ray's object store
_TRIES_FOR_LOST_OBJECTS = 3


@dataclass(frozen=True)
class MemorySettings:
    """One shared memory: chunks of `chunk_length` steps of `width` numbers, at most `capacity` of them.

    shards: processes that divide its writers, and the capacity.
    """

    chunk_length: int
    width: int
    capacity: int
    retention: str = "ring"
    shards: int = 1


class MemoryActor:
    """A `SharedMemory` on disk; every second it is made safe from a power cut.

    Its files are opened with the first call, and again with the next one if that failed: another process may
    just be letting go of them.

    Blocks of contents that replicas ask for are put into Ray's object store, once each: 512 MB of those that
    were asked for last. An object goes when it is not among these and no process looks at it any more.
    """

    def __init__(self, settings: MemorySettings, directory: Path) -> None:
        self._settings, self._directory = settings, directory
        self._opened: SharedMemory | None = None
        self._published: Publisher | None = None
        self._objects: OrderedDict[int, Any] = OrderedDict()  # references, by block
        self._lock = threading.Lock()
        threading.Thread(target=self._flush_for_ever, name="flush", daemon=True).start()

    def _memory(self) -> SharedMemory:
        if self._opened is None:
            s = self._settings
            retention = RETENTIONS[s.retention](s.capacity)
            self._opened = SharedMemory(
                InProcessStore(
                    s.chunk_length, s.width, s.capacity, retention=retention, directory=self._directory
                )
            )
        return self._opened

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(_FLUSH_SECONDS)
            with self._lock, contextlib.suppress(OSError):  # the next append says so
                if self._opened is not None:
                    self._opened.flush()

    def open_writer(self, writer: str, sequence: int) -> int:
        """See `SharedMemory`."""
        with self._lock:
            return self._memory().open_writer(writer, sequence)

    def append(self, writer: str, lease: int, sequence: int, contents: NDArray[np.float32]) -> int:
        """See `SharedMemory`."""
        with self._lock:
            return self._memory().append(writer, lease, sequence, contents)

    def news(self, reader: str, after: int, most: int) -> News:
        """See `SharedMemory`."""
        with self._lock:
            return self._memory().news(reader, after, most)

    def gone(self, ids: Sequence[int]) -> list[int]:
        """See `SharedMemory`."""
        with self._lock:
            return self._memory().gone(ids)

    def counts(self) -> MemoryCounts:
        """See `SharedMemory`."""
        with self._lock:
            return self._memory().counts()

    def flush(self) -> None:
        """See `SharedMemory`."""
        with self._lock:
            self._memory().flush()

    def _publisher(self) -> Publisher:
        if self._published is None:
            self._published = Publisher(self._memory())
        return self._published

    def shape(self) -> Shape:
        """See `Publisher`."""
        with self._lock:
            return self._publisher().shape()

    def changes(
        self, since: Mark | None, at: int, upto: int | None, digests: Sequence[int] | None
    ) -> Increment:
        """See `Publisher`."""
        with self._lock:
            return self._publisher().changes(since, at, upto, digests)

    def contents(self, wanted: Mapping[int, Sequence[int]], anew: bool = False) -> list[Any]:
        """Return a reference for each whole block, and `Contents` of another; see `Publisher`.

        anew: make the objects again, for they are lost.
        """
        with self._lock:
            publisher = self._publisher()
            return [
                self._object(publisher, block, anew) if publisher.is_whole(block) else publisher.some(ids)
                for block, ids in wanted.items()
            ]

    def _object(self, publisher: Publisher, block: int, anew: bool) -> Any:
        import ray

        found = self._objects.pop(block, None)
        if found is None or anew:
            found = ray.put(publisher.block(block))
        self._objects[block] = found
        shape = publisher.shape()
        block_bytes = 4 * shape.block_chunks * shape.chunk_length * shape.width
        if len(self._objects) * block_bytes > _OBJECT_BYTES and len(self._objects) > 1:
            self._objects.popitem(last=False)
        return found

    def process(self) -> int:
        """Return which process this is."""
        return os.getpid()

    def close(self) -> None:
        """Make everything safe, and let go of the files."""
        with self._lock:
            if self._opened is not None:
                self._opened.flush()
                self._opened.store.close()
                self._opened = self._published = None
                self._objects.clear()


class RayConnection:
    """A `Connection`, and the `Source` of a `Replica`, to a `MemoryActor`.

    Calls wait for answers, up to 30 s, and raise Ray's errors and the actor's. patient: go on to wait while
    the actor is started again, so that a replica notices nothing of it.
    """

    def __init__(self, actor: Any, *, patient: bool = False) -> None:
        import ray

        self._ray: Any = ray
        self._actor, self._options = actor, {"max_task_retries": -1} if patient else {}

    def _call(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._actor, method).options(**self._options).remote(*arguments)
        return self._ray.get(call, timeout=_ANSWER_WITHIN_SECONDS)

    def open_writer(self, writer: str, sequence: int) -> int:
        """See `SharedMemory`."""
        lease: int = self._call("open_writer", writer, sequence)
        return lease

    def append(self, writer: str, lease: int, sequence: int, contents: NDArray[np.float32]) -> int:
        """See `SharedMemory`."""
        number: int = self._call("append", writer, lease, sequence, contents)
        return number

    def news(self, reader: str, after: int, most: int) -> News:
        """See `SharedMemory`."""
        news: News = self._call("news", reader, after, most)
        return news

    def gone(self, ids: Sequence[int]) -> list[int]:
        """See `SharedMemory`."""
        gone: list[int] = self._call("gone", ids)
        return gone

    def flush(self) -> None:
        """See `SharedMemory`."""
        self._call("flush")

    def shape(self) -> Shape:
        """See `Publisher`."""
        shape: Shape = self._call("shape")
        return shape

    def changes(
        self, since: Mark | None, at: int, upto: int | None, digests: Sequence[int] | None
    ) -> Increment:
        """See `Publisher`."""
        found: Increment = self._call("changes", since, at, upto, digests)
        return found

    def contents(self, wanted: Mapping[int, Sequence[int]]) -> list[Contents]:
        """See `Publisher`; whole blocks are views of Ray's object store, which are not to be written to.

        Objects go with the actor that made them; its successor is asked for others.
        """
        ray = self._ray
        for attempt in range(_TRIES_FOR_LOST_OBJECTS):
            parts = self._call("contents", wanted, attempt > 0)
            references = [part for part in parts if isinstance(part, ray.ObjectRef)]
            try:
                objects = iter(ray.get(references, timeout=_ANSWER_WITHIN_SECONDS))
                break
            except ray.exceptions.ObjectLostError:
                if attempt == _TRIES_FOR_LOST_OBJECTS - 1:
                    raise
        return [next(objects) if isinstance(part, ray.ObjectRef) else part for part in parts]


@dataclass(frozen=True)
class LinkCounts:
    """What a learner has exchanged: chunks received and sent, those that are not known to have arrived.

    problem: why the memory cannot be reached; empty if it can be. waits: the learner waits for it.
    """

    received: int
    sent: int
    unsent: int
    waits: bool
    problem: str


class Linked:
    """A link, and the threads, one for each shard, that keep it going until the learner ends."""

    def __init__(
        self, link: MemoryLink, connections: Sequence[Connection], give_up: Callable[[str], None]
    ) -> None:
        self.link, self._give_up = link, give_up
        self._over = threading.Event()
        self._threads = {
            shard: threading.Thread(
                target=self._exchange_for_ever, args=(connection, shard), name=f"memory {shard}", daemon=True
            )
            for shard, connection in enumerate(connections)
            if link.concerns(shard)
        }

    def counts(self) -> LinkCounts:
        """Return what has been exchanged."""
        link = self.link
        return LinkCounts(link.received, link.memory.delivered, link.unsent, link.waits, link.problem)

    def _exchange_for_ever(self, connection: Connection, shard: int) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            more = False
            try:
                more = self.link.exchange(connection, shard)
                pause = _FIRST_PAUSE_SECONDS
            except OpenedAgainError as error:
                self._give_up(str(error))
                return
            except NotOpenError:
                self.link.lost("", shard)
                more = True
            except Exception as error:  # whatever it is, the learner goes on, and it is in the status
                self.link.lost(" ".join(str(error).split())[:200] or type(error).__name__, shard)
                self._over.wait(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE_SECONDS)
            if self._over.is_set():
                return
            if not more:
                self._over.wait(_EXCHANGE_SECONDS)

    def __enter__(self) -> Linked:
        for thread in self._threads.values():
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        deadline = time.monotonic() + _SEND_AT_THE_END_SECONDS
        sender = self._threads.get(self.link.home)
        while self.link.unsent and sender and sender.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._over.set()
        for thread in self._threads.values():
            thread.join(_SEND_AT_THE_END_SECONDS)
