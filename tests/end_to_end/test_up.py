"""Live systems on a real Ray: learners that share a memory, killed one by one or at once, lose nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from streamwise.cli import main
from streamwise.memory.store import InProcessStore
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.sweep_data import read_events
from streamwise.runs.up_status import read_status

ROOM = "streamwise/DelayedRecall-v0?symbols=3&delay=6"
SYSTEM = f"""
name = "tried"

[streams.room]
environment = "{ROOM}"
[streams.log]
source = ["file:EVENTS0", "file:EVENTS1"]

[memories.shared]
chunk_length = 2

[learners.ann]
stream = "room"
steps = 1_200
checkpoint_every = 100
backend = "torch"
writes = "shared"
step_size_rule = "obgd"

[learners.bob]
stream = "room"
seed = 1
steps = 1_500
checkpoint_every = 100
backend = "torch"
reads = "shared"
writes = "shared"
memory_guests = 32
step_size_rule = "obgd"

[learners.shop]
stream = "log"
model = "hawkes"
workers = 2
backend = "reference"
checkpoint_seconds = 0.2
interval = 500
"""
EVENTS = 8_000  # of each partition


def start(*arguments: str) -> subprocess.Popen:
    """Start a command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "streamwise", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(*arguments: str, code: int = 0) -> str:
    process = start(*arguments)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def seen(out: Path) -> dict:
    """What the driver last wrote."""
    path = out / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {"learners": [], "memories": []}


def wait_for(condition, what: str, seconds: float = 240.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come in {seconds:g} s")


def events(out: Path, *names: str) -> list[dict]:
    return [event for event in read_events(out / "events.jsonl") if event["event"] in names]


def state_of(run: Path) -> dict[str, torch.Tensor]:
    state = dict(Checkpoints.of(run).latest().state)
    state.pop("memory.delivered", None)  # which depends on when the memory answered
    return state


def chunks_of(out: Path, writer: str) -> np.ndarray:
    """The sequence numbers of a writer's chunks in the shared memory, in order."""
    with_files = InProcessStore(2, 5, 100_000, directory=out / "memories" / "shared")
    try:
        slots = np.flatnonzero(with_files.valid)
        mine = [slot for slot in slots if with_files.chunk(int(with_files.ids[slot])).stream == writer]
        return np.sort(with_files.column("sequence")[mine])
    finally:
        with_files.close()


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("spec")
    random = np.random.default_rng(0)
    for part in range(2):
        lines = [
            json.dumps({"time": round(t, 3), "type": f"t{random.integers(5)}", "key": f"{part}{t % 40:.0f}"})
            for t in np.cumsum(random.exponential(1.0, EVENTS))
        ]
        (folder / f"log{part}.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "system.toml"
    path.write_text(re.sub(r"EVENTS(\d)", rf"{folder}/log\1.jsonl", SYSTEM))
    return str(path)


@pytest.fixture(scope="module")
def ann_alone(tmp_path_factory) -> Path:
    """What `train` makes of the settings of ann, who reads nothing of others."""
    out = tmp_path_factory.mktemp("alone") / "ann"
    flags = {
        "steps": 1_200, "checkpoint-every": 100, "backend": "torch", "step-size-rule": "obgd",
        "label": "ann", "out": out, "memory": "hcam", "memory-span": "life", "memory-chunk-length": 2,
    }  # fmt: skip
    finish("train", ROOM, *(f"--{name}={value}" for name, value in flags.items()))
    return out


def test_whoever_is_killed_the_rest_goes_on_and_nothing_is_lost_or_doubled(spec, ann_alone, tmp_path):
    """A learner, then the memory, then the whole system dies; the same command goes on."""
    out = tmp_path / "system"
    driver = start("up", spec, "--out", str(out), "--until-end")
    process_of = {}

    def at_work() -> bool:
        now = seen(out)
        process_of.update({one["name"]: one["process"] for one in now["learners"] + now["memories"]})
        return bool(process_of) and all(one["step"] > 150 for one in now["learners"])

    wait_for(at_work, "all learners at work")
    os.kill(process_of["ann"], signal.SIGKILL)
    os.kill(process_of["shop/1"], signal.SIGKILL)
    wait_for(
        lambda: {"ann", "shop/1"} <= {event.get("learner") for event in events(out, "lost")}, "their loss"
    )
    os.kill(process_of["shared"], signal.SIGKILL)
    wait_for(lambda: events(out, "recovered"), "the memory again")
    os.kill(process_of["bob"], signal.SIGKILL)
    wait_for(lambda: len(events(out, "started")) >= 7, "all of them again")
    driver.kill()
    driver.wait()
    assert read_status(out)["state"] == "not running"
    output = finish("up", str(out), "--until-end")
    assert {line for line in output.splitlines() if line.endswith(": finished")} == {
        "ann: finished", "bob: finished", "shop/0: finished", "shop/1: finished"
    }  # fmt: skip

    found, expected = state_of(out / "learners" / "ann"), state_of(ann_alone)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    sealed = int(expected["memory.counters"][0])
    np.testing.assert_array_equal(chunks_of(out, "ann"), np.arange(sealed))
    bob = state_of(out / "learners" / "bob")
    np.testing.assert_array_equal(chunks_of(out, "bob"), np.arange(int(bob["memory.counters"][0])))
    now = read_status(out)
    assert now["state"] == "finished"
    steps = {one["name"]: one["step"] for one in now["learners"]}
    assert steps == {"ann": 1_200, "bob": 1_500, "shop/0": EVENTS, "shop/1": EVENTS}
    (memory,) = now["memories"]
    assert memory["chunks"] == sealed + int(bob["memory.counters"][0])


def test_ctrl_c_ends_every_learner_with_a_checkpoint(spec, tmp_path, capsys):
    out, endless = tmp_path / "system", tmp_path / "tried.toml"
    endless.write_text(re.sub(r"(?m)^steps = .*$", "", Path(spec).read_text()))
    driver = start("up", str(endless), "--out", str(out))
    wait_for(lambda: any(one["step"] > 500 for one in seen(out)["learners"]), "learning")
    with pytest.raises(SystemExit):
        main(["up", str(out)])
    assert capsys.readouterr().err.startswith(f"streamwise up: {out} is in use by process {driver.pid}")
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 130, output
    assert f"go on:  streamwise up {out}" in output
    assert "Traceback" not in output
    for event in events(out, "stopped"):
        name, _, worker = event["learner"].partition("/")
        run = out / "learners" / name / (f"workers-0001/{int(worker):04d}" if worker else "")
        assert (run / "checkpoints" / f"step-{event['step']:012d}").is_dir()
    assert events(out, "stopped")
    assert read_status(out)["state"] == "stopped"
