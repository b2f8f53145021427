"""The view-batch model: what is recalled is recalled seldom, and then looked at from several sides.

    of B places of a batch, B/V samples of the buffer that rested, with V views each: a weak one, then strong
    loss = L(new samples) + L(all views) + μ · mean over strong views of KL(sg p(weak) ‖ p(strong))

A sample that was drawn is not drawn again before so many updates have passed. Views of numbers are noise, and
strong ones also lack some features. What a stream brings once is not recalled by it, so that the method works
on what a reservoir has kept.

Departures from the published code: views are grouped by sample, not by equal labels that follow one another;
the divergence is the sum over classes, with μ = 1/classes by default, where the published one is a mean.

Source: Kim et al. (2025), "Do your best and get enough rest for continual learning", arXiv:2503.18371.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.reservoir import Reservoir
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["ViewBatch", "views_of"]


def views_of(inputs: Tensor, views: int, noise: float, lost: float, generator: torch.Generator) -> Tensor:
    """Return views of inputs [n, features], [n, views, features]: the first weak, the others strong.

    noise: the standard deviation that a strong view adds to each feature, and a fifth of it a weak one. lost:
    the share of features that a strong view sets to zero.
    """
    found = inputs[:, None].expand(-1, views, -1).clone()
    scale = torch.full((views, 1), noise)
    scale[0] *= 0.2
    found += scale * torch.randn(found.shape, generator=generator)
    gone = torch.rand(found.shape, generator=generator) < lost
    gone[:, 0] = False
    return found.masked_fill(gone, 0.0)


class ViewBatch(Wrapped):
    """Adds views of rested samples to each update.

    capacity: of the reservoir. places: B. views: V. rest: updates between two draws of a sample. noise, lost:
    of strong views; see `views_of`. agreement: μ; None for 1/outputs.
    """

    name = "view_batch"

    def __init__(
        self,
        learner: Trainable,
        *,
        capacity: int = 200,
        places: int = 16,
        views: int = 4,
        rest: int = 20,
        noise: float = 0.1,
        lost: float = 0.1,
        agreement: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        if views < 1 or places < views or rest < 0:
            raise ValueError(
                f"places is {places}, views {views}, rest {rest}; use 1 view or more, as many places or "
                "more, and a rest of 0 or more."
            )
        self.reservoir, self.count, self.views, self.rest = (
            Reservoir(capacity, seed),
            places // views,
            views,
            rest,
        )
        self.noise, self.lost, self.agreement, self.seed = noise, lost, agreement, seed
        self.drawn_at = torch.full((capacity,), -rest - 1)  # the update that last drew what is in each place
        self.plain = learner.objective
        self.objective = self._with_views

    def _with_views(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.plain(inputs, targets)
        chosen = self._rested()
        if len(chosen):
            generator = generator_of(self.seed, self.updates)
            views = views_of(self.reservoir.inputs[chosen], self.views, self.noise, self.lost, generator)
            loss = loss + self._loss_of(views, self.reservoir.targets[chosen])
        for input, target in zip(inputs, targets, strict=True):
            place = self.reservoir.add(input, target)
            if place is not None:
                self.drawn_at[place] = -self.rest - 1
        return loss

    def _rested(self) -> Tensor:
        """Return the places of samples that have rested, as many as are looked at now, and note it."""
        order = self.reservoir.rows(len(self.reservoir))
        rested = order[self.updates - self.drawn_at[order] > self.rest][: self.count]
        self.drawn_at[rested] = self.updates
        return rested

    def _loss_of(self, views: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of views [n, V, features] of samples with these targets, [n]."""
        count, sides, _ = views.shape
        loss = self.loss(views.flatten(0, 1), targets.repeat_interleave(sides))
        if sides == 1:
            return loss
        logs = self.network(views.flatten(0, 1)).log_softmax(1).unflatten(0, (count, sides))
        weak = logs[:, :1].detach()
        off = nn.functional.kl_div(
            logs[:, 1:], weak.expand_as(logs[:, 1:]), log_target=True, reduction="none"
        )
        agreement = 1.0 / logs.shape[2] if self.agreement is None else self.agreement
        return loss + agreement * off.sum(2).mean()

    def own_state(self) -> dict[str, Tensor]:
        """Return the reservoir, and when each of its samples was drawn."""
        return {**self.reservoir.state_dict(), "drawn_at": self.drawn_at.clone()}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.reservoir.load_state_dict(state)
        self.drawn_at = state["drawn_at"].clone()
