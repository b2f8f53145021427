"""A TOML file that says what to run: where it is found, and how its errors begin."""

from __future__ import annotations

import re
from pathlib import Path

from streamwise.runs.config import read_toml
from streamwise.streams import UsageError
from streamwise.streams.errors import nearest

__all__ = ["SpecReader", "find_spec", "spec_names"]


def spec_names(folder: Path) -> list[str]:
    """Return the names of the specifications in a folder of streamwise's own."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find_spec(source: str, what: str, folder: Path) -> Path:
    """Return the file that is meant: by its path, by the directory of a `what`, or by a name in `folder`.

    A folder that is none does not stand before a name. Raises UsageError for one that is not there.
    """
    path = Path(source)
    if (path / f"{what}.toml").is_file() or (path.is_dir() and source not in spec_names(folder)):
        path = path / f"{what}.toml"
    elif not source.endswith(".toml"):
        path = folder / f"{source}.toml"
    if path.is_file():
        return path
    if path.parent == folder:
        raise UsageError(
            f"{source!r} is neither a .toml file, nor the directory of a {what}, nor the name of one."
            f"{nearest(source, spec_names(folder))}"
        )
    raise UsageError(f"there is no {path}.")


class SpecReader:
    """Reads one file, whose `name` is the file's unless it gives another; knows its path, for errors.

    Raises UsageError for what is no TOML, or has a name that no folder can have.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.tables = path, read_toml(path)
        name = self.tables.setdefault("name", path.stem)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]*", name):
            raise self.error(f"name = {name!r} is no name of a folder; use letters, digits, '.', '_', '-'")

    def error(self, text: str) -> UsageError:
        """Return an error of one line that begins with the file."""
        return UsageError(f"{self.path}: {' '.join(text.split()).rstrip('.')}.")
