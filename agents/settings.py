"""Settings that every stream-x learner shares. A config dataclass is the flags and the saved run settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces

from streamwise.agents.networks import FlatNetwork
from streamwise.agents.step_sizes import AdaptiveObGD, Intentional, ObGD, Rule, StepSizeRule
from streamwise.streams import Transition, UsageError

__all__ = ["StreamSettings", "observation_shape"]

OBGD, INTENTIONAL = ("obgd", "adaptive-obgd"), ("intentional",)

SMALLEST_LAYER = 10  # below it, sparse initialization leaves no weight, and the network never learns

# Which settings speak to which step-size rule; setting one that the rule never reads is refused.
_RULES_THAT_READ = {
    "step_size": OBGD,
    "overshoot_margin": OBGD,
    "policy_overshoot_margin": OBGD,
    "intended_change": INTENTIONAL,
    "policy_intended_change": INTENTIONAL,
}


@dataclass(frozen=True)
class StreamSettings:
    """Settings that every stream-x learner shares."""

    discount: float = 0.99
    """gamma, per step, in [0, 1]."""
    trace_decay: float = 0.8
    """lambda, in [0, 1]: how far back credit reaches."""
    step_size_rule: StepSizeRule = "intentional"
    """How far one update goes."""
    step_size: float = 1.0
    """alpha, before the overshoot bound (obgd, adaptive-obgd)."""
    overshoot_margin: float = 2.0
    """kappa of the value, at least 1 (obgd, adaptive-obgd)."""
    intended_change: float = 0.5
    """eta of the value: share of the TD error that one update removes, in (0, 1] (intentional)."""
    bootstrap_on_truncation: bool = True
    """Value what follows a time limit; otherwise a time limit counts as an ending."""
    time_feature: bool = False
    """Observe the time within the episode, from -0.5 to 0.5 at the time limit, as a last feature that is not
    normalized. `train` adds it; in Python, make the environment with time_feature=True too."""
    hidden_size: int = 128
    """Units in each hidden layer (the Atari network's sizes are fixed)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and traces; statistics are float64 always."""

    def __post_init__(self) -> None:
        for name, low in (("discount", 0.0), ("trace_decay", 0.0)):
            if not low <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is {getattr(self, name)}; it lies in [0, 1].")
        # Written so that NaN fails each of them.
        for name in ("step_size", "policy_intended_change"):
            if not 0.0 < getattr(self, name, 1.0) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0 and finite.")
        if not 0.0 < self.intended_change <= 1.0:
            raise UsageError(f"intended_change is {self.intended_change}; it lies in (0, 1].")
        for name in ("overshoot_margin", "policy_overshoot_margin"):
            if not 1.0 <= getattr(self, name, 1.0) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; below 1 an update may overshoot.")
        if self.hidden_size < SMALLEST_LAYER:
            raise UsageError(
                f"hidden_size is {self.hidden_size}; it must be at least {SMALLEST_LAYER}, "
                "for sparse initialization cuts nine tenths of each unit's inputs, rounded up."
            )
        for name, choices in (("step_size_rule", get_args(StepSizeRule)), ("dtype", ("float32", "float64"))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is {getattr(self, name)!r}; choose one of: {', '.join(choices)}.")
        for field in fields(self):
            readers = _RULES_THAT_READ.get(field.name)
            changed = getattr(self, field.name) != field.default
            if readers and changed and self.step_size_rule not in readers:
                raise UsageError(
                    f"{field.name} has no effect with step_size_rule {self.step_size_rule!r}; "
                    f"it belongs to {' and '.join(readers)}."
                )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def value_ends(self, transition: Transition) -> bool:
        """Return whether nothing is valued beyond this transition."""
        return transition.terminated or (transition.truncated and not self.bootstrap_on_truncation)

    def rule_for(
        self,
        network: FlatNetwork,
        overshoot_margin: float,
        intended_change: float,
        *,
        is_policy: bool = False,
    ) -> Rule:
        """Make the chosen step-size rule for one network."""
        trace = torch.zeros_like(network.parameters)
        if self.step_size_rule == "intentional":
            return Intentional(trace, intended_change, normalize_td_error=is_policy)
        kind = ObGD if self.step_size_rule == "obgd" else AdaptiveObGD
        return kind(trace, self.step_size, overshoot_margin)


def observation_shape(space: spaces.Space[Any], time_feature: bool, agent: str) -> tuple[int, ...]:
    """Return the shape of a Box observation space. Raises UsageError for every other space."""
    if not isinstance(space, spaces.Box):
        raise UsageError(
            f"{agent} takes Box observations, not {space}; flatten or encode them first "
            "(streamwise.make flattens Dict and Tuple spaces)."
        )
    if time_feature and len(space.shape) != 1:
        raise UsageError(f"time_feature needs a flat observation, not one of shape {space.shape}.")
    return space.shape
