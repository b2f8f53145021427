"""Runs that are unfinished, missing or damaged: a sweep's report says so, and none of them breaks it."""

from __future__ import annotations

import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sweep_report_support
import test_report
from sweep_report_support import TABLES, data
from test_report import Page, is_png

from streamwise.runs.sweep_data import is_sweep
from streamwise.runs.sweep_report import write_sweep_report
from streamwise.streams import UsageError

make_run = test_report.make_run
make_sweep = sweep_report_support.make_sweep


def started(run, **more):
    return {"time": 100.0, "run": run, "event": "started", "step": 0, "node": "node-1", **more}


def ended(run, event, seconds=10.0, **more):
    return {"time": 200.0, "run": run, "event": event, "step": 100, "seconds": seconds, "node": "n", **more}


def test_events_become_statuses_restarts_and_times(make_sweep):
    sweep = make_sweep(
        {("Pendulum-v1", "intentional"): [100.0, 101.0, 102.0, 103.0]},
        events=[
            {"time": 50.0, "event": "sweep started", "runs": 7},
            started("0-seed0"),
            ended("0-seed0", "lost", message="its\nnode died"),
            started("0-seed0"),
            ended("0-seed0", "finished", 20.0),
            started("0-seed1"),
            ended("0-seed1", "failed", message="it diverged <here>"),
            started("0-seed2"),
            ended("0-seed2", "interrupted"),
            {"time": 250.0, "event": "sweep interrupted"},
            {"time": 1000.0, "event": "sweep resumed", "runs": 7},
            started("0-seed2", time=1001.0),
            started("nowhere", time=1002.0),
            {"time": 1100.0, "event": "who knows", "run": 3},
        ],
    )
    files = write_sweep_report([sweep])
    runs = {row["run"]: row for row in data(files, "runs")}
    assert {name: row["status"] for name, row in runs.items()} == {
        "0-seed0": "finished",
        "0-seed1": "failed",
        "0-seed2": "unfinished",
        "0-seed3": "finished",  # no event tells of it; its steps do
        "nowhere": "unfinished",
    }
    assert [runs[f"0-seed{seed}"]["restarts"] for seed in range(4)] == [1, 0, 1, 0]
    assert [runs[f"0-seed{seed}"]["failures"] for seed in range(4)] == [1, 1, 0, 0]
    assert [runs[f"0-seed{seed}"]["seconds"] for seed in range(3)] == [30.0, 10.0, 10.0]
    page = Page(files.html)
    assert "7 runs: 2 finished, 1 failed, 2 unfinished, 2 not started" in page.text
    assert "in 0:05:00" in page.text  # 50 to 250 and 1,000 to 1,100 seconds
    troubles = {row["run"]: row for row in page.table("given up", "restarts") if "given up" in row}
    assert troubles["0-seed0"]["why"] == "its node died"
    assert troubles["0-seed1"]["why"] == "it diverged <here>"
    assert "0-seed3" not in troubles
    assert re.search(r"Given up;[^.]*: 0-seed1 \(", page.text)
    assert "nowhere (it has no directory)" in page.text


def test_a_half_written_last_line_of_events_is_ignored(make_sweep):
    events = [started("0-seed0"), ended("0-seed0", "finished")]
    sweep = make_sweep({("Pendulum-v1", "intentional"): [100.0, 101.0]}, events=events)
    files = write_sweep_report([sweep])
    whole = [files.html.read_bytes(), files.png.read_bytes()]
    file = sweep / "events.jsonl"
    lines = file.read_bytes()
    for rest in (b'{"time": 300.0, "run": "0-se', b"\xff\xfe\n", b"[]\n3\n{}\n"):
        file.write_bytes(lines + rest)
        assert [write_sweep_report([sweep]).html.read_bytes(), files.png.read_bytes()] == whole


def test_core_time_counts_the_cores_of_each_run(make_sweep):
    events = [{"time": 0.0, "event": "sweep started"}, started("0-seed0"), ended("0-seed0", "finished")]
    sweep = make_sweep({("Pendulum-v1", "intentional"): [100.0]}, events=events)
    with (sweep / "sweep.toml").open("a") as file:
        file.write("[resources]\ncpus = 6\n")
    assert "0:01:00 of core time" in Page(write_sweep_report([sweep]).html).text


