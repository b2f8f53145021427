"""What dividing a log among workers brings in speed, and what it costs or brings in scores.

Every partition is a file of keys of its own, whose events come from one and the same Hawkes process, so that
what one worker learns is worth knowing to another. Seconds go from when the first worker is told to begin to
when the last has ended, opening and the last checkpoint included, as those of a single run do; Ray's start is
not in them. Scores are prequential, over all events; their error is that of the mean over rows of so many
events as `--interval` says. All rows score the same events, so differences are surer than these errors say.

    OMP_NUM_THREADS=1 python benchmarks/partitioned_ingest.py                # ten minutes on four free cores
    OMP_NUM_THREADS=1 python benchmarks/partitioned_ingest.py --events 5000 --models counts
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ingest
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from script import run
from tables import show

from streamwise.agents import EVENT_MODELS
from streamwise.runs.ingest import ingest as ingest_alone
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.partitioned import ingest_partitioned
from streamwise.runs.sweep_data import read_events
from streamwise.streams.synthetic import SyntheticSource

SCORES = {"log_likelihood": "log-likelihood", "type_error": "type error"}


@dataclass(frozen=True)
class Options:
    """Compare one worker with several, and print a table."""

    models: tuple[str, ...] = ("counts", "prompt-tpp")
    """Which models."""
    workers: int = 2
    """How many workers are compared with one."""
    partitions: int = 4
    """Files, divided among them."""
    events: int = 500_000
    """Events of each file, for counts; a twentieth for prompt-tpp."""
    keys: int = 200
    """Keys of each file."""
    interval: int = 500
    """Events of a row, whose scores say how sure the mean is."""
    sync: float = 2.0
    """Seconds between averages, in the row that has some."""
    turns: int = 3
    """Runs of each row; the fastest counts."""


def write_files(folder: Path, options: Options, events: int) -> tuple[str, ...]:
    """Write a file a partition; return their URLs."""
    truth = SyntheticSource.from_url_parts("hawkes", {"events": "1"}).truth
    urls = []
    for number in range(options.partitions):
        source = SyntheticSource(truth, keys=options.keys, events=events, seed=number + 1)
        path = folder / f"events{number}-{events}.csv"
        with path.open("w") as file:
            file.write("time,type,key\n")
            while not source.finished:
                for records in source.poll(4_096, 0.0, set()):
                    file.writelines(
                        f"{time:.3f},{kind},{number}-{key}\n" for time, kind, key, _ in records.values
                    )
        urls.append(f"file:{path}")
    return tuple(urls)


def run_once(config: IngestConfig[Any]) -> dict[str, float]:
    """Ingest everything once; return events, events a second, averages, and scores with their errors."""
    started, averages = time.perf_counter(), 0
    if config.workers == 1:
        result = ingest_alone(config, display=ingest.NoDisplay)
        seconds = time.perf_counter() - started
    else:
        result = ingest_partitioned(config, console=Console(file=io.StringIO()))
        times: dict[str, list[float]] = {}
        for event in read_events(config.directory / "events.jsonl"):
            times.setdefault(event["event"], []).append(event["time"])
        seconds = max(times["worker finished"]) - min(times["at work"])
        averages = len(times.get("averaged", []))
    rows = pq.read_table(config.directory / "metrics.parquet").to_pylist()
    found = {"events": float(result.events), "rate": result.events / seconds, "averages": float(averages)}
    for name in SCORES:
        windows = np.array([row[f"{name}_window"] for row in rows])
        windows = windows[np.isfinite(windows)]
        found |= {name: result.scores[name], f"{name}_error": float(windows.std() / math.sqrt(len(windows)))}
    return found


def main(options: Options) -> None:
    table = Table(title=f"One worker and {options.workers}, {options.partitions} partitions")
    for heading in ("model", "workers", "averages", "events", "events/s", "ratio", *SCORES.values()):
        table.add_column(heading, justify="left" if heading in ("model", "workers") else "right")
    ways: dict[str, dict[str, Any]] = {
        "1": {"workers": 1},
        f"{options.workers}": {"workers": options.workers},
        f"{options.workers}, averaged": {"workers": options.workers, "sync": f"average:{options.sync:g}"},
    }
    with tempfile.TemporaryDirectory(prefix="partitioned-") as name:
        folder = Path(name)
        for model in options.models:
            events = options.events // (20 if model == "prompt-tpp" else 1)
            urls, alone = write_files(folder, options, events), math.nan
            for way, flags in ways.items():
                found = []
                for turn in range(options.turns):
                    out = folder / f"{model}-{way.replace(', ', '-')}-{turn}"
                    config: IngestConfig[Any] = IngestConfig(
                        urls,
                        EVENT_MODELS[model].Config(),
                        model=model,
                        interval=options.interval,
                        out=out,
                        **flags,
                    )
                    found.append(run_once(config))
                best = max(found, key=lambda one: one["rate"])
                alone = best["rate"] if flags["workers"] == 1 else alone
                numbers = f"{best['events']:,.0f}", f"{best['rate']:,.0f}", f"{best['rate'] / alone:.2f}"
                scores = (f"{best[score]:.4f} ± {best[f'{score}_error']:.4f}" for score in SCORES)
                averages = f"{best['averages']:.0f}" if best["averages"] else ""
                table.add_row(model, way, averages, *numbers, *scores)
    show(table)


if __name__ == "__main__":
    run(main, Options, __doc__)
