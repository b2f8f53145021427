"""What a comparison found as tables to copy: Markdown with means and standard errors, and CSV by seed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamwise.runs.run_data import Array

if TYPE_CHECKING:
    from streamwise.runs.continual_report import Found

__all__ = ["as_csv", "as_markdown"]

_SHOWN = ("final", "forgetting", "worst", "online")


def as_csv(found: Sequence[Found]) -> bytes:
    """Return a row for each stream, method and seed, with every score; empty where there is none."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["stream", "method", "seed", *found[0].scores(), "microseconds", "bytes", "weights", "told"]
    )
    for each in found:
        columns = each.scores().values()
        for unit, scores in zip(each.units, zip(*columns, strict=True), strict=True):
            numbers = ["" if np.isnan(score) else repr(float(score)) for score in scores]
            costs = [unit["microseconds"], unit["bytes"], unit["trained"], unit["told"]]
            writer.writerow([each.schedule, each.method, unit["seed"], *numbers, *costs])
    return file.getvalue().encode()


def as_markdown(title: str, urls: Mapping[str, str], found: Sequence[Found], reference: str) -> str:
    """Return a table for each stream, and before them one of what all methods have at the end of each stream.

    urls: of the streams, by name. reference: the method whose cost is 1.
    """
    methods = list(dict.fromkeys(each.method for each in found))
    streams = list(dict.fromkeys(each.schedule for each in found))
    of = {(each.schedule, each.method): each for each in found}
    seeds = max(len(each.units) for each in found)
    parts = [f"# {title}", _words(seeds)]
    if len(streams) > 1:
        rows = [
            [method, *(_spelled(of.get((stream, method)), "final", seeds) for stream in streams)]
            for method in methods
        ]
        parts.append(
            "\n".join([f"## At the end, {_unit(found[0])}", "", *_table(["method", *streams], rows)])
        )
    for stream in streams:
        some = [of[stream, method] for method in methods if (stream, method) in of]
        plain = next((_microseconds(each) for each in some if each.method == reference), float("nan"))
        rows = [
            [each.method, *(_spelled(each, name, seeds) for name in _SHOWN), *_costs(each, plain)]
            for each in some
        ]
        header = ["method", *(f"{name}, {_unit(some[0])}" for name in _SHOWN), "KB", "cost", "told"]
        parts.append("\n".join([f"## {stream}", "", f"`{urls[stream]}`", "", *_table(header, rows)]))
    return "\n\n".join(parts) + "\n"


def _words(seeds: int) -> str:
    return (
        f"Means and standard errors of {seeds} seeds. Final: mean on all experiences at the end.\n"
        "Forgetting: how much less is right of an experience, at the end or when it comes back, than when\n"
        "it was left. Worst: the least that an experience has fallen to since it was learned. Online: what\n"
        "was right before it was learned. KB: all that a checkpoint holds. Cost: processor time a sample,\n"
        "of the learner alone 1. Told: what a method knows beside samples. Where fewer seeds ended, for a\n"
        "learner that diverged or is not done, a number says how many."
    )


def _unit(each: Found) -> str:
    return "%" if each.unit == "accuracy" else "nats"


def _spelled(each: Found | None, name: str, seeds: int) -> str:
    """Return the mean over seeds and its standard error; nothing where there is no such number."""
    values: Array = np.array([]) if each is None else each.scores()[name]
    if each is None or not np.isfinite(values).all():
        return ""
    scale, digits = (100.0, 1) if each.unit == "accuracy" else (1.0, 3)
    text = f"{scale * values.mean():.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"
    return text if len(values) == seeds else f"{text} ({len(values)})"


def _microseconds(each: Found) -> float:
    return float(np.median([unit["microseconds"] for unit in each.units]))


def _costs(each: Found, plain: float) -> list[str]:
    ratio = _microseconds(each) / plain
    drifts = [unit["drifts"] for unit in each.units if unit["drifts"] is not None]
    told = f"nothing; finds {np.mean(drifts):.1f} drifts" if drifts else each.units[0]["told"]
    kilobytes = max(unit["bytes"] for unit in each.units) / 1024
    # Mixed experiences are learned in one piece, so that their time an example is not comparable.
    return [f"{kilobytes:,.0f}", "" if np.isnan(ratio) or each.is_mixed else f"{ratio:.1f}", told or ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = [" --- " if name in ("method", "told") else " --: " for name in header]
    return ["|".join(["", *(f" {cell} " for cell in header), ""]), "|".join(["", *rule, ""]),
            *("|".join(["", *(f" {cell} " for cell in row), ""]) for row in rows)]  # fmt: skip
