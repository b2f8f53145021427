"""The report of a comparison on tasks: what each method learned, carried over and lost, beside going online.

One self-contained HTML page, and its main figures as a PNG. Most words of the page are in
`templates/tasks.html`. Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from streamwise.runs.figures import COLOURS, Panels, finish_axes, line_style, svgs, sweep_png
from streamwise.runs.report import ReportFiles, Row, duration_text, render, report_files, write_files
from streamwise.runs.run_data import Array
from streamwise.runs.statistics import bootstrap_interval
from streamwise.runs.task_methods import NEURAL
from streamwise.runs.task_scores import METRICS
from streamwise.runs.task_statistics import STATISTICAL
from streamwise.runs.tasks import Summary, TasksConfig, as_floats, load_tasks, summarize
from streamwise.runs.texts import number_text
from streamwise.streams import UsageError

__all__ = ["Result", "Results", "read_results", "write_task_report"]

REFERENCE = "online"  # the method that others are set beside
UNFAIR = "leaky-retrieval"
MOST_BEHIND = 1.5  # nats: how far behind the best a cell of a map is blank
MAPS_A_ROW = 3
MOST_WITH_DIGITS = 10


@dataclass(frozen=True)
class Result:
    """One method over its seeds. matrices: float64 [seeds, tasks, tasks], by metric; place: its colour."""

    label: str
    method: str
    base: str | None
    place: int
    seeds: tuple[int, ...]
    matrices: dict[str, Array]
    parameters: int
    learning_seconds: float
    scoring_seconds: float
    silence: Array

    def summaries(self, metric: str) -> list[Summary]:
        """Return average, forward transfer and forgetting of every seed."""
        return [summarize(matrix, METRICS[metric]) for matrix in self.matrices[metric]]

    def summary(self, metric: str, name: str) -> Array:
        """Return one of these, float64 [seeds]."""
        return np.array([getattr(summary, name) for summary in self.summaries(metric)])

    @property
    def diagonal(self) -> Array:
        """R[i][i] of the log-likelihood, float64 [seeds, tasks]."""
        return np.array([np.diagonal(matrix) for matrix in self.matrices["log_likelihood"]])


@dataclass(frozen=True)
class Results:
    """What a directory holds: its settings, the data, a result for every method, and what is missing."""

    config: TasksConfig
    data: dict[str, Any]
    methods: list[Result]

    def reference_of(self, result: Result) -> Result | None:
        """Return the online method on the same base."""
        found = [x for x in self.methods if x.method == REFERENCE and x.base == result.base]
        return found[0] if found and found[0] is not result else None


def read_results(directory: Path) -> Results:
    """Read what is done of a comparison. Raises UsageError if nothing is, or a file is damaged."""
    config = load_tasks(directory)
    by_label: dict[str, list[dict[str, Any]]] = {}
    try:
        data = json.loads((directory / "data.json").read_bytes())
        for path in sorted((directory / "results").glob("*.json")):
            unit = json.loads(path.read_bytes())
            label = unit["method"] if unit["base"] is None else f"{unit['method']} {unit['base']}"
            by_label.setdefault(label, []).append(unit)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{directory} is damaged: {error}.") from None
    if not by_label:
        raise UsageError(f"{directory} has no results yet; give the command that began it again.")
    order = [*NEURAL, *STATISTICAL]
    units = sorted(
        by_label.values(), key=lambda units: (units[0]["base"] or "~", order.index(units[0]["method"]))
    )
    return Results(config, data, [_result(place, some) for place, some in enumerate(units)])


def _result(place: int, units: list[dict[str, Any]]) -> Result:
    units = sorted(units, key=lambda unit: int(unit["seed"]))
    first = units[0]
    return Result(
        label=first["method"] if first["base"] is None else f"{first['method']} {first['base']}",
        method=first["method"],
        base=first["base"],
        place=place,
        seeds=tuple(unit["seed"] for unit in units),
        matrices={name: np.stack([as_floats(unit["matrices"][name]) for unit in units]) for name in METRICS},
        parameters=first["parameters"],
        learning_seconds=float(np.mean([sum(unit["learning_seconds"]) for unit in units])),
        scoring_seconds=float(np.mean([sum(unit["scoring_seconds"]) for unit in units])),
        silence=as_floats([unit["silence"] for unit in units]),
    )


def write_task_report(directory: Path, out: Path | None = None) -> ReportFiles:
    """Write the report of a directory of `streamwise tasks`.

    out: the page, *.html; the figure lies beside it as *.png. Unset: report.html in the directory. Raises
    UsageError for a directory that is none or has no results, and for an `out` that cannot be written.
    """
    files = report_files([directory], out)
    results = read_results(directory)
    write_files({files.html: _page(results).encode(), files.png: _png(results)})
    return files


def _page(results: Results) -> str:
    known = [result for result in results.methods if np.isfinite(result.diagonal).all()]
    return render(
        "tasks.html",
        title=_title(results),
        summary=_summary(results),
        labels={result.label: result.place for result in results.methods},
        reference=REFERENCE,
        unit=_unit(results.config),
        learned=_learned_rows(results),
        errors=_error_rows(results),
        differences=_difference_rows(results),
        curves=svgs(_curve_panels(results), (4.4, 2.9)),
        maps=svgs(_map_panels(known), (2.9, 2.6)),
        behind=MOST_BEHIND,
        unfair=any(result.method == UNFAIR for result in results.methods),
        tasks=_task_rows(results),
        speed=_speed_rows(results),
        configuration=_configuration(results.config),
    )


def _png(results: Results) -> bytes:
    known = [result for result in results.methods if np.isfinite(result.diagonal).all()]
    maps = list(_map_panels(known).items())
    rows = [(dict(maps[i : i + MAPS_A_ROW]), 3.0) for i in range(0, len(maps), MAPS_A_ROW)]
    return sweep_png(_title(results), _curve_panels(results), rows)


# ---- words ----


def _title(results: Results) -> str:
    name = results.config.source.partition("?")[0].rpartition("/")[2]
    return f"{results.data['keys']:,} keys of {name} in {results.config.tasks} tasks"


def _summary(results: Results) -> str:
    data, config = results.data, results.config
    windows = "equal time" if config.by == "time" else "an equal count of events"
    scored = sum(data["test"])
    text = (
        f"{data['events']:,} events of {data['types']} types, divided into {config.tasks} windows of "
        f"{windows}; {scored:,} events of the test parts are scored."
    )
    fair = [x for x in results.methods if x.method != UNFAIR]
    ranked = [(float(np.mean(x.summary("log_likelihood", "average"))), x.label) for x in fair]
    ranked = sorted(((value, label) for value, label in ranked if math.isfinite(value)), reverse=True)
    if not ranked:
        return text
    best, *others = ranked
    ahead = f", {best[0] - others[0][0]:.3f} ahead of {others[0][1]}" if others else ""
    return f"{text} Best on average is {best[1]} with {best[0]:.3f} nats an event{ahead}."


def _unit(config: TasksConfig) -> str:
    return "seconds" if config.time_unit == 1.0 else f"{config.time_unit:,.10g} s"


# ---- tables ----


def _mean(values: Array, text: Callable[[float], str]) -> str:
    """Return the mean over seeds, with its 95% interval where there are several."""
    if not np.isfinite(values).all():
        return "–"
    mean = text(float(values.mean()))
    if len(values) < 2:
        return mean
    low, high = bootstrap_interval(values, np.mean)
    return f"{mean} ({text(float(low))} to {text(float(high))})"


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100.0 * share:+.2f}"


def _best(
    rows: list[Row], values: Sequence[float], column: str, is_fair: Sequence[bool], sign: float
) -> None:
    """Set the best of a column in bold, among the fair."""
    ranked = [
        (sign * value, row)
        for row, value, fair in zip(rows, values, is_fair, strict=True)
        if fair and math.isfinite(value)
    ]
    if len(ranked) > 1:
        row = max(ranked, key=lambda pair: pair[0])[1]
        row[column] = Markup("<b>{}</b>").format(row[column])


def _rows(results: Results, columns: dict[str, tuple[str, str, Callable[[float], str]]]) -> list[Row]:
    """Return a row for every method; columns: metric, what of its matrix, and how it is written, by title."""
    methods = results.methods
    rows: list[Row] = [{"method": x.label, "seeds": str(len(x.seeds))} for x in methods]
    fair = [x.method != UNFAIR for x in methods]
    for title, (metric, name, text) in columns.items():
        values = [x.summary(metric, name) for x in methods]
        for row, value in zip(rows, values, strict=True):
            row[title] = _mean(value, text)
        higher = METRICS[metric] and name != "forgetting"
        _best(rows, [float(np.mean(value)) for value in values], title, fair, 1.0 if higher else -1.0)
    return rows


def _learned_rows(results: Results) -> list[Row]:
    return _rows(
        results,
        {
            "average": ("log_likelihood", "average", _nats),
            "forward": ("log_likelihood", "forward", _nats),
            "forgetting": ("log_likelihood", "forgetting", _nats),
            "time part": ("time_log_likelihood", "average", _nats),
            "type part": ("type_log_likelihood", "average", _nats),
        },
    )


def _error_rows(results: Results) -> list[Row]:
    return _rows(
        results,
        {
            "type error at the true time": ("type_error_true_time", "average", _percent),
            "at the predicted time": ("type_error_predicted_time", "average", _percent),
            "forgetting of the first": ("type_error_true_time", "forgetting", _percent),
            "RMSE": ("time_rmse", "average", number_text),
            "MAE": ("time_mae", "average", number_text),
        },
    )


def _difference_rows(results: Results) -> list[Row]:
    """Return, of every method, what it has over online learning on its base, seed by seed."""
    rows = []
    for result in results.methods:
        reference = results.reference_of(result)
        if reference is None or result.base is None:
            continue
        seeds = [seed for seed in result.seeds if seed in reference.seeds]
        ours, theirs = ([x.seeds.index(seed) for seed in seeds] for x in (result, reference))
        if not seeds:
            continue
        row = {"method": result.label, "seeds": str(len(seeds))}
        for title, (metric, name, text) in {
            "average": ("log_likelihood", "average", _signed),
            "forward": ("log_likelihood", "forward", _signed),
            "forgetting": ("log_likelihood", "forgetting", _signed),
            "type error, points": ("type_error_true_time", "average", _points),
            "RMSE": ("time_rmse", "average", _signed),
        }.items():
            difference = result.summary(metric, name)[ours] - reference.summary(metric, name)[theirs]
            row[title] = _mean(difference, text)
        rows.append(row)
    return rows


def _task_rows(results: Results) -> list[Row]:
    """Return how many events each task has, and what is held against a key's silence after its test part."""
    data = results.data
    columns = {name: [f"{count:,}" for count in data[name]] for name in ("train", "validation", "test")}
    span = np.diff(np.array(data["bounds"])[::3])
    return [
        {
            "task": str(i + 1),
            "length": duration_text(float(span[i])),
            **{name: column[i] for name, column in columns.items()},
        }
        for i in range(results.config.tasks)
    ]


