"""Learning results: what the learners reach, on which environment, with which step-size rule.

Runs every (environment, agent, rule, seed) through the library as `streamwise train` does, several at a time,
and prints a table. Runs that have finished are not repeated, so the script can be stopped and started again.

    python benchmarks/returns.py                          # everything (hours on two cores)
    python benchmarks/returns.py --only HalfCheetah       # environments whose name contains this
    python benchmarks/returns.py --table                  # just print what has been measured
    streamwise report outputs/returns/*HalfCheetah* --out halfcheetah.html
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from script import run
from tables import show

from streamwise.envs import make
from streamwise.runs.statistics import running_mean


@dataclass(frozen=True)
class Case:
    """One row of the table: what is run, for how long, with how many seeds."""

    environment: str
    agent: str
    rule: str
    flags: tuple[str, ...]
    steps: int
    seeds: int

    def directory(self, root: Path, seed: int) -> Path:
        """Where one seed of this case runs."""
        return root / f"{self.environment.replace('/', '-')}-{self.agent}-{self.rule}-seed{seed}"


def _both_rules(environment: str, agent: str, published: str, steps: int, seeds: int = 5) -> list[Case]:
    """The published ObGD settings, and the defaults of `train` (the Intentional rule)."""
    return [
        Case(environment, agent, "obgd", ("--preset", published), steps, seeds),
        Case(environment, agent, "intentional", ("--agent", agent), steps, seeds),
    ]


CASES = [
    *_both_rules("HalfCheetah-v5", "stream-ac", "stream-x", 200_000),
    *_both_rules("Hopper-v5", "stream-ac", "stream-x", 200_000),
    *_both_rules("Walker2d-v5", "stream-ac", "stream-x", 200_000),
    *_both_rules("dm_control/cheetah-run-v0", "stream-ac", "stream-x", 200_000),
    *_both_rules("dm_control/walker-walk-v0", "stream-ac", "stream-x", 200_000),
    *_both_rules("CartPole-v1", "stream-q", "stream-x-q", 100_000),
    *_both_rules("CartPole-v1", "stream-sarsa", "stream-x-sarsa", 100_000),
    Case("MinAtar/Breakout-v1", "stream-q", "obgd", ("--preset", "stream-x-minatar"), 1_000_000, 5),
    Case(
        "MinAtar/Breakout-v1", "stream-q", "intentional", ("--preset", "intentional-q-minatar"), 1_000_000, 5
    ),
    Case("ALE/Pong-v5", "stream-q", "obgd", ("--preset", "stream-x-atari"), 20_000, 1),
    Case("ALE/Pong-v5", "stream-q", "intentional", ("--agent", "stream-q"), 20_000, 1),
]


@dataclass(frozen=True)
class Options:
    """Measure learning results and print them as a table."""

    only: str = ""
    """Run the cases whose environment contains this text."""
    out: Path = Path("outputs/returns")
    """Where the runs go; finished ones are kept."""
    jobs: int = 2
    """Runs at a time, each on one core."""
    backend: Literal["auto", "native", "torch"] = "auto"
    """What runs the updates; give torch its own --out."""
    table: bool = False
    """Run nothing; print what has been measured."""


def main(options: Options) -> None:
    cases = [case for case in CASES if options.only in case.environment]
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        jobs = [(case, seed) for case in cases for seed in range(case.seeds)]
        with ThreadPoolExecutor(options.jobs) as pool:
            for future in [pool.submit(_run, case, seed, options) for case, seed in jobs]:
                future.result()
    show(_table(cases, options.out))


def _run(case: Case, seed: int, options: Options) -> None:
    root = options.out
    directory = case.directory(root, seed)
    if (directory / "report.html").is_file():
        return
    command = [sys.executable, "-m", "streamwise"]
    if (directory / "checkpoints").is_dir():
        command += ["resume", str(directory)]
    else:
        command += ["train", case.environment, *case.flags, "--steps", str(case.steps)]
        command += ["--seed", str(seed), "--out", str(directory), "--backend", options.backend]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (root / f"{directory.name}.log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    print(f"{directory.name}: {'done' if code == 0 else f'exit code {code}, see {log.name}'}", flush=True)


def _table(cases: list[Case], root: Path) -> Table:
    table = Table(title="Mean return of the last 20 episodes: median over seeds [lowest, highest]")
    for name in (
        "environment",
        "agent",
        "rule",
        "steps",
        "seeds",
        "at the end",
        "best at any time",
        "random policy",
        "steps/s",
    ):
        table.add_column(name, justify="left" if name in ("environment", "agent", "rule") else "right")
    for case in cases:
        final, best, speed = [], [], []
        for seed in range(case.seeds):
            path = case.directory(root, seed) / "metrics.parquet"
            if not path.is_file():
                continue
            rows = pq.read_table(path)
            returns = rows["episode_return"].to_numpy()
            means = running_mean(returns)
            final.append(means[-1])
            best.append(means[19:].max() if len(means) > 19 else means[-1])
            speed.append(rows["step"][-1].as_py() / rows["wall_time"][-1].as_py())
        table.add_row(
            case.environment,
            case.agent,
            case.rule,
            f"{case.steps:,}",
            str(len(final)),
            _summary(final),
            _summary(best),
            _random_policy(case.environment) if final else "",
            f"{np.median(speed):,.0f}" if speed else "",
        )
    return table


@functools.cache
def _random_policy(environment: str, episodes: int = 20) -> str:
    """The mean return of actions drawn evenly from the action space."""
    env = make(environment, seed=0)
    total, ended = 0.0, 0
    env.reset()
    while ended < episodes:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total += float(reward)
        if terminated or truncated:
            ended += 1
            env.reset()
    env.close()
    return f"{total / episodes:,.1f}"


def _summary(values: list[float]) -> str:
    if not values:
        return ""
    return f"{np.median(values):,.1f} [{min(values):,.1f}, {max(values):,.1f}]"


if __name__ == "__main__":
    run(main, Options, __doc__)
