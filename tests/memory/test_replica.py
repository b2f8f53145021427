"""A replica is what its memory is, whatever happened there, and holds no more contents than it may."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamwise.memory import index as index_module
from streamwise.memory import replica as module
from streamwise.memory.chunks import Chunk
from streamwise.memory.hcam import HCAM, ChunkAttention
from streamwise.memory.index import SummaryIndex
from streamwise.memory.replica import NotOwnerError, Publisher, Replica
from streamwise.memory.retention import LogThinning, Merge, Reservoir, Ring
from streamwise.memory.shared import NotOpenError, OpenedAgainError, SharedMemory
from streamwise.memory.store import InProcessStore

LENGTH, WIDTH = 3, 4
BLOCK, CACHED = 4, 10  # chunks


def shared(directory=None, capacity=100, retention=None):
    store = InProcessStore(
        LENGTH, WIDTH, capacity, directory=directory, records_per_file=8, retention=retention or Ring()
    )
    return SharedMemory(store)


class Line:
    """A source that can be cut, before or after the call arrives, and counts what comes over it."""

    def __init__(self, memory, block_chunks=BLOCK):
        self.block_chunks = block_chunks
        self.cut_before = self.cut_after = ()
        self.calls, self.slots = [], 0
        self.connect(memory)

    def connect(self, memory):
        self.to = Publisher(memory, self.block_chunks)

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name in self.cut_before:
                raise ConnectionError("the line is cut")
            found = getattr(self.to, name)(*arguments)
            if name in self.cut_after:
                raise ConnectionError("the line is cut")
            if name == "changes":
                self.slots += len(found.slots)
            return found

        return call


def random_chunks(count, seed=0, steps=LENGTH):
    return np.random.default_rng(seed).standard_normal((count, steps, WIDTH)).astype(np.float32)


def write(memory, writer, count, sequence=0, seed=0, steps=LENGTH):
    lease = memory.open_writer(writer, sequence)
    memory.append(writer, lease, sequence, random_chunks(count, seed, steps))


def follow(memory, **settings):
    made = Replica(Line(memory), **{"cached_chunks": CACHED, **settings})
    assert not made.refresh()
    return made


def small_pieces():
    """Bound calls so that few slots take several pieces."""
    stack = contextlib.ExitStack()
    bounds = {"_LOOKED_AT_ONCE": 8, "_SENT_AT_ONCE": 4, "_COMPARED": 2, "_BLOCKS_AT_ONCE": 2}
    for name, number in bounds.items():
        stack.enter_context(mock.patch.object(module, name, number))
    return stack


def assert_same_index(replica, store):
    assert len(replica) == len(store)
    np.testing.assert_array_equal(replica.ids, store.ids)
    np.testing.assert_array_equal(replica.valid, store.valid)
    there = store.valid
    np.testing.assert_array_equal(replica.summaries[there], store.summaries[there])
    for name in (*Chunk._fields, "name"):
        found, expected = replica.column(name), store.column(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found[there], expected[there])
    for id in store.ids[there].tolist():
        assert id in replica
        assert replica.chunk(id) == store.chunk(id)


def assert_same(replica, store):
    assert_same_index(replica, store)
    ids = store.ids[store.valid].tolist()
    stood_in = replica.stood_in
    for found, expected in zip(replica.contents(ids), store.contents(ids), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert replica.stood_in == stood_in


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


def attention(**settings):
    generator = torch.Generator().manual_seed(0)
    return ChunkAttention(6, WIDTH, features=8, heads=2, length=LENGTH, k=4, generator=generator, **settings)


@pytest.mark.parametrize("options", [{}, {"pooling": "attention"}, {"age": True}])
@pytest.mark.parametrize("retention", [Ring, Reservoir])
def test_reading_through_a_replica_is_reading_the_store_itself_bit_for_bit(retention, options):
    memory = shared(capacity=50, retention=retention())
    replica, read = follow(memory), attention(**options)
    queries = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    for turn in range(8):
        write(memory, "a", 11, 11 * turn, seed=turn)
        write(memory, "b", 3, 3 * turn, seed=100 + turn, steps=2)
        replica.refresh()
        for stream in "ab":
            mine, theirs = (HCAM(read, store, stream=stream) for store in (replica, memory.store))
            assert torch.equal(mine.read(queries), theirs.read(queries))
            assert torch.equal(mine.read(queries[0]), theirs.read(queries[0]))
    assert replica.stood_in == 0


def test_an_index_of_a_replica_finds_what_one_of_the_store_finds_and_is_not_made_again():
    memory = shared(capacity=300)
    write(memory, "a", 200)
    with mock.patch.object(index_module, "_FEW", 20):
        replica = follow(memory)
        indices = [SummaryIndex(store, lists=12, probe=3) for store in (replica, memory.store)]
        queries = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
        read = attention()
        for turn in range(1, 6):
            write(memory, "a", 20, 180 + 20 * turn, seed=turn)
            replica.refresh()
            found = [
                HCAM(read, store, stream="a", index=index).read(queries)
                for store, index in zip((replica, memory.store), indices, strict=True)
            ]
            assert torch.equal(*found)
            if turn == 1:
                made = indices[0]._centroids
        assert indices[0]._centroids is made


def test_chunks_come_in_the_order_of_their_ids_however_many_pieces_they_come_in():
    """An index takes an id that is lower than the highest it has seen for that of another chunk."""
    memory = shared(capacity=30)
    with small_pieces():
        replica = Replica(Line(memory), cached_chunks=CACHED)
        seen, highest = set(), -1
        for turn in range(40):
            write(memory, "a", 3, 3 * turn, seed=turn)  # into any of the slots, after 30 chunks
            for _ in range(3):
                before = replica._start is None
                replica.refresh(1)
                ids = set(replica.ids[replica.valid].tolist())
                if before and ids - seen:
                    assert min(ids - seen) > highest
                if replica._start is None:
                    seen, highest = seen | ids, max(ids, default=highest)
        assert highest > 60


def test_arrays_stay_where_they_are():
    memory = shared()
    replica = follow(memory)
    write(memory, "a", 1)
    replica.refresh()
    before = [array.ctypes.data for array in (replica.ids, replica.summaries, replica.column("stream"))]
    write(memory, "b", 90)
    replica.refresh()
    after = [array.ctypes.data for array in (replica.ids, replica.summaries, replica.column("stream"))]
    assert before == after
    assert replica.summaries.flags.c_contiguous


def test_nothing_is_sent_while_nothing_changes_and_what_changes_once():
    memory = shared(capacity=20)
    replica = follow(memory)
    line = replica._source
    write(memory, "a", 15)
    replica.refresh()
    assert line.slots == 15
    for _ in range(3):
        replica.refresh()
    assert line.slots == 15
    write(memory, "a", 8, 15)  # three of them in the place of others
    memory.store.drop([7])
    replica.refresh()
    assert line.slots == 15 + 8 + 1
    assert_same(replica, memory.store)


def test_what_came_before_a_restart_and_went_after_it_goes(tmp_path):
    memory = shared(tmp_path)
    write(memory, "a", 3)
    replica = follow(memory)
    write(memory, "a", 2, 3)
    replica.refresh()
    memory.store.close()
    memory = shared(tmp_path)
    replica._source.connect(memory)
    write(memory, "a", 1, 5)  # into a slot that this life had not used
    replica.refresh()
    memory.store.drop([5])
    replica.refresh()
    assert_same(replica, memory.store)
    memory.store.close()


def test_after_a_restart_only_what_was_lost_is_sent_again(tmp_path):
    memory = shared(tmp_path / "now", capacity=10_000)
    write(memory, "a", 4000)
    replica = follow(memory)
    line = replica._source
    assert line.slots == 4000
    shutil.copytree(tmp_path / "now", tmp_path / "safe")
    write(memory, "a", 2, 4000, seed=1)
    replica.refresh()
    memory.store.close()

    memory = shared(tmp_path / "now", capacity=10_000)  # it was killed
    line.connect(memory)
    line.slots = 0
    replica.refresh()
    assert line.slots == 0
    assert_same(replica, memory.store)
    write(memory, "a", 1, 4002, seed=2)
    replica.refresh()
    assert line.slots == 1
    memory.store.close()

    memory = shared(tmp_path / "safe", capacity=10_000)  # power failed; ids stand for other chunks now
    write(memory, "b", 3, seed=3)
    line.connect(memory)
    line.slots = 0
    replica.refresh()
    assert 0 < line.slots <= 1024
    assert_same(replica, memory.store)
    memory.store.close()


def test_a_refresh_that_was_cut_off_goes_on_where_it_was():
    memory = shared()
    write(memory, "a", 40)
    with small_pieces():
        line = Line(memory)
        replica = Replica(line, cached_chunks=CACHED)
        assert replica.refresh(6)
        assert len(replica) == 24
        line.cut_before = ("changes",)
        with pytest.raises(ConnectionError):
            replica.refresh()
        assert len(replica) == 24
        line.cut_before = ()
        assert not replica.refresh()
        assert line.slots == 40
        assert_same(replica, memory.store)


def test_a_chunk_that_has_gone_is_read_from_the_cache_or_as_its_summary_until_the_next_refresh():
    memory = shared()
    write(memory, "a", 12)
    replica = follow(memory)
    expected, _ = memory.store.contents([0, 1, 4])
    assert np.array_equal(replica.contents([0])[0][0], expected[0])  # and with it comes its block
    memory.store.drop([1, 4])
    found, steps = replica.contents([1, 4, 5])
    assert steps.tolist() == [LENGTH, 1, LENGTH]
    assert np.array_equal(found[0], expected[1])
    assert np.array_equal(found[1, 0], replica.summaries[4])
    assert not found[1, 1:].any()
    assert replica.stood_in == 1
    with pytest.raises(KeyError, match="let go of chunk 4"):
        replica.view(4)
    calls = len(replica._source.calls)
    replica.contents([4])
    assert len(replica._source.calls) == calls  # it is known to have gone
    replica.refresh()
    for id in (1, 4):
        with pytest.raises(KeyError, match=f"chunk {id} is not in the replica's index"):
            replica.contents([id])
        with pytest.raises(KeyError, match="refresh, and scan"):
            replica.chunk(id)


def test_of_another_life_nothing_is_read_before_a_refresh_but_what_is_cached(tmp_path):
    memory = shared(tmp_path)
    write(memory, "a", 12)
    replica = follow(memory)
    expected = memory.store.contents([0, 9])
    replica.contents([0])
    memory.store.close()
    replica._source.connect(shared(tmp_path))
    found, steps = replica.contents([0, 9])
    assert np.array_equal(found[0], expected[0][0])
    assert steps.tolist() == [LENGTH, 1]
    assert replica.stood_in == 1
    with small_pieces():
        assert replica.refresh(2)
        assert replica.contents([9])[1].tolist() == [1]
        replica.refresh()
    for one, other in zip(replica.contents([0, 9]), expected, strict=True):
        assert np.array_equal(one, other)
    assert replica.stood_in == 2
    replica._source.to._memory.store.close()


def test_blocks_are_fetched_once_and_the_chunks_of_the_last_one_by_one():
    memory = shared()
    write(memory, "a", 2 * BLOCK + 2)
    replica = follow(memory, cached_chunks=3 * BLOCK)
    for _ in range(2):
        replica.contents(range(2 * BLOCK))
    assert replica.fetched == 2
    replica.contents([2 * BLOCK])
    replica.contents([2 * BLOCK + 1])
    assert replica.fetched == 4
    replica.contents([2 * BLOCK, 2 * BLOCK + 1])
    assert replica.fetched == 4
    write(memory, "a", 2, 2 * BLOCK + 2)
    replica.refresh()
    for id in range(2 * BLOCK, 3 * BLOCK):
        replica.contents([id])
    assert replica.fetched == 5  # all of it, now that it is whole
    assert_same(replica, memory.store)
    replica.close()
    assert replica.cached == 0


def test_a_view_is_not_copied_and_not_to_be_written_to():
    memory = shared()
    write(memory, "a", BLOCK + 1, steps=2)
    replica = follow(memory)
    for id in (1, BLOCK):  # of a whole block, and of one that is being filled
        view = replica.view(id)
        assert view.shape == (2, WIDTH)
        assert view.ctypes.data == replica.view(id).ctypes.data
        assert np.array_equal(view, memory.store.contents([id])[0][0, :2])
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0.0


def test_a_memory_that_cannot_be_reached_says_so_and_what_is_cached_is_read():
    memory = shared()
    write(memory, "a", 12)
    replica = follow(memory)
    expected = replica.contents([2, 3])
    replica._source.cut_before = ("contents", "changes")
    assert np.array_equal(replica.contents([2, 3])[0], expected[0])
    with pytest.raises(ConnectionError):
        replica.contents([2, 7])
    replica._source.cut_before = ()
    replica.contents([2, 7])


def test_an_agent_writes_and_reads_by_its_replica():
    memory = shared()
    replica = follow(memory, writer="ann")
    mine = HCAM(attention(), replica, stream="ann")
    own = HCAM(attention(), InProcessStore(LENGTH, WIDTH, 100), stream="ann")
    generator = torch.Generator().manual_seed(2)
    for _ in range(40):
        query, step = torch.randn(6, generator=generator), torch.randn(WIDTH, generator=generator)
        assert torch.equal(mine.read(query), own.read(query))
        mine.append(step)
        own.append(step)
    assert len(memory.store) == 13
    replica.flush()


@pytest.mark.parametrize("when", ["cut_before", "cut_after"])
@pytest.mark.parametrize("what", ["open_writer", "append", "changes"])
def test_a_chunk_that_is_sent_again_after_an_error_is_there_once(when, what):
    memory = shared()
    replica = follow(memory, writer="ann")
    chunks = random_chunks(3)
    replica.append(chunks[0], first=0, last=0, stream="ann")
    replica._lease = None
    setattr(replica._source, when, (what,))
    with pytest.raises(ConnectionError):
        replica.append(chunks[1], first=0, last=0, stream="ann")
    setattr(replica._source, when, ())
    assert replica.append(chunks[1], first=0, last=0, stream="ann") == 1
    assert replica.append(chunks[2], first=0, last=0, stream="ann") == 2
    assert np.array_equal(memory.store.contents([0, 1, 2])[0], chunks)
    assert len(memory.store) == 3


def test_another_chunk_after_an_error_takes_the_place_of_the_one_that_may_have_come():
    memory = shared()
    replica = follow(memory, writer="ann")
    chunks = random_chunks(2)
    replica._source.cut_after = ("append",)
    with pytest.raises(ConnectionError):
        replica.append(chunks[0], first=0, last=0, stream="ann")
    replica._source.cut_after = ()
    replica.append(chunks[1], first=0, last=0, stream="ann")
    assert np.array_equal(replica.contents(replica.ids[replica.valid].tolist())[0], chunks[1:])
    assert memory.taken_back == 1


def test_a_writer_goes_on_after_what_the_memory_has_or_from_its_checkpoint():
    memory = shared()
    replica = follow(memory, writer="ann")
    chunks = random_chunks(6)
    assert replica.state_dict()["replica.sequence"].tolist() == [-1]
    for chunk in chunks[:2]:
        replica.append(chunk, first=0, last=0, stream="ann")
    state = replica.state_dict()
    another = follow(memory, writer="ann")
    another.append(chunks[2], first=0, last=0, stream="ann")
    assert memory.store.column("sequence").tolist() == [0, 1, 2]
    with pytest.raises(OpenedAgainError):
        replica.append(chunks[3], first=0, last=0, stream="ann")
    with pytest.raises(OpenedAgainError):  # and it does not take the name from the other one
        replica.append(chunks[3], first=0, last=0, stream="ann")

    restored = follow(memory, writer="ann")
    restored.load_state_dict(state)
    restored.append(chunks[2], first=0, last=0, stream="ann")
    assert (memory.repeated, memory.taken_back) == (1, 0)
    restored.load_state_dict(state)
    restored.append(chunks[3], first=0, last=0, stream="ann")
    assert memory.taken_back == 1
    assert_same(restored, memory.store)


def test_a_memory_that_was_started_again_is_opened_anew(tmp_path):
    memory = shared(tmp_path)
    replica = follow(memory, writer="ann")
    chunks = random_chunks(2)
    replica.append(chunks[0], first=0, last=0, stream="ann")
    memory.store.close()
    memory = shared(tmp_path)
    replica._source.connect(memory)
    assert replica.append(chunks[1], first=0, last=0, stream="ann") == 1
    assert_same(replica, memory.store)
    with (
        mock.patch.object(SharedMemory, "append", side_effect=NotOpenError("again")),
        pytest.raises(NotOpenError, match="again"),
    ):
        replica.append(chunks[1], first=0, last=0, stream="ann")
    memory.store.close()


def test_what_a_replica_does_not_do_it_says():
    memory = shared()
    reader, writer = follow(memory), follow(memory, writer="ann")
    write(memory, "a", 2)
    reader.refresh()
    (chunk,) = random_chunks(1)
    for refused in (reader.pin, reader.unpin, reader.drop):
        with pytest.raises(NotOwnerError, match="ask its owner"):
            refused([0])
    with pytest.raises(NotOwnerError, match="make it with a writer's name"):
        reader.append(chunk, first=0, last=0)
    with pytest.raises(ValueError, match="stream is 0, and the replica writes as 'ann'"):
        writer.append(chunk, first=0, last=0)
    with pytest.raises(ValueError, match="give none"):
        writer.append(chunk, first=0, last=0, stream="ann", summary=np.zeros(WIDTH))
    with pytest.raises(ValueError, match="contents of a chunk have shape"):
        writer.append(chunk[:, :2], first=0, last=0, stream="ann")
    with pytest.raises(ValueError, match="use 4 or more, which are a block"):
        follow(memory, cached_chunks=3)
    with pytest.raises(ValueError, match="block_chunks is 0"):
        Publisher(memory, 0)


def test_a_memory_that_was_made_larger_needs_another_replica(tmp_path):
    memory = shared(tmp_path, capacity=3)
    replica = follow(memory)
    memory.store.close()
    memory = shared(tmp_path, capacity=9)
    write(memory, "a", 5)
    replica._source.connect(memory)
    with pytest.raises(ValueError, match="has 5 slots now, and the replica was made for 3"):
        replica.refresh()
    memory.store.close()


def test_blocks_have_as_many_chunks_as_make_some_megabytes():
    for length, width, chunks in ((1, 4, 1024), (8, 64, 1024), (32, 256, 128), (1024, 2048, 1)):
        assert Publisher(SharedMemory(InProcessStore(length, width, 1))).shape().block_chunks == chunks
