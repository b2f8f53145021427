"""A compression memory: what is written is read, whatever else is there, and nothing but the bank changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from living import arrays, live, numbers_kept, other_generators_left_alone, same
from scipy import stats
from test_methods import CLASSES, FEATURES, base, examples
from torch import nn

from streamwise.agents.classifier import Classifier, ClassifierConfig
from streamwise.memory.continual.compression_memory import (
    Bank,
    CompressionMemory,
    Compressor,
    Memories,
    made_up_classes,
    matching_loss,
)
from streamwise.memory.continual.replay import Replay
from streamwise.streams import Example

WIDE, MANY = 20, 40  # of the toy with many classes, of which a document has two


def memory(learner=None, **changes):
    sizes = {"block": 7, "vectors": 3, "width": 8, "top": 4, "capacity": 6}
    return CompressionMemory(learner or base(), FEATURES, CLASSES, **{**sizes, **changes})


METHODS = {
    "the newest": memory,
    "a sample": lambda **changes: memory(keep="sample", **changes),
    "a base that learns": lambda **changes: memory(base_scale=0.3, **changes),
    "around replay": lambda **changes: memory(
        Replay(base(), capacity=12, count=3), base_scale=1.0, **changes
    ),
}
every_kind = pytest.mark.parametrize("name", METHODS)


def bits(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def clouds(count, classes, seed=0, empty=0):
    """Return samples of some of the toy's classes, each about a place; `empty` numbers say nothing."""
    centres = torch.randn(MANY, WIDE, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    targets = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=random)]
    places = centres[targets] + 0.5 * torch.randn(count, WIDE, generator=random)
    places[:, :empty] = 2.0 * torch.randn(count, empty, generator=random)
    return places, targets


