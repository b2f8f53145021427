"""Metrics: every episode once, with the right numbers, across resumptions."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from streamwise.runs.recorder import Recorder
from streamwise.streams import Transition

NOTHING = np.zeros(1)


def transitions(seed, steps):
    random = np.random.default_rng(seed)
    for _ in range(steps):
        kind = random.uniform()
        yield Transition(NOTHING, 0, float(random.normal()), NOTHING, kind < 0.05, kind > 0.97)


def record(recorder, samples):
    for sample in samples:
        recorder.record(sample, {"value": 2.0 * sample.reward})


def test_rows_are_the_episodes_that_ended(tmp_path):
    samples = list(transitions(0, 500))
    with Recorder(tmp_path) as recorder:
        record(recorder, samples)
        recorder.flush()
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
                recorder.flush()
    once, often = (pq.read_table(tmp_path / name / "metrics.parquet") for name in ("once", "often"))
    columns = ["step", "episode", "episode_return", "episode_length", "value"]
    assert once.select(columns).equals(often.select(columns))


def test_resuming_forgets_rows_after_the_checkpoint_and_the_open_episode(tmp_path):
    samples = list(transitions(2, 400))
    with Recorder(tmp_path) as recorder:
        record(recorder, samples[:200])
        recorder.flush()
        state = recorder.state()
        record(recorder, samples[200:])
        recorder.flush()
    with Recorder(tmp_path) as resumed:
        resumed.resume(state)
        assert resumed.step == 200
        assert resumed.episodes == state["episodes"]
        steps = pq.read_table(tmp_path / "metrics.parquet")["step"].to_pylist()
        assert steps
        assert max(steps) <= 200
        assert resumed.elapsed >= state["elapsed"]


def test_a_series_keeps_every_prediction_and_a_row_an_interval(tmp_path):
    with Recorder(tmp_path, is_series=True) as recorder:
        for i in range(1_200):
            last = i == 1_199
            recorder.record(
                Transition(NOTHING, None, float(i), NOTHING, False, last),
                {"prediction": i / 2, "step_size": 0.5},
            )
        recorder.flush()
    predictions = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert predictions["step"] == list(range(1, 1_201))
    assert predictions["cumulant"] == [float(i) for i in range(1_200)]
    assert predictions["prediction"] == [i / 2 for i in range(1_200)]
    rows = pq.read_table(tmp_path / "metrics.parquet").to_pydict()
    assert rows["step"] == [500, 1_000, 1_200]
    assert rows["step_size"] == [0.5, 0.5, 0.5]
    assert "episode_return" not in rows
