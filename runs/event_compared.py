"""How far runs on events compare, and how much better one is than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamwise.runs.event_run_data import Baseline, EventRun
from streamwise.runs.run_data import Array
from streamwise.runs.statistics import bootstrap_interval
from streamwise.streams import UsageError

__all__ = ["Compared"]


@dataclass(frozen=True)
class Compared:
    """The part of the stream that all runs have come through: rows that all of them have.

    edges: [n + 1], steps from 0 on; last: where the span begins that decides which model is best, the last
    half of the edges; 0 if they are those of one row.
    """

    edges: Array
    last: float

    @classmethod
    def of(cls, runs: Sequence[EventRun]) -> Compared:
        """Return what these runs have in common. Raises UsageError where that is nothing."""
        common = runs[0].steps
        for run in runs[1:]:
            common = np.intersect1d(common, run.steps)
            if not len(common):
                raise UsageError(
                    f"{run.path} has no row that ends with the same event as one of {runs[0].path}; "
                    "give them the same --interval, or draw them apart."
                )
        later = common[(2 * common >= common[-1]) & (common < common[-1])]
        return cls(np.append(0.0, common), float(later[0]) if len(later) else 0.0)

    @property
    def until(self) -> float:
        """Its end."""
        return float(self.edges[-1])

    def score(self, run: EventRun | Baseline, name: str) -> float:
        """Return a score over the span that decides."""
        return run.between(name, self.last, self.until)

    def lead(self, run: EventRun, other: EventRun | Baseline, name: str) -> float:
        """Return what a run has over another in such a score."""
        return self.score(run, name) - self.score(other, name)

    def best(self, runs: Sequence[EventRun]) -> EventRun:
        """Return the run whose log-likelihood is highest over that span."""

        def value(run: EventRun) -> float:
            found = self.score(run, "log_likelihood")
            return found if math.isfinite(found) else -math.inf

        return max(runs, key=value)

    def windows(self, run: EventRun, other: EventRun | Baseline) -> tuple[Array, Array]:
        """Return the lead in log-likelihood in every window of that span, and the windows' weights."""
        edges = self.edges[self.edges >= self.last]
        leads = run.averages("log_likelihood", edges) - other.averages("log_likelihood", edges)
        known = np.isfinite(leads)
        return leads[known], np.diff(other.scored_at(edges))[known]

    def interval(self, run: EventRun, other: EventRun | Baseline) -> tuple[float, float] | None:
        """Return the 95% interval of the lead in log-likelihood; None for a single window."""
        leads, weights = self.windows(run, other)
        if len(leads) < 2:
            return None

        def mean(drawn: Array, axis: int) -> Array:
            windows = drawn.astype(np.intp)
            found: Array = (leads * weights)[windows].sum(axis) / weights[windows].sum(axis)
            return found

        low, high = bootstrap_interval(np.arange(len(leads)), mean)
        return float(low), float(high)
