"""Measure everything, one section after another, and draw docs/benchmarks.md.

Sections run as the commands that the page shows, in processes of their own; what they print is kept in
docs/benchmarks/, a file a section. What takes hours, or needs data, is measured only where it is named. With
--brief all is short, to try it, and the page is outputs/benchmarks.md. Exits with 1 if a section of the page
failed or was never measured.

    streamwise bench all                       # an hour on a quiet machine
    streamwise bench all --only step memory    # these anew
    streamwise bench all --only returns        # hours
    streamwise bench all --draw                # the page alone
    streamwise bench all --brief               # to try
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from page import ROOT, Result, Section, commit, draw, machine, read_results, write_result
from script import run
from tables import TABLES

from streamwise.streams.errors import UsageError, meant

KEPT = ROOT / "docs" / "benchmarks"
TRIED = Path("outputs") / "benchmarks"
BARE = "--no-scaling --no-saving --no-memory"  # of `bench step`: speeds alone

SECTIONS = [
    Section(
        "step",
        "Speed beside the environment",
        "A run as `streamwise train` makes it, in steps a second, beside the environment alone, which "
        "replays the actions of the run, and beside the same run by torch; in turns, and ratios within each "
        "turn. Then ObGD, which has no second moments, and what checkpoints and long runs cost. "
        "([Where the time goes](results.md#speed).)",
        (
            "streamwise bench step --no-scaling",
            f"streamwise bench step --rule obgd --only HalfCheetah {BARE}",
        ),
        (f"streamwise bench step --only CartPole --turns 3 {BARE}",),
        minutes=12,
    ),
    Section(
        "tpp",
        "PromptTPP: training and predictions",
        "Events a second of one core, of the published size, taking turns with the published arithmetic, "
        "which evaluates the whole stack once for every point in time. ([PromptTPP](prompt-tpp.md).)",
        ("streamwise bench tpp --only training", "streamwise bench tpp --only prediction"),
        (
            "streamwise bench tpp --only training --turns 2 --seconds 0.1 --batch 8",
            "streamwise bench tpp --only prediction --turns 2 --seconds 0.1",
        ),
        minutes=4,
    ),
    Section(
        "live-tpp",
        "PromptTPP, live",
        "Every event is scored with a prediction before it, and learned, once. Then how long an event waits "
        "from its poll until it is learned. ([What each part brings](prompt-tpp.md#what-each-part-brings).)",
        ("streamwise bench live-tpp",),
        ("streamwise bench live-tpp --turns 1 --events 500 --no-latency",),
        minutes=5,
    ),
    Section(
        "ingest",
        "Events taken in",
        "Events decoded, merged, scored, learned and recorded: how many a second, where the time goes, how "
        "long one waits, what keys take, and how the Hawkes fit approaches the process that made the events. "
        "([Event streams](events.md).)",
        ("streamwise bench ingest",),
        ("streamwise bench ingest --events 20000 --no-kafka --no-latency --no-memory --no-curve",),
        minutes=10,
    ),
    Section(
        "partitioned-ingest",
        "Events taken in by several workers",
        "The partitions of a log divided among processes, and the scores of models that see a part each. "
        "([Several workers](events.md).)",
        ("streamwise bench partitioned-ingest",),
        ("streamwise bench partitioned-ingest --events 2000 --models counts --turns 1",),
        minutes=10,
    ),
    Section(
        "memory",
        "A lookup in the memory",
        "The best chunks of a hundred to a million are found and read, beside the formulas in torch, the "
        "fastest words of torch, faiss, and the time that reading the bytes takes; then what it costs to "
        "remember a step. ([What it costs](memory.md#what-it-costs).)",
        ("streamwise bench memory",),
        ("streamwise bench memory --most 1000 --turns 2 --spilled 1000",),
        minutes=8,
    ),
    Section(
        "shared-memory",
        "A memory that is shared",
        "What a step costs a learner whose memory others read and write, how much one memory takes in, what "
        "somebody learns who is only told, and copies of a large memory. "
        "([What sharing brings, and costs](systems.md#what-sharing-brings-and-costs).)",
        ("streamwise bench shared-memory",),
        (
            "streamwise bench shared-memory --only appends --chunks 256",
            "streamwise bench shared-memory --only knowledge --facts 10 --questions 200 --seeds 1",
        ),
        minutes=8,
    ),
    Section(
        "sweep",
        "A sweep on several cores",
        "The same runs one after another and several at once: how much sooner they end, how much of the "
        "processes' time is spent in runs, and whether they did the same. ([Sweeps](sweeps.md).)",
        ("streamwise bench sweep",),
        ("streamwise bench sweep --steps 500 --seeds 1",),
        minutes=8,
    ),
    Section(
        "returns",
        "What agents reach",
        "Mean returns of 20 episodes: medians over seeds, and the lowest and highest; no seed is left out. "
        "`obgd` has the published settings, `intentional` is the default. "
        "([What they say](results.md#learning).)",
        ("streamwise bench returns",),
        ("streamwise bench returns --only CartPole --table",),
        minutes=600,
        routine=False,
    ),
    Section(
        "prediction",
        "Predictions of a time series",
        "The discounted sum of the oil temperature of ETTh1, predicted before every update: mean squared "
        "error over the second half, beside two predictors that learn nothing. "
        "([Two cautions](results.md#prediction).)",
        ("streamwise bench prediction --data ETTh1.csv",),
        minutes=10,
        routine=False,
    ),
    Section(
        "shopping-log",
        "Event models on a shopping log",
        "115,397 events of 2,000 users, 17 types, one pass, every event predicted before it is learned; nats "
        "an event, gaps in units of 10⁴ s. ([How to read it](results.md#events).)",
    ),
    Section(
        "changing-worlds",
        "Agents while their world changes",
        "Visits of 100,000 steps to worlds A, B, A, C, A, and the same again; mean return of the episodes in "
        "the last fifth of a visit, five seeds, ± its standard error. Where a world comes back, what is had "
        "in the first fifth stands before the arrow. ([What these say](continual.md#what-they-keep).)",
        ("streamwise bench changing-worlds --steps 1000000 --methods plain 'k-FPF, head' DKVB",),
        (
            "streamwise bench changing-worlds --worlds gravity --methods plain --every 500 --seeds 1 "
            "--out outputs/benchmarks/changing-worlds",
        ),
        minutes=600,
        routine=False,
    ),
    Section(
        "soak",
        "Killed and resumed",
        "Runs that are killed with SIGKILL at random moments and resumed, against twins that never were: "
        "every tensor, statistic, counter, row of metrics, and the environment's whole state. "
        "([Guarantees](guarantees.md).)",
        ("streamwise bench soak",),
        ("streamwise bench soak --kills 1 --only 'CartPole-v1 stream-q'",),
        minutes=30,
        routine=False,
    ),
    Section(
        "event-kills",
        "Events learned exactly once",
        "Runs on events that are killed with SIGKILL at random moments, while their broker is stopped for a "
        "second now and then, against runs left alone: state, scores, rows, refused records. "
        "([Exactly once](events.md#exactly-once).)",
    ),
    Section(
        "live-system",
        "A live system in which something dies",
        "Two agents that share a memory, one on a game, and PromptTPP on Kafka with two workers, on two "
        "nodes. Every 20 seconds a learner, the memory, the driver, a node or the broker goes; afterwards "
        "events, agents and chunks are counted and compared. "
        "([What is guaranteed](systems.md#what-is-guaranteed).)",
        ("streamwise bench live-system --minutes 30",),
        ("streamwise bench live-system --minutes 0.5 --every 10",),
        minutes=40,
        routine=False,
    ),
]


@dataclass(frozen=True)
class Options:
    """Measure the sections of docs/benchmarks.md, and draw it."""

    only: tuple[str, ...] = ()
    """Measure these sections. Unset: all that take minutes."""
    draw: bool = False
    """Measure nothing, and draw the page from the results that are there."""
    brief: bool = False
    """Measure shortly, to try it, and draw outputs/benchmarks.md instead."""


def chosen(options: Options) -> list[Section]:
    """Return the sections to measure. Raises UsageError if there is no such."""
    if options.draw:
        return []
    known = {section.name: section for section in SECTIONS}
    for name in options.only:
        if name not in known:
            raise UsageError(
                f"there is no section {name!r}.{meant(name, known)} Choose from {', '.join(known)}."
            )
        if not commands_of(known[name], options):
            raise UsageError(
                f"the section {name} has no command; its results are put into {KEPT / name}.toml by hand."
            )
    if options.only:
        return [known[name] for name in options.only]
    return [
        section
        for section in SECTIONS
        if commands_of(section, options) and (section.routine or options.brief)
    ]


def commands_of(section: Section, options: Options) -> tuple[str, ...]:
    """Return what measures a section."""
    return section.brief if options.brief else section.full


def measure(section: Section, commands: tuple[str, ...], before: Result | None) -> Result:
    """Run the commands of a section; return what they found, or why they failed."""
    began, failures, of = time.monotonic(), [], commit()
    with tempfile.TemporaryDirectory() as folder:
        tables = Path(folder) / "tables.md"
        tables.touch()
        quiet = {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "disabled"}
        for command in commands:
            words = shlex.split(command)
            words[:1] = [sys.executable, "-m", "streamwise"]
            length = tables.stat().st_size
            code = subprocess.run(
                words, env={**quiet, **os.environ, TABLES: str(tables)}, check=False
            ).returncode
            if code:
                failures.append(f"`{command}` ended with exit code {code}")
            elif tables.stat().st_size == length:
                failures.append(f"`{command}` printed no table")
        found = tables.read_text()
    failure, day = ", ".join(failures), date.today().isoformat()
    if not found and before:
        return replace(before, failure=f"on {day}, commit {of}, {failure}; what follows was measured before")
    minutes = round((time.monotonic() - began) / 60, 1)
    return Result(list(commands), day, of, machine(), minutes, failure=failure, tables=found)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(options: Options) -> int:
    """Measure, and draw the page; return the exit code."""
    sections = chosen(options)
    folder = TRIED if options.brief else KEPT
    page = folder.with_suffix(".md")
    of_page = [section for section in SECTIONS if commands_of(section, options) or not options.brief]
    results = read_results(folder)
    left = sum(section.minutes for section in sections)
    code = 0
    try:
        for number, section in enumerate(sections, start=1):
            some = (
                "" if options.brief else f", some {section.minutes:g} minutes of the {left:g} that are left"
            )
            say(f"{number} of {len(sections)}: {section.name}{some}")
            results[section.name] = measure(section, commands_of(section, options), results.get(section.name))
            write_result(folder, section.name, results[section.name])
            left -= section.minutes
            result = results[section.name]
            say(f"{section.name}: {result.failure or f'{result.minutes:g} minutes'}")
    except KeyboardInterrupt:
        say("interrupted; the page is drawn from what there is.")
        code = 130
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(draw(of_page, results, (ROOT / "benchmarks" / "not_good_yet.md").read_text()))
    print(f"page: {page}")
    bad = [
        section.name for section in of_page if section.name not in results or results[section.name].failure
    ]
    if bad:
        say(f"failed or never measured: {', '.join(bad)}")
    return code or int(bool(bad))


if __name__ == "__main__":
    run(main, Options, __doc__)
