"""One process a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamwise.streams import UsageError

__all__ = ["InUseError", "locked"]


class InUseError(UsageError):
    """A run directory that another process is at work in."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the run directory for this process. Raises InUseError, naming the holder, if another has it.

    The kernel lets go of the lock when the process ends, however it ends.
    """
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"{directory} is in use by {_holder(descriptor)}; wait for it, or stop it first."
            ) from None
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": started}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        about = json.loads(os.pread(descriptor, 1_000, 0))
        return f"process {about['process']} on {about['host']} since {about['since']}"
    except (ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
