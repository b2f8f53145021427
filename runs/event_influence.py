"""What a Hawkes model found to bring what, as the report of runs on events shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamwise.runs.event_run_data import EventRun, Influence
from streamwise.runs.texts import UNITS, number_text, percent, plain, seconds_text

__all__ = ["Cell", "InfluenceMap", "influence_map"]

MOST_CAUSES = 12  # types in the map
SHADE = 55.0  # percent of colour in the darkest cell: the number on it stays readable


@dataclass(frozen=True)
class Cell:
    """A number on a shade: percent of colour."""

    text: str
    shade: float = 0.0


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


def influence_map(run: EventRun, influence: Influence) -> InfluenceMap:
    """Return what the most frequent types bring."""
    base_rates, children, scales = influence
    weights = np.zeros(len(base_rates))
    weights[: len(run.by_type)] = run.by_type[:, 0]
    order = np.argsort(-weights, kind="stable")[:MOST_CAUSES]
    left_out = len(base_rates) - len(order)
    unit = next((unit for unit in UNITS if base_rates.max() * unit >= 1.0), 86_400.0)
    totals = children.sum(0)  # [sources, types]
    darkest = totals[np.ix_(order, order)].max()
    rows = []
    for source in order:
        brought = [_cell(totals[source, child], darkest) for child in order]
        whole = float(totals[source].sum())
        if left_out:
            brought.append(_cell(whole - totals[source, order].sum(), math.inf))
        brought.append(Cell(f"{whole:.2f}"))
        rows.append((plain(run.names[source]), number_text(base_rates[source] * unit), brought))
    weights = weights / weights.sum() if weights.sum() else np.full(len(weights), 1.0 / len(weights))
    by_scale = children.sum(2) @ weights
    shares = by_scale / max(by_scale.sum(), 1e-300)
    return InfluenceMap(
        label=run.label,
        per=f"{'an' if unit == 3_600.0 else 'a'} {UNITS[unit][1]}",
        columns=[*(plain(run.names[child]) for child in order), *(["others"] if left_out else []), "all"],
        rows=rows,
        left_out=left_out,
        average=f"{by_scale.sum():.2f}",
        scales=[
            (
                seconds_text(float(scale)),
                Cell(percent(share, 0), SHADE * share / max(shares.max(), 1e-300)),
            )
            for scale, share in zip(scales, shares, strict=True)
        ],
    )


def _cell(value: float, darkest: float) -> Cell:
    """Return a number of children; the square root lets weak influences be seen."""
    shade = SHADE * math.sqrt(value / darkest) if value > 0 else 0.0
    return Cell(f"{value:.2f}" if value >= 0.005 else "", shade)
