"""One memory of several learners: each chunk is there once, whoever is killed; lost futures go."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamwise.memory.episode import EpisodeMemory
from streamwise.memory.retention import Reservoir, Ring
from streamwise.memory.shared import MemoryLink, NotOpenError, OpenedAgainError, SharedMemory
from streamwise.memory.store import InProcessStore

LENGTH, WIDTH = 2, 3


def shared(directory=None, capacity=1000, retention=None):
    store = InProcessStore(
        LENGTH, WIDTH, capacity, directory=directory, records_per_file=8, retention=retention or Ring()
    )
    return SharedMemory(store)


def own_memory(*, capacity=4, guests=0):
    return EpisodeMemory(WIDTH, chunk_length=LENGTH, capacity=capacity, lasting=True, guests=guests)


def link(name, *, writes=True, reads=False, capacity=4, guests=0, shards=1):
    return MemoryLink(own_memory(capacity=capacity, guests=guests), name, writes, reads, shards)


def steps(*numbers):
    """One step for each number, which tells what it is."""
    return [torch.tensor([float(number), number / 2.0, 1.0]) for number in numbers]


def live(one, *numbers):
    for step in steps(*numbers):
        one.memory.append(step)
        one.turn()


def chunks_of(memory, writer):
    """First numbers of a writer's chunks, in order of their sequence numbers; each has to be there once."""
    store = memory.store
    mine = [id for id in store.ids[store.valid].tolist() if store.chunk(id).stream == writer]
    mine.sort(key=lambda id: store.chunk(id).sequence)
    sequence = [store.chunk(id).sequence for id in mine]
    assert len(set(sequence)) == len(sequence)
    return store.contents(mine)[0][:, 0, 0].tolist() if mine else []


def guests_of(one):
    memory = one.memory
    there = np.flatnonzero(memory.guest_ids >= 0)
    assert memory.visible[memory.own_slots :][there].all()
    return sorted(memory.contents[memory.own_slots :][there, 0, 0].tolist())


def test_what_one_writes_the_other_reads_and_nobody_reads_its_own_again():
    memory, teller = shared(), link("teller")
    listener = link("listener", reads=True, guests=8)
    live(teller, 1, 2, 3, 4, 5)
    live(listener, 11, 12)
    teller.exchange(memory)
    assert listener.exchange(memory)
    listener.turn()
    assert guests_of(listener) == [1.0, 3.0]
    assert chunks_of(memory, "teller") == [1.0, 3.0]  # the fifth step is in an open chunk
    assert chunks_of(memory, "listener") == [11.0]
    live(teller, 6)
    teller.exchange(memory)
    assert listener.exchange(memory)
    assert not listener.exchange(memory)
    listener.turn()
    assert guests_of(listener) == [1.0, 3.0, 5.0]
    assert listener.received == 3
    assert memory.counts().written == {"teller": 3, "listener": 1}


def test_a_reader_with_little_room_gets_the_newest():
    memory, teller = shared(), link("teller", capacity=50)
    listener = link("listener", writes=False, reads=True, guests=3)
    live(teller, *range(40))
    teller.exchange(memory)
    listener.exchange(memory)
    listener.turn()
    assert guests_of(listener) == [34.0, 36.0, 38.0]


def test_a_restored_writer_that_does_the_same_again_writes_nothing_twice():
    memory, writer = shared(), link("a")
    live(writer, 0, 1, 2, 3)
    writer.exchange(memory)
    checkpoint = writer.memory.state_dict()
    live(writer, 4, 5, 6, 7)
    writer.exchange(memory)
    again = link("a")
    again.memory.load_state_dict(checkpoint)
    live(again, 4, 5)
    again.exchange(memory)
    assert (memory.repeated, memory.taken_back) == (1, 0)
    live(again, 6, 7, 8, 9)
    again.exchange(memory)
    assert (memory.repeated, memory.taken_back) == (2, 0)
    assert chunks_of(memory, "a") == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_a_lost_future_is_taken_back_from_the_memory_and_from_who_has_read_it():
    memory, writer, reader = shared(), link("a"), link("b", writes=False, reads=True, guests=8)
    live(writer, 0, 1, 2, 3)
    writer.exchange(memory)
    checkpoint = writer.memory.state_dict()
    live(writer, 4, 5, 6, 7, 8, 9)
    writer.exchange(memory)
    reader.exchange(memory)
    reader.turn()
    assert guests_of(reader) == [0.0, 2.0, 4.0, 6.0, 8.0]
    again = link("a")
    again.memory.load_state_dict(checkpoint)
    live(again, 4, 5, 66, 7)  # the same, then something else
    again.exchange(memory)
    reader.exchange(memory)
    reader.turn()
    assert chunks_of(memory, "a") == [0.0, 2.0, 4.0, 66.0]
    assert guests_of(reader) == [0.0, 2.0, 4.0, 66.0]
    assert memory.taken_back == 2


def test_who_was_opened_again_elsewhere_may_not_write():
    memory, first, second = shared(), link("a"), link("a")
    live(first, 0, 1)
    first.exchange(memory)
    live(second, 0, 1)
    second.exchange(memory)
    live(first, 2, 3)
    with pytest.raises(OpenedAgainError, match="another process has opened the memory as a"):
        first.exchange(memory)
    assert chunks_of(memory, "a") == [0.0]


