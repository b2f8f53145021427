"""A live system in which something dies every few seconds, and whether anything was lost or done twice.

Two agents on a memory probe share a memory, one learns MinAtar alone, and PromptTPP reads a Kafka topic with
two workers, on a Ray of two nodes. Learners, the memory and the driver are killed with SIGKILL, the second
node goes away and comes back, and the broker is stopped for some seconds. In the end everything is let run
until no event waits, stopped with Ctrl-C, and compared:

    events      of each key, learned, against those that were produced
    agents      that read nothing of others: their whole state, against a run of as many steps left alone
    chunks      of each writer in the shared memory, against those that it has sealed, each once

    OMP_NUM_THREADS=1 python benchmarks/live_system.py --minutes 30
    OMP_NUM_THREADS=1 python benchmarks/live_system.py --minutes 2
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from script import run
from tables import show

from streamwise.memory.store import InProcessStore
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.ingest import load_model, worker_directories
from streamwise.runs.sweep_data import read_events

sys.path.append(str(Path(__file__).parents[1] / "tests" / "streams"))

ROOM = "streamwise/DelayedRecall-v0?symbols=4&delay=10"
ALONE = {  # the settings of who reads nothing of others, as flags of `train`
    "ann": (
        ROOM,
        {"step-size-rule": "obgd", "memory": "hcam", "memory-span": "life", "memory-chunk-length": 4},
    ),
    "min": ("MinAtar/Breakout-v1", {"agent": "stream-q", "exploration-steps": 100_000, "seed": 2}),
}
PARTITIONS, WORKERS, WIDTH, CAPACITY = 4, 2, 6, 10_000_000


@dataclass(frozen=True)
class Options:
    """Let a system live while its parts are killed, and look what became of it."""

    minutes: float = 2.0
    """How long something is killed."""
    every: float = 20.0
    """Seconds between two kills."""
    rate: float = 200.0
    """Events that are produced a second."""
    seed: int = 0
    """Of what is killed when."""


def specification(broker: str) -> str:
    """Return the system, as TOML."""
    return f"""
