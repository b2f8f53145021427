"""What is known of chunks, by slot, and what a store answers from that alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.chunks import Chunk

__all__ = ["COLUMNS", "Indexed", "Table"]

COLUMNS: dict[str, Any] = {  # beside the id; name: of its stream, if it has one
    "stream": np.int64, "name": "S32", "episode": np.int64, "first": np.float64, "last": np.float64,
    "steps": np.int64, "covered": np.int64, "priority": np.float64, "encoder_version": np.int64,
    "sequence": np.int64,
}  # fmt: skip


class Table:
    """At most `capacity` chunks by slot; an empty slot has id -1.

    A column is a contiguous array [capacity]: `table["last"]` holds the time of each chunk's last step. There
    are those of `COLUMNS`, and others that are named with their types.
    """

    def __init__(self, capacity: int, width: int, **others: Any) -> None:
        self.capacity = capacity
        # Pages that were never written take no memory, so that room for all is made at once.
        self.columns: dict[str, NDArray[Any]] = {
            name: np.zeros(capacity, kind) for name, kind in {"id": np.int64, **COLUMNS, **others}.items()
        }
        self["id"][:] = -1
        self.summaries = np.zeros((capacity, width), np.float32)
        self.valid = np.zeros(capacity, np.bool_)
        self.slots: dict[int, int] = {}  # by id
        self.in_use = 0  # slots that were ever used: those before this one

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]


class Indexed:
    """The part of a `ChunkStore` that its table alone answers."""

    _table: Table
    _not_there: str  # what is said of an id that is not

    def __len__(self) -> int:
        return len(self._table.slots)

    def __contains__(self, id: int) -> bool:
        return id in self._table.slots

    @property
    def summaries(self) -> NDArray[np.float32]:
        """The mean over each chunk's steps, or what was given in its place, float32 [slots, width]."""
        return self._table.summaries[: self._table.in_use]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The id of each slot's chunk, int64 [slots]; -1: empty."""
        return self._table["id"][: self._table.in_use]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Whether there is a chunk in each slot, bool [slots]."""
        return self._table.valid[: self._table.in_use]

    def column(self, name: str) -> NDArray[Any]:
        """Return a field of `Chunk` for each slot, [slots]; streams as `stream_code` says."""
        return self._table[name][: self._table.in_use]

    def chunk(self, id: int) -> Chunk:
        """Return what is known of a chunk. Raises KeyError if it is not there."""
        (slot,) = self._slots_of([id])
        row = {name: self._table[name][slot].item() for name in (*Chunk._fields, "name")}
        name = row.pop("name")
        return Chunk(**(row | {"stream": name.decode()} if name else row))

    def _slots_of(self, ids: Iterable[int]) -> list[int]:
        try:
            return [self._table.slots[int(id)] for id in ids]
        except KeyError as missing:
            raise KeyError(f"chunk {missing} {self._not_there}") from None
