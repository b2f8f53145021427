"""Contents that a reader of a shared memory keeps: by blocks, those that were used last."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from streamwise.memory.publisher import Contents

__all__ = ["Block", "BlockCache"]


class Block:
    """Contents of chunks of one block: all there is, in order, or (not whole) some, each in its place."""

    __slots__ = ("contents", "first", "ids", "is_full", "whole")

    def __init__(
        self, first: int, size: int, ids: NDArray[np.int64], contents: NDArray[np.float32], whole: bool
    ) -> None:
        self.first, self.ids, self.contents, self.whole = first, ids, contents, whole
        self.is_full = whole and len(ids) == size  # none had gone: each is in its place

    @property
    def size(self) -> int:
        """The chunks that there is room for."""
        return max(len(self.ids), 1)

    def find(self, id: int) -> NDArray[np.float32] | None:
        """Return a chunk's contents where they lie, [chunk_length, width]; None: they are not here."""
        row, ids = id - self.first, self.ids
        if not self.is_full:
            row = int(ids.searchsorted(id)) if self.whole else row
            if row >= len(ids) or ids[row] != id:
                return None
        found: NDArray[np.float32] = self.contents[row]
        return found

    def add(self, part: Contents) -> None:
        """Take up chunks of a block that is being filled."""
        rows = part.ids - self.first
        self.ids[rows], self.contents[rows] = part.ids, part.contents


class BlockCache(OrderedDict[int, Block]):
    """Blocks by number, at most so many chunks of them; those that were used last, which come last."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.chunks = room, 0

    def put(self, number: int, block: Block) -> None:
        """Keep a block, in place of the one of this number."""
        before = self.pop(number, None)
        self.chunks += block.size - (0 if before is None else before.size)
        while self.chunks > self.room:
            _, gone = self.popitem(last=False)
            self.chunks -= gone.size
        self[number] = block

    def empty(self) -> None:
        """Let go of all."""
        self.clear()
        self.chunks = 0
