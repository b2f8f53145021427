"""Which worker of a run on events reads which partitions, and where each keeps what it knows.

A run of several workers has, beside what other runs have,

    workers.json            which arrangement holds: its generation, the partitions of every worker, the past
    workers-<generation>/   a run directory for each worker, 0000, 0001, ..., restricted to its partitions

Another arrangement is written beside the one that holds, and holds from the instant in which workers.json is
replaced; see `runs/rebalance.py`. The past is what workers of earlier arrangements have learned: their
scores, rows and refused records. Those of the present ones are in their directories.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.storage import replace_durably
from streamwise.streams import UsageError
from streamwise.streams.sources import divided, open_source

__all__ = [
    "Arrangement",
    "Past",
    "assigned",
    "check_divisible",
    "is_partitioned",
    "learned_before",
    "listed",
    "load_arrangement",
    "remove_others",
    "save_arrangement",
    "worker_config",
    "worker_directory",
]

_MANIFEST = "workers.json"


@dataclass(frozen=True)
class Past:
    """What earlier arrangements have learned. scores: of a `Prequential`, by the types in `names`."""

    events: int = 0
    seconds: float = 0.0
    first_time: float | None = None
    scores: dict[str, Any] | None = None
    names: tuple[str, ...] = ()
    dead_letters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrangement:
    """sources: every one that partitions are numbered after, globs replaced by files. workers: partitions."""

    generation: int
    sources: tuple[str, ...]
    workers: tuple[tuple[str, ...], ...]
    past: Past = Past()


def is_partitioned(directory: Path) -> bool:
    """Whether a run directory is that of several workers, or was."""
    return (directory / _MANIFEST).is_file()


def load_arrangement(directory: Path) -> Arrangement:
    """Read the arrangement that holds. Raises UsageError if it is damaged."""
    path = directory / _MANIFEST
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        past = table["past"]
        return Arrangement(
            int(table["generation"]),
            tuple(table["sources"]),
            tuple(tuple(labels) for labels in table["workers"]),
            Past(**{**past, "names": tuple(past["names"])}),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); put it back, or start a new run.") from None


def save_arrangement(arrangement: Arrangement, directory: Path) -> None:
    """Have an arrangement hold, from one instant to the next."""
    replace_durably(directory / _MANIFEST, json.dumps(dataclasses.asdict(arrangement)).encode())


def generation_directory(directory: Path, generation: int) -> Path:
    """Return where the workers of an arrangement, and the past before it, are kept."""
    return directory / f"workers-{generation:04d}"


def worker_directory(directory: Path, arrangement: Arrangement, number: int) -> Path:
    """Return the run directory of a worker."""
    return generation_directory(directory, arrangement.generation) / f"{number:04d}"


def learned_before(directory: Path) -> float:
    """Return how many events the model of a worker had learned when this arrangement began."""
    origin = directory / "origin.json"
    return float(json.loads(origin.read_text())["learned"]) if origin.is_file() else 0.0


def worker_config(config: IngestConfig[Any], arrangement: Arrangement, number: int) -> IngestConfig[Any]:
    """Return the settings of a worker: those of the run, its partitions, its directory."""
    return dataclasses.replace(
        config,
        sources=arrangement.sources,
        partitions=arrangement.workers[number],
        out=worker_directory(config.directory, arrangement, number),
        workers=1,
        sync=None,
        address=None,
    )


def remove_others(directory: Path, generation: int) -> None:
    """Remove what an arrangement left that no longer holds, or never came to."""
    kept = generation_directory(directory, generation)
    for path in directory.glob("workers-*"):
        if path != kept and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def listed(config: IngestConfig[Any], known: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sources, globs replaced by files, and all their partitions, as SOURCE NUMBER:PARTITION.

    known: sources that have their numbers already; new files get the numbers after those. Raises UsageError
    as `open_source` does.
    """
    found = dict.fromkeys(url for source in config.sources for url in divided(source))
    sources = [*known, *(url for url in found if url not in known)]
    if len(found) < sum(len(divided(source)) for source in config.sources):
        raise UsageError("two of the sources name the same file; its events would be learned twice.")
    labels = []
    for number, url in enumerate(sources):
        source = open_source(url, follow=config.follow, until_end=config.until_end)
        try:
            labels += [f"{number}:{name}" for name in source.partitions]
        finally:
            source.close()
    return tuple(sources), tuple(labels)


def check_divisible(config: IngestConfig[Any], labels: Sequence[str]) -> None:
    """Raise UsageError if there are fewer partitions than workers."""
    if len(labels) >= config.workers:
        return
    if len(labels) == 1:
        name = labels[0].partition(":")[2]
        raise UsageError(
            f"{name} is a single partition, which --workers {config.workers} cannot divide; name several "
            "files or streams, or a topic with several partitions."
        )
    raise UsageError(
        f"{len(labels)} partitions cannot be divided among {config.workers} workers; "
        f"use --workers {len(labels)} or fewer."
    )


def assigned(
    labels: Sequence[str], workers: int, before: Sequence[Sequence[str]] = ()
) -> tuple[tuple[str, ...], ...]:
    """Divide partitions among workers so that none has two more than another, and few move.

    before: what workers had, in the order in which they go on; those beyond `workers`, or missing, gave up
    theirs.

    >>> assigned(["a", "b", "c", "d", "e"], 2)
    (('a', 'b', 'c'), ('d', 'e'))
    >>> assigned(["a", "b", "c", "d", "e"], 3, [["a", "b", "c"], ["d", "e"]])
    (('a', 'b'), ('d', 'e'), ('c',))
    """
    there = set(labels)
    kept = [[label for label in had if label in there] for had in before[:workers]]
    kept += [[] for _ in range(workers - len(kept))]
    # Those that have most get the places that are left over by an even division.
    room, more = divmod(len(labels), workers)
    by_size = sorted(range(workers), key=lambda i: (-len(kept[i]), i))
    quota = {worker: room + (place < more) for place, worker in enumerate(by_size)}
    kept = [had[: quota[i]] for i, had in enumerate(kept)]
    taken = {label for had in kept for label in had}
    free = [label for label in labels if label not in taken]
    more_of_them = iter(free)
    return tuple((*had, *islice(more_of_them, quota[i] - len(had))) for i, had in enumerate(kept))
