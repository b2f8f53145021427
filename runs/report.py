"""The report of finished or running runs: one self-contained HTML page, and its main figure as a PNG.

Runs of the same environment, agent and settings are seeds of one line; the page's words are in
`templates/report.html`. Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.style
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, MaxNLocator
from numpy.typing import NDArray

from streamwise.runs.statistics import (
    PredictionScores,
    bootstrap_interval,
    curve_on_grid,
    discounted_returns,
    known_returns,
    prediction_scores,
    running_mean,
)
from streamwise.streams import UsageError

__all__ = ["ReportFiles", "write_report"]

Array = NDArray[np.float64]

EPISODES = 20  # in the mean that stands for "how good is it now"
GRID_POINTS = 200
MOST_POINTS = 1000  # drawn of one line; a page of long runs stays small
WINDOW_STEPS = 300  # of a prediction seen close up
NOT_METRICS = ("step", "wall_time", "episode", "episode_return")
METRIC_TITLES = {"td_error_magnitude": "TD error magnitude", "episode_length": "episode length (steps)"}

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
DASHES = ("-", "--", ":", "-.")
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.01,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
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
    files = _report_files(run_dirs, out)
    unique = {Path(path).resolve(): Path(path) for path in run_dirs}
    runs = _labelled(_named([_read_run(path) for path in unique.values()]))
    page, png = _Report(runs).render()
    try:
        files.html.parent.mkdir(parents=True, exist_ok=True)
        files.html.write_text(page, encoding="utf-8")
        files.png.write_bytes(png)
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be written ({error.strerror}); choose another --out."
        ) from None
    return files


def _report_files(run_dirs: Sequence[Path], out: Path | None) -> ReportFiles:
    if not run_dirs:
        raise UsageError("name at least one run directory: streamwise report RUN_DIR...")
    if out is None:
        out = (Path(run_dirs[0]) if len(run_dirs) == 1 else Path()) / "report.html"
    elif out.suffix not in (".html", ".htm") or out.is_dir():
        better = out / "report.html" if out.is_dir() else out.with_suffix(".html")
        raise UsageError(f"--out {out} does not name a page; try --out {better}.")
    return ReportFiles(out, out.with_suffix(".png"))


# ---- reading ----


@dataclass(frozen=True, eq=False)
class _Run:
    """One run directory as it lies on disk. metrics, predictions: from column to float64 [rows]."""

    path: Path
    config: dict[str, Any]
    metrics: dict[str, Array]
    predictions: dict[str, Array]
    environment: str = ""  # as the page calls it
    details: tuple[str, ...] = ()  # what tells it from runs of the same agent

    @property
    def label(self) -> str:
        agent = str(self.config["agent"])
        return f"{agent} ({', '.join(self.details)})" if self.details else agent

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.config["settings"])

    @property
    def seed(self) -> Any:
        return self.config.get("seed", "–")

    @property
    def rows(self) -> int:
        return len(self.metrics["step"])

    @property
    def last_step(self) -> int:
        return int(max((steps[-1] for steps in self._steps if len(steps)), default=0))

    @property
    def _steps(self) -> list[Array]:
        return [table["step"] for table in (self.metrics, self.predictions) if table]

    @property
    def wall_time(self) -> float:
        return float(self.metrics["wall_time"][-1]) if self.rows and "wall_time" in self.metrics else math.nan

    @property
    def steps_per_second(self) -> float:
        return self.last_step / self.wall_time if self.wall_time > 0 else math.nan

    @property
    def is_series(self) -> bool:
        return bool(self.predictions) or str(self.config["environment"]).startswith("csv:")

    @property
    def returns(self) -> Array:
        return self.metrics.get("episode_return", np.zeros(0))

    @property
    def final(self) -> float:
        """Mean return of the last 20 episodes."""
        return float(self.returns[-EPISODES:].mean()) if len(self.returns) else math.nan

    @property
    def best(self) -> float:
        """Highest mean return of 20 episodes in a row."""
        if not len(self.returns):
            return math.nan
        means = running_mean(self.returns, EPISODES)
        return float(means[min(len(means), EPISODES) - 1 :].max())

    @cached_property
    def scores(self) -> PredictionScores | None:
        if not self.predictions:
            return None
        return prediction_scores(self.predictions["prediction"], self.predictions["cumulant"], self.discount)

    @property
    def discount(self) -> float:
        return float(self.settings["discount"])

    @property
    def stopped_early(self) -> bool:
        """Whether it ended further from its planned end than its longest row is long."""
        planned = self.config.get("steps", 0)
        longest = np.diff(self.metrics["step"], prepend=0).max() if self.rows else 0
        return bool(isinstance(planned, int) and self.last_step + longest < planned)


def _read_run(path: Path) -> _Run:
    config = _read_config(path)
    metrics = _read_columns(path / "metrics.parquet", ("step",))
    if np.any(np.diff(metrics["step"]) < 0):
        raise UsageError(f"{path / 'metrics.parquet'}: its steps fall; it holds the rows of two runs.")
    predictions = _read_columns(path / "predictions.parquet", ("step", "prediction", "cumulant"))
    if len(predictions["step"]):
        discount = config["settings"].get("discount")
        if not isinstance(discount, int | float) or not 0.0 <= discount <= 1.0:
            raise UsageError(
                f"{path / 'config.toml'}: predictions are scored by settings.discount, a number in [0, 1], "
                f"not {discount!r}; restore the file."
            )
    else:
        predictions = {}
    return _Run(path, config, metrics, predictions)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.toml"
    if not file.is_file():
        hint = " It holds runs: name those." if any(path.glob("*/config.toml")) else ""
        raise UsageError(f"{path} is not a run directory: it has no config.toml.{hint}")
    try:
        config = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{file} cannot be read ({_one_line(error)}); restore it or leave {path} out."
        ) from None
    for key in ("environment", "agent"):
        if not isinstance(config.get(key), str):
            raise UsageError(f"{file} has no {key!r}; restore it or leave {path} out.")
    for table in ("settings", "versions"):
        if not isinstance(config.setdefault(table, {}), dict):
            raise UsageError(f"{file}: {table!r} must be a table, [{table}].")
    return config


def _read_columns(file: Path, required: Sequence[str]) -> dict[str, Array]:
    """Read the numeric columns of a Parquet file; empty ones if there is no file. Null becomes NaN."""
    if not file.is_file():
        return {name: np.zeros(0) for name in required}
    try:
        table = pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{file} is damaged ({_one_line(error)}); leave {file.parent} out, or run it again."
        ) from None
    numeric = {
        column.name: index
        for index, column in enumerate(table.schema)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    }
    for name in required:
        if name not in numeric:
            raise UsageError(
                f"{file} has no numeric column {name!r}; leave {file.parent} out, or run it again."
            )
    return {name: table.column(index).to_numpy().astype(np.float64) for name, index in numeric.items()}


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".")


# ---- which runs are seeds of one line ----


def _named(runs: Sequence[_Run]) -> list[_Run]:
    """Name environments: a series after its column and file, with the folder only where two would be one."""
    full = [(str(run.config["environment"]), run.config.get("target")) for run in runs]
    short = [
        (Path(name.removeprefix("csv:")).name if name.startswith("csv:") else name, target)
        for name, target in full
    ]
    is_short_unique = len(set(short)) == len(set(full))
    names = [
        f"{target} of {name}" if target else name for name, target in (short if is_short_unique else full)
    ]
    return [replace(run, environment=name) for run, name in zip(runs, names, strict=True)]


def _labelled(runs: Sequence[_Run]) -> list[_Run]:
    """Name every run after its agent, its step-size rule, and whatever else tells it from the others."""
    rules = [run.settings.get("step_size_rule") for run in runs]
    runs = [replace(run, details=(str(rule),) if rule else ()) for run, rule in zip(runs, rules, strict=True)]
    for key in ("preset", "episodic_life", *dict.fromkeys(key for run in runs for key in run.settings)):
        values: dict[tuple[str, str], set[str]] = {}
        for run in runs:
            values.setdefault((run.environment, run.label), set()).add(_detail(run, key))
        mixed = {label for (_, label), seen in values.items() if len(seen) > 1}
        runs = [
            replace(run, details=(*run.details, _detail(run, key))) if run.label in mixed else run
            for run in runs
        ]
    return runs


def _detail(run: _Run, key: str) -> str:
    value = run.config.get(key, run.settings.get(key))
    return f"no {key}" if value is None else f"{key} {_text(value)}"


@dataclass(frozen=True)
class _Group:
    """The seeds of one line: same environment, same label."""

    environment: str
    label: str
    runs: list[_Run]

    @cached_property
    def compared(self) -> list[_Run]:
        """The runs that came at least half as far as the furthest: a run just begun has no final result."""
        furthest = max(run.last_step for run in self.runs)
        return [run for run in self.runs if run.rows and 2 * run.last_step >= furthest]

    @property
    def has_episodes(self) -> bool:
        return bool(self.compared) and all(len(run.returns) for run in self.compared)


@dataclass(frozen=True)
class _Curve:
    """A line to draw. steps, mean: [n]. low, high: [n], or None for a single seed."""

    steps: Array
    mean: Array
    low: Array | None = None
    high: Array | None = None


def _curve(runs: Sequence[_Run], values: Callable[[_Run], Array], *, with_interval: bool = True) -> _Curve:
    """Return the mean over runs of a value known at every row: of each, its running mean of 20 rows."""
    smooth = [(run.metrics["step"], running_mean(values(run), EPISODES)) for run in runs]
    if len(runs) == 1:
        return _Curve(*_every(*smooth[0]))
    start = max(steps[0] for steps, _ in smooth)
    end = max(start, min(steps[-1] for steps, _ in smooth))
    grid = np.linspace(start, end, GRID_POINTS)
    curves = np.stack([curve_on_grid(steps, mean, grid) for steps, mean in smooth])
    if not with_interval:
        return _Curve(grid, curves.mean(axis=0))
    return _Curve(grid, curves.mean(axis=0), *bootstrap_interval(curves, np.mean))


def _every(steps: Array, values: Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """Return every k-th point, the last one included: as it was recorded, only fewer."""
    stride = max(1, math.ceil(len(steps) / most))
    keep = np.arange(len(steps))[::-1][::stride][::-1]
    return steps[keep], values[keep]


def _averaged(steps: Array, values: Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """Return the means of neighbouring points, each at the last step it covers."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).astype(int)
    return steps[edges[1:] - 1], np.add.reduceat(values, edges[:-1]) / np.diff(edges)


