"""States of a store: what goes on from one is what was never interrupted, on disk and in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import load, save
from store_support import (
    CAPACITY,
    LENGTH,
    RETENTIONS,
    do,
    every_retention,
    everything,
    kept_ids,
    make,
    seal,
    steps_of,
)

from streamwise.memory.segment_files import ChunkFileError


def same_state(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        if name not in ("chunks.position", "chunks.settings", "chunks.counters"):
            assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name


class AgainstADictionary(RuleBasedStateMachine):
    """A store on disk and one in memory see the same, which a dictionary of all that was sealed agrees with.

    Chunks come, are read, pinned and dropped; checkpoints are made, of which two are kept; the process is
    killed, amid a write or not, and goes on from a kept checkpoint or from the files alone.
    """

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.truth: dict[int, tuple[np.ndarray, int | str]] = {}
        self.pins: dict[int, int] = defaultdict(int)
        self.gone: set[int] = set()
        self.kept: list = []
        self.clock = 0

    @initialize(retention=st.sampled_from(list(RETENTIONS)))
    def begin(self, retention):
        self.retention = retention
        self.disk, self.memory = make(self.folder, retention), make(None, retention)

    def teardown(self):
        if hasattr(self, "disk"):
            self.disk.close()
        shutil.rmtree(self.folder)

    def both(self, call):
        results = []
        for store in (self.disk, self.memory):
            try:
                results.append(call(store))
            except ValueError as error:
                results.append(str(error))
        assert results[0] == results[1]
        return results[0]

    def alive(self):
        return kept_ids(self.disk)

    @rule(
        stream=st.sampled_from([0, 7, "ann"]), episode=st.integers(0, 1), count=st.integers(1, LENGTH),
        priority=st.integers(0, 3),
    )  # fmt: skip
    def append(self, stream, episode, count, priority):
        before, self.clock = self.alive(), self.clock + 1
        about = {"stream": stream, "episode": episode, "priority": float(priority), "count": count}
        id = self.both(lambda store: seal(store, self.clock, **about))
        if isinstance(id, str):
            assert "no chunk may go" in id
            return
        assert id not in self.truth
        assert id > max(self.truth, default=-1)
        self.truth[id] = (steps_of(self.clock, count), stream)
        self.gone |= {*before, id} - set(self.alive())

    @precondition(lambda self: CAPACITY - sum(count > 0 for count in self.pins.values()) >= 4)
    @rule(stream=st.sampled_from([0, "ann"]), chunks=st.integers(1, 4), count=st.integers(1, LENGTH))
    def append_many(self, stream, chunks, count):
        """On disk at once, and one after another in memory."""
        before, first = self.alive(), self.disk.next_id
        times = [10.0 * (self.clock + 1 + number) for number in range(chunks)]
        contents = np.stack([steps_of(then, count) for then in times])
        for number, then in enumerate(times):
            about = {"first": then, "last": then, "stream": stream, "sequence": 5 + number}
            self.memory.append(contents[number], **about)
        self.disk.append_many(contents, times=times, stream=stream, sequence=5)
        assert self.disk.next_id == self.memory.next_id
        self.clock += chunks
        if self.retention != "merge":  # which gives numbers to what it makes, too
            self.truth |= {first + i: (steps, stream) for i, steps in enumerate(contents)}
            self.gone |= {*before, *range(first, first + chunks)} - set(self.alive())
        else:
            self.gone |= set(before) - set(self.alive())

    @precondition(lambda self: self.alive())
    @rule(which=st.lists(st.integers(0, 7), min_size=1, max_size=3), weight=st.floats(0.0, 1.0))
    def read(self, which, weight):
        ids = [self.alive()[i % len(self.alive())] for i in which]
        self.both(lambda store: store.used(ids, [weight] * len(ids)))

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 7))
    def pin(self, which):
        id = self.alive()[which % len(self.alive())]
        self.both(lambda store: store.pin([id]))
        self.pins[id] += 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(which=st.integers(0, 7))
    def unpin(self, which):
        pinned = [id for id, count in sorted(self.pins.items()) if count]
        id = pinned[which % len(pinned)]
        self.both(lambda store: store.unpin([id]))
        self.pins[id] -= 1

    @rule(which=st.integers(0, 7))
    def drop(self, which):
        ids = [id for id in self.alive() if id % 8 == which and not self.pins[id]]
        self.both(lambda store: store.drop(ids))
        self.gone |= set(ids)

    @rule()
    def checkpoint(self):
        generation = self.disk.generation
        states = [load(save(store.state_dict())) for store in (self.disk, self.memory)]
        mine = (dict(self.truth), self.pins.copy(), set(self.gone), self.clock)
        self.kept = [*self.kept[-1:], (states, mine, generation)]
        self.disk.forget_before(self.kept[0][2])

    def open_again(self, torn):
        self.disk.close()
        files = sorted(self.folder.iterdir())
        if files and torn:
            with files[-1].open("ab") as last:
                last.write(os.urandom(torn))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.disk = make(self.folder, self.retention)
        assert self.disk.recovery.cut_bytes == (torn if files else 0)

    @precondition(lambda self: self.kept)
    @rule(which=st.integers(0, 1), torn=st.integers(0, 400))
    def kill_and_go_on(self, which, torn):
        self.kept = self.kept[: min(which, len(self.kept) - 1) + 1]  # what a damaged newer checkpoint leaves
        self.open_again(torn)
        (on_disk, in_memory), (truth, pins, gone, clock), _ = self.kept[-1]
        self.disk.load_state_dict(on_disk)
        self.memory = make(None, self.retention)
        self.memory.load_state_dict(in_memory)
        self.truth, self.pins, self.gone, self.clock = dict(truth), pins.copy(), set(gone), clock

    @rule(torn=st.integers(0, 400))
    def kill_and_look_at_the_files(self, torn):
        before, state = everything(self.disk), self.disk.state_dict()
        while before["ids"] and before["ids"][-1] < 0:
            before["ids"].pop()
        self.open_again(torn)
        after = everything(self.disk)
        assert after["ids"][: len(before["ids"])] == before["ids"]
        assert {**after, "ids": []} == {**before, "ids": []}
        self.disk.load_state_dict(state)

    @invariant()
    def the_disk_says_what_memory_says(self):
        if hasattr(self, "disk"):
            assert everything(self.disk) == everything(self.memory)

    @invariant()
    def what_is_kept_is_what_was_sealed(self):
        if not hasattr(self, "disk"):
            return
        alive = self.alive()
        assert len(alive) == len(self.disk) <= CAPACITY
        assert not self.gone & set(alive)
        assert {id for id, count in self.pins.items() if count} <= set(alive)
        for id in set(alive) & set(self.truth):
            steps, stream = self.truth[id]
            contents, count = self.disk.contents([id])
            assert self.disk.chunk(id).stream == stream
            assert (contents[0, : count[0]] == steps).all()
            assert not contents[0, count[0] :].any()
        with pytest.raises(KeyError, match="is not kept"):
            self.disk.contents([max(self.truth, default=0) + 1000])


TestAgainstADictionary = AgainstADictionary.TestCase


TestAgainstADictionary.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)


@every_retention
@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_killed_and_resumed_equals_never_killed(retention, on_disk, tmp_path):
    folder, other_folder = (tmp_path / "a", tmp_path / "b") if on_disk else (None, None)
    never, killed = make(folder, retention), make(other_folder, retention)
    for number in range(150):
        do(never, number)
    for number in range(100):
        do(killed, number)
        if number == 70:
            state = save(killed.state_dict())
    killed.close()
    resumed = make(other_folder, retention, seed=9)  # the seed is in the state
    resumed.load_state_dict(load(state))
    for number in range(71, 150):
        do(resumed, number)
    assert everything(resumed) == everything(never)
    same_state(resumed.state_dict(), never.state_dict())


def test_an_older_checkpoint_takes_back_what_came_after_it(tmp_path):
    store = make(tmp_path)
    for number in range(6):
        seal(store, number)
    state, seen = store.state_dict(), everything(store)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for number in range(6, 40):
        seal(store, number)
    store.load_state_dict(state)
    assert everything(store) == seen
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert seal(store, 6) == 6


def test_a_state_is_gone_back_to_whose_last_file_had_nothing_left(tmp_path):
    store = make(tmp_path)
    for number in range(2):
        seal(store, number)
    store.drop([0, 1])
    state = store.state_dict()
    for number in range(2, 9):
        seal(store, number)
    store.load_state_dict(state)
    assert kept_ids(store) == []
    assert seal(store, 2) == 2


def test_a_state_of_another_store_is_refused(tmp_path):
    store = make(tmp_path / "a")
    for number in range(6):
        seal(store, number)
    state = store.state_dict()
    with pytest.raises(ChunkFileError, match=r"holds 0 records, and the checkpoint refers to 6"):
        make(tmp_path / "b").load_state_dict(state)
    with pytest.raises(ValueError, match=r"on disk, and this one has 4 steps .* in memory"):
        make().load_state_dict(state)
    with pytest.raises(ValueError, match="6 slots, and the capacity is 5"):
        make(tmp_path / "c", capacity=5).load_state_dict(state)
    other = make(tmp_path / "d")
    for number in range(1, 9):
        seal(other, number)
    seen = everything(other)
    with pytest.raises(ChunkFileError, match="holds other records than the checkpoint refers to"):
        other.load_state_dict(state)
    assert everything(other) == seen


def test_a_state_that_ends_with_a_file_in_which_nothing_is_kept_can_be_gone_back_to_again(tmp_path):
    """The file was deleted, and the next state had to say how the log ends there."""
    store = make(tmp_path)
    for number in range(2):
        store.drop([seal(store, number)])
    state = store.state_dict()  # of a file's four records
    seal(store, 2)
    for _ in range(2):
        store.load_state_dict(state)
        store.forget_before(store.generation - 1)
        state = store.state_dict()
        store.forget_before(store.generation - 1)
        state = store.state_dict()
    store.close()
    store = make(tmp_path)
    store.load_state_dict(state)
    assert seal(store, 3) == 2
    store.close()
