"""Kill runs with SIGKILL again and again, resume them, and compare each with a twin that was never killed.

    python benchmarks/soak.py                            # 200 kills, about twenty minutes
    python benchmarks/soak.py --kills 20 --only Cheetah
    python benchmarks/soak.py --memory-steps 2000000     # resident memory of one long run, nothing killed

Exits with 1 if any tensor, statistic, environment state, counter or row of metrics differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from script import run
from tables import show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "end_to_end"))
from killing import Case, differences, finish, kill_and_resume

CASES = [
    Case("HalfCheetah-v5", "stream-ac", "native", 60_000, 500),
    Case("HalfCheetah-v5", "stream-ac", "torch", 6_000, 100),
    Case("dm_control/walker-walk-v0", "stream-ac", "native", 60_000, 500),
    Case("CartPole-v1", "stream-q", "native", 60_000, 500),
    Case("CartPole-v1", "stream-ac", "native", 60_000, 500),
    Case("MinAtar/Breakout-v1", "stream-q", "native", 60_000, 500),
    Case("MinAtar/Breakout-v1", "stream-q", "torch", 6_000, 100),
    Case("ALE/Pong-v5", "stream-q", "native", 6_000, 50),
]


@dataclass(frozen=True)
class Options:
    """Kill, resume, compare."""

    kills: int = 200
    """Kills in all, divided among the cases."""
    only: str = ""
    """The cases whose name contains this text."""
    seed: int = 0
    """Draws the moments."""
    memory_steps: int = 0
    """Instead: print the resident memory of one HalfCheetah-v5 run ten times over so many steps."""


def soak(options: Options) -> bool:
    """Print a row a case; return whether all came back exactly."""
    cases = [case for case in CASES if options.only in str(case)]
    table = Table(title="Killed with SIGKILL and resumed, against a twin that never was")
    for name in ("run", "steps", "checkpoint every", "kills", "resumed", "never killed, s", "differs in"):
        table.add_column(name, justify="left" if name in ("run", "differs in") else "right")
    exact = True
    for number, case in enumerate(cases):
        share = options.kills // len(cases) + (number < options.kills % len(cases))
        with tempfile.TemporaryDirectory() as scratch:
            never, killed = Path(scratch, "never"), Path(scratch, "killed")
            seconds = finish(case.command(never), never.with_suffix(".log"))
            made, resumed = kill_and_resume(case, killed, share, seconds, options.seed + number)
            found = differences(killed, never)
        exact = exact and not found
        numbers = (f"{case.steps:,}", f"{case.checkpoint_every:,}", str(made), str(resumed), f"{seconds:.0f}")
        table.add_row(str(case), *numbers, ", ".join(found) or "nothing")
        print(f"{case}: {made} kills, {resumed} resumed, {found or 'equal'}", file=sys.stderr, flush=True)
    show(table)
    return exact


def watch_memory(steps: int) -> None:
    """Print the resident memory of a run, with a checkpoint every 1,000 steps, at each tenth of it."""
    table = Table(title="Resident memory of a run of HalfCheetah-v5, a checkpoint every 1,000 steps")
    for name in ("steps", "MiB"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            "train",
            "HalfCheetah-v5",
            f"--steps={steps}",
            "--checkpoint-every=1000",
            f"--out={scratch}/run",
        ]
        process = subprocess.Popen([sys.executable, "-m", "streamwise", *command], stderr=subprocess.DEVNULL)
        pages = Path(f"/proc/{process.pid}/statm")
        for tenth in range(1, 11):
            reached = Path(scratch, "run", "checkpoints")
            while process.poll() is None:
                names = [path.name for path in reached.glob("step-*")] if reached.is_dir() else []
                if names and int(max(names).removeprefix("step-")) >= steps * tenth // 10 - 1_000:
                    megabytes = int(pages.read_text().split()[1]) * 4096 / 2**20
                    table.add_row(f"{steps * tenth // 10:,}", f"{megabytes:.1f}")
                    print(f"step {steps * tenth // 10:,}: {megabytes:.1f} MiB", file=sys.stderr, flush=True)
                    break
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
    show(table)


def main(options: Options) -> int:
    if options.memory_steps:
        watch_memory(options.memory_steps)
        return 0
    return 0 if soak(options) else 1


if __name__ == "__main__":
    run(main, Options, __doc__)
