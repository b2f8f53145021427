"""What tests of replicas share: small memories, a line to them that can be cut, what makes two the same."""

from __future__ import annotations

import contextlib
from unittest import mock

import numpy as np
import torch

from streamwise.memory import publisher as publisher_module
from streamwise.memory import replica as replica_module
from streamwise.memory.chunks import Chunk
from streamwise.memory.hcam import ChunkAttention
from streamwise.memory.replica import Publisher, Replica
from streamwise.memory.retention import Ring
from streamwise.memory.shared import SharedMemory
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
    for name, number in {"_LOOKED_AT_ONCE": 8, "_SENT_AT_ONCE": 4, "_COMPARED": 2}.items():
        stack.enter_context(mock.patch.object(publisher_module, name, number))
    stack.enter_context(mock.patch.object(replica_module, "_BLOCKS_AT_ONCE", 2))
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


def attention(**settings):
    generator = torch.Generator().manual_seed(0)
    return ChunkAttention(6, WIDTH, features=8, heads=2, length=LENGTH, k=4, generator=generator, **settings)
