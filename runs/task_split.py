"""A stream of events divided into tasks: windows one after the other, in parts to train, validate and test.

A part is an interval of time, and its events are those that fall into it, whatever their key: a key may have
events in every part. Scored, and trained on, are the events of a part; what a key did before is context,
visible, but neither scored nor trained on. The interval of a scored event is charged to it in full, from the
key's event before it, so that scores of parts add up to those of the stream. A key's first event is never
scored: it has no interval.

Events of a key go into sequences of up to `window` events that are scored, after up to `window` of context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from streamwise.agents.neural_tpp import Sequences
from streamwise.agents.tpp_training import Batch
from streamwise.streams import UsageError

__all__ = ["By", "Events", "Part", "Split"]

By = Literal["time", "count"]
Array = NDArray[np.float64]
Integers = NDArray[np.int64]

PARTS = ("train", "validation", "test")
SHARES = (0.0, 0.7, 0.8)  # of a window: where its parts begin
OUTSIDE = 0.001  # of the events at either end of the stream, which would stretch the first and last window
_LONGEST = 0.999, 2.0  # quantile of gaps, and how many times it a prediction looks ahead
_SORTED_TOGETHER = 8  # batches whose sequences are sorted by length, so that few pads are needed


@dataclass(frozen=True)
class Events:
    """All events in order of time: float64 times in seconds; int64 types and keys by number."""

    times: Array
    types: Integers
    keys: Integers
    type_names: tuple[str, ...]
    key_count: int


@dataclass(frozen=True)
class Part:
    """The events of [start, end) that are scored.

    scored: int64 [events], where they are among the events sorted by key. chunks: int64 [sequences, 3], a
    sequence's first event, its first that is scored, and its end. predicted: chunks of one scored event each,
    an even selection, of which the next event is predicted.
    """

    start: float
    end: float
    scored: Integers
    chunks: Integers
    predicted: Integers


class Split:
    """Events divided into tasks. train, validation, test: a part for every task.

    by: windows of equal time, or of equal count. Between the 0.1% and the 99.9% point of the events: the few
    before are context, the few after are left out. window: the most events of context. predictions: of how
    many events of a part the next event is predicted, at most.

    Raises UsageError if a part would have nothing to score.
    """

    def __init__(
        self, events: Events, tasks: int, by: By = "time", *, window: int = 64, predictions: int = 400
    ) -> None:
        self.events, self.tasks, self.window = events, tasks, window
        order = np.argsort(events.keys, kind="stable")
        self.order = order  # events by key, and of a key in the order of the stream
        self.times, self.types, self.keys = events.times[order], events.types[order], events.keys[order]
        self.key_starts = np.searchsorted(self.keys, self.keys)  # of every event, where its key begins
        self.bounds = self._bounds(tasks, by)
        parts = [
            self._part(start, end, predictions)
            for start, end in zip(self.bounds, self.bounds[1:], strict=False)
        ]
        for i, part in enumerate(parts):
            if not len(part.scored):
                remedy = "fewer --tasks, or --by count" if by == "time" else "fewer --tasks"
                raise UsageError(
                    f"task {i // 3 + 1} of {tasks} has nothing to score in its {PARTS[i % 3]} part; "
                    f"use {remedy}."
                )
        self.train, self.validation, self.test = (parts[i::3] for i in range(3))

    def _bounds(self, tasks: int, by: By) -> Array:
        """Return where parts begin, and where the last ends, float64 [3 tasks + 1]."""
        times = self.events.times
        low, high = (round(share * (len(times) - 1)) for share in (OUTSIDE, 1.0 - OUTSIDE))
        shares = np.append(np.add.outer(np.arange(tasks), SHARES).ravel() / tasks, 1.0)
        bounds: Array
        if by == "time":
            bounds = times[low] + shares * (times[high] - times[low])
        else:
            bounds = times[low + np.round(shares * (high - low)).astype(np.int64)]
        bounds[-1] = np.nextafter(times[high], np.inf)
        return bounds

    def _part(self, start: float, end: float, predictions: int) -> Part:
        inside = (self.times >= start) & (self.times < end) & (np.arange(len(self.times)) > self.key_starts)
        scored = np.flatnonzero(inside)
        chosen = scored[np.linspace(0, len(scored) - 1, min(predictions, len(scored))).astype(np.int64)]
        return Part(start, end, scored, self._chunks(scored, self.window), self._chunks(chosen, 1))

    def _chunks(self, scored: Integers, longest: int) -> Integers:
        """Return chunks of up to `longest` scored events that follow each other."""
        if not len(scored):
            return np.zeros((0, 3), np.int64)
        follows = np.append(False, (np.diff(scored) == 1) & (np.diff(self.keys[scored]) == 0))
        places = np.arange(len(scored))
        run_starts = np.maximum.accumulate(np.where(follows, 0, places))
        begins = np.flatnonzero((places - run_starts) % longest == 0)
        first, end = scored[begins], scored[np.append(begins[1:], len(scored)) - 1] + 1
        return np.stack([np.maximum(first - self.window, self.key_starts[first]), first, end], 1)

    def tails(self, part: Part) -> Integers:
        """Return chunks that end with the last event of every key before the end of a part."""
        last = np.flatnonzero((self.times < part.end) & np.append(self._goes_beyond(part.end), True))
        begins = np.maximum(last + 1 - self.window, self.key_starts[last])
        return np.stack([begins, last, last + 1], 1)

    def _goes_beyond(self, end: float) -> NDArray[np.bool_]:
        """Whether the event after each is of another key, or not before `end`."""
        beyond: NDArray[np.bool_] = (np.diff(self.keys) != 0) | (self.times[1:] >= end)
        return beyond

    def batch(self, chunks: Integers) -> Batch:
        """Return some chunks as a batch. A sequence starts with the key's event before it, if any."""
        begin, first, end = chunks.T
        places = begin[:, None] + np.arange(int((end - begin).max()))
        places = np.minimum(places, end[:, None] - 1)
        start = self.times[np.maximum(begin - 1, self.key_starts[begin])]
        sequences = Sequences(
            torch.from_numpy(self.times[places]),
            torch.from_numpy(self.types[places]),
            torch.from_numpy(end - begin),
            torch.from_numpy(start),
            torch.from_numpy(self.times[end - 1]),
        )
        return Batch(sequences, torch.from_numpy(first - begin))

    def batches(
        self, chunks: Integers, size: int, generator: torch.Generator | None = None
    ) -> Iterator[Integers]:
        """Yield the chunks of a batch at a time, of about one length each; in random order, or by length."""
        lengths = chunks[:, 2] - chunks[:, 0]
        if generator is None:
            order = np.argsort(lengths, kind="stable")
            yield from (chunks[order[i : i + size]] for i in range(0, len(order), size))
            return
        order = torch.randperm(len(chunks), generator=generator).numpy()
        together = _SORTED_TOGETHER * size
        for i in range(0, len(order), together):
            some = order[i : i + together]
            some = some[np.argsort(lengths[some], kind="stable")]
            starts = np.arange(0, len(some), size)
            for start in starts[torch.randperm(len(starts), generator=generator).numpy()]:
                yield chunks[some[start : start + size]]

    def gaps(self, part: Part) -> Array:
        """Return the gaps before the scored events of a part, in seconds."""
        gaps: Array = self.times[part.scored] - self.times[part.scored - 1]
        return gaps

    @property
    def unit(self) -> float:
        """The median gap of the first training part, in seconds: the unit of time of models."""
        gaps = self.gaps(self.train[0])
        return float(np.median(gaps[gaps > 0.0])) if (gaps > 0.0).any() else 1.0

    def longest_wait(self, task: int) -> float:
        """Return how far ahead predictions look, by the gaps of training parts through a task, in seconds."""
        quantile, times = _LONGEST
        gaps = np.concatenate([self.gaps(part) for part in self.train[: task + 1]])
        return max(times * float(np.quantile(gaps, quantile)), self.unit)
