"""The nearest class mean: a classifier that has nothing to forget, and so is what others are held against.

    n_y ← n_y + 1        μ_y ← μ_y + (φ(x) − μ_y)/n_y        predicted: argmin_k |φ(x) − μ_k|²

Source: Mensink, Verbeek, Perronnin and Csurka (2013), "Distance-based image classification: generalizing to
new classes at near-zero cost".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from streamwise.agents.learner import Metrics, State
from streamwise.streams import Example, NonFiniteSampleError

__all__ = ["NearestMean"]


class NearestMean:
    """Predicts the class whose mean is nearest.

    features, classes: sizes of what comes in and goes out. feature_map: φ, a frozen function from inputs
    [n, features] to [n, width]; None: the inputs themselves.

    >>> import numpy as np
    >>> learner = NearestMean(1, 3)
    >>> for label in (0, 1, 0, 1):
    ...     metrics = learner.learn_one(Example(np.float32([label]), label))
    >>> learner.scores(torch.tensor([[0.4], [0.6]])).argmax(1).tolist()
    [0, 1]
    """

    def __init__(
        self, features: int, classes: int, *, feature_map: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.features, self.classes = features, classes
        self._map = feature_map or (lambda inputs: inputs)
        width = self._map(torch.zeros(1, features)).shape[1]
        self.means = torch.zeros(classes, width, dtype=torch.float64)
        self.counts = torch.zeros(classes, dtype=torch.int64)

    def scores(self, inputs: Tensor) -> Tensor:
        """Return minus half the squared distances to the means, [n, classes]; -inf before a class came."""
        with torch.no_grad():
            mapped = self._map(inputs).double()
        squared = (mapped[:, None] - self.means).square().sum(2)
        return (-0.5 * squared).masked_fill(self.counts == 0, -torch.inf).float()

    def learn_one(self, example: Example, /) -> Metrics:
        """Predict one example, then move the mean of its class.

        Returns whether it was predicted ("correct"); a class that has not come before never is. Raises
        NonFiniteSampleError for NaN and infinities, ValueError for a class that there is not.
        """
        inputs = torch.from_numpy(example.features).to(torch.float32)[None]
        if not torch.isfinite(inputs).all():
            raise NonFiniteSampleError(
                f"an example of class {example.label} has features that are not finite."
            )
        if not 0 <= example.label < self.classes:
            raise ValueError(f"the class is {example.label}, and there are {self.classes}, from 0.")
        correct = self.counts.any() and int(self.scores(inputs)[0].argmax()) == example.label
        self.counts[example.label] += 1
        with torch.no_grad():
            off = self._map(inputs)[0].double() - self.means[example.label]
        self.means[example.label] += off / self.counts[example.label]
        return {"correct": float(correct)}

    def consolidate(self) -> None:
        """Do nothing: there is nothing to forget."""

    def state_dict(self) -> State:
        """Return means and counts."""
        return {"means": self.means.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.means, self.counts = state["means"].clone(), state["counts"].clone()
