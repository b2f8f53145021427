"""The report of runs on events: how well each event was foreseen before it was learned, and what was learned.

Runs on the same sources are models to compare. One self-contained HTML page, and its main figures as a PNG.
Most words of the page are in `templates/events.html`. Loading this module loads matplotlib: import it where
it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from markupsafe import Markup

from streamwise.runs.event_figures import (
    baseline_style,
    baseline_svgs,
    event_png,
    event_svgs,
    part_width,
)
from streamwise.runs.event_run_data import (
    Compared,
    EventRun,
    Influence,
    configuration,
    first_letters,
    plain,
    read_event_runs,
)
from streamwise.runs.figures import COLOURS, DASHES
from streamwise.runs.prequential import activity_name
from streamwise.runs.report import (
    ReportFiles,
    Row,
    duration_text,
    median,
    number_text,
    render,
    report_files,
    write_files,
)

__all__ = ["write_event_report"]

MOST_TYPES = 20  # in the table; the rest is summed up
MOST_CAUSES = 12  # types in the map of what brings what
DETAIL_LENGTH, RECORD_LENGTH = 120, 80  # characters shown
FIRST_DATE = 1e8  # seconds; earlier times count from a start of their own, not from 1970
SHADE = 55.0  # percent of colour in the darkest cell: the number on it stays readable
UNITS = {1.0: ("s", "second"), 60.0: ("min", "minute"), 3_600.0: ("h", "hour"), 86_400.0: ("days", "day")}


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
        scores=_score_rows(runs, compared),
        best=best.label,
        differences=_difference_rows(runs, compared, best),
        difference_span=_span_text(compared, compared.last),
        baselines=[_baseline_part(run, compared) for run in runs if run.baselines],
        width=part_width(runs),
        **event_svgs(runs, compared, best),
        has_pit=any(run.pit.sum() for run in runs),
        calibration_now=_calibration_text(runs),
        alarms=_alarm_text(runs),
        type_calibration=_type_calibration_text(runs),
        activities=_activity_rows([run for run in runs if len(run.by_activity)]),
        constant=_constant_text(runs),
        types=_type_rows([run for run in runs if len(run.by_type)]),
        influences=[_influence_map(run, run.influence) for run in runs if run.influence is not None],
        refused=_refused_rows(runs),
        refused_share=_refused_text(runs),
        speed=_speed_rows(runs),
        runs=differing,
        configuration=shared,
    )


# ---- words ----


def _title(runs: Sequence[EventRun]) -> str:
    sources = runs[0].config.sources
    named = _listed([_source_name(url) for url in sources]) if len(sources) < 4 else f"{len(sources)} sources"
    models = _listed([run.label for run in runs]) if len(runs) < 4 else f"{len(runs)} models"
    return f"{models} on {named}"


def _source_name(url: str) -> str:
    scheme, _, rest = re.sub(r"\?.*", "", url, flags=re.DOTALL).partition(":")
    if scheme == "stdin":
        return "standard input"
    return f"synthetic {rest}" if scheme == "synthetic" else rest.rstrip("/").rpartition("/")[2]


def _summary(runs: Sequence[EventRun], compared: Compared, best: EventRun) -> str:
    """What was learned from what, over which times, and how well."""
    row = np.searchsorted(runs[0].steps, compared.until)
    keys, types = (_counted(int(runs[0].rows[name][row]), name[:-1]) for name in ("keys", "types"))
    learned = f"{_counted(int(compared.until), 'event')} of {keys} and {types}{_times_text(runs)}"
    summary = f"{_listed([run.label for run in runs])} learned {learned}."
    value = compared.score(best, "log_likelihood")
    if not math.isfinite(value):
        return summary
    where = "Over the last half" if compared.last else "Over all of it"
    error = _percent(compared.score(best, "type_error"), 1)
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
    return f", from {_time_text(first)} to {_time_text(last)} ({_seconds_text(last - first)})"


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
        f"Made with another time unit; its scores of times were converted to {_unit_text(unit)}": [
            f"{run.label} ({_unit_text(run.config.time_unit)})"
            for run in runs
            if run.config.time_unit != unit
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
            error = _percent(float(np.abs(confidence - hits).sum() / count.sum()), 1)
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
        text = f"{run.label}: {_counted(count, 'alarm')}" if len(runs) > 1 else _counted(count, "alarm")
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
    return f"{count:,} of {_counted(records, 'record')} ({_percent(count / max(records, 1))})"


def _span_text(compared: Compared, after: float) -> str:
    return f"{after + 1:,.0f} to {compared.until:,.0f}"


def _unit_text(seconds: float) -> str:
    return UNITS[seconds][0] if seconds in UNITS else f"{seconds:,.10g} s"


def _time_text(seconds: float) -> str:
    if seconds < FIRST_DATE:
        return f"{seconds:,.3f} s"
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y %H:%M:%S} UTC"


def _seconds_text(seconds: float) -> str:
    unit = max((unit for unit in UNITS if seconds >= 2 * unit), default=1.0)
    return f"{seconds / unit:,.3g} {UNITS[unit][0]}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _percent(share: float, digits: int = 2) -> str:
    return "–" if math.isnan(share) else f"{100.0 * share:.{digits}f}%"


def _nats(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


# ---- tables ----


def _score_rows(runs: Sequence[EventRun], compared: Compared) -> list[Row]:
    unit = _unit_text(runs[0].config.time_unit)
    titles: dict[str, tuple[str, Callable[[float], str], Callable[[list[float]], float]]] = {
        "log_likelihood": ("log-likelihood", _nats, max),
        "time_log_likelihood": ("time part", _nats, max),
        "type_log_loss": ("type log loss", _nats, min),
        "type_error": ("type error", _percent, min),
        "time_rmse": (f"RMSE ({unit})", number_text, min),
        "time_mae": (f"MAE ({unit})", number_text, min),
    }
    until = compared.until
    rows = []
    for after in dict.fromkeys([0.0, compared.last]):
        columns = {"events": [_span_text(compared, after)] * len(runs)}
        if len(runs) > 1:
            columns["model"] = [run.label for run in runs]
        for name, (title, text, better) in titles.items():
            columns[title] = _marked([run.between(name, after, until) for run in runs], text, better)
        for name, share in (("coverage_50", 0.5), ("coverage_90", 0.9)):
            covered = [run.between(name, after, until) for run in runs]
            if any(map(math.isfinite, covered)):
                nearest = partial(min, key=lambda value, share=share: abs(value - share))
                columns[f"in {share:.0%} interval"] = _marked(covered, partial(_percent, digits=1), nearest)
        columns["KS"] = _marked([median(run.known("ks", after, until)) for run in runs], number_text, min)
        columns["critical"] = [number_text(median(run.known("ks_critical", after, until))) for run in runs]
        rows += [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return rows


def _marked(
    values: Sequence[float], text: Callable[[float], str], better: Callable[[list[float]], float]
) -> list[str]:
    """Return the values as text, the best of several in bold."""
    known = [value for value in values if math.isfinite(value)]
    best = better(known) if len(values) > 1 and known else None
    return [Markup("<b>{}</b>").format(text(value)) if value == best else text(value) for value in values]


def _difference_rows(runs: Sequence[EventRun], compared: Compared, best: EventRun) -> list[Row]:
    """Return what the other models have over the best, on the same events."""
    rows = []
    for run in (run for run in runs if run is not best):
        interval = compared.interval(run, best)
        windows, _ = compared.windows(run, best)
        rows.append(
            {
                "model": f"{run.label} less {best.label}",
                "log-likelihood": _signed(compared.lead(run, best, "log_likelihood")),
                "95% interval": "–" if interval is None else " to ".join(map(_signed, interval)),
                "windows ahead": f"{np.count_nonzero(windows > 0.0):,} of {len(windows):,}",
                "time part": _signed(compared.lead(run, best, "time_log_likelihood")),
                "type log loss": _signed(compared.lead(run, best, "type_log_loss")),
                "type error": _signed(100.0 * compared.lead(run, best, "type_error"), "+.2f", " points"),
            }
        )
    return rows


@dataclass(frozen=True)
class _BaselinePart:
    """What a run has over its baselines, as the page shows it. legend: name, colour and dashes."""

    label: str
    rows: list[Row]
    legend: list[tuple[str, str, str]]
    drawings: dict[str, Markup]


def _baseline_part(run: EventRun, compared: Compared) -> _BaselinePart:
    rows, legend = [], []
    for place, baseline in enumerate(run.baselines):
        windows, _ = compared.windows(run, baseline)
        interval = compared.interval(run, baseline) if len(windows) else None
        name = baseline.name.replace("_", " ")
        rows.append(
            {
                "baseline": name,
                "its log-likelihood": _nats(compared.score(baseline, "log_likelihood")),
                "its type log loss": _nats(compared.score(baseline, "type_log_loss")),
                "its type error": _percent(compared.score(baseline, "type_error")),
                "log-likelihood": _signed(compared.lead(run, baseline, "log_likelihood")),
                "95% interval": "–" if interval is None else " to ".join(map(_signed, interval)),
                "windows ahead": f"{np.count_nonzero(windows > 0.0):,} of {len(windows):,}"
                if len(windows)
                else "–",
                "time part": _signed(compared.lead(run, baseline, "time_log_likelihood")),
                "type log loss": _signed(compared.lead(run, baseline, "type_log_loss")),
                "type error": _signed(100.0 * compared.lead(run, baseline, "type_error"), "+.2f", " points"),
            }
        )
        style = baseline_style(place)
        legend.append((name, f"series-{COLOURS.index(style['color'])}", DASHES[style["linestyle"]]))
    return _BaselinePart(run.label, rows, legend, baseline_svgs(run, compared))


def _signed(value: float, form: str = "+.4f", unit: str = "") -> str:
    return f"{value:{form}}{unit}" if math.isfinite(value) else "–"


def _type_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return the scores by type, the most frequent first, and the rest in one row."""
    if not runs:
        return []
    names, counts = runs[0].names, runs[0].by_type[:, 0]
    groups = [[names[i]] for i in np.argsort(-counts, kind="stable")[:MOST_TYPES] if counts[i]]
    rest = [name for name in names if [name] not in groups]
    tables = [dict(zip(run.names, run.by_type, strict=False)) for run in runs]
    rows = []
    for group in [*groups, rest] if rest else groups:
        sums = [sum((table.get(name, np.zeros(4)) for name in group), np.zeros(4)) for table in tables]
        means = [column / column[0] if column[0] else np.full(4, math.nan) for column in sums]
        row = {
            "type": _counted(len(group), "other") if group is rest else plain(group[0]),
            "share": _percent(sums[0][0] / counts.sum()),
            "scored events": f"{sums[0][0]:,.0f}",
        }
        errors = [_percent(float(mean[1]), 1) for mean in means]
        losses = _marked([float(-mean[2]) for mean in means], number_text, min)
        for name, cells in (("error", errors), ("log loss", losses)):
            for run, cell in zip(runs, cells, strict=True):
                row[f"{name}, {run.label}" if len(runs) > 1 else name] = cell
        if len(runs) == 1:
            row["time log-likelihood"] = number_text(float(means[0][3]))
        rows.append(row)
    return rows


