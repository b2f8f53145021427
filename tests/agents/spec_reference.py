"""The learners a second time, written from the formulas alone: whole histories, no running anything.

Statistics are numpy's mean and var over everything seen; moments and traces are explicit weighted sums
over all past steps; gradients come from torch.autograd on a network spelled out in matrix products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


def weights_of_the_past(decay: float, steps: int) -> np.ndarray:
    """[steps]: decay^(steps-1), ..., decay, 1."""
    return decay ** np.arange(steps - 1, -1, -1, dtype=np.float64)


class History:
    """All that a rule has been given: gradients, TD errors, and where its trace was cleared."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.gradients: list[np.ndarray] = []
        self.td_errors: list[float] = []
        self.traces: list[np.ndarray] = []
        self.norms: list[float] = []
        self.clipped: list[float] = []
        self.start = 0  # index of the first gradient that is still in the trace

    def add(self, gradient: np.ndarray, td_error: float) -> np.ndarray:
        """Returns the trace z."""
        self.gradients.append(gradient.copy())
        self.td_errors.append(td_error)
        alive = np.array(self.gradients[self.start :])
        self.traces.append(weights_of_the_past(self.decay, len(alive)) @ alive)
        return self.traces[-1]

    def clear(self) -> None:
        self.start = len(self.gradients)

    @property
    def trace(self) -> np.ndarray:
        return self.traces[-1] if self.start < len(self.gradients) else np.zeros_like(self.traces[-1])


def obgd(past: History, gradient: np.ndarray, td_error: float, alpha: float, kappa: float) -> np.ndarray:
    """Returns the change of the weights."""
    z = past.add(gradient, td_error)
    bound = alpha * kappa * max(abs(td_error), 1.0) * np.abs(z).sum()
    return (alpha / bound if bound > 1.0 else alpha) * td_error * z


def adaptive_obgd(
    past: History, gradient: np.ndarray, td_error: float, alpha: float, kappa: float
) -> np.ndarray:
    """Returns the change of the weights."""
    z = past.add(gradient, td_error)
    t = len(past.traces)
    products = np.array(past.traces) * np.array(past.td_errors)[:, None]
    v = 0.001 * weights_of_the_past(0.999, t) @ products**2 / (1.0 - 0.999**t)
    scaled = z / np.sqrt(v + 1e-8)
    bound = alpha * kappa * max(abs(td_error), 1.0) * np.abs(scaled).sum()
    return (alpha / bound if bound > 1.0 else alpha) * td_error * scaled


def intentional(
    past: History, gradient: np.ndarray, td_error: float, eta: float, is_policy: bool
) -> np.ndarray:
    """Returns the change of the weights."""
    z = past.add(gradient, td_error)
    t = len(past.gradients)
    v = 0.001 * weights_of_the_past(0.999, t) @ np.array(past.gradients) ** 2
    v_hat = np.sqrt(v / (1.0 - 0.999**t)) + 1e-8
    past.norms.append(float((gradient**2 / v_hat).sum()))
    weights = weights_of_the_past(past.decay, t)
    sigma = float(weights @ np.array(past.norms)) / weights.sum()  # (1-d) / (1-d^t) = 1 / sum of weights
    step = eta / max(math.sqrt(sigma * float((z**2 / v_hat).sum())), 1e-8)
    return step * tamed(past, is_policy) * z / v_hat


def tamed(past: History, is_policy: bool) -> float:
    """The last TD error, clipped, and for a policy divided by the mean magnitude of all clipped ones."""
    t, beta = len(past.td_errors), 0.9998
    weights = weights_of_the_past(beta, t)
    m = beta**t * 1.0 + (1.0 - beta) * float(weights @ np.array(past.td_errors) ** 2)
    cap = 20.0 * math.sqrt(m / (1.0 - beta**t))
    past.clipped.append(math.copysign(min(abs(past.td_errors[-1]), cap), past.td_errors[-1]))
    if not is_policy:
        return past.clipped[-1]
    return past.clipped[-1] / (float(weights @ np.abs(past.clipped)) / weights.sum())


def change(
    rule: str, past: History, gradient: np.ndarray, td_error: float, config: Any, *, is_policy: bool = False
) -> np.ndarray:
    """Returns the change of the weights by the rule of this name, with a learner's settings."""
    margin = config.policy_overshoot_margin if is_policy else config.overshoot_margin
    match rule:
        case "obgd":
            return obgd(past, gradient, td_error, config.step_size, margin)
        case "adaptive-obgd":
            return adaptive_obgd(past, gradient, td_error, config.step_size, margin)
        case "intentional":
            intended = config.policy_intended_change if is_policy else config.intended_change
            return intentional(past, gradient, td_error, intended, is_policy)
    raise AssertionError(f"the rule {rule!r} has no formula in spec_reference.py")


class Network:
    """Linear, LayerNorm, LeakyReLU twice, then Linear, on a flat vector W1, b1, W2, b2, W3, b3."""

    def __init__(self, flat: torch.Tensor, inputs: int, hidden: int, outputs: int) -> None:
        self.flat = flat.clone().numpy()
        self.shapes = [
            (hidden, inputs),
            (hidden,),
            (hidden, hidden),
            (hidden,),
            (outputs, hidden),
            (outputs,),
        ]

    def outputs(self, x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs and the flat leaf they can be differentiated by."""
        flat = torch.tensor(self.flat, requires_grad=True)
        sizes = [math.prod(shape) for shape in self.shapes]
        assert sum(sizes) == len(flat)
        w1, b1, w2, b2, w3, b3 = (
            part.reshape(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)
        )
        h = torch.tensor(x)
        for w, b in ((w1, b1), (w2, b2)):
            h = w @ h + b
            h = (h - h.mean()) / torch.sqrt(((h - h.mean()) ** 2).mean() + 1e-5)
            h = torch.where(h > 0.0, h, 0.01 * h)
        return w3 @ h + b3, flat

    def value(self, x: np.ndarray) -> np.ndarray:
        return self.outputs(x)[0].detach().numpy()


def gradient(objective: torch.Tensor, flat: torch.Tensor) -> np.ndarray:
    return torch.autograd.grad(objective, flat)[0].numpy()


class Statistics:
    """Normalizes by numpy's mean and var(ddof=1) over all that was ever seen."""

    def __init__(self, discount: float) -> None:
        self.discount = discount
        self.seen: list[np.ndarray] = []
        self.returns: list[float] = []
        self.opens_episode = True

    def observation(self, x: np.ndarray) -> np.ndarray:
        data = np.array(self.seen)
        variance = data.var(axis=0, ddof=1) if len(data) > 1 else np.ones_like(x)
        return (x - data.mean(axis=0)) / np.sqrt(variance + 1e-8)

    def take(self, transition: Any, value_ends: bool) -> tuple[np.ndarray, float, np.ndarray]:
        if self.opens_episode:
            self.seen.append(transition.observation)
        observation = self.observation(transition.observation)
        self.seen.append(transition.next_observation)
        next_observation = self.observation(transition.next_observation)
        carried = 0.0 if value_ends or not self.returns else self.discount * self.returns[-1]
        self.returns.append(carried + transition.reward)
        variance = np.var(self.returns, ddof=1) if len(self.returns) > 1 else 1.0
        self.opens_episode = transition.terminated or transition.truncated
        return observation, transition.reward / math.sqrt(variance + 1e-8), next_observation
