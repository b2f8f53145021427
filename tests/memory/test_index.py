"""The index of summaries: with all lists it is the scan, with few it finds most, and it follows its store."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.kernels.chunk_attention import scan
from streamwise.memory import index as module
from streamwise.memory.hcam import HCAM, ChunkAttention
from streamwise.memory.index import SummaryIndex
from streamwise.memory.store import InProcessStore

WIDTH = 64


def few(chunks):
    """Scan all up to so many chunks, in place of the thousands for which that is faster."""
    return mock.patch.object(module, "_FEW", chunks)


def store_of(summaries, capacity=None):
    store = InProcessStore(chunk_length=1, width=summaries.shape[1], capacity=capacity or len(summaries))
    add(store, summaries)
    return store


def add(store, summaries):
    for summary in np.asarray(summaries, np.float32):
        store.append(summary[None], first=0.0, last=0.0)


class Held:
    """What an index asks of a store, for many chunks that are quick to make."""

    def __init__(self, summaries):
        self.summaries, self.width = summaries.numpy(), summaries.shape[1]
        self.ids, self.valid = np.arange(len(summaries)), np.ones(len(summaries), np.bool_)

    def __len__(self):
        return len(self.ids)


def scanned(store, select, k, visible=None):
    valid = torch.from_numpy(store.valid)[None]
    seen = valid if visible is None else visible & valid
    slots, logits = scan(select[None], torch.from_numpy(store.summaries)[None], k=k, visible=seen[None])
    return slots[0], logits[0]


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def whole(generator, *shape):
    """Small whole numbers: sums of products are exact in any order, and many are equal."""
    return torch.randint(-3, 4, shape, generator=generator).float()


def around(centres, count, generator):
    which = torch.randint(len(centres), (count,), generator=generator)
    return centres[which] + 0.5 * torch.randn(count, centres.shape[1], generator=generator)


def recall(index, store, queries, k=8):
    slots, best = index.search(queries, k)[0], scanned(store, queries, k)[0]
    return np.mean([np.isin(*pair).mean() for pair in zip(best.numpy(), slots.numpy(), strict=True)])


def check_lists(index, store):
    """Every chunk is in the list of the centroid that is nearest to it, once, and nothing else is in one."""
    slots = np.concatenate(index._members)
    lists = np.repeat(np.arange(len(index._members)), [len(members) for members in index._members])
    assert sorted(slots) == np.flatnonzero(store.valid).tolist()
    distances = torch.cdist(torch.from_numpy(store.summaries[slots]), index._centroids)
    nearest = distances.min(1).values
    torch.testing.assert_close(distances[torch.arange(len(slots)), lists], nearest, rtol=1e-3, atol=1e-3)


class Case:
    """Some chunks, some of them dropped, and queries that may see some."""

    def __init__(self, data):
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
        count, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 4))
        self.store = store_of(whole(generator, count, width))
        gone = data.draw(st.sets(st.integers(0, count - 1), max_size=count))
        self.store.drop(sorted(gone))
        queries = data.draw(st.integers(0, 6))
        self.select = whole(generator, queries, width)
        rows = data.draw(st.sampled_from([None, 1, queries]))
        share = data.draw(st.sampled_from([0.0, 0.1, 0.7]))
        self.visible = None if rows is None else torch.rand(rows, count, generator=generator) < share
        self.k = data.draw(st.integers(0, count + 5))
        self.lists = data.draw(st.integers(1, 12))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_with_all_lists_it_is_the_scan(data):
    case = Case(data)
    with few(data.draw(st.sampled_from([0, 0, 5]))):
        index = SummaryIndex(case.store, lists=case.lists, probe=case.lists)
        found = index.search(case.select, case.k, case.visible)
    assert same(found, scanned(case.store, case.select, case.k, case.visible))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_with_few_lists_it_finds_as_many_each_by_itself_in_order_and_with_their_own_logits(data):
    case = Case(data)
    with few(0):
        index = SummaryIndex(case.store, lists=case.lists, probe=data.draw(st.integers(1, case.lists)))
        slots, logits = index.search(case.select, case.k, case.visible)
        for q in range(len(case.select)):
            rows = case.visible is not None and len(case.visible) > 1
            visible = case.visible[q : q + 1] if rows else case.visible
            alone = index.search(case.select[q : q + 1], case.k, visible)
            assert same(alone, (slots[q : q + 1], logits[q : q + 1]))
    best = scanned(case.store, case.select, case.k, case.visible)
    assert torch.equal(slots >= 0, best[0] >= 0)
    assert torch.equal(logits == -math.inf, slots < 0)
    assert (logits <= best[1]).all()
    seen = torch.from_numpy(case.store.valid) & (True if case.visible is None else case.visible)
    for q, (row, values) in enumerate(zip(slots.tolist(), logits.tolist(), strict=True)):
        found = [slot for slot in row if slot >= 0]
        assert len(set(found)) == len(found)
        assert all(seen.expand(len(slots), -1)[q, found])
        products = [float(case.select[q] @ torch.from_numpy(case.store.summaries[slot])) for slot in found]
        assert products == values[: len(found)]
        ranks = [(-product, slot) for product, slot in zip(products, found, strict=True)]
        assert ranks == sorted(ranks)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_follows_what_comes_and_goes(data):
    """A ring of 40 slots that are used again, chunks that are dropped, and states that are gone back to."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    store = InProcessStore(chunk_length=1, width=3, capacity=40)
    select, state, loads = whole(generator, 2, 3), store.state_dict(), 0
    with few(8):
        index = SummaryIndex(store, lists=5, probe=5)
        for _ in range(data.draw(st.integers(1, 8))):
            do = data.draw(st.sampled_from(["append", "append", "drop", "save", "load"]))
            if do == "append":
                add(store, whole(generator, data.draw(st.integers(1, 50)), 3))
            elif do == "drop" and len(store):
                ids = store.ids[store.valid].tolist()
                store.drop(data.draw(st.sets(st.sampled_from(ids))))
            elif do == "save":
                state = store.state_dict()
            elif do == "load":
                store.load_state_dict(state)
                loads += 1
            if data.draw(st.booleans()):  # or later, with what comes next
                assert same(index.search(select, 6), scanned(store, select, 6))
                if index._centroids is not None and not loads:
                    check_lists(index, store)
        assert same(index.search(select, 6), scanned(store, select, 6))


