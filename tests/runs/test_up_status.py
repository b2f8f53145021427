"""How a live system is, for people and programs, beside it and after it."""

from __future__ import annotations

import io
import json
import urllib.request

import pytest
from rich.console import Console

from streamwise.cli import main
from streamwise.runs.lock import locked
from streamwise.runs.up_status import SystemDisplay, drawn, read_status, serving, summary
from streamwise.streams import UsageError

LEARNER = {
    "name": "ann", "kind": "stream-ac", "stream": "doors", "state": "running", "step": 12_000,
    "steps": 48_000, "per_second": 1_500.0, "score": {"episode_return": 9.25}, "lag": None,
    "restarts": 2, "process": 7,
    "memory": {
        "name": "rooms", "reads": True, "writes": False,
        "link": {"received": 1_234, "sent": 0, "unsent": 0, "waits": False, "problem": ""},
    },
    "host": "here", "node": "abc", "directory": "learners/ann", "message": "its process died",
}  # fmt: skip
MEMORY = {
    "name": "rooms", "state": "up", "capacity": 5_000, "process": 8, "chunks": 4_321, "restarts": 1,
    "written": {"ann": 4_000, "bob": 400}, "repeated": 3, "taken_back": 2, "given": 1_234,
}  # fmt: skip
STATUS = {
    "name": "tried", "time": 1e9, "state": "running", "process": 6, "wiring": ["doors ──▶ ann"],
    "learners": [LEARNER], "memories": [MEMORY],
}  # fmt: skip


@pytest.fixture
def system(tmp_path):
    (tmp_path / "system.toml").write_text('name = "tried"\n')
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    return tmp_path


def test_a_table_has_what_there_is_to_know():
    console = Console(file=io.StringIO(), width=100)
    console.print(drawn(STATUS))
    text = console.file.getvalue()
    for part in ("12,000", "25%", "1,500", "9.25", "1,234", "4,321 of 5,000", "4,400"):
        assert part in text
    assert summary(STATUS) == "1 running, 1,500 samples/s, 4,321 chunks, 3 restarts"


def test_a_system_whose_driver_has_gone_is_not_running(system):
    assert read_status(system)["state"] == "not running"
    with locked(system):
        assert read_status(system)["state"] == "running"


def test_the_command_prints_lines_or_json(system, capsys):
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["status", str(system), *arguments])
        assert stop.value.code == 0
        output = capsys.readouterr().out
        if arguments:
            assert json.loads(output)["learners"] == [LEARNER]
        else:
            assert "tried: not running, as of 2001-09-0" in output
            assert "ann: last ended because its process died" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["told", "--serve=99999"], "--serve is 99999, which is no port"),
        (["told", "--max-failures=-1"], "--max-failures is -1; use 0 or more"),
        (["told", "--out=README.md"], "already exists and is no live system"),
        (["told", "--address=127.0.0.1:1"], "there is no Ray cluster at 127.0.0.1:1"),
    ],
    ids=str,
)
def test_a_wrong_command_is_told_in_a_line_and_runs_nothing(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("not a system")
    with pytest.raises(SystemExit) as stop:
        main(["up", *arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_what_is_no_system_is_said_in_a_line(tmp_path, system):
    with pytest.raises(UsageError, match=r"is no live system: it has no system.toml"):
        read_status(tmp_path / "elsewhere")
    (system / "status.json").write_text("{")
    with pytest.raises(UsageError, match=r"status.json cannot be read"):
        read_status(system)
    (system / "status.json").unlink()
    with pytest.raises(UsageError, match=r"has no status.json yet"):
        read_status(system)


def test_the_page_and_the_status_are_served_to_this_machine(system):
    said: list[str] = []
    with serving(system, 0, "127.0.0.1", said.append):
        (line,) = said
        url = line.removeprefix("live at ")
        with urllib.request.urlopen(url, timeout=10.0) as page:
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
            assert b"Who learns from what" in page.read()
        with urllib.request.urlopen(f"{url}/status", timeout=10.0) as answer:
            assert json.load(answer) == STATUS


def test_off_a_terminal_the_display_is_lines_now_and_then(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("streamwise.runs.table_display.time.monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), force_terminal=False, width=100)
    with SystemDisplay("tried", STATUS["wiring"], console) as display:
        for clock[0] in (1.0, 11.0, 12.0):
            display.update(STATUS)
    assert console.file.getvalue().splitlines() == ["doors ──▶ ann", f"tried: {summary(STATUS)}"]
