"""The page says what the log and the models say, by plain loops; a hostile log stays text."""

from __future__ import annotations

import math
import random
import re
import shutil

import event_report_support
import numpy as np
import pytest
from displays import Quiet
from event_report_support import (
    BAD,
    EVENTS,
    FIRST_BAD,
    INTERVAL,
    KEYS,
    MODELS,
    SCRIPT,
    TYPES,
    UNIT,
    events,
    metrics,
    number,
    table,
)
from test_event_extras import LEAD, Told
from test_report import Page, is_png

from streamwise.agents import EVENT_MODELS, event_model_class
from streamwise.agents.event_model import Score
from streamwise.runs.event_report import write_event_report
from streamwise.runs.ingest import ingest, load_model
from streamwise.runs.ingest_config import IngestConfig

log = event_report_support.log
runs = event_report_support.runs
copy = event_report_support.copy


@pytest.fixture(scope="module")
def told(tmp_path_factory, runs, log):
    """Return the directory, the events' scores and the page of a model that tells more."""
    source, out = f"file:{runs['counts'].parent / 'log.jsonl'}", tmp_path_factory.mktemp("told") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EVENT_MODELS, "told", Told)
        config = IngestConfig((source,), Told.Config(), "told", out=out, interval=INTERVAL, time_unit=UNIT)
        run = ingest(config, display=Quiet).directory
        page = Page(write_event_report([run]).html)
        model = Told()
        scores = model.learn_many([e.time for e in log], [e.type for e in log], [e.key for e in log])
        model.close()
        yield run, scores[~np.isnan(scores[:, 0])], page


@pytest.fixture(scope="module")
def three(runs, tmp_path_factory):
    """Return the page of all three models."""
    return Page(write_event_report(list(runs.values()), tmp_path_factory.mktemp("page") / "three.html").html)


@pytest.fixture(scope="module")
def alone(runs):
    """Return the page of every model, by itself."""
    return {name: Page(write_event_report([run]).html) for name, run in runs.items()}


@pytest.fixture(scope="module")
def known(log):
    """Return of every model the score of every event, learned one by one."""
    scores = {}
    for name in MODELS:
        model = event_model_class(name)()
        scores[name] = [Score(*model.learn_one(event).values()) for event in log]
    return scores


def averages(scores):
    """Return the scores of a report from those of events, by their definitions."""
    sums, count = [0.0] * 5, 0
    for score in scores:
        if math.isnan(score.gap):
            continue
        count += 1
        miss = (score.predicted_gap - score.gap) / UNIT
        time = score.time_log_density + math.log(UNIT)
        wrong = score.predicted_type != score.type
        for i, value in enumerate((time, score.type_log_probability, wrong, miss * miss, abs(miss))):
            sums[i] += value
    time, kind, wrong, square, absolute = (total / count for total in sums)
    return {
        "log-likelihood": time + kind,
        "time part": time,
        "type log loss": -kind,
        "type error": 100.0 * wrong,
        "RMSE (min)": math.sqrt(square),
        "MAE (min)": absolute,
    }


def agree(cells, values):
    """Whether cells show these numbers, to their last digit."""
    assert values.keys() <= cells.keys()
    for name, value in values.items():
        digits = len(cells[name].rstrip("%").partition(".")[2])
        assert number(cells[name]) == pytest.approx(value, abs=0.5001 * 10.0**-digits), name
    return True


def test_scores_of_all_and_of_the_last_half_are_those_of_events_learned_one_by_one(runs, known, three):
    rows = table(three, "events", "log-likelihood", "KS")
    half = 1_750  # the first row that ends in the last half of 3,300
    assert [(row["events"], row["model"]) for row in rows] == [
        (span, name) for span in ("1 to 3,300", "1,751 to 3,300") for name in MODELS
    ]
    for row in rows:
        since = 0 if row["events"].startswith("1 to") else half
        assert agree(row, averages(known[row["model"]][since:]))
        ends = [m for m in metrics(runs[row["model"]]) if m["step"] > since]
        assert agree(row, {"KS": float(np.median([m["ks"] for m in ends]))})
        assert agree(row, {"critical": float(np.median([m["ks_critical"] for m in ends]))})


