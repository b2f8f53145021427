"""A run on events as it is seen over HTTP, from a real server beside a real run."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra serve")
import serve_support
from displays import Quiet
from prometheus_client.parser import text_string_to_metric_families
from serve_support import TIMEOUT_SECONDS, get, still_run
from test_event_extras import LEAD, Told
from waiting import wait_for

from streamwise.agents import event_model_class
from streamwise.agents.event_model import Score
from streamwise.runs.ingest import ingest
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.loop import StopRequest
from streamwise.runs.serve import Thinned, serve, serve_metrics

run = serve_support.run
url = serve_support.url
HOSTILE = "<img src=x onerror=alert(1)>"
BROKEN = "half \ud83d of a pair"  # JSON can say it, UTF-8 cannot


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A real run in a thread, without an end."""
    folder = tmp_path_factory.mktemp("live") / "run"
    source = "synthetic:hawkes?events=0&speed=20000&keys=20"
    settings = event_model_class("counts").Config()
    config = IngestConfig((source,), settings, out=folder, interval=100)
    stop, started, found = StopRequest(), threading.Event(), {}

    def on_start(run):
        found["run"] = run
        found["server"] = servers.enter_context(serve(run, port=0))
        found["metrics"] = servers.enter_context(serve_metrics(run, port=0))
        started.set()

    def work():
        found["result"] = ingest(config, display=Quiet, stop=stop, on_start=on_start)

    with ExitStack() as servers:
        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(TIMEOUT_SECONDS)
        yield SimpleNamespace(run=found["run"], url=found["server"].url, metrics=found["metrics"].url)
        stop.signal = 2
        thread.join(TIMEOUT_SECONDS)
        assert found["result"].events > 0


def metrics_of(url):
    """Return the value of every sample by its name and labels."""
    status, text = get(f"{url}/metrics", raw=True)
    assert status == 200
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_live_run_is_followed_while_it_learns(live):
    def rows():
        return get(f"{live.url}/state")[1]["history"]["rows"]

    wait_for(lambda: len(rows()) >= 3)
    first = get(f"{live.url}/state")[1]
    wait_for(lambda: get(f"{live.url}/health")[1]["events"] > first["events"] + 100)
    second = get(f"{live.url}/state")[1]
    assert second["history"]["rows"][-1][0] > first["history"]["rows"][-1][0]
    assert second["time"] > first["time"]
    assert second["since"] == first["since"]
    assert 0 < second["events_per_second"] < 1e6
    assert second["title"] == "counts on synthetic:hawkes"
    assert len(second["newest"]) == 20
    assert all(event["type"] in "01234" for event in second["newest"])
    assert sum(kind["share"] for kind in second["by_type"]) == pytest.approx(1.0)
    assert second["memory"] > 10e6
    steps = [row[0] for row in second["history"]["rows"]]
    assert steps == sorted(set(steps))
    assert steps[0] == 100


def test_metrics_alone_are_served_on_a_port_of_their_own(live):
    # The lag is known a moment after the first row: it could be on one of the two pages alone.
    wait_for(lambda: live.run.recorder.row and ("streamwise_lag",) in metrics_of(live.metrics))
    here, there = metrics_of(live.metrics), metrics_of(live.url)
    assert {name for name in here if name[0].startswith("streamwise")} == {
        name for name in there if name[0].startswith("streamwise")
    }
    assert there["streamwise_events_total",] >= here["streamwise_events_total",] > 0
    assert get(f"{live.metrics}/state")[0] == 404
    assert get(f"{live.metrics}/")[0] == 404


def test_metrics_say_what_the_run_says(run, url):
    run.stream.dead_letters.add("late", "it is 3 s behind", "idle", 5, b"secret")
    run.watchers[0].__self__._looked_at = -math.inf
    run.learn([4000.0], ["a"], ["ann"])
    found = metrics_of(url)
    scores = run.recorder.scores.scores()
    assert found["streamwise_events_total",] == 41
    assert found["streamwise_keys",] == 3
    assert found["streamwise_types",] == 2
    assert found["streamwise_lag",] == 7
    assert found["streamwise_dead_letters_total", "late"] == 1
    for name in ("log_likelihood", "type_error", "type_log_loss", "time_mae"):
        assert found[f"streamwise_{name}", "all"] == pytest.approx(scores[name])
        assert found[f"streamwise_{name}", "last"] == pytest.approx(run.recorder.row[f"{name}_window"])
    assert found["streamwise_latency_seconds", "0.99"] >= found["streamwise_latency_seconds", "0.5"] > 0
    # Nothing came from the source itself, so that nobody knows how far it is.
    assert ("streamwise_watermark_delay_seconds",) not in found


