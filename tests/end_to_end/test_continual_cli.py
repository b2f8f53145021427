"""`streamwise continual` as a user gives it: killed, the same command ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import here

from streamwise.runs.continual import load_continual, run_unit, units_of

pytest.importorskip("sklearn", reason="data sets need the extra continual")
pytest.importorskip("river", reason="drift detectors need the extra continual")

TIMEOUT_SECONDS = 120
# One of each kind of state: a reservoir, anchors, a detector, shapes that change, a teacher, keys.
SPEC = """
seeds = 1
looks = 8
consolidate = "every:150"
[schedules]
recurring = "dataset:wine?schedule=recurring&epochs=2"
[learner]
batch_size = 7
hidden_size = 16
[methods."nothing"]
[methods."finetuning of EWC"]
method = ["ewc", "finetuning"]
finetuning = {distillation = 0.5, steps = 10, final_steps = 20}
consolidate = "adwin"
[methods."views"]
method = "view-batch"
[methods."low rank"]
method = "reg-lora"
[methods."relations"]
method = "relation-distillation"
[methods."bottleneck"]
method = "bottleneck"
warm_up = 300
"""


def test_killed_at_any_instant_it_ends_as_if_nothing_had_happened(tmp_path, capsys):
    path, out = tmp_path / "all.toml", tmp_path / "out"
    path.write_text(SPEC)
    spec = load_continual(str(path))
    expected = {unit.name: run_unit(unit, spec, tmp_path / "whole") for unit in units_of(spec)}

    command = ["continual", str(path), "--out", str(out), "--cpus", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamwise", *command],
        start_new_session=True,  # its Ray processes go with it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(list(out.glob("checkpoints/*/step-*"))) < 4 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = len(list(out.glob("results/*.json")))
    assert before < len(expected)

    assert here(*command) == 0
    printed = capsys.readouterr()
    assert f"{len(expected)} of {len(expected)} units done" in printed.out
    for name, whole in expected.items():
        found = json.loads((out / "results" / f"{name}.json").read_bytes())
        assert {**found, "microseconds": 0.0} == {**whole, "microseconds": 0.0}
    assert (out / "report.html").stat().st_size > 10_000
    assert here("report", str(out)) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digit"], "Did you mean 'digits'?"),
        (["nowhere.toml"], "nowhere.toml is not there"),
        (["digits", "--seeds", "0"], "--seeds is 0; use 1 or more"),
        (["digits", "--cpus", "1", "--address", "auto"], "--cpus is of this machine alone"),
    ],
)
def test_a_wrong_command_is_a_line_and_exit_code_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert here("continual", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_help_teaches_by_examples_and_names_what_comes_with_it(capsys):
    assert here("continual", "--help") == 0
    output = capsys.readouterr().out
    assert "streamwise continual digits" in output
    assert "--seeds" in output
