"""Sweeps on a real Ray: finished, killed, resumed, moved to another node, and equal to a sweep left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from killing import differences
from processes import events, finish, here, ray_cluster, start
from waiting import wait_for

from streamwise.runs.ray_cluster import Journal
from streamwise.runs.sweep_data import read_events
from streamwise.runs.sweep_spec import PlannedRun, load_sweep

SPEC = """
name = "tried"
environments = ["CartPole-v1", "HalfCheetah-v5"]
seeds = 2
steps = 3_000
checkpoint_every = 250

[agents.intentional]
"""


def checkpoints(out: Path) -> set[Path]:
    return set(out.glob("runs/*/checkpoints/step-*"))


def times_started(out: Path) -> Counter[str]:
    return Counter(event["run"] for event in events(out, "started"))


def train(run: PlannedRun, directory: Path) -> None:
    """Do what a sweep does with a run, without one."""
    config = run.config
    flags = {
        "steps": config.steps, "checkpoint-every": config.checkpoint_every, "seed": config.seed,
        "label": config.label, "out": directory,
    }  # fmt: skip
    assert here("train", config.environment, *(f"--{name}={value}" for name, value in flags.items())) == 0


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    path.write_text(SPEC)
    return str(path)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory, spec) -> Path:
    out = tmp_path_factory.mktemp("alone") / "sweep"
    output = finish("sweep", spec, "--out", str(out))
    assert "4 of 4 runs finished" in output
    return out


def assert_equal(found: Path, expected: Path) -> None:
    names = sorted(path.name for path in (expected / "runs").iterdir())
    assert names == sorted(path.name for path in (found / "runs").iterdir())
    assert {name: differences(found / "runs" / name, expected / "runs" / name) for name in names} == {
        name: [] for name in names
    }


def test_a_sweep_leaves_its_runs_a_journal_and_a_report(left_alone):
    assert {path.name for path in left_alone.iterdir()} >= {
        "events.jsonl", "report.html", "report.png", "runs", "sweep.toml"
    }  # fmt: skip
    runs = {run.name for run in load_sweep(str(left_alone)).runs}
    assert {event["run"] for event in events(left_alone, "finished")} == runs
    for event in events(left_alone, "finished"):
        assert event["step"] == 3_000
        assert 0.0 < event["seconds"] < 600.0


def test_a_run_of_a_sweep_is_what_train_makes(left_alone, tmp_path):
    run = next(run for run in load_sweep(str(left_alone)).runs if run.name.startswith("CartPole"))
    train(run, tmp_path / "run")
    assert differences(left_alone / "runs" / run.name, tmp_path / "run") == []


def test_killed_runners_a_killed_driver_and_ctrl_c_change_nothing(left_alone, spec, tmp_path):
    """A runner dies with its run under way, then the driver; the next is interrupted; the last goes on."""
    out = tmp_path / "sweep"
    driver = start("sweep", spec, "--out", str(out))
    wait_for(lambda: len(checkpoints(out)) >= 2, "a checkpoint")
    finished = {event["run"] for event in events(out, "finished")}
    at_work = [event for event in events(out, "started") if event["run"] not in finished]
    os.kill(at_work[-1]["process"], signal.SIGKILL)
    wait_for(lambda: events(out, "lost", "finished"), "news of the dead runner")
    wait_for(lambda: len(events(out, "started")) > 2, "another run")
    driver.kill()

    before, finished = times_started(out), {event["run"] for event in events(out, "finished")}
    written = checkpoints(out)
    driver = start("sweep", spec, "--out", str(out), "--resume")
    wait_for(lambda: times_started(out) != before and checkpoints(out) - written, "another checkpoint")
    driver.ctrl_c()
    output = driver.output(130)
    assert f"go on:  streamwise sweep {out}" in output
    stopped = events(out, "interrupted")
    for event in stopped:
        assert (out / "runs" / event["run"] / "checkpoints" / f"step-{event['step']:012d}").is_dir()
    assert stopped or len(events(out, "finished")) > len(finished)

    assert "4 of 4 runs finished" in finish("sweep", str(out))
    assert_equal(out, left_alone)
    assert [run for run in finished if times_started(out)[run] != before[run]] == []  # none ran again


BREAKS = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Breaks(CartPoleEnv):
    def step(self, action):
        raise RuntimeError("the wheel\\ncame off")

gymnasium.register("Breaks-v0", entry_point=Breaks)
"""


