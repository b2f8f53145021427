"""The tables of the report of runs on events.

Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from markupsafe import Markup

from streamwise.runs.event_compared import Compared
from streamwise.runs.event_figures import baseline_style, baseline_svgs
from streamwise.runs.event_run_data import Baseline, EventRun, first_letters
from streamwise.runs.figures import COLOURS, DASHES
from streamwise.runs.prequential import activity_name
from streamwise.runs.report import Row, duration_text, median
from streamwise.runs.run_data import Array
from streamwise.runs.texts import counted, nats, number_text, percent, plain, signed, unit_text

__all__ = [
    "BaselinePart",
    "activity_rows",
    "baseline_part",
    "difference_rows",
    "refused_rows",
    "score_rows",
    "span_text",
    "speed_rows",
    "type_rows",
]

MOST_TYPES = 20  # in the table; the rest is summed up
DETAIL_LENGTH, RECORD_LENGTH = 120, 80  # characters shown


def span_text(compared: Compared, after: float) -> str:
    """Return which events are meant, from the first after a step to the last that all models have had."""
    return f"{after + 1:,.0f} to {compared.until:,.0f}"


def score_rows(runs: Sequence[EventRun], compared: Compared) -> list[Row]:
    """Return the scores of each model, over the whole and over the span that decides."""
    unit = unit_text(runs[0].config.time_unit)
    titles: dict[str, tuple[str, Callable[[float], str], Callable[[list[float]], float]]] = {
        "log_likelihood": ("log-likelihood", nats, max),
        "time_log_likelihood": ("time part", nats, max),
        "type_log_loss": ("type log loss", nats, min),
        "type_error": ("type error", percent, min),
        "time_rmse": (f"RMSE ({unit})", number_text, min),
        "time_mae": (f"MAE ({unit})", number_text, min),
    }
    until = compared.until
    rows = []
    for after in dict.fromkeys([0.0, compared.last]):
        columns = {"events": [span_text(compared, after)] * len(runs)}
        if len(runs) > 1:
            columns["model"] = [run.label for run in runs]
        for name, (title, text, better) in titles.items():
            columns[title] = _marked([run.between(name, after, until) for run in runs], text, better)
        for name, share in (("coverage_50", 0.5), ("coverage_90", 0.9)):
            covered = [run.between(name, after, until) for run in runs]
            if any(map(math.isfinite, covered)):
                nearest = partial(min, key=lambda value, share=share: abs(value - share))
                columns[f"in {share:.0%} interval"] = _marked(covered, partial(percent, digits=1), nearest)
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


def difference_rows(runs: Sequence[EventRun], compared: Compared, best: EventRun) -> list[Row]:
    """Return what the other models have over the best, on the same events."""
    return [
        {"model": f"{run.label} less {best.label}", **_lead_cells(run, best, compared)}
        for run in runs
        if run is not best
    ]


def _lead_cells(run: EventRun, other: EventRun | Baseline, compared: Compared) -> Row:
    """Return what a model has over another, on the same events."""
    windows, _ = compared.windows(run, other)
    interval = compared.interval(run, other)
    return {
        "log-likelihood": signed(compared.lead(run, other, "log_likelihood")),
        "95% interval": "–" if interval is None else " to ".join(map(signed, interval)),
        "windows ahead": f"{np.count_nonzero(windows > 0.0):,} of {len(windows):,}" if len(windows) else "–",
        "time part": signed(compared.lead(run, other, "time_log_likelihood")),
        "type log loss": signed(compared.lead(run, other, "type_log_loss")),
        "type error": signed(100.0 * compared.lead(run, other, "type_error"), "+.2f", " points"),
    }


@dataclass(frozen=True)
class BaselinePart:
    """What a run has over its baselines, as the page shows it. legend: name, colour and dashes."""

    label: str
    rows: list[Row]
    legend: list[tuple[str, str, str]]
    drawings: dict[str, Markup]


def baseline_part(run: EventRun, compared: Compared) -> BaselinePart:
    """Return the table of the baselines that a model was compared with while it learned, and the drawings."""
    rows, legend = [], []
    for place, baseline in enumerate(run.baselines):
        name = baseline.name.replace("_", " ")
        rows.append(
            {
                "baseline": name,
                "its log-likelihood": nats(compared.score(baseline, "log_likelihood")),
                "its type log loss": nats(compared.score(baseline, "type_log_loss")),
                "its type error": percent(compared.score(baseline, "type_error")),
                **_lead_cells(run, baseline, compared),
            }
        )
        style = baseline_style(place)
        legend.append((name, f"series-{COLOURS.index(style['color'])}", DASHES[style["linestyle"]]))
    return BaselinePart(run.label, rows, legend, baseline_svgs(run, compared))


def type_rows(runs: Sequence[EventRun]) -> list[Row]:
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
        means = [_means(column) for column in sums]
        row = {
            "type": counted(len(group), "other") if group is rest else plain(group[0]),
            "share": percent(sums[0][0] / counts.sum()),
            "scored events": f"{sums[0][0]:,.0f}",
        }
        row |= _by_run(
            runs,
            {
                "error": [percent(float(mean[1]), 1) for mean in means],
                "log loss": _marked([float(-mean[2]) for mean in means], number_text, min),
            },
        )
        if len(runs) == 1:
            row["time log-likelihood"] = number_text(float(means[0][3]))
        rows.append(row)
    return rows


def activity_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return the scores by how many events the key has had."""
    if not runs:
        return []
    groups = max(len(run.by_activity) for run in runs)
    tables = [np.pad(run.by_activity, ((0, groups - len(run.by_activity)), (0, 0))) for run in runs]
    rows = []
    for group in range(groups):
        means = [_means(table[group]) for table in tables]
        count = tables[0][group, 0]
        row = {
            "events of the key before": activity_name(group),
            "share": percent(count / tables[0][:, 0].sum()),
            "scored events": f"{count:,.0f}",
        }
        row |= _by_run(
            runs,
            {
                "time part": _marked([float(mean[3]) for mean in means], number_text, max),
                "type log loss": _marked([float(-mean[2]) for mean in means], number_text, min),
                "type error": _marked([float(mean[1]) for mean in means], percent, min),
            },
        )
        rows.append(row)
    return rows


def _means(sums: Array) -> Array:
    """Return the means of an event from a row of `EventRun.by_type`, whose first number counts."""
    return sums / sums[0] if sums[0] else np.full(len(sums), math.nan)


def _by_run(runs: Sequence[EventRun], columns: Mapping[str, Sequence[str]]) -> Row:
    """Return the cells of a row, a column for each score and run."""
    return {
        f"{name}, {run.label}" if len(runs) > 1 else name: cell
        for name, cells in columns.items()
        for run, cell in zip(runs, cells, strict=True)
    }


def refused_rows(runs: Sequence[EventRun]) -> list[Row]:
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


def speed_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return how fast each model learned."""
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
