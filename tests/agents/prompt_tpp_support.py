"""What tests of PromptTPP share: small models of every kind, events for them, and parts of their weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamwise.agents import PromptTPP, PromptTPPConfig
from streamwise.agents.event_model import Score
from streamwise.kernels import native_info

needs_native = pytest.mark.skipif(native_info() is None, reason="the native kernels are not built")
COLUMN = {name: i for i, name in enumerate([*Score._fields, *PromptTPP.extras])}
SMALL = {
    "types": 6, "window": 6, "width": 16, "time_width": 4, "hidden": 16, "prompts": 5, "selected": 2,
    "rows": 2, "group": 4, "hot_keys": 8, "silence_every": 5, "precision": "float64", "cache_age": 3,
    "keys_in_memory": 1024, "calendar": True,
}  # fmt: skip
KINDS = {
    "stale": {},
    "exact": {"gradients": "exact"},
    "intensity": {"decoder": "intensity"},
    "exact-intensity": {"decoder": "intensity", "gradients": "exact"},
    "no-pool": {"prompts": 0},
    "deep": {"heads": 1, "layers": 3},
    "no-floor": {"floor": "none"},
    "plain": {"recency": False, "calendar": False},
    "balanced": {"usage_balance": 0.3, "reuse_after": 20.0},
    "random": {"retrieval": "random"},
    "no-attention": {"heads": 0, "prompts": 0},
    "pool-only": {"train": "pool"},
    "history": {"window": 2, "history": 3, "history_length": 2, "history_reads": 2, "history_features": 8},
}


def make(kind=None, backend="auto", **changes):
    return PromptTPP(PromptTPPConfig(**{**SMALL, **(kind or {}), **changes}), backend=backend)


def some_events(count, seed=0, types=5, keys=9):
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(5.0, count) * 10.0 ** generator.uniform(-2.0, 2.0, count)
    return (
        (1.5e9 + np.cumsum(gaps)).tolist(),
        [f"type {k}" for k in generator.integers(types, size=count)],
        [f"key {k}" for k in generator.integers(keys, size=count)],
    )


def gradient(model):
    """The gradient of the open group, with what the native kernel keeps of projected prompts chained on."""
    model.updates.fold_prompts()
    return model.arrays["gradients"].copy()


def lively(model):
    """Let the network have a say: its last layers begin at zero."""
    generator = np.random.default_rng(5)
    for name in ("gap_out", "type_out", "landing"):
        if name in model.network.shapes:
            part = _part(model, name)
            part[:] = 0.3 * generator.standard_normal(part.shape)
    model.load_state_dict(model.state_dict())
    return model


def _part(model, name):
    """A parameter's place in the flat weights."""
    sizes = {key: math.prod(shape) for key, shape in model.network.shapes.items()}
    start = sum(size for key, size in list(sizes.items())[: list(sizes).index(name)])
    return model.arrays["weights"][start : start + sizes[name]]
