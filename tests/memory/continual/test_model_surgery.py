"""Model surgery: what its formulas say, and that what a world has left is found again and not changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from living import arrays, check_going_on, check_state, live, numbers_kept, other_generators_left_alone, same
from test_methods import CLASSES, FEATURES, base, examples
from torch import nn

from streamwise.agents.classifier import Classifier, ClassifierConfig
from streamwise.memory.continual.model_surgery import ModelSurgery, orthogonality_loss, refined
from streamwise.memory.continual.replay import Replay


def surgery(learner=None, **changes):
    return ModelSurgery(
        base() if learner is None else learner, **{"rank": 2, "most": 3, "steps": 20, "draws": 5, **changes}
    )


def deep(**changes):
    return surgery(Classifier(FEATURES, CLASSES, ClassifierConfig(8, 2, 0.1, 5)), most=4, **changes)


METHODS = {
    "surgery": surgery,
    "of a deep network": deep,
    "of a trunk that was there": lambda: surgery(warm_up=False),
    "with one adapter": lambda: surgery(most=1),
    "at boundaries alone": lambda: surgery(steps_between=0),
    "with replay": lambda: Replay(surgery(), capacity=12, count=3),
}
every_method = pytest.mark.parametrize("name", METHODS)


def lived(learner, worlds=((0, 1), (2,), (3,)), count=60):
    """Let a learner see worlds of these classes; each but the last is over."""
    for world, classes in enumerate(worlds):
        if world:
            learner.consolidate()
        live(learner, examples(count, seed=world, classes=classes))
    return learner


def moved(before, after):
    return {name for name in after if not torch.equal(before[name], after[name])}


# ---- as every method


@every_method
@settings(max_examples=8, deadline=None, derandomize=True)
@given(split=st.integers(0, 70), boundaries=st.sets(st.integers(0, 69), max_size=5))
def test_it_goes_on_where_it_was(name, split, boundaries):
    check_going_on(METHODS[name], examples(35, classes=[0, 1]) + examples(35, seed=1), split, boundaries)


@every_method
def test_scoring_changes_nothing_and_a_state_is_a_copy(name):
    learner = lived(METHODS[name]())

    def score():
        inputs = torch.randn(30, FEATURES)
        said = [learner.scores(inputs) for _ in range(20)]
        learner.loss(*arrays(examples(7)))
        assert all(torch.equal(one, said[0]) for one in said)

    check_state(learner, score, lambda: lived(learner))


@every_method
def test_what_it_keeps_is_bounded_and_other_generators_are_left_alone(name):
    with other_generators_left_alone():
        learner = METHODS[name]()
        live(learner, examples(100), range(3, 88, 3))
        size = numbers_kept(learner)
        live(learner, examples(200, seed=2), {30, 60, 90, 120})
        assert numbers_kept(learner) == size


@every_method
def test_it_learns_at_once_and_a_class_at_a_time(name):
    inputs, targets = arrays(examples(400, seed=9))
    right = []
    for learner in (METHODS[name](), base()):
        live(learner, examples(600))
        assert (learner.scores(inputs).argmax(1) == targets).float().mean() > 0.5
    for learner in (METHODS[name](), base()):
        lived(learner, count=150)
        learner.consolidate()
        right.append(float((learner.scores(inputs).argmax(1) == targets).float().mean()))
    assert right[0] > right[1] + 0.1


# ---- worlds


def test_the_trunk_is_trained_in_the_first_world_and_adapters_in_those_after_it():
    learner = lived(surgery(), [(0, 1)])
    (adapter,) = learner.model.adapters
    assert not adapter.up.any()
    learner.consolidate()
    trunk = {name: value.clone() for name, value in learner.model.trunk.state_dict().items()}
    live(learner, examples(30, seed=1, classes=[2]))
    same(dict(learner.model.trunk.state_dict()), trunk)
    assert adapter.up.any()
    assert torch.equal(adapter.kept_up[0], torch.zeros(8, 2))


def test_a_trunk_that_was_there_is_never_trained():
    learner = surgery(warm_up=False)
    trunk = {name: value.clone() for name, value in learner.model.trunk.state_dict().items()}
    lived(learner)
    same(dict(learner.model.trunk.state_dict()), trunk)
    assert learner.model.adapters[0].kept_up[0].any()


def test_an_adapter_is_kept_as_it_was_and_the_next_one_goes_on_from_it():
    learner = lived(deep(), [(0, 1), (2,)])
    adapters = list(learner.model.adapters)
    finished = [(adapter.down.clone(), adapter.up.clone()) for adapter in adapters]
    learner.consolidate()
    for adapter, (down, up) in zip(adapters, finished, strict=True):
        assert torch.equal(adapter.down, down)
        assert torch.equal(adapter.up, up)
    live(learner, examples(30, seed=3, classes=[3]))
    for adapter, (down, up) in zip(adapters, finished, strict=True):
        assert torch.equal(adapter.kept_down[1], down)
        assert torch.equal(adapter.kept_up[1], up)
        assert not torch.equal(adapter.up, up)


def test_a_world_in_which_nothing_was_learned_is_none():
    learner = surgery()
    before = learner.state_dict()
    learner.consolidate()
    same(learner.state_dict(), before)
    lived(learner, [(0, 1), (2,)])
    learner.consolidate()
    before = learner.state_dict()
    live(learner, examples(4))  # less than a batch
    learner.consolidate()
    assert learner.model.world == 2
    assert moved(before, learner.state_dict()) == {"batch.targets", "batch.inputs"}


def test_when_there_is_room_for_no_more_adapters_none_changes_and_classes_are_still_learned():
    learner = lived(surgery(most=2), [(0,), (1,)], count=100)
    learner.consolidate()
    before = learner.state_dict()
    live(learner, examples(100, seed=2, classes=[2]))
    learner.consolidate()
    live(learner, examples(100, seed=3, classes=[3]))
    changed = moved(before, learner.state_dict())
    assert changed == {"updates", "surgery.counts"} | {
        f"network.{name}"
        for name in (
            "head.weight", "head.bias", "means", "covariances", "prototypes", "counts", "world_of"
        )
    }  # fmt: skip
    learner.consolidate()
    inputs, targets = arrays(examples(400, seed=9))
    assert (learner.scores(inputs).argmax(1) == targets).float().mean() > 0.7


# ---- the merge


def test_merging_is_a_step_towards_the_mean_of_those_that_are_over():
    adapter = surgery(Classifier(1, 2, ClassifierConfig(1, 1)), rank=1, most=4).model.adapters[0]
    adapter.kept_down[:, 0, 0] = torch.tensor([1.0, 5.0, 100.0])  # of the third, nothing is to be seen
    adapter.kept_up[:, 0, 0] = torch.tensor([0.0, -1.0, 100.0])
    with torch.no_grad():
        adapter.down.fill_(10.0)
        adapter.up.fill_(2.0)
    adapter.merge(2, 0.1)
    assert adapter.down.item() == pytest.approx(0.9 * 10.0 + 0.1 * 3.0)
    assert adapter.up.item() == pytest.approx(0.9 * 2.0 + 0.1 * -0.5)


def test_there_is_one_merge_an_update_and_none_in_the_first_world():
    learner = surgery(most=4, momentum=0.25, warm_up=False)
    learner.step_scales["adapters."] = 0.0  # so that merges are all that moves them
    (adapter,) = learner.model.adapters
    down = adapter.down.clone()
    live(learner, examples(30))
    assert torch.equal(adapter.down, down)
    learner.consolidate()
    learner.consolidate()
    adapter.kept_down[0] = 1.0
    for updates, example in enumerate(examples(20, seed=1)):
        learner.scores(torch.randn(3, FEATURES))
        torch.testing.assert_close(adapter.down.detach(), 1.0 + 0.75 ** (updates // 5) * (down - 1.0))
        learner.learn_one(example)


# ---- the losses


def test_the_loss_is_over_the_classes_of_this_world_alone():
    learner = surgery(orthogonality=0.0)
    lived(learner, [(0, 1), (2, 3)])
    inputs, targets = arrays(examples(5, seed=5, classes=[2]))
    model = learner.model
    logits = model.head(model.features(inputs))[:, 2:].detach()
    expected = nn.functional.cross_entropy(logits, targets - 2)
    loss = learner.losses(inputs, targets)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, model.head.weight)
    assert not gradient[:2].any()
    assert gradient[2:].all(0).any()
    # One that has come back is of this world for as long as it is there.
    inputs, targets = arrays(examples(5, seed=6, classes=[0]))
    (gradient,) = torch.autograd.grad(learner.losses(inputs, targets), model.head.weight)
    assert [bool(row.any()) for row in gradient] == [True, False, True, True]


def test_the_orthogonality_loss_is_that_of_loops():
    means, features = torch.randn(2, 3), torch.randn(4, 3)
    rows = np.concatenate([means.numpy(), features.numpy()]).astype(np.float64)
    expected = 0.0
    for i in range(6):
        alike = [rows[i] @ rows[j] / 0.8 for j in range(6)]
        expected += (np.log(np.exp(alike).sum()) - alike[i]) / 6
    assert float(orthogonality_loss(means, features, 0.8)) == pytest.approx(expected, rel=1e-5)


def test_the_means_of_older_classes_are_in_the_loss():
    one, other = (lived(surgery(orthogonality=weight), [(0, 1), (2,)]) for weight in (0.0, 0.5))
    other.load_state_dict(one.state_dict())
    inputs, targets = arrays(examples(5, seed=5, classes=[2]))
    difference = float((other.losses(inputs, targets) - one.losses(inputs, targets)).detach())
    features = one.model.features(inputs).detach()
    expected = 0.5 * orthogonality_loss(one.model.means[:2], features, 0.8)
    assert difference == pytest.approx(float(expected), rel=1e-4)


# ---- what is known of classes


def test_means_and_covariances_are_those_of_all_samples():
    learner = surgery(warm_up=False)
    learner.step_scales["adapters."] = 0.0
    stream = examples(60, classes=[0, 1])
    live(learner, stream)
    inputs, targets = arrays(stream)
    features = learner.model.features(inputs).detach().numpy()
    for label in (0, 1):
        rows = features[targets.numpy() == label]
        np.testing.assert_allclose(learner.model.means[label], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(learner.model.prototypes[label], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(
            learner.model.covariances[label], np.cov(rows.T, bias=True), atol=1e-4, rtol=1e-4
        )
    assert learner.model.counts.tolist() == [*np.bincount(targets.numpy()).tolist(), 0, 0]


def test_a_class_that_comes_back_is_still_under_its_own_adapter():
    learner = lived(surgery())
    model = learner.model
    assert model.world_of.tolist() == [0, 0, 1, 2]
    means, prototypes, count = model.means.clone(), model.prototypes.clone(), int(model.counts[2])
    inputs, targets = arrays(examples(1, seed=7, classes=[2]))
    model.adapters[0].kept_down[1], model.adapters[0].kept_up[1] = inputs[0], 1.0  # far from the others
    model.observe(inputs, targets)
    under = model.features(inputs, 2).detach()[:, 0]
    assert not torch.equal(under[1], under[2])
    torch.testing.assert_close(model.means[2], means[2] + (under[1] - means[2]) / (count + 1))
    torch.testing.assert_close(model.prototypes[2], prototypes[2] + (under[0] - prototypes[2]) / (count + 1))
    assert model.world_of.tolist() == [0, 0, 1, 2]


def test_fitting_changes_the_head_alone():
    learner = lived(surgery())
    before = learner.state_dict()
    learner._align(10)
    head = {"network.head.weight", "network.head.bias"}
    assert moved(before, learner.state_dict()) == {*head, "surgery.counts"}

    learner = lived(surgery(steps_between=0), [(0, 1), (2,)])
    before = learner.state_dict()
    learner.consolidate()
    kept = {"network.adapters.0.kept_down", "network.adapters.0.kept_up", "surgery.counts"}
    assert moved(before, learner.state_dict()) == head | kept


def test_the_head_is_fitted_to_what_classes_look_like_however_few_or_wide_they_are():
    learner = lived(surgery(steps_between=0, draws=50, step_size=0.5))
    model = learner.model
    model.counts[:] = torch.tensor([9, 9, 0, 9])
    model.means[:] = 3.0 * torch.eye(4, 8)
    model.covariances[:] = 0.0
    model.covariances[1, 1, 1] = 0.04
    row = model.head.weight[2].clone()
    learner._align(200)
    assert model.head(model.means)[[0, 1, 3]][:, [0, 1, 3]].argmax(1).tolist() == [0, 1, 2]
    assert torch.equal(model.head.weight[2], row)  # of a class that is not known
    sizes = torch.linspace(0.1, 1.0, 8)
    model.covariances[0] = 1e9 * torch.outer(sizes, sizes)  # of rank one but for rounding, far above 1e-4
    learner._align(1)
    assert torch.isfinite(model.head.weight).all()


# ---- finding the adapter again


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
def test_refinement_is_the_loop_it_stands_for_and_changes_nothing_a_second_time(leads):
    adapters = len(leads)
    starts = torch.arange(adapters)
    columns = torch.tensor(leads)[:, None].expand(-1, adapters)
    found = refined(starts, columns)
    for start in range(adapters):
        now, rounds, settled = start, 0, False
        while rounds < 4 and not settled:
            rounds += 1
            settled, now = leads[now] == now, leads[now]
        assert int(found[start]) == (now if settled else start)
    assert torch.equal(refined(found, columns), found)


def test_refinement_ends_after_four_rounds():
    chain = torch.tensor([1, 2, 3, 4, 4])[:, None].expand(-1, 5)
    assert refined(torch.arange(5), chain).tolist() == [0, 4, 4, 4, 4]
    looks = 0

    class Counted:
        def gather(self, *arguments):
            nonlocal looks
            looks += 1
            return chain.gather(*arguments)

    refined(torch.arange(5), Counted())
    assert looks == 4


def test_a_prediction_is_that_of_one_sample_and_one_adapter_at_a_time():
    learner = lived(deep(scale=1.0, orthogonality=0.0))
    model = learner.model
    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in model.adapters:  # so that adapters differ, and disagree
            for weight in (adapter.up, adapter.kept_up):
                weight.normal_(std=0.5)
    inputs, changed = 2.0 * torch.randn(60, FEATURES), 0
    said = learner.scores(inputs)
    adapter_of = model.world_of.tolist()
    for row, x in enumerate(inputs):
        under = []
        for number in range(3):
            h, adapters = x, iter(model.adapters)
            for layer in model.trunk:
                if isinstance(layer, nn.Linear):
                    adapter = next(adapters)
                    down = adapter.down if number == 2 else adapter.kept_down[number]
                    up = adapter.up if number == 2 else adapter.kept_up[number]
                    h = layer.weight @ h + layer.bias + up @ (down @ h).relu()
                else:
                    h = layer(h)
            under.append(h.detach())
        cosines = torch.stack([torch.cosine_similarity(under[0], mean, dim=0) for mean in model.prototypes])
        logits = [model.head(features).detach() for features in under]
        start = now = adapter_of[int(cosines.argmax())]
        for _ in range(4):
            last, now = now, adapter_of[int(logits[now].argmax())]
            if last == now:
                break
        chosen = now if last == now else start
        changed += chosen != start
        p = 0.5 * logits[chosen].softmax(0) + 0.5 * (3.0 * cosines).softmax(0)
        torch.testing.assert_close(said[row], p.log(), atol=1e-4, rtol=1e-4)
    assert changed > 3
    torch.testing.assert_close(said.exp().sum(1), torch.ones(60))


def test_a_class_that_has_not_come_is_not_said_and_nothing_is_known_at_first():
    learner = surgery()
    inputs = torch.randn(50, FEATURES)
    torch.testing.assert_close(learner.scores(inputs).exp(), torch.full((50, CLASSES), 0.25))
    lived(learner, [(0,), (2,)])
    said = learner.scores(inputs)
    assert torch.isfinite(said).all()
    assert set(said.argmax(1).tolist()) <= {0, 2}


# ---- what cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0; use 1 or more"),
        ({"most": 0}, "most is 0; use 1 or more"),
        ({"momentum": 1.5}, "momentum is 1.5; use 0 to 1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        surgery(**changes)


def test_a_network_without_a_head_or_without_a_hidden_layer_is_refused():
    learner = base()
    learner.network = nn.Sequential(nn.Linear(FEATURES, 4), nn.ReLU())
    with pytest.raises(ValueError, match="ends with a linear layer"):
        ModelSurgery(learner)
    learner.network = nn.Linear(FEATURES, 4)
    with pytest.raises(ValueError, match="ends with a linear layer"):
        ModelSurgery(learner)
    learner.network = nn.Sequential(nn.Linear(FEATURES, 4))
    with pytest.raises(ValueError, match="no hidden layer"):
        ModelSurgery(learner)
