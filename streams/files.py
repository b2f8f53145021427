"""Event logs in files and pipes: CSV, JSON Lines and Parquet; read once, replayed, or followed."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import math
import os
import re
import select
import sys
import time
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from streamwise.streams.decode import (
    BAD_TIME,
    MALFORMED,
    OVERSIZE,
    CsvDecoder,
    Fields,
    JsonDecoder,
    RowDecoder,
    Unreadable,
    hint,
    no_column,
)
from streamwise.streams.errors import UsageError
from streamwise.streams.event import Decoded, Records

__all__ = ["FileSource", "Format", "StdinSource"]

Format = Literal["csv", "jsonl", "parquet"]

_CHUNK = 262_144  # bytes read at once
_PREFIX = 4_096  # bytes by which a file is known again after it was renamed
_WAIT = 0.02  # seconds between looks at a followed file
_ATTEMPTS = 5  # at finding a file while others rename it
_START = 200  # bytes kept of a line that is too long
_ROWS = 4_096  # of Parquet, read at once
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSIONS = (".gz", ".zst")
# What logrotate and logging libraries append to a file's name: numbers, dates, "old", and a compression.
_ROTATED = re.compile(r"[.-](\d[\dT:_.-]*|old)(\.gz|\.zst)?")

_DAMAGE = (OSError, EOFError, ValueError, zlib.error)  # what reading raises; pyarrow's own are among them

_Decoder = CsvDecoder | JsonDecoder | RowDecoder
_Line = bytes | Unreadable


class _Batch(list[Any]):
    """Values, and what reads them: two files of one partition may have different columns."""

    decoder: _Decoder


class FileSource:
    """The events in a file, or in all files that match a glob, one after the other as a single partition.

    path: its suffix says the format (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .pq) unless `format` does,
    and whether it is compressed (.gz, .zst; not Parquet). The files of a glob are read in the order of their
    names. In CSV the first line of each file names the columns, and `delimiter` parts them: by default a
    comma, in .tsv a tab. Blank lines are no records. A damaged file is read up to the damage, which is one
    refused record; then the next file follows.

    follow: wait for more at the end. A line counts once its line end is there. Rotation is survived, also
    while nobody reads: a file is known again by its first 4,096 bytes under any name that rotation gives
    (PATH.1, PATH.2.gz, PATH-20250131, PATH.old, ordered by their times of modification). It is read to its
    end, then those after it, then PATH. Where a file was truncated and no copy of it is found, what it holds
    now is read from the start. A path or glob that matches nothing yet is waited for. New files of a glob
    follow in the order of names; one that sorts before the present file is not read.

    speed: replay, so many times as fast as the records' own times; no record comes before those in front of
    it. clock: seconds, for the replay.

    A position is {"file", "offset", "line", "prefix"}: the bytes (as they are uncompressed) or rows before
    the next record, the lines or rows before it, and [length, SHA-256] of the file's first bytes. Raises
    UsageError for what is wrong with the path, the parameters, a file's columns, or a position whose file is
    gone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Fields,
        *,
        format: Format | None = None,
        delimiter: str | None = None,
        speed: float | None = None,
        follow: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = os.fspath(path)
        self.name = f"file:{given}"
        self.partitions: Sequence[str] = (given,)
        self.finished = False
        self._partition = given
        self._path = str(Path(given).expanduser())
        self._fields, self._format, self._delimiter = fields, format, delimiter
        self._speed, self._follow, self._clock = speed, follow, clock
        _check_format(format, delimiter)
        if speed is not None and not 0.0 < speed < math.inf:
            raise UsageError(f"speed is {speed}; give how many times as fast as recorded, such as 60.")
        is_glob = glob.has_magic(self._path) and not os.path.exists(self._path)
        self._glob = self._path if is_glob else None
        self._matches = self._globbed()
        if not is_glob and not follow:
            _existing(Path(self._path))
        if is_glob and not follow and not self._matches:
            raise UsageError(f"no file matches {given}; check the path, or follow it to wait for one.")
        for file in self._matches if is_glob else [self._path]:
            self._kind(file)

        self._reader: _Reader | None = None
        self._looked = False  # whether anything was read yet
        self._error: UsageError | None = None  # met after records that go first
        self._leaving = False  # a successor is there: what the present file holds by now is all it will hold
        self._due: list[float] = []  # by the clock, of the first records that wait
        self._pace: tuple[float, float] | None = None  # a recorded time, and the clock then

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return up to `limit` records of one file, waiting up to `timeout` seconds for the first.

        Raises UsageError if a file that is reached lacks a column, or cannot be opened.
        """
        if self.finished or self._partition in paused:
            return []
        deadline = time.monotonic() + timeout
        while True:
            if self._error is not None:
                raise self._error
            self._fill(limit)
            count = self._ready(limit)
            if count:
                records = self._take(count)
                if records.values:
                    return [records]
                continue  # nothing but blank lines
            left = deadline - time.monotonic()
            if self.finished or left <= 0.0:
                return []
            until_due = self._due[0] - self._clock() if self._due else math.inf
            time.sleep(max(0.0, min(left, until_due, _WAIT)))

    def decode(self, records: Records) -> Decoded:
        """Read the values of records that `poll` gave."""
        return records.values.decoder.decode(records.values)  # type: ignore[attr-defined, no-any-return]

    def at_end(self, partition: str) -> bool:
        """Whether everything has been polled that the files held when last looked at."""
        return self._looked and (self._reader is None or self._reader.waiting == 0)

    def seek(self, positions: dict[str, Any]) -> None:
        """Go on from the position of this source's partition, under whatever name its file now has."""
        _check_partitions(positions, self._partition, self.name)
        if self._partition not in positions:
            return
        position = positions[self._partition]
        self._reader = self._found(position)
        if self._reader is None:
            renamed = "" if self._glob is not None else ", nor is any that it may have been renamed to"
            raise UsageError(
                f"{position['file']} is not the file that was read before{renamed}; put that back, or start "
                "a new run."
            )

    def commit(self, positions: dict[str, Any]) -> None:
        """Nothing: a file does not care how far it has been read."""

    def lag(self) -> int | None:
        """Return about how many records are left, by their mean length; None where files are compressed."""
        reader = self._reader
        if self.finished:
            return 0
        if not isinstance(reader, _LineReader) or not reader.taken:
            return None
        following = self._after(reader)
        if any(self._kind(file)[1] for file in [reader.path, *following]):
            return None
        left = max(0, reader.size() - reader.offset) + sum(map(_size, following))
        return math.ceil(left * reader.taken / max(1, reader.offset - reader.began))

    def close(self) -> None:
        """Close the file that is open."""
        if self._reader is not None:
            self._reader.close()

    def _fill(self, limit: int) -> None:
        """Read until `limit` records of one file wait, or all that there is for now; go from file to file."""
        self._looked = True
        while self._reader is not None or self._begin():
            reader = self._reader
            assert reader is not None
            if reader.waiting < limit:
                reader.fill(limit)
            if reader.waiting:
                return
            if reader.replaced:
                reader.close()
                self._reader = None
                self._reader = self._found(reader.position())
                if self._reader is None and self._glob is not None:
                    self._reader = self._open(reader.path, None)
            elif not self._follow or self._leaving or reader.damaged:
                reader.finish()
                if reader.waiting or not self._go_on(reader):
                    return
            else:
                # A writer's last line in the old file comes before its first in the new one. So, once the new
                # one holds something, one more look at the old one finds all there will be.
                self._leaving = bool(self._after(reader))
                if not self._leaving:
                    return

    def _begin(self) -> bool:
        """Open the first file, if it is there."""
        if self.finished:
            return False
        if self._glob is not None and self._follow:
            self._matches = self._globbed()
        first = next(iter(self._matches), None) if self._glob is not None else self._path
        if first is None or (self._follow and not os.path.exists(first)):
            return False
        self._reader = self._open(first, None)
        return self._reader is not None

    def _go_on(self, reader: _Reader) -> bool:
        """Open the file after the one that has been read to its end, if there is one."""
        while following := self._after(reader):
            self._reader = None
            new = self._open(following[0], None)
            # The old one is still open: by it we know whether files were renamed in this very moment.
            if new is not None and new.is_at(next(iter(self._after(reader)), "")):
                reader.close()
                self._reader = new
                return True
            if new is not None:
                new.close()
        self._reader = reader
        self.finished = not self._follow
        return False

    def _ready(self, limit: int) -> int:
        """Return how many records can be given now."""
        reader = self._reader
        if reader is None:
            return 0
        count = min(limit, reader.waiting)
        return count if self._speed is None else self._count_due(reader, count, self._speed)

    def _take(self, count: int) -> Records:
        reader = self._reader
        assert reader is not None
        values, lines = reader.take(count)
        del self._due[:count]
        position = reader.position()
        several = len(self._matches) > 1 or (self._glob is None and reader.path != self._path)
        positions = [f"{reader.path}:{line}" for line in lines] if several else lines
        batch = _Batch(values)
        batch.decoder = reader.decoder
        polled_at = time.monotonic()
        if not reader.waiting:  # look ahead, so that `at_end` and `finished` are right at once
            try:
                self._fill(1)
            except UsageError as error:
                self._error = error
        return Records(self._partition, batch, positions, position, polled_at)

    def _count_due(self, reader: _Reader, count: int, speed: float) -> int:
        """Return how many of the first `count` records that wait are due by now."""
        known = len(self._due)
        if known < count:
            decoded = reader.decoder.decode(reader.peek(known, count))
            times = dict(zip(decoded.which, decoded.times, strict=True))
            now = self._clock()
            for i in range(count - known):
                due = self._due[-1] if self._due else -math.inf
                if i in times:
                    self._pace = self._pace or (times[i], now)
                    due = max(due, self._pace[1] + (times[i] - self._pace[0]) / speed)
                self._due.append(due)
        return bisect_right(self._due, self._clock(), hi=count)

    def _open(self, path: str, position: dict[str, Any] | None) -> _Reader | None:
        """Return a reader at the beginning or a position, or None if that file is not there."""
        self._leaving, self._due = False, []
        kind, compression = self._kind(path)
        delimiter = None
        if kind == "csv":
            delimiter = self._delimiter or ("\t" if ".tsv" in Path(path).suffixes else ",")
        try:
            reader: _Reader
            if kind == "parquet":
                reader = _RowReader(path, self._fields)
            else:
                reader = _LineReader(path, compression, self._fields, delimiter, self._follow)
            if position is None or reader.go(position):
                return reader
            reader.close()
            return None
        except OSError as error:
            if isinstance(error, FileNotFoundError) and (self._follow or position is not None):
                return None
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error

    def _kind(self, path: str) -> tuple[Format, str]:
        """Return a file's format and compression, or raise UsageError."""
        is_rotated = path != self._path and self._glob is None  # then its name ends in a number or date
        base, compression = self._path if is_rotated else path, os.path.splitext(path)[1].lower()
        if compression not in _COMPRESSIONS:
            compression = ""
        if os.path.splitext(base)[1].lower() in _COMPRESSIONS:
            base = os.path.splitext(base)[0]
        kind = self._format or _SUFFIXES.get(os.path.splitext(base)[1].lower())
        if kind is None:
            raise UsageError(
                f"the name of {path} says no format; give format=csv, jsonl or parquet, or a suffix out of: "
                f"{' '.join(_SUFFIXES)}."
            )
        if kind == "parquet" and (compression or self._follow):
            what = "compressed as a whole" if compression else "followed: it has no end until it is closed"
            raise UsageError(f"{path} is Parquet, which cannot be {what}.")
        if self._follow and compression and not is_rotated:
            raise UsageError(
                f"{path} is compressed, so it cannot be followed; follow the file that is written."
            )
        return kind, compression

    def _globbed(self) -> list[str]:
        if self._glob is None:
            return []
        matches = glob.glob(self._glob, recursive=True)
        return sorted(path for path in matches if os.path.isfile(path))

    def _rotated(self) -> list[str]:
        """Return what PATH was rotated to, the oldest first; of what is being compressed, the original."""
        folder, name = os.path.split(self._path)
        try:
            names = os.listdir(folder or ".")
        except OSError:
            return []
        found = []
        for other in names:
            match = _ROTATED.fullmatch(other, len(name)) if other.startswith(name) else None
            if match and not (match[2] and other.removesuffix(match[2]) in names):
                path = os.path.join(folder, other)
                number = int(match[1]) if match[1].isdigit() else 0
                try:
                    found.append((os.stat(path).st_mtime_ns, -number, path))
                except OSError:  # renamed just now
                    continue
        return [path for _, _, path in sorted(found)]

    def _after(self, reader: _Reader) -> list[str]:
        """Return the files that hold something and come after the one being read."""
        if self._glob is not None:
            if self._follow:
                self._matches = self._globbed()
            return [
                path for path in self._matches if path > reader.path and (_size(path) or not self._follow)
            ]
        if reader.is_at(self._path):
            return []
        files = [*self._rotated(), self._path]
        here = max((i for i, file in enumerate(files) if reader.is_at(file)), default=None)
        if here is None:  # it was removed, perhaps after it was compressed, which may say a later time
            files = [file for file in files if file == self._path or not self._is_compressed(file, reader)]
            here = sum(_modified(file) <= reader.modified() for file in files[:-1]) - 1
        return [file for file in files[here + 1 :] if _size(file)]

    def _is_compressed(self, path: str, reader: _Reader) -> bool:
        """Whether this is what a reader's file was compressed to."""
        compression = self._kind(path)[1]
        try:
            return (
                compression != ""
                and reader.first != b""
                and _first_bytes(path, compression, len(reader.first)) == reader.first
            )
        except OSError:
            return False

    def _found(self, position: dict[str, Any]) -> _Reader | None:
        """Return a reader at a position, under whatever name its file has now."""
        for _ in range(_ATTEMPTS):  # files may be renamed in this very moment
            others = [] if self._glob is not None else [self._path, *reversed(self._rotated())]
            for path in dict.fromkeys([position["file"], *others]):
                reader = self._open(path, position) if os.path.isfile(path) else None
                if reader is not None:
                    return reader
            if not self._follow:
                break
            time.sleep(_WAIT)
        return None


