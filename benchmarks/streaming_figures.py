"""Draw what is special about learning from a stream, measured on stream-Q and MinAtar Breakout.

Beside a drawing of the loop: the bytes of the learner's state and of the samples it has dropped; how far one
update moves the values of earlier actions, with traces and without; and the returns of both. Five minutes.

    python benchmarks/streaming_figures.py --folder docs/images
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from script import run

import streamwise
from streamwise.agents import StreamQ, StreamQConfig
from streamwise.runs.figures import INK, LINE, MUTED, STYLE, finish_axes

TRACES = {0.8: "#1f6fb2", 0.0: "#d0601a"}  # lambda, and the colour of its lines
LOOK_BACK = 20  # actions before a reward whose values are looked at
BUFFER = 100_000  # samples, what DQN keeps on MinAtar


@dataclass(frozen=True)
class Options:
    """Draw the picture of the page on streaming."""

    folder: Path = Path("docs/images")
    """Where it goes."""
    steps: int = 300_000
    """Of each run."""
    seeds: int = 3
    """Runs with traces, and as many without."""


@dataclass(frozen=True)
class Measured:
    """One run.

    steps: int [n], when bytes and returns were taken. moved: float [LOOK_BACK], from the newest action to
    earlier ones, mean over the rewards of the second half.
    """

    steps: NDArray[np.int64]
    state_bytes: NDArray[np.int64]
    sample_bytes: NDArray[np.int64]
    returns: NDArray[np.float64]
    moved: NDArray[np.float64]


def bytes_of(sample: streamwise.Transition) -> int:
    """Return what a frugal buffer keeps of a sample: a grid of booleans, action, reward and two flags."""
    return sample.observation.size + 1 + 4 + 2


def measure(trace_decay: float, seed: int, steps: int, every: int = 5_000) -> Measured:
    """Learn, and look at the learner's state, at what it drops, and at what rewards change."""
    env = streamwise.make("MinAtar/Breakout-v1", seed=seed)
    config = StreamQConfig(trace_decay=trace_decay, exploration_steps=steps // 5)
    agent = StreamQ(env.observation_space, env.action_space, config, seed=seed)
    dropped, episode_return = 0, 0.0
    rows: list[tuple[int, int, int, float]] = []
    returns: deque[float] = deque(maxlen=100)
    moved: list[NDArray[np.float64]] = []
    lately: deque[streamwise.Transition] = deque(maxlen=LOOK_BACK)

    def values() -> NDArray[np.float64]:
        if agent.native is not None:
            agent.native.pull()
        seen = [agent.network.predict(agent.samples.observe(sample.observation)) for sample in lately]
        return np.array([row[sample.action].item() for row, sample in zip(seen, lately, strict=True)])

    for step, sample in zip(range(1, steps + 1), streamwise.EnvironmentStream(env, agent.act), strict=False):
        lately.append(sample)
        looked_at = step > steps // 2 and sample.reward > 0 and len(lately) == LOOK_BACK
        before = values() if looked_at else None
        agent.learn_one(sample)
        if before is not None:
            moved.append(np.abs(values() - before)[::-1])
        dropped += bytes_of(sample)
        episode_return += sample.reward
        if sample.terminated or sample.truncated:
            returns.append(episode_return)
            episode_return = 0.0
            lately.clear()
        if step % every == 0:
            state = sum(tensor.nbytes for tensor in agent.state_dict().values())
            rows.append((step, state, dropped, float(np.mean(returns))))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Measured(*columns, np.mean(moved, axis=0))


def box(axes: Axes, x: float, y: float, text: str, colour: str = LINE) -> None:
    """Draw a word in a box."""
    style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour, "linewidth": 1.4}
    axes.text(x, y, text, ha="center", va="center", bbox=style)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": MUTED, "shrinkA": 2, "shrinkB": 2})


