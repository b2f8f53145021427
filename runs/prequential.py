"""Scores of an event model on events that it had not seen: test, then train, on every one of them.

All sums are added one event after the other, so that they do not depend on how events were polled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamwise.agents.event_model import Score
from streamwise.streams import UsageError

__all__ = [
    "PIT_BINS",
    "Prequential",
    "activity_name",
    "baselines",
    "ks_distance",
    "merged_scores",
    "own_scores",
]

Array = NDArray[np.float64]

_RESIDUALS = 1_000  # the newest, for the calibration of the compensator
_KS_CRITICAL = 1.358  # times 1/sqrt(n): exceeded by 5% of samples from the true distribution
_DRIFT_SLACK, _DRIFT_THRESHOLD, _DRIFT_CLIP = 0.1, 100.0, 5.0  # in standard deviations of the log-likelihood
_DRIFT_WARM_UP = 500  # events before the first alarm, and after each

PIT_BINS = 20
_PIT_EDGES = -np.log1p(-np.arange(1, PIT_BINS) / PIT_BINS)  # compensators between the bins
_INTERVALS = {"coverage_50": (5, 15), "coverage_90": (1, 19)}  # from which bin to which, without the last
_CONFIDENCE_BINS = 10

_FADING = 0.999  # the weight of an event, relative to the next
_BLOCK = 4_096  # scored events between two changes of the unit of fading sums
_WEIGHTS = np.cumprod(np.full(_BLOCK, 1.0 / _FADING))  # of the events of a block, in its unit

_SUMS = ("scored", "time", "type", "error", "square", "absolute")
_LIKELIHOOD = "log_likelihood"  # how the names of columns end that depend on the unit of time


class Prequential:
    """Running scores: overall, since the last `close_window`, fading (factor 0.999), and by groups of events.

    A key's first event has no gap and is not scored. time_unit: seconds in the unit that gaps are given in;
    log-likelihoods of times depend on it. Memory does not depend on the number of events.

    calibration: if the model is true, the compensators between a key's events are draws from Exp(1); the
    Kolmogorov-Smirnov distance of the last 1,000 from it is reported, with the distance that would be
    exceeded by chance once in twenty times (Brown et al. 2002, "The time-rescaling theorem"). The shares of
    such a draw below the actual one (PIT) are counted in 20 bins; they are uniform if the model is true.
    Drift: a Page-Hinkley test (Page 1954) of the standardized negative log-likelihood, whose alarm starts it
    afresh.

    extras: the names of the columns that a model adds to those of `Score`. They are averaged like the others,
    NaN left out. One that ends in "log_likelihood" is of gaps in seconds. "confidence" is the probability of
    the predicted type, and "key_events" how many events the key has had; both group events, too. For
    "NAME_log_likelihood", "NAME_time_log_likelihood", "NAME_type_log_loss" and "NAME_type_error", see
    `baselines`.
    """

    def __init__(self, time_unit: float = 1.0, extras: Sequence[str] = ()) -> None:
        self.time_unit = time_unit
        self.extras = tuple(extras)
        self.events = 0
        self._others = (*_INTERVALS, *self.extras)
        # Sums, those of the others, and how many values of each of these were known.
        self.total, self.window, self.fading = np.zeros((3, len(_SUMS) + 2 * len(self._others)))
        self.by_type = np.zeros((0, 4))  # scored, errors, type and time log-likelihoods
        self.by_activity = np.zeros((0, 4))  # the same by the logarithm of key_events to the base of 2
        self.by_confidence = np.zeros((_CONFIDENCE_BINS, 3))  # scored, confidence, hits
        self.pit = np.zeros(PIT_BINS, np.int64)
        self.residuals = np.zeros(_RESIDUALS)
        self._drift = np.zeros(5)  # events, sum and sum of squares of the loss; the walk, its minimum
        self.drift_alarms = 0
        self.last_alarm: int | None = None  # the event that raised it
        self._shifts = np.array([math.log(time_unit) * name.endswith(_LIKELIHOOD) for name in self.extras])

    def add(self, scores: Array) -> None:
        """Take the scores of some events into account, float64 [events, columns], as `learn_many` gives them.

        The columns are those of `Score`, and the extras.
        """
        before = self.events
        self.events += len(scores)
        where = np.flatnonzero(~np.isnan(scores[:, 0]))
        if not len(where):
            return
        scored = scores[where]
        gap, time, kind, compensator, predicted, predicted_gap, actual = scored[:, : len(Score._fields)].T
        time = time + math.log(self.time_unit)
        wrong = (predicted != actual).astype(np.float64)
        miss = (predicted_gap - gap) / self.time_unit
        ones = np.ones(len(where))
        bins = np.searchsorted(_PIT_EDGES, compensator, side="right")
        inside = [(first <= bins) & (bins < end) for first, end in _INTERVALS.values()]
        extras = scored[:, len(Score._fields) :] + self._shifts
        others = np.column_stack([*inside, extras])
        known = ~np.isnan(others)
        columns = [ones, time, kind, wrong, miss * miss, np.abs(miss), np.where(known, others, 0.0), known]
        added = np.column_stack(columns)
        self._fade(added)
        self.total = _summed(self.total, added)
        self.window = _summed(self.window, added)

        groups = np.stack([ones, wrong, kind, time], axis=1)
        self.by_type = _grouped(self.by_type, actual.astype(np.int64), groups)
        for name, column in zip(self.extras, extras.T, strict=True):
            is_known = ~np.isnan(column)
            values = column[is_known]
            if name == "confidence":
                tenths = np.minimum((_CONFIDENCE_BINS * values).astype(np.int64), _CONFIDENCE_BINS - 1)
                hits = np.stack([ones[is_known], values, 1.0 - wrong[is_known]], axis=1)
                self.by_confidence = _grouped(self.by_confidence, tenths, hits)
            elif name == "key_events":
                doublings = np.frexp(np.maximum(values, 1.0))[1] - 1
                self.by_activity = _grouped(self.by_activity, doublings, groups[is_known])

        self.pit += np.bincount(bins, minlength=PIT_BINS)
        newest = compensator[-_RESIDUALS:]
        first = int(self.total[0]) - len(newest)
        self.residuals[(first + np.arange(len(newest))) % _RESIDUALS] = newest
        self._watch_drift(-(time + kind), before + where + 1)

    def _fade(self, added: Array) -> None:
        """Go on with S <- 0.999 S + x, in units of what an event weighs just before its block of events.

        In these units nothing fades, so that sums are merely sums; averages are quotients and have no unit.
        """
        at = int(self.total[0]) % _BLOCK
        while len(added):
            part = added[: _BLOCK - at]
            self.fading = _summed(self.fading, part * _WEIGHTS[at : at + len(part), None])
            added, at = added[len(part) :], at + len(part)
            if at == _BLOCK:
                self.fading, at = self.fading / _WEIGHTS[-1], 0

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
        """Return the scores so far, and with suffixes those since the last `close_window`, and fading ones.

        Averages over scored events: log_likelihood = time_log_likelihood - type_log_loss, in nats;
        type_error, a share; time_rmse and time_mae, in time units; coverage_50 and coverage_90, the shares of
        gaps within the central intervals of these probabilities; the extras. All of them also with `_window`
        and `_fading`. NaN where nothing was scored yet.
        """
        found: dict[str, float] = {"events": self.events, "scored": int(self.total[0])}
        for suffix, sums in (("", self.total), ("_window", self.window), ("_fading", self.fading)):
            found |= {f"{name}{suffix}": value for name, value in self._averages(sums).items()}
        return {**found, **self.calibration(), "drift": self.drift, "drift_alarms": self.drift_alarms}

    def _averages(self, sums: Array) -> dict[str, float]:
        scored, time, kind, errors, square, absolute, *others = sums.tolist()
        scored = scored or math.nan
        totals, counts = others[: len(self._others)], others[len(self._others) :]
        return {
            "log_likelihood": (time + kind) / scored,
            "time_log_likelihood": time / scored,
            "type_log_loss": -kind / scored,
            "type_error": errors / scored,
            "time_rmse": math.sqrt(square / scored) if scored > 0 else math.nan,
            "time_mae": absolute / scored,
            **{
                name: total / (count or math.nan)
                for name, total, count in zip(self._others, totals, counts, strict=True)
            },
        }

    def calibration(self) -> dict[str, float]:
        """Return the distance of the newest residuals from Exp(1), and what it may be by chance."""
        count = min(int(self.total[0]), _RESIDUALS)
        if count < 2:
            return {"ks": math.nan, "ks_critical": math.nan}
        return {"ks": ks_distance(self.residuals[:count]), "ks_critical": _KS_CRITICAL / math.sqrt(count)}

    def type_scores(self) -> dict[str, Array]:
        """Return the scores by the true type, arrays [types] in the order of first appearance."""
        return _group_scores(self.by_type)

    def activity_scores(self) -> dict[str, Array]:
        """Return the scores by how many events the key has had, arrays [groups]; see `activity_name`."""
        return _group_scores(self.by_activity)

    def type_calibration(self) -> dict[str, Array]:
        """Return by tenths of confidence, arrays [10]: scored, confidence, a mean, and accuracy, a share."""
        count, confidence, hits = self.by_confidence.T
        with np.errstate(invalid="ignore"):
            return {"scored": count, "confidence": confidence / count, "accuracy": hits / count}

    def close_window(self) -> None:
        """Begin the next window."""
        self.window = np.zeros_like(self.window)

    def state(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "events": self.events,
            "extras": list(self.extras),
            "total": self.total.tolist(),
            "window": self.window.tolist(),
            "fading": self.fading.tolist(),
            "by_type": self.by_type.tolist(),
            "by_activity": self.by_activity.tolist(),
            "by_confidence": self.by_confidence.tolist(),
            "pit": self.pit.tolist(),
            "residuals": self.residuals.tolist(),
            "drift": self._drift.tolist(),
            "drift_alarms": self.drift_alarms,
            "last_alarm": self.last_alarm,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. Raises UsageError if it is of a model with other extras."""
        extras = state.get("extras", [])
        if extras != list(self.extras):
            raise UsageError(
                f"the run has scores of {', '.join(extras) or 'no extras'}, and its model now gives "
                f"{', '.join(self.extras) or 'none'}; begin it anew with another --out."
            )
        self.events, self.drift_alarms = state["events"], state["drift_alarms"]
        self.last_alarm = state["last_alarm"]
        self.by_type = np.array(state["by_type"]).reshape(-1, 4)
        self.residuals, self._drift = np.array(state["residuals"]), np.array(state["drift"])
        kept = len(state["total"])  # runs once kept less than now; the rest begins where they go on
        self.total[:kept], self.window[:kept] = state["total"], state["window"]
        if "fading" not in state:
            return
        self.fading = np.array(state["fading"])
        self.by_activity = np.array(state["by_activity"]).reshape(-1, 4)
        self.by_confidence, self.pit = np.array(state["by_confidence"]), np.array(state["pit"])


