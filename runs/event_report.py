"""The report of runs on events: how well each event was foreseen before it was learned, and what was learned.

Runs on the same sources are models to compare. One self-contained HTML page, and its main figures as a PNG.
Most words of the page are in `templates/events.html`. Loading this module loads matplotlib: import it where
it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamwise.runs.event_compared import Compared
from streamwise.runs.event_figures import event_png, event_svgs, part_width
from streamwise.runs.event_influence import influence_map
from streamwise.runs.event_run_data import EventRun, configuration, read_event_runs
from streamwise.runs.event_tables import (
    activity_rows,
    baseline_part,
    difference_rows,
    refused_rows,
    score_rows,
    span_text,
    speed_rows,
    type_rows,
)
from streamwise.runs.report import ReportFiles, render, report_files, write_files
from streamwise.runs.texts import (
    UNITS,
    counted,
    listed,
    number_text,
    percent,
    seconds_text,
    time_text,
    unit_text,
)

__all__ = ["write_event_report"]


def write_event_report(directories: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Write the report of one run of `streamwise ingest`, or of several on the same sources.

    out: the page, *.html; the figure lies beside it as *.png. Unset: report.html in the run directory, or in
    the current one for several runs. Raises UsageError for a directory that is no run on events or has no
    rows yet, for runs on different sources, for damaged files, and for an `out` that cannot be written.
    """
    files = report_files(directories, out)
    runs = read_event_runs(directories)
    page, png = _page(runs, Compared.of(runs)), event_png(_title(runs), runs)
    write_files({files.html: page.encode(), files.png: png})
    return files


def _page(runs: Sequence[EventRun], compared: Compared) -> str:
    best = compared.best(runs)
    unit = runs[0].config.time_unit
    shared, differing = configuration(runs)
    return render(
        "events.html",
        title=_title(runs),
        summary=_summary(runs, compared, best),
        notes=_notes(runs, compared),
        several=len(runs) > 1,
        labels={run.label: run.place for run in runs},
        per_unit=UNITS[unit][1] if unit in UNITS else f"{unit:,.10g} seconds",
        scores=score_rows(runs, compared),
        best=best.label,
        differences=difference_rows(runs, compared, best),
        difference_span=span_text(compared, compared.last),
        baselines=[baseline_part(run, compared) for run in runs if run.baselines],
        width=part_width(runs),
        **event_svgs(runs, compared, best),
        has_pit=any(run.pit.sum() for run in runs),
        calibration_now=_calibration_text(runs),
        alarms=_alarm_text(runs),
        type_calibration=_type_calibration_text(runs),
        activities=activity_rows([run for run in runs if len(run.by_activity)]),
        constant=_constant_text(runs),
        types=type_rows([run for run in runs if len(run.by_type)]),
        influences=[influence_map(run, run.influence) for run in runs if run.influence is not None],
        refused=refused_rows(runs),
        refused_share=_refused_text(runs),
        speed=speed_rows(runs),
        runs=differing,
        configuration=shared,
    )


# ---- words ----


def _title(runs: Sequence[EventRun]) -> str:
    sources = runs[0].config.sources
    named = listed([_source_name(url) for url in sources]) if len(sources) < 4 else f"{len(sources)} sources"
    models = listed([run.label for run in runs]) if len(runs) < 4 else f"{len(runs)} models"
    return f"{models} on {named}"


def _source_name(url: str) -> str:
    scheme, _, rest = re.sub(r"\?.*", "", url, flags=re.DOTALL).partition(":")
    if scheme == "stdin":
        return "standard input"
    return f"synthetic {rest}" if scheme == "synthetic" else rest.rstrip("/").rpartition("/")[2]


def _summary(runs: Sequence[EventRun], compared: Compared, best: EventRun) -> str:
    """What was learned from what, over which times, and how well."""
    row = np.searchsorted(runs[0].steps, compared.until)
    keys, types = (counted(int(runs[0].rows[name][row]), name[:-1]) for name in ("keys", "types"))
    learned = f"{counted(int(compared.until), 'event')} of {keys} and {types}{_times_text(runs)}"
    summary = f"{listed([run.label for run in runs])} learned {learned}."
    value = compared.score(best, "log_likelihood")
    if not math.isfinite(value):
        return summary
    where = "Over the last half" if compared.last else "Over all of it"
    error = percent(compared.score(best, "type_error"), 1)
    how = f"a log-likelihood of {value:.3f} nats an event and a type error of {error}"
    if len(runs) == 1:
        return f"{summary} {where}: {how}."
    second = compared.best([run for run in runs if run is not best])
    lead = compared.lead(best, second, "log_likelihood")
    ahead = f"{lead:.3f} nats ahead of {second.label}" if math.isfinite(lead) else "alone in having scores"
    interval = compared.interval(second, best)
    chance = interval is not None and interval[1] >= 0.0
    doubt = " The lead is so small that it may be chance." if chance else ""
    return f"{summary} {where} {best.label} is best, {ahead}: {how}.{doubt}"


