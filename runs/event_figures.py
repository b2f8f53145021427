"""The drawings of the report of runs on events.

Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from streamwise.runs.event_compared import Compared
from streamwise.runs.event_run_data import Baseline, EventRun
from streamwise.runs.figures import (
    COLOURS,
    MUTED,
    Panels,
    averaged,
    finish_axes,
    line_style,
    svgs,
    sweep_png,
)
from streamwise.runs.prequential import PIT_BINS, activity_name
from streamwise.runs.run_data import Array

__all__ = ["baseline_style", "baseline_svgs", "event_png", "event_svgs", "part_width"]

MOST_PARTS = 200  # of the stream, in one line
MOST_RATES, SHORTEST_RATE_SECONDS = 60, 0.25  # points of a line of speeds; a poll's rows are closed together


def event_svgs(runs: Sequence[EventRun], compared: Compared, best: EventRun) -> dict[str, dict[str, Markup]]:
    """Return the drawings of the page: by place in its template, then by title."""
    calibration = _calibration_panels(runs)
    return {
        "behind": svgs(_difference_panels(runs, compared, best), (4.4, 2.3) if len(runs) > 2 else (6.2, 2.3)),
        "likelihood": svgs(likelihood_panels(runs), (8.0, 2.9)),
        "parts": svgs(_part_panels(runs), (3.2, 2.3)),
        "calibration": svgs(calibration, (3.2, 2.3) if len(calibration) == 3 else (4.4, 2.6)),
        "activity": svgs(_activity_panels(runs), (3.2, 2.3)),
        "pool": svgs(_statistic_panels(runs, of_pool=True), (3.4, 2.0)),
        "itself": svgs(_statistic_panels(runs, of_pool=False), (3.4, 2.0)),
        "speeds": svgs(_speed_panels(runs), (3.4, 2.0)),
    }


def baseline_svgs(run: EventRun, compared: Compared) -> dict[str, Markup]:
    """Return drawings of what a run has over its baselines."""
    return svgs(_baseline_panels(run, compared.edges), (3.2, 2.3))


def event_png(title: str, runs: Sequence[EventRun]) -> bytes:
    """Return the main figures as one."""
    rows = [_part_panels(runs)]
    if len(runs) == 1 and runs[0].baselines:
        rows.append(_baseline_panels(runs[0], _edges(runs[0])))
    calibration = list(_calibration_panels(runs).items())
    columns = 3 if len(calibration) == 3 else 2
    rows += [dict(calibration[at : at + columns]) for at in range(0, len(calibration), columns)]
    rows += [panels for panels in (_activity_panels(runs),) if panels]
    return sweep_png(title, likelihood_panels(runs), [(panels, 2.8) for panels in rows])


def part_width(runs: Sequence[EventRun]) -> str:
    """Return how many events a point of a thin line is about."""
    return f"{np.median(np.diff(_edges(runs[0]))):,.0f}"


# ---- what there is to draw ----


def _difference_panels(runs: Sequence[EventRun], compared: Compared, best: EventRun) -> Panels:
    return {
        f"{run.label} less {best.label}": partial(_draw_difference, run, best, compared)
        for run in runs
        if run is not best
    }


def likelihood_panels(runs: Sequence[EventRun]) -> Panels:
    """Return the panel of how well events are foreseen, over the stream."""
    return {"Log-likelihood per event": partial(_draw_score, runs, "log_likelihood", "nats")}


def _part_panels(runs: Sequence[EventRun]) -> Panels:
    return {
        "Its time part": partial(_draw_score, runs, "time_log_likelihood", "nats"),
        "Type log loss (lower is better)": partial(_draw_score, runs, "type_log_loss", "nats"),
        "Type error (lower is better)": partial(_draw_score, runs, "type_error", "share of events"),
    }


def _baseline_panels(run: EventRun, edges: Array) -> Panels:
    titles = {
        "log_likelihood": ("Log-likelihood less theirs", "nats an event"),
        "type_log_loss": ("Type log loss less theirs", "nats an event"),
        "type_error": ("Type error less theirs", "share of events"),
    }
    return {
        title: partial(_draw_baselines, run, name, up, _thinned(edges))
        for name, (title, up) in titles.items()
        if any(name in baseline.columns for baseline in run.baselines)
    }


def _calibration_panels(runs: Sequence[EventRun]) -> Panels:
    panels: Panels = {}
    if counted := [run for run in runs if run.pit.sum()]:
        title = _only("Where gaps fell in what was held likely", counted, runs)
        panels[title] = partial(_draw_pit, counted)
    panels["Calibration of times (lower is better)"] = partial(_draw_calibration, runs)
    if counted := [run for run in runs if run.by_confidence[:, 0].sum()]:
        panels[_only("Calibration of types", counted, runs)] = partial(_draw_type_calibration, counted)
    panels["Drift (1 raises an alarm)"] = partial(_draw_drift, runs)
    return panels


def _activity_panels(runs: Sequence[EventRun]) -> Panels:
    counted = [run for run in runs if len(run.by_activity)]
    titles = {
        "Time part, by activity": (3, 1.0, "nats"),
        "Type log loss, by activity": (2, -1.0, "nats"),
        "Type error, by activity": (1, 1.0, "share of events"),
    }
    if not counted:
        return {}
    return {
        _only(title, counted, runs): partial(_draw_activity, counted, *what) for title, what in titles.items()
    }


def _only(title: str, drawn: Sequence[EventRun], runs: Sequence[EventRun]) -> str:
    """Add to the title of a panel which runs it draws, if others of the page have no such number."""
    if len(drawn) == len(runs):
        return title
    return (
        f"{title} ({drawn[0].label} only)"
        if len(drawn) == 1
        else f"{title} ({len(drawn)} of {len(runs)} runs)"
    )


def _statistic_panels(runs: Sequence[EventRun], *, of_pool: bool) -> Panels:
    """Return panels of what models say of themselves where it changes, and of scores that only they have."""
    panels: Panels = {}
    for name in dict.fromkeys(name for run in runs for name in run.statistics):
        told = [run for run in runs if name in run.statistics]
        if name.startswith("pool_") == of_pool and any(len(set(run.known(name))) > 1 for run in told):
            title = name.removeprefix("pool_") if of_pool else name
            panels[_only(title.replace("_", " "), told, runs)] = partial(_draw_statistic, told, name)
    for name in dict.fromkeys(name for run in runs for name in run.own_scores):
        if not of_pool:
            told = [run for run in runs if name in run.own_scores]
            panels[_only(name.replace("_", " "), told, runs)] = partial(_draw_own_score, told, name)
    return panels


def _speed_panels(runs: Sequence[EventRun]) -> Panels:
    panels: Panels = {}
    if max(run.rows["wall_time"][-1] for run in runs) >= 8 * SHORTEST_RATE_SECONDS:
        panels["events/s"] = partial(_draw_rates, runs)
    if any(run.known("latency_p99_ms") for run in runs):
        panels["latency, ms: p99, and p50 thin"] = partial(_draw_latencies, runs)
    for title, name, drawn in (("keys", "keys", runs[:1]), ("lag, records", "lag", runs)):
        if any(len(set(run.known(name))) > 1 for run in drawn):
            panels[title] = partial(_draw_column, drawn, name)
    return panels


# ---- one pair of axes ----


def _draw_difference(run: EventRun, best: EventRun, compared: Compared, axes: Axes) -> None:
    edges = _thinned(compared.edges)
    differences = run.averages("log_likelihood", edges) - best.averages("log_likelihood", edges)
    axes.axhline(0.0, color=MUTED, linewidth=1.0)
    axes.plot(edges[1:], differences, **line_style(run.place), linewidth=1.2)
    _finish(axes, "nats an event")
    _limit(axes, differences, keep=0.0)


def baseline_style(place: int) -> dict[str, Any]:
    """Return the colour and dashes of the baseline at this place; the first colour is that of a lone run."""
    return line_style(place + 1)


def _draw_baselines(run: EventRun, name: str, up: str, edges: Array, axes: Axes) -> None:
    axes.axhline(0.0, color=MUTED, linewidth=1.0)
    seen = []
    for place, baseline in enumerate(run.baselines):
        leads = run.averages(name, edges) - baseline.averages(name, edges)
        style = baseline_style(place)
        axes.plot(edges[1:], leads, **style, linewidth=1.2, label=f"less {_plainly(baseline)}")
        seen.append(leads)
    _finish(axes, up)
    _limit(axes, np.concatenate(seen), keep=0.0)


def _plainly(baseline: Baseline) -> str:
    return baseline.name.replace("_", " ")


def _draw_pit(runs: Sequence[EventRun], axes: Axes) -> None:
    """Draw how many gaps fell into each bin, relative to equally many, and what chance would do to a bin."""
    edges = np.linspace(0.0, 1.0, PIT_BINS + 1)
    chance = 1.96 * np.sqrt((PIT_BINS - 1) / min(run.pit.sum() for run in runs))
    axes.axhspan(1.0 - chance, 1.0 + chance, color=MUTED, alpha=0.3, linewidth=0)
    axes.axhline(1.0, color=MUTED, linestyle="--", linewidth=1.1)
    for run in runs:
        heights, style = PIT_BINS * run.pit / run.pit.sum(), line_style(run.place)
        if len(runs) == 1:
            axes.stairs(heights, edges, fill=True, color=style["color"], alpha=0.45)
        axes.stairs(heights, edges, baseline=None, **style, linewidth=1.3)
    finish_axes(axes, across="share of what was held likely that lay below")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, max(1.5, 1.05 * axes.dataLim.y1))
    axes.set_ylabel("gaps, relative")


def _draw_type_calibration(runs: Sequence[EventRun], axes: Axes) -> None:
    axes.plot([0.0, 1.0], [0.0, 1.0], color=MUTED, linestyle="--", linewidth=1.1)
    for run in runs:
        count, confidence, hits = run.by_confidence[run.by_confidence[:, 0] > 0.0].T
        axes.plot(confidence / count, hits / count, **line_style(run.place), linewidth=1.2)
        sizes = 4.0 + 60.0 * count / count.sum()
        axes.scatter(confidence / count, hits / count, sizes, color=line_style(run.place)["color"])
    finish_axes(axes, across="probability of the likeliest type")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("how often right")


def _draw_activity(runs: Sequence[EventRun], column: int, sign: float, up: str, axes: Axes) -> None:
    for run in runs:
        met = run.by_activity[:, 0] > 0.0
        means = sign * run.by_activity[met, column] / run.by_activity[met, 0]
        style = line_style(run.place)
        axes.plot(np.flatnonzero(met), means, **style, linewidth=1.3, marker="o", markersize=3.5)
    _finish(axes, up)
    groups = max(len(run.by_activity) for run in runs)
    shown = range(0, groups, 1 + groups // 8)
    axes.set_xticks(shown, [activity_name(group).partition("–")[0] for group in shown])
    axes.set_xlim(-0.3, groups - 0.7)
    axes.set_xlabel("events of the key before, at least")


def _draw_statistic(runs: Sequence[EventRun], name: str, axes: Axes) -> None:
    for run in runs:
        _plot_column(axes, run, name, 1.2)
    _finish(axes, ticks=4)


def _draw_own_score(runs: Sequence[EventRun], name: str, axes: Axes) -> None:
    for run in runs:
        edges = _edges(run)
        axes.plot(edges[1:], run.averages(name, edges), **line_style(run.place), linewidth=1.2)
    _finish(axes, ticks=4)


def _draw_score(runs: Sequence[EventRun], name: str, up: str, axes: Axes) -> None:
    """Draw a score over all events so far, and thin that of each part of the stream."""
    seen = []
    thin: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.6}
    thick: dict[str, Any] = {"linewidth": 1.9}
    several = len(runs) > 1
    for run in runs:
        style, edges = line_style(run.place), _edges(run)
        parts = run.averages(name, edges)
        so_far = run.rows[name][np.searchsorted(run.steps, edges[1:])]
        axes.plot(edges[1:], parts, **style, **thin)
        axes.plot(edges[1:], so_far, **style, **thick, label=run.label if several else None)
        seen.append(parts)
    neutral = MUTED if several else COLOURS[0]
    axes.plot([], [], color=neutral, **thick, label="thick: over all events so far")
    axes.plot([], [], color=neutral, **thin, label=f"thin: over {part_width(runs)} at a time")
    _finish(axes, up)
    _limit(axes, np.concatenate(seen))


def _draw_calibration(runs: Sequence[EventRun], axes: Axes) -> None:
    critical: dict[str, Any] = {"color": MUTED, "linestyle": "--", "linewidth": 1.1}
    axes.plot(runs[0].steps, runs[0].rows["ks_critical"], **critical, label="critical distance, 5%")
    for run in runs:
        _plot_column(axes, run, "ks", 1.3)
    _finish(axes, "KS distance")
    axes.set_ylim(bottom=0)


def _draw_drift(runs: Sequence[EventRun], axes: Axes) -> None:
    alarm: dict[str, Any] = {"marker": "v", "linestyle": "", "markersize": 5, "markeredgewidth": 0}
    for run in runs:
        _plot_column(axes, run, "drift", 1.1, alpha=0.85)
        raised = run.steps[np.diff(run.rows["drift_alarms"], prepend=0.0) > 0.0]
        height = np.full(len(raised), 1.05 + 0.08 * run.place)
        axes.plot(raised, height, color=line_style(run.place)["color"], **alarm)
    if any(run.rows["drift_alarms"][-1] for run in runs):
        axes.plot([], [], color=MUTED, label="drift alarm", **alarm)
    _finish(axes, "drift")
    axes.set_ylim(0.0, 1.12 + 0.08 * (len(runs) - 1))
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])


def _draw_rates(runs: Sequence[EventRun], axes: Axes) -> None:
    """Draw speeds over equal stretches of running time: rows of one poll are closed at one moment."""
    for run in runs:
        times, steps = np.append(0.0, run.rows["wall_time"]), np.append(0.0, run.steps)
        points = max(1, min(len(run.steps), MOST_RATES, int(times[-1] / SHORTEST_RATE_SECONDS)))
        at = np.linspace(0.0, times[-1], points + 1)
        passed = np.interp(at, times, steps)
        rates = np.diff(passed) / np.maximum(np.diff(at), 1e-9)
        axes.plot(passed[1:], rates, **line_style(run.place), linewidth=1.2)
    _finish(axes, ticks=4)
    axes.set_ylim(bottom=0)


def _draw_latencies(runs: Sequence[EventRun], axes: Axes) -> None:
    for run in runs:
        _plot_column(axes, run, "latency_p99_ms", 1.5)
        _plot_column(axes, run, "latency_p50_ms", 0.7)
    lowest, highest = axes.dataLim.intervaly
    if lowest > 0 and highest > 20 * lowest:
        axes.set_yscale("log")
        axes.minorticks_off()
    _finish(axes, ticks=4)


def _draw_column(runs: Sequence[EventRun], name: str, axes: Axes) -> None:
    for run in runs:
        _plot_column(axes, run, name, 1.2)
    _finish(axes, ticks=4)
    axes.set_ylim(bottom=0)


def _plot_column(axes: Axes, run: EventRun, name: str, width: float, alpha: float = 1.0) -> None:
    known = np.isfinite(run.rows[name])
    points = averaged(run.steps[known], run.rows[name][known])
    axes.plot(*points, **line_style(run.place), linewidth=width, alpha=alpha)


def _finish(axes: Axes, up: str = "", ticks: int = 5) -> None:
    finish_axes(axes, ticks, across="events")
    axes.set_xlim(left=0)
    axes.set_ylabel(up)


def _limit(axes: Axes, values: Array, keep: float = np.nan) -> None:
    """Leave out what the first events did, where it would flatten all that came after, but never `keep`."""
    known = values[np.isfinite(values)]
    if len(known) < 20:
        return
    low, high = np.percentile(known, [2.0, 98.0])
    margin = 0.35 * (high - low)
    low, high = np.fmin(low, keep), np.fmax(high, keep)
    shown_low, shown_high = axes.get_ylim()
    axes.set_ylim(max(shown_low, low - margin), min(shown_high, high + margin))


def _edges(run: EventRun) -> Array:
    """Return steps, from 0 on, between which the scores of a run are averaged to be drawn."""
    steps = run.steps
    if len(steps) > 2 and steps[-1] - steps[-2] < 0.5 * (steps[-2] - steps[-3]):
        steps = np.delete(steps, -2)  # a short last row is noise
    return _thinned(np.append(0.0, steps))


def _thinned(edges: Array) -> Array:
    parts = len(edges) - 1
    thinned: Array = edges[np.linspace(0, parts, min(parts, MOST_PARTS) + 1).astype(int)]
    return thinned
