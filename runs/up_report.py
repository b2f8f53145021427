"""The report of a live system: who learns from what, how well, and what happened meanwhile.

One self-contained HTML page, and its curves and time line as a PNG. Most words of the page are in
`templates/system_report.html`. Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from streamwise.runs.event_run_data import EventRun
from streamwise.runs.figures import svgs
from streamwise.runs.report import ReportFiles, Row, duration_text, render, report_files, write_files
from streamwise.runs.run_data import EPISODES, Run
from streamwise.runs.texts import counted, date_text, number_text, plain
from streamwise.runs.up_data import LearnerData, MemoryData, System, read_system
from streamwise.runs.up_figures import MARKS, MOST_ROWS, curve_panels, diagram, system_png, time_line
from streamwise.runs.up_history import happenings
from streamwise.streams import UsageError

__all__ = ["write_system_report"]

MOST_EVENTS = 200  # in the table; events.jsonl has them all
MESSAGE_LENGTH = 200  # characters shown


def write_system_report(directories: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Write the report of one live system.

    out: the page, *.html; the figure lies beside it as *.png. Unset: report.html in the directory. Raises
    UsageError for several directories, for one that is no system or in which nothing has begun, for a damaged
    specification, and for an `out` that cannot be written. What else is missing or damaged, the page says.
    """
    files = report_files(directories, out)
    if len(directories) > 1:
        raise UsageError("a live system is drawn by itself; name one directory at a time.")
    system = read_system(directories[0])
    page, png = _page(system, files.html), system_png(_title(system), system)
    write_files({files.html: page.encode(), files.png: png})
    return files


def _page(system: System, page: Path) -> str:
    curves = curve_panels(system.learners)
    runs = [learner.run for learner in system.learners]
    known = {memory.name: memory.chunks for memory in system.memories if memory.processes}
    return render(
        "system_report.html",
        title=_title(system),
        summary=_summary(system),
        notes=_notes(system),
        diagram=diagram(system.spec, known),
        labels={learner.name: learner.place for learner in system.learners},
        learners=_filled(_learner_row(learner, page) for learner in system.learners),
        has_messages=any(learner.message for learner in system.learners),
        memories=[_memory_row(memory) for memory in system.memories],
        curves=svgs(curves, (6.2, 3.5) if len(curves) == 1 else (3.9, 2.7)),
        episodes=EPISODES,
        has_returns=any(isinstance(run, Run) and len(run.returns) for run in runs),
        has_events=any(isinstance(run, EventRun) for run in runs),
        has_predictions=any(isinstance(run, Run) and run.scores is not None for run in runs),
        time_line=time_line(system),
        left_out=max(0, len(system.everyone) - MOST_ROWS),
        marks=[
            (f"series-{place}", letter, kind, system.history.counts[kind])
            for kind, (_, letter, place) in MARKS.items()
            if system.history.counts[kind]
        ],
        events=_event_rows(system),
        most_events=MOST_EVENTS,
        specification=system.text,
        versions=_versions(system.learners),
        directory=str(system.path),
    )


# ---- words ----


def _title(system: System) -> str:
    learners, streams = len(system.learners), len({learner.plan.stream for learner in system.learners})
    return f"{system.spec.name}: {counted(learners, 'learner')} on {counted(streams, 'stream')}"


def _summary(system: System) -> str:
    """One line: how it is, how long it was at work, how much it learned."""
    parts = [system.state]
    if system.is_at_work and system.status is not None:
        parts[0] += f" as of {date_text(system.status.time)}"
    processes = sum(learner.plan.workers for learner in system.learners)
    parts.append(f"{counted(processes, 'process', 'processes')} that learn")
    if system.history.lives:
        parts.append(f"{duration_text(system.history.seconds)} at work")
    parts.append(counted(sum(learner.step for learner in system.learners), "sample"))
    restarts = sum(learner.restarts for learner in system.learners)
    if restarts := restarts + sum(memory.restarts for memory in system.memories):
        parts.append(counted(restarts, "restart"))
    return " · ".join(parts)


