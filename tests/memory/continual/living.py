"""Letting learners live through streams of examples, and comparing what they are then."""

from __future__ import annotations

import numpy as np
import torch


def arrays(stream):
    return torch.from_numpy(np.stack([e.features for e in stream])), torch.tensor([e.label for e in stream])


def live(learner, stream, boundaries=()):
    metrics = []
    for number, example in enumerate(stream):
        if number in boundaries:
            learner.consolidate()
        metrics.append(learner.learn_one(example))
    return metrics


def same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
