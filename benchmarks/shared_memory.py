"""What sharing a memory costs a learner, and how much a memory's process takes in and gives out.

A learner's step is measured with a memory of its own, and with the same one linked to a shared memory in
another process: as a writer, as a reader, as both. All take turns; the ratio to the first is what counts.
Then: chunks a second that a memory takes from several writers. And what is shared: one learner is told facts,
another is asked for them, with what the first has written and without (`streamwise up told` is the same as a
live system). And replicas of a large memory: how long a new reader waits for its index, what a read costs
beside one in the memory's own process, and how little of a reader's own memory contents take.

    OMP_NUM_THREADS=1 python benchmarks/shared_memory.py           # seven minutes
    OMP_NUM_THREADS=1 python benchmarks/shared_memory.py --only knowledge
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from script import run
from tables import show

import streamwise
from streamwise.agents import StreamAC, StreamACConfig
from streamwise.memory.chunks import ChunkStore, stream_code
from streamwise.memory.hcam import HCAM, ChunkAttention
from streamwise.memory.publisher import Contents
from streamwise.memory.records import CHUNK
from streamwise.memory.replica import Replica
from streamwise.memory.segments import SegmentLog
from streamwise.memory.shared import MemoryLink, SharedMemory
from streamwise.memory.store import InProcessStore
from streamwise.runs.ray_cluster import running_ray
from streamwise.runs.shared_memory import Linked, MemoryActor, MemorySettings, RayConnection

_GREEDY = 2_000
ROOM = "streamwise/DelayedRecall-v0?symbols=4&delay=50"
_WIDTH = 64  # of a replica's chunks
_READ_OF, _READS, _READ_TURNS = 10_000, 300, 20  # chunks, reads in a turn
_BLOCKS_READ = 64
_RECORDS_PER_FILE = 4096


@dataclass(frozen=True)
class Options:
    """Measure a shared memory and print tables."""

    only: Literal["steps", "appends", "knowledge", "replica"] | None = None
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
    replica_chunks: int = 1_000_000
    """Chunks that are in a memory before a replica of it is made."""


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
        made.memory.admit(id, random.standard_normal((options.chunk_length, width)))  # type: ignore[union-attr]  # made with one
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
            link = MemoryLink(made.memory, f"learner {writes} {reads}", writes, reads)  # type: ignore[arg-type]  # made with one
            stack.enter_context(Linked(link, [RayConnection(actor)], print))
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


def measure_steps(actor: Any, options: Options) -> None:
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
    show(table)


def measure_appends(actor: Any, options: Options) -> None:
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
    show(f"{options.writers} writers: {rate:,.0f} chunks a second, on disk.")


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
    speaks = MemoryLink(teller.memory, "teller", writes=True, reads=False)  # type: ignore[arg-type]  # made with one
    hears = MemoryLink(listener.memory, "listener", writes=False, reads=True)  # type: ignore[arg-type]  # made with one
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


def measure_knowledge(options: Options) -> None:
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
    show(table)


def fill_directory(directory: Path, count: int, length: int) -> None:
    """Write so many chunks of a writer `a` as a memory would, without its work for each."""
    log = SegmentLog(directory, length, _WIDTH, records_per_file=_RECORDS_PER_FILE)
    random = np.random.default_rng(0)
    noise = random.standard_normal((_RECORDS_PER_FILE, length, _WIDTH), dtype=np.float32)
    for number, first in enumerate(range(0, count, _RECORDS_PER_FILE)):
        ids = np.arange(first, min(first + _RECORDS_PER_FILE, count))
        records: Any = np.zeros(len(ids), log.type)
        for name in ("id", "slot", "position", "origin", "sequence", "first", "last"):
            records[name] = ids
        records["kind"], records["stream"], records["name"] = CHUNK, stream_code("a"), b"a"
        records["steps"] = records["covered"] = length
        records["contents"] = noise[: len(ids)] + random.standard_normal(_WIDTH, dtype=np.float32)
        records["summary"] = records["contents"].mean(1)
        rows = records.view(np.uint8).reshape(len(ids), -1)
        records["checksum"] = [zlib.crc32(row[4:]) for row in rows]
        log.keep(log.append(records[:1]))
        with (directory / f"segment-{number:012d}.chunks").open("ab") as file:
            file.write(rows[1:].data)
        log.length += len(ids) - 1
    log.close()


class Copying(RayConnection):
    """What reading would be without memory that processes share."""

    def contents(self, wanted: Mapping[int, Sequence[int]]) -> list[Contents]:
        """Return copies."""
        return [part._replace(contents=part.contents.copy()) for part in super().contents(wanted)]


class Reader:
    """A process that reads contents, and says how much memory of its own it has."""

    def __init__(self, actor: Any, source: type[RayConnection]) -> None:
        self.replica = Replica(source(actor))
        began = time.perf_counter()
        self.replica.refresh()
        self.seconds = time.perf_counter() - began

    def waited(self) -> tuple[float, int]:
        """Return the seconds until it had the index, and of how many chunks."""
        return self.seconds, len(self.replica)

    def memory(self) -> dict[str, float]:
        """Return megabytes: of the process, and of them those that no other process looks at."""
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        return {"resident": kilobytes["Rss"] / 1e3, "own": own / 1e3}

    def read(self, first: int, last: int) -> float:
        """Look at every number of these chunks, and return how many megabytes they were."""
        views = [self.replica.view(id) for id in range(first, last)]
        assert all(np.isfinite(view.sum()) for view in views)
        return sum(view.nbytes for view in views) / 1e6


def measure_index_and_memory(actor: Any, options: Options) -> None:
    """Print how long new readers wait for an index, and what contents take of their memory."""
    import ray

    table = Table(title="MB of a reader that reads blocks of contents", title_justify="left")
    for column in ("contents", "read", "resident before", "after", "own before", "after"):
        table.add_column(column, justify="left" if column == "contents" else "right")
    kinds: dict[str, type[RayConnection]] = {"in Ray's store": RayConnection, "copied": Copying}
    for name, source in kinds.items():
        reader = ray.remote(Reader).options(num_cpus=0).remote(actor, source)
        seconds, chunks = ray.get(reader.waited.remote())
        show(f"a new reader has the index of {chunks:,} chunks after {seconds:.2f} s.")
        block = ray.get(actor.shape.remote()).block_chunks
        blocks = min(_BLOCKS_READ, chunks // block)
        ray.get(reader.read.remote(0, block))
        before = ray.get(reader.memory.remote())
        read = ray.get(reader.read.remote(block, blocks * block))
        after = ray.get(reader.memory.remote())
        columns = (read, before["resident"], after["resident"], before["own"], after["own"])
        table.add_row(name, *(f"{megabytes:.0f}" for megabytes in columns))
        ray.kill(reader)
    show(table)


def measure_reads(actor: Any, options: Options) -> None:
    """Print what a read through a replica costs, and one of a store in the process; they take turns."""
    import ray

    own = InProcessStore(options.chunk_length, _WIDTH, _READ_OF)
    shape = _READ_OF, options.chunk_length, _WIDTH
    chunks = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    lease = ray.get(actor.open_writer.remote("a", 0))
    ray.get(actor.append.remote("a", lease, 0, chunks))
    for chunk in chunks:
        own.append(chunk, first=0, last=0, stream="a")
    replica = Replica(RayConnection(actor))
    replica.refresh()
    generator = torch.Generator().manual_seed(0)
    attention = ChunkAttention(_WIDTH, _WIDTH, length=options.chunk_length, k=8, generator=generator)
    queries = torch.randn(_READS, _WIDTH, generator=generator)

    def run_of(store: ChunkStore) -> Callable[[], float]:
        memory = HCAM(attention, store, stream="a")

        def run() -> float:
            began = time.perf_counter()
            for query in queries:
                memory.read(query)
            return (time.perf_counter() - began) / _READS

        run()
        return run

    with torch.no_grad():
        runs = {"in the process": run_of(own), "a replica": run_of(replica)}
        assert torch.equal(*(HCAM(attention, store, stream="a").read(queries) for store in (own, replica)))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_READ_TURNS):
            for name, run in runs.items():
                seconds[name].append(run())
    table = Table(title=f"a read of 8 of {_READ_OF:,} chunks, one query", title_justify="left")
    for column in ("store", "µs", "times in the process"):
        table.add_column(column, justify="left" if column == "store" else "right")
    for name, spent in seconds.items():
        ratio = statistics.median(
            one / other for one, other in zip(spent, seconds["in the process"], strict=True)
        )
        table.add_row(name, f"{1e6 * statistics.median(spent):.0f}", f"{ratio:.3f}")
    show(table)


def measure_replicas(folder: Path, options: Options) -> None:
    """Print what following a memory in another process costs a reader."""
    import ray

    fill_directory(folder / "large", options.replica_chunks, options.chunk_length)
    settings = MemorySettings(options.chunk_length, _WIDTH, max(options.replica_chunks, _READ_OF))
    for name, measure in {"large": measure_index_and_memory, "small": measure_reads}.items():
        actor = ray.remote(MemoryActor).options(num_cpus=0).remote(settings, folder / name)
        ray.get(actor.counts.remote())
        measure(actor, options)
        ray.get(actor.close.remote())


def main(options: Options) -> None:
    """Measure."""
    if options.only in (None, "knowledge"):
        measure_knowledge(options)
    width = streamwise.make(ROOM, seed=0).observation_space.shape[0]
    measures = {"steps": measure_steps, "appends": measure_appends}
    chosen = [measure for name, measure in measures.items() if options.only in (None, name)]
    if not chosen and options.only not in (None, "replica"):
        return
    with tempfile.TemporaryDirectory() as folder, running_ray(None, 4):
        import ray

        settings = MemorySettings(options.chunk_length, width, 1_000_000)
        for number, measure in enumerate(chosen):
            actor = ray.remote(MemoryActor).options(num_cpus=0).remote(settings, Path(folder) / str(number))
            measure(actor, options)
            ray.get(actor.close.remote())
        if options.only in (None, "replica"):
            measure_replicas(Path(folder) / "replicas", options)


if __name__ == "__main__":
    run(main, Options, Options.__doc__)
