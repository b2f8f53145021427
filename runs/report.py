"""The report of finished or running runs: one self-contained HTML page, and its main figure as a PNG.

Runs of the same environment, agent and settings are seeds of one line. Most words of the page are in
`templates/report.html`. Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from streamwise.runs import figures
from streamwise.runs.run_data import EPISODES, Group, Run, by_environment, read_groups, setting_text
from streamwise.runs.statistics import bootstrap_interval
from streamwise.runs.texts import number_text, span_text
from streamwise.streams import UsageError

__all__ = [
    "ReportFiles",
    "Row",
    "duration_text",
    "median",
    "render",
    "report_files",
    "write_files",
    "write_report",
]

Row = dict[str, str]  # of a table, from column to cell


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    png: Path


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Write the report of one or more run directories.

    out: the page, *.html; the figure lies beside it as *.png. Unset: report.html in the run directory, or in
    the current one for several runs. Raises UsageError for a directory that is no run, for damaged files, and
    for an `out` that cannot be written.
    """
    files = report_files(run_dirs, out)
    groups = read_groups(run_dirs)
    page, png = _page(groups), figures.png(_title(groups), groups)
    write_files({files.html: page.encode(), files.png: png})
    return files


def report_files(directories: Sequence[Path], out: Path | None) -> ReportFiles:
    """Return where the report of these directories goes. Raises UsageError for an `out` that is no page."""
    if not directories:
        raise UsageError("name at least one run directory: streamwise report RUN_DIR...")
    if out is None:
        out = (directories[0] if len(directories) == 1 else Path()) / "report.html"
    elif out.suffix not in (".html", ".htm") or out.is_dir():
        better = out / "report.html" if out.is_dir() else out.with_suffix(".html")
        raise UsageError(f"--out {out} does not name a page; try --out {better}.")
    return ReportFiles(out, out.with_suffix(".png"))


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write the files of a report. Raises UsageError where that cannot be done."""
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be written ({error.strerror}); choose another --out."
        ) from None


def render(template: str, **values: Any) -> str:
    """Return a page from its template and what is written into it."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = {"colours": list(figures.SERIES.items()), "dashes": list(figures.DASHES.values())}
    return templates.get_template(template).render(looks | values)


