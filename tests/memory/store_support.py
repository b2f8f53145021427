"""What tests of stores share: small stores, chunks that tell which they are, all that a reader can see."""

from __future__ import annotations

import numpy as np
import pytest

from streamwise.memory.retention import LogThinning, Merge, Reservoir, Ring, Surprise, Use, Window
from streamwise.memory.store import InProcessStore

LENGTH, WIDTH, CAPACITY, TO_A_FILE = 4, 3, 8, 4


RETENTIONS = {
    "ring": Ring,
    "window": lambda: Window(chunks_per_stream=3, time_to_live=60.0),
    "episode": lambda: Window(within_episode=True),
    "reservoir": Reservoir,
    "log-thinning": lambda: LogThinning(window=2),
    "use": lambda: Use(decay=0.9, grace=2),
    "surprise": Surprise,
    "merge": Merge,
}


every_retention = pytest.mark.parametrize("retention", RETENTIONS)


def make(directory=None, retention="ring", capacity=CAPACITY, **changes):
    kept = RETENTIONS[retention]() if isinstance(retention, str) else retention
    settings = {"records_per_file": TO_A_FILE, "directory": directory, "retention": kept, **changes}
    return InProcessStore(LENGTH, WIDTH, capacity, **settings)


def steps_of(number, count=LENGTH):
    """Contents that tell which chunk they are of."""
    return (np.arange(count * WIDTH).reshape(count, WIDTH) / 7.0 + number).astype(np.float32)


def seal(store, number, *, count=LENGTH, **about):
    return store.append(
        steps_of(number, count), **{"first": 10.0 * number, "last": 10.0 * number + count - 1, **about}
    )


def kept_ids(store):
    return sorted(store.ids[store.valid].tolist())


def everything(store):
    """All that a reader can see, by slot."""
    ids = store.ids[store.valid].tolist()
    contents, steps = store.contents(ids)
    return {
        "ids": store.ids.tolist(),
        "summaries": store.summaries[store.valid].tobytes(),
        "contents": contents.tobytes(),
        "steps": steps.tolist(),
        "chunks": [store.chunk(id) for id in ids],
    }


def do(store, number):
    """Do one of some things that a run does, which depend on the number alone."""
    generator = np.random.default_rng(number)
    seal(
        store, number, count=int(generator.integers(1, LENGTH + 1)), stream=int(generator.integers(3)),
        episode=number // 20, priority=float(generator.random()),
    )  # fmt: skip
    ids = kept_ids(store)
    if number % 3 == 0:
        store.used(ids[::3], generator.random(len(ids[::3])))
    if number % 11 == 0:
        store.pin(ids[:1])
    if number % 11 == 6:
        pinned = store.ids[store.column("pins") > 0].tolist()
        store.unpin(pinned[:1])
    if number % 17 == 0:
        free = sorted(store.ids[store.valid & (store.column("pins") == 0)].tolist())
        store.drop(free[1:2])
