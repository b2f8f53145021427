"""Checkpoints written in the background: a storage that fails loses nothing."""

from __future__ import annotations

import json
import threading
import time

import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs

from streamwise.agents import StreamQConfig
from streamwise.runs.checkpoint import Checkpoints
from streamwise.runs.config import RunConfig
from streamwise.runs.recorder import Recorder
from streamwise.runs.saver import SaveError, Saver
from streamwise.runs.storage import LocalStorage, RemoteStorage, open_storage
from streamwise.runs.train import resume, train
from streamwise.streams import UsageError


class Flaky(LocalStorage):
    """Fails to write while `failures` are left, as a full disk would; `gate` holds writes up."""

    def __init__(self, root, failures=0):
        super().__init__(root)
        self.failures = failures
        self.attempts = 0
        self.gate = threading.Event()
        self.gate.set()

    def write(self, name, files):
        self.gate.wait()
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        super().write(name, files)


def meta_of(recorder, step):
    recorder.step = step
    return {"position": {"step": step}, "recorder": recorder.state()}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("streamwise.runs.saver._FIRST_PAUSE_SECONDS", 0.01)


def make(tmp_path, storage, **options):
    recorder = Recorder(tmp_path / "run")
    return recorder, Saver(Checkpoints(storage), recorder, **options)


def test_a_save_waits_for_nothing_and_the_newest_state_wins(tmp_path):
    storage = Flaky(tmp_path / "checkpoints")
    recorder, saver = make(tmp_path, storage)
    storage.gate.clear()
    for step in range(1, 6):  # the first is under way, the last replaces those that wait
        saver.save({"x": torch.tensor([float(step)])}, meta_of(recorder, step))
        if step == 1:
            while saver._waiting is not None:
                time.sleep(0.001)
    assert saver.newly_durable() is None
    storage.gate.set()
    saver.close()
    checkpoints = Checkpoints(storage)
    assert checkpoints.names() == ["step-000000000001", "step-000000000005"]
    assert checkpoints.latest().state["x"].item() == 5.0
    assert saver.newly_durable() == {"step": 5}
    assert saver.newly_durable() is None


def test_a_checkpoint_that_is_to_be_kept_is_never_replaced(tmp_path):
    storage = Flaky(tmp_path / "checkpoints")
    recorder = Recorder(tmp_path / "run")
    saver = Saver(Checkpoints(storage, keep=1, keep_every=10), recorder)
    write = storage.write
    storage.write = lambda name, files: (time.sleep(0.002), write(name, files))
    for step in range(1, 41):
        saver.save({"x": torch.ones(1)}, meta_of(recorder, step))
    saver.close()
    steps = [int(name.removeprefix("step-")) for name in Checkpoints(storage).names()]
    assert steps == [10, 20, 30, 40]


def close_with(saver, storage):
    storage.gate.set()
    saver.close()


def test_a_storage_that_fails_for_a_while_is_tried_again_and_nothing_is_lost(tmp_path):
    storage = Flaky(tmp_path / "checkpoints", failures=3)
    storage.gate.clear()  # the warnings come while the test listens
    recorder, saver = make(tmp_path, storage)
    recorder.metrics.waiting.append({"step": 1, "value": 2.0})
    saver.save({"x": torch.ones(1)}, meta_of(recorder, 1), last=True)
    warning = r"step 1 could not be written \(.*No space left.*trying again"
    with pytest.warns(UserWarning, match=warning):
        close_with(saver, storage)
    assert storage.attempts == 4
    assert Checkpoints(storage).latest().meta["step"] == 1
    assert pq.read_table(tmp_path / "run" / "metrics.parquet").to_pylist() == [{"step": 1, "value": 2.0}]


def test_a_storage_that_stays_broken_fails_the_run_at_its_end_and_keeps_the_last_good(tmp_path):
    storage = Flaky(tmp_path / "checkpoints")
    recorder, saver = make(tmp_path, storage, patience_seconds=0.2)
    saver.save({"x": torch.ones(1)}, meta_of(recorder, 1))
    while saver.newly_durable() is None:
        time.sleep(0.001)
    storage.failures = 10**9
    saver.save({"x": torch.zeros(1)}, meta_of(recorder, 2))
    started = time.monotonic()
    with pytest.warns(UserWarning, match="trying again"), pytest.raises(SaveError, match="is of step 1"):
        saver.close()
    assert time.monotonic() - started < 5.0
    assert Checkpoints(storage).latest().meta["step"] == 1


