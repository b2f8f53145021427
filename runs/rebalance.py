"""Another arrangement of a run's partitions: who reads what from now on, and with what knowledge.

Done while no worker runs, from their newest checkpoints. Every partition goes on where it was, with the
events that wait. A worker's model is made of those whose partitions it gets: counts by the share of the
records that it gets of each, so that none is counted twice or lost, and weights by their mean, each as heavy
as the events that it has learned of them (agents/event_merge.py). It gets the states of all keys that these
know, for nobody knows which partition a key belongs to; where two know one, the newer holds.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamwise.agents import EventModel, event_model_class
from streamwise.agents.event_merge import Part, merge
from streamwise.runs.checkpoint import Checkpoint, Checkpoints, describe
from streamwise.runs.ingest_config import IngestConfig, save_ingest
from streamwise.runs.lock import InUseError, locked
from streamwise.runs.merged_rows import merged_rows, read_rows
from streamwise.runs.partitions import (
    Arrangement,
    Past,
    assigned,
    generation_directory,
    learned_before,
    load_arrangement,
    remove_others,
    save_arrangement,
    worker_config,
    worker_directory,
)
from streamwise.runs.prequential import Prequential, merged_scores
from streamwise.runs.storage import write_durably
from streamwise.streams import UsageError
from streamwise.streams.event_stream import LATE

__all__ = ["Standing", "held", "rebalance", "redistributed", "standings", "summed_past", "tidy"]

_LOCK_SECONDS = 30.0  # in which the processes of a killed driver end
_PLAIN = ("checkpoints", "keys.sqlite", "keys.sqlite-wal", "keys.sqlite-shm", "tensorboard")
Position = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """Where one worker is. checkpoint, model: None before its first; learned: events that its model knows."""

    directory: Path
    labels: tuple[str, ...]
    checkpoint: Checkpoint | None
    model: EventModel | None
    position: Position | None
    learned: float

    @property
    def released(self) -> int:
        """Events that it has learned in this arrangement."""
        return 0 if self.position is None else int(self.position["released"])

    @property
    def names(self) -> list[str]:
        """The types of its scores, by number."""
        if self.checkpoint is None or self.model is None:
            return []
        return [self.model.type_name(i) for i in range(len(self.recorder["scores"]["by_type"]))]

    @property
    def recorder(self) -> dict[str, Any]:
        """What its recorder said at the checkpoint."""
        assert self.checkpoint is not None
        found: dict[str, Any] = self.checkpoint.meta["recorder"]
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its rows of metrics as of the checkpoint, on disk or not."""
        state = self.recorder["metrics"]
        return [*read_rows(self.directory / "metrics.parquet", state["last_step"]), *state["waiting"]]


def standings(config: IngestConfig[Any], arrangement: Arrangement) -> list[Standing]:
    """Return where the workers of an arrangement are. Whoever asks closes the models."""
    found = []
    for number, labels in enumerate(arrangement.workers):
        directory = worker_directory(config.directory, arrangement, number)
        found.append(_standing(worker_config(config, arrangement, number), labels, learned_before(directory)))
    return found


def _standing(config: IngestConfig[Any], labels: tuple[str, ...], learned: float) -> Standing:
    checkpoints = Checkpoints.of(config)
    if not checkpoints.names():
        return Standing(config.directory, labels, None, None, None, 0.0)
    checkpoint = checkpoints.latest()
    model: EventModel = event_model_class(config.model)(
        config.settings, backend="reference", keys_path=config.directory / "keys.sqlite", read_only=True
    )
    model.load_state_dict(checkpoint.state)
    position = checkpoint.meta["position"]
    return Standing(config.directory, labels, checkpoint, model, position, learned + position["released"])


def _plain_standing(config: IngestConfig[Any], sources: Sequence[str], labels: Sequence[str]) -> Standing:
    """Return where a run is that was never divided, its partitions named as those of several workers are."""
    standing = _standing(replace(config, workers=1, sync=None, address=None), (), 0.0)
    if standing.position is None:
        return standing
    position = standing.position
    new = {label: label if len(config.sources) > 1 else f"0:{label}" for label in position["partitions"]}
    if any(name not in labels for name in new.values()) or len(sources) != len(config.sources):
        raise UsageError(
            f"{config.directory} reads a glob as one partition, which cannot be divided now; start a new run "
            "with --workers and another --out."
        )
    position = {
        **position,
        "partitions": {new[label]: state for label, state in position["partitions"].items()},
        "pending": [[event[0], new[event[1]], *event[2:]] for event in position["pending"]],
        "last": [position["last"][0], new.get(position["last"][1], "")],
    }
    return replace(standing, labels=tuple(new.values()), position=position)


# ---- the pure part ----


def redistributed(
    positions: Sequence[Position | None], assignment: Sequence[Sequence[str]]
) -> list[Position | None]:
    """Return the positions of new workers, by those of the old: each partition with the events that wait.

    None: of a worker that has not begun. Nothing that is not late where it was is late where it goes, for a
    worker takes up where the one was that had come the least far; `catch_up` is how far another had.
    """
    return [_position([p for p in positions if p is not None], labels) for labels in assignment]


