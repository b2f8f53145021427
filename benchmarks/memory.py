"""What a lookup in a hierarchical memory costs, from a hundred chunks to a million, on one core.

A lookup scans the summaries of all M chunks of C steps for the best k, and attends inside those. It is set
beside the same in torch as the formulas are (`reference`), beside torch's fastest words for it (a product,
`topk`, gathered contents), beside faiss's flat index with the attention of torch, and beside two bounds. *Of
bandwidth*: the time that the memory of this machine takes to hand over the bytes that must be read, all
summaries once and every chunk that is read once. *Of roofline*: that time where the bytes lie, which may be a
cache, or the time that the multiply-adds take, whichever is longer. Bandwidths are those of reading as many
bytes again and again; the multiply-adds a second are those of torch's product of two matrices. All sides take
turns.

Then: what it costs to remember a step, and to read from a store whose contents are on disk, in the page
cache.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/memory.py              # five minutes
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/memory.py --most 100000 --plot lookup.png
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/memory.py --only store --spilled 1000000  # 9 GB of disk

`pip install faiss-cpu` for its column.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from script import run
from tables import show
from torch import Tensor

from streamwise.kernels import native_info
from streamwise.kernels.chunk_attention import attend, quantize, scan
from streamwise.memory.hcam import HCAM, ChunkAttention
from streamwise.memory.store import InProcessStore

_LARGE = 400_000_000  # bytes, more than any cache holds


@dataclass(frozen=True)
class Options:
    """Measure a chunk memory and print tables."""

    only: Literal["lookup", "append", "store"] | None = None
    """Measure one of them; all by default."""
    most: int = 1_000_000
    """The largest number of chunks."""
    length: int = 32
    """Steps of a chunk."""
    width: int = 64
    """Numbers of a step."""
    k: int = 8
    """Chunks that are read."""
    heads: int = 4
    """Of the attention inside a chunk."""
    queries: tuple[int, ...] = (1, 16)
    """Queries that share a scan."""
    turns: int = 7
    """Turns that each side takes; the first is left out."""
    spilled: int = 100_000
    """Chunks of the store on disk."""
    plot: Path | None = None
    """Draw how the time grows with the number of chunks."""


def seconds_in_turns(sides: dict[str, Callable[[], object]], turns: int, least: float) -> dict[str, float]:
    """Return the median time of a call of each side; a turn takes at least so many seconds."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, call in sides.items():
            calls, started = 0, time.perf_counter()
            while not calls or time.perf_counter() - started < least:
                call()
                calls += 1
            found[name].append((time.perf_counter() - started) / calls)
    return {name: statistics.median(seconds[1:] or seconds) for name, seconds in found.items()}


