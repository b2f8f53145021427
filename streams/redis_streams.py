"""Redis Streams as a source of records."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from streamwise.streams.decode import JsonDecoder, RowDecoder
from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import Decoded, Records
from streamwise.streams.fields import Fields
from streamwise.streams.refusals import MISSING_FIELD, Unreadable

__all__ = ["RedisSource"]

_logger = logging.getLogger("streamwise")

_BEGINNING = "0-0"
_ID = re.compile(r"\d{1,20}(-\d{1,20})?")
_LAST_SEQUENCE = 2**64 - 1  # of a millisecond
_ANSWER_SECONDS = 5.0
_BLOCK_SECONDS = 1.0  # less than an answer may take
_PAUSE_SECONDS = 0.1  # between attempts to reach a server that is away
_COUNTS_KEPT = 100_000


class RedisSource:
    """The entries of a Redis stream, its one partition; a position is the id of the last entry read.

    An entry's fields are the record, or with json_field="data" the JSON in that field is. start: "earliest",
    "latest", the id of an entry to begin after, such as "1700000000000-0", or milliseconds since 1970 for the
    first entry from then on; for a source without a position. Its first poll also gives `Records` without
    values, so that a checkpoint knows the start even if nothing has happened yet. until_end: finished once
    the stream has been read to where it ended at the first poll. A stream that does not exist is waited for,
    with a warning, or with until_end refused. Where the entries that come next were trimmed away, or the
    server has lost some, a warning says so, and the next that is there follows.

    password_env: the variable of the environment that holds the password. group: the consumer group whose
    last-delivered id shows, after `commit`, how far the stream was learned; nothing is read through it.
    connect_seconds: how long the first answer may take; later outages are waited out.

    Raises UsageError for a server that does not answer or refuses the login, a key that holds no stream, and
    a bad option.
    """

    def __init__(
        self,
        host: str,
        port: int,
        stream: str,
        fields: Fields,
        *,
        db: int = 0,
        tls: bool = False,
        username: str | None = None,
        password_env: str | None = None,
        json_field: str | None = None,
        start: str = "earliest",
        until_end: bool = False,
        group: str = "streamwise",
        connect_seconds: float = 10.0,
    ) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise UsageError("Redis Streams need redis-py; pip install 'streamwise[redis]'.") from None
        self.name = f"{'rediss' if tls else 'redis'}://{host}:{port}/{stream}"
        self.partitions: Sequence[str] = (stream,)
        self.finished = False
        self._stream, self._group, self._until_end = stream, group, until_end
        self._start = _checked_start(start, self.name)
        self._json_field = json_field
        self._decoder: JsonDecoder | RowDecoder = (
            RowDecoder(fields) if json_field is None else JsonDecoder(fields)
        )
        self._faults = redis.exceptions
        self._client: Any = redis.Redis(
            host=host,
            port=port,
            db=db,
            username=username,
            password=_password(password_env, self.name),
            ssl=tls,
            protocol=2,  # 3 has other shapes
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),  # a poll tries again
        )
        self._last: str | None = None  # the id of the last entry read, once it is known
        self._sought = False
        self._end: str | None = None  # the last id at the first poll, until it has been read
        self._at_end = False
        self._opened = False
        self._read: int | None = None  # how many entries of the stream's whole life have been read, if known
        self._reads: deque[tuple[str, int | None]] = deque(maxlen=_COUNTS_KEPT)  # the same at earlier ids
        self._connect(connect_seconds)

    def seek(self, positions: dict[str, Any]) -> None:
        """Go on after this id; before the first poll. Raises UsageError if it belongs to another stream."""
        for name, position in positions.items():
            if name != self._stream:
                raise UsageError(
                    f"{self.name}: the position belongs to a stream {name!r}; give the one that the run was "
                    "started with."
                )
            self._last, self._sought = str(position), True

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return up to `limit` records, waiting up to `timeout` seconds for the first."""
        if self.finished:
            return []
        if self._stream in paused:
            time.sleep(timeout)
            return []
        try:
            if not self._opened:
                begun = self._open()
                if begun is not None:
                    return [begun]
            block = int(min(timeout, _BLOCK_SECONDS) * 1000.0)
            answer = self._client.xread({self._stream: self._last}, count=limit, block=block or None)
        except self._faults.RedisError as error:
            self._heed(error)
            time.sleep(min(timeout, _PAUSE_SECONDS))
            return []
        entries = answer[0][1] if answer else []
        self._at_end = len(entries) < limit
        if entries:
            self._last = entries[-1][0].decode()
            if self._read is not None:
                self._read += len(entries)
            self._reads.append((self._last, self._read))
        if self._until_end:
            self.finished = not entries or _order(self._last) >= _order(self._end)
        if not entries:
            return []
        positions = [entry_id.decode() for entry_id, _ in entries]
        values = [self._value(fields) for _, fields in entries]
        return [Records(self._stream, values, positions, self._last, time.monotonic())]

    def decode(self, records: Records) -> Decoded:
        """Read the values; never raises for anything that a record holds."""
        return self._decoder.decode(records.values)

    def at_end(self, partition: str) -> bool:
        """Whether the last read found less than it asked for."""
        return self._at_end

    def commit(self, positions: dict[str, Any]) -> None:
        """Set the group's last-delivered id, and how many entries that is, where the server keeps count."""
        position = positions.get(self._stream)
        if position is None:
            return
        while self._reads and _order(self._reads[0][0]) < _order(position):
            self._reads.popleft()
        read = self._reads[0][1] if self._reads and self._reads[0][0] == position else None
        more = [] if read is None else ["ENTRIESREAD", read]
        try:
            try:
                self._client.execute_command("XGROUP", "SETID", self._stream, self._group, position, *more)
            except self._faults.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self._client.execute_command("XGROUP", "CREATE", self._stream, self._group, position, *more)
        except self._faults.RedisError as error:
            _logger.debug("%s: the position was not published: %s", self.name, type(error).__name__)

    def lag(self) -> int | None:
        """Return how many entries are not polled yet, or None if the server does not answer or keep count.

        Entries deleted from the middle of the stream may be counted.
        """
        try:
            info = self._info()
        except self._faults.RedisError:
            return None
        if self._last is None or not info:
            return None
        if _order(self._last) >= _order(info["last-generated-id"]):
            self._read = info.get("entries-added")
            return 0
        added = info.get("entries-added")
        return None if added is None or self._read is None else max(0, int(added) - self._read)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _connect(self, seconds: float) -> None:
        """Wait for a first answer, and see that the key holds a stream."""
        started = time.monotonic()
        while True:
            try:
                if not self._info():
                    self._miss_stream()
                return
            except self._faults.RedisError as error:
                self._heed(error)
                if time.monotonic() - started > seconds:
                    raise UsageError(
                        f"{self.name}: no server has answered within {seconds:g} s ({type(error).__name__}); "
                        "start it or mend the address."
                    ) from None
            time.sleep(_PAUSE_SECONDS)

    def _miss_stream(self) -> None:
        if not self._until_end:
            warnings.warn(f"{self.name}: there is no such stream yet; waiting for it.", stacklevel=4)
            return
        _, names = self._client.scan(0, count=1000)
        hint = meant(self._stream, [name.decode("utf-8", "replace") for name in names])
        raise UsageError(f"{self.name}: there is no such stream, and nothing to read to its end.{hint}")

    def _open(self) -> Records | None:
        """Find out where to start and end; return `Records` that say so if `seek` did not."""
        info = self._info()
        newest = info.get("last-generated-id", _BEGINNING)
        added = info.get("entries-added")
        self._end = newest
        if self._last is None:
            self._last = newest if self._start == "latest" else self._start
        if self._sought and info:
            self._read = self._published(self._last)
            self._look_for_losses(info)
        if self._read is None and added is not None:
            if _order(self._last) >= _order(newest):
                self._read = int(added)
            elif self._last == _BEGINNING:
                self._read = int(added) - int(info["length"])
        elif not info and not self._sought:
            self._read = 0
        self._opened = True
        self.finished = self._until_end and _order(self._last) >= _order(newest)
        if self._sought:
            return None
        return Records(self._stream, [], [], self._last, time.monotonic())

    def _look_for_losses(self, info: dict[str, Any]) -> None:
        """Warn of entries after the position that are gone."""
        last = self._last or _BEGINNING
        newest, first = info["last-generated-id"], info["first-entry"]
        if _order(newest) < _order(last):
            warnings.warn(
                f"{self.name} ends at {newest}, before {last}, where this run goes on: the server has lost "
                f"entries, or the stream was made anew; entries up to {last} will not be read.",
                stacklevel=4,
            )
            return
        if _order(newest) == _order(last) or (first is not None and _order(first) <= _order(last)):
            return  # trimming takes the oldest, so what follows an entry that is there is there as well
        where = f"going on at {first}" if first is not None else "nothing is left to read"
        added = info.get("entries-added")  # from version 7 on
        gone = None if added is None else int(added) - int(info["length"])
        if gone is None or self._read is None:
            lost = "" if gone == 0 else "entries may have been"
        else:
            lost = f"{gone - self._read:,} entries were" if gone > self._read else ""
            self._read = max(self._read, gone)
        if lost:
            warnings.warn(
                f"{self.name}: {lost} trimmed after {last} before they were read; {where}.", stacklevel=4
            )

    def _published(self, position: str) -> int | None:
        """Return how many entries had been read at a position, as `commit` left it with the server."""
        for group in self._client.xinfo_groups(self._stream):
            if group["name"].decode() == self._group and group["last-delivered-id"].decode() == position:
                return None if group.get("entries-read") is None else int(group["entries-read"])
        return None

    def _info(self) -> dict[str, Any]:
        """Return what the server knows of the stream, ids as text; nothing if there is none."""
        try:
            info: dict[str, Any] = self._client.xinfo_stream(self._stream)
        except self._faults.ResponseError as error:
            if "no such key" in str(error).lower():
                return {}
            raise
        info["last-generated-id"] = info["last-generated-id"].decode()
        info["first-entry"] = info["first-entry"][0].decode() if info["first-entry"] else None
        return info

    def _value(self, fields: dict[bytes, bytes]) -> Any:
        """Return what the decoder reads of an entry."""
        if self._json_field is None:
            return {name.decode("utf-8", "backslashreplace"): value for name, value in fields.items()}
        value = fields.get(self._json_field.encode())
        return Unreadable(MISSING_FIELD, f"there is no {self._json_field[:40]}") if value is None else value

    def _heed(self, error: Exception) -> None:
        """Raise UsageError for what no waiting can mend; anything else passes."""
        faults = self._faults
        text = str(error)
        if isinstance(error, faults.AuthenticationError | faults.AuthorizationError) or text.startswith(
            ("WRONGPASS", "NOAUTH")
        ):
            raise UsageError(
                f"{self.name}: the server refuses the login; give user=NAME, and with password_env=VARIABLE "
                "the name of the environment's variable that holds the password."
            ) from None
        if text.startswith("WRONGTYPE"):
            raise UsageError(f"{self.name}: that key holds no stream; name one that does.") from None
        if isinstance(error, faults.NoPermissionError):
            raise UsageError(
                f"{self.name}: this user may not read it; grant XREAD and XINFO on the stream."
            ) from None
        passing = (faults.ConnectionError, faults.TimeoutError, faults.TryAgainError, faults.ClusterDownError)
        if isinstance(error, (*passing, faults.MasterDownError)) or text.startswith(("UNBLOCKED", "LOADING")):
            _logger.debug("%s: %s", self.name, type(error).__name__)
            return
        raise UsageError(
            f"{self.name}: the server refuses to be read: {' '.join(text.split())[:200]}"
        ) from None


def _password(variable: str | None, where: str) -> str | None:
    if variable is None:
        return None
    password = os.environ.get(variable)
    if not password:
        raise UsageError(f"{where}: the variable {variable!r} of the environment holds no password; set it.")
    return password


def _checked_start(start: str, where: str) -> str:
    """Return the id after which to start, or "latest"."""
    if start == "latest":
        return start
    if start == "earliest":
        return _BEGINNING
    if not _ID.fullmatch(start):
        raise UsageError(
            f"{where}: start is {start!r}; give earliest, latest, an entry's id such as 1700000000000-0, or "
            "milliseconds since 1970."
        )
    if "-" in start:
        return start
    before = int(start) - 1
    return _BEGINNING if before < 0 else f"{before}-{_LAST_SEQUENCE}"


def _order(entry_id: str | None) -> tuple[int, int]:
    """Return an id as numbers, which compare as the server compares ids."""
    milliseconds, _, sequence = (entry_id or _BEGINNING).partition("-")
    return int(milliseconds), int(sequence or 0)
