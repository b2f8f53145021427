"""An append-only log of records in segment files: checksummed, memory-mapped, mended after a kill."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.records import DROP, StoredAs, is_whole, record_type
from streamwise.memory.segment_files import ChunkFileError, SegmentFiles

__all__ = ["Recovery", "SegmentLog"]


@dataclass(frozen=True)
class Recovery:
    """What was found when a log was opened: records that are whole, and the damaged tail that was cut."""

    records: int
    cut_records: int
    cut_bytes: int


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
        self.generation = self.oldest_kept = 1  # of states that may be gone back to
        self.length = 0  # the position of the next record
        self._verified: dict[int, NDArray[np.bool_]] = {}
        self._asked_for: dict[int, int] = {}  # by file: how many of its records are
        self._emptied: dict[int, int] = {}  # by file: the generation in which the last of them was let go
        self._with_drops: set[int] = set()
        self._files = SegmentFiles(directory, self.type, records_per_file)
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
        row = self._next_row()
        record["position"] = self.length
        data: Any = record.view(np.uint8)
        record["checksum"] = zlib.crc32(data[4:])
        self._files.write(memoryview(data), row)
        if record["kind"][0] == DROP:
            self._with_drops.add(self._files.active)
        self.length += 1
        return self.length - 1

    def append_chunks(self, records: NDArray[Any]) -> None:
        """Write records [n] of chunks, at most `room` of them, as `append` does one after another.

        Raises OSError, with the path, if they cannot be written; the log is then as it was.
        """
        row = self._next_row()
        records["position"] = self.length + np.arange(len(records))
        rows: Any = records.view(np.uint8).reshape(len(records), self.type.itemsize)
        records["checksum"] = [zlib.crc32(data[4:]) for data in rows]
        self._files.write(memoryview(rows.reshape(-1)), row)
        self.length += len(records)

    def _next_row(self) -> int:
        """Return the row of the next record in its file, which is then the active one."""
        file, row = divmod(self.length, self.records_per_file)
        if row == 0 and file != self._files.active:
            self._roll(file)
        return row

    def _roll(self, file: int) -> None:
        """End the file that is full and begin the next."""
        self.flush()
        ended = self._files.active
        self._files.begin(file)
        self._emptied[file] = self.generation  # until a record of it is kept
        if ended in self._emptied:
            self._emptied[ended] = self.generation  # states of before end in it
            self.remove_files()

    @property
    def room(self) -> int:
        """How many records the next one's file has room for."""
        return self.records_per_file - self.length % self.records_per_file

    def flush(self) -> None:
        """Make all that was appended safe from a power cut."""
        self._files.flush()

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
        self._files.leave()
        for file in self._files.present():
            if file > last or (file == last and rows == 0):
                self._remove(file)
        self._files.unmap(last)
        self._verified.pop(last, None)
        self.length = length
        if rows:
            self._files.enter(last)
            self._files.cut(rows)
        self._files.sync_directory()

    def close(self) -> None:
        """Close the files; nothing more is read or written."""
        self._files.close()

    # -- reading

    def read(self, positions: Sequence[int], contents: NDArray[Any]) -> None:
        """Copy the contents of records into an array [k, chunk_length, width].

        Raises ChunkFileError if a record is missing or its checksum does not hold.
        """
        for position in positions:  # so that the disk looks for all that were never read at once
            file, row = divmod(position, self.records_per_file)
            if file != self._files.active and not self._verified_in(file)[row]:
                self._files.ask_ahead(file, row)
        for i, position in enumerate(positions):
            contents[i] = self._record(position)["contents"]

    def mark(self, length: int) -> int:
        """Return what tells the first `length` records from those of another log: the last one's checksum."""
        return int(self._record(length - 1)["checksum"]) if length else 0

    def _record(self, position: int) -> Any:
        file, row = divmod(position, self.records_per_file)
        record = self._files.record(file, row)
        verified = self._verified_in(file)
        if not verified[row]:
            if not is_whole(record, position):
                raise ChunkFileError(
                    f"{self._files.path(file)}: record {row} is damaged: its checksum does not hold; put the "
                    "file back from a copy, or go on from a checkpoint before it."
                )
            verified[row] = True
        return record

    def _verified_in(self, file: int) -> NDArray[np.bool_]:
        """Which records of a file were found to be whole, [records_per_file]."""
        found = self._verified.get(file)
        if found is None:
            found = self._verified[file] = np.zeros(self.records_per_file, np.bool_)
        return found

    def files(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the position of each file's first record and a view of its records, the oldest first."""
        for file in self._files.present():
            first = file * self.records_per_file
            count = min(self.records_per_file, self.length - first)
            if count > 0:
                records = self._files.records(file)[:count]
                if (records["kind"] == DROP).any():
                    self._with_drops.add(file)
                yield first, records
                self._files.trim([file])
        self._files.unmap(self._files.active)  # it will grow

    # -- letting go of files

    def ask_for(self, positions: NDArray[Any]) -> None:
        """Say which records are asked for, all of them."""
        files, counts = np.unique(positions // self.records_per_file, return_counts=True)
        self._asked_for = dict(zip(files.tolist(), counts.tolist(), strict=True))
        self._emptied = {
            file: self.generation for file in self._files.present() if file not in self._asked_for
        }

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
        present, ends_in = (
            self._files.present(),
            (self.length - 1) // self.records_per_file,
        )  # where `mark` looks
        for file in sorted(self._emptied):
            # A drop says that a slot is empty, as long as older files may say otherwise.
            needed = file in self._with_drops and present[0] < file
            needed |= file in (self._files.active, ends_in)
            if self._emptied[file] <= self.oldest_kept and not needed:
                self._remove(file)
                present.remove(file)
                del self._emptied[file]

    def _remove(self, file: int) -> None:
        self._files.remove(file)
        self._verified.pop(file, None)
        self._with_drops.discard(file)

    # -- opening

    def _open(self) -> Recovery:
        """Find where the log ends, cutting what is damaged there."""
        files, cut_bytes = self._files.present(), 0
        for file in files[:-1]:
            self._files.check_header(file)
            self._files.check_full(file)
        if files and self._files.has_torn_header(files[-1]):
            cut_bytes += self._files.size(files[-1])
            self._remove(files.pop())
            if files:
                self._files.check_full(files[-1])
        if files:
            last = files[-1]
            self._files.check_header(last)
            self._files.enter(last)
            rows = self._whole_rows(last)
            self.length = last * self.records_per_file + rows
            cut_bytes += self._files.cut(rows)
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
        """Return how many records of a file are whole, up to the first that is not."""
        first, rows, verified = file * self.records_per_file, 0, self._verified_in(file)
        for record in self._files.read_through(file):
            if rows == self.records_per_file or not is_whole(record, first + rows):
                break
            verified[rows] = True
            rows += 1
        return rows
