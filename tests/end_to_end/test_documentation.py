"""What the README and the manual show works as shown."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from streamwise.agents import AGENTS
from streamwise.cli import COMMANDS
from streamwise.runs.config import preset_names
from streamwise.runs.sweep_spec import load_sweep, sweep_names
from streamwise.runs.up_spec import load_system, system_names, wiring

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {  # the Python blocks of a page, in order: a later one goes on from those before it
    page.name: "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    for page in PAGES
    if page.name != "CONTRIBUTING.md"
}


@pytest.mark.parametrize("page", [name for name, program in PROGRAMS.items() if program])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("page.py").write_text(PROGRAMS[page].replace("20_000", "200"))
    runpy.run_path("page.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_the_readme_names_every_agent_preset_and_command():
    text = (ROOT / "README.md").read_text()
    for name in [*AGENTS, *preset_names()]:
        assert f"`{name}`" in text or f"`--preset {name}`" in text
    for name in COMMANDS:
        assert f"streamwise {name}" in text
    commands = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    shown = set(re.findall(r"^streamwise (\w+)", commands, re.MULTILINE))
    assert shown <= set(COMMANDS)


def test_the_specification_that_the_manual_shows_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL)
    (tmp_path / "spec.toml").write_text(text)
    spec = load_sweep(str(tmp_path / "spec.toml"))
    assert (spec.name, len(spec.runs)) == ("comparison", 2 * 2 * 2 * 5 + 1)
    assert spec.resources.custom == {"big": 1.0}


def test_the_system_that_the_manual_shows_is_one(tmp_path):
    text = (ROOT / "docs" / "systems.md").read_text()
    (shown,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "system.toml").write_text(shown)
    assert "\n".join(wiring(load_system(str(tmp_path / "system.toml")))) in text
    assert all(f"streamwise up {name}" in text for name in system_names())


def test_the_manual_names_every_sweep_that_comes_along():
    text = (ROOT / "docs" / "sweeps.md").read_text()
    assert all(f"`{name}`" in text for name in sweep_names())
