"""What holds for the package as a whole: who imports whom, what is never called, and what an import costs."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {  # folder -> the other folders it may import; imports point downwards only
    "kernels": set(),
    "memory": {"kernels"},
    "streams": set(),
    "envs": {"streams"},
    "agents": {"kernels", "memory", "streams"},
    "runs": {"kernels", "memory", "streams", "envs", "agents"},
    "streamwise": {"kernels", "memory", "streams", "envs", "agents", "runs"},
}
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
HEAVY = [
    "torch",
    "gymnasium",
    "mujoco",
    "dm_control",
    "ale_py",
    "matplotlib",
    "scipy",
    "pyarrow",
    "tensorboard",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "streamwise" else ("streamwise", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the absolute name of every module that a file imports, at its top or within a function."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from streamwise import runs` imports streamwise.runs, if there is such a module.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def folder_of(module: str) -> str | None:
    """Return the folder that a module of ours lives in, None for another's."""
    first, *rest = module.split(".")
    if first != "streamwise":
        return None
    return rest[0] if rest and rest[0] in MAY_IMPORT else "streamwise"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_downwards_only(path):
    folder = path.relative_to(ROOT).parts[0]
    # The version is everyone's to ask for, though it lives in the face.
    modules = [module for module in imported_modules(path) if module != "streamwise.__version__"]
    assert {folder_of(module) for module in modules} - {None, folder} <= MAY_IMPORT[folder]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_that_is_loaded_can_carry_code(path):
    """Neither pickle nor anything built on it, and no text is run as a program."""
    unpicklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not {module.split(".")[0] for module in imported_modules(path)} & unpicklers
    called = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    }
    assert not called & {"eval", "exec", "torch.load", "torch.save"}
    assert not [name for name in called if name.endswith("read_pickle")]


def test_what_the_type_checker_is_to_overlook_has_a_reason():
    folders = [*MAY_IMPORT, "benchmarks", "examples", "tests"]
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"# type: [i]gnore(?!\[[a-z, -]+\]  # \w)", line)
    ]
    assert lines == []


def test_every_folder_is_in_the_wheel_under_its_name():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    names = {
        folder: "streamwise" if folder == "streamwise" else f"streamwise/{folder}" for folder in MAY_IMPORT
    }
    assert build["wheel"]["packages"] == {name: folder for folder, name in names.items()}


def test_every_direct_dependency_is_pinned_for_development():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    names = {requirement_name(line) for line in wanted} - {"streamwise"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {requirement_name(line) for line in lines if "==" in line}
    assert names == pinned


def requirement_name(line: str) -> str:
    for stop in "[<>=!~; ":
        line = line.split(stop, maxsplit=1)[0]
    return line.lower()


def fresh(code: str) -> str:
    """Run code in an interpreter of its own, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_streamwise_loads_nothing_heavy():
    code = f"import sys, streamwise, streamwise.cli; print([name for name in {HEAVY} if name in sys.modules])"
    assert fresh(code) == "[]"


def test_learners_start_without_the_compiler_of_torch():
    """It takes two seconds, which every command and every worker would wait."""
    modules = "streamwise.runs.train, streamwise.runs.ingest, streamwise.runs.tasks, streamwise.runs.sweep"
    assert fresh(f"import sys, {modules}; print('torch._dynamo' in sys.modules)") == "False"


def test_every_public_name_is_there_when_asked_for():
    code = "import streamwise; [getattr(streamwise, name) for name in streamwise.__all__]; print('all')"
    assert fresh(code) == "all"


def test_the_version_is_that_of_the_distribution():
    import streamwise

    assert streamwise.__version__ == importlib.metadata.version("streamwise")
    written = [path for path in FILES if f'"{streamwise.__version__}"' in path.read_text()]
    assert not written  # it stands in pyproject.toml alone


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_examples_in_docstrings_print_what_they_say(path):
    if path.name == "__main__.py":
        pytest.skip("importing it runs the command line")
    results = doctest.testmod(importlib.import_module(module_name(path)))
    assert results.failed == 0
