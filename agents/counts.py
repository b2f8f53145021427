"""Events counted: what usually comes after what, and after how long.

Types: four experts give every type a probability: how often it came at all, after the last type, after the
last two types, and to this key. Gaps: four do, for bins of the logarithm of the gap: overall, after the last
type, after a gap of about the last one's length, and to this key. Each leans on a simpler one where it has
counted little. Each family is a Bayesian mixture: weights follow which expert has been right, and a little of
them is shared so that a change can be followed.

Within a bin every gap is equally likely, so that the density of a gap, the compensator (minus the logarithm
of the probability of a longer gap) and the intensity have closed forms.

Sources: Herbster and Warmuth (1998), "Tracking the best expert", for the fixed share; Cleary and Witten
(1984), "Data compression using adaptive coding and partial string matching", for contexts that lean on
shorter ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.agents.event_merge import Layout, regrouped
from streamwise.agents.event_model import CLOCK, Array, EventSettings, Score, StatisticalModel
from streamwise.streams import UsageError

__all__ = ["Counts", "CountsConfig"]

_BUCKETS = 8  # of a key's events: 0, 1, 2-3, 4-7, ...; each has weights of its own
_SHORTEST, _LOG_WIDTH, _BINS = 1e-3, 0.25, 112  # bins from a millisecond to 27 years
_GAP_CLASS = 4  # bins of gaps that are about as long: within a factor of e


@dataclass(frozen=True)
class CountsConfig(EventSettings):
    """Settings of the counts model."""

    types: int = 64
    """How many types there is room for, 128 at most; later ones count as one more, "(other)"."""
    key_memory: float = 10_000.0
    """About how many events back the counts of a key look."""
    share: float = 0.01
    """How much of the experts' weights is shared at every event. Higher follows changes sooner."""
    type_prior: float = 0.5
    """Events of every type that are imagined at the start."""
    type_pull: float = 8.0
    """How many events' worth an expert of types leans on the simpler one."""
    gap_prior: float = 10.0
    """How many gaps are imagined at the start, spread widely around `prior_gap`."""
    gap_pull: float = 20.0
    """How many gaps' worth an expert of gaps leans on the simpler one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.types > 128:
            raise UsageError(f"types is {self.types}; counts after two types need it to be 128 or less.")
        if not 0.0 <= self.share < 1.0:
            raise UsageError(f"share is {self.share}; it lies in [0, 1).")
        if not self.key_memory >= 10.0:
            raise UsageError(f"key_memory is {self.key_memory}; use 10 events or more.")
        for name in ("type_prior", "type_pull", "gap_prior", "gap_pull"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0 and finite.")


class Counts(StatisticalModel):
    """Mixtures of counted types and of histograms of gaps. Every row of counts is halved at `memory`.

    >>> from streamwise.streams import Event
    >>> model = Counts()
    >>> for i in range(1000):
    ...     score = model.learn_one(Event(60.0 * i, "left" if i % 2 else "right", "clock"))
    >>> prediction = model.predict_one("clock")
    >>> max(prediction.types, key=prediction.types.get), round(prediction.median_wait)
    ('right', 68)
    """

    name = "counts"
    Config = CountsConfig
    config: CountsConfig

    def __init__(self, config: CountsConfig | None = None, **options: Any) -> None:
        super().__init__(config or CountsConfig(), **options)

    def _row_type(self) -> np.dtype[Any]:
        counts = [("types", "f4", self.config.types + 1), ("gaps", "f4", _BINS + 1)]
        return np.dtype([*CLOCK, ("last_gap", "i8"), *counts])  # one more than its bin; 0 before there is one

    def _make_arrays(self) -> None:
        types = self.config.types
        self.edges = np.append(0.0, _SHORTEST * np.exp(_LOG_WIDTH * np.arange(_BINS - 1)))  # where bins begin
        self.widths = np.append(np.diff(self.edges), math.inf)
        self.middles = np.append(0.5 * (self.edges[:-1] + self.edges[1:]), 2.0 * self.edges[-1])
        around = self.edges / self.config.prior_gap
        around[0] = around[1] / 2.0
        spread = around / (1.0 + around) ** 2  # log-logistic: its mean stays finite in every bin
        self.gap_prior = self.config.gap_prior * spread / spread.sum()
        # The last entry of every row is the sum of the others.
        self.arrays |= {
            "global_types": np.zeros((1, types + 1)),
            "after_one": np.zeros((types, types + 1)),
            "after_two": np.zeros((types * types, types + 1)),
            "global_gaps": np.zeros((1, _BINS + 1)),
            "gaps_after": np.zeros((types, _BINS + 1)),
            "gaps_like": np.zeros((1 + _BINS // _GAP_CLASS, _BINS + 1)),  # the first after no gap
            "type_weights": np.full((_BUCKETS, 4), 1.0 / 4.0),
            "gap_weights": np.full((_BUCKETS, 4), 1.0 / 4.0),
        }

    def _native_spec(self) -> tuple[str, dict[str, Any]]:
        c = self.config
        return "CountsModel", {
            "bins": _BINS,
            "buckets": _BUCKETS,
            "edges": self.edges,
            "gap_prior": self.gap_prior,
            "gap_prior_total": c.gap_prior,
            "log_width": _LOG_WIDTH,
            "memory": c.memory,
            "key_memory": c.key_memory,
            "type_prior": c.type_prior,
            "type_pull": c.type_pull,
            "gap_pull": c.gap_pull,
            "share": c.share,
        }

    def layouts(self) -> dict[str, Layout]:
        """Return that counts are added, and weights of experts averaged."""
        types = self.config.types
        return {
            "global_types": Layout("counts", {1: 0}),
            "after_one": Layout("counts", {0: 0, 1: 0}),
            "after_two": Layout("counts", {0: 0, 1: 0, 2: 0}, (types, types, types + 1)),
            "global_gaps": Layout("counts"),
            "gaps_after": Layout("counts", {0: 0}),
            "gaps_like": Layout("counts"),
            "type_weights": Layout("means"),
            "gap_weights": Layout("means"),
        }

    def renumber_rows(self, rows: NDArray[Any], numbering: NDArray[np.int64]) -> None:
        """Give the types in the states of keys other numbers."""
        super().renumber_rows(rows, numbering)
        rows["types"] = regrouped(rows["types"], numbering)

    def _type_experts(self, row: Any) -> Array:
        """Return what each expert says of each type, [4, classes]."""
        c, classes = self.config, self.classes
        counts = self.arrays["global_types"][0]
        overall = (counts[:classes] + c.type_prior) / (counts[-1] + c.type_prior * classes)
        events, last, before = row["events"], int(row["last_type"]), int(row["type_before"])
        one = two = overall
        if events >= 1.0:
            one = two = _lean(self.arrays["after_one"][last], overall, c.type_pull)
        if events >= 2.0:
            two = _lean(self.arrays["after_two"][before * c.types + last], one, c.type_pull)
        return np.stack([overall, one, two, _lean(row["types"], overall, c.type_pull)])

    def _gap_experts(self, row: Any) -> Array:
        """Return what each expert says of each bin, [4, bins]."""
        c = self.config
        counts = self.arrays["global_gaps"][0]
        overall = (counts[:-1] + self.gap_prior) / (counts[-1] + c.gap_prior)
        after = overall
        if row["events"] >= 1.0:
            after = _lean(self.arrays["gaps_after"][int(row["last_type"])], overall, c.gap_pull)
        like = _lean(self.arrays["gaps_like"][_like(row)], overall, c.gap_pull)
        return np.stack([overall, after, like, _lean(row["gaps"], like, c.gap_pull)])

    def _mixtures(self, row: Any) -> tuple[Array, Array]:
        """Return the probabilities of types [classes] and of bins [bins]."""
        bucket = _bucket(float(row["events"]))
        types = self.arrays["type_weights"][bucket] @ self._type_experts(row)
        return types, self.arrays["gap_weights"][bucket] @ self._gap_experts(row)

    def _bins(self, gaps: Array) -> NDArray[np.int64]:
        return np.searchsorted(self.edges, gaps, side="right") - 1

    def _density(self, mixed: Array, gaps: Array) -> tuple[Array, Array]:
        """Return log density and compensator at some gaps, by the probabilities of the bins."""
        bins = self._bins(gaps)
        longer = np.append(np.cumsum(mixed[::-1])[::-1][1:], 0.0)[bins]
        mass, width, into = mixed[bins], self.widths[bins], gaps - self.edges[bins]
        last = bins == _BINS - 1
        beyond = into / self.edges[-1]
        log_density = np.where(
            last, np.log(mass / self.edges[-1]) - beyond, np.log(mass / np.where(last, 1.0, width))
        )
        left = np.where(last, 1.0, 1.0 - into / np.where(last, 1.0, width))
        compensator = np.where(last, beyond - np.log(mass), -np.log(longer + mass * left))
        return log_density, compensator

    def _score(self, row: Any, time: float, event_type: int) -> Score:
        gap = time - float(row["last_time"]) if row["events"] > 0.0 else math.nan
        types, bins = self._mixtures(row)
        log_density = compensator = math.nan
        if not math.isnan(gap):
            log_density, compensator = (float(x[0]) for x in self._density(bins, np.array([gap])))
        return Score(
            gap=gap,
            time_log_density=log_density,
            type_log_probability=math.log(types[event_type]),
            compensator=compensator,
            predicted_type=float(np.argmax(types)),
            predicted_gap=float(bins @ self.middles),
            type=float(event_type),
        )

    def _learn(self, row: Any, time: float, event_type: int) -> None:
        a, memory = self.arrays, self.config.memory
        bucket = _bucket(float(row["events"]))
        last, before = int(row["last_type"]), int(row["type_before"])
        self._reweigh(a["type_weights"][bucket], self._type_experts(row)[:, event_type])
        if row["events"] > 0.0:
            at = int(self._bins(np.array([time - float(row["last_time"])]))[0])
            self._reweigh(a["gap_weights"][bucket], self._gap_experts(row)[:, at])
            _add(a["global_gaps"][0], at, memory)
            _add(a["gaps_after"][last], at, memory)
            _add(a["gaps_like"][_like(row)], at, memory)
            _add(a["after_one"][last], event_type, memory)
        if row["events"] > 1.0:
            _add(a["after_two"][before * self.config.types + last], event_type, memory)
        _add(a["global_types"][0], event_type, memory)

    def _reweigh(self, weights: Array, likelihoods: Array) -> None:
        """Apply Bayes' rule, then share a little of every expert's weight, so that none is ever lost."""
        weights *= likelihoods
        weights *= (1.0 - self.config.share) / weights.sum()
        weights += self.config.share / len(weights)

    def _advance(self, row: Any, time: float, event_type: int) -> None:
        _add(row["types"], event_type, self.config.key_memory)
        if row["events"] > 0.0:
            at = int(self._bins(np.array([time - float(row["last_time"])]))[0])
            _add(row["gaps"], at, self.config.key_memory)
            row["last_gap"] = at + 1

    def _intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        types, bins = self._mixtures(row)
        log_density, compensator = self._density(bins, gaps)
        return np.exp(log_density + compensator)[:, None] * types, compensator


def _bucket(events: float) -> int:
    return min(int(events).bit_length(), _BUCKETS - 1)


def _like(row: Any) -> int:
    """Return the class of a key's last gap."""
    last_gap = int(row["last_gap"])
    return 1 + (last_gap - 1) // _GAP_CLASS if last_gap else 0


def _lean(counts: NDArray[Any], on: Array, pull: float) -> Array:
    """Return the shares of some counts, as if `pull` more had come as `on` says."""
    leaned: Array = (counts[: len(on)].astype(np.float64) + pull * on) / (float(counts[-1]) + pull)
    return leaned


def _add(counts: NDArray[Any], which: int, memory: float) -> None:
    counts[[which, -1]] += 1.0
    if counts[-1] >= memory:
        counts *= 0.5
