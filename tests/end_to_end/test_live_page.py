"""The live page of a run on events in a real browser, as somebody who watches it sees it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

websockets = pytest.importorskip("websockets.sync.client", reason="the browser is driven through websockets")
pytest.importorskip("uvicorn", reason="the page needs the extra serve")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

TIMEOUT_SECONDS = 60.0  # for whatever is waited for; a slow machine may take long
DESKTOP, PHONE = (1280, 900), (390, 844)
HOSTILE = "<img src=x onerror=window.hacked=1>"
HOSTILE_KEY = "</script><script>window.hacked=1</script>"
START = 1_600_000_000.0


@dataclass
class Page:
    """A tab of a browser, through the DevTools protocol."""

    socket: Any
    session: str | None = None
    errors: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; note the errors that the page reports meanwhile."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=TIMEOUT_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer["method"], answer["params"])

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        elif (event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning")) or (
            event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning")
        ):
            self.errors.append(json.dumps(about))

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, name: str) -> str:
        """Return the text that an element shows."""
        return self.evaluate(f"document.getElementById({name!r}).innerText")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self.evaluate(script):
            assert time.monotonic() < end, f"{script} did not come true; {self.errors}"
            time.sleep(0.1)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page at another size, light or dark."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def move(self, name: str) -> None:
        """Move the mouse to the middle of an element."""
        box = f"document.getElementById({name!r}).getBoundingClientRect()"
        x, y = self.evaluate(f"(box => [box.left + box.width / 2, box.top + box.height / 2])({box})")
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def close(self) -> None:
        """Close the tab."""
        target = self.command("Target.getTargetInfo")["targetInfo"]["targetId"]
        self.session = None
        self.command("Target.closeTarget", targetId=target)


class Browser:
    """A browser without a window."""

    def __init__(self, folder):
        self.log = (folder / "chromium.log").open("wb")
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        flags += ["--disable-extensions", "--disable-background-networking", "--hide-scrollbars"]
        command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
        self.process = subprocess.Popen(
            [*command, "about:blank"], stdout=self.log, stderr=self.log, start_new_session=True
        )
        where = folder / "profile" / "DevToolsActivePort"
        end = time.monotonic() + TIMEOUT_SECONDS
        while not (where.is_file() and where.read_text().count("\n")):
            assert self.process.poll() is None, "chromium ended"
            assert time.monotonic() < end, "chromium did not start"
            time.sleep(0.05)
        port, path = where.read_text().splitlines()[:2]
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(
            websockets.connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=TIMEOUT_SECONDS)
        )
        self.root = Page(self.socket)

    def open(self, url, size=DESKTOP, *, dark=False):
        target = self.root.command("Target.createTarget", url="about:blank")["targetId"]
        session = self.root.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self.socket, session, numbers=self.root.numbers)
        for domain in ("Page", "Runtime", "Log"):
            page.command(f"{domain}.enable")
        page.resize(*size, dark=dark)
        page.command("Page.navigate", url=url)
        page.wait("document.readyState === 'complete'")
        return page

    def close(self):
        self.stack.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)  # it has children in the group that it was given
        self.process.wait(30)
        self.log.close()


@dataclass
class Ingest:
    process: subprocess.Popen
    url: str

    def stop(self):
        """End the run as Ctrl-C does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(TIMEOUT_SECONDS)


def start_ingest(folder, *, command=(sys.executable, "-m", "streamwise")):
    """Start a run on a made-up stream, and on a file with events and records that would do harm."""
    lines = ["time,type,key"]
    lines += [f"{START + 40.0 * i},{HOSTILE},{HOSTILE_KEY if i % 2 else f'shop {i % 6}'}" for i in range(300)]
    lines += [f"{HOSTILE},bad,1"] * 3
    (folder / "hostile.csv").write_text("\n".join([*lines, ""]))
    sources = ["synthetic:hawkes?events=0&speed=4000&keys=40&rate=15", f"file:{folder / 'hostile.csv'}"]
    options = ["--serve", "0", "--interval", "100", "--out", str(folder / "run")]
    log = (folder / "ingest.log").open("wb")
    process = subprocess.Popen(
        [*command, "ingest", *sources, *options],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    end = time.monotonic() + TIMEOUT_SECONDS
    while True:
        said = (folder / "ingest.log").read_text()
        if found := re.search(r"http://127\.0\.0\.1:\d+", said):
            return Ingest(process, found.group())
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ingest(tmp_path_factory):
    run = start_ingest(tmp_path_factory.mktemp("ingest"))
    yield run
    run.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def number(text):
    return int(re.sub(r"\D", "", text))


LIVE = "document.body.dataset.status === 'live'"
POINTS = "[...document.querySelectorAll('.chart .line')].map(line => Number(line.dataset.points))"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (360, 640)], ids=lambda size: f"{size[0]} px")
def test_the_page_lives_and_fits(ingest, browser, size):
    page = browser.open(ingest.url, size)
    page.wait(LIVE)
    first = number(page.text("events"))
    page.wait(f"Number(document.getElementById('events').innerText.replaceAll(',', '')) > {first}")
    page.wait(f"{POINTS}.length === 3 && Math.min(...{POINTS}) >= 2")
    assert page.evaluate(OVERFLOW) <= 0
    assert page.errors == []
    page.close()


