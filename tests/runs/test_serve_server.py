"""The server beside a run: whom it answers, what it refuses, how it starts, fails and stops."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import sys
import threading
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra serve")
import serve_support
from serve_support import TIMEOUT_SECONDS, get
from waiting import wait_for

from streamwise.runs import serve as serving
from streamwise.runs.serve import serve, serve_metrics
from streamwise.streams import UsageError

run = serve_support.run
url = serve_support.url


def test_health_is_lost_when_the_loop_stands_still_even_if_it_holds_the_lock(run, url, monkeypatch):
    status, body = get(f"{url}/health")
    assert (status, body["status"], body["events"]) == (200, "ok", 40)
    assert body["seconds_since_last_event"] >= 0.0
    monkeypatch.setattr(serving, "_PATIENCE_SECONDS", 0.05)
    with run.lock:
        run.watchers[0].__self__.heartbeat -= 31.0
        status, body = get(f"{url}/health")
        assert (status, body["status"]) == (503, "stuck")
        for path in ("state", "metrics", "predict?key=ann"):
            assert get(f"{url}/{path}") == (
                503,
                {"error": "the run has been busy for more than 0.05 s; try again."},
            )
    run.learn([], [], [])
    assert get(f"{url}/health")[0] == 200
    assert get(f"{url}/state")[0] == 200


def test_a_reader_that_does_not_read_holds_nothing_up(run, url):
    """The lock is free again before a byte of the answer is sent."""
    run.learn([5e3 + i for i in range(200)], [f"{i}" * 60 for i in range(200)], ["k" * 200] * 200)
    host, port = url.removeprefix("http://").split(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    with slow:
        slow.connect((host, int(port)))
        slow.sendall(f"GET /state HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 50)
        assert slow.recv(1)
        for _ in range(5):
            assert run.lock.acquire(timeout=TIMEOUT_SECONDS)
            run.lock.release()
            assert get(f"{url}/predict?key=ann")[0] == 200


def test_only_what_exists_may_be_got(url):
    for path in ("/nothing", "/state/", "/../etc/passwd", "/static/live.js", "/favicon.ico"):
        status, body = get(url + path)
        assert status == 404
        assert "/predict" in body["error"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, body = get(f"{url}/state", method=method)
        assert (status, body) == (405, {"error": f"{method} is not allowed; use GET."})


OTHERS = ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[", "[::2]", "me@evil.example"]


@pytest.mark.parametrize("host", OTHERS)
def test_a_server_on_loopback_answers_to_no_other_name(url, host):
    status, body = get(f"{url}/state", host=host.format(port=url.rpartition(":")[2]))
    assert status == 421
    assert "localhost" in body["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000"])
def test_a_server_on_loopback_answers_to_the_names_of_loopback(url, host):
    assert get(f"{url}/health", host=host)[0] == 200


def test_a_failure_of_the_server_is_told_and_logged_but_not_shown(run, url, capfd, monkeypatch):
    def broken(self):
        raise RuntimeError("something private")

    monkeypatch.setattr(serving.Watch, "state", broken)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])  # as programs like to do
    with urllib.request.urlopen(f"{url}/health", timeout=TIMEOUT_SECONDS):
        pass
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(f"{url}/state", timeout=TIMEOUT_SECONDS)
    assert failure.value.code == 500
    assert json.loads(failure.value.read()) == {
        "error": "the server failed; serve.log in the run's directory says how."
    }
    log = run.config.directory / "serve.log"
    wait_for(lambda: log.is_file() and "something private" in log.read_text())
    assert capfd.readouterr() == ("", "")


def test_nothing_is_logged_when_all_is_well(run, url, capfd):
    get(f"{url}/state")
    get(f"{url}/nothing")
    get(f"{url}/predict")
    assert not (run.config.directory / "serve.log").exists()
    assert capfd.readouterr() == ("", "")


def test_the_server_stops_with_its_block_though_a_connection_is_open(run):
    before = threading.enumerate()
    with serve(run, port=0) as server:
        host, port = server.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)
        connection.request("GET", "/health")
        assert connection.getresponse().read()
    connection.close()
    assert run.watchers == []
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert "streamwise-serve" not in [thread.name for thread in started]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.url, timeout=TIMEOUT_SECONDS)
    with serve(run, port=int(port)) as again:
        assert get(f"{again.url}/health")[0] == 200


@pytest.mark.parametrize(("start", "flag"), [(serve, "--serve"), (serve_metrics, "--metrics-port")])
def test_a_port_in_use_is_said(run, start, flag):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        complaint = rf"port {port} of 127\.0\.0\.1 is in use; choose another {flag}, or 0 for any\."
        with pytest.raises(UsageError, match=complaint), start(run, port=port):
            pass
    assert run.watchers == []


def test_a_host_that_is_not_here_is_said(run):
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(UsageError, match="no address of this machine"), serve(run, port=0, host=host):
            pass


def test_a_missing_library_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    complaint = r"--serve needs uvicorn; run: pip install 'streamwise\[serve\]'\."
    with pytest.raises(UsageError, match=complaint), serve(run, port=0):
        pass