def _activity_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return the scores by how many events the key has had."""
    if not runs:
        return []
    groups = max(len(run.by_activity) for run in runs)
    tables = [np.pad(run.by_activity, ((0, groups - len(run.by_activity)), (0, 0))) for run in runs]
    rows = []
    for group in range(groups):
        sums = [table[group] for table in tables]
        means = [column / column[0] if column[0] else np.full(4, math.nan) for column in sums]
        row = {
            "events of the key before": activity_name(group),
            "share": _percent(sums[0][0] / tables[0][:, 0].sum()),
            "scored events": f"{sums[0][0]:,.0f}",
        }
        for name, cells in (
            ("time part", _marked([float(mean[3]) for mean in means], number_text, max)),
            ("type log loss", _marked([float(-mean[2]) for mean in means], number_text, min)),
            ("type error", _marked([float(mean[1]) for mean in means], _percent, min)),
        ):
            for run, cell in zip(runs, cells, strict=True):
                row[f"{name}, {run.label}" if len(runs) > 1 else name] = cell
        rows.append(row)
    return rows


def _refused_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return how many records were refused for which reason, each with the first of them."""
    totals: dict[str, int] = {}
    for run in runs:
        for reason, count in run.refused.items():
            totals[reason] = max(count, totals.get(reason, 0))
    letters = first_letters(runs)
    whole = [run for run in runs if run.meta]
    rows = []
    for reason in sorted(totals, key=lambda reason: -totals[reason]):
        row = {"reason": plain(reason)}
        if all(run.refused == whole[0].refused for run in whole):
            row["records"] = f"{totals[reason]:,}"
        else:
            row |= {run.label: f"{run.refused.get(reason, 0):,}" for run in whole}
        where = detail = record = "–"
        if letter := letters.get(reason):
            where = f"{Path(str(letter['partition'])).name} {letter['position']}"
            detail, record = str(letter.get("detail", "–")), str(letter["record"])
        row["the first"] = plain(where, DETAIL_LENGTH)
        row["what is wrong with it"] = plain(detail, DETAIL_LENGTH)
        row["how it begins"] = Markup("<code>{}</code>").format(plain(record, RECORD_LENGTH))
        rows.append(row)
    return rows


