"""Consolidating without being told of boundaries: every so many samples, or when a detector says so."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from living import live, same
from test_methods import base, examples

from streamwise.memory.continual.consolidation import ConsolidateAtDrift, ConsolidateEvery
from streamwise.memory.continual.ewc import OnlineEWC

pytest.importorskip("river", reason="drift detectors need the extra continual")


class Scripted:
    """A learner whose metric is what the script says, and which counts how often it is consolidated."""

    def __init__(self):
        self.at, self.samples = [], 0

    def learn_one(self, number):
        self.samples += 1
        return {"correct": number, "log_loss": -number}

    def consolidate(self):
        self.at.append(self.samples)

    def state_dict(self):
        return {"scripted.samples": torch.tensor(self.samples)}

    def load_state_dict(self, state):
        self.samples = int(state["scripted.samples"])


def bits(*parts, seed=0):
    """Return 0s and 1s: of each part, so many, with this share of 1s."""
    random = np.random.default_rng(seed)
    return [float(random.random() < share) for count, share in parts for _ in range(count)]


def heard(detector, numbers, **options):
    learner = Scripted()
    around = ConsolidateAtDrift(learner, detector=detector, **options)
    for number in numbers:
        around.learn_one(number)
    return learner.at, around


@pytest.mark.parametrize("samples", [1, 3, 10])
def test_it_is_every_so_many_samples_whatever_comes(samples):
    learner = Scripted()
    around = ConsolidateEvery(learner, samples=samples)
    for _ in range(25):
        around.learn_one(1.0)
    assert learner.at == list(range(samples, 26, samples))
    around.consolidate()  # of others, passed on
    assert learner.at[-1] == 25


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley"])
def test_a_fall_is_found_soon_and_a_rise_is_none(detector):
    better, worse = bits((1_500, 0.3), (1_500, 0.9)), bits((1_500, 0.9), (1_500, 0.3))
    at, _ = heard(detector, worse)
    assert len(at) == 1
    assert 1_500 < at[0] < 1_700
    assert heard(detector, better)[0] == []
    assert len(heard(detector, better, better=False)[0]) == 1
    assert heard(detector, worse, watched="log_loss", better=False)[0] == at


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley"])
def test_where_nothing_changes_there_is_hardly_any(detector):
    assert sum(len(heard(detector, bits((3_000, 0.7), seed=seed))[0]) for seed in range(5)) <= 1


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(split=st.integers(0, 1_200), seed=st.integers(0, 3))
def test_it_goes_on_where_it_was(detector, split, seed):
    numbers = bits((400, 0.9), (400, 0.3), (400, 0.9), seed=seed)
    whole_at, whole = heard(detector, numbers, most=300)
    first_at, first = heard(detector, numbers[:split], most=300)
    learner = Scripted()
    again = ConsolidateAtDrift(learner, detector=detector, most=300)
    again.load_state_dict(first.state_dict())
    for number in numbers[split:]:
        again.learn_one(number)
    assert first_at + learner.at == whole_at
    same(again.state_dict(), whole.state_dict())
    assert len(whole.state_dict()["drift.heard"]) <= 300


def test_around_a_real_learner_a_new_world_is_noticed():
    learner = ConsolidateAtDrift(OnlineEWC(base()), settings={"delta": 0.02})
    live(learner, examples(600))
    assert learner.drifts == 0
    assert not any(importance.any() for importance in learner.learner.importance.values())
    turned = [type(e)(np.ascontiguousarray(e.features[::-1]), e.label) for e in examples(300, seed=1)]
    live(learner, turned)
    assert learner.drifts >= 1
    assert any(importance.any() for importance in learner.learner.importance.values())


def test_settings_that_make_no_sense_are_refused(monkeypatch):
    for options, says in (
        ({"detector": "kswin"}, "no detector 'kswin'"),
        ({"most": 1}, "most is 1"),
    ):
        with pytest.raises(ValueError, match=says):
            ConsolidateAtDrift(Scripted(), **options)
    with pytest.raises(ValueError, match="samples is 0"):
        ConsolidateEvery(Scripted(), samples=0)
    monkeypatch.setitem(sys.modules, "river", None)
    with pytest.raises(ImportError, match="river, which is missing"):
        ConsolidateAtDrift(Scripted())
