"""streamwise: learning from streams, one sample at a time.

The names below are imported when they are first used, so that `import streamwise` stays quick.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamwise.agents import StreamAC, StreamQ, StreamSARSA, StreamTD
    from streamwise.envs import EnvironmentStream, make
    from streamwise.runs.checkpoint import load, save
    from streamwise.streams import CsvSeriesStream, NonFiniteSampleError, Transition, UsageError

__version__ = importlib.metadata.version("streamwise")

__all__ = [
    "CsvSeriesStream",
    "EnvironmentStream",
    "NonFiniteSampleError",
    "StreamAC",
    "StreamQ",
    "StreamSARSA",
    "StreamTD",
    "Transition",
    "UsageError",
    "load",
    "make",
    "save",
]

_HOMES = {
    **dict.fromkeys(("StreamAC", "StreamQ", "StreamSARSA", "StreamTD"), "streamwise.agents"),
    **dict.fromkeys(("EnvironmentStream", "make"), "streamwise.envs"),
    **dict.fromkeys(("load", "save"), "streamwise.runs.checkpoint"),
    **dict.fromkeys(
        ("CsvSeriesStream", "NonFiniteSampleError", "Transition", "UsageError"), "streamwise.streams"
    ),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'streamwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
