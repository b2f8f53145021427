"""Rows of metrics of several workers as those of one run, in the order in which they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

__all__ = ["merged_rows", "read_rows"]

Row = Mapping[str, Any]

_SUMS = (
    "step", "scored", "events", "events_per_second", "lag", "dead_letters", "keys", "keys_in_memory",
    "types_overflowed", "drift_alarms",
)  # fmt: skip
_GREATEST = ("latency_p50_ms", "latency_p99_ms", "watermark_delay", "types")
_OF_THE_PAST = ("step", "scored", "events", "dead_letters", "types_overflowed", "drift_alarms")


def read_rows(path: Path, until: float = math.inf) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file up to a step; none if there is no file."""
    if not path.is_file():
        return []
    return [row for row in pq.read_table(path).to_pylist() if row["step"] <= until]


def merged_rows(past: Sequence[Row], workers: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Return the rows of a run: those of the past, then one for every row of a worker.

    past: rows of the run as it was divided before. A row says what all workers had done when it was made, by
    the last row that each had made until then. Averages are over the scored events of all; those of the last
    interval (`_window`, `_fading`) and what a model says of itself are the worker's whose row it is. Numbers
    of keys are added up, though a key that has moved may be known to two.
    """
    rows: list[dict[str, Any]] = [dict(row) for row in past]
    before = rows[-1] if rows else None
    newest: dict[int, Row] = {}
    order = sorted((row["wall_time"], i, n) for i, of in enumerate(workers) for n, row in enumerate(of))
    for _, i, n in order:
        newest[i] = workers[i][n]
        rows.append(_merged(before, list(newest.values()), workers[i][n]))
    return rows


def _merged(before: Row | None, newest: Sequence[Row], row: Row) -> dict[str, Any]:
    merged = dict(row)
    for name in _SUMS:
        known = [other[name] for other in newest if name in other and not math.isnan(other[name])]
        if before is not None and name in _OF_THE_PAST:
            known.append(before[name])
        if known:
            merged[name] = sum(known)
    for name in _GREATEST:
        known = [other[name] for other in newest if name in other and not math.isnan(other[name])]
        if known:
            merged[name] = max(known)
    parts = [*newest, *([] if before is None else [before])]
    for name in row:
        if f"{name}_window" in row:
            merged[name] = _average(name, parts)
    return merged


def _average(name: str, parts: Sequence[Row]) -> float:
    """Return the average of a score over the events of all parts."""
    power = 2.0 if name == "time_rmse" else 1.0
    known = [
        (part["scored"], part[name] ** power) for part in parts if not math.isnan(part.get(name, math.nan))
    ]
    scored = sum(count for count, _ in known)
    if not scored:
        return math.nan
    mean = float(sum(count * value for count, value in known) / scored)
    return math.sqrt(mean) if name == "time_rmse" else mean