class _Reader(ABC):
    """Records of one file that have been read and wait to be taken."""

    decoder: _Decoder

    def __init__(self, path: str, fields: Fields) -> None:
        self.path, self._fields = path, fields
        self.decoder = RowDecoder(fields)
        self.offset, self.line = (
            0,
            0,
        )  # of the next record to be taken: bytes or rows, and lines or rows, before it
        self.taken = 0  # records, since it was opened
        self.first = b""  # its first bytes, as far as they are known and wanted
        self.replaced = False  # by other content under the same name
        self.damaged = False
        self._waiting: list[Any] = []
        self._at = 0  # of the next record in _waiting
        self._past_damage = False

    @property
    def waiting(self) -> int:
        return len(self._waiting) - self._at

    @abstractmethod
    def fill(self, limit: int) -> None:
        """Read until `limit` records wait, or no more come for now."""

    def finish(self) -> None:  # noqa: B027  rows are always whole
        """Take what there is for all there will be."""

    @abstractmethod
    def go(self, position: dict[str, Any]) -> bool:
        """Go on from a position, before anything is read; return whether this file has it."""

    @abstractmethod
    def fileno(self) -> int:
        """Return the open file's descriptor."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abstractmethod
    def take(self, count: int) -> tuple[list[Any], Sequence[int]]:
        """Remove the first `count` records that wait; return their values and the numbers of their lines."""

    def peek(self, start: int, stop: int) -> list[Any]:
        """Return records that wait, without taking them."""
        return self._waiting[self._at + start : self._at + stop]

    def position(self) -> dict[str, Any]:
        """Return where the next record to be taken comes from."""
        first = self.first[: self.prefix_length()]
        position = {
            "file": self.path,
            "offset": self.offset,
            "line": self.line,
            "prefix": [len(first), hashlib.sha256(first).hexdigest()],
        }
        return {**position, "damaged": True} if self._past_damage else position

    def prefix_length(self) -> int:
        return _PREFIX

    def is_at(self, path: str) -> bool:
        """Whether the open file is now to be found at a path."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self.fileno()))
        except OSError:
            return False

    def size(self) -> int:
        return os.fstat(self.fileno()).st_size

    def modified(self) -> int:
        return os.fstat(self.fileno()).st_mtime_ns

    def _remove(self, count: int) -> list[Any]:
        values = self._waiting[self._at : self._at + count]
        self._at += len(values)
        if self._at == len(self._waiting):
            self._waiting, self._at = [], 0
        self.taken += len(values)
        self.line += len(values)
        self._past_damage = self.damaged and not self._waiting
        return values

    def _damage(self, error: object, rest: bytes = b"") -> None:
        """Let one refused record say that the file cannot be read on."""
        self.damaged = True
        detail = f"the file is damaged from here on: {' '.join(str(error).split())[:100]}"
        self._waiting.append(Unreadable(MALFORMED, detail, rest[:_START], len(rest)))


