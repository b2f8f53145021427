"""Checkpoints written beside the learning, from a copy of its state made between two steps."""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.event_recorder import EventRecorder
from streamwise.runs.recorder import Recorder
from streamwise.streams import Position

__all__ = ["SaveError", "Saver"]

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0


class SaveError(OSError):
    """A checkpoint could not be written; the last good one is whole."""


@dataclass
class _Work:
    step: int
    state: dict[str, Tensor]
    meta: dict[str, Any]
    rows_at_once: bool  # the last of a run: all its rows go to their file


class Saver:
    """A thread that writes one checkpoint at a time; a newer one replaces one that still waits.

    Only one that is to be kept for ever is waited for. Rows go to disk before the checkpoint that no longer
    holds them. A failed write is tried again, after pauses that grow from half a second to a minute, with the
    newest state there is by then; the run learns on meanwhile.
    fail_at_once: raise at the next `save` instead. patience_seconds: how long `close` tries.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        recorder: Recorder | EventRecorder,
        *,
        last_good_step: int | None = None,
        fail_at_once: bool = False,
        patience_seconds: float = 30.0,
    ) -> None:
        self.checkpoints = checkpoints
        self.recorder = recorder
        self.fail_at_once = fail_at_once
        self.patience_seconds = patience_seconds
        self.last_good_step = last_good_step
        self._durable: Position | None = None  # not yet handed out
        self._waiting: _Work | None = None
        self._closing = self._failing = False
        self._error: Exception | None = None
        self._deadline = float("inf")
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, state: dict[str, Tensor], meta: dict[str, Any], *, last: bool = False) -> None:
        """Have a checkpoint written of this state, which nobody changes from now on.

        Raises SaveError if an earlier write has failed and that is to end the run.
        """
        work = _Work(meta["recorder"]["step"], state, meta, rows_at_once=last)
        with self._changed:
            self._raise_error()
            if self._waiting is not None and self.checkpoints.keeps_for_ever(self._waiting.step):
                self._changed.wait_for(lambda: self._waiting is None or self._failing)
            self._waiting = work
            self._changed.notify_all()

    def newly_durable(self) -> Position | None:
        """Return the position of the newest checkpoint that is written, once."""
        with self._changed:
            position, self._durable = self._durable, None
        return position

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not KeyboardInterrupt:  # a second Ctrl-C: at once, like a kill
            self.close()

    def close(self) -> None:
        """Wait for what has yet to be written. Raises SaveError if it cannot be, after `patience_seconds`."""
        with self._changed:
            self._closing = True
            self._deadline = time.monotonic() + self.patience_seconds
            self._changed.notify_all()
        self._thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closing)
                work, self._waiting = self._waiting, None
                self._changed.notify_all()
            if work is None:
                return
            try:
                self._write(work)
            except Exception as error:  # whatever a file system of the user's raises is a failed write
                if not self._try_again(work, error, pause):
                    return
                pause = min(2.0 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS

    def _write(self, work: _Work) -> None:
        recorder = dict(work.meta["recorder"])
        for name, file in self.recorder.files.items():
            recorder[name] = file.write(recorder[name], at_once=work.rows_at_once)
        self.checkpoints.save(work.step, work.state, {**work.meta, "recorder": recorder})
        with self._changed:
            self.last_good_step, self._durable = work.step, work.meta["position"]
            self._failing = False

    def _try_again(self, work: _Work, error: Exception, pause: float) -> bool:
        """Wait, and put the work back unless there is newer; False if it is given up."""
        good = self.last_good_step
        kept = "none was written before" if good is None else f"the last good one is of step {good:,}"
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        message = f"the checkpoint of step {work.step:,} could not be written ({reason}); {kept}"
        with self._changed:
            self._failing = True
            self._changed.notify_all()
            out_of_time = time.monotonic() + pause > self._deadline
            if self.fail_at_once or out_of_time:
                self._error = SaveError(f"{message}.")
                return False
        warnings.warn(f"{message}; trying again in {pause:g} s.", stacklevel=1)
        with self._changed:
            was_closing = self._closing
            self._changed.wait_for(lambda: self._closing and not was_closing, timeout=pause)
            self._waiting = self._waiting or work
        return True
