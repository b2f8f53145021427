"""How these scripts print: on the terminal, and as Markdown into the file that $STREAMWISE_TABLES names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["TABLES", "markdown", "show"]

TABLES = "STREAMWISE_TABLES"


def show(what: Table | str) -> None:
    """Print a table or a line, and append it as Markdown to the file that $STREAMWISE_TABLES names."""
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False, soft_wrap=isinstance(what, str)).print(what)
    if path := os.environ.get(TABLES):
        with Path(path).open("a") as file:
            file.write(f"{markdown(what) if isinstance(what, Table) else what}\n\n")


def markdown(table: Table) -> str:
    """Return a table in Markdown, under its title."""
    head = [_cell(column.header) for column in table.columns]
    rule = ["--:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*([_cell(cell) for cell in column.cells] for column in table.columns), strict=True)
    lines = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
    return f"**{table.title}**\n\n{lines}" if table.title else lines


def _cell(content: object) -> str:
    return " ".join(str(content).split()).replace("|", r"\|")
