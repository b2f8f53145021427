"""Metrics of a run on events: one row an interval, to Parquet and TensorBoard."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from streamwise.agents.event_model import Array, EventModel
from streamwise.runs.prequential import Prequential
from streamwise.runs.recorder import RowFile
from streamwise.runs.tensorboard import EventFile
from streamwise.streams.event_stream import EventBatch, EventStream

__all__ = ["EventRecorder", "Latencies"]

_TENSORBOARD_INTERVAL_SECONDS = 0.5
_TOGETHER = 256  # events whose scores are taken in at once: a call costs as much as a hundred of them


class Latencies:
    """How long events took from their poll to being learned, in bins a tenth apart: constant memory."""

    EDGES = 1e-6 * 1.1 ** np.arange(240)  # seconds, to two hours

    def __init__(self) -> None:
        self.counts = np.zeros(len(self.EDGES) + 1, np.int64)

    def add(self, seconds: Array) -> None:
        """Count some waits."""
        bins, counts = np.unique(np.searchsorted(self.EDGES, seconds), return_counts=True)
        self.counts[bins] += counts

    def quantile(self, share: float) -> float:
        """Return the wait, in seconds, that this share of them did not exceed; NaN without any."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        at = int(np.searchsorted(np.cumsum(self.counts), math.ceil(share * total)))
        return float(self.EDGES[min(at, len(self.EDGES) - 1)])


class EventRecorder:
    """Scores every event, and makes a row of every `interval` of them, exactly.

    Scores in a row are of its events, however they were polled. What is merely counted (keys, types, refused
    records), what the model says of itself, and what the clock has a part in, is what it is when the row is
    made, at the end of a poll.

    Rows and scores wait in memory and travel in checkpoints, as those of `Recorder` do.
    """

    def __init__(
        self, directory: Path, model: EventModel, stream: EventStream, *, interval: int, time_unit: float
    ) -> None:
        self.directory = directory
        self.model = model
        self.stream = stream
        self.interval = interval
        self._scores = Prequential(time_unit, model.extras)
        self._waiting: list[tuple[Array, Array]] = []  # scores and waits that are not taken in yet
        self._events = 0
        self.metrics = RowFile(directory / "metrics.parquet")
        self.files = {"metrics": self.metrics}
        self.row: dict[str, Any] = {}  # the last one
        self.rate = 0.0  # events a second, over the last row
        self.first_time: float | None = None  # of an event
        self._latencies = Latencies()
        self._tensorboard = EventFile(directory / "tensorboard")
        self._elapsed_before = 0.0
        self._started = self._row_started = time.perf_counter()
        self._written_at = -math.inf

    @property
    def step(self) -> int:
        """How many events were learned."""
        return self._events

    @property
    def scores(self) -> Prequential:
        """The scores of all of them."""
        self._take_in()
        return self._scores

    @property
    def elapsed(self) -> float:
        """Seconds that the run has been running, over all its resumptions."""
        return self._elapsed_before + time.perf_counter() - self._started

    def record(self, batch: EventBatch, scores: Array) -> None:
        """Take the events of one poll into account, which were just learned."""
        if not batch.size:
            return
        if self.first_time is None:
            self.first_time = batch.times[0]
        waits = time.monotonic() - np.asarray(batch.polled_at)
        while len(scores):
            count = self.interval - self.step % self.interval
            self._waiting.append((scores[:count], waits[:count]))
            self._events += len(scores[:count])
            scores, waits = scores[count:], waits[count:]
            if self.step % self.interval == 0:
                self.close_row()
        if self._events - self._scores.events >= _TOGETHER:
            self._take_in()

    def _take_in(self) -> None:
        if self._waiting:
            scores, waits = (np.concatenate(of) for of in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self._scores.add(scores)
            self._latencies.add(waits)

    def close_row(self) -> None:
        """Make a row of what has come since the last."""
        now = time.perf_counter()
        self._take_in()
        events = self.step - int(self.row.get("step", 0))
        self.rate = events / max(now - self._row_started, 1e-9)
        lag = self.stream.lag()
        refused = self.stream.dead_letters
        self.row = {
            "step": self.step,
            "wall_time": self.elapsed,
            **self.scores.scores(),
            "events_per_second": self.rate,
            "latency_p50_ms": 1e3 * self._latencies.quantile(0.5),
            "latency_p99_ms": 1e3 * self._latencies.quantile(0.99),
            "lag": math.nan if lag is None else float(lag),
            "watermark_delay": max(time.time() - self.stream.watermark, 0.0),
            "dead_letters": refused.total,
            "keys": len(self.model.keys),
            "keys_in_memory": self.model.keys.in_memory,
            "types": len(self.model.vocabulary),
            "types_overflowed": self.model.overflowed,
            **{name: float(value) for name, value in self.model.statistics().items()},
        }
        self.metrics.waiting.append(self.row)
        self.scores.close_window()
        self._latencies = Latencies()
        self._row_started = now
        if self.elapsed - self._written_at >= _TENSORBOARD_INTERVAL_SECONDS:
            self._written_at = self.elapsed
            shown = {name: value for name, value in self.row.items() if name not in ("step", "wall_time")}
            self._tensorboard.add(self.step, {k: v for k, v in shown.items() if not math.isnan(v)})

    def finish(self) -> None:
        """Make a last row of whatever is left, where the stream has ended."""
        if self.step > int(self.row.get("step", 0)):
            self.close_row()

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs, as JSON."""
        return {
            "step": self.step,
            "elapsed": self.elapsed,
            "first_time": self.first_time,
            "scores": self.scores.state(),
            "row": self.row,
            "metrics": self.metrics.state(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._scores.resume(state["scores"])
        self._events = self._scores.events
        self.row, self.first_time = state["row"], state["first_time"]
        self._tensorboard.purge_step = self.step + 1
        self._elapsed_before, self._started = state["elapsed"], time.perf_counter()
        self._row_started = self._started
        self.metrics.resume(state["metrics"])

    def __enter__(self) -> EventRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensorboard.close()
