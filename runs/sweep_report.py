"""The report of sweeps: every agent on every environment over many seeds, and how sure the numbers are.

One self-contained HTML page, its main figures as a PNG, and all their numbers as CSV and Parquet in a folder
beside. Most words of the page are in `templates/sweep.html`; the statistics are in `aggregate.py`. Loading
this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamwise.runs import figures
from streamwise.runs.aggregate import (
    RESAMPLES,
)
from streamwise.runs.report import ReportFiles, Row, duration_text, median, render, report_files, write_files
from streamwise.runs.run_data import EPISODES, setting_text
from streamwise.runs.sweep_data import Sweep, SweepRun, read_sweeps
from streamwise.runs.sweep_records import (
    COLUMNS,
    EVERYWHERE,
    Cell,
    Record,
    common_environments,
    data_files,
    predicts,
    sweep_cells,
    sweep_tables,
)
from streamwise.runs.texts import counted, number_text

__all__ = ["write_sweep_report"]

FEW_SEEDS = 5  # below, a bootstrap interval is too narrow more often than not
MOST_FIGURE_ROWS = 30  # pairs of agents in one figure; the table has them all
MOST_CURVES = 12  # environments in the PNG; the page has them all
MANY_RUNS = 24  # from here on the table of runs is folded
MOST_NAMED = 5  # runs in one note
OF_ONE_RUN = ("settings", "versions", "environment", "seed", "label", "out", "storage", "target")


def write_sweep_report(sweeps: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Write the report of one sweep, or of several compared.

    out: the page, *.html; beside it lie the figure, *.png, and the folder *-data. Unset: report.html in the
    sweep's directory, or in the current one for several. Unfinished, failed and damaged runs are reported as
    such. Raises UsageError for a directory that is no sweep or has no runs, and for an `out` that cannot be
    written.
    """
    files = report_files(sweeps, out)
    read = read_sweeps(sweeps)
    runs = [run for sweep in read for run in sweep.runs]
    cells = sweep_cells(runs)
    tables = sweep_tables(runs, cells)
    title = _title(read, cells)
    folder = files.html.with_name(f"{files.html.stem}-data")
    contents = {files.html: _page(title, read, runs, cells, tables, folder).encode()}
    contents[files.png] = _png(title, cells, tables)
    for name, records in tables.items():
        contents |= data_files(folder / name, name, records)
    write_files(contents)
    return files


# ---- the page ----


def _page(
    title: str,
    sweeps: Sequence[Sweep],
    runs: Sequence[SweepRun],
    cells: Sequence[Cell],
    tables: dict[str, list[Record]],
    folder: Path,
) -> str:
    places = {cell.label: cell.place for cell in cells}
    curves, (improvements, by_place) = _curve_panels(cells), _split_improvement(tables["improvement"])
    shared, differing = _settings(runs)
    pairs = _improvement_whiskers(improvements, places)
    overall = _aggregate_whiskers(tables["aggregate"], places)
    return render(
        "sweep.html",
        title=title,
        summary=_summary(sweeps, runs),
        notes=_notes(runs, cells),
        ran=_ran(sweeps, runs),
        episodes=EPISODES,
        resamples=f"{RESAMPLES:,}",
        labels=places,
        learning=figures.svgs(curves, (6.2, 3.5) if len(curves) == 1 else (3.9, 2.7)),
        results=[_result_row(record) for record in tables["summary"]],
        common=len(common_environments([cell for cell in cells if cell.runs])),
        overall=_drawn("Over all environments", overall, "normalized interquartile mean"),
        aggregate=[_aggregate_row(record) for record in tables["aggregate"]],
        pairs=_drawn("Probability of improvement", pairs[:MOST_FIGURE_ROWS], "probability", even=0.5),
        pairs_left_out=max(0, len(pairs) - MOST_FIGURE_ROWS),
        improvements=[_improvement_row(record) for record in improvements],
        improvements_by_place=[_improvement_row(record) for record in by_place],
        profiles=figures.svgs(_profile_panels(tables["profiles"], places), (6.2, 3.3)),
        speed=[_speed_row(cell) for cell in cells if cell.runs],
        troubles=[_trouble_row(run) for run in runs if run.restarts or run.failures],
        settings=shared,
        differing=differing,
        runs=[_run_row(record) for record in tables["runs"]],
        folded=len(runs) >= MANY_RUNS,
        folder=folder.name,
        files=list(COLUMNS),
    )


