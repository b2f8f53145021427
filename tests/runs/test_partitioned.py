"""Runs of several workers, without Ray: what all of them know together, moving it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from displays import Quiet

from streamwise.agents import CountsConfig, PromptTPPConfig
from streamwise.agents.event_merge import average, parameters
from streamwise.cli import main
from streamwise.runs import rebalance as rebalancing
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.event_report import write_event_report
from streamwise.runs.ingest import ingest, load_model, predict
from streamwise.runs.ingest_config import IngestConfig, load_ingest, save_ingest
from streamwise.runs.merged_run import finish_merged, read_merged
from streamwise.runs.partition_worker import Worker
from streamwise.runs.partitioned import ingest_partitioned
from streamwise.runs.partitions import listed, load_arrangement, worker_config
from streamwise.runs.rebalance import rebalance
from streamwise.streams import UsageError

FILES, EVENTS, KEYS = 5, 700, 300  # more keys than fit in memory where one worker knows all


def write_logs(folder, count=EVENTS, keys=KEYS, shared_keys=False, files=FILES):
    """One CSV a partition, the types of each in an order of its own."""
    paths = []
    for number in range(files):
        generator = np.random.default_rng(number)
        times = 1.6e9 + np.cumsum(generator.exponential(20.0, count)) + 1e5 * number * shared_keys
        types, whose = generator.integers(6, size=count), generator.zipf(1.2, count) % keys
        paths.append(folder / f"log{number}.csv")
        name = "" if shared_keys else f"{number}-"
        rows = [f"{t:.3f},t{(k + number) % 6},{name}{u}" for t, k, u in zip(times, types, whose, strict=True)]
        paths[-1].write_text("time,type,key\n" + "\n".join(rows) + "\n")
    return paths


def run_of(paths, out, workers, **changes):
    sources = tuple(f"file:{path}" for path in paths)
    options = {"model": "counts", "interval": 200, "workers": workers, "out": out, **changes}
    given_settings = options.pop("settings", CountsConfig(types=8, keys_in_memory=1024))
    return IngestConfig(sources, given_settings, **options)


def arranged(config, old=None, lost=()):
    config.directory.mkdir(exist_ok=True)
    save_ingest(config.resolved(), config.directory)
    sources, labels = listed(config, () if old is None else old.sources)
    return rebalance(config, sources, labels, config.workers, old, lost)


def advance(config, arrangement, events=None):
    """Let every worker learn so many events, or all; return how many each has."""
    found = []
    for number in range(len(arrangement.workers)):
        mine = worker_config(config, arrangement, number)
        mine.directory.mkdir(parents=True, exist_ok=True)
        found.append(ingest(dataclasses.replace(mine, events=events), display=Quiet).events)
    return found


def key_states(model):
    """What a model of counts knows of each key, by the names of types."""
    found = {}
    for names, rows in model.keys.chunks(1024):
        for name, row in zip(names, rows, strict=True):
            types = {model.type_name(i): float(n) for i, n in enumerate(row["types"][:-1]) if n}
            state = (float(row["events"]), float(row["last_time"]), model.type_name(row["last_type"]))
            found[name] = (*state, types, row["gaps"].tobytes(), int(row["last_gap"]))
    return found


# ---- who reads what ----


def test_a_glob_falls_into_its_files_whose_numbers_stay(tmp_path):
    paths = write_logs(tmp_path, count=3, files=2)
    config = run_of([tmp_path / "*.csv"], tmp_path / "run", 2)
    sources, labels = listed(config)
    assert sources == tuple(f"file:{path}" for path in paths)
    assert labels == tuple(f"{i}:{path}" for i, path in enumerate(paths))
    (tmp_path / "a.csv").write_text("time,type,key\n")
    assert listed(config, sources)[0] == (*sources, f"file:{tmp_path / 'a.csv'}")


# ---- whole runs ----


def test_two_three_and_one_workers_know_what_a_single_run_knows(tmp_path):
    """Partitions hold keys of their own, so that a key's state does not depend on who else is where."""
    paths = write_logs(tmp_path)
    whole = run_of(paths, tmp_path / "whole", 1)
    result = ingest(whole, display=Quiet)
    two = run_of(paths, tmp_path / "run", 2)
    first = arranged(two)
    learned = advance(two, first, 500)
    three = two.with_workers(3)
    second = arranged(three, first)
    assert second.past.events == sum(learned) == 1_000
    moved = set(second.workers[2])
    assert len(moved) == 1
    assert all(set(second.workers[i]) <= set(first.workers[i]) for i in range(2))
    learned += advance(three, second, 300)
    one = two.with_workers(1)
    third = arranged(one, second)
    learned += advance(one, third)
    assert sum(learned) == FILES * EVENTS == result.events
    (directory,) = (worker_config(one, third, 0).directory,)
    model, _ = load_model(directory)
    expected, _ = load_model(tmp_path / "whole")
    assert key_states(model) == key_states(expected)
    assert model.arrays["global_types"].sum() == pytest.approx(expected.arrays["global_types"].sum())
    position = Checkpoints.of(load_ingest(directory)).latest().meta["position"]
    assert position["records"] == FILES * EVENTS
    merged = finish_merged(tmp_path / "run", None)
    assert merged.events == result.events
    assert merged.scores["scored"] == result.scores["scored"]
    assert merged.scores["log_likelihood"] == pytest.approx(result.scores["log_likelihood"], abs=0.5)
    assert {path.name for path in (tmp_path / "run").glob("workers-*")} == {"workers-0003"}


