"""Settings that every stream-x learner shares. A config dataclass is the flags and the saved run settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, assert_never, get_args

import torch
import tyro
from gymnasium import spaces

from streamwise.agents.generator import mix
from streamwise.agents.networks import AgentMemory, FlatNetwork, NetworkBuilder, NoMemory
from streamwise.agents.step_sizes import AdaptiveObGD, Intentional, ObGD, Rule, StepSizeRule
from streamwise.memory.bottleneck import BottleneckMemory
from streamwise.memory.episode import EpisodeMemory
from streamwise.memory.recurrent import RecurrentMemory
from streamwise.streams import Transition, UsageError

__all__ = ["StreamSettings", "observation_shape"]

OBGD, INTENTIONAL = ("obgd", "adaptive-obgd"), ("intentional",)

SMALLEST_LAYER = 10  # below it, sparse initialization leaves no weight, and the network never learns

_LARGEST_OF_MEMORY = 4096  # features, heads, chunks read, steps of a chunk
_LARGEST_MEMORY = 2**32  # numbers

_LEAST = {
    "bottleneck_books": 1,
    "bottleneck_pairs": 1,
    "bottleneck_key_width": 1,
    "bottleneck_warm_up": 0,
    "finetune_every": 0,
    "finetune_steps": 1,
    "finetune_batch": 1,
    "finetune_capacity": 1,
}

# Which settings are read under which values of another; setting one that is never read is refused.
_READ_WITH = {
    "step_size": ("step_size_rule", OBGD),
    "overshoot_margin": ("step_size_rule", OBGD),
    "policy_overshoot_margin": ("step_size_rule", OBGD),
    "intended_change": ("step_size_rule", INTENTIONAL),
    "policy_intended_change": ("step_size_rule", INTENTIONAL),
    "memory_features": ("memory", ("hcam", "gru")),
    "memory_heads": ("memory", ("hcam",)),
    "memory_reads": ("memory", ("hcam",)),
    "memory_random_reads": ("memory", ("hcam",)),
    "memory_joint": ("memory", ("hcam",)),
    "memory_alike": ("memory", ("hcam",)),
    "memory_span": ("memory", ("hcam",)),
    "memory_guests": ("memory", ("hcam",)),
    "memory_chunk_length": ("memory", ("hcam",)),
    "memory_capacity": ("memory", ("hcam",)),
    "hidden_size": ("network", ("published",)),
    "bottleneck_books": ("network", ("bottleneck",)),
    "bottleneck_pairs": ("network", ("bottleneck",)),
    "bottleneck_key_width": ("network", ("bottleneck",)),
    "bottleneck_warm_up": ("network", ("bottleneck",)),
}

MemoryKind = Literal["none", "hcam", "gru"]
NetworkKind = Literal["published", "bottleneck"]


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
    network: NetworkKind = "published"
    """Hidden layers that fit the observation; or a table of values whose keys follow the observations at
    first and then stay, so that an update moves only what was looked up (bottleneck)."""
    hidden_size: int = 128
    """Units in each hidden layer (the Atari network's sizes are fixed)."""
    bottleneck_books: int = 64
    """Looks at an observation, each with keys of its own; the output is the mean of what they find."""
    bottleneck_pairs: int = 64
    """Keys, each with its values, in a book."""
    bottleneck_key_width: int = 8
    """Numbers in a key: random mixtures of the observation's."""
    bottleneck_warm_up: int = 2000
    """Observations that move the keys before anything is learned; 0: the keys are random."""
    memory: MemoryKind = "none"
    """What of the present episode is remembered: nothing; its observations in chunks, looked up by attention
    (hcam); or a recurrent state with the gradient of one step (gru)."""
    memory_features: int = 32
    """Numbers that are read from the memory at each step (hcam, gru)."""
    memory_heads: int = 1
    """Heads of the attention inside a chunk; features must be a multiple (hcam)."""
    memory_reads: int = 8
    """Chunks that are opened at each step: the best by their summaries (hcam)."""
    memory_random_reads: int = 0
    """How many of these are any chunks, not the best: what is never opened is never found (hcam)."""
    memory_joint: bool = False
    """One softmax over all steps that are opened, in place of one inside each chunk and one over chunks by
    their summaries, which then are not learned: for when all chunks are opened (hcam)."""
    memory_alike: bool = False
    """Begin by looking for what is like the present; otherwise for anything (hcam)."""
    memory_chunk_length: int = 4
    """Steps in a chunk; the last ones, fewer than these, cannot be read yet (hcam)."""
    memory_capacity: int = 256
    """Chunks that are kept, the latest (hcam)."""
    memory_span: Literal["episode", "life"] = "episode"
    """Whether chunks go at the end of an episode (hcam)."""
    memory_guests: tyro.conf.Suppress[int] = 0
    """Chunks of other learners that fit beside its own; `streamwise up` sees to it (hcam)."""
    finetune_every: int = 0
    """Updates between refreshes of the value on transitions of all its life; 0: none is kept."""
    finetune_steps: int = 20
    """Steps of a refresh."""
    finetune_batch: int = 32
    """Transitions of such a step, drawn from those that are kept."""
    finetune_capacity: int = 1000
    """Transitions that are kept, each of all that ever came with the same chance."""
    finetune_step_size: float = 0.01
    """How far such a step goes along the mean gradient."""
    finetune_modules: Literal["head", "all"] = "head"
    """What of the value's network is refreshed: its last layer, or all."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights and traces; statistics are float64 always."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_memory()
        self._check_choices()
        self._check_what_goes_together()

    def _check_numbers(self) -> None:
        for name, low in (("discount", 0.0), ("trace_decay", 0.0)):
            if not low <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is {getattr(self, name)}; it lies in [0, 1].")
        # Written so that NaN fails each of them.
        for name in ("step_size", "policy_intended_change", "finetune_step_size"):
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
        for setting, least in _LEAST.items():
            if getattr(self, setting) < least:
                raise UsageError(f"{setting} is {getattr(self, setting)}; it must be {least} or more.")

    def _check_memory(self) -> None:
        for name in ("features", "heads", "reads", "chunk_length", "capacity"):
            setting = f"memory_{name}"
            if getattr(self, setting) < 1:
                raise UsageError(f"{setting} is {getattr(self, setting)}; it must be 1 or more.")
            if name != "capacity" and getattr(self, setting) > _LARGEST_OF_MEMORY:
                raise UsageError(
                    f"{setting} is {getattr(self, setting)}; it must be {_LARGEST_OF_MEMORY} or less."
                )
        if not 0 <= self.memory_random_reads < self.memory_reads:
            raise UsageError(
                f"memory_random_reads is {self.memory_random_reads}; it lies from 0 to "
                f"{self.memory_reads - 1}, for one of the chunks that are read is the best."
            )
        if self.memory_guests < 0:
            raise UsageError(f"memory_guests is {self.memory_guests}; it must be 0 or more.")
        if self.memory_features % self.memory_heads:
            raise UsageError(
                f"memory_features is {self.memory_features}; it must be a multiple of memory_heads, which is "
                f"{self.memory_heads}."
            )

    def _check_choices(self) -> None:
        for name, choices in (
            ("step_size_rule", get_args(StepSizeRule)),
            ("memory", get_args(MemoryKind)),
            ("memory_span", ("episode", "life")),
            ("network", get_args(NetworkKind)),
            ("finetune_modules", ("head", "all")),
            ("dtype", ("float32", "float64")),
        ):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} is {getattr(self, name)!r}; choose one of: {', '.join(choices)}.")

    def _check_what_goes_together(self) -> None:
        for field in fields(self):
            other, readers = _READ_WITH.get(field.name, ("", ()))
            changed = getattr(self, field.name) != field.default
            if readers and changed and getattr(self, other) not in readers:
                raise UsageError(
                    f"{field.name} has no effect with {other} {getattr(self, other)!r}; "
                    f"it belongs to {' and '.join(readers)}."
                )
            if field.name.startswith("finetune_") and changed and not self.finetune_every:
                raise UsageError(f"{field.name} has no effect without refreshes; set finetune_every, too.")
        if self.memory != "none" and (self.finetune_every or self.network != "published"):
            other = "finetune_every" if self.finetune_every else "network"
            raise UsageError(
                f"{other} is {getattr(self, other)}, and memory {self.memory!r}; choose one, for what was "
                "remembered is not kept with transitions, and not looked up in a bottleneck."
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def value_ends(self, transition: Transition) -> bool:
        """Return whether nothing is valued beyond this transition."""
        return transition.terminated or (transition.truncated and not self.bootstrap_on_truncation)

    def memory_for(self, shape: tuple[int, ...], network: NetworkBuilder | None, seed: int) -> AgentMemory:
        """Make the memory that is asked for, of observations of this shape; a bottleneck is one, too.

        Raises UsageError if there is to be one beside a network of the user's own, which would not read it.
        """
        if self.memory != "none" and network is not None:
            raise UsageError(
                f"memory {self.memory!r} is read by the built-in networks; leave out it, or your network."
            )
        width = math.prod(shape)
        if self.network == "bottleneck":
            if network is not None:
                raise UsageError("network is 'bottleneck', and another is given; leave out one of them.")
            books, pairs, key_width = (
                self.bottleneck_books, self.bottleneck_pairs, self.bottleneck_key_width
            )  # fmt: skip
            if books * key_width * max(width, pairs) > _LARGEST_MEMORY:
                raise UsageError(
                    f"bottleneck_books is {books}, of {pairs} keys of {key_width} numbers, for observations "
                    f"of {width}; keep it below {_LARGEST_MEMORY:,} numbers in all."
                )
            return BottleneckMemory(
                width, books=books, pairs=pairs, key_width=key_width, warm_up=self.bottleneck_warm_up,
                seed=seed, dtype=self.torch_dtype,
            )  # fmt: skip
        if self.memory == "gru":
            return RecurrentMemory(width, features=self.memory_features, dtype=self.torch_dtype)
        if self.memory == "hcam":
            capacity, length = self.memory_capacity, self.memory_chunk_length
            chunks = capacity + 1 + self.memory_guests
            if chunks * (length + 1) * (width + 1) > _LARGEST_MEMORY:
                raise UsageError(
                    f"memory_capacity is {capacity}, chunks of {length} steps of {width} numbers; keep it "
                    f"below {_LARGEST_MEMORY:,} numbers in all."
                )
            return EpisodeMemory(
                width, chunk_length=length, capacity=capacity,
                features=self.memory_features, heads=self.memory_heads, k=self.memory_reads,
                random_reads=self.memory_random_reads, joint=self.memory_joint, alike=self.memory_alike,
                lasting=self.memory_span == "life", guests=self.memory_guests,
                key=mix(seed), dtype=self.torch_dtype,
            )  # fmt: skip
        return NoMemory()

    def rule_for(self, network: FlatNetwork, *, is_policy: bool = False) -> Rule:
        """Make the chosen step-size rule for one network; a policy may have values of its own."""

        def value(name: str) -> float:
            own = getattr(self, f"policy_{name}", None) if is_policy else None
            return float(getattr(self, name) if own is None else own)

        trace = torch.zeros_like(network.parameters)
        match self.step_size_rule:
            case "obgd":
                return ObGD(trace, value("step_size"), value("overshoot_margin"))
            case "adaptive-obgd":
                return AdaptiveObGD(trace, value("step_size"), value("overshoot_margin"))
            case "intentional":
                return Intentional(trace, value("intended_change"), normalize_td_error=is_policy)
        assert_never(self.step_size_rule)


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
