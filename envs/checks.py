"""What the memory probes check of the options and actions that they are given."""

from __future__ import annotations

import operator
from typing import Any

from streamwise.streams import UsageError

__all__ = ["action_index", "flag", "one_of", "whole_number", "whole_numbers"]


def whole_number(option: str, value: Any, least: int, most: int | None = None) -> int:
    """Return `value`, a whole number from `least` to `most`. Raises UsageError, which names the option."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise UsageError(f"{option} is {value!r}; give a whole number, {allowed}.")
    return number


def flag(option: str, value: Any) -> bool:
    """Return `value`, true or false. Raises UsageError, which names the option."""
    if not isinstance(value, bool):
        raise UsageError(f"{option} is {value!r}; give true or false.")
    return value


def whole_numbers(option: str, values: Any, least: int, most: int | None = None) -> list[int]:
    """Return one whole number or several, of which each episode draws one, as a list.

    Raises UsageError, which names the option, for none and for one that is not from `least` to `most`.
    """
    several = values if isinstance(values, list | tuple) else [values]
    if not several:
        raise UsageError(f"{option} is an empty list; give at least one number.")
    return [whole_number(option, value, least, most) for value in several]


def one_of(option: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value`, one of the choices. Raises UsageError, which names the option."""
    if value not in choices:
        raise UsageError(f"{option} is {value!r}; give one of: {', '.join(choices)}.")
    return str(value)


def action_index(action: Any, count: int, *, over: bool) -> int:
    """Return the action, 0 to `count` - 1. over: whether the episode has ended, or none has begun.

    Raises UsageError for another action, or if there is no episode to act in.
    """
    if over:
        raise UsageError("there is no episode to act in; call reset first.")
    try:
        index = operator.index(action)
    except TypeError:
        index = -1
    if not 0 <= index < count:
        raise UsageError(f"the action is {action!r}; give a whole number, 0 to {count - 1}.")
    return index