def test_a_single_run_can_be_divided_and_made_one_again(tmp_path):
    paths = write_logs(tmp_path)
    config = run_of(paths, tmp_path / "run", 1)
    ingest(dataclasses.replace(config, events=1_234), display=Quiet)
    before = key_states(load_model(tmp_path / "run")[0])
    first = arranged(config.with_workers(2))
    assert first.past.events == 1_234
    assert not (tmp_path / "run" / "checkpoints").exists()
    for number in range(2):
        directory = worker_config(config, first, number).directory
        assert key_states(load_model(directory)[0]) == before
    learned = advance(config.with_workers(2), first, 400)
    result = ingest_partitioned(config, display=Quiet)
    assert result.events == FILES * EVENTS
    assert sum(learned) == 800
    with pytest.raises(UsageError, match="several workers"):
        ingest(config, display=Quiet)


def test_the_merged_rows_and_scores_are_those_of_all_workers(tmp_path):
    paths = write_logs(tmp_path)
    config = run_of(paths, tmp_path / "run", 2)
    first = arranged(config)
    advance(config, first, 450)
    second = arranged(config.with_workers(3), first)
    advance(config.with_workers(3), second)
    finish_merged(tmp_path / "run", None)
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist()
    merged = read_merged(tmp_path / "run")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    last, scores = rows[-1], finish_merged(tmp_path / "run", None).scores
    assert last["step"] == scores["events"] == FILES * EVENTS
    for name in ("log_likelihood", "type_error", "time_rmse", "coverage_90"):
        assert last[name] == pytest.approx(scores[name], rel=1e-6)
    by_type = np.array(merged.past.scores["by_type"])
    assert by_type[:, 0].sum() == scores["scored"]
    assert sorted(merged.past.names) == [f"t{i}" for i in range(6)]
    files = write_event_report([tmp_path / "run"])
    assert "3,500 events" in files.html.read_text()


def test_refused_records_stay_counted_and_kept(tmp_path):
    paths = write_logs(tmp_path, count=60)
    for path in paths:
        path.write_text(path.read_text() + "broken\n")
    config = run_of(paths, tmp_path / "run", 2)
    first = arranged(config)
    advance(config, first)
    second = arranged(config.with_workers(4), first)
    advance(config.with_workers(4), second)
    result = finish_merged(tmp_path / "run", None)
    assert result.dead_letters == {"malformed": FILES}
    letters = (tmp_path / "run" / "dead_letters.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["partition"] for line in letters) == [
        f"{i}:{path}" for i, path in enumerate(paths)
    ]


def test_keys_that_several_partitions_have_end_no_run(tmp_path):
    """A worker that takes a partition may know its keys from later events; those before them are late."""
    paths = write_logs(tmp_path, shared_keys=True, keys=20)
    config = run_of(paths, tmp_path / "run", 3, lateness=30.0)
    first = arranged(config)
    advance(config, first, 400)
    result = ingest_partitioned(config.with_workers(1), display=Quiet)
    assert result.events + sum(result.dead_letters.values()) == FILES * EVENTS
    assert set(result.dead_letters) == {"late"}
    letters = [json.loads(line) for line in (tmp_path / "run" / "dead_letters.jsonl").open()]
    assert len(letters) == result.dead_letters["late"]