def _notes(system: System) -> list[str]:
    """What a reader must know before trusting the numbers."""
    notes = {
        "How it was when last seen is not known": [system.problem] if system.problem else [],
        "Its driver has ended without a word; to go on": (
            [f"streamwise up {system.path}"] if system.state == "not running" else []
        ),
        "Nothing recorded yet": [
            learner.name for learner in system.learners if not learner.problem and not _has_rows(learner)
        ],
        "No curve": [f"{learner.name} ({learner.problem})" for learner in system.learners if learner.problem],
        "Given up": [
            f"{learner.name} ({learner.message})" for learner in system.learners if learner.state == "failed"
        ],
        "Memories out of reach": [
            f"{learner.plan.memory} for {learner.name} ({learner.link.problem})"
            for learner in system.learners
            if learner.link and learner.link.problem
        ],
    }
    return [
        f"{what}: {'; '.join(plain(name.rstrip('.'), 2 * MESSAGE_LENGTH) for name in which)}."
        for what, which in notes.items()
        if which
    ]


def _has_rows(learner: LearnerData) -> bool:
    return isinstance(learner.run, EventRun) or (learner.run is not None and learner.run.last_step > 0)


def _versions(learners: Sequence[LearnerData]) -> Row:
    """Return the versions of the libraries; several, where learners ran last with different ones."""
    found: dict[str, dict[str, None]] = {}
    for learner in learners:
        for name, version in learner.versions.items():
            found.setdefault(name, {})[str(version)] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


# ---- tables ----


def _learner_row(learner: LearnerData, page: Path) -> Row:
    """Return all that is known of a learner; `_filled` drops what is known of none."""
    plan, link = learner.plan, learner.link
    return {
        "learner": _linked(learner.name, learner.path / "report.html", page),
        "kind": plan.about,
        "stream": plan.stream,
        "state": plain(learner.state),
        "samples": f"{learner.step:,}" + (f" of {plan.steps:,}" if plan.steps else ""),
        "samples/s": _known(learner.steps_per_second),
        "lately": _known(learner.per_second),
        "return": _known(learner.mean_return),
        "log-likelihood": _known(learner.log_likelihood, "{:.4f}".format),
        "error ratio": _known(learner.error_ratio),
        "sent": f"{link.sent:,}" if link and plan.writes else "",
        "received": f"{link.received:,}" if link and plan.reads else "",
        "lag": "" if learner.lag is None else f"{learner.lag:,}",
        "restarts": f"{learner.restarts:,}" if learner.restarts else "",
        "last failure": plain(learner.message, MESSAGE_LENGTH) if learner.message else "",
    }


def _filled(rows: Iterable[Row]) -> list[Row]:
    """Return the rows without the columns that are empty in all of them."""
    rows = list(rows)
    kept = [name for name in rows[0] if any(row[name] for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def _known(value: float, text: Callable[[float], str] = number_text) -> str:
    return text(value) if math.isfinite(value) else ""


def _linked(name: str, report: Path, page: Path) -> str:
    """Return a name that leads to a report, if there is one."""
    if not report.is_file():
        return name
    way = os.path.relpath(report.resolve(), page.resolve().parent)
    return Markup('<a href="{}">{}</a>').format(quote(Path(way).as_posix()), name)


def _memory_row(memory: MemoryData) -> Row:
    told, written = memory.processes, memory.written
    capacity = f"{memory.settings.capacity:,}"
    numbers = {
        "chunks": f"{memory.chunks:,} of {capacity}",
        "written": f"{sum(written.values()):,}",
        "by": ", ".join(f"{name} {count:,}" for name, count in written.items()) or "–",
        "repeated": f"{sum(one.repeated for one in told):,}",
        "taken back": f"{sum(one.taken_back for one in told):,}",
        "given": f"{sum(one.given for one in told):,}",
    }
    if not told:
        numbers = dict.fromkeys(numbers, "–") | {"chunks": f"? of {capacity}"}
    return {
        "memory": memory.name,
        "state": plain(memory.state),
        **numbers,
        "restarts": f"{memory.restarts:,}",
    }


def _event_rows(system: System) -> list[Row]:
    """Return the newest events, the newest first."""
    return [
        {
            "time": date_text(event["time"]),
            "what": plain(str(event["event"])),
            "who": plain(str(event.get("learner", event.get("memory", "the system")))),
            "at step": f"{event['step']:,}" if isinstance(event.get("step"), int) else "",
            "why": plain(str(event["message"]), MESSAGE_LENGTH) if event.get("message") else "",
        }
        for event in reversed(happenings(system.events)[-MOST_EVENTS:])
    ]
