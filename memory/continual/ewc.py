"""Elastic weight consolidation, online: what earlier worlds needed is held, in proportion to the need.

    F ← decay · F + mean over this world's updates of g²        θ* ← θ              at consolidate()
    L = plain loss + 1/2 · Σ min(strength · F, limit) (θ − θ*)²

g: the gradient of the plain loss of a batch, multiplied by the root of its size, as if of one sample: between
independent samples the square of a mean of n gradients is 1/n of theirs, near a minimum.

The limit is ours: a pull of more than 1 / step size would throw a weight past where it is pulled to.

Sources: Kirkpatrick et al. (2017), arXiv:1612.00796; Schwarz et al. (2018), arXiv:1805.06370, for one running
F in place of one for each world.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["OnlineEWC"]


class OnlineEWC(Wrapped):
    """Adds a quadratic pull towards what the weights were when it was last consolidated.

    strength: of the pull. limit: the most of it that one weight feels; at most 1 / step size. decay: of the
    importance of earlier worlds at each consolidation.
    """

    name = "ewc"

    def __init__(
        self, learner: Trainable, *, strength: float = 100.0, limit: float = 5.0, decay: float = 0.9
    ) -> None:
        super().__init__(learner)
        if strength < 0.0 or not 0.0 <= decay <= 1.0:
            raise ValueError(f"strength is {strength}, decay {decay}; use 0 or more, and 0 to 1.")
        self.strength, self.limit, self.decay = strength, limit, decay
        weights = dict(self.network.named_parameters())  # some of which may be trained later
        self.importance = {name: torch.zeros_like(weight) for name, weight in weights.items()}  # F
        self.anchor = {name: weight.detach().clone() for name, weight in weights.items()}  # θ*
        self._squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._batches = 0
        self.plain = learner.objective
        self.objective = self._held

    def _weights(self) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = [
            (name, weight) for name, weight in self.network.named_parameters() if weight.requires_grad
        ]
        for name, _ in found:
            if name not in self.importance:
                raise ValueError(
                    f"'ewc' holds weights that were there when it was put around the learner, and {name!r} "
                    "was not; name it after what changes the network."
                )
        return found

    def penalty(self) -> Tensor:
        """Return the pull, a scalar."""
        pulls = [
            (
                (self.strength * self.importance[name]).clamp(max=self.limit)
                * (weight - self.anchor[name]).square()
            ).sum()
            for name, weight in self._weights()
        ]
        return 0.5 * torch.stack(pulls).sum()

    def _held(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.plain(inputs, targets)
        weights = self._weights()
        of = [weight for _, weight in weights]
        gradients = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)
        for (name, _), gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                self._squares[name] += len(inputs) * gradient.square()
        self._batches += 1
        return loss + self.penalty()

    def consolidate(self) -> None:
        """Hold what has been learned since the last time, too."""
        for name, weight in self._weights():
            mean = self._squares[name] / max(self._batches, 1)
            self.importance[name] = self.decay * self.importance[name] + mean
            self.anchor[name] = weight.detach().clone()
            self._squares[name].zero_()
        self._batches = 0
        super().consolidate()

    def own_state(self) -> dict[str, Tensor]:
        """Return importances, anchors and what is summed up for the next importance."""
        parts = {"importance": self.importance, "anchor": self.anchor, "squares": self._squares}
        state = {f"{part}.{name}": x.clone() for part, named in parts.items() for name, x in named.items()}
        return {**state, "batches": torch.tensor(self._batches)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        for part, named in (
            ("importance", self.importance), ("anchor", self.anchor), ("squares", self._squares)
        ):  # fmt: skip
            for name in named:
                named[name] = state[f"{part}.{name}"].clone()
        self._batches = int(state["batches"])
