"""How a live system is: what its driver writes down every second, shown as a table or as lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamwise.runs.lock import InUseError, locked
from streamwise.runs.table_display import TableDisplay
from streamwise.runs.up_spec import check_system
from streamwise.streams import UsageError

__all__ = [
    "STATUS_FILE",
    "SystemDisplay",
    "drawn",
    "is_held",
    "print_status",
    "read_status",
    "serving",
    "summary",
]

STATUS_FILE = "status.json"

Status = Mapping[str, Any]


def read_status(directory: Path) -> dict[str, Any]:
    """Return what the driver last wrote; its state is "not running" if there is no driver any more.

    Raises UsageError for a directory of no live system.
    """
    check_system(directory)
    path = directory / STATUS_FILE
    if not path.is_file():
        raise UsageError(f"{directory} has no {STATUS_FILE} yet; wait until its processes are up.")
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    if not isinstance(status, dict) or not {"state", "learners", "memories"} <= status.keys():
        raise UsageError(f"{path} is no status of a live system; `streamwise up {directory}` writes it anew.")
    if status["state"] in ("running", "stopping") and not is_held(directory):
        status["state"] = "not running"
    return status


def is_held(directory: Path) -> bool:
    """Return whether a driver is at work in a directory."""
    if not (directory / ".lock").is_file():
        return False
    try:
        with locked(directory):
            return False
    except InUseError:
        return True
    except OSError:  # a copy that cannot be written to
        return False


def drawn(status: Status) -> RenderableType:
    """Return tables of learners and memories."""
    learners = Table(box=None, pad_edge=False)
    learners.add_column("learner", no_wrap=True)
    learners.add_column("state", no_wrap=True)
    for column in ("step", "", "a second", "score", "lag", "read", "written", "restarts"):
        learners.add_column(column, justify="right", no_wrap=True)
    for one in status["learners"]:
        link = (one["memory"] or {}).get("link") or {}
        reads, writes = ((one["memory"] or {}).get(way) for way in ("reads", "writes"))
        learners.add_row(
            one["name"],
            one["state"],
            f"{one['step']:,}",
            f"{one['step'] / one['steps']:.0%}" if one["steps"] else "",
            f"{one['per_second']:,.0f}" if one["per_second"] else "",
            ", ".join(f"{value:,.2f}" for value in one["score"].values()),
            "" if one["lag"] is None else f"{one['lag']:,}",
            f"{link['received']:,}" if link and reads else "",
            f"{link['sent']:,}" if link and writes else "",
            str(one["restarts"] or ""),
        )
    parts: list[RenderableType] = [learners]
    if status["memories"]:
        memories = Table(box=None, pad_edge=False)
        memories.add_column("memory")
        memories.add_column("state")
        for column in ("chunks", "written", "repeated", "taken back", "given", "restarts"):
            memories.add_column(column, justify="right", no_wrap=True)
        for one in status["memories"]:
            memories.add_row(
                one["name"],
                one["state"],
                f"{one.get('chunks', 0):,} of {one['capacity']:,}",
                f"{sum(one.get('written', {}).values()):,}",
                *(f"{one.get(key, 0):,}" for key in ("repeated", "taken_back", "given")),
                str(one["restarts"] or ""),
            )
        parts += [Text(""), memories]
    return Group(*parts)


def summary(status: Status) -> str:
    """Return how a system is, in a line."""
    states = [one["state"] for one in status["learners"]]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    speed = sum(one["per_second"] for one in status["learners"])
    restarts = sum(one["restarts"] for one in (*status["learners"], *status["memories"]))
    parts = [f"{count} {state}" for state, count in counts.items()] + [f"{speed:,.0f} samples/s"]
    parts += (
        [f"{sum(one.get('chunks', 0) for one in status['memories']):,} chunks"] if status["memories"] else []
    )
    return ", ".join(parts + ([f"{restarts} restarts"] if restarts else []))


class SystemDisplay(TableDisplay):
    """The live display: tables on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, wiring: Sequence[str], console: Console) -> None:
        super().__init__(console)
        self.name, self.wiring = name, wiring

    def update(self, status: Status) -> None:
        """Draw again when it is time to."""
        if not self._is_due():
            return
        if self._live is None:
            self.say(summary(status))
        else:
            self._live.update(drawn(status))

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._print(f"{self.name}: {line}")

    def __enter__(self) -> Self:
        for line in self.wiring:
            self._print(line)
        return super().__enter__()


@contextmanager
def serving(directory: Path, port: int | None, host: str, say: Callable[[str], None]) -> Iterator[None]:
    """Serve a page that shows the system, and /status, for the time of the context, if there is a port."""
    if port is None:
        yield
        return
    from streamwise.runs.web import html_page, json_response, listening

    def routes() -> list[Any]:
        from starlette.routing import Route

        def status(request: Any) -> Any:
            path = directory / STATUS_FILE
            return json_response(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)

        return [Route("/", html_page("system.html")), Route("/status", status)]

    with listening(directory, "serve", host, port, routes) as server:
        say(f"live at {server.url}")
        yield


def print_status(directory: Path, *, watch: bool) -> None:
    """Print how a system is, once or every second."""
    console = Console()
    status = read_status(directory)
    if not watch:
        _print(console, status)
        return
    with Live(console=console, refresh_per_second=1) as live:
        while status["state"] in ("running", "stopping"):
            live.update(drawn(status))
            time.sleep(1.0)
            status = read_status(directory)
    _print(console, status)


def _print(console: Console, status: Status) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status["time"]))
    console.print(f"{status['name']}: {status['state']}, as of {when}", highlight=False, markup=False)
    console.print(drawn(status))
    for one in status["learners"]:
        if one["message"]:
            console.print(
                f"{one['name']}: last ended because {one['message']}", highlight=False, markup=False
            )
