"""Run directories read back, and which of them are seeds of one line."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streamwise.runs.config import why_no_run
from streamwise.runs.statistics import PredictionScores, prediction_scores, running_mean
from streamwise.runs.texts import number_text
from streamwise.streams import UsageError
from streamwise.streams.series import is_series, path_of

__all__ = [
    "EPISODES",
    "Array",
    "Group",
    "Run",
    "by_environment",
    "read_columns",
    "read_groups",
    "read_learning",
    "setting_text",
]

Array = NDArray[np.float64]

EPISODES = 20  # in the mean that stands for "how good is it now"
NO_PREDICTIONS = {name: np.zeros(0) for name in ("step", "prediction", "cumulant")}


@dataclass(eq=False)
class Run:
    """One run directory. metrics, predictions: from column to float64 [rows]."""

    path: Path
    config: dict[str, Any]
    metrics: dict[str, Array]
    predictions: dict[str, Array]
    details: list[str] = field(default_factory=list)  # what tells it from other runs of its agent

    @property
    def is_series(self) -> bool:
        """Whether it predicts a time series."""
        return is_series(str(self.config["environment"]))

    @property
    def environment(self) -> str:
        """As the page calls it: a series by its column and file."""
        name = str(self.config["environment"])
        file = Path(path_of(name)).name
        return f"{self.config.get('target')} of {file}" if self.is_series else name

    @property
    def label(self) -> str:
        """The agent, and whatever tells this run from other runs of it."""
        agent = str(self.config["agent"])
        return f"{agent} ({', '.join(self.details)})" if self.details else agent

    @property
    def settings(self) -> dict[str, Any]:
        """The agent's settings."""
        return dict(self.config["settings"])

    @property
    def seed(self) -> str:
        """The seed as a word; a dash where none is known."""
        return str(self.config.get("seed", "–"))

    @property
    def planned_steps(self) -> int:
        """The steps it was started for; 0 where that is not known."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def last_step(self) -> int:
        """The last step that is on disk."""
        columns = (self.metrics["step"], self.predictions["step"])
        return int(max((steps[-1] for steps in columns if len(steps)), default=0))

    @property
    def stopped_early(self) -> bool:
        """Whether it ended further from its planned end than its longest row is long."""
        longest = np.diff(self.metrics["step"], prepend=0).max(initial=0)
        return bool(self.last_step + longest < self.planned_steps)

    @property
    def wall_time(self) -> float:
        """Seconds up to the last row of metrics."""
        seconds = self.metrics.get("wall_time", np.zeros(0))
        return float(seconds[-1]) if len(seconds) else math.nan

    @property
    def steps_per_second(self) -> float:
        """Steps per second over the whole run."""
        return self.last_step / self.wall_time if self.wall_time > 0 else math.nan

    @property
    def returns(self) -> Array:
        """The return of every episode; empty for a series."""
        return self.metrics.get("episode_return", np.zeros(0))

    @property
    def final(self) -> float:
        """Mean return of the last 20 episodes."""
        return float(self.returns[-EPISODES:].mean()) if len(self.returns) else math.nan

    @property
    def best(self) -> float:
        """Highest mean return of 20 episodes in a row."""
        return float(running_mean(self.returns, EPISODES)[EPISODES - 1 :].max(initial=self.final))

    @property
    def discount(self) -> float:
        """What the sums it predicts are discounted by."""
        return float(self.settings["discount"])

    @cached_property
    def scores(self) -> PredictionScores | None:
        """How well it predicted; None for a run that predicts nothing."""
        if not len(self.predictions["step"]):
            return None
        return prediction_scores(self.predictions["prediction"], self.predictions["cumulant"], self.discount)

    @property
    def score_text(self) -> str:
        """How well it predicted, in words; empty for a run that predicts nothing, or has just begun."""
        if self.scores is None or not self.scores.scored_steps:
            return ""
        ratio = number_text(self.scores.ratio_to_running_mean)
        return f"squared error {ratio} times that of predicting the mean so far"


@dataclass(frozen=True)
class Group:
    """The seeds of one line: runs of one environment and one label."""

    environment: str
    label: str
    place: int  # of the label among all labels: it looks the same in every environment
    runs: list[Run]  # by seed

    @cached_property
    def compared(self) -> list[Run]:
        """The runs that came at least half as far as the furthest: a run just begun has no final result."""
        furthest = max(run.last_step for run in self.runs)
        return [run for run in self.runs if run.last_step and 2 * run.last_step >= furthest]

    @property
    def has_episodes(self) -> bool:
        """Whether there is a learning curve to draw."""
        return bool(self.compared) and all(len(run.returns) for run in self.compared)

    @property
    def predicting(self) -> list[Run]:
        """The runs that predicted a series."""
        return [run for run in self.runs if run.scores is not None]


def read_groups(paths: Iterable[Path]) -> list[Group]:
    """Read run directories, each once. Raises UsageError for what is no run, and for damaged files."""
    runs = [_read_run(path) for path in {path.resolve(): path for path in paths}.values()]
    _add_details(runs)
    lines = _lines(runs)
    labels = list(dict.fromkeys(label for _, label in lines))
    return [
        Group(environment, label, labels.index(label), sorted(seeds, key=lambda run: run.seed.zfill(12)))
        for (environment, label), seeds in lines.items()
    ]


def read_learning(path: Path) -> Run:
    """Read of a run directory only what a learning curve takes: many runs fit into memory.

    Raises UsageError for what is no run, and for damaged files.
    """
    metrics = _read_metrics(path, ("step", "wall_time", "episode_return"))
    return Run(path, _read_config(path), metrics, predictions=NO_PREDICTIONS)


def by_environment(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups of every environment, in the order in which these appear."""
    environments: dict[str, list[Group]] = {}
    for group in groups:
        environments.setdefault(group.environment, []).append(group)
    return environments