def test_a_memory_that_was_started_again_is_opened_anew(tmp_path):
    memory, writer = shared(tmp_path), link("a")
    live(writer, 0, 1)
    writer.exchange(memory)
    memory.store.close()
    memory = shared(tmp_path)
    live(writer, 2, 3)
    with pytest.raises(NotOpenError, match="a has not opened the memory since"):
        writer.exchange(memory)
    writer.lost("it was started again")
    writer.exchange(memory)
    assert chunks_of(memory, "a") == [0.0, 2.0]
    memory.store.close()


def test_chunks_with_a_gap_before_them_are_refused():
    memory = shared()
    lease = memory.open_writer("a", 0)
    with pytest.raises(ValueError, match="a sends chunk 1, and 0 comes next"):
        memory.append("a", lease, 1, np.zeros((1, LENGTH, WIDTH), np.float32))


def test_a_writer_waits_rather_than_overwrite_what_has_not_arrived():
    memory, writer = shared(), link("a", capacity=3)
    done = threading.Event()

    def life():
        live(writer, *range(40))
        done.set()

    thread = threading.Thread(target=life)
    thread.start()
    assert not done.wait(0.2)
    assert writer.waits
    assert writer.unsent == 3
    while not done.wait(0.001):
        writer.exchange(memory)
    thread.join()
    writer.exchange(memory)
    assert chunks_of(memory, "a") == [float(number) for number in range(0, 40, 2)]
    assert not writer.waits


def test_a_writer_that_is_to_stop_does_not_wait():
    writer = link("a", capacity=3)
    for step in steps(*range(6)):
        writer.memory.append(step)
    writer.turn(lambda: True)
    assert writer.unsent == 3


def test_a_memory_of_an_episode_or_without_room_is_refused():
    with pytest.raises(ValueError, match="share a memory that lasts"):
        MemoryLink(EpisodeMemory(WIDTH, chunk_length=LENGTH), "a", True, False)
    with pytest.raises(ValueError, match="no room for guests"):
        MemoryLink(own_memory(), "a", False, True)


@pytest.mark.parametrize("retention", [Ring, Reservoir])
def test_capacity_and_retention_hold_for_all_writers_together(retention):
    memory = shared(capacity=6, retention=retention())
    writers = [link(name) for name in ("a", "b")]
    for number in range(0, 40, 2):
        for writer in writers:
            live(writer, number, number + 1)
            writer.exchange(memory)
    assert len(memory.store) == 6
    if retention is Ring:
        assert chunks_of(memory, "a") == chunks_of(memory, "b") == [34.0, 36.0, 38.0]


def test_of_several_shards_each_writer_has_one_and_a_reader_hears_them_all():
    shards, names = [shared() for _ in range(3)], [f"w{number}" for number in range(12)]
    writers = [link(name, shards=3) for name in names]
    reader = link("reader", writes=False, reads=True, guests=20, shards=3)
    for number, writer in enumerate(writers):
        live(writer, 10 * number, 0)
        writer.exchange(shards[writer.home], writer.home)
        assert [writer.concerns(shard) for shard in range(3)] == [shard == writer.home for shard in range(3)]
    assert {writer.home for writer in writers} == {0, 1, 2}
    for shard, memory in enumerate(shards):
        reader.exchange(memory, shard)
    reader.turn()
    assert sorted(guests_of(reader)) == [
        10 * number for number in range(12)
    ]  # ids are the same, names are not
    # After a restart it goes on behind what it has, in each shard, and lets go of what was dropped in one.
    again = link("reader", writes=False, reads=True, guests=20, shards=3)
    again.memory.load_state_dict(reader.memory.state_dict())
    gone = writers[4]
    shards[gone.home].store.drop([id for id in shards[gone.home].store.ids.tolist() if id >= 0][:1])
    dropped = next(i for i, writer in enumerate(writers) if writer.home == gone.home)
    for shard, memory in enumerate(shards):
        assert not again.exchange(memory, shard)
    again.turn()
    assert sorted(guests_of(again)) == [10 * number for number in range(12) if number != dropped]


def test_what_a_full_disk_took_of_many_chunks_is_not_there_twice(tmp_path, monkeypatch):
    memory, writer = shared(tmp_path), link("a", capacity=40)
    live(writer, *range(24))  # 12 chunks, and a file has room for 8
    write, left = os.pwrite, 9

    def fills_up(file, data, offset):
        nonlocal left
        if len(data) > 64 and left < len(data) // memory.store._record.itemsize:
            raise OSError(28, "No space left on device")
        left -= len(data) // memory.store._record.itemsize
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(OSError, match="No space left") as caught:
        writer.exchange(memory)
    writer.lost(str(caught.value))
    assert chunks_of(memory, "a") == list(range(0, 16, 2))
    assert writer.memory.delivered == 0
    monkeypatch.undo()
    writer.exchange(memory)
    assert chunks_of(memory, "a") == list(range(0, 24, 2))
    assert memory.repeated == 8