def _position(positions: Sequence[Position], labels: Sequence[str]) -> Position | None:
    wanted = set(labels)
    partitions, pending, lasts, catch_ups = {}, [], [], []
    for position in positions:
        here = {name: state for name, state in position["partitions"].items() if name in wanted}
        if not here:
            continue
        last = position["last"]
        for name, state in here.items():
            partitions[name] = {**state, "watermark": _released_up_to(state, last[0])}
        pending += [event for event in position["pending"] if event[1] in wanted]
        lasts.append(last)
        catch_ups += [last[0], position.get("catch_up")]
    if not partitions:
        return None
    ahead = max((time for time in catch_ups if time is not None), default=None)
    first = [None, ""] if any(last[0] is None for last in lasts) else min(lasts)
    return {
        "partitions": partitions,
        "pending": sorted(pending, key=lambda event: tuple(event[:3])),
        "last": first,
        "catch_up": ahead if ahead != first[0] else None,
        "released": 0,
        "records": sum(state["records"] for state in partitions.values()),
        "dead_letters": {"bytes": 0, "counts": {}},
    }


def _released_up_to(state: dict[str, Any], last: float | None) -> float | None:
    """Return a watermark that no event of the partition lies after which was given out."""
    watermark: float | None = state["watermark"]
    newest: float | None = state["newest"]
    if last is None or newest is None:
        return watermark
    return min(newest, last) if watermark is None else max(min(newest, last), watermark)


def shares(standing: Standing, labels: Sequence[str]) -> float:
    """Return how much of what a worker has read is of these partitions, from 0 to 1."""
    assert standing.position is not None
    states = standing.position["partitions"]
    moved = [label for label in labels if label in states]
    total = sum(state["records"] for state in states.values())
    if total:
        return float(sum(states[label]["records"] for label in moved) / total)
    return len(moved) / max(len(states), 1)


# ---- writing ----


def rebalance(
    config: IngestConfig[Any],
    sources: Sequence[str],
    labels: Sequence[str],
    workers: int,
    old: Arrangement | None,
    lost: Sequence[int] = (),
) -> Arrangement:
    """Divide partitions anew among so many workers, and return the arrangement that then holds.

    old: the one until now; None for a run that has not begun, or was never divided. lost: the workers of it
    that are not to go on. A kill leaves the old one or the new one. Raises UsageError where workers still run
    or a partition is gone.
    """
    directory = config.directory
    with ExitStack() as stack:
        if old is None:
            before = [_plain_standing(config, sources, labels)]
        else:
            for number in range(len(old.workers)):
                path = worker_directory(directory, old, number)
                if path.is_dir():
                    stack.enter_context(_locked_soon(path))
                    Checkpoints.of(worker_config(config, old, number)).mend()
            before = standings(config, old)
        for standing in before:
            if standing.model is not None:
                stack.callback(standing.model.close)
        for gone in sorted({label for one in before for label in one.labels} - set(labels)):
            raise UsageError(f"partition {gone.partition(':')[2]} is gone; put it back, or start a new run.")
        goes_on = [one for number, one in enumerate(before) if number not in lost]
        after = assigned(labels, workers, [one.labels for one in goes_on])
        generation = 1 if old is None else old.generation + 1
        folder = generation_directory(directory, generation)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        new = Arrangement(generation, tuple(sources), after)
        past = _past(directory, old, before, folder)
        positions = redistributed([one.position for one in before], after)
        has_begun = any(one.position is not None for one in before)
        refused: Counter[str] = Counter()
        for number, position in enumerate(positions):
            position = _with_new(position, after[number], before, sources, has_begun)  # noqa: PLW2901
            if position is not None:
                own = goes_on[number] if number < len(goes_on) else None
                late = _write_worker(config, new, number, position, before, own, past.seconds, folder)
                refused[LATE] += late
        counts = Counter(past.dead_letters) + refused
        new = replace(new, past=replace(past, dead_letters=dict(counts)))
        _sync(folder)
        save_arrangement(new, directory)
    tidy(directory, generation)
    return new