def test_nothing_moves_when_the_figures_change(ingest, browser):
    page = browser.open(ingest.url)
    page.wait(LIVE)
    page.wait(f"{POINTS}.length === 3 && document.querySelectorAll('#newest tr').length === 20")
    page.wait("document.querySelectorAll('#types tr').length === 6")
    tops = (
        "JSON.stringify([...document.querySelectorAll('h2, footer')].map(e => e.getBoundingClientRect().top))"
    )
    before, events = page.evaluate(tops), number(page.text("events"))
    page.wait(f"Number(document.getElementById('events').innerText.replaceAll(',', '')) > {events} + 50")
    assert page.evaluate(tops) == before
    page.close()


def test_a_prediction_is_shown_for_a_key_and_a_complaint_for_one_that_is_unknown(ingest, browser):
    page = browser.open(ingest.url, PHONE)
    page.wait(LIVE)
    ask = "document.getElementById('key').value = {}; document.querySelector('button.ask').click()"
    page.evaluate(ask.format("'7'"))
    page.wait("document.querySelector('#answer .big') !== null")
    answer = page.text("answer")
    assert "Key 7: " in answer
    assert re.search(r"Next event in about [\d.,]+ (ms|s|min|h|days?)\n", answer)
    assert re.search(r"Within 10 min\n\d+\.\d%", answer)
    assert page.evaluate("document.querySelectorAll('#answer tbody tr').length") == 5
    assert page.evaluate(OVERFLOW) <= 0
    assert page.errors == []
    page.evaluate(ask.format("'nobody'"))
    page.wait("document.querySelector('#answer .wrong') !== null")
    assert page.text("answer") == "No event of key 'nobody' was seen."
    page.close()


def test_what_the_log_holds_is_shown_as_text(ingest, browser):
    page = browser.open(ingest.url)
    page.wait(LIVE)
    page.wait("document.querySelectorAll('#types tr').length === 6")
    page.wait("document.querySelectorAll('#letters li').length === 3")
    names = page.evaluate(
        "[...document.querySelectorAll('#types tr td:first-child')].map(e => e.textContent)"
    )
    assert HOSTILE in names
    assert HOSTILE in page.text("letters")
    page.evaluate(f"document.getElementById('key').value = {json.dumps(HOSTILE_KEY)}")
    page.evaluate("document.querySelector('button.ask').click()")
    page.wait("document.querySelector('#answer .big') !== null")
    assert f"Key {HOSTILE_KEY}: " in page.text("answer")
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("document.querySelectorAll('script').length") == 1
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.errors == []
    page.close()


def test_a_key_among_the_newest_events_is_asked_for_by_a_click(ingest, browser):
    page = browser.open(ingest.url)
    page.wait(LIVE)
    page.wait("document.querySelectorAll('#newest button').length > 0")
    key = page.evaluate(
        "(() => { const b = document.querySelector('#newest button'); b.click(); return b.textContent; })()"
    )
    page.wait("document.querySelector('#answer .big') !== null")
    assert f"Key {key}: " in page.text("answer")
    assert page.evaluate("document.activeElement.id") == "answer"
    page.close()


def test_newest_events_are_held_under_the_pointer(ingest, browser):
    page = browser.open(ingest.url)
    page.wait(LIVE)
    page.wait("document.querySelectorAll('#newest button').length > 0")
    page.evaluate("document.querySelector('#newest').scrollIntoView({block: 'center'})")
    page.move("newest")
    page.wait("document.getElementById('newest-note').innerText.startsWith('held')")
    rows, events = page.text("newest"), number(page.text("events"))
    page.wait(f"Number(document.getElementById('events').innerText.replaceAll(',', '')) > {events} + 50")
    assert page.text("newest") == rows
    page.move("title")
    page.wait(f"document.getElementById('newest').innerText !== {json.dumps(rows)}")
    assert page.text("newest-note") == ""
    page.close()


def test_a_chart_names_the_value_under_the_pointer(ingest, browser):
    page = browser.open(ingest.url)
    page.wait(LIVE)
    page.wait(f"{POINTS}.length === 3 && Math.min(...{POINTS}) >= 2")
    for name, text in [
        ("likelihood", r"−?\d+\.\d{3} nats, at event [\d,]+00"),
        ("error", r"\d+\.\d%, at event [\d,]+00"),
        ("rate", r"[\d,.]+ a second, (just now|.* ago)"),
    ]:
        page.move(f"{name}-chart")
        assert re.fullmatch(text, page.text(f"{name}-key"))
    page.move("title")
    assert page.text("rate-key") == "the last five minutes"
    page.close()


