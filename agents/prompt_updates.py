"""How the weights of PromptTPP move: gradients of a group of events, then one step of AdamW.

The base moves with every group, the pool of prompts every `refresh_every` groups, each clipped by its own
norm. A prompt that nothing has found for long is put where it is needed. A test for drift watches the losses
and raises the step size for a while. This is the reference; the native kernel does the same.

Sources: Loshchilov and Hutter (2019), arXiv:1711.05101, for the step; Page (1954), "Continuous inspection
schemes", Biometrika 41, for the test.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from streamwise.agents.event_model import Array
from streamwise.agents.prompt_network import PromptNetwork, Remembered
from streamwise.agents.prompt_settings import PromptTPPConfig

__all__ = ["PROGRESS", "Counters", "Updates"]

PROGRESS = (
    "events", "in_group", "updates", "pool_pending", "serials", "lookups", "hits", "gradient_norm", "clipped",
    "mean_cosine", "floored", "silence", "charged", "drift_count", "drift_sum", "drift_squares",
    "drift_walk", "drift_low", "drift_alarms", "boost_until", "rebuilds", "reused",
)  # fmt: skip
"""The names of the numbers in the array `progress`, in order."""

_DRIFT_SLACK, _DRIFT_THRESHOLD, _DRIFT_CLIP, _DRIFT_WARM_UP = 0.1, 100.0, 5.0, 500.0  # of prequential scores
_BOOST_EVENTS = 2_000.0


class Counters:
    """The numbers of the array `progress` by name."""

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def __getitem__(self, name: str) -> float:
        return float(self.numbers[PROGRESS.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self.numbers[PROGRESS.index(name)] = value


class Updates:
    """Moves `arrays` of a model in place: weights, their gradients and moments, usage, progress."""

    def __init__(self, config: PromptTPPConfig, network: PromptNetwork, arrays: dict[str, Array]) -> None:
        self.config, self.network, self.arrays = config, network, arrays
        self.pool_size = sum(math.prod(network.shapes[name]) for name in ("prompt_keys", "prompt_rows"))

    @property
    def progress(self) -> Counters:
        """What was counted so far."""
        return Counters(self.arrays["progress"])

    def learn(self, weights: Tensor, past: Remembered, loss: Tensor) -> None:
        """Add the gradient of a loss to the open group; a full group makes a step."""
        c, progress = self.config, self.progress
        if c.prompts:
            loss = loss + c.matching * (1.0 - past.cosines.mean())
            mean = float(past.cosines.detach().mean())
            progress["mean_cosine"] = 0.999 * progress["mean_cosine"] + 0.001 * mean
            usage, ids = self.arrays["usage"], past.ids.numpy()
            usage[:, 0] *= 0.999
            usage[ids, 0] += 0.001 / len(ids)
            usage[ids, 1] = progress["events"]
        (gradient,) = torch.autograd.grad(loss, weights)
        self.arrays["gradients"] += gradient.numpy()
        if c.prompts and c.reuse_after > 0.0:
            self._reuse(past)
        progress["in_group"] += 1.0
        if progress["in_group"] >= c.group:
            self._step()

    def _reuse(self, past: Remembered) -> None:
        """Put a prompt that nothing has found for long where the present query is."""
        unused = self.progress["events"] - self.arrays["usage"][:, 1]
        for prompt in np.flatnonzero(unused > self.config.reuse_after)[:1]:  # two in one place would be one
            inputs, start = self.network.inputs, len(self.arrays["weights"]) - self.pool_size
            at = slice(start + prompt * inputs, start + (prompt + 1) * inputs)
            self.arrays["weights"][at] = self.network.direction(past.row)
            for name in ("gradients", "first_moment", "second_moment"):
                self.arrays[name][at] = 0.0
            self.arrays["usage"][prompt, 1] = self.progress["events"]
            self.progress["reused"] += 1.0

    def _step(self) -> None:
        """Make a step of the network, and every so often one of the pool."""
        c, progress = self.config, self.progress
        progress["updates"] += 1.0
        progress["pool_pending"] += 1.0
        progress["in_group"] = 0.0
        boost = c.drift_boost if progress["events"] < progress["boost_until"] else 1.0
        self.fold_prompts()
        base = slice(0, len(self.arrays["weights"]) - self.pool_size)
        pool = slice(base.stop, None)
        if c.train == "pool":
            self.arrays["gradients"][base] = 0.0
        else:
            norm = self._move(base, 1.0 / c.group, progress["updates"], boost)
            progress["gradient_norm"] = norm
            progress["clipped"] += float(norm > c.clip)
        if c.prompts and progress["pool_pending"] >= c.refresh_every:
            self._move(pool, 1.0 / (c.group * c.refresh_every), progress["updates"] / c.refresh_every, boost)
            progress["pool_pending"] = 0.0

    def fold_prompts(self) -> None:
        """Chain what the native kernel keeps of projected prompts to rows and projections."""
        pending = torch.from_numpy(self.arrays["prompt_gradients"])
        if not pending.any():
            return
        c = self.config
        weights = torch.from_numpy(self.arrays["weights"]).requires_grad_()
        p = self.network.parameters(weights)
        projection = p["projection"].view(c.heads, c.layers, self.network.inputs, 3, c.width)[
            :, :, : c.width, 1:
        ]
        bias = p["projection_bias"].view(c.heads, c.layers, 3, c.width)[:, :, 1:]
        projected = torch.einsum("rci,hlicd->hlcrd", p["prompt_rows"], projection) + bias[..., None, :]
        (gradient,) = torch.autograd.grad((projected * pending).sum(), weights)
        self.arrays["gradients"] += gradient.numpy()
        pending.zero_()

    def _move(self, part: slice, scale: float, steps: float, boost: float) -> float:
        """Apply AdamW to a part of the parameters; return the norm of its gradient."""
        c = self.config
        weights, gradients, first, second = (
            self.arrays[name][part] for name in ("weights", "gradients", "first_moment", "second_moment")
        )
        norm = float(np.linalg.norm(gradients.astype(np.float64))) * scale
        gradient = gradients * weights.dtype.type(scale * min(1.0, c.clip / max(norm, 1e-300)))
        rate = c.learning_rate * boost
        first += (gradient - first) * 0.1
        second += (gradient * gradient - second) * 0.001
        spread = np.sqrt(second) / math.sqrt(1.0 - 0.999**steps) + 1e-8
        weights *= 1.0 - rate * c.weight_decay
        weights -= rate / (1.0 - 0.9**steps) * first / spread
        gradients[:] = 0.0
        return norm

    def watch(self, loss: float) -> None:
        """Test for drift (Page 1954) by the standardized loss; an alarm raises the step size for a while."""
        if self.config.drift_boost <= 1.0:
            return
        s = self.progress
        known = max(s["drift_count"], 1.0)
        mean = s["drift_sum"] / known
        deviation = math.sqrt(max(s["drift_squares"] / known - mean * mean, 1e-12))
        z = min(max((loss - mean) / deviation, -_DRIFT_CLIP), _DRIFT_CLIP) - _DRIFT_SLACK
        s["drift_count"] += 1.0
        s["drift_sum"] += loss
        s["drift_squares"] += loss * loss
        if s["drift_count"] <= _DRIFT_WARM_UP:
            return
        s["drift_walk"] += z
        s["drift_low"] = min(s["drift_low"], s["drift_walk"])
        if s["drift_walk"] - s["drift_low"] > _DRIFT_THRESHOLD:
            s["drift_alarms"] += 1.0
            s["boost_until"] = s["events"] + _BOOST_EVENTS
            for name in ("drift_count", "drift_sum", "drift_squares", "drift_walk", "drift_low"):
                s[name] = 0.0