def draw_loop(axes: Axes) -> None:
    """Draw the way of a sample through a streaming learner, and through one with a replay buffer."""
    axes.set(xlim=(0, 10), ylim=(0, 10), title="What happens to a sample")
    axes.axis("off")
    stream, replay = TRACES.values()
    axes.text(0, 9.0, "streaming", color=stream, weight="bold")
    for (left, _), (right, _) in pairwise([(1.1, 0), (4.9, 0), (8.8, 0)]):
        arrow(axes, (left + 1.1, 7.2), (right - 1.2, 7.2))
    box(axes, 1.1, 7.2, "sample")
    box(axes, 4.9, 7.2, "one update\nweights, traces", stream)
    box(axes, 8.8, 7.2, "dropped")
    axes.text(0, 4.5, "with a replay buffer", color=replay, weight="bold")
    arrow(axes, (2.2, 2.7), (3.4, 2.7))
    arrow(axes, (6.4, 2.7), (7.3, 2.7))
    arrow(axes, (4.9, 1.9), (4.9, 0.4))
    box(axes, 1.1, 2.7, "sample")
    box(axes, 4.9, 2.7, "buffer of the\nlatest samples", replay)
    box(axes, 8.8, 2.7, "updates on\nbatches of it")
    axes.text(5.2, 0.4, "dropped when it is full", color=MUTED, va="center")


def draw(options: Options, runs: dict[float, list[Measured]]) -> Path:
    """Draw the loop and the three measurements."""
    path, first = options.folder / "streaming.png", runs[0.8][0]
    with matplotlib.style.context(["default", STYLE, {"font.size": 10, "axes.titlesize": 11}]):
        figure = Figure(figsize=(9, 6.6), layout="constrained")
        (loop, held), (credit, learned) = figure.subplots(2, 2)
        draw_loop(loop)

        held.plot(
            first.steps,
            first.state_bytes / 1e6,
            color=TRACES[0.8],
            linewidth=2,
            label="the learner's whole state",
        )
        held.plot(first.steps, first.sample_bytes / 1e6, color=INK, linewidth=1.2, label="every sample, kept")
        per_sample = first.sample_bytes[0] / first.steps[0]
        held.plot(
            first.steps,
            np.minimum(first.steps, BUFFER) * per_sample / 1e6,
            "--",
            color=TRACES[0.0],
            label=f"the latest {BUFFER:,}, kept",
        )
        held.set(ylabel="megabytes", title="What is held")
        for decay, colour in TRACES.items():
            name = f"λ = {decay:g}" + ("" if decay else ", no traces")
            moved = np.mean([run.moved for run in runs[decay]], axis=0)
            credit.plot(np.arange(LOOK_BACK), moved, ".-", color=colour, label=name)
            curves = np.array([run.returns for run in runs[decay]])
            learned.plot(first.steps, curves.T, color=colour, alpha=0.35, linewidth=0.8)
            learned.plot(first.steps, curves.mean(0), color=colour, linewidth=2, label=name)
        credit.set(
            ylabel="mean |change of q(s, a)|", title="How far a reward moves the values of earlier actions"
        )
        credit.set_ylim(bottom=0.0)
        learned.set(ylabel="return, mean of 100 episodes", title="Returns")
        for axes, across in ((held, "steps"), (credit, "actions before the reward"), (learned, "steps")):
            finish_axes(axes, across=across)
            axes.legend()
        figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": "streamwise"})
    return path


def main(options: Options) -> None:
    """Measure, print and draw."""
    runs = {decay: [measure(decay, seed, options.steps) for seed in range(options.seeds)] for decay in TRACES}
    for decay, measured in runs.items():
        returns = ", ".join(f"{run.returns[-1]:.2f}" for run in measured)
        moved = np.mean([run.moved for run in measured], axis=0)
        print(f"lambda {decay}: returns at the end {returns}")
        print(f"  moved {np.array2string(moved, precision=4)}")
        held = measured[0].state_bytes
        print(f"  state {held[0]:,} bytes at first, {held[-1]:,} at the end")
        print(f"  samples {measured[0].sample_bytes[-1]:,} bytes")
    print(draw(options, runs))


if __name__ == "__main__":
    run(main, Options, __doc__)
