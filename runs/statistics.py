"""Statistics of finished runs: running means, bootstrap intervals, curves on a grid, prediction scores.

Pure functions, arrays in and arrays out. What a learner keeps while it learns is in `agents/statistics.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PredictionScores",
    "bootstrap_interval",
    "curve_on_grid",
    "discounted_returns",
    "known_returns",
    "prediction_scores",
    "running_mean",
]

Array = NDArray[np.float64]

UNSEEN_WEIGHT = 0.01
"""A return counts as known once the part of it that was never seen weighs no more than this."""


def running_mean(values: ArrayLike, window: int = 20) -> Array:
    """Return the mean of the last `window` values at every place; of fewer, where there are fewer.

    values: [n]. Result: float64 [n]. Raises ValueError for a window below 1.

    >>> running_mean([1.0, 3.0, 5.0, 7.0], window=2).tolist()
    [1.0, 2.0, 4.0, 6.0]
    """
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1.")
    values = np.asarray(values, dtype=np.float64)
    first = values[: window - 1]
    means = np.cumsum(first) / np.arange(1, len(first) + 1)
    if len(values) < window:
        return means
    # Each window is summed for itself: a difference of cumulative sums would carry one NaN to the end.
    full = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=-1)
    return np.concatenate([means, full])


def bootstrap_interval(
    samples: ArrayLike,
    statistic: Callable[..., Any],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return the percentile bootstrap interval of a statistic over the first axis.

    samples: [n, ...]; n is resampled, the axes behind it stay together, so a curve is drawn whole.
    statistic: a function with an `axis` argument, such as np.mean or np.median. Result: low and high, float64
    of shape [...] (zero-dimensional for samples [n]). Same seed, same interval. Raises ValueError for fewer
    than two samples, which say nothing about spread.

    >>> low, high = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0], np.mean)
    >>> float(low), float(high)
    (1.8, 4.2)
    """
    from scipy import stats

    samples = np.asarray(samples, dtype=np.float64)
    if len(samples) < 2:
        raise ValueError(f"an interval takes at least 2 samples, not {len(samples)}.")
    per_resample = max(samples.size, 1)
    interval = stats.bootstrap(
        (samples,),
        statistic,
        axis=0,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, min(resamples, 2_000_000 // per_resample)),  # bounds memory to some 16 MB
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def curve_on_grid(steps: ArrayLike, values: ArrayLike, grid: ArrayLike) -> Array:
    """Return, at each step of the grid, the last value recorded by then; NaN before the first.

    steps: [n], never falling. values: [n]. grid: [m]. Result: float64 [m].

    >>> curve_on_grid([10, 20, 30], [1.0, 2.0, 3.0], [5, 10, 19, 20, 99]).tolist()
    [nan, 1.0, 1.0, 2.0, 3.0]
    """
    steps = np.asarray(steps)
    places = np.searchsorted(steps, np.asarray(grid), side="right")
    return np.concatenate([[np.nan], np.asarray(values, dtype=np.float64)])[places]


def discounted_returns(cumulant: ArrayLike, discount: float) -> Array:
    """Return the discounted sum of the cumulants from each step to the last: G[t] = c[t] + discount G[t+1].

    cumulant: [n]. Result: float64 [n], in the cumulant's units. What follows the last step counts as nothing;
    `known_returns` says where that does not matter.

    >>> discounted_returns([1.0, 2.0, 4.0], 0.5).tolist()
    [3.0, 4.0, 4.0]
    """
    from scipy import signal

    backwards = np.asarray(cumulant, dtype=np.float64)[::-1]
    if not len(backwards):
        return np.zeros(0)
    returns = np.asarray(signal.lfilter([1.0], [1.0, -discount], backwards), dtype=np.float64)
    return returns[::-1]


def known_returns(steps: int, discount: float) -> int:
    """Return at how many of the first of `steps` steps the discounted return is known within 1%.

    At index t the cumulants not seen, from index `steps` on, weigh discount ** (steps - t) of the sum.

    >>> known_returns(1000, 0.99)
    542
    """
    return int(np.count_nonzero(discount ** np.arange(steps, 0.0, -1.0) <= UNSEEN_WEIGHT))


@dataclass(frozen=True)
class PredictionScores:
    """Mean squared errors of predicted discounted returns, in squared units of the return.

    All are over the same steps, `first_step` to `last_step` (1-based, both counted): the second half of the
    stream as far as its returns are known. NaN throughout where there is no such step.
    """

    steps: int
    first_step: int
    last_step: int
    learner: float
    running_mean: float
    """Of predicting the mean of all cumulants so far for ever."""
    last_cumulant: float
    """Of predicting the last cumulant for ever."""

    @property
    def scored_steps(self) -> int:
        """How many steps the errors are means of."""
        return max(0, self.last_step - self.first_step + 1)

    @property
    def ratio_to_running_mean(self) -> float:
        """The learner's error over that of the running mean; below 1 the learner is better."""
        return self.learner / self.running_mean if self.running_mean else float("nan")

    @property
    def ratio_to_last_cumulant(self) -> float:
        """The learner's error over that of the last cumulant; below 1 the learner is better."""
        return self.learner / self.last_cumulant if self.last_cumulant else float("nan")


def prediction_scores(prediction: ArrayLike, cumulant: ArrayLike, discount: float) -> PredictionScores:
    """Score predictions of the discounted return, beside two predictors that learn nothing.

    prediction: [n], made at each step before its cumulant was seen. cumulant: [n]. discount: in [0, 1]; at 1
    no return is ever known. The two others know the same past: the mean of all earlier cumulants, and the
    cumulant one step earlier, each divided by 1 - discount. Raises ValueError for arrays that do not match
    and for other discounts.

    >>> scores = prediction_scores([2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 1.0, 3.0], 0.0)
    >>> scores.first_step, scores.last_step, scores.learner, scores.last_cumulant
    (3, 4, 1.0, 4.0)
    """
    prediction = np.asarray(prediction, dtype=np.float64)
    cumulant = np.asarray(cumulant, dtype=np.float64)
    if prediction.shape != cumulant.shape or prediction.ndim != 1:
        raise ValueError(
            f"predictions {prediction.shape} and cumulants {cumulant.shape} must be two rows of equal length."
        )
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount is {discount}; it lies in [0, 1].")
    steps = len(cumulant)
    start = max(1, steps // 2)  # the very first step has no past to predict from
    stop = known_returns(steps, discount)
    if stop <= start:
        return PredictionScores(steps, start + 1, start, *[float("nan")] * 3)
    scored, earlier = slice(start, stop), slice(start - 1, stop - 1)
    mean_so_far = np.cumsum(cumulant) / np.arange(1, steps + 1)
    true_return = discounted_returns(cumulant, discount)[scored]

    def error(predicted: Array) -> float:
        return float(np.mean(np.square(predicted - true_return)))

    return PredictionScores(
        steps=steps,
        first_step=start + 1,
        last_step=stop,
        learner=error(prediction[scored]),
        running_mean=error(mean_so_far[earlier] / (1.0 - discount)),
        last_cumulant=error(cumulant[earlier] / (1.0 - discount)),
    )
