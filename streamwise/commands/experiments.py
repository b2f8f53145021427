"""`streamwise sweep`, `tasks` and `continual`: many runs, compared with each other."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from streamwise.commands.parsing import check_cores, check_least, parse, print_files

__all__ = ["continual_command", "sweep_command", "tasks_command"]


@dataclass(frozen=True)
class SweepArguments:
    """Run many environments, agents and seeds at once, on the cores of this machine or a Ray cluster.

    SPEC is a .toml file, the name of one that comes with streamwise, or the directory of a sweep to go on
    with. A sweep that was interrupted, or whose processes died, goes on where each run was: give the same
    command again. Runs that have finished are not repeated, and new ones in the file are added.

    streamwise sweep small
    streamwise sweep experiment.toml --out outputs/experiment
    streamwise sweep outputs/experiment
    streamwise sweep stream-x-mujoco --address auto --storage s3://bucket/mujoco
    """

    spec: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """What to run."""
    out: Path | None = None
    """The directory of the sweep. Unset: outputs/<name of the sweep>."""
    storage: str | None = None
    """A folder or URL that every node sees, where runs keep all they need to go on. Unset: --out."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto for the one this machine belongs to. Unset: this machine alone."""
    cpus: int | None = None
    """How many cores of this machine to use, without --address. Unset: all."""
    max_failures: int = 3
    """Give a run up after so many failures in a row without a new checkpoint between them."""
    resume: bool = False
    """Refuse to start a new sweep: go on with one, or fail if there is none."""
    list: bool = False
    """Print the runs of the specification, a line each, and run nothing."""


def sweep_command(argv: list[str]) -> int:
    """Run a sweep, and draw its report. Returns the exit code."""
    from streamwise.runs.sweep_spec import load_sweep, sweep_names

    names = f"\n\nSweeps that come with streamwise: {', '.join(sweep_names())}."
    arguments = parse(SweepArguments, "sweep", argv, inspect.cleandoc(SweepArguments.__doc__ or "") + names)
    from streamwise.streams import UsageError

    check_cores(arguments.cpus, arguments.address)
    check_least(0, max_failures=arguments.max_failures)
    spec = load_sweep(arguments.spec)
    if arguments.list:
        from streamwise.runs.sweep import check_environments

        check_environments(spec)
        for run in spec.runs:
            print(f"{run.name}  {run.config.steps:,} steps")
        return 0
    of_directory = Path(arguments.spec) if Path(arguments.spec).is_dir() else None
    out = arguments.out or of_directory or Path("outputs") / spec.name
    if arguments.resume and not (out / "sweep.toml").is_file():
        raise UsageError(f"there is no sweep in {out} to go on with; leave --resume out to start one.")
    from streamwise.runs.sweep import SweepOptions, run_sweep

    options = SweepOptions(out, arguments.storage, arguments.address, arguments.cpus, arguments.max_failures)
    result = run_sweep(spec, options)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.finished} of {result.runs} runs finished{failed}")
    print(f"sweep:  {out}")
    if result.signal is not None:
        print(f"go on:  streamwise sweep {out}")
        return 128 + result.signal
    from streamwise.runs.sweep_report import write_sweep_report

    files = write_sweep_report([out])
    print_files(files)
    return 1 if result.failed else 0


_TASKS_HELP = """
    Divide a stream into tasks, and compare what methods learn, keep and forget from one to the next.

    Every task is a window of time, with parts to train on, to validate and to test. Methods: neural point
    processes fine-tuned, retrained, replaying, consolidating or with a pool of prompts, and statistics of
    events. The same command again goes on with what is missing.

    streamwise tasks file:events.csv.gz
    streamwise tasks file:events.csv.gz --methods online prompt-tpp counts --bases nhp --seeds 3
    streamwise tasks 'synthetic:drift?events=20000' --tasks 5 --by count --epochs 2 --width 16
    """


def tasks_command(argv: list[str]) -> int:
    """Compare methods on tasks, and draw the report. Returns the exit code."""
    from streamwise.runs.tasks import TasksConfig, run_tasks

    config: TasksConfig = parse(TasksConfig, "tasks", argv, inspect.cleandoc(_TASKS_HELP))
    result = run_tasks(config)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.done} of {result.units} units done{failed}")
    print(f"tasks:  {result.directory}")
    if result.done:
        from streamwise.runs.task_report import write_task_report

        files = write_task_report(result.directory)
        print_files(files)
    if result.signal is not None:
        print("go on:  give the same command again")
        return 128 + result.signal
    return 1 if result.failed else 0


@dataclass(frozen=True)
class ContinualArguments:
    """Compare methods of continual learning on streams whose world changes: what is kept, and what it costs.

    A specification names schedules, such as classes that come in groups, and methods, such as replay; each
    method lives through each schedule with several seeds, one example at a time. Draws a report of tables,
    curves and matrices. The same command again goes on with what is missing.

    streamwise continual digits
    streamwise continual my-comparison.toml --seeds 2 --out outputs/mine
    streamwise continual outputs/mine
    """

    spec: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """A .toml file, the directory of a comparison to go on with, or a name; see above."""
    out: Path | None = None
    """The directory. Unset: outputs/continual-<name>, or the one that SPEC is."""
    seeds: int | None = None
    """Run so many seeds instead of as many as the specification says."""
    cpus: int | None = None
    """How many cores of this machine to use, without --address. Unset: all."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto for the one this machine belongs to. Every node must see --out."""
    max_failures: int = 3
    """Give a unit up after so many failures of its process."""


def continual_command(argv: list[str]) -> int:
    """Compare methods of continual learning, and draw the report. Returns the exit code."""
    from streamwise.runs.continual import (
        ContinualOptions,
        is_continual,
        load_continual,
        protocol_names,
        run_continual,
    )

    names = f"\n\nSpecifications that come with streamwise: {', '.join(protocol_names())}."
    help_text = inspect.cleandoc(ContinualArguments.__doc__ or "") + names
    arguments = parse(ContinualArguments, "continual", argv, help_text)

    check_cores(arguments.cpus, arguments.address)
    check_least(0, max_failures=arguments.max_failures)
    check_least(1, seeds=arguments.seeds)
    spec = load_continual(arguments.spec, arguments.seeds)
    given = Path(arguments.spec)
    out = arguments.out or (given if is_continual(given) else Path("outputs") / f"continual-{spec.name}")
    options = ContinualOptions(out, arguments.cpus, arguments.address, arguments.max_failures)
    result = run_continual(spec, options)
    failed = f", {len(result.failed)} failed" if result.failed else ""
    print(f"{result.done} of {result.units} units done{failed}")
    print(f"continual: {result.directory}")
    if result.done:
        from streamwise.runs.continual_report import write_continual_report

        files = write_continual_report(result.directory)
        print_files(files)
    if result.signal is not None:
        print(f"go on:  streamwise continual {out}")
        return 128 + result.signal
    return 1 if result.failed else 0
