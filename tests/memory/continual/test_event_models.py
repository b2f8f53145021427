"""Methods of continual learning around an event model, and the bottleneck on its history."""

from __future__ import annotations

import pytest
import torch
from event_worlds import LENGTH, TYPES, base, learned, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from living import arrays, check_going_on, check_state, live, numbers_kept, other_generators_left_alone
from torch import nn

from streamwise.agents.classifier import Classifier
from streamwise.memory.continual.consolidation import ConsolidateEvery
from streamwise.memory.continual.ewc import OnlineEWC
from streamwise.memory.continual.prioritized_finetuning import PrioritizedFinetuning, sensitive_modules
from streamwise.memory.continual.reg_lora import RegLoRA
from streamwise.memory.continual.regime_adapters import RegimeAdapters
from streamwise.memory.continual.replay import Replay
from streamwise.memory.continual.state_bottleneck import StateBottleneck
from streamwise.memory.continual.type_relations import TypeRelations


def bottleneck(learner, **changes):
    sizes = {"warm_up": 12, "books": 3, "pairs": 5, "key_width": 2, "key_windows": 8, "key_epochs": 2}
    return StateBottleneck(learner, **{**sizes, "key_batch": 16, **changes})


def finetuning(learner, **changes):
    sizes = {"capacity": 9, "every": 3, "steps": 2, "final_steps": 3, "batch_size": 4, "step_size": 0.02}
    return PrioritizedFinetuning(learner, **{**sizes, **changes})


METHODS = {
    "replay": lambda: Replay(base(), capacity=9, count=3),
    "replay with attention": lambda: Replay(base("attnhp"), capacity=9, count=3),
    "ewc": lambda: OnlineEWC(base()),
    "ewc with attention": lambda: OnlineEWC(base("attnhp")),
    "finetuning": lambda: finetuning(base()),
    "distilled": lambda: finetuning(base(), modules=("",), distillation=0.5),
    "low rank": lambda: RegLoRA(base(), rank=2, share=0.2, most=0.1),
    "low rank with attention": lambda: RegLoRA(base("attnhp"), rank=2, share=0.2, most=0.1),
    "relations": lambda: TypeRelations(base()),
    "relations with attention": lambda: TypeRelations(base("attnhp")),
    "bottleneck": lambda: bottleneck(base()),
    "bottleneck with attention": lambda: bottleneck(base("attnhp")),
    "bottleneck of what goes on": lambda: bottleneck(base(), base_scale=0.1),
    "replay through a bottleneck": lambda: Replay(bottleneck(base()), capacity=9, count=3),
    "finetuning of ewc around a bottleneck": lambda: finetuning(
        OnlineEWC(bottleneck(base(), base_scale=0.1)), modules=("",)
    ),
    "now and then": lambda: ConsolidateEvery(OnlineEWC(Replay(base(), capacity=9)), samples=7),
}
every_method = pytest.mark.parametrize("name", METHODS)


# ---- every method


@every_method
@settings(max_examples=5, deadline=None, derandomize=True)
@given(split=st.integers(0, 24), boundaries=st.sets(st.integers(0, 23), max_size=2))
def test_it_goes_on_where_it_was(name, split, boundaries):
    check_going_on(METHODS[name], windows(24), split, boundaries)


@every_method
def test_scoring_changes_nothing_and_a_state_is_a_copy(name):
    learner = METHODS[name]()
    live(learner, windows(25), {14})

    def score():
        inputs, targets = arrays(windows(7))
        learner.scores(inputs)
        learner.loss(inputs, targets)

    check_state(learner, score, lambda: live(learner, windows(20, seed=1), {10}))


@every_method
def test_what_it_keeps_is_bounded_and_other_generators_are_left_alone(name):
    with other_generators_left_alone():
        learner = METHODS[name]()
        live(learner, windows(33), {6, 15})
        size = numbers_kept(learner)
        live(learner, windows(60, seed=2), {10, 20, 30})
        assert numbers_kept(learner) == size


@every_method
def test_it_learns(name):
    learner = METHODS[name]()
    inputs, targets = arrays(windows(100, seed=5))
    before = float(learner.loss(inputs, targets).detach())
    live(learner, windows(150))
    assert float(learner.loss(inputs, targets).detach()) < before - 0.2


