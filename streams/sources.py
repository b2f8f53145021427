"""Sources of events by URL."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from streamwise.streams.errors import UsageError, meant
from streamwise.streams.event import Decoded, Records, Source
from streamwise.streams.fields import Fields
from streamwise.streams.file_readers import Format
from streamwise.streams.files import FileSource
from streamwise.streams.pipes import StdinSource
from streamwise.streams.synthetic import SyntheticSource

__all__ = ["SCHEMES", "Unread", "divided", "open_dead_letters", "open_source", "resolved_url"]

SCHEMES = {  # and what is written after each
    "file": "PATH",
    "kafka": "//BROKER/TOPIC",
    "redis": "//HOST:PORT/STREAM",
    "rediss": "//HOST:PORT/STREAM",
    "stdin": "",
    "synthetic": "hawkes",
}
_QUERY = re.compile(r"\?(?=[A-Za-z_]+=)")  # a question mark in a glob is followed by something else


def open_source(
    url: str,
    *,
    follow: bool = False,
    until_end: bool = False,
    group: str = "streamwise",
    only: Collection[str] | None = None,
) -> Source:
    """Open a source of events.

    file:PATH?time=ts&type=action&key=user_id&unit=ms&features=price&speed=60&format=csv&delimiter=;
    kafka://BROKER[,BROKER]/TOPIC?start=earliest|latest|SECONDS&config=FILE.properties&decoder=avro&schema=FILE
    redis://HOST:PORT/STREAM?start=earliest|latest|ID&db=0&user=NAME&password_env=VARIABLE&json=FIELD
    stdin:?format=csv and synthetic:hawkes|poisson|renewal|drift?events=100000&keys=100&types=5&seed=0

    The parameters of fields (time, type, key, unit, features, version, versions, max_bytes) go with each but
    synthetic. follow: wait for more at the end of a file. until_end: read a broker's log only to where it
    ends now. group: under which brokers are told how far it was read. only: the partitions to read; of a
    source that has but one, it or none. Raises UsageError for everything that the user can mend.
    """
    scheme, rest, query = _parts(url)
    if only is not None and not only:
        return Unread(url)
    if scheme == "synthetic":
        try:
            return SyntheticSource.from_url_parts(rest, query)
        except UsageError as error:
            raise UsageError(f"{url}: {error}") from None
    fields, query = Fields.of(query, url)
    taken = _Query(url, query)
    if scheme in ("file", "stdin"):
        format_name, delimiter = taken.text("format"), taken.text("delimiter")
        if format_name is not None and format_name not in get_args(Format):
            raise UsageError(
                f"{url}: format is {format_name!r}; choose one of: {', '.join(get_args(Format))}."
            )
        options: dict[str, Any] = {"format": format_name, "delimiter": delimiter}
        if scheme == "stdin":
            taken.finish()
            return StdinSource(fields, **options)
        speed = taken.number("speed")
        taken.finish()
        return FileSource(rest, fields, speed=speed, follow=follow, **options)
    if scheme == "kafka":
        return _kafka(url, rest, fields, taken, until_end=until_end, group=group, only=only)
    return _redis(url, scheme, rest, fields, taken, until_end=until_end, group=group)


def open_dead_letters(url: str) -> Any:
    """Open kafka://BROKER/TOPIC?config=FILE for refused records; it has `write(line)` and `close()`."""
    from streamwise.streams.kafka_dead_letters import KafkaDeadLetters

    scheme, rest, query = _parts(url)
    brokers, _, topic = rest.removeprefix("//").partition("/")
    if scheme != "kafka" or not brokers or not topic or "@" in brokers:
        raise UsageError(
            f"dead letters go to kafka://HOST:PORT/TOPIC, not to {url.partition('@')[2] or url}."
        )
    taken = _Query(url, query)
    config = taken.text("config")
    taken.finish()
    return KafkaDeadLetters(brokers, unquote(topic), None if config is None else Path(config))


def resolved_url(url: str) -> str:
    """Return the URL as it means the same from any folder. Raises UsageError for what is no source's URL."""
    scheme, rest, _ = _parts(url)
    if scheme == "kafka":
        return re.sub(
            r"(?<=[?&])(config|schema)=([^&]+)",
            lambda found: f"{found[1]}={quote(os.path.abspath(os.path.expanduser(unquote(found[2]))))}",
            url,
        )
    if scheme != "file":
        return url
    after = url[url.index(rest, len("file:")) + len(rest) :]
    return f"file:{os.path.abspath(os.path.expanduser(rest))}{after}"


def divided(url: str) -> list[str]:
    """Return the URLs of the sources that one falls into: of a glob its files, of another itself.

    The partitions of each are its own to name. Raises UsageError for a glob that matches nothing.
    """
    scheme, rest, _ = _parts(url)
    path = os.path.expanduser(rest)
    if scheme != "file" or not glob.has_magic(path) or os.path.exists(path):
        return [url]
    files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
    if not files:
        raise UsageError(f"no file matches {rest}; files that are divided among workers have to be there.")
    after = url[url.index(rest, len("file:")) + len(rest) :]
    return [f"file:{file}{after}" for file in files]


