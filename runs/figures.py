"""The drawings of a report: inline SVG for its page, and its main figure as a PNG.

Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from streamwise.runs.run_data import EPISODES, Array, Group, Run, by_environment
from streamwise.runs.statistics import (
    bootstrap_interval,
    curve_on_grid,
    discounted_returns,
    known_returns,
    running_mean,
)

__all__ = [
    "DASHES",
    "SERIES",
    "Band",
    "Draw",
    "Panels",
    "Whisker",
    "averaged",
    "curve_panel",
    "finish_axes",
    "learning_panels",
    "line_style",
    "metric_panels",
    "png",
    "prediction_panels",
    "profile_panel",
    "svgs",
    "sweep_png",
    "whisker_panel",
    "whisker_size",
]

Draw = Callable[[Axes], None]
Panels = dict[str, Draw]  # by title

NOT_METRICS = ("step", "wall_time", "episode", "episode_return", "abandoned_steps")
GRID_POINTS = 200
MOST_POINTS = 1000  # drawn of one line; a page of long runs stays small
WINDOW_STEPS = 300  # of a prediction seen close up

# Each colour once for paper and once for a dark screen; the page holds them as CSS variables.
INK, MUTED, LINE = "#22272e", "#667085", "#e4e7ec"
SERIES = {
    "#1f6fb2": "#6cb2ee",
    "#d0601a": "#f0955a",
    "#0c8a66": "#4cc9a0",
    "#a3458f": "#dd8fce",
    "#8a7206": "#d3b846",
    "#5a5fc8": "#a0a5f5",
    "#c23b3b": "#f28484",
    "#3d7f8c": "#7cc4d0",
}
COLOURS = tuple(SERIES)
DASHES = {"-": "none", "--": "8 4", ":": "2 3", "-.": "8 3 2 3"}  # as matplotlib and as CSS name them
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.xmargin": 0.01,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a file name may hold dollar signs
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "streamwise",  # same runs, same page, byte for byte
}


@dataclass(frozen=True)
class Band:
    """A line within its interval; low and high are NaN where there is none. All [n]."""

    label: str
    place: int
    x: Array
    y: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Whisker:
    """A number within its interval; low and high are NaN where there is none."""

    name: str
    place: int
    value: float
    low: float
    high: float


def svgs(
    panels: Panels, size: tuple[float, float], first: tuple[float, float] | None = None
) -> dict[str, Markup]:
    """Draw every panel as inline SVG. size: width and height in inches; first: those of the first panel."""
    sizes = [first or size, *[size] * len(panels)]
    return {
        title: _svg(title, draw, size) for (title, draw), size in zip(panels.items(), sizes, strict=False)
    }


def _svg(title: str, draw: Draw, size: tuple[float, float]) -> Markup:
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    drawing = text.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', drawing)
    assert view_box is not None
    # Inside HTML the metadata and the namespaces of the root are not needed, and they hold web addresses.
    body = drawing[drawing.index("</metadata>") + len("</metadata>") : drawing.rindex("</svg>")]
    body = re.sub(r'<g id="[^"]*"', "<g", body.replace("xlink:href", "href"))
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    variables = {colour: f"series-{place}" for place, colour in enumerate(COLOURS)}
    for colour, name in (variables | {INK: "ink", MUTED: "muted", LINE: "line"}).items():
        body = body.replace(colour, f"var(--{name})")
    what = f"{axes.get_ylabel() or 'mean'} over {axes.get_xlabel()}" if axes.yaxis.get_visible() else ""
    alt = escape(f"{title}: {what or axes.get_xlabel()}")
    return Markup(f'<svg {view_box.group()} role="img" aria-label="{alt}">{body}</svg>')


def png(title: str, groups: Sequence[Group]) -> bytes:
    """Return the main figure: learning curves by environment, then the first prediction of every line."""
    return _png(title, *_arranged(groups))


def sweep_png(title: str, curves: Panels, rows: Sequence[tuple[Panels, float]]) -> bytes:
    """Return the main figure of a sweep: curves by environment, then rows of panels that sum them up.

    rows: one to three panels each, with the height of the row in inches.
    """
    columns = _columns(len(curves))
    layout = _rows(range(len(curves)), columns)
    heights = [3.6 if columns == 1 else 2.8] * len(layout)
    panels = list(curves.items())
    for row, height in rows:
        layout += _rows(range(len(panels), len(panels) + len(row)), len(row))
        heights.append(height)
        panels += row.items()
    return _png(title, panels, layout, heights)


def _columns(panels: int) -> int:
    return {0: 1, 1: 1, 2: 2, 4: 2}.get(panels, 3)


def _rows(places: Sequence[int], columns: int) -> list[list[Any]]:
    """Return rows of six cells that each hold a place; a dot where a row is not full."""
    rows = [places[at : at + columns] for at in range(0, len(places), columns)]
    filled = [[place for place in row for _ in range(6 // columns)] for row in rows]
    return [[*row, *["."] * (6 - len(row))] for row in filled]


def _png(
    title: str, panels: Sequence[tuple[str, Draw]], layout: list[list[Any]], heights: list[float]
) -> bytes:
    with matplotlib.style.context(["default", STYLE, {"font.size": 11, "axes.titlesize": 12}]):
        figure = Figure(figsize=(10, 0.6 + sum(heights or [2.4])), layout="constrained")
        figure.suptitle("\n".join(textwrap.wrap(title, 85)), fontsize=14, x=0.01, ha="left")
        if not panels:
            figure.text(0.5, 0.5, "There is nothing to draw yet.", ha="center", color=MUTED)
        else:
            lines: dict[str, Artist] = {}
            for place, axes in figure.subplot_mosaic(layout, height_ratios=heights).items():
                name, draw = panels[place]
                draw(axes)
                axes.set_title(name if len(panels) > 1 else "")
                handles, labels = axes.get_legend_handles_labels()
                lines |= zip(labels, handles, strict=True)
            if len(lines) > 1:
                fitting = 100 // (max(map(len, lines)) + 8)  # some 100 letters fit the width
                columns = max(1, min(3, fitting, len(lines)))
                figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=columns)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=200, facecolor="white", metadata={"Software": "streamwise"})
    return image.getvalue()


def _arranged(groups: Sequence[Group]) -> tuple[list[tuple[str, Draw]], list[list[Any]], list[float]]:
    """Return the panels of the PNG, rows of six cells that each hold the place of a panel, and heights."""
    panels = list(learning_panels(groups).items())
    columns = _columns(len(panels))
    layout = _rows(range(len(panels)), columns)
    heights = [5.8 - 0.8 * columns] * len(layout)
    for run in (group.predicting[0] for group in groups if group.predicting):
        if parts := list(prediction_panels(run).items()):
            whole = len(panels)
            layout += [[whole] * 6, [whole + 1] * 3 + [whole + 2] * 3]
            heights += [2.8, 2.8]
            title, draw = parts[0]
            named = f"{run.environment}: {run.label}, seed {run.seed}. {title}" if len(groups) > 1 else title
            panels += [(named, draw), *parts[1:]]
    return panels, layout, heights


# ---- what there is to draw ----


def learning_panels(groups: Sequence[Group]) -> Panels:
    """Return a panel for every environment with learning curves."""
    learning = by_environment(group for group in groups if group.has_episodes)
    return {name: partial(_draw_learning, lines) for name, lines in learning.items()}


def metric_panels(groups: Sequence[Group]) -> Panels:
    """Return a panel for everything that runs report of their learning."""
    names = dict.fromkeys(name for group in groups for run in group.compared for name in run.metrics)
    return {
        name.replace("_", " "): partial(_draw_metric, groups, name)
        for name in names
        if name not in NOT_METRICS
    }


def prediction_panels(run: Run) -> Panels:
    """Return panels for the parts of a predicted stream; none where no return is known."""
    known = known_returns(len(run.predictions["step"]), run.discount)
    close_up = min(WINDOW_STEPS, known)
    parts = {
        "The whole stream": slice(0, known),
        f"The first {close_up} steps": slice(0, close_up),
        f"The last {close_up} steps whose return is known": slice(known - close_up, known),
    }
    return {title: partial(_draw_prediction, run, part) for title, part in parts.items() if known}


def curve_panel(bands: Sequence[Band]) -> Draw:
    """Return a panel of learning curves."""
    return partial(_draw_bands, bands, "steps", f"return (mean of {EPISODES} episodes)")


def profile_panel(bands: Sequence[Band]) -> Draw:
    """Return a panel of the fraction of runs above every score."""
    return partial(_draw_bands, bands, "normalized score", "fraction of runs above")


def whisker_panel(whiskers: Sequence[Whisker], across: str, even: float | None = None) -> Draw:
    """Return a panel of numbers from 0 to 1 in their intervals, one below the other.

    across: what the numbers are; even: where a line marks that two are equal.
    """
    return partial(_draw_whiskers, whiskers, across, even)


def whisker_size(whiskers: Sequence[Whisker], width: float) -> tuple[float, float]:
    """Return the size in inches of such a panel."""
    return width, 0.75 + 0.36 * len(whiskers)


# ---- one pair of axes ----


def _draw_learning(groups: Sequence[Group], axes: Axes) -> None:
    """Draw the return of the last 20 episodes over steps: the mean over seeds in its interval."""
    for group in groups:
        style = line_style(group.place)
        steps, curves = _curves([(run.metrics["step"], run.returns) for run in group.compared])
        if len(curves) == 1:
            run = group.compared[0]
            kept = slice(None, None, -math.ceil(len(run.returns) / MOST_POINTS))
            size, alpha = (6, 0.5) if len(run.returns) < 200 else (4, 0.3)
            points = run.metrics["step"][kept], run.returns[kept]
            axes.plot(*points, ".", color=style["color"], markersize=size, markeredgewidth=0, alpha=alpha)
        else:
            low, high = bootstrap_interval(curves, np.mean)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.plot(steps, curves.mean(axis=0), label=group.label, **style)
    finish_axes(axes)
    axes.set_xlim(left=0)
    axes.set_ylabel(f"return (mean of {EPISODES} episodes)")


def _draw_metric(groups: Sequence[Group], name: str, axes: Axes) -> None:
    """Draw one thing that the learner reports over steps."""
    for group in groups:
        recorded = [(run.metrics["step"], run.metrics[name]) for run in group.compared if name in run.metrics]
        finite = [(steps[keep := np.isfinite(values)], values[keep]) for steps, values in recorded]
        if rows := [(steps, values) for steps, values in finite if len(steps)]:
            steps, curves = _curves(rows)
            axes.plot(steps, curves.mean(axis=0), **{**line_style(group.place), "linewidth": 1.0})
    lowest, highest = axes.dataLim.intervaly
    if lowest > 0 and highest > 100 * lowest:
        axes.set_yscale("log")
        axes.minorticks_off()
    finish_axes(axes, ticks=4)
    axes.set_xlim(left=0)


def _draw_prediction(run: Run, part: slice, axes: Axes) -> None:
    """Draw what was predicted at each step of a part of the stream over what then came."""
    steps = run.predictions["step"][part]
    returns = discounted_returns(run.predictions["cumulant"], run.discount)[part]
    predicted = run.predictions["prediction"][part]
    axes.plot(*averaged(steps, returns), color=INK, linewidth=1.1, alpha=0.75, label="what came")
    axes.plot(*averaged(steps, predicted), color=COLOURS[0], linewidth=1.3, label="predicted")
    finish_axes(axes)
    axes.set_ylabel("discounted sum")


def _draw_bands(bands: Sequence[Band], across: str, up: str, axes: Axes) -> None:
    for band in bands:
        style = line_style(band.place)
        axes.fill_between(band.x, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0)
        axes.plot(band.x, band.y, label=band.label, **style)
    finish_axes(axes, across=across)
    axes.set_xlim(left=0)
    axes.set_ylabel(up)


def _draw_whiskers(whiskers: Sequence[Whisker], across: str, even: float | None, axes: Axes) -> None:
    if even is not None:
        axes.axvline(even, color=MUTED, linewidth=1, alpha=0.6)
    for row, whisker in enumerate(whiskers):
        colour = COLOURS[whisker.place % len(COLOURS)]
        axes.plot([whisker.low, whisker.high], [row, row], color=colour, linewidth=2.5, alpha=0.6)
        axes.plot(whisker.value, row, "o", color=colour, markersize=6)
        # Above its row, where the longest name finds room.
        name = textwrap.shorten(whisker.name, 60, placeholder=" …")
        axes.annotate(name, (0.0, row), (0, 7), textcoords="offset points", fontsize="small")
    finish_axes(axes, across=across)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(whiskers) - 0.5, -0.8)
    axes.spines.left.set_visible(False)
    axes.yaxis.set_visible(False)


def _curves(rows: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return the running mean over 20 rows of every run, at steps where all have begun and none has ended.

    rows: of each run, steps and values. Result: steps [m], means [runs, m]; of one run, where it has rows.
    """
    smooth = [(steps, running_mean(values, EPISODES)) for steps, values in rows]
    if len(smooth) == 1:
        steps, means = averaged(*smooth[0])
        return steps, means[np.newaxis]
    start = max(steps[0] for steps, _ in smooth)
    end = max(start, min(steps[-1] for steps, _ in smooth))
    grid = np.linspace(start, end, GRID_POINTS)
    return grid, np.stack([curve_on_grid(steps, means, grid) for steps, means in smooth])


def averaged(steps: Array, values: Array) -> tuple[Array, Array]:
    """Return the means of neighbouring points, each at the last step it covers."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)
    return steps[edges[1:] - 1], np.add.reduceat(values, edges[:-1]) / np.diff(edges)


def line_style(place: int) -> dict[str, Any]:
    """Return the colour and dashes of the curve at this place."""
    dash = tuple(DASHES)[place // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": dash}


def finish_axes(axes: Axes, ticks: int = 5, across: str = "steps") -> None:
    """Give axes their ticks and the name of what runs across them."""
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(_tick)
    axes.yaxis.set_major_formatter(_tick)
    axes.tick_params(length=0)
    axes.set_xlabel(across)


def _tick(value: float, _position: float | None = None) -> str:
    """100k, 2.5M: a tick of an axis."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.10g}{name}"
    return f"{value:.10g}"
