"""A time series in a CSV file as a stream to predict: one transition from each row to the next."""

from __future__ import annotations

import csv
import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from numpy.typing import NDArray

from streamwise.streams.errors import NonFiniteSampleError, UsageError, meant
from streamwise.streams.sample import Position, Transition

if TYPE_CHECKING:
    from gymnasium import spaces

__all__ = ["CsvSeriesStream"]

DEFAULT_TRACE_DECAYS = (0.9, 0.99)
_ROWS_LOOKED_AT = 100  # before a column is taken for numbers or left out
_NAMES_LISTED = 30  # in an error

NumberedRow = tuple[int, list[str]]  # line in the file, from 1, and the fields


class CsvSeriesStream:
    r"""Transitions of a prediction problem: what will `target` be from here on?

    Transition t goes from row t to row t + 1; its reward is `target` at row t + 1, its action None. Only the
    last is truncated, none is terminated. The file (`.csv`, or `.csv.gz`) is read row by row and its first
    line names the columns; blank lines are skipped.

    features: columns that are observed, in this order; by default every numeric one, `target` included.
    A column with anything but numbers in the first 100 rows, such as dates, is left out.
    trace_decays: decays b, each in (0, 1). An observation, float64 [features * (1 + decays)], holds the
    features themselves, then for each b how far they are above their exponential trace
    m <- b * m + (1 - b) * x, divided by 1 - b^rows against its start at 0. The trace of b looks back
    1 / (1 - b) rows: 0.9 and 0.99 show where a feature is heading within a day and within four days of
    hourly rows, which one row cannot. () leaves the features alone. (Published stream-TD observes the
    traces of 0.999 alone, and predicts worse; benchmarks/prediction.py measures it.)

    A position holds the row and the traces, so that `seek` only skips lines and goes on bit for bit; an
    iteration begun before `seek` does not follow it. Raises UsageError for what is wrong with the file or the
    columns, while reading also for a row that is too short or long and for a value that is no number, and
    NonFiniteSampleError for NaN and infinities.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "tides.csv")
    >>> _ = path.write_text("date,level\nMonday,1.0\nTuesday,3.0\nWednesday,2.0\n")
    >>> stream = CsvSeriesStream(path, "level", trace_decays=())
    >>> [(t.observation.tolist(), t.reward, t.truncated) for t in stream]
    [([1.0], 3.0, False), ([3.0], 2.0, True)]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str,
        *,
        features: Sequence[str] | None = None,
        trace_decays: Sequence[float] = DEFAULT_TRACE_DECAYS,
    ) -> None:
        self.path = _existing(Path(path).expanduser())
        self.target = target
        for decay in trace_decays:
            if not 0.0 < decay < 1.0:
                raise UsageError(f"trace_decays holds {decay}; a decay lies between 0 and 1, such as 0.99.")
        self._decays = np.array(trace_decays, dtype=np.float64).reshape(-1, 1)  # [decays, 1]
        self._file: TextIO | None = None

        columns, rows = self._look()
        self._width = len(columns)
        self.features = self._choose(columns, rows, features)
        self._columns = [columns.index(name) for name in (*self.features, target)]

        self._row = 0  # of the next transition's observation
        self._traces = np.zeros((len(self._decays), len(self.features)))  # over the rows before _row

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of an observation is: the column, or the column against one of its traces."""
        against = [f"{name} - trace {b:g}" for b in self._decays.flat for name in self.features]
        return (*self.features, *against)

    @property
    def observation_space(self) -> spaces.Box:
        """Unbounded float64 [features * (1 + decays)]."""
        from gymnasium import spaces  # half a second that reading a file does not need

        size = len(self.features) * (1 + len(self._decays))
        return spaces.Box(-np.inf, np.inf, (size,), np.float64)

    @property
    def position(self) -> Position:
        """The row that the next transition starts from, and the traces of the rows before it."""
        return {"row": self._row, "traces": self._traces.ravel().tolist()}

    def seek(self, position: Position) -> None:
        """Go on from `position`. Raises UsageError if it belongs to other features or trace decays."""
        traces = np.array(position["traces"], dtype=np.float64)
        if traces.size != self._traces.size:
            raise UsageError(
                f"the position has {traces.size} traces, this stream {self._traces.size}; "
                "open it with the features and trace_decays it was saved with."
            )
        self._row, self._traces = int(position["row"]), traces.reshape(self._traces.shape)

    def commit(self, position: Position) -> None:
        """Nothing: a file does not care how far it has been read."""

    def close(self) -> None:
        """Close the file, if an iteration has it open."""
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[Transition]:
        """Yield the transitions from the present position to the end of the file."""
        with self._opened() as numbered:
            next(numbered, None)  # the names
            rows = islice(numbered, self._row, None)
            first, following = next(rows, None), next(rows, None)
            if first is None:
                raise UsageError(f"{self.path} ends before row {self._row}, where this stream was to go on.")
            values, _ = self._parse(first)
            observation, traces = self._observe(values, self._row, self._traces)
            while following is not None:
                values, reward = self._parse(following)
                next_observation, next_traces = self._observe(values, self._row + 1, traces)
                following = next(rows, None)
                self._row, self._traces = self._row + 1, traces
                yield Transition(
                    observation, None, reward, next_observation, terminated=False, truncated=following is None
                )
                observation, traces = next_observation, next_traces

    def _observe(
        self, values: NDArray[np.float64], row: int, traces: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the observation of `row`, whose features are `values`, and the traces that include it.

        traces: [decays, features], over the rows before.
        """
        traces = self._decays * traces + (1.0 - self._decays) * values
        against = values - traces / (1.0 - self._decays ** (row + 1))
        return np.concatenate([values, against.ravel()]), traces

    def _parse(self, numbered: NumberedRow) -> tuple[NDArray[np.float64], float]:
        """Return the features [features] and the target of one row."""
        line, row = numbered
        if len(row) != self._width:
            raise UsageError(
                f"{self.path}, line {line}: {len(row)} values for {self._width} columns; "
                "mend the line or remove it."
            )
        values = np.empty(len(self._columns))
        for i, column in enumerate(self._columns):
            value = _number(row[column])
            if value is None or not math.isfinite(value):
                name = (*self.features, self.target)[i]
                kind = UsageError if value is None else NonFiniteSampleError
                text = row[column].strip()
                raise kind(
                    f"{self.path}, line {line}, column {name!r}: "
                    + (f"{text!r} is not a finite number" if text else "the value is missing")
                    + "; fill it in or remove the line."
                )
            values[i] = value
        return values[:-1], float(values[-1])

    @contextmanager
    def _opened(self) -> Iterator[Iterator[NumberedRow]]:
        """Open the file and give its rows that are not blank; what cannot be read becomes a UsageError."""
        # utf-8-sig: spreadsheets like to begin a file with a byte order mark.
        opener = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opener(self.path, "rt", encoding="utf-8-sig", newline="") as file:
                self._file = file
                reader = csv.reader(file, skipinitialspace=True)
                yield ((reader.line_num, row) for row in reader if row)
        except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
            raise UsageError(f"{self.path} cannot be read as CSV: {error}.") from error

    def _look(self) -> tuple[list[str], list[list[str]]]:
        """Return the column names and the first rows."""
        with self._opened() as numbered:
            rows = [[field.strip() for field in row] for _, row in islice(numbered, 1 + _ROWS_LOOKED_AT)]
        if not rows:
            raise UsageError(f"{self.path} is empty; its first line has to name the columns.")
        columns = rows.pop(0)
        twice = [name for name in columns if columns.count(name) > 1]
        if twice:
            raise UsageError(f"{self.path} has more than one column named {twice[0]!r}; rename them.")
        if len(rows) < 2:
            raise UsageError(
                f"{self.path} has fewer than two rows below its names; nothing can be predicted."
            )
        return columns, rows

    def _choose(
        self, columns: list[str], rows: list[list[str]], features: Sequence[str] | None
    ) -> tuple[str, ...]:
        """Return the columns to observe, having checked them and the target."""
        whole = [row for row in rows if len(row) == len(columns)]
        numeric = [name for i, name in enumerate(columns) if _numeric([row[i] for row in whole])]
        for name, role in [(self.target, "target"), *((name, "feature") for name in features or ())]:
            if name not in columns:
                raise UsageError(
                    f"{role} {name!r} is not a column of {self.path}.{meant(name, columns)} "
                    f"Choose from: {_listed(numeric or columns)}."
                )
            if name not in numeric:
                choice = f"choose from: {_listed(numeric)}" if numeric else "no column of the file does"
                raise UsageError(f"{role} {name!r} of {self.path} does not hold numbers; {choice}.")
        if features is None:
            return tuple(numeric)
        if len(features) == 0 or len(set(features)) < len(features):
            raise UsageError(f"features are {list(features)}; name one or more columns, each once.")
        return tuple(features)


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)  # Python reads 2016_07 as a number; nobody else does
    except ValueError:
        return None


def _numeric(values: list[str]) -> bool:
    """Whether a column holds numbers. Gaps do not count against it: when the row is read, they are an error
    that names the line, which beats a feature that is silently absent.
    """
    numbers = [_number(value) for value in values if value]
    return None not in numbers and any(n is not None and math.isfinite(n) for n in numbers)


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a CSV file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}, so no file {path}.")
    neighbours = sorted(file.name for file in path.parent.iterdir() if file.is_file())
    raise UsageError(f"there is no file {path}.{meant(path.name, neighbours)}")


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMES_LISTED} more" if len(names) > _NAMES_LISTED else ""
    return ", ".join(names[:_NAMES_LISTED]) + more
