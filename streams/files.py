"""Event logs in files: CSV, JSON Lines and Parquet; one file or many, read once, replayed, or followed."""

from __future__ import annotations

import glob
import math
import os
import re
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import Decoded, Records
from streamwise.streams.fields import Fields
from streamwise.streams.file_readers import (
    Decoder,
    Format,
    LineReader,
    Reader,
    RowReader,
    check_format,
    check_partitions,
)

__all__ = ["FileSource"]

_WAIT = 0.02  # seconds between looks at a followed file
_ATTEMPTS = 5  # at finding a file while others rename it
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
        check_format(format, delimiter)
        if speed is not None and not 0.0 < speed < math.inf:
            raise UsageError(f"speed is {speed}; give how many times as fast as recorded, such as 60.")
        self._is_glob = glob.has_magic(self._path) and not os.path.exists(self._path)
        self._files = self._listed()
        if not follow and not self._is_glob:
            _check_exists(Path(self._path))
        if not follow and not self._files:
            raise UsageError(f"no file matches {given}; check the path, or follow it to wait for one.")
        for file in self._files:
            self._kind(file)
        if not any(map(os.path.exists, self._files)):
            warnings.warn(f"{self.name}: there is no such file yet; waiting for it.", stacklevel=2)

        self._reader: Reader | None = None  # of the present file
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
            if count := self._ready(limit):
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
        assert isinstance(records.values, _Batch)
        return records.values.decoder.decode(records.values)

    def at_end(self, partition: str) -> bool:
        """Whether everything has been polled that the files held when last looked at."""
        return self._looked and (self._reader is None or not self._reader.waiting)

    def seek(self, positions: dict[str, Any]) -> None:
        """Go on from the position of this source's partition, under whatever name its file now has."""
        check_partitions(positions, self._partition, self.name)
        if self._partition not in positions:
            return
        position = positions[self._partition]
        self._reader = self._found(position)
        if self._reader is None:
            renamed = "" if self._is_glob else ", nor is any that it may have been renamed to"
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
        if not isinstance(reader, LineReader) or not reader.taken:
            return None
        following = self._after(reader)
        if any(map(_compression, [reader.path, *following])):
            return None
        left = max(0, reader.stat().st_size - reader.offset) + sum(map(_size, following))
        return math.ceil(left * reader.taken / max(1, reader.offset - reader.began))

    def close(self) -> None:
        """Close the file that is open."""
        if self._reader is not None:
            self._reader.close()

    def _fill(self, limit: int) -> None:
        """Read until `limit` records of one file wait, or all that there is for now; go from file to file."""
        self._looked = True
        while reader := self._reader or self._begin():
            reader.fill(limit)
            if reader.waiting:
                return
            if reader.replaced:
                reader.close()
                self._reader = None
                self._reader = self._found(reader.position())
                if self._reader is None and self._is_glob:
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

    def _begin(self) -> Reader | None:
        """Open the first file, if it is there."""
        if self._follow:
            self._files = self._listed()
        if self._files and (os.path.exists(self._files[0]) or not self._follow):
            self._reader = self._open(self._files[0], None)
        return self._reader

    def _go_on(self, reader: Reader) -> bool:
        """Open the file after the one that has been read to its end, if there is one."""
        while following := self._after(reader):
            new = self._open(following[0], None)
            # The old one is still open: by it we know whether files were renamed in this very moment.
            if new is not None and new.is_at(next(iter(self._after(reader)), "")):
                reader.close()
                self._reader = new
                return True
            if new is not None:
                new.close()
        self.finished = not self._follow
        return False

    def _ready(self, limit: int) -> int:
        """Return how many records can be given now: those that wait or, of a replay, those that are due."""
        reader = self._reader
        if reader is None:
            return 0
        count = min(limit, len(reader.waiting))
        if self._speed is None:
            return count
        known = len(self._due)
        if known < count:
            decoded = reader.decoder.decode(reader.waiting[known:count])
            times = dict(zip(decoded.which, decoded.times, strict=True))
            now = self._clock()
            for i in range(count - known):
                due = self._due[-1] if self._due else -math.inf
                if i in times:
                    self._pace = self._pace or (times[i], now)
                    due = max(due, self._pace[1] + (times[i] - self._pace[0]) / self._speed)
                self._due.append(due)
        return bisect_right(self._due, self._clock(), hi=count)

    def _take(self, count: int) -> Records:
        reader = self._reader
        assert reader is not None
        values, lines = reader.take(count)
        del self._due[:count]
        position = reader.position()
        positions = lines if self._files == [reader.path] else [f"{reader.path}:{line}" for line in lines]
        polled_at = time.monotonic()
        if not reader.waiting:  # look ahead, so that `at_end` and `finished` are right at once
            try:
                self._fill(1)
            except UsageError as error:
                self._error = error
        return Records(self._partition, _Batch(values, reader.decoder), positions, position, polled_at)

    def _open(self, path: str, position: dict[str, Any] | None) -> Reader | None:
        """Return a reader at the beginning or a position, or None if that file is not there."""
        self._leaving, self._due = False, []
        kind = self._kind(path)
        delimiter = None
        if kind == "csv":
            delimiter = self._delimiter or ("\t" if _suffix(self._plain_name(path)) == ".tsv" else ",")
        try:
            reader: Reader = (
                RowReader(path, self._fields)
                if kind == "parquet"
                else LineReader(path, _compression(path), self._fields, delimiter, self._follow)
            )
            if position is None or reader.go(position):
                return reader
            reader.close()
            return None
        except OSError as error:
            if isinstance(error, FileNotFoundError) and (self._follow or position is not None):
                return None
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error

    def _kind(self, path: str) -> Format:
        """Return a file's format, or raise UsageError if it cannot be read so."""
        is_rotated = self._is_rotated(path)
        compression = _compression(path)
        kind = self._format or _SUFFIXES.get(_suffix(self._plain_name(path)))
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
        return kind

    def _is_rotated(self, path: str) -> bool:
        """Whether a file is what PATH was renamed to, so that its name ends in a number or date."""
        return path != self._path and not self._is_glob

    def _plain_name(self, path: str) -> str:
        """Return a file's name as it was before it was rotated or compressed."""
        name = self._path if self._is_rotated(path) else path
        return os.path.splitext(name)[0] if _compression(name) else name

    def _listed(self) -> list[str]:
        """Return the files to read, in their order, but for what PATH was rotated to."""
        if not self._is_glob:
            return [self._path]
        return sorted(path for path in glob.glob(self._path, recursive=True) if os.path.isfile(path))

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

    def _after(self, reader: Reader) -> list[str]:
        """Return the files that hold something and come after the one being read."""
        if self._is_glob:
            if self._follow:
                self._files = self._listed()
            return [file for file in self._files if file > reader.path and (_size(file) or not self._follow)]
        if reader.is_at(self._path):
            return []
        files = [*self._rotated(), self._path]
        here = max((i for i, file in enumerate(files) if reader.is_at(file)), default=None)
        if here is None:  # it was removed, perhaps after it was compressed, which may say a later time
            others = [file for file in files[:-1] if not reader.is_compressed_at(file, _compression(file))]
            here = sum(_modified(file) <= reader.stat().st_mtime_ns for file in others) - 1
            files = [*others, self._path]
        return [file for file in files[here + 1 :] if _size(file)]

    def _found(self, position: dict[str, Any]) -> Reader | None:
        """Return a reader at a position, under whatever name its file has now."""
        for _ in range(_ATTEMPTS):  # files may be renamed in this very moment
            others = [] if self._is_glob else [self._path, *reversed(self._rotated())]
            for path in dict.fromkeys([position["file"], *others]):
                reader = self._open(path, position) if os.path.isfile(path) else None
                if reader is not None:
                    return reader
            if not self._follow:
                break
            time.sleep(_WAIT)
        return None


class _Batch(list[Any]):
    """Values, and what reads them: two files of one partition may have different columns."""

    def __init__(self, values: list[Any], decoder: Decoder) -> None:
        super().__init__(values)
        self.decoder = decoder


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _compression(path: str) -> str:
    return _suffix(path) if _suffix(path) in _COMPRESSIONS else ""


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


def _check_exists(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file in it, or a glob such as {path}/*.csv.")
    if path.exists():
        return
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}, so no file {path}.")
    neighbours = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    raise UsageError(f"there is no file {path}.{meant(path.name, neighbours)}")
