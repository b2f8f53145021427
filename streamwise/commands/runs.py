"""`streamwise resume`, `checkpoints` and `report`: what can be done with a directory, whatever it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from streamwise.commands.agents import finish_run
from streamwise.commands.events import run_ingest
from streamwise.commands.parsing import parse, print_files

__all__ = ["checkpoints_command", "report_command", "resume_command"]


@dataclass(frozen=True)
class ResumeArguments:
    """Go on with a run that was interrupted, or extend one that has finished.

    Learning goes on from the newest whole checkpoint, in mid-episode, as if it had never stopped.

    streamwise resume outputs/demo
    streamwise resume outputs/demo --steps 200000
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run directory."""
    steps: int | None = None
    """The new length of the run, counted from its beginning."""
    backend: Literal["auto", "native", "torch"] | None = None
    """Go on with another back end than before."""
    workers: int | None = None
    """Of a run on events: divide its partitions among so many from now on."""


def resume_command(argv: list[str]) -> int:
    """Go on with a run of either kind. Returns the exit code."""
    arguments = parse(ResumeArguments, "resume", argv)
    from streamwise.runs.ingest_config import is_ingest, load_ingest

    if is_ingest(arguments.run):
        from streamwise.streams import UsageError

        if arguments.steps is not None or arguments.backend is not None:
            raise UsageError("--steps and --backend are for agents; this is a run on events.")
        saved = load_ingest(arguments.run)
        return run_ingest(saved if arguments.workers is None else saved.with_workers(arguments.workers))
    if arguments.workers is not None:
        from streamwise.streams import UsageError

        raise UsageError("--workers divide the partitions of a run on events; this one is for agents.")
    from streamwise.runs.train import resume

    return finish_run(resume(arguments.run, arguments.steps, arguments.backend))


@dataclass(frozen=True)
class CheckpointsArguments:
    """List a run's checkpoints: step, size, and whether the checksum holds.

    Exits with 1 if one is damaged. The newest whole one is what `resume` and `evaluate` use.

    streamwise checkpoints outputs/demo
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run directory."""


def checkpoints_command(argv: list[str]) -> int:
    """Print the checkpoints of a run. Returns the exit code."""
    arguments = parse(CheckpointsArguments, "checkpoints", argv)
    from streamwise.runs.checkpoint import Checkpoints
    from streamwise.runs.ingest import worker_directories
    from streamwise.runs.ingest_config import is_ingest

    is_damaged = False
    for directory in worker_directories(arguments.run):
        if directory != arguments.run and not is_ingest(directory):  # a worker that has not begun
            continue
        checkpoints = Checkpoints.of(directory)
        found = list(checkpoints.check())
        print(f"{len(found)} in {checkpoints.storage.describe('')}")
        for step, size, wrong in found:
            print(f"step {step:>12,}  {size / 1e6:>8,.2f} MB  {wrong or 'whole'}")
        is_damaged |= any(wrong for _, _, wrong in found)
    return 1 if is_damaged else 0


@dataclass(frozen=True)
class ReportArguments:
    """Draw runs or sweeps: learning curves, results, speed, settings; HTML and PNG.

    Several runs of one environment are drawn together, as seeds of one curve or as agents to compare. Of a
    sweep come interquartile means over seeds with bootstrap intervals, probabilities of improvement,
    performance profiles, and every number as CSV and Parquet; several sweeps are compared with each other.
    Runs of `ingest` on the same events are compared as models. Of `tasks` and `continual` come matrices and
    tables; of a live system who learns from what, how well, and what happened when.

    streamwise report outputs/demo
    streamwise report outputs/events.csv.gz-hawkes outputs/events.csv.gz-counts
    streamwise report outputs/CartPole-* --out cartpole.html
    streamwise report outputs/small
    streamwise report outputs/before outputs/after --out compared.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="DIR...")]
    """One or more run directories, one or more sweeps, or a live system."""
    out: Path | None = None
    """The HTML file; the PNG goes beside it. Unset: in the directory, or here for several."""


def report_command(argv: list[str]) -> int:
    """Draw what directories hold. Returns the exit code."""
    arguments = parse(ReportArguments, "report", argv)
    from streamwise.runs.continual import is_continual
    from streamwise.runs.ingest_config import is_ingest
    from streamwise.runs.report import write_report
    from streamwise.runs.sweep_data import is_sweep
    from streamwise.runs.sweep_report import write_sweep_report
    from streamwise.runs.tasks import is_tasks
    from streamwise.runs.up_spec import is_system
    from streamwise.streams import UsageError

    if not arguments.runs:
        raise UsageError("name at least one run directory, for example outputs/demo.")
    first, sweeps = arguments.runs[0], [is_sweep(path) for path in arguments.runs]
    if is_tasks(first):
        from streamwise.runs.task_report import write_task_report

        if len(arguments.runs) > 1:
            raise UsageError(f"{first} is a comparison on tasks; draw one at a time.")
        files = write_task_report(first, arguments.out)
    elif any(map(is_continual, arguments.runs)):
        from streamwise.runs.continual_report import write_continual_report

        if len(arguments.runs) > 1:
            raise UsageError("a comparison of methods of continual learning is drawn alone; name one.")
        files = write_continual_report(first, arguments.out)
    elif any(map(is_system, arguments.runs)):
        from streamwise.runs.up_report import write_system_report

        files = write_system_report(arguments.runs, arguments.out)
    elif any(map(is_ingest, arguments.runs)):
        from streamwise.runs.event_report import write_event_report

        files = write_event_report(arguments.runs, arguments.out)
    elif all(sweeps):
        files = write_sweep_report(arguments.runs, arguments.out)
    elif any(sweeps):
        which = arguments.runs[sweeps.index(False)]
        raise UsageError(f"{which} is no sweep, and others are; draw runs and sweeps apart.")
    else:
        files = write_report(arguments.runs, arguments.out)
    print_files(files)
    return 0