def merged_scores(
    states: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], list[str]]:
    """Return the state of the scores of several models, each on events of its own, and the names of types.

    names: of the types of each, by number. What is averaged is over the events of all. Of the newest
    residuals there is a sample, and of the drift tests the one that is nearest to an alarm. To be read, not
    gone on with.
    """
    numbers: dict[str, int] = {}
    by_type = np.zeros((0, 4))
    for state, of_state in zip(states, names, strict=True):
        table = np.array(state["by_type"], np.float64).reshape(-1, 4)
        at = np.array([numbers.setdefault(name, len(numbers)) for name in of_state[: len(table)]], np.int64)
        by_type = _grouped(by_type, at, table)
    activities = [np.array(state["by_activity"], np.float64).reshape(-1, 4) for state in states]
    by_activity = np.zeros((max(map(len, activities), default=0), 4))
    for table in activities:
        by_activity[: len(table)] += table
    counts = [int(state["total"][0]) for state in states]
    residuals = np.concatenate(
        [state["residuals"][: min(n, _RESIDUALS)] for state, n in zip(states, counts, strict=True)]
    )
    if len(residuals) > _RESIDUALS:
        residuals = residuals[np.linspace(0, len(residuals) - 1, _RESIDUALS).astype(np.int64)]
    fading = [_FADING ** (n % _BLOCK) * np.array(s["fading"]) for s, n in zip(states, counts, strict=True)]
    drift = max((state["drift"] for state in states), key=lambda walk: float(walk[3] - walk[4]))
    merged = {
        "events": sum(state["events"] for state in states),
        "extras": states[0]["extras"],
        **{name: np.sum([s[name] for s in states], 0).tolist() for name in ("total", "window", "pit")},
        "by_confidence": np.sum([state["by_confidence"] for state in states], 0).tolist(),
        "fading": np.sum(fading, 0).tolist(),
        "by_type": by_type.tolist(),
        "by_activity": by_activity.tolist(),
        "residuals": np.append(residuals, np.zeros(_RESIDUALS - len(residuals))).tolist(),
        "drift": list(drift),
        "drift_alarms": sum(state["drift_alarms"] for state in states),
        "last_alarm": None,
    }
    return merged, list(numbers)


