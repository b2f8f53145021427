"""Measures of plasticity in the metrics of a run: what they are of, that they disturb nothing, and go on."""

from __future__ import annotations

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from streamwise.agents.plasticity import plasticity
from streamwise.agents.stream_ac import StreamACConfig
from streamwise.agents.stream_q import StreamQConfig
from streamwise.runs import plasticity_watch
from streamwise.runs.checkpoint import Checkpoints, load
from streamwise.runs.config import RunConfig
from streamwise.runs.train import resume, train
from streamwise.streams import UsageError

MEASURES = ("dead_units", "dormant_units", "mean_square_weight", "effective_rank", "srank")


def run(tmp_path, name, steps=600, agent="stream-q", env="CartPole-v1", settings=None, **options):
    settings = settings or {"stream-q": StreamQConfig, "stream-ac": StreamACConfig}[agent]()
    config = RunConfig(env, settings, agent=agent, steps=steps, out=tmp_path / name, **options)
    train(config)
    return tmp_path / name


def rows(directory):
    return pq.read_table(directory / "metrics.parquet").to_pylist()


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("agent", "networks"), [("stream-q", ["value"]), ("stream-ac", ["critic", "actor"])])
def test_rows_hold_what_was_measured_last(tmp_path, agent, networks, backend, monkeypatch):
    seen = []
    plain = plasticity_watch.plasticity

    def noted(network, observations):
        seen.append((network, observations))
        return plain(network, observations)

    monkeypatch.setattr(plasticity_watch, "plasticity", noted)
    out = run(tmp_path, "run", agent=agent, backend=backend, plasticity_every=250)
    assert len(seen) == 2 * len(networks)
    assert [len(observations) for _, observations in seen[:: len(networks)]] == [31, 62]
    names = {f"{network}_{measure}" for network in networks for measure in MEASURES}
    found = rows(out)
    late = [row for row in found if row["step"] >= 500]
    assert late
    assert all(math.isfinite(row[name]) for row in late for name in names)
    assert all(0.0 <= row[f"{network}_dead_units"] <= 1.0 for row in late for network in networks)
    assert {row[f"{networks[0]}_effective_rank"] for row in late} != {
        row[f"{networks[0]}_effective_rank"] for row in found if 250 <= row["step"] < 500
    }


def test_it_disturbs_nothing_and_is_of_the_agent_as_it_was(tmp_path):
    with_it, without = run(tmp_path, "with", plasticity_every=600), run(tmp_path, "without")
    one, other = (Checkpoints.of(directory).latest().state for directory in (with_it, without))
    kept = one.pop("run.observations")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    agent = load(with_it)
    again = plasticity(
        agent.network.module, agent.samples.observations.normalize(kept.numpy(), agent.samples.dtype)
    )
    noted = Checkpoints.of(with_it).latest().meta["recorder"]["noted"]
    assert noted == {f"value_{name}": value for name, value in again.items()}


def test_a_run_that_is_resumed_measures_the_same(tmp_path):
    whole = run(tmp_path, "whole", steps=1_000, plasticity_every=90, checkpoint_every=130)
    run(tmp_path, "parts", steps=450, plasticity_every=90, checkpoint_every=130,
        settings=StreamQConfig(exploration_steps=500))  # fmt: skip
    resume(tmp_path / "parts", 1_000)
    exact = run(tmp_path, "exact", steps=1_000, plasticity_every=90, checkpoint_every=130,
                settings=StreamQConfig(exploration_steps=500))  # fmt: skip
    left_out = ("wall_time", "steps_per_second")
    one, other = (
        [{name: value for name, value in row.items() if name not in left_out} for row in rows(directory)]
        for directory in (tmp_path / "parts", exact)
    )
    np.testing.assert_equal(one, other)
    assert rows(whole)[-1].keys() == rows(exact)[-1].keys()


def test_the_world_of_an_episode_is_in_its_row(tmp_path):
    env = "Hopper-v5?change=gravity&values=1,0.5&every=100"
    out = run(tmp_path, "hopper", steps=400, agent="stream-ac", env=env)
    found = rows(out)
    assert {row["regime"] for row in found} == {0.0, 1.0}
    assert all(row["regime"] == (row["step"] - 1) // 100 % 2 for row in found)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--plasticity-every is -1"):
        run(tmp_path, "a", plasticity_every=-1)
    with pytest.raises(UsageError, match="--network bottleneck has none"):
        run(tmp_path, "b", plasticity_every=10, settings=StreamQConfig(network="bottleneck"))
