"""Errors that name what the user can mend."""

from __future__ import annotations

import difflib
from typing import Any

__all__ = ["DivergedError", "NonFiniteSampleError", "UsageError", "meant", "nearest"]


_SHORT = 12  # names, which a line has room for beside a guess


class UsageError(ValueError):
    """A command, setting or file that the user has to change; its text is one line that says how."""


class DivergedError(ArithmeticError):
    """A learner whose state is no longer finite. Its last good checkpoint was kept."""


class NonFiniteSampleError(ValueError):
    """A sample holds NaN or an infinity. It was refused before any state changed."""


def nearest(name: str, known: Any) -> str:
    """Return the end of an error: what was probably meant, and everything that is known.

    Where something is near, a long list beside it would only hide it.

    >>> nearest("blu", ["red", "blue"])
    " Did you mean 'blue'? Choose one of: blue, red."
    >>> nearest("step_siz", ["step_size", *"abcdefghijkl"])
    " Did you mean 'step_size'?"
    """
    probably = meant(name, known)
    if probably and len(known) > _SHORT:
        return probably
    return f"{probably} Choose one of: {', '.join(sorted(known))}."


def meant(name: str, known: Any) -> str:
    """Return the question what was probably meant; nothing where nothing is near."""
    of = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), list(of), n=1)
    return f" Did you mean {of[close[0]]!r}?" if close else ""
