"""The numbers of a sweep's report are those that plain loops find, whatever its agents are called."""

from __future__ import annotations

import csv
import itertools
import random
import re
import time
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import sweep_report_support
import test_report
from sweep_report_support import TABLES, data
from test_report import Page, is_png, returns

from streamwise.runs.sweep_report import write_sweep_report

make_sweep = sweep_report_support.make_sweep
make_run = test_report.make_run


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