def _speed_rows(runs: Sequence[EventRun]) -> list[Row]:
    rows = []
    for run in runs:
        elapsed = float(run.rows["wall_time"][-1])
        rows.append(
            {
                "model": run.label,
                "events": f"{run.steps[-1]:,.0f}",
                "time": duration_text(elapsed) if elapsed >= 60.0 else f"{elapsed:.2f} s",
                "events/s": number_text(run.steps[-1] / elapsed if elapsed > 0.0 else math.nan),
                "p50, median row (ms)": number_text(median(run.known("latency_p50_ms"))),
                "p99, median row (ms)": number_text(median(run.known("latency_p99_ms"))),
                "keys": f"{run.rows['keys'][-1]:,.0f}",
            }
        )
    return rows


# ---- what brings what ----


@dataclass(frozen=True)
class _Cell:
    """A number on a shade: percent of colour."""

    text: str
    shade: float = 0.0


@dataclass(frozen=True)
class _InfluenceMap:
    """Which types bring which, as the page shows it. cells: [types, types and the rest and all]."""

    label: str
    per: str  # unit of time of the base rates
    columns: list[str]
    rows: list[tuple[str, str, list[_Cell]]]  # type, base rate, what it brings
    left_out: int
    average: str
    scales: list[tuple[str, _Cell]]  # within which time, which share of what is brought