class _LineReader(_Reader):
    """Lines. delimiter: of CSV, None for JSON Lines."""

    def __init__(
        self, path: str, compression: str, fields: Fields, delimiter: str | None, follow: bool
    ) -> None:
        super().__init__(path, fields)
        self._longest_header = max(_PREFIX, fields.max_bytes)
        self._bytes = _Bytes(path, compression, _PREFIX if delimiter is None else self._longest_header)
        self._splitter = _Splitter(fields.max_bytes)
        self._delimiter, self._follow = delimiter, follow
        self._has_header = delimiter is None
        self.began = 0  # the offset at which it was opened
        if delimiter is None:
            self.decoder = JsonDecoder(fields)

    def fill(self, limit: int) -> None:
        while self.waiting < limit and not (self.damaged or self.replaced):
            if not self._has_header and not self._read_header():
                return
            start = self._bytes.offset
            data = self._bytes.read()
            if self._follow and self._bytes.is_other(self.first, start):
                self.replaced = True  # so what was read may be of either
                return
            if start <= len(self.first) < _PREFIX:
                self.first += data[len(self.first) - start : _PREFIX - start]
            if data:
                self._waiting = self._waiting[self._at :] + self._splitter.feed(data)
                self._at = 0
            if self._bytes.damage is not None:
                self._damage(self._bytes.damage, self._splitter.unfinished)
            if not data:
                return

    def finish(self) -> None:
        if not self.damaged:
            self._waiting += self._splitter.finish()

    def go(self, position: dict[str, Any]) -> bool:
        offset = self.began = position["offset"]
        self.first = self._bytes.beginning(min(_PREFIX, offset))
        if not _is_prefix(position["prefix"], self.first) or not self._bytes.seek(offset):
            return False
        self.offset, self.line = offset, position["line"]
        self.damaged = self._past_damage = bool(position.get("damaged"))
        return True

    def take(self, count: int) -> tuple[list[Any], Sequence[int]]:
        line = self.line + 1
        lines = self._remove(count)
        self.offset = min(self.offset + sum(map(len, lines)) + len(lines), self._bytes.offset)
        return _trimmed(lines, line)

    def prefix_length(self) -> int:
        return min(_PREFIX, self.offset)

    def fileno(self) -> int:
        return self._bytes.file.fileno()

    def close(self) -> None:
        self._bytes.file.close()

    def _read_header(self) -> bool:
        """Make the decoder out of the first line, if it is there; go behind it unless further on already."""
        beginning = self._bytes.beginning(self._longest_header)
        header, newline, _ = beginning.partition(b"\n")
        if not newline:
            if len(beginning) == self._longest_header:
                raise UsageError(f"the first line of {self.path} is too long to name columns; is it CSV?")
            if not self._follow:
                while self._bytes.read():
                    pass
                if self._bytes.damage is not None:
                    self._damage(self._bytes.damage, beginning)
                    return False
            if self._follow or not header:
                return False
        self.decoder = _csv_decoder(header, self._fields, self._delimiter or ",", self.path)
        self._has_header = True
        if self.offset == 0:
            self.first = beginning[: min(_PREFIX, len(header) + len(newline))]
            self.offset = self.began = len(header) + len(newline)
            self.line = 1
            self._bytes.seek(self.offset)
        return True


