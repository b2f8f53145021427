"""What counts and hawkes say beside the network of the live PromptTPP (agents/prompt_tpp.py).

The network's logits are added to the logarithm of their mixture, the floor. A forecast of a gap mixes what
network, counts and hawkes said of it right after the key's last event. The weights of both mixtures follow
which of them was right, by expectation-maximization, an event at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.agents.counts import Counts, CountsConfig
from streamwise.agents.event_model import Array
from streamwise.agents.hawkes import Hawkes, HawkesConfig
from streamwise.agents.prompt_network import LEAST_SHARE
from streamwise.agents.prompt_settings import Floor

__all__ = ["FLOORS", "Floors"]

FLOORS: tuple[Floor, ...] = ("none", "counts", "hawkes", "both")

_LEAST = 1e-12  # of what a floor gives to anything


class Floors:
    """The two models, whose keys' states are parts of the rows of PromptTPP, and weights of the mixtures."""

    def __init__(self, floor: Floor, types: int, prior_gap: float, memory: float) -> None:
        self.floor = floor
        shared: dict[str, Any] = {"types": types, "prior_gap": prior_gap, "keys_in_memory": 1024}
        self.counts = Counts(CountsConfig(**shared, memory=memory), backend="reference")
        self.hawkes = Hawkes(HawkesConfig(**shared), backend="reference")
        self.hawkes.offset_seconds = self.counts.edges
        self.hawkes.offset_passed = -np.expm1(-np.outer(self.counts.edges, self.hawkes.decay_rates))
        self.weights = np.full((2, 2), 0.5)  # of counts and hawkes, for types and for gaps
        parts = np.array([1.0, floor in ("counts", "both"), floor in ("hawkes", "both")])
        self.forecast_weights = parts / parts.sum()  # of network, counts and hawkes

    @property
    def models(self) -> tuple[Counts, Hawkes]:
        """Both, in the order of the weights."""
        return self.counts, self.hawkes

    @property
    def arrays(self) -> dict[str, Array]:
        """Everything that is learned, to be read or changed in place."""
        parts = {
            f"{model.name}.{name}": array
            for model in self.models
            for name, array in model.arrays.items()
            if name != "seen"
        }
        return {**parts, "floor_weights": self.weights, "forecast_weights": self.forecast_weights}

    def gaps(self, row: Any) -> Array:
        """Return what the floors say of the next gap, [bins]."""
        floor: Array = self.counts.gap_prior
        if self.floor != "none":
            floor = self._mixed(1, self.counts._mixtures(row["counts"])[1], self._hawkes_bins(row))
        return np.maximum(floor, _LEAST)

    def types(self, row: Any, gaps: Array) -> Array:
        """Return what the floors say of the type after some gaps, [gaps, classes]."""
        if self.floor == "none":
            return np.ones((len(gaps), self.counts.classes))
        by_counts = self.counts._mixtures(row["counts"])[0]
        rates = self.hawkes._intensities(row["hawkes"], gaps)[0]
        return np.maximum(self._mixed(0, by_counts, rates / rates.sum(1, keepdims=True)), _LEAST)

    def _mixed(self, which: int, by_counts: Array, by_hawkes: Array) -> Array:
        of_counts, of_hawkes = self.weights[which]
        if self.floor != "both":  # which is not learned where there is one
            of_counts, of_hawkes = (of_counts, 0.0) if self.floor == "counts" else (0.0, of_hawkes)
        mixed: Array = of_counts * by_counts + of_hawkes * by_hawkes
        return mixed

    def _hawkes_bins(self, row: Any) -> Array:
        compensator = self.hawkes._intensities(row["hawkes"], self.counts.edges)[1]
        return -np.diff(np.append(np.exp(-compensator), 0.0))

    def forecast(self, issued: NDArray[Any]) -> Array:
        """Return the forecast of a gap [bins], by what network, counts and hawkes say of it, [3, bins]."""
        weights = self.forecast_weights.astype(np.float32)
        mixed: Array = (weights[:, None] * issued).sum(0, dtype=np.float32).astype(np.float64)
        return mixed

    def forecast_now(self, bins: Array, row: Any) -> Array:
        """Return the forecast of a gap [bins], by the network's bins and what the floors say now."""
        return self.forecast(np.stack([bins, *self.say(row)]))

    def say(self, row: Any) -> tuple[Array, Array]:
        """Return what counts and hawkes say of the next gap, [bins] each."""
        return self.counts._mixtures(row["counts"])[1], self._hawkes_bins(row)

    def log_density(self, bins: NDArray[Any], gap: float) -> float:
        """Return the logarithm of the density of a gap, in 1/s, by the probabilities of bins."""
        kept = np.maximum(bins.astype(np.float64), LEAST_SHARE)
        return float(self.counts._density(kept, np.array([gap]))[0][0])

    def mix(self, row: Any, gap: float, event_type: int, events: float) -> None:
        """Move the weights of the mixtures to what was right of an event; events: how many came before."""
        if self.floor == "none":
            return
        pace = 1.0 / (200.0 + min(events, 3e2))
        at = int(self.counts._bins(np.array([gap]))[0])
        caused = self.forecast_weights * row["issued"][:, at]
        if caused.sum() > 0.0:
            self.forecast_weights += pace * (caused / caused.sum() - self.forecast_weights)
        if self.floor != "both":
            return
        types, bins = self.counts._mixtures(row["counts"])
        rates = self.hawkes._intensities(row["hawkes"], np.array([gap]))[0][0]
        says = [(types[event_type], rates[event_type] / rates.sum()), (bins[at], self._hawkes_bins(row)[at])]
        for weights, pair in zip(self.weights, says, strict=True):
            caused = weights * pair
            if caused.sum() > 0.0:
                weights[0] += pace * (caused[0] / caused.sum() - weights[0])
                weights[1] = 1.0 - weights[0]

    def close(self) -> None:
        """Close the files of the keys, which are empty."""
        for model in self.models:
            model.close()
