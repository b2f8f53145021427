"""What holds for every method of continual learning, alone and around another, and what each promises."""

from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from living import arrays, check_going_on, check_state, live, numbers_kept, other_generators_left_alone
from scipy import stats
from torch import nn

from streamwise.agents.classifier import Classifier, ClassifierConfig
from streamwise.memory.continual.answer_style import AnswerStyles
from streamwise.memory.continual.compression_memory import CompressionMemory
from streamwise.memory.continual.ewc import OnlineEWC
from streamwise.memory.continual.key_value_bottleneck import KeyValueBottleneck
from streamwise.memory.continual.model_surgery import ModelSurgery
from streamwise.memory.continual.prioritized_finetuning import (
    PrioritizedFinetuning,
    Sensitivity,
    sensitive_modules,
)
from streamwise.memory.continual.reg_lora import RegLoRA
from streamwise.memory.continual.relation_distillation import RelationDistillation
from streamwise.memory.continual.replay import Replay
from streamwise.memory.continual.reservoir import Reservoir
from streamwise.memory.continual.view_batch import ViewBatch
from streamwise.streams import Example

FEATURES, CLASSES = 6, 4


def base(batch_size=5, seed=0, **changes):
    return Classifier(FEATURES, CLASSES, ClassifierConfig(8, 1, 0.1, batch_size, **changes), seed=seed)


def bottleneck(learner, **changes):
    sizes = {"books": 5, "pairs": 6, "key_width": 3, "warm_up": 20, "key_batch": 8}
    return KeyValueBottleneck(learner, FEATURES, CLASSES, **{**sizes, **changes})


def styles(learner, **changes):
    return AnswerStyles(learner, CLASSES, **{"choices": 3, "groups": 2, "share": 0.4, **changes})


def compressed(learner, **changes):
    sizes = {"block": 5, "vectors": 3, "width": 8, "top": 4, "capacity": 6}
    return CompressionMemory(learner, FEATURES, CLASSES, **{**sizes, **changes})


METHODS = {
    "replay": lambda: Replay(base(), capacity=12, count=4),
    "ewc": lambda: OnlineEWC(base()),
    "finetuning": lambda: PrioritizedFinetuning(
        base(), capacity=12, every=3, steps=2, final_steps=3, batch_size=4
    ),
    "distilled": lambda: PrioritizedFinetuning(
        base(),
        capacity=12,
        every=2,
        steps=2,
        final_steps=3,
        batch_size=4,
        modules=("",),
        distillation=0.5,
    ),
    "bottleneck": lambda: bottleneck(base()),
    "low rank": lambda: RegLoRA(base(), rank=2, most=0.1),
    "views": lambda: ViewBatch(base(), capacity=12, places=4, views=2, rest=2),
    "relations": lambda: RelationDistillation(base(), CLASSES, window=10),
    "styles": lambda: styles(base()),
    "samples mostly in other styles": lambda: styles(base(), share=0.9, seed=3),
    "compressed": lambda: compressed(base()),
    "a sample compressed": lambda: compressed(base(), keep="sample"),
    "compressed, and a base that learns": lambda: compressed(base(), base_scale=0.3),
    "surgery": lambda: ModelSurgery(base(), rank=2, most=3, steps=5, steps_between=1),
    "low rank with replay": lambda: Replay(RegLoRA(base(), rank=2, most=0.1), capacity=12, count=3),
    "finetuning of ewc and replay": lambda: PrioritizedFinetuning(
        OnlineEWC(Replay(base(), capacity=9)), capacity=12, every=3, steps=2, final_steps=3, batch_size=4
    ),
    "replay through a bottleneck": lambda: Replay(bottleneck(base()), capacity=12, count=3),
    "styles of replay": lambda: styles(Replay(base(), capacity=12, count=3)),
    "replay in styles": lambda: Replay(styles(base()), capacity=12, count=3),
    "compressed around replay": lambda: compressed(Replay(base(), capacity=12, count=3), base_scale=1.0),
}
every_method = pytest.mark.parametrize("name", METHODS)


def examples(count, seed=0, classes=range(CLASSES)):
    random = np.random.default_rng(seed)
    labels = random.choice(list(classes), size=count)
    features = 0.5 * random.standard_normal((count, FEATURES)) + np.eye(CLASSES, FEATURES)[labels]
    return [Example(x.astype(np.float32), int(y)) for x, y in zip(features, labels, strict=True)]


# ---- every method


@every_method
@settings(max_examples=8, deadline=None, derandomize=True)
@given(split=st.integers(0, 70), boundaries=st.sets(st.integers(0, 69), max_size=3))
def test_it_goes_on_where_it_was(name, split, boundaries):
    check_going_on(METHODS[name], examples(70), split, boundaries)


