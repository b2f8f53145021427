"""One row of state for each key: the recent ones in memory, the rest on disk."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["KeyFileError", "KeyStates"]

_WRITTEN_AT_ONCE = 4096
_CACHE_KIB = 65_536  # of SQLite's pages, the only memory that grows with the disk's part


class KeyFileError(OSError):
    """The file of the keys that are on disk is missing, damaged, or cannot be written."""


class KeyStates:
    """A table of rows by key, of which the `capacity` last used ones are in memory.

    The others are in an SQLite file and come back with the same bits. A key that is new starts with a row of
    zero bytes. row_type: a NumPy structured type. path: the file; without one it is temporary, and
    `state_dict` then holds all of its rows.

    The file keeps for each key the newest row, and the older ones that a kept checkpoint may ask for:
    `state_dict` ends a generation, `load_state_dict` takes back whatever was written after the one that it is
    given, and `forget_before` says which generations nobody will ask for again. read_only: look up, write
    nothing, beside a run that may be writing.

    >>> states = KeyStates(np.dtype([("events", "f8")]), capacity=2)
    >>> rows = states.rows[states.slots(["ann", "bob"])] = np.array([(1.0,), (2.0,)], states.rows.dtype)
    >>> _ = states.slots(["eve"])  # ann goes to disk
    >>> float(states.find("ann")["events"]), len(states)
    (1.0, 3)
    """

    def __init__(
        self,
        row_type: np.dtype[Any],
        capacity: int,
        path: Path | None = None,
        *,
        read_only: bool = False,
    ) -> None:
        self.capacity = capacity
        self.path = path
        self.rows: NDArray[Any] = np.zeros(capacity, row_type)
        self._slots: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._free = list(range(capacity - 1, -1, -1))
        self._count = 0
        self._generation = 1
        self._oldest_kept = 0
        self._leaving: dict[str, bytes] = {}  # on their way to disk
        self._stored = False  # whether the file holds any row
        self._read_only = read_only
        with self._errors():
            self._database = _open(path, read_only)

    def __len__(self) -> int:
        """How many keys there are, in memory and on disk."""
        return self._count

    @property
    def in_memory(self) -> int:
        """How many keys are in memory."""
        return len(self._slots)

    def slots(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return where in `rows` each key is, int64 [keys], having made room for those that were not there.

        At most `capacity` keys at once: a row that is moved to disk belongs to none of them.
        """
        if len(keys) > self.capacity:
            raise ValueError(f"{len(keys)} keys at once, and only {self.capacity} fit in memory.")
        slots, found = self._slots, np.empty(len(keys), np.int64)
        for i, key in enumerate(keys):
            slot = slots.get(key)
            if slot is None:
                slot = self._bring(key)
            else:
                slots.move_to_end(key)
            found[i] = slot
        return found

    def find(self, key: str) -> Any | None:
        """Return a copy of a key's row, or None if there is none; nothing is moved."""
        slot = self._slots.get(key)
        if slot is not None:
            return self.rows[slot].copy()
        packed = self._stored_row(key)
        return None if packed is None else self._unpacked(packed)

    def chunks(self, size: int) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Yield all keys and copies of their rows, up to `size` at once; the last used come last."""
        self._write_leaving()
        names: list[str] = []
        rows: list[Any] = []
        with self._errors():
            # SQLite takes the other columns of a group from the row with the greatest generation.
            stored = self._database.execute(
                "SELECT key, row, max(generation) FROM keys WHERE key IS NOT NULL AND generation <= ? "
                "GROUP BY key",
                (self._generation,),
            )
            for key, packed, _ in stored:
                if key in self._slots or key in self._leaving:
                    continue
                names.append(key)
                rows.append(self._unpacked(packed))
                if len(names) == size:
                    yield names, np.array(rows, self.rows.dtype)
                    names, rows = [], []
        for key, packed in self._leaving.items():  # nobody may write
            if key not in self._slots:
                names.append(key)
                rows.append(self._unpacked(packed))
        in_memory = list(self._slots)
        names, found = names + in_memory, np.array(rows, self.rows.dtype)
        found = np.concatenate([found, self.rows[list(self._slots.values())]])
        for start in range(0, len(names), size):
            yield names[start : start + size], found[start : start + size]

    def forget_before(self, generation: int) -> None:
        """Let go of rows that only generations before this one would ask for, as keys are written again."""
        self._oldest_kept = generation

    @property
    def generation(self) -> int:
        """The generation that rows are now written in; `state_dict` ends it."""
        return self._generation

    def state_dict(self) -> dict[str, Tensor]:
        """Return the keys in memory and their rows, having put the others safely on disk."""
        self._write_leaving()
        with self._errors():
            self._database.commit()
        names, slots = list(self._slots), list(self._slots.values())
        rows = self.rows[slots]
        if self.path is None:
            # SQLite takes the row with the greatest generation, as in `chunks`.
            stored = self._database.execute(
                "SELECT key, row, max(generation) FROM keys WHERE key IS NOT NULL GROUP BY key"
            )
            away = [(key, row) for key, row, _ in stored if key not in self._slots]
            names = [key for key, _ in away] + names
            rows = np.concatenate([np.array([self._unpacked(row) for _, row in away], rows.dtype), rows])
        state = {
            "keys.names": _as_tensor(json.dumps(names).encode()),
            "keys.rows": _as_tensor(rows.tobytes()),
            "keys.slots": torch.tensor(slots, dtype=torch.int64),
            "keys.counters": torch.tensor([self._count, self._generation], dtype=torch.int64),
        }
        self._generation += 1
        if self.path is None:
            self._oldest_kept = self._generation  # nobody asks the file for what the state has
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave; what was written to disk after it is taken back."""
        self._count, generation = (int(number) for number in state["keys.counters"])
        names = json.loads(bytes(state["keys.names"].numpy()))
        rows = np.frombuffer(state["keys.rows"].numpy().tobytes(), self.rows.dtype)
        self._leaving.clear()
        self._slots.clear()
        with self._errors():
            if not self._read_only:
                if self.path is None:
                    self._database.execute("DELETE FROM keys")
                self._database.execute("DELETE FROM keys WHERE generation > ?", (generation,))
                self._database.commit()
            self._stored = self._holds_rows()
        if self._count > len(names) and not self._stored:
            missing = f"the states of {self._count - len(names):,} keys were in it"
            raise KeyFileError(
                f"{self.path} is missing or empty, and {missing}; put it back, or start a new run."
            )
        self._generation = generation if self._read_only else generation + 1
        self.rows[:] = np.zeros((), self.rows.dtype)
        away = (
            len(names) - self.capacity
        )  # more than fit in memory, where there is no file or less room than before
        for name, row in zip(names[: max(away, 0)], rows, strict=False):
            self._leaving[name] = _packed(row)
        self._write_leaving()
        kept = names[max(away, 0) :]
        # Each is where it was, if it fits: who goes round the rows comes by in the same order.
        slots = state["keys.slots"].tolist() if "keys.slots" in state else []
        if sorted(slots) != list(range(len(kept))):
            slots = list(range(len(kept)))
        self._slots.update(zip(kept, slots, strict=True))
        self.rows[slots] = rows[max(away, 0) :]
        self._free = list(range(self.capacity - 1, len(kept) - 1, -1))

    def close(self) -> None:
        """Close the file. What was not in a `state_dict` is not kept."""
        self._database.close()

    def _bring(self, key: str) -> int:
        """Give `key` a slot, the one of the least recently used if none is free."""
        packed = self._stored_row(key)
        if self._free:
            slot = self._free.pop()
        else:
            evicted, slot = self._slots.popitem(last=False)
            self._leaving[evicted] = _packed(self.rows[slot])
            if len(self._leaving) >= _WRITTEN_AT_ONCE:
                self._write_leaving()
        if packed is None:
            self._count += 1
            self.rows[slot] = np.zeros((), self.rows.dtype)
        else:
            self.rows[slot] = self._unpacked(packed)
        self._slots[key] = slot
        return slot

    def _stored_row(self, key: str) -> bytes | None:
        packed = self._leaving.get(key)
        if packed is not None or not self._stored:
            return packed
        with self._errors():
            found = self._database.execute(
                "SELECT row FROM keys WHERE key = ? AND generation <= ? ORDER BY generation DESC LIMIT 1",
                (key, self._generation),
            ).fetchone()
        return None if found is None else bytes(found[0])

    def _unpacked(self, packed: bytes) -> Any:
        return np.frombuffer(zlib.decompress(packed), self.rows.dtype)[0].copy()

    def _write_leaving(self) -> None:
        if not self._leaving or self._read_only:
            return
        generation, kept = self._generation, self._oldest_kept
        with self._errors():
            self._database.executemany(
                "INSERT OR REPLACE INTO keys VALUES (?, ?, ?)",
                [(key, generation, row) for key, row in self._leaving.items()],
            )
            # What a kept checkpoint asks for is the newest row of its generation or before; older ones go.
            self._database.executemany(
                "DELETE FROM keys WHERE key = ?1 AND generation < "
                "(SELECT max(generation) FROM keys WHERE key = ?1 AND generation <= ?2)",
                [(key, kept) for key in self._leaving],
            )
        self._leaving.clear()
        self._stored = True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the file where SQLite fails; after a failed write nothing since the last commit is sure."""
        try:
            yield
        except sqlite3.Error as error:
            raise KeyFileError(
                f"{self.path or 'the temporary file of keys'} cannot be used: {error}."
            ) from None

    def _holds_rows(self) -> bool:
        return self._database.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None


def _open(path: Path | None, read_only: bool) -> sqlite3.Connection:
    """Open the file, or a temporary one that SQLite keeps on disk and removes."""
    if path is not None and read_only:
        if not path.is_file():
            return _open(None, False)
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        try:
            database.execute("SELECT 1 FROM keys LIMIT 1")
        except sqlite3.OperationalError:  # beside a file in use SQLite writes, and here it may not
            log = path.with_name(f"{path.name}-wal")
            if log.is_file() and log.stat().st_size:
                raise
            still = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            database = sqlite3.connect(still, uri=True, check_same_thread=False)
        return database
    database = sqlite3.connect("" if path is None else path, check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    if path is not None:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE IF NOT EXISTS keys (key TEXT, generation INTEGER, row BLOB, "
        "PRIMARY KEY (key, generation)) WITHOUT ROWID"
    )
    database.commit()
    return database


def _packed(row: Any) -> bytes:
    return zlib.compress(row.tobytes(), 1)  # mostly zeros: a tenth of the size, in microseconds


def _as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
