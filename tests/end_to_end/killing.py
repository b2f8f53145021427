"""Runs that are killed with SIGKILL again and again, and how to tell that nothing was lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from streamwise.runs.checkpoint import Checkpoints

_BY_THE_CLOCK = {"wall_time", "steps_per_second", "elapsed", "seconds"}

_forkserver = multiprocessing.get_context("forkserver")  # a start costs a fork, not the imports
_forkserver.set_forkserver_preload(
    ["streamwise.runs.train", "streamwise.envs", "dm_control.suite", "shimmy", "ale_py"]
)


@dataclass(frozen=True)
class Case:
    """A run to kill."""

    environment: str
    agent: str
    backend: str
    steps: int
    checkpoint_every: int
    memory: str = "none"
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.environment} {self.agent} {self.backend} {self.memory}"

    def command(self, directory: Path) -> list[str]:
        """The command that starts the run."""
        flags = {
            "agent": self.agent,
            "backend": self.backend,
            "steps": self.steps,
            "checkpoint-every": self.checkpoint_every,
            "seed": 5,
            "memory": self.memory,
            "out": directory,
        }
        told = [f"--{name}={value}" for name, value in flags.items()]
        return ["train", self.environment, *told, *self.flags]


def _run(arguments: list[str], log: Path) -> None:
    from streamwise.cli import main

    os.environ["MUJOCO_GL"] = "disabled"
    with (
        log.open("a", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        main(arguments)


def start(arguments: list[str], log: Path) -> Any:
    """Run a command in a process of its own."""
    process = _forkserver.Process(target=_run, args=(arguments, log), daemon=True)
    process.start()
    return process


def finish(arguments: list[str], log: Path, timeout_seconds: float = 3_600.0) -> float:
    """Run a command to its end; return the seconds it took. Raises AssertionError if it fails."""
    began = time.perf_counter()
    process = start(arguments, log)
    process.join(timeout_seconds)
    assert process.exitcode == 0, log.read_text()[-2_000:]
    return time.perf_counter() - began


def kill_and_resume(case: Case, directory: Path, kills: int, seconds: float, seed: int) -> tuple[int, int]:
    """Run a case and kill it `kills` times, spread at random over `seconds`.

    Half of the kills wait for a checkpoint first, so that short runs, too, come to have one to go on from.
    Returns how often it was killed, and how often it went on from a checkpoint.
    """
    draw = random.Random(seed)
    log = directory.with_suffix(".log")
    final = directory / "checkpoints" / f"step-{case.steps:012d}"
    made = 0
    while not final.is_dir():
        is_run = (directory / "config.toml").is_file()
        command = ["resume", str(directory)] if is_run else case.command(directory)
        if made == kills:
            finish(command, log)
            break
        process = start(command, log)
        if made % 2 == 0:
            before = _newest(directory)
            while process.exitcode is None and _newest(directory) == before:
                time.sleep(0.002)
        process.join(draw.uniform(0.0, 1.2 * seconds / kills) / (10.0 if made % 2 == 0 else 1.0))
        if process.exitcode is None:
            process.kill()
            made += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()[-2_000:]
    return made, log.read_text().count("goes on at step")


def _newest(directory: Path) -> str:
    return max((path.name for path in directory.glob("checkpoints/step-*")), default="")


def differences(found: Path, expected: Path) -> list[str]:
    """Return in what two finished runs differ: tensors, statistics, environment, counters, rows."""
    one, other = (Checkpoints.of(path).latest() for path in (found, expected))
    differing = sorted(one.state.keys() ^ other.state.keys())
    differing += [
        name
        for name in one.state.keys() & other.state.keys()
        if not torch.equal(one.state[name], other.state[name])
    ]
    metas = [_without_the_clock({**checkpoint.meta, "state_sha256": None}) for checkpoint in (one, other)]
    differing += [f"meta.json: {name}" for name in metas[0] if metas[0][name] != metas[1].get(name)]
    files = [path / "metrics.parquet" for path in (found, expected)]  # none if no episode has ended
    rows = [_without_the_clock(pq.read_table(file).to_pylist()) if file.exists() else [] for file in files]
    return differing + ([] if rows[0] == rows[1] else ["metrics.parquet"])


def _without_the_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_the_clock(item) for key, item in value.items() if key not in _BY_THE_CLOCK}
    if isinstance(value, list):
        return [_without_the_clock(item) for item in value]
    return value