def _speed_rows(results: Results) -> list[Row]:
    return [
        {
            "method": x.label,
            "parameters": f"{x.parameters:,}",
            "learning": f"{x.learning_seconds:,.1f} s",
            "scoring": f"{x.scoring_seconds:,.1f} s",
            "silence": "–" if np.isnan(x.silence).all() else number_text(float(np.nanmean(x.silence))),
        }
        for x in results.methods
    ]


def _configuration(config: TasksConfig) -> dict[str, str]:
    settings = {**vars(config), **vars(config.settings)}
    hidden = ("settings", "out", "address", "cpus", "methods", "bases", "max_failures")
    return {
        name.replace("_", " "): str(value)
        for name, value in settings.items()
        if name not in hidden and value is not None
    }


# ---- drawings ----


def _curve_panels(results: Results) -> Panels:
    """Return a panel for each base, and one for what has none."""
    bases = dict.fromkeys(x.base for x in results.methods if np.isfinite(x.diagonal).all())
    titles = {"attnhp": "On AttNHP", "nhp": "On NHP", None: "Statistics"}
    shown = [x.diagonal for x in results.methods if np.isfinite(x.diagonal).all()]
    values = np.concatenate(shown) if shown else np.zeros(1)
    margin = 0.05 * float(np.ptp(values)) + 0.01
    limits = float(np.quantile(values, 0.02)) - 0.2, float(values.max()) + margin
    return {
        titles[base]: partial(_draw_curves, [x for x in results.methods if x.base == base], limits)
        for base in bases
    }


