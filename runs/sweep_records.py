"""What the runs of sweeps come to: cells of agents and environments, and every number as rows of tables.

The statistics are in `aggregate.py`. Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from streamwise.runs import figures
from streamwise.runs.aggregate import (
    RESAMPLES,
    improvement,
    interquartile_mean,
    normalized,
    overall_interquartile_mean,
    performance_profile,
)
from streamwise.runs.report import median
from streamwise.runs.run_data import EPISODES, Array
from streamwise.runs.statistics import bootstrap_interval, curve_on_grid, running_mean
from streamwise.runs.sweep_data import SweepRun
from streamwise.streams.series import is_series

__all__ = [
    "EVERYWHERE",
    "GRID_POINTS",
    "Cell",
    "Record",
    "data_files",
    "predicts",
    "sweep_cells",
    "sweep_tables",
]

Record = dict[str, Any]  # a row of the data files, from column to number, text or None

GRID_POINTS = 100  # of a learning curve
THRESHOLDS = np.linspace(0.0, 1.0, 101)  # of a performance profile
EVERYWHERE = "all environments"

# What the data files hold: by file, its columns; of text or whole numbers where they are named here.
TEXT = "sweep run environment agent over seed status problem"
WHOLE = "seeds step steps planned_steps episodes restarts failures runs environments"
COLUMNS = {
    "curves": "environment agent step iqm low high seeds",
    "finals": "sweep run environment agent seed steps final normalized steps_per_second wall_time",
    "summary": "environment agent seeds iqm low high median mean lowest highest steps_per_second",
    "aggregate": "agent environments runs iqm low high",
    "improvement": "environment agent over probability low high environments",
    "profiles": "agent threshold fraction low high",
    "runs": "sweep run environment agent seed status steps planned_steps episodes seconds restarts failures "
    "problem",
}


@dataclass(frozen=True)
class Cell:
    """The runs of one agent on one environment."""

    environment: str
    label: str
    place: int  # of the label among all: it looks the same everywhere
    runs: list[SweepRun]  # those that count
    left_out: list[SweepRun]
    scores: Array  # final performances, normalized
    curve: figures.Band | None

    @property
    def finals(self) -> Array:
        """Final performances [runs]."""
        return np.array([run.final for run in self.runs])


def sweep_cells(runs: Sequence[SweepRun]) -> list[Cell]:
    """Return what is compared. Only runs count that came half as far as the furthest on their environment."""
    learning = [run for run in runs if run.run and not predicts(run)]
    labels = list(dict.fromkeys(run.label for run in learning))
    cells = []
    for environment in dict.fromkeys(run.environment for run in learning):
        here = [run for run in learning if run.environment == environment]
        furthest = max(run.last_step for run in here)
        counted = [run for run in here if math.isfinite(run.final) and 2 * run.last_step >= furthest]
        finals = [run.final for run in counted]
        grid = np.unique(np.ceil(np.linspace(0.0, furthest, GRID_POINTS + 1)[1:]))
        for label in dict.fromkeys(run.label for run in here):
            ours = [run for run in counted if run.label == label]
            others = [run for run in here if run.label == label and run not in ours]
            scores = normalized([run.final for run in ours], min(finals, default=0), max(finals, default=0))
            place = labels.index(label)
            curve = _curve(label, place, ours, grid)
            cells.append(Cell(environment, label, place, ours, others, scores, curve))
    return cells


def predicts(run: SweepRun) -> bool:
    """Whether it predicts a time series: it has no returns to compare."""
    return run.run is not None and is_series(str(run.run.config["environment"]))


def _curve(label: str, place: int, runs: Sequence[SweepRun], grid: Array) -> figures.Band | None:
    """Return the learning curve, where every seed has begun and none has ended; None if that is nowhere."""
    curves = []
    start, end = 0.0, math.inf
    for run in (run.run for run in runs if run.run):
        known = np.isfinite(run.returns)
        steps = run.metrics["step"][known]
        curves.append(curve_on_grid(steps, running_mean(run.returns[known], EPISODES), grid))
        start, end = max(start, steps[0]), min(end, steps[-1])
    shared = (grid >= start) & (grid <= end)
    if not curves or not shared.any():
        return None
    values = np.stack(curves)[:, shared]
    low = high = np.full(values.shape[1], np.nan)
    if len(values) > 1:
        low, high = bootstrap_interval(values, interquartile_mean, resamples=RESAMPLES)
    middle = interquartile_mean(values, axis=0)
    return figures.Band(label, place, grid[shared], middle, low, high)


# ---- the numbers ----


def sweep_tables(runs: Sequence[SweepRun], cells: Sequence[Cell]) -> dict[str, list[Record]]:
    """Return everything that is drawn or tabled, as numbers."""
    full = [cell for cell in cells if cell.runs]
    return {
        "curves": [record for cell in full for record in _curve_records(cell)],
        "finals": [record for cell in full for record in _final_records(cell)],
        "summary": [_summary_record(cell) for cell in full],
        "aggregate": _aggregate_records(full),
        "improvement": _improvement_records(full),
        "profiles": _profile_records(full),
        "runs": [_run_record(run) for run in runs],
    }


def _curve_records(cell: Cell) -> list[Record]:
    if cell.curve is None:
        return []
    points = (cell.curve.x, cell.curve.y, cell.curve.low, cell.curve.high)
    return [
        {
            "environment": cell.environment,
            "agent": cell.label,
            "step": int(step),
            "iqm": middle,
            "low": low,
            "high": high,
            "seeds": len(cell.runs),
        }
        for step, middle, low, high in zip(*points, strict=True)
    ]


def _final_records(cell: Cell) -> list[Record]:
    return [
        {
            "sweep": run.sweep,
            "run": run.name,
            "environment": cell.environment,
            "agent": cell.label,
            "seed": run.run.seed,
            "steps": run.last_step,
            "final": run.final,
            "normalized": score,
            "steps_per_second": run.run.steps_per_second,
            "wall_time": run.run.wall_time,
        }
        for run, score in zip(cell.runs, cell.scores, strict=True)
        if run.run
    ]


def _summary_record(cell: Cell) -> Record:
    finals = cell.finals
    return {
        "environment": cell.environment,
        "agent": cell.label,
        "seeds": len(finals),
        **_estimate("iqm", overall_interquartile_mean([finals])),
        "median": float(np.median(finals)),
        "mean": float(finals.mean()),
        "lowest": float(finals.min()),
        "highest": float(finals.max()),
        "steps_per_second": median([run.run.steps_per_second for run in cell.runs if run.run]),
    }


def _aggregate_records(cells: Sequence[Cell]) -> list[Record]:
    """Over the environments that every agent has scores on; none where these are fewer than two."""
    environments = common_environments(cells)
    if len(environments) < 2:
        return []
    return [
        {
            "agent": label,
            "environments": len(strata),
            "runs": sum(map(len, strata)),
            **_estimate("iqm", overall_interquartile_mean(strata)),
        }
        for label, strata in _strata(cells, environments).items()
    ]


def _improvement_records(cells: Sequence[Cell]) -> list[Record]:
    """Every pair of agents once: on each environment that both have scores on, then over these together."""
    by_label: dict[str, dict[str, Array]] = {}
    for cell in cells:
        by_label.setdefault(cell.label, {})[cell.environment] = cell.finals
    records = []
    for (label, ours), (other, theirs) in itertools.combinations(by_label.items(), 2):
        shared = [environment for environment in ours if environment in theirs]
        parts = {environment: [environment] for environment in shared}
        for name, part in (parts | {EVERYWHERE: shared} if len(shared) > 1 else parts).items():
            estimate = improvement([ours[at] for at in part], [theirs[at] for at in part])
            record = {"environment": name, "agent": label, "over": other, "environments": len(part)}
            records.append(record | _estimate("probability", estimate))
    return records


def _profile_records(cells: Sequence[Cell]) -> list[Record]:
    records = []
    for label, strata in _strata(cells, common_environments(cells)).items():
        fractions, low, high = performance_profile(strata, THRESHOLDS)
        for row in zip(THRESHOLDS, fractions, low, high, strict=True):
            names = ("threshold", "fraction", "low", "high")
            records.append({"agent": label} | dict(zip(names, map(float, row), strict=True)))
    return records


def _run_record(run: SweepRun) -> Record:
    return {
        "sweep": run.sweep,
        "run": run.name,
        "environment": run.environment,
        "agent": run.label,
        "seed": run.run.seed if run.run else "",
        "status": run.status,
        "steps": run.last_step,
        "planned_steps": run.run.planned_steps if run.run else 0,
        "episodes": len(run.run.returns) if run.run else 0,
        "seconds": run.seconds,
        "restarts": run.restarts,
        "failures": run.failures,
        "problem": "; ".join([run.damage] * bool(run.damage) + run.messages),
    }


def common_environments(cells: Sequence[Cell]) -> list[str]:
    """Return the environments that every agent has scores on: only over these is a comparison fair."""
    agents = Counter(cell.environment for cell in cells)
    labels = {cell.label for cell in cells}
    return [environment for environment, count in agents.items() if count == len(labels)]


def _strata(cells: Sequence[Cell], environments: Sequence[str]) -> dict[str, list[Array]]:
    """Return normalized scores: by label, one row for each of these environments."""
    strata: dict[str, list[Array]] = {}
    for cell in cells:
        if cell.environment in environments:
            strata.setdefault(cell.label, []).append(cell.scores)
    return strata


def _estimate(name: str, estimate: tuple[float, float, float]) -> Record:
    return dict(zip((name, "low", "high"), estimate, strict=True))


def data_files(stem: Path, name: str, records: Sequence[Record]) -> dict[Path, bytes]:
    """Return a table as CSV and as Parquet. What is not known is empty, not NaN, in both."""
    columns = COLUMNS[name].split()
    kinds = {**dict.fromkeys(TEXT.split(), pa.string()), **dict.fromkeys(WHOLE.split(), pa.int64())}
    schema = pa.schema([(column, kinds.get(column, pa.float64())) for column in columns])
    known = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in records
    ]
    table = pa.Table.from_pylist(known, schema=schema)
    as_csv, as_parquet = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(table, as_csv)
    pq.write_table(table, as_parquet)
    return {
        stem.with_name(f"{stem.name}.csv"): as_csv.getvalue(),
        stem.with_name(f"{stem.name}.parquet"): as_parquet.getvalue(),
    }