class _RowReader(_Reader):
    """Rows of a Parquet file, by batches that do not cross its row groups."""

    def __init__(self, path: str, fields: Fields) -> None:
        import pyarrow.parquet as pq

        super().__init__(path, fields)
        self._file = open(path, "rb")  # noqa: SIM115  closed by `close`
        self.first = self._file.read(_PREFIX)
        self._batches: Iterator[Any] = iter(())
        try:
            self._parquet = pq.ParquetFile(self._file)
        except _DAMAGE as error:
            self._damage(error)
            return
        self._fields = fields = fields.among(self._parquet.schema_arrow.names)
        self.decoder = RowDecoder(fields)
        leaves = [self._parquet.schema.column(i).path for i in range(len(self._parquet.schema))]
        names = [fields.time, fields.type, fields.key, *fields.features]
        self._columns = list(dict.fromkeys(names + ([fields.version] if fields.version is not None else [])))
        for name in self._columns:
            if not any(leaf == name or leaf.startswith(f"{name}.") for leaf in leaves):
                known = list(dict.fromkeys([*self._parquet.schema_arrow.names, *leaves]))
                raise no_column(name, known, path)
        self._batches = self._read(0)

    def fill(self, limit: int) -> None:
        try:
            while self.waiting < limit and not self.damaged:
                batch = next(self._batches, None)
                if batch is None:
                    return
                self._waiting = self._waiting[self._at :] + _rows(batch, self._fields.time)
                self._at = 0
        except _DAMAGE as error:
            self._damage(error)

    def go(self, position: dict[str, Any]) -> bool:
        if not _is_prefix(position["prefix"], self.first):
            return False
        self.offset, self.line = position["offset"], position["line"]
        if position.get("damaged"):
            self._waiting = []
            self.damaged = self._past_damage = True
        elif not self.damaged:
            self._batches = self._read(self.offset)
            return self.offset <= int(self._parquet.metadata.num_rows)
        return True

    def take(self, count: int) -> tuple[list[Any], Sequence[int]]:
        start = self.line + 1
        rows = self._remove(count)
        self.offset += len(rows)
        return rows, range(start, start + len(rows))

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def _read(self, row: int) -> Iterator[Any]:
        """Yield the batches from a row on."""
        for group in range(self._parquet.num_row_groups):
            skip = min(row, self._parquet.metadata.row_group(group).num_rows)
            row -= skip
            if skip == self._parquet.metadata.row_group(group).num_rows:
                continue
            for batch in self._parquet.iter_batches(_ROWS, row_groups=[group], columns=self._columns):
                dropped = min(skip, len(batch))
                skip -= dropped
                if dropped < len(batch):
                    yield batch.slice(dropped)


