"""Metrics of a run: one row an episode (or an interval of a series), to Parquet and TensorBoard."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamwise.agents import Metrics
from streamwise.runs.storage import Storage, sync_directory
from streamwise.runs.tensorboard import EventFile
from streamwise.streams import Transition

__all__ = ["Recorder"]

SERIES_INTERVAL = 500  # steps a row, where there are no episodes
RECENT_EPISODES = 20
_TENSORBOARD_INTERVAL_SECONDS = 0.5


class Recorder:
    """Adds up what every step reports and makes a row when an episode ends.

    Rows wait in memory: a checkpoint takes them along, and `RowFile` writes them to disk now and then. So
    files and checkpoint together hold every row once, whenever the run is killed. For a predicted series a
    row covers 500 steps, and every prediction is kept beside its cumulant.
    storage: where the Parquet files are put, too, for a run that may have to go on without `directory`.
    """

    def __init__(self, directory: Path, *, is_series: bool = False, storage: Storage | None = None) -> None:
        self.directory = directory
        self.is_series = is_series
        self.step = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.metrics = RowFile(directory / "metrics.parquet", storage)
        self.predictions = RowFile(directory / "predictions.parquet", storage)
        self.files = {"metrics": self.metrics, "predictions": self.predictions}
        self._tensorboard = EventFile(directory / "tensorboard")
        self._elapsed_before = 0.0
        self._started = time.perf_counter()
        self._abandoned_steps = 0
        self._noted: dict[str, float] = {}
        self._written_at = -math.inf
        self._open_row()

    @property
    def elapsed(self) -> float:
        """Seconds that the run has been running, over all its resumptions."""
        return self._elapsed_before + time.perf_counter() - self._started

    @property
    def mean_return(self) -> float | None:
        """The mean return of the last 20 episodes, or None before the first has ended."""
        return sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else None

    def record(self, transition: Transition, metrics: Metrics, *, game_goes_on: bool = False) -> None:
        """Take one step into account.

        game_goes_on: an episode that ends here is one life of a game; the row covers the whole game.
        """
        self.step += 1
        self._length += 1
        self._return += transition.reward
        sums = self._sums
        if sums:
            for name, value in metrics.items():
                sums[name] += value
        else:
            sums.update(metrics)
        if self.is_series:
            row = {"step": self.step, "prediction": metrics["prediction"], "cumulant": transition.reward}
            self.predictions.waiting.append(row)
            if self._length == SERIES_INTERVAL or transition.truncated:
                self._close_row({})
        elif (transition.terminated or transition.truncated) and not game_goes_on:
            self.episodes += 1
            self.recent_returns.append(self._return)
            self._close_row(
                {
                    "episode": self.episodes,
                    "episode_return": self._return,
                    "episode_length": self._length,
                }
            )

    def note(self, values: Metrics) -> None:
        """Put values in every row from now on, until they are noted again."""
        self._noted |= values

    def _open_row(self) -> None:
        self._length = 0
        self._return = 0.0
        self._sums: dict[str, float] = {}
        self._row_started = time.perf_counter()

    def _close_row(self, episode: dict[str, float]) -> None:
        seconds = max(time.perf_counter() - self._row_started, 1e-9)
        row = {
            "step": self.step,
            "wall_time": self.elapsed,
            **episode,
            "steps_per_second": self._length / seconds,
            **{name: total / self._length for name, total in self._sums.items()},
            **self._noted,
        }
        if self._abandoned_steps:
            row["abandoned_steps"] = self._abandoned_steps
            self._abandoned_steps = 0
        self.metrics.waiting.append(row)
        self._write_tensorboard(row)
        self._open_row()

    def abandon_episode(self) -> int:
        """Forget the open row, for its episode cannot go on; its length is reported with the next row."""
        self._abandoned_steps += self._length
        abandoned = self._length
        self._open_row()
        return abandoned

    def _write_tensorboard(self, row: dict[str, float]) -> None:
        """Short episodes are thinned to two rows a second; metrics.parquet holds them all."""
        if self.elapsed - self._written_at < _TENSORBOARD_INTERVAL_SECONDS:
            return
        self._written_at = self.elapsed
        shown = {name: value for name, value in row.items() if name not in ("step", "wall_time", "episode")}
        self._tensorboard.add(int(row["step"]), shown)

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs, as JSON; the rows are copied, so that it stays as it is."""
        return {
            "step": self.step,
            "episodes": self.episodes,
            "elapsed": self.elapsed,
            "recent_returns": list(self.recent_returns),
            "abandoned_steps": self._abandoned_steps,
            "noted": dict(self._noted),
            "open_row": {
                "length": self._length,
                "return": self._return,
                "sums": dict(self._sums),
                "seconds": time.perf_counter() - self._row_started,
            },
            "metrics": self.metrics.state(),
            "predictions": self.predictions.state(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`: the rows on disk and those that were waiting are what they were then."""
        self.step, self.episodes = state["step"], state["episodes"]
        self._tensorboard.purge_step = self.step + 1
        self.recent_returns.extend(state["recent_returns"])
        self._abandoned_steps = state["abandoned_steps"]
        self._noted |= state.get("noted", {})
        self._elapsed_before, self._started = state["elapsed"], time.perf_counter()
        row = state["open_row"]
        self._length, self._return, self._sums = row["length"], row["return"], dict(row["sums"])
        self._row_started = time.perf_counter() - row["seconds"]
        self.metrics.resume(state["metrics"])
        self.predictions.resume(state["predictions"])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensorboard.close()


class RowFile:
    """Rows on their way to a Parquet file, in the order of their `step`.

    A Parquet file is written anew to grow, so it grows seldom: by a quarter (500 to 2,000 rows), or after a
    minute. The learning thread appends to `waiting` and calls `state`, another one calls `write`.
    """

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        self.path = path
        self.storage = storage
        self.waiting: list[dict[str, float]] = []
        self._last_step = 0  # on disk
        self._rows = 0  # on disk
        self._written_at = time.monotonic()
        # pyarrow imports pandas at its first array; in the middle of a run its events would wait for that.
        pa.array([0.0])

    def state(self) -> dict[str, Any]:
        """Return the rows that are not on disk, and the last step that is."""
        last_step = self._last_step
        self.waiting = [row for row in self.waiting if row["step"] > last_step]
        return {"last_step": last_step, "waiting": list(self.waiting)}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a `state`: what was written to disk after it is taken back."""
        self.waiting, self._last_step = list(state["waiting"]), state["last_step"]
        if self.path.is_file():
            table = pq.read_table(self.path)
            kept = table.filter(pa.compute.field("step") <= self._last_step)
            self._rows = len(kept)
            if self._rows < len(table):
                self._replace(kept)

    def write(self, state: dict[str, Any], *, at_once: bool = False) -> dict[str, Any]:
        """Write the rows of a `state` to disk if it is time to; return the state that is true then.

        at_once: whether or not it is time. Raises OSError, having changed nothing.
        """
        rows = [row for row in state["waiting"] if row["step"] > self._last_step]
        waited = time.monotonic() - self._written_at
        enough = min(max(500, self._rows // 4), 2_000)
        if rows and (at_once or len(rows) >= enough or waited > 60.0):
            names = dict.fromkeys(name for row in rows for name in row)  # some begin late
            table = pa.table({name: [row.get(name) for row in rows] for name in names})
            if self._rows:
                before = pq.read_table(self.path, use_threads=False)
                table = pa.concat_tables([before, table], promote_options="default")
            self._replace(table)
            self._rows, self._last_step = len(table), int(rows[-1]["step"])
            pa.default_memory_pool().release_unused()  # a long run stays as small as it was
            self._written_at = time.monotonic()
            rows = []
        return {"last_step": self._last_step, "waiting": rows}

    def _replace(self, table: pa.Table) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.partial")
        pq.write_table(table, temporary)
        if self.storage is not None:
            self.storage.put(self.path.name, temporary.read_bytes())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        sync_directory(self.path.parent)
