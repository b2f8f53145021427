"""The report of a live system says what its directory holds, whoever is still at work, killed, or missing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_report
import tomli_w
from test_report import Page, is_png, returns
from test_up_status import LEARNER, MEMORY, STATUS

from streamwise.cli import main
from streamwise.runs import up_report
from streamwise.runs.ingest import ingest
from streamwise.runs.lock import locked
from streamwise.runs.partitioned import arranged
from streamwise.runs.partitions import worker_config
from streamwise.runs.ray_cluster import Journal
from streamwise.runs.texts import number_text
from streamwise.runs.train import train
from streamwise.runs.up_data import read_system
from streamwise.runs.up_figures import diagram
from streamwise.runs.up_report import write_system_report
from streamwise.runs.up_spec import load_system
from streamwise.streams import UsageError

make_run = test_report.make_run

SYSTEM = """
name = "tried"
[streams.room]
environment = "streamwise/DelayedRecall-v0?symbols=3&delay=6"
[streams.log]
source = SOURCES
[memories.shared]
chunk_length = 2
capacity = 5_000
[learners.ann]
stream = "room"
steps = 400
writes = "shared"
[learners.bob]
stream = "room"
steps = 1_000_000
reads = "shared"
writes = "shared"
[learners.eve]
stream = "room"
steps = 10
[learners.shop]
stream = "log"
workers = 2
"""


def learner(name, state="finished", **known):
    return LEARNER | {"name": name, "state": state, "memory": None, "message": "", "restarts": 0} | known


def sharing(received, sent, problem=""):
    link = {"received": received, "sent": sent, "unsent": 0, "waits": False, "problem": problem}
    return {"name": "shared", "reads": True, "writes": True, "link": link}


STATE = STATUS | {
    "state": "stopped",
    "learners": [
        learner("ann", step=400, memory=sharing(0, 1_234)),
        learner("bob", "stopped", step=777, restarts=1, memory=sharing(55, 66), message="its process died"),
        learner("eve", "starting", step=0, score={}),
        learner("shop/0", step=0, lag=5),
        learner("shop/1", step=0, lag=None),
    ],
    "memories": [MEMORY | {"name": "shared", "written": {"bob": 400, "ann": 4_000}}],
}
EVENTS = [
    ("up", {}), ("started", {"learner": "ann"}), ("started", {"learner": "bob"}),
    ("started", {"learner": "shop/0"}), ("started", {"learner": "shop/1"}),
    ("lost", {"learner": "bob", "step": 300, "message": "its process died"}),
    ("lost", {"memory": "shared", "message": "its process died"}), ("recovered", {"memory": "shared"}),
    ("started", {"learner": "bob"}), ("finished", {"learner": "ann", "step": 400}),
    ("finished", {"learner": "shop/0"}), ("finished", {"learner": "shop/1"}),
    ("stopped", {"learner": "bob", "step": 777}), ("down", {}),
]  # fmt: skip


def write_log(folder, part):
    """300 events of 20 keys."""
    random = np.random.default_rng(part)
    times = np.cumsum(random.exponential(1.0 + part, 300))
    rows = [f"{time:.3f},t{random.integers(5)},{part}-{random.integers(20)}" for time in times]
    path = folder / f"log{part}.csv"
    path.write_text("\n".join(["time,type,key", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A system of the library's own runs, one of them of two workers, and one that has not begun."""
    path = tmp_path_factory.mktemp("tried")
    logs = [f"file:{write_log(path, part)}" for part in range(2)]
    (path / "system.toml").write_text(SYSTEM.replace("SOURCES", json.dumps(logs)))
    ann, bob, _, shop = load_system(str(path)).learners
    train(dataclasses.replace(ann.config, out=path / "learners" / "ann"))
    train(dataclasses.replace(bob.config, out=path / "learners" / "bob", steps=300))
    config = dataclasses.replace(shop.config, out=path / "learners" / "shop", until_end=True).resolved()
    with arranged(config) as (arrangement, _):
        for worker in range(2):
            ingest(worker_config(config, arrangement, worker))
    (path / "status.json").write_text(json.dumps(STATE))
    journal = Journal(path / "events.jsonl")
    for event, what in EVENTS:
        journal.add(event, **what)
    return path


@pytest.fixture
def system(original, tmp_path):
    return shutil.copytree(original, tmp_path / "system")


@pytest.fixture(scope="module")
def drawn(original, tmp_path_factory):
    """The report of the system as it is: its directory, and the files."""
    path = shutil.copytree(original, tmp_path_factory.mktemp("drawn") / "system")
    return path, write_system_report([path])


@pytest.fixture
def page_of(monkeypatch):
    """Return a function that writes a report without its PNG, whose panels the page has, too."""
    monkeypatch.setattr(up_report, "system_png", lambda title, system: b"")
    return lambda *arguments: Page(write_system_report(*arguments).html)


def rows_of(page, *header):
    return {row[header[0]]: row for row in page.table(*header) if header[0] in row}


