"""The numbers of a sweep's report are those that plain loops find, and no state of its files breaks it."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re
import time
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_report
import tomli_w
from test_report import Page, is_png, returns

from streamwise.runs.sweep_data import is_sweep
from streamwise.runs.sweep_report import write_sweep_report
from streamwise.streams import UsageError

make_run = test_report.make_run

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


def shown(cell):
    return float(cell.replace(",", ""))


def interval(cell):
    return [shown(end) for end in cell.split(" to ")]


# ---- the same numbers by plain loops ----


def naive_iqm(values):
    ordered = sorted(values)
    left_out = len(ordered) // 4
    middle = ordered[left_out : len(ordered) - left_out]
    return sum(middle) / len(middle)


def naive_probability(scores, others):
    wins = 0.0
    for score in scores:
        for other in others:
            wins += 1.0 if score > other else 0.5 if score == other else 0.0
    return wins / (len(scores) * len(others))


def naive_interval(environments, statistic, draws=1000):
    """Return the ends of the interval and what two honest bootstraps may differ by.

    environments: for each, one list of scores of every agent. statistic: of the same, drawn anew.
    """
    chance = random.Random(1)
    drawn = sorted(
        statistic([[chance.choices(row, k=len(row)) for row in agents] for agents in environments])
        for _ in range(draws)
    )
    ends = [drawn[round(0.025 * draws)], drawn[round(0.975 * draws) - 1]]
    return ends, 0.35 * float(np.std(drawn)) + 1e-9


def assert_interval(row, environments, statistic):
    ends, tolerance = naive_interval(environments, statistic)
    assert [row["low"], row["high"]] == pytest.approx(ends, abs=tolerance)


def pooled(environments):
    return naive_iqm([score for agents in environments for row in agents for score in row])


def improved(environments):
    return sum(naive_probability(*agents) for agents in environments) / len(environments)


LEVELS = {
    ("Pendulum-v1", "published"): [310.0, 295.0, 330.0, 300.0, 322.0],
    ("Pendulum-v1", "intentional"): [315.0, 340.0, 306.0, 352.0, 331.0, 329.0],
    ("Pendulum-v1", "intentional trace_decay=0.9"): [200.0, 410.0, 325.0, 318.0, 350.0],
    ("CartPole-v1", "published"): [150.0, 160.0, 185.0, 140.0, 171.0, 166.0, 152.0],
    ("CartPole-v1", "intentional"): [172.0, 181.0, 160.0, 149.0, 188.0],
    ("CartPole-v1", "intentional trace_decay=0.9"): [120.0, 191.0, 166.0, 158.0, 150.0],
}
AGENTS = ["published", "intentional", "intentional trace_decay=0.9"]
PLACES = ["Pendulum-v1", "CartPole-v1"]


@pytest.fixture
def compared(make_sweep):
    """Return a sweep, its report, and the final performances by environment and agent."""
    sweep = make_sweep(LEVELS)
    finals = {}
    for place, (cell, seeds) in enumerate(LEVELS.items()):
        finals[cell] = []
        for seed in range(len(seeds)):
            last = returns(sweep / "runs" / f"{place}-seed{seed}")[-20:]
            finals[cell].append(sum(last) / len(last))
    return sweep, write_sweep_report([sweep]), finals


@pytest.fixture
def scores(compared):
    """Return the normalized final performances by environment and agent."""
    _, _, finals = compared
    normalized = {}
    for (environment, label), values in finals.items():
        here = [value for (place, _), row in finals.items() if place == environment for value in row]
        normalized[environment, label] = [(x - min(here)) / (max(here) - min(here)) for x in values]
    return normalized


def test_final_performances_equal_plain_loops(compared, scores):
    _, files, finals = compared
    rows = data(files, "finals")
    assert len(rows) == sum(map(len, LEVELS.values()))
    for cell, values in finals.items():
        ours = [row for row in rows if (row["environment"], row["agent"]) == cell]
        assert [row["final"] for row in ours] == pytest.approx(values)
        assert [row["normalized"] for row in ours] == pytest.approx(scores[cell])
        assert [row["steps_per_second"] for row in ours] == pytest.approx([5000.0] * len(ours))


def test_the_table_of_final_performance_equals_plain_loops(compared):
    _, files, finals = compared
    shown_rows = Page(files.html).table("IQM", "95% interval")
    for row, on_page in zip(data(files, "summary"), shown_rows, strict=False):
        values = finals[row["environment"], row["agent"]]
        expected = {
            "IQM": naive_iqm(values),
            "median": float(np.median(values)),
            "mean": sum(values) / len(values),
            "lowest": min(values),
            "highest": max(values),
        }
        assert row["seeds"] == len(values) == shown(on_page["seeds"])
        assert (on_page["environment"], on_page["agent"]) == (row["environment"], row["agent"])
        for name, value in expected.items():
            assert row[name.lower()] == pytest.approx(value)
            assert shown(on_page[name]) == pytest.approx(value, abs=0.051)
        assert_interval(row, [[values]], pooled)
        assert interval(on_page["95% interval"]) == pytest.approx([row["low"], row["high"]], abs=0.051)


def test_the_aggregate_over_environments_equals_plain_loops(compared, scores):
    _, files, _ = compared
    rows = data(files, "aggregate")
    assert [row["agent"] for row in rows] == AGENTS
    on_page = {row["agent"]: row for row in Page(files.html).table("normalized IQM")[: len(AGENTS)]}
    for row in rows:
        environments = [[scores[place, row["agent"]]] for place in PLACES]
        assert row["iqm"] == pytest.approx(pooled(environments))
        assert row["runs"] == sum(len(agents[0]) for agents in environments)
        assert_interval(row, environments, pooled)
        cells = on_page[row["agent"]]
        assert shown(cells["normalized IQM"]) == pytest.approx(row["iqm"], abs=0.00051)
        assert interval(cells["95% interval"]) == pytest.approx([row["low"], row["high"]], abs=0.00051)


def test_the_probabilities_of_improvement_equal_plain_loops(compared):
    _, files, finals = compared
    rows = data(files, "improvement")
    pairs = list(itertools.combinations(AGENTS, 2))
    assert len(rows) == len(pairs) * 3
    on_page = Page(files.html).table("over", "probability")
    for row in rows:
        places = PLACES if row["environment"] == "all environments" else [row["environment"]]
        environments = [[finals[place, row["agent"]], finals[place, row["over"]]] for place in places]
        assert (row["agent"], row["over"]) in pairs
        assert row["environments"] == len(places)
        assert row["probability"] == pytest.approx(improved(environments))
        assert_interval(row, environments, improved)
        (cells,) = (
            cells
            for cells in on_page
            if [cells.get(name) for name in ("environment", "agent", "over")]
            == [row["environment"], row["agent"], row["over"]]
        )
        assert shown(cells["probability"]) == pytest.approx(row["probability"], abs=0.00051)
        assert interval(cells["95% interval"]) == pytest.approx([row["low"], row["high"]], abs=0.00051)


def test_performance_profiles_equal_plain_loops(compared, scores):
    _, files, _ = compared
    rows = data(files, "profiles")
    assert len(rows) == len(AGENTS) * 101
    for row in rows:
        everything = [score for place in PLACES for score in scores[place, row["agent"]]]
        above = sum(score > row["threshold"] for score in everything)
        assert row["fraction"] == pytest.approx(above / len(everything))
        assert 0.0 <= row["low"] <= row["high"] <= 1.0
    for row in rows[25::50]:

        def fraction(environments, threshold=row["threshold"]):
            drawn = [score for agents in environments for score in agents[0]]
            return sum(score > threshold for score in drawn) / len(drawn)

        ends, tolerance = naive_interval([[scores[place, row["agent"]]] for place in PLACES], fraction)
        # Fractions come in steps of one run, so an end may fall one step further.
        one_run = 1.0 / sum(len(scores[place, row["agent"]]) for place in PLACES)
        assert [row["low"], row["high"]] == pytest.approx(ends, abs=tolerance + one_run)


def test_learning_curves_equal_plain_loops(compared):
    sweep, files, _ = compared
    rows = data(files, "curves")
    for place, (environment, label) in enumerate(LEVELS):
        ours = [row for row in rows if (row["environment"], row["agent"]) == (environment, label)]
        tables = [pq.read_table(run / "metrics.parquet") for run in sweep.glob(f"runs/{place}-seed*")]
        runs = [(table["step"].to_pylist(), table["episode_return"].to_pylist()) for table in tables]
        assert len(ours) > 80
        assert min(row["step"] for row in ours) >= max(steps[0] for steps, _ in runs)
        assert max(row["step"] for row in ours) <= min(steps[-1] for steps, _ in runs)
        for row in ours[::10]:
            now = []
            for steps, values in runs:
                seen = [value for step, value in zip(steps, values, strict=True) if step <= row["step"]]
                now.append(sum(seen[-20:]) / len(seen[-20:]))
            assert row["seeds"] == len(now)
            assert row["iqm"] == pytest.approx(naive_iqm(now))
            assert_interval(row, [[now]], pooled)


def test_the_files_lie_where_they_are_said_to(compared, make_sweep, tmp_path, monkeypatch):
    sweep, files, _ = compared
    assert (files.html, files.png) == (sweep / "report.html", sweep / "report.png")
    assert is_png(files.png)
    expected = {f"{table}.{kind}" for table in TABLES for kind in ("csv", "parquet")}
    assert {file.name for file in (sweep / "report-data").iterdir()} == expected
    assert "report-data" in Page(files.html).text
    monkeypatch.chdir(tmp_path)
    elsewhere = write_sweep_report([sweep], tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page-data" / "finals.csv").is_file()
    assert "page-data" in Page(elsewhere.html).text
    assert elsewhere.html.read_text().replace("page-data", "report-data") == files.html.read_text()
    both = write_sweep_report([sweep, make_sweep(LEVELS, "main")])
    assert both.html.resolve() == tmp_path / "report.html"


def test_what_counts_on_the_page_is_said_in_words(compared):
    _, files, _ = compared
    text = Page(files.html).text
    assert "33 runs: 33 finished" in text
    assert "relative to the runs" in text
    assert "arXiv:2108.13264" in text
    assert "Given up" not in text
    assert "Failures and restarts" not in text


def test_the_page_loads_nothing_and_its_figures_are_well_formed(compared):
    _, files, _ = compared
    page = Page(files.html)
    assert page.loads == []
    assert not {"iframe", "object", "embed", "link"} & page.tags
    assert not re.search(r"https?://|@import|url\((?!#)", page.source)
    drawings = re.findall(r"<figure>.*?(<svg .*?</svg>)</figure>", page.source, flags=re.DOTALL)
    assert len(drawings) == 5  # two learning curves, the aggregate, the pairs, the profiles
    for drawing in drawings:
        svg = ElementTree.fromstring(drawing)
        assert svg.get("aria-label")


# ---- several sweeps ----


def test_two_sweeps_are_compared_under_their_names(make_sweep, tmp_path):
    one = make_sweep({("Pendulum-v1", "intentional"): [100.0, 110.0, 120.0]}, "one")
    two = make_sweep({("Pendulum-v1", "intentional"): [200.0, 210.0, 220.0]}, "two")
    files = write_sweep_report([one, two, two / ".." / "two"], tmp_path / "both.html")
    (row,) = data(files, "improvement")
    assert (row["agent"], row["over"]) == ("intentional (one)", "intentional (two)")
    assert (row["probability"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
    assert [row["sweep"] for row in data(files, "runs")] == ["one"] * 3 + ["two"] * 3
    assert "one and two: 2 agents on 1 environment" in Page(files.html).text


def test_sweeps_of_one_name_are_told_apart_by_their_place(make_sweep, tmp_path):
    levels = {("Pendulum-v1", "intentional"): [100.0, 110.0]}
    sweeps = [make_sweep(levels, name) for name in ("one", "two")]
    for sweep in sweeps:
        (sweep / "sweep.toml").write_text('name = "same"')
    files = write_sweep_report(sweeps, tmp_path / "both.html")
    assert len({row["agent"] for row in data(files, "summary")}) == 2


# ---- what is unfinished, missing, damaged ----


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


def test_agents_on_different_environments_are_compared_where_they_meet(make_sweep):
    levels = {
        ("A", "one"): [1.0, 2.0],
        ("B", "one"): [1.0, 2.0],
        ("B", "two"): [30.0, 40.0],
        ("C", "two"): [1.0, 2.0],
    }
    files = write_sweep_report([make_sweep(levels)])
    (pair,) = data(files, "improvement")
    assert (pair["environment"], pair["probability"]) == ("B", 0.0)
    assert data(files, "aggregate") == []
    assert "as not every agent has scores there: A; C." in Page(files.html).text


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


@pytest.mark.filterwarnings("ignore:Glyph 1 ")
def test_awkward_names_stay_text(make_sweep):
    label = "<b>bold</b> a/b $\\frac{1}$\x01 & \"quoted\", 'so'\nand </script>"
    levels = {
        (name, agent): [100.0, 120.0] for name in ("<i>x</i>", "dm_control/y") for agent in (label, "=1")
    }
    files = write_sweep_report([make_sweep(levels)])
    page = Page(files.html)
    assert not {"b", "i"} & page.tags
    assert page.source.count("<script") == page.source.count("</script") == 1
    assert "<b>bold</b> a/b" in page.text
    assert is_png(files.png)
    stem = files.html.with_name("report-data") / "summary"
    assert label in pq.read_table(stem.with_suffix(".parquet"))["agent"].to_pylist()
    with stem.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        assert label in [row["agent"] for row in csv.DictReader(file)]


def test_settings_stand_once_where_shared_and_by_agent_where_not(make_sweep, make_run):
    sweep = make_sweep({("Pendulum-v1", "intentional"): [100.0, 110.0]})
    make_run("pilot/runs/q", label="published", agent="stream-q", settings={"trace_decay": 0.5})
    rows = Page(write_sweep_report([sweep]).html).table("algorithm", "trace_decay")
    cells = {row["agent"]: (row["algorithm"], row["trace_decay"]) for row in rows if "algorithm" in row}
    assert cells["intentional"] == ("stream-ac", "0.8")
    assert cells["published"] == ("stream-q", "0.5")


def test_the_same_sweep_gives_the_same_bytes(make_sweep, tmp_path):
    sweep = make_sweep(LEVELS)
    first, second = (write_sweep_report([sweep], tmp_path / place / "a.html") for place in "xy")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.png.read_bytes() == second.png.read_bytes()


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


@pytest.mark.slow
def test_a_thousand_runs_have_their_report_soon(make_sweep):
    cells = itertools.product(
        [f"Environment{i}-v1" for i in range(20)], ["one", "two", "three", "four", "five"]
    )
    chance = random.Random(0)
    sweep = make_sweep({cell: [chance.uniform(0.0, 500.0) for _ in range(10)] for cell in cells})
    begun = time.monotonic()
    files = write_sweep_report([sweep])
    seconds = time.monotonic() - begun
    assert seconds < 60.0  # some 20 on one core
    assert files.html.stat().st_size < 5_000_000
    assert len(data(files, "finals")) == 1000
    assert re.search(r"<details><summary>All 1000", files.html.read_text())
