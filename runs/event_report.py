"""The report of runs on events: how well each event was foreseen before it was learned, and what was learned.

Runs on the same sources are models to compare. One self-contained HTML page, and its main figures as a PNG.
Most words of the page are in `templates/events.html`. Loading this module loads matplotlib: import it where
it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from streamwise.agents import EventModel
from streamwise.agents.hawkes import Hawkes
from streamwise.runs import figures
from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.config import read_toml
from streamwise.runs.figures import Panels, averaged, finish_axes, line_style
from streamwise.runs.ingest import load_model
from streamwise.runs.ingest_config import IngestConfig, is_ingest, load_ingest
from streamwise.runs.report import (
    ReportFiles,
    Row,
    duration_text,
    number_text,
    render,
    report_files,
    write_files,
)
from streamwise.runs.run_data import Array, read_columns, setting_text
from streamwise.runs.statistics import bootstrap_interval
from streamwise.streams import UsageError

__all__ = ["write_event_report"]

MOST_PARTS = 200  # of the stream, in one line
MOST_RATES, SHORTEST_RATE_SECONDS = 60, 0.25  # points of a line of speeds; a poll's rows are closed together
MOST_TYPES = 20  # in the table; the rest is summed up
MOST_CAUSES = 12  # types in the map of what brings what
NAME_LENGTH, DETAIL_LENGTH, RECORD_LENGTH = 40, 120, 80  # characters shown
FIRST_DATE = 1e8  # seconds; earlier times count from a start of their own, not from 1970
SHADE = 55.0  # percent of colour in the darkest cell: the number on it stays readable

AVERAGES = (
    "log_likelihood", "time_log_likelihood", "type_log_loss", "type_error", "time_rmse", "time_mae",
)  # fmt: skip
HIGHER_IS_BETTER = ("log_likelihood", "time_log_likelihood")
OTHER_COLUMNS = (
    "step", "wall_time", "events", "scored", "keys", "types", "types_overflowed", "ks", "ks_critical",
    "drift", "drift_alarms", "latency_p50_ms", "latency_p99_ms", "lag",
)  # fmt: skip
COLUMNS = (*OTHER_COLUMNS, *AVERAGES, *(f"{name}_window" for name in AVERAGES))
NOT_OPTIONS = ("kind", "settings", "versions")
LIKE_A_SETTING = ("lateness", "buffer", "backend")  # options that may tell runs of one model apart


def write_event_report(directories: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Write the report of one run of `streamwise ingest`, or of several on the same sources.

    out: the page, *.html; the figure lies beside it as *.png. Unset: report.html in the run directory, or in
    the current one for several runs. Raises UsageError for a directory that is no run on events or has no
    rows yet, for runs on different sources, for damaged files, and for an `out` that cannot be written.
    """
    files = report_files(directories, out)
    runs = _read_runs(directories)
    compared = _Compared.of(runs)
    page, png = _page(runs, compared), _png(runs)
    write_files({files.html: page.encode(), files.png: png})
    return files


# ---- what there is ----


class Influence(NamedTuple):
    """What a Hawkes model found. base_rates: [types], events a second; children: [scales, sources, types]."""

    base_rates: Array
    children: Array
    time_scales: Array


@dataclass(eq=False)
class EventRun:
    """One run directory. rows: from column to float64 [rows]; by_type: [types, 4], as in `Prequential`."""

    path: Path
    config: IngestConfig[Any]
    table: dict[str, Any]  # config.toml
    rows: dict[str, Array]
    meta: dict[str, Any] = field(default_factory=dict)  # of the newest checkpoint; empty without one
    names: list[str] = field(default_factory=list)  # of types
    by_type: Array = field(default_factory=lambda: np.zeros((0, 4)))
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
    def refused(self) -> dict[str, int]:
        """How many records were refused, by reason."""
        counts: dict[str, int] = self.meta["position"]["dead_letters"]["counts"] if self.meta else {}
        return counts

    def averages(self, name: str, edges: Array) -> Array:
        """Return a score between neighbouring steps, each the end of a row or 0; NaN where none is.

        Windows are weighted by how many of their events were scored.
        """
        ends = np.searchsorted(self.steps, edges, side="right")
        weights = np.diff(self.rows["scored"], prepend=0.0)
        values = self.rows[f"{name}_window"]
        if name == "time_rmse":
            values = values**2
        sums = np.append(0.0, np.cumsum(np.where(weights > 0.0, weights * values, 0.0)))
        with np.errstate(invalid="ignore"):
            means: Array = np.diff(sums[ends]) / np.diff(self.scored_at(edges))
        return np.sqrt(means) if name == "time_rmse" else means

    def scored_at(self, edges: Array) -> Array:
        """Return how many events were scored up to some steps, each the end of a row or 0."""
        ends = np.searchsorted(self.steps, edges, side="right")
        scored: Array = np.append(0.0, self.rows["scored"])[ends]
        return scored

    def between(self, name: str, after: float, until: float) -> float:
        """Return a score over the events after one step and up to another, both ends of rows."""
        if not after:
            return float(self.rows[name][np.searchsorted(self.steps, until)])
        return float(self.averages(name, np.array([after, until]))[0])

    def known(self, name: str, after: float = 0.0, until: float = math.inf) -> Array:
        """Return a column over the rows between two steps, without NaN."""
        values = self.rows[name][(self.steps > after) & (self.steps <= until)]
        return values[np.isfinite(values)]