def notes_of(page):
    found = re.search(r'<ul class="notes">(.*?)</ul>', page.source, re.DOTALL)
    return re.findall("<li>(.*?)</li>", found.group(1)) if found else []


def test_the_page_names_everything_with_the_numbers_of_its_directory(drawn):
    system, files = drawn
    assert (files.html, files.png) == (system / "report.html", system / "report.png")
    assert is_png(files.png)
    page = Page(files.html)
    rows = rows_of(page, "learner", "state", "samples")
    for name in ("ann", "bob"):
        last = returns(system / "learners" / name)[-20:]
        assert rows[name]["return"] == number_text(sum(last) / len(last))
    assert [rows[name]["samples"] for name in ("ann", "bob", "eve", "shop")] == [
        "400 of 400", "777 of 1,000,000", "0 of 10", "600"
    ]  # fmt: skip
    assert [rows[name]["state"] for name in rows][:4] == ["finished", "stopped", "unfinished", "finished"]
    assert (rows["ann"]["sent"], rows["ann"]["received"]) == ("1,234", "")
    assert (rows["bob"]["sent"], rows["bob"]["received"], rows["bob"]["restarts"]) == ("66", "55", "1")
    assert rows["bob"]["last failure"] == "its process died"
    assert (rows["shop"]["kind"], rows["shop"]["stream"]) == ("counts, 2 workers", "log")

    (memory,) = page.table("memory", "taken back")[:1]
    assert memory == {
        "memory": "shared", "state": "closed", "chunks": "4,321 of 5,000", "written": "4,400",
        "by": "ann 4,000, bob 400", "repeated": "3", "taken back": "2", "given": "1,234", "restarts": "1",
    }  # fmt: skip
    assert "Nothing recorded yet: eve." in notes_of(page)
    assert "2 restarts" in page.text  # of bob, and of the memory
    assert 'symbols=3&delay=6"' in page.text
    assert "0.1.0" in page.text


def test_the_score_of_workers_is_that_of_all_their_events(drawn):
    system, files = drawn
    found = [
        pq.read_table(path / "metrics.parquet").to_pylist()[-1]
        for path in (system / "learners" / "shop").glob("workers-*/0*")
    ]
    assert len(found) == 2
    mean = sum(row["scored"] * row["log_likelihood"] for row in found) / sum(row["scored"] for row in found)
    row = rows_of(Page(files.html), "learner", "samples")["shop"]
    assert row["log-likelihood"] == f"{mean:.4f}"


def test_learners_lead_to_their_own_reports_where_there_are_any(system, tmp_path, page_of):
    (system / "learners" / "bob" / "report.html").write_text("bob's")
    for out in (None, tmp_path / "elsewhere" / "page.html"):
        ((tag, _, way),) = page_of([system], out).loads
        assert tag == "a"
        assert ((out.parent if out else system) / way).read_text() == "bob's"


def test_the_page_loads_nothing_and_its_drawings_are_well_formed(drawn):
    page = Page(drawn[1].html)
    assert page.loads == []
    assert not {"script", "iframe", "object", "link"} & page.tags
    drawings = re.findall(r"<svg .*?</svg>", page.source, flags=re.DOTALL)
    assert len(drawings) >= 4  # wiring, two curves, time line; and legends
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_the_arrows_of_the_page_are_those_of_the_diagram(drawn):
    system, files = drawn
    page, wiring = Page(files.html), diagram(load_system(str(system)), {"shared": 4_321})
    ends = r'data-from="(.*?)" data-to="(.*?)".*?<path d="(.*?)".*?class="head" d="(.*?)"'
    assert re.findall(ends, page.source) == [
        (f"{w.source.kind}:{w.source.name}", f"{w.target.kind}:{w.target.name}", w.path, w.head)
        for w in wiring.wires
    ]
    assert len(re.findall(r'<g class="box"', page.source)) == len(wiring.boxes) == 7


def test_what_happened_is_counted_by_kind(drawn):
    page = Page(drawn[1].html)
    legend = re.search(r'<ul class="legend marks">(.*?)</ul>', page.source, re.DOTALL).group(1)
    counts = dict(re.findall(r"</span>(\w+) (\d+)</li>", legend))
    assert counts == {"lost": "2", "recovered": "1", "finished": "3", "stopped": "1"}
    events = page.table("time", "what", "who")[: len(EVENTS)]
    assert [row["what"] for row in reversed(events)] == [event for event, _ in EVENTS]
    assert [row["who"] for row in events][:2] == ["the system", "bob"]


def test_words_from_outside_are_shown_and_not_obeyed(system):
    bad = "<script>alert(1)</script>\u202e\x00\n&amp; $x$"
    tables = json.loads(json.dumps(STATE))
    tables["learners"][1] |= {"message": bad, "memory": sharing(1, 2, bad), "state": bad}
    (system / "status.json").write_text(json.dumps(tables))
    journal = Journal(system / "events.jsonl")
    journal.add("up")
    journal.add(bad, learner=bad, message=bad, step=bad)
    journal.add("lost", learner=bad, message=bad)
    text = (system / "system.toml").read_text().replace("delay=6", "delay=6</pre><script>")
    (system / "system.toml").write_text(text)
    page = Page(write_system_report([system]).html)
    assert "script" not in page.tags
    assert not {"\u202e", "\x00"} & set(page.text)
    assert "<script>alert(1)</script>" in page.text
    for drawing in re.findall(r"<svg .*?</svg>", page.source, flags=re.DOTALL):
        ElementTree.fromstring(drawing)


