"""`streamwise bench`, `environments` and `doctor`: measure, list what there is, check what is installed."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from streamwise.commands.parsing import parse

__all__ = ["bench_command", "doctor_command", "environments_command"]


def bench_command(argv: list[str]) -> int:
    """Run a script of benchmarks/, or list them. Returns the exit code."""
    import streamwise.runs
    from streamwise.streams import UsageError
    from streamwise.streams.errors import meant

    folder = Path(streamwise.runs.__file__).parents[1] / "benchmarks"
    scripts = _scripts(folder)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(scripts))
        return 0 if argv else 2
    if not scripts:
        raise UsageError(f"there is no {folder}; benchmarks come with a source checkout, not with a wheel.")
    name, *rest = argv
    if name not in scripts:
        raise UsageError(
            f"no benchmark is named {name!r}.{meant(name, scripts)} Choose one of: {', '.join(scripts)}."
        )
    return subprocess.run([sys.executable, str(scripts[name]), *rest], check=False).returncode


def _scripts(folder: Path) -> dict[str, Path]:
    """Return the scripts of a folder by the names that they are run under; what they share is no script."""
    return {
        path.stem.removesuffix("_speed").replace("_", "-"): path
        for path in sorted(folder.glob("*.py"))
        if '__name__ == "__main__"' in path.read_text()
    }


def _overview(scripts: dict[str, Path]) -> str:
    """Say how benchmarks are run, and what each measures: the first line of its own description."""
    width = max(map(len, scripts), default=0)
    columns = shutil.get_terminal_size((120, 24)).columns
    lines = [
        textwrap.fill(
            (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0],
            columns,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, path in scripts.items()
    ]
    return "\n".join(
        [
            "usage: streamwise bench NAME [OPTIONS]\n",
            "Run the measurements of benchmarks/ and print their tables; for a source checkout.\n",
            *lines,
            "\nstreamwise bench NAME --help explains one; start with: streamwise bench step --only CartPole",
        ]
    )


@dataclass(frozen=True)
class EnvironmentsArguments:
    """List the names of environments by family: on a terminal in columns, else one a line after its family.

    What a name can be told, such as streamwise/Ballet-v0?dancers=4, is in docs/environments.md.

    streamwise environments
    streamwise environments cheetah
    """

    part: Annotated[str, tyro.conf.Positional] = ""
    """Only names, or families, with this in them; upper and lower case are the same."""


def environments_command(argv: list[str]) -> int:
    """Print the names that `train` and others take. Returns the exit code."""
    part = parse(EnvironmentsArguments, "environments", argv).part
    from rich.columns import Columns
    from rich.console import Console

    from streamwise.envs import environment_names
    from streamwise.streams import UsageError

    wanted = part.lower()
    found = {
        family: [name for name in names if wanted in name.lower() or wanted in family.lower()]
        for family, names in environment_names().items()
    }
    if not any(found.values()):
        raise UsageError(f"no environment has {part!r} in its name; `streamwise environments` lists all.")
    console = Console(highlight=False)
    for family, names in found.items():
        if not console.is_terminal:
            print("".join(f"{family}: {name}\n" for name in names), end="")
        elif names:
            console.print(f"[bold]{family}[/bold] ({len(names)})", Columns(names, padding=(0, 3)), "")
    return 0


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
