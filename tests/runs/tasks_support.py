"""What tests of streams as tasks share: events, small settings, and a stream divided by them."""

from __future__ import annotations

import numpy as np

from streamwise.runs.task_split import Events, Split
from streamwise.runs.tasks import TasksConfig

TASKS, TYPES = 3, 3


def make_events(count=420, keys=12, seed=0):
    """Bursts of a few keys, on a clock that begins at 1.5e9 s."""
    draw = np.random.default_rng(seed)
    times = 1.5e9 + np.cumsum(draw.exponential(1.0, count) * draw.choice([0.1, 30.0], count))
    types, of_keys = draw.integers(TYPES, size=count), draw.integers(keys, size=count)
    return Events(times, types, of_keys, tuple("abc"), keys)


def config(**options):
    small = {
        "tasks": TASKS, "by": "count", "epochs": 2, "steps": 4, "batch": 4, "window": 8, "predictions": 5,
        "width": 4, "layers": 1, "heads": 1, "prompts": 4, "selected": 2, "rows": 1, "replayed": 6,
    }  # fmt: skip
    return TasksConfig("file:unused.csv", **{**small, **options})


def make_split(events, settings=None):
    c = settings or config()
    return Split(events, c.tasks, c.by, window=c.window, predictions=c.predictions)
