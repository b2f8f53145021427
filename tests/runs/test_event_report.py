"""The page says what the log and the models say, by plain loops; a hostile log stays text."""

from __future__ import annotations

import json
import math
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from test_event_extras import LEAD, Silent, Told
from test_report import Page, is_png

from streamwise.agents import EVENT_MODELS, event_model_class
from streamwise.agents.event_model import Score
from streamwise.runs.event_report import write_event_report
from streamwise.runs.ingest import ingest, load_model
from streamwise.runs.ingest_config import IngestConfig
from streamwise.streams import Event, UsageError

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
    return ingest(config, display=Silent).directory


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


@pytest.fixture(scope="module")
def told(tmp_path_factory, runs, log):
    """Return the directory, the events' scores and the page of a model that tells more."""
    source, out = f"file:{runs['counts'].parent / 'log.jsonl'}", tmp_path_factory.mktemp("told") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EVENT_MODELS, "told", Told)
        config = IngestConfig((source,), Told.Config(), "told", out=out, interval=INTERVAL, time_unit=UNIT)
        run = ingest(config, display=Silent).directory
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


def agree(cells, values):
    """Whether cells show these numbers, to their last digit."""
    assert values.keys() <= cells.keys()
    for name, value in values.items():
        digits = len(cells[name].rstrip("%").partition(".")[2])
        assert number(cells[name]) == pytest.approx(value, abs=0.5001 * 10.0**-digits), name
    return True


def metrics(run):
    return pq.read_table(run / "metrics.parquet").to_pylist()


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


def test_rare_types_are_summed_up_in_one_row(tmp_path):
    log = [Event(1e9 + 10.0 * i, f"t{i % 30 if i % 3 else 0}", "k") for i in range(900)]
    rows = table(Page(write_event_report([run_model(tmp_path, log, "run")]).html), "type", "share")
    assert len(rows) == 21
    assert sum(number(row["scored events"]) for row in rows) == 899
    assert rows[-1]["type"] == "1 other"
    assert len({event.type for event in log}) == 21


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


def test_a_hostile_source_reason_and_directory_stay_text(copy):
    run = copy("<i>run")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("log.jsonl", "<script>x.jsonl"))
    page = Page(write_event_report([run]).html)
    assert "script" not in page.tags
    assert "<script>x.jsonl" in page.text


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
    ingest(config, display=Silent)
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


def test_runs_that_are_not_equally_far_are_compared_as_far_as_both_are(copy, known, tmp_path):
    page = Page(write_event_report([copy("long"), copy("short", "counts", rows=8)], tmp_path / "r.html").html)
    assert "scores are compared over the first 2,000 events: hawkes (3,300 events)." in page.text
    rows = table(page, "events", "KS")
    assert [row["events"] for row in rows] == ["1 to 2,000"] * 2 + ["1,001 to 2,000"] * 2
    assert agree(rows[0], averages(known["hawkes"][:2_000]))


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
