"""Where checkpoints are kept: folders of a path or of a URL, each of them whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from streamwise.streams import UsageError

__all__ = [
    "LocalStorage",
    "RemoteStorage",
    "Storage",
    "open_storage",
    "replace_durably",
    "sync_directory",
    "write_durably",
]


class Storage(Protocol):
    """Folders of small files, and single files beside them. Every method may raise OSError."""

    def names(self) -> list[str]:
        """Return the whole folders, in alphabetical order."""
        ...

    def write(self, name: str, files: dict[str, bytes]) -> None:
        """Write a folder so that it is listed only when all of it is there; one of that name is replaced."""
        ...

    def read(self, name: str, file: str) -> bytes:
        """Return the content of one file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a folder."""
        ...

    def put(self, file: str, content: bytes) -> None:
        """Write a single file, or replace it: whoever reads it finds the old content or the new."""
        ...

    def get(self, file: str) -> bytes | None:
        """Return the content of a single file; None if there is none."""
        ...

    def size(self, name: str) -> int:
        """Return the bytes of a folder's files."""
        ...

    def describe(self, name: str) -> str:
        """Return the folder as a user would name it."""
        ...


def open_storage(location: str | Path) -> Storage:
    """Return the storage at a path or a URL (`s3://bucket/folder`, whatever `pyarrow.fs` knows).

    Raises UsageError for a URL that pyarrow cannot use, or one with a password in it.
    """
    text = str(location)
    if "://" not in text or text.startswith("file://"):
        return LocalStorage(Path(text.removeprefix("file://")))
    import pyarrow as pa
    from pyarrow import fs

    parts = urlsplit(text)
    if parts.username or parts.password:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname}: give the key by the environment (AWS_ACCESS_KEY_ID, ...), "
            "not in the URL, which is written to config.toml."
        )
    try:
        filesystem, root = fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UsageError(f"{text} cannot be used as storage: {str(error).splitlines()[0]}.") from None
    return RemoteStorage(filesystem, root, text)


class LocalStorage:
    """Folders below a path: written aside, synced and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Return the whole folders, in alphabetical order."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name[0] != ".")

    def write(self, name: str, files: dict[str, bytes]) -> None:
        """Write a folder."""
        directory = self.root / name
        temporary = self.root / f".{name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file, content in files.items():
            write_durably(temporary / file, content)
        sync_directory(temporary)
        replaced = self.root / f".{name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if directory.exists():
            directory.rename(replaced)
        temporary.rename(directory)
        sync_directory(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def mend(self) -> None:
        """Give a folder its name back whose writer was killed between two renames; while nobody writes."""
        for replaced in self.root.glob(".*.replaced"):
            directory = self.root / replaced.name[1:].removesuffix(".replaced")
            if not directory.exists():
                replaced.rename(directory)

    def read(self, name: str, file: str) -> bytes:
        """Return the content of one file."""
        return (self.root / name / file).read_bytes()

    def remove(self, name: str) -> None:
        """Remove a folder."""
        shutil.rmtree(self.root / name)

    def put(self, file: str, content: bytes) -> None:
        """Write a single file, or replace it."""
        self.root.mkdir(parents=True, exist_ok=True)
        replace_durably(self.root / file, content)

    def get(self, file: str) -> bytes | None:
        """Return the content of a single file; None if there is none."""
        path = self.root / file
        return path.read_bytes() if path.is_file() else None

    def size(self, name: str) -> int:
        """Return the bytes of a folder's files."""
        return sum(file.stat().st_size for file in (self.root / name).iterdir())

    def describe(self, name: str) -> str:
        """Return the folder as a user would name it."""
        return str(self.root / name)


class RemoteStorage:
    """Folders of a `pyarrow.fs` file system, which may not rename: meta.json comes last."""

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.url = url.rstrip("/")

    def names(self) -> list[str]:
        """Return the whole folders, in alphabetical order."""
        from pyarrow import fs

        selector = fs.FileSelector(self.root, allow_not_found=True, recursive=True)
        files = [info.path for info in self.filesystem.get_file_info(selector) if info.is_file]
        return sorted({path.split("/")[-2] for path in files if path.endswith("/meta.json")})

    def write(self, name: str, files: dict[str, bytes]) -> None:
        """Write a folder."""
        directory = f"{self.root}/{name}"
        self.filesystem.create_dir(directory, recursive=True)
        for file in sorted(files, key=lambda file: file == "meta.json"):
            with self.filesystem.open_output_stream(f"{directory}/{file}") as stream:
                stream.write(files[file])

    def read(self, name: str, file: str) -> bytes:
        """Return the content of one file."""
        with self.filesystem.open_input_file(f"{self.root}/{name}/{file}") as stream:
            return bytes(stream.read())

    def remove(self, name: str) -> None:
        """Remove a folder."""
        self.filesystem.delete_dir(f"{self.root}/{name}")

    def put(self, file: str, content: bytes) -> None:
        """Write a single file, or replace it: object stores show it when it is whole."""
        self.filesystem.create_dir(self.root, recursive=True)
        with self.filesystem.open_output_stream(f"{self.root}/{file}") as stream:
            stream.write(content)

    def get(self, file: str) -> bytes | None:
        """Return the content of a single file; None if there is none."""
        from pyarrow import fs

        path = f"{self.root}/{file}"
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_file(path) as stream:
            return bytes(stream.read())

    def size(self, name: str) -> int:
        """Return the bytes of a folder's files."""
        from pyarrow import fs

        infos = self.filesystem.get_file_info(fs.FileSelector(f"{self.root}/{name}"))
        return sum(info.size for info in infos)

    def describe(self, name: str) -> str:
        """Return the folder as a user would name it."""
        return f"{self.url}/{name}"


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file aside and rename it: whoever reads it finds the old content or the new."""
    temporary = path.with_name(f".{path.name}.partial")
    write_durably(temporary, content)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
