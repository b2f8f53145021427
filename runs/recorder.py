"""Metrics of a run: one row an episode (or an interval of a series), to Parquet and TensorBoard."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.tensorboard import SummaryWriter

from streamwise.agents import Metrics
from streamwise.streams import Transition

__all__ = ["Recorder"]

SERIES_INTERVAL = 500  # steps a row, where there are no episodes
RECENT_EPISODES = 20
_TENSORBOARD_INTERVAL_SECONDS = 0.5


class Recorder:
    """Adds up what every step reports and writes a row when an episode ends.

    Rows wait in memory until `flush`, which a checkpoint calls: the files on disk always end at a step that
    can be resumed from. For a predicted series a row covers 500 steps, and every prediction is kept
    beside its cumulant in predictions.parquet.
    """

    def __init__(self, directory: Path, *, is_series: bool = False) -> None:
        self.directory = directory
        self.is_series = is_series
        self.step = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._elapsed_before = 0.0
        self._started = time.perf_counter()
        self._rows: list[dict[str, float]] = []
        self._predictions: list[tuple[int, float, float]] = []
        self._written_at = 0.0
        self._tensorboard = SummaryWriter(str(directory / "tensorboard"))
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
            self._predictions.append((self.step, metrics["prediction"], transition.reward))
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
        }
        self._rows.append(row)
        self._write_tensorboard(row)
        self._open_row()

    def _write_tensorboard(self, row: dict[str, float]) -> None:
        """Short episodes are thinned to two rows a second; metrics.parquet holds them all."""
        if self.elapsed - self._written_at < _TENSORBOARD_INTERVAL_SECONDS:
            return
        self._written_at = self.elapsed
        for name, value in row.items():
            if name not in ("step", "wall_time", "episode"):
                self._tensorboard.add_scalar(name, value, int(row["step"]))

    def flush(self) -> None:
        """Append the waiting rows to the files."""
        if self._rows:
            _append(self.directory / "metrics.parquet", pa.Table.from_pylist(self._rows))
            self._rows.clear()
        if self._predictions:
            steps, predictions, cumulants = zip(*self._predictions, strict=True)
            table = pa.table({"step": steps, "prediction": predictions, "cumulant": cumulants})
            _append(self.directory / "predictions.parquet", table)
            self._predictions.clear()
        self._tensorboard.flush()

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs, as JSON."""
        return {
            "step": self.step,
            "episodes": self.episodes,
            "elapsed": self.elapsed,
            "recent_returns": list(self.recent_returns),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`: forget the unfinished row, and rows written after that step."""
        self.step, self.episodes = state["step"], state["episodes"]
        self.recent_returns.extend(state["recent_returns"])
        self._elapsed_before, self._started = state["elapsed"], time.perf_counter()
        for name in ("metrics.parquet", "predictions.parquet"):
            path = self.directory / name
            if path.is_file():
                table = pq.read_table(path)
                _replace(path, table.filter(pa.compute.field("step") <= self.step))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensorboard.close()


def _append(path: Path, table: pa.Table) -> None:
    if path.is_file():
        table = pa.concat_tables([pq.read_table(path), table], promote_options="default")
    _replace(path, table)


def _replace(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
