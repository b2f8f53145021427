"""Sources by URL: what each part means, and what is said about a URL that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from brokers import kafka_broker, mock_kafka

from streamwise.streams import UsageError
from streamwise.streams.event_stream import EventStream
from streamwise.streams.files import FileSource
from streamwise.streams.pipes import StdinSource
from streamwise.streams.sources import SCHEMES, divided, open_dead_letters, open_source, resolved_url
from streamwise.streams.synthetic import SyntheticSource

LOG = b"ts;who;did\n7;ann;view\n8;bob;buy\n"


def events(source):
    return [event[:3] for event in EventStream([source])]


def test_a_file_with_all_its_parameters(tmp_path):
    path = tmp_path / "odd name?.csv"
    path.write_bytes(LOG)
    url = f"file:{path}?time=ts&key=who&type=did&delimiter=%3B&unit=s&features=ts"
    source = open_source(url)
    assert isinstance(source, FileSource)
    assert events(source) == [(7.0, "view", "ann"), (8.0, "buy", "bob")]


def test_a_question_mark_in_a_glob_begins_no_parameters(tmp_path):
    for i in range(3):
        (tmp_path / f"part{i}.jsonl").write_text(json.dumps({"time": i, "type": "a", "key": "k"}) + "\n")
    (tmp_path / "part10.jsonl").write_text("")
    assert len(events(open_source(f"file:{tmp_path}/part?.jsonl"))) == 3
    assert len(events(open_source(f"file://{tmp_path}/part?.jsonl?unit=s"))) == 3


def test_other_schemes_open_their_sources():
    assert isinstance(open_source("synthetic:poisson?events=10"), SyntheticSource)
    assert len(events(open_source("synthetic:renewal?events=10&keys=2"))) == 10
    assert isinstance(open_source("stdin:?format=csv"), StdinSource)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("events.csv", r"no source of events\. Write file:PATH"),
        ("file:", r"file: names no file"),
        ("kafak://b/t", r"Did you mean 'kafka'\?"),
        ("file:x.csv?tiem=ts", r"unknown parameter 'tiem'\. Did you mean 'time'\?"),
        ("file:x.csv?unit=hours", r"'hours' is no unit of time"),
        ("file:x.csv?time=a&time=b", r"time is given twice"),
        ("file:x.csv?format=xml", r"format is 'xml'; choose one of: csv, jsonl, parquet"),
        ("file:x.csv?speed=fast", r"speed is 'fast'; give a number"),
        ("file:x.csv?speed=-1", r"speed is '-1'; give a number"),
        ("synthetic:hawks", r"Did you mean 'hawkes'"),
        ("synthetic:hawkes?keys=many", r"synthetic:hawkes\?keys=many: .*keys"),
        ("stdin:?speed=3", r"unknown parameter 'speed'"),
        ("kafka://broker", r"write kafka://HOST:PORT"),
        ("kafka://broker/a/b", r"write kafka://HOST:PORT"),
        ("kafka://broker/t?start=noon", r"start is 'noon'; give a number"),
        ("redis://host:port/s", r"write redis://HOST:PORT/STREAM"),
        ("redis://host", r"write redis://HOST:PORT/STREAM"),
    ],
)
def test_a_wrong_url_is_explained_in_a_line(url, said):
    with pytest.raises(UsageError, match=said) as error:
        open_source(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["kafka://me:s3cret@broker/t", "redis://:s3cret@host/s", "redis://me:s3cret@host/s"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url):
    for opened in (open_source, open_dead_letters):
        with pytest.raises(UsageError) as error:
            opened(url)
        assert "s3cret" not in str(error.value)


def test_a_path_is_offered_as_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.csv").write_bytes(LOG)
    with pytest.raises(UsageError, match=r"write file:events\.csv"):
        open_source("events.csv")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_told_of_where_users_look(scheme):
    root = Path(__file__).parents[2]
    with pytest.raises(UsageError) as error:
        open_source("nonsense")
    texts = {
        "the error for a wrong URL": str(error.value),
        "docs/events.md": (root / "docs/events.md").read_text(encoding="utf-8"),
        "README.md": (root / "README.md").read_text(encoding="utf-8"),
        "the help of ingest": (root / "runs/ingest_config.py").read_text(encoding="utf-8"),
    }
    named = scheme.removesuffix("s") if scheme == "rediss" else scheme  # the same source, by TLS
    assert [where for where, text in texts.items() if f"{named}:" not in text] == []


def test_a_url_means_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved_url("file:a/../b.csv?unit=ms") == f"file:{tmp_path}/b.csv?unit=ms"
    kafka = resolved_url("kafka://b:1/t?config=secret%20ones.properties&start=latest&schema=/s.json")
    assert kafka == f"kafka://b:1/t?config={tmp_path}/secret%20ones.properties&start=latest&schema=/s.json"
    for name in ("f", "file", "ile:f"):  # which are in the scheme, too
        assert resolved_url(f"file:{name}?format=csv") == f"file:{tmp_path}/{name}?format=csv"
    for url in ("synthetic:hawkes?events=3", "redis://h/s", "stdin:"):
        assert resolved_url(url) == url
    with pytest.raises(UsageError):
        resolved_url("nonsense:")


def test_refused_records_can_go_to_a_topic(tmp_path):
    from streamwise.agents import PoissonConfig
    from streamwise.runs.ingest import ingest
    from streamwise.runs.ingest_config import IngestConfig

    (tmp_path / "log.jsonl").write_text('{"time": 1, "type": "a", "key": "k"}\nnonsense\n{"time": 2}\n')
    with kafka_broker() as broker:
        topic = f"kafka://{broker.address}/refused"
        broker.create_topic("refused")
        source = f"file:{tmp_path / 'log.jsonl'}"
        ingest(
            IngestConfig(
                (source,), PoissonConfig(), model="poisson", out=tmp_path / "run", dead_letters=topic
            )
        )
        again = open_source(f"{topic}?time=time&type=reason&key=partition", until_end=True)
        found = [event.type for event in EventStream([again], until_end=True)]
    lines = (tmp_path / "run" / "dead_letters.jsonl").read_text().splitlines()
    assert found == [json.loads(line)["reason"] for line in lines] == ["malformed", "missing field"]


def test_a_topic_that_does_not_exist_is_named():
    with mock_kafka() as brokers, pytest.raises(UsageError, match="has no topic 'nowhere'"):
        open_source(f"kafka://{brokers}/nowhere")


def test_a_glob_falls_into_its_files_with_its_parameters(tmp_path):
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text("time,type,key\n")
    url = f"file:{tmp_path}/?.csv?unit=s"
    assert divided(url) == [f"file:{tmp_path}/{name}?unit=s" for name in ("a.csv", "b.csv")]
    assert divided(f"file:{tmp_path}/a.csv") == [f"file:{tmp_path}/a.csv"]
    assert divided("kafka://localhost:1/clicks") == ["kafka://localhost:1/clicks"]
    with pytest.raises(UsageError, match="no file matches"):
        divided(f"file:{tmp_path}/*.jsonl")


def test_a_source_that_another_process_reads_is_not_even_opened():
    source = open_source("kafka://127.0.0.1:1/clicks?config=nowhere", only=())
    assert (source.name, source.finished, source.partitions) == ("kafka://127.0.0.1:1/clicks", True, ())
    assert source.poll(10, 1.0, set()) == []
