"""Sealed chunks: what was sealed comes back with the same bits, one or many at once, and what is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from store_support import (
    LENGTH,
    WIDTH,
    every_retention,
    everything,
    kept_ids,
    make,
    seal,
    steps_of,
)

from streamwise.memory.retention import LogThinning, Merge, Use


@given(
    batches=st.lists(st.integers(0, 9), max_size=9), count=st.integers(1, LENGTH), on_disk=st.booleans(),
    pinned=st.sets(st.integers(0, 20)), dropped=st.sets(st.integers(0, 20)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_many_at_once_leave_what_they_leave_one_after_another(batches, count, on_disk, pinned, dropped):
    states, files = [], []
    for at_once in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) if on_disk else None
            store, clock = make(directory, capacity=40), 0
            for chunks in batches:
                times = [10.0 * (clock + number) for number in range(chunks)]
                contents = np.stack([steps_of(then, count) for then in times] or [np.zeros((count, WIDTH))])
                if at_once:
                    store.append_many(contents[:chunks], times=times, stream="ann", sequence=clock)
                else:
                    for number, then in enumerate(times):
                        store.append(
                            contents[number], first=then, last=then, stream="ann", sequence=clock + number
                        )
                clock += chunks
                alive = set(kept_ids(store))
                store.drop(sorted(alive & dropped - pinned))
                store.pin(sorted(alive & pinned))
            states.append(store.state_dict())
            if directory is not None:
                files.append({path.name: path.read_bytes() for path in sorted(directory.iterdir())})
            store.close()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.numpy().tobytes() == states[1][name].numpy().tobytes(), name
    if on_disk:
        assert files[0] == files[1]


def test_many_at_once_are_all_refused_for_one_that_is_not_finite():
    store = make(capacity=40)
    contents = np.stack([steps_of(number) for number in range(3)])
    contents[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        store.append_many(contents, times=[0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"2 times; use \[n, steps, width\]"):
        store.append_many(contents, times=[0.0, 1.0])
    with pytest.raises(ValueError, match="1 to 4 steps"):
        store.append_many(np.zeros((3, 5, WIDTH)), times=[0.0, 1.0, 2.0])
    assert len(store) == 0
    assert store.next_id == 0


# -- reading


def test_arrays_stay_where_they_are_and_are_contiguous(tmp_path):
    store = make(tmp_path, capacity=300, records_per_file=100)
    seal(store, 0)
    at = [array.ctypes.data for array in (store.summaries, store.ids, store.valid)]
    for number in range(1, 900):
        seal(store, number)
    store.load_state_dict(store.state_dict())
    arrays = (store.summaries, store.ids, store.valid)
    assert [array.ctypes.data for array in arrays] == at
    assert all(array.flags.c_contiguous for array in arrays)
    assert store.summaries.shape == (300, WIDTH)
    assert store.summaries.dtype == np.float32


@pytest.mark.parametrize("folder", [None, "chunks"], ids=["memory", "disk"])
def test_half_precision_keeps_contents_to_eleven_bits_and_summaries_whole(folder, tmp_path):
    store = make(tmp_path / folder if folder else None, stored_as="float16")
    seal(store, 3)
    contents, _ = store.contents([0])
    assert contents.dtype == np.float32
    assert (contents[0] == steps_of(3).astype(np.float16)).all()
    np.testing.assert_allclose(store.summaries[0], steps_of(3).mean(0), rtol=1e-7)
    with pytest.raises(ValueError, match="not finite as float16"):
        store.append(np.full((1, WIDTH), 1e6), first=0.0, last=0.0)


# -- summaries that are given


@every_retention
@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_given_summaries_are_kept_bit_for_bit(retention, on_disk, tmp_path):
    folder, generator = tmp_path if on_disk else None, np.random.default_rng(0)
    store, given = make(folder, retention), {}
    for number in range(20):
        summary = generator.standard_normal(WIDTH).astype(np.float32)
        given[seal(store, number, summary=summary)] = summary
    seen, state = everything(store), load(save(store.state_dict()))
    if retention != "merge":
        for id, summary in zip(store.ids.tolist(), store.summaries, strict=True):
            assert id < 0 or summary.tobytes() == given[id].tobytes()
    store.close()
    again = make(folder, retention)
    if on_disk:
        assert everything(again)["summaries"] == seen["summaries"]
    again.load_state_dict(state)
    assert everything(again) == seen


def test_merged_chunks_have_a_summary_between_those_that_were_given():
    store = make(retention=Merge(), capacity=2)
    for number, count in enumerate((1, 3, 4)):
        seal(store, number, count=count, summary=[float(number), 8.0, -1.0])
    merged = next(slot for slot, id in enumerate(store.ids.tolist()) if store.chunk(id).covered == 1 + 3)
    assert store.summaries[merged].tolist() == [0.75, 8.0, -1.0]


# -- errors


def test_wrong_chunks_are_refused_in_a_line_and_change_nothing(tmp_path):
    store = make(tmp_path)
    seal(store, 0)
    before = everything(store)
    for contents, message in [
        (np.zeros((2, 5)), r"shape \[2, 5\]; use \[steps, 3\] with 1 to 4 steps"),
        (np.zeros((5, 3)), r"shape \[5, 3\]"),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        (np.zeros(3), r"shape \[3\]"),
        (np.full((1, 3), np.nan), "not finite as float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            store.append(contents, first=0.0, last=1.0)
    for summary in (np.zeros(2), np.zeros((1, 3)), [0.0, 1.0, np.inf]):
        with pytest.raises(ValueError, match=r"the summary of a chunk has shape .* use 3 finite numbers"):
            store.append(np.zeros((1, 3)), first=0.0, last=1.0, summary=summary)
    for about in ({"first": 2.0}, {"last": float("nan")}, {"priority": float("nan")}):
        with pytest.raises(ValueError, match="use numbers, in order"):
            store.append(np.zeros((1, 3)), **{"first": 0.0, "last": 1.0, **about})
    for stream in ("", "x" * 33, "a\0", 2**63):
        with pytest.raises(ValueError, match="stream is"):
            store.append(np.zeros((1, 3)), first=0.0, last=1.0, stream=stream)
    assert everything(store) == before
    assert seal(store, 1) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"stored_as": "float64"}, "stored_as is 'float64'"),
        ({"retention": LogThinning(window=3)}, "window is 3; use a power of two of at most half"),
        ({"retention": LogThinning(window=8)}, "window is 8"),
        ({"retention": Use(grace=8)}, "grace 8; use a decay in"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)
