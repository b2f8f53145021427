"""What a learner keeps and what it forgets, as numbers: functions of accuracies by time and experience.

R: float [times, experiences], the accuracy on examples of experience j that are never learned, after the i-th
time at which all were looked at; here time i is the end of experience i where not said otherwise. The same
formulas hold for log-likelihoods and returns, as differences.

Sources: Chaudhry et al. (2018), arXiv:1801.10112, for forgetting; Lopez-Paz and Ranzato (2017),
arXiv:1706.08840, for transfer; De Lange, van de Ven and Tuytelaars (2023), arXiv:2205.13452, for the worst.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "average_accuracy",
    "backward_transfer",
    "fading_accuracy",
    "forgetting",
    "forgetting_from_best",
    "forward_transfer",
    "incremental_accuracy",
    "learning_accuracy",
    "lost_on_leaving",
    "retention_area",
    "retention_curve",
    "stream_accuracy",
    "worst_case_accuracy",
]


def average_accuracy(accuracies: ArrayLike) -> float:
    """Return the mean over experiences, alike in weight, after the last of them."""
    return float(_square(accuracies)[-1].mean())


def stream_accuracy(accuracies: ArrayLike, patterns: Sequence[int]) -> float:
    """Return the share of all test patterns that is right at the end. patterns: of each experience."""
    return float(np.average(_square(accuracies)[-1], weights=patterns))


def incremental_accuracy(accuracies: ArrayLike) -> float:
    """Return the mean over times of the mean over the experiences there had been by then."""
    found = _square(accuracies)
    return float(np.mean([row[: time + 1].mean() for time, row in enumerate(found)]))


def learning_accuracy(accuracies: ArrayLike) -> float:
    """Return the mean accuracy on each experience just after it: what plasticity is measured by."""
    return float(np.diag(_square(accuracies)).mean())


def forgetting(accuracies: ArrayLike) -> float:
    """Return the mean of R[j, j] - R[last, j] over all experiences but the last; 0 if there is but one."""
    found = _square(accuracies)
    lost = (np.diag(found) - found[-1])[:-1]
    return float(lost.mean()) if len(lost) else 0.0


def forgetting_from_best(accuracies: ArrayLike) -> float:
    """Return the same from the best there ever was before the last time, in place of R[j, j]."""
    found = _square(accuracies)
    if len(found) < 2:
        return 0.0
    return float((found[:-1].max(axis=0) - found[-1])[:-1].mean())


def backward_transfer(accuracies: ArrayLike) -> float:
    """Return what learning later experiences brought to earlier ones: minus `forgetting`."""
    return -forgetting(accuracies)


def forward_transfer(accuracies: ArrayLike, untrained: ArrayLike) -> float:
    """Return the mean of R[j - 1, j] - b[j] over all experiences but the first.

    untrained: b, the accuracy on each before anything was learned. It says nothing where experiences are of
    different classes.
    """
    found, before = _square(accuracies), np.asarray(untrained, np.float64)
    if len(found) < 2:
        return 0.0
    return float((np.diag(found, 1) - before[1:]).mean())


def worst_case_accuracy(accuracies: ArrayLike, learned_at: Sequence[int]) -> float:
    """Return the mean over experiences of the least accuracy since each was learned.

    accuracies: R at any times, also within experiences. learned_at: the row in which each was learned first.
    """
    found = np.asarray(accuracies, np.float64)
    return float(np.mean([found[time:, j].min() for j, time in enumerate(learned_at)]))


def lost_on_leaving(looks: ArrayLike, accuracies: ArrayLike, segments: Sequence[Sequence[int]]) -> float:
    """Return how much is lost, on average, of each experience between its end and when it returns.

    looks: [n], after how many samples accuracies [n, experiences] were measured, the ends of segments among
    them. segments: start, stop and experience of each. What does not return is looked at in the end. Where
    every experience comes once, it is `forgetting`.
    """
    found, at = np.asarray(accuracies, np.float64), list(np.asarray(looks))
    lost = [
        found[at.index(stop), experience] - found[at.index(until), experience]
        for experience, stop, until in _departures(segments)
    ]
    return float(np.mean(lost)) if lost else 0.0


def retention_curve(
    looks: ArrayLike, accuracies: ArrayLike, segments: Sequence[Sequence[int]], lags: ArrayLike
) -> NDArray[np.float64]:
    """Return the mean accuracy on an experience so many samples after its end, [lags].

    For looks, accuracies and segments see `lost_on_leaving`. Between two looks the accuracy is a line; NaN
    where nothing is away for so long.
    """
    found, at = np.asarray(accuracies, np.float64), np.asarray(looks, np.float64)
    since = np.asarray(lags, np.float64)
    curves = [
        np.where(since <= until - stop, np.interp(stop + since, at, found[:, experience]), np.nan)
        for experience, stop, until in _departures(segments)
    ]
    known = np.isfinite(curves).sum(0) if curves else np.zeros(len(since))
    mean: NDArray[np.float64] = np.full(len(since), np.nan)
    np.divide(np.nansum(curves, 0), known, out=mean, where=known > 0)
    return mean


def _departures(segments: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Return experience, its end, and when it returns or all ends; for each segment but the last."""
    found = []
    for place, (_, stop, experience) in enumerate(segments[:-1]):
        returns = [start for start, _, other in segments[place + 1 :] if other == experience]
        until = returns[0] if returns else segments[-1][1]
        if until > stop:
            found.append((experience, stop, until))
    return found


def fading_accuracy(correct: ArrayLike, decay: float = 0.999) -> NDArray[np.float64]:
    """Return, after each prediction, the mean of all so far with weights decay^age, [n]. correct: 0 or 1."""
    mean = weight = 0.0
    means = np.zeros(len(np.asarray(correct)))
    for place, hit in enumerate(np.asarray(correct, np.float64)):
        mean, weight = decay * mean + (1.0 - decay) * hit, decay * weight + (1.0 - decay)
        means[place] = mean / weight
    return means


def retention_area(lags: ArrayLike, accuracies: ArrayLike) -> float:
    """Return the mean accuracy over lags since something was learned, on a logarithmic scale.

    lags, accuracies: [n], lags above zero and in order; between two of them the accuracy is a line.
    """
    at, found = np.log(np.asarray(lags, np.float64)), np.asarray(accuracies, np.float64)
    if len(at) < 2 or not (np.diff(at) > 0.0).all():
        raise ValueError("lags are two or more numbers above zero, in order.")
    return float(np.trapezoid(found, at) / (at[-1] - at[0]))


def _square(accuracies: ArrayLike) -> NDArray[np.float64]:
    found = np.asarray(accuracies, np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1]:
        raise ValueError(f"accuracies have shape {list(found.shape)}; use one time for each experience.")
    return found
