"""What every part of the live PromptTPP is worth: a log is read once, with each part taken away or changed.

A gap is scored by what was said right after the event that began it, a type by what is said at its time; a
key's first event is not scored. "On arrival" is what the same gap would score by the parameters as they are
when it ends. They were trained on what came meanwhile and so know what time it is. That is no prediction, and
a warning where it is far above. `decoder=intensity` is scored on arrival alone.

Differences are to the whole model on the same events, in nats an event, with a 95% interval from a bootstrap
over blocks of neighbouring events. It says what the events at hand leave open, not what other first weights
would: for that, use several seeds.

    OMP_NUM_THREADS=1 python benchmarks/event_ablations.py --source file:events.csv.gz   # 15 minutes
    python benchmarks/event_ablations.py --only retrieval --events 20000  # of $STREAMWISE_EVENTS
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from script import run as start
from tables import markdown, show

from streamwise import EventStream, open_source
from streamwise.agents import PromptTPP, PromptTPPConfig
from streamwise.agents.event_model import Score
from streamwise.runs.prequential import ks_distance
from streamwise.runs.statistics import bootstrap_interval
from streamwise.streams import UsageError

Array = NDArray[np.float64]

BLOCKS = 200
FLOORS = ("counts", "hawkes")  # which every model scores alongside


@dataclass(frozen=True)
class Case:
    """The model with some settings that are not the defaults."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


FULL = Case("whole")
CASES = [
    Case("no pool", {"prompts": 0}),
    Case("random retrieval", {"retrieval": "random"}),
    Case("refresh every step", {"refresh_every": 1}),
    Case("refresh every 8 steps", {"refresh_every": 8}),
    Case("refresh every 64 steps", {"refresh_every": 64}),
    Case("balanced use of prompts", {"usage_balance": 0.1}),
    Case("re-use of prompts after 5,000", {"reuse_after": 5_000.0}),
    Case("only the pool learns", {"train": "pool"}),
    Case("no attention, no pool", {"heads": 0, "prompts": 0}),
    Case("one layer", {"layers": 1}),
    Case("one head", {"heads": 1}),
    Case("no offsets for recency", {"recency": False}),
    Case("calendar", {"calendar": True}),
    Case("floor: counts", {"floor": "counts"}),
    Case("floor: hawkes", {"floor": "hawkes"}),
    Case("floor: none", {"floor": "none"}),
    Case("decoder: intensity, no floor", {"decoder": "intensity"}),
    Case("exact gradients", {"gradients": "exact"}),
    Case("silence is free", {"silence_every": 0}),
    Case("window 8", {"window": 8}),
    Case("window 16", {"window": 16}),
    Case("window 64", {"window": 64}),
    Case("history of 16 chunks", {"history": 16}),
    Case("window 8, history of 16 chunks", {"window": 8, "history": 16}),
    Case("step size 1e-4", {"learning_rate": 1e-4}),
    Case("groups of 1, step size 3e-4", {"group": 1, "learning_rate": 3e-4}),
    Case("groups of 8", {"group": 8}),
    Case("groups of 128", {"group": 128}),
    Case("4 times the step size after drift", {"drift_boost": 4.0}),
]


@dataclass(frozen=True)
class Options:
    """Take parts away from the live PromptTPP and print what each is worth on a log of events."""

    source: str = os.environ.get("STREAMWISE_EVENTS", "file:events.csv.gz")
    """Any source that ends, as `streamwise ingest` takes it."""
    events: int | None = None
    """Read no more than so many."""
    seeds: int = 1
    """Seeds 0, 1, ... of the first weights; scores are averaged over them."""
    only: str = ""
    """Run the cases whose name contains this text; the whole model is always run."""
    time_unit: float = 10_000.0
    """Seconds in the unit that gaps are given in."""
    out: Path | None = None
    """Write the table here, too, as Markdown, after every case."""


class Log(NamedTuple):
    """Events as columns, in order of time."""

    times: list[float]
    types: list[str]
    keys: list[str]


class Result(NamedTuple):
    """Scores of all events but first ones, [events], averaged over seeds; None where there is none."""

    time_log_likelihood: Array | None = None
    on_arrival: Array | None = None
    type_log_loss: Array | None = None
    type_error: Array | None = None
    ks: float | None = None
    events_per_second: float | None = None


