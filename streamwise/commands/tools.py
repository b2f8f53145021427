"""`streamwise bench` and `streamwise doctor`: measure, and check what is installed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from streamwise.commands.parsing import parse

__all__ = ["bench_command", "doctor_command"]


@dataclass(frozen=True)
class BenchArguments:
    """Run the comparisons of benchmarks/ and print their tables; for a source checkout.

    What follows the name goes to the benchmark: streamwise bench NAME --help shows its own options.

    streamwise bench step --only HalfCheetah
    streamwise bench returns --table
    streamwise bench prediction --data ETTh1.csv
    streamwise bench ingest --no-memory
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """step (speed), returns (learning results), prediction (time series), ingest (events), soak (kills),
    tpp (speed of PromptTPP), live-tpp (of it live), event-ablations (its parts), regimes, prompt-figures,
    partitioned-ingest (events, several workers)."""


def bench_command(argv: list[str]) -> int:
    """Run a script of benchmarks/. Returns the exit code."""
    import subprocess

    import streamwise.runs
    from streamwise.streams import UsageError
    from streamwise.streams.errors import meant

    arguments = parse(BenchArguments, "bench", argv[:1])
    folder = Path(streamwise.runs.__file__).parents[1] / "benchmarks"
    scripts = {
        path.stem.removesuffix("_speed").replace("_", "-"): path for path in sorted(folder.glob("*.py"))
    }
    if not scripts:
        raise UsageError(f"there is no {folder}; benchmarks come with a source checkout, not with a wheel.")
    if arguments.name not in scripts:
        hint = meant(arguments.name, scripts)
        raise UsageError(
            f"no benchmark is named {arguments.name!r}.{hint} Choose one of: {', '.join(scripts)}."
        )
    return subprocess.run([sys.executable, str(scripts[arguments.name]), *argv[1:]], check=False).returncode


@dataclass(frozen=True)
class DoctorArguments:
    """Say what is installed, which native kernels are in use, and which environments load.

    Exits with 1 if something that should work does not.
    """


def doctor_command(argv: list[str]) -> int:
    """Print what is installed. Returns the exit code."""
    parse(DoctorArguments, "doctor", argv)
    from streamwise.doctor import print_report, report

    checks = report()
    print_report(checks)
    return 0 if all(check.ok for check in checks) else 1
