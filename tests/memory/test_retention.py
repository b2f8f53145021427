"""Which chunk goes when a store is full: each retention against its definition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from store_support import (
    CAPACITY,
    do,
    every_retention,
    kept_ids,
    make,
    seal,
    steps_of,
)

from streamwise.memory.retention import LogThinning, Merge, Reservoir, Surprise, Use, Window
from streamwise.memory.store import InProcessStore
from streamwise.memory.store_table import Lowest


def test_the_lowest_score_is_found():
    generator = np.random.default_rng(0)
    for size in (1, 127, 128, 129, 20_000):
        lowest, scores = Lowest(size), np.full(size, np.inf)
        assert lowest.first() is None
        for _ in range(300):
            slot, score = int(generator.integers(size)), float(generator.choice([np.inf, 1.0, 2.0, 3.0]))
            lowest.put(slot, score)
            scores[slot] = score
            assert lowest.first() == (int(scores.argmin()) if np.isfinite(scores).any() else None)


def test_a_ring_keeps_the_newest():
    store = make()
    for number in range(50):
        assert seal(store, number) == number
        assert kept_ids(store) == list(range(max(0, number + 1 - CAPACITY), number + 1))


def test_pinned_chunks_stay():
    store = make()
    for number in range(5):
        seal(store, number)
    store.pin([1, 3])
    store.pin([3])
    for number in range(5, 30):
        seal(store, number)
    assert kept_ids(store) == [1, 3, *range(24, 30)]
    store.unpin([1, 3])
    seal(store, 30)
    assert kept_ids(store) == [3, *range(24, 31)]
    store.pin(range(24, 31))
    with pytest.raises(ValueError, match="no chunk may go: all 8 are pinned"):
        seal(store, 31)
    with pytest.raises(ValueError, match="chunk 3 is pinned"):
        store.drop([3])
    with pytest.raises(ValueError, match="chunk 30 is not pinned"):
        store.unpin([30, 30])


@pytest.mark.parametrize("folder", [None, "chunks"], ids=["memory", "disk"])
def test_a_window_keeps_what_is_recent_in_its_stream(folder, tmp_path):
    store = make(tmp_path / folder if folder else None, Window(chunks_per_stream=3), capacity=100)
    for number in range(40):
        seal(store, number, stream="even" if number % 2 == 0 else "odd")
    assert kept_ids(store) == [34, 35, 36, 37, 38, 39]
    store = make(retention=Window(time_to_live=25.0), capacity=100)
    for number in (0, 1, 2, 3, 4, 20):
        seal(store, number, stream=1)
        seal(store, number, stream=2)
    seal(store, 22, stream=1)
    assert [store.chunk(id).first for id in kept_ids(store)] == [200.0, 200.0, 220.0]
    store = make(retention=Window(within_episode=True), capacity=100)
    for number in range(10):
        seal(store, number, episode=number // 4)
    assert kept_ids(store) == [8, 9]


def test_a_pinned_chunk_leaves_its_window_once_it_is_unpinned():
    store = make(retention=Window(chunks_per_stream=2))
    seal(store, 0)
    store.pin([0])
    for number in range(1, 6):
        seal(store, number)
    assert kept_ids(store) == [0, 5]
    store.unpin([0])
    seal(store, 6)
    assert kept_ids(store) == [5, 6]


def test_a_reservoir_is_a_uniform_sample():
    """Each of 40 chunks is among the 8 that are kept with probability 8/40, the first as the last."""
    stores, sealed = 400, 40
    counts = np.zeros(sealed)
    for seed in range(stores):
        store = InProcessStore(1, 1, CAPACITY, retention=Reservoir(), seed=seed)
        for _ in range(sealed):
            store.append([[0.0]], first=0.0, last=0.0)
        assert len(store) == CAPACITY
        counts[kept_ids(store)] += 1
    share = CAPACITY / sealed
    expected = stores * share
    # What is kept is drawn without replacement: counts vary by a factor of 1 - share less.
    statistic = ((counts - expected) ** 2).sum() / (expected * (1 - share)) * (sealed - 1) / sealed
    assert 0.001 < stats.chi2.sf(statistic, sealed - 1) < 0.999


def test_a_reservoir_of_pinned_chunks_alone_takes_no_more():
    store = make(retention=Reservoir())
    for number in range(CAPACITY):
        seal(store, number)
    store.pin(range(CAPACITY))
    with pytest.raises(ValueError, match="no chunk may go: all 8 are pinned"):
        [seal(store, number) for number in range(CAPACITY, 100)]  # some are not in the sample anyway
    assert kept_ids(store) == list(range(CAPACITY))


def test_log_thinning_keeps_every_second_fourth_eighth_chunk():
    window, store = 4, make(retention=LogThinning(window=4), capacity=32)
    for now in range(400):
        seal(store, now)
        ages = {id: now - id for id in range(now + 1)}
        levels = {id: max(0, (age // window).bit_length() - 1) for id, age in ages.items()}
        said = [id for id, level in levels.items() if id % 2**level == 0]
        kept = kept_ids(store)
        if len(store) < 32 and kept[0] == 0:
            assert kept == said
        assert set(kept) <= set(said)
        assert kept == said[-len(kept) :]
    assert kept[0] < 400 - 10 * 32 / 2  # far more than the ring of the same size would reach back


def test_use_keeps_what_reads_look_at():
    """Against the sums as they are defined, decayed one by one."""
    decay, grace = 0.5, 3
    store, uses = make(retention=Use(decay, grace)), {}
    generator = np.random.default_rng(1)
    for number in range(1000):
        mature = [id for id in uses if id < number - grace]
        before = sorted(uses)
        uses[seal(store, number)] = 0.0
        if len(before) == CAPACITY:
            (gone,) = set(before) - set(kept_ids(store))
            assert gone in mature
            assert uses[gone] == pytest.approx(min(uses[id] for id in mature), rel=1e-9, abs=1e-60)
            del uses[gone]
        assert kept_ids(store) == sorted(uses)
        ids = generator.choice(sorted(uses), min(3, len(uses)), replace=False).tolist()
        weights = generator.dirichlet(np.ones(len(ids)))
        store.used(ids, weights)
        for id in uses:
            uses[id] *= decay
        for id, weight in zip(ids, weights, strict=True):
            uses[id] += weight


def test_surprise_keeps_the_most_surprising():
    store, priorities = make(retention=Surprise()), []
    for number, priority in enumerate(np.random.default_rng(0).integers(0, 30, 200).tolist()):
        assert seal(store, number, priority=float(priority)) == number
        priorities.append((priority, number))
        assert number in kept_ids(store) or priority < min(store.column("priority"))
        most = sorted(store.chunk(id).priority for id in kept_ids(store))
        assert most == sorted(p for p, _ in sorted(priorities)[-CAPACITY:])


def test_merging_covers_every_step_and_keeps_the_means():
    store, sealed = make(retention=Merge()), []
    for number in range(100):
        sealed.append(steps_of(number, 2 + number % 3))
        seal(store, number, count=len(sealed[-1]), first=float(number), last=number + 0.5, priority=number)
        chunks = sorted((store.chunk(id) for id in kept_ids(store)), key=lambda chunk: chunk.first)
        assert sum(chunk.covered for chunk in chunks) == sum(map(len, sealed))
        assert chunks[0].first == 0.0
        assert chunks[-1].last == number + 0.5
        assert all(one.last + 0.5 == other.first for one, other in pairwise(chunks))
    for chunk in chunks:
        covered = np.concatenate(sealed[int(chunk.first) : int(chunk.last) + 1])
        slot = store.ids.tolist().index(chunk.id)
        np.testing.assert_allclose(store.summaries[slot], covered.mean(0), rtol=1e-5)
        contents, steps = store.contents([chunk.id])
        rows = {row.tobytes() for row in covered}
        assert all(row.tobytes() in rows for row in contents[0, : steps[0]])
        assert chunk.covered <= 2 * min(other.covered + 4 for other in chunks) + 100
    assert max(chunk.covered for chunk in chunks) < 0.4 * sum(map(len, sealed))


def test_only_neighbours_of_an_episode_are_merged():
    store = make(retention=Merge(), capacity=4)
    for number in range(30):
        seal(store, number, stream=number % 2, episode=number // 10, count=1)
    for id in kept_ids(store):
        chunk = store.chunk(id)
        rows, steps = store.contents([id])
        numbers = rows[0, : steps[0], 0].astype(int)
        assert {(number % 2, number // 10) for number in numbers} == {(chunk.stream, chunk.episode)}


@every_retention
def test_every_retention_keeps_to_its_capacity_and_never_brings_a_chunk_back(retention):
    store, gone = make(retention=retention), set()
    for number in range(300):
        before = set(kept_ids(store))
        do(store, number)
        after = set(kept_ids(store))
        assert len(after) <= CAPACITY
        assert not gone & after
        gone |= before - after


def test_a_chunk_that_was_pinned_for_a_while_goes_once():
    """It was in the queue of what may go twice, and was let go of twice."""
    for _ in range(2):
        store = make(None, "episode")
        id = seal(store, 1, episode=0)
        for _ in range(3):
            store.pin([id])
            store.unpin([id])
        seal(store, 2, episode=0)
        seal(store, 3, episode=1)
        assert kept_ids(store) == [2]
        assert max(map(len, store.retention._queues.values())) == 1
