"""The pages that only the site has: the API reference. `make docs` builds them all, and refuses warnings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import streamwise
from streamwise import agents, envs, streams

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = "\n".join(page.read_text() for page in sorted(DOCS.glob("api-*.md")))
MODULES = set(re.findall(r"automodule:: (\S+)", REFERENCE))
SINGLE = set(re.findall(r"auto(?:class|function):: (\S+)", REFERENCE))


def test_the_reference_has_every_name_that_users_import_from_streamwise():
    assert {f"streamwise.{name}" for name in streamwise.__all__} <= SINGLE


@pytest.mark.parametrize("package", [agents, envs, streams], ids=lambda package: package.__name__)
def test_the_reference_has_every_name_that_a_package_exports(package):
    for name in package.__all__:
        home = getattr(getattr(package, name), "__module__", package.__name__)
        if home.startswith(f"{package.__name__}."):  # the others are aliases of types, and dicts
            assert home in MODULES, f"{home}, where {name} is defined, is on no page of the reference"


def test_the_overview_lists_what_streamwise_exports():
    table = (DOCS / "api.md").read_text().split(":nosignatures:")[1].split("```")[0]
    assert sorted(table.split()) == sorted(streamwise.__all__)
