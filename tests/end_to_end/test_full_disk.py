"""A disk that is full for a while: the run learns on, and nothing is missing once there is room again."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest
from killing import Case, differences, finish, start
from waiting import wait_for

from streamwise.runs.checkpoint import Checkpoints


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(ballast):
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_run_outlives_a_full_disk_and_loses_nothing(small_disk, tmp_path):
    case = Case("CartPole-v1", "stream-q", "native", 150_000, 1_000)
    finish(case.command(tmp_path / "never"), tmp_path / "never.log")
    run, log, ballast = small_disk / "run", tmp_path / "run.log", small_disk / "ballast"
    process = start(case.command(run), log)
    checkpoints = run / "checkpoints"
    wait_for(lambda: process.exitcode is not None or len(list(checkpoints.glob("step-*"))) >= 2)
    fill(ballast)
    wait_for(lambda: process.exitcode is not None or "No space left" in log.read_text())
    newest = max(path.name for path in checkpoints.glob("step-*"))
    time.sleep(1.0)
    assert max(path.name for path in checkpoints.glob("step-*")) == newest
    assert process.exitcode is None
    ballast.unlink()
    process.join(300)
    assert process.exitcode == 0, log.read_text()[-2_000:]
    assert Checkpoints.of(run).latest().meta["step"] == 150_000
    assert differences(run, tmp_path / "never") == []


def test_a_disk_that_stays_full_fails_the_run_in_one_line_with_the_last_good_checkpoint_kept(
    small_disk, tmp_path
):
    case = Case("CartPole-v1", "stream-q", "native", 60_000, 1_000)
    run, log = small_disk / "run", tmp_path / "run.log"
    process = start([*case.command(run), "--fail-on-save-error"], log)
    checkpoints = run / "checkpoints"
    wait_for(lambda: process.exitcode is not None or len(list(checkpoints.glob("step-*"))) >= 2)
    fill(small_disk / "ballast")
    process.join(120)
    assert process.exitcode == 1
    assert "could not be written (No space left on device" in log.read_text().splitlines()[-1]
    assert Checkpoints.of(run).latest().meta["step"] >= 2_000