# ---- numbers as people read them ----


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 1000 else str(value)
    return "–" if value is None else str(value)


def _number(value: float) -> str:
    """Four digits or so: 12,345; 123.4; 1.234; 0.00123."""
    if math.isnan(value):
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def _span(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}"


def _short(value: float) -> str:
    """100k, 2.5M: a tick of an axis."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "one seed"
    low, high = bootstrap_interval(values, np.mean)
    return _span(float(low), float(high))


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan


# ---- drawing ----


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.style.context(["default", STYLE]):
        yield


class _Ticks(Formatter):
    """100k and 2.5M, or 16,720 and 16,760 where ticks lie too close for that."""

    def __call__(self, value: float, _position: int | None = None) -> str:
        return _short(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        texts = [_short(value) for value in values]
        is_close = any(
            len(text) > 5 and abs(value) >= 1000 for text, value in zip(texts, values, strict=True)
        )
        return [f"{value:,.10g}" for value in values] if is_close else texts


def _finish_axes(axes: Axes, ticks: int = 5) -> None:
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(_Ticks())
    axes.yaxis.set_major_formatter(_Ticks())
    axes.tick_params(length=0)
    axes.set_xlabel("steps")


LineStyle = Mapping[str, Any]


def _draw_curves(axes: Axes, groups: Sequence[_Group], styles: Mapping[str, LineStyle]) -> None:
    """Draw the return of the last 20 episodes over steps: the mean over seeds in its interval."""
    for group in groups:
        style = styles[group.label]
        curve = _curve(group.compared, lambda run: run.returns)
        if len(group.compared) == 1:
            points = _every(group.compared[0].metrics["step"], group.compared[0].returns)
            size, alpha = (6, 0.5) if len(points[0]) < 200 else (4, 0.3)
            axes.plot(*points, ".", color=style["color"], markersize=size, markeredgewidth=0, alpha=alpha)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(
                curve.steps, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0
            )
        axes.plot(curve.steps, curve.mean, **style)
    _finish_axes(axes)
    axes.set_xlim(left=0)
    axes.set_ylabel("return of an episode")


def _draw_metric(axes: Axes, name: str, groups: Sequence[_Group], styles: Mapping[str, LineStyle]) -> None:
    """Draw one thing that the learner reports over steps."""
    lowest, highest = math.inf, -math.inf
    for group in groups:
        runs = [_finite(run, name) for run in group.compared if name in run.metrics]
        runs = [run for run in runs if run.rows]
        if not runs:
            continue
        if len(runs) == 1:
            steps, mean = _averaged(runs[0].metrics["step"], runs[0].metrics[name], MOST_POINTS // 4)
        else:
            curve = _curve(runs, lambda run: run.metrics[name], with_interval=False)
            steps, mean = curve.steps, curve.mean
        axes.plot(steps, mean, **{**styles[group.label], "linewidth": 1.0})
        lowest, highest = min(lowest, mean.min()), max(highest, mean.max())
    if lowest > 0 and highest > 100 * lowest:
        axes.set_yscale("log")
        axes.minorticks_off()
    _finish_axes(axes, ticks=4)
    axes.set_xlim(left=0)


def _finite(run: _Run, name: str) -> _Run:
    keep = np.isfinite(run.metrics[name])
    return replace(run, metrics={column: run.metrics[column][keep] for column in ("step", name)})


def _draw_prediction(axes: Axes, run: _Run, part: slice) -> None:
    """Draw what was predicted at each step of a part of the stream over what then came."""
    steps = run.predictions["step"][part]
    returns = discounted_returns(run.predictions["cumulant"], run.discount)[part]
    axes.plot(*_averaged(steps, returns), color=INK, linewidth=1.1, alpha=0.75)
    axes.plot(*_averaged(steps, run.predictions["prediction"][part]), color=COLOURS[0], linewidth=1.3)
    _finish_axes(axes)
    axes.set_ylabel("discounted sum")


def _prediction_parts(run: _Run) -> dict[str, slice]:
    known = known_returns(len(run.predictions["step"]), run.discount)
    if not known:
        return {}
    close_up = min(WINDOW_STEPS, known)
    return {
        "The whole stream": slice(0, known),
        f"The first {_plural(close_up, 'step')}": slice(0, close_up),
        f"The last {_plural(close_up, 'step')} whose return is known": slice(known - close_up, known),
    }


def _svg(size: tuple[float, float], alt: str, draw: Callable[[Axes], None]) -> Markup:
    """Draw one pair of axes as inline SVG whose colours follow the page."""
    with _style():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    drawing = text.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', drawing)
    assert view_box is not None
    # Inside HTML the metadata and the namespaces of the root are not needed, and they hold web addresses.
    body = drawing[drawing.index("</metadata>") + len("</metadata>") : drawing.rindex("</svg>")]
    body = re.sub(r'<g id="[^"]*"', "<g", body.replace("xlink:href", "href"))
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    for place, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--series-{place})")
    for name, colour in (("ink", INK), ("muted", MUTED), ("line", LINE)):
        body = body.replace(colour, f"var(--{name})")
    return Markup(f'<svg {view_box.group()} role="img" aria-label="{escape(alt)}">{body}</svg>')


# ---- the page ----


@dataclass(frozen=True)
class _Panel:
    title: str
    drawing: Markup


@dataclass(frozen=True)
class _Table:
    """Cells in rows; the first `text_columns` columns are words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    text_columns: int = 1


