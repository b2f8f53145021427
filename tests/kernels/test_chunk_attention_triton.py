"""The Triton kernels: right under Triton's interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; it comes for Linux alone"
)


def test_they_do_what_the_reference_does():
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert " passed" in ran.stdout


COMPILE = """
import json, pathlib, re, subprocess, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from streamwise.kernels.chunk_attention import triton_kernel as kernels

sizes = {"K": 8, "LENGTH": 32, "WIDTH": 64}
numbers = ("queries", "heads", "count", "length", "width", "k", "segment", "visible_rows")
whole = {"PLACED": True, "SHORT": True, "JOINT": False}
cases = {
    "scan_kernel": {"BLOCK": 64, "K": 8, "WIDTH": 64, "SCALED": False, "MASKED": True},
    "scan_back_kernel": {"WIDTH": 64, "SCALED": False},
    "attend_kernel": {**sizes, **whole},
    "attend_back_kernel": {**sizes, **whole},
}
types = dict.fromkeys(numbers, "i32") | {"chunks": "*i64", "steps": "*i64", "visible": "*u8"}
found = {}
for name, constants in cases.items():
    kernel = getattr(kernels, name)
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        else:
            signature[argument] = types.get(argument, "*fp32")
    places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    for architecture in (80, 90):
        target = GPUTarget("cuda", architecture, 32)
        made = triton.compile(ASTSource(kernel, signature, places), target=target)
        cubin = pathlib.Path(sys.argv[1], f"{name}.{architecture}.cubin")
        cubin.write_bytes(made.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\\d+)", said))
        found[f"{name} sm_{architecture}"] = {
            "registers": int(usage["REG"]), "spilled": int(usage["STACK"]) + int(usage["LOCAL"]),
            "shared": made.metadata.shared,
        }
print(json.dumps(found))
"""


def test_the_kernels_compile_for_gpus_that_are_not_there(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    made = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    found = json.loads(made.stdout)
    assert len(found) == 8
    for name, of in found.items():
        print(name, of)
        assert 0 < of["registers"] <= 255
        assert of["spilled"] == 0
        assert of["shared"] <= 48 * 1024
