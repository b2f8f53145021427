"""`streamwise tasks` as a user gives it: killed, the same command ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import here

from streamwise.runs.tasks import load_tasks

SOURCE = "synthetic:hawkes?events=1500&keys=8&types=3&seed=1"
COMMAND = [
    "tasks", SOURCE, "--methods", "online", "markov", "--bases", "nhp", "--seeds", "1", "--tasks", "3",
    "--by", "count", "--steps", "4", "--width", "8", "--window", "16", "--predictions", "20", "--cpus", "1",
]  # fmt: skip
TIMEOUT_SECONDS = 240


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "streamwise", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        **options,
    )


def results(directory):
    """What was found, without how long it took and whether it was gone on with."""
    found = {}
    for path in sorted((directory / "results").glob("*.json")):
        found[path.name] = json.loads(path.read_text())
        for name in ("learning_seconds", "scoring_seconds", "tensors_restored"):
            del found[path.name][name]
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(*COMMAND, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 units done" in done.stdout

    process = subprocess.Popen(
        [sys.executable, "-m", "streamwise", *COMMAND, "--out", str(killed)],
        start_new_session=True,  # its Ray processes go with it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    # In the middle of a neural unit: after its first task, before its last.
    while not list(killed.glob("checkpoints/online-*/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.read_bytes() for path in killed.glob("results/*.json")}
    assert len(kept) < 2

    resumed = run(*COMMAND, "--out", killed)
    assert resumed.returncode == 0, resumed.stderr
    assert f"2 units, {len(kept)} of them done before" in resumed.stderr
    assert results(killed) == results(whole)
    for name, content in kept.items():
        assert (killed / "results" / name).read_bytes() == content
    restored = [json.loads(path.read_text())["tensors_restored"] for path in killed.glob("results/online-*")]
    assert any(restored)

    assert (killed / "report.html").stat().st_size > 10_000
    assert load_tasks(killed).seeds == 1
    again = run(*COMMAND, "--out", killed)
    assert (again.returncode, "2 of 2 units done" in again.stdout) == (0, True)
    (killed / "report.html").unlink()
    drawn = run("report", killed)
    assert drawn.returncode == 0
    assert (killed / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["synthetic:hawkes?events=100", "--methods", "onlin"], "Did you mean 'online'?"),
        (["synthetic:hawkes?events=100", "--methods", "online,counts"], "with spaces between"),
        (["synthetic:hawkes?events=30&keys=2", "--tasks", "9"], "has nothing to score in its"),
        (["synthetic:hawkes?events=100", "--tasks", "1"], "--tasks is 1; use 2 or more"),
        (["file:nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_wrong_command_is_a_line_and_exit_code_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert here("tasks", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_help_teaches_by_examples(capsys):
    assert here("tasks", "--help") == 0
    output = capsys.readouterr().out
    assert "streamwise tasks file:events.csv.gz" in output
    assert "--refresh-every" in output
