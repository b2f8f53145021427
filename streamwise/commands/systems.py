"""`streamwise up` and `streamwise status`: many learners as one live system."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from streamwise.commands.parsing import check_least, parse, print_files

__all__ = ["status_command", "up_command"]


@dataclass(frozen=True)
class UpArguments:
    """Run a live system: learners of both kinds, each on its own stream, that may share memories.

    SPEC is a .toml file that names streams, learners, memories, and who reads and writes what, the name of
    one that comes with streamwise, or the directory of a system to go on with. Each learner is a process; one
    that dies goes on from its checkpoint, and the same command goes on with the whole. docs/systems.md has
    the keys of the file, and what is guaranteed.

    streamwise up told
    streamwise up system.toml --out outputs/live --address auto --storage s3://bucket/live
    streamwise up outputs/live
    """

    spec: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SPEC")]
    """What to run."""
    out: Path | None = None
    """The directory of the system. Unset: outputs/<name of the system>."""
    address: str | None = None
    """A Ray cluster: HOST:PORT, or auto, on which learners go on if this process is killed, until the same
    command takes them over. Unset: this machine alone."""
    storage: str | None = None
    """A folder or URL (s3://bucket/live) that every node sees, where agents keep their checkpoints; memories
    and event models stay on this machine. Unset: in --out, which every node has to see."""
    max_failures: int = 10
    """Give a learner up after so many failures in a row without a new checkpoint between them."""
    until_end: bool = False
    """Learn events to where their sources end now, instead of waiting for more."""
    serve: int | None = None
    """Serve a page that shows the system on this port, and /status as JSON. Unset: no."""
    host: str = "127.0.0.1"
    """The address that --serve listens on. Unset: this machine alone."""
    check: bool = False
    """Print who learns from what and shares what, and run nothing."""


def up_command(argv: list[str]) -> int:
    """Run a live system, and draw its report. Returns the exit code."""
    from streamwise.runs.up_spec import load_system, system_names, wiring

    names = f"\n\nSystems that come with streamwise: {', '.join(system_names())}."
    arguments = parse(UpArguments, "up", argv, inspect.cleandoc(UpArguments.__doc__ or "") + names)
    from streamwise.streams import UsageError

    check_least(0, max_failures=arguments.max_failures)
    if arguments.serve is not None and not 0 <= arguments.serve <= 65_535:
        raise UsageError(
            f"--serve is {arguments.serve}, which is no port; use one from 0, for any, to 65,535."
        )
    spec = load_system(arguments.spec)
    if arguments.check:
        print("\n".join(wiring(spec)))
        return 0
    of_directory = Path(arguments.spec) if Path(arguments.spec).is_dir() else None
    out = arguments.out or of_directory or Path("outputs") / spec.name
    from streamwise.runs.up import run_system
    from streamwise.runs.up_processes import UpOptions

    options = UpOptions(
        out,
        arguments.address,
        arguments.storage,
        max_failures=arguments.max_failures,
        until_end=arguments.until_end,
        serve=arguments.serve,
        host=arguments.host,
    )
    result = run_system(spec, options)
    for name, state in result.states.items():
        print(f"{name}: {state}{': ' + result.failed[name] if name in result.failed else ''}")
    print(f"system: {out}")
    from streamwise.runs.up_report import write_system_report

    try:
        files = write_system_report([out])
        print_files(files)
    except UsageError as error:  # the exit code stays that of the system
        print(f"report: none ({error})")
    if result.signal is not None:
        print(f"go on:  streamwise up {out}")
        return 128 + result.signal
    return 1 if result.failed else 0


@dataclass(frozen=True)
class StatusArguments:
    """Show how a live system is: each learner's step, speed, score, lag and restarts, and the memories.

    streamwise status outputs/live
    streamwise status outputs/live --watch
    streamwise status outputs/live --json
    """

    system: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SYSTEM_DIR")]
    """The directory of the system."""
    json: bool = False
    """Print one line of JSON."""
    watch: bool = False
    """Show it again every second, until Ctrl-C."""


def status_command(argv: list[str]) -> int:
    """Print how a live system is. Returns the exit code."""
    arguments = parse(StatusArguments, "status", argv)
    from streamwise.runs.up_status import print_status, read_status

    if arguments.json:
        import json

        print(json.dumps(read_status(arguments.system), allow_nan=False))
        return 0
    print_status(arguments.system, watch=arguments.watch)
    return 0