def _png(title: str, cells: Sequence[Cell], tables: dict[str, list[Record]]) -> bytes:
    places = {cell.label: cell.place for cell in cells}
    curves = _curve_panels(cells)
    if len(curves) > MOST_CURVES:
        title += f" (learning curves of the first {MOST_CURVES} environments)"
        curves = dict(list(curves.items())[:MOST_CURVES])
    pairs = _improvement_whiskers(_split_improvement(tables["improvement"])[0], places)[:MOST_FIGURE_ROWS]
    overall = _aggregate_whiskers(tables["aggregate"], places)
    across, improved, profiled = {}, {}, _profile_panels(tables["profiles"], places)
    if overall:
        across["Over all environments"] = figures.whisker_panel(overall, "normalized interquartile mean")
    if pairs:
        improved["Probability of improvement"] = figures.whisker_panel(pairs, "probability", even=0.5)
    # The pairs have the longest names: where there are many panels, a row of their own.
    rows = [(across | profiled, overall), (improved, pairs)] if across else [(improved | profiled, pairs)]
    sized = [
        (panels, max(3.0 if len(panels) > 1 else 0.0, figures.whisker_size(whiskers, 10.0)[1]))
        for panels, whiskers in rows
        if panels
    ]
    return figures.sweep_png(title, curves, sized)


def _curve_panels(cells: Sequence[Cell]) -> figures.Panels:
    panels: dict[str, list[figures.Band]] = {}
    for cell in cells:
        if cell.curve is not None:
            panels.setdefault(cell.environment, []).append(cell.curve)
    return {environment: figures.curve_panel(bands) for environment, bands in panels.items()}


def _profile_panels(records: Sequence[Record], places: dict[str, int]) -> figures.Panels:
    rows: dict[str, list[list[float]]] = {}
    for record in records:
        values = [record[name] for name in ("threshold", "fraction", "low", "high")]
        rows.setdefault(record["agent"], []).append(values)
    bands = [figures.Band(label, places[label], *np.array(values).T) for label, values in rows.items()]
    return {"Performance profiles": figures.profile_panel(bands)} if len(bands) > 1 else {}


def _aggregate_whiskers(records: Sequence[Record], places: dict[str, int]) -> list[figures.Whisker]:
    return [
        figures.Whisker(row["agent"], places[row["agent"]], row["iqm"], row["low"], row["high"])
        for row in records
    ]


def _improvement_whiskers(records: Sequence[Record], places: dict[str, int]) -> list[figures.Whisker]:
    return [
        figures.Whisker(
            f"{row['agent']} over {row['over']}",
            places[row["agent"]],
            row["probability"],
            row["low"],
            row["high"],
        )
        for row in records
    ]


def _drawn(
    title: str, whiskers: Sequence[figures.Whisker], across: str, even: float | None = None
) -> dict[str, Any]:
    """Return the panel of these numbers as SVG; none if there are none."""
    panels = {title: figures.whisker_panel(whiskers, across, even)} if whiskers else {}
    return dict(figures.svgs(panels, figures.whisker_size(whiskers, 6.2)))


# ---- words ----


def _title(sweeps: Sequence[Sweep], cells: Sequence[Cell]) -> str:
    agents, environments = {cell.label for cell in cells}, {cell.environment for cell in cells}
    what = f"{counted(len(agents), 'agent')} on {counted(len(environments), 'environment')}"
    return f"{' and '.join(sweep.name for sweep in sweeps)}: {what}"


def _summary(sweeps: Sequence[Sweep], runs: Sequence[SweepRun]) -> str:
    """One line: how many ran, how they ended, how long it took."""
    ran, ends = _ran(sweeps, runs), _ends(sweeps)
    ended = ", ".join(f"{count:,} {end}" for end, count in ends.items())
    parts = [f"{counted(sum(ends.values()), 'run')}: {ended}"]
    if "wall time" in ran:
        parts.append(f"{ran['core time']} of core time in {ran['wall time']}")
    return " · ".join(parts)


