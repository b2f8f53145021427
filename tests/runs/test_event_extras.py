"""A model that tells more than the scores that all have: kept and recorded, whatever stops the run."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from displays import Quiet

from streamwise.agents import EVENT_MODELS, Counts, CountsConfig
from streamwise.agents.event_model import Score
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.ingest import ingest
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.prequential import Prequential
from streamwise.streams import Event, UsageError

LEAD = 0.25  # nats of time that the baseline "slow" lacks


class Told(Counts):
    """Counts that says how sure it is, and runs two baselines alongside: one that is slow, one of types."""

    name = "told"
    extras = (
        "confidence", "key_events", "odd", "slow_log_likelihood", "slow_time_log_likelihood",
        "slow_type_log_loss", "slow_type_error", "first_type_type_log_loss", "first_type_type_error",
    )  # fmt: skip

    def _learn_chunk(self, times, ids, slots, scores):
        one = np.empty((1, len(Score._fields)))
        for i, slot in enumerate(slots.tolist()):
            before = float(self.keys.rows[slot]["events"])
            super()._learn_chunk(times[i : i + 1], ids[i : i + 1], slots[i : i + 1], one)
            score = Score(*one[0].tolist())
            time, kind = score.time_log_density - LEAD, score.type_log_probability
            error = float(score.predicted_type != score.type)
            odd = before if before % 2 else math.nan
            of_slow = (time + kind, time, -kind, error)
            of_first = (-kind + 1.0, float(ids[i] != 0))
            scores[i] = [*score, math.exp(kind), before, odd, *of_slow, *of_first]

    def statistics(self):
        return {
            "pool_entropy": math.log(1.0 + self.arrays["global_types"][0][-1]),
            "pool_unused": len(self.keys),
            "learning_rate": 1e-3,
            "unknown": math.nan,
        }


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(EVENT_MODELS, "told", Told)


@pytest.fixture
def log(tmp_path):
    generator = np.random.default_rng(4)
    times = 1.6e9 + np.cumsum(generator.exponential(20.0, 1_500))
    path = tmp_path / "log.jsonl"
    events = [
        Event(time, "abcd"[generator.integers(4)], f"user {generator.integers(40)}")
        for time in times.tolist()
    ]
    path.write_text(
        "".join(json.dumps({"time": e.time, "type": e.type, "key": e.key}) + "\n" for e in events)
    )
    return path, events


def config(path, out, model="told", **options):
    options = {"interval": 200, "time_unit": 60.0} | options
    return IngestConfig((f"file:{path}",), CountsConfig(types=8), model=model, out=out, **options)


def saved(directory):
    return Checkpoints.of(config("", directory)).latest().meta["recorder"]["scores"]


def test_learning_one_event_tells_the_extras_too(log):
    one, many = Told(), Told()
    events = log[1][:100]
    found = [one.learn_one(event) for event in events]
    scores = many.learn_many([e.time for e in events], [e.type for e in events], [e.key for e in events])
    assert list(found[0]) == [*Score._fields, *Told.extras]
    assert np.array_equal([list(score.values()) for score in found], scores, equal_nan=True)
    one.close()
    many.close()


def test_a_run_records_extras_and_statistics_and_goes_on_with_them_exactly(tmp_path, log, told):
    path, events = log
    ingest(config(path, tmp_path / "whole"), display=Quiet)
    for stop in (1, 130, 731, 1_000):
        ingest(config(path, tmp_path / "cut", events=stop), display=Quiet)
    ingest(config(path, tmp_path / "cut"), display=Quiet)
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    ends = [pq.read_table(tmp_path / run / "metrics.parquet").to_pylist()[-1] for run in ("cut", "whole")]
    assert ends[0]["pool_entropy"] == ends[1]["pool_entropy"]

    model, expected = Told(CountsConfig(types=8)), Prequential(60.0, Told.extras)
    expected.add(
        model.learn_many([e.time for e in events], [e.type for e in events], [e.key for e in events])
    )
    model.close()
    rows = pq.read_table(tmp_path / "whole" / "metrics.parquet").to_pylist()
    scores = expected.scores()
    for name in ("coverage_50", *Told.extras):
        for suffix in ("", "_fading"):
            assert rows[-1][name + suffix] == scores[name + suffix]
    assert rows[-1]["pool_unused"] == 40.0
    assert len({row["pool_entropy"] for row in rows}) > 1
    assert {row["learning_rate"] for row in rows} == {1e-3}
    assert all(row["unknown"] is None or math.isnan(row["unknown"]) for row in rows)
    assert all(
        row["log_likelihood_window"] - row["slow_log_likelihood_window"] == pytest.approx(LEAD)
        for row in rows
    )


def test_the_extras_of_a_run_may_not_change(tmp_path, log, told, monkeypatch):
    path, _ = log
    ingest(config(path, tmp_path / "run", events=300), display=Quiet)
    monkeypatch.setitem(EVENT_MODELS, "told", type("Less", (Counts,), {"name": "told"}))
    with pytest.raises(UsageError, match=r"begin it anew with another --out") as error:
        ingest(config(path, tmp_path / "run"), display=Quiet)
    assert "\n" not in str(error.value)
