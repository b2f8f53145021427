"""What tests of the report of runs on events share: a log, runs that learned it, and tables of the page."""

from __future__ import annotations

import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from displays import Quiet

from streamwise.agents import event_model_class
from streamwise.runs.ingest import ingest
from streamwise.runs.ingest_config import IngestConfig
from streamwise.streams import Event

EVENTS, BAD, KEYS, INTERVAL, UNIT = 3_300, 5, 12, 250, 60.0
SCRIPT = "<script>alert('t')</script>"
TYPES = [
    "view",
    "buy & 'go'",
    SCRIPT,
    "</td></svg><img src=x onerror=alert(1)>",
    "\u202egnp",
    "\x07bell\n",
    "w" * 300,
]
FIRST_BAD = '{"time": 1, <img src=x onerror=alert(2)> ' + "z" * 200
MODELS = ["hawkes", "counts", "poisson"]


def events():
    """Events of a log in which `buy` comes soon after `view`, and all keys come early."""
    draw, time, log = random.Random(3), 1.7e9, []
    while len(log) < EVENTS:
        time += draw.expovariate(1 / 40.0)
        key = f"<b>user {len(log) if len(log) < KEYS else draw.randrange(KEYS)}</b>"
        log.append(Event(time, draw.choices(TYPES, [50, 5, 20, 10, 5, 5, 5])[0], key))
        if draw.random() < 0.3:
            time += draw.expovariate(1.0)
            log.append(Event(time, TYPES[1], key))
    return log[:EVENTS]


def run_model(folder, log, name, *, model="hawkes", settings=None, lines=(), **options):
    """Learn the events of a log, and return the run directory."""
    path = folder / "log.jsonl"
    records = [json.dumps({"time": e.time, "type": e.type, "key": e.key}) for e in log]
    path.write_text("\n".join([*records[:1], *lines, *records[1:]]) + "\n")
    kind = event_model_class(model).Config
    options = {"interval": INTERVAL, "time_unit": UNIT} | options
    config = IngestConfig(
        sources=(f"file:{path}",),
        settings=kind(**(settings or {})),
        model=model,
        out=folder / name,
        **options,
    )
    return ingest(config, display=Quiet).directory


@pytest.fixture(scope="module")
def log():
    return events()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, log):
    """Return run directories by model; five records of the log are no events."""
    folder = tmp_path_factory.mktemp("runs")
    late = json.dumps({"time": log[0].time - 50.0, "type": "late", "key": "k"})
    bad = [FIRST_BAD, "again no JSON", late, json.dumps({"type": "timeless", "key": "k"})]
    bad.append(json.dumps({"time": log[0].time, "type": "\ud800", "key": "\udc00"}))
    return {name: run_model(folder, log, name, model=name, lines=bad) for name in MODELS}


@pytest.fixture
def copy(runs, tmp_path):
    """Return a function that copies a run directory, and changes columns of its metrics."""

    def make(name, model="hawkes", *, rows=None, **columns):
        path = shutil.copytree(runs[model], tmp_path / name)
        table = pq.read_table(path / "metrics.parquet")
        for column, values in columns.items():
            if column in table.column_names:
                table = table.drop_columns([column])
            table = table.append_column(column, pa.array(values))
        pq.write_table(table.slice(0, rows), path / "metrics.parquet")
        return path

    return make


def table(page, *header):
    """Return the rows, by column, of the first table with these names in its header, as far as they fit."""
    at = next(i for i, row in enumerate(page.rows) if set(header) <= set(row))
    found = []
    for row in page.rows[at + 1 :]:
        if len(row) != len(page.rows[at]):
            break
        found.append(dict(zip(page.rows[at], row, strict=True)))
    return found


def number(cell):
    return float(cell.rstrip("%").removesuffix(" points").replace(",", ""))


def metrics(run):
    return pq.read_table(run / "metrics.parquet").to_pylist()