@pytest.mark.parametrize("refreshed", [True, False])
@pytest.mark.parametrize(("saved_at", "more"), [(0, 20), (20, 40), (39, 1), (30, 20)])
def test_after_a_load_chunks_with_the_same_ids_are_in_their_own_lists(saved_at, more, refreshed):
    near, far = np.full((40, 2), 1.0), np.full((more, 2), -1.0)
    store = store_of(near[:saved_at], capacity=80) if saved_at else InProcessStore(1, 2, 80)
    state = store.state_dict()
    add(store, near[saved_at:] * np.linspace(1.0, 2.0, 40 - saved_at)[:, None])
    with few(8):
        index = SummaryIndex(store, lists=4, probe=4)
        index.refresh()
        store.load_state_dict(state)
        if refreshed:
            index.refresh()
        add(store, far)
        index.refresh()
        check_lists(index, store)


def test_after_a_load_of_a_full_ring_chunks_with_the_same_ids_are_in_their_own_lists():
    """Ids 40 to 44 come again, for others, and slots 5 to 9 hold older ids than before."""
    store = store_of(np.full((40, 2), 1.0) * np.linspace(1.0, 2.0, 40)[:, None])
    state = store.state_dict()
    add(store, np.full((10, 2), 1.0))
    with few(8):
        index = SummaryIndex(store, lists=4, probe=4)
        index.refresh()
        store.load_state_dict(state)
        add(store, np.full((5, 2), 2.0))
        index.refresh()
        check_lists(index, store)


