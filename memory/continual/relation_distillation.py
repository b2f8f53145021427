"""Prototype-sample relation distillation: classes are directions, and follow the encoder as it changes.

    scores of x: cos(f(x), p_k)          f: the network without its last layer; p_k: a prototype of each class

    loss = L_SC + α L_P + β L_D
    L_SC = supervised contrast of two views of recent samples, after a projection head g
    L_P  = mean_i [1 − cos(sg f(x_i), p_{y_i})]                     moves prototypes, not the encoder
    L_D  = mean_k KL(softmax_i(a'_ik/κ) ‖ softmax_i(a_ik/κ))        a_ik = f(x_i) · p_k/|p_k|, k known before

a' is of the encoder and the prototypes as `consolidate` last found them. An old prototype so keeps the order
in which new samples resemble it, and is moved, with the encoder, to where it has to be for that.

Departures: a stream brings one example at a time, so that the contrast is made of a window of recent samples,
and views are noise and missing features (memory/continual/view_batch.py); a prototype begins where the first
example of its class is. `relation="classes"` is the published code's other form of L_D: softmax over the
earlier classes, for each sample.

Source: Asadi et al. (2023), "Prototype-sample relation distillation: towards replay-free continual learning",
arXiv:2303.14771; Khosla et al. (2020), arXiv:2004.11362, for the contrast.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.view_batch import views_of
from streamwise.memory.continual.wrapped import Trainable, Wrapped, teacher_from, teacher_state

__all__ = ["Prototypes", "RelationDistillation", "relation_loss", "supervised_contrast"]


def supervised_contrast(features: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the mean over samples of minus the mean log-odds of their class's others, times τ/0.07.

    features: unit vectors, [n, width]. targets: [n]. Samples that are alone in their class do not count.
    """
    count = len(features)
    alone = torch.eye(count, dtype=torch.bool)
    scores = (features @ features.T / temperature).masked_fill(alone, -torch.inf)
    logs = (scores - scores.logsumexp(1, keepdim=True)).masked_fill(alone, 0.0)
    others = (targets[:, None] == targets) & ~alone
    counted = others.any(1)
    mean = (logs * others).sum(1)[counted] / others.sum(1)[counted]
    return -(temperature / 0.07) * mean.sum() / max(int(counted.sum()), 1)


def relation_loss(before: Tensor, now: Tensor, axis: Literal["samples", "classes"]) -> Tensor:
    """Return the mean divergence of how samples resembled prototypes before from how they do, a scalar.

    before, now: a'/κ and a/κ, [samples, classes]. axis: over which resemblance is a distribution.
    """
    over = 0 if axis == "samples" else 1
    divergence = nn.functional.kl_div(
        now.log_softmax(over), before.log_softmax(over), log_target=True, reduction="none"
    )
    return divergence.sum(over).mean()


class Prototypes(nn.Module):
    """An encoder, a projection for the contrast, and a direction for each class."""

    known: Tensor

    def __init__(self, encoder: nn.Module, width: int, classes: int, projected: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.encoder = encoder
        self.projection = nn.Parameter(torch.randn(width, projected, generator=generator) / width**0.5)
        self.prototypes = nn.Parameter(torch.zeros(classes, width))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the cosines with prototypes, [n, classes]; -1, the least, for a class that is not known."""
        features = nn.functional.normalize(self.encoder(inputs), dim=1)
        cosines: Tensor = features @ nn.functional.normalize(self.prototypes, dim=1).T
        return cosines.masked_fill(~self.known, -1.0)

    def resemblances(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return a, [n, of these classes], for features that are not normalized."""
        directions: Tensor = nn.functional.normalize(self.prototypes[classes], dim=1)
        return features @ directions.T

    @torch.no_grad()
    def begin(self, features: Tensor, targets: Tensor) -> None:
        """Give each class that has not come before the direction of its first example."""
        for feature, target in zip(features, targets.tolist(), strict=True):
            if not self.known[target]:
                self.prototypes[target] = nn.functional.normalize(feature, dim=0)
                self.known[target] = True


class RelationDistillation(Wrapped):
    """Replaces the learner's last layer by prototypes, and its objective by the three losses.

    classes: of the learner. window: recent samples that are contrasted at each update. temperature: τ.
    prototype_weight: α. distillation: β. sharpness: κ. projected: numbers after g. noise, lost: of views.
    """

    name = "relations"

    def __init__(
        self,
        learner: Trainable,
        classes: int,
        *,
        window: int = 32,
        temperature: float = 0.1,
        prototype_weight: float = 2.0,
        distillation: float = 4.0,
        sharpness: float = 1.0,
        projected: int = 32,
        relation: Literal["samples", "classes"] = "samples",
        noise: float = 0.1,
        lost: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        *body, last = self.network.children()
        if not isinstance(self.network, nn.Sequential) or not isinstance(last, nn.Linear):
            raise ValueError(
                "the network is no sequence that ends with a linear layer, which prototypes replace."
            )
        self.model = Prototypes(nn.Sequential(*body), last.in_features, classes, projected, seed)
        self.network = self.model
        self.teacher: Prototypes | None = None
        self.temperature, self.sharpness, self.relation = temperature, sharpness, relation
        self.prototype_weight, self.distillation = prototype_weight, distillation
        self.window, self.noise, self.lost, self.seed = window, noise, lost, seed
        self.recent = torch.zeros(0)  # inputs, [n, features], at most `window`
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.objective = self.losses

    def scores(self, inputs: Tensor) -> Tensor:
        """Return the cosines with the prototypes over τ, [n, classes]."""
        return super().scores(inputs) / self.temperature

    def losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return L_SC + α L_P + β L_D of a batch and what came shortly before it."""
        with torch.no_grad():
            self.model.begin(self.model.encoder(inputs), targets)
        self.recent = torch.cat([self.recent, inputs] if len(self.recent) else [inputs])[-self.window :]
        self.labels = torch.cat([self.labels, targets])[-self.window :]
        generator = generator_of(self.seed, self.updates)
        views = views_of(self.recent, 2, self.noise, self.lost, generator).flatten(0, 1)
        labels = self.labels.repeat_interleave(2)
        features = self.model.encoder(views)
        projected = nn.functional.normalize(features @ self.model.projection, dim=1)
        loss = supervised_contrast(projected, labels, self.temperature)
        unit = nn.functional.normalize(features.detach(), dim=1)
        own = nn.functional.normalize(self.model.prototypes[labels], dim=1)
        loss = loss + self.prototype_weight * (1.0 - (unit * own).sum(1)).mean()
        if self.teacher is not None and self.distillation:
            old = torch.nonzero(self.teacher.known)[:, 0]
            with torch.no_grad():
                before = self.teacher.resemblances(self.teacher.encoder(views), old)
            now = self.model.resemblances(features, old)
            off = relation_loss(before / self.sharpness, now / self.sharpness, self.relation)
            loss = loss + self.distillation * off
        return loss

    def consolidate(self) -> None:
        """Take what is known now as what is to be kept; what came before it is contrasted no more."""
        super().consolidate()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.recent, self.labels = self.recent[:0], self.labels[:0]

    def own_state(self) -> dict[str, Tensor]:
        """Return the window and the teacher; encoder and prototypes are in the network."""
        return {"recent": self.recent.clone(), "labels": self.labels.clone(), **teacher_state(self.teacher)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.recent, self.labels = state["recent"].clone(), state["labels"].clone()
        self.teacher = teacher_from(state, self.model)
