"""Live systems on a real Ray: learners that share a memory, killed one by one or at once, lose nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import events, here, ray_cluster, start
from waiting import wait_for

from streamwise.memory.store import InProcessStore
from streamwise.runs.checkpoint import Checkpoints
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
EVENTS = 16_000  # of each partition
MORE = 800  # steps that an agent has before it when a node dies


def seen(out: Path) -> dict:
    """What the driver last wrote."""
    path = out / "status.json"
    nothing = {"process": None, "learners": [], "memories": []}
    return json.loads(path.read_text()) if path.is_file() else nothing


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


def ending_at(steps: dict[str, int], spec: str, folder: Path) -> str:
    """The same system, whose agents have other numbers of steps."""
    text, path = Path(spec).read_text(), folder / "ending.toml"
    for name, step in steps.items():
        text = re.sub(rf"(\[learners.{name}\](?s:.*?)steps =) .*", rf"\1 {step}", text, count=1)
    path.write_text(text)
    return str(path)


def alone(out: Path, steps: int) -> Path:
    """What `train` makes of the settings of ann, who reads nothing of others."""
    flags = {
        "steps": steps, "checkpoint-every": 100, "backend": "torch", "step-size-rule": "obgd",
        "label": "ann", "out": out, "memory": "hcam", "memory-span": "life", "memory-chunk-length": 2,
    }  # fmt: skip
    assert here("train", ROOM, *(f"--{name}={value}" for name, value in flags.items())) == 0
    return out


def steps_of(out: Path) -> dict[str, int]:
    """How far the agents are, by their checkpoints."""
    return {name: Checkpoints.of(out / "learners" / name).last_step() or 0 for name in ("ann", "bob")}


def test_whoever_is_killed_the_rest_goes_on_and_nothing_is_lost_or_doubled(spec, tmp_path):
    """A learner, the memory, the whole system dies; it goes on on a cluster, of which a node dies."""
    out = tmp_path / "system"
    driver = start("up", spec, "--out", str(out), "--until-end")
    process_of = {}

    def at_work(*names: str) -> bool:
        now = seen(out)
        process_of.update({one["name"]: one["process"] for one in now["learners"] + now["memories"]})
        steps = {one["name"]: one["step"] for one in now["learners"]}
        return all(steps.get(name, 0) > 150 for name in names)

    def lost(name: str) -> bool:
        return name in {event.get("learner") for event in events(out, "lost")}

    for name in ("shop/1", "ann"):  # at once: where cores are free, events are all learned in a few seconds
        wait_for(lambda name=name: at_work(name), f"{name} at work")
        os.kill(process_of[name], signal.SIGKILL)
        wait_for(lambda name=name: lost(name), f"the loss of {name}")
    wait_for(lambda: at_work("ann", "bob"), "both agents at work")
    os.kill(process_of["shared"], signal.SIGKILL)
    wait_for(lambda: events(out, "recovered"), "the memory again")
    os.kill(process_of["bob"], signal.SIGKILL)
    wait_for(lambda: len(events(out, "started")) >= 7, "all of them again")
    driver.kill()
    assert read_status(out)["state"] == "not running"

    before, lost_before = steps_of(out), len(events(out, "lost"))
    ends = {name: step + MORE for name, step in before.items()}
    ending = ending_at(ends, spec, tmp_path)
    with ray_cluster(num_cpus=0) as cluster:
        nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=4) for _ in range(2))}
        driver = start("up", ending, "--out", str(out), "--until-end", "--address", cluster.address)

        def node_of_ann() -> str | None:
            now = seen(out)
            if now["process"] != driver.process.pid or steps_of(out)["ann"] == before["ann"]:
                return None
            return next(one["node"] for one in now["learners"] if one["name"] == "ann")

        gone = wait_for(node_of_ann, "ann at work again")
        cluster.remove_node(nodes[gone], allow_graceful=False)
        output = driver.output()
    now = read_status(out)
    at_last = next(one["node"] for one in now["learners"] if one["name"] == "ann")
    assert at_last in nodes.keys() - {gone}
    assert "ann" in {event.get("learner") for event in events(out, "lost")[lost_before:]}
    assert {line for line in output.splitlines() if line.endswith(": finished")} == {
        "ann: finished", "bob: finished", "shop/0: finished", "shop/1: finished"
    }  # fmt: skip

    found, expected = state_of(out / "learners" / "ann"), state_of(alone(tmp_path / "alone", ends["ann"]))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    sealed = int(expected["memory.counters"][0])
    np.testing.assert_array_equal(chunks_of(out, "ann"), np.arange(sealed))
    bob = state_of(out / "learners" / "bob")
    np.testing.assert_array_equal(chunks_of(out, "bob"), np.arange(int(bob["memory.counters"][0])))
    assert now["state"] == "finished"
    steps = {one["name"]: one["step"] for one in now["learners"]}
    assert steps == {**ends, "shop/0": EVENTS, "shop/1": EVENTS}
    (memory,) = now["memories"]
    assert memory["chunks"] == sealed + int(bob["memory.counters"][0])
    assert memory["state"] == "closed"


def test_ctrl_c_ends_every_learner_with_a_checkpoint(spec, tmp_path, capsys):
    out, endless = tmp_path / "system", tmp_path / "tried.toml"
    endless.write_text(re.sub(r"(?m)^steps = .*$", "", Path(spec).read_text()))
    driver = start("up", str(endless), "--out", str(out))
    wait_for(lambda: any(one["step"] > 500 for one in seen(out)["learners"]), "learning")
    assert here("up", str(out)) == 2
    assert capsys.readouterr().err.startswith(
        f"streamwise up: {out} is in use by process {driver.process.pid}"
    )
    driver.ctrl_c()
    output = driver.output(130)
    assert f"go on:  streamwise up {out}" in output
    for event in events(out, "stopped"):
        name, _, worker = event["learner"].partition("/")
        run = out / "learners" / name / (f"workers-0001/{int(worker):04d}" if worker else "")
        assert (run / "checkpoints" / f"step-{event['step']:012d}").is_dir()
    assert events(out, "stopped")
    assert read_status(out)["state"] == "stopped"