@dataclass
class _Report:
    runs: list[_Run]
    groups: list[_Group] = field(init=False)

    def __post_init__(self) -> None:
        by_name: dict[tuple[str, str], list[_Run]] = {}
        for run in self.runs:
            by_name.setdefault((run.environment, run.label), []).append(run)
        self.groups = [
            _Group(environment, label, sorted(runs, key=lambda run: str(run.seed).zfill(12)))
            for (environment, label), runs in by_name.items()
        ]
        self.environments = list(dict.fromkeys(group.environment for group in self.groups))
        self.labels = list(dict.fromkeys(group.label for group in self.groups))
        self.styles: dict[str, LineStyle] = {
            label: {
                "color": COLOURS[place % len(COLOURS)],
                "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
            }
            for place, label in enumerate(self.labels)
        }
        self.learning = {
            environment: groups
            for environment in self.environments
            if (groups := [group for group in self._of(environment) if group.has_episodes])
        }
        self.predicting = [group for group in self.groups if any(run.predictions for run in group.runs)]

    def _of(self, environment: str) -> list[_Group]:
        return [group for group in self.groups if group.environment == environment]

    def render(self) -> tuple[str, bytes]:
        """Return the page and the PNG."""
        folder = Path(__file__).with_name("templates")
        pages = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = pages.get_template("report.html").render(
            title=self.title,
            summary=self.summary,
            notes=self.notes,
            colours=list(SERIES.items()),
            legend=self.legend(list(chain.from_iterable(self.learning.values()))),
            learning=self.learning_panels(),
            learning_caption=self.learning_caption,
            predictions=self.prediction_panels(),
            results=self.results(),
            scores=self.scores(),
            metrics=self.metric_panels(),
            runs=self.runs_table() if len(self.runs) > 1 else None,
            configuration=self.configuration("configuration"),
            versions=self.configuration("versions"),
        )
        return page, self.png()

    def legend(self, groups: Sequence[_Group]) -> list[tuple[str, int, str]]:
        """Return label, number of the colour and dashes of every line; nothing where all runs share one."""
        drawn = {group.label for group in groups if group.compared}
        return [
            (label, COLOURS.index(style["color"]), style["linestyle"])
            for label, style in self.styles.items()
            if label in drawn and len(self.labels) > 1
        ]

    # -- words --

    @property
    def title(self) -> str:
        labels = " and ".join(self.labels) if len(self.labels) < 3 else f"{len(self.labels)} agents"
        environments = self.environments
        names = ", ".join(environments) if len(environments) < 4 else f"{len(environments)} environments"
        return f"{labels} on {names}"

    @property
    def summary(self) -> str:
        """One line: what ran, for how long, how well."""
        seeds = sorted({str(run.seed) for run in self.runs}, key=lambda seed: (len(seed), seed))
        named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"
        if len(seeds) > 8:
            named = f"{len(seeds)} seeds"
        furthest = max(run.last_step for run in self.runs)
        parts = [named, _plural(furthest, "step")]
        if len(self.runs) > 1:
            parts.insert(0, _plural(len(self.runs), "run"))
        compared = [run for group in self.groups for run in group.compared]
        finals = [run.final for run in compared if len(run.returns)]
        if len(self.groups) == 1 and finals:
            said = f"mean return of the last {EPISODES} episodes {_number(_median(finals))}"
            if len(finals) > 1:
                said += f" (median over seeds; {_span(min(finals), max(finals))})"
            parts.append(said)
        if len(self.runs) == 1 and (scores := self.runs[0].scores) and scores.scored_steps:
            ratio = _number(scores.ratio_to_running_mean)
            parts.append(f"squared error {ratio} times that of predicting the mean so far")
        rate = _median([run.steps_per_second for run in compared])
        if math.isfinite(rate):
            parts.append(f"{_number(rate)} steps/s")
        return " · ".join(parts)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before trusting the numbers."""
        notes = []
        for group in self.groups:
            for run in group.runs:
                kind = "row of metrics" if run.is_series else "episode"
                if not run.rows:
                    notes.append(f"{run.path}: nothing recorded yet; the first {kind} has not been written.")
                    continue
                if run.stopped_early:
                    notes.append(
                        f"{run.path} is unfinished: {run.last_step:,} of {run.config['steps']:,} steps."
                    )
                if run not in group.compared:
                    notes.append(
                        f"{run.path} is left out of curves and results: it came less than half as far as "
                        "the furthest of its seeds."
                    )
            seeds = [run.seed for run in group.runs]
            for seed in dict.fromkeys(seed for seed in seeds if seeds.count(seed) > 1):
                notes.append(
                    f"{group.label} on {group.environment}: seed {seed} occurs {seeds.count(seed)} times; "
                    "equal seeds are no independent evidence."
                )
        return notes

    @property
    def learning_caption(self) -> str:
        counts = {len(group.compared) for groups in self.learning.values() for group in groups}
        said = []
        if any(count > 1 for count in counts):
            said.append(
                f"Lines: mean over seeds of each seed's mean return of the last {EPISODES} episodes. "
                "Bands: 95% bootstrap intervals of that mean over seeds, as far as the shortest seed."
            )
        if 1 in counts:
            points = "Where there is one seed, points" if len(counts) > 1 else "Points"
            said.append(
                f"{points} are episodes and the line is the mean of the last {EPISODES}; "
                "one seed gives no interval."
            )
            most = max(
                len(group.compared[0].returns)
                for groups in self.learning.values()
                for group in groups
                if len(group.compared) == 1
            )
            if most > MOST_POINTS:
                said.append(f"Of more than {MOST_POINTS:,} episodes, evenly spaced ones are drawn.")
        return " ".join(said)

    # -- drawings --

    def learning_panels(self) -> list[_Panel]:
        size = (6.2, 3.5) if len(self.learning) == 1 else (3.9, 2.7)
        return [
            _Panel(
                environment if len(self.environments) > 1 else "",
                _svg(
                    size,
                    f"Return over steps on {environment}",
                    lambda axes, groups=groups: _draw_curves(axes, groups, self.styles),  # type: ignore[misc]
                ),
            )
            for environment, groups in self.learning.items()
        ]

    def prediction_panels(self) -> list[tuple[str, list[_Panel]]]:
        """Return, for every predicted series, what was predicted over what came, of its first seed."""
        sections = []
        for group in self.predicting:
            run = next(run for run in group.runs if run.predictions)
            panels = []
            for place, (title, part) in enumerate(_prediction_parts(run).items()):
                size = (8.0, 2.9) if place == 0 else (4.4, 2.7)
                drawing = _svg(
                    size,
                    f"{title}: predicted and true discounted sum",
                    lambda axes, run=run, part=part: _draw_prediction(axes, run, part),  # type: ignore[misc]
                )
                panels.append(_Panel(title, drawing))
            many = len(self.predicting) > 1 or len(group.runs) > 1
            sections.append((f"{group.environment}: {group.label}, seed {run.seed}" if many else "", panels))
        return sections

    def metric_panels(self) -> list[tuple[str, list[tuple[str, int, str]], list[_Panel]]]:
        """Return, for every environment, its legend and a small panel for everything reported."""
        sections = []
        for environment in self.environments:
            groups = [group for group in self._of(environment) if group.compared]
            names = dict.fromkeys(name for group in groups for run in group.compared for name in run.metrics)
            panels = [
                _Panel(
                    METRIC_TITLES.get(name, name.replace("_", " ")),
                    _svg(
                        (3.4, 2.0),
                        f"{name} over steps on {environment}",
                        lambda axes, name=name, groups=groups: _draw_metric(axes, name, groups, self.styles),  # type: ignore[misc]
                    ),
                )
                for name in sorted(names, key=lambda name: name != "steps_per_second")
                if name not in NOT_METRICS
            ]
            if panels:
                sections.append((environment, self.legend(groups), panels))
        return sections

    def png(self) -> bytes:
        """Return the main figure: learning curves by environment, then predictions by series."""
        predicting = [
            run
            for group in self.predicting
            if _prediction_parts(run := next(run for run in group.runs if run.predictions))
        ]
        columns = min(3, len(self.learning))
        rows = math.ceil(len(self.learning) / columns) if columns else 0
        heights = [{1: 5.0, 2: 4.2, 3: 3.4}[columns] * rows] if columns else []
        heights += [5.6] * len(predicting)
        with _style(), matplotlib.rc_context({"font.size": 11, "axes.titlesize": 12}):
            figure = Figure(figsize=(10, 0.6 + sum(heights or [2.4])), layout="constrained")
            title = "\n".join(textwrap.wrap(_printable(self.title), 85))
            figure.suptitle(title, fontsize=14, x=0.01, ha="left")
            if not heights:
                figure.text(
                    0.5, 0.5, "Nothing to draw yet: no episode has finished.", ha="center", color=MUTED
                )
            parts = (
                list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
                if heights
                else []
            )
            if columns:
                self._png_curves(parts.pop(0), rows, columns)
            for part, run in zip(parts, predicting, strict=True):
                self._png_prediction(part, run, titled=len(self.groups) > 1)
            image = io.BytesIO()
            figure.savefig(
                image, format="png", dpi=200, facecolor="white", metadata={"Software": "streamwise"}
            )
        return image.getvalue()

    def _png_curves(self, figure: SubFigure, rows: int, columns: int) -> None:
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (environment, groups) in zip(panels, self.learning.items(), strict=False):
            _draw_curves(axes, groups, self.styles)
            if len(self.environments) > 1:
                axes.set_title(_printable(environment))
            is_first = axes.get_subplotspec().is_first_col()
            axes.set_ylabel(f"return (mean of last {EPISODES} episodes)" if is_first else "")
        for axes in panels[len(self.learning) :]:
            axes.set_visible(False)
        if len(self.labels) > 1:
            labels = [label for label, *_ in self.legend(list(chain.from_iterable(self.learning.values())))]
            handles = [Line2D([], [], **self.styles[label]) for label in labels]
            names = [_printable(label) for label in labels]
            figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)))

    def _png_prediction(self, figure: SubFigure, run: _Run, *, titled: bool) -> None:
        panels = figure.subplot_mosaic([["all", "all"], ["first", "last"]])
        for axes, (title, part) in zip(panels.values(), _prediction_parts(run).items(), strict=True):
            _draw_prediction(axes, run, part)
            axes.set_title(title)
        if titled:
            figure.suptitle(
                _printable(f"{run.environment}: {run.label}, seed {run.seed}"), fontsize=12, x=0.01, ha="left"
            )
        handles = [Line2D([], [], color=COLOURS[0]), Line2D([], [], color=INK)]
        figure.legend(handles, ["predicted", "what came"], loc="outside lower center", ncols=2)

    # -- tables --

    def results(self) -> _Table | None:
        """Return one row for every label and environment with finished episodes."""
        several = any(len(group.compared) > 1 for groups in self.learning.values() for group in groups)
        finals_header = ["median", "min", "max", "mean", "95% interval"] if several else [f"last {EPISODES}"]
        header = ["environment", "agent", "seeds", "steps", *finals_header]
        header += [f"best {EPISODES} in a row", "steps/s", "wall time"]
        rows = []
        for environment, groups in self.learning.items():
            for group in groups:
                runs = group.compared
                finals = [run.final for run in runs]
                row = [
                    environment,
                    group.label,
                    str(len(runs)),
                    f"{_median([r.last_step for r in runs]):,.0f}",
                ]
                row.append(_number(_median(finals)))
                if several:
                    row += [_number(min(finals)), _number(max(finals)), _number(float(np.mean(finals)))]
                    row.append(_interval(finals))
                row.append(_number(_median([run.best for run in runs])))
                row.append(_number(_median([run.steps_per_second for run in runs])))
                row.append(_duration(_median([run.wall_time for run in runs])))
                rows.append(row)
        return _Table(header, rows, 2) if rows else None

    def scores(self) -> _Table | None:
        """Return one row for every run that predicted a series."""
        header = [
            "series",
            "agent",
            "seed",
            "scored steps",
            "learner",
            "mean so far",
            "ratio",
            "last value",
            "ratio",
        ]
        rows = []
        for group in self.predicting:
            for run in group.runs:
                scores = run.scores
                if scores is None:
                    continue
                numbers = [scores.learner, scores.running_mean, scores.ratio_to_running_mean]
                numbers += [scores.last_cumulant, scores.ratio_to_last_cumulant]
                where = f"{scores.first_step:,} to {scores.last_step:,}" if scores.scored_steps else "too few"
                rows.append(
                    [
                        run.environment,
                        run.label,
                        str(run.seed),
                        where,
                        *[_number(number) for number in numbers],
                    ]
                )
        return _Table(header, rows, 2) if rows else None

    def runs_table(self) -> _Table:
        """Return one row a run, in the order they were named."""
        header = ["run", "seed", "steps", "episodes", f"last {EPISODES}", f"best {EPISODES}", "steps/s"]
        header += ["wall time"]
        rows = []
        for run in self.runs:
            row = [str(run.path), str(run.seed), f"{run.last_step:,}", f"{len(run.returns):,}"]
            row += [_number(value) for value in (run.final, run.best, run.steps_per_second)]
            rows.append([*row, _duration(run.wall_time)])
        return _Table(header, rows)

    def configuration(self, what: str) -> tuple[_Table, _Table | None]:
        """Return what all runs share, and what differs with a row a run."""
        flat = [_flat(run.config, what) for run in self.runs]
        keys = list(dict.fromkeys(key for values in flat for key in values))
        same = [key for key in keys if len({repr(values.get(key)) for values in flat}) == 1]
        differing = [key for key in keys if key not in same]
        common = _Table(["", ""], [[key, _text(flat[0][key])] for key in same], 2)
        if not differing:
            return common, None
        rows = [
            [str(run.path), *[_text(values.get(key)) for key in differing]]
            for run, values in zip(self.runs, flat, strict=True)
        ]
        return common, _Table(["run", *differing], rows, len(differing) + 1)


def _flat(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the versions, or everything else with the tables flattened: settings.discount is `discount`."""
    if what == "versions":
        return dict(config["versions"])
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(value, dict):
            flat[key] = value
        elif key != "versions":
            for inner, setting in value.items():
                is_free = key == "settings" and inner not in config
                flat[inner if is_free else f"{key}.{inner}"] = setting
    return flat


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
