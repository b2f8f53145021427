"""Flags into dataclasses, and what is wrong with them into one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import tyro

if TYPE_CHECKING:
    from streamwise.runs.report import ReportFiles

__all__ = ["check_cores", "check_least", "fail", "parse", "peek", "print_files", "without_validation"]

Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], name: str, argv: list[str], description: str | None = None, default: Any = None
) -> Arguments:
    """Parse flags into a dataclass; a wrong command ends in one line and exit code 2."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed: Arguments = tyro.cli(
                kind,
                prog=f"streamwise {name}",
                args=argv,
                description=_with_examples_apart(description or kind.__doc__ or ""),
                default=default,
            )
            return parsed
    except SystemExit as stop:
        if stop.code:
            fail(2, f"streamwise {name}: {_one_line(errors.getvalue())} See `streamwise {name} --help`.")
        raise


def _with_examples_apart(text: str) -> str:
    """Put a heading above the lines that show commands, and indent them: each stays on a line of its own."""
    text = re.sub(r"^streamwise ", "    streamwise ", inspect.cleandoc(text), flags=re.MULTILINE)
    return re.sub(r"\n\n    streamwise ", "\n\nExamples:\n    streamwise ", text, count=1)


def _one_line(box: str) -> str:
    """Turn tyro's framed message into one line, without its frame, help texts and pointers.

    The frame is drawn with lines or, where the terminal's encoding asks for it, with spaces; inside it every
    line of text begins with two of them.
    """
    kept = []
    for line in box.replace("│", " ").splitlines():
        text = line[2:].rstrip()
        if text.startswith(("For full helptext", "Argument helptext")):
            break
        is_text = line.startswith("  ") and text.strip("─-")
        is_help_text = text.startswith(" " * 8)
        if is_text and not is_help_text:
            kept.append(text.strip())
    return _plainly(re.sub(r"^Error parsing \w+: ", "", " ".join(kept)).rstrip("."))


# What tyro says, and how this program says it; what is in none of these stays as it is.
_PLAINLY = (
    (r"Error parsing (\S+): invalid literal for int\(\) .*: ('.*')", r"\1 takes a whole number, not \2"),
    (r"Error parsing (\S+): could not convert string to float: ('.*')", r"\1 takes a number, not \2"),
    (r"Missing value for argument '(--\S+)'. Expected \d+ values?", r"\1 needs a value"),
    (r"Missing value for argument '(\S+)'. Expected \d+ values?", r"\1 is missing"),
    (r"invalid choice ('.*') for argument '(\S+)'. Expected one of \((.*)\)", r"\2 is \1; use one of \3"),
    (r"Missing from [^:]*: (\S+)( \S+)?(?= Unrecognized|$)", r"\1 is missing;"),
    (r"Unrecognized options: ([^-].*)", r"there is no place for '\1'"),
    (
        r"Unrecognized options: ([^\s,]+).*(?:Perhaps you meant|similar to \1): ([^\s,]+).*",
        r"there is no \1; perhaps \2?",
    ),
    (r"Unrecognized options: ([^\s,]+).*", r"there is no \1"),
)


def _plainly(text: str) -> str:
    """Say what is wrong with an option in the words of a user, not of the parser."""
    for theirs, ours in _PLAINLY:
        text = re.sub(theirs, ours, text)
    return text.rstrip("?;") + ("?" if text.endswith("?") else ".")


def peek(argv: list[str], flag: str) -> str | None:
    """Return the value of a flag that decides which other flags there are."""
    for position, argument in enumerate(argv):
        if argument == flag and position + 1 < len(argv):
            return argv[position + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def without_validation(kind: type[Arguments], **values: Any) -> Arguments:
    """Make a frozen dataclass whose environment is not known yet."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass it is
        object.__setattr__(made, field.name, values.get(field.name, field.default))
    return made


def check_least(least: int, **given: int | None) -> None:
    """Raise UsageError for a flag whose number is too small. given: by the fields' names."""
    from streamwise.streams import UsageError

    for name, value in given.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; use {least} or more.")


def check_cores(cpus: int | None, address: str | None) -> None:
    """Raise UsageError for --cpus that is too small, or beside --address."""
    from streamwise.streams import UsageError

    check_least(1, cpus=cpus)
    if address is not None and cpus is not None:
        raise UsageError("--cpus is of this machine alone; with --address, the nodes say what they have.")


def print_files(files: ReportFiles) -> None:
    """Say where a report and its picture are."""
    print(f"report: {files.html}\nplot:   {files.png}")


def fail(code: int, line: str) -> NoReturn:
    """Say what is wrong and exit."""
    print(line, file=sys.stderr)
    sys.exit(code)
