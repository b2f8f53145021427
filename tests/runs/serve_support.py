"""What tests of the server share: runs to be asked about, a server beside one, and who asks."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager

import pytest

from streamwise.agents import event_model_class
from streamwise.runs.event_recorder import EventRecorder
from streamwise.runs.ingest import LiveRun
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.serve import serve
from streamwise.streams.dead_letters import DeadLetterLog
from streamwise.streams.event_stream import EventBatch, EventStream

TIMEOUT_SECONDS = 60.0


def get(url, *, method="GET", host=None, raw=False):
    """Return the status and body of a response, which is checked to be JSON unless `raw`."""
    request = urllib.request.Request(url, method=method, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            status, body, headers = response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        status, body, headers = error.code, error.read(), error.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    if raw:
        return status, body.decode()
    assert headers["Content-Type"] == "application/json"
    return status, json.loads(body, parse_constant=pytest.fail)


class Idle:
    """A source without events."""

    name, partitions, finished = "idle", (), False

    def lag(self):
        return 7

    def close(self):
        pass


@contextmanager
def still_run(folder, model="counts"):
    """A run whose loop is the test: `learn` teaches it some events, as one poll would."""
    kind = event_model_class(model) if isinstance(model, str) else model
    config = IngestConfig(("synthetic:hawkes",), kind.Config(), model=kind.name, out=folder, interval=10)
    stream = EventStream([Idle()], DeadLetterLog())
    with ExitStack() as stack:
        learner = kind(config.settings)
        stack.callback(learner.close)
        recorder = stack.enter_context(EventRecorder(folder, learner, stream, interval=10, time_unit=1.0))
        run = LiveRun(config, learner, stream, recorder, threading.Lock())

        def learn(times, types, keys):
            count = len(times)
            polled = [time.monotonic()] * count
            batch = EventBatch(times, ["idle"] * count, range(count), types, keys, None, polled)
            with run.lock:
                scores = learner.learn_many(times, types, keys)
                recorder.record(batch, scores)
                for saw in run.watchers:
                    saw(batch, scores)
            return scores

        run.learn = learn
        yield run


@pytest.fixture
def run(tmp_path):
    with still_run(tmp_path) as run:
        yield run


@pytest.fixture
def url(run):
    with serve(run, port=0) as server:
        for start in range(0, 40, 10):
            times = [100.0 * i for i in range(start, start + 10)]
            run.learn(times, ["a", "b"] * 5, ["ann", "bob", "eve", "ann", "bob"] * 2)
        yield server.url
