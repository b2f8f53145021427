"""Waiting for what other processes and threads do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["wait_for"]


def wait_for(condition: Callable[[], Any], what: str = "what was awaited", seconds: float = 240.0) -> Any:
    """Wait until a condition holds, and return its value. Raises TimeoutError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {seconds:g} s")
        time.sleep(0.01)
    return found
