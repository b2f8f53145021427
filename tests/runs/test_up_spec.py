"""What a live system is, from a TOML file: each key does what it says, a wrong one is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamwise.runs.up_spec import FOR_EVER, load_system, system_names, wiring
from streamwise.streams import UsageError

SPEC = """
name = "tried"
[streams.doors]
environment = "streamwise/KeyDoor-v0"
[streams.clicks]
source = "file:clicks.csv"
[memories.rooms]
chunk_length = 3
[learners.ann]
stream = "doors"
writes = "rooms"
steps = 1_000
[learners.bob]
stream = "doors"
agent = "stream-q"
exploration_steps = 500
reads = "rooms"
[learners.cleo]
stream = "doors"
reads = "rooms"
writes = "rooms"
memory_guests = 9
[learners.shop]
stream = "clicks"
model = "hawkes"
workers = 2
types = 7
"""


def load(tmp_path: Path, text: str):
    path = tmp_path / "system.toml"
    path.write_text(text)
    return load_system(str(path))


def test_the_tables_say_who_learns_from_what_and_shares_what(tmp_path):
    spec = load(tmp_path, SPEC)
    ann, bob, cleo, shop = spec.learners
    assert (ann.config.environment, ann.config.agent, ann.config.steps) == (
        "streamwise/KeyDoor-v0", "stream-ac", 1_000
    )  # fmt: skip
    assert (ann.reads, ann.writes, bob.reads, bob.writes) == (None, "rooms", "rooms", None)
    assert bob.config.steps == FOR_EVER
    for plan, guests in ((ann, 0), (bob, 256), (cleo, 9)):
        settings = plan.config.settings
        assert (settings.memory, settings.memory_span) == ("hcam", "life")
        assert (settings.memory_chunk_length, settings.memory_guests) == (3, guests)
    assert (shop.config.sources, shop.config.model, shop.config.workers) == (
        (f"file:{Path('clicks.csv').absolute()}",), "hawkes", 2
    )  # fmt: skip
    assert shop.config.settings.types == 7
    assert spec.memories["rooms"].capacity == 100_000
    assert wiring(spec) == [
        " doors ──▶ ann (stream-ac)          ──▶ rooms",
        " doors ──▶ bob (stream-q)           ◀── rooms",
        " doors ──▶ cleo (stream-ac)         ◀─▶ rooms",
        "clicks ──▶ shop (hawkes, 2 workers)",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tried"', 'nam = "tried"', "unknown key 'nam'. Did you mean 'name'?"),
        ('name = "tried"', 'name = "/tried"', "name = '/tried' is no name of a folder"),
        ("[streams.clicks]", "[stream.clicks]", "unknown key 'stream'. Did you mean 'streams'?"),
        ("[memories.rooms]", '[memories."room 1"]', "[memories.room 1] has no name"),
        ("environment =", "enviroment =", "[streams.doors]: unknown key 'enviroment'. Did you mean"),
        ('source = "file:clicks.csv"', "source = 3", "[streams.clicks]: source = 3 is not the name of one"),
        ("chunk_length = 3", "chunk_length = 0", "[memories.rooms]: chunk_length = 0 must be a whole number"),
        ("chunk_length = 3", "chunk_len = 3", "[memories.rooms]: unknown key 'chunk_len'. Did you mean"),
        ("chunk_length = 3", 'retention = "log-thinning"\ncapacity = 1', "log-thinning needs a capacity"),
        ("chunk_length = 3", 'retention = "rung"', "retention = 'rung' is unknown. Did you mean 'ring'?"),
        (
            'stream = "clicks"',
            'stream = "click"',
            "[learners.shop]: stream = 'click' is none of [streams]. Did",
        ),
        (
            'writes = "rooms"\nsteps',
            'writes = "room"\nsteps',
            "writes = 'room' is none of [memories]. Did you",
        ),
        ("steps = 1_000", 'memory = "gru"', "memory = 'gru' does not go with a shared memory"),
        ("steps = 1_000", "memory_guests = 4", "[learners.ann]: memory_guests are for who reads"),
        ("steps = 1_000", "out = 'here'", "'out' cannot be set here; use --out of `streamwise up`"),
        (
            "steps = 1_000",
            "stepz = 5",
            "unknown key 'stepz' (a flag of `streamwise train --agent stream-ac`)",
        ),
        ("steps = 1_000", "steps = 0", "[learners.ann]: --steps is 0; use 1 or more"),
        ("exploration_steps = 500", "", "[learners.bob] goes on for ever, so a share of its steps is none"),
        ('agent = "stream-q"', 'agent = "stream-z"', "[learners.bob]: "),
        ("types = 7", 'reads = "rooms"', "[learners.shop]: event models have no memory to share"),
        ("types = 7", "type = 7", "unknown key 'type' (a flag of `streamwise ingest --model hawkes`)"),
        ('model = "hawkes"', 'model = "hawk"', "[learners.shop]: "),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, old, new, message):
    assert old in SPEC
    with pytest.raises(UsageError) as refused:
        load(tmp_path, SPEC.replace(old, new, 1))
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "system.toml"))
    assert "\n" not in str(refused.value)


def test_what_nobody_uses_and_a_file_without_learners_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\[memories.attic\] is used by no learner"):
        load(tmp_path, SPEC + "[memories.attic]\n")
    with pytest.raises(UsageError, match="it names no learners"):
        load(tmp_path, 'name = "empty"\n')
    with pytest.raises(UsageError, match=r"there is no .*missing.toml"):
        load_system(str(tmp_path / "missing.toml"))
    two = SPEC.replace('writes = "rooms"\nmemory_guests', 'writes = "attic"\nmemory_guests')
    with pytest.raises(UsageError, match=r"reads rooms and writes attic; one memory is shared"):
        load(tmp_path, two + "[memories.attic]\n")


def test_what_comes_along_are_systems():
    assert "told" in system_names()
    for name in system_names():
        assert load_system(name).name == name
    with pytest.raises(UsageError, match=r"'tolt' is neither a .toml file.* Did you mean 'told'"):
        load_system("tolt")
