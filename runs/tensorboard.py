"""A run's rows as TensorBoard shows them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

__all__ = ["EventFile"]

_PAUSE_SECONDS = 10.0


class EventFile:
    """Scalars, appended to a file of their own. torch's SummaryWriter ends the run when the disk is full.

    purge_step: what earlier files of the directory hold from that step on is not shown; a killed run wrote
    it. A failed write is warned of, and tried again with a new file after ten seconds; the rows between are
    lost to TensorBoard alone.
    """

    def __init__(self, directory: Path, purge_step: int | None = None) -> None:
        self.directory = directory
        self.purge_step = purge_step
        self._writer: RecordWriter | None = None
        self._not_before = 0.0

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Append what was true at `step`, and hand it to the operating system."""
        if time.monotonic() < self._not_before:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        try:
            writer = self._writer or self._open()
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
            writer.write(event.SerializeToString())
            writer.flush()
        except OSError as error:
            self.close()
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            warnings.warn(f"{self.directory} cannot be written to: {error.strerror}.", stacklevel=2)

    def _open(self) -> RecordWriter:
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((self.directory / name).open("wb"))
        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if self.purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=self.purge_step, session_log=start))
        for event in events:
            self._writer.write(event.SerializeToString())
        return self._writer

    def close(self) -> None:
        """Close the file, if one is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):  # what could not be written has been warned of
                writer.close()
