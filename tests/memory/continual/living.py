"""Letting learners live through streams of examples, and comparing what they are then."""

from __future__ import annotations

from contextlib import contextmanager

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


def check_going_on(make, stream, split, boundaries):
    """Who loads the state of one that stopped does the rest as one that never did."""
    whole, first, again = make(), make(), make()
    seen = live(whole, stream, boundaries)
    live(first, stream[:split], boundaries)
    again.load_state_dict(first.state_dict())
    later = {number - split for number in boundaries if number >= split}
    assert live(again, stream[split:], later) == seen[split:]
    same(again.state_dict(), whole.state_dict())


def check_state(learner, score, learn):
    """To score changes nothing, and a state that was given stays as it was when more is learned."""
    state = learner.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    score()
    same(learner.state_dict(), kept)
    learn()
    same(state, kept)


@contextmanager
def other_generators_left_alone():
    """Check that a block draws nothing from the generator that others may draw from."""
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    yield
    assert torch.equal(torch.rand(2), expected)


def numbers_kept(learner):
    return sum(value.numel() for value in learner.state_dict().values())
