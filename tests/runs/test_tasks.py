"""Streams as tasks: divided in time and nothing else, and directories that are gone on with."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from tasks_support import TASKS, config, make_events, make_split

from streamwise.agents.neural_tpp import gauss_legendre
from streamwise.agents.tpp_training import event_scores
from streamwise.runs import tasks
from streamwise.runs.task_methods import NEURAL, make_method
from streamwise.runs.task_scores import METRICS
from streamwise.runs.task_split import Events
from streamwise.runs.task_statistics import STATISTICAL
from streamwise.runs.tasks import Unit, load_tasks, read_source, run_tasks, run_unit, summarize, units_of
from streamwise.runs.unit_pool import result_path
from streamwise.streams import UsageError


def parts_of(split):
    return [part for some in zip(split.train, split.validation, split.test, strict=True) for part in some]


# Splits


@pytest.mark.parametrize("by", ["time", "count"])
@pytest.mark.parametrize("count", [420, 3_000])
def test_parts_are_disjoint_in_order_and_cover_the_stream(by, count):
    events = make_events(count)
    split = make_split(events, config(by=by))
    parts = parts_of(split)
    assert len(parts) == 3 * TASKS
    for before, after in itertools.pairwise(parts):
        assert before.start < before.end == after.start
    first = {key: int(np.flatnonzero(events.keys == key)[0]) for key in set(events.keys.tolist())}
    seen = []
    for part in parts:
        scored = set(split.order[part.scored].tolist())
        inside = {
            i
            for i, (time, key) in enumerate(zip(events.times, events.keys, strict=True))
            if part.start <= time < part.end and i != first[key]
        }
        assert scored == inside
        seen += scored
    assert len(seen) == len(set(seen))
    outside = set(range(count)) - set(seen) - set(first.values())
    assert len(outside) <= 2 * max(1, math.ceil(0.001 * count))
    if by == "count":
        sizes = [np.count_nonzero((events.times >= part.start) & (events.times < part.end)) for part in parts]
        windows = np.array(sizes).reshape(TASKS, 3)
        assert np.ptp(windows.sum(1)) <= 2
        assert np.allclose(windows / windows.sum(1, keepdims=True), [0.7, 0.1, 0.2], atol=0.02)
    else:
        lengths = np.diff(split.bounds).reshape(TASKS, 3)
        assert np.allclose(lengths / lengths.sum(), np.array([0.7, 0.1, 0.2]) / TASKS, atol=1e-6)


def test_stray_events_do_not_stretch_the_windows():
    events = make_events(3_000)
    usual = make_split(events, config(by="time")).bounds
    times = events.times.copy()
    times[0], times[-1] = 1.0, times[-1] + 1e9
    strayed = make_split(dataclasses.replace(events, times=times), config(by="time")).bounds
    assert np.allclose(usual, strayed)


def test_every_scored_event_is_in_one_sequence_after_up_to_a_window_of_its_own_past():
    split = make_split(make_events(900, keys=3))
    for part in parts_of(split):
        covered = []
        for begin, first, end in part.chunks.tolist():
            assert len(set(split.keys[begin:end].tolist())) == 1
            assert (np.diff(split.times[begin:end]) >= 0.0).all()
            assert 1 <= first - begin <= split.window
            assert first - begin == min(split.window, first - split.key_starts[first])
            assert end - first <= split.window
            covered += range(first, end)
        assert sorted(covered) == part.scored.tolist()
        for begin, first, end in part.predicted.tolist():
            assert end == first + 1
            assert first in covered
            assert first - begin == min(split.window, first - split.key_starts[first])


def test_batches_hold_every_sequence_once_in_any_order():
    split = make_split(make_events())
    chunks = split.train[0].chunks
    generator = torch.Generator().manual_seed(0)
    for drawn in (None, generator, generator):
        found = np.concatenate(list(split.batches(chunks, 3, drawn)))
        assert sorted(found.tolist()) == sorted(chunks.tolist())


def test_a_part_without_events_is_refused_and_says_what_to_do():
    times = np.concatenate([np.linspace(0.0, 1.0, 300), np.linspace(99.0, 100.0, 300)])
    events = Events(times, np.zeros(600, np.int64), np.zeros(600, np.int64), ("a",), 1)
    with pytest.raises(UsageError, match=r"task 1 of 3 has nothing .* validation part; .* --by count"):
        make_split(events, config(by="time"))
    make_split(events, config(by="count"))


def test_scores_of_parts_add_up_to_the_likelihood_of_the_stream():
    """Every interval is charged once, in full, to the event that ends it, whatever part it began in."""
    events = make_events(300, keys=20)
    split = make_split(events, config(window=64))
    model = make_method("online", "nhp", config().of_methods, split, 0).model
    rule = gauss_legendre(4)
    with torch.no_grad():
        found = sum(
            (scores := event_scores(model, split.batch(part.chunks), rule)).time.sum().item()
            + scores.type.sum().item()
            for part in parts_of(split)
        )
        expected = 0.0
        inside = np.zeros(len(events.times), bool)
        for part in parts_of(split):
            inside[part.scored] = True
        for key in range(events.key_count):
            places = np.flatnonzero(split.keys == key)
            whole = split.batch(np.array([[places[0], places[0] + 1, places[-1] + 1]]))
            scores = event_scores(model, whole, rule)
            expected += (scores.time + scores.type)[0][torch.from_numpy(inside[places[1:]])].sum().item()
    assert found == pytest.approx(expected, rel=1e-5)


# Matrices


def test_figures_of_a_matrix_are_those_of_plain_loops():
    draw = np.random.default_rng(0)
    for higher in (True, False):
        matrix = draw.normal(size=(5, 5))
        matrix[np.triu_indices(5, 2)] = np.nan
        found = summarize(matrix, higher)
        assert found.average == pytest.approx(sum(matrix[i][i] for i in range(5)) / 5)
        assert found.forward == pytest.approx(sum(matrix[i][i + 1] for i in range(4)) / 4)
        lost = 0.0
        for j in range(4):
            column = [matrix[i][j] for i in range(5) if not math.isnan(matrix[i][j])]
            lost += max(column) - column[-1] if higher else column[-1] - min(column)
        assert found.forgetting == pytest.approx(lost / 4)
        assert found.forgetting >= 0.0


def test_a_unit_scores_its_task_those_before_and_the_next(tmp_path):
    found = run_unit(Unit("markov", None, 0), config(out=tmp_path), make_split(make_events()))
    assert set(found["matrices"]) == set(METRICS)
    for matrix in found["matrices"].values():
        known = [[value is not None for value in row] for row in matrix]
        assert known == [[True, True, False], [True, True, True], [True, True, True]]


# Directories


def test_units_are_every_method_once_and_the_neural_ones_for_every_seed():
    units = units_of(config(methods=("all",), seeds=2))
    assert len(units) == len({unit.name for unit in units}) == 2 * 2 * len(NEURAL) + len(STATISTICAL)
    chosen = units_of(config(methods=("online", "counts", "online"), bases=("nhp",), seeds=3))
    assert [unit.name for unit in chosen] == ["counts-seed0", *(f"online-nhp-seed{i}" for i in range(3))]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"methods": ("onlin",)}, r"there is no 'onlin'\. Did you mean 'online'\?"),
        ({"methods": ()}, "--methods names none"),
        ({"bases": ("lstm",)}, "Choose one of: attnhp, nhp"),
        ({"tasks": 1}, "--tasks is 1; use 2 or more"),
        ({"selected": 9}, "--selected is 9, of 4 prompts"),
        ({"time_unit": math.inf}, "--time-unit is inf"),
        ({"address": "auto", "cpus": 1}, "--cpus is of this machine"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(options, match):
    with pytest.raises(UsageError, match=match):
        config(**options)


def log_file(tmp_path, events):
    path = tmp_path / "log.csv"
    columns = (events.times, events.types, events.keys)
    rows = [
        f"{time!r},{'abc'[kind]},{key}"
        for time, kind, key in zip(*(c.tolist() for c in columns), strict=True)
    ]
    path.write_text("\n".join(["time,type,key", *rows]) + "\n")
    return path


def test_a_source_is_read_whole_in_its_order(tmp_path):
    events = make_events()
    path = log_file(tmp_path, events)
    found = read_source(dataclasses.replace(config(), source=f"file:{path}"))
    assert np.array_equal(found.times, events.times)
    names = np.array(found.type_names)[found.types]
    assert (names == np.array(list("abc"))[events.types]).all()
    assert found.key_count == len(set(events.keys.tolist()))
    fewer = read_source(dataclasses.replace(config(events=50), source=f"file:{path}"))
    assert np.array_equal(fewer.times, events.times[:50])
    with pytest.raises(UsageError, match="save it to a file"):
        read_source(dataclasses.replace(config(), source="stdin:?format=csv"))
    path.write_text("time,type,key\n")
    with pytest.raises(UsageError, match="has no events"):
        read_source(dataclasses.replace(config(), source=f"file:{path}"))


def without_ray(monkeypatch):
    """Run units in this process, one after the other."""

    def here(units, pool, console, stop):
        worker = pool.worker(*pool.arguments)
        (pool.directory / "results").mkdir(exist_ok=True)
        for unit in units:
            if not result_path(pool.directory, unit).is_file():
                result_path(pool.directory, unit).write_text(json.dumps(worker.run(unit)))
        return {}

    monkeypatch.setattr(tasks, "run_units", here)


def test_the_same_command_does_what_is_missing_and_another_is_refused(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    path, out = log_file(tmp_path, make_events()), tmp_path / "out"
    given = dataclasses.replace(config(methods=("markov",), out=out), source=f"file:{path}")
    assert run_tasks(given).done == 1
    assert dataclasses.replace(load_tasks(out), out=out) == given.resolved()
    kept = (out / "results" / "markov-seed0.json").read_bytes()

    more = dataclasses.replace(given, methods=("markov", "online"), bases=("nhp",), seeds=2)
    result = run_tasks(more)
    assert (result.done, result.units, result.failed) == (3, 3, {})
    assert (out / "results" / "markov-seed0.json").read_bytes() == kept

    with pytest.raises(UsageError, match=r"made with --steps 4, not 5;"):
        run_tasks(dataclasses.replace(given, steps=5))
    with pytest.raises(UsageError, match=r"made with --step-size 0\.01, not 0\.5;"):
        run_tasks(dataclasses.replace(given, settings=dataclasses.replace(given.settings, step_size=0.5)))
    log_file(tmp_path, make_events(seed=1))
    with pytest.raises(UsageError, match="other events than when"):
        run_tasks(given)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "dead_letters.jsonl").touch()  # what a start leaves that was refused
    assert run_tasks(dataclasses.replace(given, out=tmp_path / "refused")).failed == {}
    with pytest.raises(UsageError, match="holds no result of tasks"):
        run_tasks(dataclasses.replace(given, out=tmp_path / "mine"))
    with pytest.raises(UsageError, match="holds no result of `streamwise tasks`"):
        load_tasks(tmp_path / "mine")
