"""Time series by the names that users type: `csv:PATH`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from streamwise.streams.csv_series import CsvSeriesStream

__all__ = ["FORMS", "SERIES", "absolute", "is_series", "open_series", "path_of"]

SERIES = {"csv": CsvSeriesStream}  # scheme -> what reads it
FORMS = " or ".join(f"{scheme}:PATH" for scheme in SERIES)


def is_series(name: str) -> bool:
    """Whether `name` is a series to predict, and not an environment to act in.

    >>> is_series("csv:tides.csv"), is_series("CartPole-v1")
    (True, False)
    """
    return any(name.startswith(f"{scheme}:") for scheme in SERIES)


def path_of(name: str) -> str:
    """Return the file of a series; the name of anything else as it is."""
    return name.partition(":")[2] if is_series(name) else name


def absolute(name: str) -> str:
    """Return the name of the same series from any folder; the name of anything else as it is."""
    return f"{name.partition(':')[0]}:{os.path.abspath(path_of(name))}" if is_series(name) else name


def open_series(
    name: str, target: str, *, features: Sequence[str] | None, trace_decays: Sequence[float]
) -> CsvSeriesStream:
    """Open a series to predict `target`. Raises UsageError for what is wrong with the file or its columns."""
    return SERIES[name.partition(":")[0]](path_of(name), target, features=features, trace_decays=trace_decays)
