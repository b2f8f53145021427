"""Errors that name what the user can mend."""

from __future__ import annotations

__all__ = ["DivergedError", "NonFiniteSampleError", "UsageError"]


class UsageError(ValueError):
    """A command, setting or file that the user has to change; its text is one line that says how."""


class DivergedError(ArithmeticError):
    """A learner whose state is no longer finite. Its last good checkpoint was kept."""


class NonFiniteSampleError(ValueError):
    """A sample holds NaN or an infinity. It was refused before any state changed."""
