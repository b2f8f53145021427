"""Files of records, by number: their header, the one that is written to, the others mapped into memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChunkFileError", "SegmentFiles"]

_FORMAT = 2
_MAGIC = b"swchunks"
_HEADER = struct.Struct("<8sIIIIIIQI")  # magic, format, steps, width, bytes a number, record size, ...
_HEADER_BYTES = 64
_NAME = re.compile(r"segment-(\d{12})\.chunks")
_MAPS_OPEN = 256  # each holds a file descriptor
# A fault maps 64 KiB around it: between two trims some 8 MiB at most, given back in half a millisecond.
_READS_BETWEEN_TRIMS = 64


class ChunkFileError(OSError):
    """A segment file that is missing, damaged, in use, or of a store with other settings."""


class SegmentFiles:
    """The files of a directory, `records_per_file` records of a type to each, which nobody else has open.

    At most one of them is written to, the active one. Rows count the records of a file. Raises ChunkFileError
    if the directory is in use; OSError, with the path, where the disk fails or is full.
    """

    def __init__(self, directory: Path, record_type: np.dtype[Any], records_per_file: int) -> None:
        self.directory = directory
        self.active = -1  # the number of the file that is written to
        self._type, self._records_per_file = record_type, records_per_file
        contents = record_type["contents"]
        self._settings = (
            _FORMAT, *contents.shape, contents.base.itemsize, record_type.itemsize, records_per_file
        )  # fmt: skip
        self._maps: OrderedDict[int, tuple[mmap.mmap, NDArray[Any]]] = OrderedDict()
        self._read: list[int] = []  # files, since mapped pages were last given back
        self._file, self._path = -1, directory  # of the active file
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ChunkFileError(
                f"{directory} is in use by another store; close that one, or give this one its own directory."
            ) from None

    def present(self) -> list[int]:
        """Return the numbers of all files, in order."""
        names = (_NAME.fullmatch(name) for name in os.listdir(self.directory))
        return sorted(int(name[1]) for name in names if name)

    def path(self, file: int) -> Path:
        """Return where a file is."""
        return self.directory / f"segment-{file:012d}.chunks"

    def close(self) -> None:
        """Close all; nothing more is read or written."""
        self.leave()
        self._maps.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- the active file

    def begin(self, file: int) -> None:
        """Make a file, with a header that is safe from a power cut, the active one."""
        header = _HEADER.pack(_MAGIC, *self._settings, file * self._records_per_file, 0)[:-4]
        header += zlib.crc32(header).to_bytes(4, "little")
        self._open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self._write(memoryview(header.ljust(_HEADER_BYTES, b"\0")), 0)
            self.flush()
            self.sync_directory()
        except OSError:
            self.remove(file)
            raise

    def enter(self, file: int) -> None:
        """Make a file that is there the active one."""
        self._open(file, os.O_RDWR)

    def leave(self) -> None:
        """Close the active file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = self.active = -1

    def write(self, records: memoryview, row: int) -> None:
        """Write the bytes of records into the active file, from a row on; where it fails, cut them off."""
        self._write(records, self._offset(row))

    def cut(self, rows: int) -> int:
        """Let the active file end after so many rows, and return how many bytes of it are gone."""
        with _named(self._path):
            gone = os.fstat(self._file).st_size - self._offset(rows)
            if gone:
                os.ftruncate(self._file, self._offset(rows))
                os.fsync(self._file)
        return gone

    def flush(self) -> None:
        """Make what was written safe from a power cut."""
        if self._file >= 0:
            with _named(self._path):
                os.fsync(self._file)

    def sync_directory(self) -> None:
        """Make safe from a power cut which files there are."""
        os.fsync(self._lock)

    def _open(self, file: int, flags: int) -> None:
        self.leave()
        self._path = self.path(file)
        self._file = os.open(self._path, flags | os.O_CLOEXEC, 0o666)
        self.active = file

    def _write(self, data: memoryview, offset: int) -> None:
        with _named(self._path):
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._file, data[written:], offset + written)
            except OSError:
                os.ftruncate(self._file, offset)
                raise

    # -- reading

    def record(self, file: int, row: int) -> Any:
        """Return a record. Raises ChunkFileError if the file is missing or ends before it."""
        if file != self.active:
            if len(self._read) >= _READS_BETWEEN_TRIMS:
                self.trim(self._read)
                self._read.clear()
            self._read.append(file)
            return self.records(file)[row]
        with _named(self._path):
            data = os.pread(self._file, self._type.itemsize, self._offset(row))
        if len(data) < self._type.itemsize:
            raise ChunkFileError(f"{self._path} ends before its record {row}; put the file back.")
        return np.frombuffer(data, self._type)[0]

    def records(self, file: int) -> NDArray[Any]:
        """Return a view of all records of a file, [records]."""
        if file in self._maps:
            self._maps.move_to_end(file)
            return self._maps[file][1]
        path = self.path(file)
        try:
            with path.open("rb") as source:
                mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):
            raise ChunkFileError(f"{path} is missing or empty, and chunks are in it; put it back.") from None
        count = (len(mapped) - _HEADER_BYTES) // self._type.itemsize
        self._maps[file] = mapped, np.frombuffer(mapped, self._type, count, _HEADER_BYTES)
        if len(self._maps) > _MAPS_OPEN:
            self._maps.popitem(last=False)
        return self._maps[file][1]

    def read_through(self, file: int) -> Iterator[Any]:
        """Yield the records of a file one after another, as far as they are there, without a map."""
        with self.path(file).open("rb") as source:
            source.seek(_HEADER_BYTES)
            while len(data := source.read(self._type.itemsize)) == self._type.itemsize:
                yield np.frombuffer(data, self._type)[0]

    def ask_ahead(self, file: int, row: int) -> None:
        """Have the disk look for a record of a file that is not the active one."""
        self.records(file)
        begin = self._offset(row) // mmap.PAGESIZE * mmap.PAGESIZE
        self._maps[file][0].madvise(mmap.MADV_WILLNEED, begin, self._offset(row + 1) - begin)

    def trim(self, files: Iterable[int]) -> None:
        """Take mapped pages out of the process's memory; they stay in the page cache."""
        for file in self._maps.keys() & files:
            self._maps[file][0].madvise(mmap.MADV_DONTNEED)

    def unmap(self, file: int) -> None:
        """Let go of a view of a file that grows or shrinks."""
        self._maps.pop(file, None)

    def remove(self, file: int) -> None:
        """Delete a file."""
        if file == self.active:
            self.leave()
        self.unmap(file)
        self.path(file).unlink(missing_ok=True)

    # -- checks

    def check_header(self, file: int) -> None:
        """Raise ChunkFileError if a file's header is damaged or of other settings."""
        path = self.path(file)
        with path.open("rb") as source:
            data = source.read(_HEADER_BYTES)
        if not _is_header(data):
            raise ChunkFileError(
                f"{path}: the header is damaged or cut short; put the file back from a copy, or start with "
                "an empty directory."
            )
        _, *settings, first, _ = _HEADER.unpack_from(data)
        if settings[0] != _FORMAT:
            raise ChunkFileError(
                f"{path} has format {settings[0]}, this streamwise reads {_FORMAT}; upgrade it."
            )
        if tuple(settings) != self._settings or first != file * self._records_per_file:
            raise ChunkFileError(
                f"{path} is of a store with {_spelled(settings)}, and this one has "
                f"{_spelled(self._settings)}; use the same settings or another directory."
            )

    def check_full(self, file: int) -> None:
        """Raise ChunkFileError if a file has not the size of a full one."""
        path, size, full = self.path(file), self.size(file), self._offset(self._records_per_file)
        if size != full:
            raise ChunkFileError(
                f"{path} is not the last file and is not full: {size:,} of {full:,} bytes; put it back from "
                "a copy."
            )

    def has_torn_header(self, file: int) -> bool:
        """Whether the process was killed as it began the file; records come after the header is synced."""
        return self.size(file) <= _HEADER_BYTES and not _is_header(self.path(file).read_bytes())

    def size(self, file: int) -> int:
        """Return the bytes of a file."""
        return self.path(file).stat().st_size

    def _offset(self, row: int) -> int:
        return _HEADER_BYTES + row * self._type.itemsize


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an OSError of the block the path that it is about."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _is_header(data: bytes) -> bool:
    end = _HEADER.size - 4
    if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        return False
    return zlib.crc32(data[:end]) == int.from_bytes(data[end : _HEADER.size], "little")


def _spelled(settings: Any) -> str:
    _, steps, width, item, _, records = settings
    return f"{steps} steps of {width} numbers of {item} bytes, {records} records to a file"
