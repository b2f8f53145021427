"""How far one update may go: interchangeable rules for w <- w + step * td_error * trace.

A rule owns the eligibility trace of one network, for the step depends on it. All arrays are flat, [size], in
the network's layout. `gradient` is the ascent gradient of what the update should raise: a value, or the
log-probability of the action taken.

Sources: Elsayed, Vasan and Mahmood (2024), arXiv:2410.14606 (ObGD and its adaptive form);
Sharifnassab et al. (2026), "Intentional Updates for Streaming RL", arXiv:2604.19033.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["AdaptiveObGD", "Intentional", "ObGD", "Rule", "StepSizeRule", "bounded_step_size"]

StepSizeRule = Literal["obgd", "adaptive-obgd", "intentional"]


def bounded_step_size(td_error: float, trace_norm: float, step_size: float, overshoot_margin: float) -> float:
    """Return the step size that keeps one update from jumping past its own target.

    td_error: in units of the scaled reward. trace_norm: sum of |trace| over all parameters, at least 0.
    step_size: alpha, above 0. overshoot_margin: kappa, at least 1. Result: in (0, step_size].

    >>> bounded_step_size(td_error=0.5, trace_norm=10.0, step_size=1.0, overshoot_margin=2.0)
    0.05
    """
    overshoot = step_size * overshoot_margin * max(abs(td_error), 1.0) * trace_norm
    return step_size / overshoot if overshoot > 1.0 else step_size


class Rule(Protocol):
    """What an agent asks of a step-size rule."""

    trace: Tensor

    def update(self, parameters: Tensor, gradient: Tensor, td_error: float, decay: float) -> float:
        """z <- decay * z + gradient, then move the parameters along z. Returns the step taken."""
        ...

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return the rule's whole state, its keys under `prefix`."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave."""
        ...


class ObGD:
    """Overshooting-bounded gradient descent: the step shrinks until the TD error cannot change its sign."""

    def __init__(self, trace: Tensor, step_size: float, overshoot_margin: float) -> None:
        self.trace = trace
        self.step_size = step_size
        self.overshoot_margin = overshoot_margin

    def update(self, parameters: Tensor, gradient: Tensor, td_error: float, decay: float) -> float:
        """z <- decay * z + gradient; w <- w + step * td_error * z. Returns the step taken."""
        z = self.trace.mul_(decay).add_(gradient)
        norm = z.abs().sum().item()
        step = bounded_step_size(td_error, norm, self.step_size, self.overshoot_margin)
        parameters.add_(z, alpha=step * td_error)
        return step

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return the trace under `prefix`."""
        return {f"{prefix}.trace": self.trace.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave."""
        self.trace.copy_(state[f"{prefix}.trace"])