@dataclass(frozen=True)
class _Compared:
    """The part of the stream that all runs have come through: rows that all of them have.

    edges: [n + 1], steps from 0 on; half: where its last half begins, None if it has but one row.
    """

    edges: Array
    half: float | None

    @classmethod
    def of(cls, runs: Sequence[EventRun]) -> _Compared:
        common = runs[0].steps
        for run in runs[1:]:
            common = np.intersect1d(common, run.steps)
            if not len(common):
                raise UsageError(
                    f"{run.path} has no row that ends with the same event as one of {runs[0].path}; "
                    "give them the same --interval, or draw them apart."
                )
        later = common[(2 * common >= common[-1]) & (common < common[-1])]
        return cls(np.append(0.0, common), float(later[0]) if len(later) else None)

    @property
    def until(self) -> float:
        """Its end."""
        return float(self.edges[-1])

    @property
    def spans(self) -> list[float]:
        """Where the spans of the scores begin: the whole, then its last half."""
        return [0.0] if self.half is None else [0.0, self.half]

    @property
    def last(self) -> float:
        """Where the span begins that decides which model is best."""
        return self.spans[-1]


def _read_runs(directories: Sequence[Path]) -> list[EventRun]:
    runs = [_read(path) for path in {path.resolve(): path for path in directories}.values()]
    first = runs[0]
    for run in runs[1:]:
        if run.config.sources != first.config.sources:
            raise UsageError(
                f"{run.path} learned from {', '.join(run.config.sources)}, and {first.path} from "
                f"{', '.join(first.config.sources)}; draw them apart."
            )
    for place, run in enumerate(runs):
        run.place = place
        _convert_times(run, first.config.time_unit)
    _add_details(runs)
    return runs


def _read(path: Path) -> EventRun:
    if not is_ingest(path):
        raise UsageError(f"{path} is no run of `streamwise ingest`; draw it apart, or leave it out.")
    config = load_ingest(path)
    rows = read_columns(path / "metrics.parquet", COLUMNS)
    if not len(rows["step"]):
        raise UsageError(f"{path} has no rows of metrics yet; let it go on for a minute, or to its end.")
    if np.any(np.diff(rows["step"]) <= 0):
        raise UsageError(f"{path / 'metrics.parquet'}: its steps fall; it holds the rows of two runs.")
    run = EventRun(path, config, read_toml(path / "config.toml"), rows)
    try:
        model, checkpoint = load_model(path)
    except CheckpointError:
        return run
    run.meta = checkpoint.meta
    run.by_type = np.array(checkpoint.meta["recorder"]["scores"]["by_type"], np.float64).reshape(-1, 4)
    seen = int(model.seen[0])
    run.names = [_plain(model.type_name(i), NAME_LENGTH) for i in range(max(seen, len(run.by_type)))]
    run.influence = _influence(model, seen)
    model.close()
    return run


def _influence(model: EventModel, seen: int) -> Influence | None:
    if not isinstance(model, Hawkes) or not seen:
        return None
    scales = np.array(model.config.time_scales)
    return Influence(model.base_rates[:seen].copy(), model.excitation[:, :seen, :seen].copy(), scales)


def _convert_times(run: EventRun, unit: float) -> None:
    """Give the scores of times in this unit; a density is per unit, so its logarithm moves."""
    own = run.config.time_unit
    if own == unit:
        return
    for suffix in ("", "_window"):
        for name in HIGHER_IS_BETTER:
            run.rows[name + suffix] = run.rows[name + suffix] + math.log(unit / own)
        for name in ("time_rmse", "time_mae"):
            run.rows[name + suffix] = run.rows[name + suffix] * (own / unit)
    run.by_type[:, 3] += run.by_type[:, 0] * math.log(unit / own)


