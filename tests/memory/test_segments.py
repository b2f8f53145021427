"""Chunks in files: whatever is killed, damaged, full or missing, what was sealed is there or named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from store_support import (
    CAPACITY,
    LENGTH,
    TO_A_FILE,
    WIDTH,
    every_retention,
    everything,
    kept_ids,
    make,
    seal,
    steps_of,
)

from streamwise.memory import segment_files
from streamwise.memory.records import record_type
from streamwise.memory.segment_files import ChunkFileError


def test_a_disk_that_fills_up_amid_many_keeps_the_files_that_were_whole(tmp_path, monkeypatch):
    store = make(tmp_path, capacity=40)
    write, left = os.pwrite, 6 * record_type(LENGTH, WIDTH, "float32").itemsize

    def fills_up(file, data, offset):
        nonlocal left
        if len(data) > left:
            raise OSError(28, "No space left on device")
        left -= len(data)
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", fills_up)
    contents = np.stack([steps_of(number) for number in range(8)])
    with pytest.raises(OSError, match="No space left"):
        store.append_many(contents, times=list(range(8)))
    assert kept_ids(store) == [0, 1, 2, 3]
    monkeypatch.undo()
    store.append_many(contents[4:], times=list(range(4, 8)))
    assert kept_ids(store) == list(range(8))
    found, _ = store.contents(range(8))
    assert (found == contents).all()
    store.close()
    assert everything(make(tmp_path, capacity=40))["contents"] == contents.tobytes()


class Killed(BaseException):
    pass


def kill_within_a_write(monkeypatch, generator, record_size):
    """Make a coming write stop after some bytes, and nothing be done after it."""
    left = int(generator.integers(0, 12 * record_size))
    write = os.pwrite

    def stops(file, data, offset):
        nonlocal left
        if len(data) > left:
            write(file, data[:left], offset)
            raise Killed
        left -= len(data)
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", stops)


def seal_for_ever(store, sealed):
    while True:
        number = len(sealed)
        sealed[seal(store, number)] = steps_of(number)


def test_killed_at_a_hundred_random_bytes_every_sealed_chunk_comes_back(tmp_path, monkeypatch):
    generator, sealed, cut = np.random.default_rng(0), {}, 0
    for _ in range(100):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            store = make(tmp_path, capacity=5000)
        assert bool(store.recovery.cut_bytes) == bool(warned)
        cut += store.recovery.cut_records
        assert kept_ids(store) == sorted(sealed)
        contents, _ = store.contents(sealed)
        assert all((found == steps).all() for found, steps in zip(contents, sealed.values(), strict=True))
        kill_within_a_write(monkeypatch, generator, store._record.itemsize)
        with pytest.raises(Killed):
            seal_for_ever(store, sealed)
        monkeypatch.undo()
        store.close()
    assert len(sealed) > 300
    assert cut > 60


@pytest.fixture
def three(tmp_path):
    """Return a directory with one file of three records, where each begins, and where the last ends."""
    store = make(tmp_path)
    for number in range(3):
        seal(store, number)
    store.close()
    (path,) = tmp_path.iterdir()
    size = store._record.itemsize
    return path, [64 + i * size for i in range(4)]


def test_a_file_that_ends_at_any_byte_has_the_records_before_it(three):
    path, begins = three
    whole = path.read_bytes()
    assert len(whole) == begins[-1]
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            store = make(path.parent)
        records = sum(begin <= end for begin in begins[1:])
        left = end - begins[records] if end >= begins[0] else end
        assert kept_ids(store) == list(range(records))
        assert (store.recovery.records, store.recovery.cut_bytes) == (records, left)
        assert store.recovery.cut_records == (left > 0)
        assert len(warned) == (left > 0)
        assert seal(store, records) == records
        assert (store.contents([records])[0][0] == steps_of(records)).all()
        store.close()


def test_a_changed_byte_anywhere_in_the_last_record_is_noticed(three):
    path, begins = three
    whole = bytearray(path.read_bytes())
    for byte in range(begins[2], begins[3]):
        damaged = whole.copy()
        damaged[byte] ^= 0x10
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"of 1 records that were not whole, are cut, and 2 records"):
            store = make(path.parent)
        assert kept_ids(store) == [0, 1]
        store.close()


def test_the_rest_of_a_file_that_the_disk_never_wrote_is_cut(three):
    path, begins = three
    with path.open("r+b") as file:
        file.truncate(begins[1])
        file.truncate(begins[3])  # zeros, as after a power cut
    with pytest.warns(UserWarning, match="of 2 records"):
        store = make(path.parent)
    assert kept_ids(store) == [0]


def test_a_file_that_was_just_begun_is_begun_again(tmp_path):
    store = make(tmp_path)
    for number in range(TO_A_FILE + 1):
        seal(store, number)
    store.close()
    last = sorted(tmp_path.iterdir())[-1]
    header = last.read_bytes()[:64]
    for end in range(64):
        last.write_bytes(header[:end])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = make(tmp_path)
        assert (store.recovery.records, store.recovery.cut_bytes) == (TO_A_FILE, end)
        assert seal(store, 4) == 4
        assert kept_ids(store) == [0, 1, 2, 3, 4]
        store.close()


def test_a_killed_process_loses_nothing_that_it_was_told_is_sealed(tmp_path):
    program = f"""