def baselines(columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the columns, by score, of every baseline that a model runs alongside, by its name.

    >>> baselines(["confidence", "counts_type_error", "counts_time_log_likelihood"])
    {'counts': {'type_error': 'counts_type_error', 'time_log_likelihood': 'counts_time_log_likelihood'}}
    """
    found: dict[str, dict[str, str]] = {}
    for column in columns:
        for score in ("time_log_likelihood", "log_likelihood", "type_log_loss", "type_error"):
            name = column.removesuffix(f"_{score}")
            if name != column:
                found.setdefault(name, {})[score] = column
                break
    return found


def own_scores(extras: Iterable[str]) -> list[str]:
    """Return the extras that are averages and no more: not of a baseline, nor how active keys are."""
    extras = list(extras)
    used = {column for columns in baselines(extras).values() for column in columns.values()} | {"key_events"}
    return [name for name in extras if name not in used]


def activity_name(group: int) -> str:
    """Return how many events the keys of a group by activity have had.

    >>> [activity_name(group) for group in range(4)]
    ['1', '2–3', '4–7', '8–15']
    """
    return f"{2**group:,}–{2 ** (group + 1) - 1:,}" if group else "1"


def ks_distance(residuals: Array) -> float:
    """Return the Kolmogorov-Smirnov distance of some residuals from Exp(1)."""
    below = -np.expm1(-np.sort(residuals))
    n = len(below)
    steps = np.arange(n + 1) / n
    return float(max(np.max(steps[1:] - below), np.max(below - steps[:-1])))


def _summed(sums: Array, added: Array) -> Array:
    """Return sums [columns] to which rows were added, one after the other."""
    summed: Array = np.cumsum(np.vstack([sums, added]), axis=0)[-1]
    return summed


def _grouped(table: Array, groups: NDArray[np.integer[Any]], added: Array) -> Array:
    """Return a table [groups, columns] to whose rows others were added, one after the other; it grows."""
    grown = np.zeros((max(len(table), int(groups.max(initial=-1)) + 1), table.shape[1]))
    grown[: len(table)] = table
    np.add.at(grown, groups, added)
    return grown


def _group_scores(table: Array) -> dict[str, Array]:
    count, errors, kind, time = table.T
    with np.errstate(invalid="ignore"):
        return {
            "scored": count,
            "type_error": errors / count,
            "type_log_loss": -kind / count,
            "time_log_likelihood": time / count,
        }