def _add_details(runs: Sequence[EventRun]) -> None:
    """Add to the labels of several runs of one model what tells them apart, at last their directories."""
    for model in {run.config.model for run in runs}:
        alike = [run for run in runs if run.config.model == model]
        if len(alike) < 2:
            continue
        texts = [_options(run, only=LIKE_A_SETTING) for run in alike]
        for key in dict.fromkeys(key for text in texts for key in text):
            if len({text.get(key) for text in texts}) > 1:
                for run, text in zip(alike, texts, strict=True):
                    run.details.append(f"{key} {text[key]}" if key in text else f"no {key}")
        labels = [run.label for run in alike]
        for run, label in zip(alike, labels, strict=True):
            if labels.count(label) > 1:
                run.details.append(run.path.resolve().name)


def _options(run: EventRun, only: Sequence[str] | None = None) -> Row:
    """Return options and settings as text."""
    options = {key: value for key, value in run.table.items() if key not in NOT_OPTIONS}
    if only is not None:
        options = {key: value for key, value in options.items() if key in only}
    return {key: _setting(value) for key, value in (options | run.table.get("settings", {})).items()}


def _setting(value: Any) -> str:
    return ", ".join(map(setting_text, value)) if isinstance(value, list) else setting_text(value)


# ---- the page ----


def _page(runs: Sequence[EventRun], compared: _Compared) -> str:
    best = _best_run(runs, compared)
    shared, differing = _configuration(runs)
    return render(
        "events.html",
        title=_title(runs),
        summary=_summary(runs, compared, best),
        notes=_notes(runs, compared),
        several=len(runs) > 1,
        labels={run.label: run.place for run in runs},
        unit=_unit_text(runs[0].config.time_unit),
        per_unit=_per_unit_text(runs[0].config.time_unit),
        scores=_score_rows(runs, compared),
        best=best.label,
        differences=_difference_rows(runs, best, compared),
        difference_span=_span_text(compared, compared.last),
        behind=figures.svgs(
            _difference_panels(runs, best, compared), (4.4, 2.3) if len(runs) > 2 else (6.2, 2.3)
        ),
        width=_part_width(runs),
        likelihood=figures.svgs(_likelihood_panels(runs), (8.0, 2.9)),
        parts=figures.svgs(_part_panels(runs), (3.2, 2.3)),
        calibration=figures.svgs(_calibration_panels(runs), (4.4, 2.6)),
        calibration_now=_calibration_text(runs),
        alarms=_alarm_text(runs),
        types=_type_rows(runs),
        influences=[_influence_map(run) for run in runs if run.influence is not None],
        refused=_refused_rows(runs),
        refused_share=_refused_text(runs),
        speed=_speed_rows(runs),
        speeds=figures.svgs(_speed_panels(runs), (3.4, 2.0)),
        runs=differing,
        configuration=shared,
    )


def _png(runs: Sequence[EventRun]) -> bytes:
    return figures.sweep_png(
        _title(runs),
        _likelihood_panels(runs),
        [(_part_panels(runs), 2.8), (_calibration_panels(runs), 2.8)],
    )


# ---- words ----


def _title(runs: Sequence[EventRun]) -> str:
    sources = runs[0].config.sources
    named = _listed([_source_name(url) for url in sources]) if len(sources) < 4 else f"{len(sources)} sources"
    models = [run.label for run in runs]
    return f"{_listed(models) if len(models) < 4 else f'{len(models)} models'} on {named}"


def _source_name(url: str) -> str:
    scheme, _, rest = re.sub(r"\?.*", "", url, flags=re.DOTALL).partition(":")
    if scheme == "stdin":
        return "standard input"
    return f"synthetic {rest}" if scheme == "synthetic" else rest.rstrip("/").rpartition("/")[2]


def _summary(runs: Sequence[EventRun], compared: _Compared, best: EventRun) -> str:
    """What was learned from what, over which times, and how well."""
    row = np.searchsorted(runs[0].steps, compared.until)
    keys, types = (_counted(int(runs[0].rows[name][row]), name[:-1]) for name in ("keys", "types"))
    learned = f"{_counted(int(compared.until), 'event')} of {keys} and {types}{_times_text(runs)}"
    sentences = [f"{_listed([run.label for run in runs])} learned {learned}."]
    value = best.between("log_likelihood", compared.last, compared.until)
    if math.isfinite(value):
        where = "Over the last half" if compared.half is not None else "Over all of it"
        error = best.between("type_error", compared.last, compared.until)
        how = f"a log-likelihood of {value:.3f} nats an event and a type error of {_percent(error, 1)}"
        if len(runs) == 1:
            sentences.append(f"{where}: {how}.")
        else:
            second = _best_run([run for run in runs if run is not best], compared)
            lead = value - second.between("log_likelihood", compared.last, compared.until)
            ahead = (
                f"{lead:.3f} nats ahead of {second.label}"
                if math.isfinite(lead)
                else "alone in having scores"
            )
            sentences.append(f"{where} {best.label} is best, {ahead}: {how}.")
            interval = _difference_interval(second, best, compared)
            if interval is not None and interval[1] >= 0.0:
                sentences.append("The lead is so small that it may be chance.")
    return " ".join(sentences)


