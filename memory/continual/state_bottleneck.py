"""A key-value bottleneck on the history of an event model: what is learned late is an offset, written apart.

    e      = the state of a frozen encoder just after the last event
    λ_k(t) = λ⁰_k(t) · exp(1/C Σ_c V_c,j_c,k)        j_c: the nearest of P keys to head c of e; V from zero

Until it has warmed up, the model λ⁰ learns as it does, and values stay zero. Then the encoder is a copy of
it, the keys follow the states of the windows that came last, and values alone are trained; the model too,
slowly, if that is wanted. An update moves the values of the histories that it saw, and no others.

The mean of the values, a number for each type, is added to the logarithm of its intensity: intensities stay
above zero whatever the values are, zeros leave them as they are to the last bit, and nothing of the model has
to be opened. Between two events it is constant, so that quadrature stays as good as it was. A pair that
nothing has trained says zero, which is the model's own word, so that none is passed over, other than in
`KeyValueBottleneck`.

Source: Träuble et al. (2023), "Discrete key-value bottleneck", arXiv:2207.11240. Its use on histories of
events is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamwise.memory.continual.key_value_bottleneck import Bottleneck
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["OffsetModel", "StateBottleneck"]


class OffsetModel(nn.Module):
    """An intensity model with offsets. base: one whose `head` turns states into intensities."""

    def __init__(self, base: Any, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.base, self.bottleneck = base, bottleneck
        self.encoder = copy.deepcopy(base).requires_grad_(False)
        self.encoder.head = nn.Identity()  # so that what it says are states
        self.open = False  # whether values are trained

    def encodings(self, sequences: Any) -> Tensor:
        """Return the encoder's states after 0, 1, ... events, just then, [sequences, events + 1, width]."""
        times = torch.cat([sequences.start[:, None], sequences.times], 1)
        seen = torch.arange(times.shape[1]).expand(times.shape)
        with torch.no_grad():
            states: Tensor = self.encoder.intensities(self.encoder.remember(sequences), times, seen)
        return states

    def offsets(self, sequences: Any) -> Tensor:
        """Return what is added to the logarithms of intensities, [sequences, events + 1, types]."""
        states = self.encodings(sequences)
        found = self.bottleneck.nearest(self.bottleneck.heads(states.flatten(0, 1)))
        mean = self.bottleneck.values[torch.arange(len(found))[:, None], found].mean(0)
        return (mean if self.open else 0.0 * mean).view(*states.shape[:2], -1)

    def remember(self, sequences: Any) -> tuple[Any, Tensor]:
        """Return what the base remembers of the events, and the offsets after each of them."""
        return self.base.remember(sequences), self.offsets(sequences)

    def intensities(self, memory: tuple[Any, Tensor], times: Tensor, visible: Tensor) -> Tensor:
        """Return λ_k, float [*times.shape, types], as the base does."""
        of_base, offsets = memory
        factors = offsets[torch.arange(len(visible))[:, None], visible].exp()
        rates: Tensor = self.base.intensities(of_base, times, visible)
        return rates * factors.view(*visible.shape, *[1] * (times.ndim - 2), -1)

    def freeze_encoder(self) -> None:
        """Make the encoder what the base is now."""
        state = self.base.state_dict()
        self.encoder.load_state_dict({name: x for name, x in state.items() if not name.startswith("head.")})
        self.open = True


class StateBottleneck(Wrapped):
    """Puts offsets on the intensities of the learner's model, `network.model`, which is then left alone.

    warm_up: so many windows train the model; `consolidate` ends it, too. books, pairs, key_width, decay: C,
    P, d_k, γ. key_windows: the last of warm-up, whose states the keys follow. key_epochs, key_batch: passes
    over them, and states in a step. step_scale: of values, times the learner's step size. base_scale: of the
    model after warm-up; 0 leaves it as it is.
    """

    name = "state_bottleneck"

    def __init__(
        self,
        learner: Trainable,
        *,
        warm_up: int = 200,
        books: int = 16,
        pairs: int = 64,
        key_width: int = 4,
        decay: float = 0.95,
        key_windows: int = 64,
        key_epochs: int = 10,
        key_batch: int = 256,
        step_scale: float = 3.0,
        base_scale: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        counts = {"warm_up": warm_up, "key_windows": key_windows, "key_epochs": key_epochs,
                  "key_batch": key_batch}  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; use 1 or more.")
        self.events: Any = learner.network
        base: Any = getattr(self.events, "model", None)
        if not hasattr(base, "head") or not hasattr(base, "intensities"):
            raise ValueError(
                "the network has no model of events with a head; put this around an event model."
            )
        types, width = base.head.weight.shape
        bottleneck = Bottleneck(
            width, types, books=books, pairs=pairs, key_width=key_width, decay=decay, seed=seed
        )
        self.model = OffsetModel(base, bottleneck)
        self.events.model = self.model
        self.step_scales["model.bottleneck.values"] = step_scale
        self.warm_up, self.key_windows, self.base_scale = warm_up, key_windows, base_scale
        self.key_epochs, self.key_batch, self.seed = key_epochs, key_batch, seed
        self.warmed = 0
        self._waiting: list[Tensor] = []  # windows
        self.plain = learner.objective
        self.objective = self._while_warming_up

    def _while_warming_up(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if not self.model.open:
            self.warmed += len(inputs)
            self._waiting = [*self._waiting, *inputs.clone()][-self.key_windows :]
        return self.plain(inputs, targets)

    def learn_one(self, sample: Any, /) -> Mapping[str, float]:
        """Score a window and learn from it; end warm-up if it is time."""
        metrics = super().learn_one(sample)
        if self.warmed >= self.warm_up and not self.model.open:
            self.end_warm_up()
        return metrics

    def consolidate(self) -> None:
        """End warm-up, if there has been any."""
        super().consolidate()
        if self._waiting:
            self.end_warm_up()

    def end_warm_up(self) -> None:
        """Freeze the encoder, let the keys follow the states of the windows that wait, and train values."""
        self.model.freeze_encoder()
        self._hold_base()
        sequences = self.events.sequences(torch.stack(self._waiting))
        states = self.model.encodings(sequences)[:, 1:].flatten(0, 1)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.key_epochs):
            order = torch.randperm(len(states), generator=generator)
            for rows in torch.split(order, self.key_batch):
                self.model.bottleneck.move_keys(states[rows], generator)
        self._waiting = []

    def _hold_base(self) -> None:
        if self.base_scale:
            self.step_scales["model.base"] = self.base_scale
        else:
            self.model.base.requires_grad_(False)

    def own_state(self) -> dict[str, Tensor]:
        """Return how far it is and the windows that wait; encoder, keys and values are in the network."""
        waiting = torch.stack(self._waiting) if self._waiting else torch.zeros(0)
        return {"warmed": torch.tensor([self.warmed, self.model.open]), "waiting": waiting}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.warmed, self.model.open = int(state["warmed"][0]), bool(state["warmed"][1])
        self._waiting = list(state["waiting"].clone())
        if self.model.open:
            self._hold_base()