def test_a_lost_worker_leaves_its_partitions_to_the_others(tmp_path):
    paths = write_logs(tmp_path)
    config = run_of(paths, tmp_path / "run", 3)
    first = arranged(config)
    advance(config, first, 200)
    sources, labels = listed(config, first.sources)
    second = rebalance(config, sources, labels, 2, first, lost=[1])
    assert set(first.workers[0]) <= set(second.workers[0])
    assert set(first.workers[2]) <= set(second.workers[1])
    assert sum(advance(config, second)) == FILES * EVENTS - 600


def test_a_worker_that_never_began_is_no_obstacle(tmp_path):
    paths = write_logs(tmp_path)
    config = run_of(paths, tmp_path / "run", 2)
    first = arranged(config)
    mine = worker_config(config, first, 0)
    mine.directory.mkdir(parents=True)
    ingest(mine, display=Quiet)
    second = arranged(config.with_workers(4), first)
    assert second.past.events == 3 * EVENTS
    assert sum(advance(config.with_workers(4), second)) == 2 * EVENTS


@pytest.mark.parametrize("after", ["merge", "_past", "_write_worker", "_sync", "save_arrangement", "tidy"])
def test_a_kill_in_the_middle_leaves_the_old_arrangement_or_the_new(tmp_path, monkeypatch, after):
    class Killed(BaseException):
        pass

    paths = write_logs(tmp_path, count=200)
    config = run_of(paths, tmp_path / "run", 2)
    first = arranged(config)
    advance(config, first, 150)
    three = config.with_workers(3)
    calls, real = [], getattr(rebalancing, after)

    def killing(*arguments):
        calls.append(after)
        found = None if after == "tidy" else real(*arguments)
        if len(calls) == 2 or after not in ("merge", "_write_worker"):
            raise Killed
        return found

    monkeypatch.setattr(rebalancing, after, killing)
    with pytest.raises(Killed):
        arranged(three, first)
    monkeypatch.setattr(rebalancing, after, real)
    holds = load_arrangement(tmp_path / "run")
    is_new = after in ("save_arrangement", "tidy")
    assert holds.generation == (2 if is_new else 1)
    if not is_new:
        holds = arranged(three, holds)
    assert holds.past.events == 300
    assert sum(advance(three, holds)) == FILES * 200 - 300


# ---- averages ----


def prompt_settings():
    return PromptTPPConfig(
        types=8, keys_in_memory=1024, width=16, time_width=4, hidden=16, window=4, hot_keys=8, prompts=4,
        selected=2, rows=2,
    )  # fmt: skip