from pathlib import Path
from streamwise.memory.store import InProcessStore
store = InProcessStore({LENGTH}, {WIDTH}, 10**6, directory=Path({str(tmp_path)!r}))
for number in range(10**6):
    id = store.append([[float(number)] * {WIDTH}] * {LENGTH}, first=0.0, last=1.0)
    print(id, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 200:
                process.send_signal(signal.SIGKILL)
        said = int(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = make(tmp_path, capacity=10**6, records_per_file=4096)
    assert kept_ids(store)[: said + 1] == list(range(said + 1))
    contents, _ = store.contents(range(said + 1))
    assert (contents == np.arange(said + 1, dtype=np.float32)[:, None, None]).all()


def test_files_without_a_chunk_that_is_asked_for_go(tmp_path):
    """Without checkpoints those of the capacity are there; with some kept, also those that they refer to."""
    store = make(tmp_path)
    for number in range(100):
        seal(store, number)
    assert len(list(tmp_path.iterdir())) <= CAPACITY / TO_A_FILE + 1
    generations = []
    for number in range(100, 200):
        seal(store, number)
        if number % 10 == 0:
            generations = [*generations[-2:], store.generation]
            store.state_dict()
            store.forget_before(generations[0])
    assert len(list(tmp_path.iterdir())) <= (CAPACITY + 30) / TO_A_FILE + 1


def test_a_dropped_chunk_stays_away_though_the_file_that_says_so_has_nothing_else(tmp_path):
    store = make(tmp_path, capacity=100)
    for number in range(4):
        seal(store, number)  # the first file, which stays because of chunk 0
    store.drop([3, 2, 1])
    seal(store, 4)  # the second: three drops, and a chunk in slot 1
    store.drop([4])
    for number in range(5, 20):
        seal(store, number)  # in slot 1, again and again
        store.drop([number])
    seal(store, 20)
    assert kept_ids(store) == [0, 20]
    assert store.ids.tolist() == [0, 20, -1, -1]
    store.close()
    assert kept_ids(make(tmp_path, capacity=100)) == [0, 20]


def test_reads_across_many_files_and_trims_are_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_files, "_MAPS_OPEN", 3)
    monkeypatch.setattr(segment_files, "_READS_BETWEEN_TRIMS", 5)
    store = make(tmp_path, capacity=1000)
    for number in range(100):
        seal(store, number)
    generator = np.random.default_rng(0)
    for _ in range(200):
        ids = generator.integers(0, 100, 8).tolist()
        contents, steps = store.contents(ids)
        assert (contents == np.stack([steps_of(id) for id in ids])).all()
        assert steps.tolist() == [LENGTH] * 8
    assert len(store._holder._log._files._maps) <= 3


def test_damage_in_a_file_that_was_whole_is_noticed_when_it_is_read(tmp_path):
    store = make(tmp_path)
    for number in range(6):
        seal(store, number)
    store.close()
    first = min(tmp_path.iterdir())
    damaged = bytearray(first.read_bytes())
    damaged[-20] ^= 1
    first.write_bytes(damaged)
    store = make(tmp_path)
    assert (store.contents([2])[0][0] == steps_of(2)).all()
    with pytest.raises(ChunkFileError, match=r"segment-0+\.chunks: record 3 is damaged"):
        store.contents([3])


def test_a_directory_of_other_settings_or_in_use_is_refused(tmp_path):
    store = make(tmp_path)
    for number in range(6):
        seal(store, number)
    with pytest.raises(ChunkFileError, match="is in use by another store"):
        make(tmp_path)
    store.close()
    for changes in ({"stored_as": "float16"}, {"records_per_file": 8}):
        with pytest.raises(
            ChunkFileError, match=r"000\.chunks is of a store with 4 steps of 3 numbers of 4 by"
        ):
            make(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"a chunk in slot .*, and the capacity is 2; use a larger one"):
        make(tmp_path, capacity=2)
    assert kept_ids(make(tmp_path)) == [0, 1, 2, 3, 4, 5]


def test_a_file_that_is_cut_short_or_missing_before_the_last_is_named(tmp_path):
    store = make(tmp_path, capacity=100)
    for number in range(10):
        seal(store, number)
    state = store.state_dict()
    store.close()
    first, second, _ = sorted(tmp_path.iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:30])
    with pytest.raises(
        ChunkFileError, match=f"{first}: the header is damaged or cut short; put the file back"
    ):
        make(tmp_path, capacity=100)
    first.write_bytes(whole[:-1])
    with pytest.raises(ChunkFileError, match=f"{first} is not the last file and is not full"):
        make(tmp_path, capacity=100)
    first.write_bytes(whole)
    second.unlink()
    store = make(tmp_path, capacity=100)
    with pytest.raises(ChunkFileError, match=r"lacks files of 4 chunks that are kept"):
        store.load_state_dict(state)


def seal_both(store, twin, number):
    for _ in range(1000):
        seal(store, number, priority=1.0, stream=number % 2)
        seal(twin, number, priority=1.0, stream=number % 2)


@every_retention
def test_a_full_disk_is_named_and_the_store_goes_on_when_there_is_room(retention, tmp_path, monkeypatch):
    store, twin = make(tmp_path, retention), make(None, retention)
    write, room = os.pwrite, 0

    def no_room(file, data, offset):
        if room:
            return write(file, data, offset)
        if len(data) > 100:
            return write(file, data[:100], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for number in range(60):
        if number % 7 == 3:
            monkeypatch.setattr(os, "pwrite", no_room)
            before, ids = everything(store), kept_ids(store)
            with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/segment-\d+\.chunks'"):
                seal_both(store, twin, number)  # a chunk that is declined is not written
            assert kept_ids(store) == ids
            sizes = [path.stat().st_size - 64 for path in tmp_path.iterdir()]
            assert not any(size % store._record.itemsize for size in sizes)
            assert {**everything(store), "ids": 0} == {**before, "ids": 0}
            monkeypatch.undo()
        seal(store, number, priority=1.0, stream=number % 2)
        seal(twin, number, priority=1.0, stream=number % 2)
        assert everything(store) == everything(twin)
    store.close()
    assert kept_ids(make(tmp_path, retention)) == kept_ids(twin)
