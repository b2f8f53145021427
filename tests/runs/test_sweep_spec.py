"""Specifications of sweeps: what they mean, and what is said of wrong ones."""

from __future__ import annotations

import itertools

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamwise.agents import StreamQConfig
from streamwise.envs import family_of
from streamwise.runs.config import load_preset
from streamwise.runs.sweep_spec import Resources, load_sweep, sweep_names
from streamwise.streams import UsageError

GRID = """
environments = ["HalfCheetah-v5", "CartPole-v1"]
seeds = 2
steps = 1_000

[agents.intentional]
[agents.published]
preset = "stream-x"

[overrides."CartPole-v1"]
steps = 500

[grid]
trace_decay = [0.8, 0.9]

[[runs]]
environment = "Hopper-v5"
agent = "published"
seed = 3
"""


def read(tmp_path, text, name="spec.toml"):
    (tmp_path / name).write_text(text)
    return load_sweep(str(tmp_path / name))


def test_a_grid_is_every_combination_and_single_runs_come_beside_it(tmp_path):
    spec = read(tmp_path, GRID)
    assert spec.name == "spec"
    assert spec.resources == Resources(cpus=1.0)
    found = [
        (c.environment, c.label, c.settings.trace_decay, c.seed, c.steps)
        for c in (run.config for run in spec.runs)
    ]
    expected = [
        (environment, f"{agent} trace_decay={decay}", decay, seed, steps)
        for (environment, steps), agent, decay, seed in itertools.product(
            [("HalfCheetah-v5", 1_000), ("CartPole-v1", 500)],
            ["intentional", "published"],
            [0.8, 0.9],
            [0, 1],
        )
    ]
    assert found == [*expected, ("Hopper-v5", "published", 0.8, 3, 1_000)]
    assert len({run.name for run in spec.runs}) == len(spec.runs)


def test_a_preset_is_what_train_makes_of_it(tmp_path):
    run = read(tmp_path, GRID).runs[-1].config
    assert run.settings == load_preset("stream-x").settings
    assert run.preset == "stream-x"


def test_the_later_of_two_flags_holds(tmp_path):
    """The preset's, the whole file's, the agent's, the environment's, the grid's, the run's own."""
    text = """
    environments = ["CartPole-v1"]
    {file}
    [agents.q]
    preset = "stream-x-q"
    {agent}
    [overrides."CartPole-v1"]
    {environment}
    [grid]
    {grid}
    [[runs]]
    environment = "CartPole-v1"
    seed = 9
    {run}
    """
    empty = dict.fromkeys(("file", "agent", "environment", "grid", "run"), "")
    given = dict(empty)
    expected = StreamQConfig().discount
    for place, discount in zip(empty, (0.5, 0.6, 0.7, 0.8, 0.9), strict=True):
        given[place] = f"discount = {[discount] if place == 'grid' else discount}"
        before = expected
        expected = discount
        runs = read(tmp_path, text.format(**given)).runs
        grid, single = runs[0].config.settings.discount, runs[-1].config.settings.discount
        if place == "run":
            assert (grid, single) == (before, expected)
        else:
            assert grid == expected
        assert runs[0].config.agent == "stream-q"


def test_without_agents_it_is_train_as_it_is(tmp_path):
    runs = read(tmp_path, 'environments = ["HalfCheetah-v5"]\nseeds = [4]').runs
    assert [(run.config.agent, run.config.label, run.config.seed) for run in runs] == [
        ("stream-ac", "stream-ac", 4)
    ]


