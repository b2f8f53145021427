"""What is installed here, what works, and the command that mends what does not: `streamwise doctor`."""

from __future__ import annotations

import functools
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Check", "print_report", "report"]

_REQUIRED = ("numpy", "torch", "gymnasium", "mujoco", "dm-control", "shimmy", "ale-py", "ray")
_OPTIONAL = {  # distribution -> the extra that installs it
    "minatar": "minatar",
    "popgym": "popgym",
    "confluent-kafka": "kafka",
    "redis": "redis",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus-client": "serve",
    "scikit-learn": "continual",
    "river": "continual",
}
_DRAW = """
import streamwise
try:
    environment = streamwise.make("InvertedPendulum-v5", render_mode="rgb_array")
    environment.reset()
    environment.render()
except Exception as error:
    print(str(error).strip().partition("\\n")[0] or type(error).__name__, flush=True)
else:
    print("drawn", flush=True)
"""
_COLOURS = {"ok": "green", "--": "yellow", "no": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the report: `ok` is False where something that should work does not; `hint` mends it.

    What is optional and missing is ok, with a hint that says how to get it.
    """

    section: str
    name: str
    value: str
    ok: bool = True
    hint: str = ""


def report() -> list[Check]:
    """Look at this installation. Nothing is raised: what is broken becomes a check that is not ok."""
    return [*_versions(), *_native_kernels(), *_processor(), *_cuda(), *_environments(), *_video()]


def print_report(checks: Sequence[Check]) -> None:
    """Print a table per section to a terminal; elsewhere one plain line per check, for grep to read."""
    console = Console()
    for section, group in itertools.groupby(checks, key=lambda check: check.section):
        table = Table(title=section, title_justify="left", title_style="bold", box=None, show_header=False)
        for check in group:
            mark = "no" if not check.ok else "--" if check.hint else "ok"
            if console.is_terminal:  # Text, because a hint such as streamwise[video] would be read as markup
                table.add_row(
                    Text(mark, _COLOURS[mark]), check.name, Text(check.value), Text(check.hint, "yellow")
                )
            else:
                hint = f" -> {check.hint}" if check.hint else ""
                print(f"{mark}  {section}: {check.name}: {check.value}{hint}")
        if console.is_terminal:
            console.print(table)


def _extra(name: str) -> str:
    return f'pip install "streamwise[{name}]"'


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Check]:
    yield Check("versions", "python", f"{platform.python_version()} on {platform.platform()}")
    for name in ("streamwise", *_REQUIRED):
        version = _version(name)
        hint = "" if version else "pip install --upgrade streamwise"
        yield Check("versions", name, version or "missing", version is not None, hint)
    for name, extra in _OPTIONAL.items():
        version = _version(name)
        if version:
            yield Check("versions", name, version)
        else:
            yield Check("versions", name, "missing (optional)", hint=_extra(extra))


def _native_kernels() -> Iterator[Check]:
    from streamwise.kernels import native_info

    section, rebuild = "native kernels", "pip install --force-reinstall --no-deps streamwise"
    info = native_info()
    if info is None:
        hint = f"{rebuild}, with a C++17 compiler on the path; until then the torch back end serves"
        yield Check(section, "extension", "not built", False, hint)
        return
    current = info.version == _version("streamwise")
    yield Check(section, "extension", f"built for {info.version}", current, "" if current else rebuild)
    yield Check(section, "instruction set", info.instruction_set)
    yield Check(section, "compiler", info.compiler)


def _processor() -> Iterator[Check]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("processor", "cores", f"{usable} usable of {os.cpu_count()}, {platform.machine()}")
    try:
        import torch
    except Exception as error:  # a broken torch fails in many ways; the report goes on with the others
        yield Check("processor", "torch", _one_line(error), False, "pip install --force-reinstall torch")
    else:
        yield Check("processor", "torch threads", str(torch.get_num_threads()))


def _cuda() -> Iterator[Check]:
    try:
        import torch

        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                yield Check("cuda", f"device {index}", torch.cuda.get_device_name(index))
        else:
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            yield Check("cuda", "devices", f"none (torch is {built}); learners run on the CPU")
    except Exception as error:
        yield Check("cuda", "devices", _one_line(error), False, "see https://pytorch.org/get-started/locally")


def _environments() -> Iterator[Check]:
    from streamwise.envs import check_families

    for family, error in check_families().items():
        name = family.lower()
        extra = _OPTIONAL.get(name)
        if error is None:
            yield Check("environments", family, "loads")
        elif extra and _version(name) is None:
            yield Check("environments", family, "missing (optional)", hint=_extra(extra))
        else:
            yield Check("environments", family, error, False, "pip install --upgrade streamwise")


def _video() -> Iterator[Check]:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError:
        yield Check("video", "mp4 writer", "missing (optional)", hint=_extra("video"))
    except RuntimeError as error:  # installed, but without a binary for this platform
        yield Check("video", "mp4 writer", _one_line(error), False, "install ffmpeg and put it on the path")
    else:
        yield Check("video", "mp4 writer", f"imageio-ffmpeg {imageio_ffmpeg.__version__}")
    pygame = _version("pygame-ce")
    drawn = f"pygame-ce {pygame}" if pygame else "missing (optional)"
    yield Check("video", "classic control", drawn, hint="" if pygame else _extra("video"))
    wrong = _drawing_error()
    hint = "for films, unset MUJOCO_GL, and install the system package libegl1 or libosmesa6"
    yield Check("video", "MuJoCo", wrong or "draws", hint=hint if wrong else "")


@functools.cache
def _drawing_error() -> str:
    """Draw a frame of MuJoCo in a process of its own, which some renderers end; return what was wrong."""
    try:
        drawn = subprocess.run(
            [sys.executable, "-c", _DRAW], check=False, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "does not draw: no frame within two minutes"
    if drawn.stdout.startswith("drawn"):
        return ""
    return f"does not draw: {drawn.stdout.strip() or f'the process ended with exit code {drawn.returncode}'}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
