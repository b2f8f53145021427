"""streamwise: learning from streams, one sample at a time.

The names below are imported when they are first used, so that `import streamwise` stays quick.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamwise.agents import Counts, Hawkes, Poisson, PromptTPP, StreamAC, StreamQ, StreamSARSA, StreamTD
    from streamwise.envs import EnvironmentStream, make
    from streamwise.runs.checkpoint import load, save
    from streamwise.streams import CsvSeriesStream, Event, NonFiniteSampleError, Transition, UsageError
    from streamwise.streams.event_stream import EventStream
    from streamwise.streams.sources import open_source

__version__ = importlib.metadata.version("streamwise")

__all__ = [
    "Counts",
    "CsvSeriesStream",
    "EnvironmentStream",
    "Event",
    "EventStream",
    "Hawkes",
    "NonFiniteSampleError",
    "Poisson",
    "PromptTPP",
    "StreamAC",
    "StreamQ",
    "StreamSARSA",
    "StreamTD",
    "Transition",
    "UsageError",
    "load",
    "make",
    "open_source",
    "save",
]

_HOMES = {
    "EventStream": "streamwise.streams.event_stream",
    "open_source": "streamwise.streams.sources",
    **dict.fromkeys(("Counts", "Hawkes", "Poisson", "PromptTPP"), "streamwise.agents"),
    **dict.fromkeys(("StreamAC", "StreamQ", "StreamSARSA", "StreamTD"), "streamwise.agents"),
    **dict.fromkeys(("EnvironmentStream", "make"), "streamwise.envs"),
    **dict.fromkeys(("load", "save"), "streamwise.runs.checkpoint"),
    **dict.fromkeys(
        ("CsvSeriesStream", "Event", "NonFiniteSampleError", "Transition", "UsageError"), "streamwise.streams"
    ),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'streamwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