@pytest.fixture(scope="module")
def trained_weights():
    """Weights from episodes of samples of the first half of the toy's classes; the others are never told."""
    learner = toy()
    learner.train_on(*clouds(400, range(MANY // 2)), episodes=200, documents=32, questions=48)
    return bits(learner.compressor)


def toy(weights=None, **changes):
    plain = Classifier(WIDE, MANY, ClassifierConfig(8, 1))
    learner = CompressionMemory(plain, WIDE, MANY, **{"width": 64, "capacity": 400, **changes})
    if weights is not None:
        learner.compressor.load_state_dict(weights)
    return learner


def written(learner, classes, documents=2, seed=0):
    """Write documents of pairs of the classes, so many of each pair, and return the pair of each."""
    pairs = [classes[start : start + 2] for start in range(0, len(classes), 2)] * documents
    for number, pair in enumerate(pairs):
        learner.write(*clouds(16, pair, seed=1000 * seed + number))
    return pairs


def accuracy(learner, classes):
    inputs, targets = clouds(400, classes, seed=12345)
    return float((learner.scores(inputs).argmax(1) == targets).float().mean())


# ---- as every method


@every_kind
def test_what_it_keeps_is_bounded_and_other_generators_are_left_alone(name):
    with other_generators_left_alone():
        learner = METHODS[name]()
        learner.train_on(torch.rand(40, FEATURES, generator=torch.Generator().manual_seed(0)), episodes=2)
        live(learner, examples(100), range(3, 88, 20))
        size = numbers_kept(learner)
        live(learner, examples(210, seed=2), {30, 60, 90, 120})
        learner._inputs, learner._targets = learner._inputs[:0], learner._targets[:0]
        assert numbers_kept(learner) <= size
        assert len(learner.bank) == 6


@every_kind
def test_it_learns(name):
    learner = METHODS[name](block=16, capacity=100)
    learner.train_on(arrays(examples(200, seed=3))[0], episodes=30)
    live(learner, examples(400))
    inputs, targets = arrays(examples(200, seed=5))
    assert (learner.scores(inputs).argmax(1) == targets).float().mean() > 0.5


def test_training_goes_on_where_it_was_and_depends_on_the_seed():
    inputs = arrays(examples(60))[0]
    whole, first, other = memory(), memory(), memory(seed=1)
    losses = whole.train_on(inputs, episodes=4)
    assert torch.equal(first.train_on(inputs, episodes=4), losses)
    assert not torch.equal(other.train_on(inputs, episodes=4), losses)
    same(first.state_dict(), whole.state_dict())
    again = memory()
    again.load_state_dict(first.state_dict())
    assert torch.equal(again.train_on(inputs, episodes=3), whole.train_on(inputs, episodes=3))


# ---- only the bank changes


def test_base_and_compressor_stay_as_they_are_bit_for_bit():
    learner = memory()
    first = bits(learner.base)
    learner.train_on(*arrays(examples(80, seed=1)), episodes=3)
    same(bits(learner.base), first)
    before = bits(learner.network)
    live(learner, examples(300), {50, 120})
    same(bits(learner.network), before)
    assert learner.updates == 60
    assert len(learner.bank) == 6


def test_a_base_that_is_told_to_learns_and_the_compressor_does_not():
    learner = memory(base_scale=0.5)
    before, compressor = bits(learner.base), bits(learner.compressor)
    live(learner, examples(50))
    assert not torch.equal(learner.base[0].weight, before["0.weight"])
    same(bits(learner.compressor), compressor)


def test_with_an_empty_bank_the_answer_is_the_base_s():
    learner, inputs = memory(), torch.randn(20, FEATURES)
    assert torch.equal(learner.scores(inputs), base().scores(inputs).log_softmax(1))
    number = learner.write(*arrays(examples(5)))
    assert not torch.equal(learner.scores(inputs), base().scores(inputs).log_softmax(1))
    learner.bank.delete(number)
    assert torch.equal(learner.scores(inputs), base().scores(inputs).log_softmax(1))


def test_a_document_is_a_block_or_what_there_is_at_a_boundary():
    learner, stream = memory(), examples(20)
    live(learner, stream)
    learner.consolidate()
    learner.consolidate()  # nothing is open
    assert learner.bank.numbers.tolist() == [0, 1, 2]
    sizes = learner.bank.memories.sizes.sum(1)
    torch.testing.assert_close(sizes, torch.tensor([7.0, 7.0, 6.0]))
    other = memory()
    for part in (stream[:7], stream[7:14], stream[14:]):
        other.write(*arrays(part))
    for one, two in zip(learner.bank.memories, other.bank.memories, strict=True):
        assert torch.equal(one, two)


def test_no_training_after_something_was_written():
    learner = memory()
    live(learner, examples(10))
    with pytest.raises(ValueError, match=r"the bank has 1 documents.*train before"):
        learner.train_on(torch.rand(20, FEATURES))


# ---- compression


def test_vectors_are_means_of_samples_and_labels_in_the_same_shares():
    compressor = Compressor(FEATURES, 8, 3, seed=0)
    inputs, targets = arrays(examples(14))
    labels = nn.functional.one_hot(targets, CLASSES).float()
    found = compressor.compress(inputs.view(2, 7, -1), labels.view(2, 7, -1))
    torch.testing.assert_close(found.sizes.sum(1), torch.full((2,), 7.0))
    torch.testing.assert_close(found.labels.sum(2), torch.ones(2, 3))
    # All that is there is there in the vectors together.
    totals = (found.sizes[:, :, None] * found.labels).sum(1)
    torch.testing.assert_close(totals, labels.view(2, 7, -1).sum(1))
    totals = (found.sizes[:, :, None] * found.vectors).sum(1)
    torch.testing.assert_close(totals, compressor.encode(inputs).view(2, 7, -1).sum(1))
    alone = compressor.compress(inputs[:7][None], labels[:7][None])
    for one, both in zip(alone, found, strict=True):
        torch.testing.assert_close(one[0], both[0])


def test_a_question_is_a_document_of_one_sample():
    compressor = Compressor(FEATURES, 8, 3, seed=0)
    inputs = torch.randn(5, FEATURES)
    found = compressor.compress(inputs[:, None], torch.zeros(5, 1, CLASSES))
    encoded = compressor.encode(inputs)
    torch.testing.assert_close(found.vectors, encoded[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(found.keys, compressor.keys(encoded)[:, None].expand(-1, 3, -1))


def test_samples_in_another_order_are_the_same_document():
    compressor = Compressor(FEATURES, 8, 3, seed=0)
    inputs, targets = arrays(examples(12))
    labels = nn.functional.one_hot(targets, CLASSES).float()
    order = torch.randperm(12)
    found = compressor.compress(inputs[None], labels[None])
    for one, other in zip(found, compressor.compress(inputs[order][None], labels[order][None]), strict=True):
        torch.testing.assert_close(one, other)


# ---- reading


def brute_force(compressor, question, base_logs, memories, top):
    """Return the answer to one question, by the formulas of the module, over loops."""
    z = compressor.encode(question[None])[0]
    q = compressor.keys(z)
    scores = [max(float(q @ key) for key in keys) for keys in memories.keys]
    best = sorted(range(len(scores)), key=lambda document: -scores[document])[:top]
    chances = np.exp([scores[document] / 0.1 for document in best])
    chances /= chances.sum()
    nothing = float((z @ compressor.base_direction + compressor.base_weight).exp())
    total, mixed = nothing, nothing * base_logs.exp().double()
    for document, chance in zip(best, chances, strict=True):
        for vector, label, size in zip(*(part[document] for part in memories[1:]), strict=True):
            weight = float((z @ compressor.reading @ vector).exp()) * float(size) * chance
            total, mixed = total + weight, mixed + weight * label.double()
    return (mixed / total).log().float()


@pytest.mark.parametrize("top", [1, 3, 8, 100])
def test_an_answer_is_that_of_the_formulas(top):
    """With k = all, or more, it is the aggregation of everything."""
    learner = memory(top=top, capacity=8)
    with torch.no_grad():
        learner.compressor.base_direction.normal_()
    for seed in range(8):
        learner.write(*arrays(examples(7, seed=seed)))
    inputs = torch.randn(9, FEATURES)
    base_logs = base().scores(inputs).log_softmax(1)
    expected = [
        brute_force(learner.compressor, question, logs, learner.bank.memories, min(top, 8))
        for question, logs in zip(inputs, base_logs, strict=True)
    ]
    torch.testing.assert_close(learner.scores(inputs), torch.stack(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(learner.scores(inputs).exp().sum(1), torch.ones(9))


def test_the_order_of_documents_means_nothing(trained_weights):
    learner = toy(trained_weights)
    written(learner, range(MANY))
    inputs, _ = clouds(100, range(MANY), seed=7)
    before = learner.scores(inputs)
    order = torch.randperm(len(learner.bank), generator=torch.Generator().manual_seed(0))
    learner.bank.memories = Memories(*(part[order] for part in learner.bank.memories))
    torch.testing.assert_close(learner.scores(inputs), before)


def test_a_document_that_is_deleted_was_never_there():
    stream = [arrays(examples(7, seed=seed)) for seed in range(5)]
    learner, without = memory(), memory()
    for number, document in enumerate(stream):
        assert learner.write(*document) == number
        if number != 2:
            without.write(*document)
    inputs = torch.randn(30, FEATURES)
    assert not torch.equal(learner.scores(inputs), without.scores(inputs))
    learner.bank.delete(2)
    assert torch.equal(learner.scores(inputs), without.scores(inputs))
    assert learner.bank.numbers.tolist() == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="document 2 is not in the bank"):
        learner.bank.delete(2)


def test_if_classes_change_their_names_the_answer_changes_them_too():
    learner, renamed = memory(), memory()
    names = torch.tensor([2, 0, 3, 1])
    for seed in range(5):
        inputs, targets = arrays(examples(7, seed=seed))
        learner.write(inputs, targets)
        renamed.write(inputs, names[targets])
    for one in (learner, renamed):
        for weight in one.base.parameters():
            weight.detach().zero_()  # a base that has no opinion
    inputs = torch.randn(30, FEATURES)
    torch.testing.assert_close(renamed.scores(inputs)[:, names], learner.scores(inputs))


def test_the_true_document_is_among_those_that_are_taken(trained_weights):
    """Recall at k, of questions from classes that no episode had, in a bank of twenty pairs of classes."""
    learner = toy(trained_weights)
    pairs = written(learner, range(MANY), documents=1)
    inputs, targets = clouds(400, range(MANY // 2, MANY), seed=5)
    ranked = learner.compressor.match(inputs, learner.bank.memories).argsort(1, descending=True)
    true = torch.tensor([next(n for n, pair in enumerate(pairs) if label in pair) for label in targets])
    recall = {k: float((ranked[:, :k] == true[:, None]).any(1).float().mean()) for k in (1, 4, 8)}
    assert recall[1] > 0.9  # 0.05 by chance
    assert recall[4] > 0.95
    assert recall[8] > 0.98


def test_ten_times_as_many_unrelated_documents_cost_less_than_two_points(trained_weights):
    related = range(MANY // 2, MANY // 2 + 6)  # no episode had them
    others = [label for label in range(MANY) if label not in related]
    learner = toy(trained_weights)
    written(learner, related, documents=3)
    alone, count = accuracy(learner, related), len(learner.bank)
    for number in range(10 * count):
        start = 2 * number % len(others)
        learner.write(*clouds(16, others[start : start + 2], seed=500 + number))
    assert len(learner.bank) == 11 * count
    assert alone > 0.95
    assert accuracy(learner, related) > alone - 0.02


def test_two_classes_at_a_time_are_all_kept(trained_weights):
    """What a network forgets that is trained in the same order; half of the classes no episode had."""
    kept, plain = toy(trained_weights), Classifier(WIDE, MANY, ClassifierConfig(32, 1, batch_size=5))
    classes = range(MANY // 2 - 4, MANY // 2 + 4)
    for start in range(0, len(classes), 2):
        inputs, targets = clouds(96, classes[start : start + 2], seed=start)
        for input, target in zip(inputs.numpy(), targets.tolist(), strict=True):
            kept.learn_one(Example(input, target))
            for _ in range(10):
                plain.learn_one(Example(input, target))
    assert accuracy(kept, classes) > 0.95
    assert accuracy(plain, classes) < 0.8


# ---- the bank


def numbered(number):
    return Memories(
        torch.full((1, 3, 2), float(number)), torch.zeros(1, 3, 2), torch.zeros(1, 3, 4), torch.ones(1, 3)
    )


def test_the_oldest_go():
    bank = Bank(3, "newest", seed=0)
    for number in range(8):
        bank.write(numbered(number))
    assert bank.numbers.tolist() == [5, 6, 7]
    assert bank.memories.keys[:, 0, 0].tolist() == [5.0, 6.0, 7.0]


def test_or_each_has_the_same_chance_to_stay():
    counts = Counter()
    for seed in range(600):
        bank = Bank(4, "sample", seed)
        for number in range(20):
            bank.write(numbered(number))
        assert bank.memories.keys[:, 0, 0].tolist() == bank.numbers.tolist()
        counts.update(bank.numbers.tolist())
    assert sum(counts.values()) == 4 * 600
    assert stats.chisquare([counts[number] for number in range(20)]).pvalue > 0.001


def test_a_larger_state_and_other_settings_are_refused():
    bank, larger = Bank(3, "newest", seed=0), Bank(4, "newest", seed=0)
    for number in range(4):
        larger.write(numbered(number))
    with pytest.raises(ValueError, match="holds 4 documents, and the capacity is 3"):
        bank.load_state_dict(larger.state_dict())
    with pytest.raises(ValueError, match="keep 'oldest'; use 1 or more, and 'newest' or 'sample'"):
        Bank(3, "oldest", seed=0)
    with pytest.raises(ValueError, match="top is 0"):
        memory(top=0)


# ---- training


def test_the_contrast_is_that_of_loops():
    scores = torch.randn(6, 5)
    has = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    has[2] = False
    losses = []
    for row, right in zip(scores.tolist(), has.tolist(), strict=True):
        if any(right):
            whole = sum(np.exp(score) for score in row)
            losses.append(-np.log(sum(np.exp(s) for s, r in zip(row, right, strict=True) if r) / whole))
    assert float(matching_loss(scores, has)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(matching_loss(scores, torch.zeros_like(has))) == 0.0


def test_documents_that_are_hidden_are_as_if_they_were_not_there():
    learner = memory(top=3, capacity=8)
    for seed in range(6):
        learner.write(*arrays(examples(7, seed=seed)))
    inputs, bank = torch.randn(10, FEATURES), learner.bank.memories
    base_logs = base().scores(inputs).log_softmax(1)
    hidden = torch.zeros(10, 6, dtype=torch.bool)
    hidden[:, [1, 2, 3, 4]] = True  # of three that are taken, two can be seen
    seen = Memories(*(part[[0, 5]] for part in bank))
    torch.testing.assert_close(
        learner.compressor.answer(inputs, base_logs, bank, 3, hidden),
        learner.compressor.answer(inputs, base_logs, seen, 3),
    )
    everything = torch.ones_like(hidden)
    torch.testing.assert_close(
        learner.compressor.answer(inputs, base_logs, bank, 3, everything), base_logs, atol=1e-5, rtol=1e-5
    )


def test_made_up_classes_are_of_neighbours():
    inputs, clusters = clouds(400, range(4))
    found = made_up_classes(inputs, 6, torch.Generator().manual_seed(0))
    assert found.shape == (400,)
    assert len(torch.unique(found)) <= 6
    together = found[:, None] == found
    alike = clusters[:, None] == clusters
    assert together[alike].float().mean() > 2.0 * together[~alike].float().mean()


def test_what_says_nothing_is_learned_to_be_passed_over_for_other_classes_too():
    found = {}
    for episodes in (0, 200):
        learner = toy()
        learner.train_on(*clouds(400, range(MANY // 2), empty=8), episodes=episodes)
        assert not any(weight.requires_grad for weight in learner.compressor.parameters())
        for start in range(MANY // 2, MANY, 2):
            learner.write(*clouds(16, range(start, start + 2), seed=start, empty=8))
        inputs, targets = clouds(400, range(MANY // 2, MANY), seed=5, empty=8)
        found[episodes] = float((learner.scores(inputs).argmax(1) == targets).float().mean())
    assert found[200] > found[0] + 0.1
