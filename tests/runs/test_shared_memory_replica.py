"""Replicas of a memory in an actor: two processes of a node look at the same bytes, whoever dies."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray import exceptions as ray_exceptions

from streamwise.memory.hcam import HCAM, ChunkAttention
from streamwise.memory.replica import Replica
from streamwise.memory.store import InProcessStore
from streamwise.runs import shared_memory
from streamwise.runs.ray_cluster import running_ray
from streamwise.runs.shared_memory import MemoryActor, MemorySettings, RayConnection

LENGTH, WIDTH = 4, 64
BLOCK = 1024
SETTINGS = MemorySettings(LENGTH, WIDTH, 10_000)


def chunks(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, LENGTH, WIDTH)).astype(np.float32)


def mapped_file(address):
    """Return the file that an address of this process is mapped from, empty if it is from none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        first, last = (int(number, 16) for number in fields[0].split("-"))
        if first <= address < last:
            return fields[5] if len(fields) > 5 else ""
    return ""


class Reader:
    """A reader in a process of its own."""

    def __init__(self, actor):
        self.replica = Replica(RayConnection(actor, patient=True))

    def refresh(self):
        self.replica.refresh()
        return len(self.replica)

    def read(self, ids):
        return self.replica.contents(ids)[0].copy()

    def where(self, id):
        view = self.replica.view(id)
        address = view.ctypes.data
        return mapped_file(address), view.flags.writeable, self.replica.view(id).ctypes.data == address

    def write_as(self, name, what):
        writes = Replica(self.replica._source, writer=name)
        return [writes.append(chunk, first=0, last=0, stream=name) for chunk in what]


@pytest.fixture
def ray():
    with running_ray(None, 2):
        import ray

        yield ray


def test_readers_of_a_node_look_at_the_same_memory_and_go_on_when_its_process_dies(ray, tmp_path):
    actor = ray.remote(MemoryActor).options(num_cpus=0, max_restarts=-1).remote(SETTINGS, tmp_path)
    written = chunks(2 * BLOCK + 10)
    lease = ray.get(actor.open_writer.remote("a", 0))
    ray.get(actor.append.remote("a", lease, 0, written))
    mine = Reader(actor)
    other = ray.remote(Reader).options(num_cpus=0).remote(actor)
    assert ray.get(other.refresh.remote()) == mine.refresh() == len(written)

    ids = [0, 5, BLOCK, 2 * BLOCK + 3]
    np.testing.assert_array_equal(mine.read(ids), written[ids])
    np.testing.assert_array_equal(ray.get(other.read.remote(ids)), written[ids])
    for file, is_writeable, is_same in (mine.where(5), ray.get(other.where.remote(5))):
        assert "plasma" in file or "memfd" in file or "/dev/shm" in file
        assert not is_writeable
        assert is_same
    assert mapped_file(mine.replica.view(2 * BLOCK + 3).ctypes.data) != mine.where(5)[0]  # a copy
    view = mine.replica.view(5)

    own = InProcessStore(LENGTH, WIDTH, SETTINGS.capacity)
    for chunk in written:
        own.append(chunk, first=0, last=0, stream="a")
    attention = ChunkAttention(8, WIDTH, features=16, heads=2, length=LENGTH)
    queries = torch.randn(3, 8)
    assert torch.equal(*(HCAM(attention, store, stream="a").read(queries) for store in (mine.replica, own)))

    process = ray.get(actor.process.remote())
    ray.kill(actor, no_restart=False)
    assert mine.replica.stood_in == 0
    np.testing.assert_array_equal(mine.read([7, BLOCK - 1]), written[[7, BLOCK - 1]])  # it is cached
    mine.refresh()  # and this waits for the next life
    until = time.monotonic() + 60.0  # a kill is on its way for a while, and the old process may answer yet
    while ray.get(actor.process.options(max_task_retries=-1).remote()) == process:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert mine.refresh() == len(written)
    np.testing.assert_array_equal(mine.read(ids), written[ids])
    np.testing.assert_array_equal(view, written[5])  # the old object lasts as long as it is looked at
    assert mine.replica.stood_in == 0
    assert ray.get(other.refresh.remote()) == len(written)
    np.testing.assert_array_equal(ray.get(other.read.remote(ids)), written[ids])

    more = chunks(3, seed=1)
    assert ray.get(other.write_as.remote("b", more)) == [2 * BLOCK + number for number in (10, 11, 12)]
    mine.refresh()
    np.testing.assert_array_equal(mine.read([2 * BLOCK + 11])[0], more[1])
    mine.replica.flush()
    ray.get(actor.close.remote())


class FakeRay:
    """Ray's object store in a dict; objects are lost when they are taken out of it."""

    class ObjectRef(int):
        pass

    exceptions = ray_exceptions

    def __init__(self):
        self.objects = []

    def put(self, what):
        self.objects.append(what)
        return self.ObjectRef(len(self.objects) - 1)

    def get(self, what, timeout=None):
        if not all(isinstance(one, self.ObjectRef) for one in what):
            return what  # of a call, which was made at once
        found = [self.objects[reference] for reference in what]
        if None in found:
            raise self.exceptions.ObjectLostError("0" * 56, "", "")
        return found


class Called:
    """An actor of this process."""

    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        method = SimpleNamespace(remote=getattr(self._actor, name))
        method.options = lambda **options: method
        return method


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """An actor with five blocks of chunks and one chunk more, that has room for three objects."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(shared_memory, "_OBJECT_BYTES", 3 * 4 * BLOCK)
    fake.actor = MemoryActor(MemorySettings(1, 1, 10_000), tmp_path)
    lease = fake.actor.open_writer("a", 0)
    fake.actor.append("a", lease, 0, np.ones((5 * BLOCK + 1, 1, 1), np.float32))
    assert fake.actor.shape().block_chunks == BLOCK
    yield fake
    fake.actor.close()


def test_an_actor_holds_the_objects_that_were_asked_for_last(fake):
    actor = fake.actor
    for block in (0, 1, 2, 0, 3):
        (reference,) = actor.contents({block: [0]})
        assert fake.objects[reference].ids.tolist() == list(range(block * BLOCK, (block + 1) * BLOCK))
    assert list(actor._objects) == [2, 0, 3]
    assert len(fake.objects) == 4
    (some,) = actor.contents({5: [5 * BLOCK]})
    assert not some.whole
    assert some.ids.tolist() == [5 * BLOCK]
    actor.close()
    assert not actor._objects


def test_an_object_that_is_lost_is_made_again(fake):
    connection = RayConnection(Called(fake.actor))
    connection.contents({0: [0], 5: [5 * BLOCK], 1: [BLOCK]})
    fake.objects[0] = None
    parts = connection.contents({0: [0], 5: [5 * BLOCK], 1: [BLOCK]})
    assert [part.ids[0] for part in parts] == [0, 5 * BLOCK, BLOCK]
    assert len(fake.objects) == 4
    fake.objects = [None] * 4
    fake.put = lambda what: fake.ObjectRef(0)
    with pytest.raises(fake.exceptions.ObjectLostError):
        connection.contents({0: [0]})
