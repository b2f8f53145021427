"""Errors that name what the user can mend."""

from __future__ import annotations

import difflib
from typing import Any

__all__ = ["DivergedError", "NonFiniteSampleError", "UsageError", "meant", "nearest"]


class UsageError(ValueError):
    """A command, setting or file that the user has to change; its text is one line that says how."""


class DivergedError(ArithmeticError):
    """A learner whose state is no longer finite. Its last good checkpoint was kept."""


class NonFiniteSampleError(ValueError):
    """A sample holds NaN or an infinity. It was refused before any state changed."""


def nearest(name: str, known: Any) -> str:
    """Return the end of an error: what was probably meant, and everything that is known."""
    return f"{meant(name, known)} Choose one of: {', '.join(sorted(known))}."


def meant(name: str, known: Any) -> str:
    """Return the question what was probably meant; nothing where nothing is near."""
    of = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(of), n=1)
    return f" Did you mean {of[close[0]]!r}?" if close else ""
