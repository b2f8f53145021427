"""The libraries behind the names of environments: importing one when it is needed, and keeping it quiet.

What is imported here is what registers names with Gymnasium. MuJoCo and DM Control also have to be told how
to draw, if at all, before they are imported.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import gymnasium

from streamwise.streams import UsageError

__all__ = [
    "load_atari",
    "load_dm_control",
    "one_line",
    "prepare_rendering",
    "quiet_root_logger",
    "report_mujoco_warnings_by_logging",
    "require_minatar",
    "require_popgym",
    "without_precision_warnings",
]

_logger = logging.getLogger("streamwise.envs")


def load_atari() -> None:
    """Import ale_py, which registers the Atari names."""
    import ale_py

    gymnasium.register_envs(ale_py)  # importing it has registered them
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def load_dm_control() -> None:
    """Import shimmy, which registers the DM Control names; without a renderer unless one was asked for."""
    if "shimmy" in sys.modules:
        return
    chosen_here = "MUJOCO_GL" not in os.environ
    os.environ.setdefault("MUJOCO_GL", "disabled")
    try:
        with without_precision_warnings(), _renderer_explained():
            importlib.import_module("shimmy")
    finally:
        if chosen_here:  # DM Control has read it; if it stayed, Gymnasium could not draw either
            del os.environ["MUJOCO_GL"]
    report_mujoco_warnings_by_logging()


def require_minatar() -> None:
    """Raise UsageError if MinAtar is not there; it is imported when one of its games is made."""
    if importlib.util.find_spec("minatar") is None:
        raise UsageError('MinAtar is not installed; run `pip install "streamwise[minatar]"`.')


def require_popgym() -> None:
    """Import POPGym, which registers its names. Raises UsageError if it is not there."""
    try:
        importlib.import_module("popgym")
    except ImportError as error:
        raise UsageError(
            f'POPGym cannot be imported ({one_line(error)}); run `pip install "streamwise[popgym]"`.'
        ) from error


def prepare_rendering(*, by_dm_control: bool) -> None:
    """Choose how MuJoCo draws, unless the user has. Raises UsageError if it cannot draw in this process."""
    off = ("off", "disable", "disabled", "false", "0")
    if os.environ.get("MUJOCO_GL") in off:
        raise UsageError("MUJOCO_GL switches rendering off; unset it, or set it to egl, osmesa or glfw.")
    loaded = sys.modules.get("dm_control._render")
    if by_dm_control and loaded is not None and loaded.BACKEND in off:
        raise UsageError(
            "DM Control was loaded without a renderer in this process; "
            "make the environment that renders first, or set MUJOCO_GL=egl."
        )
    if "MUJOCO_GL" not in os.environ:
        # EGL draws on a GPU or in software, without a display; OSMesa in software.
        for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa"), ("glfw", "glfw")):
            if ctypes.util.find_library(library):
                os.environ["MUJOCO_GL"] = backend
                break
        else:
            raise UsageError(
                "MuJoCo cannot draw: no EGL, OSMesa or GLFW here; install libegl1 or libosmesa6."
            )


@contextlib.contextmanager
def _renderer_explained() -> Iterator[None]:
    """Raise UsageError for a MUJOCO_GL that MuJoCo cannot be imported with: it fails in many ways."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        chosen = os.environ.get("MUJOCO_GL")
        if chosen is None:
            raise
        raise UsageError(
            f"MuJoCo cannot be loaded with MUJOCO_GL={chosen} ({one_line(error)}); unset it, or set it to "
            "egl, glfw, osmesa (with the system package libosmesa6), or disabled."
        ) from error


def report_mujoco_warnings_by_logging() -> None:
    """Send MuJoCo's warnings to logging, not to standard error and a MUJOCO_LOG.TXT in the working folder.

    A callback that the user has set stays; DM Control's own, set when it is imported, does not.
    """
    with _renderer_explained():
        import mujoco

    present = mujoco.get_mju_user_warning()
    core = sys.modules.get("dm_control.mujoco.wrapper.core")
    if present is None or (core is not None and present is core._warning_callback):
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(message: str) -> None:
    # What a model file should say nowadays is for whoever wrote the file, not for who trains on it.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    _logger.log(level, "MuJoCo: %s", message.strip())


@contextlib.contextmanager
def without_precision_warnings() -> Iterator[None]:
    """Silence what Gymnasium says about casting the bounds of spaces: the cast is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*precision lowered by casting.*")
        yield


@contextlib.contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Keep MinAtar's import from configuring logging when seaborn, which only draws, is missing."""
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name."""
    said = str(error).partition(" was raised from the environment creator")[0]  # a tail that Gymnasium adds
    lines = said.strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
