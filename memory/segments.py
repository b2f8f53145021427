"""An append-only log of records in segment files: checksummed, memory-mapped, mended after a kill."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "DROP", "ChunkFileError", "Recovery", "SegmentLog", "StoredAs", "record_type"]

StoredAs = Literal["float32", "float16"]

CHUNK, DROP = 1, 2  # kinds of records; 0 would be what an unwritten page of the disk says
FORMAT = 2
_MAGIC = b"swchunks"
_HEADER = struct.Struct("<8sIIIIIIQI")  # magic, format, steps, width, bytes a number, record size, ...
_HEADER_BYTES = 64
_ALIGNMENT = 64
_NAME = re.compile(r"segment-(\d{12})\.chunks")
_MAPS_OPEN = 256  # each holds a file descriptor
# A fault maps 64 KiB around it: between two trims some 8 MiB at most, given back in half a millisecond.
_READS_BETWEEN_TRIMS = 64


class ChunkFileError(OSError):
    """A segment file that is missing, damaged, in use, or of a store with other settings."""


@dataclass(frozen=True)
class Recovery:
    """What was found when a log was opened: records that are whole, and the damaged tail that was cut."""

    records: int
    cut_records: int
    cut_bytes: int


def record_type(chunk_length: int, width: int, stored_as: StoredAs) -> np.dtype[Any]:
    """Return the type of a record: 136 bytes about the chunk, its summary, its contents.

    What the first bytes say can be read without touching the contents. The checksum is a CRC-32 of all that
    comes after it: it is there against torn writes and failing disks, of which it misses one in 2^32, and is
    several times as fast as a cryptographic one, which nobody who could forge a chunk would be stopped by
    either. chunk_length: steps. width: numbers in a step.
    """
    fields: list[Any] = [
        ("checksum", "<u4"), ("kind", "<u4"), ("position", "<u8"), ("id", "<u8"), ("slot", "<u8"),
        ("stream", "<i8"), ("name", "S32"), ("episode", "<i8"), ("first", "<f8"), ("last", "<f8"),
        ("covered", "<u8"), ("priority", "<f8"), ("steps", "<u4"), ("encoder_version", "<u4"),
        ("origin", "<u8"), ("sequence", "<u8"), ("summary", "<f4", (width,)),
        ("contents", np.dtype(stored_as).newbyteorder("<"), (chunk_length, width)),
    ]  # fmt: skip
    padding = -np.dtype(fields).itemsize % _ALIGNMENT
    return np.dtype([*fields, ("padding", "u1", (padding,))])


class SegmentLog:
    """Records at positions 0, 1, 2, ..., `records_per_file` of them to a file of `directory`.

    A record is written when `append` returns, so a killed process loses at most the one that it was writing;
    it is safe from a power cut after `flush`, or when its file is full. On opening, the records of the last
    file are verified and a tail that is damaged is cut, with a warning; the rest are verified when they are
    first read. A file goes when the log was told that none of its records is asked for again.

    Raises ChunkFileError if the directory is in use, or its files are damaged before their tail or of another
    size; OSError, with the path, where the disk fails or is full.
    """

    def __init__(
        self,
        directory: Path,
        chunk_length: int,
        width: int,
        stored_as: StoredAs = "float32",
        records_per_file: int = 4096,
    ) -> None:
        self.directory = directory
        self.type = record_type(chunk_length, width, stored_as)
        self.records_per_file = records_per_file
        self._settings = (
            FORMAT, chunk_length, width, np.dtype(stored_as).itemsize, self.type.itemsize, records_per_file
        )  # fmt: skip
        self.generation = self.oldest_kept = 1  # of states that may be gone back to
        self.length = 0  # the position of the next record
        self._maps: OrderedDict[int, tuple[mmap.mmap, NDArray[Any]]] = OrderedDict()
        self._read: list[int] = []  # files, since mapped pages were last given back
        self._verified: dict[int, NDArray[np.bool_]] = {}
        self._asked_for: dict[int, int] = {}  # by file: how many of its records are
        self._emptied: dict[int, int] = {}  # by file: the generation in which the last of them was let go
        self._with_drops: set[int] = set()
        self._file = self._active = -1  # descriptor and number of the file that is written to
        self._path = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ChunkFileError(
                f"{directory} is in use by another store; close that one, or give this one its own directory."
            ) from None
        try:
            self.recovery = self._open()
        except BaseException:
            self.close()
            raise

    # -- writing

    def append(self, record: NDArray[Any]) -> int:
        """Write one record [1] of `type`, filling in its checksum, and return its position.

        Raises OSError, with the path, if it cannot be written; the log is then as it was.
        """
        file, row = divmod(self.length, self.records_per_file)
        if row == 0 and file != self._active:
            self._roll(file)
        record["position"] = self.length
        data: Any = record.view(np.uint8)
        record["checksum"] = zlib.crc32(data[4:])
        self._write(memoryview(data), self._offset(row))
        if record["kind"][0] == DROP:
            self._with_drops.add(file)
        self.length += 1
        return self.length - 1

    def append_chunks(self, records: NDArray[Any]) -> None:
        """Write records [n] of chunks, at most `room` of them, as `append` does one after another.

        Raises OSError, with the path, if they cannot be written; the log is then as it was.
        """
        file, row = divmod(self.length, self.records_per_file)
        if row == 0 and file != self._active:
            self._roll(file)
        records["position"] = self.length + np.arange(len(records))
        rows: Any = records.view(np.uint8).reshape(len(records), self.type.itemsize)
        records["checksum"] = [zlib.crc32(data[4:]) for data in rows]
        self._write(memoryview(rows.reshape(-1)), self._offset(row))
        self.length += len(records)

    @property
    def room(self) -> int:
        """How many records the next one's file has room for."""
        return self.records_per_file - self.length % self.records_per_file

    def flush(self) -> None:
        """Make all that was appended safe from a power cut."""
        if self._file >= 0:
            with _named(self._path):
                os.fsync(self._file)

    def truncate(self, length: int, mark: int) -> None:
        """Take back the records from position `length` on.

        Raises ChunkFileError, having changed nothing, if there are not so many or the mark is another.
        """
        if length > self.length:
            raise ChunkFileError(
                f"{self.directory} holds {self.length:,} records, and the checkpoint refers to {length:,}; "
                "put its files back as they were, or go on from an older checkpoint."
            )
        if self.mark(length) != mark:
            raise ChunkFileError(
                f"{self.directory} holds other records than the checkpoint refers to; use its own directory."
            )
        if length == self.length:
            return
        last, rows = divmod(length, self.records_per_file)
        self._leave()
        for file in [file for file in self._files() if file > last or (file == last and rows == 0)]:
            self._remove(file)
        self._unmap(last)
        self._verified.pop(last, None)
        self.length = length
        if rows:
            self._enter(last, os.O_RDWR)
            with _named(self._path_of(last)):
                os.ftruncate(self._file, self._offset(rows))
                os.fsync(self._file)
        os.fsync(self._lock)

    def close(self) -> None:
        """Close the files; nothing more is read or written."""
        self._leave()
        self._maps.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- reading

    def read(self, positions: Sequence[int], contents: NDArray[Any]) -> None:
        """Copy the contents of records into an array [k, chunk_length, width].

        Raises ChunkFileError if a record is missing or its checksum does not hold.
        """
        for position in positions:
            self._ask_ahead(position)
        for i, position in enumerate(positions):
            contents[i] = self._record(position)["contents"]

    def mark(self, length: int) -> int:
        """Return what tells the first `length` records from those of another log: the last one's checksum."""
        return int(self._record(length - 1)["checksum"]) if length else 0

    def _record(self, position: int) -> Any:
        file, row = divmod(position, self.records_per_file)
        if file == self._active:
            with _named(self._path):
                data = os.pread(self._file, self.type.itemsize, self._offset(row))
            if len(data) < self.type.itemsize:
                raise ChunkFileError(f"{self._path} ends before its record {row}; put the file back.")
            record = np.frombuffer(data, self.type)[0]
        else:
            if len(self._read) >= _READS_BETWEEN_TRIMS:
                self._trim()
            self._read.append(file)
            record = self._map(file)[row]
        verified = self._verified_in(file)
        if not verified[row]:
            if not _holds(record, position):
                raise ChunkFileError(
                    f"{self._path_of(file)}: record {row} is damaged: its checksum does not hold; put the "
                    "file back from a copy, or go on from a checkpoint before it."
                )
            verified[row] = True
        return record

    def _ask_ahead(self, position: int) -> None:
        """Have the disk look for a record that was never read, so that it looks for all of a read at once."""
        file, row = divmod(position, self.records_per_file)
        if file != self._active and not self._verified_in(file)[row]:
            self._map(file)
            begin = self._offset(row) // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[file][0].madvise(mmap.MADV_WILLNEED, begin, self._offset(row + 1) - begin)

    def _verified_in(self, file: int) -> NDArray[np.bool_]:
        """Which records of a file were found to be whole, [records_per_file]."""
        found = self._verified.get(file)
        if found is None:
            found = self._verified[file] = np.zeros(self.records_per_file, np.bool_)
        return found

    def files(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the position of each file's first record and a view of its records, the oldest first."""
        for file in self._files():
            first = file * self.records_per_file
            count = min(self.records_per_file, self.length - first)
            if count > 0:
                records = self._map(file)[:count]
                if (records["kind"] == DROP).any():
                    self._with_drops.add(file)
                yield first, records
                self._read.append(file)
                self._trim()
        self._unmap(self._active)  # it will grow

    # -- letting go of files

    def ask_for(self, positions: NDArray[Any]) -> None:
        """Say which records are asked for, all of them."""
        files, counts = np.unique(positions // self.records_per_file, return_counts=True)
        self._asked_for = dict(zip(files.tolist(), counts.tolist(), strict=True))
        self._emptied = {file: self.generation for file in self._files() if file not in self._asked_for}

    def keep(self, position: int, count: int = 1) -> None:
        """Say that records of one file that were just written, from a position on, will be asked for."""
        file = position // self.records_per_file
        self._asked_for[file] = self._asked_for.get(file, 0) + count
        self._emptied.pop(file, None)

    def let_go(self, position: int) -> None:
        """Say that a record is not asked for any more, but by states of generations before this one."""
        file = position // self.records_per_file
        self._asked_for[file] -= 1
        if self._asked_for[file] == 0:
            del self._asked_for[file]
            self._emptied[file] = self.generation
            self.remove_files()

    def remove_files(self) -> None:
        """Delete the files of which no record is asked for, by this state or one that is kept."""
        present, ends_in = self._files(), (self.length - 1) // self.records_per_file  # where `mark` looks
        for file in sorted(self._emptied):
            # A drop says that a slot is empty, as long as older files may say otherwise.
            needed = file in self._with_drops and present[0] < file
            needed |= file in (self._active, ends_in)
            if self._emptied[file] <= self.oldest_kept and not needed:
                self._remove(file)
                present.remove(file)
                del self._emptied[file]

    # -- files

    def _open(self) -> Recovery:
        """Find where the log ends, cutting what is damaged there."""
        files, cut_bytes = self._files(), 0
        for file in files[:-1]:
            self._check_header(file)
            self._check_full(file)
        if files and self._torn_header(files[-1]):
            cut_bytes += self._path_of(files[-1]).stat().st_size
            self._remove(files.pop())
            if files:
                self._check_full(files[-1])
        if files:
            last = files[-1]
            self._check_header(last)
            self._enter(last, os.O_RDWR)
            size = self._path_of(last).stat().st_size
            rows = self._whole_rows(last)
            self.length = last * self.records_per_file + rows
            if size > self._offset(rows):
                cut_bytes += size - self._offset(rows)
                with _named(self._path_of(last)):
                    os.ftruncate(self._file, self._offset(rows))
                    os.fsync(self._file)
        cut_records = -(-cut_bytes // self.type.itemsize)
        records = self.length - sum(  # files in between may be gone
            self.records_per_file for file in range(files[-1] if files else 0) if file not in set(files)
        )
        if cut_bytes:
            warnings.warn(
                f"{self.directory}: the last write was cut short; {cut_bytes:,} bytes, of {cut_records:,} "
                f"records that were not whole, are cut, and {records:,} records are there.",
                stacklevel=4,
            )
        return Recovery(records, cut_records, cut_bytes)

    def _whole_rows(self, file: int) -> int:
        """How many records of a file are whole, up to the first that is not."""
        path, first = self._path_of(file), file * self.records_per_file
        verified = self._verified_in(file)
        with path.open("rb") as source:
            source.seek(_HEADER_BYTES)
            for row in range(self.records_per_file):
                data = source.read(self.type.itemsize)
                if len(data) < self.type.itemsize or not _holds(
                    np.frombuffer(data, self.type)[0], first + row
                ):
                    return row
                verified[row] = True
        return self.records_per_file

    def _roll(self, file: int) -> None:
        """End the file that is full and begin the next."""
        self.flush()
        ended = self._active
        header = _HEADER.pack(_MAGIC, *self._settings, file * self.records_per_file, 0)[:-4]
        header += zlib.crc32(header).to_bytes(4, "little")
        self._enter(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self._write(memoryview(header.ljust(_HEADER_BYTES, b"\0")), 0)
            self.flush()
            os.fsync(self._lock)
        except OSError:
            self._remove(file)
            raise
        self._emptied[file] = self.generation  # until a record of it is kept
        if ended in self._emptied:
            self._emptied[ended] = self.generation  # states of before end in it
            self.remove_files()

    def _write(self, data: memoryview, offset: int) -> None:
        with _named(self._path):
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._file, data[written:], offset + written)
            except OSError:
                os.ftruncate(self._file, offset)
                raise

    def _enter(self, file: int, flags: int) -> None:
        self._leave()
        self._path = self._path_of(file)
        self._file = os.open(self._path, flags | os.O_CLOEXEC, 0o666)
        self._active = file

    def _leave(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = self._active = -1

    def _remove(self, file: int) -> None:
        if file == self._active:
            self._leave()
        self._unmap(file)
        self._verified.pop(file, None)
        self._with_drops.discard(file)
        self._path_of(file).unlink(missing_ok=True)

    def _map(self, file: int) -> NDArray[Any]:
        """Return a view of a file's records [records]."""
        if file in self._maps:
            self._maps.move_to_end(file)
            return self._maps[file][1]
        path = self._path_of(file)
        try:
            with path.open("rb") as source:
                mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):
            raise ChunkFileError(f"{path} is missing or empty, and chunks are in it; put it back.") from None
        count = (len(mapped) - _HEADER_BYTES) // self.type.itemsize
        self._maps[file] = mapped, np.frombuffer(mapped, self.type, count, _HEADER_BYTES)
        if len(self._maps) > _MAPS_OPEN:
            self._maps.popitem(last=False)
        return self._maps[file][1]

    def _unmap(self, file: int) -> None:
        self._maps.pop(file, None)

    def _trim(self) -> None:
        """Take mapped pages out of the process's memory; they stay in the page cache."""
        for file in self._maps.keys() & self._read:
            self._maps[file][0].madvise(mmap.MADV_DONTNEED)
        self._read.clear()

    def _check_header(self, file: int) -> None:
        path = self._path_of(file)
        with path.open("rb") as source:
            data = source.read(_HEADER_BYTES)
        if not _is_header(data):
            raise ChunkFileError(
                f"{path}: the header is damaged or cut short; put the file back from a copy, or start with "
                "an empty directory."
            )
        _, *settings, first, _ = _HEADER.unpack_from(data)
        if settings[0] != FORMAT:
            raise ChunkFileError(
                f"{path} has format {settings[0]}, this streamwise reads {FORMAT}; upgrade it."
            )
        if tuple(settings) != self._settings or first != file * self.records_per_file:
            raise ChunkFileError(
                f"{path} is of a store with {_spelled(settings)}, and this one has "
                f"{_spelled(self._settings)}; use the same settings or another directory."
            )

    def _check_full(self, file: int) -> None:
        path = self._path_of(file)
        if path.stat().st_size != self._offset(self.records_per_file):
            raise ChunkFileError(
                f"{path} is not the last file and is not full: {path.stat().st_size:,} of "
                f"{self._offset(self.records_per_file):,} bytes; put it back from a copy."
            )

    def _torn_header(self, file: int) -> bool:
        """Whether the process was killed as it began the file; records come after the header is synced."""
        path = self._path_of(file)
        return path.stat().st_size <= _HEADER_BYTES and not _is_header(path.read_bytes())

    def _offset(self, row: int) -> int:
        return _HEADER_BYTES + row * self.type.itemsize

    def _path_of(self, file: int) -> Path:
        return self.directory / f"segment-{file:012d}.chunks"

    def _files(self) -> list[int]:
        names = (_NAME.fullmatch(name) for name in os.listdir(self.directory))
        return sorted(int(name[1]) for name in names if name)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an OSError of the block the path that it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _holds(record: Any, position: int) -> bool:
    """Whether a record is the one of this position, and whole."""
    data = memoryview(record.tobytes())
    return (
        int(record["position"]) == position
        and record["kind"] in (CHUNK, DROP)
        and zlib.crc32(data[4:]) == record["checksum"]
    )


def _is_header(data: bytes) -> bool:
    end = _HEADER.size - 4
    if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        return False
    return zlib.crc32(data[:end]) == int.from_bytes(data[end : _HEADER.size], "little")


def _spelled(settings: Any) -> str:
    _, steps, width, item, _, records = settings
    return f"{steps} steps of {width} numbers of {item} bytes, {records} records to a file"
