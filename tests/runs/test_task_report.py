"""The page of a comparison says what its results say, by plain loops, whatever is missing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from test_report import is_png

from streamwise.runs.config import save_config
from streamwise.runs.task_report import read_results, write_task_report
from streamwise.runs.task_scores import METRICS
from streamwise.runs.tasks import TasksConfig
from streamwise.streams import UsageError

TASKS = 4


def matrix(draw, offset=0.0):
    values = draw.normal(size=(TASKS, TASKS)) + offset
    return [[float(values[i][j]) if j <= i + 1 else None for j in range(TASKS)] for i in range(TASKS)]


def write(directory, units):
    """Write a directory of tasks with these (method, base, seed, offset); returns the matrices by unit."""
    (directory / "results").mkdir(parents=True)
    save_config(
        TasksConfig("file:/logs/shop<&>.csv?key=user", tasks=TASKS, out=directory), directory, kind="tasks"
    )
    data = {
        "events": 1_000, "keys": 20, "types": 3, "first": 0.0, "last": 1_200.0, "sha256": "",
        "bounds": np.linspace(0.0, 1_200.0, 3 * TASKS + 1).tolist(), "model_unit": 1.0,
        "train": [70] * TASKS, "validation": [10] * TASKS, "test": [20] * TASKS,
    }  # fmt: skip
    (directory / "data.json").write_text(json.dumps(data))
    draw, written = np.random.default_rng(0), {}
    for method, base, seed, offset in units:
        matrices = {name: matrix(draw, offset) for name in METRICS}
        if method == "repeat-last":
            unknown = [[None] * TASKS for _ in range(TASKS)]
            matrices |= {name: unknown for name in METRICS if "likelihood" in name}
        unit = {
            "method": method, "base": base, "seed": seed, "parameters": 12, "tensors_restored": 0,
            "matrices": matrices, "learning_seconds": [1.0] * TASKS, "scoring_seconds": [0.5] * TASKS,
            "silence": [0.25] * TASKS, "fit": [None] * TASKS,
        }  # fmt: skip
        name = "-".join(filter(None, (method, base)))
        (directory / "results" / f"{name}-seed{seed}.json").write_text(json.dumps(unit))
        written[name, seed] = matrices
    return written


UNITS = [("online", "nhp", seed, 0.0) for seed in range(3)]
UNITS += [("prompt-tpp", "nhp", seed, 1.0) for seed in range(3)]
UNITS += [("leaky-retrieval", "nhp", 0, 9.0), ("markov", None, 0, -1.0), ("repeat-last", None, 0, 0.0)]


def rows(html, heading):
    """The rows of the first table after a heading, as lists of text."""
    table = html[html.index(heading) :].partition("<tbody>")[2].partition("</tbody>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in table.split("</tr>")]
    return {row[0]: row[1:] for row in cells if row}


def average(matrices, metric):
    return sum(matrices[metric][i][i] for i in range(TASKS)) / TASKS


def test_the_tables_say_what_plain_loops_say(tmp_path):
    written = write(tmp_path, UNITS)
    files = write_task_report(tmp_path)
    assert is_png(files.png)
    html = files.html.read_text()
    assert "shop&lt;&amp;&gt;.csv" in html
    assert "<&>" not in html

    learned = rows(html, "<h2>What was learned")
    mean = np.mean([average(written["prompt-tpp-nhp", seed], "log_likelihood") for seed in range(3)])
    assert learned["prompt-tpp nhp"][:1] == ["3"]
    assert re.sub("</?b>", "", learned["prompt-tpp nhp"][1]).startswith(f"{mean:.3f} (")
    assert "<b>" in learned["prompt-tpp nhp"][1]  # for what is higher still is not fair
    assert "<b>" not in learned["leaky-retrieval nhp"][1]
    forward = sum(written["markov", 0]["log_likelihood"][i][i + 1] for i in range(TASKS - 1)) / (TASKS - 1)
    assert learned["markov"][2] == f"{forward:.3f}"
    assert learned["repeat-last"][1:] == ["–"] * 5

    beside = rows(html, "What they have over online")
    differences = [
        average(written["prompt-tpp-nhp", seed], "log_likelihood")
        - average(written["online-nhp", seed], "log_likelihood")
        for seed in range(3)
    ]
    assert beside["prompt-tpp nhp"][1].startswith(f"{np.mean(differences):+.3f} (")
    single = average(written["leaky-retrieval-nhp", 0], "log_likelihood") - average(
        written["online-nhp", 0], "log_likelihood"
    )
    assert beside["leaky-retrieval nhp"][:2] == ["1", f"{single:+.3f}"]
    assert set(beside) == {"prompt-tpp nhp", "leaky-retrieval nhp"}

    errors = rows(html, "<h2>Predictions")
    assert errors["repeat-last"][1].startswith(
        f"{100 * average(written['repeat-last', 0], 'type_error_true_time'):.1f}%"
    )
    assert "looks at what it is to predict" in html
    assert html.count("<svg") >= 2 + 4  # curves of two bases, and a map of each that has a likelihood


def test_a_page_is_the_same_for_the_same_results(tmp_path):
    write(tmp_path, UNITS)
    first = write_task_report(tmp_path).html.read_bytes()
    assert write_task_report(tmp_path).html.read_bytes() == first


@pytest.mark.parametrize("units", [UNITS[:1], UNITS[-1:], [("markov", None, 0, 0.0)]])
def test_few_results_are_drawn_too(units, tmp_path):
    write(tmp_path, units)
    files = write_task_report(tmp_path, tmp_path / "page.html")
    assert files.html.name == "page.html"
    assert is_png(files.png)


def test_what_cannot_be_drawn_is_refused_in_a_line(tmp_path):
    write(tmp_path / "empty", [])
    with pytest.raises(UsageError, match="has no results yet"):
        read_results(tmp_path / "empty")
    write(tmp_path / "damaged", UNITS[:1])
    (tmp_path / "damaged" / "results" / "markov-seed0.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        write_task_report(tmp_path / "damaged")
    with pytest.raises(UsageError, match="holds no result of"):
        write_task_report(tmp_path)
