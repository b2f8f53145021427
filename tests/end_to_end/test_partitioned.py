"""Runs of several workers on a real Ray: whatever is killed, every event is learned exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from processes import events, finish, here, start
from waiting import wait_for

from streamwise.runs.ingest import load_model, worker_directories
from streamwise.runs.merged_run import read_merged

sys.path.append(str(Path(__file__).parents[1] / "streams"))
from brokers import kafka_broker, produce

PARTITIONS = 4
# The reference back end is slow, so that there is time to be killed in.
SLOW = ["--backend=reference", "--checkpoint-seconds=0.1", "--interval=500", "--types=16"]


def log(count, seed=0):
    """JSON lines in the order of their times, and the partition of each, which keys do not leave."""
    generator = np.random.default_rng(seed)
    times = 1.6e9 + np.cumsum(generator.exponential(5.0, count))
    types, keys = generator.integers(8, size=count), generator.integers(200, size=count)
    lines = [
        json.dumps({"time": round(float(t), 3), "type": f"t{k}", "key": f"user {u}"})
        for t, k, u in zip(times, types, keys, strict=True)
    ]
    return lines, (keys % PARTITIONS).tolist()


def checkpoints(out: Path) -> set[str]:
    return {
        str(path) for path in out.glob("workers-*/*/checkpoints/step-*") if not path.name.endswith("-0" * 12)
    }


def begun(out: Path, workers: int) -> bool:
    return len({path.split("/checkpoints/")[0] for path in checkpoints(out)}) >= workers


def assert_every_event_was_learned_once(out: Path, lines: list[str]) -> None:
    """By the scores, by the positions, and by what the checkpoints know of every key."""
    logged = [json.loads(line) for line in lines]
    merged = read_merged(out)
    wanted = Counter(event["key"] for event in logged)
    assert merged.past.events == merged.records == len(lines)
    assert merged.past.scores["total"][0] == len(lines) - len(wanted)  # a key's first has no gap
    by_type = dict(zip(merged.past.names, np.array(merged.past.scores["by_type"])[:, 0], strict=True))
    seen, scored = set(), Counter()
    for event in logged:
        scored[event["type"]] += event["key"] in seen
        seen.add(event["key"])
    assert by_type == scored
    found: Counter[str] = Counter()
    for directory in worker_directories(out):
        model, _ = load_model(directory)
        for names, rows in model.keys.chunks(1024):
            for name, row in zip(names, rows, strict=True):  # a key that moved is known to two
                found[name] = max(found[name], int(row["events"]))
        model.close()
    assert found == wanted
    assert not merged.past.dead_letters


def test_killed_workers_and_a_killed_driver_change_nothing_that_is_learned(tmp_path):
    """Kafka; a worker dies at work, then the driver, and others go on, as many as are asked for then."""
    lines, partitions = log(12_000)
    records = list(zip(partitions, (line.encode() for line in lines), strict=True))
    out = tmp_path / "run"
    with kafka_broker() as broker:
        broker.create_topic("clicks", PARTITIONS)
        produce(broker.address, "clicks", records[:4_000])
        flags = [f"--out={out}", *SLOW, "--model=hawkes", "--idle-seconds=inf"]
        command = ["ingest", f"kafka://{broker.address}/clicks", *flags]
        driver = start(*command, "--workers=2")
        wait_for(lambda: begun(out, 2), "a checkpoint of both")
        os.kill(events(out, "at work")[0]["process"], signal.SIGKILL)
        wait_for(lambda: events(out, "restarted"), "the worker")
        before = checkpoints(out)
        produce(broker.address, "clicks", records[4_000:])
        wait_for(lambda: checkpoints(out) - before, "another checkpoint")
        driver.kill()
        output = finish(*command, "--until-end", "--workers=3")
        assert "done after 12,000 events" in output
        lost = events(out, "lost")
        assert "process died" in lost[0]["message"]
        (moved,) = events(out, "rebalanced")
        assert sorted(map(len, moved["partitions"].values())) == [1, 1, 2]
    assert_every_event_was_learned_once(out, lines)


def write_files(folder: Path, lines: list[str], partitions: list[int]) -> list[str]:
    paths = [folder / f"part{i}.jsonl" for i in range(PARTITIONS)]
    for i, path in enumerate(paths):
        mine = [line for line, partition in zip(lines, partitions, strict=True) if partition == i]
        path.write_text("\n".join(mine) + "\n")
    return [f"file:{path}" for path in paths]


def test_a_worker_that_is_lost_for_good_leaves_its_partitions_and_ctrl_c_ends_all(tmp_path, capsys):
    """Averaged meanwhile; then the last goes on alone, without Ray."""
    lines, partitions = log(8_000, seed=1)
    sources, out = write_files(tmp_path, lines, partitions), tmp_path / "run"
    flags = ["--workers=2", "--max-failures=0", "--sync=average:0.2", f"--out={out}", *SLOW]
    driver = start("ingest", *sources, "--follow", "--model=hawkes", *flags)
    wait_for(lambda: begun(out, 2) and events(out, "averaged"), "a checkpoint of both, and an average")
    os.kill(events(out, "at work")[-1]["process"], signal.SIGKILL)
    (moved,) = wait_for(lambda: events(out, "rebalanced"), "the others")
    assert list(map(len, moved["partitions"].values())) == [4]
    wait_for((out / "workers-0002" / "0000" / "run.log").is_file, "the one that is left")
    driver.ctrl_c()
    output = driver.output(130)
    assert f"go on:  streamwise resume {out}" in output
    assert events(out, "interrupted")
    alone = ["ingest", *sources, "--workers=1", "--model=hawkes", f"--out={out}", *SLOW]
    capsys.readouterr()
    assert here(*alone) == 0
    assert "done after 8,000 events" in capsys.readouterr().out
    assert_every_event_was_learned_once(out, lines)


@pytest.mark.slow
def test_workers_killed_again_and_again(tmp_path):
    lines, partitions = log(60_000, seed=2)
    sources, out = write_files(tmp_path, lines, partitions), tmp_path / "run"
    command = ["ingest", *sources, f"--out={out}", *SLOW, "--model=hawkes"]
    draw = np.random.default_rng(0)
    for attempt in range(12):
        driver = start(*command, f"--workers={2 + attempt % 3}")
        deadline = time.monotonic() + draw.uniform(10.0, 30.0)
        while time.monotonic() < deadline and driver.process.poll() is None:
            time.sleep(draw.uniform(0.5, 3.0))
            alive = {event["worker"]: event["process"] for event in events(out, "at work", "restarted")}
            for process in list(alive.values())[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        driver.kill()
    assert "done after 60,000 events" in finish(*command, "--workers=2")
    assert_every_event_was_learned_once(out, lines)
