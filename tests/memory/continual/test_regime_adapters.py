"""Adapters of an event model: that they mix as probabilities do, and what a world adds to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from event_worlds import LENGTH, TYPES, base, learned, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from living import arrays, check_going_on, check_state, live, numbers_kept, other_generators_left_alone, same

from streamwise.agents.classifier import Classifier
from streamwise.agents.tpp_training import SCORING
from streamwise.agents.window_tpp import WindowTPP
from streamwise.memory.continual.ewc import OnlineEWC
from streamwise.memory.continual.prioritized_finetuning import PrioritizedFinetuning
from streamwise.memory.continual.regime_adapters import RegimeAdapters, log_posteriors
from streamwise.memory.continual.replay import Replay

GAPS = 10.0, 1.0, 100.0  # of three regimes, in seconds


def adapted(kind="nhp", changes=None, **settings):
    made = base(kind, **(changes or {}))
    sizes = {"rank": 2, "most": 3, "same": 0.0, "adapter_scale": 3.0}
    return RegimeAdapters(made, **{**sizes, **settings})


METHODS = {
    "adapters": adapted,
    "adapters of attention": lambda: adapted("attnhp"),
    "adapters that merge": lambda: adapted(momentum=0.2, same=0.1),
    "one adapter": lambda: adapted(most=1),
    "adapters after a context": lambda: adapted(changes={"context": 3}),
    "replay in them": lambda: RegimeAdapters(Replay(base(), capacity=9, count=3), rank=2, most=3),
    "replay around them": lambda: Replay(adapted(), capacity=9, count=3),
    "ewc around them": lambda: OnlineEWC(adapted()),
    "finetuning around them": lambda: PrioritizedFinetuning(
        adapted(), capacity=9, every=3, steps=2, final_steps=3, batch_size=4, step_size=0.02, modules=("",)
    ),
}
every_method = pytest.mark.parametrize("name", METHODS)
both = pytest.mark.parametrize("kind", ["nhp", "attnhp"])


def lived(learner, gaps=GAPS, count=30):
    """Let a learner see regimes of these mean gaps; each but the last is over."""
    for world, gap in enumerate(gaps):
        if world:
            learner.consolidate()
        live(learner, windows(count, seed=world, gap=gap))
    return learner


def inside(learner):
    while not isinstance(learner, WindowTPP):
        learner = learner.learner
    return learner


def separate(learner, kind="nhp", **changes):
    """Return a model for each adapter, whose weights hold what the adapter adds."""
    learner.model.eval()
    found = []
    for adapter in learner.model.adapters():
        model = base(kind, **changes)
        weights = dict(learner.model.events.network.state_dict())
        for name, (up, down) in parts_of(learner.model, adapter).items():
            weights[name] = weights[name] + (up if down is None else up @ down)
        model.network.load_state_dict(weights)
        found.append(model)
    learner.model.train()
    return found


def parts_of(model, adapter):
    """Read an adapter as it is written: of each matrix U, then V; of each bias all."""
    found, place, numbers = {}, 0, adapter.detach()

    def take(*shape):
        nonlocal place
        place += math.prod(shape)
        return numbers[place - math.prod(shape) : place].view(shape)

    for name, shape in model.shapes.items():
        *many, rows, columns = shape if len(shape) > 1 else (0, *shape)
        up, down = ((rows, model.rank), (model.rank, columns)) if len(shape) > 1 else (shape, None)
        found[name.removeprefix("network.")] = take(*many, *up), down and take(*many, *down)
    assert place == len(adapter)
    return found


# ---- as every method


@every_method
@settings(max_examples=3, deadline=None, derandomize=True)
@given(split=st.integers(0, 24), boundaries=st.sets(st.integers(0, 23), max_size=3))
def test_it_goes_on_where_it_was(name, split, boundaries):
    check_going_on(METHODS[name], windows(12) + windows(12, seed=1, gap=1.0), split, boundaries)


@every_method
def test_scoring_changes_nothing_and_a_state_is_a_copy(name):
    learner = lived(METHODS[name](), count=13)

    def score():
        inputs, targets = arrays(windows(7))
        said = [(learner.scores(inputs), inside(learner).log_likelihood(inputs)) for _ in range(3)]
        learner.loss(inputs, targets)
        assert all(torch.equal(scores, said[0][0]) and mean == said[0][1] for scores, mean in said)

    check_state(learner, score, lambda: lived(learner))


@every_method
def test_what_it_keeps_is_bounded_and_other_generators_are_left_alone(name):
    with other_generators_left_alone():
        learner = METHODS[name]()
        live(learner, windows(33), {6, 15})
        size = numbers_kept(learner)
        live(learner, windows(60, seed=2), {10, 20, 30, 40})
        assert numbers_kept(learner) == size


# ---- the mixture


@both
def test_one_adapter_is_the_model_itself_to_the_last_bit(kind):
    plain, learner = base(kind), adapted(kind)
    stream, (inputs, _) = windows(20), arrays(windows(9, seed=3))
    assert live(learner, stream) == live(plain, stream)
    for _ in range(2):  # as long as the model is trained, and when it no longer is
        for one, other in zip(learner.learner.event_scores(inputs), plain.event_scores(inputs), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(learner.scores(inputs), plain.scores(inputs))
        learner.consolidate()


@both
@pytest.mark.parametrize("context", [1, 3])
def test_a_window_is_as_likely_as_on_average_over_the_adapters(kind, context):
    """Each event is what joint likelihoods, with it and without, say of it."""
    learner = lived(adapted(kind, changes={"context": context}))
    inputs, _ = arrays(windows(3, seed=5, gap=3.0))
    found = learner.learner.event_scores(inputs)
    models = separate(learner, kind)
    assert len(models) == 3
    each = [model.event_scores(inputs) for model in models]
    assert max(abs(float(a.log_likelihood - b.log_likelihood)) for a in each for b in each) > 0.1
    for row in range(3):
        joint = np.ones(3)  # of all events so far, under each adapter
        for event in range(LENGTH - 1):
            hazards = np.exp([float((s.time + s.compensator)[row, event]) for s in each])
            own = hazards * np.exp([float(s.type[row, event]) for s in each])
            survival = np.exp([-float(s.compensator[row, event]) for s in each])
            if event >= context - 1:
                place = row, event - (context - 1)
                density = (joint * survival * hazards).sum() / joint.sum()
                exact = (joint * survival * own).sum() / joint.sum()
                silence = (joint * survival).sum() / joint.sum()
                assert float(found.time[place]) == pytest.approx(math.log(density), abs=1e-4)
                assert float((found.time + found.type)[place]) == pytest.approx(math.log(exact), abs=1e-4)
                assert float(found.compensator[place]) == pytest.approx(-math.log(silence), abs=1e-4)
            joint = joint * survival * own
    assert found.mask.shape == found.likeliest.shape == (3, LENGTH - context)


@both
def test_what_is_said_of_the_last_event_is_the_mixture_s_hazard(kind):
    learner = lived(adapted(kind))
    inputs, targets = arrays(windows(40, seed=5, gap=3.0))
    said, scores = learner.scores(inputs), learner.learner.event_scores(inputs)
    total, own = said.logsumexp(1), said.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(total, (scores.time + scores.compensator)[:, -1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own - total, scores.type[:, -1], atol=1e-5, rtol=1e-5)
    assert torch.equal(said.argmax(1), scores.likeliest[:, -1])


def test_the_rule_for_the_last_gap_is_the_one_that_scores():
    for ours, theirs in zip(adapted().model.rule, SCORING, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_two_poisson_processes_mix_in_closed_form():
    learner = lived(adapted(), gaps=GAPS[:2])
    rates = torch.tensor([[0.02, 0.03, 0.05], [1.0, 0.2, 0.3]])  # a second; of each adapter, of each type
    model = learner.model
    with torch.no_grad():
        for weight in model.events.parameters():
            weight.zero_()  # so that the head says its bias alone, and log 2 units would be 0.0693
        for place, adapter in enumerate((model.kept[0], model.present)):
            adapter.zero_()
            names = list(model.shapes)
            head = names.index("network.model.head.bias")
            sizes = [sum(pair) for pair in model._sizes()]
            start = sum(sizes[:head])
            adapter[start : start + TYPES] = (10.0 * rates[place]).expm1().log()  # unit: 10 seconds
    inputs, _ = arrays(windows(5, seed=7, gap=2.0))
    scores = learner.learner.event_scores(inputs)
    gaps, kinds = inputs[:, 1:, 0], inputs[:, 1:, 1].long()
    logs = torch.stack([of[kinds].log() - of.sum() * gaps for of in rates]).double()
    joint = logs.sum(2).logsumexp(0) - math.log(2.0)
    torch.testing.assert_close((scores.time + scores.type).sum(1).double(), joint, atol=1e-4, rtol=1e-5)
    first = -torch.stack([-of.sum() * gaps[:, 0] for of in rates]).logsumexp(0) + math.log(2.0)
    torch.testing.assert_close(scores.compensator[:, 0], first, atol=1e-5, rtol=1e-4)


@both
def test_the_density_of_the_next_event_is_one_in_all(kind):
    """Over its times and types, whatever came before; what is left is the survival at the end."""
    learner = lived(adapted(kind))
    (example,) = windows(1, seed=8, gap=3.0)
    edges = np.concatenate([[0.0], np.geomspace(1e-3, 300.0, 400)])
    middles = (edges[1:] + edges[:-1]) / 2
    inputs = torch.from_numpy(np.repeat(example.features[None], len(middles) * TYPES, 0))
    inputs[:, -1, 0] = torch.from_numpy(np.tile(middles, TYPES)).float()
    inputs[:, -1, 1] = torch.arange(TYPES).repeat_interleave(len(middles))
    scores = learner.learner.event_scores(inputs)
    density = (scores.time + scores.type)[:, -1].exp().view(TYPES, -1).double().numpy()
    left = float((-scores.compensator[len(middles) - 1, -1]).exp())
    assert left < 0.9
    assert (density.sum(0) * np.diff(edges)).sum() + left == pytest.approx(1.0, abs=0.01)


def test_an_event_is_predicted_by_what_came_before_it():
    learner = lived(adapted())
    inputs, _ = arrays(windows(4, seed=5))
    later = inputs.clone()
    later[:, 3:] = arrays(windows(4, seed=6, gap=100.0))[0][:, 3:]
    one, other = (learner.learner.event_scores(of) for of in (inputs, later))
    for name in ("time", "type", "compensator"):
        torch.testing.assert_close(getattr(one, name)[:, :2], getattr(other, name)[:, :2])
        assert not torch.allclose(getattr(one, name)[:, 2:], getattr(other, name)[:, 2:])


def test_posteriors_are_alike_at_first_and_then_go_where_the_likelihood_is():
    logs = torch.tensor([[[-1.0, -2.0, -3.0]], [[-1.0, -1.0, -900.0]]])
    shares = log_posteriors(logs).exp()[:, 0]
    torch.testing.assert_close(shares.sum(0), torch.ones(3).double())
    assert shares[:, 0].tolist() == shares[:, 1].tolist() == pytest.approx([0.5, 0.5])
    assert shares[1, 2] == pytest.approx(1.0 / (1.0 + math.exp(-1.0)))


# ---- worlds


@both
def test_the_model_is_trained_in_the_first_world_and_an_adapter_in_those_after_it(kind):
    learner = adapted(kind)
    start = {name: x.clone() for name, x in learner.model.state_dict().items()}
    live(learner, windows(12))
    of_first = {name: x.clone() for name, x in learner.model.state_dict().items()}
    assert torch.equal(of_first["present"], start["present"])
    assert all(not added.any() for added in learner.model.additions(learner.model.present).values())
    learner.consolidate()
    live(learner, windows(12, seed=1, gap=1.0))
    after = learner.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], of_first[name])} == {"present", "kept"}
    assert torch.equal(after["kept"][0], of_first["present"])
    assert not after["kept"][1:].any()
    added = learner.model.additions(learner.model.present)
    assert all(part.any() for part in added.values())
    assert not any("embedding" in name for name in added)
    for name, part in added.items():
        if part.ndim > 1:
            assert torch.linalg.matrix_rank(part.detach(), rtol=1e-4).max() <= 2, name


def test_what_is_kept_is_not_changed_by_later_worlds():
    learner = lived(adapted(most=4), gaps=GAPS[:2])
    finished = learner.model.present.detach().clone()
    learner.consolidate()
    live(learner, windows(30, seed=2, gap=100.0))
    assert torch.equal(learner.model.kept[1], finished)
    assert not torch.equal(learner.model.present, finished)


def test_after_an_update_it_is_pulled_to_the_mean_of_those_that_are_kept():
    plain, merging = (lived(adapted(momentum=m), gaps=GAPS[:1]) for m in (0.0, 0.3))
    for learner in (plain, merging):
        learner.consolidate()
        live(learner, windows(3, seed=1, gap=1.0))  # one update
    mean = plain.model.kept[0]
    expected = 0.7 * plain.model.present + 0.3 * mean
    torch.testing.assert_close(merging.model.present, expected)
    assert not torch.allclose(merging.model.present, plain.model.present)


def test_a_world_begins_with_the_adapter_that_explains_its_first_batch_best():
    learner = lived(adapted(), count=60)
    learner.consolidate()
    assert learner.model.count == 3
    before = learner.model.kept.clone()
    state = learner.state_dict()
    for place, gap in enumerate(GAPS):
        learner.load_state_dict(state)
        batch = windows(3, seed=9, gap=gap)
        means = [model.log_likelihood(arrays(batch)[0]) for model in separate(learner)]
        learner.objective(*arrays(batch))
        assert learner.parent == int(np.argmax(means)) == place
        assert torch.equal(learner.model.present, before[place])
    assert torch.equal(learner.model.kept, before)


def test_a_regime_that_comes_back_takes_its_place_again_and_a_new_one_gets_its_own():
    learner = lived(adapted(most=5, same=0.15), gaps=(10.0, 1.0, 10.0, 100.0), count=90)
    learner.consolidate()
    assert learner.model.count == 3  # of the gaps 10, 1 and 100
    assert learner.model.kept[0].any()
    assert not torch.equal(learner.model.kept[0], adapted().model.present)  # seen further
    assert learner.model.kept[2].any()
    assert not learner.model.kept[3:].any()


def test_without_room_a_world_goes_to_its_parent():
    learner = lived(adapted(most=2), count=60)
    assert learner.model.count == 2
    parent, present = learner.parent, learner.model.present.detach().clone()
    other = learner.model.kept[1 - parent].clone()
    learner.consolidate()
    assert learner.model.count == 2
    assert torch.equal(learner.model.kept[parent], present)
    assert torch.equal(learner.model.kept[1 - parent], other)


def test_the_gain_is_measured_on_batches_before_they_are_learned():
    learner = lived(adapted(), gaps=GAPS[:1])
    learner.consolidate()
    total, counted = 0.0, 0
    for number in range(4):
        batch = windows(3, seed=20 + number, gap=1.0)
        inputs, targets = arrays(batch)
        if number:
            _, present = separate(learner)
            losses = [
                float(model.loss(inputs, targets).detach()) for model in (separate(learner)[0], present)
            ]
            total, counted = total + losses[0] - losses[1], counted + 1
        live(learner, batch)
    assert learner.batches == counted == 3
    assert learner.gain == pytest.approx(total, abs=1e-4)
    assert learner.gain > 0.0


def test_a_world_in_which_nothing_was_learned_is_none():
    learner = adapted()
    before = learner.state_dict()
    learner.consolidate()
    same(learner.state_dict(), before)
    live(learner, windows(12))
    learner.consolidate()
    before = learner.state_dict()
    learner.consolidate()
    same(learner.state_dict(), before)


def test_what_it_cannot_be_put_around_is_refused():
    for learner in (Classifier(4, 2), adapted()):
        with pytest.raises(ValueError, match="put this around an event model"):
            RegimeAdapters(learner)
    with pytest.raises(ValueError, match="most is 0; use 1 or more"):
        adapted(most=0)
    with pytest.raises(ValueError, match=r"momentum is 1\.5; use 0 to 1"):
        adapted(momentum=1.5)


# ---- that it helps


@pytest.mark.parametrize("pattern", ["ABC", "ABA"])
def test_more_is_known_at_the_end_and_hardly_anything_is_lost_on_the_way(pattern):
    mean, lost = learned(lambda learner: learner, pattern)
    mean_of_it, lost_of_it = learned(RegimeAdapters, pattern)
    assert lost > 0.15
    assert lost_of_it < 0.3 * lost
    assert mean_of_it > mean + 0.05
