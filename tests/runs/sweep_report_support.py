"""What tests of a sweep's report share: sweeps of runs at given levels, and the data beside the page."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest
import tomli_w

TABLES = ["curves", "finals", "summary", "aggregate", "improvement", "profiles", "runs"]


@pytest.fixture
def make_sweep(make_run, tmp_path):
    """Return a function that writes a sweep: by (environment, label), the level of each seed's returns."""

    def write(levels, name="pilot", events=None, **config):
        path = tmp_path / name
        (path / "runs").mkdir(parents=True)
        (path / "sweep.toml").write_text(tomli_w.dumps({"name": name}))
        for place, ((environment, label), seeds) in enumerate(levels.items()):
            for seed, level in enumerate(seeds):
                run = f"{name}/runs/{place}-seed{seed}"
                # Equal numbers would give equal noise to different agents.
                make_run(run, environment, seed=seed, level=level + 0.001, label=label, **config)
        if events is not None:
            (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return path

    return write


def data(files, name):
    """Return the rows of a CSV file, numbers as numbers, once the Parquet file is seen to hold the same."""
    stem = files.html.with_name(f"{files.html.stem}-data") / name
    with stem.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]
    table = pq.read_table(stem.with_suffix(".parquet")).to_pylist()
    assert rows == [{key: number("" if x is None else str(x)) for key, x in row.items()} for row in table]
    return rows


def number(text):
    try:
        return float(text)
    except ValueError:
        return text
