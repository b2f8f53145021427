"""When to consolidate, where nobody tells of boundaries: every so many samples, or when errors change.

    learner = ConsolidateAtDrift(OnlineEWC(Classifier(64, 10)))

A detector hears one number with each sample, and is begun anew when it has found a drift. What it keeps
inside cannot be read, so what it has heard since it was begun is kept here, and is told to a new one when a
run goes on. To bound that, it is begun anew with the newer half when there is too much.

Sources: Bifet and Gavaldà (2007), "Learning from time-changing data with adaptive windowing", for ADWIN; Page
(1954), "Continuous inspection schemes", for Page-Hinkley. Both are river's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["ConsolidateAtDrift", "ConsolidateEvery"]


class ConsolidateEvery(Wrapped):
    """Calls `consolidate` after every `samples` samples."""

    name = "every"

    def __init__(self, learner: Trainable, *, samples: int) -> None:
        super().__init__(learner)
        if samples < 1:
            raise ValueError(f"samples is {samples}; use 1 or more.")
        self.samples, self.seen = samples, 0

    def learn_one(self, sample: Any, /) -> Mapping[str, float]:
        """Score a sample, learn from it, and consolidate if it is time."""
        metrics = super().learn_one(sample)
        self.seen += 1
        if self.seen % self.samples == 0:
            self.consolidate()
        return metrics

    def own_state(self) -> dict[str, Tensor]:
        """Return how many samples there were."""
        return {"seen": torch.tensor(self.seen)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.seen = int(state["seen"])


class ConsolidateAtDrift(Wrapped):
    """Calls `consolidate` when one of the learner's metrics is no longer what it was.

    detector: "adwin" or "page-hinkley". watched: the metric. better: whether more of it is good; then only a
    fall counts, otherwise only a rise: to get better is no new world. settings: of the detector, such as
    `delta`. most: numbers that are kept of what it has heard. Raises ImportError without river.
    """

    name = "drift"

    def __init__(
        self,
        learner: Trainable,
        *,
        detector: Literal["adwin", "page-hinkley"] = "adwin",
        watched: str = "correct",
        better: bool = True,
        settings: Mapping[str, float] | None = None,
        most: int = 2_000,
    ) -> None:
        super().__init__(learner)
        if detector not in ("adwin", "page-hinkley"):
            raise ValueError(f"there is no detector {detector!r}; use 'adwin' or 'page-hinkley'.")
        if most < 2:
            raise ValueError(f"most is {most}; use 2 or more.")
        self.detector, self.watched, self.better, self.most = detector, watched, better, most
        self.settings = dict(settings or {})
        self.drifts = 0
        self._heard: list[float] = []
        self._river = self._begun()

    def _begun(self) -> Any:
        try:
            from river import drift
        except ImportError:
            raise ImportError(
                "drift detectors come with river, which is missing: pip install 'streamwise[continual]'."
            ) from None
        kind: Any = {"adwin": drift.ADWIN, "page-hinkley": drift.PageHinkley}[self.detector]
        river = kind(**self.settings)
        for number in self._heard:
            river.update(number)
        return river

    def learn_one(self, sample: Any, /) -> Mapping[str, float]:
        """Score a sample, learn from it, and consolidate if the world has changed."""
        metrics = super().learn_one(sample)
        number = float(metrics[self.watched])
        self._heard.append(number)
        self._river.update(number)
        if self._river.drift_detected:
            if self._got_worse():
                self.drifts += 1
                self.consolidate()
            self._heard = []
            self._river = self._begun()
        elif len(self._heard) == self.most:
            self._heard = self._heard[self.most // 2 :]
            self._river = self._begun()
        return metrics

    def _got_worse(self) -> bool:
        """Whether the newer numbers are worse than the older; which are newer is what explains most."""
        heard = torch.tensor(self._heard, dtype=torch.float64)
        count = torch.arange(1, len(heard), dtype=torch.float64)
        before = heard.cumsum(0)[:-1] / count
        after = heard.flip(0).cumsum(0)[:-1].flip(0) / count.flip(0)
        rise = after - before
        place = (count * count.flip(0) * rise.square()).argmax()
        return bool(rise[place] < 0.0) == self.better

    def own_state(self) -> dict[str, Tensor]:
        """Return what was heard, and how many drifts there were."""
        return {
            "heard": torch.tensor(self._heard, dtype=torch.float64),
            "drifts": torch.tensor(self.drifts),
        }

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self._heard, self.drifts = state["heard"].tolist(), int(state["drifts"])
        self._river = self._begun()
