"""Writing by a replica: what was sent is there once, whatever failed; and what it refuses."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from replica_support import (
    LENGTH,
    WIDTH,
    assert_same,
    attention,
    follow,
    random_chunks,
    shared,
    write,
)

from streamwise.memory.hcam import HCAM
from streamwise.memory.replica import NotOwnerError, Publisher
from streamwise.memory.shared import NotOpenError, OpenedAgainError, SharedMemory
from streamwise.memory.store import InProcessStore


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
