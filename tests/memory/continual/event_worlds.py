"""Small event models, and windows of events for them, of the tests of methods around event models."""

from __future__ import annotations

import numpy as np
import torch

from streamwise.agents.window_tpp import WindowTPP, WindowTPPConfig
from streamwise.runs.continual_metrics import lost_on_leaving
from streamwise.streams import Example
from streamwise.streams.regimes import regime_stream

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


def learned(around, pattern):
    """Return the mean log-likelihood of the regimes at the end, and what was lost of them on leaving."""
    stream = regime_stream(f"regimes:synthetic?pattern={pattern}&types=4&length=10&windows=80&seed=3")
    model = WindowTPP(4, WindowTPPConfig(width=6, length=10, unit=stream.unit, step_size=0.02), seed=3)
    learner, samples = around(model), iter(stream)
    tests = [torch.from_numpy(test.features) for test in stream.tests]
    looks, rows = [], []
    for segment in stream.segments:
        while stream.position["example"] < segment.stop:
            learner.learn_one(next(samples))
        learner.consolidate()
        looks.append(segment.stop)
        rows.append([model.log_likelihood(test) for test in tests])
    return np.mean(rows[-1]), lost_on_leaving(looks, rows, stream.segments)