class AdaptiveObGD(ObGD):
    """ObGD with every weight's step divided by the running root mean square of its own updates."""

    def __init__(
        self,
        trace: Tensor,
        step_size: float,
        overshoot_margin: float,
        second_moment_decay: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(trace, step_size, overshoot_margin)
        self.second_moment = torch.zeros_like(trace)
        self.second_moment_decay = second_moment_decay
        self.epsilon = epsilon
        self.updates = 0

    def update(self, parameters: Tensor, gradient: Tensor, td_error: float, decay: float) -> float:
        """As ObGD, with z / sqrt(v + eps) for z, where v is the second moment of td_error * z."""
        self.updates += 1
        z = self.trace.mul_(decay).add_(gradient)
        beta = self.second_moment_decay
        self.second_moment.mul_(beta).addcmul_(z, z, value=(1.0 - beta) * td_error**2)
        v = self.second_moment / (1.0 - beta**self.updates)
        scaled = z / v.add_(self.epsilon).sqrt_()
        norm = scaled.abs().sum().item()
        step = bounded_step_size(td_error, norm, self.step_size, self.overshoot_margin)
        parameters.add_(scaled, alpha=step * td_error)
        return step

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return trace, second moment and the number of updates under `prefix`."""
        return {
            **super().state_dict(prefix),
            f"{prefix}.second_moment": self.second_moment.clone(),
            f"{prefix}.updates": torch.tensor(self.updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave."""
        super().load_state_dict(state, prefix)
        self.second_moment.copy_(state[f"{prefix}.second_moment"])
        self.updates = int(state[f"{prefix}.updates"])


class Intentional:
    """Choose what an update should achieve, then solve for the step that achieves it.

    intended_change: eta. For a value, the share of the TD error that one update removes; for a policy, how
    much one update changes the log-probability of the action, with td_error measured in its own running mean
    (`normalize_td_error`). The step is solved for the steady state of the trace: a running mean of the
    gradient's squared norm stands for the change that each step of the trace contributes.
    """

    td_error_decay = 0.9998
    td_error_cap = 20.0  # in running root mean squares

    def __init__(
        self,
        trace: Tensor,
        intended_change: float,
        normalize_td_error: bool,
        second_moment_decay: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.trace = trace
        self.intended_change = intended_change
        self.normalize_td_error = normalize_td_error
        self.second_moment = torch.zeros_like(trace)
        self.second_moment_decay = second_moment_decay
        self.epsilon = epsilon
        self.updates = 0
        self.gradient_norm = 0.0  # sigma: running mean of sum(g^2 / v)
        self.decay_product = 1.0  # decay^updates, for sigma's bias correction
        self.td_error_square = 1.0
        self.td_error_magnitude = 0.0

    def update(self, parameters: Tensor, gradient: Tensor, td_error: float, decay: float) -> float:
        """Move the parameters along the trace by the intended change. Returns the step taken."""
        self.updates += 1
        self.decay_product *= decay
        g = gradient
        square = g * g
        beta = self.second_moment_decay
        self.second_moment.mul_(beta).add_(square, alpha=1.0 - beta)
        v = (self.second_moment / (1.0 - beta**self.updates)).sqrt_().add_(self.epsilon)
        z = self.trace.mul_(decay).add_(g)
        scaled = z / v

        norm = square.div_(v).sum().item()
        if decay < 1.0:
            self.gradient_norm = decay * self.gradient_norm + (1.0 - decay) * norm
            sigma = self.gradient_norm / (1.0 - self.decay_product)
        else:  # the limit of the corrected mean as the decay goes to 1: the plain mean
            self.gradient_norm += (norm - self.gradient_norm) / self.updates
            sigma = self.gradient_norm
        trace_norm = torch.dot(z, scaled).item()
        step = self.intended_change / max(math.sqrt(sigma * trace_norm), 1e-8)
        parameters.add_(scaled, alpha=step * self._tame(td_error))
        return step

    def _tame(self, td_error: float) -> float:
        """Clip the TD error at a multiple of its running root mean square; a policy also normalizes it."""
        beta = self.td_error_decay
        correction = 1.0 - beta**self.updates
        self.td_error_square = beta * self.td_error_square + (1.0 - beta) * td_error**2
        cap = self.td_error_cap * math.sqrt(self.td_error_square / correction)
        clipped = min(max(td_error, -cap), cap)
        if not self.normalize_td_error:
            return clipped
        self.td_error_magnitude = beta * self.td_error_magnitude + (1.0 - beta) * abs(clipped)
        return clipped / max(self.td_error_magnitude / correction, 1e-12)

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return trace, second moment and the scalar statistics under `prefix`."""
        scalars = [self.gradient_norm, self.decay_product, self.td_error_square, self.td_error_magnitude]
        return {
            f"{prefix}.trace": self.trace.clone(),
            f"{prefix}.second_moment": self.second_moment.clone(),
            f"{prefix}.updates": torch.tensor(self.updates),
            f"{prefix}.scalars": torch.tensor(scalars, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave."""
        self.trace.copy_(state[f"{prefix}.trace"])
        self.second_moment.copy_(state[f"{prefix}.second_moment"])
        self.updates = int(state[f"{prefix}.updates"])
        scalars = state[f"{prefix}.scalars"].tolist()
        self.gradient_norm, self.decay_product, self.td_error_square, self.td_error_magnitude = scalars