def test_finetuning_refreshes_the_head_of_intensities_and_distils_what_was_said_of_the_last_event():
    for kind in ("nhp", "attnhp"):
        assert sensitive_modules(base(kind).network) == ("model.head",)
    tuned = finetuning(base(), every=0, capacity=50)
    live(tuned, windows(9))
    before = {name: value.clone() for name, value in tuned.network.state_dict().items()}
    tuned.finetune(3)
    after = tuned.network.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"model.head.weight", "model.head.bias", "model.head.log_sharpness"}
    fresh = finetuning(base(), every=0, capacity=50, modules=("",))
    first = windows(3)
    said = fresh.scores(arrays(first)[0])
    live(fresh, first)
    torch.testing.assert_close(fresh.said, said)
    assert fresh.said.shape == (3, TYPES)


# ---- the bottleneck on the history


@pytest.mark.parametrize("kind", ["nhp", "attnhp"])
def test_zero_values_leave_the_base_as_it_is_to_the_last_bit(kind):
    plain, learner = base(kind), bottleneck(base(kind), warm_up=30)
    stream = windows(30)
    assert live(learner, stream) == live(plain, stream)
    assert learner.model.open
    inputs, targets = arrays(windows(20, seed=3))
    assert torch.equal(learner.scores(inputs), plain.scores(inputs))
    assert torch.equal(learner.loss(inputs, targets), plain.loss(inputs, targets))
    for name, weight in plain.network.model.state_dict().items():
        assert torch.equal(learner.model.base.state_dict()[name], weight)