name = "shaken"
[streams.room]
environment = "{ROOM}"
[streams.breakout]
environment = "MinAtar/Breakout-v1"
[streams.clicks]
source = "kafka://{broker}/clicks"
[memories.rooms]
chunk_length = 4
capacity = {CAPACITY}
[learners.ann]
stream = "room"
writes = "rooms"
step_size_rule = "obgd"
[learners.bob]
stream = "room"
seed = 1
reads = "rooms"
writes = "rooms"
step_size_rule = "obgd"
[learners.min]
stream = "breakout"
agent = "stream-q"
exploration_steps = 100_000
seed = 2
[learners.shop]
stream = "clicks"
model = "prompt-tpp"
workers = {WORKERS}
checkpoint_seconds = 5
idle_seconds = 1e9
"""


class System:
    """A driver that is started again when it was killed, and what it last said."""

    def __init__(self, spec: Path, out: Path, address: str) -> None:
        self.out = out
        self._command = [
            sys.executable,
            "-m",
            "streamwise",
            "up",
            str(spec),
            f"--out={out}",
            f"--address={address}",
        ]
        self._log = out.with_suffix(".log")
        self.start()

    def start(self) -> None:
        """Start a driver."""
        with self._log.open("ab") as log:
            self.driver = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def status(self) -> dict[str, Any]:
        """Return what the driver last wrote; nothing of a driver that was killed."""
        path = self.out / "status.json"
        if not path.is_file():
            return {"learners": [], "memories": []}
        status: dict[str, Any] = json.loads(path.read_text())
        return status if status["process"] == self.driver.pid else {"learners": [], "memories": []}

    def learned(self) -> int:
        """Return how many events the workers have learned."""
        return sum(one["step"] for one in self.status()["learners"] if one["name"].startswith("shop"))

    def stop(self) -> int:
        """End it with Ctrl-C; return its exit code."""
        self.driver.send_signal(signal.SIGINT)
        return self.driver.wait(timeout=300.0)


def kills(system: System, cluster: Any, nodes: list[Any], broker: Any) -> dict[str, Callable[[], bool]]:
    """Return what may be done to a system; each says whether it could be."""

    def a_process(of: str) -> bool:
        there = [one for one in system.status()[of] if one["process"] and one["state"] in ("running", "up")]
        if not there:
            return False
        try:
            os.kill(random.choice(there)["process"], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def the_driver() -> bool:
        if not system.status()["learners"]:
            return False
        system.driver.kill()
        system.driver.wait()
        system.start()
        return True

    def the_node() -> bool:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=3))
        return True

    def the_broker() -> bool:
        broker.pause()
        time.sleep(5.0)
        broker.unpause()
        return True

    return {
        "learner": lambda: a_process("learners"),
        "memory": lambda: a_process("memories"),
        "driver": the_driver,
        "node": the_node,
        "broker": the_broker,
    }


def events(rate: float, over: threading.Event, truth: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """Yield what is produced, at a steady rate, and count it by key; last, an event of each partition.

    These let out what was before them, but for the last of each worker's, and are not counted.
    """
    draw, began, number = random.Random(5), time.time(), 0
    while not over.is_set():
        if number > rate * (time.time() - began):
            time.sleep(0.01)
            continue
        key = draw.randrange(200)
        yield key % PARTITIONS, line(began + number / rate, f"t{draw.randrange(5)}", f"user {key}")
        truth[f"user {key}"] += 1
        number += 1
    for partition in range(PARTITIONS):
        yield partition, line(time.time() + 1.0 + partition, "end", f"end {partition}")


def line(at: float, kind: str, key: str) -> bytes:
    return json.dumps({"time": round(at, 3), "type": kind, "key": key}).encode()


def shake(options: Options, system: System, actions: dict[str, Callable[[], bool]]) -> Counter[str]:
    """Kill something every few seconds; return how often what."""
    draw, done = random.Random(options.seed), Counter[str]()
    wait_for(lambda: len(system.status()["learners"]) == 5 and system.learned() > 0, 300.0)
    ends = time.monotonic() + 60.0 * options.minutes
    while time.monotonic() < ends:
        time.sleep(options.every)
        if system.driver.poll() is not None:
            raise RuntimeError(f"the driver has ended by itself: {system._log.read_text()[-2_000:]}")
        for name in draw.sample(list(actions), len(actions)):
            if actions[name]():
                done[name] += 1
                print(f"{time.strftime('%X')} {name}; {system.learned():,} events learned", flush=True)
                break
    return done


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.2)


def counted(what: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in what.items())


def state_of(run: Path) -> dict[str, torch.Tensor]:
    state = dict(Checkpoints.of(run).latest().state)
    state.pop("memory.delivered", None)  # when the memory answered
    return state


def verdicts(out: Path, folder: Path, truth: Counter[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield what was looked at, what was found, and whether it is as it should be."""
    learned: Counter[str] = Counter()
    for directory in worker_directories(out / "learners" / "shop"):
        model, _ = load_model(directory)
        for key in truth:
            row = model.keys.find(key)
            learned[key] += 0 if row is None else int(row["events"])
        model.close()
    wrong = sum(learned[key] != truth[key] for key in truth)
    yield (
        "events",
        f"{learned.total():,} learned of {truth.total():,}; {wrong} keys of {len(truth)} differ",
        not wrong,
    )
    for name, (environment, flags) in ALONE.items():
        run, alone = out / "learners" / name, folder / name
        step = Checkpoints.of(run).latest().meta["step"]
        given = {**flags, "steps": step, "label": name, "out": alone}
        command = [sys.executable, "-m", "streamwise", "train", environment]
        subprocess.run([*command, *(f"--{k}={v}" for k, v in given.items())], check=True, capture_output=True)
        found, expected = state_of(run), state_of(alone)
        different = [
            key for key in expected if key not in found or not torch.equal(found[key], expected[key])
        ]
        yield (
            f"agent {name}",
            f"{step:,} steps; {len(different)} tensors of {len(expected)} differ",
            not different,
        )
    store = InProcessStore(4, WIDTH, CAPACITY, directory=out / "memories" / "rooms")
    for name in ("ann", "bob"):
        slots = np.flatnonzero(store.valid)
        mine = [slot for slot in slots if store.chunk(int(store.ids[slot])).stream == name]
        numbers = np.sort(store.column("sequence")[mine])
        sealed = int(state_of(out / "learners" / name)["memory.counters"][0])
        is_whole = np.array_equal(numbers, np.arange(sealed))
        again, gaps = (
            len(numbers) - len(np.unique(numbers)),
            sealed - np.isin(np.arange(sealed), numbers).sum(),
        )
        yield (
            f"chunks of {name}",
            f"{len(numbers):,} there, {sealed:,} sealed; {gaps} lost, {again} doubled",
            is_whole,
        )
    store.close()


def main(options: Options) -> int:
    """Shake a system, and look."""
    from brokers import kafka_broker, produce
    from ray.cluster_utils import Cluster

    random.seed(options.seed)
    truth: Counter[str] = Counter()
    over = threading.Event()
    with tempfile.TemporaryDirectory() as name, kafka_broker() as broker:
        folder = Path(name)
        (folder / "system.toml").write_text(specification(broker.address))
        broker.create_topic("clicks", PARTITIONS)
        source = events(options.rate, over, truth)
        producer = threading.Thread(target=produce, args=(broker.address, "clicks", source), daemon=True)
        producer.start()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
        try:
            nodes = [cluster.add_node(num_cpus=3)]
            system = System(folder / "system.toml", folder / "out", cluster.address)
            done = shake(options, system, kills(system, cluster, nodes, broker))
            over.set()
            producer.join()
            wait_for(lambda: system.learned() == truth.total() + PARTITIONS - WORKERS, 600.0)
            # Whoever was killed last is still coming back, and would end without a checkpoint of its end.
            wait_for(lambda: {one["state"] for one in system.status()["learners"]} == {"running"}, 300.0)
            code = system.stop()
        finally:
            cluster.shutdown()
        happened = Counter(event["event"] for event in read_events(folder / "out" / "events.jsonl"))
        show(f"Done to it: {counted(done)}. Its journal: {counted(happened)}. Exit code {code}.")
        table = Table(title=f"{options.minutes:g} minutes, something every {options.every:g} s")
        for column in ("what", "found", "as it should be"):
            table.add_column(column)
        results = list(verdicts(folder / "out", folder, truth))
        for what, found, is_right in results:
            table.add_row(what, found, "yes" if is_right else "no")
        show(table)
    return 0 if all(is_right for *_, is_right in results) else 1


if __name__ == "__main__":
    run(main, Options, Options.__doc__)
