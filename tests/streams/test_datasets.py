"""Data sets as streams: what each schedule promises, that it goes on where it was, and what it refuses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.streams import UsageError
from streamwise.streams.datasets import SCHEDULES, DatasetSettings, DatasetStream, dataset_stream

pytest.importorskip(
    "sklearn", reason="scikit-learn brings the data sets; pip install 'streamwise[continual]'"
)


def rows(examples):
    return sorted((example.label, example.features.tobytes()) for example in examples)


def drawn(url):
    stream = dataset_stream(url)
    return stream, list(stream)


def test_classes_come_in_groups_that_cover_all_and_tests_hold_one_in_five_of_each():
    stream, examples = drawn("dataset:digits?schedule=split&experiences=5&seed=3")
    labels = np.array([example.label for example in examples])
    groups = [set(labels[segment.start : segment.stop]) for segment in stream.segments]
    assert [len(group) for group in groups] == [2] * 5
    assert set().union(*groups) == set(range(10))
    assert [set(test.labels) for test in stream.tests] == groups
    whole = np.concatenate([labels, *(test.labels for test in stream.tests)])
    assert len(whole) == 1797
    for label in range(10):
        count = (whole == label).sum()
        assert sum((test.labels == label).sum() for test in stream.tests) == count // 5


def test_the_seed_decides_the_order_of_classes_and_what_is_tested():
    firsts = [dataset_stream(f"dataset:digits?seed={seed}").tests[0].labels for seed in range(5)]
    assert len({tuple(sorted(set(labels))) for labels in firsts}) > 1
    wine = "dataset:wine?schedule=joint&seed="
    assert rows(drawn(f"{wine}4")[1]) == rows(drawn(f"{wine}4")[1])
    assert rows(drawn(f"{wine}4")[1]) != rows(drawn(f"{wine}5")[1])


def test_domains_are_ranges_of_the_first_feature():
    stream = dataset_stream("dataset:breast-cancer?schedule=domains&experiences=4")
    examples = list(dataset_stream("dataset:breast-cancer?schedule=domains&experiences=4"))
    first = np.array([example.features[0] for example in examples])
    ends = [(first[s.start : s.stop].min(), first[s.start : s.stop].max()) for s in stream.segments]
    assert all(low[1] <= high[0] for low, high in pairwise(ends))
    sizes = [segment.stop - segment.start for segment in stream.segments]
    assert max(sizes) - min(sizes) <= 0.2 * max(sizes)
    for (low, high), test in zip(ends, stream.tests, strict=True):
        inside = (test.features[:, 0] >= low - 0.2) & (test.features[:, 0] <= high + 0.2)
        assert inside.mean() > 0.9


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_permutations_move_features_and_change_nothing_else(name):
    stream, examples = drawn(f"dataset:{name}?schedule=permuted&experiences=3&seed=1")
    worlds = [examples[s.start : s.stop] for s in stream.segments]
    by_value = [sorted((e.label, np.sort(e.features).tobytes()) for e in world) for world in worlds]
    assert by_value[0] == by_value[1] == by_value[2]
    assert rows(worlds[0]) != rows(worlds[1])


def test_a_quarter_turn_four_times_is_none():
    stream = dataset_stream("dataset:digits?schedule=rotated&experiences=4")
    pictures = [test.features.reshape(-1, 8, 8) for test in stream.tests]
    for turns, turned in enumerate(pictures):
        np.testing.assert_array_equal(np.rot90(pictures[0], turns, axes=(1, 2)), turned)


def test_a_gradual_change_begins_in_one_world_and_ends_in_the_other():
    stream = dataset_stream("dataset:digits?schedule=gradual&seed=2")
    of_second = stream._order[:, 0]
    tenths = [part.mean() for part in np.array_split(of_second, 10)]
    assert tenths[0] < 0.15
    assert tenths[-1] > 0.85
    assert np.corrcoef(tenths, np.arange(10))[0, 1] > 0.97


def test_worlds_come_back_as_they_were():
    stream, examples = drawn("dataset:wine?schedule=recurring")
    assert [segment.experience for segment in stream.segments] == [0, 1, 0, 2, 0]
    worlds = [rows(examples[s.start : s.stop]) for s in stream.segments]
    assert worlds[0] == worlds[2] == worlds[4]
    assert worlds[1] != worlds[0] != worlds[3]


@pytest.mark.parametrize("blur", [0.1, 0.5, 1.0])
def test_a_blurred_boundary_mixes_neighbours_and_loses_nothing(blur):
    sharp, examples = drawn("dataset:digits?schedule=split")
    blurred, mixed = drawn(f"dataset:digits?schedule=split&blur={blur}")
    assert rows(examples) == rows(mixed)
    assert blurred.segments == sharp.segments
    worlds = blurred._order[:, 0]
    for before, after in pairwise(blurred.segments):
        reach = int(blur * min(before.stop - before.start, after.stop - after.start))
        near = worlds[before.stop - reach // 4 - 1 : after.start + reach // 4 + 1]
        assert set(near) >= {before.experience, after.experience}
    if blur == 0.1:
        middle = [worlds[(s.start + s.stop) // 2] for s in blurred.segments]
        assert middle == [s.experience for s in blurred.segments]


def test_epochs_repeat_a_segment_before_the_next_begins():
    once, first = drawn("dataset:iris?experiences=3")
    stream, examples = drawn("dataset:iris?experiences=3&epochs=2")
    for one, two in zip(once.segments, stream.segments, strict=True):
        part = rows(examples[two.start : two.stop])
        assert part[::2] == part[1::2] == rows(first[one.start : one.stop])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    schedule=st.sampled_from(sorted({*SCHEDULES} - {"rotated"})),
    place=st.integers(0, 120),
    seed=st.integers(0, 3),
)
def test_it_goes_on_where_it_was(schedule, place, seed):
    url = f"dataset:iris?schedule={schedule}&experiences=3&seed={seed}&blur=0.3"
    stream, whole = dataset_stream(url), list(dataset_stream(url))
    for _ in zip(range(place), stream, strict=False):
        pass
    again = dataset_stream(url)
    again.seek(stream.position)
    rest = list(again)
    assert [(e.label, e.features.tobytes()) for e in rest] == [
        (e.label, e.features.tobytes()) for e in whole[stream.position["example"] :]
    ]


def test_features_are_in_units_that_the_first_world_gives():
    stream, examples = drawn("dataset:wine?experiences=3")
    first = np.stack([example.features for example in examples[: stream.segments[0].stop]])
    np.testing.assert_allclose(first.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(first.std(0), 1.0, atol=1e-4)
    _, digits = drawn("dataset:digits?schedule=joint")
    values = np.stack([example.features for example in digits])
    assert (values.min(), values.max()) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("dataset:digit", "Did you mean 'digits'"),
        ("dataset:digits?schedul=split", "Did you mean 'schedule'"),
        ("dataset:digits?schedule=spilt", "Did you mean 'split'"),
        ("dataset:digits?experiences=many", "experiences=many is no number"),
        ("dataset:digits?blur=2", "blur 2.0; use"),
        ("dataset:wine?schedule=rotated", "no pictures to turn"),
        ("dataset:digits?schedule=rotated&experiences=9", "four quarters"),
        ("dataset:wine?experiences=7", "3 classes"),
    ],
)
def test_what_it_cannot_be_is_said_in_a_line(url, says):
    with pytest.raises(UsageError, match=says) as caught:
        dataset_stream(url)
    assert "\n" not in str(caught.value)


def test_settings_are_those_of_the_url():
    assert dataset_stream("dataset:iris?experiences=3&seed=7&blur=0.2").settings == DatasetSettings(
        "iris", experiences=3, seed=7, blur=0.2
    )
    assert len(DatasetStream(DatasetSettings("iris", experiences=3))) == 120


def test_mixed_is_all_experiences_in_one_segment_and_the_tests_stay():
    url = "dataset:digits?schedule=permuted&experiences=3&seed=2"
    apart, examples = drawn(url)
    together, mixed = drawn(f"{url}&mixed=true")
    assert [tuple(segment) for segment in together.segments] == [(0, len(examples), 0)]
    assert rows(mixed) == rows(examples)
    assert [e.features.tobytes() for e in mixed] != [e.features.tobytes() for e in examples]
    for one, other in zip(apart.tests, together.tests, strict=True):
        assert np.array_equal(one.features, other.features)
    with pytest.raises(UsageError, match="mixed=maybe; use true or false"):
        dataset_stream(f"{url}&mixed=maybe")
