"""Where runs keep what they need to go on: the same on a path and on a file system of pyarrow's."""

from __future__ import annotations

import pytest
from pyarrow import fs

from streamwise.runs.storage import LocalStorage, RemoteStorage


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path):
    root = tmp_path / "not" / "there" / "yet"
    if request.param == "local":
        return LocalStorage(root)
    return RemoteStorage(fs.LocalFileSystem(), str(root), "test://root")


def test_single_files_are_put_replaced_and_got(storage):
    assert storage.get("config.toml") is None
    storage.put("config.toml", b"one")
    storage.put("config.toml", b"two")
    assert storage.get("config.toml") == b"two"
    assert storage.get("metrics.parquet") is None


def test_single_files_are_no_folders_and_folders_no_files(storage):
    storage.put("config.toml", b"x")
    storage.write("step-000000000001", {"state.safetensors": b"state", "meta.json": b"{}"})
    assert storage.names() == ["step-000000000001"]
    assert storage.get("step-000000000001") is None
    storage.remove("step-000000000001")
    assert storage.names() == []
    assert storage.get("config.toml") == b"x"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    storage.put("config.toml", b"old")
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        storage.put("config.toml", b"new")
    assert storage.get("config.toml") == b"old"
