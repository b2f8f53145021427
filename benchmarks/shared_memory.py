"""What sharing a memory costs a learner, and how much a memory's process takes in and gives out.

A learner's step is measured with a memory of its own, and with the same one linked to a shared memory in
another process: as a writer, as a reader, as both. All take turns; the ratio to the first is what counts.
Then: chunks a second that a memory takes from several writers. And what is shared: one learner is told facts,
another is asked for them, with what the first has written and without (`streamwise up told` is the same as a
live system).

    OMP_NUM_THREADS=1 python benchmarks/shared_memory.py           # five minutes
    OMP_NUM_THREADS=1 python benchmarks/shared_memory.py --only knowledge
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import streamwise
from streamwise.agents import StreamAC, StreamACConfig
from streamwise.memory.shared import MemoryLink, SharedMemory
from streamwise.memory.store import InProcessStore
from streamwise.runs.ray_cluster import running_ray
from streamwise.runs.shared_memory import Linked, MemoryActor, MemorySettings, RayConnection

_GREEDY = 2_000
ROOM = "streamwise/DelayedRecall-v0?symbols=4&delay=50"


@dataclass(frozen=True)
class Options:
    """Measure a shared memory and print tables."""

    only: Literal["steps", "appends", "knowledge"] | None = None
    """Measure one of them; all by default."""
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
    facts: int = 1_000
    """That one learner is told."""
    questions: int = 30_000
    """That another is asked."""
    seeds: int = 5
    """Worlds of such facts."""


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


def right_answers(options: Options, seed: int, *, shared: bool) -> list[float]:
    """Return the share of right answers in each third of the questions, and then to 2,000 more, greedily."""
    world = f"streamwise/Told-v0?facts={options.facts}&world={seed}"
    told, asked = (streamwise.make(f"{world}&role={role}", seed=seed) for role in ("tell", "ask"))
    common: dict[str, Any] = {
        "memory": "hcam", "memory_span": "life", "memory_chunk_length": 1, "memory_features": 128,
        "step_size_rule": "obgd", "trace_decay": 0.0,
    }  # fmt: skip
    listening = {"memory_guests": options.facts + 200, "memory_alike": True, "memory_heads": 4}
    listening |= {"entropy_coefficient": 0.3, "step_size": 0.03}  # with less, it gives up some of the answers
    teller = StreamAC(told.observation_space, told.action_space, StreamACConfig(**common), seed=seed)
    listener = StreamAC(
        asked.observation_space, asked.action_space, StreamACConfig(**common, **listening), seed=seed
    )
    width = told.observation_space.shape[0]
    memory = SharedMemory(InProcessStore(1, width, 10 * options.facts))
    speaks = MemoryLink(teller.memory, "teller", writes=True, reads=False)  # type: ignore[arg-type]
    hears = MemoryLink(listener.memory, "listener", writes=False, reads=True)  # type: ignore[arg-type]
    facts = iter(streamwise.EnvironmentStream(told, teller.act))
    rewards = np.zeros(options.questions)
    for number, question in zip(
        range(options.questions), streamwise.EnvironmentStream(asked, listener.act), strict=False
    ):
        listener.learn_one(question)
        rewards[number] = question.reward
        if shared and number < 3 * options.facts:  # told thrice, in turn
            teller.learn_one(next(facts))
            speaks.exchange(memory)
            hears.exchange(memory)
            hears.turn()
    right = 0.0
    for _ in range(_GREEDY):
        observation, _ = asked.reset()
        right += asked.step(listener.act(observation, explore=False))[1]
    return [*(float(third.mean()) for third in np.array_split(rewards, 3)), right / _GREEDY]


def measure_knowledge(options: Options, console: Console) -> None:
    """Print how many questions are answered with and without what another was told."""
    title = f"right answers to {options.questions:,} questions for {options.facts:,} facts; chance is 0.25"
    table = Table(title=title)
    for column in ("seed", "with: thirds; greedily", "without"):
        table.add_column(column, justify="right")
    for seed in range(options.seeds):
        cells = (
            "{:.2f}, {:.2f}, {:.2f}; {:.3f}".format(*right_answers(options, seed, shared=shared))
            for shared in (True, False)
        )
        table.add_row(str(seed), *cells)
    console.print(table)


def main() -> None:
    """Measure."""
    options = tyro.cli(Options, description=Options.__doc__)
    console = Console()
    if options.only in (None, "knowledge"):
        measure_knowledge(options, console)
    width = streamwise.make(ROOM, seed=0).observation_space.shape[0]
    measures = {"steps": measure_steps, "appends": measure_appends}
    chosen = [measure for name, measure in measures.items() if options.only in (None, name)]
    if not chosen:
        return
    with tempfile.TemporaryDirectory() as folder, running_ray(None, 4):
        import ray

        settings = MemorySettings(options.chunk_length, width, 1_000_000)
        for number, measure in enumerate(chosen):
            actor = ray.remote(MemoryActor).options(num_cpus=0).remote(settings, Path(folder) / str(number))
            measure(actor, options, console)
            ray.get(actor.close.remote())


if __name__ == "__main__":
    main()
