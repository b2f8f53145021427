"""Events at constant rates: the least that a model of events has to beat.

Every key has the same rate, whose estimate runs along with the stream, and types come in fixed proportions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamwise.agents.event_merge import Layout
from streamwise.agents.event_model import CLOCK, Array, EventSettings, Score, StatisticalModel

__all__ = ["Poisson", "PoissonConfig"]


@dataclass(frozen=True)
class PoissonConfig(EventSettings):
    """Settings of the Poisson model."""

    type_prior: float = 0.5
    """Events of every type that are imagined at the start."""


class Poisson(StatisticalModel):
    """A homogeneous Poisson process for each key, with running rates per type.

    λ = (gaps + 1) / (seconds + prior_gap), and type k has the share (n_k + prior) / (n + prior * classes) of
    it. The counts are halved when they reach `memory`, so that the past fades.

    >>> from streamwise.streams import Event
    >>> model = Poisson()
    >>> for i in range(1000):
    ...     score = model.learn_one(Event(60.0 * i, "tick", "clock"))
    >>> round(score["predicted_gap"], 1)
    63.5
    """

    name = "poisson"
    Config = PoissonConfig
    config: PoissonConfig

    def __init__(self, config: PoissonConfig | None = None, **options: Any) -> None:
        super().__init__(config or PoissonConfig(), **options)

    def _row_type(self) -> np.dtype[Any]:
        return np.dtype(CLOCK)

    def _make_arrays(self) -> None:
        self.arrays["type_counts"] = np.zeros(self.config.types + 1)  # the last is their sum
        self.arrays["gaps"] = np.zeros(2)  # how many, and their sum in seconds

    def _native_spec(self) -> tuple[str, dict[str, Any]]:
        c = self.config
        return "PoissonModel", {"memory": c.memory, "prior_gap": c.prior_gap, "type_prior": c.type_prior}

    def layouts(self) -> dict[str, Layout]:
        """Return that all is counted."""
        return {"type_counts": Layout("counts", {0: 0}), "gaps": Layout("counts")}

    @property
    def rate(self) -> float:
        """Events of a key a second."""
        count, seconds = self.arrays["gaps"]
        return float((count + 1.0) / (seconds + self.config.prior_gap))

    def _shares(self) -> Array:
        counts = self.arrays["type_counts"]
        smoothed = counts[: self.classes] + self.config.type_prior
        shares: Array = smoothed / (counts[-1] + self.config.type_prior * self.classes)
        return shares

    def _score(self, row: Any, time: float, event_type: int) -> Score:
        shares, rate = self._shares(), self.rate
        gap = time - float(row["last_time"]) if row["events"] > 0.0 else math.nan
        return Score(
            gap=gap,
            time_log_density=math.log(rate) - rate * gap,
            type_log_probability=math.log(shares[event_type]),
            compensator=rate * gap,
            predicted_type=float(np.argmax(self.arrays["type_counts"][: self.classes])),
            predicted_gap=1.0 / rate,
            type=float(event_type),
        )

    def _learn(self, row: Any, time: float, event_type: int) -> None:
        counts, gaps = self.arrays["type_counts"], self.arrays["gaps"]
        if row["events"] > 0.0:
            gaps += (1.0, time - float(row["last_time"]))
            if gaps[0] >= self.config.memory:
                gaps *= 0.5
        counts[[event_type, -1]] += 1.0
        if counts[-1] >= self.config.memory:
            counts *= 0.5

    def _advance(self, row: Any, time: float, event_type: int) -> None:
        """Nothing: a key has no state but the time of its last event."""

    def _intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        return np.broadcast_to(self.rate * self._shares(), (len(gaps), self.classes)), self.rate * gaps
