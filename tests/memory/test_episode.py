"""The memory of one agent's episode: what it keeps, what can be read of it, and when."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from streamwise.memory.episode import EpisodeMemory
from streamwise.memory.hcam import HCAM
from streamwise.memory.recurrent import RecurrentMemory
from streamwise.memory.store import InProcessStore


def items(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def readable(memory):
    """The chunks that a read may see, oldest first, as [steps, width] each."""
    chunks = memory.chunks()
    slots = range(chunks.contents.shape[1])
    visible = [slot for slot in slots if chunks.visible is None or chunks.visible[0, 0, slot]]
    return {tuple(chunks.contents[0, slot, :, : memory.item_width].flatten().tolist()) for slot in visible}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 5), length=st.integers(1, 4), capacity=st.integers(1, 6), steps=st.integers(0, 60)
)
def test_what_can_be_read_are_the_latest_whole_chunks(width, length, capacity, steps):
    memory, seen = EpisodeMemory(width, chunk_length=length, capacity=capacity), items(60, width)
    for item in seen[:steps]:
        memory.append(item)
    whole = [seen[i : i + length] for i in range(0, steps - length + 1, length)]
    assert readable(memory) == {tuple(chunk.flatten().tolist()) for chunk in whole[-capacity:]}
    assert len(memory) == min(len(whole), capacity)
    chunks = memory.chunks()
    for slot in range(chunks.contents.shape[1]):
        if chunks.visible is None or chunks.visible[0, 0, slot]:
            torch.testing.assert_close(chunks.summaries[0, slot], chunks.contents[0, slot].mean(0))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(length=st.integers(1, 3), capacity=st.integers(1, 5), steps=st.integers(0, 30), at=st.integers(0, 30))
def test_a_copy_goes_on_bit_for_bit(length, capacity, steps, at):
    memory, copy = (EpisodeMemory(3, chunk_length=length, capacity=capacity) for _ in range(2))
    for item in items(7, 3, seed=1):
        copy.append(item)  # another life before
    seen = items(60, 3)
    for item in seen[:at]:
        memory.append(item)
    copy.load_state_dict(memory.state_dict())
    for item in seen[at : at + steps]:
        memory.append(item)
        copy.append(item)
    ours, theirs = memory.state_dict(), copy.state_dict()
    assert readable(copy) == readable(memory)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "memory.contents")


def test_a_lasting_memory_keeps_chunks_over_episodes_and_forgets_the_open_one():
    memory, seen = EpisodeMemory(2, chunk_length=2, capacity=3, lasting=True), items(12, 2)
    for number, item in enumerate(seen):
        memory.append(item)
        if number % 5 == 4:
            memory.clear()
    # Of each five steps, the fifth was alone in its chunk.
    sealed = [seen[i : i + 2] for i in (0, 2, 5, 7, 10)]
    assert memory.counters[0] == 5
    assert readable(memory) == {tuple(chunk.flatten().tolist()) for chunk in sealed[-3:]}
    assert torch.equal(torch.from_numpy(memory.sealed_chunks(range(2, 5))), torch.stack(sealed[2:]))
    assert torch.equal(torch.from_numpy(memory.sealed_chunks(range(3, 4))), sealed[3][None])
    assert len(memory.sealed_chunks(range(3, 3))) == 0
    for numbers in (range(1, 4), range(4, 6)):
        with pytest.raises(KeyError, match=f"{numbers[0]} to {numbers[-1]} are not all kept"):
            memory.sealed_chunks(numbers)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), room=st.integers(1, 4), length=st.integers(1, 2), lasting=st.booleans())
def test_guests_are_read_beside_own_chunks_and_outlast_episodes(data, room, length, lasting):
    memory = EpisodeMemory(3, chunk_length=length, capacity=2, lasting=lasting, guests=room)
    own, guests, came = EpisodeMemory(3, chunk_length=length, capacity=2, lasting=lasting), [], 0
    for step, item in enumerate(items(25, 3)):
        what = data.draw(st.sampled_from(["append", "append", "admit", "dismiss", "clear", "copy"]))
        if what == "append":
            memory.append(item)
            own.append(item)
        elif what == "admit":
            chunk = items(length, 3, seed=step)
            memory.admit(came, chunk.numpy())
            guests = [*guests, (came, chunk)]
            came += 1
            guests = [(id, chunk) for id, chunk in guests if id >= came - room]  # in a ring, the oldest goes
        elif what == "dismiss" and came:
            id = data.draw(st.integers(0, came - 1))
            memory.dismiss(id)
            guests = [guest for guest in guests if guest[0] != id]
        elif what == "clear":
            memory.clear()
            own.clear()
        elif what == "copy":
            copy = EpisodeMemory(3, chunk_length=length, capacity=2, lasting=lasting, guests=room)
            copy.admit(99, items(length, 3, seed=99).numpy())  # another life before
            copy.load_state_dict(memory.state_dict())
            memory = copy
        assert readable(memory) == readable(own) | {tuple(chunk.flatten().tolist()) for _, chunk in guests}
        assert len(memory) == len(own) + len(guests)


def test_after_a_state_without_guests_they_are_counted_from_none():
    fresh = EpisodeMemory(3, chunk_length=1, capacity=2, guests=2)
    memory = EpisodeMemory(3, chunk_length=1, capacity=2, guests=2)
    memory.admit(7, items(1, 3).numpy())
    memory.load_state_dict(fresh.state_dict())
    for one in (fresh, memory):
        one.admit(8, items(1, 3, seed=8).numpy())
    assert memory.guest_ids.tolist() == fresh.guest_ids.tolist()


def test_a_state_with_more_guests_than_there_is_room_for_is_refused():
    memory = EpisodeMemory(3, chunk_length=1, capacity=2, guests=2)
    for id in range(2):
        memory.admit(id, items(1, 3).numpy())
    for room in (0, 1):
        with pytest.raises(ValueError, match=f"room for {room} guests, and the state 2"):
            EpisodeMemory(3, chunk_length=1, capacity=2, guests=room).load_state_dict(memory.state_dict())


def test_a_state_of_another_shape_is_refused_by_name():
    memory = EpisodeMemory(3, chunk_length=2, capacity=2)
    for item in items(9, 3):
        memory.append(item)
    with pytest.raises(
        ValueError, match=r"chunks are 2 steps of 4 numbers, 1 of them; the state has contents \(3, 2, 4\)"
    ):
        EpisodeMemory(3, chunk_length=2, capacity=1).load_state_dict(memory.state_dict())


@pytest.mark.parametrize(("place", "number"), [(0, -1), (0, 99), (1, 2), (1, -1), (2, -1)])
def test_a_damaged_state_is_refused_before_anything_changes(place, number):
    """Native code would write where these numbers point."""
    memory, other = (EpisodeMemory(3, chunk_length=2, capacity=4) for _ in range(2))
    for item in items(5, 3):
        memory.append(item)
        other.append(item)
    state = memory.state_dict()
    state["memory.counters"][place] = number
    with pytest.raises(ValueError, match="damaged"):
        other.load_state_dict(state)
    assert readable(other) == readable(memory)


def test_nothing_is_read_of_an_empty_memory_and_forgetting_empties_it():
    memory = EpisodeMemory(4, chunk_length=2, capacity=5)
    read = memory.reader()
    x = items(1, 4)
    assert not read(x).any()
    for item in items(3, 4):
        memory.append(item)
    assert read(x).any()
    memory.clear()
    assert not read(x).any()
    for item in items(2, 4, seed=3):
        memory.append(item)
    assert len(memory) == 1  # the step that was open when it was cleared is gone as well


@pytest.mark.parametrize("length", [1, 3])
def test_it_reads_what_the_general_memory_reads(length):
    memory = EpisodeMemory(6, chunk_length=length, capacity=20, features=8, heads=2, k=3)
    read = memory.reader()
    store = InProcessStore(chunk_length=length, width=6, capacity=20)
    general = HCAM(read.attention, store)
    for item, x in zip(items(25, 6), items(25, 6, seed=1), strict=True):
        torch.testing.assert_close(read(x[None])[0], general.read(x))
        memory.append(item)
        general.append(item)


def test_what_a_graph_has_read_is_still_there_when_the_ring_goes_on():
    """One chunk of room: without a slot of its own the next step would overwrite what the gradient needs."""
    memory = EpisodeMemory(4, chunk_length=1, capacity=1, features=4)
    read, (first, second) = memory.reader(), items(2, 4)
    memory.append(first)
    x = items(1, 4, seed=2)

    def gradient(*, go_on):
        read.zero_grad()
        out = read(x).sum()
        if go_on:
            memory.append(second)
        out.backward()
        return [weight.grad.clone() for weight in read.parameters()]

    for expected, found in zip(gradient(go_on=False), gradient(go_on=True), strict=True):
        torch.testing.assert_close(found, expected)


def test_random_reads_are_others_all_as_likely_and_the_same_for_everybody():
    memory = EpisodeMemory(2, chunk_length=1, capacity=8, k=4, random_reads=2, key=5)
    for item in items(8, 2):
        memory.append(item)
    drawn = Counter[int]()
    for step, item in enumerate(items(1400, 2, seed=1)):
        memory.append(item)
        hidden = int(memory.counters[0]) % 9  # the open chunk's slot
        found = [(hidden + 1) % 9, (hidden + 2) % 9]
        others = memory.any_others(found)
        assert others == memory.any_others(found)
        assert len({*others, *found, hidden}) == 5
        drawn.update((slot - hidden) % 9 for slot in others)
        assert step >= 0
    assert set(drawn) == set(range(3, 9))
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-3


def test_a_chunk_that_is_never_the_best_is_opened_at_random():
    """Of two heads the gradient reaches a chunk only if it was opened."""
    memory = EpisodeMemory(2, chunk_length=1, capacity=50, features=4, k=2, random_reads=1, key=1)
    read = memory.reader()
    for item in items(40, 2):
        memory.append(item)
    opened = set()
    for item in items(300, 2, seed=2):
        found, _ = read.select(items(1, 2, seed=9))
        assert found.shape == (1, 1, 2)
        opened.add(int(found[0, 0, 1]))
        memory.append(item)
    assert len(opened) > 40


def test_a_recurrent_state_moves_on_by_one_step_and_keeps_no_graph():
    memory = RecurrentMemory(3, features=5)
    read = memory.reader(torch.Generator().manual_seed(0))
    expected = torch.zeros(1, 5)
    for item in items(6, 3):
        torch.testing.assert_close(read(item[None]), read.cell(item[None], expected))
        memory.append(item)
        expected = read.cell(item[None], expected).detach()
        np.testing.assert_allclose(read.hidden, expected[0].numpy(), rtol=1e-6)
    state = memory.state_dict()
    memory.clear()
    assert not read.hidden.any()
    memory.load_state_dict(state)
    np.testing.assert_allclose(read.hidden, expected[0].numpy(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (2, 4), (2, 1)])
def test_recurrent_states_of_another_shape_are_refused(shape):
    """Fewer cells, or units that would be spread over all of them."""
    memory = RecurrentMemory(3, features=5)
    for _ in range(2):
        memory.reader()
    with pytest.raises(ValueError, match="recurrent units"):
        memory.load_state_dict({"memory.hidden": torch.ones(shape)})