@pytest.mark.parametrize("size", [DESKTOP, (360, 640)], ids=lambda size: f"{size[0]} px")
def test_scores_and_what_only_some_models_tell_are_shown_and_fit(ingest, browser, size):
    page = browser.open(ingest.url, size)
    page.wait(LIVE)
    page.wait("document.querySelectorAll('#pit-chart .bin').length === 20")
    cells = (
        "[...document.querySelectorAll('#{} tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    scores = page.evaluate(cells.format("scores"))
    assert [row[0] for row in scores] == [
        "Log-likelihood", "Its time part", "Type log loss", "Type error", "RMSE of gaps", "MAE of gaps",
        "In 50% interval", "In 90% interval",
    ]  # fmt: skip
    assert all(re.fullmatch(r"−?[\d.,]+[%KMG]?", cell) for row in scores for cell in row[1:])
    cut = "[...document.querySelectorAll('#scores td')].filter(cell => cell.scrollWidth > cell.clientWidth)"
    assert page.evaluate(f"{cut}.length") == 0
    shown = "document.getElementById('{}').checkVisibility()"
    assert not page.evaluate(shown.format("baselines-part"))
    assert not page.evaluate(shown.format("statistics-part"))

    lead = {"name": f"a_{HOSTILE}", "log_likelihood": 0.25, "type_error": -0.5}
    told = {"baselines": [lead], "statistics": {"pool_entropy": 2.34567, f"x_{HOSTILE}": None}}
    page.evaluate("show = (show => state => show({...state, ..." + json.dumps(told) + "}))(show)")
    page.wait(shown.format("statistics-part"))
    assert page.evaluate(cells.format("baselines")) == [[f"a {HOSTILE}", "+0.250", "–", "−50.0%"]]
    assert page.text("statistics").split("\n")[:2] == ["pool entropy", "2.346"]
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate(OVERFLOW) <= 0
    assert page.errors == []
    page.close()


def luminance(colour):
    """Return the relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255.0 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(ingest, browser, dark):
    page = browser.open(ingest.url, dark=dark)
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    light = {
        name: luminance(page.evaluate(style.format(name)))
        for name in ("paper", "ink", "muted", "blue", "on-blue", "red")
    }
    assert (light["paper"] < light["ink"]) == dark
    pairs = [(name, "paper") for name in ("ink", "muted", "blue", "red")]
    for text, behind in [*pairs, ("on-blue", "blue")]:
        low, high = sorted((light[text], light[behind]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind)
    page.close()


def test_every_control_has_a_name_and_only_few_places_interrupt_a_reader(ingest, browser):
    page = browser.open(ingest.url)
    page.wait(LIVE)
    page.wait(f"{POINTS}.length === 3")
    page.command("Accessibility.enable")
    nodes = page.command("Accessibility.getFullAXTree")["nodes"]
    of_role = {
        role: [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == role]
        for role in ("textbox", "spinbutton", "combobox", "image")
    }
    assert of_role["textbox"] == ["Key"]
    assert of_role["spinbutton"] == ["Within"]
    assert of_role["combobox"] == ["Unit of time"]
    assert len(of_role["image"]) == 4
    assert all(re.search(r": .*\d", name) for name in of_role["image"])
    live = page.evaluate(
        "[...document.querySelectorAll('[aria-live], [role=status], [role=alert]')].map(e => e.id)"
    )
    assert sorted(live) == ["answer", "lost", "status"]
    page.close()


def test_the_page_says_when_the_connection_is_lost_and_that_it_is_back(tmp_path, browser):
    run = start_ingest(tmp_path)
    page = browser.open(run.url)
    page.wait(LIVE)
    page.evaluate(
        "window.wait = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = () => wait(300)"
    )
    os.kill(run.process.pid, signal.SIGSTOP)  # it no longer answers
    try:
        page.wait("document.body.dataset.status === 'lost'")
        assert page.evaluate("getComputedStyle(document.getElementById('lost')).display") != "none"
    finally:
        os.kill(run.process.pid, signal.SIGCONT)
    page.evaluate("AbortSignal.timeout = () => wait(8000)")
    page.wait(LIVE)
    assert page.evaluate("document.getElementById('lost').hidden")
    assert run.stop() == 128 + signal.SIGINT
    page.wait("document.body.dataset.status === 'lost'")
    assert page.text("status") == "Connection lost"
    assert page.text("lost").startswith("Connection lost. These figures are of ")
    page.close()
