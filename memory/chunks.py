"""Sealed chunks: what is known of one, and what a store of them does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["Chunk", "ChunkStore", "stream_code"]


class Chunk(NamedTuple):
    """What is known of a sealed chunk, which never changes.

    id: counts the chunks that were sealed before, of all streams. first, last: times of its first and last
    step, in the stream's units. steps: of its contents. covered: steps that these stand for, more if it was
    merged. priority: of the steps' surprise. encoder_version: of what made the contents. sequence: how many
    chunks its writer had written before.
    """

    id: int
    stream: int | str
    episode: int
    first: float
    last: float
    steps: int
    covered: int
    priority: float
    encoder_version: int
    sequence: int


class ChunkStore(Protocol):
    """Sealed chunks by id. Summaries are scanned where the reader is; contents are fetched by id.

    A slot is a row of `summaries`, of `ids` and `valid`, and of each of the columns that a reader masks by
    (`column`). It is used again when its chunk goes. The arrays are the store's own and C-contiguous, and not
    to be written to; their address does not change while the store is open, only how many rows are in use.
    """

    @property
    def chunk_length(self) -> int:
        """The most steps of a chunk."""

    @property
    def width(self) -> int:
        """Numbers in a step."""

    @property
    def summaries(self) -> NDArray[np.float32]:
        """The mean over each chunk's steps, or what was given in its place, float32 [slots, width]."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """The id of each slot's chunk, int64 [slots]; -1: empty."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Whether there is a chunk in each slot, bool [slots]."""

    def column(self, name: str) -> NDArray[Any]:
        """Return a field of `Chunk` for each slot, [slots]; streams as `stream_code` says."""

    def __len__(self) -> int:
        """How many chunks are kept."""

    def append(
        self,
        contents: ArrayLike,
        *,
        first: float,
        last: float,
        stream: int | str = 0,
        episode: int = 0,
        priority: float = 0.0,
        encoder_version: int = 0,
        sequence: int = 0,
        summary: ArrayLike | None = None,
    ) -> int:
        """Seal a chunk, float [steps, width], and return its id, higher than every id before.

        The retention may decide that it is not kept. summary: [width]; the mean over the steps if it is None.
        """

    def contents(self, ids: Iterable[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return contents, float32 [k, chunk_length, width], zero after the last step, and the steps, [k]."""

    def chunk(self, id: int) -> Chunk:
        """Return what is known of a chunk."""

    def used(self, ids: Iterable[int], weights: Iterable[float]) -> None:
        """Say that one read opened these chunks, and the weight that each had in it."""

    def pin(self, ids: Iterable[int]) -> None:
        """Keep these chunks until they are unpinned as often."""

    def unpin(self, ids: Iterable[int]) -> None:
        """Take back one `pin` of each."""

    def drop(self, ids: Iterable[int]) -> None:
        """Let go of these chunks now, as at the end of an episode."""

    def flush(self) -> None:
        """Make all that was appended safe from a power cut."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that later reads and choices depend on; what is on disk is referred to."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave, as if nothing had come after it."""

    def close(self) -> None:
        """Let go of files."""


def stream_code(stream: int | str) -> int:
    """Return what the column `stream` calls a stream: its number, or 64 bits of a digest of its name."""
    if isinstance(stream, str):
        digest = hashlib.blake2b(stream.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)
    if not -(2**63) <= stream < 2**63:
        raise ValueError(f"stream is {stream}; use a number of 64 bits, or a name.")
    return stream