def test_averaging_gives_equal_parameters_to_workers_that_go_on(tmp_path):
    paths = write_logs(tmp_path, count=3_000, files=2)
    config = run_of(
        paths,
        tmp_path / "run",
        2,
        model="prompt-tpp",
        settings=prompt_settings(),
        follow=True,
        idle_seconds=0.1,
    )
    arrangement = arranged(config)
    workers = [Worker(), Worker()]
    outcomes = [None, None]

    def work(number):
        outcomes[number] = workers[number].run(worker_config(config, arrangement, number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 60.0
        while not all((seen := worker.progress()) and seen.events > 300 for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        shared = [worker.parameters(1) for worker in workers]
        learned = [worker._live.recorder.step for worker in workers]
        models = [worker._live.model for worker in workers]
        like = type(models[0])(config.settings, backend="reference")
        given = average(like, [one.parameters for one in shared], [one.events for one in shared], None)
        time.sleep(0.1)
        assert [worker._live.recorder.step for worker in workers] == learned  # they wait
        # While they do, what they have taken can be looked at.
        for worker, model in zip(workers, models, strict=True):
            lock, worker._live.lock = worker._live.lock, threading.Lock()
            worker._live.lock.acquire()
            assert worker.set_parameters(1, given)
            again = average(like, [parameters(model)], [1.0], None)
            assert set(again.vocabulary) == set(given.vocabulary)
            for name in ("weights", "first_moment"):
                order = average(like, [given, parameters(model)], [0.0, 1.0], None)
                same = average(like, [given, parameters(model)], [1.0, 0.0], None)
                np.testing.assert_allclose(order.arrays[name], same.arrays[name], atol=1e-6)
            worker._live.lock = lock
            lock.release()
        assert not workers[0].set_parameters(1, given)  # once is enough
        while not all((seen := worker.progress()) and seen.events == 3_000 for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [worker.parameters(2).round for worker in workers] == [1, 1]
        assert all(worker.set_parameters(2, None) for worker in workers)
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(60.0)
    assert [(outcome.events, outcome.stopped, outcome.error) for outcome in outcomes] == [
        (3_000, True, None)
    ] * 2


def test_a_worker_that_is_asked_and_then_forgotten_learns_on(tmp_path, monkeypatch):
    monkeypatch.setattr("streamwise.runs.partition_worker._HOLD_SECONDS", 0.3)
    paths = write_logs(tmp_path, count=200, files=2)
    config = run_of(paths, tmp_path / "run", 2, follow=True)
    arrangement = arranged(config)
    worker = Worker()
    thread = threading.Thread(target=worker.run, args=(worker_config(config, arrangement, 0),))
    thread.start()
    while (shared := worker.parameters(1)) is None:  # it has yet to begin
        time.sleep(0.01)
    time.sleep(0.6)
    assert not worker.set_parameters(1, shared.parameters)
    worker.stop()
    thread.join(30.0)
    assert not thread.is_alive()


# ---- the command ----


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_wrong_commands_are_told_in_a_line(tmp_path, capsys):
    one, two, three, four, *_ = (f"file:{path}" for path in write_logs(tmp_path, count=5))
    out = f"--out={tmp_path / 'run'}"
    assert "single partition" in fails(capsys, "ingest", one, "--workers=2", out)
    assert "--workers 2 or fewer" in fails(capsys, "ingest", one, two, "--workers=3", out)
    assert "single partition" in fails(capsys, "ingest", "synthetic:hawkes", "--workers=2", out)
    assert "a pipe" in fails(capsys, "ingest", "stdin:", one, "--workers=2", out)
    assert "--events" in fails(capsys, "ingest", one, two, "--workers=2", "--events=5", out)
    assert "--serve" in fails(capsys, "ingest", one, two, "--workers=2", "--serve=0", out)
    assert "average:SECONDS" in fails(capsys, "ingest", one, two, "--workers=2", "--sync=mean:3", out)
    assert "--workers" in fails(capsys, "ingest", one, two, "--sync=average:3", out)
    assert "--workers" in fails(capsys, "ingest", one, two, "--address=auto", out)
    assert "use 1 or more" in fails(capsys, "ingest", one, two, "--workers=0", out)
    assert "no Ray cluster" in fails(capsys, "ingest", one, two, "--workers=2", "--address=127.0.0.1:1", out)
    assert "--follow waits at the end of a file" in fails(
        capsys, "ingest", "synthetic:hawkes", "--follow", out
    )
    nothing = f"file:{tmp_path}/*.jsonl"
    assert "no file matches" in fails(capsys, "ingest", nothing, "--workers=2", out)
    glob = f"file:{tmp_path}/log?.csv"
    assert "same file" in fails(capsys, "ingest", one, glob, "--workers=2", out)
    ingest(IngestConfig((three, four), CountsConfig(), out=tmp_path / "run"), display=Quiet)
    assert "was made with sources file:" in fails(capsys, "ingest", one, two, "--workers=2", out)
    ingest(IngestConfig((glob,), CountsConfig(), out=tmp_path / "glob"), display=Quiet)
    assert "glob" in fails(capsys, "ingest", glob, "--workers=2", f"--out={tmp_path / 'glob'}")


def test_predict_checkpoints_and_report_find_their_way(tmp_path, capsys):
    paths = write_logs(tmp_path)
    config = run_of(paths, tmp_path / "run", 2)
    first = arranged(config)
    advance(config, first)
    prediction, checkpoint = predict(tmp_path / "run", "4-1")
    assert (prediction.key, checkpoint.meta["step"]) == ("4-1", 2 * EVENTS)
    with pytest.raises(UsageError, match="no event of key"):
        predict(tmp_path / "run", "nobody")
    with pytest.raises(UsageError, match="model for each of its workers"):
        load_model(tmp_path / "run")
    for command in (["checkpoints", str(tmp_path / "run")], ["report", str(tmp_path / "run")]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.count("whole") == 2
    assert "report.html" in said
