"""The record of a chunk, as it is kept and written: its fields, and how contents are put into it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamwise.memory.chunks import stream_code

__all__ = [
    "CHUNK",
    "DROP",
    "StoredAs",
    "fill",
    "is_whole",
    "record_type",
    "records_of",
    "set_stream",
]

StoredAs = Literal["float32", "float16"]

CHUNK, DROP = 1, 2  # kinds of records; 0 would be what an unwritten page of the disk says
_ALIGNMENT = 64


def record_type(chunk_length: int, width: int, stored_as: StoredAs) -> np.dtype[Any]:
    """Return the type of a record: 136 bytes about the chunk, its summary, its contents.

    What the first bytes say can be read without touching the contents. The checksum is a CRC-32 of all that
    comes after it: it is there against torn writes and failing disks, of which it misses one in 2^32, and is
    several times as fast as a cryptographic one, which nobody who could forge a chunk would be stopped by
    either. chunk_length: steps. width: numbers in a step.
    """
    fields: list[Any] = [
        ("checksum", "<u4"), ("kind", "<u4"), ("position", "<u8"), ("id", "<u8"), ("slot", "<u8"),
        ("stream", "<i8"), ("name", "S32"), ("episode", "<i8"), ("first", "<f8"), ("last", "<f8"),
        ("covered", "<u8"), ("priority", "<f8"), ("steps", "<u4"), ("encoder_version", "<u4"),
        ("origin", "<u8"), ("sequence", "<u8"), ("summary", "<f4", (width,)),
        ("contents", np.dtype(stored_as).newbyteorder("<"), (chunk_length, width)),
    ]  # fmt: skip
    padding = -np.dtype(fields).itemsize % _ALIGNMENT
    return np.dtype([*fields, ("padding", "u1", (padding,))])


def is_whole(record: Any, position: int) -> bool:
    """Whether a record that was read is the one of this position, and its checksum holds."""
    data = memoryview(record.tobytes())
    return (
        int(record["position"]) == position
        and record["kind"] in (CHUNK, DROP)
        and zlib.crc32(data[4:]) == record["checksum"]
    )


def fill(record: NDArray[Any], contents: ArrayLike, summary: ArrayLike | None) -> int:
    """Put contents, float [steps, width], and their summary into a record [1]; return how many steps.

    summary: [width], or None for the mean. Raises ValueError if something does not fit or is not finite.
    """
    given, stored = np.asarray(contents, np.float32), record["contents"][0]
    _check_shape(given, *stored.shape)
    steps = len(given)
    with np.errstate(over="ignore"):
        stored[:steps] = given
    stored[steps:] = 0.0
    _check_finite(stored, stored.dtype)
    if summary is None:
        record["steps"], record["summary"] = steps, np.add.reduce(given, 0, np.float64) / steps
        return steps
    found, width = np.asarray(summary, np.float32), stored.shape[1]
    if found.shape != (width,) or not _all_finite(found):
        raise ValueError(f"the summary of a chunk has shape {list(found.shape)}; use {width} finite numbers.")
    record["steps"], record["summary"] = steps, found
    return steps


def records_of(
    chunks: NDArray[np.float32], times: Sequence[float], stream: int | str, sequence: int, kind: np.dtype[Any]
) -> Any:
    """Return records [n] of chunks, float32 [n, steps, width], of one stream; all but who and where they are.

    times: of each, its first and its last. sequence: of the first. Raises ValueError as `fill` does.
    """
    _check_shape(chunks[0], *kind["contents"].shape)
    steps = chunks.shape[1]
    records: Any = np.zeros(len(chunks), kind)
    with np.errstate(over="ignore"):
        records["contents"][:, :steps] = chunks
    stored_as = kind["contents"].base
    _check_finite(records["contents"], stored_as)
    _check_finite(np.asarray(times), stored_as)
    set_stream(records, stream)
    records["first"] = records["last"] = times
    records["covered"] = records["steps"] = steps
    records["sequence"] = sequence + np.arange(len(chunks))
    records["summary"] = np.add.reduce(chunks, 1, np.float64) / steps
    return records


def set_stream(records: NDArray[Any], stream: int | str) -> None:
    """Say of which stream records are. Raises ValueError for what is no name and no number of 64 bits."""
    name = b""
    if isinstance(stream, str):
        name = stream.encode()
        if not 1 <= len(name) <= 32 or b"\0" in name:
            raise ValueError(f"stream is {stream!r}; use a name of 1 to 32 bytes without NUL, or a number.")
    records["stream"], records["name"] = stream_code(stream), name


def _check_shape(chunk: NDArray[np.float32], length: int, width: int) -> None:
    if chunk.ndim != 2 or chunk.shape[1] != width or not 1 <= len(chunk) <= length:
        raise ValueError(
            f"the contents of a chunk have shape {list(chunk.shape)}; use [steps, {width}] with 1 to "
            f"{length} steps."
        )


def _check_finite(numbers: NDArray[Any], stored_as: np.dtype[Any]) -> None:
    if not _all_finite(numbers):
        raise ValueError(
            f"the contents of a chunk are not finite as {stored_as.name}; look where they come from."
        )


def _all_finite(numbers: NDArray[Any]) -> bool:
    # Not `all`, the method, which goes through Python and takes twice as long.
    return bool(np.logical_and.reduce(np.isfinite(numbers), None))
