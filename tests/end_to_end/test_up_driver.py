"""A live system on a cluster outlives its driver: learners go on, and the next driver takes them over."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import events, finish, here, start
from waiting import wait_for

from streamwise.memory.store import InProcessStore
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.storage import open_storage
from streamwise.runs.up_status import read_status

ROOM = "streamwise/DelayedRecall-v0?symbols=3&delay=6"
STEPS, EVENTS = 1_200, 10_000  # of each part of the log
COMMON = {"checkpoint_every": 100, "step_size_rule": "obgd"}
SYSTEM = f"""
[streams.room]
environment = "{ROOM}"
[streams.log]
source = ["file:LOG0", "file:LOG1"]
[memories.shared]
chunk_length = 2
shards = 2
[learners.ann]
stream = "room"
steps = {STEPS}
writes = "shared"
backend = "torch"
checkpoint_every = 100
step_size_rule = "obgd"
[learners.bob]
stream = "room"
steps = {STEPS}
seed = 1
reads = "shared"
writes = "shared"
backend = "torch"
checkpoint_every = 100
step_size_rule = "obgd"
[learners.shop]
stream = "log"
model = "hawkes"
workers = 2
sync = "average:0.3"
backend = "reference"
checkpoint_seconds = 0.2
interval = 1_000
"""


def status_of(out: Path) -> dict:
    path = out / "status.json"
    return json.loads(path.read_text()) if path.is_file() else {"learners": [], "memories": []}


def sequences(out: Path, writer: str) -> list[int]:
    """The numbers of a writer's chunks, of all shards."""
    found: list[int] = []
    for directory in sorted((out / "memories" / "shared").iterdir()):
        store = InProcessStore(2, 5, 50_000, directory=directory)
        ids = store.ids[store.valid].tolist()
        mine = [store.chunk(id).sequence for id in ids if store.chunk(id).stream == writer]
        assert not (mine and found)  # a writer has one shard
        found += mine
        store.close()
    return sorted(found)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 8})
    yield made
    made.shutdown()


def test_learners_go_on_without_a_driver_and_the_next_one_takes_them_over(cluster, tmp_path, capsys):
    out, storage, random = tmp_path / "system", tmp_path / "storage", np.random.default_rng(0)
    for part in range(2):
        lines = [
            json.dumps({"time": round(t, 3), "type": f"t{random.integers(5)}", "key": f"{part}{t % 40:.0f}"})
            for t in np.cumsum(random.exponential(1.0, EVENTS))
        ]
        (tmp_path / f"log{part}.jsonl").write_text("\n".join(lines) + "\n")
    spec = tmp_path / "tried.toml"
    spec.write_text(re.sub(r"LOG(\d)", rf"{tmp_path}/log\1.jsonl", SYSTEM))
    arguments = ("--until-end", "--address", cluster.address)
    driver = start("up", str(spec), "--out", str(out), "--storage", str(storage), *arguments)

    def at_work() -> bool:
        learners = status_of(out)["learners"]
        return bool(learners) and all(one["step"] > 150 for one in learners)

    wait_for(at_work, "all learners at work")
    before = {one["name"]: one for one in status_of(out)["learners"] + status_of(out)["memories"]}
    driver.kill()
    assert read_status(out)["state"] == "not running"
    of_ann = open_storage(storage / "ann")
    last = [name for name in of_ann.names() if name.startswith("step-")][-1]
    wait_for(lambda: [name for name in of_ann.names() if name > last], "a checkpoint without a driver")
    os.kill(before["bob"]["process"], signal.SIGKILL)  # nobody is there to start it again
    os.kill(before["shared/1"]["process"], signal.SIGKILL)

    # Neither a system beside it nor another specification is to touch its files.
    assert here("up", str(out), "--until-end") == 1
    elsewhere = capsys.readouterr().err
    assert f"take them over with `streamwise up {out} --address {cluster.address}`" in elsewhere
    spec.write_text(spec.read_text().replace("seed = 1", "seed = 2"))
    assert here("up", str(spec), "--out", str(out), *arguments) == 2
    assert "run on without a driver, by another specification" in capsys.readouterr().err
    assert here("up", str(out), "--storage", str(tmp_path / "other"), *arguments) == 2
    assert f"are in {storage}, not in {tmp_path / 'other'}" in capsys.readouterr().err

    finish("up", str(out), *arguments)
    assert len(events(out, "taken over")) == 1
    assert events(out, "taken over")[0]["processes"] == 6
    after = {one["name"]: one for one in read_status(out)["learners"]}
    assert {name: one["state"] for name, one in after.items()} == dict.fromkeys(after, "finished")
    assert {name: one["step"] for name, one in after.items()} == {
        "ann": STEPS, "bob": STEPS, "shop/0": EVENTS, "shop/1": EVENTS
    }  # fmt: skip
    assert {event["learner"] for event in events(out, "averaged")} == {"shop"}
    assert [(after[name]["lag"], *after[name]["score"]) for name in ("shop/0", "shop/1")] == [
        (0, "log_likelihood")
    ] * 2
    assert after["ann"]["process"] == before["ann"]["process"]  # it never stopped
    assert after["bob"]["process"] != before["bob"]["process"]

    alone = tmp_path / "alone"
    flags = {**COMMON, "steps": STEPS, "backend": "torch", "label": "ann", "memory": "hcam",
             "memory_span": "life", "memory_chunk_length": 2, "out": alone}  # fmt: skip
    assert here("train", ROOM, *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())) == 0
    expected, found = _state(alone / "checkpoints"), _state(storage / "ann")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert sequences(out, "ann") == list(range(int(expected["memory.counters"][0])))
    assert sequences(out, "bob") == list(range(int(_state(storage / "bob")["memory.counters"][0])))

    import ray

    ray.init(address=cluster.address, namespace="streamwise", log_to_driver=False)
    try:
        assert ray.util.list_named_actors() == []  # nothing is left when it has ended
    finally:
        ray.shutdown()


def _state(checkpoints: Path) -> dict[str, torch.Tensor]:
    state = dict(Checkpoints(open_storage(checkpoints)).latest().state)
    state.pop("memory.delivered", None)  # which depends on when the memory answered
    return state