def fastest(call: Callable[[], object], times: int) -> float:
    """Return the seconds of the fastest of some calls."""
    best = math.inf
    for _ in range(times):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def bandwidth(size: int) -> float:
    """Return bytes a second of reading so many bytes again and again, by the best of three ways."""
    numbers = torch.rand(size // 4)
    ways = (lambda: torch.dot(numbers, numbers), numbers.max, numbers.sum)
    return size / min(fastest(way, max(5, _LARGE // size)) for way in ways)


def multiply_adds() -> float:
    """Return multiply-adds a second of a product of matrices, which reads each number many times."""
    one, other = torch.rand(2, 512, 512)
    return 512**3 / fastest(lambda: one @ other, 50)


class Memory:
    """M chunks and Q queries; many chunks share the contents of fewer, to fit in memory."""

    def __init__(self, chunks: int, queries: int, options: Options) -> None:
        self.k, generator = options.k, torch.Generator().manual_seed(0)
        self.stored = min(chunks, 20_000)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.summaries = drawn(1, chunks, options.width)
        self.contents = drawn(1, self.stored, options.length, options.width)
        self.select = drawn(1, queries, options.width)
        self.ask = drawn(1, queries, options.heads, options.width) / math.sqrt(options.width)
        chunk = self.contents[0, 0].numel()
        read = scan(self.select, self.summaries, k=self.k)[0] % self.stored
        self.bytes = 4 * (self.summaries.numel() + len(read.unique()) * chunk)
        self.multiply_adds = queries * (self.summaries.numel() + 2 * options.heads * options.k * chunk)

    def ours(self, summaries: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        """Look up natively."""
        stored = self.summaries if summaries is None else summaries
        chunks, logits = scan(self.select, stored, k=self.k, scales=scales)
        return attend(self.ask, logits, chunks % self.stored, self.contents)

    def reference(self) -> Tensor:
        """Look up by the formulas."""
        chunks, logits = scan(self.select, self.summaries, k=self.k, implementation="reference")
        return attend(self.ask, logits, chunks % self.stored, self.contents, implementation="reference")

    def by_topk(self) -> Tensor:
        """Look up with torch's own words."""
        logits, chunks = (self.select[0] @ self.summaries[0].T).topk(self.k)
        return self._attended(chunks, logits)

    def by_faiss(self) -> Callable[[], Tensor]:
        """Return a lookup whose scan is that of faiss."""
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(self.summaries.shape[2])
        index.add(self.summaries[0].numpy())
        queries = self.select[0].numpy()

        def look() -> Tensor:
            logits, chunks = index.search(queries, self.k)
            return self._attended(torch.from_numpy(chunks), torch.from_numpy(logits))

        return look

    def _attended(self, chunks: Tensor, logits: Tensor) -> Tensor:
        opened = self.contents[0][chunks % self.stored]  # [Q, k, C, D]
        shares = torch.einsum("qhd,qkcd->qhkc", self.ask[0], opened).softmax(-1)
        weighed = shares * logits.softmax(-1)[:, None, :, None]
        return torch.einsum("qhkc,qkcd->qhd", weighed, opened)[None]


@torch.no_grad()
def lookups(options: Options) -> dict[int, list[tuple[int, float, float]]]:
    """Print the table; return chunks, our seconds and the least possible, by the number of queries."""
    known = importlib.util.find_spec("faiss") is not None
    table = Table(
        title=f"A lookup: best {options.k} of M chunks of {options.length} steps, {options.width} wide, "
        f"{options.heads} heads; µs"
    )
    names = ["streamwise", "bfloat16", "int8", "reference", "torch, topk", *(["faiss"] if known else [])]
    for heading in (
        "M",
        "queries",
        *names,
        "/ reference",
        "/ topk",
        "/ faiss",
        "of bandwidth",
        "of roofline",
    ):
        table.add_column(heading, justify="right")
    grown: dict[int, list[tuple[int, float, float]]] = {queries: [] for queries in options.queries}
    chunks, speed, peak = 100, bandwidth(_LARGE), multiply_adds()
    while chunks <= options.most:
        for queries in options.queries:
            memory = Memory(chunks, queries, options)
            half, (eighth, scales) = memory.summaries.bfloat16(), quantize(memory.summaries)
            sides: dict[str, Callable[[], object]] = {
                "streamwise": memory.ours,
                "bfloat16": lambda m=memory, s=half: m.ours(s),  # type: ignore[misc]  # bound now, not when called
                "int8": lambda m=memory, s=eighth, x=scales: m.ours(s, x),  # type: ignore[misc]  # bound now, not when called
                "reference": memory.reference,
                "torch, topk": memory.by_topk,
            }
            if known:
                sides["faiss"] = memory.by_faiss()
            expected, found = memory.reference(), memory.ours()
            if not torch.allclose(expected, found, atol=1e-4):
                raise RuntimeError("the native lookup differs from the reference; its speed says nothing.")
            seconds = seconds_in_turns(sides, options.turns, 0.02)
            ours, least = seconds["streamwise"], memory.bytes / speed
            roofline = max(memory.bytes / bandwidth(memory.bytes), memory.multiply_adds / peak)
            ratios = [
                f"{seconds[name] / ours:.1f}" if name in seconds else ""
                for name in ("reference", "torch, topk", "faiss")
            ]
            table.add_row(
                f"{chunks:,}", str(queries), *(f"{1e6 * seconds[name]:,.0f}" for name in names), *ratios,
                f"{least / ours:.0%}", f"{roofline / ours:.0%}",
            )  # fmt: skip
            grown[queries].append((chunks, ours, least))
        chunks *= 10
    show(table)
    show(
        f"Bandwidth: {speed / 1e9:.1f} GB/s, of reading {_LARGE / 1e6:,.0f} MB. Multiply-adds: "
        f"{peak / 1e9:.1f} billion a second."
    )
    return grown


def draw(grown: dict[int, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw the time of a lookup over the number of chunks."""
    import matplotlib.style
    from matplotlib.figure import Figure

    from streamwise.runs.figures import COLOURS, INK, STYLE

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for (queries, points), colour in zip(grown.items(), COLOURS, strict=False):
            chunks, ours, least = zip(*points, strict=True)
            word = "query" if queries == 1 else "queries"
            axes.loglog(chunks, [1e6 * s for s in ours], "o-", color=colour, label=f"{queries} {word}")
            axes.loglog(chunks, [1e6 * s for s in least], ":", color=colour)
        axes.plot([], [], ":", color=INK, label="what reading the bytes takes")
        axes.set(xlabel="chunks", ylabel="µs a lookup", title="A lookup, by how much there is to remember")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": "streamwise"})


def appends(options: Options) -> None:
    """Print what a step costs that is remembered, sealing included."""
    table = Table(title=f"Remembering a step, {options.length} to a chunk: µs a step, of processor time")
    for heading in ("store", "steps", "median", "mean"):
        table.add_column(heading, justify="left" if heading == "store" else "right")
    item, steps = torch.randn(options.width), 200 * options.length
    with tempfile.TemporaryDirectory() as folder:
        for name, directory in (("in memory", None), ("on disk", Path(folder) / "chunks")):
            store = InProcessStore(options.length, options.width, 10_000, directory=directory)
            memory = HCAM(ChunkAttention(options.width, options.width, length=options.length), store)
            seconds = []
            for _ in range(options.turns):
                started = time.process_time()
                for _ in range(steps):
                    memory.append(item)
                seconds.append((time.process_time() - started) / steps)
            store.close()
            table.add_row(
                name, f"{options.turns * steps:,}", f"{1e6 * statistics.median(seconds[1:]):.2f}",
                f"{1e6 * statistics.mean(seconds[1:]):.2f}",
            )  # fmt: skip
    show(table)


def use_store(folder: str, options: Options, answer: Any) -> None:
    """Fill a store on disk in a process of its own, and read from it; answer with what that took."""
    store = InProcessStore(options.length, options.width, options.spilled, directory=Path(folder))
    generator = np.random.default_rng(0)
    chunk = generator.standard_normal((options.length, options.width), np.float32)
    started = time.perf_counter()
    for i in range(options.spilled):
        chunk[0, 0] = i
        store.append(chunk, first=float(i), last=float(i))
    filled = time.perf_counter() - started
    waits = []
    for _ in range(3_000):
        ids = generator.integers(options.spilled, size=options.k).tolist()
        started = time.perf_counter()
        contents, _ = store.contents(ids)
        waits.append(time.perf_counter() - started)
        if contents[:, 0, 0].tolist() != [float(np.float32(i)) for i in ids]:
            raise RuntimeError("what was read is not what was stored.")
    lines = Path("/proc/self/status").read_text().splitlines()
    store.close()
    resident = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    answer.put((filled, resident, waits))


def stores(options: Options) -> None:
    """Print what a store on disk costs."""
    table = Table(title=f"A store on disk: {options.k} chunks a read, from the page cache")
    for heading in ("chunks", "GB on disk", "chunks/s sealed", "MiB resident", "read: p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        answer = spawn.Queue()
        process = spawn.Process(target=use_store, args=(folder, options, answer))
        process.start()
        filled, resident, waits = answer.get()
        process.join()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    table.add_row(
        f"{options.spilled:,}", f"{size / 1e9:.2f}", f"{options.spilled / filled:,.0f}", f"{resident:,.0f}",
        *(f"{1e3 * np.quantile(waits, q):.3f}" for q in (0.5, 0.99)),
    )  # fmt: skip
    show(table)


def main(options: Options) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    info = native_info()
    if info is None:
        show("The native kernels are not built; 'streamwise' is the reference here.")
    else:
        show(f"Native kernels: {info.instruction_set}, {info.compiler}.")
    if options.only in (None, "lookup"):
        grown = lookups(options)
        if options.plot is not None:
            draw(grown, options.plot)
    if options.only in (None, "append"):
        appends(options)
    if options.only in (None, "store"):
        stores(options)


if __name__ == "__main__":
    run(main, Options, __doc__)