@pytest.mark.parametrize("kind", ["nhp", "attnhp"])
def test_values_of_the_nearest_keys_are_added_to_log_intensities(kind):
    learner = bottleneck(base(kind))
    live(learner, windows(15))
    found = learner.model.bottleneck
    with torch.no_grad():
        found.values.normal_(generator=torch.Generator().manual_seed(0))
    inputs, targets = arrays(windows(4, seed=3))
    sequences = learner.network.sequences(inputs)
    states = learner.model.encodings(sequences)
    offsets = torch.zeros(4, LENGTH + 1, TYPES)
    for row in range(4):
        for seen in range(LENGTH + 1):
            for book in range(3):
                head = states[row, seen] @ found.projection[book]
                nearest = (found.keys[book] - head).square().sum(1).argmin()
                offsets[row, seen] += found.values[book, nearest].detach() / 3
    of_base = base(kind)
    of_base.network.model.load_state_dict(learner.model.base.state_dict())
    expected = of_base.scores(inputs) + offsets[:, LENGTH - 1]  # what was seen before the last event
    torch.testing.assert_close(learner.scores(inputs), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(learner.loss(inputs, targets), of_base.loss(inputs, targets))
        rates = learner.model.intensities(
            learner.model.remember(sequences),
            sequences.times + 3.0,
            torch.arange(1, LENGTH + 1).expand(4, -1),
        )
    plain = of_base.network.model
    with torch.no_grad():
        of_plain = plain.intensities(
            plain.remember(sequences), sequences.times + 3.0, torch.arange(1, LENGTH + 1).expand(4, -1)
        )
    torch.testing.assert_close(rates, of_plain * offsets[:, 1:].exp(), atol=1e-6, rtol=1e-5)
    assert (rates > 0.0).all()


@pytest.mark.parametrize("kind", ["nhp", "attnhp"])
def test_a_state_is_that_of_the_history_alone(kind):
    """Of what was seen, whatever comes after; and of the encoder, not of what the base becomes."""
    learner = bottleneck(base(kind), base_scale=1.0)
    live(learner, windows(12))
    one, two = arrays(windows(2, seed=1))[0]
    two = torch.cat([one[:3], two[3:]])
    states = learner.model.encodings(learner.network.sequences(torch.stack([one, two])))
    torch.testing.assert_close(states[0, :4], states[1, :4])
    assert not torch.allclose(states[0, 4:], states[1, 4:])
    weights = {name: weight.clone() for name, weight in learner.model.base.state_dict().items()}
    live(learner, windows(12, seed=2))
    assert any(not torch.equal(weights[name], x) for name, x in learner.model.base.state_dict().items())
    again = learner.model.encodings(learner.network.sequences(torch.stack([one, two])))
    assert torch.equal(states, again)


def test_an_update_moves_the_values_of_the_histories_it_saw_and_nothing_else():
    learner = bottleneck(base(batch_size=1), books=4, pairs=8)
    live(learner, windows(40))
    assert learner.model.open
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    (example,) = windows(1, seed=9)
    found = learner.model.bottleneck
    states = learner.model.encodings(learner.network.sequences(arrays([example])[0]))[0, 1:LENGTH]
    pairs = found.nearest(found.heads(states))  # after each event but the last, which nothing follows
    fetched = torch.zeros(4, 8, dtype=torch.bool)
    fetched[torch.arange(4)[:, None], pairs] = True
    assert fetched.sum() < 17
    learner.learn_one(example)
    after = learner.network.state_dict()
    values = "model.bottleneck.values"
    assert [name for name in after if not torch.equal(after[name], before[name])] == [values]
    assert (after[values] != before[values]).any(2).equal(fetched)


def test_while_it_warms_up_values_stay_and_the_base_learns_and_then_the_other_way():
    learner = bottleneck(base(), warm_up=12)
    start = learner.model.base.weight.detach().clone()
    live(learner, windows(12))
    weight = learner.model.base.weight.detach().clone()
    assert not torch.equal(weight, start)
    assert not learner.model.bottleneck.values.any()
    for name, value in learner.model.encoder.state_dict().items():
        assert torch.equal(value, learner.model.base.state_dict()[name])
    keys = learner.model.bottleneck.keys.clone()
    live(learner, windows(12, seed=1))
    assert torch.equal(learner.model.base.weight, weight)
    assert learner.model.bottleneck.values.any()
    assert torch.equal(learner.model.bottleneck.keys, keys)


def test_the_base_may_go_on_slowly():
    fast, slow = (bottleneck(base(), base_scale=scale) for scale in (1.0, 0.01))
    for learner in (fast, slow):
        live(learner, windows(12))
    start = slow.model.base.weight.detach().clone()
    assert torch.equal(start, fast.model.base.weight)
    for learner in (fast, slow):
        live(learner, windows(3, seed=1))
    of_slow, of_fast = (learner.model.base.weight.detach() - start for learner in (slow, fast))
    torch.testing.assert_close(of_slow, 0.01 * of_fast, atol=1e-7, rtol=1e-3)
    assert of_fast.any()


def test_a_boundary_ends_warm_up_once_there_was_any():
    learner = bottleneck(base(), warm_up=1_000)
    learner.consolidate()
    assert not learner.model.open
    live(learner, windows(6))
    learner.consolidate()
    assert learner.model.open
    keys = learner.model.bottleneck.keys.clone()
    learner.consolidate()
    assert torch.equal(learner.model.bottleneck.keys, keys)


def test_most_keys_are_in_use_where_they_have_been():
    learner = bottleneck(base(), warm_up=60, key_windows=60, key_epochs=10, pairs=8)
    live(learner, windows(60))
    found = learner.model.bottleneck
    states = learner.model.encodings(learner.network.sequences(arrays(windows(60))[0]))[:, 1:].flatten(0, 1)
    hit = nn.functional.one_hot(found.nearest(found.heads(states)), 8).sum(1)
    assert (hit > 0).float().mean() >= 0.9


def test_weights_that_came_after_it_are_not_for_ewc_to_hold():
    learner = RegimeAdapters(OnlineEWC(base()))
    with pytest.raises(ValueError, match="name it after what changes the network"):
        live(learner, windows(3))


def test_what_is_no_model_of_events_is_refused():
    with pytest.raises(ValueError, match="put this around an event model"):
        StateBottleneck(Classifier(4, 2))
    with pytest.raises(ValueError, match="key_windows is 0; use 1 or more"):
        bottleneck(base(), key_windows=0)


# ---- that it helps


def test_more_is_known_at_the_end_and_less_is_lost_on_the_way():
    mean, lost = learned(lambda learner: learner, "ABC")
    assert lost > 0.2
    for around in (
        lambda learner: Replay(learner, capacity=50, count=4),
        lambda learner: bottleneck(learner, warm_up=80, books=16, pairs=64, key_windows=64, key_epochs=10),
    ):
        mean_of_it, lost_of_it = learned(around, "ABC")
        assert mean_of_it > mean + 0.05
        assert lost_of_it < 0.3 * lost
