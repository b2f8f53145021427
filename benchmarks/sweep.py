"""How much sooner a sweep ends with more processes, and whether its runs are the same.

`streamwise sweep` with one process, with two, four, ... up to as many as there are cores, and with one again,
since machines change their speed. Seconds go from the first run's start to the end of the last; what Ray and
its processes take to start is told apart. Then episodes of all runs are compared, bit for bit.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py                 # eight minutes on two cores
    OMP_NUM_THREADS=1 python benchmarks/sweep.py --steps 5000 --seeds 1
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from rich.table import Table
from script import run
from tables import show

from streamwise.runs.sweep_data import read_events

ENVIRONMENTS = ("HalfCheetah-v5", "Hopper-v5", "dm_control/cheetah-run-v0")


@dataclass(frozen=True)
class Options:
    """Run one sweep with more and more processes and print a table."""

    steps: int = 50_000
    """Of a run."""
    seeds: int = 5
    """Of three environments and two agents each."""
    most: int = 2
    """Processes at most; powers of two up to it."""


class Taken(NamedTuple):
    """What a sweep took."""

    processes: int
    runs: int
    start: float  # seconds until the first run begins
    work: float  # seconds from then until the last has ended
    busy: float  # share of the processes' seconds that were spent in runs
    megabytes: float  # of a process, at most
    episodes: list[list[float]]  # returns of every run


def sweep(processes: int, options: Options, folder: Path) -> Taken:
    """Run the sweep, and read what it left."""
    spec, out = folder / "sweep.toml", folder / "out"
    spec.write_text(
        f"environments = {list(ENVIRONMENTS)}\nseeds = {options.seeds}\nsteps = {options.steps}\n"
        '[agents.intentional]\n[agents.published]\npreset = "stream-x"\n'
    )
    command = [sys.executable, "-m", "streamwise", "sweep", str(spec), f"--out={out}", f"--cpus={processes}"]
    began = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    events = read_events(out / "events.jsonl")
    runs = [event for event in events if event["event"] == "finished"]
    first = min(event["time"] for event in events if event["event"] == "started")
    work = max(run["time"] for run in runs) - first
    return Taken(
        processes,
        len(runs),
        first - began,
        work,
        sum(run["seconds"] for run in runs) / (processes * work),
        max(run["megabytes"] for run in runs),
        [
            pq.read_table(path, columns=["episode_return"])["episode_return"].to_pylist()
            for path in sorted(out.glob("runs/*/metrics.parquet"))
        ],
    )


def main(options: Options) -> int:
    """Print the table; return 1 if runs differ."""
    counts = [1]
    while 2 * counts[-1] <= options.most:
        counts.append(2 * counts[-1])
    taken = []
    for processes in [*counts, 1]:
        with tempfile.TemporaryDirectory() as folder:
            taken.append(sweep(processes, options, Path(folder)))
        print(f"{processes}: {taken[-1].work:.0f} s", file=sys.stderr, flush=True)
    alone = (taken[0].work + taken[-1].work) / 2
    table = Table(title=f"{taken[0].runs} runs of {options.steps:,} steps")
    for heading in (
        "processes",
        "start, s",
        "runs, s",
        "times as fast",
        "in runs",
        "MB a process",
        "episodes",
    ):
        table.add_column(heading, justify="right")
    same = all(one.episodes == taken[0].episodes for one in taken)
    for one in taken:
        equal = "the same" if one.episodes == taken[0].episodes else "differ"
        seconds = f"{one.start:.1f}", f"{one.work:.1f}", f"{alone / one.work:.2f}"
        table.add_row(str(one.processes), *seconds, f"{one.busy:.1%}", f"{one.megabytes:.0f}", equal)
    show(table)
    return 0 if same else 1


if __name__ == "__main__":
    run(main, Options, __doc__)
