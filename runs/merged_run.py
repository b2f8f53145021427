"""A run of several workers, seen as one: scores, rows and refused records of all of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamwise.agents import event_model_class
from streamwise.runs.ingest import IngestResult
from streamwise.runs.ingest_config import load_ingest
from streamwise.runs.merged_rows import merged_rows, read_rows
from streamwise.runs.partitions import Past, generation_directory, load_arrangement
from streamwise.runs.prequential import Prequential
from streamwise.runs.rebalance import standings, summed_past

__all__ = ["MergedRun", "finish_merged", "read_merged"]


@dataclass(frozen=True)
class MergedRun:
    """What the workers have learned as of their newest checkpoints, and all before them.

    newest: the time of the newest event; None before the first. statistics: columns that the model adds to
    rows. letters: the files of refused records.
    """

    past: Past
    rows: list[dict[str, Any]]
    records: int
    newest: float | None
    statistics: list[str]
    letters: list[Path]


def read_merged(directory: Path) -> MergedRun:
    """Read the run in a directory, also beside one that goes on. Raises UsageError where it is damaged."""
    config, arrangement = load_ingest(directory), load_arrangement(directory)
    folder = generation_directory(directory, arrangement.generation)
    found = standings(config, arrangement)
    begun = [one for one in found if one.checkpoint is not None]
    positions = [one.position for one in begun if one.position is not None]
    partitions = [state for position in positions for state in position["partitions"].values()]
    model = event_model_class(config.model)(config.settings, backend="reference")
    merged = MergedRun(
        past=summed_past(arrangement.past, begun),
        rows=merged_rows(read_rows(folder / "metrics.parquet"), [one.rows for one in begun]),
        records=sum(state["records"] for state in partitions),
        newest=max((state["newest"] for state in partitions if state["newest"] is not None), default=None),
        statistics=list(model.statistics()),
        letters=[folder / "dead_letters.jsonl", *(one.directory / "dead_letters.jsonl" for one in begun)],
    )
    for one in found:
        if one.model is not None:
            one.model.close()
    model.close()
    return merged


def finish_merged(directory: Path, signal: int | None) -> IngestResult:
    """Write the rows and refused records of all workers to the run directory, and add up their scores."""
    run, config = read_merged(directory), load_ingest(directory)
    if run.rows:
        temporary = directory / ".metrics.parquet.partial"
        pq.write_table(pa.Table.from_pylist(run.rows), temporary)
        temporary.replace(directory / "metrics.parquet")
    with (directory / "dead_letters.jsonl").open("wb") as file:
        for path in filter(Path.is_file, run.letters):
            with path.open("rb") as part:
                shutil.copyfileobj(part, file)
    model = event_model_class(config.model)(config.settings, backend="reference")
    scores = Prequential(config.time_unit, model.extras)
    model.close()
    if run.past.scores is not None:
        scores.resume(run.past.scores)
    return IngestResult(directory, run.past.events, scores.scores(), run.past.dead_letters, signal)
