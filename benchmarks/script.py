"""How these scripts begin: as commands of `streamwise bench`, with options from a dataclass."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from streamwise.cli import run_command
from streamwise.commands.parsing import parse

__all__ = ["run"]

Options = TypeVar("Options")


def run(main: Callable[[Options], int | None], kind: type[Options], description: str | None) -> NoReturn:
    """Parse the script's options, run it with them, and exit; what a user can mend is one line."""
    name = f"bench {Path(sys.argv[0]).stem.removesuffix('_speed').replace('_', '-')}"
    run_command(name, lambda argv: main(parse(kind, name, argv, description)) or 0, sys.argv[1:])
