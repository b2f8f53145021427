"""Where a store holds the contents of its chunks: in this process, by slot, or in segment files.

Both are asked the same. A record is written for a slot first, which may fail, and then nothing has changed;
what was in the slot is let go of; then the record is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.memory.records import CHUNK, DROP
from streamwise.memory.segment_files import ChunkFileError
from streamwise.memory.segments import Recovery, SegmentLog
from streamwise.memory.store_table import RECORDED, StoreTable

__all__ = ["InMemory", "OnDisk"]


class InMemory:
    """Contents by slot, which no file has: a state has them all."""

    recovery = Recovery(0, 0, 0)
    room = None

    def __init__(self, capacity: int, record_type: np.dtype[Any]) -> None:
        self._type = record_type
        contents = record_type["contents"]
        self._held = np.zeros((capacity, *contents.shape), contents.base)

    def replay(self, table: StoreTable) -> None:
        """Nothing: it begins empty."""

    def write(self, records: NDArray[Any], slots: Any) -> None:
        """Nothing: `keep` follows."""

    def keep(self, records: NDArray[Any], slots: Any) -> None:
        """Hold the contents of records."""
        self._held[slots] = records["contents"]

    def drop(self, id: int, slot: int) -> None:
        """Nothing: what comes into the slot is written over it."""

    def let_go(self, position: int) -> None:
        """Nothing, as there are no files."""

    def read(self, table: StoreTable, slots: list[int], contents: NDArray[np.float32]) -> None:
        """Copy the contents in these slots into an array [k, chunk_length, width]."""
        contents[:] = self._held[slots]

    def flush(self) -> None:
        """Nothing, as there are no files."""

    def begin_generation(self, generation: int) -> None:
        """Nothing, as there are no files."""

    def forget_before(self, generation: int) -> None:
        """Nothing, as there are no files."""

    def counters(self) -> tuple[int, int, int]:
        """Return what `OnDisk` returns of a log with nothing in it."""
        return 1, 0, 0

    def state(self, table: StoreTable) -> dict[str, Tensor]:
        """Return all records."""
        alive = np.flatnonzero(table.valid)
        records: Any = np.zeros(len(alive), self._type)
        for name in RECORDED:
            records[name] = table[name][alive]
        records["summary"], records["contents"] = table.summaries[alive], self._held[alive]
        return {"chunks.records": torch.from_numpy(records.view(np.uint8).reshape(-1, records.itemsize))}

    def go_back(self, length: int, mark: int) -> None:
        """Nothing, as there are no files."""

    def load(self, table: StoreTable, state: Mapping[str, Tensor], generation: int, oldest_kept: int) -> None:
        """Take the records of a state."""
        records = state["chunks.records"].numpy().copy().view(self._type).reshape(-1)
        slots = np.flatnonzero(table["id"] >= 0)
        table.read(records, slots)
        self._held[slots] = records["contents"]

    def close(self) -> None:
        """Nothing, as there are no files."""


class OnDisk:
    """Contents in the records of a log, which say what was in which slot, too."""

    def __init__(self, log: SegmentLog) -> None:
        self._log = log
        self.recovery = log.recovery

    @property
    def room(self) -> int:
        """How many records may be written at once."""
        return self._log.room

    def write(self, records: NDArray[Any], slots: Any) -> None:
        """Append records."""
        records["kind"], records["slot"] = CHUNK, slots
        if len(records) == 1:
            self._log.append(records)
        else:
            self._log.append_chunks(records)

    def keep(self, records: NDArray[Any], slots: Any) -> None:
        """Ask for the contents from now on."""
        self._log.keep(int(records["position"][0]), len(records))

    def drop(self, id: int, slot: int) -> None:
        """Append a record that says so."""
        record = np.zeros(1, self._log.type)
        record["id"], record["kind"], record["slot"] = id, DROP, slot
        self._log.append(record)

    def let_go(self, position: int) -> None:
        """Ask for what is there no longer."""
        self._log.let_go(position)

    def read(self, table: StoreTable, slots: list[int], contents: NDArray[np.float32]) -> None:
        """Copy the contents in these slots, verified when they are first read."""
        self._log.read(table["position"][slots].tolist(), contents)

    def flush(self) -> None:
        """Make all that was written safe from a power cut."""
        self._log.flush()

    def begin_generation(self, generation: int) -> None:
        """Let go, from now on, of what states of this generation do not refer to."""
        self._log.generation = generation

    def forget_before(self, generation: int) -> None:
        """Delete files that only states of generations before this one refer to."""
        self._log.oldest_kept = generation
        self._log.remove_files()

    def counters(self) -> tuple[int, int, int]:
        """Return the oldest generation that is kept, the length of the log, and its mark."""
        return self._log.oldest_kept, self._log.length, self._log.mark(self._log.length)

    def go_back(self, length: int, mark: int) -> None:
        """Take back what was appended after a state."""
        self._log.truncate(length, mark)

    def state(self, table: StoreTable) -> dict[str, Tensor]:
        """Return nothing, as all is in the files."""
        return {}

    def load(self, table: StoreTable, state: Mapping[str, Tensor], generation: int, oldest_kept: int) -> None:
        """Look the chunks up in the files. Raises ChunkFileError if one is not there."""
        self._log.generation, self._log.oldest_kept = generation, oldest_kept
        slots = np.flatnonzero(table["id"] >= 0)
        self._look_up(table, slots, table["position"][slots])

    def replay(self, table: StoreTable) -> None:
        """Begin a table with what the log's records leave in each slot."""
        log = self._log
        positions, in_use = np.full(table.capacity, -1), 0
        for first, records in log.files():
            slots, chunks = records["slot"].astype(np.int64), records["kind"] == CHUNK
            in_use = max(in_use, int(slots.max()) + 1)
            if in_use > table.capacity:
                raise ValueError(
                    f"{log.directory} holds a chunk in slot {in_use - 1:,}, and the capacity is "
                    f"{table.capacity:,}; use a larger one, or another directory."
                )
            # Of records of the same slot the last one counts.
            positions[slots] = np.where(chunks, first + np.arange(len(records)), -1)
            table.next_id = max(table.next_id, int((records["id"].astype(np.int64) + chunks).max()))
        slots = np.flatnonzero(positions >= 0)
        self._look_up(table, slots, positions[slots])
        table.begin(in_use)

    def _look_up(self, table: StoreTable, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Read what is known of the chunks at these positions, and their summaries, into the slots."""
        found = 0
        for first, records in self._log.files():
            there = np.flatnonzero((positions >= first) & (positions < first + len(records)))
            table.read(records, slots[there], positions[there] - first)
            found += len(there)
        if found < len(slots):
            raise ChunkFileError(
                f"{self._log.directory} lacks files of {len(slots) - found:,} chunks that are kept; put them "
                "back, or go on from an older checkpoint."
            )
        self._log.ask_for(positions)

    def close(self) -> None:
        """Close the files."""
        self._log.close()
