"""A replica is what its memory is, and holds no more contents than it may."""

from __future__ import annotations

import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from replica_support import (
    BLOCK,
    CACHED,
    LENGTH,
    WIDTH,
    Line,
    assert_same,
    attention,
    follow,
    shared,
    small_pieces,
    write,
)

from streamwise.memory import index as index_module
from streamwise.memory.hcam import HCAM
from streamwise.memory.index import SummaryIndex
from streamwise.memory.replica import Publisher, Replica
from streamwise.memory.retention import Reservoir, Ring
from streamwise.memory.shared import SharedMemory
from streamwise.memory.store import InProcessStore


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
