"""A display for runs on events in tests."""

from __future__ import annotations

from typing import Any

__all__ = ["Quiet"]


class Quiet:
    """A display that shows nothing."""

    def __init__(self, run: Any, note: str = "") -> None: ...
    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error: object) -> None: ...
    def update(self) -> None: ...