def read(source: str, most: int | None) -> Log:
    log = Log([], [], [])
    stream = EventStream([open_source(source)], until_end=True, most=most)
    for batch in stream.batches():
        for column, values in zip(log, (batch.times, batch.types, batch.keys), strict=True):
            column.extend(values)
    stream.close()
    if not log.times:
        raise UsageError(f"{source} holds no events; the source has to be one that streamwise ingest reads.")
    return log


def run(case: Case, log: Log, options: Options) -> dict[str, Result]:
    """Learn through the log once for every seed; return scores of the model and of those beside it."""
    found = [
        run_once({**case.settings, "seed": seed}, log, options.time_unit) for seed in range(options.seeds)
    ]
    return {name: averaged([results[name] for results in found]) for name in found[0]}


def averaged(results: Sequence[Result]) -> Result:
    columns = zip(*results, strict=True)
    return Result(*(None if values[0] is None else np.mean(values, axis=0) for values in columns))


def run_once(settings: dict[str, Any], log: Log, time_unit: float) -> dict[str, Result]:
    model = PromptTPP(PromptTPPConfig(**settings))
    started = time.process_time()  # others may be using the machine
    rows = model.learn_many(*log)
    seconds = time.process_time() - started
    model.close()
    rows = rows[np.isfinite(rows[:, Score._fields.index("gap")])]
    column = dict(zip([*Score._fields, *model.extras], rows.T, strict=True))
    unit = np.log(time_unit)
    found = {
        name: Result(
            column[f"{name}_time_log_likelihood"] + unit,
            type_log_loss=column[f"{name}_type_log_loss"],
            type_error=column[f"{name}_type_error"],
        )
        for name in FLOORS
    }
    found["repeat the last type"] = Result(type_error=column["repeat_last_type_error"])
    whole = Result(
        column["time_log_density"] + unit,
        column["at_arrival_time_log_likelihood"] + unit,
        -column["type_log_probability"],
        (column["predicted_type"] != column["type"]).astype(np.float64),
        ks_distance(column["compensator"]),
        len(log.times) / seconds,
    )
    return {**found, FULL.name: whole}


HEADINGS = (
    "model", "times", "on arrival", "type log loss", "type error", "2nd half: times", "type log loss",
    "type error", "KS", "events/s", "times: difference", "types: difference",
)  # fmt: skip


def described(name: str, result: Result, full: Result) -> list[str]:
    """Return a row of the table."""
    parts = result[:4]
    later = [None if part is None else part[len(part) // 2 :] for part in (parts[0], *parts[2:])]
    forms = (".3f", ".3f", ".3f", ".1%", ".3f", ".3f", ".1%", ".3f", ",.0f")
    values = (*parts, *later, result.ks, result.events_per_second)
    texts = [
        "" if value is None else format(np.mean(value), form)
        for value, form in zip(values, forms, strict=True)
    ]
    leads = ["", ""]
    if result is not full and result.time_log_likelihood is not None:
        leads = [
            with_interval(result.time_log_likelihood - full.time_log_likelihood),
            with_interval(full.type_log_loss - result.type_log_loss),
        ]
    return [name, *texts, *leads]


def with_interval(leads: Array) -> str:
    """Return a mean lead over the whole model, with its interval over blocks of events."""
    blocks = [block.mean() for block in np.array_split(leads, min(BLOCKS, len(leads)))]
    low, high = bootstrap_interval(blocks, np.mean)
    return f"{np.mean(leads):+.3f} [{low:+.3f}, {high:+.3f}]"


def main(options: Options) -> None:
    torch.set_num_threads(1)
    log = read(options.source, options.events)
    found = run(FULL, log, options)
    full = found[FULL.name]
    table = Table(
        title=f"One pass over {len(log.times):,} events of {len(set(log.keys)):,} keys, "
        f"seeds: {options.seeds}, gaps in units of {options.time_unit:,.0f} s"
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, result in found.items():
        table.add_row(*described(name, result, full))
    cases = [case for case in CASES if options.only in case.name]
    for case in track(cases, console=Console(stderr=True)):
        table.add_row(*described(case.name, run(case, log, options)[FULL.name], full))
        if options.out:
            options.out.write_text(f"{markdown(table)}\n")
    show(table)


if __name__ == "__main__":
    start(main, Options, __doc__)
