"""What the driver of a live system wrote down last: its status.json read back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from streamwise.runs.up_history import LATEST
from streamwise.runs.up_status import STATUS_FILE

__all__ = ["LinkStatus", "MemoryStatus", "ProcessStatus", "SharingStatus", "Status", "read_last_status"]


class LinkStatus(msgspec.Struct, frozen=True):
    """What a learner has exchanged with its shared memory."""

    received: int = 0
    sent: int = 0
    problem: str = ""


class SharingStatus(msgspec.Struct, frozen=True):
    """How a learner shares a memory."""

    link: LinkStatus | None = None


class ProcessStatus(msgspec.Struct, frozen=True):
    """How a learner is, or one of the workers of one."""

    name: str
    state: str
    step: int = 0
    per_second: float = 0.0
    score: dict[str, float] = {}
    lag: int | None = None
    restarts: int = 0
    memory: SharingStatus | None = None
    message: str = ""


class MemoryStatus(msgspec.Struct, frozen=True):
    """How a shared memory is; numbers are of its present life."""

    name: str
    state: str = "unknown"
    chunks: int = 0
    written: dict[str, int] = {}
    repeated: int = 0
    taken_back: int = 0
    given: int = 0
    restarts: int = 0


class Status(msgspec.Struct, frozen=True):
    """What the driver wrote last."""

    time: Annotated[float, msgspec.Meta(ge=0.0, lt=LATEST)]
    state: str
    learners: list[ProcessStatus]
    memories: list[MemoryStatus]


def read_last_status(path: Path) -> tuple[Status | None, str]:
    """Return what the driver of a system wrote last, or why that is not known."""
    file = path / STATUS_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Status), ""
    except FileNotFoundError:
        return None, f"{file} is missing; streamwise up {path} writes it anew"
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        return None, f"{file} is damaged ({why}); streamwise up {path} writes it anew"
