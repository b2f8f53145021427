"""What every method of `streamwise tasks` has in common: its settings, what it does, and how it is scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from streamwise.agents.next_event import Rates, next_events
from streamwise.agents.tpp_training import Fit, TrainingSettings
from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.task_split import Array

__all__ = ["METRICS", "Cell", "MethodSettings", "TaskMethod", "cell", "prediction", "refuse_unmatched"]

METRICS = {  # by name: whether higher is better
    "log_likelihood": True,
    "time_log_likelihood": True,
    "type_log_likelihood": True,
    "type_error_true_time": False,
    "type_error_predicted_time": False,
    "time_rmse": False,
    "time_mae": False,
}
Cell = dict[str, float]  # a score by name

_GRID = 48  # offsets of a prediction; its quadrature looks at twice as many


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the methods."""

    training: TrainingSettings
    epochs: int
    steps: int
    batch: int
    width: int
    layers: int
    heads: int
    prompts: int
    selected: int
    rows: int
    consolidation: float
    replayed: int
    time_unit: float


class TaskMethod(Protocol):
    """Learns tasks in order, and scores any of them."""

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        ...

    def learn(self, task: int) -> Fit | None:
        """Learn a task; None if there was nothing to learn from it, and nothing has changed."""
        ...

    def scores(self, tasks: int) -> list[Cell]:
        """Score the test parts of the first tasks, learning nothing: METRICS by name, NaN for none."""
        ...

    def silence(self, task: int) -> float:
        """Return what is held against a key, in nats, for its silence since its last event of a test part."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that was learned."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> int:
        """Go on from a state; return how many tensors it had. Raises CheckpointError for other names."""
        ...


def refuse_unmatched(found: set[str], expected: set[str]) -> None:
    """Raise CheckpointError, naming the tensors, if a checkpoint has not those that are expected."""
    if found != expected:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        parts = [
            f"{what} {', '.join(names)}"
            for what, names in (("lacks", missing), ("has also", unknown))
            if names
        ]
        raise CheckpointError(f"the checkpoint is of another method: it {' and '.join(parts)}.")


def prediction(rates: Rates, longest: float, types: Tensor, gaps: Tensor) -> Array:
    """Return, of each history, whether the type was wrong, and the predicted mean, median and true gap."""
    found = next_events(rates, longest, quantiles=(0.5,), grid=_GRID)
    wrong = (found.types.argmax(1) != types).double()
    waits = [wait.clamp(max=longest) for wait in (found.mean, found.quantiles[:, 0])]
    predicted: Array = torch.stack([wrong, *waits, gaps.double()], 1).numpy()
    return predicted


def cell(time: float, types: float, wrong: float, predicted: Array, unit: float) -> Cell:
    """Put scores together. time, types: nats an event, of times in seconds; predicted: see `prediction`."""
    wrong_ahead, mean, median, gap = predicted.T
    return {
        "log_likelihood": time + types + math.log(unit),
        "time_log_likelihood": time + math.log(unit),
        "type_log_likelihood": types,
        "type_error_true_time": wrong,
        "type_error_predicted_time": float(wrong_ahead.mean()),
        "time_rmse": float(np.sqrt(np.square(mean - gap).mean())) / unit,
        "time_mae": float(np.abs(median - gap).mean()) / unit,
    }
