"""`streamwise doctor` names what is there, and says how to mend what is not."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

import streamwise.envs
import streamwise.kernels
from streamwise import doctor
from streamwise.doctor import Check


@pytest.fixture
def families(monkeypatch):
    """Stand in for the environments, which have tests of their own."""
    found = {"gymnasium": None, "MinAtar": "ModuleNotFoundError: No module named 'minatar'"}
    monkeypatch.setattr(streamwise.envs, "check_families", lambda: found, raising=False)
    return found


@pytest.fixture
def bare(monkeypatch):
    """Take away everything that an extra installs."""
    version, extras = doctor._version, ("minatar", "pygame-ce")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in extras else version(name))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)


def find(checks: list[Check], section: str, name: str) -> Check:
    (check,) = [check for check in checks if (check.section, check.name) == (section, name)]
    return check


@pytest.mark.parametrize("name", ["streamwise", "numpy", "torch", "mujoco", "dm-control", "ale-py", "ray"])
def test_versions_are_those_installed(families, name):
    check = find(doctor.report(), "versions", name)
    assert check.ok
    assert check.value == importlib.metadata.version(name)


def test_what_is_optional_and_missing_is_ok_and_names_its_extra(families, bare):
    checks = doctor.report()
    for section, name, extra in [
        ("versions", "minatar", "minatar"),
        ("environments", "MinAtar", "minatar"),
        ("video", "mp4 writer", "video"),
        ("video", "classic control", "video"),
    ]:
        check = find(checks, section, name)
        assert (check.ok, check.value) == (True, "missing (optional)")
        assert check.hint == f'pip install "streamwise[{extra}]"'


def test_a_family_that_is_installed_and_fails_is_not_ok(families):
    families["gymnasium"] = "ImportError: cannot import name 'Env'"
    check = find(doctor.report(), "environments", "gymnasium")
    assert not check.ok
    assert check.value == families["gymnasium"]


def test_missing_kernels_are_told_and_do_not_stop_the_report(families, monkeypatch):
    monkeypatch.setattr(streamwise.kernels, "native_info", lambda: None)
    checks = doctor.report()
    check = find(checks, "native kernels", "extension")
    assert (check.ok, check.value) == (False, "not built")
    assert "compiler" in check.hint
    assert checks[-1].section == "video"


@pytest.mark.parametrize(
    ("renderer", "draw", "says"),
    [
        ("disabled", doctor._DRAW, "MUJOCO_GL switches rendering off"),
        ("egl", "import os; os._exit(3)", "the process ended with exit code 3"),
        ("egl", "print('drawn')", None),
    ],
)
def test_whether_mujoco_draws_is_tried_in_another_process(families, monkeypatch, renderer, draw, says):
    doctor._drawing_error.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", renderer)
    monkeypatch.setattr(doctor, "_DRAW", draw)
    check = find(doctor.report(), "video", "MuJoCo")
    doctor._drawing_error.cache_clear()
    assert check.ok
    assert check.value.startswith(f"does not draw: {says}" if says else "draws")
    assert ("libegl1" in check.hint) == bool(says)


def test_kernels_of_another_version_are_not_ok(families, monkeypatch):
    stale = streamwise.kernels.NativeInfo("0.0.1", "baseline", "gcc")
    monkeypatch.setattr(streamwise.kernels, "native_info", lambda: stale)
    assert not find(doctor.report(), "native kernels", "extension").ok


def test_everything_that_is_not_ok_says_what_mends_it(families, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(streamwise.kernels, "native_info", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    bad = [check for check in doctor.report() if not check.ok]
    assert len(bad) >= 9
    assert all(check.hint for check in bad)


def test_without_a_terminal_each_check_is_one_plain_line(capsys):
    missing = Check("video", "mp4 writer", "missing", hint='pip install "streamwise[video]"')
    doctor.print_report([missing, Check("a", "b", "c"), Check("a", "d", "e", False, "mend")])
    assert capsys.readouterr().out.splitlines() == [
        '--  video: mp4 writer: missing -> pip install "streamwise[video]"',
        "ok  a: b: c",
        "no  a: d: e -> mend",
    ]


def test_a_terminal_shows_text_in_brackets_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    doctor.print_report([Check("video", "mp4 writer", "missing", False, 'pip install "streamwise[video]"')])
    assert "streamwise[video]" in capsys.readouterr().out
