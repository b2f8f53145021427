"""Commands in processes of their own, as a terminal starts and stops them, and what they write meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamwise.cli import main
from streamwise.runs.sweep_data import read_events


class Started:
    """A command at work, in a process group of its own."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamwise", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """End this process alone, at once; not what it has started."""
        self.process.kill()
        self.process.wait()

    def ctrl_c(self) -> None:
        """Do what a terminal does: tell every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def output(self, code: int = 0, seconds: float = 400.0) -> str:
        """Wait for its end, and return what it has said. Raises AssertionError if it ends otherwise."""
        output, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, output
        assert "Traceback" not in output
        return output


def start(*arguments: str) -> Started:
    """Start a command."""
    return Started(arguments)


def finish(*arguments: str, code: int = 0) -> str:
    """Run a command to its end; return what it has said."""
    return start(*arguments).output(code)


def events(out: Path, *names: str) -> list[dict[str, Any]]:
    """Return what the journal of a directory says of these kinds of events, in order."""
    return [event for event in read_events(out / "events.jsonl") if event["event"] in names]


def here(*arguments: str) -> int:
    """Run a command in this process, which has imported all that it needs; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not isinstance(ended.value.code, str)
    return ended.value.code or 0


@contextmanager
def ray_cluster(**first: Any) -> Iterator[Any]:
    """A Ray of one node, to which others can be added and which can lose them, set up as one started here."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **first})
        try:
            yield cluster
        finally:
            cluster.shutdown()
