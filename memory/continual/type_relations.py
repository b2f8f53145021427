"""Relation distillation on event models: histories go on resembling the types of events as they did.

    a_ik = h_i · w_k/|w_k|        h_i: the model's state just before event i, of type k_i
                                  w_k: the row of its head that makes the rate of type k, the prototype of k
    loss = − log-likelihood + γ L_SC + α L_P + β L_D
    L_SC = supervised contrast of g(h_i) by types                  moves states, and the projection g
    L_P  = mean_i [1 − cos(sg h_i, w_{k_i})]                       moves prototypes, not states
    L_D  = mean_k KL(softmax_i(a'_ik/κ) ‖ softmax_i(a_ik/κ))       moves both; k came before

a' is of the model as `consolidate` last found it. i are the scored events of a batch of windows: there are
enough of them for a contrast, so that nothing that came is kept.

Departures. The paper's prototypes stand in place of the last layer. Here they are the directions of its rows,
and lengths, offsets and sharpness stay: a likelihood asks how probable types are, for which cosines are no
measure. So intensities are the model's own, and L_D holds what they are made of, states and rows together;
with prototypes beside the head, its rows would be free to forget. L_P is off by default, as the likelihood
moves rows to where rates are right. There are no views: histories before events of one type, of which a batch
has many, are what is drawn together.

Types come again in a new world, other than the classes of the paper, and L_D brakes what they come to follow
there. So β is low.

Source: Asadi et al. (2023), "Prototype-sample relation distillation: towards replay-free continual learning",
arXiv:2303.14771. Its use on histories of events is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamwise.memory.continual.relation_distillation import relation_loss, supervised_contrast
from streamwise.memory.continual.wrapped import Trainable, Wrapped, teacher_from, teacher_state

__all__ = ["TypeRelations", "resemblances", "states_before"]


def states_before(model: Any, sequences: Any) -> Tensor:
    """Return a model's states just before each event, at its own time, [sequences, events, width].

    model: an intensity model whose `head` turns states into rates; gradients reach it.
    """
    headless = copy.copy(model)  # of the same weights
    headless._modules = {**model._modules, "head": nn.Identity()}
    seen = torch.arange(sequences.times.shape[1]).expand(sequences.times.shape)
    found: Tensor = headless.intensities(headless.remember(sequences), sequences.times, seen)
    return found


def resemblances(states: Tensor, prototypes: Tensor) -> Tensor:
    """Return a, [n, types], of states [n, width] and prototypes [types, width], whose lengths say nothing."""
    return states @ nn.functional.normalize(prototypes, dim=1).T


class TypeRelations(Wrapped):
    """Adds the contrast and the relation of types to the objective of an event model, `network.model`.

    contrast, prototype_weight, distillation: γ, α, β. temperature: of the contrast. sharpness: κ. projected:
    numbers after g. relation: over which resemblance is a distribution, see `relation_loss`. Raises
    ValueError for a network that has no model of events with a head.
    """

    name = "type_relations"

    def __init__(
        self,
        learner: Trainable,
        *,
        contrast: float = 0.1,
        prototype_weight: float = 0.0,
        distillation: float = 1.0,
        temperature: float = 0.1,
        sharpness: float = 1.0,
        projected: int = 16,
        relation: Literal["samples", "classes"] = "samples",
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        if projected < 1 or not (temperature > 0.0 and sharpness > 0.0):
            raise ValueError(
                f"projected is {projected}, temperature {temperature}, sharpness {sharpness}; use 1 or more, "
                "and numbers above 0."
            )
        self.events: Any = learner.network
        model: Any = getattr(self.events, "model", None)
        if not hasattr(model, "head") or not hasattr(model, "intensities"):
            raise ValueError(
                "the network has no model of events with a head; put this around an event model."
            )
        self.model = model
        types, width = model.head.weight.shape
        generator = torch.Generator().manual_seed(seed)
        self.projection = nn.Parameter(torch.randn(width, projected, generator=generator) / width**0.5)
        self.events.register_parameter("projection", self.projection)
        self.came = torch.zeros(types, dtype=torch.bool)
        self.teacher: Any = None
        self.known = self.came  # to the teacher
        self.contrast, self.prototype_weight, self.distillation = contrast, prototype_weight, distillation
        self.temperature, self.sharpness, self.relation = temperature, sharpness, relation
        self.plain = learner.objective
        self.objective = self.losses

    def losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the learner's objective + γ L_SC + α L_P + β L_D of a batch of windows."""
        sequences = self.events.sequences(inputs)
        scored = slice(self.events.context, None)
        types = sequences.types[:, scored].flatten()
        self.came = self.came.index_fill(0, types, True)
        states = states_before(self.model, sequences)[:, scored].flatten(0, 1)
        projected = nn.functional.normalize(states @ self.projection, dim=1)
        loss = self.plain(inputs, targets)
        loss = loss + self.contrast * supervised_contrast(projected, types, self.temperature)
        rows = self.model.head.weight
        if self.prototype_weight:
            cosines = nn.functional.cosine_similarity(states.detach(), rows[types])
            loss = loss + self.prototype_weight * (1.0 - cosines).mean()
        if self.teacher is not None and self.distillation:
            with torch.no_grad():
                then = states_before(self.teacher, sequences)[:, scored].flatten(0, 1)
                before = resemblances(then, self.teacher.head.weight[self.known])
            now = resemblances(states, rows[self.known])
            off = relation_loss(before / self.sharpness, now / self.sharpness, self.relation)
            loss = loss + self.distillation * off
        return loss

    def consolidate(self) -> None:
        """Take what histories resemble now as what is to be kept, if any have come."""
        super().consolidate()
        if self.came.any():
            self.teacher = copy.deepcopy(self.model).requires_grad_(False)
            self.known = self.came.clone()

    def own_state(self) -> dict[str, Tensor]:
        """Return the teacher, and which types have come; what is trained is in the network."""
        return {"came": self.came.clone(), "known": self.known.clone(), **teacher_state(self.teacher)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.came, self.known = state["came"].clone(), state["known"].clone()
        self.teacher = teacher_from(state, self.model)
