"""The command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import pytest

from streamwise.agents.step_sizes import StepSizeRule
from streamwise.cli import COMMANDS, main


@pytest.fixture
def streamwise(capsys):
    """Run a command in this process; return its exit code, output and errors."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run to look at."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "CartPole-v1", "--agent", "stream-sarsa", "--steps", "600", "--out", str(run)])
    assert not stop.value.code
    return run


def test_without_arguments_it_lists_the_commands(streamwise):
    code, output, _ = streamwise()
    assert code == 2
    assert all(name in output for name in COMMANDS)
    assert streamwise("--help")[0] == 0
    assert streamwise("--version")[1].startswith("streamwise ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_or_says_what_the_command_does(streamwise, command):
    code, output, _ = streamwise(command, "--help")
    assert code == 0
    assert f"usage: streamwise {command}" in output
    assert f"streamwise {command} " in output.split("usage:")[1][20:] or command == "doctor"


def test_help_of_train_shows_the_settings_of_the_agent_in_question(streamwise):
    assert "--policy-intended-change" in streamwise("train", "--help")[1]
    output = streamwise("train", "--agent", "stream-q", "--help")[1]
    assert "--exploration-fraction" in output
    assert "--policy-intended-change" not in output
    assert f"{{{','.join(get_args(StepSizeRule))}}}" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["trian"], "no command is named 'trian'. Did you mean 'train'?"),
        (["train"], "ENV is missing. See"),
        (["train", "CartPole-v1", "--steps", "-5"], "--steps is -5"),
        (["train", "CartPole-v1", "--agent", "stream-qq"], "Did you mean 'stream-q'?"),
        (["train", "CartPole-v1", "--agent", "stream-q", "--discount", "2"], "discount is 2.0"),
        (
            ["train", "CartPole-v1", "--step-size", "0.5"],
            "step_size has no effect with step_size_rule 'intent",
        ),
        (["train", "CartPole-v1", "--preset", "stream-y"], "no preset is named 'stream-y'"),
        (["train", "CartPole-v1", "--preset", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["train", "CartPole-v1", "--preset", "stream-x", "--agent", "stream-q"], "is for stream-ac"),
        (["train", "CartPool-v1"], "CartPole-v1"),
        (["train", "Pendulum-v1", "--agent", "stream-q"], "stream-q takes Discrete actions, not Box"),
        (["train", "csv:nowhere.csv", "--target", "OT"], "nowhere.csv"),
        (["train", "csv:nowhere.csv"], "needs --target COLUMN"),
        (["resume", "nowhere"], "there is no nowhere"),
        (["evaluate", "nowhere"], "there is no nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["report"], "at least one run directory"),
        (["sweep"], "SPEC is missing. See"),
        (["train", "CartPole-v1", "--steps", "many"], "--steps takes a whole number, not 'many'."),
        (["train", "CartPole-v1", "--step-size", "big"], "--step-size takes a number, not 'big'."),
        (["train", "CartPole-v1", "--stepz", "5"], "there is no --stepz; perhaps --steps?"),
        (["train", "CartPole-v1", "--steps"], "--steps needs a value."),
        (["train", "CartPole-v1", "--memory", "all"], "--memory is 'all'; use one of 'none', "),
        (["train", "CartPole-v1", "once", "more"], "there is no place for 'once, more'."),
        (["predict", "run"], "--key is missing. See"),
        (["sweep", "smal"], "Did you mean 'small'?"),
        (["sweep", "nowhere.toml"], "there is no nowhere.toml"),
        (["sweep", "small", "--cpus", "0"], "--cpus is 0"),
        (["sweep", "small", "--max-failures", "-1"], "--max-failures is -1"),
        (["sweep", "small", "--resume"], "there is no sweep in outputs/small to go on with"),
        (["sweep", "small", "--address", "127.0.0.1:1"], "there is no Ray cluster at 127.0.0.1:1"),
        (["sweep", "small", "--address", "auto", "--cpus", "1"], "--cpus is of this machine alone"),
        (["bench", "stepp"], "Did you mean 'step'?"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line_with_exit_code_2(
    streamwise, tmp_path, monkeypatch, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    code, _, errors = streamwise(*arguments)
    assert code == 2
    assert complaint in errors
    assert errors.count("\n") == 1
    assert errors.startswith("streamwise")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("environment", ["HalfCheetah-v5", "dm_control/walker-walk-v0"])
def test_a_renderer_that_is_not_there_is_told_in_one_line(tmp_path, environment):
    command = [
        sys.executable,
        "-m",
        "streamwise",
        "train",
        environment,
        "--steps",
        "5",
        "--out",
        tmp_path / "run",
    ]
    told = subprocess.run(
        command,
        env={**os.environ, "MUJOCO_GL": "elg"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 2
    assert "MUJOCO_GL=elg" in told.stderr
    assert told.stderr.count("\n") == 1


def test_a_run_says_what_it_came_to(streamwise, tmp_path):
    _, output, _ = streamwise("train", "CartPole-v1", "--steps", "3", "--out", tmp_path / "young")
    assert "done at step 3, no episode has ended yet\n" in output
    (tmp_path / "short.csv").write_text("load,hour\n" + "".join(f"{i % 7},{i % 24}\n" for i in range(50)))
    _, output, _ = streamwise(
        "train",
        f"csv:{tmp_path}/short.csv",
        "--agent",
        "stream-td",
        "--target",
        "load",
        "--out",
        tmp_path / "over",
    )
    assert "done at step 49, the end of the file" in output


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        ([], "nothing came: the sources hold no events"),
        ([9, 1, 2, 3, 4], "most came late: sort the file by time"),
    ],
)
def test_a_log_that_brings_little_is_told_why(streamwise, tmp_path, rows, advice):
    (tmp_path / "log.csv").write_text("time,key,type\n" + "".join(f"{time},ann,view\n" for time in rows))
    code, output, _ = streamwise("ingest", f"file:{tmp_path}/log.csv", "--out", tmp_path / "run")
    assert (code, advice in output) == (0, True)


def test_a_resumed_log_that_has_grown_is_told_from_one_that_has_not(streamwise, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("time,key,type\n" + "".join(f"{time},ann,view\n" for time in range(9)))
    assert "done after 9 events\n" in streamwise("ingest", f"file:{log}", "--out", tmp_path / "run")[1]
    assert "done after 9 events, none of them new\n" in streamwise("resume", tmp_path / "run")[1]
    with log.open("a") as more:
        more.write("9,ann,view\n")
    _, output, display = streamwise("resume", tmp_path / "run")
    assert "done after 10 events\n" in output
    assert "latest events: log-likelihood" in display.replace("\n", " ")


def test_what_is_no_run_is_told_with_what_goes_on_with_it(streamwise, tmp_path):
    (tmp_path / "sweep.toml").write_text("")
    code, _, errors = streamwise("resume", tmp_path)
    assert (code, f"`streamwise sweep {tmp_path}` goes on with it" in errors) == (2, True)


def test_names_of_environments_are_listed_by_family_for_grep(streamwise):
    code, output, _ = streamwise("environments", "BALLET")
    assert (code, output) == (0, "Memory probes: streamwise/Ballet-v0\n")
    everything = streamwise("environments")[1].splitlines()
    assert {"MuJoCo: HalfCheetah-v5", "Atari: ALE/Pong-v5", output.strip()} <= set(everything)
    code, _, error = streamwise("environments", "nothing-like-it")
    assert (code, error.count("\n")) == (2, 1)
    assert "`streamwise environments` lists all" in error


def test_sweep_lists_its_runs(streamwise):
    code, output, _ = streamwise("sweep", "small", "--list")
    assert code == 0
    assert len(output.splitlines()) == 3 * 2 * 5
    assert "HalfCheetah-v5-published-seed4  100,000 steps" in output


def test_sweep_lists_no_runs_that_cannot_be(streamwise, tmp_path):
    (tmp_path / "spec.toml").write_text('environments = ["CartPol-v1"]\nsteps = 5')
    code, output, errors = streamwise("sweep", tmp_path / "spec.toml", "--list")
    assert (code, output, "CartPole-v1" in errors) == (2, "", True)


def test_runs_and_sweeps_are_drawn_apart(streamwise, finished, tmp_path):
    (tmp_path / "sweep.toml").write_text("")
    code, _, errors = streamwise("report", finished, tmp_path)
    assert code == 2
    assert "is no sweep, and others are" in errors


def test_train_says_where_things_are(finished):
    assert {"config.toml", "metrics.parquet", "checkpoints", "report.html", "report.png", "tensorboard"} <= {
        path.name for path in finished.iterdir()
    }


def test_train_refuses_a_directory_in_use_and_resume_extends_it(streamwise, finished):
    code, _, errors = streamwise("train", "CartPole-v1", "--out", finished)
    assert code == 2
    assert f"streamwise resume {finished}" in errors
    code, output, _ = streamwise("resume", finished, "--steps", "700")
    assert code == 0
    assert "done at step 700" in output


def test_a_flag_overrides_its_preset(streamwise, tmp_path):
    code, _, _ = streamwise(
        "train", "CartPole-v1", "--preset", "stream-x", "--trace-decay", "0.5",
        "--steps", "50", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "trace_decay = 0.5" in text
    assert 'step_size_rule = "obgd"' in text
    assert 'preset = "stream-x"' in text


def test_evaluate_prints_a_mean_with_its_interval(streamwise, finished):
    code, output, _ = streamwise("evaluate", finished, "--episodes", "3")
    assert code == 0
    assert "mean return" in output
    assert "95% interval" in output
    assert streamwise("evaluate", finished, "--episodes", "0")[0] == 2
    assert streamwise("evaluate", finished, "--video", "film.gif")[0] == 2


def test_evaluate_films_an_episode(streamwise, finished, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="the video extra is not installed")
    pytest.importorskip("pygame", reason="the video extra is not installed")
    video = tmp_path / "cartpole.mp4"
    code, output, errors = streamwise("evaluate", finished, "--episodes", "1", "--video", video)
    assert code == 0, errors
    assert str(video) in output
    assert video.stat().st_size > 1000
    assert video.read_bytes()[4:8] == b"ftyp"


def test_report_writes_a_page_and_a_picture(streamwise, finished, tmp_path):
    code, output, _ = streamwise("report", finished, "--out", tmp_path / "page.html")
    assert code == 0
    assert "<html" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "page.html") in output