def test_readers_hear_of_chunks_that_came_in_before_the_disk_was_full(monkeypatch):
    memory, writer = shared(), link("a", capacity=40)
    live(writer, 0, 1)
    writer.exchange(memory)
    (first,) = memory.store.ids[memory.store.valid].tolist()
    live(writer, *range(2, 8))  # three more
    append_many = memory.store.append_many

    def one_and_no_more(chunks, *, times, **options):
        append_many(chunks[:1], times=times[:1], **options)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(memory.store, "append_many", one_and_no_more)
        with pytest.raises(OSError, match="No space left") as caught:
            writer.exchange(memory)
    writer.lost(str(caught.value))
    writer.exchange(memory)
    assert memory.repeated == 1
    assert memory.news("b", after=first, most=10).contents[:, 0, 0].tolist() == [2.0, 4.0, 6.0]


class LearnersThatAreKilled(RuleBasedStateMachine):
    """Three learners write and read; any of them, or the memory's process, is killed at any time.

    `a` does the same thing after a restart, as a learner does that reads nothing of others; `b` and `c` may
    do something else. `truth` is what each has lived, as a checkpoint would tell it.
    """

    names = "abc"

    @initialize(shards=st.sampled_from([1, 2, 3]))
    def begin(self, shards):
        self.folder = Path(tempfile.mkdtemp())
        self.shards = [shared(self.folder / str(shard)) for shard in range(shards)]
        for memory in self.shards:
            memory._recent = deque(maxlen=5)  # so that now and then all chunks have to be looked at
        self.links = {name: self.new(name) for name in self.names}
        self.truth = {name: [] for name in self.names}
        self.kept = {name: (link_.memory.state_dict(), []) for name, link_ in self.links.items()}
        self.fork = 0

    def teardown(self):
        if hasattr(self, "shards"):
            for memory in self.shards:
                memory.store.close()
            shutil.rmtree(self.folder)

    def new(self, name):
        guests = 0 if name == "a" else 6
        return link(name, writes=True, reads=name != "a", guests=guests, shards=len(self.shards))

    @rule(name=st.sampled_from(names), count=st.integers(1, 7))
    def lives(self, name, count):
        one, truth = self.links[name], self.truth[name]
        for _ in range(count):
            if one.unsent >= 3:  # it would wait
                self.exchanges(name)
            number = len(truth) + (0.0 if name == "a" else 1000.0 * self.fork)
            truth.append(number)
            live(one, number)

    @rule(name=st.sampled_from(names))
    def exchanges(self, name):
        one = self.links[name]
        for shard, memory in enumerate(self.shards):
            if not one.concerns(shard):
                continue
            try:
                while one.exchange(memory, shard):
                    pass
            except NotOpenError as error:
                one.lost(str(error), shard)
                while one.exchange(memory, shard):
                    pass
        one.turn()

    @rule(name=st.sampled_from(names))
    def keeps_a_checkpoint(self, name):
        self.kept[name] = self.links[name].memory.state_dict(), list(self.truth[name])

    @rule(name=st.sampled_from(names))
    def is_killed(self, name):
        state, truth = self.kept[name]
        self.links[name] = self.new(name)
        self.links[name].memory.load_state_dict(state)
        self.truth[name] = list(truth)
        self.fork += 1

    @rule(which=st.integers(0, 2))
    def a_shard_is_killed(self, which):
        shard = which % len(self.shards)
        self.shards[shard].store.close()
        self.shards[shard] = shared(self.folder / str(shard))

    def chunks_of(self, name):
        """All of a writer's chunks, which are in one shard."""
        home = self.links[name].home
        assert not any(chunks_of(memory, name) for i, memory in enumerate(self.shards) if i != home)
        return chunks_of(self.shards[home], name)

    @rule()
    def all_is_quiet(self):
        """Everybody lives on for a while, and hears of everything: then all is as it should be."""
        for name in self.names:
            self.lives(name, 2)
        for _ in range(2):
            for name in self.names:
                self.exchanges(name)
        for name in self.names:
            whole = len(self.truth[name]) // LENGTH * LENGTH
            lived = self.truth[name][:whole:LENGTH]
            there = self.chunks_of(name)
            assert there[: len(lived)] == lived
            # What comes after that was lived before a kill, and is in doubt until the writer says more.
            assert len(there) == len(lived) or self.shards[self.links[name].home]._writers[name].in_doubt
        for name in "bc":
            guests = guests_of(self.links[name])
            others = [chunk for other in self.names if other != name for chunk in self.chunks_of(other)]
            assert set(guests) <= set(others)
            assert len(guests) == len(set(guests)) or len(set(others)) < len(others)

    @invariant()
    def nobody_sees_its_own_lost_future(self):
        if not hasattr(self, "links"):
            return
        for name, one in self.links.items():
            memory, truth = one.memory, self.truth[name]
            slots = np.flatnonzero(memory.visible[: memory.own_slots])
            assert set(memory.contents[slots, :, 0].flatten().tolist()) <= set(truth)


LearnersThatAreKilled.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)
test_learners_that_are_killed = LearnersThatAreKilled.TestCase
