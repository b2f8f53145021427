"""Metrics: every episode once, with the right numbers, across resumptions."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.runs.recorder import Recorder, RowFile
from streamwise.streams import Transition

NOTHING = np.zeros(1)
COLUMNS = ["step", "episode", "episode_return", "episode_length", "value"]  # not what the clock says


def transitions(seed, steps):
    random = np.random.default_rng(seed)
    for _ in range(steps):
        kind = random.uniform()
        yield Transition(NOTHING, 0, float(random.normal()), NOTHING, kind < 0.05, kind > 0.97)


def record(recorder, samples):
    for sample in samples:
        recorder.record(sample, {"value": 2.0 * sample.reward})


def to_disk(recorder):
    """What a checkpoint writes, and the state that it keeps."""
    state = recorder.state()
    for name, file in (("metrics", recorder.metrics), ("predictions", recorder.predictions)):
        state[name] = file.write(state[name], at_once=True)
    return state


def test_rows_are_the_episodes_that_ended(tmp_path):
    samples = list(transitions(0, 500))
    with Recorder(tmp_path) as recorder:
        record(recorder, samples)
        to_disk(recorder)
    ends = [i + 1 for i, sample in enumerate(samples) if sample.terminated or sample.truncated]
    starts = [0, *ends[:-1]]
    rewards = np.array([sample.reward for sample in samples])
    rows = pq.read_table(tmp_path / "metrics.parquet").to_pydict()
    assert rows["step"] == ends
    assert rows["episode"] == list(range(1, len(ends) + 1))
    assert rows["episode_length"] == [end - start for start, end in zip(starts, ends, strict=True)]
    returns = [rewards[start:end].sum() for start, end in zip(starts, ends, strict=True)]
    np.testing.assert_allclose(rows["episode_return"], returns, rtol=1e-12)
    means = [2 * rewards[start:end].mean() for start, end in zip(starts, ends, strict=True)]
    np.testing.assert_allclose(rows["value"], means, rtol=1e-12)
    assert recorder.mean_return == pytest.approx(np.mean(returns[-20:]))
    assert list((tmp_path / "tensorboard").iterdir())


def test_flushing_often_changes_nothing(tmp_path):
    samples = list(transitions(1, 300))
    for name, every in (("once", 300), ("often", 7)):
        with Recorder(tmp_path / name) as recorder:
            for start in range(0, 300, every):
                record(recorder, samples[start : start + every])
                to_disk(recorder)
    once, often = (pq.read_table(tmp_path / name / "metrics.parquet") for name in ("once", "often"))
    assert once.select(COLUMNS).equals(often.select(COLUMNS))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 399), max_size=6), lost=st.integers(0, 60), at_once=st.booleans())
def test_killed_and_resumed_anywhere_the_rows_are_those_of_one_run(tmp_path_factory, cuts, lost, at_once):
    """lost: steps after a checkpoint, whose rows may even be on disk, that the kill undoes."""
    directory = tmp_path_factory.mktemp("run")
    samples = list(transitions(2, 400))
    state = None
    for end in [*sorted(cuts), 400]:
        with Recorder(directory) as recorder:
            if state is not None:
                recorder.resume(json.loads(json.dumps(state)))
            record(recorder, samples[recorder.step : end])
            state = recorder.state()
            for name, file in (("metrics", recorder.metrics), ("predictions", recorder.predictions)):
                state[name] = file.write(state[name], at_once=at_once or end == 400)
            record(recorder, samples[end : end + lost])
            recorder.metrics.write(recorder.metrics.state(), at_once=True)
    with Recorder(directory) as recorder:
        recorder.resume(state)
    once = tmp_path_factory.mktemp("once")
    with Recorder(once) as recorder:
        record(recorder, samples)
        to_disk(recorder)
    found, expected = (pq.read_table(path / "metrics.parquet") for path in (directory, once))
    assert found.select(COLUMNS).equals(expected.select(COLUMNS))


def test_the_open_episode_goes_on_and_one_that_cannot_is_counted(tmp_path):
    with Recorder(tmp_path / "first") as recorder:
        record(recorder, [Transition(NOTHING, 0, 1.0, NOTHING, False, False)] * 7)
        state = recorder.state()
    end = Transition(NOTHING, 0, 1.0, NOTHING, True, False)
    for abandoned in (0, 7):
        directory = tmp_path / str(abandoned)
        with Recorder(directory) as recorder:
            recorder.resume(state)
            if abandoned:
                assert recorder.abandon_episode() == 7
            record(recorder, [end])
            record(recorder, [end])
            to_disk(recorder)
        rows = pq.read_table(directory / "metrics.parquet").to_pydict()
        assert rows["episode_length"] == [8 - abandoned, 1]
        assert rows["episode_return"] == [8.0 - abandoned, 1.0]
        assert rows.get("abandoned_steps", [None, None]) == [abandoned or None, None]


def test_a_file_is_rewritten_seldom_and_its_rows_wait_in_the_state_meanwhile(tmp_path):
    writes = 0
    file = RowFile(tmp_path / "rows.parquet")
    for step in range(1, 3_001):
        file.waiting.append({"step": step})
        before = file.path.stat().st_mtime_ns if file.path.exists() else 0
        state = file.write(file.state())
        writes += (file.path.stat().st_mtime_ns if file.path.exists() else 0) != before
        on_disk = pq.read_table(file.path)["step"].to_pylist() if step % 500 == 250 and writes else None
        if on_disk is not None:
            assert [*on_disk, *(row["step"] for row in state["waiting"])] == list(range(1, step + 1))
    assert 3 <= writes <= 6


def test_the_first_rows_import_nothing_while_a_run_goes_on(tmp_path):
    """pyarrow imports pandas at its first array, for which a stream's events would wait."""
    script = (
        "import sys; from pathlib import Path; from streamwise.runs.recorder import RowFile\n"
        "file = RowFile(Path(sys.argv[1])); file.waiting.append({'step': 1, 'return': 0.5})\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "file.write(file.state(), at_once=True)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - before))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "rows.parquet")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "pandas" not in found.stdout


def test_a_series_keeps_every_prediction_and_a_row_an_interval(tmp_path):
    with Recorder(tmp_path, is_series=True) as recorder:
        for i in range(1_200):
            last = i == 1_199
            recorder.record(
                Transition(NOTHING, None, float(i), NOTHING, False, last),
                {"prediction": i / 2, "step_size": 0.5},
            )
        to_disk(recorder)
    predictions = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert predictions["step"] == list(range(1, 1_201))
    assert predictions["cumulant"] == [float(i) for i in range(1_200)]
    assert predictions["prediction"] == [i / 2 for i in range(1_200)]
    rows = pq.read_table(tmp_path / "metrics.parquet").to_pydict()
    assert rows["step"] == [500, 1_000, 1_200]
    assert rows["step_size"] == [0.5, 0.5, 0.5]
    assert "episode_return" not in rows