def _ran(sweeps: Sequence[Sweep], runs: Sequence[SweepRun]) -> Row:
    known = [run for run in runs if run.run]
    steps = [run.run.planned_steps or run.last_step for run in known if run.run]
    ends = _ends(sweeps)
    ran = {"runs": f"{sum(ends.values()):,}", **{end: f"{count:,}" for end, count in ends.items()}}
    ran["environments"] = f"{len({run.environment for run in known}):,}"
    ran["agents"] = f"{len({run.label for run in known}):,}"
    ran["seeds"] = _range_of_counts(Counter((run.environment, run.label) for run in known).values())
    ran["steps of a run"] = _range_of_counts(steps)
    ran["restarts"] = f"{sum(run.restarts for run in runs):,}"
    ran["core time"] = duration_text(sum(sweep.core_seconds for sweep in sweeps))
    wall_time = sum(sweep.wall_time for sweep in sweeps)
    if math.isfinite(wall_time):
        ran["wall time"] = duration_text(wall_time)
    if nodes := {str(event["node"]) for run in runs for event in run.events if event.get("node")}:
        ran["nodes"] = f"{len(nodes):,}"
    return ran


def _ends(sweeps: Sequence[Sweep]) -> Counter[str]:
    """Return how many runs ended in which way."""
    ends = Counter(run.status for sweep in sweeps for run in sweep.runs)
    missing = sum(sweep.planned_runs - len(sweep.runs) for sweep in sweeps)
    return ends + Counter({"not started": missing})


