"""What sharing a memory costs a learner, and how much a memory's process takes in and gives out.

A learner's step is measured with a memory of its own, and with the same one linked to a shared memory in
another process: as a writer, as a reader, as both. All take turns; the ratio to the first is what counts.
Then: chunks a second that a memory takes from several writers, and how long a chunk is on its way from one
learner to another.

    OMP_NUM_THREADS=1 python benchmarks/shared_memory.py           # two minutes
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import streamwise
from streamwise.agents import StreamAC, StreamACConfig
from streamwise.memory.shared import MemoryLink
from streamwise.runs.ray_cluster import running_ray
from streamwise.runs.shared_memory import Linked, MemoryActor, MemorySettings, RayConnection

ROOM = "streamwise/DelayedRecall-v0?symbols=4&delay=50"


@dataclass(frozen=True)
class Options:
    """Measure a shared memory and print tables."""

    steps: int = 20_000
    """Steps of each turn."""
    turns: int = 5
    """Turns of each kind of learner."""
    chunk_length: int = 8
    """Steps in a chunk."""
    guests: int = 256
    """Chunks of others that a reader has."""
    writers: int = 4
    """Of the measurement of what a memory takes in."""
    chunks: int = 20_000
    """Chunks that each of those sends."""


def agent(env: Any, options: Options, *, reads: bool) -> StreamAC:
    """Make the learner that is measured; all have room for guests, so that all look at as many slots."""
    config = StreamACConfig(
        memory="hcam",
        memory_span="life",
        memory_chunk_length=options.chunk_length,
        memory_guests=options.guests,
        memory_heads=4,
        step_size_rule="obgd",
    )
    made = StreamAC(env.observation_space, env.action_space, config)
    random = np.random.default_rng(0)
    width = env.observation_space.shape[0]
    for id in range(0 if reads else options.guests):  # a reader gets them from the memory
        made.memory.admit(id, random.standard_normal((options.chunk_length, width)))  # type: ignore[union-attr]
    return made


def fill(actor: Any, options: Options, width: int) -> None:
    """Write as many chunks as a reader takes."""
    import ray

    random = np.random.default_rng(0)
    chunks = random.standard_normal((options.guests, options.chunk_length, width)).astype(np.float32)
    lease = ray.get(actor.open_writer.remote("somebody", 0))
    ray.get(actor.append.remote("somebody", lease, 0, chunks))


@contextlib.contextmanager
def learner(actor: Any, options: Options, *, writes: bool, reads: bool) -> Iterator[Any]:
    """Yield what runs so many steps and returns the seconds that they took."""
    env = streamwise.make(ROOM, seed=0)
    made = agent(env, options, reads=reads)
    stream = iter(streamwise.EnvironmentStream(env, made.act))
    with contextlib.ExitStack() as stack:
        turn = None
        if writes or reads:
            link = MemoryLink(made.memory, f"learner {writes} {reads}", writes, reads)  # type: ignore[arg-type]
            stack.enter_context(Linked(link, RayConnection(actor), print))
            turn = link.turn

        def run(steps: int) -> float:
            began = time.perf_counter()
            for _, sample in zip(range(steps), stream, strict=False):
                made.learn_one(sample)
                if turn is not None:
                    turn()
            return time.perf_counter() - began

        run(2_000)
        yield run


def measure_steps(actor: Any, options: Options, console: Console) -> None:
    """Print what a step costs each kind of learner."""
    kinds = {
        "its own memory": (False, False),
        "writes": (True, False),
        "reads": (False, True),
        "both": (True, True),
    }
    fill(actor, options, streamwise.make(ROOM, seed=0).observation_space.shape[0])
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    with contextlib.ExitStack() as stack:
        runs = {
            name: stack.enter_context(learner(actor, options, writes=writes, reads=reads))
            for name, (writes, reads) in kinds.items()
        }
        for _ in range(options.turns):
            for name, run in runs.items():
                seconds[name].append(run(options.steps) / options.steps)
    table = Table(title="a step of stream-AC, environment included")
    for column in ("learner", "µs", "times its own"):
        table.add_column(column, justify="left" if column == "learner" else "right")
    own = seconds["its own memory"]
    for name, spent in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(spent, own, strict=True))
        table.add_row(name, f"{1e6 * statistics.median(spent):.1f}", f"{ratio:.3f}")
    console.print(table)


def measure_appends(actor: Any, options: Options, console: Console) -> None:
    """Print how many chunks a second a memory takes from several writers."""
    import ray

    def write(actor: Any, name: str, count: int, length: int, width: int) -> None:
        chunks = np.random.default_rng(0).standard_normal((256, length, width)).astype(np.float32)
        lease = ray.get(actor.open_writer.remote(name, 0))
        for first in range(0, count, 256):
            ray.get(actor.append.remote(name, lease, first, chunks[: count - first]))

    width = streamwise.make(ROOM, seed=0).observation_space.shape[0]
    remote = ray.remote(num_cpus=0)(write)
    ray.get([remote.remote(actor, "warm-up", 1, options.chunk_length, width)] * options.writers)
    began = time.perf_counter()
    ray.get(
        [
            remote.remote(actor, f"writer {number}", options.chunks, options.chunk_length, width)
            for number in range(options.writers)
        ]
    )
    rate = options.writers * options.chunks / (time.perf_counter() - began)
    console.print(f"{options.writers} writers: {rate:,.0f} chunks a second, on disk")


def main() -> None:
    """Measure."""
    options = tyro.cli(Options, description=Options.__doc__)
    console = Console()
    width = streamwise.make(ROOM, seed=0).observation_space.shape[0]
    with tempfile.TemporaryDirectory() as folder, running_ray(None, 4):
        import ray

        settings = MemorySettings(options.chunk_length, width, 1_000_000)
        for number, measure in enumerate((measure_steps, measure_appends)):
            actor = ray.remote(MemoryActor).options(num_cpus=0).remote(settings, Path(folder) / str(number))
            measure(actor, options, console)
            ray.get(actor.close.remote())


if __name__ == "__main__":
    main()
