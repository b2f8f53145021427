"""What runs the runs of a sweep, one after another, in a process of its own: the body of a Ray actor."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.config import RunConfig
from streamwise.runs.lock import InUseError
from streamwise.runs.loop import StopRequest
from streamwise.runs.recorder import Recorder
from streamwise.runs.train import Attach, train_or_resume
from streamwise.streams import DivergedError, NonFiniteSampleError, UsageError

__all__ = ["Outcome", "Progress", "Runner", "Where", "one_line", "warnings_to"]


@dataclass(frozen=True)
class Where:
    """Which process of which machine a runner is."""

    host: str
    node: str  # Ray's name of it: several may share a host
    process: int


@dataclass(frozen=True)
class Progress:
    """How far a run is. began_at: the step that this attempt went on from."""

    run: str
    step: int
    began_at: int
    episodes: int
    mean_return: float | None
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended: finished, stopped on request, or by an error.

    is_final: trying again would end in the same way. megabytes: the most that the process had resident.
    """

    step: int
    seconds: float
    megabytes: float
    began_at: int = 0
    mean_return: float | None = None
    stopped: bool = False
    error: str | None = None
    is_final: bool = False


class Runner:
    """Runs one run at a time, in one thread; another one may ask how far it is, and stop it."""

    def __init__(self) -> None:
        self._watch: _Watch | None = None
        self._stop = StopRequest()

    def where(self) -> Where:
        """Return which process this is."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return Where(socket.gethostname(), node, os.getpid())

    def run(
        self, name: str, config: RunConfig[Any], scratch: str | None, attach: Attach | None = None
    ) -> Outcome:
        """Start a run, or go on with it, and return when it ends; whatever ends it is in the outcome.

        scratch: the run keeps all it needs in its storage, and works in a temporary folder of this node,
        inside one of this name; it goes when the run has finished. attach: as for `train`.
        """
        if scratch is not None:
            config = replace(config, out=Path(tempfile.gettempdir()) / "streamwise" / scratch / name)
        self._stop = StopRequest()
        started = time.perf_counter()
        directory = config.directory

        def display(title: str, steps: int, recorder: Recorder, note: str) -> _Watch:
            self._watch = _Watch(name, recorder, directory / "run.log", note)
            return self._watch

        def outcome(**found: Any) -> Outcome:
            watch = self._watch
            found.setdefault("step", watch.recorder.step if watch else 0)
            began_at = watch.began_at if watch else found["step"]
            seconds = time.perf_counter() - started
            megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            return Outcome(seconds=seconds, megabytes=megabytes, began_at=began_at, **found)

        try:
            result = train_or_resume(config, display=display, stop=self._stop, attach=attach)
        except (InUseError, CheckpointError, OSError) as error:  # another time it may be otherwise
            return outcome(error=one_line(error))
        except (UsageError, DivergedError, NonFiniteSampleError) as error:
            return outcome(error=one_line(error), is_final=True)
        except Exception as error:  # an environment may raise anything
            with contextlib.suppress(OSError), (directory / "run.log").open("a") as log:
                traceback.print_exc(file=log)
            return outcome(error=f"{type(error).__name__}: {one_line(error)} (see {directory / 'run.log'})")
        else:
            if scratch is not None and result.signal is None:
                shutil.rmtree(directory, ignore_errors=True)
            return outcome(
                step=result.step, mean_return=result.mean_return, stopped=result.signal is not None
            )
        finally:
            self._watch = None

    def progress(self) -> Progress | None:
        """Return how far the run under way is; None between runs."""
        watch = self._watch
        return None if watch is None else watch.progress()

    def stop(self) -> None:
        """Have the run under way end after its step, with a checkpoint."""
        self._stop.signal = signal.SIGINT


class _Watch:
    """The display of a run whose numbers others ask for; its words go to run.log."""

    def __init__(self, name: str, recorder: Recorder, log: Path, note: str) -> None:
        self.name = name
        self.recorder = recorder
        self.began_at = recorder.step
        self._started = time.perf_counter()
        self._stack = contextlib.ExitStack()
        self._log, self._note = log, note

    def update(self) -> None:
        """Do nothing: who wants to know asks."""

    def progress(self) -> Progress:
        recorder = self.recorder
        seconds = time.perf_counter() - self._started
        return Progress(
            self.name, recorder.step, self.began_at, recorder.episodes, recorder.mean_return, seconds
        )

    def __enter__(self) -> _Watch:
        self._stack.enter_context(warnings_to(self._log, self._note))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


@contextlib.contextmanager
def warnings_to(log: Path, note: str) -> Iterator[None]:
    """Write warnings to a log, beginning with a line that says who writes."""
    with log.open("a", buffering=1) as file, warnings.catch_warnings():

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            print(f"{time.strftime('%F %T')} warning: {message}", file=file)

        warnings.showwarning = show
        print(f"{time.strftime('%F %T')} {socket.gethostname()}, process {os.getpid()}: {note}", file=file)
        yield


def one_line(error: Exception) -> str:
    """Return an error's text in one line, or its name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
