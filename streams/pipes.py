"""Event logs that come through a pipe: CSV and JSON Lines, one event a line."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, BinaryIO

from streamwise.streams.decode import CsvDecoder, JsonDecoder
from streamwise.streams.errors import UsageError
from streamwise.streams.event import Decoded, Records
from streamwise.streams.fields import Fields
from streamwise.streams.file_readers import (
    CHUNK,
    Format,
    Line,
    Splitter,
    check_format,
    check_partitions,
    csv_decoder,
    trimmed,
)
from streamwise.streams.refusals import Unreadable

__all__ = ["StdinSource"]


class StdinSource:
    """The events that a pipe brings, one a line, until it ends.

    format: "jsonl", or "csv", whose first line names the columns. stream: the pipe, by default standard
    input. A position is {"line"}, how many lines came before. What was piped before is gone, so `seek` only
    sets the count: going on exactly is for whoever writes into the pipe to arrange.
    """

    name = "stdin:"
    partitions: Sequence[str] = ("stdin",)

    def __init__(
        self,
        fields: Fields,
        format: Format | None = None,
        *,
        delimiter: str | None = None,
        stream: BinaryIO | None = None,
    ) -> None:
        check_format(format, delimiter)
        if format == "parquet":
            raise UsageError(
                "Parquet cannot be read from a pipe; give format=csv or jsonl, or the file's name."
            )
        self.finished = False
        self._fields, self._delimiter = fields, delimiter
        self._decoder: CsvDecoder | JsonDecoder | None = None if format == "csv" else JsonDecoder(fields)
        if stream is None and sys.stdin is None:
            raise UsageError("there is no standard input to read events from; pipe them in.")
        self._stream = stream if stream is not None else sys.stdin.buffer
        try:
            self._descriptor: int | None = self._stream.fileno()
        except OSError:  # it is in memory, and never has to be waited for
            self._descriptor = None
        self._splitter = Splitter(fields.max_bytes)
        self._waiting: list[Line] = []
        self._line = 0
        self._looked = self._ended = False

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return up to `limit` records, waiting up to `timeout` seconds for the first."""
        if self.finished or "stdin" in paused:
            return []
        deadline = time.monotonic() + timeout
        while True:
            self._fill(limit, deadline)
            if not self._waiting:
                return []
            lines, self._waiting = self._waiting[:limit], self._waiting[limit:]
            values, numbers = trimmed(lines, self._line + 1)
            self._line += len(lines)
            self.finished = self._ended and not self._waiting
            if values:
                return [Records("stdin", values, numbers, {"line": self._line}, time.monotonic())]

    def decode(self, records: Records) -> Decoded:
        """Read the values of records that `poll` gave."""
        assert self._decoder is not None
        return self._decoder.decode(records.values)

    def at_end(self, partition: str) -> bool:
        """Whether everything has been polled that had come when last looked at."""
        return self._looked and not self._waiting

    def seek(self, positions: dict[str, Any]) -> None:
        """Count lines from a position on; what comes next is what the pipe brings."""
        check_partitions(positions, "stdin", self.name)
        if "stdin" in positions:
            self._line = positions["stdin"]["line"]

    def commit(self, positions: dict[str, Any]) -> None:
        """Nothing: a pipe does not care how far it has been read."""

    def lag(self) -> int | None:
        """Return None: what waits in a pipe cannot be counted."""
        return 0 if self.finished else None

    def close(self) -> None:
        """Leave the pipe open: whoever opened it closes it."""

    def _fill(self, limit: int, deadline: float) -> None:
        """Read lines until `limit` wait, or no more are there and one is, or the deadline has passed."""
        self._looked = True
        while len(self._waiting) < limit and not self._ended:
            left = 0.0 if self._waiting else max(0.0, deadline - time.monotonic())
            if self._descriptor is None:
                data = self._stream.read(CHUNK)
            elif select.select([self._descriptor], [], [], left)[0]:
                data = os.read(self._descriptor, CHUNK)
            else:
                return
            self._ended = not data
            self._waiting += self._splitter.feed(data) if data else self._splitter.finish()
            if self._decoder is None and self._waiting:
                header = self._waiting.pop(0)
                if isinstance(header, Unreadable):
                    raise UsageError("the first line of stdin is too long to name columns; is it CSV?")
                self._decoder = csv_decoder(header, self._fields, self._delimiter or ",", "stdin")
                self._line += 1
        self.finished = self._ended and not self._waiting
