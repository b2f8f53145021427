"""Runs from start to end: what is left behind, going on, bad input, signals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from killing import differences

from streamwise.agents import StreamAC, StreamACConfig, StreamQConfig, StreamTDConfig
from streamwise.cli import main
from streamwise.envs import NoSnapshotError
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.config import RunConfig, load_config
from streamwise.runs.evaluate import evaluate
from streamwise.runs.lock import locked
from streamwise.runs.loop import StopRequest
from streamwise.runs.progress import ProgressDisplay
from streamwise.runs.train import resume, train, train_or_resume
from streamwise.streams import NonFiniteSampleError, UsageError


def cartpole(out, **changes):
    options = {"agent": "stream-q", "steps": 400, "out": out, "checkpoint_every": 150, **changes}
    return RunConfig("CartPole-v1", StreamQConfig(hidden_size=16), **options)


def test_a_run_leaves_what_is_needed_to_understand_and_continue_it(tmp_path):
    result = train(cartpole(tmp_path / "run"))
    assert result.step == 400
    assert result.signal is None
    names = Checkpoints.of(tmp_path / "run").names()
    assert names[-1] == "step-000000000400"
    assert set(names) <= {"step-000000000150", "step-000000000300", "step-000000000400"}
    assert load_config(tmp_path / "run").settings.exploration_steps == 20
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pydict()
    assert rows["episode_return"] == rows["episode_length"]  # CartPole pays one a step
    assert rows["step"] == list(np.cumsum(rows["episode_length"]))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    returns = []
    for number, seed in enumerate((0, 0, 1)):
        train(cartpole(tmp_path / str(number), seed=seed))
        rows = pq.read_table(tmp_path / str(number) / "metrics.parquet")
        returns.append(rows["episode_return"].to_pylist())
    assert returns[0] == returns[1]
    assert returns[0] != returns[2]


def test_a_resumed_run_goes_on_counting_and_keeps_its_rows(tmp_path):
    train(cartpole(tmp_path / "run"))
    before = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pydict()
    result = resume(tmp_path / "run", steps=700)
    assert result.step == 700
    after = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pydict()
    kept = len(before["step"])
    assert after["step"][:kept] == before["step"]
    assert after["episode"] == list(range(1, len(after["episode"]) + 1))
    assert int(Checkpoints.of(tmp_path / "run").latest().state["steps"]) == 700
    with pytest.raises(UsageError, match="is at step 700, the end of its run"):
        resume(tmp_path / "run")


def test_an_existing_run_directory_is_not_written_over(tmp_path):
    train(cartpole(tmp_path / "run"))
    with pytest.raises(UsageError, match="already exists; go on with `streamwise resume"):
        train(cartpole(tmp_path / "run"))


def test_a_wrong_environment_leaves_no_directory_behind(tmp_path):
    with pytest.raises(UsageError):
        train(RunConfig("CartPool-v1", StreamACConfig(), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Broken(gymnasium.Env):
    """Observations or rewards turn into NaN at step 120."""

    observation_space = spaces.Box(-np.inf, np.inf, (12,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, what):
        self.what = what
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.standard_normal(12).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = self.np_random.standard_normal(12).astype(np.float32)
        reward = 1.0
        if self.steps == 120 and self.what == "observation":
            observation[3] = np.nan
        if self.steps == 120 and self.what == "reward":
            reward = float("inf")
        return observation, reward, False, self.steps % 50 == 0, {}


@pytest.mark.parametrize(("what", "named"), [("observation", "feature 3"), ("reward", "the reward is inf")])
def test_bad_input_stops_the_run_after_a_checkpoint_of_the_last_good_state(tmp_path, what, named):
    name = f"Broken-{what}-v0"
    gymnasium.register(name, lambda: Broken(what))
    try:
        with pytest.raises(NonFiniteSampleError) as error:
            train(RunConfig(name, StreamACConfig(), steps=500, out=tmp_path / "run", checkpoint_every=1000))
    finally:
        del gymnasium.registry[name]
    assert named in str(error.value)
    assert "step 120" in str(error.value)
    assert name in str(error.value)
    checkpoint = Checkpoints.of(tmp_path / "run").latest()
    assert int(checkpoint.state["steps"]) == 119
    assert all(tensor.isfinite().all() for tensor in checkpoint.state.values())


def test_a_diverged_learner_fails_the_run_in_one_line_and_keeps_the_last_good_checkpoint(
    tmp_path, monkeypatch, capsys
):
    learn_one, calls = StreamAC.learn_one, itertools.count(1)

    def diverge(agent, transition):
        metrics = learn_one(agent, transition)
        if next(calls) == 250:
            state = agent.state_dict()
            agent.load_state_dict({**state, "actor.parameters": state["actor.parameters"] * float("nan")})
        return metrics

    monkeypatch.setattr(StreamAC, "learn_one", diverge)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "Pendulum-v1", "--steps", "400", "--checkpoint-every", "100", "--out", str(run)])
    assert stop.value.code == 1
    assert "diverged: 'actor.parameters' is not finite" in capsys.readouterr().err.splitlines()[-1]
    assert Checkpoints.of(run).latest().meta["step"] == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_saves_a_checkpoint_and_can_go_on(tmp_path, number, code):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "streamwise", "train", "CartPole-v1", "--agent", "stream-q"]
    command += ["--steps", "1000000", "--checkpoint-every", "100", "--out", str(run)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert f"go on:  streamwise resume {run}" in output
    assert "Traceback" not in errors
    checkpoint = Checkpoints.of(run).latest()
    reached = int(checkpoint.state["steps"])
    assert f"stopped at step {reached:,}" in output
    assert resume(run, steps=reached + 50).step == reached + 50


@pytest.mark.parametrize("memory", [{"memory": "hcam", "memory_chunk_length": 1}, {"memory": "gru"}])
def test_an_evaluation_remembers_what_it_sees_and_forgets_it_with_the_episode(tmp_path, memory):
    """Four symbols, one to keep for a step: who remembers nothing is right in a quarter of episodes."""
    settings = StreamQConfig(
        **memory, trace_decay=0.0, step_size_rule="obgd", epsilon_end=0.0, exploration_steps=4000
    )
    environment = "streamwise/DelayedRecall-v0?symbols=4&delay=0"
    train(RunConfig(environment, settings, agent="stream-q", steps=8001, out=tmp_path / "run"))
    found = evaluate(tmp_path / "run", episodes=200)  # the checkpoint was in the middle of an episode
    assert found.mean > 0.95
    longer = evaluate(tmp_path / "run", episodes=50, environment=environment.replace("delay=0", "delay=3"))
    assert longer.episode_lengths == [5] * 50
    assert longer.environment.endswith("delay=3")
    with pytest.raises(UsageError, match=r"observation space is .*choose an environment of the same spaces"):
        evaluate(tmp_path / "run", environment="CartPole-v1")


def test_evaluation_changes_nothing_and_repeats_itself(tmp_path):
    train(cartpole(tmp_path / "run"))
    newest = Checkpoints.of(tmp_path / "run").names()[-1]
    checkpoint = tmp_path / "run" / "checkpoints" / newest / "state.safetensors"
    before = checkpoint.read_bytes()
    first = evaluate(tmp_path / "run", episodes=4)
    assert evaluate(tmp_path / "run", episodes=4) == first
    assert checkpoint.read_bytes() == before
    low, high = first.interval
    assert low <= first.mean <= high
    assert first.mean == pytest.approx(np.mean(first.episode_returns))
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["mean"] == first.mean
    assert evaluate(tmp_path / "run", episodes=1).interval is None


def test_a_series_is_predicted_and_resumed_to_its_end(tmp_path):
    rows = "\n".join(f"{i},{np.sin(i / 9):.6f},{np.cos(i / 9):.6f}" for i in range(900))
    (tmp_path / "waves.csv").write_text(f"date,a,b\n{rows}\n")
    environment = f"csv:{tmp_path / 'waves.csv'}"
    settings = StreamTDConfig(discount=0.9, hidden_size=16)
    options = {"agent": "stream-td", "target": "b", "seed": 2}
    train(RunConfig(environment, settings, out=tmp_path / "whole", **options, steps=10_000))
    train(RunConfig(environment, settings, out=tmp_path / "parts", **options, steps=333))
    result = resume(tmp_path / "parts", steps=10_000)
    assert result.step == 899
    whole, parts = (pq.read_table(tmp_path / name / "predictions.parquet") for name in ("whole", "parts"))
    assert whole.equals(parts)


def test_a_damaged_row_costs_nothing_that_was_learned_before_it(tmp_path):
    rows = [f"{i},{np.sin(i / 9):.6f},{np.cos(i / 9):.6f}" for i in range(900)]
    path = tmp_path / "waves.csv"
    settings = StreamTDConfig(discount=0.9, hidden_size=16)
    options = {"agent": "stream-td", "target": "b", "seed": 2, "steps": 10_000}

    def write(rows):
        path.write_text("date,a,b\n" + "\n".join(rows) + "\n")

    write(rows)
    train(RunConfig(f"csv:{path}", settings, out=tmp_path / "whole", **options))
    write([*rows[:600], "600,0.1", *rows[601:]])
    with pytest.raises(UsageError, match=r"line 602.* checkpoint of step 599; .*resume .*cut`"):
        train(RunConfig(f"csv:{path}", settings, out=tmp_path / "cut", **options))
    write(rows)
    assert resume(tmp_path / "cut").step == 899
    whole, cut = (pq.read_table(tmp_path / name / "predictions.parquet") for name in ("whole", "cut"))
    assert whole.equals(cut)


class Mute(Broken):
    """An environment of a user's own that cannot be captured."""

    def __init__(self):
        super().__init__("nothing")


