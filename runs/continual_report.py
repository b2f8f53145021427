"""The report of a comparison of methods of continual learning: tables, curves and matrices, by schedule.

One self-contained HTML page, and its curves as a PNG. Most words of the page are in
`templates/continual.html`. Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from streamwise.runs.continual import ContinualSpec, load_continual, score_text, units_of
from streamwise.runs.continual_metrics import (
    lost_on_leaving,
    retention_curve,
    worst_case_accuracy,
)
from streamwise.runs.continual_tables import as_csv, as_markdown
from streamwise.runs.figures import COLOURS, Draw, Panels, finish_axes, line_style, svgs, sweep_png
from streamwise.runs.report import ReportFiles, Row, render, report_files, write_files
from streamwise.runs.run_data import Array
from streamwise.runs.statistics import bootstrap_interval
from streamwise.runs.texts import number_text
from streamwise.runs.unit_pool import result_path
from streamwise.streams import UsageError

__all__ = ["Found", "continual_rows", "read_found", "write_continual_report"]

REFERENCE = "nothing"
_LAG_POINTS = 60
_MOST_BANDS = 8
_ROW_INCHES = 0.24
_COLUMNS = 2
_MAPS_SHOWN = 12  # of a schedule; more would be a wall


@dataclass(frozen=True)
class Found:
    """One method on one schedule over its seeds. place: of its colour. units: results, as JSON."""

    schedule: str
    method: str
    place: int
    unit: Literal["accuracy", "nats"]
    units: list[dict[str, Any]]

    @property
    def is_mixed(self) -> bool:
        """Whether its examples were all mixed: then nothing has an end, and nothing can be lost."""
        return len(self.units[0]["segments"]) == 1

    def scores(self) -> dict[str, Array]:
        """Return what is reported of each seed, float64 [seeds], by name."""
        rows = [_scores(unit) for unit in self.units]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def looks(self) -> tuple[Array, Array]:
        """Return after how many examples, [n], and scores, [seeds, n, experiences]."""
        return np.array(self.units[0]["looks"]), np.array([unit["scores"] for unit in self.units])


def _scores(unit: dict[str, Any]) -> dict[str, float]:
    looks, rows, segments = unit["looks"], np.array(unit["scores"]), unit["segments"]
    ends = [looks.index(stop) for _, stop, _ in segments]
    first_end = {
        experience: end for (_, _, experience), end in reversed(list(zip(segments, ends, strict=True)))
    }
    is_mixed = len(segments) == 1
    seen = [sorted({experience for _, _, experience in segments[: place + 1]}) for place in range(len(ends))]
    learned = [first_end.get(j, 0) for j in range(rows.shape[1])]
    return {
        "final": float(rows[-1].mean()),
        "forgetting": math.nan if is_mixed else lost_on_leaving(looks, rows, segments),
        "just learned": math.nan if is_mixed else float(
            np.mean([rows[end, experience] for (_, _, experience), end in zip(segments, ends, strict=True)])
        ),
        "on the way": math.nan if is_mixed else float(
            np.mean([rows[end, known].mean() for end, known in zip(ends, seen, strict=True)])
        ),
        "worst": math.nan if is_mixed else worst_case_accuracy(rows, learned),
        "online": float(unit["online"]),
    }  # fmt: skip


def read_found(directory: Path) -> tuple[ContinualSpec, list[Found]]:
    """Read what is done of a comparison. Raises UsageError if nothing is, or a file is damaged."""
    spec = load_continual(str(directory))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        for unit in units_of(spec):
            path = result_path(directory, unit)
            if path.is_file():
                found.setdefault((unit.schedule, unit.method), []).append(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory} is damaged: {error}.") from None
    if not found:
        raise UsageError(f"{directory} has no results yet; give the command that began it again.")
    places = {method: place for place, method in enumerate(spec.methods)}
    order = {schedule: place for place, schedule in enumerate(spec.schedules)}
    pairs = sorted(found, key=lambda pair: (order[pair[0]], places[pair[1]]))
    return spec, [Found(*pair, places[pair[1]], spec.world.unit, found[pair]) for pair in pairs]


def write_continual_report(directory: Path, out: Path | None = None) -> ReportFiles:
    """Write the report of a directory of `streamwise continual`.

    out: the page, *.html; beside it lie the figure as *.png, the tables as *.md and what every seed has as
    *.csv. Unset: report.html in the directory. Raises UsageError for a directory that is none or has no
    results, and for an `out` that cannot be written.
    """
    files = report_files([directory], out)
    spec, found = read_found(directory)
    schedules = {
        name: [each for each in found if each.schedule == name]
        for name in spec.schedules
        if any(each.schedule == name for each in found)
    }
    seeds = max(len(each.units) for each in found)
    title = f"{spec.name}: what {len(spec.methods)} methods keep"
    page = render(
        "continual.html",
        title=title,
        summary=_summary(spec, schedules, seeds),
        labels={name: place for place, name in enumerate(spec.methods)},
        reference=REFERENCE,
        sections=[
            {
                "name": name,
                "url": spec.schedules[name],
                "rows": continual_rows(some),
                "differences": _difference_rows(some),
                "final": svgs({"": partial(_draw_final, some)}, (7.0, 0.6 + _ROW_INCHES * len(some))),
                "curves": svgs(_curve_panels(some), (4.4, 2.9)),
                "maps": svgs(_map_panels(some), (2.4, 2.2)),
            }
            for name, some in schedules.items()
        ],
        configuration=_configuration(spec),
    )
    panels: list[tuple[str, Draw]] = [(name, partial(_draw_final, some)) for name, some in schedules.items()]
    height = 1.0 + _ROW_INCHES * len(spec.methods)
    rows = [(dict(panels[at : at + _COLUMNS]), height) for at in range(0, len(panels), _COLUMNS)]
    tables = as_markdown(title, spec.schedules, found, REFERENCE)
    write_files(
        {
            files.html: page.encode(),
            files.png: sweep_png(title, {}, rows),
            files.html.with_suffix(".md"): tables.encode(),
            files.html.with_suffix(".csv"): as_csv(found),
        }
    )
    return files


def _summary(spec: ContinualSpec, schedules: dict[str, list[Found]], seeds: int) -> str:
    best = []
    for name, some in schedules.items():
        fair = [(float(each.scores()["final"].mean()), each.method) for each in some if not each.is_mixed]
        if fair:
            value, method = max(fair)
            best.append(f"{name}: {method} ({score_text(spec.world, value)})")
    seed_words = "one seed" if seeds == 1 else f"{seeds} seeds"
    kept = f" Most is kept by, {'; '.join(best)}." if best else ""
    streams = "A stream" if len(schedules) == 1 else f"{len(schedules)} streams"
    return f"{streams} whose world changes, {len(spec.methods)} methods, {seed_words}.{kept}"


# ---- tables


def continual_rows(some: Sequence[Found]) -> list[Row]:
    """Return a row for each method on one schedule: means over seeds with 95% intervals, and costs."""
    rows: list[Row] = []
    for each in some:
        scores = each.scores()
        row = {"method": each.method, "seeds": str(len(each.units))}
        row |= {_column(each, name): _mean(each, values) for name, values in scores.items()}
        row["µs a sample"] = f"{np.median([unit['microseconds'] for unit in each.units]):,.0f}"
        row["KB kept"] = number_text(max(unit["bytes"] for unit in each.units) / 1024)
        row["weights"] = f"{max(unit['trained'] for unit in each.units):,}"
        drifts = [unit["drifts"] for unit in each.units if unit["drifts"] is not None]
        told = each.units[0]["told"]
        row["told"] = f"nothing; {np.mean(drifts):.1f} drifts found" if drifts else told or "nothing"
        rows.append(row)
    fair = [place for place, each in enumerate(some) if not each.is_mixed]
    for name, sign in (("final", 1.0), ("forgetting", -1.0), ("worst", 1.0), ("online", 1.0)):
        ranked = [(sign * float(some[place].scores()[name].mean()), place) for place in fair]
        if len(ranked) > 1:
            row, column = rows[max(ranked)[1]], _column(some[0], name)
            row[column] = Markup("<b>{}</b>").format(row[column])
    return rows


def _difference_rows(some: Sequence[Found]) -> list[Row]:
    """Return what each method has over the learner alone, seed by seed."""
    reference = next((each for each in some if each.method == REFERENCE), None)
    if reference is None:
        return []
    seeds = {unit["seed"]: place for place, unit in enumerate(reference.units)}
    rows = []
    for each in some:
        both = [
            (place, seeds[unit["seed"]]) for place, unit in enumerate(each.units) if unit["seed"] in seeds
        ]
        if each is reference or each.is_mixed or not both:
            continue
        ours, theirs = ([pair[side] for pair in both] for side in (0, 1))
        row = {"method": each.method}
        for name in ("final", "forgetting", "worst", "online"):
            difference = each.scores()[name][ours] - reference.scores()[name][theirs]
            row[f"{name}, {'points' if each.unit == 'accuracy' else 'nats'}"] = _mean(each, difference, "+")
        rows.append(row)
    return rows


def _column(each: Found, name: str) -> str:
    return f"{name}, {'%' if each.unit == 'accuracy' else 'nats'}"


def _mean(each: Found, values: Array, sign: str = "") -> str:
    """Return the mean over seeds, with its 95% interval where there are several."""
    if not np.isfinite(values).all():
        return "–"
    scale, digits = (100.0, f"{sign}.1f") if each.unit == "accuracy" else (1.0, f"{sign}.3f")
    mean = f"{scale * values.mean():{digits}}"
    if len(values) < 2:
        return mean
    low, high = bootstrap_interval(values, np.mean)
    return f"{mean} ({scale * low:{digits}} to {scale * high:{digits}})"


def _configuration(spec: ContinualSpec) -> dict[str, str]:
    """Return the settings of methods, as the file has them."""
    return {
        name: ", ".join(f"{key} {value}" for key, value in _flat(table)) or "as it is"
        for name, table in {"every learner": spec.tables.get("learner", {}), **spec.tables["methods"]}.items()
    }


def _flat(table: dict[str, Any], start: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in table.items():
        flat += _flat(value, f"{start}{key}.") if isinstance(value, dict) else [(f"{start}{key}", value)]
    return flat


# ---- drawings


def _curve_panels(some: Sequence[Found]) -> Panels:
    return {
        "All experiences, whether they have come or not": partial(_draw_average, some),
        "Right before it is learned": partial(_draw_online, some),
        "After it has gone": partial(_draw_retention, some),
    }


def _draw_final(some: Sequence[Found], axes: Axes) -> None:
    """Draw what each method has at the end, within its interval, one below the other."""
    for row, each in enumerate(some):
        values, colour = each.scores()["final"], line_style(each.place)["color"]
        if len(values) > 1:
            low, high = bootstrap_interval(values, np.mean)
            axes.plot([low, high], [row, row], color=colour, linewidth=2.5, alpha=0.6)
        axes.plot(values.mean(), row, "o", color=colour, markersize=5)
    words = "accuracy" if some[0].unit == "accuracy" else "nats an event"
    finish_axes(axes, across=f"{words} at the end")
    if some[0].unit == "accuracy":
        axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(some) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(some))))
    axes.set_yticklabels([each.method for each in some])
    axes.spines.left.set_visible(False)


def _draw_average(some: Sequence[Found], axes: Axes) -> None:
    """Draw the mean accuracy over all experiences, at every look."""
    for each in some:
        looks, scores = each.looks()
        _draw(axes, each, looks, scores.mean(2), len(some))
    _mark_segments(some, axes)
    _finish(axes, some, "samples", "mean on all")


def _draw_online(some: Sequence[Found], axes: Axes) -> None:
    """Draw the fading share of examples that were right before they were learned."""
    for each in some:
        curves = np.array([unit["online_curve"] for unit in each.units])
        if not each.is_mixed:
            _draw(axes, each, curves[0, :, 0], curves[:, :, 1], len(some))
    _mark_segments(some, axes)
    _finish(axes, some, "samples", "mean so far, fading")


def _draw_retention(some: Sequence[Found], axes: Axes) -> None:
    """Draw the accuracy on an experience over the examples that came since its end."""
    for each in some:
        if each.is_mixed:
            continue
        looks, scores = each.looks()
        segments = each.units[0]["segments"]
        lags = np.linspace(0, segments[-1][1] - segments[0][1], _LAG_POINTS)
        curves = np.array([retention_curve(looks, one, segments, lags) for one in scores])
        known = np.isfinite(curves).all(0)
        _draw(axes, each, lags[known], curves[:, known], len(some))
    _finish(axes, some, "samples since its end", "mean on it")


def _draw(axes: Axes, each: Found, across: Array, curves: Array, lines: int) -> None:
    """Draw a mean over seeds, within its interval unless there are too many lines to tell them apart."""
    style = line_style(each.place)
    axes.plot(across, curves.mean(0), **style, linewidth=1.3, label=each.method)
    if len(curves) > 1 and lines <= _MOST_BANDS:
        low, high = bootstrap_interval(curves, np.mean)
        axes.fill_between(across, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _mark_segments(some: Sequence[Found], axes: Axes) -> None:
    segments: Sequence[Sequence[int]] = next(
        (each.units[0]["segments"] for each in some if not each.is_mixed), []
    )
    for _, stop, _ in segments[:-1]:
        axes.axvline(stop, color="#667085", linewidth=0.7, alpha=0.6)


def _finish(axes: Axes, some: Sequence[Found], across: str, up: str) -> None:
    finish_axes(axes, across=across)
    axes.set_xlim(left=0)
    if some[0].unit == "accuracy":
        axes.set_ylim(0.0, 1.02)
    else:  # what is far below the others would flatten them
        ends = np.concatenate([np.array(unit["scores"][-1]) for each in some for unit in each.units])
        axes.set_ylim(bottom=max(axes.get_ylim()[0], float(ends.min()) - 0.5))
    axes.set_ylabel(f"{'accuracy' if some[0].unit == 'accuracy' else 'nats an event'}: {up}")


def _map_panels(some: Sequence[Found]) -> Panels:
    """Return a matrix for the methods: accuracy on each experience after each segment, mean over seeds."""
    shown = [each for each in some if not each.is_mixed][:_MAPS_SHOWN]
    matrices = [_matrix(each) for each in shown]
    low, high = 0.0, 1.0
    if shown and shown[0].unit == "nats":  # from the worst that was ever known at its own end to the best
        low, high = (
            min(np.diag(matrix).min() for matrix in matrices),
            max(matrix.max() for matrix in matrices),
        )
    return {
        each.method: partial(_draw_map, (matrix - low) / max(high - low, 1e-9))
        for each, matrix in zip(shown, matrices, strict=True)
    }


def _matrix(each: Found) -> Array:
    looks, scores = each.looks()
    ends = [int(np.flatnonzero(looks == stop)[0]) for _, stop, _ in each.units[0]["segments"]]
    matrix: Array = scores.mean(0)[ends]
    return matrix


def _draw_map(matrix: Array, axes: Axes) -> None:
    """Draw shares from 0 to 1, the darker the higher."""
    rows, columns = (np.arange(count + 1) + 0.5 for count in matrix.shape)
    for i, j in np.ndindex(*matrix.shape):
        # A patch each, and no image, so that a page can be dark.
        axes.fill(
            [columns[j], columns[j + 1], columns[j + 1], columns[j]],
            [rows[i], rows[i], rows[i + 1], rows[i + 1]],
            facecolor=COLOURS[0],
            alpha=float(0.04 + 0.9 * np.clip(matrix[i, j], 0.0, 1.0)),
            linewidth=0,
        )
    axes.grid(visible=False)
    axes.set_xlim(columns[0], columns[-1])
    axes.set_ylim(rows[-1], rows[0])
    finish_axes(axes, across="tested on experience")
    axes.set_ylabel("after segment")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