def test_windows_weigh_as_many_events_as_were_scored_in_them(copy):
    """Windows of very unequal weight, as where many keys are new."""
    draw = random.Random(5)
    steps = [m["step"] for m in metrics(copy("plain"))]
    scored = np.cumsum([draw.choice([0, 1, 10, 200]) for _ in steps])
    changed = {"scored": scored.astype(np.int64)}
    for name in ("log_likelihood", "type_error", "time_rmse"):
        changed[f"{name}_window"] = [draw.random() if n else math.nan for n in np.diff(scored, prepend=0)]
    run = copy("weighted", **changed)
    (_, row) = table(Page(write_event_report([run]).html), "events", "log-likelihood")
    sums, weight, before = [0.0] * 3, 0, 0
    for m in metrics(run):
        own, before = m["scored"] - before, m["scored"]
        if m["step"] > 1_750 and own:
            weight += own
            sums[0] += own * m["log_likelihood_window"]
            sums[1] += own * m["type_error_window"]
            sums[2] += own * m["time_rmse_window"] ** 2
    means = [total / weight for total in sums]
    expected = {"log-likelihood": means[0], "type error": 100 * means[1], "RMSE (min)": math.sqrt(means[2])}
    assert agree(row, expected)


def test_the_best_of_every_column_is_bold_and_of_a_single_run_nothing(known, three, alone):
    whole = {name: averages(scores) for name, scores in known.items()}
    rows = re.findall(r"<td>1 to 3,300</td><td>(\w+)</td>(.*?)</tr>", three.source)
    assert [name for name, _ in rows] == MODELS
    for column, (title, better) in enumerate(
        zip(whole["hawkes"], (max, max, min, min, min, min), strict=True)
    ):
        best = better(MODELS, key=lambda name: whole[name][title])
        bold = {name: "<b>" in cells.split("</td>")[column] for name, cells in rows}
        assert bold == {name: name == best for name in MODELS}, title
    assert "<b>" not in alone["hawkes"].source


def test_differences_are_paired_on_the_same_events(known, three):
    late = {name: averages(scores[1_750:]) for name, scores in known.items()}
    best = max(MODELS, key=lambda name: late[name]["log-likelihood"])
    rows = table(three, "model", "windows ahead")
    assert [row["model"] for row in rows] == [f"{name} less {best}" for name in MODELS if name != best]
    for row in rows:
        name = row["model"].partition(" ")[0]
        assert agree(row, {k: late[name][k] - late[best][k] for k in ("log-likelihood", "time part")})
        error = late[name]["type error"] - late[best]["type error"]
        assert number(row["type error"]) == pytest.approx(error, abs=0.005)
        windows = range(1_750, EVENTS, INTERVAL)
        ahead = sum(
            averages(known[name][w : w + INTERVAL])["log-likelihood"]
            > averages(known[best][w : w + INTERVAL])["log-likelihood"]
            for w in windows
        )
        assert row["windows ahead"] == f"{ahead} of {len(windows)}"
        low, high = map(float, row["95% interval"].split(" to "))
        assert low <= number(row["log-likelihood"]) <= high
    second = max((n for n in MODELS if n != best), key=lambda n: late[n]["log-likelihood"])
    assert f"{best} is best" in three.text
    assert f"nats ahead of {second}" in three.text


@pytest.mark.parametrize(("lead", "is_chance"), [(0.0, True), (-1.0, False)])
def test_windows_ahead_are_counted_and_a_lead_within_its_interval_may_be_chance(
    copy, tmp_path, lead, is_chance
):
    """The other run wins two windows of the seven by much, and loses five by less."""
    before = [m["log_likelihood_window"] for m in metrics(copy("plain"))]
    moved = [lead + (0.5 if i % 4 == 3 else -0.25) for i in range(len(before))]
    other = copy("other", log_likelihood_window=np.add(before, moved))
    page = Page(write_event_report([copy("one"), other], tmp_path / "r.html").html)
    row = table(page, "model", "windows ahead")[0]
    assert row["model"] == "hawkes (other) less hawkes (one)"
    assert row["windows ahead"] == f"{sum(m > 0 for m in moved[7:])} of 7"
    assert ("it may be chance" in page.text) == is_chance


