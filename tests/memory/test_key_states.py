"""States by key: the same as a dictionary of all of them, whatever is on disk, and after every restart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamwise.memory.key_states import KeyFileError, KeyStates

ROW = np.dtype([("events", "f8"), ("pulses", "f4", (3,))])
NAMES = st.sampled_from([f"key {i}" for i in range(9)] + ["", "ключ", "a'b\"; DROP TABLE keys", "\x00"])


def put(states, names, numbers):
    slots = states.slots(names)
    for slot, number in zip(slots, numbers, strict=True):
        states.rows[slot]["events"] = number
        states.rows[slot]["pulses"] = number / 3.0


class AgainstADictionary(RuleBasedStateMachine):
    """Writes, checkpoints and kills in any order; three checkpoints are kept, and any may be gone on from."""

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "keys.sqlite"
        self.states = KeyStates(ROW, 4, self.path)
        self.truth: dict[str, float] = {}
        self.kept: list[tuple[dict, dict[str, float], int]] = []

    def teardown(self):
        self.states.close()
        self.folder.cleanup()

    @rule(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), number=st.integers(1, 1000))
    def write(self, names, number):
        numbers = [number + i / 7.0 for i in range(len(names))]
        put(self.states, names, numbers)
        self.truth.update(zip(names, numbers, strict=True))

    @rule()
    def checkpoint(self):
        generation = self.states.generation
        self.kept = [*self.kept[-2:], (self.states.state_dict(), dict(self.truth), generation)]
        self.states.forget_before(self.kept[0][2])

    @precondition(lambda self: self.kept)
    @rule(which=st.integers(0, 2))
    def kill_and_go_on(self, which):
        which = min(which, len(self.kept) - 1)
        self.kept = self.kept[: which + 1]  # what a damaged newer checkpoint leaves
        state, truth, _ = self.kept[-1]
        self.states._database.close()  # without a commit, as a kill would
        self.states = KeyStates(ROW, 4, self.path)
        self.states.load_state_dict(state)
        self.truth = dict(truth)

    @invariant()
    def every_key_is_what_it_was(self):
        assert len(self.states) == len(self.truth)
        assert self.states.in_memory <= 4
        for name, number in self.truth.items():
            row = self.states.find(name)
            assert row["events"] == number
            assert (row["pulses"] == np.float32(number / 3.0)).all()


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_old_rows_are_let_go_of(tmp_path):
    """With three checkpoints kept, a key that is written often has a few rows on disk, no more."""
    states, generations = KeyStates(ROW, 2, tmp_path / "keys.sqlite"), []
    for i in range(40):
        put(states, [f"key {i % 6}"], [float(i + 1)])
        generations = [*generations[-2:], states.generation]
        states.state_dict()
        states.forget_before(generations[0])
    rows = states._database.execute("SELECT count(*) FROM keys").fetchone()[0]
    assert rows <= 6 * 4


def test_a_reader_beside_the_run_sees_its_checkpoint_and_writes_nothing(tmp_path):
    writer = KeyStates(ROW, 2, tmp_path / "keys.sqlite")
    for i in range(5):
        put(writer, [f"key {i}"], [float(i + 1)])
    state = writer.state_dict()
    for i in range(5):
        put(writer, [f"key {i}"], [float(i + 100)])
    writer.state_dict()
    reader = KeyStates(ROW, 2, tmp_path / "keys.sqlite", read_only=True)
    reader.load_state_dict(state)
    assert [reader.find(f"key {i}")["events"] for i in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert reader.find("nobody") is None
    assert writer.find("key 0")["events"] == 100.0


def test_without_a_file_the_state_holds_every_key():
    states = KeyStates(ROW, 2)
    for i in range(7):
        put(states, [f"key {i}"], [float(i + 1)])
    other = KeyStates(ROW, 3)  # with room for more
    other.load_state_dict(states.state_dict())
    assert [other.find(f"key {i}")["events"] for i in range(7)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert (len(other), other.in_memory) == (7, 3)


def test_without_a_file_states_do_not_grow_with_their_number():
    states = KeyStates(ROW, 2)
    for i in range(40):
        put(states, [f"key {i % 4}"], [float(i + 1)])
        state = states.state_dict()
    assert len(json.loads(bytes(state["keys.names"].numpy()))) == 4
    assert states._database.execute("SELECT count(*) FROM keys").fetchone()[0] <= 2 * 4
    other = KeyStates(ROW, 8)
    other.load_state_dict(state)
    assert [other.find(f"key {i}")["events"] for i in range(4)] == [37.0, 38.0, 39.0, 40.0]
    assert len(other._free) == 4


@pytest.mark.parametrize("size", [1, 3, 100])
def test_all_keys_are_handed_out_once_in_pieces_as_of_the_checkpoint(tmp_path, size):
    writer = KeyStates(ROW, 2, tmp_path / "keys.sqlite")
    for i in range(6):
        put(writer, [f"key {i}"], [float(i)])
    put(writer, ["key 1"], [10.0])
    state = writer.state_dict()
    for i in range(6):
        put(writer, [f"key {i}"], [99.0])  # after it
    writer.state_dict()
    reader = KeyStates(ROW, 2, tmp_path / "keys.sqlite", read_only=True)
    reader.load_state_dict(state)
    pieces = list(reader.chunks(size))
    assert all(len(names) == len(rows) <= size for names, rows in pieces)
    found = [(name, row["events"]) for names, rows in pieces for name, row in zip(names, rows, strict=True)]
    assert sorted(found) == [(f"key {i}", 10.0 if i == 1 else i) for i in range(6)]
    assert [name for name, _ in found[-2:]] == ["key 5", "key 1"]  # in the order of their last use


def test_more_keys_at_once_than_fit_are_refused():
    with pytest.raises(ValueError, match="3 keys at once"):
        KeyStates(ROW, 2).slots(["a", "b", "c"])


def test_a_missing_file_is_noticed_if_keys_were_in_it(tmp_path):
    states = KeyStates(ROW, 2, tmp_path / "keys.sqlite")
    put(states, ["a", "b"], [1.0, 2.0])
    nothing_away = states.state_dict()
    put(states, ["c"], [3.0])
    one_away = states.state_dict()
    states.close()
    for file in tmp_path.iterdir():
        file.unlink()
    KeyStates(ROW, 2, tmp_path / "keys.sqlite").load_state_dict(nothing_away)
    (tmp_path / "keys.sqlite").unlink()
    with pytest.raises(KeyFileError, match=r"keys\.sqlite is missing or empty, and the states of 1 keys"):
        KeyStates(ROW, 2, tmp_path / "keys.sqlite").load_state_dict(one_away)


def test_a_damaged_file_is_named_in_a_line(tmp_path):
    path = tmp_path / "keys.sqlite"
    states = KeyStates(ROW, 2, path)
    for i in range(500):
        put(states, [f"key {i}"], [float(i + 1)])
    state = states.state_dict()
    states.close()
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 20_000)

    def use():
        damaged = KeyStates(ROW, 2, path)
        damaged.load_state_dict(state)
        return [damaged.find(f"key {i}") for i in range(500)]

    with pytest.raises(KeyFileError, match=r"keys\.sqlite cannot be used"):
        use()
