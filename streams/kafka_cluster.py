"""The brokers of one Kafka topic: how to reach them, what they refuse, and their client's settings."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Literal

from streamwise.streams.errors import UsageError, meant

__all__ = ["ASK_SECONDS", "CLOSE_SECONDS", "KafkaCluster"]

_logger = logging.getLogger("streamwise")

ASK_SECONDS = 1.0  # for one answer of a broker that has answered before
CLOSE_SECONDS = 2.0
_UNKNOWN_SECONDS = 1.0  # in which a topic that was just made becomes known to all brokers

# What a properties file may not set: it would change what is read, or print what nobody should see.
_OURS = {
    "bootstrap.servers": "the brokers are in the URL",
    "metadata.broker.list": "the brokers are in the URL",
    "group.id": "the group is an option of the command",
    "group.instance.id": "partitions are assigned here, not by the group",
    "auto.offset.reset": "where to start is in the URL",
    "enable.auto.commit": "offsets are published after each checkpoint",
    "enable.auto.offset.store": "offsets are published after each checkpoint",
    "enable.partition.eof": "the end of a partition has to be seen",
    "debug": "it could print secrets",
    "log_level": "it could print secrets",
}
_WORDS = ("security.protocol", "sasl.mechanism", "sasl.mechanisms")  # whose values are no secrets, but common
_USUAL = (
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "client.id",
    "client.rack",
    "isolation.level",
    *_OURS,
)


class KafkaCluster:
    """The brokers of one topic: how to reach them, and which of their errors no waiting can mend."""

    def __init__(self, brokers: str, topic: str, config_path: Path | None) -> None:
        if "@" in brokers:
            raise UsageError(
                "a broker's address takes no user or password; put them in a properties file and name that."
            )
        try:
            import confluent_kafka
        except ImportError:
            raise UsageError("Kafka needs confluent-kafka; pip install 'streamwise[kafka]'.") from None
        self.kafka: Any = confluent_kafka
        self.brokers, self.topic = brokers, topic
        self.where = f"kafka://{brokers}/{topic}"
        self._config_path = config_path
        self._settings = {} if config_path is None else _properties(config_path)
        self._private = [value for key, value in self._settings.items() if key not in _WORDS]
        self._failure: str | None = None
        self._last_error: Any = None

    def client(self, kind: Literal["Consumer", "Producer"], ours: dict[str, Any]) -> Any:
        """Return a client of librdkafka's. Raises UsageError that names the setting it does not accept."""
        defaults: dict[str, Any] = {"socket.timeout.ms": 10_000, "reconnect.backoff.max.ms": 1_000}
        if kind == "Consumer":
            # Some brokers answer an idle fetch only after the whole wait, whatever has come meanwhile, and a
            # partition that is taken up again waits for it too; one that needs longer than the wait to look
            # for what there is answers with nothing, for ever. A full queue delays the next fetch.
            defaults |= {"fetch.wait.max.ms": 100, "fetch.queue.backoff.ms": 10}
            defaults |= {"queued.max.messages.kbytes": 16_384}  # a partition
        else:
            defaults |= {"enable.idempotence": True}
        ours = {"bootstrap.servers": self.brokers, "error_cb": self._overhear, "log_level": 0, **ours}
        try:
            return getattr(self.kafka, kind)({**defaults, **self._settings, **ours})
        except (self.kafka.KafkaException, ValueError, TypeError) as error:
            text = str(error)  # which may hold a value, so only a key is taken from it
        if not self._settings:
            raise UsageError(f"{self.where}: {' '.join(text.split())}.")
        key = max((key for key in self._settings if key in text), key=len, default=None)
        if key is None:
            raise UsageError(f"{self._config_path}: the client refuses these settings together; mend them.")
        hint = "" if key in _USUAL else meant(key, _USUAL)
        raise UsageError(f"{self._config_path}: the client refuses {key!r}.{hint} Mend or remove the line.")

    def partitions(self, client: Any, seconds: float) -> list[int]:
        """Return the topic's partitions, waiting so long for a first answer."""
        started = time.monotonic()
        while True:
            left = started + seconds - time.monotonic()
            found, error = self._ask(client, min(ASK_SECONDS, max(left, 0.05)))
            if found:
                return found
            client.poll(0.0)  # which calls `_overhear`
            self.check()
            passed = time.monotonic() - started
            if error is not None and self._is_unknown(error):
                if passed > min(_UNKNOWN_SECONDS, seconds):
                    raise UsageError(self._unknown(client))
            elif error is not None:
                self.hear(error)
                self.check()
            if passed > seconds:
                reason = self.reason(self._last_error or error)
                raise UsageError(f"{self.where}: no broker has answered within {seconds:g} s: {reason}")
            time.sleep(0.05)

    def partitions_now(self, client: Any) -> list[int]:
        """Return the partitions that a broker knows of now; none if nobody answers."""
        found, error = self._ask(client, ASK_SECONDS)
        if error is not None:
            _logger.debug("%s: %s", self.where, self.reason(error))
        return found

    def hear(self, error: Any) -> None:
        """Keep what no waiting can mend for `check`; anything else passes."""
        code, errors = error.code(), self.kafka.KafkaError
        if code in (errors._AUTHENTICATION, errors.SASL_AUTHENTICATION_FAILED):
            how = f"check sasl.* in {self._config_path}" if self._config_path else "give a properties file"
            self._failure = f"{self.where}: the broker refuses the login; {how}. Reason: {self.reason(error)}"
        elif code in (errors.TOPIC_AUTHORIZATION_FAILED, errors.CLUSTER_AUTHORIZATION_FAILED):
            self._failure = (
                f"{self.where}: the broker does not let this user at the topic ({error.name()}); grant it."
            )
        elif self._is_unknown(error):
            self._failure = f"{self.brokers} no longer has all of topic {self.topic!r}; start a new run."
        elif error.fatal():
            self._failure = f"{self.where}: the client cannot go on: {self.reason(error)}"
        else:
            _logger.debug("%s: %s", self.where, self.reason(error))

    def check(self) -> None:
        """Raise UsageError if something was heard that no waiting can mend."""
        if self._failure is not None:
            raise UsageError(self._failure)

    def reason(self, error: Any) -> str:
        """Return an error's own text in one line, or only its name where the text repeats a setting."""
        if error is None:
            return "no answer"
        text = " ".join(str(error.str()).split())
        return str(error.name()) if any(value in text for value in self._private) else text

    def _overhear(self, error: Any) -> None:
        if error.code() != self.kafka.KafkaError._ALL_BROKERS_DOWN:  # which tells no reason
            self._last_error = error
        self.hear(error)

    def _ask(self, client: Any, seconds: float) -> tuple[list[int], Any]:
        """Return the topic's partitions, or none and the error."""
        try:
            topic = client.list_topics(self.topic, timeout=seconds).topics[self.topic]
        except self.kafka.KafkaException as error:
            return [], error.args[0]
        return ([], topic.error) if topic.error is not None else (sorted(topic.partitions), None)

    def _is_unknown(self, error: Any) -> bool:
        errors = self.kafka.KafkaError
        unknown = (errors.UNKNOWN_TOPIC_OR_PART, errors._UNKNOWN_TOPIC, errors._UNKNOWN_PARTITION)
        return error.code() in (*unknown, errors.TOPIC_EXCEPTION)

    def _unknown(self, client: Any) -> str:
        try:
            names = [name for name in client.list_topics(timeout=ASK_SECONDS).topics if name != self.topic]
        except self.kafka.KafkaException:
            names = []
        hint = meant(self.topic, names) or " Make it first."
        return f"{self.brokers} has no topic {self.topic!r}.{hint}"


def _properties(path: Path) -> dict[str, str]:
    """Read a file of key=value lines. Raises UsageError, which shows keys and line numbers but no values."""
    path = path.expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}, the client's settings, cannot be read: {error.strerror}.") from None
    settings: dict[str, str] = {}
    # An error about the encoding would hold the data, so there is none.
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip() or line.lstrip()[0] in "#!":
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"{path}, line {number}: write KEY=VALUE, such as security.protocol=SASL_SSL.")
        if key in settings:
            raise UsageError(f"{path}, line {number}: {key!r} is given twice.")
        if key in _OURS:
            raise UsageError(f"{path}, line {number}: {key!r} cannot be set: {_OURS[key]}. Remove it.")
        settings[key] = value
    return settings
