"""How fast the live PromptTPP scores, predicts and learns, what each part costs, and how long an event waits.

Every event is predicted before it is learned: the distribution of its gap, its type at three quantiles of
the gap and at its time. The rows take turns on the same events, so that a machine that slows down slows all.
Multiply-adds are counted from the shapes, of a key whose window is full.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/live_tpp.py             # three minutes
    OMP_NUM_THREADS=1 python benchmarks/live_tpp.py --no-latency
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ingest
from rich.table import Table
from script import run
from tables import show

from streamwise.agents import Counts, EventModel, Hawkes, PromptTPP, PromptTPPConfig

VARIANTS: dict[str, dict[str, object]] = {
    "stale (default)": {},
    "stale, no pool": {"prompts": 0},
    "stale, no attention": {"heads": 0, "prompts": 0},
    "stale, a step for every event": {"group": 1},
    "exact": {"gradients": "exact"},
    "intensity, stale": {"decoder": "intensity"},
}
QUERIES = 5  # of an event: right after the last, at its time, and at three quantiles of the gap


@dataclass(frozen=True)
class Options:
    """Measure the live PromptTPP and print tables."""

    turns: int = 5
    """Turns of each row; the first, in which caches warm up, is left out."""
    events: int = 4_000
    """Events of a turn."""
    latency: bool = True
    """Also measure how long events wait, at a steady rate from Kafka."""
    rate: float = 1_000.0
    """Events a second of the latency run."""
    seconds: float = 70.0
    """How long the latency run takes."""


def multiply_adds(config: PromptTPPConfig) -> tuple[int, int]:
    """Return how many an event takes forward, and about how many forward and backward."""
    width, window = config.width, config.window
    times = config.time_width + 4 * config.calendar
    inputs, stacks = width + times, config.heads * config.layers
    seen = window + 1 + config.prompts // max(config.prompts, 1) * config.selected * config.rows
    row = stacks * (3 * inputs * width + 2 * seen * width)  # projections, scores and values
    encoded = window if config.gradients == "exact" else 1
    features = config.heads * width + times
    if config.decoder == "bins":
        decode = features * config.hidden + config.hidden * (112 + config.types) // 2
        queries, trained = QUERIES, 2
    else:
        decode, queries, trained = config.heads * width * config.types, 1 + 20 + 111 + 3, 21
    forward = encoded * row + queries * (row + decode)
    return forward, forward + 2 * (encoded * row + trained * (row + decode))


def speed(options: Options) -> None:
    """Print events a second of every variant, and what floors and attention cost."""
    path = Path(tempfile.mkdtemp()) / "log.csv"
    ingest.write_log(path, options.events * (options.turns + 1))
    times, types, keys = zip(*(line.split(",") for line in path.read_text().splitlines()[1:]), strict=True)
    stamps = [float(stamp) for stamp in times]
    configs = {name: PromptTPPConfig(**changes) for name, changes in VARIANTS.items()}  # type: ignore[arg-type]  # by name
    models: dict[str, EventModel] = {"counts": Counts(), "hawkes": Hawkes()}
    models |= {name: PromptTPP(config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.turns + 1):
        here = slice(turn * options.events, (turn + 1) * options.events)
        for name, model in models.items():
            began = time.perf_counter()
            model.learn_many(stamps[here], types[here], keys[here])
            seconds[name].append((time.perf_counter() - began) / options.events)
    table = Table(title="Scored with a prediction before every event, and learned; one process")
    for heading in (
        "model",
        "events/s",
        "µs an event",
        "kMAC forward",
        "kMAC in all",
        "GMAC/s",
        "cache hits",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, taken in seconds.items():
        each = statistics.median(taken[1:])
        row = [name, f"{1.0 / each:,.0f}", f"{1e6 * each:,.1f}"]
        model = models[name]
        if isinstance(model, PromptTPP):
            forward, total = multiply_adds(model.config)
            hits = model.statistics()["cache_hit_rate"]
            row += [
                f"{forward / 1e3:,.0f}",
                f"{total / 1e3:,.0f}",
                f"{total / each / 1e9:.1f}",
                f"{hits:.0%}",
            ]
        table.add_row(*row)
    show(table)
    shares = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    whole = shares["stale (default)"]
    parts = {
        "counts and hawkes": shares["counts"] + shares["hawkes"],
        "decoder, times, step": shares["stale, no attention"] - shares["counts"] - shares["hawkes"],
        "attention": shares["stale, no pool"] - shares["stale, no attention"],
        "pool": whole - shares["stale, no pool"],
    }
    show("Of the default: " + ", ".join(f"{name} {part / whole:.0%}" for name, part in parts.items()) + ".")


def measure(options: Options) -> None:
    """Print all tables."""
    speed(options)
    if options.latency:
        with tempfile.TemporaryDirectory() as folder:
            steady = ingest.Options(
                models=("counts", "prompt-tpp"),
                rate=options.rate,
                seconds=options.seconds,
                checkpoint_seconds=30.0,  # as `ingest` has it
            )
            ingest.latency(steady, Path(folder))


if __name__ == "__main__":
    run(measure, Options, __doc__)