def test_where_the_environment_cannot_be_saved_resume_says_so_and_the_metrics_count_it(tmp_path, capfd):
    gymnasium.register("Mute-v0", Mute)
    try:
        settings = StreamACConfig(memory="hcam")
        config = RunConfig("Mute-v0", settings, steps=120, out=tmp_path / "run", checkpoint_every=40)
        train(config)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        resume(tmp_path / "copy", steps=130)
        state = Checkpoints.of(tmp_path / "copy").latest().state
        assert state["memory.counters"][:2].tolist() == [2, 2]  # ten steps in chunks of four; not thirty
        assert resume(tmp_path / "run", steps=250).step == 250
    finally:
        del gymnasium.registry["Mute-v0"]
    line = next(line for line in capfd.readouterr().err.splitlines() if "goes on at step 120" in line)
    assert "with a new episode (20 steps of the last are given up: " in line
    assert "Mute" in line
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pydict()
    assert rows["episode_length"] == [50, 50, 50, 50]  # two, then two of a fresh environment
    assert rows["step"] == [50, 100, 170, 220]
    assert rows["abandoned_steps"] == [None, None, 20, None]


def test_an_environment_that_could_not_be_saved_then_and_can_now_begins_a_new_episode_too(
    tmp_path, monkeypatch, capfd
):
    def fail(env):
        raise NoSnapshotError("not now")

    with monkeypatch.context() as patch:
        patch.setattr("streamwise.envs.stream.capture", fail)
        train(cartpole(tmp_path / "run"))
    resume(tmp_path / "run", steps=500)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "goes on at step 400" in line]
    assert "with a new episode" in line
    assert "the environment could not be saved then" in line
    rows = pq.read_table(tmp_path / "run" / "metrics.parquet").to_pydict()
    assert rows["episode_return"] == rows["episode_length"]  # no row adds up two episodes


