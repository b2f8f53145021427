"""The memory of a stream: what it seals, what it reads step by step, and where it goes on."""

from __future__ import annotations

import pytest
import torch
from hcam_support import FEATURES, HEADS, IMPLEMENTATIONS, LENGTH, QUERY, WIDTH, pooled_by_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamwise.memory.hcam import HCAM, ChunkAttention, Chunks
from streamwise.memory.retention import Use
from streamwise.memory.store import InProcessStore


def make_memory(capacity=50, k=3, least=0.25, episodes="own", stream=0, store=None, seed=0, **options):
    attention = ChunkAttention(
        QUERY, WIDTH, features=FEATURES, heads=HEADS, length=LENGTH, k=k,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    if store is None:
        store = InProcessStore(chunk_length=LENGTH, width=WIDTH, capacity=capacity)
    return HCAM(attention, store, least=least, episodes=episodes, stream=stream)


def items(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(
    episodes=st.lists(st.lists(st.booleans(), max_size=17), min_size=1, max_size=4),
    least=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_chunks_hold_the_steps_in_their_order_and_summaries_their_means(episodes, least):
    """A model of it with lists; an episode is a list of whether there is a boundary at each step."""
    memory, steps = make_memory(least=least), iter(items(100))
    expected = []
    for number, boundaries in enumerate(episodes):
        chunk = []
        for boundary in boundaries:
            item = next(steps)
            memory.append(item, boundary=boundary)
            chunk.append(item)
            if boundary or len(chunk) == LENGTH:
                expected.append((number, chunk))
                chunk = []
        memory.end_episode()
        if chunk and len(chunk) >= least * LENGTH:
            expected.append((number, chunk))
    assert len(memory.store) == len(expected)
    for i, (episode, chunk) in enumerate(expected):
        contents, count = memory.store.contents([i])
        stacked = torch.stack(chunk)
        assert memory.store.chunk(i).episode == episode
        assert count.tolist() == [len(chunk)]
        assert torch.equal(torch.from_numpy(contents)[0, : len(chunk)], stacked)
        torch.testing.assert_close(torch.from_numpy(memory.store.summaries[i]), stacked.mean(0))


def test_a_chunk_that_the_store_could_not_take_is_sealed_when_it_can(monkeypatch):
    memory, steps = make_memory(), items(2 * LENGTH)
    for item in steps[: LENGTH - 1]:
        memory.append(item)
    with monkeypatch.context() as patched:
        patched.setattr(memory.store, "append", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            memory.append(steps[LENGTH - 1])
        with pytest.raises(OSError, match="full"):
            memory.append(steps[LENGTH])
    for item in steps[LENGTH:]:
        memory.append(item)
    contents, _ = memory.store.contents([0, 1])
    assert torch.equal(torch.from_numpy(contents).reshape(2 * LENGTH, WIDTH), steps)


@IMPLEMENTATIONS
def test_reading_step_by_step_is_reading_all_at_once_with_a_causal_mask(implementation):
    memory, steps, queries = make_memory(), items(33), torch.randn(33, QUERY)
    memory.attention.implementation = implementation
    found = []
    for step, query in zip(steps, queries, strict=True):
        found.append(memory.read(query))
        memory.append(step)
    whole = steps[: 33 // LENGTH * LENGTH].unflatten(0, (-1, LENGTH))
    sealed = torch.arange(1, len(whole) + 1) * LENGTH - 1
    visible = sealed < torch.arange(33)[:, None]
    at_once = memory.attention(queries[None], Chunks(whole.mean(1)[None], whole[None], visible[None]))[0]
    torch.testing.assert_close(torch.stack(found), at_once, rtol=1e-5, atol=1e-5)
    assert (torch.stack(found)[:LENGTH] == 0.0).all()
    together = memory.read(queries)
    alone = torch.stack([memory.read(query) for query in queries])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@IMPLEMENTATIONS
def test_with_both_options_a_memory_reads_as_its_attention_does(implementation):
    """Summaries are made with the u of their time, and chunks are short at boundaries."""
    memory, generator = make_memory(pooling="attention", age=True), torch.Generator().manual_seed(4)
    memory.attention.implementation = implementation
    queries = torch.randn(40, QUERY, generator=generator)
    sealed, chunk, summaries = [], [], []
    for time, (step, query) in enumerate(zip(items(40), queries, strict=True)):
        with torch.no_grad():
            memory.attention.pool_query.normal_(std=3.0, generator=generator)
            memory.attention.age_weight.normal_(std=0.1, generator=generator)
        if sealed:
            counts = torch.tensor([len(steps) for _, steps in sealed])
            contents = torch.zeros(len(sealed), LENGTH, WIDTH)
            contents[torch.arange(LENGTH) < counts[:, None]] = torch.cat([steps for _, steps in sealed])
            ages = torch.tensor([time - 1.0 - last for last, _ in sealed])
            given = Chunks(torch.stack(summaries)[None], contents[None], steps=counts[None], ages=ages[None])
            expected = memory.attention(query[None, None], given)[0, 0]
            torch.testing.assert_close(memory.read(query), expected, rtol=1e-5, atol=1e-5)
        boundary = time % 7 == 1
        memory.append(step, boundary=boundary)
        chunk.append(step)
        if boundary or len(chunk) == LENGTH:
            sealed.append((time, torch.stack(chunk)))
            summaries.append(pooled_by_steps(memory.attention, sealed[-1][1]).detach())
            chunk = []
    assert len(sealed) > memory.attention.k
    torch.testing.assert_close(torch.from_numpy(memory.store.summaries), torch.stack(summaries))
    assert (summaries[-1] - sealed[-1][1].mean(0)).abs().max() > 0.1


@pytest.mark.parametrize("joint", [False, True])
def test_the_options_learn_by_reads_of_a_memory_unless_one_softmax_ignores_them(joint):
    memory = make_memory(pooling="attention", age=True, joint=joint)
    assert (memory.read(torch.randn(QUERY)) == 0.0).all()
    for step in items(22):
        memory.append(step)
    memory.read(torch.randn(QUERY)).square().sum().backward()
    for parameter in (memory.attention.pool_query, memory.attention.age_weight):
        assert (parameter.grad.abs().sum() > 0.0) == (not joint)
    other = make_memory(pooling="attention", age=True, stream=1, store=memory.store)
    assert (other.read(torch.randn(2, QUERY)) == 0.0).all()  # there are chunks, and none is to be opened


def test_a_step_learns_by_reads_and_nothing_flows_into_what_was_stored():
    memory, encoder = make_memory(), nn.Linear(WIDTH, WIDTH)
    for step in items(12):
        memory.append(encoder(step))
    memory.read(torch.randn(QUERY)).square().sum().backward()
    assert encoder.weight.grad is None
    for name, parameter in memory.attention.named_parameters():
        assert parameter.grad.abs().sum() > 0.0, name


def test_another_episode_and_another_stream_are_seen_only_if_that_is_wanted():
    store = InProcessStore(chunk_length=LENGTH, width=WIDTH, capacity=50)
    own, all_of_it, other = (
        make_memory(store=store, episodes=episodes, stream=stream)
        for episodes, stream in (("own", "a"), ("all", "a"), ("all", "b"))
    )
    query = torch.randn(QUERY)
    for step in items(11):
        own.append(step)
    before = own.read(query)
    assert before.abs().sum() > 0.0
    own.end_episode()
    assert (own.read(query) == 0.0).all()
    assert torch.equal(all_of_it.read(query), before)
    assert (other.read(query) == 0.0).all()


def test_resumed_is_as_never_stopped():
    def store(seed):
        return InProcessStore(chunk_length=LENGTH, width=WIDTH, capacity=6, retention=Use(grace=1), seed=seed)

    never, stopped = make_memory(store=store(3)), make_memory(store=store(3))
    queries, steps = torch.randn(90, QUERY), items(90)
    for i in range(90):
        if i in (7, 41, 73):
            weights, state = stopped.state_dict(), stopped.memory_state()
            stopped = make_memory(store=store(3), seed=1)
            stopped.load_state_dict(weights)
            stopped.load_memory_state({name: tensor.clone() for name, tensor in state.items()})
        assert torch.equal(never.read(queries[i]), stopped.read(queries[i]))
        for memory in (never, stopped):
            memory.append(steps[i], priority=float(i))
            if i % 29 == 28:
                memory.end_episode()
    for name, tensor in never.memory_state().items():
        if name != "chunks.counters":  # how many states were made
            assert torch.equal(tensor, stopped.memory_state()[name]), name


def test_a_memory_that_does_not_fit_its_store_is_refused():
    with pytest.raises(ValueError, match="make both alike"):
        make_memory(store=InProcessStore(chunk_length=LENGTH + 1, width=WIDTH, capacity=5))
    with pytest.raises(ValueError, match="episodes"):
        make_memory(episodes="some")
    with pytest.raises(ValueError, match="least"):
        make_memory(least=1.5)
