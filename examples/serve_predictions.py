"""Serve predictions of a model that keeps learning, and ask for them over HTTP.

Calls come to a hotline, at first one in five minutes. The program writes them to a log; a run follows the
log, learns each call as it comes, and answers this machine. How likely is a call within five minutes? Then
calls come one in 100 seconds, and the same question gets another answer. In truth it is 1 - 1/e = 0.63, and
then 1 - 1/e³ = 0.95. As a command: `streamwise ingest file:calls.jsonl --follow --serve 8000`.

    python examples/serve_predictions.py    # expect 0.63 ± 0.06, 0.95 ± 0.04
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import tyro

from streamwise.agents import CountsConfig
from streamwise.runs.ingest import LiveRun, ingest
from streamwise.runs.ingest_config import IngestConfig
from streamwise.runs.loop import StopRequest
from streamwise.runs.serve import serve


def main(calls: int = 2_000, seed: int = 0) -> None:
    random, now, answers = np.random.default_rng(seed), 1.7e9, []
    stop, url = StopRequest(), Future[str]()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as thread, ExitStack() as at_end:

        def on_start(run: LiveRun) -> None:
            url.set_result(at_end.enter_context(serve(run, port=0)).url)

        log = Path(folder, "calls.jsonl")
        log.touch()
        settings = CountsConfig(memory=300.0, key_memory=300.0)  # calls that it looks back
        config = IngestConfig((f"file:{log}",), settings, out=Path(folder, "run"), follow=True)
        run = thread.submit(ingest, config, stop=stop, on_start=on_start)
        at_end.callback(setattr, stop, "signal", signal.SIGTERM)
        for part, seconds in enumerate((300.0, 100.0), start=1):
            with log.open("a") as file:
                for wait in random.exponential(seconds, calls):
                    now += wait
                    file.write(json.dumps({"time": now, "type": "call", "key": "hotline"}) + "\n")
            while json.load(urlopen(f"{url.result(timeout=30)}/health"))["events"] < part * calls:
                time.sleep(0.1)
            answer = json.load(urlopen(f"{url.result()}/predict?key=hotline&horizon=300"))
            answers.append(answer["probability"])
    print(f"stopped after {run.result().events:,} calls")
    print("a call within five minutes: {:.2f}, later {:.2f}".format(*answers))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