def _range_of_counts(counts: Iterable[int]) -> str:
    counts = list(counts) or [0]
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _notes(runs: Sequence[SweepRun], cells: Sequence[Cell]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    counted = [run for cell in cells for run in cell.runs]
    left_out = [run for cell in cells for run in cell.left_out]
    full = [cell for cell in cells if cell.runs]
    behind = [run for run in left_out if math.isfinite(run.final)]
    notes = {
        "Given up; an agent looks better than it is where its failures are left out": [
            f"{run.title} ({run.last_step:,} steps)" for run in runs if run.status == "failed"
        ],
        "No directory, or a damaged one; left out": [
            f"{run.title} ({run.damage.rstrip('.')})" for run in runs if run.run is None
        ],
        "Unfinished, counted as far as they came": [
            f"{run.title} ({run.last_step:,} of {run.run.planned_steps:,} steps)"
            for run in counted
            if run.run and run.run.stopped_early
        ],
        "Left out, less than half as far as the furthest run on their environment": [
            f"{run.title} ({run.last_step:,} steps)" for run in behind
        ],
        "Left out, no finished episode yet": [run.title for run in left_out if not math.isfinite(run.final)],
        "Time series have no returns and no part in the statistics": [
            run.title for run in runs if predicts(run)
        ],
        "Equal seeds, which are no independent evidence": [
            f"{cell.label} on {cell.environment}"
            for cell in full
            if len({run.run.seed for run in cell.runs if run.run}) < len(cell.runs)
        ],
        "One seed, which gives no interval": [
            f"{cell.label} on {cell.environment}" for cell in full if len(cell.runs) == 1
        ],
        f"Fewer than {FEW_SEEDS} seeds, whose intervals tend to be too narrow": [
            f"{cell.label} on {cell.environment}" for cell in full if 1 < len(cell.runs) < FEW_SEEDS
        ],
        "No part in what is computed over all environments, as not every agent has scores there": sorted(
            {cell.environment for cell in full} - set(common_environments(full))
        ),
    }
    return [f"{what}: {_listed(which)}." for what, which in notes.items() if which]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    shown = list(names[:MOST_NAMED]) + [f"and {more:,} more"] * (more > 0)
    return "; ".join(shown)


def _settings(runs: Sequence[SweepRun]) -> tuple[Row, list[Row]]:
    """Return the settings and versions that all runs share, and of every agent those that differ."""
    found: dict[str, dict[str, dict[str, None]]] = {}  # by agent and key, the values in order
    for run in (run for run in runs if run.run):
        assert run.run is not None
        options = {key: value for key, value in run.run.config.items() if key not in OF_ONE_RUN}
        options["algorithm"] = options.pop("agent")
        values = found.setdefault(run.label, {})
        for key, value in (options | run.run.settings | run.run.config["versions"]).items():
            values.setdefault(key, {})[setting_text(value)] = None
    texts = {
        label: {key: ", ".join(list(values)[:3]) + ", …" * (len(values) > 3) for key, values in row.items()}
        for label, row in found.items()
    }
    keys = list(dict.fromkeys(key for row in texts.values() for key in row))
    shared = [key for key in keys if len({row.get(key) for row in texts.values()}) == 1]
    first: Row = next(iter(texts.values()), {})
    return {key: first[key] for key in shared}, [
        {"agent": label} | {key: row.get(key, "–") for key in keys if key not in shared}
        for label, row in texts.items()
        if len(shared) < len(keys)
    ]


def _split_improvement(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Return of every pair of agents what holds over all their environments, and what holds on each."""
    several = {(row["agent"], row["over"]) for row in records if row["environment"] == EVERYWHERE}

    def is_part(row: Record) -> bool:
        return (row["agent"], row["over"]) in several and row["environment"] != EVERYWHERE

    return [row for row in records if not is_part(row)], [row for row in records if is_part(row)]


# ---- tables ----


def _result_row(record: Record) -> Row:
    return {
        "environment": record["environment"],
        "agent": record["agent"],
        "seeds": str(record["seeds"]),
        "IQM": number_text(record["iqm"]),
        "95% interval": _interval_text(record),
        **{name: number_text(record[name]) for name in ("median", "mean", "lowest", "highest")},
        "steps/s": number_text(record["steps_per_second"]),
    }


def _aggregate_row(record: Record) -> Row:
    return {
        "agent": record["agent"],
        "environments": str(record["environments"]),
        "runs": str(record["runs"]),
        "normalized IQM": f"{record['iqm']:.3f}",
        "95% interval": _interval_text(record, "{:.3f}".format),
    }


def _improvement_row(record: Record) -> Row:
    return {
        "environment": record["environment"],
        "agent": record["agent"],
        "over": record["over"],
        "probability": f"{record['probability']:.3f}",
        "95% interval": _interval_text(record, "{:.3f}".format),
    }


def _speed_row(cell: Cell) -> Row:
    runs = [run.run for run in cell.runs if run.run]
    speeds, times = [run.steps_per_second for run in runs], [run.wall_time for run in runs]
    return {
        "environment": cell.environment,
        "agent": cell.label,
        "runs": str(len(runs)),
        "steps/s": number_text(median(speeds)),
        "slowest to fastest": _range_text(speeds, number_text),
        "wall time": duration_text(median(times)),
        "shortest to longest": _range_text(times, duration_text),
    }


def _trouble_row(run: SweepRun) -> Row:
    return {
        "run": run.title,
        "now": run.status,
        "why": "; ".join(run.messages) or "–",
        "lost": str(run.count("lost")),
        "given up": str(run.count("failed")),
        "interrupted": str(run.count("interrupted")),
        "restarts": str(run.restarts),
    }


def _run_row(record: Record) -> Row:
    sweep = {"sweep": record["sweep"]} if record["sweep"] else {}
    planned = record["planned_steps"]
    return {
        "run": record["run"],
        **sweep,
        "environment": record["environment"] or "–",
        "agent": record["agent"] or "–",
        "status": record["status"],
        "seed": record["seed"] or "–",
        "steps": f"{record['steps']:,}",
        "planned": f"{planned:,}" if planned else "–",
        "episodes": f"{record['episodes']:,}",
        "time": duration_text(record["seconds"]),
        "restarts": str(record["restarts"]),
    }


def _interval_text(record: Record, text: Callable[[float], str] = number_text) -> str:
    low, high = record["low"], record["high"]
    return "one seed" if math.isnan(low) else f"{text(low)} to {text(high)}"


def _range_text(values: Sequence[float], text: Callable[[float], str]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{text(min(known))} to {text(max(known))}" if known else "–"