def test_a_run_that_is_to_fail_at_once_does_so_at_its_next_save(tmp_path):
    storage = Flaky(tmp_path / "checkpoints", failures=10**9)
    recorder, saver = make(tmp_path, storage, fail_at_once=True)
    saver.save({"x": torch.ones(1)}, meta_of(recorder, 1))
    saver._thread.join()
    with pytest.raises(SaveError, match="none was written before"):
        saver.save({"x": torch.ones(1)}, meta_of(recorder, 2))
    assert storage.attempts == 1


def cartpole(tmp_path, name, **options):
    options = {"steps": 900, "checkpoint_every": 100, "agent": "stream-q", **options}
    settings = StreamQConfig(hidden_size=16, exploration_steps=200)
    return RunConfig("CartPole-v1", settings, out=tmp_path / name, **options)


def test_a_run_whose_checkpoints_go_to_a_url_resumes_from_there(tmp_path, monkeypatch):
    """A real pyarrow file system on loopback disk, whose network goes down now and then."""
    (tmp_path / "bucket").mkdir()
    outage = {"writes": 2}

    class Network(RemoteStorage):
        def write(self, name, files):
            if outage["writes"]:
                outage["writes"] -= 1
                raise OSError("When uploading: connection reset")
            super().write(name, files)

    def open_bucket(url):
        if not str(url).startswith("s3://"):
            return open_storage(url)
        root = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
        return Network(root, url.removeprefix("s3://"), url)

    for module in ("checkpoint", "config", "train"):
        monkeypatch.setattr(f"streamwise.runs.{module}.open_storage", open_bucket)
    config = cartpole(tmp_path, "run", storage="s3://experiments/one", steps=500)
    with pytest.warns(UserWarning, match="connection reset"):
        train(config)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert (tmp_path / "bucket/experiments/one/step-000000000500/meta.json").is_file()
    assert {"config.toml", "metrics.parquet"} <= {
        path.name for path in (tmp_path / "bucket/experiments/one").iterdir()
    }
    outage["writes"] = 1
    with pytest.warns(UserWarning, match="the last good one is of step 500"):
        assert resume(tmp_path / "run", steps=900).step == 900
    train(cartpole(tmp_path, "twin"))
    twin = Checkpoints.of(tmp_path / "twin").latest().state
    found = Checkpoints(RemoteStorage(fs.LocalFileSystem(), str(tmp_path / "bucket/experiments/one"), ""))
    assert all(torch.equal(found.latest().state[key], twin[key]) for key in twin)
    with pytest.raises(UsageError, match="holds another run's checkpoints"):
        train(cartpole(tmp_path, "other", storage="s3://experiments/one"))


def test_an_upload_that_breaks_off_is_not_taken_for_a_checkpoint(tmp_path):
    storage = RemoteStorage(fs.LocalFileSystem(), str(tmp_path), "file")
    checkpoints = Checkpoints(storage)
    checkpoints.save(1, {"x": torch.ones(1)}, {})
    checkpoints.save(2, {"x": torch.ones(1)}, {})
    (tmp_path / "step-000000000002" / "meta.json").unlink()
    assert checkpoints.latest().meta["step"] == 1


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s3://key:secret@bucket/folder", "give the key by the environment"),
        ("nonsense://bucket", "cannot be used as storage"),
    ],
)
def test_a_url_that_cannot_be_used_says_so_and_never_shows_its_password(url, complaint):
    with pytest.raises(UsageError, match=complaint) as error:
        open_storage(url)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_state_that_is_saved_is_that_of_the_moment_it_was_given(tmp_path):
    """The learner and the recorder go on while the copy waits to be written."""
    storage = Flaky(tmp_path / "checkpoints")
    recorder, saver = make(tmp_path, storage)
    storage.gate.clear()
    recorder.metrics.waiting.append({"step": 1, "value": 1.0})
    saver.save({"x": torch.ones(1)}, meta_of(recorder, 1))
    recorder.metrics.waiting.append({"step": 2, "value": 2.0})
    storage.gate.set()
    saver.close()
    meta = json.loads((tmp_path / "checkpoints/step-000000000001/meta.json").read_text())
    assert [row["step"] for row in meta["recorder"]["metrics"]["waiting"]] == [1]
