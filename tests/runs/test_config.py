"""Settings: presets, what is saved, and what is refused in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from streamwise.agents import AGENTS, StreamACConfig, StreamQConfig, StreamTDConfig
from streamwise.runs.config import RunConfig, load_config, load_preset, preset_names, save_config
from streamwise.streams import UsageError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_complete(name):
    preset = load_preset(name)
    assert preset.agent in AGENTS
    assert type(preset.settings) is AGENTS[preset.agent].Config


def test_the_published_settings_are_what_the_paper_says():
    settings = load_preset("stream-x").settings
    assert (settings.discount, settings.trace_decay, settings.step_size) == (0.99, 0.8, 1.0)
    assert (settings.overshoot_margin, settings.policy_overshoot_margin) == (2.0, 3.0)
    assert settings.step_size_rule == "obgd"
    assert settings.time_feature
    assert not settings.bootstrap_on_truncation


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("agnet = 'stream-q'", "unknown key 'agnet'. Did you mean 'agent'?"),
        ("agent = 'stream-z'", "no agent is named 'stream-z'"),
        ("[settings]\ntrace_dacay = 0.5", "no setting 'trace_dacay'. Did you mean 'trace_decay'?"),
        ("[settings]\ntrace_decay = 'long'", "Expected `float`, got `str`"),
        ("[settings]\ndiscount = 1.5", "discount is 1.5; it lies in [0, 1]"),
        ("settings = 3", "'settings' must be a table"),
        ("agent = ", "is not TOML"),
    ],
)
def test_a_wrong_preset_is_refused_in_one_line_that_names_file_and_key(tmp_path, text, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_preset(str(path))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    if "no agent" not in complaint:
        assert str(path) in str(error.value)


def test_an_unreadable_preset_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_preset(str(tmp_path / "missing.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_preset(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize(
    "config",
    [
        RunConfig("HalfCheetah-v5", StreamACConfig(discount=0.9), seed=3, preset="stream-x"),
        RunConfig("CartPole-v1", StreamQConfig(exploration_steps=7), agent="stream-q", steps=9),
        RunConfig("csv:a.csv", StreamTDConfig(), agent="stream-td", target="OT"),
        RunConfig(
            "csv:a.csv", StreamTDConfig(), agent="stream-td", target="b", features=("a", "b"), trace_decays=()
        ),
    ],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, config):
    save_config(config, tmp_path)
    assert load_config(tmp_path) == dataclasses.replace(config, out=tmp_path)


def test_a_resolved_configuration_says_how_long_exploration_lasts():
    config = RunConfig("CartPole-v1", StreamQConfig(exploration_fraction=0.2), agent="stream-q", steps=1000)
    assert config.resolved().settings.exploration_steps == 200


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": -1}, "--steps is -1"),
        ({"checkpoint_every": 0}, "--checkpoint-every is 0"),
        ({"seed": -2}, "--seed is -2"),
        ({"target": "OT"}, "--target belongs to csv:PATH"),
        ({"features": ("OT",)}, "--features belongs to csv:PATH"),
        ({"trace_decays": (0.9,)}, "--trace-decays belongs to csv:PATH"),
        ({"episodic_life": True}, "--episodic-life belongs to Atari"),
        ({"environment": "csv:x.csv"}, "use --agent stream-td"),
        ({"agent": "stream-td"}, "use csv:PATH"),
        ({"environment": "csv:x.csv", "agent": "stream-td"}, "needs --target COLUMN"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, complaint):
    options = {"environment": "CartPole-v1", "settings": StreamACConfig(), **changes}
    with pytest.raises(UsageError) as error:
        RunConfig(**options)
    assert complaint in str(error.value)


def test_default_directories_tell_runs_apart():
    names = {
        RunConfig(environment, StreamACConfig(step_size_rule=rule), seed=seed).directory
        for environment in ("HalfCheetah-v5", "dm_control/cheetah-run-v0")
        for rule in ("obgd", "intentional")
        for seed in (0, 1)
    }
    assert len(names) == 8
    assert all(directory.parent == Path("outputs") for directory in names)


def test_default_directories_of_one_series_tell_its_targets_apart():
    names = [
        RunConfig("csv:data/tides.csv", StreamTDConfig(), agent="stream-td", target=target).directory.name
        for target in ("height", "wind speed")
    ]
    assert names == [
        f"data-tides.csv-{target}-stream-td-intentional-seed0" for target in ("height", "wind-speed")
    ]