def test_scores_are_shown_over_all_events_the_last_row_and_fading_with_where_gaps_fell(run, url):
    run.learn([4000.0, 4001.0], ["a", "b"], ["ann", "bob"])
    state, scores, row = get(f"{url}/state")[1], run.recorder.scores.scores(), run.recorder.row
    found = metrics_of(url)
    for name in ("log_likelihood", "time_log_likelihood", "type_error", "coverage_50", "coverage_90"):
        expected = {"all": scores[name], "last": row[f"{name}_window"], "fading": scores[f"{name}_fading"]}
        for over, value in expected.items():
            assert state["scores"][over][name] == pytest.approx(value)
            assert found[f"streamwise_{name}", over] == pytest.approx(value)
    assert state["pit"] == run.recorder.scores.pit.tolist()
    assert sum(state["pit"]) == scores["scored"]
    assert state["baselines"] == []
    assert state["statistics"] == {}
    assert not {name for name in found if name[0] in ("streamwise_score", "streamwise_statistic")}


def test_what_only_one_model_tells_is_shown_too(tmp_path):
    with still_run(tmp_path, Told) as run, serve(run, port=0) as server:
        run.learn([100.0 * i for i in range(60)], ["a", "b", "a"] * 20, ["ann", "bob"] * 30)
        state, found = get(f"{server.url}/state")[1], metrics_of(server.url)
        scores, statistics = run.recorder.scores.scores(), run.model.statistics()
    slow, first = state["baselines"]
    assert slow["name"] == "slow"
    assert slow["log_likelihood"] == pytest.approx(LEAD)
    assert slow["time_log_likelihood"] == pytest.approx(LEAD)
    assert slow["type_error"] == 0.0
    wrong = scores["first_type_type_error_fading"] - scores["type_error_fading"]
    assert first == {
        "name": "first_type", "type_log_loss": pytest.approx(1.0), "type_error": pytest.approx(wrong)
    }  # fmt: skip
    assert state["statistics"] == {
        "pool_entropy": pytest.approx(statistics["pool_entropy"]),
        "pool_unused": 2.0,
        "learning_rate": 1e-3,
        "unknown": None,
    }
    assert found["streamwise_statistic", "pool_entropy"] == pytest.approx(statistics["pool_entropy"])
    assert ("streamwise_statistic", "unknown") not in found
    assert state["own_scores"] == {
        name: pytest.approx(scores[f"{name}_fading"]) for name in ("confidence", "odd")
    }
    for over, suffix in (("all", ""), ("fading", "_fading")):
        assert found["streamwise_score", "confidence", over] == pytest.approx(scores[f"confidence{suffix}"])


@pytest.mark.parametrize("model", ["counts", "hawkes", "poisson"])
def test_predictions_are_those_of_the_model(tmp_path, model):
    with still_run(tmp_path, model) as run, serve(run, port=0) as server:
        run.learn([1.5, 3.0, 10.0, 11.0], ["a", "b", "a", HOSTILE], ["ann", "ann", "b&b=ü", "ann"])
        for key, now, horizon in [("ann", 12.5, 60.0), ("b&b=ü", 1e6, 0.25), ("ann", 11.0, None)]:
            query = f"key={quote(key)}&now={now!r}" + (f"&horizon={horizon!r}" if horizon else "")
            status, found = get(f"{server.url}/predict?{query}")
            expected = dataclasses.asdict(run.model.predict_one(key, now=now, horizon=horizon))
            assert status == 200
            assert found == json.loads(json.dumps(expected).replace("Infinity", "null"))
        assert get(f"{server.url}/predict?key=ann")[1]["now"] == 11.0  # its last event; there is no watermark


def test_a_prediction_is_by_default_of_the_watermark_where_that_is_later(run, url):
    run.watchers[0].__self__.watermark = 5000.0
    assert get(f"{url}/predict?key=eve")[1]["now"] == 5000.0


@pytest.mark.parametrize(
    ("query", "status", "complaint"),
    [
        ("", 400, "no key is given"),
        ("key=nobody", 404, "no event of key 'nobody' was seen."),
        ("key=", 404, "no event of key '' was seen."),
        ("key=ann&key=bob", 400, "key is given twice"),
        ("key=ann&horizont=3", 400, "no parameter is named 'horizont'. Did you mean 'horizon'?"),
        ("key=ann&horizon=soon", 400, "horizon is 'soon'; give a number of seconds."),
        ("key=ann&horizon=0", 400, "horizon is 0.0"),
        ("key=ann&horizon=nan", 400, "horizon is nan"),
        ("key=ann&horizon=-inf", 400, "horizon is -inf"),
        ("key=ann&now=1", 400, "give a later time"),
        ("key=ann&now=inf", 400, "now is inf"),
        ("key=%00%ff%0a%0d", 404, "no event of key"),
    ],
)
def test_a_bad_question_is_answered_in_one_line(url, query, status, complaint):
    found, body = get(f"{url}/predict?{query}")
    assert found == status
    assert list(body) == ["error"]
    assert complaint in body["error"]
    assert "\n" not in body["error"]


