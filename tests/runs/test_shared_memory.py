"""The thread that keeps a learner's memory and a shared one in touch, whatever becomes of the latter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from waiting import wait_for

from streamwise.agents.stream_ac import StreamACConfig
from streamwise.memory.episode import EpisodeMemory
from streamwise.memory.shared import MemoryLink, SharedMemory
from streamwise.memory.store import InProcessStore
from streamwise.runs import shared_memory, up_learner
from streamwise.runs.config import RunConfig
from streamwise.runs.shared_memory import RETENTIONS, Linked, MemoryActor, MemorySettings
from streamwise.runs.up_learner import AgentLearner, Sharing


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    for name in ("_EXCHANGE_SECONDS", "_FIRST_PAUSE_SECONDS", "_LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(shared_memory, name, 0.002)


def memory():
    return SharedMemory(InProcessStore(1, 2, 1_000))


def link(name, *, reads=False, shards=1):
    own = EpisodeMemory(2, chunk_length=1, capacity=50, lasting=True, guests=100 if reads else 0)
    return MemoryLink(own, name, True, reads, shards)


def live(one, numbers):
    for number in numbers:
        one.memory.append(torch.tensor([float(number), 1.0]))
        one.turn()


@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("capacity", [2, 3, 7, 100, 2_047, 5_000])
def test_each_retention_works_with_any_capacity(retention, capacity):
    memory = SharedMemory(InProcessStore(1, 2, capacity, retention=RETENTIONS[retention](capacity)))
    lease = memory.open_writer("ann", 0)
    assert memory.append("ann", lease, 0, np.ones((30, 1, 2), np.float32)) == 30
    assert len(memory.store) <= capacity


class Flaky:
    """A connection that can be cut."""

    def __init__(self, to):
        self.to, self.is_cut = to, False

    def __getattr__(self, name):
        if self.is_cut:
            raise ConnectionError("the line\nis cut")
        return getattr(self.to, name)


def test_what_is_sealed_arrives_while_the_learner_goes_on_and_the_rest_at_its_end():
    shared, teller, listener = memory(), link("a"), link("b", reads=True)
    with Linked(listener, [shared], print) as hears:
        with Linked(teller, [shared], print):
            live(teller, range(200))
        assert teller.unsent == 0
        wait_for(lambda: listener.turn() or hears.counts().received >= 50)
    assert shared.counts().written == {"a": 200}


def test_a_memory_that_is_away_is_waited_for_and_said_to_be():
    shared, one = memory(), link("a")
    line = Flaky(shared)
    with Linked(one, [line], print) as linked:
        live(one, range(20))
        line.is_cut = True
        wait_for(lambda: linked.counts().problem)
        assert linked.counts().problem == "the line is cut"
        live(one, range(20, 40))
        line.is_cut = False
        live(one, range(40, 100))
        wait_for(lambda: not linked.counts().problem and not one.unsent)
    assert shared.counts().written == {"a": 100}
    assert (shared.store.column("sequence")[:100] == range(100)).all()


def test_while_one_shard_is_away_the_others_go_on():
    shards, listener = [memory(), memory()], link("b", reads=True, shards=2)
    a, c = (next(n for n in "acdefgh" if link(n, shards=2).home == shard) for shard in (0, 1))
    lines = [Flaky(shard) for shard in shards]
    lines[0].is_cut = True
    tellers = link(a, shards=2), link(c, shards=2)
    with (
        Linked(listener, lines, print) as hears,
        Linked(tellers[0], lines, print) as away,
        Linked(tellers[1], lines, print) as there,
    ):
        for one in tellers:
            live(one, range(30))
        wait_for(lambda: listener.turn() or hears.counts().received >= 30)
        assert (away.counts().problem, away.counts().unsent) == ("the line is cut", 30)
        assert (there.counts().problem, there.counts().unsent) == ("", 0)
        assert hears.counts().problem == "the line is cut"
        lines[0].is_cut = False
        wait_for(lambda: listener.turn() or hears.counts().received >= 60)
        wait_for(lambda: not hears.counts().problem)
    assert [shard.counts().written for shard in shards] == [{a: 30}, {c: 30}]


def test_who_was_started_again_elsewhere_is_told_to_end():
    shared, one, reasons = memory(), link("a"), []
    with Linked(one, [shared], reasons.append):
        live(one, range(5))
        wait_for(lambda: not one.unsent)
        shared.open_writer("a", 5)
        live(one, range(5, 10))
        wait_for(lambda: reasons)
    assert reasons == ["another process has opened the memory as a."]


def test_an_actor_whose_files_are_held_by_another_process_opens_them_once_it_lets_go(tmp_path):
    settings = MemorySettings(1, 2, 100)
    first, second = MemoryActor(settings, tmp_path), MemoryActor(settings, tmp_path)
    lease = first.open_writer("a", 0)
    first.append("a", lease, 0, torch.ones(3, 1, 2).numpy())
    with pytest.raises(OSError, match="in use by another store"):
        second.counts()
    first.close()
    assert second.counts().chunks == 3
    assert second.gone([0, 7]) == [7]
    assert len(second.news("b", -1, 10).ids) == 3
    second.close()


def writer(tmp_path, monkeypatch, shared):
    """Run ann, whose 200 steps seal 100 chunks, until she waits for the memory, which is away.

    Returns who runs her, the line to the memory, a call that runs her again, and her end.
    """
    monkeypatch.setattr(up_learner, "RayConnection", lambda actor: actor)
    monkeypatch.setattr(shared_memory, "_SEND_AT_THE_END_SECONDS", 0.05)
    room = "streamwise/DelayedRecall-v0?symbols=3&delay=6"
    settings = StreamACConfig(memory="hcam", memory_span="life", memory_chunk_length=2)
    config = RunConfig(room, settings, steps=200, backend="torch", out=tmp_path / "ann")
    line, learner = Flaky(shared), AgentLearner()
    line.is_cut = True

    def learn():
        return learner.learn("ann", config, Sharing((line,), writes=True, reads=False), None).outcome

    end = ThreadPoolExecutor().submit(learn)
    wait_for(lambda: (link := learner.news().link) is not None and link.waits)
    return learner, line, learn, end


def test_who_has_finished_waits_for_a_memory_that_is_away(tmp_path, monkeypatch):
    shared = SharedMemory(InProcessStore(2, 5, 1_000))
    _, line, _, end = writer(tmp_path, monkeypatch, shared)
    assert not end.done()
    line.is_cut = False
    assert end.result(20).error is None
    assert shared.counts().written == {"ann": 100}


def test_who_is_stopped_while_it_waits_sends_the_rest_when_it_is_started_again(tmp_path, monkeypatch):
    shared = SharedMemory(InProcessStore(2, 5, 1_000))
    learner, line, learn, end = writer(tmp_path, monkeypatch, shared)
    learner.stop()
    assert end.result(20).stopped
    assert shared.counts().written == {}
    line.is_cut = False
    for _ in range(2):  # and once is enough
        assert not learn().stopped
        assert shared.counts().written == {"ann": 100}
