"""`streamwise bench`: what scripts print is kept; the page shows it, and names what failed or is missing."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from rich.table import Table

from streamwise.cli import main
from streamwise.streams import UsageError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import page
import tables
from page import Result, Section

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks"
measurements = importlib.import_module("all")

SECTIONS = [
    Section("one", "The first", "What it is.", ("streamwise bench one",), ("streamwise bench one --brief",)),
    Section(
        "two", "The second: more", "What it is.", ("streamwise bench two", "streamwise bench two --more")
    ),
    Section("by-hand", "By hand", "What it is."),
    Section("long", "Hours", "What it is.", ("streamwise bench long",), minutes=600, routine=False),
]


def result(name: str, **changes) -> Result:
    said = {"commands": [f"streamwise bench {name}"], "day": "2026-02-01", "commit": f"{name}1234"}
    return Result(**{**said, "machine": f"a machine for {name}", "tables": f"figures of {name}\n", **changes})


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run `bench all` with commands that are not run but stood in for: what they print, and exit codes."""
    monkeypatch.setattr(measurements, "SECTIONS", SECTIONS)
    monkeypatch.setattr(measurements, "KEPT", tmp_path / "docs" / "benchmarks")
    monkeypatch.setattr(measurements, "commit", lambda: "abc1234")
    monkeypatch.chdir(tmp_path)
    codes, ran = {}, []

    def run(command, env, check):
        name = " ".join(command[3:])
        ran.append(name)
        with open(env[tables.TABLES], "a") as file:
            file.write("" if codes.get(name) else f"printed by {name}\n\n")
        return subprocess.CompletedProcess(command, codes.get(name, 0))

    monkeypatch.setattr(measurements.subprocess, "run", run)

    def bench(**options):
        code = measurements.main(measurements.Options(**options))
        of = "outputs" if options.get("brief") else "docs"
        return code, (tmp_path / of / "benchmarks.md").read_text()

    bench.kept, bench.codes, bench.ran = tmp_path / "docs" / "benchmarks", codes, ran
    return bench


def test_markdown_of_a_table_keeps_every_cell_and_escapes_pipes():
    table = Table("name", "P(a|b)", title="medians [lowest, highest]")
    table.columns[1].justify = "right"
    table.add_row("x | y", "[1, 2]")
    table.add_row("two\nlines", "")
    lines = tables.markdown(table).splitlines()
    assert lines == [
        "**medians [lowest, highest]**",
        "",
        r"| name | P(a\|b) |",
        "| --- | --: |",
        r"| x \| y | [1, 2] |",
        "| two lines |  |",
    ]


def test_what_is_shown_is_printed_whole_and_kept_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(tables.TABLES, str(tmp_path / "kept.md"))
    table = Table("median [lowest, highest]")
    table.add_row("1 [0, 2]")
    tables.show(table)
    tables.show("a line of [words] " + 40 * "and more ")
    output = capsys.readouterr().out
    assert "median [lowest, highest]" in output
    assert "a line of [words] " + 40 * "and more " in output
    kept = (tmp_path / "kept.md").read_text()
    assert kept.startswith(tables.markdown(table) + "\n\na line of [words] and")
    monkeypatch.delenv(tables.TABLES)
    tables.show("not kept")
    assert (tmp_path / "kept.md").read_text() == kept


def test_results_are_read_as_they_were_written(tmp_path):
    written = {
        "one": result(
            "one", minutes=1.5, tables='| a \\| b | """ | µ ± |\n| --: |\n\n\\"\n', failure='"x"\nended'
        ),
        "two": result("two", earlier=True, tables=""),
    }
    for name, each in written.items():
        page.write_result(tmp_path / "results", name, each)
    assert page.read_results(tmp_path / "results") == written


def test_the_page_says_of_each_section_what_is_known():
    results = {
        "one": result("one", minutes=12.2),
        "two": result("two", earlier=True, commands=["streamwise bench two", "streamwise bench two --more"]),
        "long": result("long", failure="`streamwise bench long` ended with exit code 1"),
    }
    text = page.draw(SECTIONS, results, "Nothing is **good**.\n")
    one, two, by_hand, long, last = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for name, part in (("one", one), ("two", two), ("long", long)):
        for said in (f"figures of {name}", f"`streamwise bench {name}`", f"{name}1234", "1 February 2026"):
            assert said in part
        assert f"a machine for {name}" in part
    assert "12.2 minutes" in one
    assert "measured earlier" in two
    assert "measured earlier" not in one
    assert "`streamwise bench two --more`" in two
    assert "Not measured yet" in by_hand
    assert "failed**: `streamwise bench long` ended with exit code 1" in long
    assert last == "Not good yet\n\nNothing is **good**.\n"
    overview = {line.split("]")[0][3:]: line for line in text.splitlines() if line.startswith("| [")}
    assert list(overview) == [section.title for section in SECTIONS]
    assert "#the-second-more)" in overview["The second: more"]
    assert "**not measured**" in overview["By hand"]
    assert "**failed**" in overview["Hours"]


