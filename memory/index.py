"""An index of chunk summaries: the best chunks of a large store, nearly always, without a look at every one.

An inverted file (Sivic and Zisserman, 2003; Jégou et al., 2011): summaries fall into about √M lists, each
around a centroid, and a query looks into the lists whose centroids have the largest product with it:

    list of i = argmin_l |κ_i - μ_l|²        lists looked into: the `probe` largest  s · μ_l
    ℓ_i = s · κ_i                            for the chunks of those, exactly

Summaries are indexed as they are stored, and the query carries the projections (memory/hcam.py), so that
nothing is indexed again while those learn. Lists are made of who is nearest, and looked into by the product,
so that a long summary far from its centroid can be missed: how many of the 8 best are found depends on how
summaries lie. With M = 20,000, D = 64 and 16 of 141 lists, the mean and the range over ten draws or more of
everything, with 200 queries each:

    0.98, 0.95 to 1.00   summaries and queries around 200 centres: N(0, I), and N(0, I/4) around each
    0.94, 0.91 to 0.97   the same around 1,000 centres
    0.96, 0.93 to 0.98   states of a slow random walk, x <- 0.95 x + 0.31 N(0, I), and queries around some
    0.42, 0.41 to 0.46   N(0, I), of which no lists can be made; 0.65 with 32 lists, 0.87 with 64

On one core of a busy machine a query took 0.6 ms at best and 0.8 in the median with M = 200,000 around 1,000
centres, a scan of all 5 and 9; with M = 1,000,000, 3 and 4 against 26 and 48.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from streamwise.kernels.chunk_attention import scan
from streamwise.memory.chunks import ChunkStore

__all__ = ["SummaryIndex"]

_FEW = 16_384  # chunks that are scanned sooner than looked up
_ROUNDS = 8  # of k-means
_SAMPLE = 64  # summaries for each list, that its rounds are made of
_BLOCK = 8192  # summaries that are compared with all centroids at a time


class SummaryIndex:
    """Finds chunks of a store by their summaries, and follows the store by itself.

    lists: how many, or None for √M. probe: how many of them a query looks into; with all of them the result
    is that of `scan`. seed: of the sample that centroids are made of.

    Centroids are made again, in the `refresh` or `search` that comes next, when as many chunks came as there
    were then: with D = 64 in 1 to 3 s for 200,000 chunks, and 8 to 20 s for 1,000,000. All are scanned while
    there are few chunks, and for a query that may see few, or would find fewer than it asks for. It is made
    for few queries at a time: the summaries in all of their lists are copied together.

    Sources: Sivic and Zisserman (2003), "Video Google: a text retrieval approach to object matching in
    videos"; Jégou, Douze and Schmid (2011), "Product quantization for nearest neighbor search".

    >>> from streamwise.memory.store import InProcessStore
    >>> store = InProcessStore(chunk_length=1, width=2, capacity=100)
    >>> for step in range(100):
    ...     id = store.append([[step, 1.0]], first=step, last=step)
    >>> slots, logits = SummaryIndex(store).search(torch.tensor([[-1.0, 50.0]]), k=3)
    >>> slots.tolist(), logits.tolist()
    ([[0, 1, 2]], [[50.0, 49.0, 48.0]])
    """

    def __init__(
        self, store: ChunkStore, *, lists: int | None = None, probe: int = 16, seed: int = 0
    ) -> None:
        for name, number in (("lists", lists), ("probe", probe)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more.")
        self._store, self._lists, self._probe, self._seed = store, lists, probe, seed
        self._ids = np.zeros(0, np.int64)  # of the slots, as they were last seen
        self._list_of = np.zeros(0, np.int64)  # of each slot; -1 where it is empty
        self._centroids: Tensor | None = None  # [lists, width]
        self._members: list[NDArray[np.int64]] = []  # slots of each list, in order
        self._made_of = self._came = 0  # chunks that the centroids were made for, and that came since
        self._newest = -1  # the highest id that was seen; below: where, and what it stood for
        self._newest_slot, self._newest_summary = 0, np.zeros(store.width, np.float32)

    def search(self, select: Tensor, k: int, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the slots of the K = min(k, slots) best chunks, int64 [Q, K], best first, and ℓ of each.

        select: [Q, width], on the CPU. visible: bool [Q or 1, slots], or None for all; empty slots never are.
        As with `scan`, of equal chunks that in the lower slot is the better, gradients flow from ℓ to
        `select`, and where fewer than K chunks are visible, the rest is -1, with ℓ = -inf.
        """
        if select.dim() != 2 or select.shape[1] != self._store.width:
            raise ValueError(f"select is {list(select.shape)}; use [queries, {self._store.width}].")
        self.refresh()
        summaries, valid = self._store.summaries, self._store.valid
        seen = valid[None] if visible is None else visible.numpy() & valid
        if self._centroids is None or len(self._store) <= _FEW or not len(select):
            return _scan(select, summaries, k, seen)
        probed = self._probed(select.detach(), self._centroids)
        slots = np.sort(np.concatenate([self._members[i] for i in np.flatnonzero(probed.any(0))]))
        may = self._may(probed, slots, seen)
        # Who would get too few though there are more, or may see few anyway, looks at all.
        wanted = min(k, len(summaries))
        everything = (_counts(may) < wanted) | (_counts(seen) <= _FEW)
        if everything.any():
            slots = np.flatnonzero(seen.any(0))
            may = self._may(probed | everything[:, None], slots, seen)
        found, logits = _scan(select, summaries.take(slots, axis=0), k, may)
        missing = 0, wanted - found.shape[1]
        places = pad(found, missing, value=-1)
        return torch.from_numpy(np.append(slots, -1))[places], pad(logits, missing, value=-math.inf)

    def refresh(self) -> None:
        """Take up what came into the store and what went, as `search` does first."""
        ids, known = self._store.ids, len(self._ids)
        if len(ids) > known:
            more = np.full(len(ids) - known, -1)
            self._ids, self._list_of = np.append(self._ids, more), np.append(self._list_of, more)
        changed = np.flatnonzero(ids != self._ids) if len(ids) >= known else np.zeros(0, np.int64)
        if len(ids) < known or self._was_loaded(ids[changed]):
            self._ids, self._list_of = np.full(len(ids), -1), np.full(len(ids), -1)
            self._centroids, self._newest = None, -1
            changed = np.flatnonzero(ids >= 0)
        if not len(changed):
            return
        gone = self._list_of[changed]
        self._ids[changed], self._list_of[changed] = ids[changed], -1
        came = changed[ids[changed] >= 0]
        self._came += len(came)
        if len(came):
            self._newest_slot = int(came[ids[came].argmax()])
            self._newest = int(ids[self._newest_slot])
            self._newest_summary = self._store.summaries[self._newest_slot].copy()
        if len(self._store) > _FEW and (self._centroids is None or self._came >= self._made_of):
            came = np.flatnonzero(ids >= 0)
            self._centroids = self._make(came)
            self._made_of, self._came = len(came), 0
            self._members = [np.zeros(0, np.int64)] * len(self._centroids)
            gone = gone[:0]
        if self._centroids is not None:
            self._list_of[came] = _nearest(self._rows(came), self._centroids).numpy()
            self._sort_in(came, gone)

    def _sort_in(self, came: NDArray[np.int64], gone: NDArray[np.int64]) -> None:
        """Bring the lists up to date that these slots are in, and these lists, which slots went from."""
        came = came[np.argsort(self._list_of[came], kind="stable")]
        lists = self._list_of[came]
        for i in np.union1d(lists, gone[gone >= 0]):
            kept = self._members[i][self._list_of[self._members[i]] == i]
            new = came[np.searchsorted(lists, i) : np.searchsorted(lists, i, side="right")]
            self._members[i] = np.union1d(kept, new)

    def _was_loaded(self, changed: NDArray[np.int64]) -> bool:
        """Whether the store went on from an earlier state, so that ids may stand for other chunks.

        Else ids only grow, and what the newest chunk seen stood for does not change. changed: ids. This may
        say no as long as fewer chunks came than were taken back: those are then in the lists of others.
        """
        if ((changed >= 0) & (changed <= self._newest)).any():
            return True
        slot = self._newest_slot
        there = self._newest >= 0 and self._store.ids[slot] == self._newest
        return there and not np.array_equal(self._store.summaries[slot], self._newest_summary)

    def _make(self, slots: NDArray[np.int64]) -> Tensor:
        """Return centroids of the chunks in these slots, by k-means of a sample, [lists, width]."""
        lists = min(self._lists or round(math.sqrt(len(slots))), len(slots))
        draw = torch.randperm(len(slots), generator=torch.Generator().manual_seed(self._seed)).numpy()
        rows = self._rows(slots[draw[: lists * _SAMPLE]])
        centroids = rows[:lists].clone()
        for _ in range(_ROUNDS):
            nearest = _nearest(rows, centroids)
            counts = nearest.bincount(minlength=lists)[:, None]
            sums = torch.zeros_like(centroids).index_add_(0, nearest, rows)
            centroids = torch.where(counts > 0, sums / counts, centroids)
        return centroids

    def _rows(self, slots: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._store.summaries.take(slots, axis=0))

    def _probed(self, select: Tensor, centroids: Tensor) -> NDArray[np.bool_]:
        """Whether each query looks into each list, [Q, lists]."""
        best = (select.to(centroids.dtype) @ centroids.T).topk(min(self._probe, len(centroids))).indices
        return torch.zeros(len(select), len(centroids), dtype=torch.bool).scatter_(1, best, True).numpy()

    def _may(
        self, probed: NDArray[np.bool_], slots: NDArray[np.int64], seen: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Whether each query looks at the chunks in each of these slots, [Q, slots]."""
        may: NDArray[np.bool_] = probed.take(self._list_of[slots], axis=1) & seen.take(slots, axis=1)
        return may


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """Return which centroid is nearest to each row, int64 [rows]."""
    half = centroids.square().sum(1) / 2
    return torch.cat([(block @ centroids.T - half).argmax(1) for block in torch.split(rows, _BLOCK)])


def _counts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many are true in each row; numpy's sum of bool is several times slower."""
    return np.array([np.count_nonzero(row) for row in mask], np.int64)


def _scan(
    select: Tensor, summaries: NDArray[np.float32], k: int, visible: NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    mask = None if visible.all() else torch.from_numpy(visible)[None]
    rows = torch.from_numpy(summaries).to(select.dtype)
    found, logits = scan(select[None], rows[None], k=k, visible=mask)
    return found[0], logits[0]