class Unread:
    """A source of which this process has no partition: somebody else reads it."""

    partitions: Sequence[str] = ()
    finished = True

    def __init__(self, url: str) -> None:
        self.name = re.sub(r"\?.*", "", url)

    def poll(self, limit: int, timeout: float, paused: AbstractSet[str]) -> list[Records]:
        """Return nothing."""
        return []

    def decode(self, records: Records) -> Decoded:
        """Raise ValueError: there are none."""
        raise ValueError(f"{self.name} is not read here.")

    def at_end(self, partition: str) -> bool:
        """Return True."""
        return True

    def seek(self, positions: dict[str, Any]) -> None:
        """Do nothing."""

    def commit(self, positions: dict[str, Any]) -> None:
        """Do nothing."""

    def lag(self) -> int | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing."""


def _kafka(
    url: str,
    rest: str,
    fields: Fields,
    taken: _Query,
    *,
    until_end: bool,
    group: str,
    only: Collection[str] | None,
) -> Source:
    from streamwise.streams.kafka import KafkaSource

    brokers, _, topic = rest.removeprefix("//").partition("/")
    if not brokers or not topic or "/" in topic:
        raise UsageError(f"{url}: write kafka://HOST:PORT[,HOST:PORT]/TOPIC.")
    if "@" in brokers:
        raise UsageError(
            "a kafka URL takes no user or password; put them in a properties file: ?config=FILE."
        )
    start: Any = taken.text("start") or "earliest"
    if start not in ("earliest", "latest"):
        start = taken.as_number("start", start)
    config, schema = taken.text("config"), taken.text("schema")
    decoder, message = taken.text("decoder"), taken.text("message")
    taken.finish()
    return KafkaSource(
        brokers,
        unquote(topic),
        fields,
        start=start,
        config_path=None if config is None else Path(config),
        group=group,
        decoder=decoder,
        schema=None if schema is None else Path(schema),
        message=message,
        until_end=until_end,
        only=only,
    )


def _redis(
    url: str, scheme: str, rest: str, fields: Fields, taken: _Query, *, until_end: bool, group: str
) -> Source:
    from streamwise.streams.redis_streams import RedisSource

    parts = urlsplit(f"{scheme}:{rest}")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "a redis URL takes no password; name the variable that holds it: ?password_env=VARIABLE."
        )
    try:
        port = parts.port or 6379
    except ValueError:
        port = 0
    stream = unquote(parts.path.removeprefix("/"))
    if not parts.hostname or not stream or not port:
        raise UsageError(f"{url}: write redis://HOST:PORT/STREAM.")
    start = taken.text("start") or "earliest"
    db = taken.number("db") or 0.0
    username, password_env, json_field = taken.text("user"), taken.text("password_env"), taken.text("json")
    taken.finish()
    return RedisSource(
        parts.hostname,
        port,
        stream,
        fields,
        db=int(db),
        tls=scheme == "rediss",
        username=username,
        password_env=password_env,
        json_field=json_field,
        start=start,
        until_end=until_end,
        group=group,
    )


def _parts(url: str) -> tuple[str, str, dict[str, str]]:
    """Return scheme, what follows it, and the parameters."""
    scheme, colon, rest = url.partition(":")
    if not colon or scheme not in SCHEMES:
        if os.path.exists(url):
            raise UsageError(f"{url} is no URL; write file:{url}.")
        hint = meant(scheme, SCHEMES) if colon else ""
        raise UsageError(
            f"{url} is no source of events.{hint} Write {', '.join(map(':'.join, SCHEMES.items()))}."
        )
    pieces = _QUERY.split(rest, maxsplit=1)
    query: dict[str, str] = {}
    for name, value in parse_qsl(pieces[1], keep_blank_values=True) if len(pieces) > 1 else ():
        if name in query:
            raise UsageError(f"{url}: {name} is given twice.")
        query[name] = value
    rest = pieces[0].rstrip("?") if len(pieces) == 1 and scheme != "file" else pieces[0]
    if scheme == "file":
        rest = rest.removeprefix("//")
        if not rest:
            raise UsageError(f"{url} names no file; write file:PATH.")
    return scheme, rest, query


class _Query:
    """The parameters of a URL, taken one by one."""

    def __init__(self, url: str, query: dict[str, str]) -> None:
        self.url = url
        self.query = query
        self.known: list[str] = [
            "time",
            "type",
            "key",
            "unit",
            "features",
            "version",
            "versions",
            "max_bytes",
        ]

    def text(self, name: str) -> str | None:
        self.known.append(name)
        return self.query.pop(name, None)

    def number(self, name: str) -> float | None:
        value = self.text(name)
        return None if value is None else self.as_number(name, value)

    def as_number(self, name: str, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0.0 <= number < float("inf"):
            raise UsageError(f"{self.url}: {name} is {value!r}; give a number that is not negative.")
        return number

    def finish(self) -> None:
        """Raise UsageError for what nobody took."""
        for name in self.query:
            hint = meant(name, self.known)
            raise UsageError(
                f"{self.url}: unknown parameter {name!r}.{hint} Choose from: {', '.join(self.known)}."
            )
