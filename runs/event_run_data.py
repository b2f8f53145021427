"""Runs on events read back, and the numbers behind the tables of their report."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamwise.agents.hawkes import Hawkes
from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.config import read_toml
from streamwise.runs.ingest import load_model
from streamwise.runs.ingest_config import IngestConfig, is_ingest, load_ingest
from streamwise.runs.merged_run import read_merged
from streamwise.runs.partitions import is_partitioned
from streamwise.runs.prequential import PIT_BINS, baselines, own_scores
from streamwise.runs.run_data import Array, read_columns, setting_text
from streamwise.streams import UsageError

__all__ = [
    "Baseline",
    "EventRun",
    "Influence",
    "configuration",
    "first_letters",
    "read_event_runs",
]

AVERAGES = (
    "log_likelihood", "time_log_likelihood", "type_log_loss", "type_error", "time_rmse", "time_mae",
)  # fmt: skip
OTHER_COLUMNS = (
    "step", "wall_time", "scored", "keys", "types", "types_overflowed", "ks", "ks_critical", "drift",
    "drift_alarms", "latency_p50_ms", "latency_p99_ms", "lag",
)  # fmt: skip
COLUMNS = (*OTHER_COLUMNS, *AVERAGES, *(f"{name}_window" for name in AVERAGES))
COVERAGES = ("coverage_50", "coverage_90")  # which older runs do not have
NOT_OPTIONS = ("kind", "settings", "versions")
LIKE_A_SETTING = ("lateness", "buffer", "backend")  # options that may tell runs of one model apart


class Influence(NamedTuple):
    """What a Hawkes model found. base_rates: [types], events a second; children: [scales, sources, types]."""

    base_rates: Array
    children: Array
    time_scales: Array


@dataclass(eq=False)
class EventRun:
    """One run directory. rows: from column to float64 [rows]; by_type to pit: as in `Prequential`."""

    path: Path
    config: IngestConfig[Any]
    table: dict[str, Any]  # config.toml
    rows: dict[str, Array]
    meta: dict[str, Any] = field(default_factory=dict)  # of the newest checkpoint; empty without one
    names: list[str] = field(default_factory=list)  # of types
    by_type: Array = field(default_factory=lambda: np.zeros((0, 4)))
    by_activity: Array = field(default_factory=lambda: np.zeros((0, 4)))
    by_confidence: Array = field(default_factory=lambda: np.zeros((0, 3)))
    pit: Array = field(default_factory=lambda: np.zeros(PIT_BINS))
    statistics: list[str] = field(default_factory=list)  # columns that the model adds of its own
    influence: Influence | None = None
    details: list[str] = field(default_factory=list)  # what tells it from other runs of its model
    place: int = 0

    @property
    def label(self) -> str:
        """The model, and whatever tells this run from other runs of it."""
        return f"{self.config.model} ({', '.join(self.details)})" if self.details else self.config.model

    @property
    def steps(self) -> Array:
        """How many events were learned at the end of every row."""
        return self.rows["step"]

    @property
    def extras(self) -> list[str]:
        """The scores that only this model has."""
        averaged = (name.removesuffix("_fading") for name in self.rows if name.endswith("_fading"))
        return [name for name in averaged if name not in (*AVERAGES, *COVERAGES)]

    @property
    def baselines(self) -> list[Baseline]:
        """What the model was compared with while it learned."""
        return [Baseline(self, name, columns) for name, columns in baselines(self.extras).items()]

    @property
    def own_scores(self) -> list[str]:
        """The extras that have no place of their own in a report."""
        return own_scores(self.extras)

    @property
    def refused(self) -> dict[str, int]:
        """How many records were refused, by reason."""
        counts: dict[str, int] = self.meta["position"]["dead_letters"]["counts"] if self.meta else {}
        return counts

    def known(self, name: str, after: float = 0.0, until: float = math.inf) -> list[float]:
        """Return a column over the rows between two steps, without NaN."""
        values = self.rows[name][(self.steps > after) & (self.steps <= until)]
        known: list[float] = values[np.isfinite(values)].tolist()
        return known

    def scored_at(self, edges: Array) -> Array:
        """Return how many events were scored up to some steps, each the end of a row or 0."""
        scored: Array = np.append(0.0, self.rows["scored"])[self._ends(edges)]
        return scored

    def averages(self, name: str, edges: Array) -> Array:
        """Return a score between neighbouring steps, each the end of a row or 0; NaN where none is.

        Windows are weighted by how many of their events were scored.
        """
        values = self.rows[f"{name}_window"]
        weights = np.where(np.isfinite(values), np.diff(self.rows["scored"], prepend=0.0), 0.0)
        if name == "time_rmse":
            values = values**2
        ends = self._ends(edges)
        sums, counts = (
            np.append(0.0, np.cumsum(column))[ends]
            for column in (np.where(weights > 0.0, weights * values, 0.0), weights)
        )
        with np.errstate(invalid="ignore"):
            means: Array = np.diff(sums) / np.diff(counts)
        return np.sqrt(means) if name == "time_rmse" else means

    def between(self, name: str, after: float, until: float) -> float:
        """Return a score over the events after one step and up to another, both ends of rows."""
        if not after:
            return float(self.rows[name][np.searchsorted(self.steps, until)])
        return float(self.averages(name, np.array([after, until]))[0])

    def _ends(self, edges: Array) -> NDArray[np.intp]:
        return np.searchsorted(self.steps, edges, side="right")


@dataclass(frozen=True)
class Baseline:
    """A simpler model that another runs alongside. columns: of the rows of `run`, by the score they hold."""

    run: EventRun
    name: str
    columns: dict[str, str]

    def scored_at(self, edges: Array) -> Array:
        """As of a run: it is scored on the same events."""
        return self.run.scored_at(edges)

    def averages(self, name: str, edges: Array) -> Array:
        """As of a run; NaN for a score that it does not have."""
        if name not in self.columns:
            return np.full(len(edges) - 1, math.nan)
        return self.run.averages(self.columns[name], edges)

    def between(self, name: str, after: float, until: float) -> float:
        """As of a run; NaN for a score that it does not have."""
        return self.run.between(self.columns[name], after, until) if name in self.columns else math.nan


# ---- reading ----


def read_event_runs(directories: Sequence[Path]) -> list[EventRun]:
    """Read run directories, each once; scores of times are in the unit of the first.

    Raises UsageError for a directory that is no run on events or has no rows yet, for runs on different
    sources, and for damaged files.
    """
    runs = [_read(path) for path in {path.resolve(): path for path in directories}.values()]
    first = runs[0]
    for place, run in enumerate(runs):
        if run.config.sources != first.config.sources:
            raise UsageError(
                f"{run.path} learned from {', '.join(run.config.sources)}, and {first.path} from "
                f"{', '.join(first.config.sources)}; draw them apart."
            )
        run.place = place
        _convert_times(run, first.config.time_unit)
    _add_details(runs)
    return runs


def _read(path: Path) -> EventRun:
    if not is_ingest(path):
        raise UsageError(f"{path} is no run of `streamwise ingest`; draw it apart, or leave it out.")
    config = load_ingest(path)
    if is_partitioned(path):
        return _read_merged(path, config)
    rows = read_columns(path / "metrics.parquet", COLUMNS)
    if not len(rows["step"]):
        raise UsageError(f"{path} has no rows of metrics yet; let it go on for a minute, or to its end.")
    if np.any(np.diff(rows["step"]) <= 0):
        raise UsageError(f"{path / 'metrics.parquet'}: its steps fall; it holds the rows of two runs.")
    for name in COVERAGES:
        for column in (name, f"{name}_window"):
            rows.setdefault(column, np.full(len(rows["step"]), math.nan))
    run = EventRun(path, config, read_toml(path / "config.toml"), rows)
    try:
        model, checkpoint = load_model(path)
    except CheckpointError:
        return run
    run.meta = checkpoint.meta
    scores = run.meta["recorder"]["scores"]
    run.by_type = np.array(scores["by_type"], np.float64).reshape(-1, 4)
    if "pit" in scores:
        run.by_activity = np.array(scores["by_activity"], np.float64).reshape(-1, 4)
        run.by_confidence = np.array(scores["by_confidence"], np.float64)
        run.pit = np.array(scores["pit"], np.float64)
    run.statistics = [name for name in model.statistics() if name in rows]
    seen = int(model.seen[0])
    run.names = [model.type_name(i) for i in range(max(seen, len(run.by_type)))]
    if isinstance(model, Hawkes) and seen:
        scales = np.array(model.config.time_scales)
        run.influence = Influence(model.base_rates[:seen], model.excitation[:, :seen, :seen], scales)
    model.close()
    return run


def _read_merged(path: Path, config: IngestConfig[Any]) -> EventRun:
    """Read a run of several workers as one."""
    merged = read_merged(path)
    if not merged.rows or merged.past.scores is None:
        raise UsageError(f"{path} has no rows of metrics yet; let it go on for a minute, or to its end.")
    names = dict.fromkeys(name for row in merged.rows for name in row)
    rows = {name: np.array([row.get(name, math.nan) for row in merged.rows], np.float64) for name in names}
    scores = merged.past.scores
    meta = {
        "recorder": {"scores": scores, "first_time": merged.past.first_time},
        "position": {
            "last": [merged.newest, ""],
            "records": merged.records,
            "dead_letters": {"counts": merged.past.dead_letters},
        },
    }
    return EventRun(
        path,
        config,
        read_toml(path / "config.toml"),
        rows,
        meta=meta,
        names=list(merged.past.names),
        by_type=np.array(scores["by_type"], np.float64).reshape(-1, 4),
        by_activity=np.array(scores["by_activity"], np.float64).reshape(-1, 4),
        by_confidence=np.array(scores["by_confidence"], np.float64),
        pit=np.array(scores["pit"], np.float64),
        statistics=[name for name in merged.statistics if name in rows],
    )


def _convert_times(run: EventRun, unit: float) -> None:
    """Give the scores of times in this unit; a density is per unit, so its logarithm moves."""
    own = run.config.time_unit
    if own == unit:
        return
    shift = math.log(unit / own)
    for suffix in ("", "_window"):
        for name in (*AVERAGES, *run.extras):
            if name.endswith("log_likelihood"):
                run.rows[name + suffix] = run.rows[name + suffix] + shift
        for name in ("time_rmse", "time_mae"):
            run.rows[name + suffix] = run.rows[name + suffix] * (own / unit)
    for table in (run.by_type, run.by_activity):
        table[:, 3] += table[:, 0] * shift


def _add_details(runs: Sequence[EventRun]) -> None:
    """Add to the labels of several runs of one model what tells them apart, at last their directories."""
    for model in {run.config.model for run in runs}:
        alike = [run for run in runs if run.config.model == model]
        if len(alike) < 2:
            continue
        texts = [_settings(run, LIKE_A_SETTING) for run in alike]
        for key in _differing(texts):
            for run, text in zip(alike, texts, strict=True):
                run.details.append(f"{key} {text[key]}" if key in text else f"no {key}")
        labels = [run.label for run in alike]
        for run, label in zip(alike, labels, strict=True):
            if labels.count(label) > 1:
                path = run.path.resolve()
                same_name = sum(other.path.resolve().name == path.name for other in alike) > 1
                run.details.append(str(path) if same_name else path.name)


def _settings(run: EventRun, options: Container[str]) -> dict[str, str]:
    """Return some of the options, and all settings, as text."""
    values = {key: value for key, value in run.table.items() if key in options}
    values |= run.table.get("settings", {})
    return {
        key: ", ".join(map(setting_text, value if isinstance(value, list) else [value]))
        for key, value in values.items()
    }


def _differing(texts: Sequence[dict[str, str]]) -> list[str]:
    """Return the keys that are not the same in all of them."""
    keys = dict.fromkeys(key for text in texts for key in text)
    return [key for key in keys if len({text.get(key) for text in texts}) > 1]


# ---- behind the tables ----


def configuration(runs: Sequence[EventRun]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the options, settings and versions that all runs share, and of each run those that differ."""
    texts = [_settings(run, run.table.keys() - NOT_OPTIONS) | run.table.get("versions", {}) for run in runs]
    differing = _differing(texts)
    shared = {key: value for key, value in texts[0].items() if key not in differing}
    if len(runs) == 1:
        return shared, []
    return shared, [
        {"run": str(run.path)} | {key: text.get(key, "–") for key in differing}
        for run, text in zip(runs, texts, strict=True)
    ]


def first_letters(runs: Sequence[EventRun]) -> dict[str, dict[str, Any]]:
    """Return the first refused record of each reason, as a line of dead_letters.jsonl."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        wanted = run.refused.keys() - found.keys()
        for letter in _letters(run.path / "dead_letters.jsonl"):
            if not wanted:
                break
            if letter["reason"] in wanted:
                wanted.remove(letter["reason"])
                found[letter["reason"]] = letter
    return found


def _letters(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that are whole: a run that goes on may be writing the last."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            try:
                letter = json.loads(line)
            except (ValueError, RecursionError):
                continue
            whole = isinstance(letter, dict) and {"partition", "position", "record"} <= letter.keys()
            if whole and isinstance(letter.get("reason"), str):
                yield letter
