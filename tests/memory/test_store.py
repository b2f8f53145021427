"""Sealed chunks: what was sealed comes back with the same bits, on disk or not, whenever it is killed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.torch import load, save
from scipy import stats

from streamwise.memory import segments
from streamwise.memory.retention import LogThinning, Lowest, Merge, Reservoir, Ring, Surprise, Use, Window
from streamwise.memory.segments import ChunkFileError
from streamwise.memory.store import InProcessStore

LENGTH, WIDTH, CAPACITY, TO_A_FILE = 4, 3, 8, 4
RETENTIONS = {
    "ring": Ring,
    "window": lambda: Window(chunks_per_stream=3, time_to_live=60.0),
    "episode": lambda: Window(within_episode=True),
    "reservoir": Reservoir,
    "log-thinning": lambda: LogThinning(window=2),
    "use": lambda: Use(decay=0.9, grace=2),
    "surprise": Surprise,
    "merge": Merge,
}
every_retention = pytest.mark.parametrize("retention", RETENTIONS)


def make(directory=None, retention="ring", capacity=CAPACITY, **changes):
    kept = RETENTIONS[retention]() if isinstance(retention, str) else retention
    settings = {"records_per_file": TO_A_FILE, "directory": directory, "retention": kept, **changes}
    return InProcessStore(LENGTH, WIDTH, capacity, **settings)


def steps_of(number, count=LENGTH):
    """Contents that tell which chunk they are of."""
    return (np.arange(count * WIDTH).reshape(count, WIDTH) / 7.0 + number).astype(np.float32)


def seal(store, number, *, count=LENGTH, **about):
    return store.append(
        steps_of(number, count), **{"first": 10.0 * number, "last": 10.0 * number + count - 1, **about}
    )


def kept_ids(store):
    return sorted(store.ids[store.valid].tolist())


def everything(store):
    """All that a reader can see, by slot."""
    ids = store.ids[store.valid].tolist()
    contents, steps = store.contents(ids)
    return {
        "ids": store.ids.tolist(),
        "summaries": store.summaries[store.valid].tobytes(),
        "contents": contents.tobytes(),
        "steps": steps.tolist(),
        "chunks": [store.chunk(id) for id in ids],
    }


def same_state(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        if name not in ("chunks.position", "chunks.settings", "chunks.counters"):
            assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name


class AgainstADictionary(RuleBasedStateMachine):
    """A store on disk and one in memory see the same, which a dictionary of all that was sealed agrees with.

    Chunks come, are read, pinned and dropped; checkpoints are made, of which two are kept; the process is
    killed, amid a write or not, and goes on from a kept checkpoint or from the files alone.
    """

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.truth: dict[int, tuple[np.ndarray, int | str]] = {}
        self.pins: dict[int, int] = defaultdict(int)
        self.gone: set[int] = set()
        self.kept: list = []
        self.clock = 0

    @initialize(retention=st.sampled_from(list(RETENTIONS)))
    def begin(self, retention):
        self.retention = retention
        self.disk, self.memory = make(self.folder, retention), make(None, retention)

    def teardown(self):
        if hasattr(self, "disk"):
            self.disk.close()
        shutil.rmtree(self.folder)

    def both(self, call):
        results = []
        for store in (self.disk, self.memory):
            try:
                results.append(call(store))
            except ValueError as error:
                results.append(str(error))
        assert results[0] == results[1]
        return results[0]

    def alive(self):
        return kept_ids(self.disk)

    @rule(
        stream=st.sampled_from([0, 7, "ann"]), episode=st.integers(0, 1), count=st.integers(1, LENGTH),
        priority=st.integers(0, 3),
    )  # fmt: skip
    def append(self, stream, episode, count, priority):
        before, self.clock = self.alive(), self.clock + 1
        about = {"stream": stream, "episode": episode, "priority": float(priority), "count": count}
        id = self.both(lambda store: seal(store, self.clock, **about))
        if isinstance(id, str):
            assert "no chunk may go" in id
            return
        assert id not in self.truth
        assert id > max(self.truth, default=-1)
        self.truth[id] = (steps_of(self.clock, count), stream)
        self.gone |= {*before, id} - set(self.alive())

    @precondition(lambda self: CAPACITY - sum(count > 0 for count in self.pins.values()) >= 4)
    @rule(stream=st.sampled_from([0, "ann"]), chunks=st.integers(1, 4), count=st.integers(1, LENGTH))
    def append_many(self, stream, chunks, count):
        """On disk at once, and one after another in memory."""
        before, first = self.alive(), self.disk.next_id
        times = [10.0 * (self.clock + 1 + number) for number in range(chunks)]
        contents = np.stack([steps_of(then, count) for then in times])
        for number, then in enumerate(times):
            about = {"first": then, "last": then, "stream": stream, "sequence": 5 + number}
            self.memory.append(contents[number], **about)
        self.disk.append_many(contents, times=times, stream=stream, sequence=5)
        assert self.disk.next_id == self.memory.next_id
        self.clock += chunks
        if self.retention != "merge":  # which gives numbers to what it makes, too
            self.truth |= {first + i: (steps, stream) for i, steps in enumerate(contents)}
            self.gone |= {*before, *range(first, first + chunks)} - set(self.alive())
        else:
            self.gone |= set(before) - set(self.alive())

    @precondition(lambda self: self.alive())
    @rule(which=st.lists(st.integers(0, 7), min_size=1, max_size=3), weight=st.floats(0.0, 1.0))
    def read(self, which, weight):
        ids = [self.alive()[i % len(self.alive())] for i in which]
        self.both(lambda store: store.used(ids, [weight] * len(ids)))

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, 7))
    def pin(self, which):
        id = self.alive()[which % len(self.alive())]
        self.both(lambda store: store.pin([id]))
        self.pins[id] += 1

    @precondition(lambda self: any(self.pins.values()))
    @rule(which=st.integers(0, 7))
    def unpin(self, which):
        pinned = [id for id, count in sorted(self.pins.items()) if count]
        id = pinned[which % len(pinned)]
        self.both(lambda store: store.unpin([id]))
        self.pins[id] -= 1

    @rule(which=st.integers(0, 7))
    def drop(self, which):
        ids = [id for id in self.alive() if id % 8 == which and not self.pins[id]]
        self.both(lambda store: store.drop(ids))
        self.gone |= set(ids)

    @rule()
    def checkpoint(self):
        generation = self.disk.generation
        states = [load(save(store.state_dict())) for store in (self.disk, self.memory)]
        mine = (dict(self.truth), self.pins.copy(), set(self.gone), self.clock)
        self.kept = [*self.kept[-1:], (states, mine, generation)]
        self.disk.forget_before(self.kept[0][2])

    def open_again(self, torn):
        self.disk.close()
        files = sorted(self.folder.iterdir())
        if files and torn:
            with files[-1].open("ab") as last:
                last.write(os.urandom(torn))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.disk = make(self.folder, self.retention)
        assert self.disk.recovery.cut_bytes == (torn if files else 0)

    @precondition(lambda self: self.kept)
    @rule(which=st.integers(0, 1), torn=st.integers(0, 400))
    def kill_and_go_on(self, which, torn):
        self.kept = self.kept[: min(which, len(self.kept) - 1) + 1]  # what a damaged newer checkpoint leaves
        self.open_again(torn)
        (on_disk, in_memory), (truth, pins, gone, clock), _ = self.kept[-1]
        self.disk.load_state_dict(on_disk)
        self.memory = make(None, self.retention)
        self.memory.load_state_dict(in_memory)
        self.truth, self.pins, self.gone, self.clock = dict(truth), pins.copy(), set(gone), clock

    @rule(torn=st.integers(0, 400))
    def kill_and_look_at_the_files(self, torn):
        before, state = everything(self.disk), self.disk.state_dict()
        while before["ids"] and before["ids"][-1] < 0:
            before["ids"].pop()
        self.open_again(torn)
        after = everything(self.disk)
        assert after["ids"][: len(before["ids"])] == before["ids"]
        assert {**after, "ids": []} == {**before, "ids": []}
        self.disk.load_state_dict(state)

    @invariant()
    def the_disk_says_what_memory_says(self):
        if hasattr(self, "disk"):
            assert everything(self.disk) == everything(self.memory)

    @invariant()
    def what_is_kept_is_what_was_sealed(self):
        if not hasattr(self, "disk"):
            return
        alive = self.alive()
        assert len(alive) == len(self.disk) <= CAPACITY
        assert not self.gone & set(alive)
        assert {id for id, count in self.pins.items() if count} <= set(alive)
        for id in set(alive) & set(self.truth):
            steps, stream = self.truth[id]
            contents, count = self.disk.contents([id])
            assert self.disk.chunk(id).stream == stream
            assert (contents[0, : count[0]] == steps).all()
            assert not contents[0, count[0] :].any()
        with pytest.raises(KeyError, match="is not kept"):
            self.disk.contents([max(self.truth, default=0) + 1000])


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)


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


def test_a_disk_that_fills_up_amid_many_keeps_the_files_that_were_whole(tmp_path, monkeypatch):
    store = make(tmp_path, capacity=40)
    write, left = os.pwrite, 6 * segments.record_type(LENGTH, WIDTH, "float32").itemsize

    def fills_up(file, data, offset):
        nonlocal left
        if len(data) > left:
            raise OSError(28, "No space left on device")
        left -= len(data)
        return write(file, data, offset)

    monkeypatch.setattr(segments.os, "pwrite", fills_up)
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


# -- killed


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

    monkeypatch.setattr(segments.os, "pwrite", stops)


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


# -- restarts


def do(store, number):
    """Do one of some things that a run does, which depend on the number alone."""
    generator = np.random.default_rng(number)
    seal(
        store, number, count=int(generator.integers(1, LENGTH + 1)), stream=int(generator.integers(3)),
        episode=number // 20, priority=float(generator.random()),
    )  # fmt: skip
    ids = kept_ids(store)
    if number % 3 == 0:
        store.used(ids[::3], generator.random(len(ids[::3])))
    if number % 11 == 0:
        store.pin(ids[:1])
    if number % 11 == 6:
        pinned = store.ids[store.column("pins") > 0].tolist()
        store.unpin(pinned[:1])
    if number % 17 == 0:
        free = sorted(store.ids[store.valid & (store.column("pins") == 0)].tolist())
        store.drop(free[1:2])


@every_retention
@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_killed_and_resumed_equals_never_killed(retention, on_disk, tmp_path):
    folder, other_folder = (tmp_path / "a", tmp_path / "b") if on_disk else (None, None)
    never, killed = make(folder, retention), make(other_folder, retention)
    for number in range(150):
        do(never, number)
    for number in range(100):
        do(killed, number)
        if number == 70:
            state = save(killed.state_dict())
    killed.close()
    resumed = make(other_folder, retention, seed=9)  # the seed is in the state
    resumed.load_state_dict(load(state))
    for number in range(71, 150):
        do(resumed, number)
    assert everything(resumed) == everything(never)
    same_state(resumed.state_dict(), never.state_dict())


def test_an_older_checkpoint_takes_back_what_came_after_it(tmp_path):
    store = make(tmp_path)
    for number in range(6):
        seal(store, number)
    state, seen = store.state_dict(), everything(store)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for number in range(6, 40):
        seal(store, number)
    store.load_state_dict(state)
    assert everything(store) == seen
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert seal(store, 6) == 6


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


def test_a_state_is_gone_back_to_whose_last_file_had_nothing_left(tmp_path):
    store = make(tmp_path)
    for number in range(2):
        seal(store, number)
    store.drop([0, 1])
    state = store.state_dict()
    for number in range(2, 9):
        seal(store, number)
    store.load_state_dict(state)
    assert kept_ids(store) == []
    assert seal(store, 2) == 2


# -- retention


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


def test_reads_across_many_files_and_trims_are_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_MAPS_OPEN", 3)
    monkeypatch.setattr(segments, "_READS_BETWEEN_TRIMS", 5)
    store = make(tmp_path, capacity=1000)
    for number in range(100):
        seal(store, number)
    generator = np.random.default_rng(0)
    for _ in range(200):
        ids = generator.integers(0, 100, 8).tolist()
        contents, steps = store.contents(ids)
        assert (contents == np.stack([steps_of(id) for id in ids])).all()
        assert steps.tolist() == [LENGTH] * 8
    assert len(store._log._maps) <= 3


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


def test_a_state_of_another_store_is_refused(tmp_path):
    store = make(tmp_path / "a")
    for number in range(6):
        seal(store, number)
    state = store.state_dict()
    with pytest.raises(ChunkFileError, match=r"holds 0 records, and the checkpoint refers to 6"):
        make(tmp_path / "b").load_state_dict(state)
    with pytest.raises(ValueError, match=r"on disk, and this one has 4 steps .* in memory"):
        make().load_state_dict(state)
    with pytest.raises(ValueError, match="6 slots, and the capacity is 5"):
        make(tmp_path / "c", capacity=5).load_state_dict(state)
    other = make(tmp_path / "d")
    for number in range(1, 9):
        seal(other, number)
    seen = everything(other)
    with pytest.raises(ChunkFileError, match="holds other records than the checkpoint refers to"):
        other.load_state_dict(state)
    assert everything(other) == seen


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
            monkeypatch.setattr(segments.os, "pwrite", no_room)
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


# -- size


@pytest.mark.slow
def test_a_million_chunks_on_disk_take_less_than_a_gigabyte_of_memory(tmp_path):
    """8.7 GB of contents; times are printed, as they depend on the machine."""
    chunks, length, width = 10**6, 32, 64
    needed = 9 * 10**9
    if shutil.disk_usage(tmp_path).free < 2 * needed:
        pytest.skip("needs 18 GB of free disk")
    report, generator = [], np.random.default_rng(0)
    base = generator.standard_normal((length, width)).astype(np.float32)

    def steps_of_large(number):
        steps = base.copy()
        steps[0, 0], steps[-1, -1] = number % 65_536, number // 65_536
        return steps

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def read(store, calls, within):
        times, most = np.empty((calls, 2)), 0  # by the clock, and of the processor alone
        for i in range(calls):
            ids = generator.integers(0, within, 8).tolist()
            start = np.array([time.perf_counter(), time.thread_time()])
            contents, _ = store.contents(ids)
            times[i] = np.array([time.perf_counter(), time.thread_time()]) - start
            most = max(most, resident()) if i % 50 == 0 else most
            for id, found in zip(ids, contents, strict=True):
                assert (found[0, 0], found[-1, -1]) == (id % 65_536, id // 65_536)
                assert (found[1:-1] == base[1:-1]).all()
        return times * 1e3, most

    directory = tmp_path / "chunks"
    store = InProcessStore(length, width, chunks, directory=directory)
    start = time.perf_counter()
    for number in range(chunks):
        store.append(steps_of_large(number), first=32.0 * number, last=32.0 * number + 31)
    report.append(f"append {1e6 * (time.perf_counter() - start) / chunks:.0f} µs")
    most = resident()
    report.append(f"{most / 1e6:.0f} MB after the last append")
    within = 100_000  # their files are read once, so that they are in the page cache
    read(store, 2000, within)
    for file in sorted(directory.iterdir())[: within // 4096 + 1]:
        file.read_bytes()
    for name, reach in (("warm", within), ("all over", chunks)):
        times, at = read(store, 4000, reach)
        most = max(most, at)
        clock, processor = (f"{p50:.2f}, {p99:.2f}" for p50, p99 in np.quantile(times, [0.5, 0.99], 0).T)
        report.append(f"8 chunks {name}, median and p99: {clock} ms, of the processor {processor} ms")
        report.append(f"{at / 1e6:.0f} MB at most")
    start = time.perf_counter()
    state = store.state_dict()
    report.append(f"state {time.perf_counter() - start:.1f} s")
    store.close()
    del store
    start = time.perf_counter()
    store = InProcessStore(length, width, chunks, directory=directory)
    opened = time.perf_counter() - start
    store.load_state_dict(state)
    report.append(f"opened in {opened:.1f} s, state loaded in {time.perf_counter() - start - opened:.1f} s")
    del state  # a second copy of what is known of the chunks, which is the caller's
    read(store, 100, chunks)
    report.append(f"{resident() / 1e6:.0f} MB then")
    most = max(most, resident())
    print(f"{chunks:,} chunks: {'; '.join(report)}; {most / 1e6:.0f} MB resident at most")
    assert len(store) == chunks
    assert most < 1e9
    store.close()
    shutil.rmtree(directory)


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


def test_a_state_that_ends_with_a_file_in_which_nothing_is_kept_can_be_gone_back_to_again(tmp_path):
    """The file was deleted, and the next state had to say how the log ends there."""
    store = make(tmp_path)
    for number in range(2):
        store.drop([seal(store, number)])
    state = store.state_dict()  # of a file's four records
    seal(store, 2)
    for _ in range(2):
        store.load_state_dict(state)
        store.forget_before(store.generation - 1)
        state = store.state_dict()
        store.forget_before(store.generation - 1)
        state = store.state_dict()
    store.close()
    store = make(tmp_path)
    store.load_state_dict(state)
    assert seal(store, 3) == 2
    store.close()
