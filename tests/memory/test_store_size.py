"""A store of a million chunks: what it takes of memory and time."""

from __future__ import annotations

import resource
import shutil
import time

import numpy as np
import pytest

from streamwise.memory.store import InProcessStore

CHUNKS, LENGTH, WIDTH = 10**6, 32, 64
BYTES = 9 * 10**9
RANDOM = np.random.default_rng(0)
BASE = RANDOM.standard_normal((LENGTH, WIDTH)).astype(np.float32)


def steps_of(number):
    steps = BASE.copy()
    steps[0, 0], steps[-1, -1] = number % 65_536, number // 65_536
    return steps


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def read(store, calls, within):
    """Read 8 chunks at a time; return milliseconds by the clock and of the processor, and the most memory."""
    times, most = np.empty((calls, 2)), 0
    for i in range(calls):
        ids = RANDOM.integers(0, within, 8).tolist()
        start = np.array([time.perf_counter(), time.thread_time()])
        contents, _ = store.contents(ids)
        times[i] = np.array([time.perf_counter(), time.thread_time()]) - start
        most = max(most, resident()) if i % 50 == 0 else most
        for id, found in zip(ids, contents, strict=True):
            assert (found[0, 0], found[-1, -1]) == (id % 65_536, id // 65_536)
            assert (found[1:-1] == BASE[1:-1]).all()
    return times * 1e3, most


@pytest.mark.slow
def test_a_million_chunks_on_disk_take_less_than_a_gigabyte_of_memory(tmp_path):
    """8.7 GB of contents; times are printed, as they depend on the machine."""
    if shutil.disk_usage(tmp_path).free < 2 * BYTES:
        pytest.skip("needs 18 GB of free disk")
    report, directory = [], tmp_path / "chunks"
    store = InProcessStore(LENGTH, WIDTH, CHUNKS, directory=directory)
    start = time.perf_counter()
    for number in range(CHUNKS):
        store.append(steps_of(number), first=32.0 * number, last=32.0 * number + 31)
    report.append(f"append {1e6 * (time.perf_counter() - start) / CHUNKS:.0f} µs")
    most = resident()
    report.append(f"{most / 1e6:.0f} MB after the last append")
    within = 100_000  # their files are read once, so that they are in the page cache
    read(store, 2000, within)
    for file in sorted(directory.iterdir())[: within // 4096 + 1]:
        file.read_bytes()
    for name, reach in (("warm", within), ("all over", CHUNKS)):
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
    store = InProcessStore(LENGTH, WIDTH, CHUNKS, directory=directory)
    opened = time.perf_counter() - start
    store.load_state_dict(state)
    report.append(f"opened in {opened:.1f} s, state loaded in {time.perf_counter() - start - opened:.1f} s")
    del state  # a second copy of what is known of the chunks, which is the caller's
    read(store, 100, CHUNKS)
    report.append(f"{resident() / 1e6:.0f} MB then")
    most = max(most, resident())
    print(f"{CHUNKS:,} chunks: {'; '.join(report)}; {most / 1e6:.0f} MB resident at most")
    assert len(store) == CHUNKS
    assert most < 1e9
    store.close()
    shutil.rmtree(directory)
