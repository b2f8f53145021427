"""Ray as everything here uses it: started or joined, its words kept off the display, its errors in a line."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from streamwise.runs.sweep_data import read_events
from streamwise.streams import UsageError

__all__ = [
    "Journal",
    "RayStoppedError",
    "errors_of_others_to",
    "have_stop",
    "pause_after",
    "reach",
    "running_ray",
    "scratch_of",
    "storage_of",
    "take_in",
    "there",
    "why_it_ended",
]

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_LONGEST_WAIT_SECONDS = 0.25  # for answers, before the display is drawn again
_ASK_AGAIN_SECONDS = 1.0  # to stop


class RayStoppedError(OSError):
    """Ray, or the connection to it, has gone; the runs are in their checkpoints."""


class Journal:
    """events.jsonl: what happened when. A line a driver could not finish is nobody's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("a", encoding="utf-8")
        if self.file.tell() and not path.read_bytes().endswith(b"\n"):
            self.file.write("\n")

    def add(self, event: str, **what: Any) -> None:
        """Write one event."""
        line = {"time": time.time(), "event": event, **{key: x for key, x in what.items() if x is not None}}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


@contextmanager
def running_ray(address: str | None, cpus: int | None) -> Iterator[None]:
    """Start Ray, or connect to the cluster at `address`, and leave it afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15, its default, costs a run on a full machine 5%
    import ray

    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else cpus,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="streamwise",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}"
            if address
            else f"Ray cannot be started: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def errors_of_others_to(log: Path) -> Iterator[IO[str]]:
    """Send standard error to a file, and yield what it was: what Ray's threads write would tear the display.

    What matters of it comes as an exception, too.
    """
    sys.stderr.flush()
    ours = os.dup(2)
    with log.open("a") as file, os.fdopen(ours, "w", buffering=1) as stderr:
        os.dup2(file.fileno(), 2)
        try:
            yield stderr
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)


def reach(address: str | None) -> None:
    """Raise UsageError if this is HOST:PORT and nothing listens there: Ray itself tries for minutes."""
    if not address or ":" not in address or "://" in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"there is no Ray cluster at {address} ({getattr(error, 'strerror', None) or error}); "
            "`ray status` on its head node says where it is."
        ) from None


def storage_of(out: Path, begun: str, storage: str | None, otherwise: Path) -> str | None:
    """Return where runs keep what they need: what was said at their first beginning still holds.

    begun: the event of events.jsonl that says it. otherwise: where they keep it if there is no storage.
    Raises UsageError if another one is asked for.
    """
    if storage is not None and "://" not in storage:
        storage = str(Path(storage).absolute())
    first = next((event for event in read_events(out / "events.jsonl") if event["event"] == begun), None)
    if first is None:
        return storage
    before: str | None = first.get("storage")
    if storage not in (None, before):
        raise UsageError(
            f"the runs of {out} are in {before or otherwise}, not in {storage}; "
            "leave --storage out, or choose another --out."
        )
    return before


def why_it_ended(error: Exception) -> str:
    """Return, of Ray's pages on a death, the line that names the cause."""
    text = str(error)
    if "node" in text and ("died" in text or "dead" in text) and "OOM" not in text:
        return "its node died"
    if "OutOfMemory" in type(error).__name__ or "OOM" in text or "memory pressure" in text:
        return "its process was ended because the node ran out of memory"
    return "its process died"


def there(actor: Any) -> Any:
    """Return a call of `where` that answers when the process is there, however often it has to be started."""
    return actor.where.options(max_task_retries=-1, concurrency_group="watch").remote()


def take_in(ray: Any, calls: Iterable[tuple[Any, Callable[[], None]]]) -> None:
    """Wait a moment for whichever of these calls comes first; take in all that have been answered by then.

    calls: with what takes in its answer, in the order in which that is done; a call may be None.
    """
    takers = {call: take for call, take in calls if call is not None}
    if not takers:
        time.sleep(_LONGEST_WAIT_SECONDS)
        return
    ray.wait(list(takers), timeout=_LONGEST_WAIT_SECONDS)
    ready = set(ray.wait(list(takers), num_returns=len(takers), timeout=0)[0])
    for call, take in takers.items():
        if call in ready:
            take()


def have_stop(at_work: Callable[[], Sequence[Any]], wait: Callable[[], None], seconds: float) -> None:
    """Ask actors to stop until none is at work, but no longer than so many seconds.

    at_work: returns those that are; wait: waits a moment, and takes in what has been answered.
    """
    deadline, asked_at = time.monotonic() + seconds, -math.inf
    while at_work() and time.monotonic() < deadline:
        if time.monotonic() - asked_at > _ASK_AGAIN_SECONDS:  # again, for one may just have begun
            asked_at = time.monotonic()
            for actor in at_work():
                actor.stop.options(concurrency_group="watch").remote()
        wait()


def scratch_of(name: str, storage: str | None) -> str | None:
    """Return what a node's temporary folder is called for runs whose files are in a storage; None without."""
    return storage and f"{name}-{sha256(storage.encode()).hexdigest()[:8]}"


def pause_after(failures: int) -> float:
    """Return the seconds before what has failed so often in a row is tried again."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
