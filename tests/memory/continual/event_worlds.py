"""Small event models, and windows of events for them, of the tests of methods around event models."""

from __future__ import annotations

import numpy as np

from streamwise.agents.window_tpp import WindowTPP, WindowTPPConfig
from streamwise.streams import Example

TYPES, LENGTH = 3, 5


def base(kind="nhp", batch_size=3, **changes):
    config = WindowTPPConfig(
        **{"base": kind, "width": 4, "length": LENGTH, "unit": 10.0, "batch_size": batch_size, **changes}
    )
    return WindowTPP(TYPES, config)


def windows(count, seed=0, gap=10.0, types=TYPES):
    """Events of a chain of types: the next is often the one after the last."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        steps = random.choice(3, p=[0.1, 0.8, 0.1], size=LENGTH)
        kinds = (random.integers(types) + steps.cumsum()) % types
        gaps = random.exponential(gap, LENGTH)
        gaps[0] = 0.0
        found.append(Example(np.stack([gaps, kinds], axis=1).astype(np.float32), int(kinds[-1])))
    return found
