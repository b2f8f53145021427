"""Whatever state runs on events are in: a report says what they lack and where they differ, or refuses."""

from __future__ import annotations

import re
import shutil

import event_report_support
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from displays import Quiet
from event_report_support import INTERVAL, KEYS, TYPES, metrics, number, run_model, table
from test_report import Page, is_png

from streamwise.agents import event_model_class
from streamwise.runs.event_report import write_event_report
from streamwise.runs.ingest import ingest, load_model
from streamwise.runs.ingest_config import IngestConfig
from streamwise.streams import Event, UsageError

log = event_report_support.log
runs = event_report_support.runs
copy = event_report_support.copy


def test_a_run_of_before_is_reported_without_what_it_did_not_keep(copy, monkeypatch):
    load = load_model

    def with_less(directory):
        model, checkpoint = load(directory)
        for name in ("fading", "pit", "by_activity", "by_confidence", "extras"):
            del checkpoint.meta["recorder"]["scores"][name]
        return model, checkpoint

    monkeypatch.setattr("streamwise.runs.event_run_data.load_model", with_less)
    run = copy("older")
    rows = pq.read_table(run / "metrics.parquet")
    newer = [n for n in rows.column_names if n.startswith("coverage") or n.endswith("_fading")]
    pq.write_table(rows.drop_columns(newer), run / "metrics.parquet")
    page = Page(write_event_report([run]).html)
    assert "in 50% interval" not in page.text
    assert "Where gaps fell" not in page.source
    assert len(table(page, "events", "log-likelihood", "KS")) == 2
    assert len(table(page, "type", "share")) == len(TYPES)


def test_a_hostile_source_reason_and_directory_stay_text(copy):
    run = copy("<i>run")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("log.jsonl", "<script>x.jsonl"))
    page = Page(write_event_report([run]).html)
    assert "script" not in page.tags
    assert "<script>x.jsonl" in page.text


def test_one_run_is_reported_in_its_directory_and_several_here(copy, tmp_path, monkeypatch):
    run, other = copy("one", "poisson"), copy("other", "counts")
    monkeypatch.chdir(tmp_path)
    files = write_event_report([run])
    assert (files.html, files.png) == (run / "report.html", run / "report.png")
    write_event_report([run, other])
    assert (tmp_path / "report.html").is_file()
    assert is_png(tmp_path / "report.png")


def test_times_in_other_units_are_converted_to_those_of_the_first_run(runs, tmp_path):
    source, kind = f"file:{runs['poisson'].parent / 'log.jsonl'}", event_model_class("poisson").Config
    seconds = tmp_path / "seconds"
    config = IngestConfig(sources=(source,), settings=kind(), model="poisson", out=seconds, interval=INTERVAL)
    ingest(config, display=Quiet)
    page = Page(write_event_report([runs["poisson"], seconds], tmp_path / "r.html").html)
    minutes, converted, *_ = table(page, "events", "RMSE (min)")
    assert minutes.pop("model") != converted.pop("model")
    assert minutes == converted
    assert "converted to min" in page.text


def test_runs_of_one_model_are_told_apart_by_settings_or_at_last_by_directory(copy, tmp_path):
    runs = [copy("a"), copy("b"), copy("c", "counts")]
    for run, memory in zip(runs, (50_000.0, 777.0), strict=False):
        config = (run / "config.toml").read_text()
        (run / "config.toml").write_text(re.sub(r"(?m)^memory = .*", f"memory = {memory}", config))
    models = [
        row["model"] for row in table(Page(write_event_report(runs, tmp_path / "r.html").html), "KS")[:3]
    ]
    assert models == ["hawkes (memory 50000.0)", "hawkes (memory 777.0)", "counts"]
    same = [copy("d"), copy("e")]
    models = [
        row["model"] for row in table(Page(write_event_report(same, tmp_path / "r.html").html), "KS")[:2]
    ]
    assert models == ["hawkes (d)", "hawkes (e)"]


def test_runs_that_met_other_events_are_said_not_to_compare(copy, tmp_path):
    steps = [m["step"] for m in metrics(copy("plain"))]
    other = copy("other", "counts", scored=[step - 99 for step in steps])
    text = Page(write_event_report([copy("one"), other], tmp_path / "r.html").html).text
    assert "These runs did not meet the same events" in text
    together = [copy("two"), copy("three", "counts")]
    assert "did not meet" not in Page(write_event_report(together, tmp_path / "r.html").html).text


def test_a_run_without_a_checkpoint_is_reported_without_what_it_would_hold(copy):
    run = copy("young")
    shutil.rmtree(run / "checkpoints")
    page = Page(write_event_report([run]).html)
    assert (
        f"No whole checkpoint, so types, times, refused records and parameters are missing: {run}."
        in page.text
    )
    assert "What brings what" not in page.text
    assert "Refused records" not in page.text


