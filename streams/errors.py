"""Errors that name what the user can mend."""

from __future__ import annotations

import difflib
from typing import Any

__all__ = ["DivergedError", "NonFiniteSampleError", "UsageError", "nearest"]


class UsageError(ValueError):
    """A command, setting or file that the user has to change; its text is one line that says how."""


class DivergedError(ArithmeticError):
    """A learner whose state is no longer finite. Its last good checkpoint was kept."""


class NonFiniteSampleError(ValueError):
    """A sample holds NaN or an infinity. It was refused before any state changed."""


def nearest(name: str, known: Any) -> str:
    """Return the end of an error: what was probably meant, and everything that is known."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Choose one of: {', '.join(sorted(known))}."
