"""The statistics that `streamwise tasks` sets beside neural intensities: they learn event by event."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents import event_model_class
from streamwise.agents.event_model import StatisticalModel
from streamwise.agents.tpp_training import Fit
from streamwise.runs.task_scores import Cell, MethodSettings, cell, prediction, refuse_unmatched
from streamwise.runs.task_split import Array, Split

__all__ = ["STATISTICAL", "StatisticalMethod", "statistical_method"]

STATISTICAL = {
    "repeat-last": "the key's last type after its last gap",
    "markov": "types by the type before, gaps exponential with a rate for every key",
    "hawkes": "streamwise's model of that name, learning event by event",
    "counts": "streamwise's model of that name, learning event by event",
}


class StepModel(ABC):
    """Statistics that learn event by event, apart from what each key did, which is a row of its own.

    row_type: of a key's row; all zeros before its first event.
    """

    row_type: np.dtype[Any]

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the statistics by name, to be read, or changed in place."""

    @abstractmethod
    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Return log λ(t) - Λ of a time in seconds, log(λ_k / λ), and the likeliest type at that time."""

    @abstractmethod
    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Take an event into the statistics, before it is put into its row."""

    @abstractmethod
    def put(self, row: Any, time: float, event_type: int) -> None:
        """Put an event into the row of its key."""


class StepProcess(StepModel):
    """One that is a point process."""

    @abstractmethod
    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return λ_k at some gaps after the key's last event, [gaps, types], and Λ up to them, [gaps]."""


