"""The native extension says truly what it is; without it streamwise still imports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

import pytest

import streamwise.kernels
from streamwise.kernels import native_info

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {  # instruction set -> what the kernel calls the flags it stands for
    "avx512": {"avx512f", "avx512vl", "avx512dq"},
    "avx2": {"avx2", "fma"},
    "neon": set(),
    "baseline": set(),
}


def test_the_extension_was_built_for_this_version():
    info = native_info()
    if info is None:
        pytest.skip("streamwise was installed without native kernels")
    assert info.version == importlib.metadata.version("streamwise")
    assert info.compiler.split()[0] in {"gcc", "clang", "msvc"}


@pytest.mark.skipif(not CPUINFO.exists(), reason="needs /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flag names are those of x86")
def test_the_instruction_set_is_the_widest_that_this_processor_has():
    info = native_info()
    if info is None:
        pytest.skip("streamwise was installed without native kernels")
    line = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    have = set(line.split(":", 1)[1].split())
    widest = next(name for name in ("avx512", "avx2", "baseline") if FLAGS[name] <= have)
    assert info.instruction_set == widest


def test_without_the_extension_there_is_no_info(monkeypatch):
    monkeypatch.setitem(sys.modules, "streamwise.kernels._native", None)
    monkeypatch.delattr(streamwise.kernels, "_native", raising=False)
    assert native_info() is None
