"""Policies as pure functions of a network's outputs: sampling, log-probability, entropy, mode."""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from streamwise.agents.generator import CounterGenerator
from streamwise.streams import Action, NonFiniteSampleError, UsageError

__all__ = ["CategoricalPolicy", "GaussianPolicy", "Policy", "policy_for"]

SMALLEST_DEVIATION = 1e-3  # of a Gaussian policy
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Policy(Protocol):
    """A family of distributions over actions, with its parameters given by a network's `outputs`."""

    outputs: int

    def native_settings(self) -> dict[str, Any]:
        """Return what the native step needs to know of the policy."""
        ...

    def check(self, action: Action, step: int) -> None:
        """Raise ValueError, which names the step, unless this is an action of the policy."""
        ...

    def sample(self, outputs: Tensor, generator: CounterGenerator) -> Action:
        """Draw an action."""
        ...

    def mode(self, outputs: Tensor) -> Action:
        """Return the likeliest action."""
        ...

    def log_probability_and_entropy(self, outputs: Tensor, action: Action) -> tuple[Tensor, Tensor]:
        """Return log pi(action) and the entropy, as scalars with their graph."""
        ...


class GaussianPolicy:
    """Independent normals: outputs are [mean, pre-deviation], deviation = softplus(pre-deviation) + 0.001.

    The published code adds nothing: a policy whose deviation has shrunk to nothing has infinite gradients.
    """

    def __init__(self, size: int, dtype: Any) -> None:
        self.size = size
        self.outputs = 2 * size
        self.dtype = dtype

    def native_settings(self) -> dict[str, Any]:
        """Return what the native step needs to know of the policy."""
        make = functools.partial(np.empty, self.size, self.dtype)
        return {"gaussian": True, "actions": self.size, "new_action": make}

    def check(self, action: Action, step: int) -> None:
        """Raise ValueError unless the action is an array of the right shape, all of it finite."""
        taken = np.asarray(action)
        if taken.shape != (self.size,):
            raise ValueError(
                f"step {step}: the action has shape {taken.shape}; this policy's has {(self.size,)}."
            )
        if not np.isfinite(taken).all():
            feature = int(np.argmin(np.isfinite(taken)))
            raise NonFiniteSampleError(
                f"step {step}: feature {feature} of the action is {taken[feature]}; the sample was refused."
            )

    def sample(self, outputs: Tensor, generator: CounterGenerator) -> NDArray[Any]:
        """Draw an action [size]; it may lie outside the bounds, the environment clips."""
        mean, pre_deviation = outputs.double().chunk(2)
        noise = torch.from_numpy(generator.normal(self.size))
        return (mean + _deviation(pre_deviation) * noise).numpy().astype(self.dtype)

    def mode(self, outputs: Tensor) -> NDArray[Any]:
        """Return the mean [size]."""
        return outputs[: self.size].numpy().astype(self.dtype)

    def log_probability_and_entropy(self, outputs: Tensor, action: Action) -> tuple[Tensor, Tensor]:
        """Of the unclipped action; summed over dimensions."""
        mean, pre_deviation = outputs.chunk(2)
        deviation = _deviation(pre_deviation)
        log_deviation = deviation.log()
        distance = (torch.from_numpy(np.asarray(action)).to(outputs.dtype) - mean) / deviation
        log_probability = (-0.5 * distance * distance - log_deviation).sum() - self.size * _LOG_SQRT_2PI
        entropy = log_deviation.sum() + self.size * (0.5 + _LOG_SQRT_2PI)
        return log_probability, entropy


def _deviation(pre_deviation: Tensor) -> Tensor:
    return functional.softplus(pre_deviation) + SMALLEST_DEVIATION


class CategoricalPolicy:
    """A softmax over actions 0, 1, ...: outputs are the logits."""

    def __init__(self, actions: int) -> None:
        self.outputs = actions

    def native_settings(self) -> dict[str, Any]:
        """Return what the native step needs to know of the policy."""
        return {"gaussian": False, "actions": self.outputs}

    def check(self, action: Action, step: int) -> None:
        """Raise ValueError unless the action is an index in range."""
        check_discrete(action, self.outputs, step)

    def sample(self, outputs: Tensor, generator: CounterGenerator) -> int:
        """Draw an action by inverting the distribution function."""
        cumulative = outputs.double().softmax(0).cumsum(0).numpy()
        action = int(np.searchsorted(cumulative, generator.uniform() * cumulative[-1], side="right"))
        return min(action, self.outputs - 1)

    def mode(self, outputs: Tensor) -> int:
        """Return the likeliest action, the first of equals."""
        return int(outputs.argmax())

    def log_probability_and_entropy(self, outputs: Tensor, action: Action) -> tuple[Tensor, Tensor]:
        """Of the action's index."""
        log_probabilities = outputs.log_softmax(0)
        entropy = -(log_probabilities.exp() * log_probabilities).sum()
        return log_probabilities[action], entropy


def check_discrete(action: Action, actions: int, step: int) -> int:
    """Return the action as an int. Raises ValueError unless it is one of 0, 1, ..., actions - 1."""
    if not isinstance(action, int | np.integer) or not 0 <= action < actions:
        raise ValueError(
            f"step {step}: the action is {action!r}; it must be an integer from 0 to {actions - 1}."
        )
    return int(action)


def discrete_size(space: spaces.Discrete, agent: str) -> int:
    """Return the number of actions. Raises UsageError where they do not count from 0, as agents do."""
    if space.start != 0:
        raise UsageError(
            f"{agent} counts actions from 0, but {space} starts at {space.start}; "
            "shift them with gymnasium.wrappers.TransformAction."
        )
    return int(space.n)


def policy_for(space: spaces.Space[Any]) -> Policy:
    """Return the policy for an action space: Box [size] or Discrete. Raises UsageError otherwise."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return GaussianPolicy(space.shape[0], space.dtype)
    if isinstance(space, spaces.Discrete):
        return CategoricalPolicy(discrete_size(space, "stream-ac"))
    raise UsageError(f"stream-ac takes one-dimensional Box or Discrete actions, not {space}.")
