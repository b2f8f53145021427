"""Draw what a hierarchical chunk memory keeps, what a query finds in it, and what agents make of it.

A stream of 16 chunks, in two of which something happened that is like the query. Projections are the
identity, as if what is alike were also what is looked for.

    python benchmarks/memory_figures.py --folder docs/images
    streamwise sweep recall && python benchmarks/memory_figures.py --recall outputs/recall
    streamwise sweep ballet && python benchmarks/memory_figures.py --ballet outputs/ballet
    streamwise sweep key-door && python benchmarks/memory_figures.py --key-door outputs/key-door
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from script import run

from streamwise.memory.hcam import ChunkAttention, Chunks
from streamwise.runs.figures import INK, MUTED, STYLE, finish_axes, line_style

WIDTH, LENGTH, CHUNKS, OPENED = 12, 8, 16, 4
EVENTS = {27: 1.0, 93: 0.8}  # at which steps something like the query happened, and how much like it
OPEN = "#2563eb"
AGENTS = {"hcam": "chunks of the past", "gru": "a recurrent state", "none": "neither"}


@dataclass(frozen=True)
class Options:
    """Draw the pictures of the page on memory."""

    folder: Path = Path("docs/images")
    """Where they go."""
    recall: Path | None = None
    """A finished sweep `recall`, to draw its curves alone."""
    ballet: Path | None = None
    """A finished sweep `ballet`, to draw its curves alone."""
    key_door: Path | None = None
    """A finished sweep `key-door`, to draw its curves alone."""


@dataclass(frozen=True)
class Curves:
    """A picture of a sweep. every: steps of a point. prize: the return of an episode that went right."""

    title: str
    every: int
    what: str = "right answers"
    prize: float = 1.0


CURVES = {
    "recall": Curves("Which of four symbols was it, fifty steps ago? Five seeds of stream-AC", 25_000),
    "ballet": Curves(
        "Who of two danced it? Stream-AC, as it acts while it learns, with strides of three cells", 100_000
    ),
    "key_door": Curves(
        "Was the key taken, fifty steps before the door? Stream-AC, as it acts while it learns",
        100_000,
        "doors opened",
        10.0,
    ),
}


def stream(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return steps [CHUNKS * LENGTH, WIDTH] and a query [WIDTH] that two of them are like."""
    steps = 0.5 * torch.randn(CHUNKS * LENGTH, WIDTH, generator=generator)
    query = torch.randn(WIDTH, generator=generator)
    for at, likeness in EVENTS.items():
        steps[at] += 2.0 * likeness * query
    return steps, query


def reader() -> ChunkAttention:
    """Return attention whose projections are the identity."""
    made = ChunkAttention(WIDTH, WIDTH, features=WIDTH, heads=1, length=LENGTH, k=OPENED, positions=False)
    with torch.no_grad():
        for weights in (made.select_query, made.select_key, made.query, made.key, made.value, made.output):
            weights.copy_(torch.eye(WIDTH))
    return made


@torch.no_grad()
def draw(options: Options) -> Path:
    """Draw what is stored, which chunks are opened, and what is looked at inside them."""
    steps, query = stream(torch.Generator().manual_seed(3))
    whole = steps.view(CHUNKS, LENGTH, WIDTH)
    chunks, attention = Chunks(whole.mean(1)[None], whole[None]), reader()
    opened, logits = attention.select(query[None, None], chunks.summaries)
    scores = (whole.mean(1) @ query / WIDTH**0.5).numpy()
    shares = np.zeros((CHUNKS, LENGTH))
    for chunk, weight in zip(opened[0, 0].tolist(), logits[0, 0].softmax(-1).tolist(), strict=True):
        inside = (whole[chunk] @ query / WIDTH**0.5).softmax(0)
        shares[chunk] = weight * inside.numpy()
    read = attention(query[None, None], chunks)[0, 0]
    if not torch.allclose(read, torch.from_numpy(shares.ravel()).float() @ steps, atol=1e-4):
        raise RuntimeError("what is drawn is not what was read.")

    path = options.folder / "memory-lookup.png"
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(9, 6), layout="constrained")
        stored, selected, inside = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1.2, 1.2))
        limit, extent = float(steps.abs().max()), (0, len(steps), WIDTH, 0)
        stored.imshow(steps.T, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent)
        stored.set(ylabel="numbers of a step", title="Stored: every step, in chunks that never change")
        for border in range(LENGTH, len(steps), LENGTH):
            stored.axvline(border, color="white", linewidth=1.5)
        chosen = set(opened[0, 0].tolist())
        colours = [OPEN if chunk in chosen else MUTED for chunk in range(CHUNKS)]
        selected.bar((np.arange(CHUNKS) + 0.5) * LENGTH, scores, 0.85 * LENGTH, color=colours)
        selected.axhline(0.0, color=INK, linewidth=0.6)
        selected.set(
            ylabel="ℓ", title=f"Scanned: a summary of each chunk; the best {OPENED}, in blue, are opened"
        )
        inside.bar(np.arange(len(steps)) + 0.5, shares.ravel(), 0.9, color=OPEN)
        for at in EVENTS:
            inside.annotate(
                "like the query", (at + 0.5, shares.ravel()[at]), (6, -4), textcoords="offset points"
            )
        inside.set(xlabel="step", ylabel="share", title="Looked at: the steps of opened chunks")
        for axes in (selected, inside):
            finish_axes(axes)
            axes.set_axisbelow(True)
        selected.set_xlabel("")
        figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": "streamwise"})
    return path


def draw_curves(path: Path, sweep: Path, curves: Curves) -> Path:
    """Draw what went right over the steps, each seed and their mean, for each agent of the sweep."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.subplots()
        for place, (agent, label) in enumerate(AGENTS.items()):
            style, seeds = line_style(place), []
            for file in sorted(sweep.glob(f"runs/*-{agent}-seed*/metrics.parquet")):
                table = pq.read_table(file, columns=["step", "episode_return"])
                step, right = table["step"].to_numpy(), table["episode_return"].to_numpy() / curves.prize
                ends = np.arange(curves.every, step[-1] + 1, curves.every)
                seeds.append([right[(end - curves.every < step) & (step <= end)].mean() for end in ends])
                axes.plot(ends, seeds[-1], alpha=0.35, linewidth=0.9, **style)
            if seeds:
                common = min(map(len, seeds))  # a run may have been extended
                mean = np.mean([seed[:common] for seed in seeds], axis=0)
                axes.plot(curves.every * np.arange(1, common + 1), mean, linewidth=2, label=label, **style)
        axes.set(ylabel=curves.what, ylim=(0, 1))
        axes.set_title(curves.title)
        axes.legend(loc="center right")
        finish_axes(axes)
        figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": "streamwise"})
    return path


def main(options: Options) -> None:
    """Draw the curves of the sweeps that are given, or what a memory keeps."""
    given = {name: getattr(options, name) for name in CURVES}
    for name, sweep in given.items():
        if sweep is not None:
            path = options.folder / f"memory-{name.replace('_', '-')}.png"
            print(draw_curves(path, sweep, CURVES[name]))
    if not any(given.values()):
        print(draw(options))


if __name__ == "__main__":
    run(main, Options, __doc__)