def setting_text(value: Any) -> str:
    """Return a setting as people write it: true, 100,000, 0.5."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


# ---- reading ----


def _read_run(path: Path) -> Run:
    config = _read_config(path)
    metrics = _read_metrics(path)
    predictions = read_columns(path / "predictions.parquet", ("step", "prediction", "cumulant"))
    discount = config["settings"].get("discount")
    is_known = isinstance(discount, int | float) and 0.0 <= discount <= 1.0
    if len(predictions["step"]) and not is_known:
        raise UsageError(
            f"{path / 'config.toml'}: predictions are scored by settings.discount, a number in [0, 1], "
            f"not {discount!r}; restore the file."
        )
    return Run(path, config, metrics, predictions)


def _read_metrics(path: Path, wanted: Sequence[str] | None = None) -> dict[str, Array]:
    metrics = read_columns(path / "metrics.parquet", ("step",), wanted)
    if np.any(np.diff(metrics["step"]) < 0):
        raise UsageError(f"{path / 'metrics.parquet'}: its steps fall; it holds the rows of two runs.")
    return metrics


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.toml"
    if not file.is_file():
        hint = " It holds runs: name those." if any(path.glob("*/config.toml")) else ""
        raise UsageError(f"{why_no_run(path)}{hint}")
    try:
        config = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{file} cannot be read ({_one_line(error)}); restore it or leave {path} out."
        ) from None
    config = {"settings": {}, "versions": {}} | config
    for key, kind in (("environment", str), ("agent", str), ("settings", dict), ("versions", dict)):
        if not isinstance(config.get(key), kind):
            what = "text" if kind is str else "a table"
            raise UsageError(f"{file}: {key!r} must be {what}; restore it or leave {path} out.")
    return config


def read_columns(
    file: Path, required: Sequence[str], wanted: Sequence[str] | None = None
) -> dict[str, Array]:
    """Read the numeric columns of a Parquet file; empty ones if there is no file. Null becomes NaN."""
    if not file.is_file():
        return {name: np.zeros(0) for name in required}
    try:
        table = pq.ParquetFile(file).read(wanted)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{file} is damaged ({_one_line(error)}); leave {file.parent} out, or run it again."
        ) from None
    columns = {
        name: column.to_numpy().astype(np.float64)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    }
    for name in required:
        if name not in columns:
            raise UsageError(
                f"{file} has no numeric column {name!r}; leave {file.parent} out, or run it again."
            )
    return columns


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".")


# ---- which runs are seeds of one line ----


def _add_details(runs: Sequence[Run]) -> None:
    """Add to every label the step-size rule, and whatever else tells the run from others."""
    for run in runs:
        rule = run.settings.get("step_size_rule")
        run.details = [str(rule)] if rule else []
    options = ("environment", "preset", "backend", "episodic_life")
    keys = [*options, *(key for run in runs for key in run.settings)]
    for key in dict.fromkeys(keys):
        mixed = {label for (_, label), seeds in _lines(runs).items() if _differ(seeds, key)}
        for run in runs:
            if run.label in mixed:
                run.details.append(_detail(run, key))


def _lines(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    lines: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        lines.setdefault((run.environment, run.label), []).append(run)
    return lines


def _differ(runs: Sequence[Run], key: str) -> bool:
    # A longer run explores for longer under the same settings.
    is_derived = key == "exploration_steps" and all(_explores_by_fraction(run) for run in runs)
    return not is_derived and len({_detail(run, key) for run in runs}) > 1


def _explores_by_fraction(run: Run) -> bool:
    fraction = run.settings.get("exploration_fraction")
    steps = run.settings.get("exploration_steps")
    return isinstance(fraction, float) and str(steps) == f"{fraction * run.planned_steps:.0f}"


def _detail(run: Run, key: str) -> str:
    value = run.config.get(key, run.settings.get(key))
    return f"no {key}" if value is None else f"{key} {setting_text(value)}"
