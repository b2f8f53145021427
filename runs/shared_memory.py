"""A memory that several processes share, in a process of its own: a Ray actor's body, and who talks to it.

Nothing here happens at a sample. A learner's own thread puts chunks that have come where its agent reads
them; another one sends what the learner has sealed and asks for what others have, some ten times a second.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.retention import LogThinning, Reservoir, Ring
from streamwise.memory.shared import (
    MemoryCounts,
    MemoryLink,
    News,
    NotOpenError,
    OpenedAgainError,
    SharedMemory,
)
from streamwise.memory.store import InProcessStore

__all__ = ["RETENTIONS", "LinkCounts", "Linked", "MemoryActor", "MemorySettings", "RayConnection"]

RETENTIONS: dict[str, Callable[[], Ring]] = {
    "ring": Ring,
    "reservoir": Reservoir,
    "log-thinning": lambda: LogThinning(window=1024),
}

_FLUSH_SECONDS = 1.0
_EXCHANGE_SECONDS = 0.1
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0  # while the memory is away
_ANSWER_WITHIN_SECONDS = 30.0
_SEND_AT_THE_END_SECONDS = 5.0


@dataclass(frozen=True)
class MemorySettings:
    """One shared memory: chunks of `chunk_length` steps of `width` numbers, at most `capacity` of them."""

    chunk_length: int
    width: int
    capacity: int
    retention: str = "ring"


class MemoryActor:
    """A `SharedMemory` on disk; every second it is made safe from a power cut.

    Its files are opened with the first call, and again with the next one if that failed: another process may
    just be letting go of them.
    """

    def __init__(self, settings: MemorySettings, directory: Path) -> None:
        self._settings, self._directory = settings, directory
        self._opened: SharedMemory | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._flush_for_ever, name="flush", daemon=True).start()

    def _memory(self) -> SharedMemory:
        if self._opened is None:
            s = self._settings
            retention = RETENTIONS[s.retention]()
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

    def process(self) -> int:
        """Return which process this is."""
        return os.getpid()

    def close(self) -> None:
        """Make everything safe, and let go of the files."""
        with self._lock:
            if self._opened is not None:
                self._opened.flush()
                self._opened.store.close()
                self._opened = None


class RayConnection:
    """A `Connection` to a `MemoryActor`. Calls wait for answers, and raise Ray's errors and the actor's."""

    def __init__(self, actor: Any) -> None:
        import ray

        self._ray: Any = ray
        self._actor = actor

    def _call(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._actor, method).remote(*arguments)
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
    """A link, and the thread that keeps it going until the learner ends."""

    def __init__(self, link: MemoryLink, connection: Any, give_up: Callable[[str], None]) -> None:
        self.link, self._connection, self._give_up = link, connection, give_up
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._exchange_for_ever, name="memory", daemon=True)

    def counts(self) -> LinkCounts:
        """Return what has been exchanged."""
        link = self.link
        return LinkCounts(link.received, link.memory.delivered, link.unsent, link.waits, link.problem)

    def _exchange_for_ever(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            more = False
            try:
                more = self.link.exchange(self._connection)
                self.link.problem, pause = "", _FIRST_PAUSE_SECONDS
            except OpenedAgainError as error:
                self._give_up(str(error))
                return
            except NotOpenError:
                self.link.lost("")
                more = True
            except Exception as error:  # whatever it is, the learner goes on, and it is in the status
                self.link.lost(" ".join(str(error).split())[:200] or type(error).__name__)
                self._over.wait(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE_SECONDS)
            if self._over.is_set():
                return
            if not more:
                self._over.wait(_EXCHANGE_SECONDS)

    def __enter__(self) -> Linked:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        deadline = time.monotonic() + _SEND_AT_THE_END_SECONDS
        while self.link.unsent and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._over.set()
        self._thread.join(_SEND_AT_THE_END_SECONDS)