def _page(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    learning = figures.learning_panels(groups)
    predicting = [group.predicting[0] for group in groups if group.predicting]
    compared = by_environment(group for group in groups if group.compared)
    shared, differing = _configuration(runs)
    return render(
        "report.html",
        title=_title(groups),
        summary=_summary(groups),
        notes=_notes(groups),
        episodes=EPISODES,
        labels=_places(groups),
        legend=_places(group for group in groups if group.has_episodes),
        learning=figures.svgs(learning, (6.2, 3.5) if len(learning) == 1 else (3.9, 2.7)),
        seed_counts={len(group.compared) for group in groups if group.has_episodes},
        predictions={
            f"{run.environment}: {run.label}, seed {run.seed}": figures.svgs(
                figures.prediction_panels(run), (4.4, 2.7), first=(8.0, 2.9)
            )
            for run in predicting
        },
        results=_results(groups),
        scores=_scores(groups),
        metrics={
            name: (_places(lines), figures.svgs(figures.metric_panels(lines), (3.4, 2.0)))
            for name, lines in compared.items()
        },
        runs=[
            {"run": str(run.path), **differs, **_progress(run)}
            for run, differs in zip(runs, differing, strict=True)
        ],
        configuration=shared,
    )


# ---- words ----


def _title(groups: Sequence[Group]) -> str:
    labels = list(dict.fromkeys(group.label for group in groups))
    environments = list(by_environment(groups))
    agents = " and ".join(labels) if len(labels) < 3 else f"{len(labels)} agents"
    places = ", ".join(environments) if len(environments) < 4 else f"{len(environments)} environments"
    return f"{agents} on {places}"


def _summary(groups: Sequence[Group]) -> str:
    """One line: what ran, for how long, how well."""
    runs = [run for group in groups for run in group.runs]
    seeds = sorted({run.seed for run in runs}, key=lambda seed: seed.zfill(12))
    parts = [f"{len(runs)} runs"] if len(runs) > 1 else []
    parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
    parts.append(f"{max(run.last_step for run in runs):,} steps")
    if len(groups) == 1 and groups[0].has_episodes:
        finals = [run.final for run in groups[0].compared]
        spread = f" (median over seeds; {span_text(min(finals), max(finals))})" if len(finals) > 1 else ""
        parts.append(f"mean return of the last {EPISODES} episodes {number_text(median(finals))}{spread}")
    if len(runs) == 1 and runs[0].score_text:
        parts.append(runs[0].score_text)
    speed = median([run.steps_per_second for group in groups for run in group.compared])
    if math.isfinite(speed):
        parts.append(f"{number_text(speed)} steps/s")
    return " · ".join(parts)


def _notes(groups: Sequence[Group]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    begun = [(group, run) for group in groups for run in group.runs if run.last_step]
    notes = {
        "Nothing recorded yet": [
            str(run.path) for group in groups for run in group.runs if not run.last_step
        ],
        "Unfinished": [
            f"{run.path} ({run.last_step:,} of {run.planned_steps:,} steps)"
            for _, run in begun
            if run.stopped_early
        ],
        "Left out of curves and results, less than half as far as the furthest seed": [
            str(run.path) for group, run in begun if run not in group.compared
        ],
        "Equal seeds, which are no independent evidence": [
            f"{group.label} on {group.environment}"
            for group in groups
            if len({run.seed for run in group.runs}) < len(group.runs)
        ],
    }
    return [f"{what}: {'; '.join(which)}." for what, which in notes.items() if which]


def _places(groups: Iterable[Group]) -> dict[str, int]:
    """Return the legend: by label, the place of its look among all."""
    return {group.label: group.place for group in groups}


# ---- tables ----


def _results(groups: Sequence[Group]) -> list[Row]:
    """Return one row for every label and environment with finished episodes."""
    rows = []
    groups = [group for group in groups if group.has_episodes]
    for group in groups:
        finals = [run.final for run in group.compared]
        row = {
            "environment": group.environment,
            "agent": group.label,
            "seeds": str(len(finals)),
            "steps": f"{median([run.last_step for run in group.compared]):,.0f}",
        }
        if any(len(group.compared) > 1 for group in groups):
            row["median"] = number_text(median(finals))
            row["min"], row["max"] = number_text(min(finals)), number_text(max(finals))
            row["mean"] = number_text(float(np.mean(finals)))
            row["95% interval"] = _interval(finals)
        else:
            row[f"last {EPISODES}"] = number_text(finals[0])
        rows.append(row | _best_and_speed(group.compared))
    return rows


def _scores(groups: Sequence[Group]) -> list[Row]:
    """Return one row for every run that predicted a series."""
    rows = []
    for run in (run for group in groups for run in group.predicting):
        scores = run.scores
        assert scores is not None
        is_scored = scores.scored_steps > 0
        rows.append(
            {
                "series": run.environment,
                "agent": run.label,
                "seed": run.seed,
                "scored steps": f"{scores.first_step:,} to {scores.last_step:,}" if is_scored else "too few",
                "learner": number_text(scores.learner),
                "mean so far": number_text(scores.running_mean),
                "ratio to it": number_text(scores.ratio_to_running_mean),
                "last value": number_text(scores.last_cumulant),
                "ratio to that": number_text(scores.ratio_to_last_cumulant),
            }
        )
    return rows


def _configuration(runs: Sequence[Run]) -> tuple[Row, list[Row]]:
    """Return the options, settings and versions that all runs share, and of each run those that differ."""
    texts = []
    for run in runs:
        options = {key: value for key, value in run.config.items() if key not in ("settings", "versions")}
        everything = options | run.settings | run.config["versions"]
        texts.append({key: setting_text(value) for key, value in everything.items()})
    keys = list(dict.fromkeys(key for text in texts for key in text))
    shared = {key: texts[0][key] for key in keys if len({text.get(key) for text in texts}) == 1}
    return shared, [{key: text.get(key, "–") for key in keys if key not in shared} for text in texts]


def _progress(run: Run) -> Row:
    return {
        "steps done": f"{run.last_step:,}",
        "episodes": f"{len(run.returns):,}",
        f"last {EPISODES}": number_text(run.final),
        **_best_and_speed([run]),
    }


def _best_and_speed(runs: Sequence[Run]) -> Row:
    return {
        f"best {EPISODES} in a row": number_text(median([run.best for run in runs])),
        "steps/s": number_text(median([run.steps_per_second for run in runs])),
        "wall time": duration_text(median([run.wall_time for run in runs])),
    }


# ---- numbers as people read them ----


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "one seed"
    low, high = bootstrap_interval(values, np.mean)
    return span_text(float(low), float(high))


def median(values: Sequence[float]) -> float:
    """Return the median of the finite values; NaN where there are none."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan


def duration_text(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "–"
