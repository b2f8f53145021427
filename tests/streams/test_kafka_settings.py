"""How a Kafka source is opened: wrong settings are named, and secrets never."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest
from brokers import kafka_broker, produce, tls_front
from kafka_support import Reader

from streamwise.streams import UsageError
from streamwise.streams.fields import Fields
from streamwise.streams.kafka import KafkaSource

kafka = pytest.importorskip("confluent_kafka")


SECRET = "hunter2-Zm9vYmFy"


def test_an_unknown_topic_is_named_with_the_nearest(broker, topic):
    with pytest.raises(UsageError) as refused:
        KafkaSource(broker.address, topic + "s", Fields())
    assert f"{broker.address} has no topic '{topic}s'." in str(refused.value)
    assert "Did you mean 'topic" in str(refused.value)


def test_a_broker_that_is_not_there_is_named(capfd):
    with pytest.raises(
        UsageError, match=r"kafka://127\.0\.0\.1:9/clicks: no broker has answered within 0\.5 s"
    ):
        KafkaSource("127.0.0.1:9", "clicks", Fields(), connect_seconds=0.5)
    assert capfd.readouterr() == ("", "")


def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="properties file") as refused:
        KafkaSource(f"ann:{SECRET}@127.0.0.1:9", "clicks", Fields())
    assert SECRET not in str(refused.value)


def written(folder, *lines):
    path = folder / "client.properties"
    path.write_text("\n".join(["# how to log in", "", *lines]))
    return path


def test_secrets_are_in_no_error_no_text_and_no_log(tmp_path, broker, topic, open_source, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    login = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=ann")
    config = written(tmp_path, *login, f"sasl.password = {SECRET}")
    said = []
    with pytest.raises(UsageError) as refused:  # this broker knows no SASL
        KafkaSource(broker.address, topic, Fields(), config_path=config, connect_seconds=1.0)
    said.append(str(refused.value))

    source = open_source(broker.address, topic, config_path=written(tmp_path, f"client.id={SECRET}"))
    source._cluster.hear(kafka.KafkaError(kafka.KafkaError._TRANSPORT, f"lost {SECRET}"))
    assert source.poll(1, 0.0, set()) is not None
    source._cluster.hear(kafka.KafkaError(kafka.KafkaError._AUTHENTICATION, f"not {SECRET}"))
    with pytest.raises(
        UsageError, match=r"refuses the login; check sasl\.\* in .*client\.properties"
    ) as refused:
        source.poll(1, 0.0, set())
    said += [str(refused.value), source.name, repr(source), repr(source._cluster), caplog.text]
    assert SECRET not in " ".join([*said, *capfd.readouterr()])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"sasl.pasword={SECRET}", "'sasl.pasword'. Did you mean 'sasl.password'?"),
        (f"security.protocol={SECRET}", "refuses 'security.protocol'."),
        (f"socket.timeout.ms={SECRET}", "refuses 'socket.timeout.ms'."),
        (f"ssl.ca.location=/nowhere/{SECRET}", "refuses"),
        (SECRET, "line 3: write KEY=VALUE"),
        (f"sasl.password={SECRET}\nsasl.password={SECRET}", "line 4: 'sasl.password' is given twice"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(tmp_path, line, said):
    lines = line if "ca.location" not in line else f"security.protocol=SSL\n{line}"
    config = written(tmp_path, lines)
    with pytest.raises(UsageError) as refused:
        KafkaSource("127.0.0.1:9", "clicks", Fields(), config_path=config, connect_seconds=0.1)
    assert str(config) in str(refused.value)
    assert said in str(refused.value)
    shown = refused.value
    while shown is not None:
        assert SECRET not in str(shown)
        shown = shown.__cause__ or shown.__context__


@pytest.mark.parametrize(
    "key",
    [
        "enable.auto.commit",
        "group.id",
        "auto.offset.reset",
        "enable.auto.offset.store",
        "enable.partition.eof",
    ],
)
def test_settings_that_would_change_what_is_read_are_refused(tmp_path, key):
    with pytest.raises(UsageError, match=f"line 3: '{key}' cannot be set"):
        KafkaSource("127.0.0.1:9", "clicks", Fields(), config_path=written(tmp_path, f"{key}=false"))


def test_a_missing_properties_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.properties, the client's settings, cannot be read"):
        KafkaSource("127.0.0.1:9", "clicks", Fields(), config_path=tmp_path / "absent.properties")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "newest"}, "start is 'newest'"),
        ({"start": -1.0}, "start is -1.0"),
        ({"start": float("nan")}, "start is nan"),
        ({"decoder": "avr"}, "Did you mean 'avro'?"),
        ({"decoder": "avro"}, "needs schema=FILE"),
        ({"decoder": "protobuf", "schema": Path("x")}, "needs message="),
        ({"schema": Path("x")}, "are for decoder=avro"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(UsageError) as refused:
        KafkaSource("127.0.0.1:9", "clicks", Fields(), connect_seconds=0.1, **options)
    assert said in str(refused.value)


def test_tls_is_used_and_an_unknown_certificate_is_refused(tmp_path, open_source):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2"
    command += (
        " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    trusting = {"security.protocol": "SSL", "ssl.ca.location": str(certificate)}
    config = written(tmp_path, *(f"{name}={value}" for name, value in trusting.items()))
    with tls_front(certificate, key) as front, kafka_broker(advertised_port=front.port) as broker:
        front.target, broker.address = broker.port, front.address
        broker.create_topic("safe", 1, trusting)
        produce(front.address, "safe", [(0, b"sealed")], trusting)
        before = front.connections
        source, reader = open_source(front.address, "safe", config_path=config), Reader()
        reader.read(source, 1)
        assert reader.values == {"safe/0": [b"sealed"]}
        assert front.connections > before
        doubting = written(tmp_path, "security.protocol=SSL")
        with pytest.raises(UsageError, match="certificate"):
            KafkaSource(front.address, "safe", Fields(), config_path=doubting, connect_seconds=2.0)
