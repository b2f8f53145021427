"""Samples, and where they come from: `Transition`, `Event`, the `Stream` protocol, sources and sinks.

Environments as streams live in `envs`; nothing here imports the rest of streamwise.
"""

from __future__ import annotations

from streamwise.streams.csv_series import CsvSeriesStream
from streamwise.streams.errors import DivergedError, NonFiniteSampleError, UsageError
from streamwise.streams.event import Event
from streamwise.streams.sample import Action, Example, Position, Stream, Transition

__all__ = [
    "Action",
    "CsvSeriesStream",
    "DivergedError",
    "Event",
    "Example",
    "NonFiniteSampleError",
    "Position",
    "Stream",
    "Transition",
    "UsageError",
]