def test_a_snapshot_of_other_libraries_costs_the_episode_and_not_the_run(tmp_path, monkeypatch, capfd):
    train(cartpole(tmp_path / "run"))

    def refuse(env, snapshot):
        raise UsageError("it was captured with mujoco 9.9")

    monkeypatch.setattr("streamwise.envs.stream.restore", refuse)
    assert resume(tmp_path / "run", steps=500).step == 500
    assert "given up: it was captured with mujoco 9.9" in capfd.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    train(cartpole(tmp_path / "whole"))
    run = tmp_path / "run"
    train(cartpole(run))
    shutil.rmtree(run / "checkpoints")
    assert resume(run).step == 400
    whole, again = (Checkpoints.of(path).latest().state for path in (tmp_path / "whole", run))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    rows = [pq.read_table(path / "metrics.parquet")["step"] for path in (tmp_path / "whole", run)]
    assert rows[0].equals(rows[1])


def test_a_second_process_in_a_run_directory_is_refused_and_told_who_has_it(tmp_path):
    run = tmp_path / "run"
    train(cartpole(run))
    with locked(run):
        command = [sys.executable, "-m", "streamwise", "resume", str(run), "--steps", "900"]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert f"{run} is in use by process {os.getpid()} on " in other.stderr
    assert len(other.stderr.splitlines()) == 1
    assert resume(run, steps=900).step == 900  # the lock went with its holder


def test_what_a_run_left_that_was_killed_as_it_began_is_no_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("{}")
    (run / ".config.toml.partial").write_text("environment = ")
    assert train(cartpole(run)).step == 400


def test_a_planned_run_is_started_gone_on_with_and_left_alone_when_it_has_finished(tmp_path):
    whole = tmp_path / "whole"
    train(cartpole(whole))
    planned = cartpole(tmp_path / "planned")
    stop = StopRequest()
    stop.signal = signal.SIGINT  # after the first step
    assert train_or_resume(planned, stop=stop).step == 1
    assert train_or_resume(planned).step == 400
    assert differences(planned.directory, whole) == []
    newest = Checkpoints.of(planned.directory).names()
    again = train_or_resume(planned)
    assert (again.step, Checkpoints.of(planned.directory).names()) == (400, newest)
    assert again.mean_return == pytest.approx(train_or_resume(planned).mean_return)
    assert train_or_resume(dataclasses.replace(planned, steps=500)).step == 500


def test_a_planned_run_of_other_settings_is_refused(tmp_path):
    train_or_resume(cartpole(tmp_path / "run"))
    for changes in ({"seed": 1}, {"agent": "stream-sarsa"}):
        with pytest.raises(UsageError, match=f"was made with {next(iter(changes))} "):
            train_or_resume(cartpole(tmp_path / "run", **changes))


def test_a_run_goes_on_from_its_storage_alone(tmp_path):
    """What a node that has died knew of its runs is in the storage that all nodes see."""
    whole = tmp_path / "whole"
    train(cartpole(whole, steps=3_000))
    storage, stop = str(tmp_path / "storage"), StopRequest()

    class StopsAt2000(ProgressDisplay):
        def update(self):
            if self.recorder.step >= 2_000:
                stop.signal = signal.SIGINT

    first = cartpole(tmp_path / "node1", steps=3_000, storage=storage)
    assert 2_000 <= train_or_resume(first, display=StopsAt2000, stop=stop).step < 2_100
    assert pq.read_table(tmp_path / "node1" / "metrics.parquet").num_rows > 10
    shutil.rmtree(first.directory)
    train_or_resume(dataclasses.replace(first, out=tmp_path / "node2"))
    assert differences(tmp_path / "node2", whole) == []