def test_a_run_that_cannot_work_is_given_up_and_the_others_finish(tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "spec.toml"
    path.write_text(
        'environments = ["CartPole-v1", "HalfCheetah-v5", "breaks:Breaks-v0"]\nsteps = 300\n'
        '[agents.q]\nagent = "stream-q"'
    )
    out = tmp_path / "sweep"
    output = finish("sweep", str(path), "--out", str(out), "--max-failures", "1", code=1)
    assert "1 of 3 runs finished, 2 failed" in output
    assert "HalfCheetah-v5-q-seed0: failed:" in output
    assert "breaks-Breaks-v0-q-seed0: failed: RuntimeError: the wheel came off" in output
    messages = {event["run"]: event["message"] for event in events(out, "failed")}
    assert "Discrete" in messages["HalfCheetah-v5-q-seed0"]
    tries = [event["run"] for event in events(out, "started")]
    assert tries.count("HalfCheetah-v5-q-seed0") == 1  # what would fail again is not tried again
    assert tries.count("breaks-Breaks-v0-q-seed0") == 2
    log = (out / "runs" / "breaks-Breaks-v0-q-seed0" / "run.log").read_text()
    assert log.count("RuntimeError: the wheel") == 2
    assert "breaks.py" in log


def test_a_sweep_that_is_asked_for_fewer_steps_says_that_it_has_more(tmp_path, left_alone):
    out = shutil.copytree(left_alone, tmp_path / "sweep")
    shorter = tmp_path / "shorter.toml"
    shorter.write_text(SPEC.replace("3_000", "1_000"))
    output = finish("sweep", str(shorter), "--out", str(out))
    assert "4 finished with more steps than are asked for now" in output
    assert_equal(out, left_alone)


def test_a_journal_whose_last_line_is_half_written_goes_on(tmp_path):
    path = tmp_path / "events.jsonl"
    Journal(path).add("started", run="a")
    with path.open("a") as file:
        file.write('{"event": "fini')
    Journal(path).add("finished", run="a", step=3)
    assert [event["event"] for event in read_events(path)] == ["started", "finished"]
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 3


def test_the_runs_of_a_node_that_dies_go_on_on_another(tmp_path, capsys):
    """Two nodes, each with a temporary folder of its own, and a storage that both see."""
    # Runs that are long enough to be in the middle of when a node has gone.
    spec, out, storage = str(tmp_path / "long.toml"), tmp_path / "sweep", tmp_path / "storage"
    Path(spec).write_text(
        'environments = ["HalfCheetah-v5"]\nseeds = 4\nsteps = 6_000\ncheckpoint_every = 250\n'
        "[agents.intentional]\n"
    )

    def node(name: str) -> dict:
        (tmp_path / name).mkdir()
        return {"num_cpus": 1, "env_vars": {"TMPDIR": str(tmp_path / name)}}

    with ray_cluster(**node("first")) as cluster:
        second = cluster.add_node(**node("second"))
        command = ["sweep", spec, "--out", str(out), "--storage", str(storage), "--address", cluster.address]
        assert here(*command, "--resume") == 2  # there is nothing yet to go on with
        driver = start(*command)
        on_second = f":{second.node_id[:6]}"

        def is_at_work_there() -> bool:
            there = [event["run"] for event in events(out, "started") if event["node"].endswith(on_second)]
            return any(list((storage / run).glob("step-*")) for run in there)

        # Of the four runs it is at its first, or at the next by the time that it is gone.
        wait_for(is_at_work_there, "a run on the second node")
        cluster.remove_node(second, allow_graceful=False)
        assert "4 of 4 runs finished" in driver.output()
        (run,) = (event["run"] for event in events(out, "lost"))
        where = [event["node"] for event in events(out, "started") if event["run"] == run]
        assert len(where) == 2
        assert where[0].endswith(on_second)
        assert not where[1].endswith(on_second)
        for planned in load_sweep(str(out)).runs:
            train(planned, tmp_path / "alone" / "runs" / planned.name)
        assert_equal(out, tmp_path / "alone")
        assert not list(tmp_path.glob("first/streamwise/*/*"))  # what has finished leaves nothing behind
        assert [path.name for path in tmp_path.glob("second/streamwise/*/*")] == [run]
        started = events(out, "started")
        again = finish("sweep", str(out), "--address", cluster.address)
        assert "4 of them finished before" in again
        assert events(out, "started") == started
        capsys.readouterr()
        assert here("sweep", spec, "--out", str(out), "--storage", str(tmp_path)) == 2
        assert f"are in {storage}, not in {tmp_path}" in capsys.readouterr().err
