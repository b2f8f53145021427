from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import streamwise.agents
import streamwise.streams

MODULES = [
    module.name
    for package in (streamwise.agents, streamwise.streams)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_print_what_they_promise(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(bool(test.examples) for test in found) >= 6