class RepeatLast(StepModel):
    """What happened last happens again, after as long; it has no likelihood."""

    row_type = np.dtype([("events", "f8"), ("last_time", "f8"), ("last_gap", "f8"), ("last_type", "i8")])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return nothing: nothing is learned."""
        return {}

    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Return NaN, NaN and the last type."""
        return math.nan, math.nan, int(row["last_type"])

    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Learn nothing."""

    def put(self, row: Any, time: float, event_type: int) -> None:
        """Note type and gap."""
        row["last_gap"] = time - row["last_time"] if row["events"] else 0.0
        row["events"] += 1.0
        row["last_time"], row["last_type"] = time, event_type


class Markov(StepProcess):
    """Types by the type before, leaning on how often each came; gaps exponential, a rate for every key.

    A key's rate leans on that of all as if one of its gaps had been an average one.
    """

    row_type = np.dtype([("events", "f8"), ("first_time", "f8"), ("last_time", "f8"), ("last_type", "i8")])
    _PULL = 5.0  # events' worth by which counts lean

    def __init__(self, types: int) -> None:
        self.after = np.zeros((types, types))
        self.overall = np.zeros(types)
        self.gaps = np.zeros(2)  # how many, and seconds

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the counts."""
        return {"after": self.after, "overall": self.overall, "gaps": self.gaps}

    def _now(self, row: Any) -> tuple[float, Array]:
        """Return a key's rate and the probabilities of types."""
        mean_gap = (self.gaps[1] + 1.0) / (self.gaps[0] + 1.0)
        gaps = max(float(row["events"]) - 1.0, 0.0)
        rate = (gaps + 1.0) / (float(row["last_time"] - row["first_time"]) + mean_gap)
        share = (self.overall + 1.0) / (self.overall.sum() + len(self.overall))
        counts = self.after[int(row["last_type"])]
        return rate, (counts + self._PULL * share) / (counts.sum() + self._PULL)

    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Score by rate and counts."""
        rate, shares = self._now(row)
        gap = time - float(row["last_time"])
        return math.log(rate) - rate * gap, math.log(shares[event_type]), int(shares.argmax())

    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Count."""
        self.overall[event_type] += 1.0
        if row["events"]:
            self.after[int(row["last_type"]), event_type] += 1.0
            self.gaps += 1.0, time - float(row["last_time"])

    def put(self, row: Any, time: float, event_type: int) -> None:
        """Note time and type."""
        if not row["events"]:
            row["first_time"] = time
        row["events"] += 1.0
        row["last_time"], row["last_type"] = time, event_type

    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return the same at every gap."""
        rate, shares = self._now(row)
        return np.broadcast_to(rate * shares, (len(gaps), len(shares))), rate * gaps


class Streamed(StepProcess):
    """One of streamwise's models of events, told all types ahead."""

    def __init__(self, name: str, types: int) -> None:
        kind = event_model_class(name)
        self.types = types
        config = kind.Config(types=max(types, 2), keys_in_memory=1024)
        self.model: StatisticalModel = kind(config, backend="reference")
        self.model.seen[0] = float(types)
        self.row_type = self.model._row_type()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the model's shared statistics."""
        return dict(self.model.arrays)

    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Score as the model does before it learns."""
        found = self.model._score(row, time, event_type)
        return found.time_log_density, found.type_log_probability, int(found.predicted_type)

    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Learn as the model does."""
        self.model._learn(row, time, event_type)

    def put(self, row: Any, time: float, event_type: int) -> None:
        """Advance the key's row."""
        self.model._put(row, time, event_type)

    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return those of the model."""
        return self.model._intensities(row, gaps)


class StatisticalMethod:
    """A model that reads the stream once, and learns from the events of the training parts."""

    def __init__(self, model: StepModel, settings: MethodSettings, split: Split) -> None:
        self.model, self.settings, self.split = model, settings, split
        self.longest_wait = split.unit
        self.rows = np.zeros(split.events.key_count, model.row_type)
        self.read = 0  # events of the stream

    @property
    def parameters(self) -> int:
        """How many numbers the shared statistics are."""
        return sum(array.size for array in self.model.arrays().values())

    def learn(self, task: int) -> Fit | None:
        """Read on to the end of a training part, learning from its events."""
        part, learned = self.split.train[task], 0
        start, end = np.searchsorted(self.split.events.times, (part.start, part.end)).tolist()
        for i, row, time, event_type in self._walk(self.rows, self.read, end):
            if i >= start:
                self.model.learn(row, time, event_type)
                learned += 1
            self.model.put(row, time, event_type)
        self.read = end
        self.longest_wait = self.split.longest_wait(task)
        return Fit(learned, 1, 1, math.nan)

    def _walk(self, rows: NDArray[Any], start: int, end: int) -> Any:
        """Yield number, row, time and type of the events of the stream from `start` to `end`."""
        events = self.split.events
        columns = (events.keys[start:end], events.times[start:end], events.types[start:end])
        for i, (key, time, event_type) in enumerate(zip(*(c.tolist() for c in columns), strict=True), start):
            yield i, rows[key], time, event_type

    def scores(self, tasks: int) -> list[Cell]:
        """Read the stream from its beginning, learning nothing, and score the test parts on the way."""
        split, rows, done, cells = self.split, np.zeros_like(self.rows), 0, []
        for part in split.test[:tasks]:
            scored = set(split.order[part.scored].tolist())
            chosen = set(split.order[part.predicted[:, 1]].tolist())
            start, end = np.searchsorted(split.events.times, (part.start, part.end)).tolist()
            for _, row, time, event_type in self._walk(rows, done, start):
                self.model.put(row, time, event_type)
            found, before = [], []
            for i, row, time, event_type in self._walk(rows, start, end):
                if i in scored:
                    log_time, log_type, likeliest = self.model.score(row, time, event_type)
                    found.append((log_time, log_type, likeliest != event_type))
                if i in chosen:
                    before.append((row.copy(), time, event_type))
                self.model.put(row, time, event_type)
            done = end
            log_time, log_type, wrong = np.mean(np.array(found, np.float64), 0).tolist()
            cells.append(cell(log_time, log_type, wrong, self._predictions(before), self.settings.time_unit))
        return cells

    def _predictions(self, before: list[tuple[Any, float, int]]) -> Array:
        """Predict what came after each of some rows: float64 [rows, 4], see `prediction`."""
        rows = [row for row, _, _ in before]
        gaps = np.array([time - float(row["last_time"]) for row, time, _ in before])
        types = np.array([event_type for _, _, event_type in before])
        model = self.model
        if not isinstance(model, StepProcess):
            waits = [float(row["last_gap"]) for row in rows]
            wrong = [row["last_type"] != event_type for row, _, event_type in before]
            return np.stack([wrong, waits, waits, gaps], 1).astype(np.float64)

        def rates(offsets: Tensor) -> Tensor:
            at = offsets[0].numpy()
            return torch.from_numpy(np.stack([model.intensities(row, at)[0] for row in rows]))

        return prediction(rates, self.longest_wait, torch.from_numpy(types), torch.from_numpy(gaps))

    def silence(self, task: int) -> float:
        """Return the mean over keys of Λ from their last event, or the start of the part, to its end."""
        model = self.model
        if not isinstance(model, StepProcess):
            return math.nan
        split, part, rows = self.split, self.split.test[task], np.zeros_like(self.rows)
        end = int(np.searchsorted(split.events.times, part.end))
        for _, row, time, event_type in self._walk(rows, 0, end):
            self.model.put(row, time, event_type)
        total = 0.0
        active = rows[rows["events"] > 0.0]
        for row in active:
            gaps = np.array([max(part.start - row["last_time"], 0.0), part.end - row["last_time"]])
            passed = model.intensities(row, gaps)[1]
            total += float(passed[1] - passed[0])
        return total / len(active)

    # State.

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shared statistics, the rows of keys, and how far the stream was read."""
        return {
            **{f"model.{name}": torch.from_numpy(a.copy()) for name, a in self.model.arrays().items()},
            "rows": torch.from_numpy(self.rows.view(np.uint8).reshape(len(self.rows), -1).copy()),
            "read": torch.tensor(self.read),
            "longest_wait": torch.tensor(self.longest_wait, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> int:
        """Go on from a state; return how many tensors it had. Raises CheckpointError for other names."""
        refuse_unmatched(set(state), set(self.state_dict()))
        for name, array in self.model.arrays().items():
            array[...] = state[f"model.{name}"].numpy()
        self.rows = state["rows"].numpy().reshape(-1).view(self.rows.dtype).copy()
        self.read, self.longest_wait = int(state["read"]), float(state["longest_wait"])
        return len(state)


def statistical_method(name: str, settings: MethodSettings, split: Split) -> StatisticalMethod:
    """Make a method of STATISTICAL."""
    types = len(split.events.type_names)
    model: StepModel
    if name == "repeat-last":
        model = RepeatLast()
    elif name == "markov":
        model = Markov(types)
    else:
        model = Streamed(name, types)
    return StatisticalMethod(model, settings, split)
