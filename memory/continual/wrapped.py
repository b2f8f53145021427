"""What a method of continual learning can be put around, and what all methods have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Objective", "Trainable", "Wrapped", "teacher_from", "teacher_state"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""The loss of a batch, a scalar to descend, as a function of inputs [n, ...] and targets [n, ...]."""


class Trainable(Protocol):
    """A learner whose network and objective others may look at, and replace.

    network: takes inputs to outputs; what of it requires a gradient is trained. objective: what an update
    descends, called once in each. step_scales: what the step size is multiplied by, for parameters whose
    names begin so. updates: how many there have been.
    """

    network: nn.Module
    objective: Objective
    step_scales: dict[str, float]

    @property
    def updates(self) -> int:
        """How many updates there have been."""

    def learn_one(self, sample: Any, /) -> Mapping[str, float]:
        """Score a sample, then learn from it."""

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, to which nothing was added."""

    def scores(self, inputs: Tensor) -> Tensor:
        """Return what inputs [n, ...] are predicted to be, [n, outputs], changing nothing."""

    def consolidate(self) -> None:
        """Take note that what comes may be another world."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that later updates and predictions depend on."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""


class Wrapped:
    """A learner with something around it; here it does what the learner does.

    name: what its own tensors are called in a state, before a point. A method that is used twice around one
    learner has to be given another.
    """

    name = ""

    def __init__(self, learner: Trainable) -> None:
        self.learner = learner

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.learner.network

    @network.setter
    def network(self, network: nn.Module) -> None:
        self.learner.network = network

    @property
    def objective(self) -> Objective:
        """What an update descends."""
        return self.learner.objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self.learner.objective = objective

    @property
    def step_scales(self) -> dict[str, float]:
        """What the step size is multiplied by, by the beginnings of parameters' names."""
        return self.learner.step_scales

    @property
    def updates(self) -> int:
        """How many updates there have been."""
        return self.learner.updates

    def learn_one(self, sample: Any, /) -> Mapping[str, float]:
        """Score a sample, then learn from it."""
        return self.learner.learn_one(sample)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, to which nothing was added."""
        return self.learner.loss(inputs, targets)

    def scores(self, inputs: Tensor) -> Tensor:
        """Return what inputs [n, ...] are predicted to be, [n, outputs], changing nothing."""
        return self.learner.scores(inputs)

    def consolidate(self) -> None:
        """Take note that what comes may be another world."""
        self.learner.consolidate()

    def own_state(self) -> dict[str, Tensor]:
        """Return what this adds to the learner's state."""
        return {}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that later updates and predictions depend on."""
        own = {f"{self.name}.{key}": value for key, value in self.own_state().items()}
        state = self.learner.state_dict()
        if twice := own.keys() & state.keys():
            raise ValueError(
                f"{sorted(twice)[0]} is there twice; give one of two {self.name!r} another name."
            )
        return {**state, **own}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave.

        This one's part first: a method may have to change the network's shape before it is filled.
        """
        prefix = f"{self.name}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.load_own_state(own)
        self.learner.load_state_dict(
            {key: value for key, value in state.items() if not key.startswith(prefix)}
        )


def teacher_state(teacher: nn.Module | None) -> dict[str, Tensor]:
    """Return the part of a state that holds a copy of a network as it once was; nothing if there is none."""
    found = {} if teacher is None else teacher.state_dict()
    return {f"teacher.{name}": value.clone() for name, value in found.items()}


def teacher_from(state: Mapping[str, Tensor], network: nn.Module) -> Any:
    """Return the copy that `teacher_state` gave, of the network's shape; None if there was none."""
    start = "teacher."
    found = {key.removeprefix(start): x for key, x in state.items() if key.startswith(start)}
    if not found:
        return None
    teacher = copy.deepcopy(network).requires_grad_(False)
    teacher.load_state_dict(found)
    return teacher
