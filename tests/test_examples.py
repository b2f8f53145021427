"""Every program of examples/ prints the numbers that its docstring promises.

A promise is a line of the docstring, `python examples/NAME.py ARGUMENTS    # expect NUMBER ± MARGIN, ...`,
about the numbers in the last line that the program prints.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
NAMES = [path.stem for path in PROGRAMS]
NUMBER = r"-?\d[\d,]*(?:\.\d+)?"


class Promise(NamedTuple):
    """Arguments, and for each number of the last line what it is and how far it may stray."""

    arguments: list[str]
    numbers: list[tuple[float, float]]


def promises(path: Path) -> list[Promise]:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = re.findall(rf"^ *python examples/{path.name}(.*?)# expect (.*)$", text, re.MULTILINE)
    return [
        Promise(
            shlex.split(arguments),
            [
                (value(number), value(margin))
                for number, margin in re.findall(rf"({NUMBER}) ± ({NUMBER})", numbers)
            ],
        )
        for arguments, numbers in found
    ]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def keeps(path: Path, promise: Promise, folder: Path) -> None:
    """Run a program as promised, in an empty folder."""
    done = subprocess.run(
        [sys.executable, path, *promise.arguments], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    printed = [value(number) for number in re.findall(NUMBER, done.stdout.splitlines()[-1])]
    assert len(printed) == len(promise.numbers), done.stdout
    for number, (expected, margin) in zip(printed, promise.numbers, strict=True):
        assert number == pytest.approx(expected, abs=margin), done.stdout
    for picture in re.findall(r"\S+\.png", done.stdout):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_keeps_its_promises(path, tmp_path):
    for promise in promises(path):
        keeps(path, promise, tmp_path)


@pytest.mark.parametrize("path", PROGRAMS, ids=NAMES)
def test_a_program_is_short_and_its_defaults_promise_something(path):
    assert len(path.read_text().splitlines()) <= 60
    assert promises(path)[0].arguments == []
    assert all(promise.numbers for promise in promises(path))


def test_the_table_names_every_program():
    table = (EXAMPLES / "README.md").read_text()
    assert sorted(re.findall(r"\((\w+)\.py\)", table)) == NAMES