def test_a_run_in_which_nothing_could_be_scored_is_reported_as_such(tmp_path):
    log = [Event(1e9 + i, "t", f"k{i}") for i in range(600)]
    files = write_event_report([run_model(tmp_path, log, "run")])
    assert "Nothing could be scored, for no key has come twice" in Page(files.html).text
    assert is_png(files.png)


def test_a_run_of_one_row_has_no_last_half(copy):
    rows = table(Page(write_event_report([copy("young", rows=1)]).html), "events", "KS")
    assert [row["events"] for row in rows] == ["1 to 250"]


def test_rare_types_are_summed_up_in_one_row(tmp_path):
    log = [Event(1e9 + 10.0 * i, f"t{i % 30 if i % 3 else 0}", "k") for i in range(900)]
    rows = table(Page(write_event_report([run_model(tmp_path, log, "run")]).html), "type", "share")
    assert len(rows) == 21
    assert sum(number(row["scored events"]) for row in rows) == 899
    assert rows[-1]["type"] == "1 other"
    assert len({event.type for event in log}) == 21


def test_the_first_and_the_last_time_are_named_where_a_run_knows_them(runs, monkeypatch):
    load = load_model

    def with_first_time(directory):
        model, checkpoint = load(directory)
        checkpoint.meta["recorder"]["first_time"] = 1.7e9
        return model, checkpoint

    monkeypatch.setattr("streamwise.runs.event_run_data.load_model", with_first_time)
    text = Page(write_event_report([runs["counts"]]).html).text
    assert re.search(r"from 14 Nov 2023 22:13:20 UTC to 1\d Nov 2023 [\d:]+ UTC \([\d.]+ (h|days)\)", text)


def test_a_long_run_makes_no_large_page(copy):
    """20,000 rows with every one of them drawn would be some 10 MB."""
    run = copy("long")
    tables = pq.read_table(run / "metrics.parquet")
    many = pa.concat_tables([tables] * (20_000 // len(tables) + 1)).slice(0, 20_000)
    for name in ("step", "events"):
        many = many.drop_columns([name]).append_column(name, pa.array(np.arange(1, 20_001) * INTERVAL))
    if "scored" in many.column_names:
        many = many.drop_columns(["scored"])
    many = many.append_column("scored", pa.array(np.arange(1, 20_001) * INTERVAL - KEYS))
    pq.write_table(many, run / "metrics.parquet")
    assert write_event_report([run]).html.stat().st_size < 700_000


def no_config(run):
    (run / "config.toml").unlink()


def of_an_agent(run):
    (run / "config.toml").write_text(tomli_w.dumps({"environment": "CartPole-v1", "agent": "stream-q"}))


def no_metrics(run):
    (run / "metrics.parquet").unlink()


def no_rows(run):
    pq.write_table(pq.read_table(run / "metrics.parquet").slice(0, 0), run / "metrics.parquet")


def cut_metrics(run):
    data = (run / "metrics.parquet").read_bytes()
    (run / "metrics.parquet").write_bytes(data[: len(data) // 2])


def falling_steps(run):
    rows = pq.read_table(run / "metrics.parquet")
    pq.write_table(pa.concat_tables([rows, rows]), run / "metrics.parquet")


def a_column_less(run):
    pq.write_table(pq.read_table(run / "metrics.parquet").drop_columns(["ks"]), run / "metrics.parquet")


def other_sources(run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("log.jsonl", "elsewhere.jsonl"))


def no_row_in_common(run):
    rows = pq.read_table(run / "metrics.parquet")
    steps = pa.array([step + 1 for step in rows["step"].to_pylist()])
    pq.write_table(rows.drop_columns(["step"]).append_column("step", steps), run / "metrics.parquet")


@pytest.mark.parametrize(
    "damage",
    [no_config, of_an_agent, no_metrics, no_rows, cut_metrics, falling_steps, a_column_less,
     other_sources, no_row_in_common],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_what_cannot_be_reported_is_a_usage_error_of_one_line_that_names_the_place(copy, tmp_path, damage):
    run = copy("damaged", "counts")
    damage(run)
    with pytest.raises(UsageError) as error:
        write_event_report([copy("whole"), run], tmp_path / "r.html")
    assert str(run) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r.html").exists()


def test_no_run_at_all_and_an_out_that_is_no_page_are_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="name at least one"):
        write_event_report([])
    with pytest.raises(UsageError, match="does not name a page"):
        write_event_report([runs["hawkes"]], tmp_path / "report.pdf")
