"""Whatever becomes of a memory, whoever writes to it, its replicas follow."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from replica_support import (
    BLOCK,
    CACHED,
    LENGTH,
    Line,
    assert_same,
    assert_same_index,
    random_chunks,
    shared,
    small_pieces,
)

from streamwise.memory.replica import Replica
from streamwise.memory.retention import LogThinning, Merge, Reservoir, Ring


class WhatBecomesOfAMemory(RuleBasedStateMachine):
    """Several write, one of them by a replica; chunks go; the memory is killed, or its machine loses power.

    `known` is what each replica has to know of a chunk since it was last brought up to date.
    """

    @initialize(
        retention=st.sampled_from([Ring, Reservoir, lambda: LogThinning(window=2), Merge]),
        capacity=st.sampled_from([5, 12, 40]),
    )
    def begin(self, retention, capacity):
        self.patches = small_pieces()
        self.folder = Path(tempfile.mkdtemp())
        self.retention, self.capacity = retention, capacity
        self.memory = self.open()
        self.line = Line(self.memory)
        self.replicas = [Replica(self.line, writer="r", cached_chunks=CACHED)]
        self.replicas += [Replica(self.line, cached_chunks=cached) for cached in (BLOCK, 1000)]
        self.known = [{} for _ in self.replicas]
        self.writers = {}
        self.seed = 0

    def open(self):
        return shared(self.folder / "now", self.capacity, self.retention())

    def teardown(self):
        if hasattr(self, "patches"):
            self.memory.store.close()
            shutil.rmtree(self.folder)
            self.patches.close()

    @rule(writer=st.sampled_from("abc"), count=st.integers(1, 9), steps=st.integers(1, LENGTH))
    def somebody_writes(self, writer, count, steps):
        self.seed += 1
        lease, sequence = self.writers.get(writer, (None, 0))
        chunks = random_chunks(count, self.seed, steps)
        if lease is None:
            lease = self.memory.open_writer(writer, sequence)
        self.writers[writer] = lease, self.memory.append(writer, lease, sequence, chunks)

    @rule(writer=st.sampled_from("abc"), back=st.integers(1, 9))
    def a_writer_goes_back(self, writer, back):
        """What it writes next is another future, and the one that it had is taken back."""
        _, sequence = self.writers.get(writer, (None, 0))
        self.writers[writer] = None, max(sequence - back, 0)

    @rule(count=st.integers(1, 4))
    def the_replica_writes(self, count):
        for _ in range(count):
            self.seed += 1
            (chunk,) = random_chunks(1, self.seed)
            id = self.replicas[0].append(chunk, first=0, last=0, stream="r")
            assert id < self.memory.store.next_id
            if id in self.replicas[0]:
                np.testing.assert_array_equal(self.replicas[0].contents([id])[0][0], chunk)
        assert_same_index(self.replicas[0], self.memory.store)
        self.learn(0)

    @rule(data=st.data())
    @precondition(lambda self: len(self.memory.store))
    def some_are_dropped(self, data):
        ids = self.memory.store.ids[self.memory.store.valid].tolist()
        self.memory.store.drop(data.draw(st.lists(st.sampled_from(ids), min_size=1, max_size=5, unique=True)))

    @rule()
    def the_memory_is_killed(self):
        self.memory.store.close()
        self.begin_another_life()

    @rule()
    def the_disk_is_in_step(self):
        self.memory.flush()
        shutil.rmtree(self.folder / "safe", ignore_errors=True)
        shutil.copytree(self.folder / "now", self.folder / "safe")

    @rule()
    @precondition(lambda self: (self.folder / "safe").exists())
    def the_power_fails(self):
        self.memory.store.close()
        shutil.rmtree(self.folder / "now")
        shutil.copytree(self.folder / "safe", self.folder / "now")
        self.begin_another_life()

    def begin_another_life(self):
        self.memory = self.open()
        self.line.connect(self.memory)
        self.writers = {writer: (None, sequence) for writer, (_, sequence) in self.writers.items()}

    @rule(which=st.integers(0, 2), pieces=st.none() | st.just(1))
    def one_is_brought_up_to_date(self, which, pieces):
        replica = self.replicas[which]
        while replica.refresh(pieces):
            pass
        assert_same(replica, self.memory.store)
        self.learn(which)

    def learn(self, which):
        store = self.memory.store
        ids = store.ids[store.valid].tolist()
        self.known[which] = dict(zip(ids, zip(*store.contents(ids), strict=True), strict=True))

    @rule(which=st.integers(0, 2), data=st.data())
    def one_reads_what_it_knows(self, which, data):
        replica, known = self.replicas[which], self.known[which]
        ids = replica.ids[replica.valid].tolist()
        ids = data.draw(st.lists(st.sampled_from(ids), max_size=8)) if ids else []
        stood_in = replica.stood_in
        contents, steps = replica.contents(ids)
        for id, found, count in zip(ids, contents, steps, strict=True):
            if id in known and count == known[id][1] and np.array_equal(found, known[id][0]):
                continue
            if id not in known:  # it came with some pieces of a refresh, of which more will come
                continue
            stood_in += 1
            assert count == 1
            np.testing.assert_array_equal(found[0], replica.summaries[replica.ids.tolist().index(id)])
            assert not found[1:].any()

    @rule(which=st.integers(0, 2))
    def one_takes_up_a_piece(self, which):
        replica = self.replicas[which]
        replica.refresh(1)
        # What it knows may have gone, or, after the power failed, be another chunk.
        self.known[which] = {}
        assert len(replica) == replica.valid.sum()
        assert all(replica.chunk(id).id == id for id in replica.ids[replica.valid].tolist())

    @invariant()
    def caches_keep_to_their_bounds(self):
        for replica, bound in zip(getattr(self, "replicas", []), (CACHED, BLOCK, 1000), strict=False):
            assert replica.cached <= bound
            blocks = replica._cache.values()
            assert replica.cached == sum(block.size for block in blocks)
            assert sum(len(block.contents) for block in blocks) <= bound


WhatBecomesOfAMemory.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)


test_whatever_becomes_of_a_memory_its_replicas_follow = WhatBecomesOfAMemory.TestCase