def _times_text(runs: Sequence[EventRun]) -> str:
    """Which times the events have; from the furthest checkpoint."""
    metas = [run.meta for run in runs if run.meta and run.meta["position"]["last"][0] is not None]
    if not metas:
        return ""
    meta = max(metas, key=lambda meta: float(meta["position"]["last"][0]))
    last, first = float(meta["position"]["last"][0]), meta["recorder"].get("first_time")
    if first is None:
        return f", up to {_time_text(last)}"
    return f", from {_time_text(first)} to {_time_text(last)} ({_seconds_text(last - first)})"


def _notes(runs: Sequence[EventRun], compared: _Compared) -> list[str]:
    """What a reader must know before trusting the numbers."""
    unit = runs[0].config.time_unit
    scored = {run.label: run.scored_at(np.array([compared.until]))[0] for run in runs}
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
    ends = [(run.label, float(run.rows["ks"][-1]), float(run.rows["ks_critical"][-1])) for run in runs]
    known = [(label, ks, critical) for label, ks, critical in ends if math.isfinite(ks)]
    if not known:
        return ""
    shown = [f"{label} {ks:.3f}" if len(runs) > 1 else f"{ks:.3f}" for label, ks, _ in known]
    return f"At the end: {', '.join(shown)}; critical is {known[0][2]:.3f}."


def _alarm_text(runs: Sequence[EventRun]) -> str:
    counts = [int(run.rows["drift_alarms"][-1]) for run in runs]
    if not any(counts):
        return "There was no alarm."
    last = {run.label: run.meta["recorder"]["scores"]["last_alarm"] for run in runs if run.meta}
    texts = []
    for run, count in zip(runs, counts, strict=True):
        at = last.get(run.label)
        text = f"{run.label}: {_counted(count, 'alarm')}" if len(runs) > 1 else _counted(count, "alarm")
        texts.append(f"{text}, the last at event {at:,}" if count and at is not None else text)
    return "; ".join(texts) + "."


def _refused_text(runs: Sequence[EventRun]) -> str:
    run = max(runs, key=lambda run: sum(run.refused.values()))
    if not run.refused:
        return ""
    count, records = sum(run.refused.values()), int(run.meta["position"]["records"])
    return f"{count:,} of {_counted(records, 'record')} ({_percent(count / max(records, 1))})"


def _span_text(compared: _Compared, after: float) -> str:
    return f"{after + 1:,.0f} to {compared.until:,.0f}"


def _unit_text(seconds: float) -> str:
    names = {1.0: "s", 60.0: "min", 3600.0: "h", 86_400.0: "days"}
    return names.get(seconds, f"{seconds:,.10g} s")


def _per_unit_text(seconds: float) -> str:
    names = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86_400.0: "day"}
    return names.get(seconds, f"{seconds:,.10g} seconds")


def _time_text(seconds: float) -> str:
    if seconds < FIRST_DATE:
        return f"{seconds:,.3f} s"
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y %H:%M:%S} UTC"


def _seconds_text(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds:,.3g} s"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _percent(share: float, digits: int = 2) -> str:
    return "–" if math.isnan(share) else f"{100.0 * share:.{digits}f}%"