def test_all_measures_what_takes_minutes_and_names_what_is_missing(bench, capsys):
    code, text = bench()
    assert bench.ran == ["bench one", "bench two", "bench two --more"]
    assert code == 1
    assert "failed or never measured: by-hand, long\n" in capsys.readouterr().err
    assert "printed by bench two\n\nprinted by bench two --more" in text
    for name in ("by-hand", "long"):
        page.write_result(bench.kept, name, result(name, earlier=True))
    assert bench(draw=True)[0] == 0
    assert len(bench.ran) == 3


def test_only_keeps_the_results_of_others(bench):
    for section in SECTIONS:
        page.write_result(bench.kept, section.name, result(section.name))
    before = {path.name: path.read_bytes() for path in bench.kept.iterdir()}
    code, text = bench(only=("long",))
    assert code == 0
    assert bench.ran == ["bench long"]
    after = {path.name: path.read_bytes() for path in bench.kept.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"long.toml"}
    assert "figures of one" in text
    assert "printed by bench long" in text
    assert "abc1234" in text


def test_a_section_that_fails_is_named_and_keeps_what_was_measured_before(bench):
    for section in SECTIONS:
        page.write_result(bench.kept, section.name, result(section.name))
    bench.codes["bench one"] = 3
    code, text = bench(only=("one",))
    assert code == 1
    assert "`streamwise bench one` ended with exit code 3" in text
    assert "figures of one" in text
    assert "1 February 2026, commit one1234" in text
    del bench.codes["bench one"]
    code, text = bench(only=("one",))
    assert code == 0
    assert "exit code 3" not in text
    assert "figures of one" not in text


def test_of_a_section_that_fails_half_way_the_new_half_is_shown(bench):
    page.write_result(bench.kept, "two", result("two"))
    bench.codes["bench two --more"] = 1
    assert bench(only=("two",))[0] == 1
    kept = page.read_results(bench.kept)["two"]
    assert kept.tables == "printed by bench two\n\n"
    assert kept.failure == "`streamwise bench two --more` ended with exit code 1"


def test_brief_leaves_the_page_alone(bench):
    code, text = bench(brief=True)
    assert code == 0
    assert bench.ran == ["bench one --brief"]
    assert "The second" not in text
    assert not bench.kept.exists()
    assert not bench.kept.with_suffix(".md").exists()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("tow", "Did you mean 'two'?"),
        ("by-hand", "has no command"),
        ("", "Choose from one, two, by-hand, long."),
    ],
)
def test_a_section_that_cannot_be_measured_is_named(bench, name, complaint):
    with pytest.raises(UsageError, match=re.escape(complaint)):
        bench(only=(name,))
    assert not bench.ran


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ((), "there is no section 'tow'. Choose from step, tpp, "),
        (("--drawn",), "there is no --drawn; perhaps --draw? See `streamwise bench all --help`."),
    ],
)
def test_what_is_wrong_with_the_command_of_a_script_is_said_in_one_line(flags, complaint):
    command = [sys.executable, SCRIPTS / "all.py", "--only", "tow", *flags]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"streamwise bench all: {complaint}")
    assert run.stderr.count("\n") == 1


def test_the_commit_says_whether_what_was_measured_is_in_it(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert page.commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    clean = page.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "benchmarks.md").write_text("drawn")
    assert page.commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert page.commit(tmp_path) == f"{clean}, with changes"


def test_the_page_of_the_manual_is_drawn_from_its_results():
    text = page.draw(
        measurements.SECTIONS,
        page.read_results(measurements.KEPT),
        (SCRIPTS / "not_good_yet.md").read_text(),
    )
    assert (ROOT / "docs" / "benchmarks.md").read_text() == text, "draw it: streamwise bench all --draw"
    results = {path.stem for path in measurements.KEPT.iterdir()}
    assert results <= {section.name for section in measurements.SECTIONS}


def commands():
    return [command for section in measurements.SECTIONS for command in (*section.full, *section.brief)]


def name_of(path):
    return path.stem.removesuffix("_speed").replace("_", "-")


@pytest.fixture(scope="module")
def loaded():
    """Scripts by their files' names: `memory` is a package, too, where tests are run."""
    return {}


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_is_one(command, loaded):
    streamwise, bench, name, *flags = shlex.split(command)
    assert (streamwise, bench) == ("streamwise", "bench")
    (path,) = [path for path in SCRIPTS.glob("*.py") if name_of(path) == name]
    if path.stem not in loaded:
        spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
        loaded[path.stem] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[path.stem])
    tyro.cli(loaded[path.stem].Options, args=flags)


def test_help_of_bench_names_every_script_with_its_first_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    output = capsys.readouterr().out
    assert not stop.value.code
    for path in SCRIPTS.glob("*.py"):
        first = path.read_text().partition('"""')[2].partition("\n")[0].removesuffix('"""')
        is_script = 'if __name__ == "__main__"' in path.read_text()
        found = re.search(rf"^  {re.escape(name_of(path))}  +(.+)$", output, re.MULTILINE)
        assert (found is not None and found[1] == first) == is_script
    with pytest.raises(SystemExit) as stop:
        main(["bench"])
    assert stop.value.code == 2
    assert capsys.readouterr().out == output
