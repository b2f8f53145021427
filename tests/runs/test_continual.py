"""Comparisons of methods of continual learning: understood or refused in a line, gone on with, drawn."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from streamwise.runs import continual
from streamwise.runs.continual import (
    ContinualOptions,
    Unit,
    Worker,
    load_continual,
    protocol_names,
    run_continual,
    run_unit,
    units_of,
)
from streamwise.runs.continual_methods import AROUND, make_learner
from streamwise.runs.continual_report import read_found, write_continual_report
from streamwise.runs.unit_pool import result_path
from streamwise.streams import UsageError
from streamwise.streams.datasets import dataset_stream
from streamwise.streams.regimes import regime_stream

pytest.importorskip("sklearn", reason="data sets need the extra continual")

SPEC = """
name = "small"
seeds = 2
looks = 3
[schedules]
split = "dataset:iris?schedule=split&experiences=3"
recurring = "dataset:iris?schedule=recurring"
[learner]
batch_size = 5
hidden_size = 8
[methods."nothing"]
[methods."mixed"]
mixed = true
[methods."nearest"]
method = "nearest-mean"
[methods."replay and EWC"]
method = ["replay", "ewc"]
replay.capacity = 20
ewc.strength = 10.0
consolidate = "every:30"
learner.step_size = 0.05
"""
TIMES = ("microseconds",)


def written(tmp_path, text=SPEC):
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load_continual(str(path))


def without_times(result):
    return {name: value for name, value in result.items() if name not in TIMES}


# ---- the specification


def test_what_a_method_is_told_is_what_it_has_a_use_for():
    methods = load_continual("digits").methods
    assert methods["FPF at boundaries, all"].told == "boundaries"
    assert methods["k-FPF, all"].told == ""  # no round of fine-tuning at a boundary
    assert methods["EWC at drifts"].told == ""
    assert methods["DKVB, keys of the first"].told == "inputs of the first"


def test_a_folder_of_the_same_name_does_not_stand_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_continual("digits").name == "digits"
    (tmp_path / "others").mkdir()
    with pytest.raises(UsageError, match=r"others/\S+ is not there"):
        load_continual("others")


def test_the_specifications_that_come_with_it_are_understood_and_have_every_method():
    used = set()
    for name in protocol_names():
        spec = load_continual(name)
        assert len(units_of(spec)) == spec.seeds * len(spec.schedules) * len(spec.methods)
        used |= {around for method in spec.methods.values() for around, _ in method.around}
    assert used == set(AROUND)


@pytest.mark.parametrize(
    ("line", "instead", "says"),
    [
        ('name = "small"', "nme = 1", "unknown key 'nme'. Did you mean 'name'?"),
        ("seeds = 2", "seeds = 0", "seeds is 0"),
        ("seeds = 2", 'seeds = "x"', "seeds is 'x': Expected `int`"),
        ("looks = 3", "looks = 0", "looks 0"),
        ("dataset:iris?schedule=recurring", "file:x", "no stream whose world changes"),
        ("schedule=recurring", "schedule=recuring", "Did you mean 'recurring'?"),
        ("schedule=recurring", "schedule=recurring&seed=3", "the seeds of units go there"),
        ("hidden_size = 8", "hiden_size = 8", "Did you mean 'hidden_size'?"),
        ('method = "nearest-mean"', 'method = "nearest"', "Did you mean 'nearest-mean'?"),
        ('["replay", "ewc"]', '["replay", "nothing"]', "goes with no other"),
        ("replay.capacity = 20", "replay.capacity = 0", "capacity is 0"),
        ("replay.capacity = 20", "replay.capacities = 2", "Did you mean 'capacity'?"),
        ("replay.capacity = 20", 'replay.capacity = "x"', "Expected `int`"),
        ("replay.capacity = 20", "reply.capacity = 2", "unknown key 'reply'. Did you mean 'replay'?"),
        ("every:30", "every:0", "consolidate is 'every:0'"),
        ("every:30", "sometimes", "consolidate is 'sometimes'"),
        ("learner.step_size = 0.05", "learner.step_size = -1.0", "step_size -1.0"),
        ('[methods."nearest"]', '[methods."no-thing"]\n[methods."no thing"]', "would be named"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_that_says_where(tmp_path, line, instead, says):
    assert SPEC.count(line) >= 1
    with pytest.raises(UsageError) as refused:
        written(tmp_path, SPEC.replace(line, instead))
    assert says in str(refused.value)
    assert "small.toml" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_method_is_put_around_in_the_order_it_is_written(tmp_path):
    spec = written(tmp_path)
    stream = dataset_stream(spec.schedules["split"])
    learner = make_learner(spec.methods["replay and EWC"], spec.learner, spec.world, stream, 0)
    kinds = []
    while hasattr(learner, "learner"):
        kinds.append(type(learner).__name__)
        learner = learner.learner
    assert kinds == ["ConsolidateEvery", "OnlineEWC", "Replay"]
    assert (learner.config.step_size, learner.config.hidden_size) == (0.05, 8)


# ---- a unit


@pytest.mark.parametrize("unit", [Unit("split", "replay and EWC", 1), Unit("recurring", "mixed", 0)])
@pytest.mark.parametrize("stops", [1, 4])
def test_a_unit_that_was_stopped_ends_as_one_that_was_not(tmp_path, unit, stops):
    spec = written(tmp_path)
    whole = run_unit(unit, spec, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(looks):
        if looks == stops:
            raise Killed

    with pytest.raises(Killed):
        run_unit(unit, spec, tmp_path / "killed", kill)
    again = []
    found = run_unit(unit, spec, tmp_path / "killed", again.append)
    assert again[0] == stops
    assert without_times(found) == without_times(whole)


def test_a_unit_is_what_its_loop_says(tmp_path):
    """The same by hand: every example predicted, then learned, and all experiences tested at the ends."""
    spec = written(tmp_path)
    found = run_unit(Unit("split", "nothing", 1), spec, tmp_path)
    stream = dataset_stream(spec.schedules["split"] + "&seed=1")
    learner = make_learner(spec.methods["nothing"], spec.learner, spec.world, stream, 1)

    def tested():
        scores = [learner.scores(torch.from_numpy(test.features)).argmax(1).numpy() for test in stream.tests]
        return [float((s == t.labels).mean()) for s, t in zip(scores, stream.tests, strict=True)]

    rows, correct = {0: tested()}, []
    for number, example in enumerate(stream, start=1):
        correct.append(learner.learn_one(example)["correct"])
        rows[number] = tested()
    assert found["looks"][0] == 0
    assert len(found["looks"]) == 1 + 3 * 3
    assert {segment[1] for segment in found["segments"]} <= set(found["looks"])
    assert found["scores"] == [rows[look] for look in found["looks"]]
    assert found["online"] == pytest.approx(np.mean(correct))


def test_testing_that_changes_a_learner_is_found(tmp_path, monkeypatch):
    spec = written(tmp_path)
    made = continual.make_learner

    def careless(*arguments):
        learner = made(*arguments)
        plain = learner.scores

        def scores(inputs):
            if len(inputs) > 1:  # tests, and not the stream
                learner.network[0].bias.data[0] += 1e-3
            return plain(inputs)

        learner.scores = scores
        return learner

    monkeypatch.setattr(continual, "make_learner", careless)
    with pytest.raises(RuntimeError, match=r"testing has changed network\.0\.bias"):
        run_unit(Unit("split", "nothing", 0), spec, tmp_path)


def test_drifts_are_found_and_told_of(tmp_path):
    pytest.importorskip("river", reason="drift detectors need the extra continual")
    text = SPEC.replace("iris?schedule=split&experiences=3", "digits?schedule=permuted&experiences=2")
    spec = written(tmp_path, text.replace("every:30", "adwin"))
    found = run_unit(Unit("split", "replay and EWC", 0), spec, tmp_path)
    assert found["drifts"] >= 1
    assert found["told"] == ""


EVENTS = """
name = "events"
seeds = 1
looks = 1
consolidate = "boundaries"
[schedules]
aba = "regimes:synthetic?pattern=ABA&windows=12&tests=4&length=8"
[learner]
width = 4
[methods."nothing"]
[methods."replay"]
method = "replay"
[methods."states"]
method = "state-bottleneck"
warm_up = 20
"""


def test_events_are_scored_by_their_likelihood(tmp_path):
    spec = written(tmp_path, EVENTS)
    found = run_unit(Unit("aba", "nothing", 0), spec, tmp_path)
    stream = regime_stream("regimes:synthetic?pattern=ABA&windows=12&tests=4&length=8&seed=0")
    learner = make_learner(spec.methods["nothing"], spec.learner, spec.world, stream, 0)
    online = [learner.learn_one(window)["log_likelihood"] for window in stream]
    rows = [learner.log_likelihood(torch.from_numpy(test.features)) for test in stream.tests]
    assert found["scores"][-1] == rows
    assert found["online"] == pytest.approx(np.mean(online), rel=1e-6)
    assert found["looks"] == [0, 12, 24, 36]
    states = run_unit(Unit("aba", "states", 0), spec, tmp_path)
    assert states["bytes"] > found["bytes"]
    assert np.isfinite(states["scores"]).all()


@pytest.mark.parametrize(
    ("line", "instead", "says"),
    [
        ('method = "replay"', 'method = "model-surgery"', "'model-surgery' is for streams of classes"),
        ('method = "replay"', 'method = "nearest-mean"', "'nearest-mean' is for streams of classes"),
        ("width = 4", "widht = 4", "Did you mean 'width'?"),
        ("width = 4", 'base = "nph"', "Invalid enum value 'nph'"),
        ("[learner]", 'other = "dataset:digits"\n[learner]', "schedules are of several kinds"),
    ],
)
def test_what_does_not_go_with_events_is_refused(tmp_path, line, instead, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        written(tmp_path, EVENTS.replace(line, instead))
    with pytest.raises(UsageError, match="'state-bottleneck' is for streams of events"):
        written(tmp_path, SPEC.replace('method = "nearest-mean"', 'method = "state-bottleneck"'))


# ---- all of it


def without_ray(monkeypatch):
    def here(units, pool, console, stop):
        (pool.directory / "results").mkdir(exist_ok=True)
        worker = pool.worker(*pool.arguments)
        for unit in units:
            if not result_path(pool.directory, unit).is_file():
                answer = worker.run(unit)
                assert worker.progress() == pool.parts(unit)
                assert pool.worth(answer)
                result_path(pool.directory, unit).write_bytes(msgspec.json.encode(answer))
        return {}

    monkeypatch.setattr(continual, "run_units", here)


def test_it_does_what_is_missing_and_is_drawn(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    spec, out = written(tmp_path), tmp_path / "out"
    with pytest.raises(UsageError, match="is no comparison"):
        run_continual(spec, ContinualOptions(tmp_path))
    few = written(tmp_path, SPEC.replace("seeds = 2", "seeds = 1"))
    assert run_continual(few, ContinualOptions(out)).done == 8
    kept = {path.name: path.read_bytes() for path in (out / "results").iterdir()}
    result = run_continual(spec, ContinualOptions(out))
    assert (result.done, result.units, result.failed) == (16, 16, {})
    assert all((out / "results" / name).read_bytes() == content for name, content in kept.items())
    assert load_continual(str(out)).methods == spec.methods
    with pytest.raises(UsageError, match="other settings of the same names"):
        run_continual(written(tmp_path, SPEC.replace("= 20", "= 30")), ContinualOptions(out))

    _, found = read_found(out)
    assert [(each.schedule, each.method) for each in found] == [
        (schedule, method) for schedule in spec.schedules for method in spec.methods
    ]
    (nothing,) = (each for each in found if (each.schedule, each.method) == ("split", "nothing"))
    scores = nothing.scores()
    for place, unit in enumerate(nothing.units):
        rows = np.array(unit["scores"])[[3, 6, 9]]
        assert scores["final"][place] == pytest.approx(rows[-1].mean())
        lost = rows[0, 0] - rows[2, 0] + rows[1, 1] - rows[2, 1]
        assert scores["forgetting"][place] == pytest.approx(lost / 2)
        assert scores["just learned"][place] == pytest.approx(np.diag(rows).mean())

    files = write_continual_report(out)
    page = files.html.read_text()
    for words in ("replay and EWC", "What they have over nothing", "µs a sample", "recurring", "<svg"):
        assert words in page
    mean = f"{100 * scores['final'].mean():.1f} ("
    assert mean in page
    assert files.png.stat().st_size > 10_000
    assert "http" not in page.replace("http://www.w3.org", "")

    with files.html.with_suffix(".csv").open() as file:
        by_seed = list(csv.DictReader(file))
    assert len(by_seed) == sum(len(each.units) for each in found)
    tables = files.html.with_suffix(".md").read_text()
    for each in found:
        rows = [row for row in by_seed if (row["stream"], row["method"]) == (each.schedule, each.method)]
        assert [float(row["final"]) for row in rows] == each.scores()["final"].tolist()
        assert all((row["forgetting"] == "") == each.is_mixed for row in rows)
        values = 100 * each.scores()["final"]
        row = f"| {each.method} | {values.mean():.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f} |"
        assert row in tables.partition(f"\n## {each.schedule}\n")[2].partition("\n## ")[0]


def test_a_unit_that_cannot_be_is_told_in_a_line(tmp_path):
    spec = written(tmp_path, SPEC.replace("learner.step_size = 0.05", "learner.step_size = 1e30"))
    answer = Worker(spec, Path(tmp_path)).run(Unit("split", "replay and EWC", 0))
    assert isinstance(answer, str)
    assert "not finite" in answer
    assert "try a smaller step_size" in answer


def test_a_directory_without_results_or_a_damaged_one_is_refused(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    spec, out = written(tmp_path, SPEC.replace("seeds = 2", "seeds = 1")), tmp_path / "out"
    run_continual(spec, ContinualOptions(out))
    (path, *others) = (out / "results").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()))[:-9])
    with pytest.raises(UsageError, match="is damaged"):
        read_found(out)
    for other in (path, *others):
        other.unlink()
    with pytest.raises(UsageError, match="has no results yet"):
        read_found(out)