@every_method
def test_scoring_changes_nothing_and_a_state_is_a_copy(name):
    learner = METHODS[name]()
    live(learner, examples(43), {20})

    def score():
        learner.scores(torch.randn(30, FEATURES))
        learner.loss(*arrays(examples(7)))

    check_state(learner, score, lambda: live(learner, examples(40, seed=1), {20}))


@every_method
def test_what_it_keeps_is_bounded_and_other_generators_are_left_alone(name):
    with other_generators_left_alone():
        learner = METHODS[name]()
        live(learner, examples(100), range(3, 88, 3))
        size = numbers_kept(learner)
        live(learner, examples(200, seed=2), {30, 60, 90, 120})
        assert numbers_kept(learner) <= size


@every_method
def test_it_learns(name):
    learner = METHODS[name]()
    live(learner, examples(400))
    inputs, targets = arrays(examples(200, seed=5))
    assert (learner.scores(inputs).argmax(1) == targets).float().mean() > 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: ViewBatch(base(), seed=seed),
        lambda seed: RelationDistillation(base(), CLASSES, seed=seed),
        lambda seed: RegLoRA(base(), seed=seed),
        lambda seed: ModelSurgery(base(), steps=5, seed=seed),
        lambda seed: AnswerStyles(base(), CLASSES, seed=seed),
        lambda seed: bottleneck(base(), seed=seed),
    ],
)
def test_the_seed_and_the_count_decide_what_is_drawn(make):
    """Torch looks at half of a seed; what was in the other half was once the seed, and the same for all."""
    learners = [make(seed) for seed in (0, 1)]
    drawn = []
    for learner in learners:
        found = []
        module = sys.modules[type(learner).__module__]
        plain = module.generator_of

        def noted(seed, count, plain=plain, found=found):
            found.append(float(torch.rand(1, generator=plain(seed, count))))
            return plain(seed, count)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "generator_of", noted)
            live(learner, examples(60), {20, 40})
        drawn.append(found)
    assert len(drawn[0]) == len(drawn[1]) > 1
    assert len(set(drawn[0] + drawn[1])) == 2 * len(drawn[0])


def test_two_of_a_name_are_refused():
    twice = Replay(Replay(base()))
    with pytest.raises(ValueError, match="is there twice"):
        twice.state_dict()
    twice.name = "again"
    assert any(key.startswith("again.") for key in twice.state_dict())


# ---- the reservoir


def test_each_sample_has_the_same_chance_to_be_kept():
    counts = np.zeros(40)
    for seed in range(600):
        reservoir = Reservoir(8, seed)
        for number in range(40):
            reservoir.add(torch.tensor([float(number)]), torch.tensor(0))
        assert len(set(reservoir.inputs[:, 0].tolist())) == 8
        counts[reservoir.inputs[:, 0].long().numpy()] += 1
    assert stats.chisquare(counts).pvalue > 0.001


