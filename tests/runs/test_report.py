"""The page says what the run directories hold; it needs no network and no script, and meets no traceback."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from streamwise.runs.report import write_report
from streamwise.runs.statistics import bootstrap_interval, prediction_scores
from streamwise.streams import UsageError

SETTINGS = {"discount": 0.9, "trace_decay": 0.8, "step_size_rule": "intentional"}


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run directory of 60 episodes, or of a predicted series."""

    def write(name, environment="Pendulum-v1", *, seed=0, level=100.0, episodes=60, settings=None, **config):
        path = tmp_path / name
        path.mkdir(parents=True)
        rng = np.random.default_rng([seed, int(level)])
        lengths = rng.integers(80, 120, size=episodes)
        steps = np.cumsum(lengths)
        table = {
            "environment": environment,
            "agent": "stream-ac",
            "steps": int(lengths.sum()),
            "seed": seed,
            **config,
            "settings": {**SETTINGS, **(settings or {})},
            "versions": {"streamwise": "0.1.0", "torch": "2.13.0"},
        }
        (path / "config.toml").write_text(tomli_w.dumps(table))
        if environment.startswith("csv:"):
            cumulant = 10.0 + np.sin(np.arange(600) / 9.0) + rng.normal(size=600)
            columns = {"step": np.arange(1, 601), "prediction": cumulant * 9.0, "cumulant": cumulant}
            pq.write_table(pa.table(columns), path / "predictions.parquet")
            metrics = {"step": [500, 600], "wall_time": [0.1, 0.12], "td_error_magnitude": [2.0, 1.0]}
        else:
            metrics = {
                "step": steps,
                "wall_time": steps / 5000.0,
                "episode": np.arange(1, episodes + 1),
                "episode_return": level + rng.normal(size=episodes) * 10.0,
                "episode_length": lengths,
                "steps_per_second": np.full(episodes, 5000.0),
                "td_error_magnitude": rng.random(episodes),
            }
        pq.write_table(pa.table(metrics), path / "metrics.parquet")
        return path

    return write


