"""What PromptTPP keeps, and how it lies in memory: a row for each key, and arrays of all else.

The native kernel changes the same rows and arrays in place, told by `native_spec` how large they are;
`layouts` says how the arrays of several models become those of one (agents/event_merge.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from streamwise.agents.event_merge import Layout
from streamwise.agents.event_model import CLOCK, Array
from streamwise.agents.prompt_floors import FLOORS, Floors
from streamwise.agents.prompt_network import NODES, PromptNetwork
from streamwise.agents.prompt_settings import PromptTPPConfig
from streamwise.agents.prompt_updates import PROGRESS
from streamwise.kernels import native_info

__all__ = ["layouts", "native_spec", "new_arrays", "row_type"]


def row_type(config: PromptTPPConfig, network: PromptNetwork, floors: Floors) -> np.dtype[Any]:
    """Return the type of the state of a key; a whole number of 8 bytes."""
    window = config.window
    fields: list[Any] = [
        *CLOCK,
        ("serial", "i8"),
        ("mean_log_gap", "f8"),
        ("charged", "f8"),
        ("silence", "f8"),
        ("times", "f8", window),
        ("gaps", "f8", window),
        ("query", "f8", network.inputs),
        ("kinds", "i4", window),
        ("issued", "f4", (3, len(floors.counts.edges))),  # what was said of the gap, also by the floors
        ("history", "i2", (config.history, config.history_length, 2)),
        ("hawkes", floors.hawkes._row_type()),
        ("counts", floors.counts._row_type()),
    ]
    if short := -np.dtype(fields).itemsize % 8:
        fields.append(("padding", "u1", short))
    return np.dtype(fields)


def new_arrays(config: PromptTPPConfig, network: PromptNetwork, floors: Floors) -> dict[str, Array]:
    """Return what is learned before anything was: weights drawn by the seed, moments, cache, counters."""
    c = config
    real = np.dtype(c.precision)
    generator = np.random.Generator(np.random.Philox(c.seed))
    drawn: dict[str, Callable[[Any], Any]] = {
        "embedding": generator.standard_normal,
        "prompt_keys": lambda shape: generator.uniform(-1.0, 1.0, shape),
        "prompt_rows": lambda shape: generator.uniform(-1.0, 1.0, shape),
        "projection": lambda shape: generator.uniform(-1.0, 1.0, shape) / math.sqrt(shape[2]),
        "hidden": lambda shape: generator.uniform(-1.0, 1.0, shape) / math.sqrt(shape[0]),
        "head": lambda shape: generator.uniform(-1.0, 1.0, shape) / math.sqrt(max(shape[0], 1)),
        **dict.fromkeys(
            (name for name, shape in network.recall_shapes.items() if len(shape) == 2),
            lambda shape: generator.standard_normal(shape) * math.sqrt(2.0 / max(shape[0], 1)),
        ),
    }
    parts = [drawn.get(name, np.zeros)(shape).ravel() for name, shape in network.shapes.items()]
    weights = np.concatenate(parts).astype(real)
    stacks = (c.heads, c.layers, 2)
    return {
        **floors.arrays,
        "weights": weights,
        "gradients": np.zeros_like(weights),
        "first_moment": np.zeros_like(weights),
        "second_moment": np.zeros_like(weights),
        "prompt_gradients": np.zeros((*stacks, c.prompts * c.rows, c.width), real),
        "cache": np.zeros((c.hot_keys, *stacks, c.window, c.width), real),
        "cached": np.zeros((c.hot_keys, 4), np.int64),
        "progress": np.zeros(len(PROGRESS)),
        "usage": np.tile([1.0 / max(c.prompts, 1), 0.0], (c.prompts, 1)),
    }


def native_spec(
    config: PromptTPPConfig, network: PromptNetwork, floors: Floors, arrays: dict[str, Array]
) -> dict[str, Any]:
    """Return what the native kernel has to know beside the arrays themselves."""
    c = config
    info = native_info()
    assert info is not None
    parts = {}
    for model in floors.models:
        parts[model.name] = {**model._native_spec()[1], **model.arrays}
    return {
        **parts,
        "size": len(arrays["weights"]),
        "double": int(c.precision == "float64"),
        "decoder": ("bins", "intensity").index(c.decoder),
        "exact": int(c.gradients == "exact"),
        "floor": FLOORS.index(c.floor),
        "pool_only": int(c.train == "pool"),
        "random_prompts": int(c.retrieval == "random"),
        "recency": int(c.recency),
        "calendar": int(c.calendar),
        "hot": c.hot_keys,
        "unit": c.prior_gap,
        "node_cells": NODES[0],
        "node_count": NODES[1],
        "node_at": network.nodes[0],
        "node_weight": network.nodes[1],
        "middles": floors.counts.middles,
        "history_positions": network.positions.numpy(),
        "rates": network.turns,
        "instruction_set": info.instruction_set,
        "selected": c.selected if c.prompts else 0,
        "rows": c.rows if c.prompts else 0,
        **{
            name: getattr(c, name)
            for name in (
                "window", "history", "history_length", "history_reads", "history_features",
                "history_heads", "width", "time_width", "layers", "heads", "hidden", "prompts", "group",
                "refresh_every", "cache_age", "learning_rate", "weight_decay", "clip", "matching",
                "usage_balance", "reuse_after", "drift_boost", "seed",
            )
        },
    }  # fmt: skip


def layouts(config: PromptTPPConfig, network: PromptNetwork, floors: Floors) -> dict[str, Layout]:
    """Return that weights and their moments are averaged, and the rest as the floors' models have it."""
    c, shapes = config, network.shapes
    counts_from = c.heads * c.width + 2 * network.inputs - c.width  # in the decoder's features
    by_type = {
        "embedding": {0: 0}, "type_out": {1: 0}, "type_bias": {0: 0}, "head": {1: 0}, "head_bias": {0: 0},
        "sharpness": {0: 0}, "hidden": {0: counts_from},
    }  # fmt: skip
    parts = tuple((shape, by_type.get(name, {})) for name, shape in shapes.items() if math.prod(shape))
    return {
        **{
            f"{model.name}.{name}": layout
            for model in floors.models
            for name, layout in model.layouts().items()
        },
        "floor_weights": Layout("means"),
        "forecast_weights": Layout("means"),
        **dict.fromkeys(("weights", "first_moment", "second_moment"), Layout("means", parts=parts)),
        "gradients": Layout("open", parts=parts),
        "prompt_gradients": Layout("open"),
        "progress": Layout("own"),
        "usage": Layout("own"),
        "cache": Layout("empty"),
        "cached": Layout("empty"),
    }