def test_scores_by_type_are_those_of_events_learned_one_by_one(known, alone):
    rows = table(alone["counts"], "type", "share", "error")
    order, by_type, scored = list(dict.fromkeys(e.type for e in events())), {}, 0
    for score in known["counts"]:
        if not math.isnan(score.gap):
            scored += 1
            by_type.setdefault(order[int(score.type)], []).append(score)
    frequent = sorted(by_type, key=lambda name: -len(by_type[name]))
    assert len(rows) == len(frequent) == len(TYPES)
    for row, name in zip(rows, frequent, strict=True):
        own = by_type[name]
        assert name.startswith(row["type"][:4]) or row["type"] in ("\\u202egnp", "\\x07bell\\n")
        values = averages(own)
        assert row["scored events"] == f"{len(own):,}"
        assert agree(row, {"share": 100 * len(own) / scored, "error": values["type error"]})
        assert agree(row, {"log loss": values["type log loss"], "time log-likelihood": values["time part"]})


def inside(scores, share):
    """Return the percentage of scored events whose gap lay in the central interval of this probability."""
    below = [-math.expm1(-score.compensator) for score in scores if not math.isnan(score.gap)]
    return 100.0 * sum(abs(u - 0.5) <= share / 2 for u in below) / len(below)


def test_intervals_hold_as_many_gaps_as_were_in_them_and_the_nearest_to_right_is_bold(known, three):
    rows = table(three, "events", "in 50% interval", "in 90% interval")
    for row in rows:
        since = 0 if row["events"].startswith("1 to") else 1_750
        own = known[row["model"]][since:]
        assert agree(row, {"in 50% interval": inside(own, 0.5), "in 90% interval": inside(own, 0.9)})
    best = min(MODELS, key=lambda name: abs(inside(known[name], 0.9) - 90.0))
    cells = re.findall(r"<td>1 to 3,300</td><td>(\w+)</td>(.*?)</tr>", three.source)
    assert [name for name, rest in cells if "<b>" in rest.split("</td>")[7]] == [best]


def test_the_histogram_of_gaps_is_drawn_once_by_run(three, alone, known):
    for page in (three, *alone.values()):
        assert page.source.count('aria-label="Where gaps fell in what was held likely:') == 1


def test_baselines_are_compared_on_the_same_events(told, alone):
    _, scores, page = told
    rows = table(page, "baseline", "windows ahead")
    assert [row["baseline"] for row in rows] == ["slow", "first type"]
    slow, first = rows
    assert number(slow["log-likelihood"]) == number(slow["time part"]) == LEAD
    assert slow["windows ahead"] == "7 of 7"
    assert list(map(float, slow["95% interval"].split(" to "))) == [LEAD, LEAD]
    assert (number(slow["type log loss"]), number(slow["type error"])) == (0.0, 0.0)
    assert number(first["type log loss"]) == -1.0
    assert first["log-likelihood"] == first["95% interval"] == first["windows ahead"] == "–"
    late = scores[-(EVENTS - 1_750) :]  # all keys have come before
    time, kind, wrong = late[:, 1] + math.log(UNIT), late[:, 2], late[:, 4] != late[:, 6]
    assert agree(
        slow,
        {
            "its log-likelihood": float((time + kind).mean()) - LEAD,
            "its type log loss": float(-kind.mean()),
            "its type error": 100.0 * float(wrong.mean()),
        },
    )
    others = 100.0 * float((late[:, 6] != 0).mean())
    assert agree(first, {"its type error": others})
    assert number(first["type error"]) == pytest.approx(100.0 * float(wrong.mean()) - others, abs=0.005)
    assert page.source.count('aria-label="Log-likelihood less theirs') == 1
    assert "over its baselines" not in alone["counts"].text


