"""Runs on events that are killed at any instant learn every event once, whatever happens to the source."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from killing import finish, start

from streamwise.runs.checkpoint import Checkpoints

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from brokers import kafka_broker, produce, redis_server

BY_THE_POLL = {  # columns of metrics.parquet
    "wall_time", "events_per_second", "latency_p50_ms", "latency_p99_ms", "lag", "watermark_delay",
    "dead_letters", "keys", "keys_in_memory", "types", "types_overflowed",
    "gradient_norm", "clipped_share", "cache_hit_rate", "floored", "silence_log_likelihood", "drift_boosts",
    "pool_entropy", "pool_unused", "pool_mean_cosine", "pool_reused",
}  # fmt: skip
LATENESS = 2.0
SHORT, LONG = (9_000, 3, 1), (200_000, 20, 5)  # events, kills of the process, pauses of the broker
SIZES = pytest.mark.parametrize(
    "size", [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.slow)]
)


def log(count, partitions, seed=0):
    """JSON lines, a little out of order, some broken; the partition of each; how many events they are.

    The last line of every partition comes long after the others, so that all of those are let out.
    """
    generator = np.random.default_rng(seed)
    times = 1.6e9 + np.cumsum(generator.exponential(5.0, count)) - generator.exponential(1.0, count)
    times[-partitions:] = times.max() + 1000.0
    types, keys = generator.integers(8, size=count), generator.zipf(1.3, count) % 3_000
    where = (keys % partitions).tolist()
    where[-partitions:] = range(partitions)
    lines, events, newest = [], -partitions, [0.0] * partitions
    for i, partition in enumerate(where):
        time_ = round(float(times[i]), 3)
        broken = i % 101 == 100 and i < count - partitions
        lines.append(
            b"{broken %d" % i
            if broken
            else json.dumps({"time": time_, "type": f"t{types[i]}", "key": f"user {keys[i]}"}).encode()
        )
        events += not broken and time_ >= newest[partition] - LATENESS
        newest[partition] = newest[partition] if broken else max(newest[partition], time_)
    return lines, where, events


# The reference back end is slow, so that there is time to be killed in; three thousand keys do not fit.
MODELS = {
    "hawkes": {"backend": "reference"},
    "prompt-tpp": {"hot-keys": 64, "window": 16, "reuse-after": 500.0, "drift-boost": 2.0},
}


def command(source, directory, events, *more, model="hawkes"):
    flags = {
        "out": directory, "events": events, "model": model, "types": 16, "keys-in-memory": 1024,
        "lateness": LATENESS, "idle-seconds": 1e9, "interval": 500, "checkpoint-seconds": 0.1,
        **MODELS[model],
    }  # fmt: skip
    return ["ingest", source, *(f"--{name}={value}" for name, value in flags.items()), *more]


def kill_and_go_on(arguments, directory, events, kills, seconds, seed=1):
    """Kill a command `kills` times, and start it again. Half of the kills wait for a checkpoint first.

    Each comes at random within its part of the run: of `seconds`, what the run took undisturbed, and of its
    events, for a machine that has become faster would be at the end before.
    """
    draw, output, made = random.Random(seed), directory.with_suffix(".log"), 0
    while made < kills:
        process = start(arguments, output)
        if made % 2 == 0:
            before = newest(directory)
            while process.exitcode is None and newest(directory) == before:
                time.sleep(0.002)
        wait = draw.uniform(0.0, 0.8 * seconds / kills) / (10.0 if made % 2 == 0 else 1.0)
        until, last = time.monotonic() + wait, int(0.8 * events * (made + 1) / kills)
        while time.monotonic() < until and newest(directory) < f"step-{last:012d}":
            process.join(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, output.read_text()[-2_000:]
        made += 1
    finish(arguments, output, timeout_seconds=600.0)
    return output.read_text().count("goes on after")


def newest(directory):
    return max((path.name for path in directory.glob("checkpoints/step-*")), default="")


def outcome(directory: Path) -> dict[str, Any]:
    """All that a finished run has learned and said, but for what the clock and the polls have a part in."""
    checkpoint = Checkpoints.of(directory).latest()
    state = {name: tensor for name, tensor in checkpoint.state.items() if name != "keys.counters"}
    rows = [
        {name: value for name, value in row.items() if name not in BY_THE_POLL}
        for row in pq.read_table(directory / "metrics.parquet").to_pylist()
    ]
    letters = [json.loads(line) for line in (directory / "dead_letters.jsonl").read_text().splitlines()]
    return {
        **state,
        "scores": checkpoint.meta["recorder"]["scores"],
        "rows": rows,
        "letters": sorted((x["reason"], x["detail"], x["record"]) for x in letters),
        "keys": int(checkpoint.state["keys.counters"][0]),
        "events": checkpoint.meta["position"]["released"],
    }


def assert_same(killed: Path, never: Path, events: int) -> None:
    one, other = outcome(killed), outcome(never)
    assert one["events"] == other["events"] == events
    assert len(one["letters"]) > events // 200
    differing = [
        name
        for name, value in one.items()
        if not (
            torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else same(value, other[name])
        )
    ]
    assert differing == []


def same(one, other):
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # where NaN equals itself


def check(source, events, directory, size, broker=None, flags=(), never=None, model="hawkes"):
    """Run undisturbed, and killed while the broker is paused now and then; compare."""
    _, kills, pauses = size
    undisturbed = command(never or source, directory / "never", events, model=model)
    seconds = finish(undisturbed, directory / "never.log")
    done = threading.Event()
    pausing = threading.Thread(target=pause_now_and_then, args=(broker, pauses, seconds, done))
    if broker is not None:
        pausing.start()
    try:
        killed = command(source, directory / "killed", events, *flags, model=model)
        resumed = kill_and_go_on(killed, directory / "killed", events, kills, seconds)
    finally:
        done.set()
        if broker is not None:
            pausing.join()
    assert resumed >= kills // 2
    assert_same(directory / "killed", directory / "never", events)


def pause_now_and_then(broker, pauses, seconds, done):
    draw = random.Random(0)
    for _ in range(pauses):
        if done.wait(draw.uniform(0.2, 1.0) * seconds / pauses):
            return
        broker.pause()
        done.wait(1.0)
        broker.unpause()


@SIZES
@pytest.mark.parametrize("model", MODELS)
def test_kafka(tmp_path, size, model):
    lines, partitions, events = log(size[0], 4)
    with kafka_broker() as broker:
        broker.create_topic("clicks", 4)
        produce(broker.address, "clicks", zip(partitions, lines, strict=True))
        check(f"kafka://{broker.address}/clicks", events, tmp_path, size, broker, model=model)


@SIZES
def test_redis(tmp_path, size):
    import redis

    lines, _, events = log(size[0], 1)
    with redis_server() as server:
        pipeline = redis.Redis(port=server.port).pipeline(transaction=False)
        for line in lines:
            pipeline.xadd("clicks", {"json": line})
        pipeline.execute()
        check(f"redis://{server.address}/clicks?json=json", events, tmp_path, size, server)


@SIZES
def test_a_followed_file_under_rotation(tmp_path, size):
    lines, _, events = log(size[0], 1)
    for name in ("still", "moving"):
        (tmp_path / name).mkdir()
    still, moving = (tmp_path / name / "log.jsonl" for name in ("still", "moving"))
    still.write_bytes(b"".join(line + b"\n" for line in lines))
    began = lambda: newest(tmp_path / "killed")  # noqa: E731  # before that no position knows the first file
    writer = threading.Thread(target=write_and_rotate, args=(moving, lines, size[0] / 4_000, 5, began))
    writer.start()
    check(f"file:{moving}", events, tmp_path, size, flags=["--follow"], never=f"file:{still}")
    writer.join()
    assert len(list(moving.parent.iterdir())) == 6


def write_and_rotate(path: Path, lines: list[bytes], seconds: float, rotations: int, began: Any) -> None:
    """Append lines in small pieces, cut anywhere, renaming the file away now and then."""
    draw, text = random.Random(2), b"".join(line + b"\n" for line in lines)
    ends = [text.index(b"\n", len(text) * (i + 1) // (rotations + 1)) + 1 for i in range(rotations)]
    pieces, at = 60 * (rotations + 1), 0
    for rotation, end in enumerate([*ends, len(text)]):
        with path.open("ab", buffering=0) as file:
            while at < end:
                size = min(draw.randint(1, 2 * len(text) // pieces), end - at)
                file.write(text[at : at + size])
                at += size
                time.sleep(seconds / pieces)
                while not began():
                    time.sleep(0.01)
        if rotation < rotations:
            os.rename(path, path.with_name(f"log.jsonl.{rotations - rotation}"))