def test_a_chunk_in_a_slot_that_is_used_again_is_found_in_its_new_list_and_not_in_the_old():
    points = torch.tensor([[10.0, 0.0]]).repeat(20, 1)
    points[10:] = torch.tensor([0.0, 10.0])
    store = store_of(points)
    with few(0):
        index = SummaryIndex(store, lists=2, probe=1, seed=2)
        index.refresh()
        assert len(np.unique(index._list_of)) == 2
        add(store, [[1.0, 12.0]])  # in slot 0, of the oldest
        up, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        assert index.search(up, 1)[0].tolist() == [[0]]
        assert index.search(right, 9)[0].tolist() == [list(range(1, 10))]
        check_lists(index, store)


def test_a_query_that_may_see_little_finds_it_in_whatever_list_it_is():
    """The list that is looked into holds nothing visible, or not the best that is."""
    points = torch.tensor([[10.0, 0.0]]).repeat(20, 1)
    points[10:] = torch.tensor([-10.0, 0.0])
    points[0] = torch.tensor([9.0, 0.0])
    store, right = store_of(points), torch.tensor([[1.0, 0.0]])
    visible = torch.zeros(1, 20, dtype=torch.bool)
    visible[0, 10:15] = True
    with few(0):
        index = SummaryIndex(store, lists=2, probe=1, seed=2)
        assert index.search(right, 3, visible)[0].tolist() == [[10, 11, 12]]
        assert index.search(right, 7, visible)[0].tolist() == [[10, 11, 12, 13, 14, -1, -1]]
        visible[0, 0] = True
        assert index.search(right, 2, visible)[0].tolist() == [[0, 10]]
    points[:10], points[10:] = torch.tensor([0.0, 5.0]), torch.tensor([40.0, 0.0])
    points[19] = torch.tensor([40.0, 10.0])  # better than its centroid says
    store, up = store_of(points), torch.tensor([[0.0, 1.0]])
    visible = torch.zeros(1, 20, dtype=torch.bool)
    visible[0, [3, 19]] = True
    for chunks, best in ((1, 3), (2, 19)):
        with few(chunks):
            index = SummaryIndex(store, lists=2, probe=1, seed=2)
            assert index.search(up, 1, visible)[0].tolist() == [[best]]


@pytest.mark.parametrize(("centres", "least"), [(200, 0.9), (1000, 0.85)])
def test_it_finds_most_of_the_best_where_summaries_lie_in_clusters(centres, least):
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(centres, WIDTH, generator=generator)
    store = Held(around(middles, 20_000, generator))
    index = SummaryIndex(store)
    assert recall(index, store, around(middles, 200, generator)) >= least
    assert len(index._members) == 141


def test_it_finds_some_of_the_best_where_there_are_no_clusters_and_a_seed_tells_which():
    generator = torch.Generator().manual_seed(0)
    store = Held(torch.randn(20_000, WIDTH, generator=generator))
    queries = torch.randn(200, WIDTH, generator=generator)
    index = SummaryIndex(store)
    assert 0.3 < recall(index, store, queries) < 0.6  # by chance 16 of 141, 0.11
    found = index.search(queries, 8)
    assert same(found, SummaryIndex(store).search(queries, 8))
    assert not same(found, SummaryIndex(store, seed=1).search(queries, 8))


def test_centroids_are_made_again_when_as_many_chunks_came_as_there_were():
    store = store_of(torch.randn(10, 2), capacity=40)
    with (
        few(9),
        mock.patch.object(SummaryIndex, "_make", autospec=True, side_effect=SummaryIndex._make) as make,
    ):
        index = SummaryIndex(store)
        made = []
        for _ in range(80):
            index.refresh()
            index.refresh()
            made.append(make.call_count)
            add(store, torch.randn(1, 2))
    assert [i for i in range(1, 80) if made[i] > made[i - 1]] == [10, 30, 70]  # of 10, 20 and 40 chunks
    assert len(index._members) == round(math.sqrt(40))