def _draw_curves(results: Sequence[Result], limits: tuple[float, float], axes: Axes) -> None:
    """Draw R[i][i] over the tasks, the mean of the seeds within its interval; the limits are all panels'."""
    for result in results:
        values = result.diagonal
        if not np.isfinite(values).all():
            continue
        style, tasks = line_style(result.place), np.arange(1, values.shape[1] + 1)
        if len(values) > 1:
            between = bootstrap_interval(values, np.mean)
            axes.fill_between(tasks, *between, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(tasks, values.mean(0), **style, linewidth=1.4, label=result.label)
    finish_axes(axes, across="task")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_ylabel("nats an event")
    axes.set_ylim(*limits)


def _map_panels(results: Sequence[Result]) -> Panels:
    """Return a map of every method: how far its matrix is behind the best that any fair method has."""
    means = [x.matrices["log_likelihood"].mean(0) for x in results]
    fair = [mean for x, mean in zip(results, means, strict=True) if x.method != UNFAIR]
    if not fair:
        return {}
    best = np.nanmax(np.concatenate(fair), 0)
    return {x.label: partial(_draw_map, mean, best) for x, mean in zip(results, means, strict=True)}


def _draw_map(mean: Array, best: Array, axes: Axes) -> None:
    """Draw R[i][j], in cells the darker, the nearer it is to the best; what is not known is blank."""
    tasks, behind = len(mean), best - mean
    edges = np.arange(tasks + 1) + 0.5
    near = np.clip(1.0 - np.nan_to_num(behind, nan=MOST_BEHIND) / MOST_BEHIND, 0.0, 1.0)
    for i, j in np.argwhere(np.isfinite(behind)):
        # A patch each, and no image, so that a page can be dark.
        axes.fill(
            [edges[j], edges[j + 1], edges[j + 1], edges[j]],
            [edges[i], edges[i], edges[i + 1], edges[i + 1]],
            facecolor=COLOURS[0],
            alpha=float(0.04 + 0.9 * near[i, j]),
            linewidth=0,
        )
        # Digits for a page that can be enlarged; beyond ten tasks they would run into each other.
        if tasks <= MOST_WITH_DIGITS:
            axes.text(
                j + 1, i + 1, f"{mean[i, j]:.2f}", ha="center", va="center", fontsize=min(8.0, 46.0 / tasks),
                color="white" if near[i, j] > 0.5 else None,
            )  # fmt: skip
    axes.grid(visible=False)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(edges[-1], edges[0])
    axes.set_aspect("equal")
    finish_axes(axes, across="tested on task")
    axes.set_ylabel("learned through task")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
