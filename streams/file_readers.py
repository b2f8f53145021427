"""Readers of one file of events: lines or Parquet rows, out of bytes that may be compressed or damaged."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal, get_args

from streamwise.streams.decode import CsvDecoder, JsonDecoder, RowDecoder
from streamwise.streams.errors import UsageError, meant
from streamwise.streams.fields import Fields, no_column
from streamwise.streams.refusals import BAD_TIME, MALFORMED, OVERSIZE, Unreadable

__all__ = [
    "CHUNK",
    "Decoder",
    "Format",
    "Line",
    "LineReader",
    "Reader",
    "RowReader",
    "Splitter",
    "check_format",
    "check_partitions",
    "csv_decoder",
    "trimmed",
]

Format = Literal["csv", "jsonl", "parquet"]
Decoder = CsvDecoder | JsonDecoder | RowDecoder
Line = bytes | Unreadable  # without its b"\n"

CHUNK = 262_144  # bytes read at once
_PREFIX = 4_096  # bytes by which a file is known again after it was renamed
_START = 200  # bytes kept of a line that is too long
_ROWS = 4_096  # of Parquet, read at once
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)  # what reading raises; pyarrow's own are among them


class Reader(ABC):
    """Records of one open file that have been read and wait to be taken."""

    decoder: Decoder

    def __init__(self, path: str, fields: Fields, file: BinaryIO) -> None:
        self.path, self._fields, self._file = path, fields, file
        self.decoder = RowDecoder(fields)
        self.waiting: list[Any] = []
        self.offset = 0  # of the next record to be taken: the bytes or rows before it
        self.line = 0  # the lines or rows before it
        self.taken = 0  # records, since it was opened
        self.replaced = False  # by other content under the same name
        self.damaged = False
        self._past_damage = False
        self._first = b""  # its first bytes, as far as they are known and wanted

    @abstractmethod
    def fill(self, limit: int) -> None:
        """Read until `limit` records wait, or no more come for now."""

    def finish(self) -> None:  # noqa: B027  rows are always whole
        """Take what there is for all there will be."""

    @abstractmethod
    def take(self, count: int) -> tuple[list[Any], Sequence[int]]:
        """Remove the first `count` records that wait; return their values and the numbers of their lines."""

    @abstractmethod
    def go(self, position: dict[str, Any]) -> bool:
        """Go on from a position, before anything is read; return whether this file has it."""

    def position(self) -> dict[str, Any]:
        """Return where the next record to be taken comes from."""
        first = self._prefix()
        position = {
            "file": self.path,
            "offset": self.offset,
            "line": self.line,
            "prefix": [len(first), hashlib.sha256(first).hexdigest()],
        }
        return {**position, "damaged": True} if self._past_damage else position

    def is_at(self, path: str) -> bool:
        """Whether the open file is now to be found at a path."""
        try:
            return os.path.samestat(os.stat(path), self.stat())
        except OSError:
            return False

    def is_compressed_at(self, path: str, compression: str) -> bool:
        """Whether a path holds in compressed form what this file does, judged by its first bytes."""
        if not compression or not self._first:
            return False
        try:
            with open(path, "rb", buffering=0) as file:
                return _up_to(len(self._first), _uncompressed(file, compression)) == self._first
        except OSError:
            return False

    def stat(self) -> os.stat_result:
        """Return what the system says of the open file, whatever its name is now."""
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _prefix(self) -> bytes:
        return self._first

    def _begins(self, prefix: list[Any]) -> bool:
        """Whether the first bytes are those that a position tells of."""
        length, digest = int(prefix[0]), str(prefix[1])
        return len(self._first) >= length and hashlib.sha256(self._first[:length]).hexdigest() == digest

    def _remove(self, count: int) -> list[Any]:
        values = self.waiting[:count]
        del self.waiting[:count]
        self.taken += len(values)
        self.line += len(values)
        self._past_damage = self.damaged and not self.waiting
        return values

    def _damage(self, error: object, rest: bytes = b"") -> None:
        """Let one refused record say that the file cannot be read on."""
        self.damaged = True
        detail = f"the file is damaged from here on: {' '.join(str(error).split())[:100]}"
        self.waiting.append(Unreadable(MALFORMED, detail, rest[:_START], len(rest)))


class LineReader(Reader):
    """Lines. delimiter: of CSV, None for JSON Lines. follow: the file may still grow, or be replaced."""

    def __init__(
        self, path: str, compression: str, fields: Fields, delimiter: str | None, follow: bool
    ) -> None:
        super().__init__(path, fields, open(path, "rb", buffering=0))  # noqa: SIM115  closed by `close`
        self._longest_header = max(_PREFIX, fields.max_bytes)
        look = _PREFIX if delimiter is None else self._longest_header
        self._bytes = _Bytes(self._file, compression, look)
        self._splitter = Splitter(fields.max_bytes)
        self._delimiter, self._follow = delimiter, follow
        self._has_header = delimiter is None
        self.began = 0  # the offset at which it was opened
        if delimiter is None:
            self.decoder = JsonDecoder(fields)

    def fill(self, limit: int) -> None:
        """Read chunks until `limit` lines wait, or no more come for now."""
        while len(self.waiting) < limit and not (self.damaged or self.replaced):
            if not self._has_header and not self._read_header():
                return
            start = self._bytes.offset
            data = self._bytes.read()
            if self._follow and self._bytes.is_other(self._first, start):
                self.replaced = True  # so what was read may be of either
                return
            if start <= len(self._first) < _PREFIX:
                self._first += data[len(self._first) - start : _PREFIX - start]
            if data:
                self.waiting += self._splitter.feed(data)
            if self._bytes.damage is not None:
                self._damage(self._bytes.damage, self._splitter.unfinished)
            if not data:
                return

    def finish(self) -> None:
        """Take a last line without a line end for a whole one."""
        if not self.damaged:
            self.waiting += self._splitter.finish()

    def take(self, count: int) -> tuple[list[Any], Sequence[int]]:
        """Remove the first `count` lines that wait; return those that are not blank, and their numbers."""
        line = self.line + 1
        lines = self._remove(count)
        self.offset = min(self.offset + sum(map(len, lines)) + len(lines), self._bytes.offset)
        return trimmed(lines, line)

    def go(self, position: dict[str, Any]) -> bool:
        """Go on from a position, before anything is read; return whether this file has it."""
        offset = self.began = position["offset"]
        self._first = self._bytes.beginning(min(_PREFIX, offset))
        if not self._begins(position["prefix"]) or not self._bytes.seek(offset):
            return False
        self.offset, self.line = offset, position["line"]
        self.damaged = self._past_damage = bool(position.get("damaged"))
        return True

    def _prefix(self) -> bytes:
        return self._first[: self.offset]  # however far ahead was read

    def _read_header(self) -> bool:
        """Make the decoder out of the first line, if it is there; go behind it unless further on already."""
        beginning = self._bytes.beginning(self._longest_header)
        header, newline, _ = beginning.partition(b"\n")
        if not newline:
            if len(beginning) == self._longest_header:
                raise UsageError(f"the first line of {self.path} is too long to name columns; is it CSV?")
            if self._follow:
                return False
            while self._bytes.read():
                pass
            if self._bytes.damage is not None:
                self._damage(self._bytes.damage, beginning)
                return False
            if not header:
                return False
        self.decoder = csv_decoder(header, self._fields, self._delimiter or ",", self.path)
        self._has_header = True
        if self.offset == 0:
            self.offset = self.began = len(header) + len(newline)
            self.line = 1
            self._first = beginning[: min(_PREFIX, self.offset)]
            self._bytes.seek(self.offset)
        return True


class RowReader(Reader):
    """Rows of a Parquet file, by batches that do not cross its row groups."""

    def __init__(self, path: str, fields: Fields) -> None:
        import pyarrow.parquet as pq

        super().__init__(path, fields, open(path, "rb"))  # noqa: SIM115  closed by `close`
        self._first = self._file.read(_PREFIX)
        self._batches: Iterator[Any] = iter(())
        try:
            self._parquet = pq.ParquetFile(self._file)
        except _DAMAGE as error:
            self._damage(error)
            return
        schema, names = self._parquet.schema, self._parquet.schema_arrow.names
        self._fields = fields = fields.among(names)
        self.decoder = RowDecoder(fields)
        wanted = [fields.time, fields.type, fields.key, *fields.features, fields.version]
        self._columns = [name for name in dict.fromkeys(wanted) if name is not None]
        leaves = [schema.column(i).path for i in range(len(schema))]
        for name in self._columns:
            if not any(leaf == name or leaf.startswith(f"{name}.") for leaf in leaves):
                raise no_column(name, list(dict.fromkeys([*names, *leaves])), path)
        self._batches = self._read(0)

    def fill(self, limit: int) -> None:
        """Read batches until `limit` rows wait, or no more come."""
        try:
            while len(self.waiting) < limit and not self.damaged:
                batch = next(self._batches, None)
                if batch is None:
                    return
                self.waiting += _rows(batch, self._fields.time)
        except _DAMAGE as error:
            self._damage(error)

    def take(self, count: int) -> tuple[list[Any], Sequence[int]]:
        """Remove the first `count` rows that wait; return them and their numbers."""
        start = self.line + 1
        rows = self._remove(count)
        self.offset += len(rows)
        return rows, range(start, start + len(rows))

    def go(self, position: dict[str, Any]) -> bool:
        """Go on from a position, before anything is read; return whether this file has it."""
        if not self._begins(position["prefix"]):
            return False
        self.offset, self.line = position["offset"], position["line"]
        if position.get("damaged"):
            self.waiting = []
            self.damaged = self._past_damage = True
        elif not self.damaged:
            self._batches = self._read(self.offset)
            return self.offset <= int(self._parquet.metadata.num_rows)
        return True

    def _read(self, row: int) -> Iterator[Any]:
        """Yield the batches from a row on."""
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            skip = min(row, rows)
            row -= skip
            if skip == rows:
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

    def __init__(self, file: BinaryIO, compression: str, look: int) -> None:
        """look: how many bytes `beginning` may be asked for."""
        self._file, self._compression = file, compression
        self.damage: str | None = None  # what is wrong with the bytes from `offset` on
        if compression:
            self._beginning = _up_to(look, _uncompressed(file, compression))
        self._restart()

    def read(self) -> bytes:
        """Return the next bytes, none at the end. All that can be read before damage is."""
        if self.damage is not None:
            return b""
        try:
            data = self._read(CHUNK)
        except _DAMAGE as error:
            data = self._read_up_to(error)
        self.offset += len(data)
        return data

    def seek(self, offset: int) -> bool:
        """Go to an offset; return whether there is one."""
        if not self._compression:
            self.offset = self._file.seek(offset)
            return offset <= os.fstat(self._file.fileno()).st_size
        if offset < self.offset:
            self._restart()
        try:
            while self.offset < offset:
                data = self._read(min(CHUNK, offset - self.offset))
                if not data:
                    return False
                self.offset += len(data)
        except _DAMAGE:
            return False
        return True

    def beginning(self, length: int) -> bytes:
        """Return the first bytes, or as many as can be read."""
        return self._beginning[:length] if self._compression else os.pread(self._file.fileno(), length, 0)

    def is_other(self, first: bytes, offset: int) -> bool:
        """Whether the file no longer begins so, or is too short to have been read to the offset."""
        if self._compression:
            return False
        too_short = os.fstat(self._file.fileno()).st_size < offset
        return too_short or self.beginning(len(first)) != first

    def _restart(self) -> None:
        self._file.seek(0)
        self.offset = 0
        self._read = _uncompressed(self._file, self._compression)

    def _read_up_to(self, error: Exception) -> bytes:
        """Return what comes before the damage in the bytes that could not be read at once."""
        data = bytearray()
        if self._compression:
            offset = self.offset
            self._restart()
            self.seek(offset)
            try:
                while len(data) < CHUNK and (byte := self._read(1)):
                    data += byte
                return bytes(data)
            except _DAMAGE:
                pass
        self.damage = str(error) or type(error).__name__
        return bytes(data)


class Splitter:
    """Cuts bytes into lines, in bounded memory: of a line that is too long only the start is kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.unfinished = b""  # the last line, or its start if it is too long already
        self._size = 0  # of the last line if it is too long already

    def feed(self, data: bytes) -> list[Line]:
        """Return the lines that end in `data`, without their b"\\n"."""
        before: list[Line] = []
        if self._size:
            rest, newline, data = data.partition(b"\n")
            self._size += len(rest)
            if not newline:
                return []
            before = self.finish()
        lines: list[Any] = (self.unfinished + data).split(b"\n")
        self.unfinished = lines.pop()
        if len(self.unfinished) > self._max_bytes:
            self._size, self.unfinished = len(self.unfinished), self.unfinished[:_START]
        if max(map(len, lines), default=0) > self._max_bytes:
            lines = [self._refused(x, len(x)) if len(x) > self._max_bytes else x for x in lines]
        return before + lines

    def finish(self) -> list[Line]:
        """Return the last line, if it has anything in it."""
        line = self._refused(self.unfinished, self._size) if self._size else self.unfinished
        self.unfinished, self._size = b"", 0
        return [line] if line else []

    def _refused(self, line: bytes, size: int) -> Unreadable:
        return Unreadable(OVERSIZE, f"it has more than {self._max_bytes:,} bytes", line[:_START], size)


