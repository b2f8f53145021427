"""Methods on tasks: scored without the future, gone on with exactly, and each learns as it says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tasks_support import TASKS, TYPES, config, make_events, make_split

from streamwise.agents import event_model_class
from streamwise.agents.neural_tpp import gauss_legendre
from streamwise.agents.tpp_training import event_scores
from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.task_methods import NEURAL, make_method
from streamwise.runs.task_scores import METRICS
from streamwise.runs.task_split import Events
from streamwise.runs.task_statistics import STATISTICAL
from streamwise.runs.tasks import Unit, run_unit

UNITS = [Unit(name, "nhp", 1) for name in NEURAL] + [Unit("prompt-tpp", "attnhp", 1)]
UNITS += [Unit(name, None, 0) for name in STATISTICAL]
EVERY_UNIT = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


def numbers(cells):
    return np.array([[cell[name] for name in METRICS] for cell in cells])


@EVERY_UNIT
def test_what_comes_later_changes_no_earlier_score_to_the_last_bit(unit):
    """Neither what is learned from a task nor how it is scored."""
    events = make_events()
    split = make_split(events, config(by="time"))
    later = events.times >= split.test[0].end
    types = np.where(later, (events.types + 1) % TYPES, events.types)
    times = events.times.copy()
    last = len(times) - 2
    movable = np.flatnonzero(later)[:-2]
    gaps = np.diff(times)[movable]
    times[movable] += 0.4 * np.minimum(gaps, np.append(gaps[1:], gaps[-1]))
    assert (np.diff(times) >= 0.0).all()
    assert times[last] == events.times[last]
    changed = dataclasses.replace(events, types=types, times=times)

    def scores(of):
        method = make_method(
            unit.method, unit.base, config().of_methods, make_split(of, config(by="time")), 1
        )
        method.learn(0)
        return numbers(method.scores(1))

    assert np.array_equal(scores(events), scores(changed), equal_nan=True)


def test_an_event_is_scored_without_itself_but_not_by_the_leaky_retrieval():
    """The last event of every sequence is another one: what is said of its type's rivals may not move."""
    split = make_split(make_events())
    chunks = split.test[0].predicted
    for name in ("prompt-tpp", "random-retrieval", "frozen-pool", "leaky-retrieval"):
        method = make_method(name, "attnhp", config().of_methods, split, 0)
        method._draw_prompts(0)
        batch = split.batch(chunks)
        other = split.batch(chunks)
        other.sequences.types.scatter_add_(
            1, batch.first[:, None], torch.ones(len(chunks), 1, dtype=torch.int64)
        )
        other.sequences.types.remainder_(TYPES)
        with torch.no_grad():
            one = event_scores(method.model, batch, gauss_legendre(3))
            method._draw_prompts(0)
            two = event_scores(method.model, other, gauss_legendre(3))
        assert torch.equal(one.time, two.time) == (name != "leaky-retrieval")


@EVERY_UNIT
def test_scoring_changes_nothing(unit):
    split = make_split(make_events())
    method = make_method(unit.method, unit.base, config().of_methods, split, unit.seed)
    method.learn(0)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    first, second = numbers(method.scores(TASKS)), numbers(method.scores(TASKS))
    method.silence(0)
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.array_equal(first, second, equal_nan=True)


@EVERY_UNIT
def test_a_unit_that_was_interrupted_ends_as_one_that_was_not(unit, tmp_path):
    split = make_split(make_events())

    class KilledError(Exception):
        pass

    def kill(task):
        if task == 2:
            raise KilledError

    whole = run_unit(unit, config(out=tmp_path / "whole"), split)
    interrupted = config(out=tmp_path / "interrupted")
    with pytest.raises(KilledError):
        run_unit(unit, interrupted, split, kill)
    resumed = run_unit(unit, interrupted, split)
    assert resumed["tensors_restored"] > 0
    assert whole["tensors_restored"] == 0
    for name in ("matrices", "fit", "silence"):
        assert resumed[name] == whole[name]


@EVERY_UNIT
def test_restoring_counts_the_tensors_and_refuses_unmatched_names(unit):
    split = make_split(make_events())
    method = make_method(unit.method, unit.base, config().of_methods, split, unit.seed)
    state = method.state_dict()
    assert method.load_state_dict(state) == len(state) >= 2
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"lacks .*longest_wait.* has also module"):
        method.load_state_dict(prefixed)
    name = next(iter(state))
    with pytest.raises(CheckpointError, match=f"it lacks {name}"):
        method.load_state_dict({key: tensor for key, tensor in state.items() if key != name})