def test_what_the_log_holds_comes_back_as_it_was(run, url):
    run.learn([9e3, 9.1e3, 9.2e3], [HOSTILE, BROKEN, "x" * 5000], [BROKEN, HOSTILE, "k" * 5000])
    run.learn([9.3e3], ["a"], [HOSTILE])
    newest = get(f"{url}/state")[1]["newest"]
    assert [(event["type"], event["key"]) for event in newest[1:4]] == [
        ("x" * 200 + "…", "k" * 200 + "…"),
        (BROKEN, HOSTILE),
        (HOSTILE, BROKEN),
    ]
    prediction = get(f"{url}/predict?key={quote(HOSTILE)}")[1]
    assert prediction["key"] == HOSTILE
    assert {HOSTILE, BROKEN} < set(prediction["types"])
    metrics_of(url)


def test_the_page_runs_no_script_but_its_own_and_holds_nothing_of_the_log(run, url):
    run.learn([9e3], [HOSTILE], [HOSTILE])
    policies = []
    for _ in range(2):
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            page, policy = response.read().decode(), response.headers["Content-Security-Policy"]
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
        assert page.count(f'nonce="{nonce}"') == 2
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert HOSTILE not in page
        policies.append(policy)
    assert policies[0] != policies[1]
    assert "innerHTML" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_state_shows_refused_records_without_what_they_held(run, url):
    for i in range(30):
        run.stream.dead_letters.add("bad time", f"fault {i}", "idle", i, b"secret")
    run.watchers[0].__self__._looked_at = -math.inf
    run.learn([], [], [])
    letters = get(f"{url}/state")[1]["dead_letters"]
    assert letters["total"] == 30
    assert letters["reasons"] == {"bad time": 30}
    assert [letter["detail"] for letter in letters["newest"]] == [f"fault {i}" for i in range(29, 9, -1)]
    assert set(letters["newest"][0]) == {"time", "reason", "detail", "partition", "position"}
    assert "secret" not in json.dumps(letters)


def test_newest_events_come_with_the_probability_of_their_type(run, url):
    scores = run.learn([5e3, 5.1e3], ["b", "a"], ["ann", "new"])
    newest = get(f"{url}/state")[1]["newest"]
    likely = np.exp(scores[:, Score._fields.index("type_log_probability")])
    assert newest[0] == {"time": 5.1e3, "key": "new", "type": "a", "likely": pytest.approx(likely[1])}
    assert newest[1] == {"time": 5.0e3, "key": "ann", "type": "b", "likely": pytest.approx(likely[0])}


def test_types_come_by_frequency_with_their_scores(run, url):
    run.learn([5e3 + i for i in range(60)], ["c"] * 60, ["ann"] * 60)
    types = get(f"{url}/state")[1]["by_type"]
    scores = run.recorder.scores.type_scores()
    assert [kind["name"] for kind in types] == ["c", "b", "a"]
    assert types[0]["share"] == pytest.approx(60 / scores["scored"].sum())
    assert types[0]["type_error"] == pytest.approx(scores["type_error"][2])
    assert types[0]["type_log_loss"] == pytest.approx(scores["type_log_loss"][2])


def test_a_run_without_events_has_a_state_and_metrics_too(tmp_path):
    with still_run(tmp_path) as run, serve(run, port=0) as server:
        state = get(f"{server.url}/state")[1]
        assert state["events"] == 0
        assert state["scores"]["all"]["log_likelihood"] is None
        assert state["history"]["rows"] == state["newest"] == state["by_type"] == []
        found = metrics_of(server.url)
        assert found["streamwise_events_total",] == 0
        assert ("streamwise_log_likelihood", "all") not in found
        assert get(f"{server.url}/health")[1]["seconds_since_last_event"] is None


def test_history_goes_on_after_a_resumption(tmp_path):
    settings = event_model_class("poisson").Config()
    config = IngestConfig(
        ("synthetic:poisson?events=3000",), settings, model="poisson", out=tmp_path / "run", interval=100
    )
    ingest(dataclasses.replace(config, events=1000), display=Quiet, stop=StopRequest())
    seen = {}

    def on_start(run):
        with serve(run, port=0) as server:
            seen.update(get(f"{server.url}/state")[1])

    ingest(config, display=Quiet, stop=StopRequest(), on_start=on_start)
    steps = [row[0] for row in seen["history"]["rows"]]
    assert steps == list(range(100, seen["events"] // 100 * 100 + 1, 100))
    assert len(steps) >= 10


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1000])
def test_thinned_rows_are_bounded_even_and_end_with_the_newest(count):
    rows = Thinned(64)
    for step in range(count):
        rows.add((step,))
    kept = [row[0] for row in rows.all()]
    assert len(kept) <= 64
    assert len(kept) >= min(count, 32)
    assert kept[-1:] == ([count - 1] if count else [])
    assert len(set(np.diff(kept[:-1]))) <= 1
