"""Synthetic events by URL: what the parameters mean, and what is refused."""

from __future__ import annotations

import pytest

from streamwise.streams.errors import UsageError
from streamwise.streams.point_processes import (
    GammaGaps,
)
from streamwise.streams.synthetic import SyntheticSource


def test_the_defaults_are_those_of_the_manual():
    source = SyntheticSource.from_url_parts("hawkes", {})
    assert (source.keys, source.events, source.seed, source.speed) == (100, 100_000, 0, None)
    assert source.start == 1_600_000_000.0
    assert source.truth.time_scales.tolist() == [60.0, 3_600.0, 86_400.0]
    assert source.truth.types == 5
    assert source.truth.branching_ratio == pytest.approx(0.6)
    assert source.name == "synthetic:hawkes"
    assert len(SyntheticSource.from_url_parts("drift", {"shape": "recurring"}).truth.regimes) == 3


def test_rates_are_per_hour_and_make_the_types():
    truth = SyntheticSource.from_url_parts("poisson", {"rates": "36,72"}).truth
    assert truth.base == pytest.approx([0.01, 0.02])
    assert SyntheticSource.from_url_parts(
        "poisson", {"rate": "36", "types": "4"}
    ).truth.base.sum() == pytest.approx(0.01)


def test_parameters_reach_the_process_and_the_source():
    query = {"gaps": "gamma", "mean": "5", "cv": "0.5", "types": "2", "speed": "60", "seed": str(2**64 - 1)}
    source = SyntheticSource.from_url_parts("renewal", query)
    assert source.truth.gaps == GammaGaps(5.0, 0.5)
    assert (source.truth.types, source.speed, source.seed) == (2, 60.0, 2**64 - 1)
    source = SyntheticSource.from_url_parts(
        "drift", {"period": "500events", "shape": "gradual", "regimes": "4"}
    )
    assert (source.truth.period, source.truth.unit, source.truth.shape) == (500.0, "events", "gradual")
    assert len(source.truth.regimes) == 4


@pytest.mark.parametrize(
    ("kind", "query", "said"),
    [
        (
            "hawks",
            {},
            "no synthetic process 'hawks'. Did you mean 'hawkes'? Choose one of: hawkes, poisson, renewal",
        ),
        ("", {}, "no synthetic process ''. Choose one of"),
        (
            "hawkes",
            {"branchin": "0.5"},
            "does not take 'branchin' here. Did you mean 'branching'? Choose from: events,",
        ),
        ("hawkes", {"sped": "60"}, "Did you mean 'speed'?"),
        ("hawkes", {"speed": ""}, "speed of synthetic:hawkes is ''"),
        ("hawkes", {"median": "5"}, "synthetic:hawkes does not take 'median' here."),
        ("poisson", {"rates": "1,2", "types": "2"}, "does not take 'types' here."),
        ("renewal", {"gaps": "gamma", "sigma": "2"}, "does not take 'sigma' here."),
        ("hawkes", {"line\nbreak": "1"}, "does not take 'line\\nbreak' here."),
        (
            "hawkes",
            {"events": "many\nmore"},
            "events of synthetic:hawkes is 'many\\nmore'; use an integer from 0 to",
        ),
        ("hawkes", {"events": "-1"}, "events of synthetic:hawkes is '-1'"),
        ("hawkes", {"events": "1e6"}, "events of synthetic:hawkes is '1e6'"),
        ("hawkes", {"keys": "0"}, "use an integer from 1 to 1000000"),
        ("hawkes", {"seed": str(2**64)}, "seed of synthetic:hawkes"),
        ("hawkes", {"seed": "²"}, "seed of synthetic:hawkes is '²'"),
        ("hawkes", {"types": "0"}, "types of synthetic:hawkes is '0'"),
        ("hawkes", {"start": "-1"}, "start of synthetic:hawkes is '-1'"),
        ("hawkes", {"start": "nan"}, "start of synthetic:hawkes is 'nan'"),
        ("hawkes", {"speed": "0"}, "speed of synthetic:hawkes is '0'; use a number from 1e-06 to 1e+09"),
        ("hawkes", {"branching": "1"}, "branching of synthetic:hawkes is '1'; use a number from 0 to 0.999"),
        ("hawkes", {"rate": "0"}, "rate of synthetic:hawkes"),
        ("hawkes", {"rate": "inf"}, "rate of synthetic:hawkes"),
        ("hawkes", {"rate": "1_0"}, "rate of synthetic:hawkes"),
        ("hawkes", {"scales": "60,,3600"}, "scales of synthetic:hawkes is '60,,3600'"),
        ("hawkes", {"scales": ""}, "scales of synthetic:hawkes is ''"),
        ("poisson", {"rates": "0,0"}, "use a rate above 0"),
        ("poisson", {"rates": "1,-1"}, "rates of synthetic:poisson is '1,-1'"),
        ("renewal", {"gaps": "gama"}, "use one of: lognormal, gamma. Did you mean 'gamma'?"),
        ("renewal", {"median": "0"}, "median of synthetic:renewal"),
        ("renewal", {"sigma": "-1"}, "sigma of synthetic:renewal"),
        ("renewal", {"gaps": "gamma", "cv": "0"}, "cv of synthetic:renewal"),
        ("drift", {"shape": "abrut"}, "use one of: abrupt, gradual, recurring. Did you mean 'abrupt'?"),
        ("drift", {"regimes": "1"}, "regimes of synthetic:drift is '1'"),
        ("drift", {"period": "events"}, "period of synthetic:drift is 'events'"),
        ("drift", {"period": "3days"}, "use a number from 0.001 to 1e+12, of seconds, or followed by events"),
        ("drift", {"period": "0"}, "period of synthetic:drift is '0'"),
    ],
)
def test_a_wrong_url_is_refused_in_one_line(kind, query, said):
    with pytest.raises(UsageError) as refused:
        SyntheticSource.from_url_parts(kind, query)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
