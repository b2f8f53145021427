"""What a runner says of the runs it is given, without Ray."""

from __future__ import annotations

import dataclasses
import io
import threading
import time

import pytest
from rich.console import Console

from streamwise.agents import StreamQConfig
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.config import RunConfig
from streamwise.runs.lock import locked
from streamwise.runs.sweep import Job, Slot
from streamwise.runs.sweep_display import SweepDisplay
from streamwise.runs.sweep_runner import Progress, Runner, Where
from streamwise.runs.sweep_spec import PlannedRun


def cartpole(out, **changes):
    options = {"agent": "stream-q", "steps": 400, "out": out, "checkpoint_every": 100, **changes}
    return RunConfig("CartPole-v1", StreamQConfig(hidden_size=16), **options)


def test_a_finished_run_says_how_it_went(tmp_path):
    outcome = Runner().run("a", cartpole(tmp_path / "a"), None)
    assert (outcome.step, outcome.began_at, outcome.error, outcome.stopped) == (400, 0, None, False)
    assert outcome.mean_return > 5.0
    assert outcome.seconds > 0.0
    assert outcome.megabytes > 50.0
    again = Runner().run("a", cartpole(tmp_path / "a"), None)
    assert (again.step, again.began_at, again.mean_return) == (400, 400, pytest.approx(outcome.mean_return))


def test_what_another_time_may_work_is_told_from_what_will_not(tmp_path):
    (tmp_path / "a").mkdir()
    Runner().run("a", cartpole(tmp_path / "a", steps=1), None)
    with locked(tmp_path / "a"):
        busy = Runner().run("a", cartpole(tmp_path / "a"), None)
    assert "is in use by process" in busy.error
    assert not busy.is_final
    wrong = Runner().run("a", cartpole(tmp_path / "a", seed=3), None)
    assert "was made with seed 0, not 3" in wrong.error
    assert wrong.is_final


def test_a_run_is_watched_and_stopped_from_another_thread(tmp_path):
    runner, outcomes = Runner(), []
    config = cartpole(tmp_path / "a", steps=10_000_000)
    thread = threading.Thread(target=lambda: outcomes.append(runner.run("a", config, None)))
    thread.start()
    while (seen := runner.progress()) is None or seen.step < 100:
        time.sleep(0.01)
    assert (seen.run, seen.began_at) == ("a", 0)
    assert seen.episodes > 0
    runner.stop()
    thread.join(60.0)
    (outcome,) = outcomes
    assert outcome.stopped
    assert outcome.step >= seen.step
    assert Checkpoints.of(config).last_step() == outcome.step
    assert runner.progress() is None


def test_a_run_with_a_storage_works_in_a_scratch_folder_that_goes_when_it_has_finished(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    config = cartpole(None, storage=str(tmp_path / "storage"))
    outcome = Runner().run("a", config, "sweep-1")
    assert outcome.error is None
    assert not list((tmp_path / "temporary").glob("streamwise/sweep-1/*"))
    assert {path.name for path in (tmp_path / "storage").iterdir()} >= {
        "config.toml", "metrics.parquet", "step-000000000400"
    }  # fmt: skip


def shown(is_terminal, monkeypatch):
    """What a display of three runs prints: one at work, one waiting, one finished before."""
    clock = [1_000.0]
    monkeypatch.setattr("streamwise.runs.table_display.time.monotonic", lambda: clock[0])
    runs = [PlannedRun(f"run{i}", dataclasses.replace(cartpole(None), steps=1_000)) for i in range(3)]
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    display = SweepDisplay("tried", runs, {"run2"}, console)
    jobs = [Job(run, run.config, restarts=i) for i, run in enumerate(runs, start=1)]
    slot = Slot(None, None, Where("host", "abcdef0123", 7), jobs[0])
    with display:
        for step, seconds in ((100, 1.0), (300, 2.0)):
            clock[0] += 11.0
            slot.progress = Progress("run0", step, 0, 5, 21.5, seconds)
            display.update([slot], jobs[1:2], 1, {})
    return console.file.getvalue()


def test_off_a_terminal_the_display_is_plain_lines(monkeypatch):
    lines = shown(False, monkeypatch).splitlines()
    assert lines[0] == "tried: 3 runs, 1 of them finished before"
    assert lines[-1] == "tried: 1 of 3 finished, 1 running, 1 waiting; 200 steps/s, 0:00:08 left"


def test_on_a_terminal_the_display_is_a_table(monkeypatch):
    text = shown(True, monkeypatch)
    for part in ("300 of 1,000", "200", "21.5", "0:00:04", "1 of 3 finished"):
        assert part in text