def _nats(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _plain(text: str, length: int) -> str:
    """Cut what came from a log, and spell out what could hide or reverse the words around it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:length])
    return f"{shown}…" if len(text) > length else shown or "(empty)"


# ---- tables ----


def _best_run(runs: Sequence[EventRun], compared: _Compared) -> EventRun:
    def value(run: EventRun) -> float:
        found = run.between("log_likelihood", compared.last, compared.until)
        return found if math.isfinite(found) else -math.inf

    return max(runs, key=value)


def _score_rows(runs: Sequence[EventRun], compared: _Compared) -> list[Row]:
    unit = _unit_text(runs[0].config.time_unit)
    texts: dict[str, tuple[str, Callable[[float], str]]] = {
        "log_likelihood": ("log-likelihood", _nats),
        "time_log_likelihood": ("time part", _nats),
        "type_log_loss": ("type log loss", _nats),
        "type_error": ("type error", _percent),
        "time_rmse": (f"RMSE ({unit})", number_text),
        "time_mae": (f"MAE ({unit})", number_text),
    }
    rows = []
    for after in compared.spans:
        columns: dict[str, list[str]] = {}
        for name, (title, text) in texts.items():
            values = [run.between(name, after, compared.until) for run in runs]
            columns[title] = _marked(values, text, max if name in HIGHER_IS_BETTER else min)
        ks = [_median(run.known("ks", after, compared.until)) for run in runs]
        critical = [_median(run.known("ks_critical", after, compared.until)) for run in runs]
        columns["KS"] = _marked(ks, number_text, min)
        columns["critical"] = [number_text(value) for value in critical]
        for i, run in enumerate(runs):
            which = {"events": _span_text(compared, after)}
            which |= {"model": run.label} if len(runs) > 1 else {}
            rows.append(which | {title: cells[i] for title, cells in columns.items()})
    return rows


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _marked(
    values: Sequence[float], text: Callable[[float], str], better: Callable[[list[float]], float]
) -> list[str]:
    """Return the values as text, the best of several in bold."""
    known = [value for value in values if math.isfinite(value)]
    best = better(known) if len(values) > 1 and known else None
    return [Markup("<b>{}</b>").format(text(value)) if value == best else text(value) for value in values]


def _difference_rows(runs: Sequence[EventRun], best: EventRun, compared: _Compared) -> list[Row]:
    """Return what the other models have over the best, on the same events."""
    rows = []
    for run in (run for run in runs if run is not best):
        row = {"model": f"{run.label} less {best.label}"}
        windows, _ = _paired(run, best, compared)
        interval = _difference_interval(run, best, compared)
        row["log-likelihood"] = _difference(run, best, "log_likelihood", compared)
        row["95% interval"] = "–" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
        row["windows ahead"] = f"{np.count_nonzero(windows > 0.0):,} of {len(windows):,}"
        row["time part"] = _difference(run, best, "time_log_likelihood", compared)
        row["type log loss"] = _difference(run, best, "type_log_loss", compared)
        error = run.between("type_error", compared.last, compared.until)
        error -= best.between("type_error", compared.last, compared.until)
        row["type error"] = f"{100.0 * error:+.2f} points" if math.isfinite(error) else "–"
        rows.append(row)
    return rows


def _difference(run: EventRun, best: EventRun, name: str, compared: _Compared) -> str:
    value = run.between(name, compared.last, compared.until) - best.between(
        name, compared.last, compared.until
    )
    return f"{value:+.4f}" if math.isfinite(value) else "–"


def _difference_interval(run: EventRun, best: EventRun, compared: _Compared) -> tuple[float, float] | None:
    """Return the interval of the difference in log-likelihood; None for a single window."""
    windows, weights = _paired(run, best, compared)
    if len(windows) < 2:
        return None
    low, high = bootstrap_interval(windows * weights / weights.mean(), np.mean)
    return float(low), float(high)


def _paired(run: EventRun, best: EventRun, compared: _Compared) -> tuple[Array, Array]:
    """Return what a run has over the best in every window of the span that decides, and their weights."""
    edges = compared.edges[compared.edges >= compared.last]
    differences = run.averages("log_likelihood", edges) - best.averages("log_likelihood", edges)
    known = np.isfinite(differences)
    return differences[known], np.diff(best.scored_at(edges))[known]


def _type_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return the scores by type, the most frequent first, and the rest in one row."""
    learned = [run for run in runs if len(run.by_type)]
    if not learned:
        return []
    order = _by_frequency(learned[0])
    groups = [[learned[0].names[i]] for i in order[:MOST_TYPES]]
    shown = {name for group in groups for name in group}
    rest = [name for name in learned[0].names if name not in shown]
    tables = [dict(zip(run.names, run.by_type, strict=False)) for run in learned]
    total = learned[0].by_type[:, 0].sum()
    rows = []
    for group in [*groups, rest] if rest else groups:
        sums = [sum((table.get(name, np.zeros(4)) for name in group), np.zeros(4)) for table in tables]
        count = sums[0][0]
        row = {
            "type": f"{len(group):,} others" if group is rest else group[0],
            "share": _percent(count / total),
            "scored events": f"{count:,.0f}",
        }
        means = [column / column[0] if column[0] else np.full(4, math.nan) for column in sums]
        errors = [_percent(float(mean[1]), 1) for mean in means]
        losses = _marked([float(-mean[2]) for mean in means], number_text, min)
        times = [number_text(float(mean[3])) for mean in means]
        for name, cells in (("error", errors), ("log loss", losses), ("time log-likelihood", times)):
            if len(learned) == 1:
                row[name] = cells[0]
            elif name != "time log-likelihood":
                row |= {f"{name}, {run.label}": cell for run, cell in zip(learned, cells, strict=True)}
        rows.append(row)
    return rows


def _by_frequency(run: EventRun) -> list[int]:
    return [int(i) for i in np.argsort(-run.by_type[:, 0], kind="stable") if run.by_type[i, 0]]


def _refused_rows(runs: Sequence[EventRun]) -> list[Row]:
    """Return how many records were refused for which reason, each with the first of them."""
    totals: dict[str, int] = {}
    for run in runs:
        for reason, count in run.refused.items():
            totals[reason] = max(count, totals.get(reason, 0))
    examples: dict[str, dict[str, Any]] = {}
    for run in runs:
        wanted = set(run.refused) - set(examples)
        examples |= _first_letters(run.path / "dead_letters.jsonl", wanted)
    alike = len({tuple(sorted(run.refused.items())) for run in runs if run.meta}) == 1
    rows = []
    for reason in sorted(totals, key=lambda reason: -totals[reason]):
        row = {"reason": _plain(reason, NAME_LENGTH)}
        if alike:
            row["records"] = f"{totals[reason]:,}"
        else:
            row |= {run.label: f"{run.refused.get(reason, 0):,}" for run in runs if run.meta}
        letter = examples.get(reason, {})
        where = f"{Path(str(letter['partition'])).name} {letter['position']}" if letter else "–"
        row["the first"] = _plain(where, DETAIL_LENGTH)
        row["what is wrong with it"] = _plain(str(letter.get("detail", "–")), DETAIL_LENGTH)
        record = _plain(str(letter["record"]), RECORD_LENGTH) if letter else "–"
        row["how it begins"] = Markup("<code>{}</code>").format(record)
        rows.append(row)
    return rows


def _first_letters(path: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Return the first line of each reason."""
    found: dict[str, dict[str, Any]] = {}
    for letter in _letters(path):
        if len(found) == len(wanted):
            break
        if letter["reason"] in wanted:
            found.setdefault(letter["reason"], letter)
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
            if isinstance(letter, dict) and {"reason", "partition", "position", "record"} <= letter.keys():
                yield letter


def _speed_rows(runs: Sequence[EventRun]) -> list[Row]:
    rows = []
    for run in runs:
        elapsed = float(run.rows["wall_time"][-1])
        latencies = {
            f"{name}, median row": _median(run.known(column))
            for name, column in (("p50", "latency_p50_ms"), ("p99", "latency_p99_ms"))
        }
        rows.append(
            {
                "model": run.label,
                "events": f"{run.steps[-1]:,.0f}",
                "time": duration_text(elapsed) if elapsed >= 60.0 else f"{elapsed:.2f} s",
                "events/s": number_text(run.steps[-1] / elapsed if elapsed > 0.0 else math.nan),
                **{f"{name} (ms)": number_text(value) for name, value in latencies.items()},
                "keys": f"{run.rows['keys'][-1]:,.0f}",
            }
        )
    return rows


def _configuration(runs: Sequence[EventRun]) -> tuple[Row, list[Row]]:
    """Return the options, settings and versions that all runs share, and of each run those that differ."""
    texts = [_options(run) | run.table.get("versions", {}) for run in runs]
    keys = list(dict.fromkeys(key for text in texts for key in text))
    shared = [key for key in keys if len({text.get(key) for text in texts}) == 1]
    differing = [
        {"run": str(run.path)} | {key: text.get(key, "–") for key in keys if key not in shared}
        for run, text in zip(runs, texts, strict=True)
    ]
    return {key: texts[0][key] for key in shared}, differing if len(runs) > 1 else []


@dataclass(frozen=True)
class Cell:
    """A number on a shade: percent of colour."""

    text: str
    shade: float


@dataclass(frozen=True)
class InfluenceMap:
    """Which types bring which, as the page shows it. cells: [types, types and the rest and all]."""

    label: str
    per: str  # unit of time of the base rates
    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]  # type, base rate, what it brings
    left_out: int
    average: str
    scales: list[tuple[str, Cell]]  # within which time, which share of what is brought


def _influence_map(run: EventRun) -> InfluenceMap:
    assert run.influence is not None
    base_rates, children, scales = run.influence
    weights = np.zeros(len(base_rates))
    weights[: len(run.by_type)] = run.by_type[:, 0]
    totals = children.sum(0)  # [sources, types]
    order = np.argsort(-weights, kind="stable")[:MOST_CAUSES]
    left_out = len(base_rates) - len(order)
    highest = base_rates.max()
    units = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
    per, seconds = next((item for item in units.items() if highest * item[1] >= 1.0), ("day", 86_400.0))
    darkest = totals[np.ix_(order, order)].max()
    rows = []
    for source in order:
        brought = [_cell(totals[source, child], darkest) for child in order]
        whole = float(totals[source].sum())
        if left_out:
            brought.append(_cell(whole - totals[source, order].sum(), math.inf))
        brought.append(Cell(f"{whole:.2f}", 0.0))
        rows.append((run.names[source], number_text(base_rates[source] * seconds), brought))
    weights = weights / weights.sum() if weights.sum() else np.full(len(weights), 1.0 / len(weights))
    by_scale = children.sum(2) @ weights
    shares = by_scale / by_scale.sum()
    return InfluenceMap(
        label=run.label,
        per=per,
        columns=[*(run.names[child] for child in order), *(["others"] if left_out else []), "all"],
        rows=rows,
        left_out=left_out,
        average=f"{by_scale.sum():.2f}",
        scales=[
            (_seconds_text(float(scale)), Cell(_percent(share, 0), SHADE * share / shares.max()))
            for scale, share in zip(scales, shares, strict=True)
        ],
    )


def _cell(value: float, darkest: float) -> Cell:
    """Return a number of children; the square root lets weak influences be seen."""
    return Cell(
        f"{value:.2f}" if value >= 0.005 else "", SHADE * math.sqrt(value / darkest) if value > 0 else 0.0
    )


# ---- figures ----


def _likelihood_panels(runs: Sequence[EventRun]) -> Panels:
    return {"Log-likelihood per event": partial(_draw_score, runs, "log_likelihood", "nats")}


def _part_panels(runs: Sequence[EventRun]) -> Panels:
    return {
        "Its time part": partial(_draw_score, runs, "time_log_likelihood", "nats"),
        "Type log loss (lower is better)": partial(_draw_score, runs, "type_log_loss", "nats"),
        "Type error (lower is better)": partial(_draw_score, runs, "type_error", "share of events"),
    }


def _calibration_panels(runs: Sequence[EventRun]) -> Panels:
    return {
        "Calibration of times (lower is better)": partial(_draw_calibration, runs),
        "Drift (1 raises an alarm)": partial(_draw_drift, runs),
    }


def _difference_panels(runs: Sequence[EventRun], best: EventRun, compared: _Compared) -> Panels:
    return {
        f"{run.label} less {best.label}": partial(_draw_difference, run, best, compared)
        for run in runs
        if run is not best
    }


def _speed_panels(runs: Sequence[EventRun]) -> Panels:
    panels: Panels = {}
    if max(run.rows["wall_time"][-1] for run in runs) >= 8 * SHORTEST_RATE_SECONDS:
        panels["events/s"] = partial(_draw_rates, runs)
    if any(len(run.known("latency_p99_ms")) for run in runs):
        panels["latency, ms: p99, and p50 thin"] = partial(_draw_latencies, runs)
    for title, name, drawn in (("keys", "keys", runs[:1]), ("lag, records", "lag", runs)):
        if any(len(set(run.known(name))) > 1 for run in drawn):
            panels[title] = partial(_draw_column, drawn, name)
    return panels


def _edges(run: EventRun) -> Array:
    """Return steps, from 0 on, between which the scores of a run are averaged to be drawn."""
    steps = run.steps
    if len(steps) > 2 and steps[-1] - steps[-2] < 0.5 * (steps[-2] - steps[-3]):
        steps = np.delete(steps, -2)  # a short last row is noise
    ends = np.linspace(0, len(steps), min(len(steps), MOST_PARTS) + 1).astype(int)[1:] - 1
    return np.append(0.0, steps[ends])


def _part_width(runs: Sequence[EventRun]) -> str:
    widths = np.diff(_edges(runs[0]))
    return f"{np.median(widths):,.0f}"


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
        seen.append(parts[np.isfinite(parts)])
    neutral = figures.MUTED if several else figures.COLOURS[0]
    axes.plot([], [], color=neutral, **thick, label="thick: over all events so far")
    axes.plot([], [], color=neutral, **thin, label=f"thin: over {_part_width(runs)} at a time")
    finish_axes(axes, across="events")
    axes.set_xlim(left=0)
    axes.set_ylabel(up)
    _limit(axes, np.concatenate(seen))


def _limit(axes: Axes, values: Array, keep: float = math.nan) -> None:
    """Leave out what the first events did, where it would flatten all that came after, but never `keep`."""
    if len(values) < 20:
        return
    low, high = np.percentile(values, [2.0, 98.0])
    margin = 0.35 * (high - low)
    low, high = np.fmin(low, keep), np.fmax(high, keep)
    shown_low, shown_high = axes.get_ylim()
    axes.set_ylim(max(shown_low, low - margin), min(shown_high, high + margin))


def _draw_calibration(runs: Sequence[EventRun], axes: Axes) -> None:
    steps, critical = runs[0].steps, runs[0].rows["ks_critical"]
    axes.plot(
        steps, critical, color=figures.MUTED, linewidth=1.1, linestyle="--", label="critical distance, 5%"
    )
    for run in runs:
        axes.plot(*averaged(run.steps, run.rows["ks"]), **line_style(run.place), linewidth=1.3)
    finish_axes(axes, across="events")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("KS distance")


def _draw_drift(runs: Sequence[EventRun], axes: Axes) -> None:
    for run in runs:
        style = line_style(run.place)
        axes.plot(*averaged(run.steps, run.rows["drift"]), **style, linewidth=1.1, alpha=0.85)
        raised = run.steps[np.diff(run.rows["drift_alarms"], prepend=0.0) > 0.0]
        height = np.full(len(raised), 1.05 + 0.08 * run.place)
        axes.plot(raised, height, "v", color=style["color"], markersize=5, markeredgewidth=0)
    if any(run.rows["drift_alarms"][-1] for run in runs):
        axes.plot([], [], "v", color=figures.MUTED, markersize=5, markeredgewidth=0, label="drift alarm")
    finish_axes(axes, across="events")
    axes.set_xlim(left=0)
    axes.set_ylim(0.0, 1.12 + 0.08 * (len(runs) - 1))
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.set_ylabel("drift")


def _draw_difference(run: EventRun, best: EventRun, compared: _Compared, axes: Axes) -> None:
    ends = np.linspace(0, len(compared.edges) - 1, min(len(compared.edges) - 1, MOST_PARTS) + 1).astype(int)
    edges = compared.edges[ends]
    differences = run.averages("log_likelihood", edges) - best.averages("log_likelihood", edges)
    axes.axhline(0.0, color=figures.MUTED, linewidth=1.0)
    axes.plot(edges[1:], differences, **line_style(run.place), linewidth=1.2)
    finish_axes(axes, across="events")
    axes.set_xlim(left=0)
    axes.set_ylabel("nats an event")
    _limit(axes, differences[np.isfinite(differences)], keep=0.0)


def _draw_rates(runs: Sequence[EventRun], axes: Axes) -> None:
    """Draw speeds over equal stretches of running time: rows of one poll are closed at one moment."""
    for run in runs:
        times, steps = np.append(0.0, run.rows["wall_time"]), np.append(0.0, run.steps)
        points = max(1, min(len(run.steps), MOST_RATES, int(times[-1] / SHORTEST_RATE_SECONDS)))
        at = np.linspace(0.0, times[-1], points + 1)
        passed = np.interp(at, times, steps)
        axes.plot(
            passed[1:],
            np.diff(passed) / np.maximum(np.diff(at), 1e-9),
            **line_style(run.place),
            linewidth=1.2,
        )
    finish_axes(axes, ticks=4, across="events")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _draw_latencies(runs: Sequence[EventRun], axes: Axes) -> None:
    for run in runs:
        for name, width in (("latency_p99_ms", 1.5), ("latency_p50_ms", 0.7)):
            known = np.isfinite(run.rows[name])
            points = averaged(run.steps[known], run.rows[name][known])
            axes.plot(*points, **line_style(run.place), linewidth=width)
    lowest, highest = axes.dataLim.intervaly
    if lowest > 0 and highest > 20 * lowest:
        axes.set_yscale("log")
        axes.minorticks_off()
    finish_axes(axes, ticks=4, across="events")
    axes.set_xlim(left=0)


def _draw_column(runs: Sequence[EventRun], name: str, axes: Axes) -> None:
    for run in runs:
        known = np.isfinite(run.rows[name])
        axes.plot(*averaged(run.steps[known], run.rows[name][known]), **line_style(run.place), linewidth=1.2)
    finish_axes(axes, ticks=4, across="events")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