# ---- what is running, killed, missing, damaged ----


def test_it_is_said_whether_the_system_is_at_work(system, page_of):
    running = STATE | {"state": "running", "learners": [learner("ann", "running", step=10, lag=None)]}
    (system / "status.json").write_text(json.dumps(running))
    with locked(system):
        read = read_system(system)
        assert read.state == "running"
        assert read.learners[0].state == "running"
        assert read.memories[0].state == "up"
        assert "running as of 09 Sep 2001" in page_of([system]).text
    read = read_system(system)
    assert read.state == "not running"
    assert read.learners[0].state == "unfinished"
    page = page_of([system])
    assert f"Its driver has ended without a word; to go on: streamwise up {system}." in notes_of(page)


def test_the_whole_status_may_be_cut_off_anywhere(system):
    whole = (system / "status.json").read_bytes()
    expected = read_system(system)
    for end in range(0, len(whole), 97):
        (system / "status.json").write_bytes(whole[:end])
        read = read_system(system)
        assert read.status is None
        assert "is damaged" in read.problem
        assert "\n" not in read.problem
        for found, known in zip(read.learners, expected.learners, strict=True):
            assert found.log_likelihood == pytest.approx(known.log_likelihood, nan_ok=True)
        assert [one.state for one in read.learners] == ["finished", "stopped", "not begun", "finished"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", '{"time": 1e300}', "\xff", json.dumps(STATE | {"learners": 5})]
)
def test_without_a_status_the_directories_and_events_tell(system, text, page_of):
    (system / "status.json").write_text(text, encoding="latin-1")
    page = page_of([system])
    (note,) = [note for note in notes_of(page) if "status.json" in note]
    assert "is damaged" in note
    assert f"streamwise up {system}" in note
    assert rows_of(page, "learner", "samples")["ann"]["state"] == "finished"
    assert page.table("memory", "chunks")[0]["chunks"] == "? of 5,000"


def test_a_directory_of_nothing_but_its_specification_and_runs_is_drawn(system, page_of):
    for name in ("status.json", "events.jsonl"):
        (system / name).unlink()
    page = page_of([system])
    assert any("status.json is missing" in note for note in notes_of(page))
    assert rows_of(page, "learner", "samples")["shop"]["state"] == "unfinished"


def test_the_damage_of_one_learner_is_said_and_the_others_are_drawn(system, page_of):
    (system / "learners" / "ann" / "metrics.parquet").write_bytes(b"PAR1 no")
    (system / "learners" / "shop" / "workers.json").write_text("{")
    with (system / "events.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"time": "soon", "event": "lost"}\n[1]\n{"time": 1e300, "event": "up"}\n{"ti')
    page = page_of([system])
    (note,) = [note for note in notes_of(page) if note.startswith("No curve")]
    assert "ann (" in note
    assert "shop (" in note
    assert rows_of(page, "learner", "samples")["bob"]["return"]


def test_a_series_is_scored_by_its_error(make_run, tmp_path, page_of):
    stream = {"environment": "csv:/nowhere/spots.csv"}
    learners = {"sol": {"stream": "sun", "agent": "stream-td", "target": "spots"}}
    path = tmp_path / "system"
    make_run("system/learners/sol", stream["environment"], target="spots")
    tables = {"name": "sun", "streams": {"sun": stream}, "learners": learners}
    (path / "system.toml").write_text(tomli_w.dumps(tables))
    page = page_of([path])
    assert float(rows_of(page, "learner", "samples")["sol"]["error ratio"]) > 0.0
    assert "sol: spots of spots.csv" in page.text


def test_what_is_no_system_is_refused_in_one_line(system, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    new = tmp_path / "new"
    new.mkdir()
    (new / "system.toml").write_text((system / "system.toml").read_text())
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "system.toml").write_bytes(b"name = \xff")
    for directories, message in (
        ([empty], f"{empty} is no live system: it has no system.toml"),
        ([new], f"{new} has nothing to draw yet; start it with: streamwise up {new}"),
        ([torn], f"{torn / 'system.toml'} cannot be read"),
        ([system, system], "a live system is drawn by itself"),
        ([], "name at least one"),
    ):
        with pytest.raises(UsageError) as error:
            write_system_report(directories)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    for arguments in ([system, system / "learners" / "ann"], [system / "learners" / "shop", system], [torn]):
        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, arguments)])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("streamwise report: ")


def test_the_command_draws_a_system(system, tmp_path, capsys):
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main(["report", str(system), "--out", str(out)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"report: {out}\nplot:   {out.with_suffix('.png')}\n"
    assert is_png(out.with_suffix(".png"))
