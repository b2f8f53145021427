"""Scores of an event model on events that it had not seen: test, then train, on every one of them.

All sums are added one event after the other, so that they do not depend on how events were polled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Prequential", "ks_distance"]

Array = NDArray[np.float64]

_RESIDUALS = 1_000  # the newest, for the calibration of the compensator
_KS_CRITICAL = 1.358  # times 1/sqrt(n): exceeded by 5% of samples from the true distribution
_DRIFT_SLACK, _DRIFT_THRESHOLD, _DRIFT_CLIP = 0.1, 100.0, 5.0  # in standard deviations of the log-likelihood
_DRIFT_WARM_UP = 500  # events before the first alarm, and after each

_SUMS = ("scored", "time", "type", "error", "square", "absolute")


class Prequential:
    """Running scores, overall, by type, and since the last `close_window`.

    A key's first event has no gap and is not scored. time_unit: seconds in the unit that gaps are given in;
    log-likelihoods of times depend on it. Memory does not depend on the number of events.

    calibration: if the model is true, the compensators between a key's events are draws from Exp(1); the
    Kolmogorov-Smirnov distance of the last 1,000 from it is reported, with the distance that would be
    exceeded by chance once in twenty times (Brown et al. 2002, "The time-rescaling theorem"). Drift: a
    Page-Hinkley test (Page 1954) of the standardized negative log-likelihood, whose alarm starts it afresh.
    """

    def __init__(self, time_unit: float = 1.0) -> None:
        self.time_unit = time_unit
        self.events = 0
        self.total = np.zeros(len(_SUMS))
        self.window = np.zeros(len(_SUMS))
        self.by_type = np.zeros((0, 4))  # scored, errors, type and time log-likelihoods
        self.residuals = np.zeros(_RESIDUALS)
        self._drift = np.zeros(5)  # events, sum and sum of squares of the loss; the walk, its minimum
        self.drift_alarms = 0
        self.last_alarm: int | None = None  # the event that raised it

    def add(self, scores: Array) -> None:
        """Take the scores of some events into account, float64 [events, 7], as `learn_many` gives them."""
        gap, time, kind, compensator, predicted, predicted_gap, actual = scores.T
        scored = ~np.isnan(gap)
        before = self.events
        self.events += len(scores)
        if not scored.any():
            return
        where = np.flatnonzero(scored)
        time, kind = time[where] + math.log(self.time_unit), kind[where]
        wrong = (predicted[where] != actual[where]).astype(np.float64)
        miss = (predicted_gap[where] - gap[where]) / self.time_unit
        added = np.stack([np.ones(len(where)), time, kind, wrong, miss * miss, np.abs(miss)], axis=1)
        self.total = np.cumsum(np.vstack([self.total, added]), axis=0)[-1]
        self.window = np.cumsum(np.vstack([self.window, added]), axis=0)[-1]
        self._add_by_type(actual[where].astype(np.int64), wrong, kind, time)
        newest = where[-_RESIDUALS:]
        first = int(self.total[0]) - len(newest)
        self.residuals[(first + np.arange(len(newest))) % _RESIDUALS] = compensator[newest]
        self._watch_drift(-(time + kind), before + where + 1)

    def _add_by_type(self, types: NDArray[np.int64], *columns: Array) -> None:
        if types.max() >= len(self.by_type):
            grown = np.zeros((int(types.max()) + 1, 4))
            grown[: len(self.by_type)] = self.by_type
            self.by_type = grown
        np.add.at(self.by_type, types, np.stack([np.ones(len(types)), *columns], axis=1))

    def _watch_drift(self, losses: Array, events: NDArray[np.int64]) -> None:
        while len(losses):
            count, total, squares, walk, lowest = self._drift
            counts = count + np.arange(1, len(losses) + 1)
            totals = np.cumsum(np.append(total, losses))
            all_squares = np.cumsum(np.append(squares, losses * losses))
            known = np.maximum(counts - 1.0, 1.0)  # each is standardized by those before it
            mean = totals[:-1] / known
            deviation = np.sqrt(np.maximum(all_squares[:-1] / known - mean * mean, 1e-12))
            z = np.clip((losses - mean) / deviation, -_DRIFT_CLIP, _DRIFT_CLIP) - _DRIFT_SLACK
            z[counts <= _DRIFT_WARM_UP] = 0.0
            walks = np.cumsum(np.append(walk, z))[1:]
            lows = np.minimum.accumulate(np.append(lowest, walks))[1:]
            alarms = np.flatnonzero(walks - lows > _DRIFT_THRESHOLD)
            if not len(alarms):
                self._drift = np.array([counts[-1], totals[-1], all_squares[-1], walks[-1], lows[-1]])
                return
            at = int(alarms[0])
            self.drift_alarms += 1
            self.last_alarm = int(events[at])
            self._drift = np.zeros(5)
            losses, events = losses[at + 1 :], events[at + 1 :]

    @property
    def drift(self) -> float:
        """How far the drift test is towards its next alarm, from 0 to 1."""
        return float(min((self._drift[3] - self._drift[4]) / _DRIFT_THRESHOLD, 1.0))

    def scores(self) -> dict[str, float]:
        """Return the scores so far, and with the suffix `_window` those since the last `close_window`.

        Averages over scored events: log_likelihood = time_log_likelihood - type_log_loss, in nats;
        type_error, a share; time_rmse and time_mae, in time units. NaN where nothing was scored yet.
        """
        window = {f"{name}_window": value for name, value in _averages(self.window).items()}
        return {
            "events": self.events,
            "scored": int(self.total[0]),
            **_averages(self.total),
            **window,
            **self.calibration(),
            "drift": self.drift,
            "drift_alarms": self.drift_alarms,
        }

    def calibration(self) -> dict[str, float]:
        """Return the distance of the newest residuals from Exp(1), and what it may be by chance."""
        count = min(int(self.total[0]), _RESIDUALS)
        if count < 2:
            return {"ks": math.nan, "ks_critical": math.nan}
        return {"ks": ks_distance(self.residuals[:count]), "ks_critical": _KS_CRITICAL / math.sqrt(count)}

    def type_scores(self) -> dict[str, Array]:
        """Return the scores by the true type, arrays [types] in the order of first appearance."""
        count, errors, kind, time = self.by_type.T
        with np.errstate(invalid="ignore"):
            return {
                "scored": count,
                "type_error": errors / count,
                "type_log_loss": -kind / count,
                "time_log_likelihood": time / count,
            }

    def close_window(self) -> None:
        """Begin the next window."""
        self.window = np.zeros(len(_SUMS))

    def state(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "events": self.events,
            "total": self.total.tolist(),
            "window": self.window.tolist(),
            "by_type": self.by_type.tolist(),
            "residuals": self.residuals.tolist(),
            "drift": self._drift.tolist(),
            "drift_alarms": self.drift_alarms,
            "last_alarm": self.last_alarm,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.events, self.drift_alarms = state["events"], state["drift_alarms"]
        self.last_alarm = state["last_alarm"]
        self.total, self.window = np.array(state["total"]), np.array(state["window"])
        self.by_type = np.array(state["by_type"]).reshape(-1, 4)
        self.residuals, self._drift = np.array(state["residuals"]), np.array(state["drift"])


def ks_distance(residuals: Array) -> float:
    """Return the Kolmogorov-Smirnov distance of some residuals from Exp(1)."""
    below = -np.expm1(-np.sort(residuals))
    n = len(below)
    steps = np.arange(n + 1) / n
    return float(max(np.max(steps[1:] - below), np.max(below - steps[:-1])))


def _averages(sums: Array) -> dict[str, float]:
    scored, time, kind, errors, square, absolute = sums.tolist()
    if not scored:
        scored = math.nan
    return {
        "log_likelihood": (time + kind) / scored,
        "time_log_likelihood": time / scored,
        "type_log_loss": -kind / scored,
        "type_error": errors / scored,
        "time_rmse": math.sqrt(square / scored) if scored > 0 else math.nan,
        "time_mae": absolute / scored,
    }