def _influence_map(run: EventRun, influence: Influence) -> _InfluenceMap:
    base_rates, children, scales = influence
    weights = np.zeros(len(base_rates))
    weights[: len(run.by_type)] = run.by_type[:, 0]
    order = np.argsort(-weights, kind="stable")[:MOST_CAUSES]
    left_out = len(base_rates) - len(order)
    unit = next((unit for unit in UNITS if base_rates.max() * unit >= 1.0), 86_400.0)
    totals = children.sum(0)  # [sources, types]
    darkest = totals[np.ix_(order, order)].max()
    rows = []
    for source in order:
        brought = [_cell(totals[source, child], darkest) for child in order]
        whole = float(totals[source].sum())
        if left_out:
            brought.append(_cell(whole - totals[source, order].sum(), math.inf))
        brought.append(_Cell(f"{whole:.2f}"))
        rows.append((plain(run.names[source]), number_text(base_rates[source] * unit), brought))
    weights = weights / weights.sum() if weights.sum() else np.full(len(weights), 1.0 / len(weights))
    by_scale = children.sum(2) @ weights
    shares = by_scale / max(by_scale.sum(), 1e-300)
    return _InfluenceMap(
        label=run.label,
        per=f"{'an' if unit == 3_600.0 else 'a'} {UNITS[unit][1]}",
        columns=[*(plain(run.names[child]) for child in order), *(["others"] if left_out else []), "all"],
        rows=rows,
        left_out=left_out,
        average=f"{by_scale.sum():.2f}",
        scales=[
            (
                _seconds_text(float(scale)),
                _Cell(_percent(share, 0), SHADE * share / max(shares.max(), 1e-300)),
            )
            for scale, share in zip(scales, shares, strict=True)
        ],
    )


def _cell(value: float, darkest: float) -> _Cell:
    """Return a number of children; the square root lets weak influences be seen."""
    shade = SHADE * math.sqrt(value / darkest) if value > 0 else 0.0
    return _Cell(f"{value:.2f}" if value >= 0.005 else "", shade)
