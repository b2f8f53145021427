"""The page docs/benchmarks.md: what was measured, by which command, where, when, and of which commit.

Every section has a result in a file of its own, which says all that, so that sections can be measured on
different days and machines. A section without one, and one whose last measurement failed, is named as such.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import tomli_w

from streamwise.kernels import native_info

__all__ = ["Result", "Section", "commit", "draw", "machine", "read_results", "write_result"]

ROOT = Path(__file__).parents[1]

_HEAD = """\
# Benchmarks

What streamwise measures of itself: each table with the command that makes it, the machine, the day and the
commit. `streamwise bench all` measures what takes minutes and draws this page; what takes hours is measured
where it is named, as in `streamwise bench all --only returns`. *Measured earlier*: before a command kept its
results here. Speeds are of one thread. What the figures mean is said on [Results](results.md) and on the
pages that sections link to, which have more: agents that [remember](memory.md#agents-with-a-memory),
[tasks](tasks.md#measured), the [parts of PromptTPP](prompt-tpp.md#what-each-part-brings) and its
[regimes](prompt-tpp.md#regimes-that-come-back), [methods against forgetting](continual.md#what-they-keep),
the [growth of live systems](systems.md#how-it-grows). Last comes [what is not good yet](#not-good-yet).
"""


@dataclass(frozen=True)
class Section:
    """A part of the page, and how it is measured.

    what: a sentence or two in Markdown, with links as from docs/. full: the commands; none if results are put
    into the file by hand. brief: shorter ones, to try. minutes: what the full ones take. routine: whether
    they are run when no section is named.
    """

    name: str
    title: str
    what: str
    full: tuple[str, ...] = ()
    brief: tuple[str, ...] = ()
    minutes: float = 0.0
    routine: bool = True


@dataclass(frozen=True)
class Result:
    """What was measured for a section: Markdown, and where it is from.

    day: as in 2026-11-29. failure: why the last measurement failed; the tables are then what it printed, or
    those of the one before it.
    """

    commands: list[str]
    day: str
    commit: str
    machine: str
    minutes: float = 0.0  # 0: not known
    earlier: bool = False
    failure: str = ""
    tables: str = ""


def read_results(folder: Path) -> dict[str, Result]:
    """Return the results of a folder by section."""
    return {path.stem: Result(**tomllib.loads(path.read_text())) for path in sorted(folder.glob("*.toml"))}


def write_result(folder: Path, name: str, result: Result) -> None:
    """Write the result of a section."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(tomli_w.dumps(asdict(result), multiline_strings=True))


def draw(sections: Sequence[Section], results: Mapping[str, Result], not_good_yet: str) -> str:
    """Return the page."""
    overview = ["| section | day | commit | |", "| --- | --- | --- | --- |"]
    for section in sections:
        link, result = f"[{section.title}](#{_anchor(section.title)})", results.get(section.name)
        cells = (
            (link, _day(result.day), result.commit, _state(result))
            if result
            else (link, "", "", _state(None))
        )
        overview.append(f"| {' | '.join(cells)} |")
    parts = [_HEAD, "\n".join(overview) + "\n"]
    parts += [_drawn(section, results.get(section.name)) for section in sections]
    return "\n".join([*parts, f"## Not good yet\n\n{not_good_yet.strip()}\n"])


def _state(result: Result | None) -> str:
    if result is None:
        return "**not measured**"
    return "**failed**" if result.failure else "measured earlier" if result.earlier else ""


def _drawn(section: Section, result: Result | None) -> str:
    lines = [f"## {section.title}\n", f"{section.what}\n"]
    if result is None:
        how = ", ".join(f"`{command}`" for command in section.full)
        return "\n".join([*lines, f"**Not measured yet**{f': {how}' if how else ''}.\n"])
    if result.failure:
        lines.append(f"**The last measurement failed**: {result.failure}\n")
    if result.tables:
        lines.append(f"{result.tables.strip()}\n")
    said = [_day(result.day), f"commit {result.commit}"]
    said += [f"{result.minutes:g} minutes"] if result.minutes else []
    said += ["measured earlier"] if result.earlier else []
    commands = ", ".join(f"`{command}`" for command in result.commands)
    return "\n".join([*lines, f"{commands}: {', '.join(said)}. {result.machine}.\n"])


def _day(day: str) -> str:
    return f"{date.fromisoformat(day):%d %B %Y}".lstrip("0")


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def commit(root: Path = ROOT) -> str:
    """Return the commit of a checkout, and whether it has changes outside docs/, where results are."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        name, changes = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--", ".", ":!docs")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}, with changes" if changes else name


def machine() -> str:
    """Return what this machine is, and what is installed on it, in a line."""
    info = native_info()
    kernels = info.instruction_set if info else "no native kernels"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "mujoco"))
    python = f"{platform.system()}, Python {platform.python_version()}"
    return f"{_processor()}, {kernels}, {cores} cores, {memory:.0f} GiB; {python}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
