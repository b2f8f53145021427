"""Events that bring further events: a multivariate Hawkes process, fitted as the stream goes by.

λ_k(t) = μ_k + Σ_m Σ_j α_mjk / τ_m Σ_{events i of type j before t} exp(-(t - t_i) / τ_m)

for every key, with the same μ and α for all of them. α_mjk is how many events of type k an event of type j
brings at the time scale τ_m. The inner sums of a key are its pulses; they decay together, so that an event
costs the same however long the past is, and the compensator has a closed form.

Departures from the usual fit by gradient ascent: the step is that of online expectation-maximization, which
is a gradient step with its own size for every parameter (α / exposure: it keeps parameters positive, and
needs no step size). Each event is divided among its causes by their share of the intensity, and a parameter
is the events that it caused over the exposure of its cause. Later events weigh more: the first
responsibilities were guesses.

Sources: Hawkes (1971), "Spectra of some self-exciting and mutually exciting point processes"; Veen and
Schoenberg (2008) for the causes; Cappé and Moulines (2009), arXiv:0712.4273, for doing it online; Xu and
Jordan (1996) for the step as a gradient's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.agents.event_merge import Layout, Part, regrouped
from streamwise.agents.event_model import CLOCK, Array, EventSettings, Score, StatisticalModel
from streamwise.streams import UsageError

__all__ = ["Hawkes", "HawkesConfig"]

_OFFSETS = 64  # of the survival curve that a mean gap is read from
_BASE_EVENTS = 0.5  # of each type, imagined
_USUAL_TYPES = 16.0  # that the expected children are divided among, before any was seen
_FORGOTTEN = 1e-30  # of one event, after 69 time scales
_RESCALED_AT = 1e9  # weight of an event


@dataclass(frozen=True)
class HawkesConfig(EventSettings):
    """Settings of the Hawkes model."""

    memory: float = 50_000.0
    """About how many events back the fit looks. Lower follows changes sooner and is noisier."""
    time_scales: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
    """Seconds over which an event's influence decays: from a second to eleven days."""
    prior_children: float = 0.5
    """How many events each event is expected to bring, before any was seen."""
    prior_events: float = 5.0
    """How many events' worth that expectation is."""
    forgetting: float = 8.0
    """How fast the first events are outweighed: the weight of event n grows as n to this power."""
    warm_up: float = 2000.0
    """Events after which they begin to be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.time_scales) <= 32 or not all(0.0 < s < math.inf for s in self.time_scales):
            raise UsageError(f"time_scales are {self.time_scales}; give 1 to 32 numbers of seconds above 0.")
        if len(set(self.time_scales)) < len(self.time_scales):
            raise UsageError(f"time_scales are {self.time_scales}; give each once.")
        if not 0.0 < self.prior_children < 1.0:
            raise UsageError(f"prior_children is {self.prior_children}; it lies between 0 and 1.")
        for name in ("prior_events", "forgetting", "warm_up"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0 and finite.")


class Hawkes(StatisticalModel):
    """A multivariate Hawkes process with several exponential time scales, fitted online.

    >>> from streamwise.streams import Event
    >>> model = Hawkes()
    >>> for i in range(4000):
    ...     score = model.learn_one(Event(60.0 * (i // 2) + i % 2, "ask" if i % 2 == 0 else "answer", "talk"))
    >>> round(score["type_log_probability"], 2)  # of an answer, a second after an ask
    -0.05
    """

    name = "hawkes"
    Config = HawkesConfig
    config: HawkesConfig

    def __init__(self, config: HawkesConfig | None = None, **options: Any) -> None:
        super().__init__(config or HawkesConfig(), **options)

    def _row_type(self) -> np.dtype[Any]:
        shape = (len(self.config.time_scales), self.config.types)
        return np.dtype([*CLOCK, ("pulses", "f8", shape)])

    def _make_arrays(self) -> None:
        c = self.config
        scales, types = len(c.time_scales), c.types
        self.decay_rates = 1.0 / np.array(c.time_scales)
        self.offset_seconds = np.geomspace(min(c.time_scales) / 100.0, max(c.time_scales) * 30.0, _OFFSETS)
        self.offset_passed = -np.expm1(-np.outer(self.offset_seconds, self.decay_rates))
        # What is imagined of every base rate and pair of types, always worth as much as so many of the newest
        # events: the past fades, and nothing that has not happened for long becomes impossible.
        self.imagined = {
            "prior_base": _BASE_EVENTS,
            "prior_seconds": 10.0 * _BASE_EVENTS * c.prior_gap,
            "prior_children": c.prior_events * c.prior_children / scales / _USUAL_TYPES,
            "prior_pulses": c.prior_events,
        }
        self.arrays |= {
            "base_sum": np.zeros(types),  # events that the base rate brought
            "child_sum": np.zeros((scales, types, types)),  # events brought, by scale, source and child
            "child_total": np.zeros((scales, types)),  # over the children that have a probability
            "pulse_exposure": np.zeros((scales, types)),  # how much of the pulses has passed
            "progress": np.array([0.0, 1.0, 0.0]),  # base exposure in seconds, weight, events
        }

    def _native_spec(self) -> tuple[str, dict[str, Any]]:
        c = self.config
        return "HawkesModel", {
            "scales": len(c.time_scales),
            "offsets": len(self.offset_seconds),
            "decay_rates": self.decay_rates,
            "offset_seconds": self.offset_seconds,
            "offset_passed": self.offset_passed,
            "forgetting": c.forgetting,
            "memory": c.memory,
            "warm_up": c.warm_up,
            **self.imagined,
        }

    def layouts(self) -> dict[str, Layout]:
        """Return that all is summed, in units of the newest event."""
        return {
            "base_sum": Layout("sums", {0: 0}),
            "child_sum": Layout("sums", {1: 0, 2: 0}),
            "child_total": Layout("sums", {1: 0}),
            "pulse_exposure": Layout("sums", {1: 0}),
            "progress": Layout("sums"),
        }

    def common(self) -> dict[str, Array]:
        """Return `arrays` as they are where the newest event weighs 1."""
        (exposure, weight, events), arrays = self.arrays["progress"], self.arrays
        scaled = {name: arrays[name] / weight for name in self.layouts()}
        return {**scaled, "progress": np.array([exposure / weight, 1.0, events])}

    def settle(self, parts: Sequence[Part], heaviest: int) -> None:
        """Add up the children of those types that have a probability here."""
        self.arrays["progress"][1] = 1.0
        self.arrays["child_total"][:] = self.arrays["child_sum"][:, :, : self.classes].sum(2)

    def renumber_rows(self, rows: NDArray[Any], numbering: NDArray[np.int64]) -> None:
        """Give the types in the states of keys other numbers."""
        super().renumber_rows(rows, numbering)
        rows["pulses"] = regrouped(rows["pulses"], numbering)

    @property
    def base_rates(self) -> Array:
        """μ, float64 [types], events a second."""
        (exposure, weight, _), prior = self.arrays["progress"], self.imagined
        rates: Array = self.arrays["base_sum"] + weight * prior["prior_base"]
        return rates / float(exposure + weight * prior["prior_seconds"])

    @property
    def excitation(self) -> Array:
        """α, float64 [time scales, source types, child types]: children of an event."""
        imagined = self.arrays["progress"][1] * self.imagined["prior_children"]
        children: Array = (self.arrays["child_sum"] + imagined) / self._pulses_seen[:, :, None]
        return children

    @property
    def _pulses_seen(self) -> Array:
        """What passed of the pulses, with what is imagined, [scales, types]."""
        seen: Array = (
            self.arrays["pulse_exposure"] + self.arrays["progress"][1] * self.imagined["prior_pulses"]
        )
        return seen

    def set_parameters(self, base_rates: Array, excitation: Array) -> None:
        """Put known parameters in place of what was learned, of the shapes that are read back."""
        (exposure, weight, _), prior = self.arrays["progress"], self.imagined
        seconds = exposure + weight * prior["prior_seconds"]
        children = excitation * self._pulses_seen[:, :, None]
        self.arrays["base_sum"][:] = base_rates * seconds - weight * prior["prior_base"]
        self.arrays["child_sum"][:] = children - weight * prior["prior_children"]
        self.arrays["child_total"][:] = self.arrays["child_sum"][:, :, : self.classes].sum(2)

    def _causes(self, row: Any, gap: float) -> tuple[Array, Array]:
        """Return what adds to λ_k after a gap: the base [classes], the pulses [scales, types, classes]."""
        classes = self.classes
        rates = row["pulses"] * (np.exp(-self.decay_rates * gap) * self.decay_rates)[:, None]
        return self.base_rates[:classes], rates[:, :, None] * self.excitation[:, :, :classes]

    def _amounts(self, row: Any) -> Array:
        """Return how many events the pulses are going to bring at each time scale, [scales]."""
        imagined = self.arrays["progress"][1] * self.imagined["prior_children"] * self.classes
        children = (self.arrays["child_total"] + imagined) / self._pulses_seen
        amounts: Array = (children * row["pulses"]).sum(1)
        return amounts

    def _score(self, row: Any, time: float, event_type: int) -> Score:
        gap = time - float(row["last_time"]) if row["events"] > 0.0 else math.nan
        base, pulses = self._causes(row, 0.0 if math.isnan(gap) else gap)
        intensity = base + pulses.sum((0, 1))
        amounts, total = self._amounts(row), intensity.sum()
        compensator = base.sum() * gap + amounts @ -np.expm1(-self.decay_rates * gap)
        return Score(
            gap=gap,
            time_log_density=math.log(total) - compensator,
            type_log_probability=math.log(intensity[event_type] / total),
            compensator=compensator,
            predicted_type=float(np.argmax(intensity)),
            predicted_gap=self._mean_gap(amounts, base.sum()),
            type=float(event_type),
        )

    def _mean_gap(self, amounts: Array, base: float) -> float:
        """Return the integral of the survival function, exact where Λ is linear between two offsets."""
        seconds = np.append(0.0, self.offset_seconds)
        compensator = np.append(0.0, base * self.offset_seconds + self.offset_passed @ amounts)
        survival, rises = np.exp(-compensator), np.diff(compensator)
        steep = rises > 0.0
        means = survival[:-1] * np.where(steep, -np.expm1(-rises) / np.where(steep, rises, 1.0), 1.0)
        return float(means @ np.diff(seconds) + survival[-1] / base)

    def _learn(self, row: Any, time: float, event_type: int) -> None:
        a, c = self.arrays, self.config
        base_sum, progress, classes = a["base_sum"], a["progress"], self.classes
        weight, gap = progress[1], 0.0
        if row["events"] > 0.0:
            gap = time - float(row["last_time"])
        base, pulses = self._causes(row, gap)
        shares = weight * pulses[:, :, event_type]
        own = base[event_type] + pulses[:, :, event_type].sum()
        a["child_sum"][:, :, event_type] += shares / own
        a["child_total"] += shares / own
        passed = row["pulses"] * -np.expm1(-self.decay_rates * gap)[:, None]
        a["pulse_exposure"] += weight * passed
        if row["events"] > 0.0:
            base_sum[event_type] += weight * base[event_type] / own
            progress[0] += weight * gap
        progress[2] += 1.0
        progress[1] *= 1.0 + 1.0 / min(c.warm_up + progress[2] / c.forgetting, c.memory)
        if progress[1] > _RESCALED_AT:
            for array in (base_sum, a["child_sum"], a["child_total"], a["pulse_exposure"], progress[:1]):
                array[...] = array / progress[1]
            progress[1] = 1.0
        if event_type == int(self.seen[0]) and classes < c.types:
            a["child_total"] += a["child_sum"][:, :, classes]  # a further type has a probability from here on

    def _advance(self, row: Any, time: float, event_type: int) -> None:
        gap = time - float(row["last_time"]) if row["events"] > 0.0 else 0.0
        pulses = row["pulses"] * np.exp(-self.decay_rates * gap)[:, None]
        pulses[pulses < _FORGOTTEN] = 0.0
        row["pulses"][:] = pulses
        row["pulses"][:, event_type] += 1.0

    def _intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        base, pulses = self._causes(row, 0.0)
        decays = np.exp(-np.outer(gaps, self.decay_rates))  # [gaps, scales]
        compensator = base.sum() * gaps - np.expm1(-np.outer(gaps, self.decay_rates)) @ self._amounts(row)
        return base + decays @ pulses.sum(1), compensator
