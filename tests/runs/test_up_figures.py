"""The diagram of a live system: its arrows say who reads and writes, and its boxes lie apart."""

from __future__ import annotations

import re

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.runs.up_figures import diagram
from streamwise.runs.up_spec import load_system


@st.composite
def specifications(draw):
    """Return the tables of a system in which every stream and memory is used."""
    names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)
    environments = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    logs = draw(st.lists(names.filter(lambda name: name not in environments), max_size=2, unique=True))
    memories = draw(st.lists(names, max_size=3, unique=True))
    learners = {}
    for name in draw(st.lists(names, min_size=1, max_size=9, unique=True)):
        stream = draw(st.sampled_from(environments + logs))
        learners[name] = table = {"stream": stream}
        if stream in logs:
            table["workers"] = draw(st.integers(1, 3))
        elif memories and draw(st.booleans()):
            ways = draw(st.sampled_from((("reads",), ("writes",), ("reads", "writes"))))
            table |= dict.fromkeys(ways, draw(st.sampled_from(memories)))
    streams = {name: {"environment": "streamwise/KeyDoor-v0"} for name in environments}
    streams |= {name: {"source": "file:clicks.csv"} for name in logs}
    shared = {one.get("reads", one.get("writes")) for one in learners.values()}
    used = {one["stream"] for one in learners.values()}
    return {
        "name": "drawn",
        "streams": {name: table for name, table in streams.items() if name in used},
        "memories": {
            name: {"chunk_length": 4, "shards": draw(st.integers(1, 2))}
            for name in memories
            if name in shared
        },
        "learners": learners,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("spec")


@settings(max_examples=40, deadline=None)
@given(tables=specifications())
def test_arrows_say_who_reads_and_writes(folder, tables):
    path = folder / "system.toml"
    path.write_text(tomli_w.dumps(tables))
    drawn = diagram(load_system(str(path)))
    expected = set()
    for name, one in tables["learners"].items():
        expected.add((("stream", one["stream"]), ("learner", name)))
        if "writes" in one:
            expected.add((("learner", name), ("memory", one["writes"])))
        if "reads" in one:
            expected.add((("memory", one["reads"]), ("learner", name)))
    found = [((w.source.kind, w.source.name), (w.target.kind, w.target.name)) for w in drawn.wires]
    assert sorted(found) == sorted(expected)
    boxes = {(box.kind, box.name): box for box in drawn.boxes}
    assert boxes.keys() == {key for pair in expected for key in pair}
    for wire in drawn.wires:
        ends = [(wire.source, wire.begin), (wire.target, wire.end)]
        for box, (x, y) in ends:
            assert x in (box.x, box.right)
            assert box.y < y < box.y + box.height
        tip, base = numbers(wire.head)[0], numbers(wire.head)[2]
        assert tip == pytest.approx(wire.end[0], abs=0.06)
        assert (tip > base) == (wire.end[0] > wire.begin[0])  # it points away from where the line begins
        assert numbers(wire.path)[:2] == pytest.approx(wire.begin, abs=0.06)
    for box in drawn.boxes:
        behind = 4.5 if box.is_stacked else 0.0  # another one, that looks out
        assert 0.0 <= box.x < box.right + behind < drawn.width
        assert 0.0 < box.y < box.y + box.height + behind < drawn.height
        assert all(box.y < y < box.y + box.height for y, _, _ in box.texts)
        below = [other.y for other in drawn.boxes if other.kind == box.kind and other.y > box.y]
        assert all(box.y + box.height < y for y in below)
        processes = {"stream": {}, "learner": tables["learners"], "memory": tables["memories"]}
        table = processes[box.kind].get(box.name, {})
        assert box.is_stacked == (table.get("workers", 1) > 1 or table.get("shards", 1) > 1)


def numbers(path):
    return [float(text) for text in re.findall(r"-?\d+\.\d+", path)]