def test_a_run_far_behind_and_damaged_runs_are_left_out_and_named(make_sweep, make_run):
    sweep = make_sweep({("Pendulum-v1", "intentional"): [100.0, 101.0, 102.0, 103.0, 104.0]})
    make_run("pilot/runs/slow", label="intentional", seed=9, episodes=5, steps=6000)
    make_run("pilot/runs/slowest", label="published", seed=9, episodes=5, steps=6000)
    (sweep / "runs" / "0-seed1" / "metrics.parquet").write_bytes(b"PAR1 and then nothing")
    (sweep / "runs" / "0-seed2" / "config.toml").write_text("agent = ")
    (sweep / "runs" / "0-seed3" / "metrics.parquet").unlink()
    (sweep / "sweep.toml").write_text("name = ")
    files = write_sweep_report([sweep])
    assert [row["run"] for row in data(files, "finals")] == ["0-seed0", "0-seed4"]
    assert {row["agent"] for row in data(files, "summary")} == {"intentional"}
    text = Page(files.html).text
    assert re.search(r"Left out, less than half as far[^:]*: slow \(", text)
    assert "Left out, no finished episode yet: 0-seed3." in text
    assert re.search(r"No directory, or a damaged one; left out: 0-seed1 \(.*0-seed2 \(", text)
    assert "pilot: " in text  # without a name that can be read, that of the directory


def test_a_sweep_without_any_finished_episode_has_its_report(make_sweep):
    sweep = make_sweep({("Pendulum-v1", "intentional"): [1.0, 2.0], ("Pendulum-v1", "published"): [3.0]})
    for file in sweep.glob("runs/*/metrics.parquet"):
        pq.write_table(pa.table({"step": pa.array([], pa.int64())}), file)
    files = write_sweep_report([sweep])
    assert is_png(files.png)
    assert "no run has finished an episode" in Page(files.html).text
    assert len(data(files, "runs")) == 3
    for table in set(TABLES) - {"runs"}:
        assert data(files, table) == []


def test_one_seed_and_one_episode_give_numbers_without_intervals(make_sweep):
    levels = {("Pendulum-v1", "a"): [100.0], ("Pendulum-v1", "b"): [200.0, 210.0]}
    files = write_sweep_report([make_sweep(levels, episodes=1)])
    assert data(files, "summary")[0]["low"] == ""
    assert data(files, "improvement")[0]["probability"] == 0.0
    page = Page(files.html)
    assert page.table("IQM", "95% interval")[0]["95% interval"] == "one seed"
    assert "One seed, which gives no interval: a on Pendulum-v1." in page.text
    assert "tend to be too narrow: b on Pendulum-v1." in page.text
    assert is_png(files.png)


def test_time_series_are_listed_and_take_no_part(make_sweep, make_run):
    sweep = make_sweep({("Pendulum-v1", "intentional"): [100.0, 110.0]})
    make_run("pilot/runs/series", "csv:/data/load.csv", agent="stream-td", target="OT", label="td", steps=600)
    files = write_sweep_report([sweep])
    assert {row["run"] for row in data(files, "runs")} >= {"series"}
    assert "series" not in {row["run"] for row in data(files, "finals")}
    assert "Time series have no returns and no part in the statistics: series." in Page(files.html).text


def test_returns_that_are_no_numbers_break_nothing(make_sweep):
    sweep = make_sweep({("Pendulum-v1", "intentional"): [100.0, 110.0, 120.0]})
    file = sweep / "runs" / "0-seed0" / "metrics.parquet"
    table = pq.read_table(file)
    values = table["episode_return"].to_numpy().copy()
    values[-30:] = math.nan
    place = table.column_names.index("episode_return")
    pq.write_table(table.set_column(place, "episode_return", pa.array(values)), file)
    files = write_sweep_report([sweep])
    assert data(files, "summary")[0]["seeds"] == 2


def test_what_is_no_sweep_and_what_is_no_page_are_refused(make_sweep, make_run, tmp_path):
    sweep, run = make_sweep({("Pendulum-v1", "a"): [100.0]}), make_run("single")
    assert is_sweep(sweep)
    assert not is_sweep(run)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sweep.toml").write_text('name = "empty"')
    refused = {
        (): "name at least one",
        (run,): r"is not a sweep: it has no sweep\.toml",
        (tmp_path / "nowhere",): "is not a sweep",
        (tmp_path / "empty",): "has no runs yet",
    }
    for paths, words in refused.items():
        with pytest.raises(UsageError, match=words) as error:
            write_sweep_report(list(paths))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"try --out .*\.html"):
        write_sweep_report([sweep], tmp_path / "page.png")
    with pytest.raises(UsageError, match="cannot be written"):
        write_sweep_report([sweep], sweep / "sweep.toml" / "report.html")
