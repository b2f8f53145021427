"""Where refused records go: a log of their own, with reason and position."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamwise.streams.sample import Position

__all__ = ["DeadLetterLimitError", "DeadLetterLog"]

_SHOWN = 2_000  # characters of a record
_NEWEST = 20  # that are kept to be shown


class DeadLetterLimitError(RuntimeError):
    """More records were refused than the run was told to bear."""


class DeadLetterLog:
    """Counts refused records by reason, and keeps each as a line of JSON.

    A line holds `time` (of the refusal), `reason`, `detail`, `partition`, `position` and the beginning of the
    `record`; bytes that are no UTF-8 are written as escapes. path: None keeps counts alone. also: called with
    every line, for a copy elsewhere; those may be repeated after a crash, the file's are not. limit: how many
    may come before `add` raises DeadLetterLimitError.

    A position is the length of the file and the counts; `seek` cuts off what was written after it.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        also: Callable[[bytes], None] | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self.also = also
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self.newest: deque[dict[str, Any]] = deque(maxlen=_NEWEST)  # without the records
        self._file = None if path is None else path.open("ab")

    @property
    def total(self) -> int:
        """How many records were refused."""
        return self.counts.total()

    def add(self, reason: str, detail: str, partition: str, position: int | str, record: Any) -> None:
        """Keep one record. Raises DeadLetterLimitError once there are more than `limit`, having kept it."""
        self.counts[reason] += 1
        letter = {
            "time": time.time(),
            "reason": reason,
            "detail": detail,
            "partition": partition,
            "position": position,
        }
        self.newest.append(letter)
        if self._file is not None or self.also is not None:
            line = json.dumps({**letter, "record": _text(record)}).encode() + b"\n"
            if self._file is not None:
                with self._named_errors():
                    self._file.write(line)
            if self.also is not None:
                self.also(line)
        if self.limit is not None and self.total > self.limit:
            worst, count = self.counts.most_common(1)[0]
            where = "" if self.path is None else f" See {self.path}."
            raise DeadLetterLimitError(
                f"{self.total:,} records were refused, more than the limit of {self.limit:,}; most often "
                f"because of {worst!r} ({count:,}), last at {partition} {position}: {detail}.{where}"
            )

    @property
    def position(self) -> Position:
        """Return how long the file is, all of it safely on disk, and the counts."""
        length = 0
        if self._file is not None:
            with self._named_errors():
                self._file.flush()
                os.fsync(self._file.fileno())
            length = self._file.tell()
        return {"bytes": length, "counts": dict(self.counts)}

    def seek(self, position: Position) -> None:
        """Go on from a position; what was written after it is cut off."""
        self.counts = Counter(position["counts"])
        if self._file is None:
            return
        length = self._file.seek(0, os.SEEK_END)
        if length < position["bytes"]:
            warnings.warn(
                f"{self.path} is shorter than it was at the checkpoint; somebody cut it.", stacklevel=2
            )
        else:
            self._file.truncate(position["bytes"])
            self._file.seek(0, os.SEEK_END)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # whose text has no name where it comes from a write
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _text(record: Any) -> str:
    record = getattr(record, "start", record)  # of a record that its source could not read
    if isinstance(record, bytes | bytearray | memoryview):
        return bytes(record[:_SHOWN]).decode("utf-8", "backslashreplace")
    text = record if isinstance(record, str) else repr(record)
    return text[:_SHOWN]