def _rows(batch: Any, time_name: str) -> list[Any]:
    """Return the rows of a batch as mappings; one that Python has no value for is unreadable."""
    import pyarrow as pa

    names, columns = batch.schema.names, []
    for column in batch.columns:
        # Nanoseconds have no Python value, and finer than microseconds no float of seconds since 1970 is.
        nanoseconds = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
        columns.append(column.cast(pa.timestamp("us", column.type.tz), safe=False) if nanoseconds else column)
    try:
        cells = [column.to_pylist() for column in columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
    except (ValueError, OverflowError):
        return [_row(names, [column[i] for column in columns], time_name) for i in range(len(batch))]


def _row(names: list[str], cells: list[Any], time_name: str) -> dict[str, Any] | Unreadable:
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            row[name] = cell.as_py()
        except UnicodeDecodeError:
            return Unreadable(MALFORMED, f"{name} is not UTF-8")
        except (ValueError, OverflowError):
            return Unreadable(
                BAD_TIME if name == time_name else MALFORMED, f"{name} is outside of what is possible"
            )
    return row


class _Bytes:
    """The uncompressed bytes of a file, from its beginning to its end or to where it is damaged."""

    def __init__(self, path: str, compression: str, look: int) -> None:
        """look: how many bytes `beginning` may be asked for."""
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by its reader
        self._compression = compression
        self.damage: str | None = None  # what is wrong with the bytes from `offset` on
        if compression:
            self._beginning = _up_to(look, _uncompressed(self.file, compression))
        self._restart()

    def read(self) -> bytes:
        """Return the next bytes, none at the end. All that can be read before damage is."""
        if self.damage is not None:
            return b""
        try:
            data = self._read(_CHUNK)
        except _DAMAGE as error:
            data = self._read_up_to(error)
        self.offset += len(data)
        return data

    def seek(self, offset: int) -> bool:
        """Go to an offset; return whether there is one."""
        if not self._compression:
            self.offset = self.file.seek(offset)
            return offset <= os.fstat(self.file.fileno()).st_size
        if offset < self.offset:
            self._restart()
        try:
            while self.offset < offset:
                data = self._read(min(_CHUNK, offset - self.offset))
                if not data:
                    return False
                self.offset += len(data)
        except _DAMAGE:
            return False
        return True

    def beginning(self, length: int) -> bytes:
        """Return the first bytes, or as many as can be read."""
        return self._beginning[:length] if self._compression else os.pread(self.file.fileno(), length, 0)

    def is_other(self, first: bytes, offset: int) -> bool:
        """Whether the file no longer begins so, or is too short to have been read to the offset."""
        if self._compression:
            return False
        too_short = os.fstat(self.file.fileno()).st_size < offset
        return too_short or os.pread(self.file.fileno(), len(first), 0) != first

    def _restart(self) -> None:
        self.file.seek(0)
        self.offset = 0
        self._read = _uncompressed(self.file, self._compression)

    def _read_up_to(self, error: Exception) -> bytes:
        """Return what comes before the damage in the bytes that could not be read at once."""
        data = bytearray()
        if self._compression:
            offset = self.offset
            self._restart()
            self.seek(offset)
            try:
                while len(data) < _CHUNK and (byte := self._read(1)):
                    data += byte
                return bytes(data)
            except _DAMAGE:
                pass
        self.damage = str(error) or type(error).__name__
        return bytes(data)


class _Splitter:
    """Cuts bytes into lines, in bounded memory: of a line that is too long only the start is kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.unfinished = b""  # the last line, or its start if it is too long already
        self._size = 0  # of the last line if it is too long already

    def feed(self, data: bytes) -> list[_Line]:
        """Return the lines that end in `data`, without their b"\\n"."""
        before: list[_Line] = []
        if self._size:
            end = data.find(b"\n")
            self._size += len(data) if end < 0 else end
            if end < 0:
                return []
            before, data = self.finish(), data[end + 1 :]
        lines: list[Any] = (self.unfinished + data).split(b"\n")
        self.unfinished = lines.pop()
        if len(self.unfinished) > self._max_bytes:
            self._size, self.unfinished = len(self.unfinished), self.unfinished[:_START]
        if lines and max(map(len, lines)) > self._max_bytes:
            lines = [self._refused(x, len(x)) if len(x) > self._max_bytes else x for x in lines]
        return before + lines

    def finish(self) -> list[_Line]:
        """Return the last line, if it has anything in it."""
        line: list[_Line] = [self.unfinished] if self.unfinished else []
        if self._size:
            line = [self._refused(self.unfinished, self._size)]
        self.unfinished, self._size = b"", 0
        return line

    def _refused(self, line: bytes, size: int) -> Unreadable:
        return Unreadable(OVERSIZE, f"it has more than {self._max_bytes:,} bytes", line[:_START], size)


def _trimmed(lines: list[_Line], line: int) -> tuple[list[_Line], Sequence[int]]:
    """Return the lines that are not blank, without b"\\r" at their ends, and their numbers from `line` on."""
    lines = [x[:-1] if x.__class__ is bytes and x.endswith(b"\r") else x for x in lines]
    numbers = range(line, line + len(lines))
    if b"" not in lines:
        return lines, numbers
    return [x for x in lines if x != b""], [n for n, x in zip(numbers, lines, strict=True) if x != b""]


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
        _check_format(format, delimiter)
        if format == "parquet":
            raise UsageError(
                "Parquet cannot be read from a pipe; give format=csv or jsonl, or the file's name."
            )
        self.finished = False
        self._fields, self._delimiter = fields, delimiter
        self._decoder: CsvDecoder | JsonDecoder | None = None if format == "csv" else JsonDecoder(fields)
        self._stream = stream if stream is not None else sys.stdin.buffer
        try:
            self._descriptor: int | None = self._stream.fileno()
        except OSError:  # it is in memory, and never has to be waited for
            self._descriptor = None
        self._splitter = _Splitter(fields.max_bytes)
        self._waiting: list[_Line] = []
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
            values, numbers = _trimmed(lines, self._line + 1)
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
        _check_partitions(positions, "stdin", self.name)
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
                data = self._stream.read(_CHUNK)
            elif select.select([self._descriptor], [], [], left)[0]:
                data = os.read(self._descriptor, _CHUNK)
            else:
                return
            self._ended = not data
            self._waiting += self._splitter.feed(data) if data else self._splitter.finish()
            if self._decoder is None and self._waiting:
                header = self._waiting.pop(0)
                if isinstance(header, Unreadable):
                    raise UsageError("the first line of stdin is too long to name columns; is it CSV?")
                self._decoder = _csv_decoder(header, self._fields, self._delimiter or ",", "stdin")
                self._line += 1
        self.finished = self._ended and not self._waiting


def _csv_decoder(header: bytes, fields: Fields, delimiter: str, where: str) -> CsvDecoder:
    """Return the decoder for the columns that a first line names; spaces around the names do not count."""
    try:
        text = header.decode("utf-8-sig").removesuffix("\r")
        columns = next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the first line of {where} cannot be read as names of columns: {error}.") from error
    return CsvDecoder(fields, [column.strip() for column in columns], delimiter, where)


def _uncompressed(file: BinaryIO, compression: str) -> Callable[[int], bytes]:
    """Return what reads up to so many bytes of what a file holds uncompressed, none at the end."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file).read1
    if compression == ".zst":
        import pyarrow as pa

        # pyarrow closes what it was given.
        own = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
        return pa.CompressedInputStream(pa.PythonFile(own), "zstd").read  # type: ignore[no-any-return]
    return file.read


def _first_bytes(path: str, compression: str, length: int) -> bytes:
    """Return the first bytes of what a file holds uncompressed, as many as can be read up to `length`."""
    with open(path, "rb", buffering=0) as file:
        return _up_to(length, _uncompressed(file, compression))


def _up_to(length: int, read: Callable[[int], bytes]) -> bytes:
    data = b""
    try:
        while len(data) < length and (more := read(length - len(data))):
            data += more
    except _DAMAGE:
        pass
    return data


def _is_prefix(prefix: list[Any], first: bytes) -> bool:
    """Whether first bytes are those that a position tells of."""
    length, digest = int(prefix[0]), str(prefix[1])
    return len(first) >= length and hashlib.sha256(first[:length]).hexdigest() == digest


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _check_format(kind: str | None, delimiter: str | None) -> None:
    if kind is not None and kind not in get_args(Format):
        names = get_args(Format)
        raise UsageError(f"{kind!r} is no format.{hint(kind, names)} Choose one of: {', '.join(names)}.")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii()):
        raise UsageError(f"delimiter is {delimiter!r}; give a single character, such as ; or a tab.")


def _check_partitions(positions: dict[str, Any], partition: str, name: str) -> None:
    for other in positions:
        if other != partition:
            raise UsageError(
                f"the position is of {other}, but {name} holds {partition}; give the source it belongs to."
            )


def _existing(path: Path) -> None:
    if path.is_file() or (path.exists() and not path.is_dir()):
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it, or a glob such as {path}/*.csv.")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}, so no file {path}.")
    neighbours = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    raise UsageError(f"there is no file {path}.{hint(path.name, neighbours)}")