def tidy(directory: Path, generation: int) -> None:
    """Remove what no longer holds: other arrangements, and what the run had before it was divided."""
    remove_others(directory, generation)
    for name in _PLAIN:
        path = directory / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _locked_soon(directory: Path) -> Iterator[None]:
    """Hold a worker's directory once the process of a driver that was killed lets go of it."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            with locked(directory):
                yield
                return
        except InUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _with_new(
    position: Position | None,
    labels: Sequence[str],
    before: Sequence[Standing],
    sources: Sequence[str],
    has_begun: bool,
) -> Position | None:
    """Add partitions that a topic has got since the run began; they are read from their first record."""
    known = {label for one in before for label in one.labels}
    new = [label for label in labels if has_begun and label not in known]
    topics = [label for label in new if sources[int(label.partition(":")[0])].startswith("kafka:")]
    if not topics:
        return position
    position = position or {
        "partitions": {}, "pending": [], "last": [None, ""], "catch_up": None, "released": 0, "records": 0,
        "dead_letters": {"bytes": 0, "counts": {}},
    }  # fmt: skip
    for label in topics:
        number, _, name = label.partition(":")
        state = {"source": int(number), "name": name, "next": 0, "records": 0}
        position["partitions"][label] = {**state, "newest": None, "watermark": None}
    return position


def _write_worker(
    config: IngestConfig[Any],
    new: Arrangement,
    number: int,
    position: Position,
    before: Sequence[Standing],
    own: Standing | None,
    seconds: float,
    folder: Path,
) -> int:
    """Write the directory of a worker that goes on; return how many waiting events are late for keys."""
    mine = worker_config(config, new, number)
    mine.directory.mkdir(parents=True)
    model: EventModel = event_model_class(config.model)(
        config.settings, backend="reference", keys_path=mine.directory / "keys.sqlite"
    )
    try:
        begun = [one for one in before if one.position is not None and one.model is not None]
        begun.sort(key=lambda one: (one is not own, -shares(one, new.workers[number])))
        parts = [
            Part(one.model, share, share * one.learned)
            for one in begun
            if one.model is not None and (share := shares(one, new.workers[number])) > 0.0
        ]
        if parts:
            merge(model, parts)
        late = _drop_late(position, model, folder)
        generation = model.keys.generation
        state = model.state_dict()
        recorder = {
            "step": 0,
            "elapsed": seconds,
            "first_time": None,
            "scores": Prequential(config.time_unit, model.extras).state(),
            "row": {},
            "metrics": {"last_step": 0, "waiting": []},
        }
        position = {**position, "keys_generation": generation}
        meta = {**describe(model), "position": position, "recorder": recorder}
        save_ingest(mine, mine.directory)
        Checkpoints.of(mine).save(0, state, meta)
    finally:
        model.close()
    learned = sum(part.weight for part in parts)
    write_durably(mine.directory / "origin.json", json.dumps({"learned": learned}).encode())
    return late


def _drop_late(position: Position, model: EventModel, folder: Path) -> int:
    """Refuse the waiting events whose key another worker has seen later events of; return how many."""
    kept: list[Any] = []
    late: list[Any] = []
    for event in position["pending"]:
        row = model.keys.find(event[4])
        (kept if row is None or float(row["last_time"]) <= event[0] else late).append(event)
    position["pending"] = kept
    if late:
        with (folder / "dead_letters.jsonl").open("ab") as file:
            for event in late:
                letter = {
                    "time": time.time(), "reason": LATE, "detail": "behind its key, known from elsewhere",
                    "partition": event[1], "position": event[2], "record": json.dumps(event),
                }  # fmt: skip
                file.write(json.dumps(letter).encode() + b"\n")
    return len(late)


def _past(directory: Path, old: Arrangement | None, before: Sequence[Standing], folder: Path) -> Past:
    """Return what was learned until now; its rows and refused records go to the new folder."""
    past = Past() if old is None else old.past
    begun = [one for one in before if one.checkpoint is not None]
    rows: list[dict[str, Any]] = []
    if old is not None:
        rows = read_rows(generation_directory(directory, old.generation) / "metrics.parquet")
    rows = merged_rows(rows, [one.rows for one in begun])
    if rows:
        pq.write_table(pa.Table.from_pylist(rows), folder / "metrics.parquet")
    with (folder / "dead_letters.jsonl").open("wb") as letters:
        if old is not None:
            _copy(generation_directory(directory, old.generation) / "dead_letters.jsonl", None, letters)
        for one in begun:
            assert one.position is not None
            _copy(one.directory / "dead_letters.jsonl", one.position["dead_letters"]["bytes"], letters)
    return summed_past(past, begun)


def summed_past(past: Past, begun: Sequence[Standing]) -> Past:
    """Return the past with what the workers have learned since."""
    states = [] if past.scores is None else [past.scores]
    names: list[Sequence[str]] = [] if past.scores is None else [past.names]
    letters = Counter(past.dead_letters)
    first_times = [past.first_time]
    for one in begun:
        assert one.position is not None
        states.append(one.recorder["scores"])
        names.append(one.names)
        letters.update(one.position["dead_letters"]["counts"])
        first_times.append(one.recorder["first_time"])
    if not begun:
        return past
    scores, types = merged_scores(states, names)
    return Past(
        events=past.events + sum(one.released for one in begun),
        seconds=max([past.seconds, *(one.recorder["elapsed"] for one in begun)]),
        first_time=min((t for t in first_times if t is not None), default=None),
        scores=scores,
        names=tuple(types),
        dead_letters=dict(letters),
    )


def _copy(path: Path, length: int | None, to: Any) -> None:
    """Append a file, or its first bytes, to another."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        left = path.stat().st_size if length is None else length
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            to.write(data)
            left -= len(data)


def _sync(folder: Path) -> None:
    """Wait until all of a folder is on the disk."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def held(directory: Path) -> Arrangement | None:
    """Return the arrangement that holds in a run directory; None if there is none."""
    try:
        return load_arrangement(directory)
    except UsageError:
        if (directory / "workers.json").exists():
            raise
        return None