def test_a_pretrained_method_stays_as_it_is_and_a_retrained_one_begins_afresh():
    split = make_split(make_events())
    frozen = make_method("pretrained", "nhp", config().of_methods, split, 0)
    assert frozen.learn(0) is not None
    state = frozen.state_dict()
    assert frozen.learn(1) is None
    assert all(torch.equal(tensor, state[name]) for name, tensor in frozen.state_dict().items())

    untouched = make_method("retrained", "nhp", config().of_methods, split, 0)
    other = make_method("retrained", "nhp", config().of_methods, split, 0)
    other.learn(0)
    for method in (untouched, other):
        method.learn(1)
    assert all(
        torch.equal(x, y)
        for x, y in zip(untouched.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_consolidation_holds_what_earlier_tasks_need():
    split = make_split(make_events())
    method = make_method("ewc", "nhp", config().of_methods, split, 0)
    method.learn(0)
    assert method._penalty().item() == 0.0
    assert all((fisher >= 0.0).all() for fisher in method.fisher.values())
    with torch.no_grad():
        method.model.bias += 0.1
    expected = 0.5 * (method.fisher["bias"] * 0.01).sum().item()
    assert method._penalty().item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.0

    def moved(consolidation):
        settings = dataclasses.replace(config(epochs=1, steps=6).of_methods, consolidation=consolidation)
        settings = dataclasses.replace(
            settings, training=dataclasses.replace(settings.training, weight_decay=0.0, step_size=1e-3)
        )
        method = make_method("ewc", "nhp", settings, split, 0)
        method.learn(0)
        before = method.model.bias.detach().clone()
        better = iter(range(10))
        method._validation = lambda part: next(better)
        method.learn(1)
        return (method.model.bias - before).abs().sum().item()

    assert moved(1e9) < moved(0.0)


def test_a_reservoir_is_bounded_and_holds_every_sequence_with_equal_probability():
    split = make_split(make_events())
    method = make_method("replay", "nhp", config().of_methods, split, 0)
    chunks = np.arange(90).reshape(30, 3)
    counts = np.zeros(30)
    draws = 400
    for seed in range(draws):
        method.reservoir, method.offered = np.zeros((0, 3), np.int64), 0
        for some in (chunks[:10], chunks[10:]):  # two tasks
            method._remember(some, torch.Generator().manual_seed(seed))
        assert len(method.reservoir) == 6
        counts[method.reservoir[:, 0] // 3] += 1
    expected = draws * 6 / 30
    assert np.abs(counts - expected).max() < 4.5 * math.sqrt(expected * 0.8)
    method.reservoir = chunks[:2] + 10_000
    for batch in method._with_replayed(split.train[0].chunks, torch.Generator().manual_seed(0)):
        assert np.count_nonzero(batch[:, 0] >= 10_000) == 2


@pytest.mark.parametrize("name", ["hawkes", "counts"])
def test_streamed_models_learn_as_they_do_in_a_stream(name):
    events = make_events()
    split = make_split(events)
    method = make_method(name, None, config().of_methods, split, 0)
    method.learn(0)
    model = event_model_class(name)(event_model_class(name).Config(types=TYPES), backend="reference")
    model.vocabulary = {kind: i for i, kind in enumerate(events.type_names)}
    model.seen[0] = TYPES
    end = np.searchsorted(events.times, split.train[0].end)
    start = np.searchsorted(events.times, split.train[0].start)
    assert start == 0
    model.learn_many(
        events.times[:end].tolist(),
        [events.type_names[i] for i in events.types[:end]],
        [str(key) for key in events.keys[:end]],
    )
    for key, array in model.arrays.items():
        assert np.allclose(method.model.arrays()[key], array), key


def test_repeating_and_counting_by_hand():
    """One key, a and b in turn, a second apart, then ten: what each says is known."""
    times = np.concatenate([np.arange(60.0), 60.0 + np.arange(40.0)])
    events = Events(times, np.arange(100) % 2, np.zeros(100, np.int64), ("a", "b"), 1)
    split = make_split(events, config(tasks=2))
    repeat = make_method("repeat-last", None, config().of_methods, split, 0)
    repeat.learn(0)
    (cell,) = repeat.scores(1)
    assert cell["type_error_true_time"] == cell["type_error_predicted_time"] == 1.0
    assert cell["time_rmse"] == cell["time_mae"] == 0.0
    assert math.isnan(cell["log_likelihood"])
    markov = make_method("markov", None, config().of_methods, split, 0)
    markov.learn(0)
    (cell,) = markov.scores(1)
    assert cell["type_error_true_time"] == 0.0
    assert cell["time_log_likelihood"] == pytest.approx(-1.0, abs=0.01)  # a rate of 1, a gap of 1
    learned = round(0.35 * 99)  # events of the training part, half of them after the other type
    counts = (learned // 2, (learned - 1) // 2)
    worth = [math.log((n + 5.0 * 0.5) / (n + 5.0)) for n in counts]
    assert cell["type_log_likelihood"] == pytest.approx(np.mean(worth), abs=0.01)