class Page(HTMLParser):
    """What a reader sees: text, and the cells of every table. Also what a browser would load or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.rows, self.loads, self.tags = "", [], [], set()
        self._open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action") and not (value or "").startswith("#"):
                self.loads.append((tag, name, value))
            if name.startswith("on"):
                self.loads.append((tag, name, value))

    def handle_data(self, data):
        if "style" in self._open[-1:]:
            return
        self.text += data
        if self.rows and self.rows[-1] and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def table(self, *header: str) -> list[dict[str, str]]:
        """Return the rows, by column, of the table whose header holds these names."""
        at = next(i for i, row in enumerate(self.rows) if set(header) <= set(row))
        names = self.rows[at]
        following = self.rows[at + 1 :]
        return [dict(zip(names, row, strict=True)) for row in following if len(row) == len(names)]


def returns(run):
    return pq.read_table(run / "metrics.parquet")["episode_return"].to_numpy()


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


def shown(number):
    return f"{number:.1f}"  # how the page writes numbers from 100 to 1000


def test_a_single_run_gets_its_report_beside_its_files(make_run):
    run = make_run("one", level=300.0)
    files = write_report([run])
    assert (files.html, files.png) == (run / "report.html", run / "report.png")
    assert is_png(files.png)
    page = Page(files.html)
    (row,) = page.table("last 20")
    assert row["last 20"] == shown(returns(run)[-20:].mean())
    best = max(returns(run)[i : i + 20].mean() for i in range(41))
    assert row["best 20 in a row"] == shown(best)
    assert row["steps/s"] == "5,000"
    assert "one seed gives no interval" in page.text


def test_several_runs_are_reported_in_the_current_directory(make_run, tmp_path, monkeypatch):
    runs = [make_run(f"run-{seed}", seed=seed) for seed in range(2)]
    monkeypatch.chdir(tmp_path)
    files = write_report(runs)
    assert files.html.resolve() == tmp_path / "report.html"
    assert is_png(tmp_path / "report.png")


def test_out_names_the_page_and_the_figure_lies_beside_it(make_run, tmp_path):
    files = write_report([make_run("one")], tmp_path / "new" / "page.html")
    assert (files.html, files.png) == (tmp_path / "new" / "page.html", tmp_path / "new" / "page.png")
    assert files.html.is_file()
    assert is_png(files.png)


def test_results_over_seeds_equal_their_definition(make_run, tmp_path):
    levels = (300.0, 420.0, 350.0, 510.0, 390.0)
    runs = [make_run(f"s{seed}", seed=seed, level=level) for seed, level in enumerate(levels)]
    page = Page(write_report(runs, tmp_path / "report.html").html)
    finals = [returns(run)[-20:].mean() for run in runs]
    (row,) = page.table("median", "95% interval")
    assert row["seeds"] == "5"
    assert row["median"] == shown(np.median(finals))
    assert (row["min"], row["max"]) == (shown(min(finals)), shown(max(finals)))
    assert row["mean"] == shown(np.mean(finals))
    low, high = bootstrap_interval(finals, np.mean)
    assert row["95% interval"] == f"{shown(low)} to {shown(high)}"
    assert "gives no interval" not in page.text
    summary = f"{shown(np.median(finals))} (median over seeds; {shown(min(finals))} to {shown(max(finals))})"
    assert summary in page.text


def test_runs_are_seeds_of_one_line_only_if_their_settings_agree(make_run, tmp_path):
    runs = [
        make_run("a", seed=0),
        make_run("b", seed=1),
        make_run("rule", settings={"step_size_rule": "obgd"}),
        make_run("decay", settings={"trace_decay": 0.5}),
        make_run("elsewhere", "CartPole-v1", seed=0),
    ]
    page = Page(write_report(runs, tmp_path / "report.html").html)
    rows = {
        (row["environment"], row["agent"]): row["seeds"] for row in page.table("median", "95% interval")[:4]
    }
    assert rows == {
        ("Pendulum-v1", "stream-ac (intentional, trace_decay 0.8)"): "2",
        ("Pendulum-v1", "stream-ac (obgd)"): "1",
        ("Pendulum-v1", "stream-ac (intentional, trace_decay 0.5)"): "1",
        ("CartPole-v1", "stream-ac (intentional, trace_decay 0.8)"): "1",
    }


def test_a_longer_run_of_the_same_exploration_is_a_seed_of_the_same_line(make_run, tmp_path):
    """`exploration_steps` is filled in as a share of `steps`; given as a number, it is a setting."""

    def seeds(*exploration_steps):
        runs = [
            make_run(
                f"{exploration_steps}/{seed}",
                seed=seed,
                agent="stream-q",
                steps=steps,
                settings={"exploration_fraction": 0.05, "exploration_steps": explored},
            )
            for seed, (steps, explored) in enumerate(zip((5_000, 5_330), exploration_steps, strict=True))
        ]
        page = Page(write_report(runs, tmp_path / "report.html").html)
        return [(row["agent"], row["seeds"]) for row in page.table("environment", "seeds") if "agent" in row]

    assert seeds(250, 266)[0] == ("stream-q (intentional)", "2")
    assert seeds(250, 300)[:2] == [
        ("stream-q (intentional, exploration_steps 250)", "1"),
        ("stream-q (intentional, exploration_steps 300)", "1"),
    ]


def test_a_preset_is_named_only_where_it_tells_runs_apart(make_run, tmp_path):
    runs = [make_run(name, preset=name, settings={"trace_decay": d}) for name, d in (("x", 0.8), ("y", 0.5))]
    apart = Page(write_report(runs, tmp_path / "two.html").html).text
    assert "stream-ac (intentional, preset x)" in apart
    assert "trace_decay 0.5" not in apart  # the preset says it already
    alone = Page(write_report(runs[:1]).html).text
    assert "stream-ac (intentional) on" in alone


def test_the_configuration_is_whole_and_what_differs_stands_apart(make_run, tmp_path):
    runs = [make_run(f"s{seed}", seed=seed, unheard_of="kept") for seed in (3, 4)]
    page = Page(write_report(runs, tmp_path / "report.html").html)
    for word in ("unheard_of", "kept", "trace_decay", "discount", "torch", "2.13.0"):
        assert word in page.text
    differing = page.table(
        "run", "seed"
    )  # the list of runs comes first; what differs follows in the same way
    assert {row["seed"] for row in differing} == {"3", "4"}


def test_a_run_named_twice_counts_once(make_run, tmp_path):
    run = make_run("one")
    page = Page(write_report([run, run / ".." / "one"], tmp_path / "report.html").html)
    assert page.table("last 20")[0]["seeds"] == "1"


def test_prediction_errors_on_the_page_are_the_scores(make_run):
    run = make_run("series", "csv:/data/load.csv", agent="stream-td", target="OT", steps=600)
    page = Page(write_report([run]).html)
    table = pq.read_table(run / "predictions.parquet")
    scores = prediction_scores(table["prediction"].to_numpy(), table["cumulant"].to_numpy(), 0.9)
    row = next(row for row in page.rows if row[:1] == ["OT of load.csv"])
    numbers = [scores.learner, scores.running_mean, scores.ratio_to_running_mean]
    numbers += [scores.last_cumulant, scores.ratio_to_last_cumulant]
    assert [float(cell.replace(",", "")) for cell in row[4:]] == pytest.approx(numbers, rel=0.005)
    assert row[3] == f"301 to {scores.last_step}"


def test_equally_named_files_of_two_folders_are_two_series(make_run, tmp_path):
    runs = [
        make_run(f"{folder}", f"csv:/{folder}/load.csv", agent="stream-td", target="OT") for folder in "ab"
    ]
    text = Page(write_report(runs, tmp_path / "report.html").html).text
    for folder in "ab":
        assert f"OT of load.csv: stream-td (intentional, environment csv:/{folder}/load.csv)" in text


def test_a_stream_too_short_to_be_judged_is_reported_as_such(make_run):
    run = make_run(
        "series", "csv:/data/load.csv", agent="stream-td", target="OT", settings={"discount": 0.9999}
    )
    files = write_report([run])
    assert "Too short to be judged" in Page(files.html).text
    assert is_png(files.png)


@pytest.mark.parametrize("kind", ["Pendulum-v1", "csv:/data/load.csv"])
@pytest.mark.parametrize("missing", ["file", "rows"])
def test_a_run_that_has_recorded_nothing_is_reported_as_such(make_run, kind, missing):
    run = make_run("young", kind, agent="stream-td" if kind.startswith("csv") else "stream-ac")
    for file in run.glob("*.parquet"):
        if missing == "rows":
            pq.write_table(pq.read_table(file).slice(0, 0), file)
        else:
            file.unlink()
    files = write_report([run])
    page = Page(files.html)
    assert f"Nothing recorded yet: {run}." in page.text
    assert "trace_decay" in page.text
    assert is_png(files.png)


def test_a_run_with_one_episode_and_a_run_far_behind_can_be_reported(make_run, tmp_path):
    runs = [make_run("long"), make_run("short", seed=1, episodes=1, steps=50_000)]
    page = Page(write_report(runs, tmp_path / "report.html").html)
    assert f"Unfinished: {runs[1]} (" in page.text
    assert re.search(f"Left out of curves and results, [a-z ]*: {runs[1]}\\.", page.text)
    assert page.table("last 20")[0]["seeds"] == "1"
    assert "Unfinished" not in Page(write_report(runs[:1]).html).text
    assert is_png(write_report(runs[1:]).png)


def test_a_note_that_holds_for_several_runs_stands_once(make_run, tmp_path):
    behind = [make_run(f"{seed}", seed=seed, episodes=1, steps=50_000) for seed in (1, 1_000)]
    text = Page(write_report([make_run("long"), *behind], tmp_path / "report.html").html).text
    assert text.count("Left out of curves and results") == text.count("Unfinished") == 1


def test_the_page_loads_nothing_and_runs_nothing(make_run, tmp_path):
    runs = [make_run("rl"), make_run("series", "csv:/data/load.csv", agent="stream-td", target="OT")]
    page = Page(write_report(runs, tmp_path / "report.html").html)
    assert "svg" in page.tags
    assert page.loads == []
    assert not {"script", "iframe", "object", "embed", "link"} & page.tags
    assert not re.search(r"https?://|@import|url\((?!#)", page.source)


@pytest.mark.filterwarnings("ignore:Glyph 1 ")
def test_a_hostile_name_stays_text(make_run, tmp_path):
    name = "<script>alert('x')</script>$\\frac{1}$\x01 & \"quoted\""
    runs = [make_run("a", name, preset="<b>"), make_run("b", name, preset="</svg>"), make_run("c")]
    files = write_report(runs, tmp_path / "report.html")
    page = Page(files.html)
    assert not {"script", "b"} & page.tags
    assert "<script>alert('x')</script>" in page.text
    assert "<script" not in page.source
    assert "alert(&#39;x&#39;)" in page.source
    assert "preset <b>" in page.text
    assert is_png(files.png)


def test_the_same_runs_give_the_same_bytes(make_run, tmp_path):
    runs = [make_run(f"s{seed}", seed=seed) for seed in range(3)]
    first, second = (write_report(runs, tmp_path / f"{name}.html") for name in "ab")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.png.read_bytes() == second.png.read_bytes()


def test_a_long_run_makes_no_large_page(make_run):
    """20,000 episodes with ten times as many points drawn would be some 10 MB."""
    assert write_report([make_run("long", episodes=20_000)]).html.stat().st_size < 500_000


def corrupt_config(run):
    (run / "config.toml").write_text("environment = ")


def binary_config(run):
    (run / "config.toml").write_bytes(b"\xff\xfe\x00")


def nameless_config(run):
    (run / "config.toml").write_text("agent = 'stream-ac'")


def misshapen_config(run):
    (run / "config.toml").write_text("agent = 'stream-ac'\nenvironment = 'x'\nsettings = 3")


def no_config(run):
    (run / "config.toml").unlink()


def corrupt_metrics(run):
    (run / "metrics.parquet").write_bytes(b"PAR1 and then nothing")


def cut_metrics(run):
    data = (run / "metrics.parquet").read_bytes()
    (run / "metrics.parquet").write_bytes(data[: len(data) // 2])


def flipped_metrics(run):
    data = bytearray((run / "metrics.parquet").read_bytes())
    data[4:200] = b"\xff" * 196
    (run / "metrics.parquet").write_bytes(data)


def empty_metrics(run):
    (run / "metrics.parquet").write_bytes(b"")


def stepless_metrics(run):
    pq.write_table(pa.table({"episode_return": [1.0]}), run / "metrics.parquet")


def falling_steps(run):
    pq.write_table(pa.table({"step": [5, 3], "episode_return": [1.0, 2.0]}), run / "metrics.parquet")


def wordy_predictions(run):
    table = pa.table({"step": [1], "prediction": ["high"], "cumulant": [1.0]})
    pq.write_table(table, run / "predictions.parquet")


def undiscounted_predictions(run):
    (run / "config.toml").write_text("agent = 'stream-td'\nenvironment = 'csv:x'")
    table = pa.table({"step": [1], "prediction": [1.0], "cumulant": [1.0]})
    pq.write_table(table, run / "predictions.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        corrupt_config,
        binary_config,
        nameless_config,
        misshapen_config,
        no_config,
        corrupt_metrics,
        cut_metrics,
        flipped_metrics,
        empty_metrics,
        stepless_metrics,
        falling_steps,
        wordy_predictions,
        undiscounted_predictions,
    ],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_a_usage_error_of_one_line_that_names_the_place(make_run, damage):
    run = make_run("damaged")
    damage(run)
    with pytest.raises(UsageError) as error:
        write_report([run])
    message = str(error.value)
    assert str(run) in message
    assert "\n" not in message
    assert not (run / "report.html").exists()


def test_what_is_no_run_and_what_is_no_page_are_refused(make_run, tmp_path):
    run = make_run("runs/one")
    with pytest.raises(UsageError, match="name at least one"):
        write_report([])
    with pytest.raises(UsageError, match=r"has no config\.toml\. It holds runs"):
        write_report([run.parent])
    with pytest.raises(UsageError, match=r"there is no .*nowhere"):
        write_report([tmp_path / "nowhere"])
    for out in (tmp_path, tmp_path / "report.png", tmp_path / "report"):
        with pytest.raises(UsageError, match=r"try --out .*report\.html"):
            write_report([run], out)
    with pytest.raises(UsageError, match="cannot be written"):
        write_report([run], run / "config.toml" / "report.html")