def test_there_are_fewer_lists_when_centroids_are_made_of_fewer_chunks():
    generator = torch.Generator().manual_seed(0)
    store = store_of(torch.randn(40, 2, generator=generator))
    with few(8):
        index = SummaryIndex(store)
        index.refresh()
        assert len(index._members) == 6
        for _ in range(5):  # of 9 chunks, until 40 came
            store.drop(store.ids[store.valid].tolist())
            add(store, torch.randn(9, 2, generator=generator))
            index.refresh()
            check_lists(index, store)
    assert len(index._members) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_the_products_that_were_found(dtype):
    generator = torch.Generator().manual_seed(0)
    store = store_of(whole(generator, 200, 6))
    select = whole(generator, 3, 6).to(dtype).requires_grad_()
    weights = whole(generator, 3, 5).to(dtype)
    with few(0):
        slots, logits = SummaryIndex(store, probe=2).search(select, 5)
    assert (slots >= 0).all()
    (logits * weights).sum().backward()
    rows = torch.from_numpy(store.summaries)[slots].to(dtype)  # [Q, k, D]
    assert torch.equal(select.grad, torch.einsum("qk,qkd->qd", weights, rows))
    assert logits.dtype == dtype
    plain = select.detach()[:, None].requires_grad_()
    places, same_logits = scan(plain, rows, k=5)
    assert torch.equal(same_logits[:, 0], logits)
    (same_logits[:, 0] * weights).sum().backward()
    assert torch.equal(plain.grad[:, 0], select.grad)
    assert places.tolist() == [[[0, 1, 2, 3, 4]]] * 3


def test_an_empty_store_has_nothing_to_find():
    store = InProcessStore(chunk_length=1, width=2, capacity=10)
    with few(0):
        index = SummaryIndex(store)
        assert [list(part.shape) for part in index.search(torch.ones(3, 2), 4)] == [[3, 0], [3, 0]]
        add(store, np.ones((2, 2)))
        assert index.search(torch.ones(1, 2), 4)[0].tolist() == [[0, 1]]
        store.drop([0, 1])
        slots, logits = index.search(torch.ones(1, 2), 4)
        assert slots.tolist() == [[-1, -1]]
        assert logits.tolist() == [[-math.inf, -math.inf]]


def test_wrong_settings_and_queries_are_named():
    store = InProcessStore(chunk_length=1, width=2, capacity=10)
    with pytest.raises(ValueError, match="probe is 0"):
        SummaryIndex(store, probe=0)
    with pytest.raises(ValueError, match="lists is 0"):
        SummaryIndex(store, lists=0)
    with pytest.raises(ValueError, match=r"select is \[1, 3\]; use \[queries, 2\]"):
        SummaryIndex(store).search(torch.ones(1, 3), 1)


def test_a_memory_reads_by_an_index_what_it_reads_by_a_scan():
    """With all lists probed, gradients too; in a ring that went on."""
    store = InProcessStore(chunk_length=1, width=6, capacity=300)
    generator = torch.Generator().manual_seed(0)
    attention = ChunkAttention(6, 6, features=8, heads=2, length=1, k=4, generator=generator)
    lists = 8
    scanned = HCAM(attention, store, episodes="all")
    indexed = HCAM(attention, store, episodes="all", index=SummaryIndex(store, lists=lists, probe=lists))
    for item in torch.randn(305, 6, generator=generator):
        scanned.append(item)
    x = torch.randn(2, 6, generator=generator)
    gradients = []
    for memory in (scanned, indexed):
        attention.zero_grad()
        with few(0):
            found = memory.read(x)
        found.square().sum().backward()
        gradients.append([found.detach(), *(weight.grad.clone() for weight in attention.parameters())])
    for expected, read in zip(*gradients, strict=True):
        torch.testing.assert_close(read, expected)
    with pytest.raises(ValueError, match="an index knows no ages"):
        HCAM(ChunkAttention(6, 6, length=1, age=True), store, index=SummaryIndex(store))