def _times_text(runs: Sequence[EventRun]) -> str:
    """Which times the events have; from the furthest checkpoint."""
    metas = [run.meta for run in runs if run.meta and run.meta["recorder"]["first_time"] is not None]
    if not metas:
        return ""
    meta = max(metas, key=lambda meta: float(meta["position"]["last"][0]))
    first, last = float(meta["recorder"]["first_time"]), float(meta["position"]["last"][0])
    return f", from {time_text(first)} to {time_text(last)} ({seconds_text(last - first)})"


def _notes(runs: Sequence[EventRun], compared: Compared) -> list[str]:
    """What a reader must know before trusting the numbers."""
    unit = runs[0].config.time_unit
    scored = {run.label: run.scored_at(compared.edges)[-1] for run in runs}
    notes = {
        f"Further than others; scores are compared over the first {compared.until:,.0f} events": [
            f"{run.label} ({run.steps[-1]:,.0f} events)" for run in runs if run.steps[-1] > compared.until
        ],
        "These runs did not meet the same events, so their scores do not compare; scored were": [
            f"{label} {count:,.0f}" for label, count in scored.items() if len(set(scored.values())) > 1
        ],
        "Nothing could be scored, for no key has come twice": [
            run.label for run in runs if not run.rows["scored"][-1]
        ],
        f"Made with another time unit; its scores of times were converted to {unit_text(unit)}": [
            f"{run.label} ({unit_text(run.config.time_unit)})" for run in runs if run.config.time_unit != unit
        ],
        "Events of types that the vocabulary had no room for count as (other); --types makes room": [
            f"{run.label} ({run.rows['types_overflowed'][-1]:,.0f} events)"
            for run in runs
            if run.rows["types_overflowed"][-1]
        ],
        "No whole checkpoint, so types, times, refused records and parameters are missing": [
            str(run.path) for run in runs if not run.meta
        ],
    }
    return [f"{what}: {'; '.join(which)}." for what, which in notes.items() if which]


def _calibration_text(runs: Sequence[EventRun]) -> str:
    known = [run for run in runs if math.isfinite(run.rows["ks"][-1])]
    if not known:
        return ""
    shown = [(f"{run.label} " if len(runs) > 1 else "") + f"{run.rows['ks'][-1]:.3f}" for run in known]
    return f"At the end: {', '.join(shown)}; critical is {known[0].rows['ks_critical'][-1]:.3f}."


def _type_calibration_text(runs: Sequence[EventRun]) -> str:
    """The expected calibration error: how far confidence and accuracy are apart, on average over events."""
    shown = []
    for run in runs:
        count, confidence, hits = run.by_confidence.T
        if count.sum():
            error = percent(float(np.abs(confidence - hits).sum() / count.sum()), 1)
            shown.append(f"{run.label} {error}" if len(runs) > 1 else error)
    return ", ".join(shown)


def _constant_text(runs: Sequence[EventRun]) -> str:
    """What models said of themselves that never changed."""
    shown = [
        (f"{run.label} " if len(runs) > 1 else "") + f"{name.replace('_', ' ')} {number_text(known[0])}"
        for run in runs
        for name in run.statistics
        if len(set(known := run.known(name))) == 1
    ]
    return "; ".join(shown)


def _alarm_text(runs: Sequence[EventRun]) -> str:
    texts = []
    for run in runs:
        count = int(run.rows["drift_alarms"][-1])
        text = f"{run.label}: {counted(count, 'alarm')}" if len(runs) > 1 else counted(count, "alarm")
        last = run.meta["recorder"]["scores"]["last_alarm"] if run.meta else None
        texts.append(f"{text}, the last at event {last:,}" if count and last is not None else text)
    if not any(run.rows["drift_alarms"][-1] for run in runs):
        return "There was no alarm."
    return "; ".join(texts) + "."


def _refused_text(runs: Sequence[EventRun]) -> str:
    run = max(runs, key=lambda run: sum(run.refused.values()))
    if not run.refused:
        return ""
    count, records = sum(run.refused.values()), int(run.meta["position"]["records"])
    return f"{count:,} of {counted(records, 'record')} ({percent(count / max(records, 1))})"
