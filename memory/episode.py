"""What an agent remembers of its episode, or of all its episodes: chunks in a ring of arrays.

The general store (store.py) keeps chunks of many streams, by many policies, on disk if asked, and is read
from Python. An agent that makes 20,000 updates a second needs less and has no time for more: the latest
chunks of one episode, or of its life. They lie in arrays whose address never changes, so that the native step
reads and writes where the torch back end does, and a checkpoint is a copy of them.

Items are observations in units of their running deviation, and nothing else is done to them. That matters:
what is rare is then large, and a large item has a large score, of either sign, before anything was learned.
With several heads one of them looks at it from the start. Normalized over its own numbers, as layers are, it
would be no larger than others (docs/memory.md has what that cost).

Source: Lampinen et al. (2021), arXiv:2105.14039, whose memory is an episode's, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamwise.memory.hcam import ChunkAttention, Chunks
from streamwise.memory.splitmix import mix

__all__ = ["EpisodeMemory", "EpisodeRead"]

_MASK, _GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15
_DRAWS = 1024  # from one step's first random number to the next one's; native code says the same


class EpisodeMemory:
    """The last `capacity` chunks of an episode, of `chunk_length` steps each, and the chunk that is open.

    width: numbers in an item. Rows are one number longer if that is odd: positions have as many sines as
    cosines. A chunk can be read from the moment its last step is appended; the steps of the open chunk
    cannot. features, heads, k, joint, alike: of what reads it, see `ChunkAttention`. random_reads: how many
    of the k chunks are any, not the best: a chunk that is never opened teaches nobody that it should have
    been. Which ones, follows from `key` and the time, so that all networks and both back ends open the same.

    lasting: chunks stay at the end of an episode; the open one goes. guests: how many chunks of others fit
    beside the agent's own (`admit`), in slots after those; the latest replaces the first.

    One slot more than chunks: the open chunk is written to a slot that is not visible, so that nothing which
    a forward pass has read is overwritten before its backward pass.

    >>> memory = EpisodeMemory(3, chunk_length=2, capacity=10)
    >>> for step in range(5):
    ...     memory.append(torch.tensor([0.0, step, 0.0]))
    >>> len(memory), memory.chunks().contents.shape
    (2, torch.Size([1, 2, 2, 4]))
    """

    def __init__(
        self,
        width: int,
        *,
        chunk_length: int = 4,
        capacity: int = 256,
        features: int = 32,
        heads: int = 1,
        k: int = 8,
        random_reads: int = 0,
        joint: bool = False,
        alike: bool = False,
        lasting: bool = False,
        guests: int = 0,
        key: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        slots, row = capacity + 1 + guests, width + width % 2
        kind = np.float64 if dtype == torch.float64 else np.float32
        self.item_width, self.features, self.heads, self.k = width, features, heads, k
        self.random_reads, self.joint, self.alike, self.lasting = random_reads, joint, alike, lasting
        self.own_slots = capacity + 1
        self.guest_ids = np.full(guests, -1, np.int64)
        self.admitted = 0  # guests, ever
        self.delivered = 0  # own chunks that a shared memory has, too (memory/shared.py)
        self.contents: NDArray[Any] = np.zeros((slots, chunk_length, row), kind)
        self.summaries: NDArray[Any] = np.zeros((slots, row), kind)
        self.visible = np.zeros(slots, np.uint8)
        # Chunks sealed in this episode (ever, if they last), steps of the open chunk, steps of all episodes,
        # key of random reads, guests that can be read.
        self.counters = np.array([0, 0, 0, key >> 1, 0], np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        """Steps of a chunk and numbers in a row, as `ChunkAttention` takes them."""
        return self.contents.shape[1], self.contents.shape[2]

    def __len__(self) -> int:
        """How many chunks can be read."""
        return min(int(self.counters[0]), self.own_slots - 1) + int(self.counters[4])

    def reader(self, generator: torch.Generator | None = None) -> EpisodeRead:
        """Return a module of its own weights that reads this memory for what it is given, [1, width]."""
        length, row = self.shape
        attention = ChunkAttention(
            self.item_width, row, features=self.features, heads=self.heads, length=length, k=self.k,
            joint=self.joint, alike=self.alike, generator=generator,
        )  # fmt: skip
        return EpisodeRead(attention, self)

    def append(self, item: Tensor) -> None:
        """Remember one step, [width], as it is now. A chunk that it completes can be read from here on."""
        sealed, fill, time, *_ = self.counters.tolist()
        slots, length = self.own_slots, self.contents.shape[1]
        slot = sealed % slots
        self.contents[slot, fill, : self.item_width] = item.numpy()
        self.counters[1:3] = fill + 1, time + 1
        if fill + 1 < length:
            return
        self.summaries[slot] = self.contents[slot].mean(0)
        self.visible[slot] = 1
        self.visible[(slot + 1) % slots] = 0
        self.counters[:2] = sealed + 1, 0

    def clear(self) -> None:
        """Forget the episode, at its end: all of it, or of a memory that lasts, the open chunk."""
        self.counters[1] = 0
        if not self.lasting:
            self.counters[0] = 0
            self.visible[: self.own_slots] = 0

    def sealed_chunks(self, numbers: range) -> NDArray[Any]:
        """Return the chunks that were sealed as these, counted from 0, [n, chunk_length, width].

        Raises KeyError if one is not kept any more.
        """
        if numbers and not self.counters[0] - self.own_slots < numbers[0] <= numbers[-1] < self.counters[0]:
            raise KeyError(
                f"chunks {numbers[0]} to {numbers[-1]} are not all kept; the last {self.own_slots - 1} that "
                "were sealed are."
            )
        chunks: NDArray[Any] = self.contents[np.array(numbers, int) % self.own_slots, :, : self.item_width]
        return chunks

    def admit(self, id: int, contents: NDArray[Any]) -> None:
        """Take in a chunk of somebody else, [chunk_length, width], under an id of 0 or more, for the first.

        Not between a step's forward and backward pass.
        """
        guest = self.admitted % len(self.guest_ids)
        slot = self.own_slots + guest
        self.contents[slot, :, : self.item_width] = contents
        self.summaries[slot] = self.contents[slot].mean(0)
        self.counters[4] += self.guest_ids[guest] < 0
        self.guest_ids[guest] = id
        self.visible[slot] = 1
        self.admitted += 1

    def dismiss(self, id: int) -> None:
        """Let go of a chunk that was admitted, if it is there."""
        for guest in np.flatnonzero(self.guest_ids == id).tolist() if id >= 0 else ():
            self.guest_ids[guest] = -1
            self.visible[self.own_slots + guest] = 0
            self.counters[4] -= 1

    def chunks(self) -> Chunks:
        """Return what can be read, in the arrays themselves."""
        # Written to through NumPy, which torch does not see: what a graph has saved of them stays usable.
        used = self._used()
        some = len(self.guest_ids) > 0 or used == self.own_slots
        visible = torch.from_numpy(self.visible[:used]).bool()[None, None] if some else None
        summaries, contents = (
            torch.from_numpy(array[:used])[None] for array in (self.summaries, self.contents)
        )
        return Chunks(summaries, contents, visible)

    def any_others(self, found: list[int]) -> list[int]:
        """Return `random_reads` readable chunks that are not among `found`, each as likely."""
        used, others = self._used(), list[int]()
        _, _, time, key, _ = self.counters.tolist()
        counter = time * _DRAWS
        while len(others) < self.random_reads:
            slot = mix((key + counter * _GOLDEN) & _MASK) % used
            counter += 1
            if self.visible[slot] and slot not in found and slot not in others:
                others.append(slot)
        return others

    def _used(self) -> int:
        """How many slots are looked at."""
        return len(self.visible) if len(self.guest_ids) else min(int(self.counters[0]), self.own_slots)

    def native_settings(self) -> dict[str, Any]:
        """Return the arrays as the native step takes them."""
        slots, length, row = self.contents.shape
        return {
            "contents": self.contents.reshape(-1),
            "summaries": self.summaries.reshape(-1),
            "visible": self.visible,
            "counters": self.counters,
            "shape": [slots, length, row],
            "own": self.own_slots,
            "lasting": self.lasting,
            "random_reads": self.random_reads,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered, the open chunk's steps included, and nothing of unused slots."""
        sealed, fill, *_ = self.counters.tolist()
        used = min(sealed + bool(fill), self.own_slots)
        state = {
            "memory.counters": torch.from_numpy(self.counters.copy()),
            "memory.contents": torch.from_numpy(self.contents[:used].copy()),
            "memory.summaries": torch.from_numpy(self.summaries[:used].copy()),  # rounded as they were made
        }
        if self.lasting:
            state["memory.delivered"] = torch.tensor(self.delivered)
        if len(self.guest_ids):
            there = min(self.admitted, len(self.guest_ids))
            state |= {
                "memory.admitted": torch.tensor(self.admitted),
                "memory.guest_ids": torch.from_numpy(self.guest_ids[:there].copy()),
                "memory.guests": torch.from_numpy(self.contents[self.own_slots :][:there].copy()),
                "memory.guest_summaries": torch.from_numpy(self.summaries[self.own_slots :][:there].copy()),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave. Raises ValueError for one that cannot be."""
        contents, summaries, counters = (
            state[f"memory.{name}"].numpy() for name in ("contents", "summaries", "counters")
        )
        slots, (length, row) = self.own_slots, self.shape
        used = len(contents)
        shapes = contents.shape, summaries.shape, counters.shape
        if used > slots or shapes != ((used, length, row), (used, row), self.counters.shape):
            raise ValueError(
                f"the memory's chunks are {length} steps of {row} numbers, {slots - 1} of them; the state "
                f"has contents {contents.shape}, summaries {summaries.shape}, counters {counters.shape}."
            )
        # Native code goes by these numbers.
        sealed, fill, time, *_ = counters.tolist()
        guests = self._guests_of(state)
        if not (
            0 <= fill < self.shape[0]
            and sealed >= 0 <= time
            and used == min(sealed + bool(fill), slots)
            and (guests >= 0).sum() == counters[4]
        ):
            raise ValueError(
                f"the memory's state is damaged: {used} chunks, {sealed} sealed, and {fill} steps open."
            )
        self.visible[:] = 0
        self.contents[:used], self.counters[:] = contents, counters
        self.visible[: min(sealed, slots)] = 1
        self.visible[sealed % slots] = 0
        self.summaries[:used] = summaries
        self.delivered = int(state["memory.delivered"]) if self.lasting else 0
        self.guest_ids[:], self.admitted = -1, 0
        if len(guests):
            there, after = len(guests), slots + len(guests)
            self.admitted = int(state["memory.admitted"])
            self.guest_ids[:there], self.visible[slots:after] = guests, guests >= 0
            self.contents[slots:after] = state["memory.guests"].numpy()
            self.summaries[slots:after] = state["memory.guest_summaries"].numpy()

    def _guests_of(self, state: Mapping[str, Tensor]) -> NDArray[np.int64]:
        """Return the ids of a state's guests by slot. Raises ValueError if they do not fit."""
        if "memory.guest_ids" not in state:
            return np.zeros(0, np.int64)
        ids, admitted = state["memory.guest_ids"].numpy(), int(state["memory.admitted"])
        (length, row), count = self.shape, len(ids)
        shapes = tuple(state[f"memory.{name}"].shape for name in ("guests", "guest_summaries"))
        if shapes != ((count, length, row), (count, row)) or count != min(admitted, len(self.guest_ids)):
            raise ValueError(
                f"the memory has room for {len(self.guest_ids)} guests, and the state {count}, of shapes "
                f"{shapes[0]} and {shapes[1]}."
            )
        return ids


class EpisodeRead(nn.Module):
    """What an observation, [1, width], finds in an episode's memory: [1, features]."""

    def __init__(self, attention: ChunkAttention, memory: EpisodeMemory) -> None:
        super().__init__()
        if attention.shape != memory.shape:
            raise ValueError(
                f"the attention is for chunks of {attention.shape}, the memory has {memory.shape}."
            )
        self.attention, self.memory = attention, memory

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, width]. Zeros where no chunk can be read yet."""
        found, logits = self.select(x)
        return self.attention.read(x[None], self.memory.chunks(), found, logits)[0]

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots that x, [1, width], opens, int64 [1, 1, k], the random ones last, and their ℓ."""
        memory, attention = self.memory, self.attention
        chunks, anyhow = memory.chunks(), memory.random_reads if len(memory) > attention.k else 0
        found, logits = attention.select(x[None], chunks.summaries, chunks.visible, k=attention.k - anyhow)
        if anyhow:
            others = torch.tensor(memory.any_others(found.flatten().tolist()))
            which, of_others = attention.select(x[None], chunks.summaries[:, others], k=anyhow)
            found, logits = torch.cat([found, others[which]], -1), torch.cat([logits, of_others], -1)
        return found, logits