def test_places_are_drawn_evenly_and_once_and_classes_evenly_though_one_is_rare():
    reservoir = Reservoir(50)
    for number in range(50):
        reservoir.add(torch.tensor([float(number)]), torch.tensor(number // 45))  # five of the second
    rows = [reservoir.rows(10) for _ in range(400)]
    assert all(len(set(row.tolist())) == 10 for row in rows)
    assert stats.chisquare(np.bincount(torch.cat(rows).numpy(), minlength=50)).pvalue > 0.001
    labels = Counter(reservoir.targets[reservoir.balanced_rows(2_000)].tolist())
    assert stats.chisquare([labels[0], labels[1]]).pvalue > 0.001
    assert sorted(reservoir.rows(99).tolist()) == list(range(50))


def test_an_empty_reservoir_gives_nothing_and_a_larger_state_is_refused():
    reservoir = Reservoir(3)
    assert len(reservoir.rows(4)) == len(reservoir.balanced_rows(4)) == 0
    larger = Reservoir(4)
    for number in range(4):
        larger.add(torch.ones(2), torch.tensor(number))
    with pytest.raises(ValueError, match="holds 4 samples, and the capacity is 3"):
        reservoir.load_state_dict(larger.state_dict())


# ---- replay and consolidation


def test_replay_is_an_update_of_the_batch_and_what_was_drawn():
    plain, learner = base(), Replay(base(), capacity=50, count=3, seed=4)
    stream = examples(10)
    live(learner, stream)
    # The first update had nothing to replay; of the second, the draw is that of the same reservoir.
    plain.update(*arrays(stream[:5]))
    reservoir = Reservoir(50, seed=4)
    for input, target in zip(*arrays(stream[:5]), strict=True):
        reservoir.add(input, target)
    rows = reservoir.rows(3)
    inputs, targets = arrays(stream[5:])
    plain.update(torch.cat([inputs, reservoir.inputs[rows]]), torch.cat([targets, reservoir.targets[rows]]))
    for one, other in zip(learner.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_consolidation_is_a_pull_in_proportion_to_squared_gradients():
    learner = OnlineEWC(base(batch_size=1), strength=2.0, limit=math.inf, decay=0.5)
    assert float(learner.penalty().detach()) == 0.0
    squares = {name: torch.zeros_like(weight) for name, weight in learner.network.named_parameters()}
    for example in (stream := examples(6)):
        loss = learner.loss(*arrays([example]))
        named = dict(learner.network.named_parameters())
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            squares[name] += gradient.square() / len(stream)
        learner.learn_one(example)
    learner.consolidate()
    for name, square in squares.items():
        torch.testing.assert_close(learner.importance[name], square)
    anchor = {name: weight.detach().clone() for name, weight in learner.network.named_parameters()}
    with torch.no_grad():
        for weight in learner.network.parameters():
            weight.add_(0.3)
    expected = sum(float((square * 0.3**2).sum()) for square in squares.values())  # 2/2 of it
    assert float(learner.penalty().detach()) == pytest.approx(expected, rel=1e-4)
    learner.consolidate()  # nothing has come since: importances fade, and the place is the new one
    torch.testing.assert_close(learner.importance["0.bias"], 0.5 * squares["0.bias"])
    torch.testing.assert_close(learner.anchor["0.bias"], anchor["0.bias"] + 0.3)


def test_however_strong_the_pull_no_weight_is_thrown_past_its_place():
    learner = OnlineEWC(base(), strength=1e9)
    live(learner, examples(60))
    learner.consolidate()
    live(learner, examples(200, seed=1, classes=[0]))
    for name, weight in learner.network.named_parameters():
        assert torch.isfinite(weight).all()
        assert (weight - learner.anchor[name]).abs().max() < 2.0


# ---- finetuning


def test_only_sensitive_modules_are_refreshed_and_statistics_stay():
    learner = base()
    learner.network = nn.Sequential(
        nn.Linear(FEATURES, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    )
    assert sensitive_modules(learner.network) == ("1", "5")
    tuned = PrioritizedFinetuning(learner, every=0, batch_size=8)
    live(tuned, examples(40))
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    tuned.finetune(5)
    moved = {
        name for name, value in learner.network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"1.weight", "1.bias", "5.weight", "5.bias"}
    assert learner.network.training


@pytest.mark.parametrize(("every", "rounds"), [(1, 8), (3, 2), (8, 1), (9, 0), (0, 0)])
def test_rounds_come_every_so_many_updates(every, rounds):
    learner = PrioritizedFinetuning(base(), every=every, steps=1)
    live(learner, examples(44))  # 8 updates, and four that wait
    assert learner.rounds == rounds
    if not rounds:
        plain = base()
        live(plain, examples(44))
        for one, other in zip(learner.network.parameters(), plain.network.parameters(), strict=True):
            assert torch.equal(one, other)
    learner.consolidate()
    assert learner.rounds == rounds + 1


def test_all_modules_after_every_update_are_replay_of_a_batch_of_their_own():
    learner = PrioritizedFinetuning(
        base(), every=1, steps=1, batch_size=6, modules=("",), step_size=0.1, seed=3
    )
    plain, stream, reservoir = base(), examples(20), Reservoir(200, seed=3)
    live(learner, stream)
    for start in range(0, 20, 5):
        batch = arrays(stream[start : start + 5])
        plain.update(*batch)
        for input, target in zip(*batch, strict=True):
            reservoir.add(input, target)
        rows = reservoir.balanced_rows(6)
        plain.update(reservoir.inputs[rows], reservoir.targets[rows])
    for one, other in zip(learner.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_was_said_of_a_sample_is_what_it_is_pulled_to():
    learner = PrioritizedFinetuning(
        base(), capacity=200, every=0, modules=("",), distillation=1e3, step_size=1e-4
    )
    live(learner, examples(100))
    live(learner, examples(200, seed=1, classes=[0]))
    inputs = learner.reservoir.inputs
    off = float((learner.scores(inputs) - learner.said).square().mean())
    learner.finetune(200)
    assert float((learner.scores(inputs) - learner.said).square().mean()) < 0.5 * off


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="has no module 'head'; it has 0, 1, 2"):
        PrioritizedFinetuning(base(), modules=("head",))


def test_the_module_that_a_change_moves_most_is_found():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    sensitivity, random = Sensitivity(network), torch.Generator().manual_seed(0)
    for step in range(600):
        with torch.no_grad():
            for place, module in enumerate(network):
                size = 0.1 if place == 2 and step > 580 else 0.01
                module.weight.add_(size * torch.randn(4, 4, generator=random))
        sensitivity.step()
        if step == 580:
            assert sensitivity.sensitive() == ()
    assert sensitivity.sensitive() == ("2",)


# ---- the bottleneck


def test_it_says_the_mean_of_the_values_of_the_nearest_keys():
    learner = bottleneck(base(), warm_up=0)
    found = learner.bottleneck
    with torch.no_grad():
        found.values.normal_()
    inputs = torch.randn(30, FEATURES)
    z = np.einsum("ne,cek->nck", inputs.numpy(), found.projection.numpy())
    expected = np.zeros((30, CLASSES))
    for row in range(30):
        for book in range(5):
            nearest = ((z[row, book] - found.keys[book].numpy()) ** 2).sum(1).argmin()
            expected[row] += found.values[book, nearest].detach().numpy() / 5
    np.testing.assert_allclose(learner.network(inputs).detach().numpy(), expected, atol=1e-5)
    columns = found.projection.norm(dim=1)
    torch.testing.assert_close(columns, torch.ones_like(columns))


def test_an_update_moves_what_was_fetched_by_its_share_and_nothing_else():
    learner = bottleneck(base(batch_size=1), warm_up=0, step_scale=2.0)
    live(learner, examples(30))
    found = learner.bottleneck
    keys, values = found.keys.clone(), found.values.detach().clone()
    (example,) = stream = examples(1, seed=9)
    inputs, targets = arrays(stream)
    pairs = found.nearest(found.heads(inputs))[:, 0]
    off = learner.network(inputs).softmax(1)[0] - nn.functional.one_hot(targets[0], CLASSES)
    learner.learn_one(example)
    assert torch.equal(found.keys, keys)
    change = found.values.detach() - values
    fetched = torch.zeros(5, 6, dtype=torch.bool)
    fetched[torch.arange(5), pairs] = True
    assert not change[~fetched].any()
    torch.testing.assert_close(change[fetched], (-0.1 * 2.0 / 5 * off).expand(5, -1), atol=1e-6, rtol=1e-4)


def test_keys_follow_the_data_and_most_are_in_use():
    learner = bottleneck(base(), warm_up=0, books=8, pairs=16)
    inputs, _ = arrays(examples(500))
    learner.move_keys(inputs, epochs=5)
    found = learner.bottleneck
    hit = nn.functional.one_hot(found.nearest(found.heads(inputs)), 16).sum(1)
    assert (hit > 0).float().mean() >= 0.9


def test_a_key_that_was_put_elsewhere_is_still_there_after_the_next_step():
    learner = bottleneck(base(), warm_up=0)
    found, inputs = learner.bottleneck, arrays(examples(60))[0]
    found.keys[:] = 100.0  # far from everything: all but the first, to which all fall, are replaced
    found.sums[:] = 100.0
    for _ in range(2):
        found.move_keys(inputs, torch.Generator().manual_seed(0))
        assert found.keys[:, 1:].abs().max() < 20.0


def test_while_it_warms_up_keys_move_and_values_do_not_and_then_the_other_way():
    learner = bottleneck(base(), warm_up=20)
    keys = learner.bottleneck.keys.clone()
    live(learner, examples(20))
    assert not torch.equal(learner.bottleneck.keys, keys)
    assert not learner.bottleneck.values.any()
    keys = learner.bottleneck.keys.clone()
    live(learner, examples(20, seed=1))
    assert torch.equal(learner.bottleneck.keys, keys)
    assert learner.bottleneck.values.any()


def test_eight_clouds_two_at_a_time_are_all_kept():
    """The toy problem of the published code, which a network trained in the same order mostly forgets."""
    quarters = [(1, 1), (3, 2), (3, 1), (2, 3), (3, 3), (1, 2), (1, 3), (2, 1)]
    centres = np.array(quarters) / 4
    random = np.random.default_rng(0)

    def cloud(label, count):
        return [
            Example(x.astype(np.float32), label)
            for x in random.normal(centres[label], 0.035, size=(count, 2))
        ]

    config = ClassifierConfig(hidden_size=32, hidden_layers=1, batch_size=10)
    kept = KeyValueBottleneck(
        Classifier(2, 8, config), 2, 8, books=1, pairs=400, key_width=2, key_batch=100, step_scale=30.0
    )
    kept.bottleneck.projection[:] = torch.eye(2)
    kept.move_keys(torch.rand(20_000, 2))
    network = Classifier(2, 8, config)
    for pair in range(4):
        train = cloud(2 * pair, 100) + cloud(2 * pair + 1, 100)
        for _ in range(5):
            for place in random.permutation(200):
                kept.learn_one(train[place])
                network.learn_one(train[place])
    inputs, targets = arrays([example for label in range(8) for example in cloud(label, 100)])
    assert (kept.scores(inputs).argmax(1) == targets).float().mean() >= 0.99
    assert (network.scores(inputs).argmax(1) == targets).float().mean() < 0.5