def test_scores_by_activity_are_those_of_keys_with_as_many_events(told, alone):
    _, scores, page = told
    rows = table(page, "events of the key before", "share")
    rows = rows[: next(i for i, row in enumerate(rows) if "type" in row.values())]  # where the next begins
    assert [row["events of the key before"] for row in rows[:4]] == ["1", "2–3", "4–7", "8–15"]
    for group, row in enumerate(rows):
        own = scores[(scores[:, 8] >= 2**group) & (scores[:, 8] < 2 ** (group + 1))]
        assert row["scored events"] == f"{len(own):,}"
        values = {
            "time part": float(own[:, 1].mean()) + math.log(UNIT),
            "type log loss": float(-own[:, 2].mean()),
            "type error": 100.0 * float((own[:, 4] != own[:, 6]).mean()),
        }
        assert agree(row, values)
    assert sum(number(row["scored events"]) for row in rows) == len(scores)
    assert "New keys and old ones" not in alone["counts"].text


def test_confidence_is_held_against_how_often_it_was_right(told):
    _, scores, page = told
    tenths, right = np.minimum(scores[:, 7] * 10 // 1, 9), scores[:, 4] == scores[:, 6]
    apart = sum(abs(scores[tenths == i, 7].sum() - right[tenths == i].sum()) for i in range(10)) / len(scores)
    assert f"On average they are apart by: {100.0 * apart:.1f}%." in page.text
    assert page.source.count('aria-label="Calibration of types: how often right') == 1


def test_what_a_model_says_of_itself_is_drawn_where_it_changes_and_told_where_not(told, alone):
    page = told[2]
    assert "Prompt pool" in page.text
    for name in ("entropy", "confidence", "odd"):
        assert len(re.findall(rf"<h3>{name}</h3>", page.source)) == 1
    assert f"Always the same: pool unused {KEYS:.2f}; learning rate 0.001." in page.text
    assert "Prompt pool" not in alone["counts"].text
    assert "The model itself" not in alone["counts"].text


def test_models_that_tell_more_are_compared_with_those_that_do_not(told, runs, tmp_path):
    files = write_event_report([runs["poisson"], told[0]], tmp_path / "r.html")
    page = Page(files.html)
    assert is_png(files.png)
    headings = re.findall(r"<h3>(.*?)</h3>", page.source)
    assert {"entropy (told only)", "Calibration of types (told only)"} <= set(headings)
    assert not all(heading.endswith("only)") for heading in headings)
    assert [row["baseline"] for row in table(page, "baseline", "windows ahead")] == ["slow", "first type"]
    assert len(table(page, "events of the key before")) > 3


def test_baselines_are_converted_to_the_unit_of_the_first_run(told, tmp_path):
    run, _, page = told
    seconds = shutil.copytree(run, tmp_path / "seconds")
    config = (seconds / "config.toml").read_text()
    (seconds / "config.toml").write_text(re.sub(r"(?m)^time_unit = .*", "time_unit = 1.0", config))
    first, *_ = table(page, "baseline", "windows ahead")
    together = Page(write_event_report([run, seconds], tmp_path / "r.html").html)
    sections = [row for row in together.rows if row[0] == "slow"]
    assert len(sections) == 2
    own, converted = (dict(zip(first, row, strict=True)) for row in sections)
    shift = number(converted["its log-likelihood"]) - number(own["its log-likelihood"])
    assert shift == pytest.approx(math.log(UNIT), abs=0.0002)
    assert converted["log-likelihood"] == own["log-likelihood"]


def test_the_map_of_influences_sums_the_excitation_over_time_scales(runs, alone):
    page = alone["hawkes"]
    model, checkpoint = load_model(runs["hawkes"])
    counts = [row[0] for row in checkpoint.meta["recorder"]["scores"]["by_type"]]
    order = sorted(range(len(TYPES)), key=lambda i: -counts[i])
    at = next(i for i, row in enumerate(page.rows) if row[0] == "an event of type")
    assert page.rows[at][-1] == "all"
    per = {"of itself, a minute": 60.0, "of itself, an hour": 3600.0, "of itself, a day": 86_400.0}
    whole = 0.0
    for row, source in zip(page.rows[at + 1 :], order, strict=False):
        brought = [sum(float(scale[source][child]) for scale in model.excitation) for child in order]
        for cell, value in zip(row[2:], brought, strict=False):
            assert float(cell or 0.0) == pytest.approx(value, abs=0.00501)
        assert float(row[-1]) == pytest.approx(sum(brought), abs=0.00501)
        base = float(model.base_rates[source]) * per[page.rows[at][1]]
        assert number(row[1]) == pytest.approx(base, rel=0.005)
        whole += counts[source] * sum(brought) / sum(counts)
    brings = float(re.search(r"An event brings ([\d.]+) further", page.text)[1])
    assert brings == pytest.approx(whole, abs=0.00501)
    model.close()


def test_a_model_without_parameters_of_influence_has_no_map(alone):
    assert "What brings what" not in alone["poisson"].text


def test_refused_records_are_counted_by_reason_with_the_first_of_each(alone):
    page = alone["poisson"]
    rows = {row["reason"]: row for row in table(page, "reason", "how it begins")}
    assert {reason: row["records"] for reason, row in rows.items()} == {
        "malformed": "2", "late": "1", "missing field": "1", "bad value": "1"
    }  # fmt: skip
    assert rows["malformed"]["how it begins"] == FIRST_BAD[:80] + "…"
    assert "late" in rows["late"]["how it begins"]
    assert "\\udc00" in rows["bad value"]["how it begins"]
    assert f"{BAD} of {EVENTS + BAD:,} records" in page.text


def test_what_a_log_holds_stays_text(three):
    page = three
    assert not {"script", "img", "iframe", "object", "embed", "link"} & page.tags
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\((?!#)", page.source)
    assert SCRIPT in page.text  # as a type
    assert "<img src=x onerror=alert(2)>" in page.text  # in a refused record
    assert "\\u202egnp" in page.text
    assert "\u202e" not in page.source
    assert "w" * 40 + "…" in page.text
    assert "w" * 41 not in page.source
    assert len(re.findall("</td></svg>", page.source)) == 0


def test_the_summary_says_what_was_learned_from_what_and_when(alone):
    text = alone["counts"].text
    assert "counts on log.jsonl" in text
    assert f"3,300 events of {KEYS} keys and {len(TYPES)} types" in text
    assert "16 Nov 2023" in text  # the last event, 1.7e9 s and a day and a half


def test_settings_and_versions_are_whole_and_what_differs_stands_apart(runs, three):
    for word in ("checkpoint_seconds", "prior_gap", "torch"):
        assert three.text.count(word) == 1
    differing = table(three, "run", "model", "time_scales")
    assert [row["run"] for row in differing] == [str(run) for run in runs.values()]
    assert [row["time_scales"] == "–" for row in differing] == [False, True, True]


def test_the_same_runs_give_the_same_bytes(runs, alone, tmp_path):
    before = runs["hawkes"] / "report.html"
    again = write_event_report([runs["hawkes"]], tmp_path / "again.html")
    assert again.html.read_bytes() == before.read_bytes()
    assert again.png.read_bytes() == before.with_suffix(".png").read_bytes()
    assert is_png(again.png)


def test_runs_that_are_not_equally_far_are_compared_as_far_as_both_are(copy, known, tmp_path):
    page = Page(write_event_report([copy("long"), copy("short", "counts", rows=8)], tmp_path / "r.html").html)
    assert "scores are compared over the first 2,000 events: hawkes (3,300 events)." in page.text
    rows = table(page, "events", "KS")
    assert [row["events"] for row in rows] == ["1 to 2,000"] * 2 + ["1,001 to 2,000"] * 2
    assert agree(rows[0], averages(known["hawkes"][:2_000]))