def trimmed(lines: list[Line], line: int) -> tuple[list[Line], Sequence[int]]:
    """Return the lines that are not blank, without b"\\r" at their ends, and their numbers from `line` on."""
    lines = [x[:-1] if x.__class__ is bytes and x.endswith(b"\r") else x for x in lines]
    numbers = range(line, line + len(lines))
    if b"" not in lines:
        return lines, numbers
    return [x for x in lines if x != b""], [n for n, x in zip(numbers, lines, strict=True) if x != b""]


def csv_decoder(header: bytes, fields: Fields, delimiter: str, where: str) -> CsvDecoder:
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
        return pa.CompressedInputStream(pa.PythonFile(own), "zstd").read  # type: ignore[no-any-return]  # pyarrow says no types
    return file.read


def _up_to(length: int, read: Callable[[int], bytes]) -> bytes:
    """Return the first `length` bytes, or as many as can be read."""
    data = b""
    try:
        while len(data) < length and (more := read(length - len(data))):
            data += more
    except _DAMAGE:
        pass
    return data


def check_format(kind: str | None, delimiter: str | None) -> None:
    """Raise UsageError for a format or a delimiter that cannot be; None stands for the usual one."""
    if kind is not None and kind not in get_args(Format):
        names = get_args(Format)
        raise UsageError(f"{kind!r} is no format.{meant(kind, names)} Choose one of: {', '.join(names)}.")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii()):
        raise UsageError(f"delimiter is {delimiter!r}; give a single character, such as ; or a tab.")


def check_partitions(positions: dict[str, Any], partition: str, name: str) -> None:
    """Raise UsageError for positions of any partition but the only one that the source `name` has."""
    for other in positions:
        if other != partition:
            raise UsageError(
                f"the position is of {other}, but {name} holds {partition}; give the source it belongs to."
            )