def test_a_series_goes_to_the_learner_that_predicts(tmp_path):
    text = 'environments = ["csv:ett.csv"]\ntarget = "OT"\ntrace_decays = [0.9]'
    run = read(tmp_path, text).runs[0].config
    assert (run.agent, run.target, run.trace_decays) == ("stream-td", "OT", (0.9,))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = 2", "seeds = 0", "seeds = 0 must be how many"),
        ("seeds = 2", 'seeds = ["a"]', "seeds = ['a'] must be how many"),
        ("steps = 1_000", "stpes = 1_000", "unknown key 'stpes'. Did you mean 'steps'?"),
        ("steps = 1_000", "steps = 'x'", "HalfCheetah-v5, intentional trace_decay=0.8: Expected `int`"),
        ("steps = 1_000", "steps = 0", "--steps is 0; use 1 or more"),
        ("steps = 1_000", "out = 'x'", "'out' cannot be set here; use --out"),
        ("steps = 1_000", "epsilon_start = 0.5", "'epsilon_start' is a flag of none of the agents here"),
        ("steps = 1_000", 'name = "../x"', "name = '../x' is no name of a folder"),
        ('preset = "stream-x"', 'preset = "stream-y"', "no preset is named 'stream-y'"),
        ('preset = "stream-x"', 'agent = "stream-z"', "no agent is named 'stream-z'"),
        ('preset = "stream-x"', 'preset = "stream-x"\nagent = "stream-q"', "is for stream-ac, not stream-q"),
        ("[agents.intentional]", "[agents]\nx = 3\n[agents.intentional]", "'agents' must be tables"),
        ("steps = 500", "step = 500", "[overrides.\"CartPole-v1\"]: unknown key 'step'"),
        ('"HalfCheetah-v5", "CartPole-v1"', '"HalfCheetah-v5"', '"CartPole-v1"] is of no environment'),
        ('"HalfCheetah-v5", "CartPole-v1"', '"HalfCheetah-v5", 3', "must be a list of names"),
        ("trace_decay = [0.8, 0.9]", "foo = [1]", "[grid]: unknown key 'foo'"),
        ("trace_decay = [0.8, 0.9]", "trace_decay = 3", "trace_decay = 3 must be a list of values"),
        ("trace_decay = [0.8, 0.9]", "trace_decay = ['b']", "Expected `float`, got `str`"),
        ("trace_decay = [0.8, 0.9]", "trace_decay = [2.0]", "trace_decay is 2.0; it lies in [0, 1]"),
        ("trace_decay = [0.8, 0.9]", "trace_decay = [0.8, 0.8]", "two runs are named"),
        ("seed = 3", "seed = 'x'", "[[runs]] number 1: seed = 'x' must be a whole number"),
        ("seed = 3", "seed = -3", "--seed is -3"),
        ('environment = "Hopper-v5"', "", "[[runs]] number 1: 'environment' must name one"),
        ('agent = "published"', 'agent = "publsihed"', "Did you mean 'published'?"),
        (
            "seed = 3",
            "seed = 3\n[resources]\ncpu = 3",
            "[resources]: unknown key 'cpu'. Did you mean 'cpus'?",
        ),
        ("seed = 3", "seed = 3\n[resources]\ncpus = 0", "[resources]: cpus is 0"),
        ("seed = 3", "seed = 3\n[resources]\ncpus = 'a'", "[resources]: Expected `float`"),
        (GRID, "steps = 5", "it names no runs"),
        (GRID, "steps = ", "is not TOML"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line_that_says_where(tmp_path, old, new, said):
    assert old in GRID
    with pytest.raises(UsageError) as error:
        read(tmp_path, GRID.replace(old, new, 1))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["nowhere.toml", "smal", "."])
def test_what_is_no_specification_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no|nor the name of one"):
        load_sweep(source)


words = st.sampled_from(["", "x", "steps", "stream-q", "stream-x", "CartPole-v1", "csv:x.csv", "../x\n"])
json_values = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.floats(-2.0, 2.0) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["name", "environments", "seeds", "agents", "overrides", "grid", "runs", "resources", "steps", "preset"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables=st.dictionaries(keys, json_values, max_size=4))
def test_whatever_the_tables_hold_they_are_read_or_refused_in_one_line(tmp_path_factory, tables):
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    said = ""
    try:
        load_sweep(str(path))
    except UsageError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("name", sweep_names())
def test_the_sweeps_that_come_along_name_environments_that_there_are(name):
    spec = load_sweep(name)
    assert spec.runs
    for environment in {run.config.environment for run in spec.runs}:
        family_of(environment)
