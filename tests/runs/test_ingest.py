"""Runs on events: going on, what may change, what is refused, and predictions beside a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from displays import Quiet

from streamwise.agents import CountsConfig, HawkesConfig
from streamwise.cli import main
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.ingest import ingest, load_model, predict
from streamwise.runs.ingest_config import IngestConfig, load_ingest
from streamwise.streams import UsageError
from streamwise.streams.dead_letters import DeadLetterLimitError


def write_log(path, count=3_000, keys=1_500, start=0, mode="w"):
    generator = np.random.default_rng(start)
    with path.open(mode) as file:
        if mode == "w":
            file.write("time,type,key\n")
        for i in range(start, start + count):
            file.write(
                f"{1.6e9 + 10.0 * i},{'abcd'[generator.integers(4)]},user {generator.integers(keys)}\n"
            )
    return path


@pytest.fixture
def source(tmp_path):
    return f"file:{write_log(tmp_path / 'log.csv')}"


def config(source, out, **changes):
    # Fewer keys in memory than there are, so that many are on disk.
    return IngestConfig(
        (source,), HawkesConfig(types=8, keys_in_memory=1024), model="hawkes", out=out, **changes
    )


def state(directory):
    found = Checkpoints.of(directory).latest()
    tensors = {name: tensor for name, tensor in found.state.items() if name != "keys.counters"}
    return tensors, found.meta["recorder"]["scores"], found.meta["position"]["partitions"]


def assert_same(one, other):
    (tensors, scores, position), (tensors2, scores2, position2) = state(one), state(other)
    assert tensors.keys() == tensors2.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, tensors2[name])] == []
    assert scores == scores2
    assert position == position2


def test_the_same_command_goes_on_where_the_run_was(tmp_path, source):
    whole = ingest(config(source, tmp_path / "whole"), display=Quiet)
    for events in (700, 1_900, 2_000):
        assert ingest(config(source, tmp_path / "cut", events=events), display=Quiet).events == events
    cut = ingest(config(source, tmp_path / "cut"), display=Quiet)
    assert whole.events == cut.events == 3_000
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_file_that_has_grown_is_learned_from_there_on(tmp_path, source):
    ingest(config(source, tmp_path / "run"), display=Quiet)
    assert ingest(config(source, tmp_path / "run"), display=Quiet).events == 3_000  # nothing new
    write_log(tmp_path / "log.csv", count=500, start=3_000, mode="a")
    ingest(config(source, tmp_path / "run"), display=Quiet)
    ingest(config(source, tmp_path / "whole"), display=Quiet)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_after_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(tmp_path, source):
    """Keys on disk, too, are what they were then, though later rows were written over them."""
    ingest(config(source, tmp_path / "whole"), display=Quiet)
    for events in (800, 1_600, 2_400):
        ingest(config(source, tmp_path / "run", events=events), display=Quiet)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 3
    for damaged in checkpoints[1:]:
        payload = bytearray((damaged / "state.safetensors").read_bytes())
        payload[len(payload) // 2] ^= 1
        (damaged / "state.safetensors").write_bytes(payload)
    with pytest.warns(UserWarning, match="damaged"):
        ingest(config(source, tmp_path / "run"), display=Quiet)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_rows_hold_the_scores_of_their_events(tmp_path, source):
    result = ingest(config(source, tmp_path / "run", interval=400), display=Quiet)
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist()
    assert [row["step"] for row in rows] == [400, 800, 1_200, 1_600, 2_000, 2_400, 2_800, 3_000]
    averages = ("type_error", "type_log_loss", "time_log_likelihood", "log_likelihood")
    for name in averages:
        assert rows[-1][name] == result.scores[name]
        scored = np.diff([0, *(row["scored"] for row in rows)])
        window = np.array([row[f"{name}_window"] for row in rows])
        known = scored > 0
        assert np.average(window[known], weights=scored[known]) == pytest.approx(rows[-1][name])
    assert rows[-1]["keys"] == len({line.split(",")[2] for line in (tmp_path / "log.csv").open()}) - 1
    assert rows[-1]["keys_in_memory"] == 1_024


def test_several_sources_make_one_stream(tmp_path):
    lines = write_log(tmp_path / "log.csv", keys=1).read_text().splitlines()
    for i in range(3):
        (tmp_path / f"part{i}.csv").write_text("\n".join(lines[:1] + lines[1 + i :: 3]) + "\n")
    parts = tuple(f"file:{tmp_path / f'part{i}.csv'}" for i in range(3))
    one = ingest(config(f"file:{tmp_path / 'log.csv'}", tmp_path / "one"), display=Quiet)
    several = ingest(
        dataclasses.replace(config("file:x", tmp_path / "several"), sources=parts), display=Quiet
    )
    assert several.events == one.events == 3_000
    for name in ("log_likelihood", "type_error", "ks"):
        assert several.scores[name] == one.scores[name]


def test_what_changes_the_learning_may_not_be_changed(tmp_path, source):
    ingest(config(source, tmp_path / "run", events=100), display=Quiet)
    for changes, flag in (({"lateness": 5.0}, "lateness"), ({"time_unit": 60.0}, "time-unit")):
        with pytest.raises(UsageError, match=f"was made with {flag} "):
            ingest(config(source, tmp_path / "run", **changes), display=Quiet)
    with pytest.raises(UsageError, match=r"was made with types 8, not 9"):
        ingest(
            dataclasses.replace(config(source, tmp_path / "run"), settings=HawkesConfig(types=9)),
            display=Quiet,
        )
    with pytest.raises(UsageError, match="was made with model"):
        ingest(IngestConfig((source,), CountsConfig(), out=tmp_path / "run"), display=Quiet)
    assert ingest(config(source, tmp_path / "run", backend="reference"), display=Quiet).events == 3_000


def test_a_mistake_in_a_source_leaves_the_directory_free(tmp_path, source):
    with pytest.raises(UsageError, match="no file"):
        ingest(config(f"file:{tmp_path}/missing.csv", tmp_path / "run"), display=Quiet)
    assert not (tmp_path / "run").exists()
    assert ingest(config(source, tmp_path / "run"), display=Quiet).events == 3_000
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds no run on events"):
        ingest(config(source, tmp_path / "other"), display=Quiet)


def test_a_wrong_column_does_not_spoil_the_directory(tmp_path, source):
    with pytest.raises(UsageError, match="no column 'usr'"):
        ingest(config(f"{source}?key=usr", tmp_path / "run"), display=Quiet)
    assert ingest(config(f"{source}?key=key", tmp_path / "run"), display=Quiet).events == 3_000


def test_a_run_without_its_file_of_keys_is_refused(tmp_path, source, capsys):
    ingest(config(source, tmp_path / "run", events=2_500), display=Quiet)
    for file in (tmp_path / "run").glob("keys.sqlite*"):
        file.unlink()
    for command in (["resume", str(tmp_path / "run")], ["predict", str(tmp_path / "run"), "--key", "user 1"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 1
        assert "keys.sqlite is missing or empty" in capsys.readouterr().err


def test_a_checkpoint_whose_replacement_was_interrupted_is_used(tmp_path, source):
    ingest(config(source, tmp_path / "run", events=100, keep_checkpoints=1), display=Quiet)
    (whole,) = (tmp_path / "run" / "checkpoints").iterdir()
    whole.rename(whole.with_name(f".{whole.name}.replaced"))
    result = ingest(config(source, tmp_path / "run"), display=Quiet)
    ingest(config(source, tmp_path / "whole"), display=Quiet)
    assert result.events == 3_000
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_features_that_json_does_not_know_do_not_stop_checkpoints(tmp_path):
    import datetime

    import pyarrow as pa

    times = [
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=i) for i in range(200)
    ]
    table = pa.table({"time": times, "type": ["a"] * 200, "key": ["k"] * 200, "when": times})
    pq.write_table(table, tmp_path / "log.parquet")
    given = config(
        f"file:{tmp_path / 'log.parquet'}?features=when", tmp_path / "run", lateness=1e4, events=100
    )
    assert ingest(given, display=Quiet).events == 100
    assert len(Checkpoints.of(tmp_path / "run").latest().meta["position"]["pending"]) > 0


def test_too_many_refused_records_end_the_run_which_can_go_on(tmp_path):
    path = write_log(tmp_path / "log.csv", count=2_000)
    with path.open("a") as file:
        file.write("not,an,event,at all\n" * 5)
    write_log(path, count=100, start=2_000, mode="a")
    source = f"file:{path}"
    with pytest.raises(DeadLetterLimitError, match=r"4 records were refused.*'malformed'"):
        ingest(config(source, tmp_path / "run", max_dead_letters=3), display=Quiet)
    result = ingest(config(source, tmp_path / "run", max_dead_letters=5), display=Quiet)
    assert (result.events, result.dead_letters) == (2_100, {"malformed": 5})
    assert len((tmp_path / "run" / "dead_letters.jsonl").read_text().splitlines()) == 5


def test_settings_survive_a_round_trip(tmp_path, source):
    given = config(source, tmp_path / "run", lateness=3.0, events=10, dead_letters=None, interval=7)
    ingest(given, display=Quiet)
    assert load_ingest(tmp_path / "run") == given
    text = (tmp_path / "run" / "config.toml").read_text()
    (tmp_path / "run" / "config.toml").write_text(text.replace("lateness", "latenes"))
    with pytest.raises(UsageError, match=r"'latenes'\. Did you mean 'lateness'"):
        load_ingest(tmp_path / "run")


@pytest.mark.parametrize("name", ["ingest", "resume"])
def test_ctrl_c_ends_in_a_checkpoint(tmp_path, capsys, name):
    source = f"file:{write_log(tmp_path / 'log.csv')}"
    arguments = ["ingest", source, "--follow", "--out", str(tmp_path / "run"), "--model", "poisson"]
    arguments += ["--checkpoint-seconds", "0.1"]
    usual, deadline = signal.getsignal(signal.SIGINT), time.monotonic() + 60.0

    def is_at_work():
        if signal.getsignal(signal.SIGINT) is usual:  # while it starts, it is ended as any program is
            return False
        with contextlib.suppress(UsageError, OSError):
            return Checkpoints.of(tmp_path / "run").last_step() == 3_000
        return False

    def interrupt():
        while not is_at_work() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    for command in [arguments] if name == "ingest" else [arguments, ["resume", str(tmp_path / "run")]]:
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(SystemExit) as stop:
            main(command)
        interrupter.join()
        assert stop.value.code == 130
        output = capsys.readouterr().out
        assert "stopped after 3,000 events" in output
        assert f"go on:  streamwise resume {tmp_path / 'run'}" in output
    assert Checkpoints.of(tmp_path / "run").last_step() == 3_000


def test_a_prediction_from_a_run_is_the_models(tmp_path, source, capsys):
    ingest(config(source, tmp_path / "run"), display=Quiet)
    model, checkpoint = load_model(tmp_path / "run")
    away = next(
        key
        for key in (f"user {i}" for i in range(1_500))
        if model.keys.find(key) and key not in model.keys._slots
    )
    now = checkpoint.meta["position"]["partitions"][str(tmp_path / "log.csv")]["watermark"]
    expected = model.predict_one(away, now=now, horizon=600.0)
    found, _ = predict(tmp_path / "run", away, horizon=600.0)
    assert found == expected
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "run"), "--key", away, "--horizon", "600", "--json"])
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["probability"] == expected.probability
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "run"), "--key", away, "--horizon", "600"])
    output = capsys.readouterr().out
    assert f"within 10 min: {100 * expected.probability:.1f}%" in output
    assert all(f"%  {name}" in output for name in "abcd")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "run"), "--key", "nobody"])
    assert stop.value.code == 2
    assert "no event of key 'nobody' was seen. Seen were, among others, user " in capsys.readouterr().err


def test_commands_for_agents_say_so_and_the_others_work(tmp_path, source, capsys):
    ingest(config(source, tmp_path / "run"), display=Quiet)
    for command, code, said in (
        (["evaluate"], 2, "is a run of `streamwise ingest`"),
        (["resume", "--steps", "9"], 2, "this is a run on events"),
        (["checkpoints"], 0, "whole"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([command[0], str(tmp_path / "run"), *command[1:]])
        captured = capsys.readouterr()
        assert (stop.value.code or 0) == code
        assert said in captured.out + captured.err


def test_a_checkpoint_that_is_just_being_replaced_does_not_stop_the_run(tmp_path, source, monkeypatch):
    """Between the two renames of a replacement there may be no checkpoint to list."""
    monkeypatch.setattr(Checkpoints, "steps", lambda self: [])
    assert ingest(config(source, tmp_path / "run"), display=Quiet).events == 3_000
